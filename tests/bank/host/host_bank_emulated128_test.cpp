// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/host_bank.hpp"

#include <catch2/catch_test_macros.hpp>
#include <string>

#include "bank/conformance.hpp"

TEST_CASE("the host bank keeps the contract on emulated 128-bit registers", "[bank]") {
  pqattn::host_bank<pqattn::isa::emulated<128>> bank;
  REQUIRE(std::string(bank.arch_name()) == "emulated128");
  pqattn_test::check_bank(bank, pqattn_test::f32_limits);
}
