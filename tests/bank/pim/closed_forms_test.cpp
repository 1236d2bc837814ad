// SPDX-License-Identifier: MIT
#include <pqattn/bank/pim/closed_forms.hpp>

#include <cstdint>

#include <catch2/catch_test_macros.hpp>

#include "random_devices.hpp"

namespace pim = pqattn::pim;
using pim::opcode;

namespace {

std::int64_t walk(const pim::device& d, opcode op, std::int64_t rows, std::int64_t count) {
  pim::walker w;
  REQUIRE(w.configure(d, {.refresh = false}).ok());
  for (std::int64_t r = 0; r < rows; ++r) {
    REQUIRE(w.issue({.op = op, .row = static_cast<std::int32_t>(r), .count = count}).ok());
  }
  return w.finish_cycle();
}

}  // namespace

TEST_CASE("closed forms equal the walker on random devices and shapes", "[pim][closed_forms]") {
  pim_test::random_source random(20);
  for (int i = 0; i < 400; ++i) {
    const pim::device d = pim_test::random_device(random);
    const std::int64_t rows = random.from(1, 40);
    const std::int64_t columns = random.from(1, d.organisation.columns_per_row());
    const std::int64_t lookups = random.from(1, 2000);
    CAPTURE(i, rows, columns, lookups);
    CHECK(walk(d, opcode::rd, rows, columns) == pim::stream_read_cycles(d, rows, columns));
    CHECK(walk(d, opcode::rd, rows, 1) == pim::conflict_read_cycles(d, rows));
    CHECK(walk(d, opcode::mac_ab, rows, columns) == pim::mac_cycles(d, rows, columns));
    CHECK(walk(d, opcode::lut, rows, lookups) == pim::lut_cycles(d, rows, lookups));
  }
}

TEST_CASE("closed forms equal the walker on the presets", "[pim][closed_forms]") {
  for (const pim::named_preset& preset : pim::presets) {
    const pim::device d = preset.make();
    CAPTURE(preset.name);
    CHECK(walk(d, opcode::rd, 9, d.organisation.columns_per_row()) ==
          pim::stream_read_cycles(d, 9, d.organisation.columns_per_row()));
    if (d.pim.present) {
      CHECK(walk(d, opcode::mac_ab, 9, d.organisation.columns_per_row()) ==
            pim::mac_cycles(d, 9, d.organisation.columns_per_row()));
      CHECK(walk(d, opcode::lut, 5, 777) == pim::lut_cycles(d, 5, 777));
    }
  }
}

TEST_CASE("dense attention has the published form", "[pim][closed_forms]") {
  // ceil(heads / 16) (M t + R (tRTP + tRP + tRCD - t)), M = 4 ceil(L / 16), R = M / 32.
  CHECK(pim::dense_attention_cycles(pim::hbm3_attacc(), {188, 2048, 128, 2}) == 12 * (512 * 6 + 16 * (46 - 6)));
  CHECK(pim::dense_attention_cycles(pim::hbm3_attacc_npc(), {188, 2048, 128, 2}) == 12 * (512 * 4 + 16 * (46 - 4)));
  CHECK(pim::dense_attention_macs(pim::hbm3_attacc(), {1, 1, 128, 2}) == 4);
  // Its steady state is the walker's: the difference of two lengths has no edges.
  const pim::device d = pim::hbm3_attacc();
  const auto rows_of = [&](std::int64_t tokens) {
    return pim::dense_attention_macs(d, {1, tokens, 128, 2}) / d.organisation.columns_per_row();
  };
  CHECK(walk(d, opcode::mac_ab, rows_of(4096), 32) - walk(d, opcode::mac_ab, rows_of(2048), 32) ==
        pim::dense_attention_cycles(d, {1, 4096, 128, 2}) - pim::dense_attention_cycles(d, {1, 2048, 128, 2}));
}

TEST_CASE("the refresh estimate is near the walker", "[pim][closed_forms]") {
  for (const pim::named_preset& preset : pim::presets) {
    const pim::device d = preset.make();
    const std::int64_t columns = d.organisation.columns_per_row();
    pim::walker w;
    REQUIRE(w.configure(d).ok());
    for (std::int32_t r = 0; r < 3000; ++r) {
      REQUIRE(w.issue({.op = opcode::rd, .row = r, .count = columns}).ok());
    }
    const auto estimate = static_cast<double>(pim::with_refresh_estimate(d, pim::stream_read_cycles(d, 3000, columns)));
    CAPTURE(preset.name);
    CHECK(static_cast<double>(w.finish_cycle()) > 0.98 * estimate);
    CHECK(static_cast<double>(w.finish_cycle()) < 1.02 * estimate);
  }
}

TEST_CASE("a core with DMA", "[pim][closed_forms]") {
  const pim::dma_core k = pim::upmem_ddr4().core;
  CHECK(pim::dma_cycles(k, 8, false) == 77 + 5);  // ceil(8 * 597 / 1024)
  CHECK(pim::dma_cycles(k, 1, false) == pim::dma_cycles(k, 8, false));
  CHECK(pim::dma_cycles(k, 4096, true) == 2 * 61 + 4 * 597);
  // Fewer threads than the issue distance leave slots empty; more fill them.
  CHECK(pim::core_cycles(k, 1100, 1) == 1100 * 11);
  CHECK(pim::core_cycles(k, 1100, 11) == 1100);
  CHECK(pim::core_cycles(k, 2400, 24) == 2400);
  CHECK(pim::core_cycles(k, 2400, 99) == 2400);
}
