// SPDX-License-Identifier: MIT
// One side (keys or values) of a KV head: sinks | body | recent window, where the body is coded or exact.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "../bank/bank.hpp"
#include "../config.hpp"
#include "cache_config.hpp"
#include "code_store.hpp"
#include "exact_rows.hpp"

namespace pqattn {
inline namespace v0 {

/// How one side's rows look on arrival, where they are kept exact, and where they are coded.
struct row_forms {
  rope rotation;             ///< disabled for values and for models without RoPE
  bool arrives_rotated = true;
  bool coded_rotated = false;
  dtype exact_type = dtype::f16;

  /// Arrival form to exact form: rotated, rounded to the exact dtype.
  PQATTN_UNIT_MEMBER void to_exact(std::int64_t position, std::size_t dim, float* row) const noexcept {
    if (rotation.enabled() && !arrives_rotated) {
      rotate_row(rotation, position, 1.0f, row);
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
  }
  /// Exact form to coded form.
  PQATTN_UNIT_MEMBER void to_coded(std::int64_t position, float* row) const noexcept {
    if (rotation.enabled() && !coded_rotated) {
      rotate_row(rotation, position, -1.0f, row);
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
        coded_(bank, resource, side) {}

  [[nodiscard]] const side_config& side() const noexcept { return side_; }
  [[nodiscard]] const exact_rows& sinks() const noexcept { return sinks_; }
  [[nodiscard]] const exact_rows& recent() const noexcept { return recent_; }
  [[nodiscard]] const exact_rows& exact_body() const noexcept { return exact_body_; }
  [[nodiscard]] code_store<Bank>& coded() noexcept { return coded_; }
  [[nodiscard]] const code_store<Bank>& coded() const noexcept { return coded_; }

  /// How many of `rows` arriving rows become sinks.
  [[nodiscard]] std::size_t sinks_from(std::size_t rows) const noexcept {
    return (std::min)(sink_limit_ - sinks_.size(), rows);
  }
  /// How many rows leave the recent window when `added` rows arrive behind the sinks.
  [[nodiscard]] std::size_t leaving(std::size_t added, bool coding) const noexcept {
    const std::size_t held = recent_.size() + added;
    return coding && held > recent_limit_ ? held - recent_limit_ : 0;
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

  /// Row of token `token` as attention sees it: rotated, decoded where it is coded. `body` rows are in the body.
  status read(std::size_t token, std::size_t body, float* row) const noexcept {
    if (token < sinks_.size()) {
      load_row(sinks_.view(), token, row);
    } else if (token >= sinks_.size() + body) {
      load_row(recent_.view(), token - sinks_.size() - body, row);
    } else if (side_.coded) {
      PQATTN_TRY(coded_.decode(token - sinks_.size(), row));
      forms_.from_coded(static_cast<std::int64_t>(token), row);
    } else {
      load_row(exact_body_.view(), token - sinks_.size(), row);
    }
    return {};
  }

  /// Makes room for what push() will do. On failure nothing that can be seen changes.
  status reserve(std::size_t rows, std::size_t body, bool coding) {
    const std::size_t added = rows - sinks_from(rows);
    const std::size_t out = leaving(added, coding);
    PQATTN_TRY(sinks_.grow(sink_limit_));
    PQATTN_TRY(side_.coded ? coded_.reserve(body + out) : exact_body_.grow(body + out));
    return recent_.grow((std::max)(recent_.size() + added - out, coding ? window_capacity() : 0));
  }

  /// Takes arriving rows in. `body` is the number of rows already in the body, `tile` has room for block_tokens rows
  /// of f32. Pre: reserve() with the same arguments succeeded.
  void push(const rows_view& rows, std::size_t body, bool coding, float* tile) noexcept {
    const std::size_t dim = side_.shape.dim;
    const std::size_t to_sinks = sinks_from(rows.rows);
    for (std::size_t i = 0; i < to_sinks; ++i) {
      load_row(rows, i, tile);
      forms_.to_exact(static_cast<std::int64_t>(sinks_.size()), dim, tile);
      sinks_.push_back(tile);
    }
    const rows_view added = rows.slice(to_sinks, rows.rows - to_sinks);
    const std::size_t out = leaving(added.rows, coding);
    const std::size_t base = sinks_.size() + body;  // position of the first row behind the body
    for (std::size_t first = 0; first < out; first += block_tokens) {
      const std::size_t count = (std::min)(block_tokens, out - first);
      for (std::size_t i = 0; i < count; ++i) {
        const auto position = static_cast<std::int64_t>(base + first + i);
        if (side_.coded) {
          load_coded(added, first + i, position, tile + i * dim);
        } else {
          load(added, first + i, position, tile + i * dim);
        }
      }
      push_body(view_rows(tile, count, dim), body + first);
    }
    const std::size_t kept = (std::max)(out, recent_.size());  // first of recent + added that is new in the window
    const std::size_t held = recent_.size();
    recent_.drop_front((std::min)(out, held));
    recent_.make_room(held + added.rows - out);
    for (std::size_t i = kept; i < held + added.rows; ++i) {
      load_row(added, i - held, tile);
      forms_.to_exact(static_cast<std::int64_t>(base + i), dim, tile);
      recent_.push_back(tile);
    }
  }

  /// Gives back what the window held while everything was exact. A refused allocation only keeps the larger buffer.
  void shrink_window() { static_cast<void>(recent_.resize((std::max)(window_capacity(), recent_.size()))); }

  void add_to(memory_report& report) const noexcept {
    report.codes_bytes += coded_.codes_bytes();
    report.codebooks_bytes += coded_.codebook_bytes();
    report.metadata_bytes += coded_.metadata_bytes();
    report.exact_bytes += sinks_.bytes() + recent_.bytes() + exact_body_.bytes();
  }

 private:
  /// The window slides in a buffer half again as long, so that it moves back to the front once in a while only.
  [[nodiscard]] std::size_t window_capacity() const noexcept { return recent_limit_ + (recent_limit_ + 1) / 2; }

  void push_body(const rows_view& rows, std::size_t first) noexcept {
    if (side_.coded) {
      // Room is reserved and the rows are checked: banks have no other reason to fail.
      static_cast<void>(coded_.encode(rows, first));
      return;
    }
    for (std::size_t i = 0; i < rows.rows; ++i) {
      exact_body_.push_back(static_cast<const float*>(rows.at(i)));
    }
  }

  side_config side_;
  row_forms forms_;
  std::size_t sink_limit_ = 0;
  std::size_t recent_limit_ = 0;
  exact_rows sinks_;
  exact_rows recent_;
  exact_rows exact_body_;   ///< body of an exact side
  code_store<Bank> coded_;  ///< body of a coded side
};

}  // namespace v0
}  // namespace pqattn
