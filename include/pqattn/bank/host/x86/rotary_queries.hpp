// SPDX-License-Identifier: MIT
// Query rows of the rotary kernels.
#pragma once

#include "rotary_book.hpp"

#if PQATTN_X86_AVX2

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

/// Query rows as the kernel turns them: per row x and y of every pair, scaled so that rounding to an integer is the
/// kernel's query, and the factor that takes an integer score back.
struct rotary_queries {
  const float* x = nullptr;  ///< (rows, padded pairs)
  const float* y = nullptr;
  const float* factor = nullptr;         ///< (rows)
  const std::uint8_t* tables = nullptr;  ///< (rows, padded pairs, row_bytes): what the kernel makes of x and y
  std::size_t rows = 0;
  std::size_t padded = 0;  ///< pairs rounded up to 16
};

template <class Kernel>
[[nodiscard]] inline std::size_t rotary_query_bytes(std::size_t pairs, std::size_t rows) noexcept {
  const std::size_t tables = rows * detail::pad16(pairs) * Kernel::row_bytes;
  return 2 * align_up(rows * detail::pad16(pairs) * sizeof(float)) + align_up(rows * sizeof(float)) + tables;
}

[[nodiscard]] inline rotary_queries rotary_queries_at(std::size_t pairs, std::size_t rows,
                                                      const void* memory) noexcept {
  const std::size_t padded = detail::pad16(pairs);
  const auto* base = static_cast<const std::byte*>(memory);
  const std::size_t plane = align_up(rows * padded * sizeof(float));
  return {reinterpret_cast<const float*>(base),
          reinterpret_cast<const float*>(base + plane),
          reinterpret_cast<const float*>(base + 2 * plane),
          reinterpret_cast<const std::uint8_t*>(base + 2 * plane + align_up(rows * sizeof(float))),
          rows,
          padded};
}

namespace detail {

template <class Isa>
PQATTN_ALWAYS_INLINE typename Isa::floats squares(const float* x, const float* y) noexcept {
  const auto a = Isa::loadf(x);
  const auto b = Isa::loadf(y);
  return Isa::fma(a, a, Isa::mulf(b, b));
}

}  // namespace detail

/// Prepares `rows` queries (f32, `stride` apart, channels in the model's order, softmax scale multiplied in).
/// O(rows * dim).
template <class Kernel>
inline void prepare_rotary_queries(const rotary_book& book, const float* queries, std::size_t rows, std::size_t stride,
                                   void* memory) noexcept {
  using Isa = typename Kernel::isa;
  using floats = typename Isa::floats;
  constexpr float smallest_reach = 1e-37f;  // its inverse is finite; what is smaller counts as 0
  const rotary_queries out = rotary_queries_at(book.count, rows, memory);
  for (std::size_t row = 0; row < rows; ++row) {
    const float* query = queries + row * stride;
    float* x = const_cast<float*>(out.x) + row * out.padded;
    float* y = const_cast<float*>(out.y) + row * out.padded;
    for (std::size_t i = 0; i < book.count; ++i) {
      const turned_pair& pair = book.pairs[i];
      x[i] = query[pair.channel_x] * pair.scale;
      y[i] = pair.channel_y == no_channel ? 0.0f : query[pair.channel_y] * pair.scale;
    }
    for (std::size_t i = book.count; i < out.padded; ++i) {
      x[i] = y[i] = 0.0f;
    }
    const auto scale_row = [&](float factor) noexcept {
      for (std::size_t i = 0; i < out.padded; i += Isa::lanes) {
        Isa::storef(x + i, Isa::mulf(Isa::loadf(x + i), Isa::setf(factor)));
        Isa::storef(y + i, Isa::mulf(Isa::loadf(y + i), Isa::setf(factor)));
      }
    };
    // Relative to the largest component, so that no square overflows or vanishes.
    floats largest = Isa::setf(0.0f);
    for (std::size_t i = 0; i < out.padded; i += Isa::lanes) {
      largest = Isa::maxf(largest, Isa::maxf(Isa::magnitude(Isa::loadf(x + i)), Isa::magnitude(Isa::loadf(y + i))));
    }
    const float reach = Isa::largest(largest);
    scale_row(reach > smallest_reach ? 1.0f / reach : 0.0f);
    float magnitudes = 0.0f;
    for (std::size_t i = 0; Kernel::sums_magnitudes && i < book.count; ++i) {
      magnitudes += std::sqrt(x[i] * x[i] + y[i] * y[i]);
    }
    floats longest = Isa::setf(0.0f);  // squared
    for (std::size_t i = 0; i < out.padded; i += Isa::lanes) {
      longest = Isa::maxf(longest, detail::squares<Isa>(x + i, y + i));
    }
    const float part = Kernel::unit_of(magnitudes, std::sqrt(Isa::largest(longest)));
    scale_row(part > 0.0f ? 1.0f / part : 0.0f);
    const float unit = reach * part;
    const_cast<float*>(out.factor)[row] = unit / Kernel::product;
  }
}

/// Fills the rows' tables of prepared queries, where the kernel has them. O(rows * pairs).
template <class Kernel>
inline void fill_row_tables(const rotary_queries& queries) noexcept {
  if constexpr (Kernel::row_bytes != 0) {
    for (std::size_t row = 0; row < queries.rows; ++row) {
      const std::size_t at = row * queries.padded;
      Kernel::fill_row(queries.x + at, queries.y + at, queries.padded,
                       const_cast<std::uint8_t*>(queries.tables) + at * Kernel::row_bytes);
    }
  }
}

/// About the variance of the error that rounded phases add to a score, were every pair as long as its longest centroid,
/// across the query and rounded independently: the largest of all rows. Frequencies near odd halves of a step exceed it
/// by a third.
template <class Kernel>
[[nodiscard]] inline float phase_noise(const rotary_queries& queries) noexcept {
  using Isa = typename Kernel::isa;
  float most = 0.0f;
  for (std::size_t row = 0; row < queries.rows; ++row) {
    auto squares = Isa::setf(0.0f);
    for (std::size_t i = row * queries.padded; i < (row + 1) * queries.padded; i += Isa::lanes) {
      squares = Isa::addf(squares, detail::squares<Isa>(queries.x + i, queries.y + i));
    }
    const float longest = 127.0f * Kernel::product * queries.factor[row];
    const float noise = 0.5f * Kernel::phase_variance * longest * longest * Isa::sum(squares);
    most = most < noise ? noise : most;
  }
  return most;
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
