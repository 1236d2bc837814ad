// SPDX-License-Identifier: MIT
// An affine frame for values, as data: coded = basis * (value - mean). Attention is linear in the values, so the way
// back is applied once to the output.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../config.hpp"

namespace pqattn {
inline namespace v0 {

/// A rotation, not owned: coded = basis * (value - mean), value = basis^T * coded + mean. train/value_rotation.hpp
/// learns one. Value-initialised: no rotation.
struct value_rotation {
  std::uint32_t dim = 0;
  const float* mean = nullptr;   ///< dim
  const float* basis = nullptr;  ///< (dim, dim) row-major, orthogonal: row p is the direction of coded channel p

  [[nodiscard]] constexpr bool enabled() const noexcept { return dim != 0; }
};

inline namespace PQATTN_ISA_UNIT {

/// coded = basis * (value - mean) for one row. `coded` must not overlap `value`. O(d_v^2).
inline void rotate_value(const value_rotation& rotation, const float* value, float* coded) noexcept {
  for (std::uint32_t p = 0; p < rotation.dim; ++p) {
    const float* direction = rotation.basis + std::size_t{p} * rotation.dim;
    float sum = 0.0f;
    for (std::uint32_t c = 0; c < rotation.dim; ++c) {
      sum += direction[c] * (value[c] - rotation.mean[c]);
    }
    coded[p] = sum;
  }
}

/// The way back, for a decoded row or for an attention output: value = basis^T * coded + mass * mean, where `mass` is
/// the probability the coded tokens had (1 for a decoded row). `value` must not overlap `coded`. O(d_v^2).
inline void unrotate_value(const value_rotation& rotation, const float* coded, float mass, float* value) noexcept {
  for (std::uint32_t c = 0; c < rotation.dim; ++c) {
    value[c] = mass * rotation.mean[c];
  }
  for (std::uint32_t p = 0; p < rotation.dim; ++p) {
    const float* direction = rotation.basis + std::size_t{p} * rotation.dim;
    for (std::uint32_t c = 0; c < rotation.dim; ++c) {
      value[c] += direction[c] * coded[p];
    }
  }
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
