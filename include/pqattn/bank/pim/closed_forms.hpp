// SPDX-License-Identifier: MIT
// Cycles of regular access patterns in one expression each, without refresh. Tests hold them equal to the walker.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

/// ceil(a / b), b > 0.
[[nodiscard]] constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) noexcept {
  return (a + b - 1) / b;
}

/// Cycles from the ACT of one row to the ACT of the next in the same bank, when `columns` accesses at `interval` come
/// between them and the first follows its ACT by `rcd`.
[[nodiscard]] constexpr cycle_count row_period(const timing& t, cycle_count rcd, std::int64_t columns,
                                               cycle_count interval, cycle_count recovery) noexcept {
  const cycle_count last = t.act_extra + rcd + (columns - 1) * interval;
  return (std::max<cycle_count>)(t.rc, (std::max<cycle_count>)(t.ras, last + t.rtp) + recovery);
}

/// Reading `rows` rows of one bank, `columns` columns each, in order: until the last data has come.
[[nodiscard]] constexpr cycle_count stream_read_cycles(const device& d, std::int64_t rows,
                                                       std::int64_t columns) noexcept {
  const timing& t = d.timing;
  return d.controller.start + (rows - 1) * row_period(t, t.rcd_rd, columns, t.ccd_l, t.rp) + t.act_extra + t.rcd_rd +
         (columns - 1) * t.ccd_l + t.cl + t.bl + d.controller.read_end;
}

/// n reads of one bank, each of another row.
[[nodiscard]] constexpr cycle_count conflict_read_cycles(const device& d, std::int64_t n) noexcept {
  return stream_read_cycles(d, n, 1);
}

/// `rows` rows of `columns` all-bank MACs each.
[[nodiscard]] constexpr cycle_count mac_cycles(const device& d, std::int64_t rows, std::int64_t columns) noexcept {
  const timing& t = d.timing;
  return d.controller.start + (rows - 1) * row_period(t, t.rcd_mac, columns, t.mac, t.rp_ab) + t.act_extra + t.rcd_mac +
         (columns - 1) * t.mac + d.pim.mac_latency + d.controller.pim_end;
}

/// Column slots of `lookups` look-ups in an open row.
[[nodiscard]] constexpr std::int64_t lut_slots(const device& d, std::int64_t lookups) noexcept {
  return ceil_div(lookups, d.pim.lookups_per_slot);
}

/// `tables` rows (one per sub-vector and window), `lookups` look-ups in each.
[[nodiscard]] constexpr cycle_count lut_cycles(const device& d, std::int64_t tables, std::int64_t lookups) noexcept {
  const timing& t = d.timing;
  const std::int64_t slots = lut_slots(d, lookups);
  return d.controller.start + (tables - 1) * row_period(t, t.rcd_mac, slots, t.lut, t.rp_ab) + t.act_extra + t.rcd_mac +
         (slots - 1) * t.lut + d.pim.mac_latency + d.controller.pim_end;
}

/// Shape of dense decode attention beside the banks (AttAcc, bank level): heads go one to a channel.
struct dense_attention_shape {
  std::int64_t heads = 1;  ///< heads of one stack
  std::int64_t tokens = 1;
  std::int64_t head_dim = 128;
  std::int64_t bytes_per_element = 2;
};

/// All-bank MACs of one head on `d`: scores and context together.
[[nodiscard]] constexpr std::int64_t dense_attention_macs(const device& d, const dense_attention_shape& s) noexcept {
  const organisation& o = d.organisation;
  const std::int64_t lanes = o.column_bytes / s.bytes_per_element;
  const std::int64_t across = o.groups_per_command_channel();  // tokens side by side
  return 2 * ceil_div(s.head_dim, o.banks_per_group * lanes) * ceil_div(s.tokens, across);
}

/// Steady-state cycles of dense decode attention: ceil(heads / channels) * (M t + R (gap - t)), where gap is what a
/// row change costs. Buffer traffic and softmax are hidden behind the MACs of the other head. No refresh.
[[nodiscard]] constexpr cycle_count dense_attention_cycles(const device& d, const dense_attention_shape& s) noexcept {
  const timing& t = d.timing;
  const std::int64_t macs = dense_attention_macs(d, s);
  const std::int64_t half_rows = ceil_div(macs / 2, d.organisation.columns_per_row());
  const cycle_count gap = t.rtp + t.rp_ab + t.act_extra + t.rcd_mac;
  return ceil_div(s.heads, d.organisation.command_channels() / d.organisation.stacks) *
         (macs * t.mac + 2 * half_rows * (gap - t.mac));
}

/// Estimate of `cycles` with refresh: the share of time that refreshes take is added. Not exact: the walker is.
[[nodiscard]] constexpr cycle_count with_refresh_estimate(const device& d, cycle_count cycles) noexcept {
  const timing& t = d.timing;
  if (t.refi == 0) {
    return cycles;
  }
  return cycles * t.refi / (t.refi - t.rfc - t.rp_ab - t.rcd_rd);
}

/// Core cycles of a DMA transfer between a DMA core's scratch memory and its bank, cut into the largest transfers.
[[nodiscard]] constexpr std::int64_t dma_cycles(const dma_core& k, std::int64_t bytes, bool write) noexcept {
  const std::int64_t padded = ceil_div(bytes, k.dma_granule_bytes) * k.dma_granule_bytes;
  return ceil_div(padded, k.dma_max_bytes) * (write ? k.dma_setup_write : k.dma_setup_read) +
         ceil_div(padded * k.dma_cycles_per_kib, 1024);
}

/// Core cycles of `instructions` instructions shared evenly by `tasklets` threads: fewer threads than the issue
/// distance leave slots empty.
[[nodiscard]] constexpr std::int64_t core_cycles(const dma_core& k, std::int64_t instructions,
                                                 std::int64_t tasklets) noexcept {
  const std::int64_t threads = std::clamp<std::int64_t>(tasklets, 1, k.tasklets);
  return ceil_div(instructions, threads) * (std::max<std::int64_t>)(threads, k.issue_distance);
}

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
