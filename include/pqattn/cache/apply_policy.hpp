// SPDX-License-Identifier: MIT
// From a policy (written by hand, by suggest_policy or read from JSON) to the configurations of a layer's caches.
#pragma once

#include <cstddef>

#include "../core/status.hpp"
#include "cache_config.hpp"
#include "policy.hpp"

namespace pqattn {
inline namespace v0 {

/// Sets in `config`, which has everything a policy does not say (channels, channel orders, rotation, training), how one
/// KV head is kept: windows, which sides are coded and in what shape. One share of outliers serves both sides of a cache:
/// the larger one. `config` is not changed by an error: a shape that its channels do not allow.
[[nodiscard]] inline status apply_policy(const head_policy& policy, cache_config& config) noexcept {
  cache_config changed = config;
  changed.sinks = policy.sinks;
  changed.recent = policy.recent;
  changed.window_tokens = policy.window_tokens;
  changed.outlier_share = 0.0f;
  const auto apply = [&changed](const side_policy& wanted, side_config& side) noexcept {
    side.coded = !wanted.exact;
    if (wanted.exact) {
      return status{};
    }
    geometry shape = wanted.shape(side.shape.dim);
    shape.channel_order = side.shape.channel_order;
    side.shape = shape;
    side.storage = wanted.storage;
    changed.outlier_share = changed.outlier_share < wanted.outlier_share ? wanted.outlier_share : changed.outlier_share;
    return check_geometry(shape);
  };
  PQATTN_TRY(apply(policy.keys, changed.keys));
  PQATTN_TRY(apply(policy.values, changed.values));
  config = changed;
  return {};
}

}  // namespace v0
}  // namespace pqattn
