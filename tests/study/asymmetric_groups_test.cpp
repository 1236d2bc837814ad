// SPDX-License-Identifier: MIT
#include "pqattn/study/asymmetric_groups.hpp"

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/random_data.hpp"

using pqattn::code_kivi_keys;
using pqattn::code_kivi_values;

namespace {

std::vector<float> transposed(const std::vector<float>& rows, std::size_t count, std::size_t dim) {
  std::vector<float> turned(rows.size());
  for (std::size_t r = 0; r < count; ++r) {
    for (std::size_t c = 0; c < dim; ++c) {
      turned[c * count + r] = rows[r * dim + c];
    }
  }
  return turned;
}

}  // namespace

TEST_CASE("a KIVI group worked out by hand", "[study][baseline]") {
  // Minimum 1, maximum 4, 2 bits: scale 1; ties go to even codes.
  std::vector<float> row = {1.0f, 4.0f, 2.5f, 3.5f, 2.4f};
  CHECK(code_kivi_values(row.data(), 1, 5, 2) == 5 * 2 + 32);
  CHECK(row == std::vector<float>{1.0f, 4.0f, 3.0f, 3.0f, 2.0f});
}

TEST_CASE("KIVI keys are values turned by a right angle", "[study][baseline]") {
  pqattn_test::random_data random(11);
  CAPTURE(random.seed());
  const std::size_t tokens = 70;
  const std::size_t dim = 5;
  for (const std::size_t bits : {2u, 4u}) {
    std::vector<float> keys = random.normals(tokens * dim, 2.0f, -3.0f);
    std::vector<float> values = transposed(keys, tokens, dim);
    const std::size_t key_bits = code_kivi_keys(keys.data(), tokens, dim, bits);
    const std::size_t value_bits = code_kivi_values(values.data(), dim, tokens, bits);
    CHECK(key_bits == value_bits);
    CHECK(key_bits == tokens * dim * bits + 3 * dim * 32);
    CHECK(transposed(keys, tokens, dim) == values);
  }
}

TEST_CASE("KIVI stays within half a step of every element", "[study][baseline]") {
  pqattn_test::random_data random(12);
  CAPTURE(random.seed());
  for (const std::size_t bits : {2u, 4u}) {
    const std::vector<float> rows = random.normals(9 * 64, 1.0f, 5.0f);
    std::vector<float> coded = rows;
    code_kivi_values(coded.data(), 9, 64, bits);
    for (std::size_t first = 0; first < rows.size(); first += 32) {
      const auto [low, high] = std::minmax_element(rows.begin() + static_cast<std::ptrdiff_t>(first),
                                                   rows.begin() + static_cast<std::ptrdiff_t>(first + 32));
      const float step = (*high - *low) / static_cast<float>((1u << bits) - 1);
      std::vector<float> levels;
      for (std::size_t i = first; i < first + 32; ++i) {
        CHECK(std::fabs(coded[i] - rows[i]) <= 0.5f * step + 0.01f);  // 0.01: scale and minimum of about 5 in binary16
        levels.push_back(coded[i]);
      }
      std::sort(levels.begin(), levels.end());
      CHECK(static_cast<std::size_t>(std::unique(levels.begin(), levels.end()) - levels.begin()) <= std::size_t{1}
                                                                                                        << bits);
    }
  }
}

TEST_CASE("constant and huge KIVI groups stay finite", "[study][baseline]") {
  for (const float value : {0.0f, 2.0f, 1e-40f, 65504.0f, 1e20f}) {
    std::vector<float> row(32, value);
    code_kivi_values(row.data(), 1, 32, 2);
    CHECK(row[31] == std::min(value < 1e-20f ? 0.0f : value, 65504.0f));
  }
}
