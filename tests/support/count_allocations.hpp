// SPDX-License-Identifier: MIT
// Replaces the global operator new by one that counts. Include in exactly one source file of a program.
#pragma once

#include <cstdlib>
#include <new>

#include "support/allocations.hpp"

// Inlined, they make GCC see new paired with free.
#if defined(__GNUC__)
#define PQATTN_TEST_NOINLINE __attribute__((noinline))
#else
#define PQATTN_TEST_NOINLINE
#endif

namespace pqattn_test {

inline void* counted_allocation(std::size_t bytes, std::size_t alignment) {
  allocation_count.fetch_add(1, std::memory_order_relaxed);
  const std::size_t size = bytes == 0 ? 1 : bytes;
  return alignment <= alignof(std::max_align_t)
             ? std::malloc(size)
             : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

inline void* counted_or_throw(std::size_t bytes, std::size_t alignment) {
  void* memory = counted_allocation(bytes, alignment);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}

}  // namespace pqattn_test

// NOLINTBEGIN(misc-definitions-in-headers): included once by design
PQATTN_TEST_NOINLINE void* operator new(std::size_t bytes) {
  return pqattn_test::counted_or_throw(bytes, 1);
}
PQATTN_TEST_NOINLINE void* operator new[](std::size_t bytes) {
  return pqattn_test::counted_or_throw(bytes, 1);
}
PQATTN_TEST_NOINLINE void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return pqattn_test::counted_or_throw(bytes, static_cast<std::size_t>(alignment));
}
PQATTN_TEST_NOINLINE void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return pqattn_test::counted_or_throw(bytes, static_cast<std::size_t>(alignment));
}
PQATTN_TEST_NOINLINE void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return pqattn_test::counted_allocation(bytes, 1);
}
PQATTN_TEST_NOINLINE void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return pqattn_test::counted_allocation(bytes, 1);
}
PQATTN_TEST_NOINLINE void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return pqattn_test::counted_allocation(bytes, static_cast<std::size_t>(alignment));
}
PQATTN_TEST_NOINLINE void* operator new[](std::size_t bytes, std::align_val_t alignment,
                                          const std::nothrow_t&) noexcept {
  return pqattn_test::counted_allocation(bytes, static_cast<std::size_t>(alignment));
}
PQATTN_TEST_NOINLINE void operator delete(void* memory) noexcept {
  std::free(memory);
}
PQATTN_TEST_NOINLINE void operator delete[](void* memory) noexcept {
  std::free(memory);
}
PQATTN_TEST_NOINLINE void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
PQATTN_TEST_NOINLINE void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}
PQATTN_TEST_NOINLINE void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
PQATTN_TEST_NOINLINE void operator delete[](void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
PQATTN_TEST_NOINLINE void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
PQATTN_TEST_NOINLINE void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
// NOLINTEND(misc-definitions-in-headers)
