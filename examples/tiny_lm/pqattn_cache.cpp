// SPDX-License-Identifier: MIT
#include "pqattn_cache.hpp"

#include <pqattn/bank/host/host_bank.hpp>
#include <pqattn/bank/pim/pim_bank.hpp>
#include <pqattn/bank/pim/presets.hpp>
#include <pqattn/bank/pim/report.hpp>
#include <pqattn/cache/layer_cache.hpp>
#include <pqattn/cache/presets.hpp>

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

  pqattn::status prepare(const pqattn_setting& setting) {
    const auto dim = static_cast<std::uint32_t>(shape_.head_dim);
    std::vector<float> frequencies(dim / 2);
    pqattn::fill_rope_frequencies(frequencies.data(), dim, shape_.rope_theta);
    rope_tables_.resize(pqattn::rope_floats(dim / 2));
    pqattn::rope rotation;
    PQATTN_TRY(pqattn::build_rope(frequencies.data(), dim / 2, pqattn::rope_pairing::half_split, rope_tables_.data(),
                                  rotation));
    if (setting.coding == pqattn_coding::preset || setting.coding == pqattn_coding::best) {
      std::vector<std::byte> workspace(pqattn::preset_workspace_bytes());
      key_order_.resize(dim);
      PQATTN_TRY(pqattn::preset_config(dim, dim, rotation, static_cast<double>(setting.bits), setting.train_tokens,
                                       workspace.data(), workspace.size(), key_order_.data(), config_));
      config_.coding_batch = setting.coding == pqattn_coding::best ? 1 : config_.coding_batch;
    } else {
      configure_plain(setting, rotation);
    }
    return make_layers();
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
    const pqattn::head_rows rows{pqattn::view_rows(queries.data(), 1, shape_.head_dim), shape_.query_heads,
                                 head_stride};
    pqattn::layer_attention_params params;
    params.first_position = static_cast<std::int64_t>(position);
    PQATTN_TRY(layers_[layer].observe(rows, params.first_position));
    return layers_[layer].attend(rows, params,
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
    const std::size_t row_bits = config_.keys.shape.row_bits() + config_.values.shape.row_bits();
    const double outliers =
        pqattn::outlier_bits(static_cast<double>(config_.outlier_share), static_cast<double>(shape_.head_dim),
                             static_cast<double>(shape_.head_dim));
    const bool coded = !layers_.empty() && layers_.front().head(0).trained();
    return {total.total_bytes() - total.scratch_bytes, total.tokens,
            coded ? static_cast<double>(row_bits) / static_cast<double>(2 * shape_.head_dim) + outliers : 0.0};
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
  std::vector<std::uint16_t> key_order_;
  Bank bank_;
  std::vector<pqattn::layer_cache<Bank>> layers_;

  void configure_plain(const pqattn_setting& setting, const pqattn::rope& rotation) {
    const auto runs = static_cast<std::uint32_t>((shape_.head_dim * setting.bits + 7) / 8);
    config_.keys.shape = {static_cast<std::uint32_t>(shape_.head_dim), runs, 256, 1, nullptr};
    config_.keys.storage = pqattn::codebook_storage::f16;
    config_.values = config_.keys;
    config_.rotation = rotation;
    config_.kmeans.iterations = 25;
    config_.train_tokens = static_cast<std::uint32_t>(setting.train_tokens);
    config_.attention_weights = setting.coding == pqattn_coding::weighted;
    config_.query_rows = config_.attention_weights ? 512 : 0;
  }

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
