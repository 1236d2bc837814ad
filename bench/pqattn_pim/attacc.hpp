// SPDX-License-Identifier: MIT
// Dense decode attention as AttAcc schedules it: heads one to a channel, two heads of a channel software-pipelined
// (scores of one while the other's softmax runs), MACs and buffer traffic side by side, a barrier per block of MACs.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "workloads.hpp"

namespace pqattn_pim {

struct attention_case {
  std::string level;  ///< "bank", "bg" or "buffer"
  std::int64_t heads = 1;
  std::int64_t tokens = 1;
  std::int64_t head_dim = 128;
  std::int64_t bytes_per_element = 2;
  bool power_limited = true;
  bool refresh = true;
};

namespace detail {

/// Where PIM units sit decides how much runs side by side, and how the columns of a head lie.
enum class attacc_level : std::uint8_t { bank, bank_group, buffer };

/// When buffer transfers leave that stand behind MACs in the queue. The controller sees the first 33 requests, issues
/// one column command a cycle, the oldest that is ready; transfers of one bank group keep `same` cycles apart, of
/// different ones `other`.
class transfer_window {
 public:
  transfer_window(std::int64_t same, std::int64_t other) : same_(same), other_(other) {}

  /// `groups` names the bank group of each transfer in queue order; `macs` are the cycles of the last MACs before them.
  /// Calls leave(cycle) in time order.
  template <class Leave>
  void run(const std::deque<std::int64_t>& macs, std::int64_t floor, const std::vector<std::int32_t>& groups,
           Leave&& leave) {
    std::vector<std::int32_t> waiting;
    std::size_t next = 0;
    std::size_t done_macs = 0;
    std::int64_t now = macs.size() >= seen ? std::max(floor, macs[macs.size() - seen]) : floor;
    for (; next < groups.size() || !waiting.empty(); ++now) {
      while (done_macs < macs.size() && macs[done_macs] < now) {
        ++done_macs;
      }
      while (next < groups.size() && waiting.size() + macs.size() - done_macs < seen) {
        waiting.push_back(groups[next++]);
      }
      const bool mac_leaves = done_macs < macs.size() && macs[done_macs] == now;
      if (mac_leaves || now < last_ + other_) {
        continue;
      }
      const auto ready = std::find_if(waiting.begin(), waiting.end(), [&](std::int32_t g) {
        return now >= last_of_[static_cast<std::size_t>(g)] + same_;
      });
      if (ready != waiting.end()) {
        last_ = last_of_[static_cast<std::size_t>(*ready)] = now;
        waiting.erase(ready);
        leave(now);
      }
    }
  }
  static constexpr std::size_t seen = 33;
  static constexpr std::int32_t group_count = 8;

 private:
  std::int64_t same_, other_;
  std::int64_t last_ = -1000;
  std::array<std::int64_t, group_count> last_of_{-1000, -1000, -1000, -1000, -1000, -1000, -1000, -1000};
};

class attacc_schedule {
 public:
  attacc_schedule(const pim::device& d, const attention_case& c, attacc_level level, std::int32_t interval)
      : level_(level),
        case_(c),
        organisation_(d.organisation),
        list_(machine(d, level, interval), c.refresh, &note_mac, this),
        window_(d.timing.ccd_l, d.timing.ccd_s) {
    const std::int64_t lanes = organisation_.column_bytes / case_.bytes_per_element;
    const std::int64_t banks = level == attacc_level::bank ? organisation_.banks_per_group : 1;
    across_ =
        level == attacc_level::buffer ? organisation_.pseudo_channels : organisation_.groups_per_command_channel();
    steps_ = pim::ceil_div(case_.tokens, across_);                  // token steps of a head
    score_columns_ = pim::ceil_div(case_.head_dim, banks * lanes);  // columns per token step
    context_blocks_ = score_columns_;
    segments_ = pim::ceil_div(steps_, block_steps);
    query_moves_ = banks * score_columns_;
    const std::int64_t units = level == attacc_level::buffer ? 1 : organisation_.ranks * organisation_.bank_groups;
    score_result_moves_ = units;
    probability_moves_ = units * pim::ceil_div(case_.tokens, across_ * lanes);
    context_result_moves_ = level == attacc_level::bank         ? organisation_.ranks * organisation_.banks_per_group
                            : level == attacc_level::bank_group ? organisation_.ranks
                                                                : 1;
  }
  attacc_schedule(const attacc_schedule&) = delete;
  attacc_schedule& operator=(const attacc_schedule&) = delete;

  [[nodiscard]] outcome run() {
    const std::int64_t rounds = pim::ceil_div(case_.heads, organisation_.channels);
    for (std::int64_t round = 0; round + 1 < rounds && list_.good(); round += 2) {
      pair(round);
    }
    if (rounds % 2 != 0) {
      single(rounds - 1);
    }
    barrier();  // what is left to move
    return list_.result();
  }

 private:
  static constexpr std::int64_t block_steps = 16;  // token steps between two barriers

  attacc_level level_;
  attention_case case_;
  pim::organisation organisation_;
  command_list list_;
  std::int64_t across_ = 1, steps_ = 1, score_columns_ = 1, context_blocks_ = 1, segments_ = 1;
  std::int64_t query_moves_ = 0, score_result_moves_ = 0, probability_moves_ = 0, context_result_moves_ = 0;
  transfer_window window_;
  std::deque<std::int64_t> macs_;        // cycles of the last MACs since the last barrier
  std::vector<std::int32_t> transfers_;  // bank groups of the transfers since then
  std::int64_t barrier_cycle_ = 0;

  static void note_mac(void* self, const pim::trace_record& r) {
    auto& macs = static_cast<attacc_schedule*>(self)->macs_;
    if (r.op != pim::opcode::mac_ab && r.op != pim::opcode::rd) {
      return;
    }
    constexpr auto most = static_cast<std::int64_t>(transfer_window::seen);
    for (std::int64_t i = std::max<std::int64_t>(0, r.count - most); i < r.count; ++i) {
      macs.push_back(r.cycle + i * r.interval);
      if (std::ssize(macs) > most) {
        macs.pop_front();
      }
    }
  }

  /// At bank-group and buffer level one command reads one bank index, or one bank, at a time: a machine of that many
  /// banks whose MACs are reads.
  [[nodiscard]] static pim::device machine(pim::device d, attacc_level level, std::int32_t interval) {
    d = with_columns(d, 1);
    d.timing.mac = interval;
    if (level == attacc_level::bank) {
      return d;
    }
    pim::organisation& o = d.organisation;
    const std::int32_t groups = o.ranks * o.bank_groups;
    o.pseudo_channels = o.ranks = 1;
    o.pseudo_channels_share_bus = false;
    o.bank_groups = level == attacc_level::buffer ? groups : 1;
    pim::timing& t = d.timing;
    if (level == attacc_level::bank_group) {
      t.ccd_s = t.ccd_l = interval;
    }
    t.rrd_s = t.rrd_l = 2;  // a two-cycle command; no other limit between different banks
    t.faw = 0;
    t.cl = 0;  // nothing travels to the host
    t.bl = 1;
    // The all-bank precharge before a refresh does not wait for these MACs.
    d.controller.refresh = pim::refresh_policy::block;
    return d;
  }

  [[nodiscard]] std::int32_t first_row(std::int64_t round, bool values) const {
    const std::int64_t partition = 4096 * case_.head_dim / organisation_.banks_per_command_channel();
    return static_cast<std::int32_t>((values ? (std::int64_t{1} << 23) : 0) / organisation_.row_bytes +
                                     pim::ceil_div(round * partition, organisation_.row_bytes));
  }

  /// `count` MACs from column index `from` of a head's keys or values.
  void macs(std::int64_t round, bool values, std::int64_t from, std::int64_t count) {
    const std::int64_t per_row = organisation_.columns_per_row();
    const std::int32_t base = first_row(round, values);
    while (count > 0 && list_.good()) {
      std::int64_t n = 1;
      if (level_ == attacc_level::bank) {
        n = std::min(count, per_row - from % per_row);
        list_.mac(base + static_cast<std::int32_t>(from / per_row), static_cast<std::int32_t>(from % per_row), n);
      } else if (level_ == attacc_level::bank_group) {
        n = std::min(count, per_row - from % per_row);
        const std::int64_t bank = from / per_row % organisation_.banks_per_group;
        const std::int64_t row = from / per_row / organisation_.banks_per_group;
        list_.read(static_cast<std::int32_t>(bank), base + static_cast<std::int32_t>(row),
                   static_cast<std::int32_t>(from % per_row), n);
      } else {
        const std::int64_t groups = organisation_.ranks * organisation_.bank_groups;
        const std::int64_t bank =
            from % groups * organisation_.banks_per_group + from / groups % organisation_.banks_per_group;
        const std::int64_t column = from / groups / organisation_.banks_per_group;
        list_.read(static_cast<std::int32_t>(bank), base + static_cast<std::int32_t>(column / per_row),
                   static_cast<std::int32_t>(column % per_row));
      }
      from += n;
      count -= n;
    }
  }
  /// `count` transfers, `run` in a row to the same bank group.
  void moves(std::int64_t count, std::int64_t run) {
    for (std::int64_t i = 0; i < count; ++i) {
      transfers_.push_back(
          static_cast<std::int32_t>(i / std::max<std::int64_t>(1, run) % transfer_window::group_count));
    }
  }
  /// Nothing behind leaves before the last MAC and the last transfer so far have left.
  void barrier() {
    window_.run(macs_, barrier_cycle_, transfers_, [&](std::int64_t cycle) {
      list_.channel().hold_moves(cycle);
      list_.plain(pim::opcode::mv_in);
    });
    list_.plain(pim::opcode::fence);
    barrier_cycle_ = list_.channel().last_issue_cycle();
    macs_.clear();
    transfers_.clear();
  }
  void score_block(std::int64_t round, std::int64_t segment) {
    const std::int64_t first = segment * block_steps;
    const std::int64_t steps = std::min(block_steps, steps_ - first);
    macs(round, false, first * score_columns_, steps * score_columns_);
  }
  /// The `part`-th of `parts` shares of `total` moves.
  static std::int64_t share(std::int64_t total, std::int64_t parts, std::int64_t part) {
    const std::int64_t stride = std::max<std::int64_t>(1, pim::ceil_div(total, std::max<std::int64_t>(1, parts)));
    return std::clamp<std::int64_t>(total - part * stride, 0, stride);
  }

  void score_results(std::int64_t segment) { moves(segment > 0 ? score_result_moves_ : 0, 1); }
  void probabilities(std::int64_t parts, std::int64_t part) {
    // Each bank group gets its share of them in one piece.
    moves(share(probability_moves_, parts, part), pim::ceil_div(probability_moves_, score_result_moves_));
  }

  void pair(std::int64_t first) {
    const std::int64_t second = first + 1;
    moves(query_moves_, query_moves_);
    if (first == 0) {
      macs(first, false, 0, 1);  // opens the first row early
    }
    barrier();
    for (std::int64_t j = 0; j <= segments_ && list_.good(); ++j) {
      if (j < segments_) {
        score_block(first, j);
      }
      score_results(j);
      if (j < segments_) {
        moves(share(query_moves_, segments_, j), query_moves_);
        barrier();
      }
    }
    for (std::int64_t j = 0; j <= segments_ && list_.good(); ++j) {
      if (j < segments_) {
        score_block(second, j);
      }
      score_results(j);
      moves(j == 0 ? 1 : 0, 1);  // softmax of the first head
      if (j < segments_) {
        if (j >= segments_ / 2) {
          probabilities(pim::ceil_div(segments_, 2), j - segments_ / 2);
        }
        barrier();
      }
    }
    context(first, true);
    context(second, false);
  }

  void context(std::int64_t round, bool other_softmax) {
    for (std::int64_t j = 0; j <= context_blocks_ && list_.good(); ++j) {
      if (j < context_blocks_) {
        macs(round, true, j * steps_, steps_);
      }
      moves(j > 0 ? context_result_moves_ : 0, 1);
      moves(other_softmax && j == 0 ? 1 : 0, 1);
      if (j < context_blocks_) {
        if (other_softmax && j >= context_blocks_ / 2) {
          probabilities(pim::ceil_div(context_blocks_, 2), j - context_blocks_ / 2);
        }
        barrier();
      }
    }
  }

  /// The last head of an odd number: nothing to overlap with.
  void single(std::int64_t round) {
    moves(query_moves_, query_moves_);
    barrier();
    for (std::int64_t j = 0; j <= segments_ && list_.good(); ++j) {
      if (j < segments_) {
        score_block(round, j);
      }
      score_results(j);
      if (j < segments_) {
        barrier();
      }
    }
    moves(1, 1);
    probabilities(1, 0);
    barrier();
    context(round, false);
  }
};

}  // namespace detail

[[nodiscard]] inline outcome run_attention(const reference_device& d, const attention_case& c) {
  detail::attacc_level level{};
  if (c.level == "bank") {
    level = detail::attacc_level::bank;
  } else if (c.level == "bg" || c.level == "bank_group" || c.level == "bankgroup" || c.level == "bank-group") {
    level = detail::attacc_level::bank_group;
  } else if (c.level == "buffer") {
    level = detail::attacc_level::buffer;
  } else {
    return outcome::unsupported("PIM level \"" + c.level + "\"");
  }
  const auto limited = c.power_limited ? d.mac_power_limited : d.mac_unlimited;
  if (!limited || *limited < 1 || *limited > 1'000'000) {
    return outcome::unsupported("no MAC interval for this power mode");
  }
  if (c.bytes_per_element < 1 || c.bytes_per_element > d.description.organisation.column_bytes) {
    return outcome::unsupported("elements of that size");
  }
  return detail::attacc_schedule(d.description, c, level, static_cast<std::int32_t>(*limited)).run();
}

}  // namespace pqattn_pim
