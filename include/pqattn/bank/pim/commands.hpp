// SPDX-License-Identifier: MIT
// The commands a bank program issues to the walker. One command may stand for a run of equal column accesses
// (`count`), so that a program costs time per row, not per column.
#pragma once

#include <cstdint>

namespace pqattn {
inline namespace v0 {
namespace pim {

/// Kinds of command. "Set" commands act on every bank of command::set at once: one slot on the command bus, one event
/// in each bank.
enum class opcode : std::uint8_t {
  act,      ///< open `row` of `bank`
  act_ab,   ///< open `row` in the set
  pre,      ///< close `bank`
  pre_ab,   ///< close the set
  rd,       ///< read `count` columns of `bank` from `column` on, to the buffer die
  wr,       ///< write them, from the buffer die
  mac_ab,   ///< `count` columns of `row` in the set, multiplied and added in the PIM units
  lut,      ///< `count` look-ups in open `row` of the set, lookups_per_slot of them per column slot; `column`, unless
            ///< 0, is the most that one slot can serve (wide entries)
  wrgb,     ///< broadcast write of `count` columns into the channel's global buffer
  mv_out,   ///< `count` transfers of results from the banks' registers to the buffer die, transfer_bytes() each
  mv_in,    ///< `count` transfers from the buffer die to the banks' registers
  sfm,      ///< softmax of `count` elements on the buffer die
  host_rd,  ///< rd that goes on to the host
  host_wr,  ///< wr whose data comes from the host
  ref,      ///< one all-bank refresh, now
  mode,     ///< switch between register mode and array mode
  sync,     ///< wait until everything before has completed
  wait,     ///< the next command needs the data of the last read: it leaves after that has returned
  fence,    ///< later column commands and moves leave after the last earlier one left; rows may run ahead
  ld_ab,    ///< `count` columns of `row` in the set into the units' registers; leaves no bank
  st_ab,    ///< `count` columns of `row` in the set from the units' registers
};
inline constexpr int opcode_count = 21;

/// Short name, as in the command text format.
[[nodiscard]] constexpr const char* name_of(opcode op) noexcept {
  constexpr const char* names[opcode_count] = {"ACT", "ACT_AB", "PRE",    "PRE_AB", "RD",    "WR",      "MAC",
                                               "LUT", "WRGB",   "MV_OUT", "MV_IN",  "SFM",   "HOST_RD", "HOST_WR",
                                               "REF", "MODE",   "SYNC",   "WAIT",   "FENCE", "LD",      "ST"};
  return names[static_cast<int>(op)];
}

/// Which banks of a command channel a set command acts on. `share`: every bank b with b % banks_per_unit equal to
/// command::bank, one bank of each unit.
enum class bank_set : std::uint8_t { all, even, odd, share };

/// What the work is for; counters are kept apart by phase.
enum class phase : std::uint8_t { broadcast, table_build, score, softmax, value, merge, encode, train, transfer };
inline constexpr int phase_count = 9;

[[nodiscard]] constexpr const char* name_of(phase p) noexcept {
  constexpr const char* names[phase_count] = {"broadcast", "table_build", "score", "softmax", "value",
                                              "merge",     "encode",      "train", "transfer"};
  return names[static_cast<int>(p)];
}

/// One command. Fields that a kind does not use are ignored.
struct command {
  opcode op = opcode::sync;
  bank_set set = bank_set::all;
  std::int32_t channel = 0;  ///< command channel
  std::int32_t bank = 0;     ///< in the command channel; its bank group is bank / banks_per_group. Set commands: see
                             ///< bank_set::share
  std::int32_t row = 0;
  std::int32_t column = 0;
  std::int64_t count = 1;
};

/// What the trace hook is told: one bus event. A run of columns is one record with the cycle of its first column.
struct trace_record {
  opcode op = opcode::sync;
  bool is_set = false;
  bank_set set = bank_set::all;
  std::int32_t channel = 0;
  std::int32_t bank = 0;
  std::int32_t row = 0;
  std::int32_t column = 0;
  std::int64_t count = 1;
  std::int64_t cycle = 0;
  std::int64_t interval = 0;  ///< cycles between the columns of a run
};

/// Called with the caller's pointer for every event; null = no trace.
using trace_hook = void (*)(void* user, const trace_record& record);

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
