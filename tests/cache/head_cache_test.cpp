// SPDX-License-Identifier: MIT
#include <pqattn/cache/head_cache.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "bank/scalar_bank.hpp"
#include "pqattn/bank/host/host_bank.hpp"
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
using cache_type = head_cache<bank_type>;

struct rope_memory {
  std::vector<float> tables;
  rope rotation;

  explicit rope_memory(std::uint32_t dim, rope_pairing pairing = rope_pairing::half_split) {
    std::vector<float> frequencies(dim / 2);
    fill_rope_frequencies(frequencies.data(), dim, 10000.0);
    tables.resize(rope_floats(dim / 2));
    REQUIRE_OK(build_rope(frequencies.data(), dim / 2, pairing, tables.data(), rotation));
  }
};

/// Tokens of one KV head: clustered, so that coding is meaningful, and rotated keys when there is a rotation.
struct token_stream {
  std::size_t count;
  std::uint32_t key_dim;
  std::uint32_t value_dim;
  std::vector<float> keys;  ///< before RoPE
  std::vector<float> rotated;
  std::vector<float> values;

  token_stream(random_data& random, std::size_t tokens, std::uint32_t d_k, std::uint32_t d_v, const rope& rotation)
      : count(tokens),
        key_dim(d_k),
        value_dim(d_v),
        keys(random.normals(tokens * d_k)),
        values(random.normals(tokens * d_v)) {
    rotated = keys;
    for (std::size_t t = 0; t < tokens; ++t) {
      rotate_row(rotation, static_cast<std::int64_t>(t), 1.0f, rotated.data() + t * d_k);
    }
  }
  [[nodiscard]] rows_view key_rows(std::size_t first, std::size_t n) const {
    return view_rows(rotated.data() + first * key_dim, n, key_dim);
  }
  [[nodiscard]] rows_view plain_key_rows(std::size_t first, std::size_t n) const {
    return view_rows(keys.data() + first * key_dim, n, key_dim);
  }
  [[nodiscard]] rows_view value_rows(std::size_t first, std::size_t n) const {
    return view_rows(values.data() + first * value_dim, n, value_dim);
  }
};

cache_config small_config(std::uint32_t d_k = 32, std::uint32_t d_v = 32) {
  cache_config config;
  config.keys.shape = {d_k, d_k / 4, 32, 1};
  config.values.shape = {d_v, d_v / 4, 32, 1};
  config.keys.storage = config.values.storage = codebook_storage::f16;
  config.train_tokens = 150;
  config.kmeans.iterations = 3;
  config.exact_type = dtype::f32;
  return config;
}

struct attended {
  std::vector<float> out;
  std::vector<float> lse;
};

template <class Bank>
attended attend_to(const head_cache<Bank>& cache, Bank& bank, const std::vector<float>& queries, std::size_t rows,
                   const attention_params& params = {}) {
  attend_scratch<Bank> scratch(bank, {});
  const std::size_t d_v = cache.config().values.shape.dim;
  attended result{std::vector<float>(rows * d_v, -7.0f), std::vector<float>(rows, -7.0f)};
  REQUIRE_OK(cache.attend(view_rows(queries.data(), rows, cache.config().keys.shape.dim), params, scratch,
                          ref_rows(result.out.data(), rows, d_v), result.lse.data()));
  return result;
}

/// What the cache holds, as attention sees it.
template <class Bank>
void read_all(const head_cache<Bank>& cache, std::vector<float>& keys, std::vector<float>& values) {
  const std::size_t d_k = cache.config().keys.shape.dim;
  const std::size_t d_v = cache.config().values.shape.dim;
  keys.resize(cache.size() * d_k);
  values.resize(cache.size() * d_v);
  REQUIRE_OK(cache.read(0, ref_rows(keys.data(), cache.size(), d_k), ref_rows(values.data(), cache.size(), d_v)));
}

/// Attention of the cache against double-precision attention over the rows it says it holds.
template <class Bank>
void check_against_rows(const head_cache<Bank>& cache, Bank& bank, random_data& random, double tolerance,
                        double lse_tolerance = 1e-4) {
  pqattn_test::attention_case expected;
  expected.rows = 3;
  expected.tokens = cache.size();
  expected.key_dim = cache.config().keys.shape.dim;
  expected.value_dim = cache.config().values.shape.dim;
  expected.scale = 1.0 / std::sqrt(static_cast<double>(expected.key_dim));
  const std::vector<float> queries = random.normals(expected.rows * expected.key_dim, 2.0f);
  std::vector<float> keys;
  std::vector<float> values;
  read_all(cache, keys, values);
  expected.queries = pqattn_test::to_doubles(queries);
  expected.keys = pqattn_test::to_doubles(keys);
  expected.values = pqattn_test::to_doubles(values);
  const pqattn_test::attention_result reference = pqattn_test::reference_attention(expected);
  const attended got = attend_to(cache, bank, queries, expected.rows);
  CHECK(pqattn_test::max_error(got.lse, reference.lse) < lse_tolerance);
  CHECK(std::sqrt(pqattn_test::nmse(got.out, reference.out)) < tolerance);
}

template <class Bank>
void append_singly(head_cache<Bank>& cache, const token_stream& tokens, std::size_t first, std::size_t end) {
  for (std::size_t t = first; t < end; ++t) {
    REQUIRE_OK(cache.append(tokens.key_rows(t, 1), tokens.value_rows(t, 1)));
  }
}

/// Sum of squared differences of rows [first, end) as the cache holds them from what was put in.
struct stored_error {
  double keys = 0.0;
  double values = 0.0;
};
template <class Bank>
stored_error error_of(const head_cache<Bank>& cache, const token_stream& tokens, std::size_t first, std::size_t end) {
  std::vector<float> keys;
  std::vector<float> values;
  read_all(cache, keys, values);
  stored_error error;
  for (std::size_t i = first * tokens.key_dim; i < end * tokens.key_dim; ++i) {
    error.keys += std::pow(static_cast<double>(keys[i] - tokens.rotated[i]), 2);
  }
  for (std::size_t i = first * tokens.value_dim; i < end * tokens.value_dim; ++i) {
    error.values += std::pow(static_cast<double>(values[i] - tokens.values[i]), 2);
  }
  return error;
}

/// A configuration with one switch (or all) thrown.
struct switched {
  const char* name;
  void (*apply)(cache_config&);
};
constexpr switched all_switches = {"everything", [](cache_config& config) {
                                     config.keys.metric = config.values.rotated = config.track_errors = true;
                                     config.keys.joint_passes = config.values.joint_passes = 1;
                                     config.keys.sweeps = config.values.sweeps = 1;
                                     config.keys.shape.stages = config.values.shape.stages = 2;
                                     config.attention_weights = true;
                                     config.query_rows = 40;
                                     config.coding_batch = 5;
                                     config.window_tokens = 90;
                                     config.outlier_share = 0.03f;
                                   }};
constexpr switched one_switch_each[] = {
    {"metric from observed queries",
     [](cache_config& config) {
       config.keys.metric = true;
       config.query_rows = 64;
     }},
    {"attention weights",
     [](cache_config& config) {
       config.attention_weights = true;
       config.query_rows = 64;
     }},
    {"joint training", [](cache_config& config) { config.keys.joint_passes = config.values.joint_passes = 2; }},
    {"sweeps", [](cache_config& config) { config.keys.sweeps = config.values.sweeps = 2; }},
    {"rotated values", [](cache_config& config) { config.values.rotated = true; }},
    {"rotated values, exact keys",
     [](cache_config& config) {
       config.values.rotated = true;
       config.keys.coded = false;
     }},
    {"batches", [](cache_config& config) { config.coding_batch = 24; }},
    {"windows", [](cache_config& config) { config.window_tokens = 100; }},
    {"outliers", [](cache_config& config) { config.outlier_share = 0.1f; }},
    {"outliers, exact values",
     [](cache_config& config) {
       config.outlier_share = 0.1f;
       config.values.coded = false;
     }},
    {"errors", [](cache_config& config) { config.track_errors = true; }},
    all_switches,
};

/// Appends tokens in steps, showing the cache a query after each; `after` is called after each step.
template <class Bank, class After>
void append_and_observe(head_cache<Bank>& cache, const token_stream& tokens, random_data& random,
                        const std::vector<std::size_t>& steps, const After& after) {
  for (const std::size_t step : steps) {
    const std::size_t first = cache.size();
    REQUIRE_OK(cache.append(tokens.key_rows(first, step), tokens.value_rows(first, step)));
    const std::vector<float> queries = random.normals(2 * tokens.key_dim);
    const std::int64_t positions[] = {static_cast<std::int64_t>(first), static_cast<std::int64_t>(first + step - 1)};
    REQUIRE_OK(cache.observe(view_rows(queries.data(), 2, tokens.key_dim), positions));
    after();
  }
}

TEST_CASE("a cache is exact until it has enough to train on", "[cache]") {
  random_data random(1);
  CAPTURE(random.seed());
  bank_type bank;
  const rope_memory rope(32);
  cache_config config = small_config();
  config.rotation = rope.rotation;
  const token_stream tokens(random, 400, 32, 32, rope.rotation);
  cache_type cache;
  REQUIRE_OK(cache_type::make(bank, config, {}, cache));
  append_singly(cache, tokens, 0, config.sinks + config.train_tokens - 1);
  CHECK_FALSE(cache.trained());
  CHECK(cache.coded_tokens() == 0);

  std::vector<float> keys;
  std::vector<float> values;
  read_all(cache, keys, values);
  CHECK(keys == std::vector<float>(tokens.rotated.begin(), tokens.rotated.begin() + std::ptrdiff_t(keys.size())));
  check_against_rows(cache, bank, random, 1e-6);

  append_singly(cache, tokens, cache.size(), cache.size() + 1);
  CHECK(cache.trained());
  CHECK(cache.coded_tokens() == cache.size() - config.sinks - config.recent);
  check_against_rows(cache, bank, random, 1e-5);
  append_singly(cache, tokens, cache.size(), 400);
  CHECK(cache.coded_tokens() == 400 - config.sinks - config.recent);
  check_against_rows(cache, bank, random, 1e-5);

  // Sinks and the recent window are still what was put in, to the bit; the body is not.
  read_all(cache, keys, values);
  const auto row_equal = [&](std::size_t t) {
    return std::equal(keys.begin() + std::ptrdiff_t(t * 32), keys.begin() + std::ptrdiff_t(t * 32 + 32),
                      tokens.rotated.begin() + std::ptrdiff_t(t * 32)) &&
           std::equal(values.begin() + std::ptrdiff_t(t * 32), values.begin() + std::ptrdiff_t(t * 32 + 32),
                      tokens.values.begin() + std::ptrdiff_t(t * 32));
  };
  for (std::size_t t = 0; t < 400; ++t) {
    const bool exact = t < config.sinks || t >= 400 - config.recent;
    INFO("token " << t);
    CHECK(row_equal(t) == exact);
  }
}

TEST_CASE("attention over a cache equals attention over the rows it holds", "[cache]") {
  random_data random(2);
  CAPTURE(random.seed());
  bank_type bank(exact_arithmetic);  // rounded tables are judged by the conformance suite
  struct variant {
    const char* name;
    std::uint32_t d_k, d_v;
    bool rotated, after_rope, keys_coded, values_coded;
    std::uint32_t sinks, recent, stages;
    dtype exact;
    codebook_storage storage;
    rope_pairing pairing;
  };
  const variant variants[] = {
      {"no rope", 32, 32, false, false, true, true, 8, 32, 1, dtype::f32, codebook_storage::f32, {}},
      {"f16 windows", 32, 32, true, false, true, true, 8, 32, 1, dtype::f16, codebook_storage::f16, {}},
      {"bf16 windows, interleaved", 64, 48, true, false, true, true, 8, 32, 1, dtype::bf16, codebook_storage::i8,
       rope_pairing::interleaved},
      {"after rope", 32, 32, true, true, true, true, 8, 32, 1, dtype::f32, codebook_storage::f16, {}},
      {"keys only", 32, 20, true, false, true, false, 8, 32, 1, dtype::f32, codebook_storage::f16, {}},
      {"values only", 20, 32, true, false, false, true, 8, 32, 1, dtype::f32, codebook_storage::f16, {}},
      {"nothing coded", 32, 32, true, false, false, false, 8, 32, 1, dtype::f32, codebook_storage::f16, {}},
      {"no sinks, tiny window", 32, 32, true, false, true, true, 0, 1, 2, dtype::f32, codebook_storage::f32, {}},
      {"no window at all", 32, 32, true, false, true, true, 3, 0, 1, dtype::f32, codebook_storage::f32, {}},
      {"odd sizes", 34, 7, true, false, true, true, 5, 17, 3, dtype::f32, codebook_storage::f32, {}},
  };
  for (const variant& v : variants) {
    INFO(v.name);
    const rope_memory rope(v.d_k, v.pairing);
    cache_config config = small_config(v.d_k, v.d_v);
    config.values.shape.subvectors = (v.d_v + 2) / 3;
    config.keys.shape.stages = v.stages;
    config.keys.coded = v.keys_coded;
    config.values.coded = v.values_coded;
    config.keys.storage = config.values.storage = v.storage;
    config.sinks = v.sinks;
    config.recent = v.recent;
    config.exact_type = v.exact;
    config.code_keys_after_rope = v.after_rope;
    if (v.rotated) {
      config.rotation = rope.rotation;
    }
    const token_stream tokens(random, 700, v.d_k, v.d_v, config.rotation);
    cache_type cache;
    REQUIRE_OK(cache_type::make(bank, config, {}, cache));
    std::size_t t = 0;
    for (const std::size_t step : {3U, 100U, 60U, 1U, 1U, 300U, 2U, 1U}) {
      REQUIRE_OK(cache.append(tokens.key_rows(t, step), tokens.value_rows(t, step)));
      t += step;
      check_against_rows(cache, bank, random, 2e-5);
    }
    CHECK(cache.size() == t);
    CHECK(cache.trained() == (v.keys_coded || v.values_coded));
  }
}

TEST_CASE("many short appends and one long one store the same", "[cache]") {
  random_data random(3);
  CAPTURE(random.seed());
  bank_type bank;
  const rope_memory rope(32);
  for (const dtype exact : {dtype::f32, dtype::f16}) {
    cache_config config = small_config();
    config.rotation = rope.rotation;
    config.exact_type = exact;
    const token_stream tokens(random, 600, 32, 32, rope.rotation);
    cache_type short_steps;
    cache_type long_step;
    REQUIRE_OK(cache_type::make(bank, config, {}, short_steps));
    REQUIRE_OK(cache_type::make(bank, config, {}, long_step));
    const std::size_t start = config.sinks + config.train_tokens;
    append_singly(short_steps, tokens, 0, 600);
    REQUIRE_OK(long_step.append(tokens.key_rows(0, start), tokens.value_rows(0, start)));
    REQUIRE_OK(long_step.append(tokens.key_rows(start, 600 - start), tokens.value_rows(start, 600 - start)));
    std::vector<float> keys[2];
    std::vector<float> values[2];
    read_all(short_steps, keys[0], values[0]);
    read_all(long_step, keys[1], values[1]);
    CHECK(keys[0] == keys[1]);
    CHECK(values[0] == values[1]);
    const std::vector<float> query = random.normals(32);
    CHECK(attend_to(short_steps, bank, query, 1).out == attend_to(long_step, bank, query, 1).out);
  }
}

TEST_CASE("rows of every dtype, stride and alignment are stored as their f32 copy", "[cache]") {
  random_data random(5);
  CAPTURE(random.seed());
  bank_type bank;
  const rope_memory rope(32);
  const bool switched = GENERATE(false, true);
  cache_config config = switched ? small_config(32, 24) : small_config(32, 32);
  config.rotation = rope.rotation;
  if (switched) {
    all_switches.apply(config);
  }
  const std::uint32_t value_dim = config.values.shape.dim;
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16}) {
    for (const auto& layout : {pqattn_test::padded_layout, pqattn_test::awkward_layout, pqattn_test::reversed_layout}) {
      const pqattn_test::strided_matrix keys(random.normals(500 * 32), 500, 32, type, layout);
      const pqattn_test::strided_matrix values(random.normals(500 * value_dim), 500, value_dim, type, layout);
      const std::vector<float> dense_keys = keys.values();
      const std::vector<float> dense_values = values.values();
      cache_type strided;
      cache_type dense;
      REQUIRE_OK(cache_type::make(bank, config, {}, strided));
      REQUIRE_OK(cache_type::make(bank, config, {}, dense));
      std::size_t held = 0;
      for (const std::size_t count : {30U, 400U, 1U, 69U}) {  // the second trains on the caller's rows
        REQUIRE_OK(strided.append(keys.view().slice(held, count), values.view().slice(held, count)));
        REQUIRE_OK(dense.append(view_rows(dense_keys.data() + held * 32, count, 32),
                                view_rows(dense_values.data() + held * value_dim, count, value_dim)));
        held += count;
      }
      CHECK(strided.trained());
      std::vector<float> got[2];
      std::vector<float> want[2];
      read_all(strided, got[0], got[1]);
      read_all(dense, want[0], want[1]);
      CHECK(got[0] == want[0]);
      CHECK(got[1] == want[1]);
    }
  }
}

TEST_CASE("keys may arrive before or after RoPE", "[cache]") {
  random_data random(4);
  CAPTURE(random.seed());
  bank_type bank;
  const rope_memory rope(32);
  cache_config config = small_config();
  config.rotation = rope.rotation;
  const token_stream tokens(random, 300, 32, 32, rope.rotation);
  cache_type rotated;
  REQUIRE_OK(cache_type::make(bank, config, {}, rotated));
  config.keys_arrive_rotated = false;
  cache_type plain;
  REQUIRE_OK(cache_type::make(bank, config, {}, plain));
  REQUIRE_OK(rotated.append(tokens.key_rows(0, 300), tokens.value_rows(0, 300)));
  REQUIRE_OK(plain.append(tokens.plain_key_rows(0, 300), tokens.value_rows(0, 300)));
  const std::vector<float> query = random.normals(32);
  const attended a = attend_to(rotated, bank, query, 1);
  const attended b = attend_to(plain, bank, query, 1);
  for (std::size_t c = 0; c < 32; ++c) {
    CHECK_THAT(a.out[c], Catch::Matchers::WithinAbs(b.out[c], 1e-4));
  }
}

TEST_CASE("coding before RoPE does not depend on the position a key was seen at", "[cache]") {
  // The same key at every position: one code, so every coded token decodes to the same row before rotation.
  random_data random(5);
  CAPTURE(random.seed());
  bank_type bank;
  const rope_memory rope(32);
  cache_config config = small_config();
  config.rotation = rope.rotation;
  token_stream tokens(random, 500, 32, 32, rope.rotation);
  for (std::size_t t = 0; t < 500; ++t) {
    const std::size_t kind = t % 16;
    std::copy_n(tokens.keys.begin() + std::ptrdiff_t(kind * 32), 32, tokens.keys.begin() + std::ptrdiff_t(t * 32));
    std::copy_n(tokens.keys.begin() + std::ptrdiff_t(kind * 32), 32, tokens.rotated.begin() + std::ptrdiff_t(t * 32));
    rotate_row(rope.rotation, static_cast<std::int64_t>(t), 1.0f, tokens.rotated.data() + t * 32);
  }
  cache_type cache;
  REQUIRE_OK(cache_type::make(bank, config, {}, cache));
  REQUIRE_OK(cache.append(tokens.key_rows(0, 500), tokens.value_rows(0, 500)));
  std::vector<float> keys;
  std::vector<float> values;
  read_all(cache, keys, values);
  double worst = 0.0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(keys[i] - tokens.rotated[i])));
  }
  CHECK(worst < 5e-3);  // 16 kinds of key, 32 centroids: only f16 codebook rounding is left
}

TEST_CASE("errors leave a cache as it was", "[cache]") {
  random_data random(6);
  CAPTURE(random.seed());
  bank_type bank;
  cache_config config = small_config();
  token_stream tokens(random, 400, 32, 32, {});
  cache_type cache;
  REQUIRE_OK(cache_type::make(bank, config, {}, cache));
  REQUIRE_OK(cache.append(tokens.key_rows(0, 100), tokens.value_rows(0, 100)));
  const std::vector<float> query = random.normals(32);
  const attended before = attend_to(cache, bank, query, 1);
  const auto unchanged = [&] {
    CHECK(cache.size() == 100);
    CHECK_FALSE(cache.trained());
    CHECK(attend_to(cache, bank, query, 1).out == before.out);
  };

  SECTION("wrong shapes") {
    CHECK(cache.append(view_rows(tokens.keys.data(), 2, 31), tokens.value_rows(0, 2)).code ==
          status_code::shape_mismatch);
    CHECK(cache.append(tokens.key_rows(0, 2), tokens.value_rows(0, 3)).code == status_code::shape_mismatch);
  }
  SECTION("not finite, in the row and column the message names") {
    tokens.values[203 * 32 + 5] = std::numeric_limits<float>::quiet_NaN();
    const status result = cache.append(tokens.key_rows(100, 200), tokens.value_rows(100, 200));
    CHECK(result.code == status_code::not_finite);
    CHECK(result.expected == 103);
    CHECK(result.got == 5);
  }
  SECTION("bad weights") {
    std::vector<float> weights(200, 1.0f);
    weights[199] = -1.0f;
    CHECK(cache.append(tokens.key_rows(100, 200), tokens.value_rows(100, 200), weights.data()).code ==
          status_code::invalid_argument);
  }
  SECTION("cancelled training") {
    training_options options;
    options.progress.report = [](void*, std::size_t done, std::size_t) { return done < 7; };
    CHECK(cache.append(tokens.key_rows(100, 200), tokens.value_rows(100, 200), nullptr, options).code ==
          status_code::cancelled);
  }
  SECTION("training cancelled at each step, that of the values included") {
    std::size_t last = 0;
    for (bool finished = false; !finished; ++last) {
      CAPTURE(last);
      REQUIRE(last < 200);
      cache_type other;
      REQUIRE_OK(cache_type::make(bank, small_config(), {}, other));
      training_options options;
      options.progress = {
          [](void* limit, std::size_t done, std::size_t) { return done <= *static_cast<const std::size_t*>(limit); },
          &last};
      const status result = other.append(tokens.key_rows(0, 300), tokens.value_rows(0, 300), nullptr, options);
      finished = result.ok();
      CHECK(other.trained() == finished);
      CHECK((other.key_training().objective > 0.0) == finished);
      CHECK((other.value_training().objective > 0.0) == finished);
      CHECK((finished || result.code == status_code::cancelled));
    }
    CHECK(last > 10);
  }
  SECTION("numbers that the exact dtype does not hold") {
    std::vector<float> large(3 * 32, 1.0f);
    float& largest = large[2 * 32 + 5];
    const rows_view good = tokens.value_rows(100, 3);
    const rows_view bad = view_rows(large.data(), 3, 32);
    const rope_memory turning(32);
    for (const dtype type : {dtype::f16, dtype::bf16}) {
      for (const bool turned : {false, true}) {
        CAPTURE(turned);
        cache_config narrow = small_config();
        narrow.exact_type = type;
        narrow.rotation = turned ? turning.rotation : rope{};
        cache_type other;
        REQUIRE_OK(cache_type::make(bank, narrow, {}, other));
        largest = 1.01f * largest_of(type) < largest_of(dtype::f32) ? 1.01f * largest_of(type) : largest_of(dtype::f32);
        const status refused = other.append(good, bad);
        CHECK(refused.code == status_code::not_finite);
        CHECK(std::string(refused.subject) == "values");
        CHECK(refused.expected == 2);
        CHECK(refused.got == 5);
        CHECK(other.append(bad, good).code == status_code::not_finite);
        CHECK(other.size() == 0);
        largest = 0.9f * largest_of(type);  // as a key it may be turned to 1.27 of the dtype's largest
        CHECK(other.append(bad, good).ok() == !turned);
        CHECK(other.append(good, bad).ok());
      }
    }
  }
  unchanged();
}

TEST_CASE("each allocation may fail in turn", "[cache]") {
  random_data random(7);
  CAPTURE(random.seed());
  const rope_memory rope(32);
  const token_stream tokens(random, 1000, 32, 32, rope.rotation);
  const std::vector<float> query = random.normals(32);
  bool succeeded = false;
  for (std::size_t fail = 0; !succeeded; ++fail) {
    REQUIRE(fail < 500);
    counting_resource memory;
    {
      bank_type bank(memory.resource());
      cache_config config = small_config();
      config.rotation = rope.rotation;
      cache_type cache;
      REQUIRE_OK(cache_type::make(bank, config, memory.resource(), cache));
      std::size_t held = 0;
      memory.fail_after = memory.allocations + fail;
      status last;
      for (const std::size_t step : {100U, 60U, 400U, 1U, 300U}) {
        last = cache.append(tokens.key_rows(held, step), tokens.value_rows(held, step));
        if (!last) {
          CHECK(last.code == status_code::out_of_memory);
          break;
        }
        held += step;
      }
      succeeded = last.ok();
      memory.fail_after = std::numeric_limits<std::size_t>::max();
      CHECK(cache.size() == held);
      if (held != 0) {
        check_against_rows(cache, bank, random, 2e-5);
      }
      // The failed call may be repeated.
      if (!succeeded) {
        REQUIRE_OK(cache.append(tokens.key_rows(held, 200), tokens.value_rows(held, 200)));
        check_against_rows(cache, bank, random, 2e-5);
      }
    }
    CHECK(memory.live_bytes == 0);
    CHECK(memory.mistakes == 0);
  }
}

TEST_CASE("the memory report equals what was allocated", "[cache]") {
  random_data random(8);
  CAPTURE(random.seed());
  counting_resource memory;
  bank_type bank(memory.resource());
  const rope_memory rope(32);
  cache_config config = small_config();
  config.rotation = rope.rotation;
  const token_stream tokens(random, 3000, 32, 32, rope.rotation);
  cache_type cache;
  REQUIRE_OK(cache_type::make(bank, config, memory.resource(), cache));
  std::size_t t = 0;
  for (const std::size_t step : {1U, 8U, 100U, 48U, 1U, 1U, 500U, 2000U}) {
    REQUIRE_OK(cache.append(tokens.key_rows(t, step), tokens.value_rows(t, step)));
    t += step;
    CHECK(cache.memory().total_bytes() == memory.live_bytes);
  }
  const memory_report report = cache.memory();
  CHECK(report.tokens == t);
  CHECK(report.elements == t * 64);
  // 5-bit codes of 4 channels, f16 codebooks of 32 x 32 (planes have 64 entries), windows in f32.
  const std::size_t body = t - config.sinks - config.recent;
  CHECK(report.codes_bytes >= body * 2 * 8 * 5 / 8);
  CHECK(report.codes_bytes <= body * 2 * 8 * 5 / 8 * 9 / 8 + 3000);
  CHECK(report.codebooks_bytes == 2 * 32 * 64 * 2);
  CHECK(report.exact_bytes == 2 * (config.sinks + config.recent * 3 / 2) * 32 * 4);
  CHECK(report.bits_per_element() == 8.0 * double(report.total_bytes() - report.scratch_bytes) / double(t * 64));
}

TEST_CASE("peak memory of going over to codes is bounded", "[cache]") {
  // A prompt of 4000 tokens arrives in one call: it is coded from the caller's rows and never stored exact.
  random_data random(9);
  CAPTURE(random.seed());
  counting_resource memory;
  bank_type bank(memory.resource());
  cache_config config = small_config();
  config.max_training_tokens = 256;
  const token_stream tokens(random, 4000, 32, 32, {});
  cache_type cache;
  REQUIRE_OK(cache_type::make(bank, config, memory.resource(), cache));
  REQUIRE_OK(cache.append(tokens.key_rows(0, 4000), tokens.value_rows(0, 4000)));
  CHECK(cache.trained());
  CHECK(cache.key_training().samples == 256);
  const std::size_t exact_bytes = 4000 * 64 * 2;
  CHECK(memory.peak_bytes < exact_bytes / 2);
  CHECK(memory.live_bytes < exact_bytes / 4);
}

TEST_CASE("a decode step allocates nothing", "[cache]") {
  random_data random(10);
  CAPTURE(random.seed());
  counting_resource memory;
  bank_type bank(memory.resource());
  const rope_memory rope(32);
  cache_config config = small_config();
  config.rotation = rope.rotation;
  const token_stream tokens(random, 700, 32, 32, rope.rotation);
  cache_type cache;
  attend_scratch<bank_type> scratch(bank, memory.resource());
  REQUIRE_OK(cache_type::make(bank, config, memory.resource(), cache));
  REQUIRE_OK(cache.append(tokens.key_rows(0, 560), tokens.value_rows(0, 560)));
  REQUIRE_OK(cache.prepare(2, 1, scratch));
  const std::vector<float> queries = random.normals(64);
  std::vector<float> out(64);
  const std::size_t capacity = cache.memory().codes_bytes;
  const std::size_t before = memory.allocations;
  std::size_t t = 560;
  while (t < 640) {
    REQUIRE_OK(cache.append(tokens.key_rows(t, 1), tokens.value_rows(t, 1)));
    REQUIRE_OK(cache.attend(view_rows(queries.data(), 2, 32), {}, scratch, ref_rows(out.data(), 2, 32), nullptr));
    ++t;
    if (cache.memory().codes_bytes != capacity) {
      break;
    }
    REQUIRE(memory.allocations == before);
  }
  CHECK(t > 562);
}

TEST_CASE("importance weights pull the codebook towards the tokens that matter", "[cache]") {
  random_data random(11);
  CAPTURE(random.seed());
  bank_type bank;
  cache_config config = small_config();
  config.keys.shape.centroids = config.values.shape.centroids = 8;
  config.weight_exponent = 1.0f;
  config.weight_floor = 0.0f;
  config.exact_type = dtype::f32;
  const token_stream tokens(random, 400, 32, 32, {});
  std::vector<float> weights(400, 1e-3f);
  for (std::size_t t = 20; t < 400; t += 10) {
    weights[t] = 1.0f;
  }
  const auto error_of_important = [&](const float* given) {
    cache_type cache;
    REQUIRE_OK(cache_type::make(bank, config, {}, cache));
    REQUIRE_OK(cache.append(tokens.key_rows(0, 400), tokens.value_rows(0, 400), given));
    std::vector<float> keys;
    std::vector<float> values;
    read_all(cache, keys, values);
    double error = 0.0;
    for (std::size_t t = 20; t < 360; t += 10) {
      for (std::size_t c = 0; c < 32; ++c) {
        const double difference = static_cast<double>(values[t * 32 + c] - tokens.values[t * 32 + c]);
        error += difference * difference;
      }
    }
    return error;
  };
  CHECK(error_of_important(weights.data()) < 0.85 * error_of_important(nullptr));
}

TEST_CASE("with every switch attention equals attention over the rows a cache holds", "[cache]") {
  random_data random(12);
  CAPTURE(random.seed());
  bank_type bank(exact_arithmetic);
  const rope_memory rope(32);
  const token_stream tokens(random, 1200, 32, 24, rope.rotation);
  for (const switched& one : one_switch_each) {
    INFO(one.name);
    cache_config config = small_config(32, 24);
    config.rotation = rope.rotation;
    one.apply(config);
    cache_type cache;
    REQUIRE_OK(cache_type::make(bank, config, {}, cache));
    append_and_observe(cache, tokens, random, {3, 100, 50, 1, 1, 300, 2, 1, 400},
                       [&] { check_against_rows(cache, bank, random, 2e-5); });
    CHECK(cache.trained());
    cache.refresh();
    append_and_observe(cache, tokens, random, {100, 60, 1}, [&] { check_against_rows(cache, bank, random, 2e-5); });
    CHECK(cache.epoch_count() > 1);
    CHECK_FALSE(cache.refreshing());
  }
}

TEST_CASE("the switches work on any bank", "[cache]") {
  using scalar_bank = pqattn_test::scalar_bank;
  random_data random(13);
  CAPTURE(random.seed());
  scalar_bank bank;
  const rope_memory rope(12);
  cache_config config = small_config(12, 10);
  config.keys.shape = {12, 3, 8, 1};
  config.values.shape = {10, 3, 8, 1};
  config.train_tokens = 60;
  config.rotation = rope.rotation;
  all_switches.apply(config);
  const token_stream tokens(random, 400, 12, 10, rope.rotation);
  head_cache<scalar_bank> cache;
  REQUIRE_OK(head_cache<scalar_bank>::make(bank, config, {}, cache));
  append_and_observe(cache, tokens, random, {40, 60, 1, 200, 30},
                     [&] { check_against_rows(cache, bank, random, 2e-5); });
  CHECK(cache.outlier_tokens() > 0);
  CHECK(cache.epoch_count() > 1);
}

TEST_CASE("with every switch many short appends and one long one store the same", "[cache]") {
  random_data random(14);
  CAPTURE(random.seed());
  bank_type bank;
  const rope_memory rope(32);
  const token_stream tokens(random, 600, 32, 32, rope.rotation);
  const std::vector<float> queries = random.normals(600 * 32);
  std::vector<std::int64_t> positions(600);
  for (std::size_t t = 0; t < 600; ++t) {
    positions[t] = static_cast<std::int64_t>(t);
  }
  for (const switched& one : one_switch_each) {
    INFO(one.name);
    cache_config config = small_config();
    config.rotation = rope.rotation;
    config.exact_type = dtype::f16;
    one.apply(config);
    config.window_tokens = 0;  // windows belong to one long append
    const std::size_t start = config.sinks + config.train_tokens;
    cache_type caches[2];
    for (cache_type& cache : caches) {
      REQUIRE_OK(cache_type::make(bank, config, {}, cache));
    }
    for (std::size_t t = 0; t < 600; ++t) {
      REQUIRE_OK(caches[0].append(tokens.key_rows(t, 1), tokens.value_rows(t, 1)));
      if (t + 1 < start) {
        REQUIRE_OK(caches[0].observe(view_rows(queries.data() + t * 32, 1, 32), positions.data() + t));
      }
    }
    REQUIRE_OK(caches[1].observe(view_rows(queries.data(), start - 1, 32), positions.data()));
    REQUIRE_OK(caches[1].append(tokens.key_rows(0, start), tokens.value_rows(0, start)));
    REQUIRE_OK(caches[1].append(tokens.key_rows(start, 600 - start), tokens.value_rows(start, 600 - start)));
    std::vector<float> keys[2];
    std::vector<float> values[2];
    for (int i = 0; i < 2; ++i) {
      read_all(caches[i], keys[i], values[i]);
    }
    CHECK(keys[0] == keys[1]);
    CHECK(values[0] == values[1]);
    CHECK(caches[0].outlier_tokens() == caches[1].outlier_tokens());
    CHECK(caches[0].drift().largest() == caches[1].drift().largest());
    const std::vector<float> query = random.normals(32);
    CHECK(attend_to(caches[0], bank, query, 1).out == attend_to(caches[1], bank, query, 1).out);
  }
}

TEST_CASE("with every switch each allocation may fail in turn", "[cache]") {
  random_data random(15);
  CAPTURE(random.seed());
  const rope_memory rope(16);
  const token_stream tokens(random, 900, 16, 16, rope.rotation);
  const std::vector<float> queries = random.normals(30 * 16);
  std::vector<std::int64_t> positions(30);
  for (std::size_t i = 0; i < 30; ++i) {
    positions[i] = static_cast<std::int64_t>(3 * i);
  }
  cache_config config = small_config(16, 16);
  config.keys.shape = config.values.shape = {16, 4, 8, 1};
  config.kmeans.iterations = 1;
  config.rotation = rope.rotation;
  all_switches.apply(config);
  bool succeeded = false;
  for (std::size_t fail = 0; !succeeded; ++fail) {
    REQUIRE(fail < 600);
    CAPTURE(fail);
    counting_resource memory;
    {
      bank_type bank(memory.resource());
      cache_type cache;
      REQUIRE_OK(cache_type::make(bank, config, memory.resource(), cache));
      std::size_t held = 0;
      memory.fail_after = memory.allocations + fail;
      status last;
      for (const std::size_t step : {100U, 300U, 1U, 60U, 200U}) {
        if (held == 100) {
          last = cache.observe(view_rows(queries.data(), 30, 16), positions.data());
        }
        if (last) {
          last = cache.append(tokens.key_rows(held, step), tokens.value_rows(held, step));
        }
        if (!last) {
          CHECK(last.code == status_code::out_of_memory);
          break;
        }
        held += step;
        if (held == 401) {
          cache.refresh();
        }
      }
      succeeded = last.ok();
      memory.fail_after = std::numeric_limits<std::size_t>::max();
      CHECK(cache.size() == held);
      CHECK(cache.trained() == (held >= 400));
      CHECK(cache.memory().total_bytes() == memory.live_bytes);
      if (held != 0) {
        check_against_rows(cache, bank, random, 2e-5);
      }
      // The failed call may be repeated.
      if (!succeeded) {
        REQUIRE_OK(cache.append(tokens.key_rows(held, 239), tokens.value_rows(held, 239)));
        check_against_rows(cache, bank, random, 2e-5);
        CHECK(cache.memory().total_bytes() == memory.live_bytes);
      }
    }
    CHECK(memory.live_bytes == 0);
    CHECK(memory.mistakes == 0);
  }
}

TEST_CASE("transforms, epochs and outliers are in the memory report", "[cache]") {
  random_data random(16);
  CAPTURE(random.seed());
  counting_resource memory;
  bank_type bank(memory.resource());
  const rope_memory rope(32);
  cache_config config = small_config();
  config.rotation = rope.rotation;
  all_switches.apply(config);
  const token_stream tokens(random, 1500, 32, 32, rope.rotation);
  cache_type cache;
  REQUIRE_OK(cache_type::make(bank, config, memory.resource(), cache));
  append_and_observe(cache, tokens, random, {50, 100, 60, 700, 1, 80, 500},
                     [&] { CHECK(cache.memory().total_bytes() == memory.live_bytes); });
  const memory_report report = cache.memory();
  CHECK(report.transforms_bytes == 32 * 33 / 2 * sizeof(half) + compact_rotation_bytes(32));
  CHECK(cache.epoch_count() == 1 + 700 / 90 + 500 / 90);
  CHECK(report.codebooks_bytes == cache.epoch_count() * 2 * 2 * 32 * 64 * 2);
  const std::size_t most = static_cast<std::size_t>(0.03 * static_cast<double>(cache.coded_tokens()));
  CHECK(cache.outlier_tokens() > most / 4);
  CHECK(cache.outlier_tokens() <= most);
  CHECK(report.exact_bytes >= (config.sinks + config.recent + cache.outlier_tokens()) * 64 * sizeof(float));
}

TEST_CASE("with coding on the host a decode step allocates nothing either", "[cache]") {
  random_data random(17);
  CAPTURE(random.seed());
  counting_resource memory;
  bank_type bank(memory.resource());
  const rope_memory rope(32);
  cache_config config = small_config();
  config.rotation = rope.rotation;
  all_switches.apply(config);
  config.refresh_above = 1e6f;
  const token_stream tokens(random, 700, 32, 32, rope.rotation);
  cache_type cache;
  attend_scratch<bank_type> scratch(bank, memory.resource());
  REQUIRE_OK(cache_type::make(bank, config, memory.resource(), cache));
  REQUIRE_OK(cache.append(tokens.key_rows(0, 200), tokens.value_rows(0, 200)));
  REQUIRE_OK(cache.append(tokens.key_rows(200, 5), tokens.value_rows(200, 5)));
  REQUIRE_OK(cache.prepare(2, 1, scratch));
  const std::vector<float> queries = random.normals(64);
  const std::int64_t positions[] = {204, 204};
  std::vector<float> out(64);
  const std::size_t before = memory.allocations;
  for (std::size_t t = 205; t < 280; ++t) {
    REQUIRE_OK(cache.append(tokens.key_rows(t, 1), tokens.value_rows(t, 1)));
    REQUIRE_OK(cache.observe(view_rows(queries.data(), 2, 32), positions));
    REQUIRE_OK(cache.attend(view_rows(queries.data(), 2, 32), {}, scratch, ref_rows(out.data(), 2, 32), nullptr));
  }
  CHECK(memory.allocations == before);
  CHECK(cache.coded_tokens() > 200);
}

/// Squared errors of the scores of `queries` over coded rows, summed.
double score_error(const cache_type& cache, const token_stream& tokens, const std::vector<float>& queries) {
  std::vector<float> keys;
  std::vector<float> values;
  read_all(cache, keys, values);
  double error = 0.0;
  for (std::size_t q = 0; q < queries.size(); q += 32) {
    for (std::size_t t = 0; t < cache.size(); ++t) {
      double change = 0.0;
      for (std::size_t c = 0; c < 32; ++c) {
        change +=
            static_cast<double>(queries[q + c]) * static_cast<double>(keys[t * 32 + c] - tokens.rotated[t * 32 + c]);
      }
      error += change * change;
    }
  }
  return error;
}

TEST_CASE("a metric from the queries makes the scores of such queries better", "[cache]") {
  random_data random(18);
  CAPTURE(random.seed());
  bank_type bank;
  const token_stream tokens(random, 500, 32, 32, {});
  // Queries look along three directions only, spread over all sub-vectors.
  const std::vector<float> directions = random.normals(3 * 32);
  std::vector<float> queries(64 * 32);
  std::vector<std::int64_t> positions(64);
  std::vector<float> given(32 * 32);
  for (std::size_t q = 0; q < 64; ++q) {
    positions[q] = static_cast<std::int64_t>(100 + q);
    for (std::size_t d = 0; d < 3; ++d) {
      const float along = 0.2f * random.normal();
      for (std::size_t c = 0; c < 32; ++c) {
        queries[q * 32 + c] += along * directions[d * 32 + c];
      }
    }
    for (std::size_t i = 0; i < 32 * 32; ++i) {
      given[i] += queries[q * 32 + i / 32] * queries[q * 32 + i % 32];
    }
  }
  for (std::size_t c = 0; c < 32; ++c) {
    given[c * 33] += 0.5f;
  }
  double errors[4] = {};
  for (int variant = 0; variant < 4; ++variant) {
    cache_config config = small_config();
    config.keys.metric = variant != 0;
    config.keys.joint_passes = 2;
    config.keys.sweeps = 2;
    config.query_rows = 64;
    cache_type cache;
    REQUIRE_OK(cache_type::make(bank, config, {}, cache));
    REQUIRE_OK(cache.append(tokens.key_rows(0, 140), tokens.value_rows(0, 140)));
    training_options options;
    const rows_view rows = view_rows(queries.data(), 64, 32);
    if (variant == 1) {
      REQUIRE_OK(cache.observe(rows, positions.data()));
    } else if (variant == 2) {
      options.queries = rows;
      options.query_positions = positions.data();
    } else if (variant == 3) {
      options.key_metric = given.data();
    }
    REQUIRE_OK(cache.append(tokens.key_rows(140, 360), tokens.value_rows(140, 360), nullptr, options));
    CHECK((cache.memory().transforms_bytes != 0) == (variant != 0));
    errors[variant] = score_error(cache, tokens, queries);
  }
  CHECK(errors[1] < 0.5 * errors[0]);
  CHECK(errors[2] == errors[1]);
  CHECK(errors[3] < 0.5 * errors[0]);
}

TEST_CASE("bad queries and metrics are refused, and change nothing", "[cache]") {
  random_data random(19);
  CAPTURE(random.seed());
  bank_type bank;
  cache_config config = small_config();
  config.keys.metric = true;
  config.query_rows = 8;
  const token_stream tokens(random, 300, 32, 32, {});
  cache_type cache;
  REQUIRE_OK(cache_type::make(bank, config, {}, cache));
  REQUIRE_OK(cache.append(tokens.key_rows(0, 20), tokens.value_rows(0, 20)));
  std::vector<float> numbers = random.normals(32 * 32);
  const std::int64_t position = 3;
  CHECK(cache.observe(view_rows(numbers.data(), 1, 31), &position).code == status_code::shape_mismatch);
  CHECK(cache.observe(view_rows(numbers.data(), 1, 32), nullptr).code == status_code::invalid_argument);
  training_options options;
  options.key_metric = numbers.data();  // not positive definite
  CHECK(cache.append(tokens.key_rows(20, 280), tokens.value_rows(20, 280), nullptr, options).code ==
        status_code::invalid_argument);
  numbers[7] = std::numeric_limits<float>::infinity();
  CHECK(cache.append(tokens.key_rows(20, 280), tokens.value_rows(20, 280), nullptr, options).code ==
        status_code::not_finite);
  CHECK(cache.observe(view_rows(numbers.data(), 1, 32), &position).code == status_code::not_finite);
  CHECK(cache.size() == 20);
  CHECK(cache.memory().transforms_bytes == 0);
  check_against_rows(cache, bank, random, 1e-6);
  REQUIRE_OK(cache.append(tokens.key_rows(20, 280), tokens.value_rows(20, 280)));
  CHECK(cache.trained());
}

TEST_CASE("rotated values lose less where channels go together", "[cache]") {
  random_data random(20);
  CAPTURE(random.seed());
  bank_type bank;
  token_stream tokens(random, 500, 32, 32, {});
  const std::vector<float> mix = random.normals(4 * 32);
  for (std::size_t t = 0; t < 500; ++t) {  // four sources behind 32 channels, and a mean
    for (std::size_t c = 0; c < 32; ++c) {
      float value = 3.0f + 0.05f * tokens.values[t * 32 + c];
      for (std::size_t source = 0; source < 4; ++source) {
        value += mix[source * 32 + c] * tokens.keys[t * 32 + source];
      }
      tokens.values[t * 32 + c] = value;
    }
  }
  double errors[2] = {};
  for (const bool rotated : {false, true}) {
    cache_config config = small_config();
    config.values.rotated = rotated;
    cache_type cache;
    REQUIRE_OK(cache_type::make(bank, config, {}, cache));
    REQUIRE_OK(cache.append(tokens.key_rows(0, 500), tokens.value_rows(0, 500)));
    errors[rotated] = error_of(cache, tokens, 8, 460).values;
  }
  CHECK(errors[1] < 0.5 * errors[0]);
}

/// Keys and values of tokens from `first` on come from elsewhere.
void move_away(token_stream& tokens, std::size_t first) {
  for (std::size_t i = first * tokens.key_dim; i < tokens.keys.size(); ++i) {
    tokens.keys[i] = tokens.rotated[i] = 2.0f * tokens.keys[i] + 10.0f;
    tokens.values[i] = 2.0f * tokens.values[i] - 10.0f;
  }
}

TEST_CASE("windows have codebooks of their own", "[cache]") {
  random_data random(21);
  CAPTURE(random.seed());
  bank_type bank;
  token_stream tokens(random, 1000, 32, 32, {});
  // Each window's tokens lie elsewhere: one codebook has a quarter of its centroids for each.
  for (std::size_t i = 8 * 32; i < tokens.keys.size(); ++i) {
    const float away = 10.0f * static_cast<float>((i / 32 - 8) / 230);
    tokens.keys[i] = tokens.rotated[i] = tokens.keys[i] + away;
    tokens.values[i] -= away;
  }
  stored_error errors[2];
  for (const bool windows : {false, true}) {
    cache_config config = small_config();
    config.window_tokens = windows ? 230 : 0;
    cache_type cache;
    REQUIRE_OK(cache_type::make(bank, config, {}, cache));
    REQUIRE_OK(cache.append(tokens.key_rows(0, 1000), tokens.value_rows(0, 1000)));
    CHECK(cache.epoch_count() == (windows ? 4U : 1U));
    for (std::size_t i = 0; windows && i < 4; ++i) {
      CHECK(cache.epoch(i).first == i * 230);
    }
    errors[windows] = error_of(cache, tokens, 8, 960);
    check_against_rows(cache, bank, random, 2e-3, 5e-3);  // scores are in the hundreds
  }
  CHECK(errors[1].keys < 0.9 * errors[0].keys);
  CHECK(errors[1].values < 0.9 * errors[0].values);
}

TEST_CASE("tokens that codes serve badly stay exact, within the budget", "[cache]") {
  random_data random(22);
  CAPTURE(random.seed());
  bank_type bank;
  token_stream tokens(random, 700, 32, 32, {});
  const std::vector<std::size_t> odd = {470, 471, 500, 555, 600};
  // They come after training, which would have given them centroids: outliers of the keys, the values, or both.
  for (std::size_t i = 0; i < odd.size(); ++i) {
    for (std::size_t c = 0; c < 32; ++c) {
      const float distance = 30.0f * random.normal();
      if (i % 3 != 1) {
        tokens.keys[odd[i] * 32 + c] = tokens.rotated[odd[i] * 32 + c] = distance;
      }
      if (i % 3 != 0) {
        tokens.values[odd[i] * 32 + c] = -distance;
      }
    }
  }
  cache_config config = small_config();
  config.keys.shape.centroids = config.values.shape.centroids = 8;
  config.outlier_share = 0.1f;
  config.weight_exponent = 0.0f;
  cache_type cache;
  REQUIRE_OK(cache_type::make(bank, config, {}, cache));
  std::vector<float> weights(700, 1.0f);
  weights[300] = 1000.0f;  // an ordinary token that matters
  REQUIRE_OK(cache.append(tokens.key_rows(0, 450), tokens.value_rows(0, 450), weights.data()));
  append_singly(cache, tokens, 450, 700);
  CHECK(cache.outlier_tokens() >= odd.size());
  CHECK(cache.outlier_tokens() <= std::size_t(0.1 * double(cache.coded_tokens())));
  for (const std::size_t token : {300U, 470U, 471U, 500U, 555U, 600U}) {
    CAPTURE(token);
    const stored_error error = error_of(cache, tokens, token, token + 1);
    CHECK(error.keys + error.values == 0.0);
  }
  check_against_rows(cache, bank, random, 2e-3, 5e-3);  // scores are in the hundreds
}

TEST_CASE("drift is noticed and answered by a new epoch", "[cache]") {
  random_data random(23);
  CAPTURE(random.seed());
  bank_type bank;
  token_stream tokens(random, 1600, 32, 32, {});
  move_away(tokens, 600);
  cache_config config = small_config();
  config.refresh_above = 5.0f;
  config.refresh_tokens = 200;
  cache_type cache;
  REQUIRE_OK(cache_type::make(bank, config, {}, cache));
  append_singly(cache, tokens, 0, 600);
  CHECK(cache.epoch_count() == 1);
  CHECK(cache.drift().rows == 600 - 8 - 32);
  CHECK(cache.drift().largest() < 3.0f);
  std::size_t t = 600;
  for (; !cache.refreshing(); ++t) {
    REQUIRE(t < 900);
    append_singly(cache, tokens, t, t + 1);
  }
  CHECK(cache.drift().largest() > 5.0f);
  const std::size_t coded = cache.coded_tokens();
  append_singly(cache, tokens, t, t + 199);
  CHECK(cache.coded_tokens() == coded);  // collecting
  append_singly(cache, tokens, t + 199, 1600);
  CHECK(cache.epoch_count() == 2);
  CHECK_FALSE(cache.refreshing());
  CHECK(cache.epoch(1).first == coded);
  CHECK(cache.drift().largest() < 3.0f);
  const stored_error old_book = error_of(cache, tokens, 8 + coded - 20, 8 + coded);
  const stored_error new_book = error_of(cache, tokens, 1400, 1420);
  CHECK(new_book.keys < 0.3 * old_book.keys);
  CHECK(new_book.values < 0.3 * old_book.values);
  check_against_rows(cache, bank, random, 2e-3, 5e-3);  // scores are in the hundreds
}

TEST_CASE("configurations that cannot work are refused with a reason", "[cache]") {
  bank_type bank;
  cache_type cache;
  cache_config config = small_config();
  config.train_tokens = 20;
  CHECK(cache_type::make(bank, config, {}, cache).code == status_code::too_few_samples);
  config = small_config();
  config.keys.shape.subvectors = 33;
  CHECK(cache_type::make(bank, config, {}, cache).code == status_code::invalid_argument);
  config = small_config();
  config.recent = 150;
  CHECK(cache_type::make(bank, config, {}, cache).code == status_code::invalid_argument);
  config = small_config();
  config.max_training_tokens = 100;
  CHECK(cache_type::make(bank, config, {}, cache).code == status_code::invalid_argument);
  config = small_config();
  config.values.coded = false;
  config.values.shape.dim = 2000;
  CHECK(cache_type::make(bank, config, {}, cache).code == status_code::invalid_argument);
  const auto refused = [&](void (*spoil)(cache_config&), status_code code) {
    config = small_config();
    spoil(config);
    CHECK(cache_type::make(bank, config, {}, cache).code == code);
  };
  refused([](cache_config& c) { c.keys.rotated = true; }, status_code::unsupported);
  refused([](cache_config& c) { c.values.metric = true; }, status_code::unsupported);
  refused([](cache_config& c) { c.coding_batch = 0; }, status_code::invalid_argument);
  refused([](cache_config& c) { c.window_tokens = 31; }, status_code::too_few_samples);
  refused([](cache_config& c) { c.refresh_tokens = 31; }, status_code::too_few_samples);
  refused([](cache_config& c) { c.outlier_share = 0.6f; }, status_code::invalid_argument);
  refused([](cache_config& c) { c.refresh_above = -1.0f; }, status_code::invalid_argument);
  const rope_memory wide(64);
  config = small_config();
  config.rotation = wide.rotation;
  CHECK(cache_type::make(bank, config, {}, cache).code == status_code::shape_mismatch);
}

}  // namespace
