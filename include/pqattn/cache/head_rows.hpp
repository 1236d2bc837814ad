// SPDX-License-Identifier: MIT
// Rows of several heads in the caller's layout.
#pragma once

#include <cstddef>

#include "../config.hpp"
#include "../core/status.hpp"
#include "../core/view.hpp"

namespace pqattn {
inline namespace v0 {

/// Rows of several heads: head h, token t, channel c at data + h * head_stride + t * row_stride + c * col_stride
/// elements of `rows`, which describes head 0. Covers (heads, tokens, d), (tokens, heads, d) and anything strided.
struct head_rows {
  rows_view rows;
  std::size_t heads = 0;
  std::ptrdiff_t head_stride = 0;

  [[nodiscard]] PQATTN_UNIT_MEMBER rows_view head(std::size_t index) const noexcept {
    rows_view one = rows;
    one.data = static_cast<const std::byte*>(rows.data) +
               static_cast<std::ptrdiff_t>(index) * head_stride * static_cast<std::ptrdiff_t>(size_of(rows.type));
    return one;
  }
};

/// Writable counterpart of head_rows.
struct head_rows_ref {
  rows_ref rows;
  std::size_t heads = 0;
  std::ptrdiff_t head_stride = 0;

  [[nodiscard]] PQATTN_UNIT_MEMBER rows_ref head(std::size_t index) const noexcept {
    rows_ref one = rows;
    one.data = static_cast<std::byte*>(rows.data) +
               static_cast<std::ptrdiff_t>(index) * head_stride * static_cast<std::ptrdiff_t>(size_of(rows.type));
    return one;
  }
};

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Whether query rows (q_heads, n, channels) fit `kv_heads` KV heads whose keys have `channels` channels.
[[nodiscard]] inline status check_query_shape(const head_rows& queries, std::size_t kv_heads,
                                              std::size_t channels) noexcept {
  PQATTN_TRY(check_view(queries.rows, "queries"));
  if (queries.heads == 0 || queries.heads % kv_heads != 0) {
    return failure(status_code::shape_mismatch, "queries.heads", "must be a multiple of the KV heads", kv_heads,
                   queries.heads);
  }
  if (queries.rows.cols != channels) {
    return failure(status_code::shape_mismatch, "queries.cols", "must equal the keys' channels", channels,
                   queries.rows.cols);
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
