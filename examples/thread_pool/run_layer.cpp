// SPDX-License-Identifier: MIT
#include "run_layer.hpp"

#include <pqattn/pqattn.hpp>

#include <cstring>
#include <random>

namespace thread_pool_example {

namespace {

constexpr std::size_t kv_heads = 5;
constexpr std::size_t query_heads = 10;
constexpr std::size_t dim = 32;
constexpr std::size_t prompt = 400;
constexpr std::size_t steps = 3;

/// Uniform numbers without std::normal_distribution, whose sequence differs between standard libraries.
std::vector<float> random_rows(std::mt19937& random, std::size_t count) {
  std::vector<float> rows(count);
  for (float& x : rows) {
    x = static_cast<float>(random()) * 0x1p-31f - 1.0f;
  }
  return rows;
}

pqattn::head_rows heads_of(const std::vector<float>& rows, std::size_t heads, std::size_t tokens) {
  return {pqattn::view_rows(rows.data(), tokens, dim), heads, static_cast<std::ptrdiff_t>(tokens * dim)};
}

void add_bits(const std::vector<float>& values, unsigned long long& hash) noexcept {
  for (const float value : values) {
    unsigned char bytes[sizeof value];
    std::memcpy(bytes, &value, sizeof value);
    for (const unsigned char byte : bytes) {
      hash = (hash ^ byte) * 1099511628211ULL;
    }
  }
}

}  // namespace

pqattn::status run_layer(const pqattn::executor& parts, layer_result& result) {
  std::mt19937 random(7);
  pqattn::host_bank<> bank;
  pqattn::cache_config config;
  config.keys.shape = config.values.shape = {dim, 8, 64};
  pqattn::layer_cache<pqattn::host_bank<>> layer;
  PQATTN_TRY(layer.make(bank, config, kv_heads, parts, {}, layer));
  result = {};
  for (std::size_t step = 0; step <= steps; ++step) {
    const std::size_t tokens = step == 0 ? prompt : 1;
    const std::vector<float> keys = random_rows(random, kv_heads * tokens * dim);
    const std::vector<float> values = random_rows(random, kv_heads * tokens * dim);
    const std::vector<float> queries = random_rows(random, query_heads * dim);
    PQATTN_TRY(layer.append(heads_of(keys, kv_heads, tokens), heads_of(values, kv_heads, tokens)));
    const std::size_t rows = result.lse_e.size();
    result.out.resize((rows + query_heads) * dim);
    result.lse_e.resize(rows + query_heads);
    pqattn::layer_attention_params params;
    params.first_position = static_cast<std::int64_t>(layer.size()) - 1;
    PQATTN_TRY(layer.attend(heads_of(queries, query_heads, 1), params,
                            {pqattn::ref_rows(result.out.data() + rows * dim, 1, dim), query_heads, dim},
                            result.lse_e.data() + rows));
  }
  result.coded_tokens = layer.head(0).coded_tokens();
  return {};
}

unsigned long long digest(const layer_result& result) noexcept {
  unsigned long long hash = 14695981039346656037ULL;
  add_bits(result.out, hash);
  add_bits(result.lse_e, hash);
  return hash;
}

}  // namespace thread_pool_example
