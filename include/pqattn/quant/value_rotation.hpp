// SPDX-License-Identifier: MIT
// An affine frame for values, as data: coded = basis * (value - mean). Attention is linear in the values, so the way
// back is applied once to the output.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "geometry.hpp"

namespace pqattn {
inline namespace v0 {

/// A rotation, not owned: coded = basis * (value - mean), value = basis^T * coded + mean. train/value_rotation.hpp
/// learns one, compact_rotation() makes it small. Value-initialised: no rotation.
struct value_rotation {
  std::uint32_t dim = 0;
  const float* mean = nullptr;          ///< dim
  const float* basis = nullptr;         ///< (dim, dim) row-major, orthogonal: row p is the direction of coded channel p
  const std::int8_t* levels = nullptr;  ///< the same in bytes instead of `basis`: row p times steps[p]
  const float* steps = nullptr;         ///< dim, with levels

  [[nodiscard]] constexpr bool enabled() const noexcept { return dim != 0; }
  /// Whether both are the same numbers in memory.
  PQATTN_UNIT_MEMBER friend constexpr bool operator==(const value_rotation&, const value_rotation&) noexcept = default;
};

namespace detail {
inline namespace PQATTN_ISA_UNIT {

template <class Number>
void project_value(const value_rotation& rotation, const Number* basis, const float* value, float* coded) noexcept {
  constexpr std::uint32_t chains = 16;  // sums that run side by side: a single one cannot be vectorised
  float centred[max_dim];
  for (std::uint32_t c = 0; c < rotation.dim; ++c) {
    centred[c] = value[c] - rotation.mean[c];
  }
  for (std::uint32_t p = 0; p < rotation.dim; ++p) {
    const Number* direction = basis + std::size_t{p} * rotation.dim;
    float partial[chains] = {};
    std::uint32_t c = 0;
    for (; c + chains <= rotation.dim; c += chains) {
      for (std::uint32_t i = 0; i < chains; ++i) {
        partial[i] += static_cast<float>(direction[c + i]) * centred[c + i];
      }
    }
    float sum = 0.0f;
    for (; c < rotation.dim; ++c) {
      sum += static_cast<float>(direction[c]) * centred[c];
    }
    for (const float chain : partial) {
      sum += chain;
    }
    coded[p] = rotation.steps == nullptr ? sum : rotation.steps[p] * sum;
  }
}

template <class Number>
void add_directions(const value_rotation& rotation, const Number* basis, const float* coded, float* value) noexcept {
  for (std::uint32_t p = 0; p < rotation.dim; ++p) {
    const Number* direction = basis + std::size_t{p} * rotation.dim;
    const float along = rotation.steps == nullptr ? coded[p] : rotation.steps[p] * coded[p];
    for (std::uint32_t c = 0; c < rotation.dim; ++c) {
      value[c] += static_cast<float>(direction[c]) * along;
    }
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// The way back, for a decoded row or for an attention output: value = basis^T * coded + mass * mean, where `mass` is
/// the probability the coded tokens had (1 for a decoded row). `value` must not overlap `coded`. O(d_v^2).
inline void unrotate_value(const value_rotation& rotation, const float* coded, float mass, float* value) noexcept {
  for (std::uint32_t c = 0; c < rotation.dim; ++c) {
    value[c] = mass * rotation.mean[c];
  }
  if (rotation.levels != nullptr) {
    detail::add_directions(rotation, rotation.levels, coded, value);
  } else {
    detail::add_directions(rotation, rotation.basis, coded, value);
  }
}

/// coded = basis * (value - mean) for one row. `coded` must not overlap `value`. O(d_v^2).
/// Bytes leave the basis a little oblique: `coded` is then what unrotate_value() turns back into the value, up to the
/// square of the obliqueness (one Newton step towards the inverse, three times the work).
inline void rotate_value(const value_rotation& rotation, const float* value, float* coded) noexcept {
  if (rotation.levels == nullptr) {
    detail::project_value(rotation, rotation.basis, value, coded);
    return;
  }
  float back[max_dim];
  float again[max_dim];
  detail::project_value(rotation, rotation.levels, value, coded);
  unrotate_value(rotation, coded, 1.0f, back);
  detail::project_value(rotation, rotation.levels, back, again);
  for (std::uint32_t p = 0; p < rotation.dim; ++p) {
    coded[p] += coded[p] - again[p];
  }
}

/// Bytes of a rotation in bytes, aligned as floats are.
[[nodiscard]] constexpr std::size_t compact_rotation_bytes(std::uint32_t dim) noexcept {
  return std::size_t{2} * dim * sizeof(float) + std::size_t{dim} * dim;
}

/// `rotation` with its basis in bytes, each direction with a scale of its own, in `memory` (compact_rotation_bytes): a
/// quarter of the memory, and values come back as before (see rotate_value). `rotation` must have a basis. O(d_v^2).
inline value_rotation compact_rotation(const value_rotation& rotation, void* memory) noexcept {
  const std::uint32_t dim = rotation.dim;
  auto* mean = static_cast<float*>(memory);
  float* steps = mean + dim;
  auto* levels = reinterpret_cast<std::int8_t*>(steps + dim);
  for (std::uint32_t p = 0; p < dim; ++p) {
    const float* direction = rotation.basis + std::size_t{p} * dim;
    float largest = 0.0f;
    for (std::uint32_t c = 0; c < dim; ++c) {
      const float size = std::fabs(direction[c]);
      largest = size > largest ? size : largest;
    }
    mean[p] = rotation.mean[p];
    // 16 bits, rounded up: products with levels are exact, so that the numbers of a compact rotation make the same one.
    steps[p] = std::bit_cast<float>((std::bit_cast<std::uint32_t>(largest / 127.0f) + 255u) & ~255u);
    for (std::uint32_t c = 0; c < dim; ++c) {
      const float level = steps[p] > 0.0f ? direction[c] / steps[p] : 0.0f;
      levels[std::size_t{p} * dim + c] = static_cast<std::int8_t>(std::lrintf(level));
    }
  }
  return {dim, mean, nullptr, levels, steps};
}

/// The rotation that compact_rotation() left in `memory`.
[[nodiscard]] inline value_rotation compact_rotation_at(std::uint32_t dim, const void* memory) noexcept {
  const auto* mean = static_cast<const float*>(memory);
  return {dim, mean, nullptr, reinterpret_cast<const std::int8_t*>(mean + 2 * dim), mean + dim};
}

/// Mean and basis of a compact rotation as floats, (dim + 1, dim): compact_rotation() makes the same one of them.
inline void expand_rotation(const value_rotation& compact, float* numbers) noexcept {
  const std::size_t dim = compact.dim;
  for (std::size_t p = 0; p < dim; ++p) {
    numbers[p] = compact.mean[p];
    for (std::size_t c = 0; c < dim; ++c) {
      numbers[(p + 1) * dim + c] = static_cast<float>(compact.levels[p * dim + c]) * compact.steps[p];
    }
  }
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
