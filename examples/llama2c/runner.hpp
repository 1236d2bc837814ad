// SPDX-License-Identifier: MIT
// The forward pass of a llama2.c model over an exchangeable KV cache.
#pragma once

#include <pqattn/core/status.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "checkpoint.hpp"
#include "kv_cache.hpp"

namespace llama2c {

/// One sequence. Both references must outlive it.
class runner {
 public:
  runner(const checkpoint& model, kv_cache& cache);

  /// Takes one token at the next position; `logits()` are then its.
  pqattn::status forward(std::int32_t token);
  [[nodiscard]] std::span<const float> logits() const noexcept { return logits_; }
  [[nodiscard]] std::int32_t most_likely() const noexcept;

 private:
  pqattn::status attention(std::size_t layer);
  void feed_forward(std::size_t layer);

  const checkpoint* model_;
  kv_cache* cache_;
  std::int64_t position_ = 0;
  std::vector<float> state_, normed_, queries_, keys_, values_, mixed_, projected_, gate_, up_, logits_;
};

/// What comparing two caches over one text gives.
struct comparison {
  double largest_difference = 0.0;  ///< of logits
  double nmse = 0.0;                ///< of logits, over all tokens
  double kl = 0.0;                  ///< mean KL divergence of the next-token distributions, nats
  std::size_t same_top = 0;         ///< tokens with the same most likely next token
  std::size_t tokens = 0;
  std::size_t coded_tokens = 0;
  std::size_t bytes = 0;  ///< of the second cache
};

/// Runs `tokens` through the model with `reference` and with `cache`.
bool compare(const checkpoint& model, std::span<const std::int32_t> tokens, const std::string& reference,
             const std::string& cache, std::uint32_t train_tokens, comparison& result, std::string& problem);

/// Text for comparisons: seeded random tokens.
std::vector<std::int32_t> random_tokens(const model_shape& shape, std::size_t count, std::uint64_t seed);

}  // namespace llama2c
