// SPDX-License-Identifier: MIT
#include "pqattn/train/value_rotation.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "support/message.hpp"
#include "support/random_data.hpp"

using Catch::Matchers::WithinAbs;

namespace {

struct trained {
  trained(const std::vector<float>& rows, std::uint32_t dim, std::uint32_t subvectors)
      : mean(dim), basis(std::size_t{dim} * dim), view{dim, mean.data(), basis.data()} {
    std::vector<std::byte> workspace(pqattn::value_rotation_workspace_bytes(dim));
    outcome = train_value_rotation(pqattn::view_rows(rows.data(), rows.size() / dim, dim), subvectors, workspace.data(),
                                   workspace.size(), mean.data(), basis.data());
  }
  trained(const trained&) = delete;
  trained& operator=(const trained&) = delete;
  pqattn::status outcome;
  std::vector<float> mean;
  std::vector<float> basis;
  pqattn::value_rotation view;
};

/// Rows with a mean and correlated channels of very different sizes.
std::vector<float> correlated(pqattn_test::random_data& random, std::size_t count, std::size_t dim) {
  const std::vector<float> mix = random.normals(dim * dim);
  std::vector<float> rows(count * dim);
  for (std::size_t r = 0; r < count; ++r) {
    for (std::size_t s = 0; s < dim; ++s) {
      const float source = random.normal() * std::exp2(-static_cast<float>(s));
      for (std::size_t c = 0; c < dim; ++c) {
        rows[r * dim + c] += source * mix[s * dim + c];
      }
    }
    for (std::size_t c = 0; c < dim; ++c) {
      rows[r * dim + c] += static_cast<float>(c) - 2.0f;
    }
  }
  return rows;
}

}  // namespace

TEST_CASE("rotated values are uncorrelated, balanced between sub-vectors, and come back", "[train][value_rotation]") {
  pqattn_test::random_data random(91);
  CAPTURE(random.seed());
  const std::uint32_t dim = 8;
  const std::size_t count = 400;
  const std::vector<float> rows = correlated(random, count, dim);
  const trained rotation(rows, dim, 4);
  REQUIRE(rotation.outcome.ok());

  std::vector<double> moment(dim * dim), mean(dim);
  std::vector<float> coded(dim), back(dim);
  for (std::size_t r = 0; r < count; ++r) {
    rotate_value(rotation.view, rows.data() + r * dim, coded.data());
    unrotate_value(rotation.view, coded.data(), 1.0f, back.data());
    for (std::uint32_t a = 0; a < dim; ++a) {
      REQUIRE_THAT(back[a], WithinAbs(static_cast<double>(rows[r * dim + a]), 1e-4));
      mean[a] += static_cast<double>(coded[a]) / count;
      for (std::uint32_t b = 0; b < dim; ++b) {
        moment[a * dim + b] += static_cast<double>(coded[a]) * static_cast<double>(coded[b]) / count;
      }
    }
  }
  for (std::uint32_t a = 0; a < dim; ++a) {
    CHECK_THAT(mean[a], WithinAbs(0.0, 1e-4));
    for (std::uint32_t b = 0; b < dim; ++b) {
      if (a != b) {
        CHECK_THAT(moment[a * dim + b] / std::sqrt(moment[a * dim + a] * moment[b * dim + b]), WithinAbs(0.0, 1e-2));
      }
    }
  }
  // Products of the variances in a sub-vector are alike, compared with pairs of consecutive components.
  std::vector<double> logs(dim), dealt, consecutive;
  for (std::uint32_t c = 0; c < dim; ++c) {
    logs[c] = std::log(moment[c * (dim + 1)]);
  }
  for (std::uint32_t run = 0; run < dim; run += 2) {
    CHECK(logs[run] > logs[run + 1]);
    dealt.push_back(logs[run] + logs[run + 1]);
  }
  std::sort(logs.begin(), logs.end());
  for (std::uint32_t run = 0; run < dim; run += 2) {
    consecutive.push_back(logs[run] + logs[run + 1]);
  }
  const auto spread = [](const std::vector<double>& sums) {
    const auto [low, high] = std::minmax_element(sums.begin(), sums.end());
    return *high - *low;
  };
  CHECK(spread(dealt) < 0.6 * spread(consecutive));
}

TEST_CASE("a rotation in bytes brings values back as the exact one does", "[train][value_rotation]") {
  pqattn_test::random_data random(44);
  CAPTURE(random.seed());
  for (const std::uint32_t dim : {1u, 5u, 24u, 128u}) {
    const std::vector<float> rows = random.normals(300 * dim, 3.0f);
    const trained made(rows, dim, std::min(4u, dim));
    REQUIRE(made.outcome.ok());
    std::vector<float> memory(pqattn::compact_rotation_bytes(dim) / sizeof(float) + 1);
    const pqattn::value_rotation compact = compact_rotation(made.view, memory.data());
    CHECK(compact.enabled());
    CHECK(compact != made.view);
    std::vector<float> coded(dim);
    std::vector<float> exact(dim);
    std::vector<float> back(dim);
    double error = 0.0;
    double plain_error = 0.0;
    double energy = 0.0;
    double moved = 0.0;
    for (std::size_t r = 0; r < 300; ++r) {
      const float* row = rows.data() + r * dim;
      rotate_value(compact, row, coded.data());
      rotate_value(made.view, row, exact.data());
      unrotate_value(compact, coded.data(), 1.0f, back.data());
      for (std::uint32_t c = 0; c < dim; ++c) {
        error += std::pow(static_cast<double>(row[c] - back[c]), 2);
        moved += std::pow(static_cast<double>(coded[c] - exact[c]), 2);
        energy += std::pow(static_cast<double>(row[c]), 2);
      }
      unrotate_value(compact, exact.data(), 1.0f, back.data());  // without the step towards the inverse
      for (std::uint32_t c = 0; c < dim; ++c) {
        plain_error += std::pow(static_cast<double>(row[c] - back[c]), 2);
      }
    }
    CAPTURE(dim, error / energy, plain_error / energy, moved / energy);
    CHECK(error < 1.0e-7 * energy);
    CHECK(moved < 1.0e-3 * energy);
    CHECK((dim < 5 || error < 0.1 * plain_error));
  }
}

TEST_CASE("folding the rotation into the projections leaves the model as it was", "[train][value_rotation]") {
  pqattn_test::random_data random(92);
  CAPTURE(random.seed());
  const std::uint32_t dim = 5;
  const std::size_t hidden = 7;
  const trained rotation(correlated(random, 100, dim), dim, 2);
  REQUIRE(rotation.outcome.ok());
  std::vector<float> w_v = random.normals(dim * hidden), b_v = random.normals(dim);
  std::vector<float> w_o = random.normals(hidden * (dim + 3)), b_o = random.normals(hidden);
  const std::vector<float> x = random.normals(hidden);
  const auto run = [&] {
    std::vector<double> value(dim), out(hidden);
    for (std::uint32_t c = 0; c < dim; ++c) {
      value[c] = static_cast<double>(b_v[c]);
      for (std::size_t h = 0; h < hidden; ++h) {
        value[c] += static_cast<double>(w_v[c * hidden + h]) * static_cast<double>(x[h]);
      }
    }
    for (std::size_t h = 0; h < hidden; ++h) {
      out[h] = static_cast<double>(b_o[h]);
      for (std::uint32_t c = 0; c < dim; ++c) {
        out[h] += static_cast<double>(w_o[h * (dim + 3) + 2 + c]) * value[c];
      }
    }
    return std::pair(value, out);
  };
  const auto before = run();
  std::vector<float> scratch(dim);
  REQUIRE_OK(fold_into_value_projection(rotation.view, w_v.data(), hidden, b_v.data(), scratch.data()));
  REQUIRE_OK(fold_into_output_projection(rotation.view, w_o.data() + 2, hidden, dim + 3, b_o.data(), scratch.data()));
  const auto after = run();
  std::vector<float> value(before.first.begin(), before.first.end()), coded(dim);
  rotate_value(rotation.view, value.data(), coded.data());
  for (std::uint32_t c = 0; c < dim; ++c) {
    CHECK_THAT(after.first[c], WithinAbs(static_cast<double>(coded[c]), 1e-4));
  }
  for (std::size_t h = 0; h < hidden; ++h) {
    CHECK_THAT(after.second[h], WithinAbs(before.second[h], 1e-3));
  }
}

TEST_CASE("what cannot be folded into projections is refused, and nothing changes", "[train][value_rotation]") {
  using namespace pqattn;
  pqattn_test::random_data random(93);
  CAPTURE(random.seed());
  const std::uint32_t dim = 5;
  const std::size_t hidden = 7;
  const trained rotation(correlated(random, 100, dim), dim, 2);
  REQUIRE(rotation.outcome.ok());
  std::vector<float> memory(compact_rotation_bytes(dim) / sizeof(float) + 1);
  value_rotation no_mean = rotation.view;
  no_mean.mean = nullptr;
  value_rotation wide = rotation.view;
  wide.dim = max_dim + 1;
  const std::vector<float> weights = random.normals(dim * hidden);
  std::vector<float> folded = weights;
  std::vector<float> bias(hidden, 1.0f), scratch(dim);
  const auto refused = [&](const value_rotation& bad, float* into, float* added, float* column) {
    CHECK(fold_into_value_projection(bad, into, hidden, added, column).code == status_code::invalid_argument);
    CHECK(fold_into_output_projection(bad, into, hidden, dim, added, column).code == status_code::invalid_argument);
  };
  refused(compact_rotation(rotation.view, memory.data()), folded.data(), bias.data(), scratch.data());
  refused({dim, nullptr, nullptr, nullptr, nullptr}, folded.data(), bias.data(), scratch.data());
  refused(no_mean, folded.data(), bias.data(), scratch.data());
  refused(wide, folded.data(), bias.data(), scratch.data());
  refused(rotation.view, nullptr, bias.data(), scratch.data());
  refused(rotation.view, folded.data(), bias.data(), nullptr);
  refused(rotation.view, folded.data(), nullptr, scratch.data());  // there is a mean
  CHECK(fold_into_value_projection({}, folded.data(), hidden, bias.data(), nullptr).ok());
  CHECK(fold_into_output_projection({}, folded.data(), hidden, dim, nullptr, nullptr).ok());
  CHECK(folded == weights);
  CHECK(bias == std::vector<float>(hidden, 1.0f));
  const std::vector<float> zero(dim);
  value_rotation centred = rotation.view;
  centred.mean = zero.data();
  CHECK(fold_into_value_projection(centred, folded.data(), hidden, nullptr, scratch.data()).ok());
  CHECK(folded != weights);
}

TEST_CASE("value rotation: degenerate rows and bad arguments", "[train][value_rotation]") {
  const std::vector<float> constant(30 * 4, 2.5f);
  const trained still(constant, 4, 2);
  REQUIRE(still.outcome.ok());
  std::vector<float> coded(4);
  rotate_value(still.view, constant.data(), coded.data());
  for (const float x : coded) {
    CHECK_THAT(x, WithinAbs(0.0, 1e-6));
  }
  CHECK(trained({1.0f}, 1, 1).outcome.ok());
  CHECK(trained(constant, 4, 5).outcome.code == pqattn::status_code::invalid_argument);
  CHECK(trained({}, 4, 2).outcome.code == pqattn::status_code::too_few_samples);
  std::vector<float> bad = constant;
  bad[6] = std::numeric_limits<float>::quiet_NaN();
  CHECK(trained(bad, 4, 2).outcome.code == pqattn::status_code::not_finite);
}
