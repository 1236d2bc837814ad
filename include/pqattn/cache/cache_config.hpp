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

/// Most epochs, codebooks that follow each other, of a cache or a pool.
inline constexpr std::size_t max_epochs = 64;
/// Highest position of a token in a sequence: positions are kept in 32 bits.
inline constexpr std::int64_t max_position = 0x7fffffff;

/// How the keys or the values of one KV head are kept.
struct side_config {
  bool coded = true;                                ///< false keeps every token exact
  geometry shape;                                   ///< dim is needed either way, the rest when coded
  codebook_storage storage = codebook_storage::i8;  ///< of the codebook
  /// Passes that refine all groups of the codebook together (train_codebook_jointly). Training takes two to three
  /// times as long; memory and reading stay the same. 0 leaves every group as its own k-means made it.
  std::uint32_t joint_passes = 0;
  /// Sweeps that choose a row's codes again (encode_with_metric): coding runs on the host, (1 + sweeps) times the work
  /// of one search, and each append that codes lays the codebook out once (see cache_config::coding_batch). 0 without a
  /// metric lets the bank code.
  std::uint32_t sweeps = 0;
  /// Keys only: train and code in the metric of the queries. It comes with the append that trains
  /// (training_options::key_metric) or is made from query rows (cache_config::query_rows); without either there is
  /// none. Costs d_k (d_k + 1) bytes a head, and coding on the host.
  bool metric = false;
  /// Values only: subtract the mean and turn to principal components before coding (train_value_rotation); the output
  /// of the coded part is turned back once per query row. Costs d_v (d_v + 8) bytes a head, d_v^2
  /// multiply-adds per query row and three times as many per token coded.
  bool rotated = false;

  /// Whether rows are coded on the host instead of by the bank.
  [[nodiscard]] constexpr bool coded_on_host() const noexcept { return coded && (metric || sweeps != 0); }
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
  /// Pools only. Above 0 a key has this many exact channels behind the coded ones of `keys.shape`, and RoPE turns these
  /// alone: the part of a latent key that carries positions (MLA). Queries have all channels.
  std::uint32_t key_tail = 0;
  /// Pools only. The coded channels of a key are also the token's value (MLA): one array of codes, one codebook, and
  /// rows that arrive once. `values` must then describe what `keys` does.
  bool values_from_keys = false;
  kmeans_params kmeans;
  /// Where a bank with several homes puts this head; a layer_cache gives its heads this one and the next ones.
  std::uint32_t home = 0;
  /// Query rows of the group that observe() keeps until training, thinned evenly over the positions: 0 keeps none. From
  /// them come the keys' metric and the importance of tokens. Costs d_k floats a row until training.
  std::uint32_t query_rows = 0;
  /// Tokens weigh in training by the attention they get from the last 32 query rows that training knows, instead of by
  /// the caller's weights.
  bool attention_weights = false;
  float softmax_scale = 0.0f;  ///< of the model, for metric and attention weights; 0 means 1 / sqrt(d_k)
  float metric_ridge = 0.05f;  ///< added to the metric's diagonal, whose mean is 1
  /// Tokens leave the recent window this many at a time: the window holds up to `coding_batch` - 1 more exact tokens,
  /// and what coding on the host costs per call is shared by as many. At most 4096.
  std::uint32_t coding_batch = 1;
  /// Above 0: an append that codes at least twice this many tokens trains a codebook for each run of as many (and one
  /// that comes after training and codes at least as many), each starting from the one before: AQPIM's windows. Each
  /// costs a codebook; together they cost less to train than one on all. Short appends use the last codebook.
  std::uint32_t window_tokens = 0;
  /// Share of the coded tokens that may stay exact, those with the largest importance * error: 16 bits an element and 4
  /// bytes a token more for each, and reserve for the whole share. Where later tokens are like those trained on about
  /// half of it is used. 0 codes every token.
  float outlier_share = 0.0f;
  /// Above 0: when the running error of newly coded tokens exceeds the training error this many times, the cache
  /// collects `refresh_tokens` exact tokens and trains the next epoch of its codebooks on them, starting from the last.
  float refresh_above = 0.0f;
  std::uint32_t refresh_tokens = 0;  ///< tokens a refresh trains on; 0 means four per centroid
  /// Keep the running error even if nothing refreshes by itself: a decode of each coded row.
  bool track_errors = false;
  /// Pools only. Most epochs of codebooks in memory, the newest included, 1 to 64: a refresh beyond it is refused until
  /// the last page of an older one has gone.
  std::uint32_t most_epochs = 8;
  /// Importance weights w are replaced by (w / mean)^exponent, then raised to at least `weight_floor`.
  float weight_exponent = 0.5f;
  float weight_floor = 0.05f;

  [[nodiscard]] constexpr bool codes_anything() const noexcept { return keys.coded || values.coded; }
  /// Largest magnitude of an arriving component whose exact form is finite: keys may be turned by any angle.
  [[nodiscard]] PQATTN_UNIT_MEMBER constexpr float largest_value() const noexcept { return largest_of(exact_type); }
  [[nodiscard]] PQATTN_UNIT_MEMBER constexpr float largest_key() const noexcept {
    return rotation.enabled() ? 0.7071f * largest_of(exact_type) : largest_of(exact_type);
  }

  [[nodiscard]] constexpr bool rotates_codes() const noexcept {
    return rotation.enabled() && keys.coded && !code_keys_after_rope && key_tail == 0;
  }
  /// Channels of a key, and of a query.
  [[nodiscard]] constexpr std::size_t key_channels() const noexcept { return std::size_t{keys.shape.dim} + key_tail; }
  /// train_tokens, with its default resolved.
  [[nodiscard]] constexpr std::size_t training_start() const noexcept {
    if (train_tokens != 0) {
      return train_tokens;
    }
    return 4 * most_centroids() + recent;
  }
  /// Centroids of the coded side that has more.
  [[nodiscard]] constexpr std::size_t most_centroids() const noexcept {
    const std::size_t key_centroids = keys.coded ? keys.shape.centroids : 0;
    const std::size_t value_centroids = values.coded ? values.shape.centroids : 0;
    return key_centroids > value_centroids ? key_centroids : value_centroids;
  }
  /// refresh_tokens, with its default resolved.
  [[nodiscard]] constexpr std::size_t refresh_start() const noexcept {
    return refresh_tokens != 0 ? refresh_tokens : 4 * most_centroids();
  }
  /// Whether coding measures what it loses.
  [[nodiscard]] PQATTN_UNIT_MEMBER constexpr bool measures_errors() const noexcept {
    return track_errors || refresh_above > 0.0f || outlier_share > 0.0f;
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
    return failure(status_code::too_few_samples, "config.train_tokens", "must be at least the number of centroids",
                   side.shape.centroids, training_tokens);
  }
  return {};
}

/// Keys with an exact tail, values that are keys.
[[nodiscard]] constexpr status check_latent(const cache_config& config) noexcept {
  if (config.key_tail == 0 && !config.values_from_keys) {
    return {};
  }
  if (!config.keys.coded) {
    return failure(status_code::unsupported, "config.key_tail or values_from_keys", "is for coded keys");
  }
  if (config.key_channels() > max_dim) {
    return failure(status_code::invalid_argument, "config.key_tail", "makes keys of more than 1024 channels", max_dim,
                   config.key_channels());
  }
  if (config.keys.metric || config.attention_weights || config.query_rows != 0) {
    return failure(status_code::unsupported, "config.keys.metric, attention_weights or query_rows",
                   "does not go with key_tail or values_from_keys: queries look at more than the coded channels, and "
                   "codes serve the values, too");
  }
  if (!config.values_from_keys) {
    return {};
  }
  if (!config.values.coded || config.values.rotated || config.values.storage != config.keys.storage ||
      config.values.joint_passes != config.keys.joint_passes || config.values.sweeps != config.keys.sweeps) {
    return failure(status_code::invalid_argument, "config.values", "must be as config.keys when values come from keys");
  }
  return check_same_geometry(config.keys.shape, config.values.shape, "config.values.shape");
}

/// NaN is refused, too.
[[nodiscard]] constexpr status check_not_negative(float value, const char* subject) noexcept {
  return value >= 0.0f ? status{} : failure(status_code::invalid_argument, subject, "must not be negative", 0, value);
}

/// The switches of one side, and the ones that need it.
[[nodiscard]] constexpr status check_switches(const cache_config& config) noexcept {
  if (config.keys.rotated || config.values.metric) {
    return failure(status_code::unsupported, "config.keys.rotated or values.metric",
                   "is not possible: keys have a metric, values a rotation");
  }
  if (config.values.rotated && config.values.shape.channel_order != nullptr) {
    return failure(status_code::unsupported, "config.values.shape.channel_order", "does not go with rotated values");
  }
  if (config.coding_batch < 1 || config.coding_batch > 4096) {
    return failure(status_code::invalid_argument, "config.coding_batch", "must be 1 to 4096", 4096,
                   config.coding_batch);
  }
  if (config.window_tokens != 0 && config.window_tokens < config.most_centroids()) {
    return failure(status_code::too_few_samples, "config.window_tokens", "must be at least the number of centroids",
                   config.most_centroids(), config.window_tokens);
  }
  if (config.refresh_start() < config.most_centroids()) {
    return failure(status_code::too_few_samples, "config.refresh_tokens", "must be at least the number of centroids",
                   config.most_centroids(), config.refresh_start());
  }
  if (config.most_epochs < 1 || config.most_epochs > max_epochs) {
    return failure(status_code::invalid_argument, "config.most_epochs", "must be 1 to 64", max_epochs,
                   config.most_epochs);
  }
  if (!(config.outlier_share >= 0.0f && config.outlier_share <= 0.5f)) {
    return failure(status_code::invalid_argument, "config.outlier_share", "must be 0 to 0.5", 0.5,
                   config.outlier_share);
  }
  PQATTN_TRY(check_not_negative(config.refresh_above, "config.refresh_above"));
  PQATTN_TRY(check_not_negative(config.metric_ridge, "config.metric_ridge"));
  return check_not_negative(config.softmax_scale, "config.softmax_scale");
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Whether a cache can be made of this.
[[nodiscard]] constexpr status check_config(const cache_config& config) noexcept {
  const std::size_t training = config.training_start();
  PQATTN_TRY(detail::check_side(config.keys, training, "config.keys"));
  PQATTN_TRY(detail::check_side(config.values, training, "config.values"));
  PQATTN_TRY(detail::check_latent(config));
  PQATTN_TRY(check_rope(config.rotation, config.key_tail != 0 ? config.key_tail : config.keys.shape.dim));
  if (config.codes_anything() && training <= config.recent) {
    return failure(status_code::invalid_argument, "config.train_tokens", "must be above the recent window",
                   std::size_t{config.recent} + 1, training);
  }
  if (config.codes_anything() && config.max_training_tokens < training) {
    return failure(status_code::invalid_argument, "config.max_training_tokens", "must be at least train_tokens",
                   training, config.max_training_tokens);
  }
  PQATTN_TRY(detail::check_switches(config));
  PQATTN_TRY(detail::check_not_negative(config.weight_exponent, "config.weight_exponent"));
  return detail::check_not_negative(config.weight_floor, "config.weight_floor");
}

}  // namespace PQATTN_ISA_UNIT

/// Bytes in use by a cache, as allocated, and what they come to.
struct memory_report {
  std::size_t codes_bytes = 0;       ///< code blocks of K and V, reserved
  std::size_t codebooks_bytes = 0;   ///< of all epochs, as the bank keeps them
  std::size_t transforms_bytes = 0;  ///< metric of the keys, rotation of the values
  std::size_t exact_bytes = 0;       ///< sinks, recent window, outliers, exact sides
  std::size_t metadata_bytes = 0;    ///< weights and queries waiting for training, epochs, lists
  std::size_t scratch_bytes = 0;     ///< workspace of append and attend
  std::size_t tokens = 0;
  std::size_t elements = 0;  ///< tokens * (d_k + d_v), over all heads

  [[nodiscard]] constexpr std::size_t total_bytes() const noexcept {
    return codes_bytes + codebooks_bytes + transforms_bytes + exact_bytes + metadata_bytes + scratch_bytes;
  }
  /// Bits per element of K and V with everything included but scratch.
  [[nodiscard]] constexpr double bits_per_element() const noexcept {
    return elements == 0 ? 0.0
                         : 8.0 * static_cast<double>(total_bytes() - scratch_bytes) / static_cast<double>(elements);
  }
  constexpr memory_report& operator+=(const memory_report& other) noexcept {
    codes_bytes += other.codes_bytes;
    codebooks_bytes += other.codebooks_bytes;
    transforms_bytes += other.transforms_bytes;
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
