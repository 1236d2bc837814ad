// SPDX-License-Identifier: MIT
#include "pqattn/train/smoothing.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <vector>

#include "support/random_data.hpp"

using pqattn::smoothing_params;

namespace {

struct smoothed {
  smoothed(const pqattn::rows_view& samples, const smoothing_params& params, const float* weights = nullptr)
      : rows(smoothed_rows(samples.rows, params) * samples.cols), row_weights(smoothed_rows(samples.rows, params)) {
    outcome = smooth_samples(samples, weights, params, rows.data(), row_weights.data());
  }
  pqattn::status outcome;
  std::vector<float> rows;
  std::vector<float> row_weights;
};

}  // namespace

TEST_CASE("real rows stay, made-up ones keep mean and covariance", "[train][smoothing]") {
  pqattn_test::random_data random(21);
  CAPTURE(random.seed());
  const std::size_t count = 60;
  std::vector<float> data = random.normals(count * 2, 1.0f, 5.0f);
  for (std::size_t i = 0; i < count; ++i) {
    data[2 * i + 1] += 2.0f * data[2 * i];
  }
  smoothing_params params;
  params.rows = 20000;
  for (const float spread : {0.0f, 0.5f, 1.0f}) {
    params.spread = spread;
    const smoothed made(pqattn::view_rows(data.data(), count, 2), params);
    REQUIRE(made.outcome.ok());
    CHECK(std::equal(data.begin(), data.end(), made.rows.begin()));
    CHECK(made.row_weights[count - 1] == 1.0f);
    CHECK(made.row_weights[count] == params.weight);
    const auto moments = [&](std::size_t first, std::size_t last) {
      std::vector<double> m(5);
      for (std::size_t i = first; i < last; ++i) {
        const double x = static_cast<double>(made.rows[2 * i]);
        const double y = static_cast<double>(made.rows[2 * i + 1]);
        const double share = 1.0 / static_cast<double>(last - first);
        m[0] += share * x;
        m[1] += share * y;
        m[2] += share * x * x;
        m[3] += share * x * y;
        m[4] += share * y * y;
      }
      return std::vector<double>{m[0], m[1], m[2] - m[0] * m[0], m[3] - m[0] * m[1], m[4] - m[1] * m[1]};
    };
    const auto real = moments(0, count);
    const auto other = moments(count, params.rows);
    CAPTURE(spread);
    for (std::size_t k = 0; k < 5; ++k) {
      CHECK(std::abs(real[k] - other[k]) < 0.08 * (k < 2 ? std::sqrt(real[2 + 2 * k]) : real[4]));
    }
  }
}

TEST_CASE("many rows are left as they are, bad arguments refused", "[train][smoothing]") {
  pqattn_test::random_data random(22);
  const std::vector<float> data = random.normals(30 * 3);
  const std::vector<float> weights(30, 0.25f);
  smoothing_params params;
  params.rows = 10;
  const auto view = pqattn::view_rows(data.data(), 30, 3);
  const smoothed same(view, params, weights.data());
  REQUIRE(same.outcome.ok());
  CHECK(same.rows == data);
  CHECK(same.row_weights == weights);
  params.rows = 40;
  const smoothed more(view, params, weights.data());
  CHECK(more.row_weights[35] == 0.25f * params.weight);
  CHECK(smoothed(view, params).rows == smoothed(view, params).rows);
  params.spread = 1.5f;
  CHECK(smoothed(view, params).outcome.code == pqattn::status_code::invalid_argument);
  params.spread = 0.5f;
  CHECK(smoothed(view.slice(0, 0), params).outcome.code == pqattn::status_code::too_few_samples);
}
