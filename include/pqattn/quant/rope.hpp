// SPDX-License-Identifier: MIT
// Rotary position embedding (RoPE) as data: which channels form a pair, and one frequency per pair.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../core/status.hpp"
#include "geometry.hpp"

namespace pqattn {
inline namespace v0 {

/// How channels pair up.
enum class rope_pairing : std::uint8_t {
  half_split,   ///< pair i is (i, i + pairs): Hugging Face LLaMA, NeoX
  interleaved,  ///< pair i is (2 i, 2 i + 1): llama2.c, GPT-J
};

/// One model's rotation. At position t, pair i of a key is turned by angle t * frequencies[i]:
///   x' = x cos - y sin,  y' = x sin + y cos.
/// Channels from 2 * pairs on are left alone (partial rotation). Context-extension scalings are folded
/// into the frequencies by the caller. `frequencies` is not owned.
struct rope {
  const float* frequencies = nullptr;  ///< radians per position, one per pair
  std::uint32_t pairs = 0;             ///< 0 means no rotation
  rope_pairing pairing = rope_pairing::half_split;

  [[nodiscard]] constexpr bool enabled() const noexcept { return pairs != 0; }
  [[nodiscard]] constexpr std::uint32_t first(std::uint32_t pair) const noexcept {
    return pairing == rope_pairing::half_split ? pair : 2 * pair;
  }
  [[nodiscard]] constexpr std::uint32_t second(std::uint32_t pair) const noexcept {
    return pairing == rope_pairing::half_split ? pair + pairs : 2 * pair + 1;
  }
};

/// Fills `frequencies[i] = theta^(-2 i / rotated_dim)` for i in [0, rotated_dim / 2). RoFormer, section 3.2.2.
inline void fill_rope_frequencies(float* frequencies, std::uint32_t rotated_dim, double theta) noexcept {
  for (std::uint32_t pair = 0; pair < rotated_dim / 2; ++pair) {
    frequencies[pair] = static_cast<float>(std::pow(theta, -2.0 * pair / rotated_dim));
  }
}

/// Whether the description fits a row of `dim` channels.
[[nodiscard]] inline status check_rope(const rope& rotation, std::uint32_t dim) noexcept {
  if (!rotation.enabled()) {
    return {};
  }
  if (rotation.frequencies == nullptr) {
    return failure(status_code::invalid_argument, "rope.frequencies", "is null although pairs is not 0");
  }
  if (2 * std::uint64_t{rotation.pairs} > dim) {
    return failure(status_code::shape_mismatch, "rope.pairs", "rotates more channels than a row has; at most dim / 2",
                   dim / 2, rotation.pairs);
  }
  return {};
}

/// Cosine and sine of position * frequency, accurate for any position: the angle is reduced in double.
struct rotation_angle {
  float cosine;
  float sine;
};

[[nodiscard]] inline rotation_angle angle_at(float frequency, std::int64_t position) noexcept {
  const double angle = static_cast<double>(frequency) * static_cast<double>(position);
  return {static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
}

/// Turns one f32 row in place by `position` steps (negative un-rotates). O(pairs).
inline void rotate_row(const rope& rotation, std::int64_t position, float* row) noexcept {
  for (std::uint32_t pair = 0; pair < rotation.pairs; ++pair) {
    const auto [cosine, sine] = angle_at(rotation.frequencies[pair], position);
    float& x = row[rotation.first(pair)];
    float& y = row[rotation.second(pair)];
    const float turned = x * cosine - y * sine;
    y = x * sine + y * cosine;
    x = turned;
  }
}

}  // namespace v0
}  // namespace pqattn
