// SPDX-License-Identifier: MIT
// Choices of the host bank.
#pragma once

#include <cstdint>

namespace pqattn {
inline namespace v0 {

/// Precision of scores over codes. Rounded scores need codebooks stored as bytes and codes of at most 8 bits (9 with
/// VBMI); otherwise scores are f32 whatever is asked for. What a score may be off by, before it is scaled, after RoPE
/// or without it; for keys before RoPE see rotary_phases.hpp, rotary_bytes.hpp and rotary_words.hpp:
enum class score_precision : std::uint8_t {
  bytes,  ///< 8-bit tables: groups * step / 2 at most, step * sqrt(groups / 12) rms; step = widest table / 255
  words,  ///< 16-bit tables: the same with step = widest table * min(groups, 256) / 65535
  f32,  ///< the portable program, tables and sums in f32: (stages * channels + 32) * 2^-24 of the sum over channels of
        ///< |query| * |key|; for keys before RoPE of the sum over pairs of channels of the lengths' products
};

/// What a host bank is made with.
struct host_options {
  score_precision scores = score_precision::bytes;
  /// Rounded probabilities in value sums: noise of about 3e-4 of the squared output (bank/host/x86/value_sum.hpp).
  /// False sums in f32.
  bool rounded_values = true;
};

/// Everything in f32: for reference runs and tests.
inline constexpr host_options exact_arithmetic{score_precision::f32, false};

}  // namespace v0
}  // namespace pqattn
