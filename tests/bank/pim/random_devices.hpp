// SPDX-License-Identifier: MIT
// Random but valid devices and helpers for the tests of the emulated PIM bank.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>

#include <pqattn/bank/pim/presets.hpp>
#include <pqattn/bank/pim/walker.hpp>

namespace pim_test {

namespace pim = pqattn::pim;

class random_source {
 public:
  explicit random_source(std::uint32_t seed) : engine_(seed) {}
  [[nodiscard]] std::int64_t from(std::int64_t lowest, std::int64_t highest) {
    // Not std::uniform_int_distribution: its results differ between standard libraries.
    return lowest + static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(highest - lowest + 1));
  }
  [[nodiscard]] std::int32_t small(std::int32_t lowest, std::int32_t highest) {
    return static_cast<std::int32_t>(from(lowest, highest));
  }

 private:
  std::mt19937_64 engine_;
};

/// One command channel with PIM units and arbitrary timing.
[[nodiscard]] inline pim::device random_device(random_source& random) {
  pim::device d;
  pim::organisation& o = d.organisation;
  o.bank_groups = random.small(1, 4);
  o.banks_per_group = random.small(1, 4);
  o.rows_per_bank = 1 << 16;
  o.column_bytes = 32;
  o.row_bytes = 32 * random.small(1, 64);
  pim::timing& t = d.timing;
  t.cl = random.small(0, 50);
  t.cwl = random.small(0, 20);
  t.bl = random.small(1, 4);
  t.rcd_rd = random.small(0, 60);
  t.rcd_wr = random.small(0, 60);
  t.rcd_mac = random.small(0, 60);
  t.act_extra = random.small(0, 2);
  t.rp = random.small(0, 50);
  t.rp_ab = t.rp + random.small(0, 3);
  t.ras = random.small(0, 90);
  t.rc = random.small(0, 150);
  t.ccd_s = random.small(1, 4);
  t.ccd_l = t.ccd_s + random.small(0, 4);
  t.mac = random.small(1, 8);
  t.lut = random.small(1, 8);
  t.rrd_s = random.small(0, 8);
  t.rrd_l = t.rrd_s + random.small(0, 4);
  t.faw = random.small(0, 40);
  t.rtp = random.small(0, 18);
  t.write_to_pre = random.small(0, 40);
  t.read_to_write = random.small(0, 40);
  t.write_to_read_s = random.small(0, 20);
  t.write_to_read_l = t.write_to_read_s + random.small(0, 5);
  t.rfc = random.small(100, 400);
  t.pre_to_ref = random.small(1, 20);
  t.refi = random.small(1500, 5000);
  d.controller.start = random.small(0, 3);
  d.controller.read_end = random.small(0, 2);
  d.controller.pim_end = random.small(0, 2);
  d.pim.present = true;
  d.pim.macs_per_column = 16;
  const std::int32_t banks = o.banks_per_command_channel();
  do {
    d.pim.banks_per_unit = random.small(1, 4);
  } while (banks % d.pim.banks_per_unit != 0);
  d.pim.lookups_per_slot = random.small(1, 16);
  d.pim.mac_latency = random.small(0, 4);
  return d;
}

[[nodiscard]] inline bool same(const pim::totals& a, const pim::totals& b) {
  return a == b;
}

}  // namespace pim_test
