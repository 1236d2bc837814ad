// SPDX-License-Identifier: MIT
#include <pqattn/cache/layer_cache.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <utility>
#include <vector>

#include "pqattn/bank/host/host_bank.hpp"
#include "pqattn/cache/apply_policy.hpp"
#include "support/executors.hpp"
#include "support/memory_resources.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"
#include "support/reference.hpp"
#include "support/strided_matrix.hpp"

namespace {

using namespace pqattn;
using pqattn_test::counting_resource;
using pqattn_test::random_data;
using bank_type = host_bank<>;
using layer_type = layer_cache<bank_type>;

constexpr std::size_t kv_heads = 3;
constexpr std::uint32_t key_dim = 24;
constexpr std::uint32_t value_dim = 16;

cache_config layer_config() {
  cache_config config;
  config.keys.shape = {key_dim, 6, 16, 1};
  config.values.shape = {value_dim, 4, 16, 1};
  config.train_tokens = 100;
  config.kmeans.iterations = 2;
  return config;
}

/// (tokens, heads, d), as engines lay a step out.
head_rows token_major(const std::vector<float>& data, std::size_t first, std::size_t count, std::size_t heads,
                      std::size_t dim) {
  return {view_rows(data.data() + first * heads * dim, count, dim, std::ptrdiff_t(heads * dim)), heads,
          std::ptrdiff_t(dim)};
}

struct layer_data {
  std::size_t tokens;
  std::vector<float> keys;
  std::vector<float> values;

  layer_data(random_data& random, std::size_t count)
      : tokens(count),
        keys(random.normals(count * kv_heads * key_dim)),
        values(random.normals(count * kv_heads * value_dim)) {}
  [[nodiscard]] head_rows key_rows(std::size_t first, std::size_t count) const {
    return token_major(keys, first, count, kv_heads, key_dim);
  }
  [[nodiscard]] head_rows value_rows(std::size_t first, std::size_t count) const {
    return token_major(values, first, count, kv_heads, value_dim);
  }
};

TEST_CASE("a layer equals its heads, for any group size and query layout", "[cache]") {
  random_data random(21);
  CAPTURE(random.seed());
  bank_type bank;
  const layer_data data(random, 300);
  layer_type layer;
  REQUIRE_OK(layer_type::make(bank, layer_config(), kv_heads, {}, {}, layer));
  REQUIRE_OK(layer.append(data.key_rows(0, 250), data.value_rows(0, 250)));
  REQUIRE_OK(layer.append(data.key_rows(250, 50), data.value_rows(250, 50)));
  CHECK(layer.size() == 300);
  for (const std::size_t group : {1U, 2U, 5U}) {
    for (const std::size_t steps : {1U, 4U}) {
      CAPTURE(group, steps);
      const std::size_t heads = group * kv_heads;
      const std::vector<float> queries = random.normals(steps * heads * key_dim);
      std::vector<float> out(steps * heads * value_dim);
      std::vector<float> lse(heads * steps);
      layer_attention_params params;
      params.first_position = static_cast<std::int64_t>(300 - steps);
      const head_rows query_rows = token_major(queries, 0, steps, heads, key_dim);
      REQUIRE_OK(layer.attend(
          query_rows, params,
          {ref_rows(out.data(), steps, value_dim, std::ptrdiff_t(heads * value_dim)), heads, std::ptrdiff_t(value_dim)},
          lse.data()));
      for (std::size_t head = 0; head < heads; ++head) {
        for (std::size_t step = 0; step < steps; ++step) {
          attend_scratch<bank_type> scratch(bank, {});
          attention_params one;
          const std::int64_t position = params.first_position + static_cast<std::int64_t>(step);
          one.modifiers.causal = true;
          one.modifiers.query_positions = &position;
          std::vector<float> expected(value_dim);
          float expected_lse = 0.0f;
          REQUIRE_OK(layer.head(head / group)
                         .attend(query_rows.head(head).slice(step, 1), one, scratch,
                                 ref_rows(expected.data(), 1, value_dim), &expected_lse));
          CHECK_THAT(lse[head * steps + step], Catch::Matchers::WithinAbs(expected_lse, 1e-5));
          for (std::size_t c = 0; c < value_dim; ++c) {
            CHECK_THAT(out[(step * heads + head) * value_dim + c], Catch::Matchers::WithinAbs(expected[c], 1e-5));
          }
        }
      }
    }
  }
}

TEST_CASE("masks, windows, ALiBi and sinks of query heads hold for all tokens of a cache, whatever form they have",
          "[cache]") {
  random_data random(29);
  CAPTURE(random.seed());
  bank_type bank(memory_resource{}, exact_arithmetic);
  const layer_data data(random, 400);
  cache_config config = layer_config();
  config.outlier_share = 0.1f;  // rows in segments of their own
  config.window_tokens = 90;    // several codebooks
  config.exact_type = dtype::f32;
  layer_type layer;
  REQUIRE_OK(layer_type::make(bank, config, kv_heads, {}, {}, layer));
  REQUIRE_OK(layer.append(data.key_rows(0, 400), data.value_rows(0, 400)));
  REQUIRE(layer.head(0).epoch_count() > 1);
  REQUIRE(layer.head(0).outlier_tokens() > 0);
  const std::size_t group = 2;
  const std::size_t heads = group * kv_heads;
  const std::size_t steps = 3;
  const std::vector<float> queries = random.normals(steps * heads * key_dim);
  for (const std::size_t columns : {1U, 5U, 37U, 250U, 400U}) {
    for (const std::size_t mask_heads : {std::size_t{1}, heads}) {
      CAPTURE(columns, mask_heads);
      pqattn_test::strided_matrix mask(random.normals(mask_heads * steps * columns), mask_heads * steps, columns,
                                       dtype::f16, pqattn_test::awkward_layout);
      for (std::size_t i = 0; i < mask_heads * steps * columns; ++i) {
        if (random.chance(0.3)) {
          mask.set(i / columns, i % columns, -std::numeric_limits<float>::infinity());
        }
      }
      head_rows bias{mask.view(), mask_heads, 0};
      bias.rows.rows = steps;
      bias.head_stride = static_cast<std::ptrdiff_t>(steps) * bias.rows.row_stride;
      layer_attention_params params;
      params.first_position = 397;
      params.softcap = 5.0f;
      params.bias = &bias;
      params.window = columns == 37 ? 100 : 0;
      const std::vector<float> slopes = random.normals(heads, 0.01f);  // of each query head
      params.alibi_slopes = columns < 100 ? slopes.data() : nullptr;
      const std::vector<float> sinks = random.normals(heads, 3.0f);
      params.sink_logits = mask_heads == 1 ? sinks.data() : nullptr;
      std::vector<float> out(heads * steps * value_dim);
      const auto attend = [&] {
        return layer.attend({view_rows(queries.data(), steps, key_dim), heads, std::ptrdiff_t(steps * key_dim)}, params,
                            {ref_rows(out.data(), steps, value_dim), heads, std::ptrdiff_t(steps * value_dim)});
      };
      REQUIRE_OK(attend());
      for (std::size_t head = 0; head < heads; ++head) {
        std::vector<float> keys(400 * key_dim);
        std::vector<float> values(400 * value_dim);
        REQUIRE_OK(layer.head(head / group)
                       .read(0, ref_rows(keys.data(), 400, key_dim), ref_rows(values.data(), 400, value_dim)));
        pqattn_test::attention_case expected;
        expected.rows = steps;
        expected.tokens = 400;
        expected.key_dim = key_dim;
        expected.value_dim = value_dim;
        expected.scale = 1.0 / std::sqrt(double{key_dim});
        expected.softcap = 5.0;
        expected.causal = true;
        expected.window = params.window;
        if (params.alibi_slopes != nullptr) {
          expected.alibi_slopes.assign(steps, double{slopes[head]});
        }
        if (params.sink_logits != nullptr) {
          expected.sink_logits.assign(steps, double{sinks[head]});
        }
        expected.queries.assign(queries.begin() + std::ptrdiff_t(head * steps * key_dim),
                                queries.begin() + std::ptrdiff_t((head + 1) * steps * key_dim));
        expected.keys.assign(keys.begin(), keys.end());
        expected.values.assign(values.begin(), values.end());
        for (std::int64_t token = 0; token < 400; ++token) {
          expected.key_positions.push_back(token);
        }
        for (std::size_t step = 0; step < steps; ++step) {
          expected.query_positions.push_back(397 + static_cast<std::int64_t>(step));
          expected.bias.insert(expected.bias.end(), 400 - columns, 0.0);
          for (std::size_t column = 0; column < columns; ++column) {
            expected.bias.push_back(double{mask.get((mask_heads == 1 ? 0 : head * steps) + step, column)});
          }
        }
        const std::vector<float> got(out.begin() + std::ptrdiff_t(head * steps * value_dim),
                                     out.begin() + std::ptrdiff_t((head + 1) * steps * value_dim));
        CHECK(pqattn_test::max_error(got, pqattn_test::reference_attention(expected).out) < 1e-3);
      }
      const std::vector<float> before = out;
      bias.rows.cols = 401;
      CHECK(attend().code == status_code::shape_mismatch);
      bias.rows.cols = columns;
      bias.rows.rows = steps - 1;
      CHECK(attend().code == status_code::shape_mismatch);
      bias.rows.rows = steps;
      bias.heads = heads + 1;
      CHECK(attend().code == status_code::shape_mismatch);
      CHECK(out == before);
      // Views of absurd widths that step nowhere are told by their width, before anything is copied.
      head_rows wide = token_major(queries, 0, 1, heads, key_dim);
      wide.rows = {queries.data(), dtype::f32, 1, std::size_t{1} << 62, 0, 0};
      wide.head_stride = 0;
      head_rows_ref wide_out{{out.data(), dtype::f32, 1, std::size_t{1} << 62, 0, 0}, heads, 0};
      const head_rows_ref good_out{ref_rows(out.data(), 1, value_dim, std::ptrdiff_t(heads * value_dim)), heads,
                                   std::ptrdiff_t(value_dim)};
      CHECK(layer.attend(wide, {}, good_out, nullptr).code == status_code::shape_mismatch);
      CHECK(layer.attend(token_major(queries, 0, 1, heads, key_dim), {}, wide_out, nullptr).code ==
            status_code::shape_mismatch);
      layer_attention_params far;
      far.first_position = std::numeric_limits<std::int64_t>::max();
      CHECK(layer.attend(token_major(queries, 0, 1, heads, key_dim), far, good_out, nullptr).code ==
            status_code::invalid_argument);
      CHECK(out == before);
    }
  }
}

/// Keys exact and values coded; both coded; nothing coded.
std::vector<head_policy> mixed_policies() {
  std::vector<head_policy> policies(kv_heads);
  policies[0].keys.exact = true;
  policies[0].values = {false, 4, 5, 2, codebook_storage::f16, 0.05f};
  policies[0].sinks = 3;
  policies[1].keys = {false, 12, 4, 1, codebook_storage::i8, 0.0f};
  policies[1].values = {false, 5, 3, 1, codebook_storage::i8, 0.0f};
  policies[1].recent = 70;
  policies[2].keys.exact = policies[2].values.exact = true;
  policies[2].recent = 0;
  return policies;
}

TEST_CASE("heads of a layer may be kept each in its own way", "[cache]") {
  random_data random(27);
  CAPTURE(random.seed());
  bank_type bank;
  const layer_data data(random, 300);
  const std::vector<head_policy> policies = mixed_policies();
  std::vector<cache_config> configs(kv_heads, layer_config());
  for (std::size_t head = 0; head < kv_heads; ++head) {
    REQUIRE_OK(apply_policy(policies[head], configs[head]));
  }
  CHECK(configs[0].outlier_share == 0.05f);
  CHECK(configs[0].values.shape == geometry{value_dim, 4, 32, 2});
  CHECK(configs[2].recent == 0);
  layer_type layer;
  REQUIRE_OK(layer_type::make(bank, configs.data(), kv_heads, {}, {}, layer));
  REQUIRE_OK(layer.append(data.key_rows(0, 250), data.value_rows(0, 250)));
  REQUIRE_OK(layer.append(data.key_rows(250, 50), data.value_rows(250, 50)));
  CHECK(layer.head(0).trained());
  CHECK(layer.head(1).trained());
  CHECK(layer.head(1).memory().total_bytes() < layer.head(2).memory().total_bytes());

  const std::vector<float> queries = random.normals(kv_heads * key_dim);
  std::vector<float> out(kv_heads * value_dim);
  std::vector<float> lse(kv_heads);
  layer_attention_params params;
  params.first_position = 299;
  REQUIRE_OK(layer.attend(token_major(queries, 0, 1, kv_heads, key_dim), params,
                          {ref_rows(out.data(), 1, value_dim), kv_heads, std::ptrdiff_t(value_dim)}, lse.data()));
  for (std::size_t head = 0; head < kv_heads; ++head) {
    CAPTURE(head);
    cache_config config = configs[head];
    config.kmeans.seed = mix_seed(config.kmeans.seed, head);
    head_cache<bank_type> alone;
    REQUIRE_OK(head_cache<bank_type>::make(bank, config, {}, alone));
    for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{0, 250}, {250, 50}}) {
      REQUIRE_OK(alone.append(data.key_rows(first, count).head(head), data.value_rows(first, count).head(head)));
    }
    attend_scratch<bank_type> scratch(bank, {});
    std::vector<float> expected(value_dim);
    float expected_lse = 0.0f;
    REQUIRE_OK(alone.attend(view_rows(queries.data() + head * key_dim, 1, key_dim), {}, scratch,
                            ref_rows(expected.data(), 1, value_dim), &expected_lse));
    CHECK(std::memcmp(expected.data(), out.data() + head * value_dim, value_dim * sizeof(float)) == 0);
    CHECK(expected_lse == lse[head]);
  }
}

TEST_CASE("a policy or a layer of configurations that does not fit is refused", "[cache]") {
  bank_type bank;
  layer_type layer;
  std::vector<cache_config> configs(kv_heads, layer_config());
  CHECK(layer_type::make(bank, nullptr, kv_heads, {}, {}, layer).code == status_code::invalid_argument);
  configs[2].keys.shape.dim = key_dim + 2;
  status refused = layer_type::make(bank, configs.data(), kv_heads, {}, {}, layer);
  CHECK(refused.code == status_code::shape_mismatch);
  CHECK(refused.expected == key_dim);
  CHECK(refused.got == key_dim + 2);
  configs[2] = layer_config();
  configs[1].values.shape.dim = value_dim + 1;
  refused = layer_type::make(bank, configs.data(), kv_heads, {}, {}, layer);
  CHECK(refused.code == status_code::shape_mismatch);
  CHECK(refused.got == value_dim + 1);

  const cache_config before = layer_config();
  cache_config config = before;
  for (head_policy policy : mixed_policies()) {
    policy.keys = {false, key_dim + 1, 4, 1, codebook_storage::i8, 0.0f};
    CHECK(!apply_policy(policy, config));
    CHECK(config.keys.shape == before.keys.shape);
    CHECK(config.sinks == before.sinks);
    CHECK(config.values.coded);
  }
}

TEST_CASE("a layer gives the same bits on any executor", "[cache]") {
  random_data random(22);
  CAPTURE(random.seed());
  bank_type bank;
  const layer_data data(random, 260);
  const std::vector<float> queries = random.normals(2 * kv_heads * key_dim);
  std::vector<float> reference;
  for (const std::size_t workers : {1U, 2U, 7U}) {
    pqattn_test::thread_executor threads(workers);
    layer_type layer;
    REQUIRE_OK(layer_type::make(bank, layer_config(), kv_heads, threads.get(), {}, layer));
    REQUIRE_OK(layer.append(data.key_rows(0, 260), data.value_rows(0, 260)));
    std::vector<float> out(2 * kv_heads * value_dim);
    layer_attention_params params;
    params.first_position = 259;
    REQUIRE_OK(layer.attend({view_rows(queries.data(), 1, key_dim), 2 * kv_heads, key_dim}, params,
                            {ref_rows(out.data(), 1, value_dim), 2 * kv_heads, value_dim}));
    if (reference.empty()) {
      reference = out;
    }
    CHECK(out == reference);

    skip_statistics skips{1, 1};
    params.skip_mass = 0.45f;
    params.skips = &skips;
    REQUIRE_OK(layer.attend({view_rows(queries.data(), 1, key_dim), 2 * kv_heads, key_dim}, params,
                            {ref_rows(out.data(), 1, value_dim), 2 * kv_heads, value_dim}));
    skip_statistics alone{1, 1};
    for (std::size_t head = 0; head < kv_heads; ++head) {
      attend_scratch<bank_type> scratch(bank, {});
      attention_params one;
      one.skip_mass = params.skip_mass;
      one.skips = &alone;
      REQUIRE_OK(layer.head(head).attend(view_rows(queries.data() + 2 * head * key_dim, 2, key_dim), one, scratch,
                                         ref_rows(out.data(), 2, value_dim), nullptr));
    }
    CHECK(skips.blocks == alone.blocks);
    CHECK(skips.skipped == alone.skipped);
    CHECK(skips.skipped > 1);
    CHECK(skips.skipped < skips.blocks);
  }
}

TEST_CASE("when one head fails, no head has taken the tokens", "[cache]") {
  random_data random(23);
  CAPTURE(random.seed());
  bank_type bank;
  layer_data data(random, 200);
  layer_type layer;
  REQUIRE_OK(layer_type::make(bank, layer_config(), kv_heads, {}, {}, layer));
  REQUIRE_OK(layer.append(data.key_rows(0, 50), data.value_rows(0, 50)));
  // The last head's value is bad; the others train first and must forget it.
  float& bad = data.values[(150 * kv_heads + 2) * value_dim + 3];
  const float good = bad;
  bad = std::numeric_limits<float>::infinity();
  const status result = layer.append(data.key_rows(50, 150), data.value_rows(50, 150));
  CHECK(result.code == status_code::not_finite);
  CHECK(result.expected == 100);
  CHECK(result.got == 3);
  for (std::size_t head = 0; head < kv_heads; ++head) {
    CHECK(layer.head(head).size() == 50);
    CHECK_FALSE(layer.head(head).trained());
    CHECK(layer.head(head).memory().codebooks_bytes == 0);
  }
  bad = good;
  REQUIRE_OK(layer.append(data.key_rows(50, 150), data.value_rows(50, 150)));
  CHECK(layer.head(0).trained());
}

TEST_CASE("a layer's memory report equals what was allocated", "[cache]") {
  random_data random(24);
  CAPTURE(random.seed());
  pqattn_test::counting_resource memory;
  {
    bank_type bank(memory.resource());
    const layer_data data(random, 300);
    layer_type layer;
    REQUIRE_OK(layer_type::make(bank, layer_config(), kv_heads, {}, memory.resource(), layer));
    REQUIRE_OK(layer.append(data.key_rows(0, 300), data.value_rows(0, 300)));
    const std::vector<float> queries = random.normals(kv_heads * key_dim);
    std::vector<float> out(kv_heads * value_dim);
    layer_attention_params params;
    params.first_position = 299;
    REQUIRE_OK(layer.attend({view_rows(queries.data(), 1, key_dim), kv_heads, key_dim}, params,
                            {ref_rows(out.data(), 1, value_dim), kv_heads, value_dim}));
    CHECK(layer.memory().total_bytes() == memory.live_bytes);
    CHECK(layer.memory().elements == 300 * kv_heads * (key_dim + value_dim));
  }
  CHECK(memory.live_bytes == 0);
  CHECK(memory.mistakes == 0);
}

TEST_CASE("a layer refuses what does not fit it", "[cache]") {
  random_data random(25);
  bank_type bank;
  const layer_data data(random, 4);
  layer_type layer;
  CHECK(layer_type::make(bank, layer_config(), 0, {}, {}, layer).code == status_code::invalid_argument);
  REQUIRE_OK(layer_type::make(bank, layer_config(), kv_heads, {}, {}, layer));
  head_rows keys = data.key_rows(0, 4);
  keys.heads = 2;
  CHECK(layer.append(keys, data.value_rows(0, 4)).code == status_code::shape_mismatch);
  REQUIRE_OK(layer.append(data.key_rows(0, 4), data.value_rows(0, 4)));
  std::vector<float> queries(5 * key_dim);
  std::vector<float> out(5 * value_dim, 42.0f);
  CHECK(layer
            .attend({view_rows(queries.data(), 1, key_dim), 5, key_dim}, {},
                    {ref_rows(out.data(), 1, value_dim), 5, value_dim})
            .code == status_code::shape_mismatch);
  CHECK(out[0] == 42.0f);
}

TEST_CASE("a layer shows its heads their queries and metrics, for any number of workers", "[cache]") {
  random_data random(25);
  CAPTURE(random.seed());
  bank_type bank;
  const layer_data data(random, 400);
  cache_config config = layer_config();
  config.keys.metric = true;
  config.values.rotated = true;
  config.keys.sweeps = config.values.sweeps = 1;
  config.query_rows = 32;
  config.coding_batch = 8;
  constexpr std::size_t q_heads = 2 * kv_heads;
  const std::vector<float> queries = random.normals(90 * q_heads * key_dim);
  std::vector<float> metrics(kv_heads * key_dim * key_dim);
  for (std::size_t i = 0; i < metrics.size(); ++i) {
    const std::size_t head = i / (key_dim * key_dim);
    metrics[i] = i % (key_dim * key_dim) % (key_dim + 1) == 0 ? 1.0f + static_cast<float>((i + head) % 5) : 0.0f;
  }
  for (const bool given : {false, true}) {
    CAPTURE(given);
    layer_append_options options;
    options.key_metrics = given ? metrics.data() : nullptr;
    const auto fill = [&](layer_type& layer) {
      REQUIRE_OK(layer.append(data.key_rows(0, 90), data.value_rows(0, 90), options));
      REQUIRE_OK(layer.observe(token_major(queries, 0, 90, q_heads, key_dim), 0));
      REQUIRE_OK(layer.append(data.key_rows(90, 200), data.value_rows(90, 200), options));
      for (std::size_t t = 290; t < 400; ++t) {
        REQUIRE_OK(layer.append(data.key_rows(t, 1), data.value_rows(t, 1)));
      }
    };
    layer_type layer;
    REQUIRE_OK(layer_type::make(bank, config, kv_heads, {}, {}, layer));
    fill(layer);
    pqattn_test::thread_executor threads(3);
    layer_type threaded;
    REQUIRE_OK(layer_type::make(bank, config, kv_heads, threads.get(), {}, threaded));
    fill(threaded);
    for (std::size_t head = 0; head < kv_heads; ++head) {
      cache_config one = config;
      one.kmeans.seed = mix_seed(config.kmeans.seed, head);
      head_cache<bank_type> alone;
      REQUIRE_OK(head_cache<bank_type>::make(bank, one, {}, alone));
      training_options lesson;
      lesson.key_metric = given ? metrics.data() + head * key_dim * key_dim : nullptr;
      REQUIRE_OK(alone.append(data.key_rows(0, 90).head(head), data.value_rows(0, 90).head(head)));
      for (std::int64_t t = 0; t < 90; ++t) {
        const auto row = static_cast<std::size_t>(t) * q_heads + 2 * head;
        const std::int64_t positions[] = {t, t};
        REQUIRE_OK(alone.observe(view_rows(queries.data() + row * key_dim, 2, key_dim), positions));
      }
      REQUIRE_OK(alone.append(data.key_rows(90, 200).head(head), data.value_rows(90, 200).head(head), nullptr, lesson));
      REQUIRE_OK(alone.append(data.key_rows(290, 110).head(head), data.value_rows(290, 110).head(head)));
      const auto read = [](const head_cache<bank_type>& cache) {
        std::vector<float> rows(400 * (key_dim + value_dim));
        REQUIRE_OK(
            cache.read(0, ref_rows(rows.data(), 400, key_dim), ref_rows(rows.data() + 400 * key_dim, 400, value_dim)));
        return rows;
      };
      const std::vector<float> expected = read(alone);
      CHECK(read(layer.head(head)) == expected);
      CHECK(read(threaded.head(head)) == expected);
      CHECK(layer.head(head).memory().transforms_bytes != 0);
    }
  }
}

/// A layer whose keys have a metric and whose values are rotated, so that its heads keep queries and train transforms.
cache_config taught_config() {
  cache_config config = layer_config();
  config.keys.metric = true;
  config.values.rotated = true;
  config.query_rows = 32;
  config.outlier_share = 0.05f;
  config.kmeans.iterations = 1;
  return config;
}

std::vector<float> all_rows(const layer_type& layer) {
  const std::size_t tokens = layer.size();
  const std::size_t head_floats = tokens * (key_dim + value_dim);
  std::vector<float> rows(kv_heads * head_floats);
  for (std::size_t head = 0; head < kv_heads; ++head) {
    float* const keys = rows.data() + head * head_floats;
    REQUIRE_OK(layer.head(head).read(0, ref_rows(keys, tokens, key_dim),
                                     ref_rows(keys + tokens * key_dim, tokens, value_dim)));
  }
  return rows;
}

TEST_CASE("queries that a layer refuses leave nothing behind", "[cache]") {
  random_data random(33);
  CAPTURE(random.seed());
  bank_type bank;
  constexpr std::size_t q_heads = 2 * kv_heads;
  const layer_data data(random, 200);
  const std::vector<float> good = random.normals(40 * q_heads * key_dim);
  std::vector<float> bad = random.normals(40 * q_heads * key_dim);
  bad.back() = std::numeric_limits<float>::quiet_NaN();
  layer_type layers[2];
  for (layer_type& layer : layers) {
    REQUIRE_OK(layer_type::make(bank, taught_config(), kv_heads, {}, {}, layer));
    if (&layer == layers) {
      const status refused = layer.observe(token_major(bad, 0, 40, q_heads, key_dim), 0);
      CHECK(refused.code == status_code::not_finite);
      CHECK(refused.expected == 39);
      CHECK(refused.got == key_dim - 1);
      const status heads = layer.observe(token_major(good, 0, 40, 4, key_dim), 0);
      CHECK(heads.code == status_code::shape_mismatch);
      CHECK(heads.got == 4);
      const status channels = layer.observe(token_major(good, 0, 40, q_heads, key_dim - 1), 0);
      CHECK(channels.code == status_code::shape_mismatch);
      CHECK(channels.got == key_dim - 1);
      for (const std::int64_t first : {std::int64_t{-1}, std::int64_t{0x7fffffff}, std::int64_t{1} << 62}) {
        CHECK(layer.observe(token_major(good, 0, 40, q_heads, key_dim), first).code == status_code::invalid_argument);
      }
    }
    REQUIRE_OK(layer.observe(token_major(good, 0, 40, q_heads, key_dim), 0));
    REQUIRE_OK(layer.append(data.key_rows(0, 200), data.value_rows(0, 200)));
  }
  CHECK(all_rows(layers[0]) == all_rows(layers[1]));
}

TEST_CASE("each allocation of a layer may fail in turn", "[cache]") {
  random_data random(34);
  CAPTURE(random.seed());
  constexpr std::size_t q_heads = 2 * kv_heads;
  const layer_data data(random, 300);
  const std::vector<float> queries = random.normals(60 * q_heads * key_dim);
  const std::size_t chunks[] = {60, 90, 1, 149};
  struct step_result {
    std::size_t held;
    std::vector<float> rows;
    std::vector<float> out;
  };
  const auto attend = [&](layer_type& layer, std::vector<float>& out) {
    out.assign(q_heads * value_dim, 0.0f);
    layer_attention_params params;
    params.first_position = static_cast<std::int64_t>(layer.size()) - 1;
    return layer.attend(
        token_major(queries, 0, 1, q_heads, key_dim), params,
        {ref_rows(out.data(), 1, value_dim, std::ptrdiff_t(q_heads * value_dim)), q_heads, std::ptrdiff_t(value_dim)},
        nullptr);
  };
  // What the layer is after each chunk when nothing fails.
  std::vector<step_result> expected;
  std::size_t allocations = 0;
  bool succeeded = false;
  for (std::size_t fail = 0; !succeeded; ++fail) {
    REQUIRE(fail < 2000);
    CAPTURE(fail);
    counting_resource memory;
    {
      bank_type bank(memory.resource());
      const bool undisturbed = expected.empty();
      memory.fail_after = undisturbed ? memory.fail_after : fail;
      layer_type layer;
      std::size_t failures = 0;
      /// Runs a call, and once more with all memory there if it fails for want of it.
      const auto again = [&](const auto& call, const auto& unchanged) {
        const status first = call();
        if (!first) {
          CHECK(first.code == status_code::out_of_memory);
          ++failures;
          memory.fail_after = std::numeric_limits<std::size_t>::max();
          unchanged();
          REQUIRE_OK(call());
        }
      };
      again([&] { return layer_type::make(bank, taught_config(), kv_heads, {}, memory.resource(), layer); },
            [&] { CHECK(memory.live_bytes == 0); });
      again([&] { return layer.observe(token_major(queries, 0, 60, q_heads, key_dim), 0); }, [] {});
      std::size_t held = 0;
      for (std::size_t i = 0; i < std::size(chunks); ++i) {
        again([&] { return layer.append(data.key_rows(held, chunks[i]), data.value_rows(held, chunks[i])); },
              [&] {
                CHECK(layer.size() == held);
                for (std::size_t head = 0; head < kv_heads; ++head) {
                  CHECK(layer.head(head).size() == held);
                  CHECK(layer.head(head).trained() == (held >= 150));
                }
                CHECK(all_rows(layer) == (i == 0 ? std::vector<float>{} : expected[i - 1].rows));
              });
        held += chunks[i];
        std::vector<float> out;
        again([&] { return attend(layer, out); }, [&] { CHECK(out == std::vector<float>(q_heads * value_dim)); });
        if (undisturbed) {
          expected.push_back({held, all_rows(layer), out});
        } else {
          CHECK(all_rows(layer) == expected[i].rows);
          CHECK(out == expected[i].out);
        }
      }
      REQUIRE(layer.head(0).trained());
      CHECK(failures == (undisturbed || memory.allocations <= fail ? 0 : 1));
      succeeded = !undisturbed && failures == 0;
      fail = undisturbed ? std::numeric_limits<std::size_t>::max() : fail;  // begins at 0
      allocations = memory.allocations;
    }
    CHECK(memory.live_bytes == 0);
    CHECK(memory.mistakes == 0);
  }
  CHECK(allocations > 100);
}

}  // namespace
