// SPDX-License-Identifier: MIT
// Attention over token rows kept exact: f32, f16 or bf16, any strides.
#pragma once

#include <cstddef>

#include "../bank.hpp"
#include "isa.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Row as contiguous f32: a pointer into the view where it already is, else widened into `scratch` (dim floats).
[[nodiscard]] inline const float* row_as_floats(const rows_view& rows, std::size_t row, float* scratch) noexcept {
  const void* source = rows.at(row);
  if (rows.type == dtype::f32 && rows.col_stride == 1 &&
      reinterpret_cast<std::uintptr_t>(source) % alignof(float) == 0) {
    return static_cast<const float*>(source);
  }
  load_row(rows, row, scratch);
  return scratch;
}

template <class Isa>
[[nodiscard]] float dot(const float* a, const float* b, std::size_t count) noexcept {
  using batch = float_batch<Isa>;
  batch sum(0.0f);
  std::size_t i = 0;
  for (; i + batch::size <= count; i += batch::size) {
    sum = xsimd::fma(batch::load_unaligned(a + i), batch::load_unaligned(b + i), sum);
  }
  float total = xsimd::reduce_add(sum);
  for (; i < count; ++i) {
    total += a[i] * b[i];
  }
  return total;
}

/// out += factor * x
template <class Isa>
void add_scaled(float factor, const float* x, std::size_t count, float* out) noexcept {
  using batch = float_batch<Isa>;
  const batch factors(factor);
  std::size_t i = 0;
  for (; i + batch::size <= count; i += batch::size) {
    xsimd::fma(factors, batch::load_unaligned(x + i), batch::load_unaligned(out + i)).store_unaligned(out + i);
  }
  for (; i < count; ++i) {
    out[i] += factor * x[i];
  }
}

template <class Isa>
void score_exact(const query_rows& queries, const rows_view& keys, const score_tile& tile) noexcept {
  alignas(64) float scratch[max_dim];
  for (std::size_t token = 0; token < keys.rows; ++token) {
    const float* key = row_as_floats(keys, token, scratch);
    for (std::size_t row = 0; row < queries.rows; ++row) {
      tile.row(row)[token] = dot<Isa>(queries.row(row), key, keys.cols);
    }
  }
}

template <class Isa>
void add_values_exact(const score_tile& tile, const rows_view& values, float* out, std::size_t stride) noexcept {
  alignas(64) float scratch[max_dim];
  for (std::size_t token = 0; token < values.rows; ++token) {
    const float* value = row_as_floats(values, token, scratch);
    for (std::size_t row = 0; row < tile.rows; ++row) {
      const float probability = tile.row(row)[token];
      if (probability != 0.0f) {  // a masked token may hold anything, and 0 * NaN is not 0
        add_scaled<Isa>(probability, value, values.cols, out + row * stride);
      }
    }
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
