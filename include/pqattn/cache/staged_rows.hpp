// SPDX-License-Identifier: MIT
// Rows of one KV head gathered from the caller's layout, for caches that attend head by head.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../core/memory.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Gathered rows of one KV head: row r is query head r / tokens of the group, token r % tokens.
struct staged_rows {
  float* queries = nullptr;  ///< (rows, key_dim)
  float* out = nullptr;      ///< (rows, value_dim)
  float* lse_e = nullptr;
  float* slopes = nullptr;
  float* sinks = nullptr;
  std::int64_t* positions = nullptr;

  void carve(carver& memory, std::size_t rows, std::size_t key_dim, std::size_t value_dim) noexcept {
    queries = memory.take<float>(rows * key_dim);
    out = memory.take<float>(rows * value_dim);
    lse_e = memory.take<float>(rows);
    slopes = memory.take<float>(rows);
    sinks = memory.take<float>(rows);
    positions = memory.take<std::int64_t>(rows);
  }
};

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail
}  // namespace v0
}  // namespace pqattn
