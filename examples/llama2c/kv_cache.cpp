// SPDX-License-Identifier: MIT
#include "kv_cache.hpp"

#include <pqattn/pqattn.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace llama2c {

namespace {

/// Two float buffers, scores by the definition.
class float_cache : public kv_cache {
 public:
  explicit float_cache(const model_shape& shape)
      : shape_(shape), keys_(static_cast<std::size_t>(shape.layers)), values_(keys_) {}

  pqattn::status append(std::size_t layer, std::span<const float> keys, std::span<const float> values) override {
    keys_[layer].insert(keys_[layer].end(), keys.begin(), keys.end());
    values_[layer].insert(values_[layer].end(), values.begin(), values.end());
    return {};
  }

  pqattn::status attend(std::size_t layer, std::span<const float> queries, std::span<float> out) override {
    const auto dim = static_cast<std::size_t>(shape_.head_dim());
    const auto kv_dim = static_cast<std::size_t>(shape_.kv_dim());
    const std::size_t tokens = keys_[layer].size() / kv_dim;
    std::vector<float> weights(tokens);
    for (std::size_t head = 0; head < static_cast<std::size_t>(shape_.heads); ++head) {
      const std::size_t first = head / static_cast<std::size_t>(shape_.heads / shape_.kv_heads) * dim;
      for (std::size_t t = 0; t < tokens; ++t) {
        const float* key = keys_[layer].data() + t * kv_dim + first;
        float score = 0.0f;
        for (std::size_t c = 0; c < dim; ++c) {
          score += queries[head * dim + c] * key[c];
        }
        weights[t] = score / std::sqrt(static_cast<float>(dim));
      }
      const float highest = *std::max_element(weights.begin(), weights.end());
      float total = 0.0f;
      for (float& weight : weights) {
        weight = std::exp(weight - highest);
        total += weight;
      }
      std::fill_n(out.begin() + static_cast<std::ptrdiff_t>(head * dim), dim, 0.0f);
      for (std::size_t t = 0; t < tokens; ++t) {
        for (std::size_t c = 0; c < dim; ++c) {
          out[head * dim + c] += weights[t] / total * values_[layer][t * kv_dim + first + c];
        }
      }
    }
    return {};
  }

  [[nodiscard]] std::size_t bytes() const override {
    std::size_t floats = 0;
    for (std::size_t layer = 0; layer < keys_.size(); ++layer) {
      floats += keys_[layer].size() + values_[layer].size();
    }
    return floats * sizeof(float);
  }
  [[nodiscard]] std::size_t coded_tokens() const override { return 0; }

 private:
  model_shape shape_;
  std::vector<std::vector<float>> keys_;
  std::vector<std::vector<float>> values_;
};

/// One pqattn::layer_cache per layer.
class pqattn_cache : public kv_cache {
 public:
  using bank = pqattn::host_bank<>;

  pqattn::status make(const model_shape& shape, bool coded, std::uint32_t train_tokens) {
    shape_ = shape;
    const auto dim = static_cast<std::uint32_t>(shape.head_dim());
    pqattn::cache_config config;
    config.keys.shape = config.values.shape = {dim, dim / 2, 64};
    config.keys.coded = config.values.coded = coded;
    config.exact_type = pqattn::dtype::f32;
    config.train_tokens = train_tokens;
    // llama2.c rotates neighbouring channels, with the usual base.
    std::vector<float> frequencies(dim / 2);
    pqattn::fill_rope_frequencies(frequencies.data(), dim, 10000.0);
    rope_tables_.resize(pqattn::rope_floats(dim / 2));
    PQATTN_TRY(pqattn::build_rope(frequencies.data(), dim / 2, pqattn::rope_pairing::interleaved, rope_tables_.data(),
                                  config.rotation));
    layers_.resize(static_cast<std::size_t>(shape.layers));
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
      pqattn::cache_config seeded = config;
      seeded.kmeans.seed = pqattn::mix_seed(config.kmeans.seed, layer);
      PQATTN_TRY(layers_[layer].make(bank_, seeded, static_cast<std::size_t>(shape.kv_heads), {}, {}, layers_[layer]));
    }
    return {};
  }

  pqattn::status append(std::size_t layer, std::span<const float> keys, std::span<const float> values) override {
    return layers_[layer].append(heads(keys, shape_.kv_heads), heads(values, shape_.kv_heads));
  }

  pqattn::status attend(std::size_t layer, std::span<const float> queries, std::span<float> out) override {
    pqattn::layer_attention_params params;
    params.first_position = static_cast<std::int64_t>(layers_[layer].size()) - 1;
    const auto dim = static_cast<std::size_t>(shape_.head_dim());
    return layers_[layer].attend(heads(queries, shape_.heads), params,
                                 {pqattn::ref_rows(out.data(), 1, dim), static_cast<std::size_t>(shape_.heads),
                                  static_cast<std::ptrdiff_t>(dim)});
  }

  [[nodiscard]] std::size_t bytes() const override {
    std::size_t total = 0;
    for (const auto& layer : layers_) {
      total += layer.memory().total_bytes() - layer.memory().scratch_bytes;
    }
    return total;
  }
  [[nodiscard]] std::size_t coded_tokens() const override { return layers_.front().head(0).coded_tokens(); }

 private:
  [[nodiscard]] pqattn::head_rows heads(std::span<const float> rows, std::int32_t count) const {
    const auto dim = static_cast<std::size_t>(shape_.head_dim());
    return {pqattn::view_rows(rows.data(), 1, dim), static_cast<std::size_t>(count), static_cast<std::ptrdiff_t>(dim)};
  }

  bank bank_;
  model_shape shape_;
  std::vector<float> rope_tables_;
  std::vector<pqattn::layer_cache<bank>> layers_;
};

}  // namespace

std::unique_ptr<kv_cache> make_cache(const std::string& name, const model_shape& shape, std::uint32_t train_tokens,
                                     std::string& problem) {
  if (name == "float") {
    return std::make_unique<float_cache>(shape);
  }
  if (name != "pqattn" && name != "pqattn-exact") {
    problem = "there is no cache " + name + "; try float, pqattn-exact or pqattn";
    return nullptr;
  }
  auto made = std::make_unique<pqattn_cache>();
  if (const pqattn::status done = made->make(shape, name == "pqattn", train_tokens); !done) {
    char text[200];
    done.format(text, sizeof text);
    problem = text;
    return nullptr;
  }
  return made;
}

}  // namespace llama2c
