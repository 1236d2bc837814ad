// SPDX-License-Identifier: MIT
#include "scene.hpp"

#include <cmath>
#include <random>

#include "attention_op.hpp"
#include "tensor.hpp"

namespace ggml_op_example {

namespace {

constexpr std::size_t streams = 2;
constexpr std::size_t kv_heads = 3;
constexpr std::size_t group = 2;
constexpr std::size_t query_heads = kv_heads * group;
constexpr std::size_t dim_k = 40;
constexpr std::size_t dim_v = 32;
constexpr std::size_t steps[] = {300, 133, 1, 1, 4};  // chunks of prefill, decode, a few speculative tokens

/// All rows of the scene so far, per stream and head, for the definition.
struct history {
  std::vector<std::vector<float>> keys = std::vector<std::vector<float>>(streams * kv_heads);
  std::vector<std::vector<float>> values = keys;
};

std::vector<float> random_numbers(std::mt19937& random, std::size_t count) {
  std::vector<float> numbers(count);
  for (float& x : numbers) {
    x = static_cast<float>(random()) * 0x1p-31f - 1.0f;
  }
  return numbers;
}

/// A view in the order of ne; `strides` in elements.
tensor view(std::vector<float>& memory, const std::size_t (&ne)[4], const std::size_t (&strides)[4]) {
  tensor made;
  for (int i = 0; i < 4; ++i) {
    made.ne[i] = static_cast<std::int64_t>(ne[i]);
    made.nb[i] = strides[i] * sizeof(float);
  }
  made.data = memory.data();
  return made;
}

/// (dim, heads, tokens, streams) over memory (streams, tokens, heads, dim), as projections leave it.
tensor projection(std::vector<float>& memory, std::size_t dim, std::size_t heads, std::size_t tokens) {
  return view(memory, {dim, heads, tokens, streams}, {1, dim, dim * heads, dim * heads * tokens});
}

/// The same memory permuted to (dim, tokens, heads, streams), as attention operations want queries.
tensor permuted(std::vector<float>& memory, std::size_t dim, std::size_t heads, std::size_t tokens) {
  return view(memory, {dim, tokens, heads, streams}, {1, dim * heads, dim, dim * heads * tokens});
}

void remember(const std::vector<float>& memory, std::size_t dim, std::size_t tokens,
              std::vector<std::vector<float>>& rows) {
  for (std::size_t stream = 0; stream < streams; ++stream) {
    for (std::size_t token = 0; token < tokens; ++token) {
      for (std::size_t head = 0; head < kv_heads; ++head) {
        const float* row = memory.data() + ((stream * tokens + token) * kv_heads + head) * dim;
        rows[stream * kv_heads + head].insert(rows[stream * kv_heads + head].end(), row, row + dim);
      }
    }
  }
}

/// Attention of one query over the first `visible` tokens, by the definition.
void attend_by_definition(const float* query, const std::vector<float>& keys, const std::vector<float>& values,
                          std::size_t visible, double* out) {
  double total = 0.0;
  for (std::size_t c = 0; c < dim_v; ++c) {
    out[c] = 0.0;
  }
  for (std::size_t t = 0; t < visible; ++t) {
    double score = 0.0;
    for (std::size_t c = 0; c < dim_k; ++c) {
      score += double{query[c]} * double{keys[t * dim_k + c]};
    }
    const double weight = std::exp(score / std::sqrt(double{dim_k}));
    total += weight;
    for (std::size_t c = 0; c < dim_v; ++c) {
      out[c] += weight * double{values[t * dim_v + c]};
    }
  }
  for (std::size_t c = 0; c < dim_v; ++c) {
    out[c] /= total;
  }
}

/// Squared error and squared length of one step's output.
struct squares {
  double wrong = 0.0;
  double right = 0.0;
};

void compare(const std::vector<float>& queries, const std::vector<float>& out, const history& past, std::size_t tokens,
             squares& sums) {
  const std::size_t total = past.keys.front().size() / dim_k;
  for (std::size_t row = 0; row < streams * tokens * query_heads; ++row) {
    const std::size_t stream = row / (tokens * query_heads);
    const std::size_t token = row / query_heads % tokens;
    const std::size_t pair = stream * kv_heads + row % query_heads / group;
    double expected[dim_v];
    attend_by_definition(queries.data() + row * dim_k, past.keys[pair], past.values[pair], total - tokens + token + 1,
                         expected);
    for (std::size_t c = 0; c < dim_v; ++c) {
      const double difference = double{out[row * dim_v + c]} - expected[c];
      sums.wrong += difference * difference;
      sums.right += expected[c] * expected[c];
    }
  }
}

}  // namespace

pqattn::status run_scene(int threads, bool coded, scene_result& result) {
  pqattn::cache_config config;
  config.keys.shape = {dim_k, 10, 64};
  config.values.shape = {dim_v, 8, 64};
  config.keys.coded = config.values.coded = coded;
  config.exact_type = pqattn::dtype::f32;
  layer_state state;
  PQATTN_TRY(layer_state::make(config, kv_heads, streams, static_cast<std::size_t>(threads), state));

  std::mt19937 random(11);
  history past;
  squares sums;
  for (const std::size_t tokens : steps) {
    std::vector<float> keys = random_numbers(random, streams * tokens * kv_heads * dim_k);
    std::vector<float> values = random_numbers(random, streams * tokens * kv_heads * dim_v);
    std::vector<float> queries = random_numbers(random, streams * tokens * query_heads * dim_k);
    result.out.assign(streams * tokens * query_heads * dim_v, 0.0f);

    const tensor k = projection(keys, dim_k, kv_heads, tokens);
    const tensor v = projection(values, dim_v, kv_heads, tokens);
    const tensor q = permuted(queries, dim_k, query_heads, tokens);
    tensor appended;
    appended.src[0] = &k;
    appended.src[1] = &v;
    tensor attention = projection(result.out, dim_v, query_heads, tokens);
    attention.src[0] = &q;
    attention.src[1] = &appended;  // in ggml this edge makes the attention wait for the append
    compute({{&layer_state::begin_append, &appended, &state},
             {&layer_state::finish_append, &appended, &state},
             {&layer_state::attend, &attention, &state}},
            threads);
    PQATTN_TRY(state.outcome());

    remember(keys, dim_k, tokens, past.keys);
    remember(values, dim_v, tokens, past.values);
    compare(queries, result.out, past, tokens, sums);
  }
  result.nmse = sums.wrong / sums.right;
  result.tokens = state.tokens();
  result.coded_tokens = state.coded_tokens();
  result.bits_per_element = state.memory().bits_per_element();
  return {};
}

}  // namespace ggml_op_example
