// SPDX-License-Identifier: MIT
#include "pqattn_cache.hpp"

namespace tiny_lm {

outcome pqattn_cache::make(const cache_shape& shape, const pqattn_setting& setting, std::unique_ptr<kv_cache>& cache) {
  std::unique_ptr<pqattn_cache> made(new pqattn_cache(shape));
  pqattn::cache_config& config = made->config_;
  const auto dim = static_cast<std::uint32_t>(shape.head_dim);
  config.keys.shape = {dim, setting.subvectors, setting.centroids, setting.stages};
  config.values = config.keys;
  config.train_tokens = setting.train_tokens;

  std::vector<float> frequencies(dim / 2);
  pqattn::fill_rope_frequencies(frequencies.data(), dim, shape.rope_theta);
  made->rope_tables_.resize(pqattn::rope_floats(dim / 2));
  TINY_LM_TRY(pqattn::build_rope(frequencies.data(), dim / 2, pqattn::rope_pairing::half_split,
                                 made->rope_tables_.data(), config.rotation));
  TINY_LM_TRY(made->make_layers());
  cache = std::move(made);
  return {};
}

pqattn::status pqattn_cache::make_layers() {
  std::vector<pqattn::layer_cache<bank>> layers(shape_.layers);
  for (std::size_t layer = 0; layer < shape_.layers; ++layer) {
    pqattn::cache_config config = config_;
    config.kmeans.seed = pqattn::mix_seed(config_.kmeans.seed, layer);
    PQATTN_TRY(pqattn::layer_cache<bank>::make(bank_, config, shape_.kv_heads, {}, {}, layers[layer]));
  }
  layers_ = std::move(layers);
  return {};
}

pqattn::status pqattn_cache::append(std::size_t layer, std::size_t, std::span<const float> keys,
                                    std::span<const float> values) {
  const auto heads = [&](std::span<const float> rows) {
    return pqattn::head_rows{pqattn::view_rows(rows.data(), 1, shape_.head_dim), shape_.kv_heads,
                             static_cast<std::ptrdiff_t>(shape_.head_dim)};
  };
  return layers_[layer].append(heads(keys), heads(values));
}

pqattn::status pqattn_cache::attend(std::size_t layer, std::size_t position, std::span<const float> queries,
                                    std::span<float> out) {
  const auto head_stride = static_cast<std::ptrdiff_t>(shape_.head_dim);
  pqattn::layer_attention_params params;
  params.first_position = static_cast<std::int64_t>(position);
  return layers_[layer].attend(
      {pqattn::view_rows(queries.data(), 1, shape_.head_dim), shape_.query_heads, head_stride}, params,
      {pqattn::ref_rows(out.data(), 1, shape_.head_dim), shape_.query_heads, head_stride});
}

void pqattn_cache::reset() {
  // The layers existed before, so making them again can only fail for lack of memory; then the old ones stay empty.
  if (!make_layers()) {
    layers_.clear();
  }
}

cache_memory pqattn_cache::memory() const {
  pqattn::memory_report total;
  for (const auto& layer : layers_) {
    total += layer.memory();
  }
  return {total.total_bytes() - total.scratch_bytes, total.tokens};
}

}  // namespace tiny_lm
