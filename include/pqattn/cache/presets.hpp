// SPDX-License-Identifier: MIT
// Cache configurations named by their code bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "../config.hpp"
#include "../quant/rope.hpp"
#include "../train/channel_order.hpp"
#include "cache_config.hpp"
#include "policy.hpp"

namespace pqattn {
inline namespace v0 {

inline namespace PQATTN_ISA_UNIT {

/// Fills `config` with what serves best within `budget`: a plain number is mean code bits per element over K and V,
/// outliers included, about 1, 2, 3 and 4 being the usual ones; {bits, tokens} is everything there is at that context
/// length (bit_budget). The study's pq_best is the same. Shapes come from choose_preset (whose workspace it needs) for
/// codebooks taught by `training_rows` tokens: additive stages trained together, keys in the metric of the queries and
/// with rotation pairs side by side, values turned to principal components, codes chosen with two sweeps, bytes for
/// centroids, rows weighted by tempered attention, the tokens that codes serve worst kept exact.
///
/// `rotation` is the model's RoPE, value-initialised for none; it and `key_order` (d_k entries, written) must outlive
/// the cache or pool. Show it (or a pool's sequence) its queries with observe(), or pass a metric with the append that
/// trains; without either keys are coded without a metric and all tokens weigh the same. Change any field afterwards.
///
/// Caches keep an outlier's key and value apart, a page_pool both together and at most so many of each page: for a pool
/// budget.without_outliers(), which spends their bits on codes, is the smaller choice.
///
/// What it costs besides code bits, per head: stages * d * K bytes of codebook for K and for V (at d = 64 and 2 bits
/// from 1536 rows 98 KiB), d_k (d_k + 1) + d_v^2 + 8 d_v bytes of transforms, 40 exact tokens and up to 63 more that
/// wait for their block (a budget with tokens counts half of 15); training about as long as three plain ones.
/// docs/accuracy.md has the measured figures. Errors: as choose_preset; a rotation that does not fit d_k; training rows
/// that a context of budget.tokens does not have behind its sinks, which would stay exact.
inline status preset_config(std::uint32_t key_dim, std::uint32_t value_dim, const rope& rotation, bit_budget budget,
                            std::size_t training_rows, void* workspace, std::size_t workspace_bytes,
                            std::uint16_t* key_order, cache_config& config) noexcept {
  PQATTN_TRY(check_rope(rotation, key_dim));
  cache_config made;
  made.coding_batch = budget.tokens == 0 ? static_cast<std::uint32_t>(block_tokens) : 16;
  const std::size_t most_rows = budget.tokens == 0 ? (std::numeric_limits<std::uint32_t>::max)()
                                                   : budget.tokens - (std::min)(budget.tokens, std::size_t{made.sinks});
  if (training_rows > most_rows) {
    return failure(status_code::invalid_argument, "training_rows",
                   "must lie behind the sinks of a context of budget.tokens", most_rows, training_rows);
  }
  budget.exact_tokens = std::size_t{made.sinks} + made.recent + made.coding_batch / 2;
  pq_preset shapes;
  PQATTN_TRY(choose_preset(key_dim, value_dim, budget, training_rows, workspace, workspace_bytes, shapes));
  fill_pair_order(rotation, key_dim, key_order);
  made.rotation = rotation;
  made.keys.shape = shapes.keys;
  made.keys.shape.channel_order = key_order;
  made.keys.metric = shapes.metric;
  made.values.shape = shapes.values;
  made.values.rotated = shapes.rotated;
  made.outlier_share = shapes.outlier_share;
  for (side_config* side : {&made.keys, &made.values}) {
    side->joint_passes = 4;
    side->sweeps = 2;
  }
  made.attention_weights = true;
  made.kmeans.iterations = 12;
  made.query_rows = 512;
  const std::size_t least = std::size_t{made.recent} + 1;
  made.train_tokens = static_cast<std::uint32_t>(training_rows < least ? least : training_rows);
  if (made.max_training_tokens < made.train_tokens) {
    made.max_training_tokens = made.train_tokens;
  }
  config = made;
  return {};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
