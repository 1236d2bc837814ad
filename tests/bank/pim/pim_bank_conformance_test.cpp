// SPDX-License-Identifier: MIT
#include "pqattn/bank/pim/pim_bank.hpp"

#include <catch2/catch_test_macros.hpp>

#include "bank/conformance.hpp"
#include "pqattn/bank/pim/presets.hpp"

namespace pim = pqattn::pim;

TEST_CASE("the emulated bank keeps the contract with entries of 16 bits", "[bank][pim]") {
  pim::pim_bank<> bank;
  REQUIRE_OK(bank.configure(pim::hbm3_attacc()));
  pqattn_test::check_bank(bank, pqattn_test::bank_limits{});
  CHECK(bank.costs().rows().used_bytes() == 0);
}

TEST_CASE("the emulated bank keeps the contract with entries of 32 bits, shared look-ups and wide homes",
          "[bank][pim]") {
  pim::pim_bank<> bank;
  pim::bank_options options;
  options.entries = pim::entry_format::f32;
  options.share_lookups = true;
  options.channels_per_home = 4;
  REQUIRE_OK(bank.configure(pim::gddr6_aim(), options));
  // Sums in f32 throughout, and nothing rounded to 16 bits.
  pqattn_test::check_bank(bank, pqattn_test::bank_limits{1e-11, 1e-5, false});
  CHECK(bank.costs().rows().used_bytes() == 0);
}

TEST_CASE("the emulated bank with striped tokens keeps the contract", "[bank][pim]") {
  pim::pim_bank<pim::token_striped> bank;
  REQUIRE_OK(bank.configure(pim::hbm2_pim_samsung()));
  pqattn_test::check_bank(bank, {});
  CHECK(bank.costs().rows().used_bytes() == 0);
}
