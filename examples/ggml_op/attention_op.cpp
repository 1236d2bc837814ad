// SPDX-License-Identifier: MIT
#include "attention_op.hpp"

namespace ggml_op_example {

using pqattn::failure;
using pqattn::status;
using pqattn::status_code;

namespace {

pqattn::dtype dtype_of(element_type type) noexcept {
  return type == element_type::f32   ? pqattn::dtype::f32
         : type == element_type::f16 ? pqattn::dtype::f16
                                     : pqattn::dtype::bf16;
}

/// The rows along dimension `rows_dimension` of the matrix that starts at `offset` bytes. pqattn's strides are in
/// elements, ggml's in bytes: they must divide.
template <class View>
status matrix_of(const tensor& source, std::size_t offset, int rows_dimension, View& result) {
  const pqattn::dtype type = dtype_of(source.type);
  const std::size_t size = pqattn::size_of(type);
  if (source.nb[0] % size != 0 || source.nb[rows_dimension] % size != 0) {
    return failure(status_code::unsupported, "tensor.nb", "must be whole elements; element size", size,
                   source.nb[0] % size != 0 ? source.nb[0] : source.nb[rows_dimension]);
  }
  result = {static_cast<std::byte*>(source.data) + offset,
            type,
            static_cast<std::size_t>(source.ne[rows_dimension]),
            static_cast<std::size_t>(source.ne[0]),
            static_cast<std::ptrdiff_t>(source.nb[rows_dimension] / size),
            static_cast<std::ptrdiff_t>(source.nb[0] / size)};
  return {};
}

/// New rows of one KV head: tokens are dimension 2, heads dimension 1.
status new_rows(const tensor& source, std::size_t stream, std::size_t head, pqattn::rows_view& result) {
  return matrix_of(source, stream * source.nb[3] + head * source.nb[1], 2, result);
}

}  // namespace

status layer_state::make(const pqattn::cache_config& config, std::size_t kv_heads, std::size_t streams,
                         std::size_t max_threads, layer_state& result) {
  result.kv_heads_ = kv_heads;
  result.key_dim_ = config.keys.shape.dim;
  result.value_dim_ = config.values.shape.dim;
  result.caches_.clear();
  result.caches_.resize(kv_heads * streams);
  result.outcomes_.assign(kv_heads * streams, {});
  result.begun_.assign(kv_heads * streams, 0);
  for (std::size_t pair = 0; pair < result.caches_.size(); ++pair) {
    pqattn::cache_config seeded = config;
    seeded.kmeans.seed = pqattn::mix_seed(config.kmeans.seed, pair);
    PQATTN_TRY(pqattn::head_cache<bank>::make(result.bank_, seeded, {}, result.caches_[pair]));
  }
  result.threads_.clear();
  for (std::size_t thread = 0; thread < max_threads; ++thread) {
    result.threads_.push_back({pqattn::attend_scratch<bank>(result.bank_, {}), {}, {}, {}});
  }
  return {};
}

status layer_state::outcome() const {
  for (const status& one : outcomes_) {
    PQATTN_TRY(one);
  }
  return {};
}

pqattn::memory_report layer_state::memory() const {
  pqattn::memory_report report;
  for (const auto& cache : caches_) {
    report += cache.memory();
  }
  return report;
}

void layer_state::begin_append(tensor* dst, int ith, int nth, void* userdata) {
  auto& state = *static_cast<layer_state*>(userdata);
  for (auto pair = static_cast<std::size_t>(ith); pair < state.caches_.size(); pair += static_cast<std::size_t>(nth)) {
    pqattn::rows_view keys;
    pqattn::rows_view values;
    status& outcome = state.outcomes_[pair];
    outcome = new_rows(*dst->src[0], pair / state.heads(), pair % state.heads(), keys);
    if (outcome) {
      outcome = new_rows(*dst->src[1], pair / state.heads(), pair % state.heads(), values);
    }
    if (outcome) {
      outcome = state.caches_[pair].begin_append(keys, values, nullptr, {});
    }
    state.begun_[pair] = outcome.ok();
  }
}

void layer_state::finish_append(tensor* dst, int ith, int nth, void* userdata) {
  auto& state = *static_cast<layer_state*>(userdata);
  // Written before the barrier, only read here: every thread comes to the same answer.
  const bool all_begun = state.outcome().ok();
  for (auto pair = static_cast<std::size_t>(ith); pair < state.caches_.size(); pair += static_cast<std::size_t>(nth)) {
    if (!all_begun) {
      if (state.begun_[pair]) {
        state.caches_[pair].cancel_append();
      }
      continue;
    }
    pqattn::rows_view keys;
    pqattn::rows_view values;
    static_cast<void>(new_rows(*dst->src[0], pair / state.heads(), pair % state.heads(), keys));
    static_cast<void>(new_rows(*dst->src[1], pair / state.heads(), pair % state.heads(), values));
    state.caches_[pair].finish_append(keys, values, nullptr);
  }
}

void layer_state::attend(tensor* dst, int ith, int nth, void* userdata) {
  auto& state = *static_cast<layer_state*>(userdata);
  const auto thread = static_cast<std::size_t>(ith);
  for (std::size_t pair = thread; pair < state.caches_.size(); pair += static_cast<std::size_t>(nth)) {
    if (!state.outcomes_[pair]) {
      continue;  // the append failed; the engine sees outcome()
    }
    state.outcomes_[pair] =
        thread < state.threads_.size()
            ? state.attend_pair(*dst->src[0], *dst, pair / state.heads(), pair % state.heads(), state.threads_[thread])
            : failure(status_code::invalid_argument, "nth", "is above max_threads", state.threads_.size(), nth);
  }
}

status layer_state::attend_pair(const tensor& queries, const tensor& out, std::size_t stream, std::size_t head,
                                thread_memory& memory) {
  const auto tokens = static_cast<std::size_t>(queries.ne[1]);
  const auto query_heads = static_cast<std::size_t>(queries.ne[2]);
  const pqattn::head_cache<bank>& cache = caches_[stream * kv_heads_ + head];
  if (query_heads % kv_heads_ != 0 || tokens > cache.size()) {
    return failure(status_code::shape_mismatch, "queries.ne", "must be whole groups and tokens of the cache; heads",
                   kv_heads_, query_heads);
  }
  // All query heads of the group and all query tokens scan the codes once, as rows of one call.
  const std::size_t group = query_heads / kv_heads_;
  const std::size_t rows = group * tokens;
  memory.queries.resize(rows * key_dim_);
  memory.out.resize(rows * value_dim_);
  memory.positions.resize(rows);
  for (std::size_t member = 0; member < group; ++member) {
    pqattn::rows_view source;
    PQATTN_TRY(matrix_of(queries, stream * queries.nb[3] + (head * group + member) * queries.nb[2], 1, source));
    for (std::size_t token = 0; token < tokens; ++token) {
      const std::size_t row = member * tokens + token;
      pqattn::load_row(source, token, memory.queries.data() + row * key_dim_);
      memory.positions[row] = static_cast<std::int64_t>(cache.size() - tokens + token);
    }
  }
  pqattn::attention_params params;
  params.modifiers.causal = true;
  params.modifiers.query_positions = memory.positions.data();
  PQATTN_TRY(cache.attend(pqattn::view_rows(memory.queries.data(), rows, key_dim_), params, memory.scratch,
                          pqattn::ref_rows(memory.out.data(), rows, value_dim_), nullptr));
  for (std::size_t member = 0; member < group; ++member) {
    pqattn::rows_ref target;
    PQATTN_TRY(matrix_of(out, stream * out.nb[3] + (head * group + member) * out.nb[1], 2, target));
    for (std::size_t token = 0; token < tokens; ++token) {
      pqattn::store_row(target, token, memory.out.data() + (member * tokens + token) * value_dim_);
    }
  }
  return {};
}

}  // namespace ggml_op_example
