// SPDX-License-Identifier: MIT
// Rows as they come, in f32, and attention by the definition: the reference every other cache is judged by.
// With fewer slots than tokens it becomes the plainest way to save memory, a sliding window that drops old tokens.
#pragma once

#include "kv_cache.hpp"
#include "linear.hpp"

#include <cstddef>
#include <span>
#include <vector>

namespace tiny_lm {

class exact_cache final : public kv_cache {
 public:
  /// Keeps every token.
  explicit exact_cache(const cache_shape& shape) : exact_cache(shape, 0, shape.max_tokens) {}

  /// Keeps the first `sinks` tokens and the `recent` last ones. recent >= 1.
  exact_cache(const cache_shape& shape, std::size_t sinks, std::size_t recent);

  pqattn::status append(std::size_t layer, std::size_t position, std::span<const float> keys,
                        std::span<const float> values) override;
  pqattn::status attend(std::size_t layer, std::size_t position, std::span<const float> queries,
                        std::span<float> out) override;
  void reset() override { tokens_ = 0; }
  [[nodiscard]] cache_memory memory() const override;

  /// Keys or values of positions [first, last) of a cache that keeps every token, row after row: whoever changes them
  /// shows what another format would make of them.
  [[nodiscard]] std::span<float> rows_of(std::size_t layer, std::size_t kv_head, bool keys, std::size_t first,
                                         std::size_t last) {
    matrix& kept = keys ? rows(layer, kv_head).keys : rows(layer, kv_head).values;
    return {kept.data() + first * shape_.head_dim, (last - first) * shape_.head_dim};
  }

 private:
  /// Rows of one KV head of one layer: [slots][head_dim].
  struct head_rows {
    matrix keys;
    matrix values;
  };

  [[nodiscard]] std::size_t slots() const noexcept { return sinks_ + recent_; }
  [[nodiscard]] std::size_t slot_of(std::size_t position) const noexcept;
  [[nodiscard]] head_rows& rows(std::size_t layer, std::size_t kv_head) {
    return rows_[layer * shape_.kv_heads + kv_head];
  }
  void attend_head(const head_rows& head, std::size_t filled, std::span<const float> query, std::span<float> out);

  cache_shape shape_;
  std::size_t sinks_;
  std::size_t recent_;
  std::size_t tokens_ = 0;
  std::vector<head_rows> rows_;  // [layer][kv_head]
  vector scores_;                // [slots]
};

}  // namespace tiny_lm
