// SPDX-License-Identifier: MIT
#include <pqattn/cache/head_cache.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <vector>

#include "pqattn/bank/host/host_bank.hpp"
#include "support/memory_resources.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"
#include "support/reference.hpp"

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
      : count(tokens), key_dim(d_k), value_dim(d_v), keys(random.normals(tokens * d_k)),
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

/// Softmax attention of one query over given rows, in double.
std::vector<double> attention(const float* query, const std::vector<float>& keys, const std::vector<float>& values,
                              std::size_t tokens, std::size_t d_k, std::size_t d_v, double& lse) {
  std::vector<double> scores(tokens);
  double high = -1e300;
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t c = 0; c < d_k; ++c) {
      scores[t] += static_cast<double>(query[c]) * static_cast<double>(keys[t * d_k + c]);
    }
    scores[t] /= std::sqrt(static_cast<double>(d_k));
    high = std::max(high, scores[t]);
  }
  double sum = 0.0;
  std::vector<double> out(d_v);
  for (std::size_t t = 0; t < tokens; ++t) {
    const double p = std::exp(scores[t] - high);
    sum += p;
    for (std::size_t c = 0; c < d_v; ++c) {
      out[c] += p * static_cast<double>(values[t * d_v + c]);
    }
  }
  for (double& x : out) {
    x /= sum;
  }
  lse = high + std::log(sum);
  return out;
}

struct attended {
  std::vector<float> out;
  std::vector<float> lse;
};

attended attend_to(const cache_type& cache, bank_type& bank, const std::vector<float>& queries, std::size_t rows,
                   const attention_params& params = {}) {
  attend_scratch<bank_type> scratch(bank, {});
  const std::size_t d_v = cache.config().values.shape.dim;
  attended result{std::vector<float>(rows * d_v, -7.0f), std::vector<float>(rows, -7.0f)};
  REQUIRE_OK(cache.attend(view_rows(queries.data(), rows, cache.config().keys.shape.dim), params, scratch,
                          ref_rows(result.out.data(), rows, d_v), result.lse.data()));
  return result;
}

/// What the cache holds, as attention sees it.
void read_all(const cache_type& cache, std::vector<float>& keys, std::vector<float>& values) {
  const std::size_t d_k = cache.config().keys.shape.dim;
  const std::size_t d_v = cache.config().values.shape.dim;
  keys.resize(cache.size() * d_k);
  values.resize(cache.size() * d_v);
  REQUIRE_OK(cache.read(0, ref_rows(keys.data(), cache.size(), d_k), ref_rows(values.data(), cache.size(), d_v)));
}

/// Attention of the cache against double-precision attention over the rows it says it holds.
void check_against_rows(const cache_type& cache, bank_type& bank, random_data& random, double tolerance) {
  const std::size_t d_k = cache.config().keys.shape.dim;
  const std::size_t d_v = cache.config().values.shape.dim;
  const std::size_t rows = 3;
  const std::vector<float> queries = random.normals(rows * d_k, 2.0f);
  const attended got = attend_to(cache, bank, queries, rows);
  std::vector<float> keys;
  std::vector<float> values;
  read_all(cache, keys, values);
  double error = 0.0;
  double norm = 0.0;
  for (std::size_t row = 0; row < rows; ++row) {
    double lse = 0.0;
    const std::vector<double> expected =
        attention(queries.data() + row * d_k, keys, values, cache.size(), d_k, d_v, lse);
    CHECK_THAT(static_cast<double>(got.lse[row]), Catch::Matchers::WithinAbs(lse, 1e-4));
    for (std::size_t c = 0; c < d_v; ++c) {
      const double difference = static_cast<double>(got.out[row * d_v + c]) - expected[c];
      error += difference * difference;
      norm += expected[c] * expected[c];
    }
  }
  CHECK(std::sqrt(error / norm) < tolerance);
}

void append_singly(cache_type& cache, const token_stream& tokens, std::size_t first, std::size_t end) {
  for (std::size_t t = first; t < end; ++t) {
    REQUIRE_OK(cache.append(tokens.key_rows(t, 1), tokens.value_rows(t, 1)));
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
    for (const std::size_t step : {3, 100, 60, 1, 1, 300, 2, 1}) {
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
      bank_type plain;
      cache_config config = small_config();
      config.rotation = rope.rotation;
      cache_type cache;
      REQUIRE_OK(cache_type::make(bank, config, memory.resource(), cache));
      std::size_t held = 0;
      memory.fail_after = memory.allocations + fail;
      status last;
      for (const std::size_t step : {100, 60, 400, 1, 300}) {
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
  for (const std::size_t step : {1, 8, 100, 48, 1, 1, 500, 2000}) {
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
  const rope_memory wide(64);
  config = small_config();
  config.rotation = wide.rotation;
  CHECK(cache_type::make(bank, config, {}, cache).code == status_code::shape_mismatch);
}

}  // namespace
