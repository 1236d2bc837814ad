// SPDX-License-Identifier: MIT
#include "pqattn/study/block_formats.hpp"

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "support/random_data.hpp"

using pqattn::code_q4_0;
using pqattn::code_q8_0;

namespace {

float through_half(double x) {
  return to_float(pqattn::to_half(static_cast<float>(x)));
}

}  // namespace

TEST_CASE("q8_0 of a block worked out by hand", "[study][baseline]") {
  std::vector<float> row(32, 0.0f);
  row[0] = -127.0f;  // scale 1
  row[1] = 2.5f;     // ties away from zero
  row[2] = -2.5f;
  row[3] = 2.4f;
  CHECK(code_q8_0(row.data(), 1, 32) == 32 * 8 + 16);
  CHECK(row[0] == -127.0f);
  CHECK(row[1] == 3.0f);
  CHECK(row[2] == -3.0f);
  CHECK(row[3] == 2.0f);
  CHECK(row[4] == 0.0f);
}

TEST_CASE("q4_0 of a block worked out by hand", "[study][baseline]") {
  std::vector<float> row(32, 0.0f);
  row[0] = 8.0f;   // the extreme is positive: scale -1, code 0
  row[1] = -8.0f;  // would be code 16, clipped to 15
  row[2] = 2.5f;   // code 8.5 - 2.5 = 6 -> 2
  row[3] = -2.5f;  // code 11 -> -3: halves are rounded towards the sign of the scale
  row[4] = 0.4f;
  CHECK(code_q4_0(row.data(), 1, 32) == 32 * 4 + 16);
  CHECK(row[0] == 8.0f);
  CHECK(row[1] == -7.0f);
  CHECK(row[2] == 2.0f);
  CHECK(row[3] == -3.0f);
  CHECK(row[4] == 0.0f);
}

TEST_CASE("block formats stay within half a step of every element", "[study][baseline]") {
  pqattn_test::random_data random(10);
  CAPTURE(random.seed());
  const std::size_t dim = 80;  // two whole blocks and half of one
  const std::vector<float> rows = random.normals(7 * dim, 3.0f, 1.0f);
  std::vector<float> eight = rows;
  std::vector<float> four = rows;
  CHECK(code_q8_0(eight.data(), 7, dim) == 7 * (80 * 8 + 3 * 16));
  CHECK(code_q4_0(four.data(), 7, dim) == 7 * (80 * 4 + 3 * 16));
  for (std::size_t r = 0; r < 7; ++r) {
    for (std::size_t first = 0; first < dim; first += 32) {
      const std::size_t last = std::min<std::size_t>(first + 32, dim);
      double largest = 0.0;
      for (std::size_t i = first; i < last; ++i) {
        largest = std::max(largest, std::fabs(static_cast<double>(rows[r * dim + i])));
      }
      for (std::size_t i = first; i < last; ++i) {
        const double x = static_cast<double>(rows[r * dim + i]);
        const double f16_error = largest * 0x1.0p-11;  // the scale is stored in binary16
        CHECK(std::fabs(static_cast<double>(eight[r * dim + i]) - x) <= 0.5001 * largest / 127.0 + f16_error);
        // The side opposite to the extreme only reaches code 15, that is 7 steps: up to a whole step is lost there.
        CHECK(std::fabs(static_cast<double>(four[r * dim + i]) - x) <= 1.0001 * largest / 8.0 + f16_error);
        // What is read back is a multiple of the stored scale.
        const double steps =
            static_cast<double>(eight[r * dim + i]) / static_cast<double>(through_half(largest / 127.0));
        CHECK(std::fabs(steps - std::round(steps)) < 1e-4);
      }
    }
  }
}

TEST_CASE("block formats of extreme blocks stay finite", "[study][baseline]") {
  const float smallest = std::numeric_limits<float>::denorm_min();
  const float largest = std::numeric_limits<float>::max();
  for (const float value : {0.0f, smallest, -smallest, 1e-38f, 1e-30f, 1e-7f, 1e7f, -1e30f, largest}) {
    CAPTURE(value);
    std::vector<float> eight(33, value);
    std::vector<float> four(33, value);
    code_q8_0(eight.data(), 1, 33);
    code_q4_0(four.data(), 1, 33);
    for (std::size_t i = 0; i < 33; ++i) {
      REQUIRE(std::isfinite(eight[i]));
      REQUIRE(std::isfinite(four[i]));
    }
    if (std::fabs(value) < 1e-8f) {
      CHECK(eight[0] == 0.0f);
      CHECK(four[32] == 0.0f);
    }
  }
}
