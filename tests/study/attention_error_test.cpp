// SPDX-License-Identifier: MIT
#include "pqattn/study/attention_error.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <cmath>
#include <vector>

#include "support/message.hpp"
#include "support/random_data.hpp"
#include "support/reference.hpp"
#include "support/strided_matrix.hpp"

using Catch::Matchers::WithinRel;
using pqattn::attention_error;
using pqattn::attention_window;
using pqattn::view_rows;
using pqattn_test::doubles;

namespace {

struct head_data {
  std::size_t tokens;
  std::size_t d_k;
  std::size_t d_v;
  std::vector<float> keys, values, coded_keys, coded_values, queries;

  head_data(pqattn_test::random_data& random, std::size_t token_count, std::size_t key_dim, std::size_t value_dim)
      : tokens(token_count),
        d_k(key_dim),
        d_v(value_dim),
        keys(random.normals(tokens * d_k)),
        values(random.normals(tokens * d_v)),
        coded_keys(keys),
        coded_values(values),
        queries(random.normals(tokens * d_k, 1.5f)) {
    for (float& x : coded_keys) {
      x += 0.3f * random.normal();
    }
    for (float& x : coded_values) {
      x += 0.3f * random.normal();
    }
  }

  [[nodiscard]] pqattn::reconstructed_head head() const {
    return {view_rows(keys.data(), tokens, d_k), view_rows(values.data(), tokens, d_v),
            view_rows(coded_keys.data(), tokens, d_k), view_rows(coded_values.data(), tokens, d_v)};
  }
  [[nodiscard]] pqattn::rows_view query_rows() const { return view_rows(queries.data(), tokens, d_k); }
};

struct expected {
  double error = 0.0, energy = 0.0, row_nmse = 0.0, kl = 0.0, squared_logits = 0.0, sink_mass = 0.0, coded_mass = 0.0;
  std::uint64_t rows = 0, agreeing = 0, coded_scores = 0;
};

/// The definitions, one query and one token at a time.
expected reference(const head_data& data, const attention_window& window, double scale) {
  expected sum;
  for (std::size_t t = window.first_query; t < data.tokens; ++t) {
    doubles scores(t + 1), approximate(t + 1);
    std::vector<bool> exact(t + 1);
    for (std::size_t i = 0; i <= t; ++i) {
      exact[i] = i < window.sinks || i + window.recent > t;
      for (std::size_t c = 0; c < data.d_k; ++c) {
        const double q = scale * static_cast<double>(data.queries[t * data.d_k + c]);
        scores[i] += q * static_cast<double>(data.keys[i * data.d_k + c]);
        approximate[i] += q * static_cast<double>((exact[i] ? data.keys : data.coded_keys)[i * data.d_k + c]);
      }
      sum.coded_scores += exact[i] ? 0 : 1;
      sum.squared_logits += (scores[i] - approximate[i]) * (scores[i] - approximate[i]);
    }
    double total = 0.0, approximate_total = 0.0;
    std::size_t best = 0, approximate_best = 0;
    for (std::size_t i = 0; i <= t; ++i) {
      best = scores[i] > scores[best] ? i : best;
      approximate_best = approximate[i] > approximate[approximate_best] ? i : approximate_best;
      total += std::exp(scores[i]);
      approximate_total += std::exp(approximate[i]);
    }
    doubles out(data.d_v), approximate_out(data.d_v);
    for (std::size_t i = 0; i <= t; ++i) {
      const double p = std::exp(scores[i]) / total;
      const double q = std::exp(approximate[i]) / approximate_total;
      sum.kl += p * std::log(p / q);
      sum.sink_mass += i < window.sinks ? p : 0.0;
      sum.coded_mass += exact[i] ? 0.0 : p;
      for (std::size_t c = 0; c < data.d_v; ++c) {
        out[c] += p * static_cast<double>(data.values[i * data.d_v + c]);
        approximate_out[c] += q * static_cast<double>((exact[i] ? data.values : data.coded_values)[i * data.d_v + c]);
      }
    }
    double error = 0.0, energy = 0.0;
    for (std::size_t c = 0; c < data.d_v; ++c) {
      error += (out[c] - approximate_out[c]) * (out[c] - approximate_out[c]);
      energy += out[c] * out[c];
    }
    sum.error += error;
    sum.energy += energy;
    sum.row_nmse += error / energy;
    sum.agreeing += best == approximate_best ? 1 : 0;
    sum.rows += 1;
  }
  return sum;
}

void check_against_reference(const head_data& data, const attention_window& window) {
  CAPTURE(data.tokens, data.d_k, data.d_v, window.sinks, window.recent, window.first_query);
  const double scale = 0.4;
  attention_error got;
  REQUIRE_OK(add_attention_error(data.head(), data.query_rows(), window, scale, got));
  const expected want = reference(data, window, scale);
  // Two orders of summation in double; KL loses the digits of the logarithms' magnitude, about 10.
  CHECK_THAT(got.output.error + 1.0, WithinRel(want.error + 1.0, 1e-12));
  CHECK_THAT(got.output.energy, WithinRel(want.energy, 1e-12));
  CHECK_THAT(got.row_nmse_sum + 1.0, WithinRel(want.row_nmse + 1.0, 1e-11));
  CHECK_THAT(got.output_nmse() + 1.0, WithinRel(want.row_nmse / static_cast<double>(want.rows) + 1.0, 1e-11));
  CHECK_THAT(got.output_nmse_pooled() + 1.0, WithinRel(want.error / want.energy + 1.0, 1e-11));
  CHECK_THAT(got.kl_sum + 1.0, WithinRel(want.kl + 1.0, 1e-11));
  CHECK_THAT(got.squared_logits + 1.0, WithinRel(want.squared_logits + 1.0, 1e-12));
  CHECK_THAT(got.sink_mass_sum + 1.0, WithinRel(want.sink_mass + 1.0, 1e-12));
  CHECK_THAT(got.coded_mass_sum + 1.0, WithinRel(want.coded_mass + 1.0, 1e-12));
  CHECK(got.rows == want.rows);
  CHECK(got.agreeing == want.agreeing);
  CHECK(got.coded_scores == want.coded_scores);
}

}  // namespace

TEST_CASE("attention error equals the definition", "[study][attention_error]") {
  pqattn_test::random_data random(2);
  CAPTURE(random.seed());
  const head_data data(random, 150, 7, 5);
  for (const std::size_t sinks : {0u, 1u, 8u, 70u, 149u, 150u, 1000u}) {
    for (const std::size_t recent : {0u, 1u, 32u, 65u, 149u, 1000u}) {
      for (const std::size_t first : {0u, 1u, 63u, 100u, 149u}) {
        check_against_reference(data, {sinks, recent, first});
      }
    }
  }
  for (const std::size_t tokens : {1u, 2u, 63u, 64u, 65u, 129u}) {
    check_against_reference(head_data(random, tokens, 3, 16), {2, 3, 0});
    check_against_reference(head_data(random, tokens, 1, 1), {0, 0, tokens / 2});
  }
}

TEST_CASE("an unchanged head has no error", "[study][attention_error]") {
  pqattn_test::random_data random(3);
  CAPTURE(random.seed());
  head_data data(random, 100, 8, 8);
  data.coded_keys = data.keys;
  data.coded_values = data.values;
  attention_error got;
  REQUIRE_OK(add_attention_error(data.head(), data.query_rows(), {8, 32, 20}, 0.35, got));
  CHECK(got.output_nmse() < 1e-28);
  CHECK(got.kl() < 1e-13);
  CHECK(got.top_1_agreement() == 1.0);
  CHECK(got.logit_rmse() == 0.0);
  CHECK(got.rows == 80);
}

TEST_CASE("rows that are never coded are not read as codes", "[study][attention_error]") {
  pqattn_test::random_data random(4);
  CAPTURE(random.seed());
  head_data data(random, 90, 4, 4);
  const attention_window window{5, 10, 60};
  attention_error before;
  REQUIRE_OK(add_attention_error(data.head(), data.query_rows(), window, 0.5, before));
  for (std::size_t i = 0; i < data.tokens; ++i) {
    if (i < window.sinks || i + window.recent >= data.tokens) {
      for (std::size_t c = 0; c < 4; ++c) {
        data.coded_keys[i * 4 + c] = 1e6f;
        data.coded_values[i * 4 + c] = -1e6f;
      }
    }
  }
  attention_error after;
  REQUIRE_OK(add_attention_error(data.head(), data.query_rows(), window, 0.5, after));
  CHECK_THAT(after.output_nmse(), WithinRel(before.output_nmse(), 1e-9));
  CHECK_THAT(after.kl(), WithinRel(before.kl(), 1e-9));
}

TEST_CASE("huge scores do not overflow", "[study][attention_error]") {
  pqattn_test::random_data random(5);
  CAPTURE(random.seed());
  head_data data(random, 70, 4, 4);
  for (float& x : data.queries) {
    x *= 1e5f;
  }
  attention_error got;
  REQUIRE_OK(add_attention_error(data.head(), data.query_rows(), {2, 4, 10}, 1.0, got));
  CHECK(std::isfinite(got.kl()));
  CHECK(std::isfinite(got.output_nmse()));
  CHECK(got.kl() > 0.0);
}

TEST_CASE("attention error reads any view", "[study][attention_error]") {
  pqattn_test::random_data random(6);
  CAPTURE(random.seed());
  const head_data data(random, 80, 6, 6);
  const auto strided = [&](const std::vector<float>& rows, pqattn_test::matrix_layout layout) {
    return pqattn_test::strided_matrix(rows, data.tokens, 6, pqattn::dtype::f32, layout);
  };
  const auto keys = strided(data.keys, pqattn_test::awkward_layout);
  const auto values = strided(data.values, pqattn_test::reversed_layout);
  const auto coded_keys = strided(data.coded_keys, pqattn_test::padded_layout);
  const auto coded_values = strided(data.coded_values, pqattn_test::awkward_layout);
  const auto queries = strided(data.queries, pqattn_test::reversed_layout);
  attention_error dense;
  attention_error got;
  REQUIRE_OK(add_attention_error(data.head(), data.query_rows(), {3, 4, 9}, 0.4, dense));
  REQUIRE_OK(add_attention_error({keys.view(), values.view(), coded_keys.view(), coded_values.view()}, queries.view(),
                                 {3, 4, 9}, 0.4, got));
  CHECK(got.output.error == dense.output.error);
  CHECK(got.kl_sum == dense.kl_sum);
}

TEST_CASE("attention error of parts adds up", "[study][attention_error]") {
  pqattn_test::random_data random(7);
  CAPTURE(random.seed());
  const head_data one(random, 60, 4, 4);
  const head_data two(random, 61, 4, 4);
  attention_error both;
  attention_error first;
  attention_error second;
  const attention_window window{1, 2, 10};
  REQUIRE_OK(add_attention_error(one.head(), one.query_rows(), window, 0.5, both));
  REQUIRE_OK(add_attention_error(two.head(), two.query_rows(), window, 0.5, both));
  REQUIRE_OK(add_attention_error(one.head(), one.query_rows(), window, 0.5, first));
  REQUIRE_OK(add_attention_error(two.head(), two.query_rows(), window, 0.5, second));
  first.add(second);
  CHECK(both.rows == first.rows);
  CHECK_THAT(both.output_nmse(), WithinRel(first.output_nmse(), 1e-13));
  CHECK_THAT(both.output_nmse_pooled(), WithinRel(first.output_nmse_pooled(), 1e-13));
  CHECK_THAT(both.kl(), WithinRel(first.kl(), 1e-13));
  CHECK_THAT(both.logit_rmse(), WithinRel(first.logit_rmse(), 1e-13));
  CHECK_THAT(both.coded_mass(), WithinRel(first.coded_mass(), 1e-13));
  CHECK(both.top_1_agreement() == first.top_1_agreement());
}

TEST_CASE("attention error refuses what does not fit", "[study][attention_error]") {
  pqattn_test::random_data random(8);
  const head_data data(random, 20, 4, 3);
  attention_error sum;
  pqattn::reconstructed_head head = data.head();
  head.values.rows = 19;
  CHECK(add_attention_error(head, data.query_rows(), {}, 1.0, sum).code == pqattn::status_code::shape_mismatch);
  head = data.head();
  head.reconstructed_keys.cols = 3;
  CHECK(add_attention_error(head, data.query_rows(), {}, 1.0, sum).code == pqattn::status_code::shape_mismatch);
  pqattn::rows_view queries = data.query_rows();
  queries.cols = 3;
  CHECK(add_attention_error(data.head(), queries, {}, 1.0, sum).code == pqattn::status_code::shape_mismatch);
  queries = data.query_rows();
  queries.data = nullptr;
  CHECK(add_attention_error(data.head(), queries, {}, 1.0, sum).code == pqattn::status_code::invalid_argument);
  pqattn::memory_resource refusing;
  refusing.allocate = [](void*, std::size_t) -> void* { return nullptr; };
  CHECK(add_attention_error(data.head(), data.query_rows(), {}, 1.0, sum, refusing).code ==
        pqattn::status_code::out_of_memory);
  CHECK(sum.rows == 0);
}
