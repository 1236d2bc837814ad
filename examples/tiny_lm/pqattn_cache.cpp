// SPDX-License-Identifier: MIT
#include "pqattn_cache.hpp"

#include <pqattn/bank/host/host_bank.hpp>
#include <pqattn/bank/pim/pim_bank.hpp>
#include <pqattn/bank/pim/presets.hpp>
#include <pqattn/bank/pim/report.hpp>
#include <pqattn/cache/layer_cache.hpp>

#include <span>
#include <string>
#include <vector>

namespace tiny_lm {
namespace {

/// One pqattn::layer_cache per layer, on any bank.
template <class Bank>
class pqattn_cache final : public kv_cache {
 public:
  explicit pqattn_cache(const cache_shape& shape) : shape_(shape) {}

  outcome prepare(const pqattn_setting& setting) {
    const auto dim = static_cast<std::uint32_t>(shape_.head_dim);
    config_.keys.shape = {dim, setting.subvectors, setting.centroids, setting.stages};
    config_.values = config_.keys;
    config_.train_tokens = setting.train_tokens;

    std::vector<float> frequencies(dim / 2);
    pqattn::fill_rope_frequencies(frequencies.data(), dim, shape_.rope_theta);
    rope_tables_.resize(pqattn::rope_floats(dim / 2));
    TINY_LM_TRY(pqattn::build_rope(frequencies.data(), dim / 2, pqattn::rope_pairing::half_split, rope_tables_.data(),
                                   config_.rotation));
    TINY_LM_TRY(make_layers());
    return {};
  }

  pqattn::status append(std::size_t layer, std::size_t, std::span<const float> keys,
                        std::span<const float> values) override {
    const auto heads = [&](std::span<const float> rows) {
      return pqattn::head_rows{pqattn::view_rows(rows.data(), 1, shape_.head_dim), shape_.kv_heads,
                               static_cast<std::ptrdiff_t>(shape_.head_dim)};
    };
    return layers_[layer].append(heads(keys), heads(values));
  }

  pqattn::status attend(std::size_t layer, std::size_t position, std::span<const float> queries,
                        std::span<float> out) override {
    const auto head_stride = static_cast<std::ptrdiff_t>(shape_.head_dim);
    pqattn::layer_attention_params params;
    params.first_position = static_cast<std::int64_t>(position);
    return layers_[layer].attend(
        {pqattn::view_rows(queries.data(), 1, shape_.head_dim), shape_.query_heads, head_stride}, params,
        {pqattn::ref_rows(out.data(), 1, shape_.head_dim), shape_.query_heads, head_stride});
  }

  void reset() override {
    // The layers existed before, so making them again can only fail for lack of memory; then the old ones stay empty.
    if (!make_layers()) {
      layers_.clear();
    }
  }

  /// Codes, codebooks and exact rows of all layers, without the workspace of the one call that is under way.
  [[nodiscard]] cache_memory memory() const override {
    pqattn::memory_report total;
    for (const auto& layer : layers_) {
      total += layer.memory();
    }
    return {total.total_bytes() - total.scratch_bytes, total.tokens};
  }

  [[nodiscard]] std::string account() const override {
    std::string text;
    if constexpr (requires { bank_.costs(); }) {
      pqattn::pim::write_text(bank_.costs(), [&](const char* line) { text += std::string(line) + "\n"; });
    }
    return text;
  }

  [[nodiscard]] Bank& bank() noexcept { return bank_; }

 private:
  cache_shape shape_;
  pqattn::cache_config config_;
  std::vector<float> rope_tables_;
  Bank bank_;
  std::vector<pqattn::layer_cache<Bank>> layers_;

  pqattn::status make_layers() {
    std::vector<pqattn::layer_cache<Bank>> layers(shape_.layers);
    for (std::size_t layer = 0; layer < shape_.layers; ++layer) {
      pqattn::cache_config config = config_;
      config.kmeans.seed = pqattn::mix_seed(config_.kmeans.seed, layer);
      PQATTN_TRY(pqattn::layer_cache<Bank>::make(bank_, config, shape_.kv_heads, {}, {}, layers[layer]));
    }
    layers_ = std::move(layers);
    return {};
  }
};

}  // namespace

outcome make_pqattn_cache(const cache_shape& shape, const pqattn_setting& setting, bank_kind bank,
                          std::unique_ptr<kv_cache>& cache) {
  if (bank == bank_kind::host) {
    auto made = std::make_unique<pqattn_cache<pqattn::host_bank<>>>(shape);
    TINY_LM_TRY(made->prepare(setting));
    cache = std::move(made);
    return {};
  }
  auto made = std::make_unique<pqattn_cache<pqattn::pim::pim_bank<>>>(shape);
  TINY_LM_TRY(made->bank().configure(pqattn::pim::hbm3_attacc()));
  TINY_LM_TRY(made->prepare(setting));
  cache = std::move(made);
  return {};
}

}  // namespace tiny_lm
