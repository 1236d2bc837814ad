// SPDX-License-Identifier: MIT
// A queue of token rows kept exact: the sinks, the recent window, or a whole side before it is coded.
#pragma once

#include <cstddef>
#include <cstring>

#include "../config.hpp"
#include "../core/memory.hpp"
#include "../core/view.hpp"

namespace pqattn {
inline namespace v0 {

inline namespace PQATTN_ISA_UNIT {

/// Contiguous rows of one dtype: pushed at the back, dropped at the front.
class exact_rows {
 public:
  exact_rows() = default;
  exact_rows(const memory_resource& resource, dtype type, std::size_t dim) noexcept
      : resource_(resource), type_(type), dim_(dim) {}

  /// Makes the buffer large enough for `count` rows in all; on failure nothing changes.
  status grow(std::size_t count) {
    const std::size_t doubled = 2 * capacity();
    return count <= capacity() ? status{} : resize(count > doubled ? count : doubled);
  }

  /// Moves the rows to the front of the buffer when `count` rows in all would not fit behind. Pre: grow(count).
  void make_room(std::size_t count) noexcept {
    if (first_ != 0 && first_ + count > capacity()) {
      std::memmove(memory_.data(), row_address(0), size_ * row_bytes());
      first_ = 0;
    }
  }

  /// Reallocates to exactly `capacity` rows (at least size()).
  status resize(std::size_t capacity) {
    buffer grown;
    PQATTN_TRY(buffer::make(resource_, capacity * row_bytes(), grown));
    if (size_ != 0) {
      std::memcpy(grown.data(), row_address(0), size_ * row_bytes());
    }
    memory_ = std::move(grown);
    first_ = 0;
    return {};
  }

  /// Appends one f32 row, rounded. Pre: grow() and make_room().
  void push_back(const float* row) noexcept {
    ++size_;
    store_row(ref(), size_ - 1, row);
  }
  void drop_front(std::size_t count) noexcept {
    first_ += count;
    size_ -= count;
  }
  void drop_back(std::size_t count) noexcept { size_ -= count; }

  [[nodiscard]] rows_view view() const noexcept { return ref().view(); }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return memory_.size(); }
  [[nodiscard]] std::size_t capacity() const noexcept { return dim_ == 0 ? 0 : memory_.size() / row_bytes(); }
  [[nodiscard]] dtype type() const noexcept { return type_; }

 private:
  [[nodiscard]] std::size_t row_bytes() const noexcept { return dim_ * size_of(type_); }
  [[nodiscard]] std::byte* row_address(std::size_t row) const noexcept {
    return memory_.data() + (first_ + row) * row_bytes();
  }
  [[nodiscard]] rows_ref ref() const noexcept {
    return {row_address(0), type_, size_, dim_, static_cast<std::ptrdiff_t>(dim_), 1};
  }

  memory_resource resource_;
  dtype type_ = dtype::f32;
  std::size_t dim_ = 0;
  buffer memory_;
  std::size_t first_ = 0;
  std::size_t size_ = 0;
};

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
