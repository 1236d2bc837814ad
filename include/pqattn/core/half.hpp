// SPDX-License-Identifier: MIT
// Storage types for 16-bit floats, with portable scalar conversions (round to nearest even, like F16C and AVX512-BF16).
#pragma once

#include <bit>
#include <cstdint>

#include "../config.hpp"

namespace pqattn {
inline namespace v0 {

/// IEEE 754 binary16 as it lies in memory.
struct half {
  std::uint16_t bits = 0;
};

/// The upper half of an IEEE 754 binary32.
struct bfloat16 {
  std::uint16_t bits = 0;
};

inline namespace PQATTN_ISA_UNIT {

/// Exact widening; NaN payloads are kept, subnormals are honoured.
[[nodiscard]] constexpr float to_float(half value) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity or NaN
    return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  if (magnitude >= 0x0400u) {
    return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
  }
  // Subnormal: magnitude * 2^-24 is exact in binary32.
  const float scaled = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(scaled));
}

[[nodiscard]] constexpr float to_float(bfloat16 value) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

[[nodiscard]] constexpr float to_float(float value) noexcept {
  return value;
}

/// Rounds to nearest even; overflow gives infinity, NaN stays NaN.
[[nodiscard]] constexpr half to_half(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t result = 0;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    result = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {
    const std::uint32_t rebased = magnitude - 0x38000000u;
    result = (rebased + 0x0fffu + ((rebased >> 13) & 1u)) >> 13;
  } else {
    // Subnormal: adding 0.5 aligns the 2^-24 unit with the last mantissa bit, the adder does the rounding.
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    result = std::bit_cast<std::uint32_t>(aligned) - 0x3f000000u;
  }
  return half{static_cast<std::uint16_t>(sign | result)};
}

/// Rounds to nearest even; NaN stays NaN.
[[nodiscard]] constexpr bfloat16 to_bfloat16(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return bfloat16{static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  }
  return bfloat16{static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

/// Whether `value` is neither NaN nor infinite, judged by its bits so that -ffast-math cannot remove the test.
[[nodiscard]] constexpr bool is_finite(float value) noexcept {
  return (std::bit_cast<std::uint32_t>(value) & 0x7f800000u) != 0x7f800000u;
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
