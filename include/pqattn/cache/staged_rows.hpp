// SPDX-License-Identifier: MIT
// Rows of one KV head gathered from the caller's layout, for caches that attend head by head.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../attend/attend.hpp"
#include "../config.hpp"
#include "../core/memory.hpp"
#include "head_rows.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// An explicit mask of `heads` query heads and `tokens` query tokens: one head's serves all, or each has its own.
inline status check_mask(const head_rows& bias, std::size_t heads, std::size_t tokens, std::size_t context) noexcept {
  PQATTN_TRY(check_view(bias.rows, "bias"));
  if (bias.heads != 1 && bias.heads != heads) {
    return failure(status_code::shape_mismatch, "bias.heads", "must be 1 or the query heads", heads, bias.heads);
  }
  if (bias.rows.rows != tokens) {
    return failure(status_code::shape_mismatch, "bias.rows", "must be a row for each query token", tokens,
                   bias.rows.rows);
  }
  if (bias.rows.cols > context) {
    return failure(status_code::shape_mismatch, "bias.cols", "must not be more than the tokens of the context", context,
                   bias.rows.cols);
  }
  return {};
}

/// Whether the rows of a call, (q_heads, tokens, d), fit each other and the caches' KV heads and channels.
[[nodiscard]] inline status check_call(const head_rows& queries, const head_rows_ref& out, std::size_t kv_heads,
                                       std::size_t key_dim, std::size_t value_dim) noexcept {
  PQATTN_TRY(check_query_shape(queries, kv_heads, key_dim));
  PQATTN_TRY(check_view(out.rows.view(), "out"));
  if (out.heads != queries.heads || out.rows.rows != queries.rows.rows) {
    return failure(status_code::shape_mismatch, "out", "must have the queries' heads and tokens; rows in all",
                   queries.heads * queries.rows.rows, out.heads * out.rows.rows);
  }
  if (out.rows.cols != value_dim) {
    return failure(status_code::shape_mismatch, "out.cols", "must equal the values' channels", value_dim,
                   out.rows.cols);
  }
  return {};
}

/// A call's rows: (q_heads, tokens, d).
struct staged_call {
  const head_rows& queries;
  const head_rows_ref& out;
  float* lse_e;       ///< (q_heads, tokens), or null
  std::size_t group;  ///< query heads per KV head
};

/// Gathered rows of one KV head: row r is query head r / tokens of the group, token r % tokens.
struct staged_rows {
  float* queries = nullptr;  ///< (rows, key_dim)
  float* out = nullptr;      ///< (rows, value_dim)
  float* lse_e = nullptr;
  float* slopes = nullptr;
  float* sinks = nullptr;
  std::int64_t* positions = nullptr;
  std::ptrdiff_t* bias_offsets = nullptr;

  void carve(carver& memory, std::size_t rows, std::size_t key_dim, std::size_t value_dim) noexcept {
    queries = memory.take<float>(rows * key_dim);
    out = memory.take<float>(rows * value_dim);
    lse_e = memory.take<float>(rows);
    slopes = memory.take<float>(rows);
    sinks = memory.take<float>(rows);
    positions = memory.take<std::int64_t>(rows);
    bias_offsets = memory.take<std::ptrdiff_t>(rows);
  }

  /// Fills queries, slopes, sink logits and positions from tokens [first, first + tokens) of the call.
  /// position_of(i) is the position of token first + i.
  template <class Params, class PositionOf>
  void gather(const staged_call& call, const Params& params, std::size_t kv_head, std::size_t first, std::size_t tokens,
              const PositionOf& position_of) const noexcept {
    const std::size_t dim = call.queries.rows.cols;
    for (std::size_t row = 0; row < call.group * tokens; ++row) {
      const std::size_t query_head = kv_head * call.group + row / tokens;
      load_row(call.queries.head(query_head), first + row % tokens, queries + row * dim);
      positions[row] = position_of(row % tokens);
      slopes[row] = params.alibi_slopes == nullptr ? 0.0f : params.alibi_slopes[query_head];
      sinks[row] = params.sink_logits == nullptr ? 0.0f : params.sink_logits[query_head];
    }
  }

  /// The call's parameters (of a layer or of a batch) for the gathered rows.
  template <class Params>
  [[nodiscard]] attention_params params(const Params& given, bool causal) const noexcept {
    attention_params one;
    one.scale = given.scale;
    one.method = given.method;
    one.skip_mass = given.skip_mass;
    one.sink_logits = given.sink_logits == nullptr ? nullptr : sinks;
    one.modifiers.softcap = given.softcap;
    one.modifiers.alibi_slopes = given.alibi_slopes == nullptr ? nullptr : slopes;
    one.modifiers.query_positions = positions;
    one.modifiers.causal = causal;
    one.modifiers.window = given.window;
    return one;
  }

  /// Gives the gathered rows their rows of a mask (see check_mask).
  void mask(const head_rows& bias, std::size_t group, std::size_t kv_head, std::size_t tokens,
            attention_params& one) const noexcept {
    for (std::size_t row = 0; row < group * tokens; ++row) {
      const std::size_t head = bias.heads == 1 ? 0 : kv_head * group + row / tokens;
      bias_offsets[row] = static_cast<std::ptrdiff_t>(head) * bias.head_stride +
                          static_cast<std::ptrdiff_t>(row % tokens) * bias.rows.row_stride;
    }
    one.modifiers.bias = bias.rows;
    one.modifiers.bias_offsets = bias_offsets;
  }

  /// Writes outputs and log-sum-exps back to where the rows came from.
  void scatter(const staged_call& call, std::size_t kv_head, std::size_t first, std::size_t tokens) const noexcept {
    const std::size_t dim = call.out.rows.cols;
    for (std::size_t row = 0; row < call.group * tokens; ++row) {
      const std::size_t query_head = kv_head * call.group + row / tokens;
      const std::size_t token = first + row % tokens;
      store_row(call.out.head(query_head), token, out + row * dim);
      if (call.lse_e != nullptr) {
        call.lse_e[query_head * call.queries.rows.rows + token] = lse_e[row];
      }
    }
  }
};

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail
}  // namespace v0
}  // namespace pqattn
