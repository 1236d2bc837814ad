// SPDX-License-Identifier: MIT
// Energy of counted events, in picojoules, by class. An ACT is charged whole, never spread over the bytes read from
// the row, so that sparse look-ups show what they cost; a look-up slot reads a whole column even if it uses two bytes.
#pragma once

#include "counters.hpp"
#include "device.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

/// Picojoules by class.
struct energy_report {
  double activate_pj = 0;
  double array_pj = 0;  ///< fixed column energies and the cell array
  double group_pj = 0;
  double global_pj = 0;
  double tsv_pj = 0;
  double interposer_pj = 0;
  double mac_pj = 0;
  double buffer_pj = 0;
  double refresh_pj = 0;
  double standby_pj = 0;

  [[nodiscard]] constexpr double total_pj() const noexcept {
    return activate_pj + array_pj + group_pj + global_pj + tsv_pj + interposer_pj + mac_pj + buffer_pj + refresh_pj +
           standby_pj;
  }
};

template <class Visitor>
constexpr void visit_energy(Visitor&& visit) {
  visit("activate_pj", &energy_report::activate_pj);
  visit("array_pj", &energy_report::array_pj);
  visit("group_pj", &energy_report::group_pj);
  visit("global_pj", &energy_report::global_pj);
  visit("tsv_pj", &energy_report::tsv_pj);
  visit("interposer_pj", &energy_report::interposer_pj);
  visit("mac_pj", &energy_report::mac_pj);
  visit("buffer_pj", &energy_report::buffer_pj);
  visit("refresh_pj", &energy_report::refresh_pj);
  visit("standby_pj", &energy_report::standby_pj);
}

/// Energy of `counted` on device `d`. `standby_cycles` is the sum over command channels of the time they were on;
/// open_cycles of them had a row open.
[[nodiscard]] constexpr energy_report energy_of(const device& d, const totals& counted,
                                                std::int64_t standby_cycles) noexcept {
  const auto& e = d.energy;
  const auto bits = [](std::int64_t bytes) { return 8.0 * static_cast<double>(bytes); };
  const auto number = [](std::int64_t n) { return static_cast<double>(n); };
  const bank_counters& b = counted.bank;
  const channel_counters& c = counted.channel;
  energy_report r;
  r.activate_pj = number(b.act_count) * e.act_pj;
  r.array_pj = number(b.rd_columns + b.mac_columns + b.lut_slots) * e.read_column_pj +
               number(b.wr_columns) * e.write_column_pj + bits(b.cell_bytes) * e.cell_pj_per_bit;
  r.group_pj = bits(c.group_bytes) * e.group_pj_per_bit;
  r.global_pj = bits(c.global_bytes) * e.global_pj_per_bit;
  r.tsv_pj = bits(c.tsv_bytes) * e.tsv_pj_per_bit;
  r.interposer_pj = bits(c.interposer_bytes) * e.interposer_pj_per_bit;
  r.mac_pj = number(b.macs) * e.mac_pj;
  r.buffer_pj = number(c.buffer_write_bytes + c.buffer_read_bytes) * e.buffer_pj_per_byte;
  r.refresh_pj = number(c.ref_count) * e.refresh_pj;
  r.standby_pj = number(c.open_cycles) * e.active_standby_pj_per_cycle +
                 number(standby_cycles - c.open_cycles) * e.precharge_standby_pj_per_cycle;
  return r;
}

/// Energy of moving bytes over the device's host link.
[[nodiscard]] constexpr double link_energy_pj(const device& d, std::int64_t bytes) noexcept {
  return 8.0 * static_cast<double>(bytes) * d.link.pj_per_bit;
}

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
