// SPDX-License-Identifier: MIT
// From a policy (written by hand, by suggest_policy or read from JSON) to the configurations of a layer's caches.
#pragma once

#include <cstddef>

#include "../core/status.hpp"
#include "cache_config.hpp"
#include "policy.hpp"

namespace pqattn {
inline namespace v0 {
inline namespace PQATTN_ISA_UNIT {

/// Sets in `config`, which has everything a policy does not say (channels, channel orders, rotation, training), how one
/// KV head is kept: windows, which sides are coded and in what shape. One share of outliers serves both sides of a
/// cache: the larger one. `config` is not changed by an error: a shape that its channels do not allow, a share outside
/// 0 to 0.5.
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
    if (!(wanted.outlier_share >= 0.0f && wanted.outlier_share <= 0.5f)) {
      return failure(status_code::invalid_argument, "policy.outlier_share", "must be 0 to 0.5", 0.5,
                     wanted.outlier_share);
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

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
