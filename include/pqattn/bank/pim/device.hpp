// SPDX-License-Identifier: MIT
// What a PIM device is: organisation, timing, PIM units, energy, capacity and host link, as plain data.
//
// Every number is an integer count of command-clock cycles, bytes or units, except energies (picojoules, double) and
// the clock itself (picoseconds). Presets with the source of each number: presets.hpp. From and to JSON:
// device_json.hpp. visit_fields() names every field with its range once; validation and JSON both use it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../core/status.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

/// A point in time or a length of time, in cycles of the device's command clock.
using cycle_count = std::int64_t;

/// How the device's banks hang together. "Command channel": the set of banks that share one command bus.
struct organisation {
  std::int32_t stacks = 1;                 ///< stacks, packages or modules
  std::int32_t channels = 1;               ///< channels per stack
  std::int32_t pseudo_channels = 1;        ///< pseudo-channels per channel
  bool pseudo_channels_share_bus = false;  ///< true: one command drives all pseudo-channels of a channel
  std::int32_t ranks = 1;                  ///< ranks (stack ids) behind one command bus
  std::int32_t bank_groups = 1;            ///< bank groups per rank and pseudo-channel
  std::int32_t banks_per_group = 1;
  std::int32_t rows_per_bank = 1;
  std::int32_t row_bytes = 1024;
  std::int32_t column_bytes = 32;  ///< one column access (burst) of one bank

  [[nodiscard]] constexpr std::int32_t command_channels() const noexcept {
    return stacks * channels * (pseudo_channels_share_bus ? 1 : pseudo_channels);
  }
  [[nodiscard]] constexpr std::int32_t groups_per_command_channel() const noexcept {
    return (pseudo_channels_share_bus ? pseudo_channels : 1) * ranks * bank_groups;
  }
  [[nodiscard]] constexpr std::int32_t banks_per_command_channel() const noexcept {
    return groups_per_command_channel() * banks_per_group;
  }
  [[nodiscard]] constexpr std::int32_t columns_per_row() const noexcept { return row_bytes / column_bytes; }
  /// Bytes of one move between banks and buffer die: pseudo-channels that share a command bus have data paths of
  /// their own.
  [[nodiscard]] constexpr std::int32_t transfer_bytes() const noexcept {
    return column_bytes * (pseudo_channels_share_bus ? pseudo_channels : 1);
  }
  [[nodiscard]] constexpr std::int64_t total_bytes() const noexcept {
    return std::int64_t{command_channels()} * banks_per_command_channel() * rows_per_bank * row_bytes;
  }
};

/// Command-to-command distances in cycles. Names follow JEDEC without the leading t or n; rd/wr/mac name the column
/// command that follows an activation.
struct timing {
  std::int32_t tck_ps = 1000;  ///< the command clock's period in picoseconds
  std::int32_t cl = 0;         ///< read command to first data
  std::int32_t cwl = 0;        ///< write command to first data
  std::int32_t bl = 1;         ///< data cycles of one burst
  std::int32_t rcd_rd = 0;
  std::int32_t rcd_wr = 0;
  std::int32_t rcd_mac = 0;
  std::int32_t act_extra = 0;  ///< cycles by which a multi-cycle ACT delays the column commands behind it
  std::int32_t rp = 0;         ///< PRE of one bank to ACT
  std::int32_t rp_ab = 0;      ///< PRE of all banks to ACT or REF
  std::int32_t ras = 0;
  std::int32_t rc = 0;
  std::int32_t ccd_s = 1;  ///< column to column, different bank group
  std::int32_t ccd_l = 1;  ///< column to column, same bank group
  std::int32_t mac = 1;    ///< all-bank MAC to all-bank MAC (power limits included)
  std::int32_t lut = 1;    ///< look-up slot to look-up slot inside an open row
  std::int32_t rrd_s = 0;
  std::int32_t rrd_l = 0;
  std::int32_t faw = 0;              ///< window of four activations; 0 = not enforced
  std::int32_t rtp = 0;              ///< RD, MAC or LUT to PRE
  std::int32_t write_to_pre = 0;     ///< WR to PRE, usually cwl + bl + tWR
  std::int32_t read_to_write = 0;    ///< RD to WR, usually cl + bl + 2 - cwl
  std::int32_t write_to_read_s = 0;  ///< WR to RD, different bank group: cwl + bl + tWTR_S
  std::int32_t write_to_read_l = 0;  ///< WR to RD, same bank group: cwl + bl + tWTR_L
  std::int32_t refi = 0;             ///< refresh interval; 0 = this device is never refreshed
  std::int32_t rfc = 0;              ///< duration of an all-bank refresh
  std::int32_t pre_to_ref = 0;       ///< PRE to REF, usually rp_ab
};

/// The units that compute beside the banks, and the buffers around them.
struct pim_units {
  bool present = false;
  std::int32_t banks_per_unit = 1;       ///< how many banks share one unit (and one column per command)
  std::int32_t lanes = 0;                ///< multipliers of a unit
  std::int32_t macs_per_column = 0;      ///< multiply-adds one unit does with one column
  std::int32_t register_file_bytes = 0;  ///< vector registers of a unit
  std::int32_t global_buffer_bytes = 0;  ///< operand buffer shared by the units of a command channel
  std::int32_t lookups_per_slot = 1;     ///< table look-ups served by one column slot of one bank: "g"
  std::int32_t activate_banks = 0;       ///< banks one all-bank ACT opens at once; 0 = all of them
  std::int32_t mode_switch = 0;          ///< cycles between register mode and array mode; 0 = no modes
  bool moves_overlap_macs = false;       ///< buffer traffic runs beside MACs on its own data path
  std::int32_t buffer_interval = 1;      ///< buffer transfer to buffer transfer
  std::int32_t buffer_out_to_in = 0;     ///< result read to next buffer write
  std::int32_t buffer_in_to_out = 0;     ///< buffer write to result read
  std::int32_t buffer_latency = 0;       ///< buffer transfer command to its completion
  std::int32_t mac_latency = 1;          ///< MAC or LUT command to its completion
  std::int32_t softmax_per_cycle = 16;   ///< elements per cycle of the softmax unit on the buffer die
};

/// Energy per event and per bit, in picojoules. What is 0 is not counted. Treat absolute joules as uncertain by half.
struct energy_costs {
  double act_pj = 0;                          ///< one ACT and its PRE, one bank, whole row
  double read_column_pj = 0;                  ///< fixed part of one column read of one bank
  double write_column_pj = 0;                 ///< fixed part of one column write of one bank
  double cell_pj_per_bit = 0;                 ///< cell array to column decoder
  double group_pj_per_bit = 0;                ///< column decoder to bank-group multiplexer
  double global_pj_per_bit = 0;               ///< bank-group multiplexer to global I/O
  double tsv_pj_per_bit = 0;                  ///< through-silicon vias to the buffer die
  double interposer_pj_per_bit = 0;           ///< buffer die to the processor's pins
  double mac_pj = 0;                          ///< one fp16 multiply-add
  double buffer_pj_per_byte = 0;              ///< SRAM buffers
  double refresh_pj = 0;                      ///< one all-bank refresh of one command channel
  double active_standby_pj_per_cycle = 0;     ///< one command channel, some row open
  double precharge_standby_pj_per_cycle = 0;  ///< one command channel, every row closed
};

/// The link between the device and the host that is not its memory interface (PCIe, NVLink, a host bus).
struct host_link {
  std::int64_t bytes_per_second = 0;  ///< per direction; 0 = no link described
  std::int32_t latency_ns = 0;        ///< per transfer
  double pj_per_bit = 0;
};

/// What may still leave once a refresh is due.
enum class refresh_policy : std::uint8_t {
  block,         ///< nothing but the precharges it needs
  first_column,  ///< the one column command that a row was opened for
  until_pre,     ///< column commands, as long as the open rows may not be precharged yet
};

/// How the controller in front of the device behaves, as far as cycles depend on it.
struct controller {
  std::int32_t start = 0;          ///< cycle of the first command
  std::int32_t read_end = 0;       ///< cycles counted after the last read data
  std::int32_t write_end = 0;      ///< the same after the last write data
  std::int32_t pim_end = 0;        ///< the same after the last PIM operation
  std::int32_t dependent_gap = 0;  ///< end of read data to the command that needed it
  std::int32_t alignment = 1;      ///< column commands leave only at start + k * alignment
  std::int32_t first_refresh = 0;  ///< cycle of the first refresh; 0 = one interval after 0
  bool rows_in_order = false;      ///< true: row commands wait for the column commands before them
  bool closes_idle_rows = false;   ///< rows that nothing queued needs are precharged at once
  refresh_policy refresh = refresh_policy::block;
};

/// A processor core beside each bank that reaches it by DMA (UPMEM). Its programs are software: see closed_forms.hpp.
struct dma_core {
  bool present = false;
  std::int32_t clock_khz = 0;
  std::int32_t tasklets = 0;        ///< hardware threads
  std::int32_t issue_distance = 0;  ///< cycles between two instructions of one thread
  std::int32_t working_bytes = 0;   ///< scratch memory of a core
  std::int32_t dma_setup_read = 0;  ///< core cycles
  std::int32_t dma_setup_write = 0;
  std::int32_t dma_cycles_per_kib = 0;  ///< core cycles per 1024 bytes
  std::int32_t dma_granule_bytes = 8;   ///< transfers are multiples of this
  std::int32_t dma_max_bytes = 2048;
};

inline constexpr std::size_t device_name_bytes = 48;

/// A whole device. Trivially copyable; no pointers.
struct device {
  char name[device_name_bytes] = "unnamed";
  pim::organisation organisation;
  pim::timing timing;
  pim_units pim;
  energy_costs energy;
  host_link link;
  pim::controller controller;
  dma_core core;
  std::int64_t capacity_bytes = 0;  ///< usable bytes; at most organisation.total_bytes()

  [[nodiscard]] constexpr std::int32_t peak_macs_per_command() const noexcept {
    return organisation.banks_per_command_channel() / pim.banks_per_unit * pim.macs_per_column;
  }
};
static_assert(std::is_trivially_copyable_v<device>);

/// Copies `text` into the device's name, cut to fit.
constexpr void set_name(device& target, const char* text) noexcept {
  std::size_t i = 0;
  for (; i + 1 < device_name_bytes && text[i] != '\0'; ++i) {
    target.name[i] = text[i];
  }
  for (; i < device_name_bytes; ++i) {
    target.name[i] = '\0';
  }
}

/// Calls visit(path, field, lowest, highest) for every number of a device and visit(path, flag) for every flag; path
/// is "section.field", or "field" alone. The order is fixed.
template <class Device, class Visitor>
constexpr void visit_fields(Device& d, Visitor&& visit) {
  constexpr std::int64_t cycles = 1'000'000;
  constexpr std::int64_t long_cycles = 1'000'000'000;
  constexpr std::int64_t bytes = std::int64_t{1} << 30;
  auto& o = d.organisation;
  visit("organisation.stacks", o.stacks, 1, 64);
  visit("organisation.channels", o.channels, 1, 256);
  visit("organisation.pseudo_channels", o.pseudo_channels, 1, 8);
  visit("organisation.pseudo_channels_share_bus", o.pseudo_channels_share_bus);
  visit("organisation.ranks", o.ranks, 1, 64);
  visit("organisation.bank_groups", o.bank_groups, 1, 64);
  visit("organisation.banks_per_group", o.banks_per_group, 1, 64);
  visit("organisation.rows_per_bank", o.rows_per_bank, 1, std::int64_t{1} << 24);
  visit("organisation.row_bytes", o.row_bytes, 1, std::int64_t{1} << 20);
  visit("organisation.column_bytes", o.column_bytes, 1, std::int64_t{1} << 16);
  auto& t = d.timing;
  visit("timing.tck_ps", t.tck_ps, 1, 1'000'000);
  visit("timing.cl", t.cl, 0, cycles);
  visit("timing.cwl", t.cwl, 0, cycles);
  visit("timing.bl", t.bl, 1, cycles);
  visit("timing.rcd_rd", t.rcd_rd, 0, cycles);
  visit("timing.rcd_wr", t.rcd_wr, 0, cycles);
  visit("timing.rcd_mac", t.rcd_mac, 0, cycles);
  visit("timing.act_extra", t.act_extra, 0, cycles);
  visit("timing.rp", t.rp, 0, cycles);
  visit("timing.rp_ab", t.rp_ab, 0, cycles);
  visit("timing.ras", t.ras, 0, cycles);
  visit("timing.rc", t.rc, 0, cycles);
  visit("timing.ccd_s", t.ccd_s, 1, cycles);
  visit("timing.ccd_l", t.ccd_l, 1, cycles);
  visit("timing.mac", t.mac, 1, cycles);
  visit("timing.lut", t.lut, 1, cycles);
  visit("timing.rrd_s", t.rrd_s, 0, cycles);
  visit("timing.rrd_l", t.rrd_l, 0, cycles);
  visit("timing.faw", t.faw, 0, cycles);
  visit("timing.rtp", t.rtp, 0, cycles);
  visit("timing.write_to_pre", t.write_to_pre, 0, cycles);
  visit("timing.read_to_write", t.read_to_write, 0, cycles);
  visit("timing.write_to_read_s", t.write_to_read_s, 0, cycles);
  visit("timing.write_to_read_l", t.write_to_read_l, 0, cycles);
  visit("timing.refi", t.refi, 0, long_cycles);
  visit("timing.rfc", t.rfc, 0, cycles);
  visit("timing.pre_to_ref", t.pre_to_ref, 0, cycles);
  auto& p = d.pim;
  visit("pim.present", p.present);
  visit("pim.banks_per_unit", p.banks_per_unit, 1, 1024);
  visit("pim.lanes", p.lanes, 0, 65536);
  visit("pim.macs_per_column", p.macs_per_column, 0, 65536);
  visit("pim.register_file_bytes", p.register_file_bytes, 0, bytes);
  visit("pim.global_buffer_bytes", p.global_buffer_bytes, 0, bytes);
  visit("pim.lookups_per_slot", p.lookups_per_slot, 1, 65536);
  visit("pim.activate_banks", p.activate_banks, 0, 65536);
  visit("pim.mode_switch", p.mode_switch, 0, cycles);
  visit("pim.moves_overlap_macs", p.moves_overlap_macs);
  visit("pim.buffer_interval", p.buffer_interval, 1, cycles);
  visit("pim.buffer_out_to_in", p.buffer_out_to_in, 0, cycles);
  visit("pim.buffer_in_to_out", p.buffer_in_to_out, 0, cycles);
  visit("pim.buffer_latency", p.buffer_latency, 0, cycles);
  visit("pim.mac_latency", p.mac_latency, 0, cycles);
  visit("pim.softmax_per_cycle", p.softmax_per_cycle, 1, 65536);
  auto& e = d.energy;
  visit("energy.act_pj", e.act_pj, 0.0, 1e9);
  visit("energy.read_column_pj", e.read_column_pj, 0.0, 1e9);
  visit("energy.write_column_pj", e.write_column_pj, 0.0, 1e9);
  visit("energy.cell_pj_per_bit", e.cell_pj_per_bit, 0.0, 1e6);
  visit("energy.group_pj_per_bit", e.group_pj_per_bit, 0.0, 1e6);
  visit("energy.global_pj_per_bit", e.global_pj_per_bit, 0.0, 1e6);
  visit("energy.tsv_pj_per_bit", e.tsv_pj_per_bit, 0.0, 1e6);
  visit("energy.interposer_pj_per_bit", e.interposer_pj_per_bit, 0.0, 1e6);
  visit("energy.mac_pj", e.mac_pj, 0.0, 1e6);
  visit("energy.buffer_pj_per_byte", e.buffer_pj_per_byte, 0.0, 1e6);
  visit("energy.refresh_pj", e.refresh_pj, 0.0, 1e12);
  visit("energy.active_standby_pj_per_cycle", e.active_standby_pj_per_cycle, 0.0, 1e9);
  visit("energy.precharge_standby_pj_per_cycle", e.precharge_standby_pj_per_cycle, 0.0, 1e9);
  visit("link.bytes_per_second", d.link.bytes_per_second, 0, std::int64_t{1} << 50);
  visit("link.latency_ns", d.link.latency_ns, 0, 1'000'000'000);
  visit("link.pj_per_bit", d.link.pj_per_bit, 0.0, 1e6);
  auto& c = d.controller;
  visit("controller.start", c.start, 0, cycles);
  visit("controller.read_end", c.read_end, 0, cycles);
  visit("controller.write_end", c.write_end, 0, cycles);
  visit("controller.pim_end", c.pim_end, 0, cycles);
  visit("controller.dependent_gap", c.dependent_gap, 0, cycles);
  visit("controller.alignment", c.alignment, 1, 1024);
  visit("controller.first_refresh", c.first_refresh, 0, long_cycles);
  visit("controller.rows_in_order", c.rows_in_order);
  visit("controller.closes_idle_rows", c.closes_idle_rows);
  visit("controller.refresh", c.refresh, refresh_policy::block, refresh_policy::until_pre);
  auto& k = d.core;
  visit("core.present", k.present);
  visit("core.clock_khz", k.clock_khz, 0, 100'000'000);
  visit("core.tasklets", k.tasklets, 0, 4096);
  visit("core.issue_distance", k.issue_distance, 0, 4096);
  visit("core.working_bytes", k.working_bytes, 0, bytes);
  visit("core.dma_setup_read", k.dma_setup_read, 0, cycles);
  visit("core.dma_setup_write", k.dma_setup_write, 0, cycles);
  visit("core.dma_cycles_per_kib", k.dma_cycles_per_kib, 0, cycles);
  visit("core.dma_granule_bytes", k.dma_granule_bytes, 1, 65536);
  visit("core.dma_max_bytes", k.dma_max_bytes, 1, bytes);
  visit("capacity_bytes", d.capacity_bytes, 0, std::int64_t{1} << 50);
}

namespace detail {

/// Remembers the first field outside its range.
struct range_check {
  status result;

  template <class Number, class Limit>
  constexpr void operator()(const char* path, const Number& value, Limit lowest, Limit highest) noexcept {
    if (!result.ok()) {
      return;
    }
    if constexpr (std::is_floating_point_v<Number>) {
      if (!(value >= lowest && value <= highest)) {  // NaN fails too
        result = failure(status_code::invalid_argument, path, "must be a finite energy in range, not negative", highest,
                         value);
      }
    } else if constexpr (std::is_enum_v<Number>) {
      result = value < lowest || value > highest
                   ? failure(status_code::invalid_argument, path, "must be a policy: 0, 1 or 2",
                             static_cast<int>(highest), static_cast<int>(value))
                   : status{};
    } else if (value < lowest) {
      result = failure(status_code::invalid_argument, path, "is too small, the least value is", lowest, value);
    } else if (value > highest) {
      result = failure(status_code::invalid_argument, path, "is too large, the largest value is", highest, value);
    }
  }
  template <class Number>
  constexpr void operator()(const char* path, const Number& value, int lowest, std::int64_t highest) noexcept {
    (*this)(path, value, std::int64_t{lowest}, highest);
  }
  constexpr void operator()(const char*, const bool&) noexcept {}
};

[[nodiscard]] constexpr status require(bool condition, const char* subject, const char* problem, std::int64_t expected,
                                       std::int64_t got) noexcept {
  return condition ? status{} : failure(status_code::invalid_argument, subject, problem, expected, got);
}

}  // namespace detail

/// Whether a device makes sense: every field in its range, and the fields consistent with one another.
[[nodiscard]] constexpr status validate(const device& d) noexcept {
  detail::range_check ranges;
  visit_fields(d, ranges);
  PQATTN_TRY(ranges.result);
  const auto& o = d.organisation;
  const auto& t = d.timing;
  // Ranges alone allow products beyond 32 bits, so these are checked in 64.
  const std::int64_t channels = std::int64_t{o.stacks} * o.channels * o.pseudo_channels;
  const std::int64_t banks = std::int64_t{o.pseudo_channels} * o.ranks * o.bank_groups * o.banks_per_group;
  if (channels > 65536) {
    return failure(status_code::invalid_argument, "organisation.channels", "gives too many channels in all", 65536,
                   channels);
  }
  if (banks > 4096) {
    return failure(status_code::invalid_argument, "organisation.banks_per_group", "gives too many banks per channel",
                   4096, banks);
  }
  if (o.row_bytes % o.column_bytes != 0) {
    return failure(status_code::invalid_argument, "organisation.row_bytes",
                   "must be a multiple of organisation.column_bytes", o.column_bytes, o.row_bytes);
  }
  PQATTN_TRY(detail::require(t.ccd_l >= t.ccd_s, "timing.ccd_l", "must be at least timing.ccd_s", t.ccd_s, t.ccd_l));
  const auto refresh = t.rfc + t.rp_ab + t.pre_to_ref + t.rcd_rd + t.act_extra + t.ras;
  PQATTN_TRY(detail::require(t.refi == 0 || t.refi > refresh, "timing.refi", "leaves no time between two refreshes",
                             refresh + 1, t.refi));
  PQATTN_TRY(detail::require(t.refi == 0 || t.rfc > 0, "timing.rfc", "must be positive when timing.refi is", 1, t.rfc));
  PQATTN_TRY(detail::require(!d.pim.present || d.pim.macs_per_column > 0 || d.core.present, "pim.macs_per_column",
                             "must be positive when pim.present is true", 1, d.pim.macs_per_column));
  PQATTN_TRY(detail::require(banks % d.pim.banks_per_unit == 0, "pim.banks_per_unit",
                             "must divide the banks of a channel", banks, d.pim.banks_per_unit));
  if (d.capacity_bytes > o.total_bytes()) {
    return failure(status_code::invalid_argument, "capacity_bytes", "is more than the organisation holds",
                   o.total_bytes(), d.capacity_bytes);
  }
  PQATTN_TRY(detail::require(!d.core.present || d.core.clock_khz > 0, "core.clock_khz",
                             "must be positive when core.present is true", 1, d.core.clock_khz));
  return detail::require(!d.core.present || d.core.tasklets > 0, "core.tasklets",
                         "must be positive when core.present is true", 1, d.core.tasklets);
}

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
