// SPDX-License-Identifier: MIT
// Partial attention states and their merge: how exact and coded parts, splits, banks, threads and ranks combine.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "../bank/bank.hpp"
#include "../config.hpp"

namespace pqattn {
inline namespace v0 {

/// Attention of `rows` query rows over some subset of the tokens: out(r, :) is the normalised output and
/// lse_e[r] the natural logarithm of the sum of exp(score) over the subset. An empty subset is (0, -infinity).
struct partial_state {
  float* out = nullptr;  ///< row r at out + r * stride, `dim` floats each
  std::size_t stride = 0;
  float* lse_e = nullptr;
  std::size_t rows = 0;
  std::size_t dim = 0;
};

inline namespace PQATTN_ISA_UNIT {

/// Natural log-sum-exp to the base-2 convention some engines use.
[[nodiscard]] inline float lse_to_base2(float lse_e) noexcept {
  return lse_e * 1.4426950408889634f;
}

/// The lse of an empty subset, as a value that survives -ffast-math: compared by is_empty_lse only.
[[nodiscard]] inline float empty_lse() noexcept {
  return -std::numeric_limits<float>::infinity();
}
[[nodiscard]] inline bool is_empty_lse(float lse_e) noexcept {
  return !is_finite(lse_e) || lse_e <= masked_score;
}

/// Sets every row to the neutral element (0, -infinity).
inline void clear(const partial_state& state) noexcept {
  for (std::size_t row = 0; row < state.rows; ++row) {
    for (std::size_t c = 0; c < state.dim; ++c) {
      state.out[row * state.stride + c] = 0.0f;
    }
    state.lse_e[row] = empty_lse();
  }
}

/// Merges `part` into `total` (same rows and dim): the state of the union of two disjoint subsets. Commutative;
/// associative up to rounding; (0, -infinity) is neutral exactly.
inline void merge(const partial_state& total, const partial_state& part) noexcept {
  for (std::size_t row = 0; row < total.rows; ++row) {
    const float a = total.lse_e[row];
    const float b = part.lse_e[row];
    if (is_empty_lse(b)) {
      continue;
    }
    float* sum = total.out + row * total.stride;
    const float* added = part.out + row * part.stride;
    if (is_empty_lse(a)) {
      for (std::size_t c = 0; c < total.dim; ++c) {
        sum[c] = added[c];
      }
      total.lse_e[row] = b;
      continue;
    }
    const float high = a > b ? a : b;
    const float weight_a = std::exp(a - high);
    const float weight_b = std::exp(b - high);
    const float mass = weight_a + weight_b;
    const float share_a = weight_a / mass;
    const float share_b = weight_b / mass;
    for (std::size_t c = 0; c < total.dim; ++c) {
      sum[c] = share_a * sum[c] + share_b * added[c];
    }
    total.lse_e[row] = high + std::log(mass);
  }
}

/// Merges a token that has a score but no value: a learned sink logit, the last of the score modifiers.
/// A logit of -infinity is no sink.
inline void merge_sink(const partial_state& total, const float* logits) noexcept {
  for (std::size_t row = 0; row < total.rows; ++row) {
    const float a = total.lse_e[row];
    const bool empty = is_empty_lse(a);
    if (is_empty_lse(logits[row])) {
      continue;
    }
    const float high = empty || logits[row] > a ? logits[row] : a;
    const float weight = empty ? 0.0f : std::exp(a - high);
    const float mass = weight + std::exp(logits[row] - high);
    for (std::size_t c = 0; c < total.dim; ++c) {
      total.out[row * total.stride + c] *= weight / mass;
    }
    total.lse_e[row] = high + std::log(mass);
  }
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
