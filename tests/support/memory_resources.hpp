// SPDX-License-Identifier: MIT
// Allocators for tests: one that counts and checks, and refuses when told to.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <limits>
#include <map>

#include "pqattn/core/memory.hpp"

namespace pqattn_test {

/// Counts live and peak bytes, checks that every block comes back once with its size, and refuses from the
/// `fail_after`-th allocation on.
class counting_resource {
 public:
  [[nodiscard]] pqattn::memory_resource resource() { return {&allocate, &deallocate, this}; }

  std::size_t allocations = 0;
  std::size_t live_bytes = 0;
  std::size_t peak_bytes = 0;
  std::size_t largest = 0;
  std::size_t mistakes = 0;  ///< blocks given back twice, never taken, or with another size
  std::size_t fail_after = std::numeric_limits<std::size_t>::max();

 private:
  static void* allocate(void* self, std::size_t bytes) {
    auto& me = *static_cast<counting_resource*>(self);
    if (me.allocations >= me.fail_after) {
      return nullptr;
    }
    void* memory = pqattn::memory_resource::allocate_default(nullptr, bytes);
    ++me.allocations;
    me.live_bytes += bytes;
    me.peak_bytes = std::max(me.peak_bytes, me.live_bytes);
    me.largest = std::max(me.largest, bytes);
    me.sizes_[memory] = bytes;
    return memory;
  }
  static void deallocate(void* self, void* memory, std::size_t bytes) {
    auto& me = *static_cast<counting_resource*>(self);
    const auto found = me.sizes_.find(memory);
    if (found == me.sizes_.end() || found->second != bytes) {
      ++me.mistakes;
      return;
    }
    me.live_bytes -= bytes;
    me.sizes_.erase(found);
    pqattn::memory_resource::deallocate_default(nullptr, memory, bytes);
  }

  std::map<void*, std::size_t> sizes_;
};

}  // namespace pqattn_test
