// SPDX-License-Identifier: MIT
// Rotary position embedding (RoPE) as data: which channels form a pair, and one frequency per pair.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../config.hpp"
#include "../core/half.hpp"
#include "../core/status.hpp"
#include "geometry.hpp"

namespace pqattn {
inline namespace v0 {

/// How channels pair up.
enum class rope_pairing : std::uint8_t {
  half_split,   ///< pair i is (i, i + pairs): Hugging Face LLaMA, NeoX
  interleaved,  ///< pair i is (2 i, 2 i + 1): llama2.c, GPT-J
};

/// One model's rotation: a view of tables that build_rope fills once for all layers and heads.
///
/// At position t, pair i of a key is turned by the angle t * frequencies[i]:
///   x' = x cos - y sin,  y' = x sin + y cos.
/// Channels from 2 * pairs on are left alone (partial rotation). Context-extension scalings are folded into the
/// frequencies by the caller. A value-initialised rope rotates nothing.
struct rope {
  std::uint32_t pairs = 0;
  rope_pairing pairing = rope_pairing::half_split;
  const float* frequencies = nullptr;  ///< radians per position, one per pair

  /// Cosines and sines of steps of 1, 64, 64^2 and 64^3 positions: step s < 64 of level l at
  /// angles + ((l * 64 + s) * 2 * pairs), first `pairs` cosines, then `pairs` sines.
  const float* angles = nullptr;
  static constexpr std::uint32_t levels = 4;
  static constexpr std::uint32_t steps = 64;

  /// Steps of 1 position again, for byte arithmetic: per pair turn_bytes bytes, of which 64 hold round(255 |cos|), 64
  /// hold round(255 |sin|), and two 64-bit words have a bit for every negative cosine and sine.
  const std::uint8_t* turns = nullptr;
  static constexpr std::uint32_t turn_bytes = 2 * steps + 16;

  [[nodiscard]] constexpr bool enabled() const noexcept { return pairs != 0; }
  [[nodiscard]] constexpr std::uint32_t first(std::uint32_t pair) const noexcept {
    return pairing == rope_pairing::half_split ? pair : 2 * pair;
  }
  [[nodiscard]] constexpr std::uint32_t second(std::uint32_t pair) const noexcept {
    return pairing == rope_pairing::half_split ? pair + pairs : 2 * pair + 1;
  }
  /// Whether a channel is rotated, and if so the pair it belongs to and whether it is the pair's second member.
  [[nodiscard]] constexpr bool rotates(std::uint32_t channel) const noexcept { return channel < 2 * pairs; }
  [[nodiscard]] constexpr std::uint32_t pair_of(std::uint32_t channel) const noexcept {
    return pairing == rope_pairing::half_split ? channel % pairs : channel / 2;
  }
  [[nodiscard]] constexpr bool is_second(std::uint32_t channel) const noexcept {
    return pairing == rope_pairing::half_split ? channel >= pairs : channel % 2 != 0;
  }
  [[nodiscard]] constexpr const float* cosines(std::uint32_t level, std::uint32_t step) const noexcept {
    return angles + (static_cast<std::size_t>(level) * steps + step) * 2 * pairs;
  }
  [[nodiscard]] constexpr const float* sines(std::uint32_t level, std::uint32_t step) const noexcept {
    return cosines(level, step) + pairs;
  }
};

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// One step of one pair in rope::turns.
inline void put_turn(double cosine, double sine, std::uint32_t step, std::uint8_t* turns) noexcept {
  turns[step] = static_cast<std::uint8_t>(std::lrint(255.0 * std::fabs(cosine)));
  turns[rope::steps + step] = static_cast<std::uint8_t>(std::lrint(255.0 * std::fabs(sine)));
  const double values[2] = {cosine, sine};
  for (std::uint32_t i = 0; i < 2; ++i) {
    std::uint64_t signs = 0;
    std::memcpy(&signs, turns + 2 * rope::steps + 8 * i, sizeof signs);
    signs |= std::uint64_t{values[i] < 0.0} << step;
    std::memcpy(turns + 2 * rope::steps + 8 * i, &signs, sizeof signs);
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Fills `frequencies[i] = theta^(-2 i / rotated_dim)` for i in [0, rotated_dim / 2). RoFormer, section 3.2.2.
inline void fill_rope_frequencies(float* frequencies, std::uint32_t rotated_dim, double theta) noexcept {
  for (std::uint32_t pair = 0; pair < rotated_dim / 2; ++pair) {
    frequencies[pair] = static_cast<float>(std::pow(theta, -2.0 * pair / rotated_dim));
  }
}

/// Floats of memory that build_rope needs for `pairs` pairs.
[[nodiscard]] constexpr std::size_t rope_floats(std::uint32_t pairs) noexcept {
  return static_cast<std::size_t>(pairs) * (1 + 2 * rope::levels * rope::steps + rope::turn_bytes / sizeof(float));
}

/// Copies the frequencies and tabulates angles into `memory` (rope_floats(pairs) floats, which must outlive the
/// result). Errors: pairs above max_dim / 2, null pointers, non-finite frequencies. O(pairs) with 256 sines each.
inline status build_rope(const float* frequencies, std::uint32_t pairs, rope_pairing pairing, float* memory,
                         rope& result) noexcept {
  if (pairs > max_dim / 2) {
    return failure(status_code::invalid_argument, "rope.pairs", "must be at most 512", max_dim / 2, pairs);
  }
  if (pairs != 0 && (frequencies == nullptr || memory == nullptr)) {
    return failure(status_code::invalid_argument, "rope.frequencies", "or the memory for its tables is null");
  }
  float* angles = memory + pairs;
  auto* turns = reinterpret_cast<std::uint8_t*>(angles + std::size_t{2} * rope::levels * rope::steps * pairs);
  if (pairs != 0) {
    std::memset(turns, 0, std::size_t{pairs} * rope::turn_bytes);
  }
  for (std::uint32_t pair = 0; pair < pairs; ++pair) {
    if (!is_finite(frequencies[pair])) {
      return failure(status_code::not_finite, "rope.frequencies", "has a NaN or infinity", 0, pair);
    }
    memory[pair] = frequencies[pair];
    double unit = 1.0;
    for (std::uint32_t level = 0; level < rope::levels; ++level, unit *= rope::steps) {
      for (std::uint32_t step = 0; step < rope::steps; ++step) {
        const double angle = static_cast<double>(frequencies[pair]) * unit * step;
        float* row = angles + (static_cast<std::size_t>(level) * rope::steps + step) * 2 * pairs;
        const double cosine = std::cos(angle);
        const double sine = std::sin(angle);
        row[pair] = static_cast<float>(cosine);
        row[pairs + pair] = static_cast<float>(sine);
        if (level == 0) {
          detail::put_turn(cosine, sine, step, turns + std::size_t{pair} * rope::turn_bytes);
        }
      }
    }
  }
  result = {pairs, pairing, memory, angles, turns};
  return {};
}

/// Whether the description fits a row of `dim` channels.
[[nodiscard]] constexpr status check_rope(const rope& rotation, std::uint32_t dim) noexcept {
  if (!rotation.enabled()) {
    return {};
  }
  if (rotation.angles == nullptr || rotation.frequencies == nullptr) {
    return failure(status_code::invalid_argument, "rope", "has pairs but no tables; fill it with build_rope");
  }
  if (2 * std::uint64_t{rotation.pairs} > dim) {
    return failure(status_code::shape_mismatch, "rope.pairs", "rotates more channels than a row has; at most dim / 2",
                   dim / 2, rotation.pairs);
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT

/// Cosine and sine of one angle.
struct rotation_angle {
  float cosine = 1.0f;
  float sine = 0.0f;
};

inline namespace PQATTN_ISA_UNIT {

/// Angle of one pair at `position`. Positions in [0, 64^4) come from the tables by angle additions, others are
/// computed in double.
[[nodiscard]] inline rotation_angle rope_angle(const rope& rotation, std::uint32_t pair,
                                               std::int64_t position) noexcept {
  constexpr std::int64_t tabulated = std::int64_t{1} << (6 * rope::levels);
  if (position < 0 || position >= tabulated) {
    const double angle = static_cast<double>(rotation.frequencies[pair]) * static_cast<double>(position);
    return {static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
  }
  auto digits = static_cast<std::uint32_t>(position);
  rotation_angle angle{rotation.cosines(0, digits % rope::steps)[pair], rotation.sines(0, digits % rope::steps)[pair]};
  digits /= rope::steps;
  for (std::uint32_t level = 1; digits != 0; ++level, digits /= rope::steps) {
    const float cosine = rotation.cosines(level, digits % rope::steps)[pair];
    const float sine = rotation.sines(level, digits % rope::steps)[pair];
    angle = {angle.cosine * cosine - angle.sine * sine, angle.sine * cosine + angle.cosine * sine};
  }
  return angle;
}

/// Turns one f32 row in place by the rotation of `position`, or back when `direction` is -1. O(pairs).
inline void rotate_row(const rope& rotation, std::int64_t position, float direction, float* row) noexcept {
  for (std::uint32_t pair = 0; pair < rotation.pairs; ++pair) {
    const rotation_angle angle = rope_angle(rotation, pair, position);
    float& x = row[rotation.first(pair)];
    float& y = row[rotation.second(pair)];
    const float sine = direction * angle.sine;
    const float turned = x * angle.cosine - y * sine;
    y = x * sine + y * angle.cosine;
    x = turned;
  }
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
