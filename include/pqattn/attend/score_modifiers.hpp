// SPDX-License-Identifier: MIT
// What happens to a score between <q, k> and the softmax, in one documented order:
//   1 scale (multiplied into the query)   2 bias and ALiBi   3 soft-cap   4 mask, window, padding   5 sink logit
// Masking comes after the soft-cap, so that a cap can never bring a masked slot back.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "../bank/bank.hpp"
#include "../config.hpp"

namespace pqattn {
inline namespace v0 {

/// Column of an explicit mask for each slot of a segment: base + list[s], or base + s when there is no list. Slots
/// whose column is negative have no bias: a mask may belong to the latest tokens only.
struct slot_columns {
  /// The default: column s, for a call of one segment.
  static constexpr std::int64_t by_slot = (std::numeric_limits<std::int64_t>::min)();

  std::int64_t base = by_slot;
  const std::int32_t* list = nullptr;

  [[nodiscard]] constexpr bool given() const noexcept { return base != by_slot || list != nullptr; }
  [[nodiscard]] constexpr std::int64_t at(std::size_t slot) const noexcept {
    const std::int64_t number = list == nullptr ? static_cast<std::int64_t>(slot) : list[slot];
    return base == by_slot ? number : base + number;
  }
};

/// Mask entries from here down exclude their slot: the lowest number of f16, which stands for minus infinity in masks
/// of that dtype, as those of bf16 and f32 do below it. As a number it would take all of a probability anyway, but for
/// a soft-cap.
inline constexpr float excluding_bias = -65504.0f;

/// Modifiers of one attention call. Row r is query row r of the call; a default-constructed object changes nothing.
struct score_modifiers {
  float softcap = 0.0f;                 ///< score = cap * tanh(score / cap) when > 0
  const float* alibi_slopes = nullptr;  ///< rows: adds slope * (key position - query position)
  /// Optional bias (rows, columns), an explicit mask: added to the score; an entry at or below excluding_bias, an
  /// infinity of either sign or NaN masks the slot. Each segment says which column its slots have (segment::columns).
  rows_view bias;
  /// Optional (rows): where in `bias` the first column of each query row lies, in elements from bias.data; rows may
  /// share one. Null: row r of `bias` is query row r's.
  const std::ptrdiff_t* bias_offsets = nullptr;
  /// Position of each query row; needed by causal, window and ALiBi.
  const std::int64_t* query_positions = nullptr;
  bool causal = false;      ///< masks keys at positions after the query's
  std::int64_t window = 0;  ///< when > 0, masks keys at positions <= query position - window
};

inline namespace PQATTN_ISA_UNIT {

/// Whether any modifier needs query positions, one for each of `rows`, that are not given or out of reach.
[[nodiscard]] inline status check_modifiers(const score_modifiers& modifiers, std::size_t rows) noexcept {
  if ((modifiers.causal || modifiers.window > 0 || modifiers.alibi_slopes != nullptr) &&
      modifiers.query_positions == nullptr) {
    return failure(status_code::invalid_argument, "modifiers.query_positions",
                   "is null although causal, window or ALiBi needs it");
  }
  if (modifiers.window < 0) {
    return failure(status_code::invalid_argument, "modifiers.window", "must not be negative", 0, modifiers.window);
  }
  for (std::size_t row = 0; modifiers.query_positions != nullptr && row < rows; ++row) {
    PQATTN_TRY(check_reach(modifiers.query_positions[row], "modifiers.query_positions"));
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// A mask entry that excludes its slot: nothing finite (judged by bits) or a huge negative number.
[[nodiscard]] inline bool excludes(float bias) noexcept {
  return !is_finite(bias) || bias <= excluding_bias;
}

/// Slots that load_bias() looks at in one go.
inline constexpr std::size_t bias_chunk = 64;

/// Bias of slots [slots.first, + slots.count <= bias_chunk) of one row; slots below `first_live` and those without a
/// column get 0 and are not looked up.
inline void load_bias(const score_modifiers& modifiers, std::size_t row, slot_range slots, const slot_columns& columns,
                      std::size_t first_live, float* bias) noexcept {
  rows_view run = modifiers.bias;
  if (modifiers.bias_offsets != nullptr) {
    run.data = static_cast<const std::byte*>(run.data) +
               modifiers.bias_offsets[row] * static_cast<std::ptrdiff_t>(size_of(run.type));
    row = 0;
  }
  const void* const start = run.at(row);
  for (std::size_t i = 0; i < slots.count;) {
    const std::int64_t column = slots.first + i < first_live ? -1 : columns.at(slots.first + i);
    if (column < 0) {
      bias[i++] = 0.0f;
      continue;
    }
    std::size_t end = i + 1;  // of a run of consecutive columns
    while (end < slots.count && columns.at(slots.first + end) == column + static_cast<std::int64_t>(end - i)) {
      ++end;
    }
    run.data = start;
    run.data = run.at(0, static_cast<std::size_t>(column));
    run.cols = end - i;
    load_row(run, 0, bias + i);
    i = end;
  }
}

/// modify_row() with the bias of the slots, or null without one.
inline void modify_slots(const score_modifiers& modifiers, std::size_t row, slot_range slots,
                         const slot_positions& positions, const std::uint64_t* live, std::size_t first_live,
                         const float* bias, float* scores) noexcept {
  const std::int64_t query = modifiers.query_positions == nullptr ? 0 : modifiers.query_positions[row];
  for (std::size_t i = 0; bias != nullptr && i < slots.count; ++i) {
    scores[i] += excludes(bias[i]) ? 0.0f : bias[i];  // masked below, so that no soft-cap can bring the slot back
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
  const std::int64_t window = (std::min)(modifiers.window, 2 * farthest_position);  // none is wider than all positions
  if (!by_position && live == nullptr && bias == nullptr && slots.first >= first_live) {
    return;
  }
  for (std::size_t i = 0; i < slots.count; ++i) {
    const std::size_t slot = slots.first + i;
    bool masked = slot < first_live || (live != nullptr && (live[slot / 64] >> (slot % 64) & 1u) == 0);
    if (by_position) {
      const std::int64_t key = positions.at(slot);
      masked = masked || (modifiers.causal && key > query) || (modifiers.window > 0 && key <= query - window);
    }
    masked = masked || (bias != nullptr && excludes(bias[i]));
    if (masked) {
      scores[i] = masked_score;
    }
  }
}

/// Applies modifiers 2 to 4 to slots [slots.first, +count) of one row. `live`, when not null, has one bit per slot
/// of the segment; slots below `first_live` are masked too (alignment padding in front of a range).
inline void modify_row(const score_modifiers& modifiers, std::size_t row, slot_range slots,
                       const slot_positions& positions, const std::uint64_t* live, std::size_t first_live,
                       float* scores, const slot_columns& columns = {}) noexcept {
  if (modifiers.bias.data == nullptr) {
    modify_slots(modifiers, row, slots, positions, live, first_live, nullptr, scores);
    return;
  }
  float bias[bias_chunk];
  for (std::size_t done = 0; done < slots.count; done += bias_chunk) {
    const slot_range chunk{slots.first + done, slots.count - done < bias_chunk ? slots.count - done : bias_chunk};
    load_bias(modifiers, row, chunk, columns, first_live, bias);
    modify_slots(modifiers, row, chunk, positions, live, first_live, bias, scores + done);
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
