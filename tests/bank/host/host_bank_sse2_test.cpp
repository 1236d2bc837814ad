// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/host_bank.hpp"

#include <catch2/catch_test_macros.hpp>
#include <string>

#include "bank/conformance.hpp"

TEST_CASE("the host bank keeps the contract on SSE2", "[bank]") {
#if XSIMD_WITH_SSE2
  pqattn::host_bank<pqattn::isa::sse2> bank;
  REQUIRE(std::string(bank.arch_name()) == "sse2");
  pqattn_test::check_bank(bank, pqattn_test::f32_limits);
#else
  SKIP("not compiled for SSE2");
#endif
}
