// SPDX-License-Identifier: MIT
#include "pqattn/study/rotation.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <cmath>
#include <vector>

#include "support/random_data.hpp"

using Catch::Matchers::WithinAbs;

static_assert(pqattn::hadamard_block(64) == 64);
static_assert(pqattn::hadamard_block(80) == 16);
static_assert(pqattn::hadamard_block(7) == 1);
static_assert(pqattn::hadamard_block(0) == 1);

TEST_CASE("the Hadamard rotation equals its matrix", "[study][rotation]") {
  for (const std::size_t dim : {1u, 2u, 12u, 64u, 80u}) {
    CAPTURE(dim);
    const std::size_t block = pqattn::hadamard_block(dim);
    for (std::size_t c = 0; c < dim; ++c) {
      std::vector<float> row(dim, 0.0f);
      row[c] = 1.0f;
      pqattn::rotate_hadamard(row.data(), 1, dim);
      for (std::size_t r = 0; r < dim; ++r) {
        const int sign = __builtin_popcountll((r % block) & (c % block)) % 2 == 0 ? 1 : -1;
        const double entry = r / block == c / block ? sign / std::sqrt(static_cast<double>(block)) : 0.0;
        REQUIRE_THAT(static_cast<double>(row[r]), WithinAbs(entry, 1e-7));
      }
    }
  }
}

TEST_CASE("the Hadamard rotation undoes itself", "[study][rotation]") {
  pqattn_test::random_data random(13);
  CAPTURE(random.seed());
  const std::vector<float> rows = random.normals(5 * 96);
  std::vector<float> turned = rows;
  pqattn::rotate_hadamard(turned.data(), 5, 96);
  CHECK(turned != rows);
  pqattn::rotate_hadamard(turned.data(), 5, 96);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    REQUIRE_THAT(static_cast<double>(turned[i]), WithinAbs(static_cast<double>(rows[i]), 2e-6));
  }
}

TEST_CASE("random rotations are orthogonal, repeatable and differ by seed", "[study][rotation]") {
  for (const std::size_t dim : {1u, 2u, 7u, 64u}) {
    CAPTURE(dim);
    std::vector<double> one(dim * dim);
    std::vector<double> again(dim * dim);
    std::vector<double> other(dim * dim);
    pqattn::fill_random_rotation(one.data(), dim, 1);
    pqattn::fill_random_rotation(again.data(), dim, 1);
    pqattn::fill_random_rotation(other.data(), dim, 2);
    CHECK(one == again);
    if (dim > 1) {
      CHECK(one != other);
    }
    for (std::size_t a = 0; a < dim; ++a) {
      for (std::size_t b = 0; b < dim; ++b) {
        double dot = 0.0;
        for (std::size_t i = 0; i < dim; ++i) {
          dot += one[a * dim + i] * one[b * dim + i];
        }
        REQUIRE_THAT(dot, WithinAbs(a == b ? 1.0 : 0.0, 1e-12));
      }
    }
  }
}

TEST_CASE("random rotations favour no direction", "[study][rotation]") {
  // The first entry of a uniformly distributed rotation has mean 0 and variance 1 / dim. Without the sign correction
  // of the QR factors its mean is far from 0. 2000 draws, 5 standard errors.
  const std::size_t dim = 4;
  double sum = 0.0;
  double squares = 0.0;
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    double matrix[dim * dim];
    pqattn::fill_random_rotation(matrix, dim, seed);
    sum += matrix[0];
    squares += matrix[0] * matrix[0];
  }
  CHECK_THAT(sum / 2000, WithinAbs(0.0, 5 * 0.5 / std::sqrt(2000.0)));
  CHECK_THAT(squares / 2000, WithinAbs(0.25, 5 * 0.21 / std::sqrt(2000.0)));
}

TEST_CASE("Gaussian numbers have the right moments", "[study][rotation]") {
  std::vector<double> values(200000);
  pqattn::fill_gaussian(values.data(), values.size(), 5);
  double mean = 0.0;
  double second = 0.0;
  double fourth = 0.0;
  for (const double x : values) {
    mean += x;
    second += x * x;
    fourth += x * x * x * x;
  }
  const double count = static_cast<double>(values.size());
  CHECK_THAT(mean / count, WithinAbs(0.0, 0.012));
  CHECK_THAT(second / count, WithinAbs(1.0, 0.016));
  CHECK_THAT(fourth / count, WithinAbs(3.0, 0.11));
}
