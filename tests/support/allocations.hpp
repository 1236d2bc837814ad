// SPDX-License-Identifier: MIT
// How many times operator new ran in this program. The counting operators are defined by count_allocations.hpp, which
// one source file of a test program includes.
#pragma once

#include <atomic>
#include <cstddef>

namespace pqattn_test {

inline std::atomic<std::size_t> allocation_count{0};

/// Allocations made by `work`.
template <class Work>
std::size_t allocations_of(Work&& work) {
  const std::size_t before = allocation_count.load();
  work();
  return allocation_count.load() - before;
}

}  // namespace pqattn_test
