// SPDX-License-Identifier: MIT
// PIMSimulator's controller: one queue of 64 requests, filled one a cycle; one command a cycle. The oldest issuable
// column command goes first, then an activation for the oldest idle bank, then the precharge of a bank that no queued
// request hits. A request marked as barrier issues from the head only, and nothing behind it issues before it. While
// the device is in its all-bank modes only banks 0 and 1 may be activated: they stand for all even and all odd banks.
// A refresh that is due precharges what it can, before anything else. Used for kernels whose order depends on this.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include <pqattn/bank/pim/device.hpp>

namespace pqattn_pim {

namespace pim = pqattn::pim;

struct queued_request {
  bool write = false;
  std::int32_t bank = 0;
  std::int32_t row = 0;
  std::int32_t column = 0;
  bool barrier = false;
};

struct barrier_queue_result {
  std::int64_t cycles = 0;
  std::int64_t act_count = 0;
  std::int64_t rd_columns = 0;
  std::int64_t wr_columns = 0;
  std::int64_t ref_count = 0;
};

/// Rows whose activation or precharge changes the device's mode, and rows that hold no data.
struct magic_rows {
  static constexpr std::int32_t park = 1 << 12;
  static constexpr std::int32_t enter_all_bank = 0x17ff;  // activated in banks 0, 1, 8 and 9
  static constexpr std::int32_t leave_all_bank = 0x1fff;  // precharged in banks 0 and 1
  static constexpr std::int32_t registers = 0x3fff;
};

class barrier_queue {
 public:
  barrier_queue(const pim::device& d, bool refresh)
      : device_(d), banks_(static_cast<std::size_t>(d.organisation.banks_per_command_channel())) {
    if (refresh && d.timing.refi > 0) {
      next_refresh_ = d.timing.refi;
    }
  }

  /// Serves `count` requests, request(i) being the i-th.
  template <class Request>
  [[nodiscard]] barrier_queue_result run(std::int64_t count, Request&& request) {
    std::int64_t arrived = 0;
    for (now_ = device_.controller.start - 1; arrived < count || !queue_.empty(); ++now_) {
      for (bank_state& b : banks_) {
        if (b.state == closing && now_ >= b.idle_at) {
          b.state = idle;
        }
      }
      if (!refresh_step() && !column_step() && !activate_step()) {
        precharge_step();
      }
      if (arrived < count && queue_.size() < depth) {
        queue_.push_back(request(arrived++));
      }
    }
    const auto& t = device_.timing;
    result_.cycles = last_write_ > last_read_ ? last_write_ + t.cwl + t.bl + device_.controller.write_end
                                              : last_read_ + t.cl + t.bl + device_.controller.read_end;
    return result_;
  }

 private:
  static constexpr std::size_t depth = 64;
  enum state_kind : std::uint8_t { idle, open, closing };
  struct bank_state {
    state_kind state = idle;
    std::int32_t row = -1;
    std::int64_t idle_at = 0, next_act = 0, next_pre = 0, next_rd = 0, next_wr = 0;
  };

  const pim::device& device_;
  std::vector<bank_state> banks_;
  std::deque<queued_request> queue_;
  barrier_queue_result result_;
  std::int64_t now_ = 0, last_read_ = -1, last_write_ = -1;
  std::int64_t next_refresh_ = std::int64_t{1} << 60;
  std::size_t next_precharge_ = 0;
  std::uint32_t entering_ = 0, leaving_ = 0;
  bool all_bank_mode_ = false;

  [[nodiscard]] bank_state& bank(std::int32_t index) { return banks_[static_cast<std::size_t>(index)]; }
  [[nodiscard]] bool same_group(std::size_t a, std::int32_t b) const {
    const auto per_group = static_cast<std::size_t>(device_.organisation.banks_per_group);
    return a / per_group == static_cast<std::size_t>(b) / per_group;
  }

  bool refresh_step() {
    if (now_ < next_refresh_) {
      return false;
    }
    bool some_open = false;
    for (std::size_t b = 0; b < banks_.size(); ++b) {
      if (banks_[b].state == open) {
        some_open = true;
        if (now_ >= banks_[b].next_pre) {
          precharge(b);
          return true;
        }
      }
    }
    if (some_open) {
      return false;
    }
    for (bank_state& b : banks_) {
      b.state = closing;
      b.idle_at = b.next_act = now_ + device_.timing.rfc;
    }
    next_refresh_ += device_.timing.refi;
    ++result_.ref_count;
    return true;
  }

  bool column_step() {
    for (std::size_t k = 0; k < queue_.size(); ++k) {
      const queued_request& r = queue_[k];
      const bank_state& b = bank(r.bank);
      if (b.state != open || b.row != r.row || now_ < (r.write ? b.next_wr : b.next_rd)) {
        if (r.barrier) {
          return false;  // nothing passes a barrier
        }
        continue;
      }
      if (k != 0 && r.barrier) {
        return false;
      }
      const bool depends =
          std::any_of(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(k), [&](const queued_request& q) {
            return q.barrier || (q.bank == r.bank && q.row == r.row && q.column == r.column);
          });
      if (!depends) {
        issue(r);
        queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(k));
        return true;
      }
    }
    return false;
  }
  void issue(const queued_request& r) {
    const auto& t = device_.timing;
    for (std::size_t j = 0; j < banks_.size(); ++j) {
      const std::int64_t gap = same_group(j, r.bank) ? t.ccd_l : t.ccd_s;
      bank_state& b = banks_[j];
      b.next_rd = std::max(b.next_rd, now_ + (r.write ? t.write_to_read_l : gap));
      b.next_wr = std::max(b.next_wr, now_ + (r.write ? gap : t.read_to_write));
    }
    bank_state& b = bank(r.bank);
    b.next_pre = std::max(b.next_pre, now_ + (r.write ? t.write_to_pre : t.rtp));
    (r.write ? last_write_ : last_read_) = now_;
    ++(r.write ? result_.wr_columns : result_.rd_columns);
  }

  bool activate_step() {
    for (std::size_t k = 0; k < queue_.size(); ++k) {
      const queued_request& r = queue_[k];
      if (k != 0 && r.barrier) {
        return false;
      }
      const bank_state& b = bank(r.bank);
      if (b.state == idle && now_ >= b.next_act && !(all_bank_mode_ && r.bank >= 2)) {
        activate(r);
        return true;
      }
    }
    return false;
  }
  void activate(const queued_request& r) {
    const auto& t = device_.timing;
    bank_state& b = bank(r.bank);
    b.state = open;
    b.row = r.row;
    b.next_act = now_ + t.rc;
    b.next_pre = std::max(b.next_pre, now_ + t.ras);
    b.next_rd = std::max(b.next_rd, now_ + t.rcd_rd);
    b.next_wr = std::max(b.next_wr, now_ + t.rcd_wr);
    for (std::size_t j = 0; j < banks_.size(); ++j) {
      if (j != static_cast<std::size_t>(r.bank)) {
        banks_[j].next_act = std::max(banks_[j].next_act, now_ + (same_group(j, r.bank) ? t.rrd_l : t.rrd_s));
      }
    }
    ++result_.act_count;
    if (r.row == magic_rows::enter_all_bank && !all_bank_mode_) {
      entering_ |= std::uint32_t{1} << (r.bank & 31);
      if (entering_ == (1U << 0 | 1U << 1 | 1U << 8 | 1U << 9)) {
        entering_ = 0;
        all_bank_mode_ = true;
      }
    }
  }

  void precharge_step() {
    for (std::size_t k = 0; k < banks_.size(); ++k) {
      const std::size_t b = (next_precharge_ + k) % banks_.size();
      if (banks_[b].state == open && now_ >= banks_[b].next_pre && !wanted(b)) {
        precharge(b);
        next_precharge_ = b;
        return;
      }
    }
  }
  [[nodiscard]] bool wanted(std::size_t b) const {
    for (const queued_request& r : queue_) {
      if (static_cast<std::size_t>(r.bank) == b && r.row == banks_[b].row) {
        return true;
      }
      if (r.barrier) {
        return false;
      }
    }
    return false;
  }
  void precharge(std::size_t index) {
    bank_state& b = banks_[index];
    if (b.row == magic_rows::leave_all_bank && all_bank_mode_) {
      leaving_ |= std::uint32_t{1} << (index & 31);
      if (leaving_ == 3) {
        leaving_ = 0;
        all_bank_mode_ = false;
      }
    }
    b.state = closing;
    b.idle_at = now_ + device_.timing.rp;
    b.next_act = std::max(b.next_act, b.idle_at);
  }
};

}  // namespace pqattn_pim
