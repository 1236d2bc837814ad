// SPDX-License-Identifier: MIT
// A controller that reorders host reads: first ready, first come, from a window of queued requests. The walker serves
// commands in order; simulators of ordinary memory do not, and for reads interleaved over many banks that is a visible
// difference. Only the comparison with such simulators uses this; bank programs are in order.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include <pqattn/bank/pim/device.hpp>

#include "reference_device.hpp"

namespace pqattn_pim {

struct host_read {
  std::int32_t bank = 0;
  std::int32_t row = 0;
};

struct queue_result {
  std::int64_t cycles = 0;
  std::int64_t act_count = 0;
  std::int64_t rd_columns = 0;
  std::int64_t ref_count = 0;
  std::int64_t open_cycles = 0;
};

/// Serves `count` reads, request(i) being the i-th, cycle by cycle.
class host_queue {
 public:
  host_queue(const reference_device& reference, bool refresh)
      : device_(reference.description),
        queue_(reference.queue),
        banks_(static_cast<std::size_t>(device_.organisation.banks_per_command_channel())),
        groups_(static_cast<std::size_t>(device_.organisation.groups_per_command_channel())) {
    const auto& t = device_.timing;
    if (refresh && t.refi > 0) {
      next_refresh_ = device_.controller.first_refresh > 0 ? device_.controller.first_refresh : t.refi;
    }
  }

  template <class Request>
  [[nodiscard]] queue_result run(std::int64_t count, Request&& request) {
    std::int64_t arrived = 0;
    for (now_ = device_.controller.start; arrived < count || !window_.empty(); ++now_) {
      for (std::int64_t k = 0; k < queue_.arrivals && arrived < count && std::ssize(window_) < queue_.window; ++k) {
        window_.push_back(request(arrived++));
      }
      const bool open = open_banks_ > 0;
      tick();
      result_.open_cycles += open || open_banks_ > 0 ? 1 : 0;
    }
    result_.cycles = last_read_ + device_.timing.cl + device_.timing.bl + device_.controller.read_end;
    result_.open_cycles += result_.cycles - now_;
    return result_;
  }

 private:
  static constexpr std::int64_t never = -(std::int64_t{1} << 40);
  struct bank_state {
    std::int32_t row = -1;
    bool fresh = false;  // opened for a request that has not been served
    std::int64_t next_act = 0, next_pre = 0, next_rd = 0;
  };
  struct group_state {
    std::int64_t last_act = never, last_read = never;
  };

  const pim::device& device_;
  queue_model queue_;
  std::vector<bank_state> banks_;
  std::vector<group_state> groups_;
  std::deque<host_read> window_;
  queue_result result_;
  std::int64_t now_ = 0, last_act_ = never, last_read_ = never;
  std::array<std::int64_t, 4> act_window_{never, never, never, never};
  std::size_t act_slot_ = 0;
  std::int64_t next_refresh_ = std::int64_t{1} << 60;
  std::int64_t last_pre_ = never;
  std::int64_t open_banks_ = 0;

  [[nodiscard]] bank_state& bank(std::int32_t b) { return banks_[static_cast<std::size_t>(b)]; }
  [[nodiscard]] group_state& group(std::int32_t b) {
    return groups_[static_cast<std::size_t>(b / device_.organisation.banks_per_group)];
  }

  void tick() {
    const bool refreshing = now_ >= next_refresh_;
    if (refreshing && refresh_step()) {
      return;
    }
    const bool column = read_step(refreshing);
    if (!refreshing && !(column && queue_.one_command_per_cycle)) {
      row_step();
    }
  }

  /// Closes what may be closed, then refreshes. True when the command bus was used.
  bool refresh_step() {
    const auto& t = device_.timing;
    const bool waits = std::any_of(banks_.begin(), banks_.end(), [&](const bank_state& b) {
      const bool owed = device_.controller.refresh == pim::refresh_policy::first_column && b.fresh;
      return b.row >= 0 && (owed || now_ < b.next_pre);
    });
    if (waits) {
      return false;
    }
    if (open_banks_ > 0) {
      for (bank_state& b : banks_) {
        if (b.row >= 0) {
          b.row = -1;
          b.next_act = std::max(b.next_act, now_ + t.rp_ab);
        }
      }
      open_banks_ = 0;
      last_pre_ = now_;
      return true;
    }
    if (now_ < last_pre_ + t.pre_to_ref) {
      return false;
    }
    for (bank_state& b : banks_) {
      b.next_act = std::max(b.next_act, now_ + t.rfc);
    }
    next_refresh_ += t.refi;
    ++result_.ref_count;
    return true;
  }

  bool read_step(bool refreshing) {
    const auto& t = device_.timing;
    const auto& c = device_.controller;
    if ((now_ - c.start) % c.alignment != 0 || now_ < last_read_ + t.ccd_s) {
      return false;
    }
    for (auto it = window_.begin(); it != window_.end(); ++it) {
      bank_state& b = bank(it->bank);
      const bool allowed = !refreshing || c.refresh == pim::refresh_policy::until_pre ||
                           (c.refresh == pim::refresh_policy::first_column && b.fresh);
      if (allowed && b.row == it->row && now_ >= b.next_rd && now_ >= group(it->bank).last_read + t.ccd_l) {
        last_read_ = group(it->bank).last_read = now_;
        b.next_pre = std::max(b.next_pre, now_ + t.rtp);
        b.fresh = false;
        ++result_.rd_columns;
        window_.erase(it);
        return true;
      }
    }
    return false;
  }

  void row_step() {
    const auto& t = device_.timing;
    if ((now_ - device_.controller.start) % device_.controller.alignment != 0) {
      return;
    }
    std::vector<bool> seen(banks_.size(), false);
    for (const host_read& r : window_) {
      bank_state& b = bank(r.bank);
      if (seen[static_cast<std::size_t>(r.bank)] || b.row == r.row) {
        seen[static_cast<std::size_t>(r.bank)] = true;
        continue;
      }
      seen[static_cast<std::size_t>(r.bank)] = true;
      if (b.row >= 0) {
        if (now_ >= b.next_pre && !wanted(r.bank, b.row)) {
          b.row = -1;
          b.next_act = std::max(b.next_act, now_ + t.rp);
          --open_banks_;
          last_pre_ = now_;
          return;
        }
        continue;
      }
      const bool ready = now_ >= b.next_act && now_ >= last_act_ + t.rrd_s &&
                         now_ >= group(r.bank).last_act + t.rrd_l &&
                         (t.faw == 0 || now_ >= act_window_[act_slot_] + t.faw);
      if (ready) {
        open(r);
        return;
      }
    }
  }
  [[nodiscard]] bool wanted(std::int32_t b, std::int32_t row) const {
    return std::any_of(window_.begin(), window_.end(), [&](const host_read& r) { return r.bank == b && r.row == row; });
  }
  void open(const host_read& r) {
    const auto& t = device_.timing;
    bank_state& b = bank(r.bank);
    b.row = r.row;
    b.fresh = true;
    b.next_act = now_ + t.rc;
    b.next_pre = now_ + t.ras;
    b.next_rd = now_ + t.act_extra + t.rcd_rd;
    last_act_ = group(r.bank).last_act = now_;
    act_window_[act_slot_] = now_;
    act_slot_ = (act_slot_ + 1) % act_window_.size();
    ++open_banks_;
    ++result_.act_count;
  }
};

}  // namespace pqattn_pim
