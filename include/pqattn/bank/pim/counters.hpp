// SPDX-License-Identifier: MIT
// What the emulation counts. An all-bank command is one command on the bus and one event in every bank it acts on:
// bank counters count events, channel counters count bus commands and what passes through shared wires.
#pragma once

#include <cstdint>

#include "commands.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

/// Events of one bank. Additive.
struct bank_counters {
  std::int64_t act_count = 0;
  std::int64_t pre_count = 0;
  std::int64_t rd_columns = 0;
  std::int64_t wr_columns = 0;
  std::int64_t mac_columns = 0;
  std::int64_t macs = 0;       ///< multiply-adds; a unit shared by two banks counts in the bank that is read
  std::int64_t lut_slots = 0;  ///< column slots spent on look-ups
  std::int64_t lut_lookups = 0;
  std::int64_t cell_bytes = 0;   ///< bytes sensed or driven by the column decoder
  std::int64_t busy_cycles = 0;  ///< cycles of column slots used
};

/// Events of one command channel that belong to no single bank. Additive, except that `cycles` of parallel channels is
/// the longest (device_totals).
struct channel_counters {
  std::int64_t buffer_write_bytes = 0;  ///< into global buffer or registers
  std::int64_t buffer_read_bytes = 0;   ///< results out of the banks
  std::int64_t softmax_elements = 0;
  std::int64_t ref_count = 0;
  std::int64_t mode_switches = 0;
  std::int64_t host_syncs = 0;
  std::int64_t group_bytes = 0;   ///< bank-group wires
  std::int64_t global_bytes = 0;  ///< global I/O
  std::int64_t tsv_bytes = 0;
  std::int64_t interposer_bytes = 0;  ///< to or from the processor's pins
  std::int64_t row_commands = 0;      ///< on the command bus
  std::int64_t column_commands = 0;   ///< on the command bus, a run of n counts n
  std::int64_t data_cycles = 0;       ///< data bus cycles used by reads, writes and buffer transfers
  std::int64_t open_cycles = 0;       ///< some row open (active standby)
  std::int64_t cycles = 0;            ///< by how much the channel's last completion moved
};

/// What the algorithm asked for, whatever the device made of it: the walker's counters hold what was spent (all banks
/// of a set work, needed or not). Additive.
struct work_counters {
  std::int64_t code_bytes = 0;            ///< of codes read, packed
  std::int64_t table_bytes = 0;           ///< of inner-product tables written, all copies
  std::int64_t lookups = 0;               ///< table entries or centroids fetched by a code
  std::int64_t adds = 0;                  ///< of fetched table entries, or into histogram bins
  std::int64_t multiply_adds = 0;         ///< tables, distances, values, rotations
  std::int64_t exp_evaluations = 0;       ///< softmax in the device
  std::int64_t distance_evaluations = 0;  ///< of a sub-vector and a centroid
  std::int64_t kmeans_updates = 0;        ///< Lloyd iterations of one sub-vector each
  std::int64_t partial_state_bytes = 0;   ///< weighted sums leaving the banks to be merged
};

/// Calls visit(name, member pointer) for every field.
template <class Visitor>
constexpr void visit_work_counters(Visitor&& visit) {
  visit("code_bytes", &work_counters::code_bytes);
  visit("table_bytes", &work_counters::table_bytes);
  visit("lookups", &work_counters::lookups);
  visit("adds", &work_counters::adds);
  visit("multiply_adds", &work_counters::multiply_adds);
  visit("exp_evaluations", &work_counters::exp_evaluations);
  visit("distance_evaluations", &work_counters::distance_evaluations);
  visit("kmeans_updates", &work_counters::kmeans_updates);
  visit("partial_state_bytes", &work_counters::partial_state_bytes);
}
template <class Visitor>
constexpr void visit_bank_counters(Visitor&& visit) {
  visit("act_count", &bank_counters::act_count);
  visit("pre_count", &bank_counters::pre_count);
  visit("rd_columns", &bank_counters::rd_columns);
  visit("wr_columns", &bank_counters::wr_columns);
  visit("mac_columns", &bank_counters::mac_columns);
  visit("macs", &bank_counters::macs);
  visit("lut_slots", &bank_counters::lut_slots);
  visit("lut_lookups", &bank_counters::lut_lookups);
  visit("cell_bytes", &bank_counters::cell_bytes);
  visit("busy_cycles", &bank_counters::busy_cycles);
}
template <class Visitor>
constexpr void visit_channel_counters(Visitor&& visit) {
  visit("buffer_write_bytes", &channel_counters::buffer_write_bytes);
  visit("buffer_read_bytes", &channel_counters::buffer_read_bytes);
  visit("softmax_elements", &channel_counters::softmax_elements);
  visit("ref_count", &channel_counters::ref_count);
  visit("mode_switches", &channel_counters::mode_switches);
  visit("host_syncs", &channel_counters::host_syncs);
  visit("group_bytes", &channel_counters::group_bytes);
  visit("global_bytes", &channel_counters::global_bytes);
  visit("tsv_bytes", &channel_counters::tsv_bytes);
  visit("interposer_bytes", &channel_counters::interposer_bytes);
  visit("row_commands", &channel_counters::row_commands);
  visit("column_commands", &channel_counters::column_commands);
  visit("data_cycles", &channel_counters::data_cycles);
  visit("open_cycles", &channel_counters::open_cycles);
  visit("cycles", &channel_counters::cycles);
}

constexpr bank_counters& operator+=(bank_counters& sum, const bank_counters& part) noexcept {
  visit_bank_counters([&](const char*, auto field) { sum.*field += part.*field; });
  return sum;
}
constexpr channel_counters& operator+=(channel_counters& sum, const channel_counters& part) noexcept {
  visit_channel_counters([&](const char*, auto field) { sum.*field += part.*field; });
  return sum;
}
constexpr work_counters& operator+=(work_counters& sum, const work_counters& part) noexcept {
  visit_work_counters([&](const char*, auto field) { sum.*field += part.*field; });
  return sum;
}
/// The events of `count` banks that all saw `part`.
[[nodiscard]] constexpr bank_counters times(const bank_counters& part, std::int64_t count) noexcept {
  bank_counters product;
  visit_bank_counters([&](const char*, auto field) { product.*field = part.*field * count; });
  return product;
}
[[nodiscard]] constexpr bool operator==(const bank_counters& a, const bank_counters& b) noexcept {
  bool same = true;
  visit_bank_counters([&](const char*, auto field) { same = same && a.*field == b.*field; });
  return same;
}
[[nodiscard]] constexpr bool operator==(const channel_counters& a, const channel_counters& b) noexcept {
  bool same = true;
  visit_channel_counters([&](const char*, auto field) { same = same && a.*field == b.*field; });
  return same;
}

[[nodiscard]] constexpr bool operator==(const work_counters& a, const work_counters& b) noexcept {
  bool same = true;
  visit_work_counters([&](const char*, auto field) { same = same && a.*field == b.*field; });
  return same;
}

/// Banks and channels of a device, or one phase of it, summed. `channel.cycles` is a sum over channels of busy time;
/// `elapsed_cycles` is the longest channel.
struct totals {
  bank_counters bank;
  channel_counters channel;
  std::int64_t elapsed_cycles = 0;

  [[nodiscard]] friend constexpr bool operator==(const totals& a, const totals& b) noexcept {
    return a.bank == b.bank && a.channel == b.channel && a.elapsed_cycles == b.elapsed_cycles;
  }
};

/// How unevenly the banks worked: max / mean of busy cycles. 1 is even; 0 when nothing ran.
struct imbalance {
  std::int64_t max_busy_cycles = 0;
  double mean_busy_cycles = 0;
  double max_over_mean = 0;
};

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
