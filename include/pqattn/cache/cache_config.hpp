// SPDX-License-Identifier: MIT
// What a KV-head cache keeps exact, what it codes and how, and what all of it costs in memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../core/status.hpp"
#include "../core/view.hpp"
#include "../quant/codebook_rounding.hpp"
#include "../quant/geometry.hpp"
#include "../quant/rope.hpp"
#include "../train/kmeans.hpp"

namespace pqattn {
inline namespace v0 {

/// How the keys or the values of one KV head are kept.
struct side_config {
  bool coded = true;                                 ///< false keeps every token exact
  geometry shape;                                    ///< dim is needed either way, the rest when coded
  codebook_storage storage = codebook_storage::i8;  ///< of the codebook
};

/// Configuration of one KV-head cache. Plain data; the rotation and channel orders it points to must outlive the cache.
struct cache_config {
  side_config keys;
  side_config values;
  std::uint32_t sinks = 8;    ///< first tokens kept exact for ever (paper: 8)
  std::uint32_t recent = 32;  ///< latest tokens kept exact (paper: 32)
  /// Tokens after the sinks at which codebooks are trained; until then everything is exact. 0 means four tokens per
  /// centroid. More tokens give better codebooks and a later start of the savings.
  std::uint32_t train_tokens = 0;
  /// Most tokens that training looks at when a long prompt arrives in one call: evenly spaced rows of all of it.
  std::uint32_t max_training_tokens = 8192;
  dtype exact_type = dtype::f16;  ///< of sinks, recent tokens and exact sides
  /// The model's RoPE. When enabled, keys are coded before RoPE: the cache un-rotates what it codes and rotates scores.
  rope rotation;
  bool keys_arrive_rotated = true;  ///< false: the engine hands over keys before RoPE; ignored without rotation
  /// With rotation enabled, code the keys as rotated instead (the paper's setting; faster, less accurate).
  bool code_keys_after_rope = false;
  kmeans_params kmeans;
  /// Where a bank with several homes puts this head; a layer_cache gives its heads this one and the next ones.
  std::uint32_t home = 0;
  /// Importance weights w are replaced by (w / mean)^exponent, then raised to at least `weight_floor`.
  float weight_exponent = 0.5f;
  float weight_floor = 0.05f;

  [[nodiscard]] constexpr bool codes_anything() const noexcept { return keys.coded || values.coded; }
  [[nodiscard]] constexpr bool rotates_codes() const noexcept {
    return rotation.enabled() && keys.coded && !code_keys_after_rope;
  }
  /// train_tokens, with its default resolved.
  [[nodiscard]] constexpr std::size_t training_start() const noexcept {
    if (train_tokens != 0) {
      return train_tokens;
    }
    const std::size_t key_centroids = keys.coded ? keys.shape.centroids : 0;
    const std::size_t value_centroids = values.coded ? values.shape.centroids : 0;
    const std::size_t most = key_centroids > value_centroids ? key_centroids : value_centroids;
    return 4 * most + recent;
  }
};

namespace detail {
inline namespace PQATTN_ISA_UNIT {

[[nodiscard]] constexpr status check_side(const side_config& side, std::size_t training_tokens,
                                          const char* subject) noexcept {
  if (!side.coded) {
    return side.shape.dim >= 1 && side.shape.dim <= max_dim
               ? status{}
               : failure(status_code::invalid_argument, subject, "has a dim outside 1 to 1024", max_dim,
                         side.shape.dim);
  }
  PQATTN_TRY(check_geometry(side.shape));
  if (training_tokens < side.shape.centroids) {
    return failure(status_code::too_few_samples, "config.train_tokens",
                   "must be at least the number of centroids", side.shape.centroids, training_tokens);
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Whether a cache can be made of this.
[[nodiscard]] constexpr status check_config(const cache_config& config) noexcept {
  const std::size_t training = config.training_start();
  PQATTN_TRY(detail::check_side(config.keys, training, "config.keys"));
  PQATTN_TRY(detail::check_side(config.values, training, "config.values"));
  PQATTN_TRY(check_rope(config.rotation, config.keys.shape.dim));
  if (config.codes_anything() && training <= config.recent) {
    return failure(status_code::invalid_argument, "config.train_tokens", "must be above the recent window",
                   config.recent + 1, training);
  }
  if (config.codes_anything() && config.max_training_tokens < training) {
    return failure(status_code::invalid_argument, "config.max_training_tokens", "must be at least train_tokens",
                   training, config.max_training_tokens);
  }
  if (!(config.weight_exponent >= 0.0f && config.weight_floor >= 0.0f)) {
    return failure(status_code::invalid_argument, "config.weight_exponent or weight_floor", "must not be negative");
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT

/// Bytes in use by a cache, as allocated, and what they come to.
struct memory_report {
  std::size_t codes_bytes = 0;      ///< code blocks of K and V, reserved
  std::size_t codebooks_bytes = 0;  ///< as the bank keeps them
  std::size_t exact_bytes = 0;      ///< sinks, recent window, exact sides
  std::size_t metadata_bytes = 0;   ///< weights waiting for training, lists
  std::size_t scratch_bytes = 0;    ///< workspace of append and attend
  std::size_t tokens = 0;
  std::size_t elements = 0;         ///< tokens * (d_k + d_v), over all heads

  [[nodiscard]] constexpr std::size_t total_bytes() const noexcept {
    return codes_bytes + codebooks_bytes + exact_bytes + metadata_bytes + scratch_bytes;
  }
  /// Bits per element of K and V with everything included but scratch.
  [[nodiscard]] constexpr double bits_per_element() const noexcept {
    return elements == 0 ? 0.0
                         : 8.0 * static_cast<double>(total_bytes() - scratch_bytes) / static_cast<double>(elements);
  }
  constexpr memory_report& operator+=(const memory_report& other) noexcept {
    codes_bytes += other.codes_bytes;
    codebooks_bytes += other.codebooks_bytes;
    exact_bytes += other.exact_bytes;
    metadata_bytes += other.metadata_bytes;
    scratch_bytes += other.scratch_bytes;
    tokens = other.tokens > tokens ? other.tokens : tokens;
    elements += other.elements;
    return *this;
  }
};

}  // namespace v0
}  // namespace pqattn
