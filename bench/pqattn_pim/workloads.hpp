// SPDX-License-Identifier: MIT
// The workloads of a reference file, issued to the walker as the simulator's own driver issues them. Each function
// takes a device and a shape and gives cycles; nothing here looks at expected figures.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <pqattn/bank/pim/closed_forms.hpp>
#include <pqattn/bank/pim/walker.hpp>

#include "barrier_queue.hpp"
#include "host_queue.hpp"
#include "json_fields.hpp"
#include "reference_device.hpp"

namespace pqattn_pim {

/// What a workload came to.
struct outcome {
  bool supported = false;
  std::string reason;  ///< why not, when it is not
  std::int64_t cycles = 0;
  pim::totals counted;

  [[nodiscard]] static outcome unsupported(std::string why) {
    outcome o;
    o.reason = std::move(why);
    return o;
  }
};

namespace detail {

/// A walker that remembers its first failure, so that workloads read like command lists.
class command_list {
 public:
  command_list(const pim::device& d, bool refresh, pim::trace_hook trace = nullptr, void* trace_user = nullptr) {
    note(walker_.configure(d, {refresh, trace, trace_user}));
  }
  [[nodiscard]] bool good() const { return failure_.empty(); }
  void add(pim::command c) {
    if (good()) {
      note(walker_.issue(c));
    }
  }
  void read(std::int32_t bank, std::int32_t row, std::int32_t column, std::int64_t count = 1) {
    add({.op = pim::opcode::rd, .bank = bank, .row = row, .column = column, .count = count});
  }
  void write(std::int32_t bank, std::int32_t row, std::int32_t column, std::int64_t count = 1) {
    add({.op = pim::opcode::wr, .bank = bank, .row = row, .column = column, .count = count});
  }
  void mac(std::int32_t row, std::int32_t column, std::int64_t count) {
    add({.op = pim::opcode::mac_ab, .row = row, .column = column, .count = count});
  }
  void plain(pim::opcode op, std::int64_t count = 1) { add({.op = op, .count = count}); }
  [[nodiscard]] pim::channel_walker& channel() { return walker_.channel(0); }

  [[nodiscard]] outcome result() {
    if (!good()) {
      return outcome::unsupported(failure_);
    }
    outcome o;
    o.supported = true;
    o.cycles = walker_.finish_cycle();
    o.counted = channel().total();
    return o;
  }

 private:
  pim::walker walker_;
  std::string failure_;

  void note(const pqattn::status& s) {
    if (!s && failure_.empty()) {
      char sentence[256];
      s.format(sentence, sizeof sentence);
      failure_ = sentence;
    }
  }
};

template <class QueueResult>
void copy_counts(const QueueResult& r, outcome& result) {
  result.cycles = r.cycles;
  result.counted.bank.act_count = r.act_count;
  result.counted.bank.rd_columns = r.rd_columns;
  result.counted.channel.ref_count = r.ref_count;
  if constexpr (requires { r.wr_columns; }) {
    result.counted.bank.wr_columns = r.wr_columns;
  }
}

/// A device whose rows have room for `columns` columns, and one command channel.
[[nodiscard]] inline pim::device with_columns(pim::device d, std::int64_t columns) {
  pim::organisation& o = d.organisation;
  o.stacks = o.channels = 1;
  if (!o.pseudo_channels_share_bus) {
    o.pseudo_channels = 1;
  }
  if (columns > o.columns_per_row()) {
    o.column_bytes = std::min<std::int32_t>(o.column_bytes, 64);
    o.row_bytes =
        static_cast<std::int32_t>(std::min<std::int64_t>(columns, (1 << 20) / o.column_bytes)) * o.column_bytes;
  }
  d.capacity_bytes = 0;
  return d;
}

}  // namespace detail

// --- one bank -----------------------------------------------------------------------------------------------------

namespace detail {

/// Rows that patterns of one bank use in turn: only whether the next row is another one matters to the model.
constexpr std::int64_t distinct_rows_used = 1 << 16;

/// run(n) for a pattern that repeats without refresh: beyond some repeats every further one adds the same.
template <class Run>
[[nodiscard]] outcome run_repeated(std::int64_t n, bool refresh, Run&& run) {
  constexpr std::int64_t repeats = 1 << 12;
  if (refresh || n <= repeats + 1) {
    return run(n);
  }
  const outcome before = run(repeats);
  outcome last = run(repeats + 1);
  if (!before.supported || !last.supported) {
    return last;
  }
  const std::int64_t more = n - repeats - 1;
  bool countable = true;
  const auto extend = [&](std::int64_t& value, std::int64_t earlier) {
    const std::int64_t step = value - earlier;
    countable = countable && (step == 0 || more < (std::int64_t{1} << 62) / step);
    value += countable ? more * step : 0;
  };
  extend(last.cycles, before.cycles);
  pim::visit_bank_counters(
      [&](const char*, auto field) { extend(last.counted.bank.*field, before.counted.bank.*field); });
  pim::visit_channel_counters(
      [&](const char*, auto field) { extend(last.counted.channel.*field, before.counted.channel.*field); });
  extend(last.counted.elapsed_cycles, before.counted.elapsed_cycles);
  return countable ? last : outcome::unsupported("more than can be counted");
}

}  // namespace detail

/// rows x cols accesses of bank 0 in order.
[[nodiscard]] inline outcome run_stream(const reference_device& d, std::int64_t rows, std::int64_t cols, bool write,
                                        bool refresh) {
  const pim::device one = detail::with_columns(d.description, cols);
  if (cols > one.organisation.columns_per_row()) {
    return outcome::unsupported("rows of that many columns");
  }
  return detail::run_repeated(rows, refresh, [&](std::int64_t n) {
    detail::command_list list(one, refresh);
    for (std::int64_t r = 0; r < n && list.good(); ++r) {
      const auto row = static_cast<std::int32_t>(r % detail::distinct_rows_used);
      write ? list.write(0, row, 0, cols) : list.read(0, row, 0, cols);
    }
    return list.result();
  });
}

/// n accesses of bank 0: another row each, or columns of one row; dependent ones wait for each other's data.
[[nodiscard]] inline outcome run_accesses(const reference_device& d, std::int64_t n, std::int64_t distinct_rows,
                                          bool dependent, bool write, bool refresh) {
  const pim::device one = detail::with_columns(d.description, 1);
  const std::int32_t columns = one.organisation.columns_per_row();
  return detail::run_repeated(n, refresh, [&](std::int64_t count) {
    detail::command_list list(one, refresh);
    for (std::int64_t i = 0; i < count && list.good(); ++i) {
      if (dependent && i > 0) {
        list.plain(pim::opcode::wait);
      }
      const auto row = static_cast<std::int32_t>(i % std::min(distinct_rows, detail::distinct_rows_used));
      const auto column = static_cast<std::int32_t>(distinct_rows == 1 ? i % columns : 0);
      write ? list.write(0, row, column) : list.read(0, row, column);
    }
    return list.result();
  });
}

// --- all banks, host reads ----------------------------------------------------------------------------------------

/// Every bank, interleaved: for each row, for each column, for each bank in a group, for each bank group.
[[nodiscard]] inline outcome run_all_banks(const reference_device& d, std::int64_t rows, std::int64_t cols,
                                           bool refresh) {
  const pim::organisation& o = d.description.organisation;
  const std::int64_t groups = o.groups_per_command_channel();
  const std::int64_t banks = o.banks_per_command_channel();
  const auto bank_of = [&](std::int64_t i) {
    return static_cast<std::int32_t>(i % banks % groups * o.banks_per_group + i % banks / groups);
  };
  const auto row_of = [&](std::int64_t i) { return static_cast<std::int32_t>(i / banks / cols); };
  outcome result;
  result.supported = true;
  if (d.kind == simulator::pimsimulator) {
    const auto request = [&](std::int64_t i) {
      return queued_request{false, bank_of(i), row_of(i), static_cast<std::int32_t>(i / banks % cols), false};
    };
    detail::copy_counts(barrier_queue(d.description, refresh).run(rows * cols * banks, request), result);
    return result;
  }
  const queue_result r = host_queue(d, refresh).run(rows * cols * banks, [&](std::int64_t i) {
    return host_read{bank_of(i), row_of(i)};
  });
  detail::copy_counts(r, result);
  result.counted.channel.open_cycles = r.open_cycles;
  return result;
}

// --- PIMSimulator: kernels ----------------------------------------------------------------------------------------

namespace detail {

/// The requests of a Samsung PIM kernel. The controller sees banks 0 and 1 for all even and all odd banks.
class samsung_kernel {
 public:
  static constexpr std::int32_t even = 0;
  static constexpr std::int32_t odd = 1;
  static constexpr std::int32_t columns_per_row = 32;

  void access(bool write, std::int32_t bank, std::int32_t row, std::int64_t column, bool barrier) {
    // Column addresses run on into the next rows.
    requests_.push_back({write, bank, row + static_cast<std::int32_t>(column / columns_per_row),
                         static_cast<std::int32_t>(column % columns_per_row), barrier});
  }
  /// `count` columns and a barrier.
  void group(bool write, std::int32_t bank, std::int32_t row, std::int64_t column, std::int32_t count = 8) {
    for (std::int32_t i = 0; i < count; ++i) {
      access(write, bank, row, column + i, i + 1 == count);
    }
  }
  /// Park reads of every bank, the all-bank mode, and the kernel's instructions (they fit one column).
  void begin() {
    if (!requests_.empty()) {
      requests_.back().barrier = true;
    }
    park();
    for (const std::int32_t bank : {0, 1, 8, 9}) {
      access(true, bank, magic_rows::enter_all_bank, 31, bank == 9);
    }
    access(true, odd, magic_rows::registers, 4, true);
  }
  void toggle_pim_mode() { access(true, even, magic_rows::registers, 0, true); }
  void end() {
    access(true, even, magic_rows::leave_all_bank, 31, false);
    access(true, odd, magic_rows::leave_all_bank, 31, true);
    park();
  }
  [[nodiscard]] outcome run(const pim::device& d, bool refresh) const {
    outcome result;
    result.supported = true;
    copy_counts(barrier_queue(d, refresh)
                    .run(std::ssize(requests_), [&](std::int64_t i) { return requests_[static_cast<std::size_t>(i)]; }),
                result);
    return result;
  }

 private:
  std::vector<queued_request> requests_;

  void park() {
    for (std::int32_t in_group = 0; in_group < 4; ++in_group) {
      for (std::int32_t group_index = 0; group_index < 4; ++group_index) {
        access(false, group_index * 4 + in_group, magic_rows::park, 0, in_group == 3 && group_index == 3);
      }
    }
  }
};

[[nodiscard]] inline bool has_samsung_banks(const reference_device& d) {
  return d.description.organisation.banks_per_command_channel() == 16 &&
         d.description.organisation.banks_per_group == 4 &&
         d.description.organisation.columns_per_row() == samsung_kernel::columns_per_row;
}

}  // namespace detail

/// All-bank GEMV: per 64 outputs, the 128-input tiles of the even banks and then those of the odd ones, each 8 register
/// writes and 64 MAC reads; then 8 result columns. The tree form stores and clears its sums after every tile.
[[nodiscard]] inline outcome run_samsung_gemv(const reference_device& d, std::int64_t outputs, std::int64_t inputs,
                                              bool tree, bool refresh) {
  if (!detail::has_samsung_banks(d)) {
    return outcome::unsupported("a GEMV kernel for other than 16 banks of 32 columns");
  }
  using kernel = detail::samsung_kernel;
  constexpr std::int32_t zero_row = 1000;
  const std::int64_t output_tiles = pim::ceil_div(outputs, 64);
  const std::int64_t input_tiles = pim::ceil_div(inputs, 128);
  kernel list;
  if (tree) {
    for (std::int32_t bank = 0; bank < 16; ++bank) {
      for (std::int32_t column = 0; column < 8; ++column) {
        list.access(true, bank, zero_row, column, false);
      }
    }
  }
  list.begin();
  const auto tile = [&](std::int64_t out, std::int64_t in) {
    list.group(true, kernel::odd, magic_rows::registers, 8);
    for (std::int64_t part = 0; part < 64; part += 8) {
      list.group(false, in % 2 == 0 ? kernel::even : kernel::odd, 0, 64 * (in / 2 + out * input_tiles / 2) + part);
    }
  };
  for (std::int64_t out = 0; out < output_tiles; ++out) {
    list.toggle_pim_mode();
    std::int64_t results = output_tiles * input_tiles / 2 * 64 + out * 8;
    if (tree) {
      for (std::int64_t in = 0; in < input_tiles; ++in, results += 8) {
        tile(out, in);
        list.group(true, kernel::odd, 0, results);
        list.group(false, kernel::even, zero_row, 0);
      }
    } else {
      for (std::int64_t parity = 0; parity < 2; ++parity) {
        for (std::int64_t in = parity; in < input_tiles; in += 2) {
          tile(out, in);
        }
      }
      list.group(true, kernel::odd, 0, results);
    }
    list.toggle_pim_mode();
  }
  list.end();
  return list.run(d.description, refresh);
}

// --- AiM ----------------------------------------------------------------------------------------------------------

/// `rows` rows of `columns` all-bank MACs.
[[nodiscard]] inline outcome run_aim_mac(const reference_device& d, std::int64_t rows, std::int64_t columns) {
  detail::command_list list(detail::with_columns(d.description, columns), false);
  for (std::int64_t r = 0; r < rows && list.good(); ++r) {
    list.mac(static_cast<std::int32_t>(r), 0, columns);
  }
  return list.result();
}

/// `entries` global-buffer writes.
[[nodiscard]] inline outcome run_aim_buffer(const reference_device& d, std::int64_t entries) {
  detail::command_list list(detail::with_columns(d.description, 1), false);
  list.plain(pim::opcode::wrgb, entries);
  return list.result();
}

/// y[outputs] = W x: inputs in chunks of what the global buffer holds; for each chunk the buffer is written, then per
/// 16 outputs the accumulators are set, one row of MACs is done and the accumulators are read back.
[[nodiscard]] inline outcome run_aim_gemv(const reference_device& d, std::int64_t outputs, std::int64_t inputs) {
  const std::int32_t per_row = d.description.organisation.columns_per_row();
  const std::int64_t banks = d.description.organisation.banks_per_command_channel();
  const std::int64_t lanes = d.description.pim.lanes;
  detail::command_list list(detail::with_columns(d.description, 1), false);
  std::int32_t row = 0;
  for (std::int64_t done = 0; done < inputs && list.good();) {
    const std::int64_t columns = std::min<std::int64_t>(per_row, pim::ceil_div(inputs - done, lanes));
    list.plain(pim::opcode::wrgb, columns);
    for (std::int64_t out = 0; out < outputs && list.good(); out += banks, ++row) {
      list.plain(pim::opcode::mv_in);
      list.mac(row, 0, columns);
      list.plain(pim::opcode::mv_out);
    }
    done += columns * lanes;
  }
  return list.result();
}

/// Scores of one query against `tokens` keys of `dim` numbers: a pass of 16 keys is dim / 16 columns; passes share
/// rows.
[[nodiscard]] inline outcome run_aim_scores(const reference_device& d, std::int64_t tokens, std::int64_t dim) {
  const std::int32_t per_row = d.description.organisation.columns_per_row();
  const std::int64_t columns = pim::ceil_div(dim, d.description.pim.lanes);
  if (columns > per_row) {
    return outcome::unsupported("keys longer than a row");
  }
  detail::command_list list(detail::with_columns(d.description, 1), false);
  list.plain(pim::opcode::wrgb, columns);
  const std::int64_t passes = pim::ceil_div(tokens, d.description.organisation.banks_per_command_channel());
  const std::int64_t passes_per_row = per_row / columns;
  for (std::int64_t pass = 0; pass < passes && list.good(); ++pass) {
    list.plain(pim::opcode::mv_in);
    list.mac(static_cast<std::int32_t>(pass / passes_per_row),
             static_cast<std::int32_t>(pass % passes_per_row * columns), columns);
    list.plain(pim::opcode::mv_out);
  }
  return list.result();
}

}  // namespace pqattn_pim
