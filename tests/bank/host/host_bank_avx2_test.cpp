// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/host_bank.hpp"

#include <catch2/catch_test_macros.hpp>
#include <string>

#include "bank/conformance.hpp"

TEST_CASE("the host bank keeps the contract on AVX2 with FMA", "[bank]") {
#if XSIMD_WITH_AVX2 && XSIMD_WITH_FMA3_AVX2
  pqattn::host_bank<pqattn::isa::avx2> bank;
  REQUIRE(std::string(bank.arch_name()) == "avx2");
  pqattn_test::check_bank(bank, pqattn_test::rounding_limits);
#else
  SKIP("not compiled for AVX2 with FMA");
#endif
}
