// SPDX-License-Identifier: MIT
// The walker of one command channel: bank and bus timers, automatic row commands, refresh, counters.
//
// Commands of a channel are served in order. Each leaves at the latest of its timers and then pushes the timers of
// others; row commands may run ahead of earlier column commands (that is the only scheduling). A column command that
// names a row which is not open gets its PRE and ACT by itself. Integer arithmetic, no clock loop: a command costs
// O(banks it touches) whatever its `count`, plus O(1) for each refresh that falls into it. Channels are independent.
//
// This is an emulator of costs, not a cycle-accurate model of a controller: see docs/pim.md for what is left out.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "../../config.hpp"
#include "../../core/status.hpp"
#include "commands.hpp"
#include "counters.hpp"
#include "device.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

/// Choices of a run that are not properties of the device.
struct walk_options {
  bool refresh = true;         ///< obey timing.refi
  trace_hook trace = nullptr;  ///< called for every event on the command bus
  void* trace_user = nullptr;
};

/// One command channel.
class channel_walker {
 public:
  /// Allocates and resets. `d` must be valid and outlive the walker. out_of_memory when allocation fails.
  status configure(const device& d, const walk_options& options, std::int32_t index) {
    device_ = &d;
    options_ = options;
    index_ = index;
    const auto banks = static_cast<std::size_t>(d.organisation.banks_per_command_channel());
    const auto groups = static_cast<std::size_t>(d.organisation.groups_per_command_channel());
#if PQATTN_HAS_EXCEPTIONS
    try {
#endif
      banks_.resize(banks);
      bank_counts_.resize(banks * phase_count);
      set_counts_.resize((first_share + static_cast<std::size_t>(d.pim.banks_per_unit)) * phase_count);
      groups_.resize(groups);
#if PQATTN_HAS_EXCEPTIONS
    } catch (const std::bad_alloc&) {
      return failure(status_code::out_of_memory, "channel_walker.configure", "cannot hold the banks' state");
    }
#endif
    reset();
    return {};
  }

  /// Back to the state after configure(): time 0, rows closed, every counter zero.
  void reset() noexcept {
    std::fill(banks_.begin(), banks_.end(), bank_state{});
    std::fill(groups_.begin(), groups_.end(), group_state{});
    std::fill(bank_counts_.begin(), bank_counts_.end(), bank_counters{});
    std::fill(set_counts_.begin(), set_counts_.end(), bank_counters{});
    channel_counts_ = {};
    phase_ = phase::transfer;
    const auto& c = device_->controller;
    floor_ = c.start;
    row_floor_ = 0;
    move_floor_ = 0;
    last_act_ = last_column_ = last_read_ = last_write_ = last_mac_ = last_move_in_ = last_move_out_ = never;
    last_issue_ = c.start - 1;
    act_window_ = {never, never, never, never};
    act_slot_ = 0;
    end_of_data_ = horizon_ = finish_ = 0;
    open_banks_ = 0;
    open_since_ = closed_at_ = 0;
    column_fence_ = counted_ = 0;
    register_mode_ = false;
    uniform_ = true;
    next_refresh_ = never_again;
    if (options_.refresh && device_->timing.refi > 0) {
      next_refresh_ = c.first_refresh > 0 ? c.first_refresh : device_->timing.refi;
    }
  }

  /// Counters from here on belong to `p`.
  void set_phase(phase p) noexcept {
    phase_ = p;
  }
  [[nodiscard]] pim::phase current_phase() const noexcept {
    return phase_;
  }

  /// Serves one command. invalid_argument when a bank, row, column or count is outside the device; nothing has
  /// changed then.
  status issue(const command& c) noexcept {
    PQATTN_TRY(check_command(c));
    serve(c);
    settle();
    return {};
  }

  /// Cycle at which everything issued so far has completed, with the controller's end offset.
  [[nodiscard]] cycle_count finish_cycle() const noexcept {
    return finish_;
  }
  /// Cycle at which the last column command so far left.
  [[nodiscard]] cycle_count last_column_cycle() const noexcept {
    return last_column_;
  }
  /// Cycle at which the last command of any kind left.
  [[nodiscard]] cycle_count last_issue_cycle() const noexcept {
    return last_issue_;
  }
  /// Activations from here on leave at `cycle` or later: a barrier of a controller that looks ahead a limited way.
  void hold_rows(cycle_count cycle) noexcept {
    row_floor_ = (std::max)(row_floor_, cycle);
  }
  /// The same for buffer transfers.
  void hold_moves(cycle_count cycle) noexcept {
    move_floor_ = (std::max)(move_floor_, cycle);
  }

  /// Counters of one bank in one phase.
  [[nodiscard]] bank_counters bank(std::int32_t index, phase p) const noexcept {
    bank_counters sum = bank_counts_[slot(index, p)];
    sum += set_counts_[set_slot(bank_set::all, 0, p)];
    sum += set_counts_[set_slot(index % 2 == 0 ? bank_set::even : bank_set::odd, 0, p)];
    sum += set_counts_[set_slot(bank_set::share, index % device_->pim.banks_per_unit, p)];
    return sum;
  }
  [[nodiscard]] bank_counters bank(std::int32_t index) const noexcept {
    bank_counters sum;
    for (int p = 0; p < phase_count; ++p) {
      sum += bank(index, static_cast<phase>(p));
    }
    return sum;
  }
  /// Channel counters of one phase, with the time a row is still open counted up to the last completion.
  [[nodiscard]] channel_counters channel(phase p) const noexcept {
    channel_counters sum = channel_counts_[static_cast<std::size_t>(p)];
    if (p == phase_ && open_banks_ > 0 && finish_ > open_since_) {
      sum.open_cycles += finish_ - open_since_;
    }
    return sum;
  }
  /// Sum over banks and phases of this channel.
  [[nodiscard]] totals total() const noexcept {
    totals sum;
    for (int p = 0; p < phase_count; ++p) {
      const totals part = total(static_cast<phase>(p));
      sum.bank += part.bank;
      sum.channel += part.channel;
    }
    sum.elapsed_cycles = finish_;
    return sum;
  }
  [[nodiscard]] totals total(phase p) const noexcept {
    totals sum;
    for (std::int32_t b = 0; b < bank_count(); ++b) {
      sum.bank += bank(b, p);
    }
    sum.channel = channel(p);
    sum.elapsed_cycles = sum.channel.cycles;
    return sum;
  }
  [[nodiscard]] std::int32_t bank_count() const noexcept {
    return static_cast<std::int32_t>(banks_.size());
  }

 private:
  static constexpr cycle_count never = -(std::int64_t{1} << 40);  // long ago: no constraint
  static constexpr cycle_count never_again = std::int64_t{1} << 61;

  struct bank_state {
    std::int32_t open_row = -1;
    cycle_count next_act = 0, next_pre = 0, next_rd = 0, next_wr = 0, next_mac = 0;
    cycle_count closed_at = never;
    bool fresh = false;  // opened, and no column command yet
  };
  struct group_state {
    cycle_count last_act = never, last_column = never, last_write = never;
  };
  /// The banks a command touches: first, first + step, ... below end.
  struct bank_range {
    std::int32_t first, end, step;
    bool is_set;
    bank_set set;
  };

  const device* device_ = nullptr;
  walk_options options_;
  std::int32_t index_ = 0;
  std::vector<bank_state> banks_;
  std::vector<group_state> groups_;
  std::vector<bank_counters> bank_counts_;  // (bank, phase)
  std::vector<bank_counters> set_counts_;   // (all, even, odd, shares; phase): one addition counts for a whole set
  std::array<channel_counters, phase_count> channel_counts_{};
  phase phase_ = phase::transfer;
  cycle_count floor_ = 0, row_floor_ = 0, move_floor_ = 0, column_fence_ = 0;
  cycle_count last_act_ = never, last_column_ = never, last_read_ = never, last_write_ = never, last_mac_ = never;
  cycle_count last_move_in_ = never, last_move_out_ = never, last_issue_ = 0;
  std::array<cycle_count, 4> act_window_{};
  std::size_t act_slot_ = 0;
  cycle_count end_of_data_ = 0, horizon_ = 0, finish_ = 0, counted_ = 0;
  std::int32_t open_banks_ = 0;
  cycle_count open_since_ = 0, closed_at_ = 0;
  cycle_count next_refresh_ = never_again;
  bool register_mode_ = false;
  // As long as only commands to all banks have come, every bank is in the state of bank 0, and only that one is kept.
  bool uniform_ = true;

  [[nodiscard]] std::size_t slot(std::int32_t bank, phase p) const noexcept {
    return static_cast<std::size_t>(bank) * phase_count + static_cast<std::size_t>(p);
  }
  static constexpr std::size_t first_share = static_cast<std::size_t>(bank_set::share);
  [[nodiscard]] static std::size_t set_slot(bank_set set, std::int32_t share, phase p) noexcept {
    const std::size_t index =
        static_cast<std::size_t>(set) + (set == bank_set::share ? static_cast<std::size_t>(share) : 0);
    return index * phase_count + static_cast<std::size_t>(p);
  }
  [[nodiscard]] bank_state& at(std::int32_t bank) noexcept {
    return banks_[static_cast<std::size_t>(bank)];
  }
  [[nodiscard]] group_state& group_of(std::int32_t bank) noexcept {
    return groups_[static_cast<std::size_t>(bank / device_->organisation.banks_per_group)];
  }
  [[nodiscard]] channel_counters& counts() noexcept {
    return channel_counts_[static_cast<std::size_t>(phase_)];
  }

  [[nodiscard]] bank_range range_of(const command& c) const noexcept {
    const std::int32_t banks = bank_count();
    switch (c.op) {
      case opcode::act_ab:
      case opcode::pre_ab:
      case opcode::mac_ab:
      case opcode::ld_ab:
      case opcode::st_ab:
      case opcode::lut: {
        if (c.set == bank_set::share) {
          return {c.bank, banks, device_->pim.banks_per_unit, true, c.set};
        }
        const bool all = c.set == bank_set::all || banks == 1;
        return {!all && c.set == bank_set::odd ? 1 : 0, banks, all ? 1 : 2, true, all ? bank_set::all : c.set};
      }
      default: return {c.bank, c.bank + 1, 1, false, bank_set::all};
    }
  }
  /// Ends loops over a range, and over all banks.
  [[nodiscard]] std::int32_t end_of(const bank_range& r) const noexcept {
    return uniform_ ? r.first + 1 : r.end;
  }
  [[nodiscard]] std::int32_t kept_banks() const noexcept {
    return uniform_ ? 1 : bank_count();
  }
  /// Banks that one state of the range stands for.
  [[nodiscard]] std::int32_t weight() const noexcept {
    return uniform_ ? bank_count() : 1;
  }
  /// Gives every bank its own state before something treats them differently.
  void tell_apart(const bank_range& r) noexcept {
    const bool staggered = device_->pim.activate_banks > 0 && device_->pim.activate_banks < bank_count();
    if (uniform_ && (!r.is_set || r.set != bank_set::all || staggered)) {
      std::fill(banks_.begin() + 1, banks_.end(), banks_.front());
      std::fill(groups_.begin() + 1, groups_.end(), groups_.front());
      uniform_ = false;
    }
  }
  /// Adds to the counters of every bank of the range: one addition for a set.
  [[nodiscard]] bank_counters& counts(const bank_range& r) noexcept {
    return r.is_set ? set_counts_[set_slot(r.set, r.first, phase_)] : bank_counts_[slot(r.first, phase_)];
  }
  [[nodiscard]] static std::int64_t size(const bank_range& r) noexcept {
    return (r.end - r.first + r.step - 1) / r.step;
  }

  [[nodiscard]] status check_command(const command& c) const noexcept {
    const auto& o = device_->organisation;
    const auto bad = [](const char* field, std::int64_t last, std::int64_t got) {
      return failure(status_code::invalid_argument, field, "must not exceed the last of the device", last, got);
    };
    switch (c.op) {
      case opcode::act:
      case opcode::pre:
      case opcode::rd:
      case opcode::wr:
      case opcode::host_rd:
      case opcode::host_wr:
        if (c.bank < 0 || c.bank >= bank_count()) {
          return bad("command.bank", bank_count() - 1, c.bank);
        }
        break;
      case opcode::act_ab:
      case opcode::pre_ab:
      case opcode::mac_ab:
      case opcode::ld_ab:
      case opcode::st_ab:
      case opcode::lut:
        if (c.set == bank_set::share && (c.bank < 0 || c.bank >= device_->pim.banks_per_unit)) {
          return bad("command.bank", device_->pim.banks_per_unit - 1, c.bank);
        }
        break;
      default: break;
    }
    if (c.row < 0 || c.row >= o.rows_per_bank) {
      return bad("command.row", o.rows_per_bank - 1, c.row);
    }
    if (c.count < 0 || c.count > (std::int64_t{1} << 32)) {
      return bad("command.count", std::int64_t{1} << 32, c.count);
    }
    switch (c.op) {
      case opcode::rd:
      case opcode::wr:
      case opcode::host_rd:
      case opcode::host_wr:
      case opcode::mac_ab:
      case opcode::ld_ab:
      case opcode::st_ab:
        if (c.column < 0 || c.column >= o.columns_per_row()) {
          return bad("command.column", o.columns_per_row() - 1, c.column);
        }
        if (c.column + c.count > o.columns_per_row()) {
          return bad("command.count", o.columns_per_row() - c.column, c.count);
        }
        break;
      default: break;
    }
    const bool in_units =
        c.op == opcode::mac_ab || c.op == opcode::lut || c.op == opcode::ld_ab || c.op == opcode::st_ab;
    if (in_units && !device_->pim.present) {
      return failure(status_code::unsupported, "command.op", "needs PIM units, which this device has not");
    }
    return {};
  }

  [[nodiscard]] bank_range touched(const command& c) noexcept {
    const bank_range r = range_of(c);
    tell_apart(r);
    return r;
  }

  void serve(const command& c) noexcept {
    switch (c.op) {
      case opcode::act:
      case opcode::act_ab: open_rows(touched(c), c.row); break;
      case opcode::pre:
      case opcode::pre_ab: close_rows(touched(c)); break;
      case opcode::rd:
      case opcode::wr:
      case opcode::host_rd:
      case opcode::host_wr:
      case opcode::ld_ab:
      case opcode::st_ab:
      case opcode::mac_ab: columns(c, touched(c), c.count); break;
      case opcode::lut: {
        std::int64_t g = device_->pim.lookups_per_slot;
        g = c.column > 0 && c.column < g ? c.column : g;
        columns(c, touched(c), (c.count + g - 1) / g);
        counts(range_of(c)).lut_lookups += c.count;
        break;
      }
      case opcode::wrgb:
      case opcode::mv_in:
      case opcode::mv_out: moves(c); break;
      case opcode::sfm: softmax(c); break;
      case opcode::ref: refresh((std::max)(floor_, last_issue_ + 1), false); break;
      case opcode::mode: switch_mode(last_issue_ + 1); break;
      case opcode::sync:
        floor_ = (std::max)(floor_, horizon_);
        ++counts().host_syncs;
        break;
      case opcode::wait: wait_for_data(); break;
      case opcode::fence: floor_fence(); break;
    }
  }

  /// The next command comes after the data of the last read; some controllers close idle rows meanwhile.
  void wait_for_data() noexcept {
    floor_ = (std::max)(floor_, end_of_data_ + device_->controller.dependent_gap);
    if (device_->controller.closes_idle_rows && open_banks_ > 0) {
      tell_apart({0, 1, 1, false, bank_set::all});
      for (std::int32_t b = 0; b < bank_count(); ++b) {
        if (at(b).open_row >= 0 && at(b).next_pre < floor_) {
          precharge({b, b + 1, 1, false, bank_set::all}, at(b).next_pre);
        }
      }
    }
  }

  /// Later column commands and moves leave no earlier than the last that left. Rows keep running ahead.
  void floor_fence() noexcept {
    const cycle_count last = (std::max)({last_column_, last_move_in_, last_move_out_});
    column_fence_ = (std::max)(column_fence_, last);
    move_floor_ = (std::max)(move_floor_, last);
  }

  // --- what is common to all commands -----------------------------------------------------------------------------

  void issued(cycle_count t) noexcept {
    last_issue_ = (std::max)(last_issue_, t);
  }
  void completes(cycle_count t, std::int32_t end_offset) noexcept {
    horizon_ = (std::max)(horizon_, t);
    finish_ = (std::max)(finish_, t + end_offset);
  }
  /// Gives the time that passed to the phase that used it.
  void settle() noexcept {
    counts().cycles += finish_ - counted_;
    counted_ = finish_;
  }

  void trace(opcode op, const bank_range* r, std::int32_t row, std::int32_t column, std::int64_t count, cycle_count t,
             cycle_count interval) const noexcept {
    if (options_.trace != nullptr) {
      const trace_record record{op,
                                r != nullptr && r->is_set,
                                r != nullptr ? r->set : bank_set::all,
                                index_,
                                r != nullptr ? r->first : 0,
                                row,
                                column,
                                count,
                                t,
                                interval};
      options_.trace(options_.trace_user, record);
    }
  }

  /// Register mode and array mode: the switch is made when the command would otherwise be ready.
  [[nodiscard]] cycle_count in_mode(bool registers, cycle_count ready) noexcept {
    if (device_->pim.mode_switch == 0 || registers == register_mode_) {
      return (std::max)(ready, floor_);
    }
    switch_mode((std::max)({ready, floor_, last_issue_ + 1}));
    return (std::max)(ready, floor_);
  }
  void switch_mode(cycle_count ready) noexcept {
    const cycle_count t = (std::max)(ready, floor_);
    register_mode_ = !register_mode_;
    ++counts().mode_switches;
    trace(opcode::mode, nullptr, 0, 0, 1, t, 0);
    issued(t);
    floor_ = t + device_->pim.mode_switch;
    completes(t, 0);
  }

  // --- rows -------------------------------------------------------------------------------------------------------

  [[nodiscard]] bool refresh_due(cycle_count t) const noexcept {
    return t >= next_refresh_;
  }
  /// Whether the refresh that is due at `t` keeps a column command of the range from leaving.
  [[nodiscard]] bool refresh_first(const bank_range& r, cycle_count t) noexcept {
    if (!refresh_due(t)) {
      return false;
    }
    switch (device_->controller.refresh) {
      case refresh_policy::block: return true;
      case refresh_policy::first_column: return !at(r.first).fresh;
      case refresh_policy::until_pre: return t >= (std::min)(precharge_ready(), latest_refresh());
    }
    return true;
  }
  /// Columns that keep a row from being closed put a refresh off, but by no more than JEDEC's eight intervals.
  [[nodiscard]] cycle_count latest_refresh() const noexcept {
    return next_refresh_ + 8 * static_cast<cycle_count>(device_->timing.refi);
  }
  /// Cycle from which every open row may be closed.
  [[nodiscard]] cycle_count precharge_ready() const noexcept {
    cycle_count t = never;
    for (std::int32_t b = 0; b < kept_banks(); ++b) {
      const bank_state& bank = banks_[static_cast<std::size_t>(b)];
      if (bank.open_row >= 0) {
        t = (std::max)(t, bank.next_pre);
      }
    }
    return t;
  }
  [[nodiscard]] cycle_count row_order(cycle_count t) const noexcept {
    return (std::max)({t, floor_, device_->controller.rows_in_order ? last_issue_ + 1 : never});
  }

  void close_rows(const bank_range& r) noexcept {
    cycle_count t = never;
    bool any = false;
    for (std::int32_t b = r.first; b < end_of(r); b += r.step) {
      if (at(b).open_row >= 0) {
        any = true;
        t = (std::max)(t, at(b).next_pre);
      }
    }
    if (!any) {
      return;
    }
    t = in_mode(false, row_order(t));
    if (refresh_due(t)) {
      refresh(next_refresh_, true);  // closes every row
      return;
    }
    precharge(r, t);
  }

  void precharge(const bank_range& r, cycle_count t) noexcept {
    const auto& d = device_->timing;
    const cycle_count recovery = r.is_set ? d.rp_ab : d.rp;
    for (std::int32_t b = r.first; b < end_of(r); b += r.step) {
      bank_state& bank = at(b);
      if (bank.open_row >= 0) {
        bank.next_act = (std::max)(bank.next_act, t + recovery);
        bank.open_row = -1;
        bank.closed_at = t;
        count_pre(b);
      }
    }
    note_closed(t);
    ++counts().row_commands;
    issued(t);
    completes(t, 0);
    trace(r.is_set ? opcode::pre_ab : opcode::pre, &r, 0, 0, 1, t, 0);
  }
  /// One bank (or all of them, as long as they are alike) has been closed.
  void count_pre(std::int32_t b) noexcept {
    open_banks_ -= weight();
    ++(uniform_ ? set_counts_[set_slot(bank_set::all, 0, phase_)] : bank_counts_[slot(b, phase_)]).pre_count;
  }
  void note_closed(cycle_count t) noexcept {
    closed_at_ = (std::max)(closed_at_, t);
    if (open_banks_ == 0) {
      if (closed_at_ > open_since_) {
        counts().open_cycles += closed_at_ - open_since_;
      }
      open_since_ = closed_at_;
    }
  }

  /// Opens `row` in every bank of the range that has it not open; other rows are closed first.
  void open_rows(const bank_range& r, std::int32_t row) noexcept {
    while (true) {
      bool wrong = false;
      bool all_open = true;
      for (std::int32_t b = r.first; b < end_of(r); b += r.step) {
        wrong = wrong || (at(b).open_row >= 0 && at(b).open_row != row);
        all_open = all_open && at(b).open_row == row;
      }
      if (all_open) {
        return;
      }
      bool some_open = false;
      for (std::int32_t b = r.first; b < end_of(r); b += r.step) {
        some_open = some_open || at(b).open_row >= 0;
      }
      if (wrong || (r.is_set && some_open)) {
        close_rows(r);
        continue;
      }
      const cycle_count t = in_mode(false, act_ready(r));
      if (refresh_due(t)) {
        refresh(next_refresh_, true);
        continue;
      }
      activate(r, row, t);
      return;
    }
  }

  [[nodiscard]] cycle_count act_ready(const bank_range& r) noexcept {
    const auto& d = device_->timing;
    cycle_count t = (std::max)(row_order(row_floor_), last_act_ + d.rrd_s);
    for (std::int32_t b = r.first; b < end_of(r); b += r.step) {
      t = (std::max)(t, at(b).next_act);
      t = (std::max)(t, group_of(b).last_act + d.rrd_l);
    }
    if (d.faw > 0) {
      t = (std::max)(t, act_window_[act_slot_] + d.faw);
    }
    return t;
  }

  void activate(const bank_range& r, std::int32_t row, cycle_count first) noexcept {
    const auto& d = device_->timing;
    const std::int64_t banks = size(r);
    const std::int64_t at_once = device_->pim.activate_banks > 0 ? device_->pim.activate_banks : banks;
    if (open_banks_ == 0) {
      open_since_ = (std::max)(first, closed_at_);
    }
    cycle_count t = first;
    std::int64_t done = 0;
    for (std::int32_t b = r.first; b < end_of(r); b += r.step, ++done) {
      if (done > 0 && done % at_once == 0) {
        t += (std::max)({d.faw, d.rrd_l, std::int32_t{1}});
        ++counts().row_commands;
      }
      bank_state& bank = at(b);
      const cycle_count seen = t + d.act_extra;
      bank.open_row = row;
      bank.fresh = true;
      bank.next_act = t + d.rc;
      bank.next_pre = t + d.ras;
      bank.next_rd = seen + d.rcd_rd;
      bank.next_wr = seen + d.rcd_wr;
      bank.next_mac = seen + d.rcd_mac;
      group_of(b).last_act = t;
      open_banks_ += weight();
    }
    last_act_ = t;
    act_window_[act_slot_] = t;
    act_slot_ = (act_slot_ + 1) % act_window_.size();
    ++counts(r).act_count;
    ++counts().row_commands;
    issued(t);
    completes(t, 0);
    trace(r.is_set ? opcode::act_ab : opcode::act, &r, row, 0, 1, first, 0);
  }

  /// Closes every row, refreshes at `due` or later, and leaves the rows closed.
  void refresh(cycle_count due, bool automatic) noexcept {
    const auto& d = device_->timing;
    if (open_banks_ > 0) {
      close_all((std::max)({due, precharge_ready(), floor_}));
    }
    cycle_count ref = due;
    for (std::int32_t b = 0; b < kept_banks(); ++b) {
      ref = (std::max)(ref, at(b).closed_at + d.pre_to_ref);
    }
    for (std::int32_t b = 0; b < kept_banks(); ++b) {
      at(b).next_act = (std::max)(at(b).next_act, ref + d.rfc);
    }
    ++counts().ref_count;
    ++counts().row_commands;
    issued(ref);
    completes(ref, 0);
    trace(opcode::ref, nullptr, 0, 0, 1, ref, 0);
    if (automatic) {
      next_refresh_ += d.refi;
    }
  }
  /// One PRE for all banks; only those with an open row count it.
  void close_all(cycle_count t) noexcept {
    for (std::int32_t b = 0; b < kept_banks(); ++b) {
      if (at(b).open_row >= 0) {
        at(b).open_row = -1;
        at(b).closed_at = t;
        count_pre(b);
      }
    }
    note_closed(t);
    ++counts().row_commands;
    issued(t);
    const bank_range all{0, bank_count(), 1, true, bank_set::all};
    trace(opcode::pre_ab, &all, 0, 0, 1, t, 0);
  }

  // --- columns ----------------------------------------------------------------------------------------------------

  [[nodiscard]] static bool is_write(opcode op) noexcept {
    return op == opcode::wr || op == opcode::host_wr || op == opcode::st_ab;
  }
  [[nodiscard]] static bool is_read(opcode op) noexcept {
    return op == opcode::rd || op == opcode::host_rd;
  }

  [[nodiscard]] cycle_count column_ready(opcode op, const bank_range& r) noexcept {
    const auto& d = device_->timing;
    cycle_count t = (std::max)(floor_, column_fence_);
    if (op == opcode::st_ab) {
      for (std::int32_t b = r.first; b < end_of(r); b += r.step) {
        t = (std::max)(t, at(b).next_wr);
      }
      t = (std::max)({t, last_mac_ + d.mac, last_read_ + d.read_to_write, last_write_ + d.ccd_l});
    } else if (is_write(op)) {
      t = (std::max)({t, at(r.first).next_wr, last_read_ + d.read_to_write, last_mac_ + d.read_to_write,
                      last_write_ + d.ccd_s, group_of(r.first).last_column + d.ccd_l});
    } else if (is_read(op)) {
      t = (std::max)({t, at(r.first).next_rd, last_column_ + d.ccd_s, group_of(r.first).last_column + d.ccd_l,
                      last_write_ + d.write_to_read_s, group_of(r.first).last_write + d.write_to_read_l});
    } else {
      for (std::int32_t b = r.first; b < end_of(r); b += r.step) {
        t = (std::max)(t, at(b).next_mac);
      }
      t = (std::max)(
          {t, last_mac_ + (op == opcode::lut ? d.lut : d.mac), last_read_ + d.ccd_l, last_write_ + d.write_to_read_l});
    }
    // Where there are modes, the switch back is what separates them.
    if (!device_->pim.moves_overlap_macs && device_->pim.mode_switch == 0) {
      t = (std::max)(t, (std::max)(last_move_in_, last_move_out_) + device_->pim.buffer_interval);
    }
    return aligned(t);
  }
  [[nodiscard]] cycle_count aligned(cycle_count t) const noexcept {
    const cycle_count step = device_->controller.alignment;
    if (step == 1) {
      return t;
    }
    const cycle_count past = t - device_->controller.start;
    return device_->controller.start + (past + step - 1) / step * step;
  }
  [[nodiscard]] cycle_count column_interval(opcode op) const noexcept {
    const auto& d = device_->timing;
    if (op == opcode::lut) {
      return d.lut;
    }
    if (op == opcode::st_ab) {
      return (std::max)(d.mac, d.ccd_l);
    }
    return op == opcode::mac_ab || op == opcode::ld_ab ? d.mac : d.ccd_l;
  }

  /// Columns from `first` on, `interval` apart, that no refresh comes between.
  [[nodiscard]] std::int64_t before_refresh(opcode op, cycle_count first, cycle_count interval) const noexcept {
    const auto until = [&](cycle_count end) { return (end - first + interval - 1) / interval; };
    if (!refresh_due(first)) {
      return until(next_refresh_);
    }
    const cycle_count recovery = is_write(op) ? device_->timing.write_to_pre : device_->timing.rtp;
    const bool held = device_->controller.refresh == refresh_policy::until_pre && interval < recovery;
    return held ? until(latest_refresh()) : 1;
  }
  void columns(const command& c, const bank_range& r, std::int64_t count) noexcept {
    const cycle_count interval = aligned_interval(column_interval(c.op));
    std::int32_t column = c.column;
    while (count > 0) {
      open_rows(r, c.row);
      const cycle_count first = in_mode(false, column_ready(c.op, r));
      if (refresh_first(r, first)) {
        refresh(next_refresh_, true);
        continue;
      }
      const std::int64_t run = (std::min)(count, before_refresh(c.op, first, interval));
      column_run(c, r, column, run, first, interval);
      if (c.op != opcode::lut) {  // look-ups stay within their row and may be billions
        column += static_cast<std::int32_t>(run);
      }
      count -= run;
    }
  }
  [[nodiscard]] cycle_count aligned_interval(cycle_count interval) const noexcept {
    const cycle_count step = device_->controller.alignment;
    return (interval + step - 1) / step * step;
  }

  void column_run(const command& c, const bank_range& r, std::int32_t column, std::int64_t run, cycle_count first,
                  cycle_count interval) noexcept {
    const auto& d = device_->timing;
    const auto& o = device_->organisation;
    const cycle_count last = first + (run - 1) * interval;
    const bool write = is_write(c.op);
    for (std::int32_t b = r.first; b < end_of(r); b += r.step) {
      at(b).next_pre = (std::max)(at(b).next_pre, last + (write ? d.write_to_pre : d.rtp));
      at(b).fresh = false;
    }
    bank_counters& bank = counts(r);
    channel_counters& channel = counts();
    const std::int64_t bytes = run * o.column_bytes;
    bank.cell_bytes += bytes;
    bank.busy_cycles += run * interval;
    channel.column_commands += run;
    if (c.op == opcode::mac_ab) {
      bank.mac_columns += run;
      // A unit shared by several banks works for one of them per command: its MACs count where the column is read.
      bank.macs += run * device_->pim.macs_per_column;
      last_mac_ = last;
      completes(last + device_->pim.mac_latency, device_->controller.pim_end);
    } else if (c.op == opcode::lut) {
      bank.lut_slots += run;
      last_mac_ = last;
      completes(last + device_->pim.mac_latency, device_->controller.pim_end);
    } else if (c.op == opcode::ld_ab) {
      bank.rd_columns += run;
      last_mac_ = last;
      completes(last + device_->pim.mac_latency, device_->controller.pim_end);
    } else if (c.op == opcode::st_ab) {
      bank.wr_columns += run;
      last_mac_ = last;
      last_write_ = last;
      for (std::int32_t b = r.first; b < end_of(r); b += r.step) {
        group_of(b).last_write = last;
      }
      completes(last + d.cwl + d.bl, device_->controller.pim_end);
    } else {
      channel.data_cycles += run * d.bl;
      channel.group_bytes += bytes;
      channel.global_bytes += bytes;
      channel.tsv_bytes += bytes;
      if (c.op == opcode::host_rd || c.op == opcode::host_wr) {
        channel.interposer_bytes += bytes;
      }
      group_of(r.first).last_column = last;
      if (write) {
        bank.wr_columns += run;
        last_write_ = group_of(r.first).last_write = last;
        completes(last + d.cwl + d.bl, device_->controller.write_end);
      } else {
        bank.rd_columns += run;
        last_read_ = last;
        end_of_data_ = (std::max)(end_of_data_, last + d.cl + d.bl);
        completes(last + d.cl + d.bl, device_->controller.read_end);
      }
    }
    last_column_ = (std::max)(last_column_, last);
    issued(last);
    trace(c.op, &r, c.row, column, run, first, interval);
  }

  // --- buffers and the buffer die ---------------------------------------------------------------------------------

  void moves(const command& c) noexcept {
    if (c.count == 0) {
      return;
    }
    const auto& p = device_->pim;
    const bool out = c.op == opcode::mv_out;
    cycle_count t = (std::max)(move_floor_, floor_);
    t = (std::max)(t, (out ? last_move_out_ : last_move_in_) + p.buffer_interval);
    t = (std::max)(t, out ? last_move_in_ + (std::max)(p.buffer_in_to_out, p.buffer_interval)
                          : last_move_out_ + (std::max)(p.buffer_out_to_in, p.buffer_interval));
    if (!p.moves_overlap_macs) {
      t = (std::max)(t, last_column_ + device_->timing.ccd_l);
    }
    t = in_mode(true, t);
    const cycle_count last = t + (c.count - 1) * p.buffer_interval;
    (out ? last_move_out_ : last_move_in_) = last;
    const organisation& o = device_->organisation;
    const std::int64_t bytes = c.count * (c.op == opcode::wrgb ? o.column_bytes : o.transfer_bytes());
    channel_counters& channel = counts();
    (out ? channel.buffer_read_bytes : channel.buffer_write_bytes) += bytes;
    channel.column_commands += c.count;
    channel.data_cycles += c.count * device_->timing.bl;
    channel.group_bytes += bytes;
    channel.global_bytes += bytes;
    channel.tsv_bytes += bytes;
    if (out) {
      end_of_data_ = (std::max)(end_of_data_, last + p.buffer_latency);
    }
    issued(last);
    completes(last + p.buffer_latency, device_->controller.pim_end);
    trace(c.op, nullptr, 0, 0, c.count, t, p.buffer_interval);
  }

  void softmax(const command& c) noexcept {
    const auto& p = device_->pim;
    const cycle_count t = (std::max)({move_floor_, floor_, last_move_out_ + p.buffer_latency});
    const cycle_count length = (c.count + p.softmax_per_cycle - 1) / p.softmax_per_cycle;
    counts().softmax_elements += c.count;
    // What is moved back to the banks next are the probabilities.
    last_move_in_ = (std::max)(last_move_in_, t + length - p.buffer_interval);
    issued(t);
    completes(t + length, device_->controller.pim_end);
    trace(c.op, nullptr, 0, 0, c.count, t, 0);
  }
};

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
