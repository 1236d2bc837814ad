// SPDX-License-Identifier: MIT
// The block formats of ggml as baselines: q8_0 and q4_0, with ggml's own rounding (ggml-quants.c, reference rows).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "../config.hpp"
#include "../core/half.hpp"

namespace pqattn {
inline namespace v0 {
inline namespace PQATTN_ISA_UNIT {

/// Elements of one ggml block. ggml refuses rows that 32 does not divide; here the last block of a row may be shorter
/// and still pays for its own scale.
inline constexpr std::size_t ggml_block = 32;

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// What a scale reads back as after it was stored in binary16. Saturates, where ggml would store infinity.
[[nodiscard]] inline float through_half(float value) noexcept {
  return to_float(to_half(std::clamp(value, -65504.0f, 65504.0f)));
}

/// 1 / scale, or 0 where a scale is so small that it reads back as 0 and its reciprocal might not be finite.
[[nodiscard]] inline float reciprocal_scale(float scale) noexcept {
  return std::fabs(scale) < 1e-30f ? 0.0f : 1.0f / scale;
}

inline void code_q8_0_block(float* x, std::size_t count) noexcept {
  float largest = 0.0f;
  for (std::size_t i = 0; i < count; ++i) {
    largest = (std::max)(largest, std::fabs(x[i]));
  }
  const float scale = largest / 127.0f;
  const float inverse = reciprocal_scale(scale);
  const float stored = through_half(scale);
  for (std::size_t i = 0; i < count; ++i) {
    x[i] = std::round(x[i] * inverse) * stored;
  }
}

inline void code_q4_0_block(float* x, std::size_t count) noexcept {
  float extreme = 0.0f;  // with its sign: it gets code 0, which reads -8
  for (std::size_t i = 0; i < count; ++i) {
    extreme = std::fabs(x[i]) > std::fabs(extreme) ? x[i] : extreme;
  }
  const float scale = extreme / -8.0f;
  const float inverse = reciprocal_scale(scale);
  const float stored = through_half(scale);
  for (std::size_t i = 0; i < count; ++i) {
    const int code = static_cast<int>((std::min)(15.0f, x[i] * inverse + 8.5f));
    x[i] = static_cast<float>(code - 8) * stored;
  }
}

template <class Block>
std::size_t code_blocks(float* rows, std::size_t count, std::size_t dim, std::size_t bits, Block code) noexcept {
  std::size_t spent = 0;
  for (std::size_t r = 0; r < count; ++r) {
    for (std::size_t first = 0; first < dim; first += ggml_block) {
      const std::size_t width = (std::min)(ggml_block, dim - first);
      code(rows + r * dim + first, width);
      spent += bits * width + 16;
    }
  }
  return spent;
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Replaces rows (count, dim) by what q8_0 reads back: per block of 32 an f16 scale max|x| / 127, codes rounded half
/// away from zero. Returns the bits spent, scales included (8.5 per element when 32 divides dim).
inline std::size_t code_q8_0(float* rows, std::size_t count, std::size_t dim) noexcept {
  return detail::code_blocks(rows, count, dim, 8, &detail::code_q8_0_block);
}

/// The same for q4_0: the scale is the element of largest magnitude / -8, codes are 0 to 15 (4.5 bits per element).
inline std::size_t code_q4_0(float* rows, std::size_t count, std::size_t dim) noexcept {
  return detail::code_blocks(rows, count, dim, 4, &detail::code_q4_0_block);
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
