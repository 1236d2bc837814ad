// SPDX-License-Identifier: MIT
// The attention that tokens receive: probabilities summed over query rows, for coded and exact tokens alike. Importance
// weights of training (AQPIM sums them over the last 32 rows of a prompt) come from here.
#pragma once

#include <cmath>
#include <cstddef>

#include "../config.hpp"
#include "attend.hpp"

namespace pqattn {
inline namespace v0 {

/// Query rows at the end of a prompt that importance weights are taken from (paper: t = 32).
inline constexpr std::size_t importance_rows = 32;

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Memory of one attention_mass() call.
struct mass_memory {
  float* queries = nullptr;
  float* totals = nullptr;  ///< rows: largest score, then the sum of exp(score - largest)
  attention_scratch scratch;

  void carve(carver& memory, std::size_t rows, std::size_t key_dim, bool tails) noexcept {
    queries = memory.take<float>(rows * key_dim);
    totals = memory.take<float>(2 * rows);
    scratch.carve(memory, rows, tails);
  }
};

/// use(row, first slot, scores, count) for the modified scores of every tile of a segment.
template <class Bank, class Use>
status for_each_scored_tile(Bank& bank, const segment<typename Bank::address>& tokens, const query_rows& queries,
                            const score_modifiers& modifiers, const attention_scratch& work, Use&& use) {
  const std::size_t end = tokens.slots.first + tokens.slots.count;
  for (std::size_t first = aligned_first(tokens); first < end; first += tile_tokens) {
    const slot_range slots{first, end - first < tile_tokens ? end - first : tile_tokens};
    PQATTN_TRY(score_tile_slots(bank, tokens, queries, slots, work.tile, work.tail));
    for (std::size_t row = 0; row < queries.rows; ++row) {
      modify_row(modifiers, row, slots, tokens.positions, tokens.live, tokens.slots.first, work.tile.row(row),
                 tokens.columns);
      use(row, slots, work.tile.row(row));
    }
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Bytes of workspace attention_mass() needs.
template <class Address>
[[nodiscard]] std::size_t mass_workspace_bytes(const segment<Address>* segments, std::size_t segment_count,
                                               std::size_t rows, std::size_t key_dim) noexcept {
  carver memory;
  detail::mass_memory{}.carve(memory, rows, key_dim, detail::has_tails(segments, segment_count));
  return memory.required();
}

/// Adds to mass[i][s] the probability that slot s of segment i receives from each query row, over all rows; mass[i] may
/// be null. Segments and `params` mean what they mean to attend(): scale, modifiers and sink logits apply, values are
/// not looked at, the executor is not used. Rows that see nothing add nothing.
///
/// Scores are made twice, so that they never exist for more than a tile: 2 * rows * tokens * d_k multiply-adds.
/// Errors (nothing added): what attend() refuses about queries, keys and modifiers, workspace too small.
template <bank_policy Bank>
status attention_mass(Bank& bank, const rows_view& queries, const segment<typename Bank::address>* segments,
                      std::size_t segment_count, const attention_params& params, void* workspace,
                      std::size_t workspace_bytes, float* const* mass) {
  PQATTN_TRY(check_view(queries, "queries"));
  if (queries.cols < 1 || queries.cols > max_dim) {
    return failure(status_code::invalid_argument, "queries.cols", "must be 1 to 1024", max_dim, queries.cols);
  }
  for (std::size_t i = 0; i < segment_count; ++i) {
    segment<typename Bank::address> keys_only = segments[i];
    keys_only.values = keys_only.keys;
    keys_only.turned_values = {};
    PQATTN_TRY(detail::check_segment(keys_only, queries.cols, keys_only.keys.dim()));
  }
  carver pieces(workspace, workspace_bytes);
  detail::mass_memory memory;
  memory.carve(pieces, queries.rows, queries.cols, detail::has_tails(segments, segment_count));
  if (workspace == nullptr || !pieces.fits()) {
    return failure(status_code::capacity, "workspace", "is too small for attention mass", pieces.used(),
                   workspace_bytes);
  }
  PQATTN_TRY(detail::check_lists(params.modifiers, queries.rows, segments, segment_count));
  const float scale = params.scale != 0.0f ? params.scale : 1.0f / std::sqrt(static_cast<float>(queries.cols));
  float* largest = memory.totals;
  float* sum = memory.totals + queries.rows;
  for (std::size_t row = 0; row < queries.rows; ++row) {
    float* scaled = memory.queries + row * queries.cols;
    load_row(queries, row, scaled);
    for (std::size_t c = 0; c < queries.cols; ++c) {
      scaled[c] *= scale;
    }
    const bool sink = params.sink_logits != nullptr && !is_empty_lse(params.sink_logits[row]);
    largest[row] = sink ? params.sink_logits[row] : masked_score;
    sum[row] = sink ? 1.0f : 0.0f;
  }
  const query_rows rows{memory.queries, queries.rows, queries.cols};
  for (const bool adds : {false, true}) {  // first the softmax's denominators, then the probabilities
    for (std::size_t i = 0; i < segment_count; ++i) {
      const segment<typename Bank::address>& tokens = segments[i];
      if (tokens.slots.count == 0 || (adds && mass[i] == nullptr)) {
        continue;
      }
      if (tokens.keys.coded) {
        PQATTN_TRY(bank.prepare_scores(rows, tokens.keys.book, tokens.rotation, tokens.tables));
      }
      PQATTN_TRY(detail::for_each_scored_tile(bank, tokens, rows, params.modifiers, memory.scratch,
                                              [&](std::size_t row, slot_range slots, const float* scores) {
                                                for (std::size_t s = 0; s < slots.count; ++s) {
                                                  if (scores[s] <= 0.5f * masked_score) {
                                                    continue;
                                                  }
                                                  if (adds) {
                                                    mass[i][slots.first + s] +=
                                                        std::exp(scores[s] - largest[row]) / sum[row];
                                                  } else if (scores[s] > largest[row]) {
                                                    sum[row] = sum[row] * std::exp(largest[row] - scores[s]) + 1.0f;
                                                    largest[row] = scores[s];
                                                  } else {
                                                    sum[row] += std::exp(scores[s] - largest[row]);
                                                  }
                                                }
                                              }));
    }
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
