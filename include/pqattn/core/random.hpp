// SPDX-License-Identifier: MIT
// Deterministic random numbers: the same seed gives the same codebooks with every compiler and standard library.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../config.hpp"

namespace pqattn {
inline namespace v0 {

/// Mixes two 64-bit values into a seed; used to derive one seed per (layer, head, sub-vector).
[[nodiscard]] constexpr std::uint64_t mix_seed(std::uint64_t seed, std::uint64_t stream) noexcept {
  std::uint64_t z = seed + 0x9e3779b97f4a7c15u * (stream + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// SplitMix64 (Steele, Lea, Flood 2014): 64 random bits per call, period 2^64.
class random_source {
 public:
  constexpr explicit random_source(std::uint64_t seed) noexcept : state_(seed) {}

  constexpr std::uint64_t next() noexcept { return mix_seed(state_, counter_++); }

  /// Uniform in [0, 1) with 53 random bits.
  PQATTN_UNIT_MEMBER constexpr double uniform() noexcept { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

  /// Uniform in [0, bound); the bias is below bound / 2^64. Pre: bound > 0.
  PQATTN_UNIT_MEMBER constexpr std::size_t below(std::size_t bound) noexcept {
    const auto index = static_cast<std::size_t>(uniform() * static_cast<double>(bound));
    return index < bound ? index : bound - 1;
  }

 private:
  std::uint64_t state_;
  std::uint64_t counter_ = 0;
};

}  // namespace v0
}  // namespace pqattn
