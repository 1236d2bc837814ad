// SPDX-License-Identifier: MIT
// KIVI (Liu et al. 2024) as a baseline: asymmetric min/max codes, keys per channel, values per token.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "block_formats.hpp"

#include "../config.hpp"

namespace pqattn {
inline namespace v0 {
inline namespace PQATTN_ISA_UNIT {

/// Elements that share one scale and one zero point in KIVI.
inline constexpr std::size_t kivi_group = 32;

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Codes `count` elements `stride` apart. Scale and minimum are rounded to f16 before they are used, as KIVI's f16
/// tensors do; ties in the code go to even.
inline void code_asymmetric_group(float* x, std::size_t count, std::size_t stride, float levels) noexcept {
  float low = x[0];
  float high = x[0];
  for (std::size_t i = 1; i < count; ++i) {
    low = (std::min)(low, x[i * stride]);
    high = (std::max)(high, x[i * stride]);
  }
  const float zero = through_half(low);
  const float scale = through_half((high - low) / levels);
  for (std::size_t i = 0; i < count; ++i) {
    const float code = scale == 0.0f ? 0.0f : std::clamp(std::nearbyint((x[i * stride] - zero) / scale), 0.0f, levels);
    x[i * stride] = code * scale + zero;
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Replaces rows (count, dim) by what KIVI's key cache reads back at `bits` bits: each channel coded over groups of 32
/// consecutive tokens, the last group as long as it comes. Returns the bits spent, scales and minima (16 + 16 per
/// group) included: bits + 1 per element.
inline std::size_t code_kivi_keys(float* rows, std::size_t count, std::size_t dim, std::size_t bits) noexcept {
  const auto levels = static_cast<float>((1u << bits) - 1);
  std::size_t spent = 0;
  for (std::size_t first = 0; first < count; first += kivi_group) {
    const std::size_t tokens = (std::min)(kivi_group, count - first);
    for (std::size_t channel = 0; channel < dim; ++channel) {
      detail::code_asymmetric_group(rows + first * dim + channel, tokens, dim, levels);
      spent += bits * tokens + 32;
    }
  }
  return spent;
}

/// The same for KIVI's value cache: each token coded over groups of 32 channels.
inline std::size_t code_kivi_values(float* rows, std::size_t count, std::size_t dim, std::size_t bits) noexcept {
  const auto levels = static_cast<float>((1u << bits) - 1);
  std::size_t spent = 0;
  for (std::size_t r = 0; r < count; ++r) {
    for (std::size_t first = 0; first < dim; first += kivi_group) {
      const std::size_t width = (std::min)(kivi_group, dim - first);
      detail::code_asymmetric_group(rows + r * dim + first, width, 1, levels);
      spent += bits * width + 32;
    }
  }
  return spent;
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
