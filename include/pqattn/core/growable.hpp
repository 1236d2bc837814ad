// SPDX-License-Identifier: MIT
// A growable array of plain data on the caller's allocator: what std::vector is, with status instead of exceptions.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../config.hpp"
#include "memory.hpp"
#include "status.hpp"

namespace pqattn {
inline namespace v0 {

inline namespace PQATTN_ISA_UNIT {

/// Move-only array of trivially copyable elements. Growth doubles, so appending is O(1) amortised.
template <class T>
class growable {
  static_assert(std::is_trivially_copyable_v<T>, "growable moves its elements with memcpy");

 public:
  growable() = default;
  explicit growable(const memory_resource& resource) noexcept : resource_(resource) {}

  /// Makes room for `capacity` elements in total; on failure nothing changes.
  status reserve(std::size_t capacity) {
    if (capacity <= this->capacity()) {
      return {};
    }
    const std::size_t doubled = 2 * this->capacity();
    buffer grown;
    PQATTN_TRY(buffer::make(resource_, (capacity > doubled ? capacity : doubled) * sizeof(T), grown));
    if (size_ != 0) {
      std::memcpy(grown.data(), memory_.data(), size_ * sizeof(T));
    }
    memory_ = std::move(grown);
    return {};
  }

  status push_back(const T& value) {
    const T copy = value;  // `value` may live in the memory that reserve() gives back
    PQATTN_TRY(reserve(size_ + 1));
    data()[size_++] = copy;
    return {};
  }

  /// Drops elements from the end.
  void truncate(std::size_t size) noexcept { size_ = size < size_ ? size : size_; }

  /// Empties the array and returns its memory.
  void reset() noexcept {
    memory_ = buffer();
    size_ = 0;
  }

  [[nodiscard]] T* data() const noexcept { return reinterpret_cast<T*>(memory_.data()); }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return memory_.size() / sizeof(T); }
  [[nodiscard]] std::size_t bytes() const noexcept { return memory_.size(); }
  [[nodiscard]] T& operator[](std::size_t index) const noexcept { return data()[index]; }

 private:
  memory_resource resource_;
  buffer memory_;
  std::size_t size_ = 0;
};

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
