// SPDX-License-Identifier: MIT
// Query rows kept until a cache trains: where the model looks, from which the metric of the keys is made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../config.hpp"
#include "../core/growable.hpp"
#include "../core/memory.hpp"
#include "../core/view.hpp"

namespace pqattn {
inline namespace v0 {

/// At most `limit` query rows with their positions, spread evenly: it keeps the rows whose position is a multiple of a
/// stride, and doubles the stride when it is full. What it holds does not depend on how the rows were cut into calls.
class query_log {
 public:
  query_log() = default;
  query_log(const memory_resource& resource, std::size_t limit, std::size_t dim) noexcept
      : limit_(limit), dim_(dim), rows_(resource), positions_(resource) {}

  /// Adds rows (n, dim) at `positions` (n). Takes its memory at the first call. Errors: out of memory (nothing added).
  PQATTN_UNIT_MEMBER status add(const rows_view& queries, const std::int64_t* positions) {
    if (limit_ == 0) {
      return {};
    }
    PQATTN_TRY(rows_.reserve(limit_ * dim_));
    PQATTN_TRY(positions_.reserve(limit_));
    float row[max_row];
    for (std::size_t i = 0; i < queries.rows; ++i) {
      if (positions[i] < 0 || positions[i] % stride_ != 0) {
        continue;
      }
      while (positions_.size() == limit_ && stride_ < most_stride) {
        stride_ *= 2;
        thin();
      }
      if (positions_.size() == limit_) {
        continue;  // more rows at one position than there is room for
      }
      if (positions[i] % stride_ != 0) {
        continue;
      }
      load_row(queries, i, row);
      PQATTN_TRY(positions_.push_back(positions[i]));
      for (std::size_t c = 0; c < dim_; ++c) {
        PQATTN_TRY(rows_.push_back(row[c]));
      }
    }
    return {};
  }

  [[nodiscard]] rows_view rows() const noexcept { return view_rows(rows_.data(), positions_.size(), dim_); }
  [[nodiscard]] const std::int64_t* positions() const noexcept { return positions_.data(); }
  [[nodiscard]] std::size_t size() const noexcept { return positions_.size(); }
  [[nodiscard]] std::size_t bytes() const noexcept { return rows_.bytes() + positions_.bytes(); }
  /// Forgets all rows, gives the memory back and takes no more.
  void close() noexcept {
    rows_.reset();
    positions_.reset();
    limit_ = 0;
  }

 private:
  static constexpr std::size_t max_row = 1024;
  static constexpr std::int64_t most_stride = std::int64_t{1} << 40;

  PQATTN_UNIT_MEMBER void thin() noexcept {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < positions_.size(); ++i) {
      if (positions_[i] % stride_ == 0) {
        positions_[kept] = positions_[i];
        std::memmove(rows_.data() + kept * dim_, rows_.data() + i * dim_, dim_ * sizeof(float));
        ++kept;
      }
    }
    positions_.truncate(kept);
    rows_.truncate(kept * dim_);
  }

  std::size_t limit_ = 0;
  std::size_t dim_ = 0;
  std::int64_t stride_ = 1;
  growable<float> rows_;
  growable<std::int64_t> positions_;
};

}  // namespace v0
}  // namespace pqattn
