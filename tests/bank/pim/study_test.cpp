// SPDX-License-Identifier: MIT
#include "bench/pqattn_pim/study.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>

#include "pqattn/bank/pim/closed_forms.hpp"

namespace pim = pqattn::pim;

TEST_CASE("dense attention of the studies is the closed form and refresh", "[pim][study]") {
  const pim::device d = pim::hbm3_attacc();
  for (const std::int64_t tokens : {4096, 32768, 131072}) {
    const std::int64_t cycles = pqattn_pim::dense_head(d, tokens, 1).cycles;
    const std::int64_t expected = pim::with_refresh_estimate(d, pim::dense_attention_cycles(d, {1, tokens, 128, 2}));
    INFO(tokens << " tokens: " << cycles << ", expected " << expected);
    // The estimate spreads refreshes evenly, the walker meets whole ones: one of them, and 2 % for both ends.
    const std::int64_t refresh = d.timing.rfc + d.timing.rp_ab + d.timing.rcd_rd;
    CHECK(std::abs(cycles - expected) <= refresh + expected / 50);
    CHECK(pqattn_pim::dense_head(d, tokens, 4).cycles > 3 * cycles);
  }
}

TEST_CASE("a head's cost grows with context and falls with look-ups per slot", "[pim][study]") {
  pim::device d = pim::hbm3_attacc();
  const auto one = pqattn_pim::pq_head(d, 8192, {});
  CHECK(one.cycles > 0);
  CHECK(one.pj > 0);
  CHECK(pqattn_pim::pq_head(d, 16384, {}).cycles > one.cycles);
  // One slot for each look-up of K and of V in 64 banks, and nothing cheaper.
  CHECK(one.slots > 2 * 32 * 8192);
  d.pim.lookups_per_slot = 16;
  CHECK(pqattn_pim::pq_head(d, 8192, {}).cycles < one.cycles);
  CHECK(pqattn_pim::pq_head(d, 8192, {}).slots < one.slots);
}
