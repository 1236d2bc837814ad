// SPDX-License-Identifier: MIT
// The library behind the engine's door: one pqattn::layer_cache per layer. Keys arrive rotated, are coded before RoPE,
// and attention is computed on the codes.
#pragma once

#include "kv_cache.hpp"
#include "outcome.hpp"

#include <pqattn/quant/geometry.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>

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

/// Which memory bank keeps the codes and computes on them.
enum class bank_kind { host, pim };

/// Makes a cache of coded layers on a bank of its own.
outcome make_pqattn_cache(const cache_shape& shape, const pqattn_setting& setting, bank_kind bank,
                          std::unique_ptr<kv_cache>& cache);

}  // namespace tiny_lm
