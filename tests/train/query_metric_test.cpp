// SPDX-License-Identifier: MIT
#include "pqattn/train/query_metric.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <cmath>
#include <vector>

#include "support/random_data.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using pqattn::query_metric_params;
using pqattn::rope_pairing;

namespace {

struct scene {
  scene(pqattn_test::random_data& random, std::size_t token_count, std::uint32_t width, std::uint32_t pairs,
        rope_pairing pairing)
      : tokens(token_count), dim(width), keys(random.normals(tokens * dim)), queries(random.normals(5 * dim)) {
    for (const std::size_t p : {tokens - 1, tokens / 2, std::size_t{3}, tokens - 2, tokens / 3}) {
      positions.push_back(static_cast<std::int64_t>(p));
    }
    if (pairs != 0) {
      std::vector<float> frequencies(pairs);
      pqattn::fill_rope_frequencies(frequencies.data(), 2 * pairs, 100.0);
      tables.resize(pqattn::rope_floats(pairs));
      REQUIRE(build_rope(frequencies.data(), pairs, pairing, tables.data(), rotation).ok());
    }
  }

  std::vector<double> sum(const query_metric_params& params) const {
    std::vector<double> total(dim * dim);
    std::vector<std::byte> workspace(pqattn::query_metric_workspace_bytes(tokens, dim));
    REQUIRE(add_query_metric(pqattn::view_rows(queries.data(), 5, dim), positions.data(),
                             pqattn::view_rows(keys.data(), tokens, dim), rotation, params, workspace.data(),
                             workspace.size(), total.data())
                .ok());
    return total;
  }

  std::size_t tokens;
  std::uint32_t dim;
  std::vector<float> keys;
  std::vector<float> queries;
  std::vector<std::int64_t> positions;
  std::vector<float> tables;
  pqattn::rope rotation;
};

/// The attention-weighted squared score change of one key error, from the definition: e^T M e.
double score_change(const scene& data, const query_metric_params& params, const std::vector<double>& e) {
  double result = 0.0;
  for (std::size_t r = 0; r < 5; ++r) {
    const auto seen = static_cast<std::size_t>(data.positions[r]) + 1;
    std::vector<double> p(seen);
    double total = 0.0;
    for (std::size_t j = 0; j < seen; ++j) {
      double score = 0.0;
      for (std::uint32_t c = 0; c < data.dim; ++c) {
        score += static_cast<double>(data.queries[r * data.dim + c]) * static_cast<double>(data.keys[j * data.dim + c]);
      }
      p[j] = std::exp(score / std::sqrt(data.dim));
      total += p[j];
    }
    for (std::size_t j = params.sinks; j + params.recent < seen; ++j) {
      // The error is made before RoPE: turn it to the key's position and see what the query makes of it.
      std::vector<double> turned = e;
      for (std::uint32_t i = 0; i < data.rotation.pairs; ++i) {
        const double angle = static_cast<double>(data.rotation.frequencies[i]) * static_cast<double>(j);
        const std::uint32_t x = data.rotation.first(i), y = data.rotation.second(i);
        turned[x] = e[x] * std::cos(angle) - e[y] * std::sin(angle);
        turned[y] = e[x] * std::sin(angle) + e[y] * std::cos(angle);
      }
      double change = 0.0;
      for (std::uint32_t c = 0; c < data.dim; ++c) {
        change += static_cast<double>(data.queries[r * data.dim + c]) * turned[c];
      }
      result += p[j] / total * change * change;
    }
  }
  return result;
}

double quadratic(const scene& data, const std::vector<double>& upper, const std::vector<double>& e) {
  double result = 0.0;
  for (std::uint32_t a = 0; a < data.dim; ++a) {
    for (std::uint32_t b = a; b < data.dim; ++b) {
      result += (a == b ? 1.0 : 2.0) * upper[a * data.dim + b] * e[a] * e[b];
    }
  }
  return result;
}

}  // namespace

TEST_CASE("the exact query metric measures score changes", "[train][query_metric]") {
  pqattn_test::random_data random(71);
  CAPTURE(random.seed());
  struct shape {
    std::uint32_t dim, pairs;
    rope_pairing pairing;
  };
  for (const shape s : {shape{8, 4, rope_pairing::half_split}, shape{8, 4, rope_pairing::interleaved},
                        shape{7, 2, rope_pairing::half_split}, shape{5, 0, rope_pairing::half_split}}) {
    CAPTURE(s.dim, s.pairs);
    const scene data(random, 60, s.dim, s.pairs, s.pairing);
    query_metric_params params;
    params.samples = 0;
    params.sinks = 3;
    params.recent = 6;
    const auto metric = data.sum(params);
    for (int trial = 0; trial < 5; ++trial) {
      const std::vector<float> direction = random.normals(s.dim);
      const std::vector<double> e(direction.begin(), direction.end());
      CHECK_THAT(quadratic(data, metric, e), WithinRel(score_change(data, params, e), 1e-4));
    }
  }
}

TEST_CASE("sampled keys estimate the metric without bias, and keep its trace", "[train][query_metric]") {
  pqattn_test::random_data random(72);
  CAPTURE(random.seed());
  const scene data(random, 90, 6, 3, rope_pairing::half_split);
  query_metric_params params;
  params.samples = 0;
  const auto exact = data.sum(params);
  std::vector<double> mean(36);
  params.samples = 4;
  const int trials = 2000;
  for (int trial = 0; trial < trials; ++trial) {
    params.seed = static_cast<std::uint64_t>(trial);
    const auto sampled = data.sum(params);
    for (std::size_t i = 0; i < 36; ++i) {
      mean[i] += sampled[i] / trials;
    }
  }
  double scale = 0.0;
  for (std::size_t i = 0; i < 6; ++i) {
    scale += exact[7 * i];
  }
  REQUIRE(scale > 0.0);
  for (std::size_t i = 0; i < 36; ++i) {
    CHECK_THAT(mean[i], WithinAbs(exact[i], 0.02 * scale));
  }
}

TEST_CASE("finished metrics are symmetric with a fixed trace; nothing seen gives the identity",
          "[train][query_metric]") {
  pqattn_test::random_data random(73);
  CAPTURE(random.seed());
  const scene data(random, 80, 6, 3, rope_pairing::interleaved);
  const auto sum = data.sum({});
  std::vector<float> metric(36, -1.0f);
  pqattn::finish_query_metric(sum.data(), 6, 0.05f, metric.data());
  double trace = 0.0;
  for (std::size_t a = 0; a < 6; ++a) {
    trace += static_cast<double>(metric[7 * a]);
    for (std::size_t b = 0; b < 6; ++b) {
      CHECK(metric[a * 6 + b] == metric[b * 6 + a]);
    }
  }
  CHECK_THAT(trace, WithinRel(6 * 1.05, 1e-5));

  query_metric_params all_exact;
  all_exact.recent = 1000;
  const auto nothing = data.sum(all_exact);
  pqattn::finish_query_metric(nothing.data(), 6, 0.0f, metric.data());
  for (std::size_t i = 0; i < 36; ++i) {
    CHECK(nothing[i] == 0.0);
    CHECK(metric[i] == (i % 7 == 0 ? 1.0f : 0.0f));
  }
}

TEST_CASE("the query metric refuses bad arguments", "[train][query_metric]") {
  pqattn_test::random_data random(74);
  const scene data(random, 20, 6, 3, rope_pairing::half_split);
  std::vector<std::byte> workspace(pqattn::query_metric_workspace_bytes(20, 6));
  std::vector<double> sum(36);
  const auto keys = pqattn::view_rows(data.keys.data(), 20, 6);
  const auto run = [&](std::size_t width, std::size_t bytes) {
    return add_query_metric(pqattn::view_rows(data.queries.data(), 5, width), data.positions.data(), keys,
                            data.rotation, {}, workspace.data(), bytes, sum.data())
        .code;
  };
  CHECK(run(5, workspace.size()) == pqattn::status_code::shape_mismatch);
  CHECK(run(6, 100) == pqattn::status_code::capacity);
}
