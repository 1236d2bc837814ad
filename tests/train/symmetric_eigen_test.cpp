// SPDX-License-Identifier: MIT
#include "pqattn/train/symmetric_eigen.hpp"

#include <algorithm>

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "support/random_data.hpp"

namespace {

struct decomposition {
  std::vector<double> values;
  std::vector<double> vectors;
  bool ok = false;
};

decomposition decompose(std::vector<double> matrix, std::size_t dim) {
  decomposition result{std::vector<double>(dim), std::vector<double>(dim * dim), false};
  std::vector<double> scratch(pqattn::symmetric_eigen_scratch(dim));
  result.ok = pqattn::symmetric_eigen(matrix.data(), dim, result.values.data(), result.vectors.data(), scratch.data());
  return result;
}

/// Largest error of A v = lambda v and of V V^T = I, relative to the largest eigenvalue and to 1.
double largest_error(const std::vector<double>& matrix, const decomposition& found, std::size_t dim) {
  double scale = 1e-300;
  for (const double value : found.values) {
    scale = std::max(scale, std::fabs(value));
  }
  double worst = 0.0;
  for (std::size_t i = 0; i < dim; ++i) {
    const double* v = found.vectors.data() + i * dim;
    for (std::size_t r = 0; r < dim; ++r) {
      double sum = 0.0;
      double product = 0.0;
      for (std::size_t c = 0; c < dim; ++c) {
        sum += matrix[r * dim + c] * v[c];
        product += found.vectors[r * dim + c] * v[c];
      }
      worst = std::max(worst, std::fabs(sum - found.values[i] * v[r]) / scale);
      worst = std::max(worst, std::fabs(product - (r == i ? 1.0 : 0.0)));
    }
  }
  return worst;
}

TEST_CASE("eigenvectors satisfy their equation and are orthonormal", "[train]") {
  pqattn_test::random_data random(171);
  CAPTURE(random.seed());
  for (const std::size_t dim : {1U, 2U, 3U, 7U, 16U, 65U}) {
    for (const int rank : {0, 1, 1000}) {
      CAPTURE(dim, rank);
      std::vector<double> matrix(dim * dim);
      const int factors = std::min<int>(rank, 2 * int(dim));
      for (int f = 0; f < factors; ++f) {
        const std::vector<float> x = random.normals(dim, std::exp2(-0.5f * float(f)));
        for (std::size_t i = 0; i < dim * dim; ++i) {
          matrix[i] += double(x[i / dim]) * double(x[i % dim]);
        }
      }
      const decomposition found = decompose(matrix, dim);
      REQUIRE(found.ok);
      CHECK(largest_error(matrix, found, dim) < 1e-13 * double(10 + dim));
      CHECK(std::is_sorted(found.values.rbegin(), found.values.rend()));
    }
  }
}

TEST_CASE("equal and opposite eigenvalues, and matrices already diagonal", "[train]") {
  const std::vector<double> swapped = {0, 0, 1, 0, 2, 0, 1, 0, 0};  // eigenvalues 2, 1, -1
  const decomposition found = decompose(swapped, 3);
  REQUIRE(found.ok);
  CHECK(std::fabs(found.values[0] - 2.0) < 1e-14);
  CHECK(std::fabs(found.values[1] - 1.0) < 1e-14);
  CHECK(std::fabs(found.values[2] + 1.0) < 1e-14);
  CHECK(largest_error(swapped, found, 3) < 1e-14);
  const std::vector<double> diagonal = {1, 0, 0, 0, 3, 0, 0, 0, 3};
  const decomposition plain = decompose(diagonal, 3);
  REQUIRE(plain.ok);
  CHECK(plain.values == std::vector<double>{3, 3, 1});
}

TEST_CASE("a matrix that is not finite is refused", "[train]") {
  CHECK_FALSE(decompose({1, std::numeric_limits<double>::quiet_NaN(), 0, 1}, 2).ok);
  CHECK_FALSE(decompose({1, 0, 0, std::numeric_limits<double>::infinity()}, 2).ok);
}

}  // namespace
