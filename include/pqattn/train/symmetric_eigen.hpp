// SPDX-License-Identifier: MIT
// Eigenvalues and eigenvectors of a symmetric matrix: Householder reduction to a tridiagonal matrix, then QL steps
// with implicit shifts (Golub and Van Loan, Matrix Computations, chapter 8). For the sizes of attention heads; what
// needs it stays free of a linear algebra library.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include "../config.hpp"

namespace pqattn {
inline namespace v0 {

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Tridiagonal form of a symmetric matrix: matrix = Q T Q^T, with Q^T in the rows of `vectors`.
struct tridiagonal_reduction {
  double* matrix;  ///< (dim, dim); destroyed
  std::size_t dim;
  double* diagonal;  ///< dim
  double* beside;    ///< dim; entry i couples i and i + 1
  double* vectors;   ///< (dim, dim)

  /// Reflects the trailing block so that column `k` keeps one entry below the diagonal. `v` and `w` have dim entries.
  void reflect(std::size_t k, double* v, double* w) const noexcept {
    double norm = 0.0;
    for (std::size_t i = k + 1; i < dim; ++i) {
      v[i] = matrix[i * dim + k];
      norm += v[i] * v[i];
    }
    const double rest = norm - v[k + 1] * v[k + 1];
    if (!(rest > 0.0)) {
      return;  // already tridiagonal here
    }
    norm = std::sqrt(norm);
    v[k + 1] += v[k + 1] < 0.0 ? -norm : norm;
    const double length = std::sqrt(rest + v[k + 1] * v[k + 1]);
    for (std::size_t i = k + 1; i < dim; ++i) {
      v[i] /= length;
    }
    for (std::size_t i = k; i < dim; ++i) {
      w[i] = 0.0;
      for (std::size_t j = k + 1; j < dim; ++j) {
        w[i] += 2.0 * matrix[i * dim + j] * v[j];
      }
    }
    double shared = 0.0;
    for (std::size_t i = k + 1; i < dim; ++i) {
      shared += 0.5 * w[i] * v[i];
    }
    for (std::size_t i = k + 1; i < dim; ++i) {
      w[i] -= 2.0 * shared * v[i];
    }
    v[k] = 0.0;  // row k is reflected from one side only
    for (std::size_t i = k; i < dim; ++i) {
      for (std::size_t j = k; j < dim; ++j) {
        matrix[i * dim + j] -= v[i] * w[j] + w[i] * v[j];
      }
    }
    turn_vectors(k + 1, v, w);
  }

  /// vectors := (I - 2 v v^T) vectors, rows from `first` on.
  void turn_vectors(std::size_t first, const double* v, double* w) const noexcept {
    for (std::size_t c = 0; c < dim; ++c) {
      w[c] = 0.0;
    }
    for (std::size_t i = first; i < dim; ++i) {
      for (std::size_t c = 0; c < dim; ++c) {
        w[c] += 2.0 * v[i] * vectors[i * dim + c];
      }
    }
    for (std::size_t i = first; i < dim; ++i) {
      for (std::size_t c = 0; c < dim; ++c) {
        vectors[i * dim + c] -= v[i] * w[c];
      }
    }
  }

  void run(double* v, double* w) const noexcept {
    for (std::size_t i = 0; i < dim * dim; ++i) {
      vectors[i] = i % (dim + 1) == 0 ? 1.0 : 0.0;
    }
    for (std::size_t k = 0; k + 2 < dim; ++k) {
      reflect(k, v, w);
    }
    for (std::size_t i = 0; i < dim; ++i) {
      diagonal[i] = matrix[i * dim + i];
      beside[i] = i + 1 < dim ? matrix[(i + 1) * dim + i] : 0.0;
    }
  }

  /// One QL step with implicit shift on rows [first, last]. False when a rotation met a zero and split the block.
  [[nodiscard]] bool chase(std::size_t first, std::size_t last) const noexcept {
    double g = (diagonal[first + 1] - diagonal[first]) / (2.0 * beside[first]);
    g = diagonal[last] - diagonal[first] + beside[first] / (g + std::copysign(std::hypot(g, 1.0), g));
    double sine = 1.0;
    double cosine = 1.0;
    double shift = 0.0;
    for (std::size_t i = last; i-- > first;) {
      const double f = sine * beside[i];
      const double b = cosine * beside[i];
      const double r = std::hypot(f, g);
      beside[i + 1] = r;
      if (r == 0.0) {
        diagonal[i + 1] -= shift;
        beside[last] = 0.0;
        return false;
      }
      sine = f / r;
      cosine = g / r;
      g = diagonal[i + 1] - shift;
      const double mixed = (diagonal[i] - g) * sine + 2.0 * cosine * b;
      shift = sine * mixed;
      diagonal[i + 1] = g + shift;
      g = cosine * mixed - b;
      double* upper = vectors + i * dim;
      double* lower = upper + dim;
      for (std::size_t c = 0; c < dim; ++c) {
        const double below = lower[c];
        lower[c] = sine * upper[c] + cosine * below;
        upper[c] = cosine * upper[c] - sine * below;
      }
    }
    diagonal[first] -= shift;
    beside[first] = g;
    beside[last] = 0.0;
    return true;
  }

  /// QL steps until nothing is left beside the diagonal. False when that takes too long.
  [[nodiscard]] bool diagonalize() const noexcept {
    constexpr int most_steps = 60;  // a row needs two on average
    for (std::size_t first = 0; first < dim; ++first) {
      for (int step = 0;; ++step) {
        std::size_t last = first;
        while (last + 1 < dim &&
               std::fabs(beside[last]) > std::numeric_limits<double>::epsilon() *
                                             (std::fabs(diagonal[last]) + std::fabs(diagonal[last + 1]))) {
          ++last;
        }
        if (last == first) {
          break;
        }
        if (step == most_steps) {
          return false;
        }
        static_cast<void>(chase(first, last));
      }
    }
    return true;
  }
};

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Doubles of scratch symmetric_eigen needs.
[[nodiscard]] constexpr std::size_t symmetric_eigen_scratch(std::size_t dim) noexcept {
  return 3 * dim;
}

/// Eigenvalues in descending order into `values` (dim) and unit eigenvectors into the rows of `vectors` (dim, dim) of
/// the symmetric `matrix` (dim, dim), which is destroyed. False (results unusable) when the matrix is not finite.
/// About 6 dim^3 multiply-adds; nothing is allocated.
[[nodiscard]] inline bool symmetric_eigen(double* matrix, std::size_t dim, double* values, double* vectors,
                                          double* scratch) noexcept {
  double trace = 0.0;
  for (std::size_t i = 0; i < dim * dim; ++i) {
    trace += std::fabs(matrix[i]);
  }
  if (!(trace < 1.0e150)) {  // squares must stay finite; false for NaN
    return false;
  }
  const detail::tridiagonal_reduction reduction{matrix, dim, values, scratch, vectors};
  reduction.run(scratch + dim, scratch + 2 * dim);
  if (!reduction.diagonalize()) {
    return false;
  }
  for (std::size_t i = 0; i < dim; ++i) {
    std::size_t largest = i;
    for (std::size_t j = i + 1; j < dim; ++j) {
      largest = values[j] > values[largest] ? j : largest;
    }
    if (largest != i) {
      std::swap(values[i], values[largest]);
      for (std::size_t c = 0; c < dim; ++c) {
        std::swap(vectors[i * dim + c], vectors[largest * dim + c]);
      }
    }
  }
  return true;
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
