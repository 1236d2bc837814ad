// SPDX-License-Identifier: MIT
#include "pqattn/study/gaussian_codes.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <cmath>
#include <vector>

#include "support/message.hpp"
#include "support/random_data.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using pqattn::code_turbo;
using pqattn::gaussian_codebook;

namespace {

/// Mean squared error of the codebook on N(0, 1) by the trapezoidal rule.
double distortion(const gaussian_codebook& book) {
  double sum = 0.0;
  const double step = 1e-4;
  for (double x = -9.0; x < 9.0; x += step) {
    const double difference = x - book.nearest(x);
    sum += difference * difference * std::exp(-0.5 * x * x) * 0.3989422804014327 * step;
  }
  return sum;
}

double norm(const float* row, std::size_t dim) {
  double sum = 0.0;
  for (std::size_t i = 0; i < dim; ++i) {
    sum += static_cast<double>(row[i]) * static_cast<double>(row[i]);
  }
  return std::sqrt(sum);
}

}  // namespace

TEST_CASE("Lloyd-Max codebooks of the normal distribution", "[study][gaussian]") {
  // Distortions from Max 1960, table I, whose last digit is off for 8 and 16 levels.
  CHECK_THAT(distortion(gaussian_codebook(2)), WithinAbs(0.3634, 5e-5));
  CHECK_THAT(distortion(gaussian_codebook(4)), WithinAbs(0.1175, 5e-5));
  CHECK_THAT(distortion(gaussian_codebook(8)), WithinAbs(0.03454, 2e-5));
  CHECK_THAT(distortion(gaussian_codebook(16)), WithinAbs(0.009497, 5e-6));
  const gaussian_codebook four(4);
  CHECK_THAT(four.centroids[3], WithinAbs(1.510, 5e-4));
  CHECK_THAT(four.centroids[2], WithinAbs(0.4528, 5e-5));
  CHECK_THAT(four.thresholds[2], WithinAbs(0.9816, 5e-5));
  for (const std::size_t levels : {2u, 3u, 4u, 8u, 16u}) {
    const gaussian_codebook book(levels);
    for (std::size_t i = 0; i < levels; ++i) {
      CHECK_THAT(book.centroids[i], WithinAbs(-book.centroids[levels - 1 - i], 1e-10));
      CHECK(book.nearest(book.centroids[i]) == book.centroids[i]);
    }
    CHECK(book.nearest(-100.0) == book.centroids[0]);
    CHECK(book.nearest(100.0) == book.centroids[levels - 1]);
  }
}

TEST_CASE("turbo codes have the distortion of their codebook", "[study][gaussian]") {
  pqattn_test::random_data random(14);
  CAPTURE(random.seed());
  const std::size_t dim = 64;
  const std::size_t count = 400;
  // One heavy channel: the rotation spreads it, so the error does not depend on the direction of the rows.
  std::vector<float> rows = random.normals(count * dim);
  for (std::size_t r = 0; r < count; ++r) {
    rows[r * dim + 3] += 40.0f;
  }
  const double table[] = {0.3634, 0.1175, 0.03454, 0.009497};
  for (std::size_t bits = 1; bits <= 4; ++bits) {
    CAPTURE(bits);
    std::vector<float> coded = rows;
    std::size_t spent = 0;
    REQUIRE_OK(code_turbo(coded.data(), count, dim, bits, 9, spent));
    CHECK(spent == count * (dim * bits + 16));
    double error = 0.0;
    double energy = 0.0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const double difference = static_cast<double>(rows[i]) - static_cast<double>(coded[i]);
      error += difference * difference;
      energy += static_cast<double>(rows[i]) * static_cast<double>(rows[i]);
    }
    // The rows share their main direction, so 64 coordinates of one rotated vector stand for the whole distribution.
    CHECK_THAT(error / energy, WithinRel(table[bits - 1], 0.35));
  }
}

TEST_CASE("turbo codes scale with the row", "[study][gaussian]") {
  pqattn_test::random_data random(15);
  CAPTURE(random.seed());
  std::vector<float> row = random.normals(12);
  std::vector<float> doubled = row;
  for (float& x : doubled) {
    x *= 4.0f;
  }
  std::size_t spent = 0;
  REQUIRE_OK(code_turbo(row.data(), 1, 12, 3, 1, spent));
  REQUIRE_OK(code_turbo(doubled.data(), 1, 12, 3, 1, spent));
  for (std::size_t i = 0; i < 12; ++i) {
    CHECK_THAT(static_cast<double>(doubled[i]), WithinRel(4.0 * static_cast<double>(row[i]), 1e-6));
  }
  CHECK(norm(row.data(), 12) > 0.0);
}

TEST_CASE("turbo codes of special rows", "[study][gaussian]") {
  std::vector<float> rows = {0.0f, 0.0f, 0.0f, 1e30f, -1e30f, 0.0f};
  std::size_t spent = 0;
  REQUIRE_OK(code_turbo(rows.data(), 2, 3, 4, 1, spent));
  CHECK(rows[0] == 0.0f);
  CHECK(std::isfinite(rows[3]));
  CHECK(code_turbo(rows.data(), 2, 3, 0, 1, spent).code == pqattn::status_code::invalid_argument);
  CHECK(code_turbo(rows.data(), 2, 3, 5, 1, spent).code == pqattn::status_code::invalid_argument);
  pqattn::memory_resource refusing;
  refusing.allocate = [](void*, std::size_t) -> void* { return nullptr; };
  CHECK(code_turbo(rows.data(), 2, 3, 4, 1, spent, refusing).code == pqattn::status_code::out_of_memory);
}
