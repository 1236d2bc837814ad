// SPDX-License-Identifier: MIT
// Orthogonal rotations that baseline formats apply before rounding: Hadamard blocks and a random rotation.
#pragma once

#include <Eigen/Core>
#include <Eigen/QR>

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../core/random.hpp"

namespace pqattn {
inline namespace v0 {
inline namespace PQATTN_ISA_UNIT {

/// Largest power of two that divides `dim` (1 for odd or zero): the Hadamard block a row can be rotated by.
[[nodiscard]] constexpr std::size_t hadamard_block(std::size_t dim) noexcept {
  return dim == 0 ? 1 : dim & (~dim + 1);
}

/// Multiplies each run of hadamard_block(dim) channels of each row by the orthonormal Walsh-Hadamard matrix, in place.
/// Its own inverse. O(count * dim * log dim).
inline void rotate_hadamard(float* rows, std::size_t count, std::size_t dim) noexcept {
  const std::size_t block = hadamard_block(dim);
  const float scale = 1.0f / std::sqrt(static_cast<float>(block));
  for (float* x = rows; x != rows + count * dim; x += block) {
    for (std::size_t half_span = 1; half_span < block; half_span *= 2) {
      for (std::size_t i = 0; i < block; ++i) {
        if ((i & half_span) == 0) {
          const float a = x[i];
          const float b = x[i + half_span];
          x[i] = a + b;
          x[i + half_span] = a - b;
        }
      }
    }
    for (std::size_t i = 0; i < block; ++i) {
      x[i] *= scale;
    }
  }
}

/// Fills `values` with independent standard normal numbers (Box-Muller): the same for a seed on every platform up to
/// the rounding of the mathematical functions.
inline void fill_gaussian(double* values, std::size_t count, std::uint64_t seed) noexcept {
  random_source random(seed);
  for (std::size_t i = 0; i < count; ++i) {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - random.uniform()));
    values[i] = radius * std::cos(6.283185307179586 * random.uniform());
  }
}

/// A (dim, dim) row-major rotation or reflection, uniformly distributed: QR of a Gaussian matrix with the signs of R's
/// diagonal moved into Q (Mezzadri 2007). Allocates through Eigen. O(dim^3).
inline void fill_random_rotation(double* matrix, std::size_t dim, std::uint64_t seed) {
  using square = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const auto size = static_cast<Eigen::Index>(dim);
  Eigen::Map<square> result(matrix, size, size);
  fill_gaussian(matrix, dim * dim, seed);
  const Eigen::HouseholderQR<square> factors(result);
  result = factors.householderQ() * square::Identity(size, size);
  for (Eigen::Index column = 0; column < size; ++column) {
    if (factors.matrixQR()(column, column) < 0.0) {
      result.col(column) = -result.col(column);
    }
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
