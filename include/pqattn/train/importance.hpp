// SPDX-License-Identifier: MIT
// Importance weights of tokens: the attention probability they receive from the last query rows of the prompt
// (AQPIM: w_n summed over the last t = 32 rows).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../attend/attend.hpp"
#include "../bank/bank.hpp"
#include "../config.hpp"
#include "../core/memory.hpp"

namespace pqattn {
inline namespace v0 {

inline namespace PQATTN_ISA_UNIT {

/// Bytes of workspace attention_importance needs.
[[nodiscard]] inline std::size_t importance_workspace_bytes(std::size_t tokens, std::size_t key_dim) noexcept {
  carver memory;
  memory.take<float>(blocks_for(tokens) * block_tokens);
  memory.take<float>(key_dim);
  return memory.required();
}

/// Adds to weights[t] the softmax probability that token t receives from each query row, over all rows. For a
/// GQA group pass the rows of all its query heads: their masses add up.
///
/// `queries` (rows, d_k) and `keys` (tokens, d_k) both rotated (or both not, without RoPE); query row r sits at
/// query_positions[r] and sees keys 0..query_positions[r]. `scale` 0 means 1 / sqrt(d_k).
/// Cost: rows * tokens * d_k multiply-adds. Errors: shape mismatch, workspace too small.
template <bank_policy Bank>
status attention_importance(Bank& bank, const rows_view& queries, const std::int64_t* query_positions,
                            const rows_view& keys, float scale, void* workspace, std::size_t workspace_bytes,
                            float* weights) {
  if (queries.cols != keys.cols || keys.cols > max_dim) {
    return failure(status_code::shape_mismatch, "keys.cols", "must equal queries.cols", queries.cols, keys.cols);
  }
  carver memory(workspace, workspace_bytes);
  auto* scores = memory.take<float>(blocks_for(keys.rows) * block_tokens);
  auto* query = memory.take<float>(keys.cols);
  if (workspace == nullptr || !memory.fits()) {
    return failure(status_code::capacity, "workspace", "is too small for importance weights", memory.used(),
                   workspace_bytes);
  }
  const float factor = scale != 0.0f ? scale : 1.0f / std::sqrt(static_cast<float>(keys.cols));
  for (std::size_t row = 0; row < queries.rows; ++row) {
    const std::int64_t last = query_positions[row];
    const std::size_t before = last < 0 ? 0 : static_cast<std::size_t>(last) + 1;
    const std::size_t seen = before < keys.rows ? before : keys.rows;
    if (seen == 0) {
      continue;
    }
    load_row(queries, row, query);
    for (std::size_t c = 0; c < keys.cols; ++c) {
      query[c] *= factor;
    }
    const score_tile tile{scores, 1, blocks_for(keys.rows) * block_tokens};
    PQATTN_TRY(bank.score_rows({query, 1, keys.cols}, keys.slice(0, seen), tile));
    float maximum = masked_score;
    float sum = 0.0f;
    float rescale = 1.0f;
    PQATTN_TRY(bank.softmax_part(tile, seen, {&maximum, &sum, &rescale}));
    for (std::size_t token = 0; token < seen; ++token) {
      weights[token] += scores[token] / sum;
    }
  }
  return {};
}

/// Attention mass is extremely skewed: w becomes max((w / mean)^exponent, floor), in place. Exponent 0 gives
/// all 1, exponent 1 with floor 0 the paper's weights up to a common factor.
inline void temper_weights(float* weights, std::size_t count, float exponent, float floor) noexcept {
  double sum = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    sum += static_cast<double>(weights[i]);
  }
  const double mean = count == 0 ? 0.0 : sum / static_cast<double>(count);
  for (std::size_t i = 0; i < count; ++i) {
    const float relative = mean > 0.0 ? static_cast<float>(static_cast<double>(weights[i]) / mean) : 1.0f;
    const float tempered = std::pow(relative, exponent);
    weights[i] = tempered > floor ? tempered : floor;
  }
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
