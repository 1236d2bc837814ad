// SPDX-License-Identifier: MIT
// Error figures the studies quote. Inputs f32 or f64, sums in double, nothing allocated.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "../config.hpp"

namespace pqattn {
inline namespace v0 {
inline namespace PQATTN_ISA_UNIT {

/// sum |exact - approximate|^2 and sum |exact|^2, kept apart so that parts of a study can be added up.
struct squared_error {
  double error = 0.0;
  double energy = 0.0;

  template <class Real>
  void add(const Real* exact, const Real* approximate, std::size_t count) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      const double reference = static_cast<double>(exact[i]);
      const double difference = reference - static_cast<double>(approximate[i]);
      error += difference * difference;
      energy += reference * reference;
    }
  }
  void add(const squared_error& other) noexcept {
    error += other.error;
    energy += other.energy;
  }
  /// Normalized mean squared error: error / energy; 0 for 0 / 0 and infinite when only the energy is 0.
  [[nodiscard]] double normalized() const noexcept {
    return error == 0.0 ? 0.0 : energy == 0.0 ? std::numeric_limits<double>::infinity() : error / energy;
  }
};

/// sum |exact - approximate|^2 / sum |exact|^2.
template <class Real>
[[nodiscard]] double nmse(const Real* exact, const Real* approximate, std::size_t count) noexcept {
  squared_error sum;
  sum.add(exact, approximate, count);
  return sum.normalized();
}

/// Kullback-Leibler divergence KL(exact || approximate) of two probability rows, natural logarithm.
/// An entry with exact 0 counts 0; one where only approximate is 0 makes the result infinite.
template <class Real>
[[nodiscard]] double kl_divergence(const Real* exact, const Real* approximate, std::size_t count) noexcept {
  double sum = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    const double p = static_cast<double>(exact[i]);
    if (p > 0.0) {
      sum += p * (std::log(p) - std::log(static_cast<double>(approximate[i])));
    }
  }
  return sum;
}

/// Index of the largest entry, the lowest on ties. Pre: count > 0.
template <class Real>
[[nodiscard]] std::size_t top_1(const Real* row, std::size_t count) noexcept {
  std::size_t best = 0;
  for (std::size_t i = 1; i < count; ++i) {
    if (row[i] > row[best]) {
      best = i;
    }
  }
  return best;
}

/// Whether two rows have their largest entry at the same place. Pre: count > 0.
template <class Real>
[[nodiscard]] bool top_1_agrees(const Real* exact, const Real* approximate, std::size_t count) noexcept {
  return top_1(exact, count) == top_1(approximate, count);
}

/// Root mean square of the difference of two rows of scores; 0 for no scores.
template <class Real>
[[nodiscard]] double logit_error(const Real* exact, const Real* approximate, std::size_t count) noexcept {
  squared_error sum;
  sum.add(exact, approximate, count);
  return count == 0 ? 0.0 : std::sqrt(sum.error / static_cast<double>(count));
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
