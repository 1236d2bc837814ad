// SPDX-License-Identifier: MIT
// The cache formats that the library is compared with, behind the same door: rows are replaced by what the format reads
// back, and its bits are counted. Exact until enough tokens are there, then 8 first and 32 last tokens stay exact.
#pragma once

#include "exact_cache.hpp"
#include "kv_cache.hpp"

#include <pqattn/study/baseline.hpp>

#include <cstddef>
#include <span>
#include <vector>

namespace tiny_lm {

class baseline_cache final : public kv_cache {
 public:
  /// Codes from `coding_start` tokens behind the first 8 on.
  baseline_cache(const cache_shape& shape, pqattn::baseline_format format, std::size_t coding_start);

  pqattn::status append(std::size_t layer, std::size_t position, std::span<const float> keys,
                        std::span<const float> values) override;
  pqattn::status attend(std::size_t layer, std::size_t position, std::span<const float> queries,
                        std::span<float> out) override;
  void reset() override;
  /// What the format would hold: its codes and scales, and exact tokens in f16.
  [[nodiscard]] cache_memory memory() const override;

 private:
  static constexpr std::size_t sinks = 8;
  static constexpr std::size_t recent = 32;

  /// Tokens of a layer that are coded once `tokens` are there.
  [[nodiscard]] std::size_t coded_by(std::size_t tokens) const noexcept;
  pqattn::status code_rows(std::size_t layer, std::size_t first, std::size_t last);

  cache_shape shape_;
  pqattn::baseline_format format_;
  std::size_t coding_start_;
  std::size_t batch_;               ///< tokens coded together: KIVI scales keys over 32 of them
  exact_cache rows_;                ///< as the format reads them back
  std::vector<std::size_t> coded_;  ///< tokens behind the sinks, per layer
  std::size_t spent_bits_ = 0;
  std::size_t tokens_ = 0;
};

}  // namespace tiny_lm
