// SPDX-License-Identifier: MIT
// What happens to a score between <q, k> and the softmax, in one documented order:
//   1 scale (multiplied into the query)   2 bias and ALiBi   3 soft-cap   4 mask, window, padding   5 sink logit
// Masking comes after the soft-cap, so that a cap can never bring a masked slot back.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../bank/bank.hpp"

namespace pqattn {
inline namespace v0 {

/// Modifiers of one attention call. Row r is query row r of the call; a default-constructed object changes nothing.
struct score_modifiers {
  float softcap = 0.0f;                ///< score = cap * tanh(score / cap) when > 0
  const float* alibi_slopes = nullptr; ///< rows: adds slope * (key position - query position)
  /// Optional bias (rows, slots of the segment): added to the score; an entry at or below masked_score / 2, or
  /// minus infinity, masks the slot.
  rows_view bias;
  /// Position of each query row; needed by causal, window and ALiBi.
  const std::int64_t* query_positions = nullptr;
  bool causal = false;          ///< masks keys at positions after the query's
  std::int64_t window = 0;      ///< when > 0, masks keys at positions <= query position - window
};

inline namespace PQATTN_ISA_UNIT {

/// Whether any modifier needs query positions that are not given.
[[nodiscard]] inline status check_modifiers(const score_modifiers& modifiers) noexcept {
  if ((modifiers.causal || modifiers.window > 0 || modifiers.alibi_slopes != nullptr) &&
      modifiers.query_positions == nullptr) {
    return failure(status_code::invalid_argument, "modifiers.query_positions",
                   "is null although causal, window or ALiBi needs it");
  }
  if (modifiers.window < 0) {
    return failure(status_code::invalid_argument, "modifiers.window", "must not be negative", 0, modifiers.window);
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// A mask entry that excludes its slot: minus infinity (judged by bits) or a huge negative number.
[[nodiscard]] inline bool excludes(float bias) noexcept { return !is_finite(bias) || bias <= 0.5f * masked_score; }

inline void add_bias(const score_modifiers& modifiers, std::size_t row, slot_range slots, float* scores) noexcept {
  rows_view one = modifiers.bias;
  one.data = modifiers.bias.at(row, slots.first);
  one.cols = slots.count;
  constexpr std::size_t chunk = 64;
  float bias[chunk];
  for (std::size_t first = 0; first < slots.count; first += chunk) {
    rows_view part = one;
    part.data = one.at(0, first);
    part.cols = slots.count - first < chunk ? slots.count - first : chunk;
    load_row(part, 0, bias);
    for (std::size_t i = 0; i < part.cols; ++i) {
      // A masked slot stays recognisable through the soft-cap: `mask_slots` looks at the bias again.
      scores[first + i] = excludes(bias[i]) ? scores[first + i] : scores[first + i] + bias[i];
    }
  }
}

[[nodiscard]] inline bool bias_excludes(const score_modifiers& modifiers, std::size_t row, std::size_t slot) noexcept {
  float bias = 0.0f;
  rows_view one = modifiers.bias;
  one.data = modifiers.bias.at(row, slot);
  one.cols = 1;
  load_row(one, 0, &bias);
  return excludes(bias);
}

/// Applies modifiers 2 to 4 to slots [slots.first, +count) of one row. `live`, when not null, has one bit per slot
/// of the segment; slots below `first_live` are masked too (alignment padding in front of a range).
inline void modify_row(const score_modifiers& modifiers, std::size_t row, slot_range slots,
                       const slot_positions& positions, const std::uint64_t* live, std::size_t first_live,
                       float* scores) noexcept {
  const std::int64_t query = modifiers.query_positions == nullptr ? 0 : modifiers.query_positions[row];
  if (modifiers.bias.data != nullptr) {
    add_bias(modifiers, row, slots, scores);
  }
  if (modifiers.alibi_slopes != nullptr) {
    for (std::size_t i = 0; i < slots.count; ++i) {
      scores[i] += modifiers.alibi_slopes[row] * static_cast<float>(positions.at(slots.first + i) - query);
    }
  }
  if (modifiers.softcap > 0.0f) {
    for (std::size_t i = 0; i < slots.count; ++i) {
      scores[i] = modifiers.softcap * std::tanh(scores[i] / modifiers.softcap);
    }
  }
  const bool by_position = modifiers.causal || modifiers.window > 0;
  if (!by_position && live == nullptr && modifiers.bias.data == nullptr && slots.first >= first_live) {
    return;
  }
  for (std::size_t i = 0; i < slots.count; ++i) {
    const std::size_t slot = slots.first + i;
    bool masked = slot < first_live || (live != nullptr && (live[slot / 64] >> (slot % 64) & 1u) == 0);
    if (by_position) {
      const std::int64_t key = positions.at(slot);
      masked = masked || (modifiers.causal && key > query) ||
               (modifiers.window > 0 && key <= query - modifiers.window);
    }
    masked = masked || (modifiers.bias.data != nullptr && bias_excludes(modifiers, row, slot));
    if (masked) {
      scores[i] = masked_score;
    }
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
