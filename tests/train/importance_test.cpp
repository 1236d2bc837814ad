// SPDX-License-Identifier: MIT
#include <pqattn/train/importance.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <cmath>
#include <vector>

#include "bank/scalar_bank.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"

namespace {

using namespace pqattn;
using pqattn_test::random_data;

TEST_CASE("importance is the attention mass a token receives", "[train]") {
  random_data random(41);
  CAPTURE(random.seed());
  pqattn_test::scalar_bank bank;
  constexpr std::size_t tokens = 90;
  constexpr std::size_t dim = 6;
  constexpr std::size_t rows = 5;
  const std::vector<float> keys = random.normals(tokens * dim);
  const std::vector<float> queries = random.normals(rows * dim, 2.0f);
  const std::int64_t positions[rows] = {89, 50, 0, -3, 500};
  std::vector<double> expected(tokens);
  for (std::size_t r = 0; r < rows; ++r) {
    const auto seen = static_cast<std::size_t>(std::min<std::int64_t>(positions[r] + 1, tokens));
    std::vector<double> mass(positions[r] < 0 ? 0 : seen);
    double sum = 0.0;
    for (std::size_t t = 0; t < mass.size(); ++t) {
      double score = 0.0;
      for (std::size_t c = 0; c < dim; ++c) {
        score += static_cast<double>(queries[r * dim + c]) * static_cast<double>(keys[t * dim + c]);
      }
      mass[t] = std::exp(score / std::sqrt(6.0));
      sum += mass[t];
    }
    for (std::size_t t = 0; t < mass.size(); ++t) {
      expected[t] += mass[t] / sum;
    }
  }
  std::vector<float> weights(tokens, 0.25f);  // masses are added to what is there
  std::vector<std::byte> workspace(importance_workspace_bytes(tokens, dim));
  REQUIRE_OK(attention_importance(bank, view_rows(queries.data(), rows, dim), positions,
                                  view_rows(keys.data(), tokens, dim), 0.0f, workspace.data(), workspace.size(),
                                  weights.data()));
  double total = 0.0;
  for (std::size_t t = 0; t < tokens; ++t) {
    CHECK_THAT(static_cast<double>(weights[t]) - 0.25, Catch::Matchers::WithinAbs(expected[t], 1e-5));
    total += static_cast<double>(weights[t]) - 0.25;
  }
  CHECK_THAT(total, Catch::Matchers::WithinAbs(4.0, 1e-4));  // one per row that sees a key
}

TEST_CASE("importance refuses what does not fit", "[train]") {
  pqattn_test::scalar_bank bank;
  const float data[8] = {};
  float weights[2] = {1.0f, 1.0f};
  const std::int64_t position = 1;
  std::byte workspace[16];
  CHECK(
      attention_importance(bank, view_rows(data, 1, 4), &position, view_rows(data, 2, 3), 0.0f, workspace, 16, weights)
          .code == status_code::shape_mismatch);
  CHECK(
      attention_importance(bank, view_rows(data, 1, 4), &position, view_rows(data, 2, 4), 0.0f, workspace, 16, weights)
          .code == status_code::capacity);
  CHECK(weights[0] == 1.0f);
}

TEST_CASE("tempering keeps order, flattens and floors", "[train]") {
  std::vector<float> weights = {0.0f, 1.0f, 3.0f, 12.0f};  // mean 4
  std::vector<float> same = weights;
  temper_weights(same.data(), 4, 1.0f, 0.0f);
  CHECK(same == std::vector<float>{0.0f, 0.25f, 0.75f, 3.0f});
  std::vector<float> rooted = weights;
  temper_weights(rooted.data(), 4, 0.5f, 0.1f);
  CHECK(rooted[0] == 0.1f);
  CHECK_THAT(rooted[1], Catch::Matchers::WithinAbs(0.5, 1e-6));
  CHECK_THAT(rooted[3], Catch::Matchers::WithinAbs(std::sqrt(3.0), 1e-6));
  std::vector<float> flat = weights;
  temper_weights(flat.data(), 4, 0.0f, 0.0f);
  CHECK(flat == std::vector<float>(4, 1.0f));
  std::vector<float> none(3, 0.0f);
  temper_weights(none.data(), 3, 0.5f, 0.05f);
  CHECK(none == std::vector<float>(3, 1.0f));
}

}  // namespace
