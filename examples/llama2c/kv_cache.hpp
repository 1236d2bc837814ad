// SPDX-License-Identifier: MIT
// Where a run keeps keys and values, switched by name: what llama2.c does with two float buffers, or pqattn.
#pragma once

#include <pqattn/core/status.hpp>

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "checkpoint.hpp"

namespace llama2c {

/// Keys and values of one sequence, position after position, every layer once per position.
class kv_cache {
 public:
  virtual ~kv_cache() = default;
  /// Stores one token. keys (after RoPE) and values: (kv_heads, head_dim).
  virtual pqattn::status append(std::size_t layer, std::span<const float> keys, std::span<const float> values) = 0;
  /// Attention of queries (heads, head_dim), after RoPE, over all tokens of the layer, into out (heads, head_dim).
  virtual pqattn::status attend(std::size_t layer, std::span<const float> queries, std::span<float> out) = 0;
  [[nodiscard]] virtual std::size_t bytes() const = 0;
  /// Tokens that are not kept exact.
  [[nodiscard]] virtual std::size_t coded_tokens() const = 0;

 protected:
  kv_cache() = default;
  kv_cache(const kv_cache&) = default;
  kv_cache& operator=(const kv_cache&) = default;
};

/// "float": the plain loops of llama2.c. "pqattn-exact": pqattn, every row kept in f32. "pqattn": 3 bits
/// per element (2 channels per sub-vector, 64 centroids), trained at `train_tokens` tokens, 0 for the library's default
/// of four per centroid. Null with a message for anything else.
std::unique_ptr<kv_cache> make_cache(const std::string& name, const model_shape& shape, std::uint32_t train_tokens,
                                     std::string& problem);

}  // namespace llama2c
