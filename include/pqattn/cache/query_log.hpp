// SPDX-License-Identifier: MIT
// Query rows kept until a cache trains: where the model looks, from which the metric of the keys is made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "../config.hpp"
#include "../core/growable.hpp"
#include "../core/memory.hpp"
#include "../core/view.hpp"
#include "../encode/encode.hpp"
#include "cache_config.hpp"
#include "head_rows.hpp"

namespace pqattn {
inline namespace v0 {

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Whether query rows (q_heads, n, channels) fit `kv_heads` heads and are numbers.
inline status check_queries(const head_rows& queries, std::size_t kv_heads, std::size_t channels) noexcept {
  PQATTN_TRY(check_query_shape(queries, kv_heads, channels));
  for (std::size_t head = 0; head < queries.heads; ++head) {
    PQATTN_TRY(check_finite(queries.head(head), "queries"));
  }
  return {};
}

/// Whether `rows` positions from `first` on exist.
[[nodiscard]] constexpr status check_positions(std::int64_t first, std::size_t rows, const char* subject) noexcept {
  if (first < 0 || rows > static_cast<std::size_t>(max_position) ||
      first > max_position - static_cast<std::int64_t>(rows)) {
    return failure(status_code::invalid_argument, subject, "and what follows must be 0 to 2^31 - 1", max_position,
                   first);
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// At most `limit` query rows with their positions, spread evenly: it keeps the rows whose position is a multiple of a
/// stride, and doubles the stride when it is full. What it holds does not depend on how the rows were cut into calls.
class query_log {
 public:
  query_log() = default;
  query_log(const memory_resource& resource, std::size_t limit, std::size_t dim) noexcept
      : limit_(limit), dim_(dim), rows_(resource), positions_(resource) {}

  /// Adds rows (n, dim) at `positions` (n). Takes its memory at the first call. Errors: out of memory (nothing added).
  status add(const rows_view& queries, const std::int64_t* positions) {
    if (limit_ == 0) {
      return {};
    }
    PQATTN_TRY(reserve());
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

  /// Takes all the memory that add() needs.
  status reserve() {
    PQATTN_TRY(rows_.reserve(limit_ * dim_));
    return positions_.reserve(limit_);
  }
  /// Makes `copy` hold the same. On failure `copy` is unchanged.
  status duplicate(const memory_resource& resource, query_log& copy) const {
    query_log made(resource, limit_, dim_);
    PQATTN_TRY(made.reserve());
    made.stride_ = stride_;
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      static_cast<void>(made.rows_.push_back(rows_[i]));
    }
    for (std::size_t i = 0; i < positions_.size(); ++i) {
      static_cast<void>(made.positions_.push_back(positions_[i]));
    }
    copy = std::move(made);
    return {};
  }

  /// Bytes of the log as store() writes it: stride and positions (64-bit), then rows (f32).
  [[nodiscard]] std::size_t stored_bytes() const noexcept {
    return sizeof(std::int64_t) + positions_.size() * (sizeof(std::int64_t) + dim_ * sizeof(float));
  }
  /// put(data, bytes) for all of it.
  template <class Put>
  void store(Put&& put) const {
    put(&stride_, sizeof stride_);
    put(positions_.data(), positions_.size() * sizeof(std::int64_t));
    put(rows_.data(), rows_.size() * sizeof(float));
  }
  /// Replaces what the log holds by stored bytes of any origin. Errors (the log may then be empty): sizes that do not
  /// fit, more rows than it has room for, positions or a stride that no log has, numbers that are not finite, out of
  /// memory.
  status restore(const std::byte* data, std::size_t bytes) {
    PQATTN_TRY(reserve());
    positions_.truncate(0);
    rows_.truncate(0);
    const std::size_t row_bytes = sizeof(std::int64_t) + dim_ * sizeof(float);
    const std::size_t count = bytes < sizeof stride_ ? 0 : (bytes - sizeof stride_) / row_bytes;
    if (bytes < sizeof stride_ || sizeof stride_ + count * row_bytes != bytes || count > limit_) {
      return failure(status_code::corrupt_data, "stored queries", "must be whole rows, not more than are kept; rows",
                     limit_, count);
    }
    std::int64_t stride = 0;
    std::memcpy(&stride, data, sizeof stride);
    if (stride < 1 || stride > most_stride || (stride & (stride - 1)) != 0) {
      return failure(status_code::corrupt_data, "stored queries", "have a stride that is no power of two; it is", 1,
                     stride);
    }
    for (std::size_t i = 0; i < count; ++i) {
      std::int64_t position = 0;
      std::memcpy(&position, data + (i + 1) * sizeof position, sizeof position);
      if (position < 0 || position > most_stride ||
          position % stride != 0) {  // sums with token numbers do not overflow
        return failure(status_code::corrupt_data, "stored queries", "have a position off the stride; index", 0, i);
      }
    }
    const std::byte* numbers = data + (count + 1) * sizeof(std::int64_t);
    for (std::size_t i = 0; i < count * dim_; ++i) {
      float number = 0.0f;
      std::memcpy(&number, numbers + i * sizeof number, sizeof number);
      if (!is_finite(number)) {
        rows_.truncate(0);
        return failure(status_code::corrupt_data, "stored queries", "have a NaN or infinity; index", 0, i);
      }
      PQATTN_TRY(rows_.push_back(number));
    }
    for (std::size_t i = 0; i < count; ++i) {
      std::int64_t position = 0;
      std::memcpy(&position, data + (i + 1) * sizeof position, sizeof position);
      PQATTN_TRY(positions_.push_back(position));
    }
    stride_ = stride;
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

  void thin() noexcept {
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

/// A query log for each KV head of a layer. Move-only; closed until open().
class query_logs {
 public:
  query_logs() = default;
  query_logs(query_logs&& other) noexcept { swap(other); }
  query_logs& operator=(query_logs&& other) noexcept {
    query_logs taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~query_logs() { std::destroy_n(logs_, count_); }

  /// Empty logs, all their memory taken. On failure nothing changes.
  status open(const memory_resource& resource, std::size_t heads, std::size_t limit, std::size_t dim) {
    query_logs made;
    PQATTN_TRY(made.make(resource, heads));
    for (std::size_t i = 0; i < heads; ++i) {
      made.logs_[i] = query_log(resource, limit, dim);
      PQATTN_TRY(made.logs_[i].reserve());
    }
    *this = std::move(made);
    return {};
  }
  /// Makes `copy` hold the same. On failure `copy` is unchanged.
  status duplicate(const memory_resource& resource, query_logs& copy) const {
    query_logs made;
    PQATTN_TRY(made.make(resource, count_));
    for (std::size_t i = 0; i < count_; ++i) {
      PQATTN_TRY(logs_[i].duplicate(resource, made.logs_[i]));
    }
    copy = std::move(made);
    return {};
  }

  [[nodiscard]] bool is_open() const noexcept { return count_ != 0; }
  /// Pre: is_open().
  [[nodiscard]] query_log& head(std::size_t index) const noexcept { return logs_[index]; }
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = memory_.size();
    for (std::size_t i = 0; i < count_; ++i) {
      total += logs_[i].bytes();
    }
    return total;
  }

 private:
  status make(const memory_resource& resource, std::size_t heads) {
    PQATTN_TRY(buffer::make(resource, heads * sizeof(query_log), memory_));
    logs_ = reinterpret_cast<query_log*>(memory_.data());
    for (; count_ < heads; ++count_) {
      new (logs_ + count_) query_log();
    }
    return {};
  }
  void swap(query_logs& other) noexcept {
    memory_.swap(other.memory_);
    std::swap(logs_, other.logs_);
    std::swap(count_, other.count_);
  }

  buffer memory_;
  query_log* logs_ = nullptr;
  std::size_t count_ = 0;
};

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
