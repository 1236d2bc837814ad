// SPDX-License-Identifier: MIT
// The one door between the engine and whatever keeps its keys and values. The engine computes projections and RoPE;
// a cache stores rows and answers attention over them. To plug another cache in: derive, implement five functions,
// and name it in caches.cpp.
#pragma once

#include <pqattn/core/status.hpp>

#include <cstddef>
#include <span>
#include <string>

namespace tiny_lm {

/// What a cache needs to know of the model before the first token.
struct cache_shape {
  std::size_t layers = 0;
  std::size_t query_heads = 0;  ///< a multiple of kv_heads; query head h reads KV head h / (query_heads / kv_heads)
  std::size_t kv_heads = 0;
  std::size_t head_dim = 0;
  std::size_t max_tokens = 0;  ///< positions 0 .. max_tokens - 1 may be appended
  double rope_theta = 0.0;     ///< keys and queries arrive rotated: pairs (i, i + head_dim / 2), this base

  [[nodiscard]] std::size_t group() const noexcept { return query_heads / kv_heads; }
  [[nodiscard]] std::size_t kv_width() const noexcept { return kv_heads * head_dim; }
  [[nodiscard]] std::size_t query_width() const noexcept { return query_heads * head_dim; }

  /// Numbers of K and V together that `tokens` tokens put into the cache.
  [[nodiscard]] std::size_t elements(std::size_t tokens) const noexcept { return 2 * layers * kv_width() * tokens; }
};

/// What a cache costs.
struct cache_memory {
  std::size_t bytes = 0;   ///< everything held: rows or codes, codebooks, exact windows, workspace
  std::size_t tokens = 0;  ///< tokens appended since the last reset
  double code_bits = 0.0;  ///< bits of codes per coded element, scales included; 0 when nothing is coded
};

/// Keys and values of one sequence. Positions are appended in order, every layer once per position.
class kv_cache {
 public:
  virtual ~kv_cache() = default;

  /// Stores the rows of one position. keys (after RoPE) and values: [kv_heads][head_dim].
  virtual pqattn::status append(std::size_t layer, std::size_t position, std::span<const float> keys,
                                std::span<const float> values) = 0;

  /// out = softmax(q k / sqrt(head_dim)) v over what was appended, `position` included.
  /// queries (after RoPE) and out: [query_heads][head_dim]. Pre: append(layer, position, ...) was called.
  virtual pqattn::status attend(std::size_t layer, std::size_t position, std::span<const float> queries,
                                std::span<float> out) = 0;

  /// Forgets the sequence; memory may be kept.
  virtual void reset() = 0;

  [[nodiscard]] virtual cache_memory memory() const = 0;

  /// What the memory bank behind the cache counted so far, as text; empty where nothing is counted.
  [[nodiscard]] virtual std::string account() const { return {}; }

 protected:
  kv_cache() = default;
  kv_cache(const kv_cache&) = default;
  kv_cache& operator=(const kv_cache&) = default;
};

}  // namespace tiny_lm
