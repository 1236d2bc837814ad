// SPDX-License-Identifier: MIT
// The library behind the engine's door: one pqattn::layer_cache per layer. Keys arrive rotated, are coded before RoPE,
// and attention is computed on the codes.
#pragma once

#include "kv_cache.hpp"
#include "outcome.hpp"

#include <pqattn/bank/host/host_bank.hpp>
#include <pqattn/cache/layer_cache.hpp>

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

namespace tiny_lm {

/// How both sides of every head are coded.
struct pqattn_setting {
  std::uint32_t subvectors = 16;
  std::uint32_t centroids = 256;
  std::uint32_t stages = 1;
  std::uint32_t train_tokens = 512;  ///< exact until then

  /// Bits of code per element of a row of `dim` elements.
  [[nodiscard]] double code_bits(std::size_t dim) const noexcept {
    const pqattn::geometry shape{static_cast<std::uint32_t>(dim), subvectors, centroids, stages};
    return static_cast<double>(shape.row_bits()) / static_cast<double>(dim);
  }
};

class pqattn_cache final : public kv_cache {
 public:
  static outcome make(const cache_shape& shape, const pqattn_setting& setting, std::unique_ptr<kv_cache>& cache);

  pqattn::status append(std::size_t layer, std::size_t position, std::span<const float> keys,
                        std::span<const float> values) override;
  pqattn::status attend(std::size_t layer, std::size_t position, std::span<const float> queries,
                        std::span<float> out) override;
  void reset() override;
  /// Codes, codebooks and exact rows of all layers, without the workspace of the one call that is under way.
  [[nodiscard]] cache_memory memory() const override;

 private:
  using bank = pqattn::host_bank<>;

  explicit pqattn_cache(const cache_shape& shape) : shape_(shape) {}
  pqattn::status make_layers();

  cache_shape shape_;
  pqattn::cache_config config_;
  std::vector<float> rope_tables_;
  bank bank_;
  std::vector<pqattn::layer_cache<bank>> layers_;
};

}  // namespace tiny_lm
