// SPDX-License-Identifier: MIT
// A metric of the keys as caches and pools keep it: the upper triangle of a symmetric matrix.
#pragma once

#include <cmath>
#include <cstddef>
#include <type_traits>

#include "../config.hpp"
#include "../core/half.hpp"

namespace pqattn {
inline namespace v0 {

inline namespace PQATTN_ISA_UNIT {

/// Numbers of a symmetric matrix kept as its upper triangle, row after row.
[[nodiscard]] constexpr std::size_t packed_metric_floats(std::size_t dim) noexcept {
  return dim * (dim + 1) / 2;
}

/// In f32, or in binary16 (a metric's diagonal has the mean 1): half the memory, and codes are as good.
template <class Number>
void pack_metric(const float* metric, std::size_t dim, Number* packed) noexcept {
  for (std::size_t a = 0; a < dim; ++a) {
    for (std::size_t b = a; b < dim; ++b) {
      if constexpr (std::is_same_v<Number, float>) {
        *packed++ = metric[a * dim + b];
      } else {
        *packed++ = to_half(metric[a * dim + b]);
      }
    }
  }
}

/// Brings a metric into the range and to the numbers that binary16 has: the mean of the diagonal becomes 1 (codes do
/// not depend on it), entries are rounded, and the diagonal is raised by what that moved in its row, so that the matrix
/// stays positive definite. pack_metric() then loses nothing. O(d^2).
inline void settle_metric(float* metric, std::size_t dim) noexcept {
  double trace = 0.0;
  for (std::size_t a = 0; a < dim; ++a) {
    trace += static_cast<double>(metric[a * dim + a]);
  }
  const double factor = trace > 0.0 ? static_cast<double>(dim) / trace : 1.0;
  for (std::size_t a = 0; a < dim; ++a) {
    double moved = 0.0;
    for (std::size_t b = 0; b < dim; ++b) {
      if (a != b) {
        const double entry = factor * static_cast<double>(metric[a * dim + b]);
        metric[a * dim + b] = to_float(to_half(static_cast<float>(entry)));
        moved += std::fabs(entry - static_cast<double>(metric[a * dim + b]));
      }
    }
    const double least = factor * static_cast<double>(metric[a * dim + a]) + moved;
    float raised = to_float(to_half(static_cast<float>(least)));
    if (static_cast<double>(raised) < least) {
      raised = to_float(to_half(static_cast<float>(least * (1.0 + 0x1p-10) + 0x1p-24)));
    }
    metric[a * dim + a] = raised;
  }
}

template <class Number>
void unpack_metric(const Number* packed, std::size_t dim, float* metric) noexcept {
  for (std::size_t a = 0; a < dim; ++a) {
    for (std::size_t b = a; b < dim; ++b) {
      if constexpr (std::is_same_v<Number, float>) {
        metric[a * dim + b] = *packed++;
      } else {
        metric[a * dim + b] = to_float(*packed++);
      }
      metric[b * dim + a] = metric[a * dim + b];
    }
  }
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
