// SPDX-License-Identifier: MIT
// Where level-1 objects get memory from, and how level-0 functions carve up a workspace the caller gives them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#include "../config.hpp"
#include "status.hpp"

namespace pqattn {
inline namespace v0 {

/// Alignment of everything the library lays out: one cache line, one 512-bit register.
inline constexpr std::size_t memory_alignment = 64;

/// `bytes` rounded up to a multiple of `alignment` (a power of two).
[[nodiscard]] constexpr std::size_t align_up(std::size_t bytes, std::size_t alignment = memory_alignment) noexcept {
  return (bytes + alignment - 1) & ~(alignment - 1);
}

/// The caller's allocator. `allocate` returns memory aligned to memory_alignment, or null when it refuses;
/// `deallocate` gets the same size back. The default uses aligned operator new and delete.
struct memory_resource {
  void* (*allocate)(void* self, std::size_t bytes) = &allocate_default;
  void (*deallocate)(void* self, void* memory, std::size_t bytes) = &deallocate_default;
  void* self = nullptr;

  static void* allocate_default(void*, std::size_t bytes) {
    return ::operator new (bytes, std::align_val_t{memory_alignment}, std::nothrow);
  }
  static void deallocate_default(void*, void* memory, std::size_t) {
    ::operator delete (memory, std::align_val_t{memory_alignment});
  }
};

inline namespace PQATTN_ISA_UNIT {

/// Owning, move-only block of raw memory from a memory_resource.
class buffer {
 public:
  buffer() = default;
  buffer(buffer&& other) noexcept { swap(other); }
  buffer& operator=(buffer&& other) noexcept {
    buffer taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~buffer() {
    if (data_ != nullptr) {
      resource_.deallocate(resource_.self, data_, size_);
    }
  }

  /// Allocates `bytes` bytes (0 gives an empty buffer) into `result`; on failure `result` is unchanged.
  static status make(const memory_resource& resource, std::size_t bytes, buffer& result) {
    buffer made;
    made.resource_ = resource;
    if (bytes != 0) {
      made.data_ = static_cast<std::byte*>(resource.allocate(resource.self, bytes));
      if (made.data_ == nullptr) {
        return failure(status_code::out_of_memory, "memory_resource", "refused an allocation", bytes, 0);
      }
      made.size_ = bytes;
    }
    result = std::move(made);
    return {};
  }

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  void swap(buffer& other) noexcept {
    std::swap(resource_, other.resource_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

 private:
  memory_resource resource_;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Hands out aligned pieces of one block of memory, in order. With a null block it only counts, so the
/// same code that carves a workspace also says how large it must be.
class carver {
 public:
  carver() = default;
  carver(void* memory, std::size_t bytes) noexcept : base_(static_cast<std::byte*>(memory)), size_(bytes) {
    // The caller's block may have any alignment; skip to the first aligned byte.
    used_ = base_ == nullptr ? 0 : (0 - reinterpret_cast<std::uintptr_t>(base_)) & (memory_alignment - 1);
  }

  /// Room for `count` objects of T, or null when counting or when the block is too small. Counts that no memory holds
  /// stay too large instead of wrapping around.
  template <class T>
  T* take(std::size_t count) noexcept {
    const std::size_t start = used_;
    const std::size_t left = used_ < most ? most - used_ : 0;
    used_ = count <= left / sizeof(T) ? used_ + align_up(count * sizeof(T)) : most;
    return base_ == nullptr || used_ > size_ ? nullptr : reinterpret_cast<T*>(base_ + start);
  }

  /// Bytes taken so far, including what was skipped for alignment.
  [[nodiscard]] std::size_t used() const noexcept { return used_; }
  [[nodiscard]] bool fits() const noexcept { return used_ <= size_; }

  /// Bytes a caller must provide for what was taken while counting, whatever the block's alignment.
  [[nodiscard]] std::size_t required() const noexcept { return used_ + memory_alignment; }

 private:
  static constexpr std::size_t most = ~std::size_t{0} - 4 * memory_alignment + 1;

  std::byte* base_ = nullptr;
  std::size_t size_ = 0;
  std::size_t used_ = 0;
};

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
