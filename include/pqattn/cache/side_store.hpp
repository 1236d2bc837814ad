// SPDX-License-Identifier: MIT
// One side (keys or values) of a KV head: sinks | body | recent window, where the body is coded or exact.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "../bank/bank.hpp"
#include "../config.hpp"
#include "../core/half.hpp"
#include "../core/memory.hpp"
#include "../quant/value_rotation.hpp"
#include "cache_config.hpp"
#include "code_store.hpp"
#include "exact_rows.hpp"

namespace pqattn {
inline namespace v0 {

/// How one side's rows look on arrival, where they are kept exact, and where they are coded.
struct row_forms {
  rope rotation;  ///< disabled for values and for models without RoPE
  bool arrives_rotated = true;
  bool coded_rotated = false;
  dtype exact_type = dtype::f16;
  value_rotation turn{};         ///< enabled for values that are coded in principal components
  std::size_t rotated_from = 0;  ///< first channel that RoPE turns; behind the coded ones when there is an exact tail

  /// Arrival form to exact form: rotated, rounded to the exact dtype.
  PQATTN_UNIT_MEMBER void to_exact(std::int64_t position, std::size_t dim, float* row) const noexcept {
    if (rotation.enabled() && !arrives_rotated) {
      rotate_row(rotation, position, 1.0f, row + rotated_from);
    }
    for (std::size_t c = 0; exact_type != dtype::f32 && c < dim; ++c) {
      row[c] = exact_type == dtype::f16 ? to_float(to_half(row[c])) : to_float(to_bfloat16(row[c]));
    }
  }
  /// Coded form to exact form, without rounding.
  PQATTN_UNIT_MEMBER void from_coded(std::int64_t position, float* row) const noexcept {
    if (rotation.enabled() && !coded_rotated) {
      rotate_row(rotation, position, 1.0f, row);
    }
    if (turn.enabled()) {
      float coded[max_dim];
      std::copy_n(row, turn.dim, coded);
      unrotate_value(turn, coded, 1.0f, row);
    }
  }
  /// Exact form to coded form.
  PQATTN_UNIT_MEMBER void to_coded(std::int64_t position, float* row) const noexcept {
    if (rotation.enabled() && !coded_rotated) {
      rotate_row(rotation, position, -1.0f, row);
    }
    if (turn.enabled()) {
      float value[max_dim];
      std::copy_n(row, turn.dim, value);
      rotate_value(turn, value, row);
    }
  }
};

/// Storage of one side. Rows arrive in sinks first, then in the recent window, and leave it for the body.
template <class Bank>
class side_store {
 public:
  side_store() = default;
  side_store(Bank& bank, const memory_resource& resource, const side_config& side, const row_forms& forms,
             std::size_t sink_limit, std::size_t recent_limit) noexcept
      : side_(side),
        forms_(forms),
        sink_limit_(sink_limit),
        recent_limit_(recent_limit),
        sinks_(resource, forms.exact_type, side.shape.dim),
        recent_(resource, forms.exact_type, side.shape.dim),
        exact_body_(resource, forms.exact_type, side.shape.dim),
        coded_(bank, resource, side, forms.coded_rotated ? rope{} : forms.rotation) {}

  [[nodiscard]] const side_config& side() const noexcept { return side_; }
  [[nodiscard]] const row_forms& forms() const noexcept { return forms_; }
  [[nodiscard]] const exact_rows& sinks() const noexcept { return sinks_; }
  [[nodiscard]] const exact_rows& recent() const noexcept { return recent_; }
  [[nodiscard]] const exact_rows& exact_body() const noexcept { return exact_body_; }
  [[nodiscard]] code_store<Bank>& coded() noexcept { return coded_; }
  [[nodiscard]] const code_store<Bank>& coded() const noexcept { return coded_; }

  /// Metric that keys are coded in, upper triangle in binary16, or null.
  [[nodiscard]] const half* packed_metric() const noexcept { return reinterpret_cast<const half*>(metric_.data()); }
  /// Takes another metric (packed_metric_floats(dim) numbers, or empty) and leaves the old one in `metric`.
  void swap_metric(buffer& metric) noexcept { metric_.swap(metric); }
  /// Takes a rotation in the memory of compact_rotation(); an empty buffer and a disabled one are none.
  void set_rotation(buffer memory, const value_rotation& rotation) noexcept {
    rotation_ = std::move(memory);
    forms_.turn = rotation;
  }

  /// How many of `rows` arriving rows become sinks.
  [[nodiscard]] std::size_t sinks_from(std::size_t rows) const noexcept {
    return (std::min)(sink_limit_ - sinks_.size(), rows);
  }
  /// Row `index` of the recent window continued by the arriving `added` rows, in exact form. `position` is that row's.
  void load(const rows_view& added, std::size_t index, std::int64_t position, float* row) const noexcept {
    if (index < recent_.size()) {
      load_row(recent_.view(), index, row);
      return;
    }
    load_row(added, index - recent_.size(), row);
    forms_.to_exact(position, side_.shape.dim, row);
  }
  /// The same in coded form.
  void load_coded(const rows_view& added, std::size_t index, std::int64_t position, float* row) const noexcept {
    load(added, index, position, row);
    forms_.to_coded(position, row);
  }

  /// Row of token `token` as attention sees it: rotated, decoded where it is coded. `body` rows are in the body, and
  /// `epoch` is the token's.
  status read(std::size_t token, std::size_t body, std::size_t epoch, float* row) const noexcept {
    if (token < sinks_.size()) {
      load_row(sinks_.view(), token, row);
    } else if (token >= sinks_.size() + body) {
      load_row(recent_.view(), token - sinks_.size() - body, row);
    } else if (side_.coded) {
      PQATTN_TRY(coded_.decode(epoch, token - sinks_.size(), ref_rows(row, 1, side_.shape.dim)));
      forms_.from_coded(static_cast<std::int64_t>(token), row);
    } else {
      load_row(exact_body_.view(), token - sinks_.size(), row);
    }
    return {};
  }

  /// Makes room for `rows` arriving rows of which `out` leave the window for the body of `body` rows. `coding` says
  /// that the window slides from now on. On failure nothing that can be seen changes.
  status reserve(std::size_t rows, std::size_t out, std::size_t body, bool coding) {
    const std::size_t added = rows - sinks_from(rows);
    PQATTN_TRY(sinks_.grow(sink_limit_));
    PQATTN_TRY(side_.coded ? coded_.reserve(body + out) : exact_body_.grow(body + out));
    return recent_.grow((std::max)(recent_.size() + added - out, coding ? window_capacity() : 0));
  }

  /// Arriving rows [0, sinks_from(rows.rows)) become sinks. Pre (also of the next two): reserve().
  void push_sinks(const rows_view& rows) noexcept {
    float row[max_dim];
    const std::size_t count = sinks_from(rows.rows);
    for (std::size_t i = 0; i < count; ++i) {
      load_row(rows, i, row);
      forms_.to_exact(static_cast<std::int64_t>(sinks_.size()), side_.shape.dim, row);
      sinks_.push_back(row);
    }
  }
  /// `count` rows of f32 in exact form go to the body of an exact side.
  void push_exact_body(const float* rows, std::size_t count) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      exact_body_.push_back(rows + i * side_.shape.dim);
    }
  }
  /// The first `out` rows of the window continued by `added` have gone to the body; the others stay. `base` is the
  /// position of the first row behind the old body.
  void push_window(const rows_view& added, std::size_t out, std::size_t base) noexcept {
    float row[max_dim];
    const std::size_t kept = (std::max)(out, recent_.size());  // first of recent + added that is new in the window
    const std::size_t held = recent_.size();
    recent_.drop_front((std::min)(out, held));
    recent_.make_room(held + added.rows - out);
    for (std::size_t i = kept; i < held + added.rows; ++i) {
      load_row(added, i - held, row);
      forms_.to_exact(static_cast<std::int64_t>(base + i), side_.shape.dim, row);
      recent_.push_back(row);
    }
  }

  /// Gives back what the window held while everything was exact. A refused allocation only keeps the larger buffer.
  void shrink_window() { static_cast<void>(recent_.resize((std::max)(window_capacity(), recent_.size()))); }

  void add_to(memory_report& report) const noexcept {
    report.codes_bytes += coded_.codes_bytes();
    report.codebooks_bytes += coded_.codebook_bytes();
    report.transforms_bytes += metric_.size() + rotation_.size();
    report.metadata_bytes += coded_.metadata_bytes();
    report.exact_bytes += sinks_.bytes() + recent_.bytes() + exact_body_.bytes();
  }

 private:
  /// The window slides in a buffer half again as long, so that it moves back to the front once in a while only.
  [[nodiscard]] std::size_t window_capacity() const noexcept { return recent_limit_ + (recent_limit_ + 1) / 2; }

  side_config side_;
  row_forms forms_;
  std::size_t sink_limit_ = 0;
  std::size_t recent_limit_ = 0;
  exact_rows sinks_;
  exact_rows recent_;
  exact_rows exact_body_;   ///< body of an exact side
  code_store<Bank> coded_;  ///< body of a coded side
  buffer metric_;
  buffer rotation_;
};

}  // namespace v0
}  // namespace pqattn
