// SPDX-License-Identifier: MIT
// Token rows to codes and back, with the checks that bank programs leave to their callers.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../config.hpp"
#include "../bank/bank.hpp"
#include "../core/executor.hpp"
#include "../core/view.hpp"

namespace pqattn {
inline namespace v0 {

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// The largest magnitude of `count` numbers as its bits: ordered as the numbers are, infinity and NaN above all of
/// them.
inline std::uint32_t largest_magnitude(const float* numbers, std::size_t count) noexcept {
  constexpr std::size_t lanes = 16;  // loops of a known length: compilers vectorise them at -O2 already
  std::uint32_t most[lanes] = {};
  const auto keep = [&](std::size_t lane, std::size_t i) noexcept {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(numbers[i]) & 0x7fffffffu;
    most[lane] = most[lane] < magnitude ? magnitude : most[lane];
  };
  std::size_t first = 0;
  for (; first + lanes <= count; first += lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      keep(lane, first + lane);
    }
  }
  for (std::size_t i = first; i < count; ++i) {
    keep(i - first, i);
  }
  std::uint32_t largest = 0;
  for (const std::uint32_t magnitude : most) {
    largest = largest < magnitude ? magnitude : largest;
  }
  return largest;
}

/// First NaN or infinity of a view, or number above `largest` in magnitude, as a status.
inline status check_finite(const rows_view& rows, const char* subject,
                           float largest = largest_of(dtype::f32)) noexcept {
  float row[max_dim];
  for (std::size_t i = 0; i < rows.rows; ++i) {
    load_row(rows, i, row);
    if (largest_magnitude(row, rows.cols) <= std::bit_cast<std::uint32_t>(largest)) {
      continue;
    }
    for (std::size_t c = 0; c < rows.cols; ++c) {
      if (!is_finite(row[c])) {
        return failure(status_code::not_finite, subject, "has a NaN or infinity", i, c);
      }
      if (row[c] > largest || row[c] < -largest) {
        return failure(status_code::not_finite, subject, "has a number that config.exact_type does not hold", i, c);
      }
    }
  }
  return {};
}

inline status check_rows(const rows_view& rows, const geometry& shape, std::size_t count,
                         const char* subject) noexcept {
  PQATTN_TRY(check_geometry(shape));
  PQATTN_TRY(check_view(rows, subject));
  if (rows.cols != shape.dim) {
    return failure(status_code::shape_mismatch, subject, "must have geometry.dim columns", shape.dim, rows.cols);
  }
  if (rows.rows != count) {
    return failure(status_code::shape_mismatch, subject, "must have one row per slot", count, rows.rows);
  }
  return {};
}

/// Whether codes and codebook belong together and lie somewhere.
template <class Address>
status check_codes(const resident_codebook<Address>& book, const code_span<Address>& codes) noexcept {
  PQATTN_TRY(check_same_geometry(book.shape, codes.shape, "codes.shape"));
  if (codes.memory == Address{} || book.memory == Address{}) {
    return failure(status_code::invalid_argument, "codes", "or their codebook have no memory");
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Codes token rows (slots.count, dim) into consecutive slots: nearest centroid per group, ties by lowest index; squared
/// distances beyond f32 count as equal.
/// Touches only those slots. Errors (nothing written): shape mismatch, codes or codebook without memory, NaN or
/// infinity with its row and column.
/// Cost: K * dim * stages multiply-adds per row; no allocation.
template <bank_policy Bank>
status encode(Bank& bank, const rows_view& rows, const resident_codebook<typename Bank::address>& book,
              const code_span<typename Bank::address>& codes, slot_range slots) noexcept {
  PQATTN_TRY(detail::check_rows(rows, book.shape, slots.count, "rows"));
  PQATTN_TRY(detail::check_codes(book, codes));
  PQATTN_TRY(detail::check_finite(rows, "rows"));
  return bank.encode(rows, book, codes, slots);
}

/// Decodes consecutive slots into token rows (slots.count, dim), rounded to the view's dtype.
/// Errors (nothing written): shape mismatch, codes or codebook without memory.
template <bank_policy Bank>
status decode(Bank& bank, const resident_codebook<typename Bank::address>& book,
              const code_span<typename Bank::address>& codes, slot_range slots, const rows_ref& rows) noexcept {
  PQATTN_TRY(detail::check_rows(rows.view(), book.shape, slots.count, "rows"));
  PQATTN_TRY(detail::check_codes(book, codes));
  return bank.decode(book, codes, slots, rows);
}

}  // namespace PQATTN_ISA_UNIT

/// A bank whose addresses are pointers into host memory.
template <class Bank>
concept host_addressable_bank = bank_policy<Bank> && std::same_as<typename Bank::address, std::byte*>;

inline namespace PQATTN_ISA_UNIT {

/// Encode in place: the code blocks of `rows` overwrite the rows' own buffer from its start, block after block, and the
/// rest of the buffer is the caller's again (AQPIM: indices overwrite the full-precision prefill buffer).
///
/// `rows` is a dense buffer (col_stride 1, row_stride == cols). `scratch` holds one code block, so the peak extra
/// memory is bank.code_block_bytes(shape) whatever the length. `used_bytes` receives the size of the codes: a
/// contiguous span with blocks_for(rows.rows) blocks. Errors (nothing overwritten): shape mismatch, NaN or infinity,
/// a buffer that is not dense, code blocks larger than the rows they replace, scratch too small.
template <host_addressable_bank Bank>
status encode_in_place(Bank& bank, const rows_ref& rows, const resident_codebook<std::byte*>& book, void* scratch,
                       std::size_t scratch_bytes, std::size_t& used_bytes) noexcept {
  const geometry& shape = book.shape;
  PQATTN_TRY(detail::check_rows(rows.view(), shape, rows.rows, "rows"));
  if (rows.col_stride != 1 || rows.row_stride != static_cast<std::ptrdiff_t>(rows.cols)) {
    return failure(status_code::invalid_argument, "rows", "must be dense; row stride", rows.cols, rows.row_stride);
  }
  const std::size_t code_block = bank.code_block_bytes(shape);
  const std::size_t row_bytes = rows.cols * size_of(rows.type);
  // A partial last block of codes is as large as a full one, so it must fit behind the rows before it.
  const std::size_t buffer_bytes = rows.rows * row_bytes;
  if (code_block > block_tokens * row_bytes || blocks_for(rows.rows) * code_block > buffer_bytes) {
    return failure(status_code::capacity, "rows", "are smaller than the codes that replace them; bytes",
                   blocks_for(rows.rows) * code_block, buffer_bytes);
  }
  if (scratch == nullptr || scratch_bytes < code_block) {
    return failure(status_code::capacity, "scratch", "must hold one code block", code_block, scratch_bytes);
  }
  const code_span<std::byte*> block{shape, static_cast<std::byte*>(scratch), nullptr};
  PQATTN_TRY(detail::check_codes(book, block));
  PQATTN_TRY(detail::check_finite(rows.view(), "rows"));
  auto* target = static_cast<std::byte*>(rows.data);
  for (std::size_t first = 0; first < rows.rows; first += block_tokens) {
    const std::size_t count = rows.rows - first < block_tokens ? rows.rows - first : block_tokens;
    std::memset(scratch, 0, code_block);
    PQATTN_TRY(bank.encode(rows.view().slice(first, count), book, block, {0, count}));
    std::memcpy(target, scratch, code_block);
    target += code_block;
  }
  used_bytes = blocks_for(rows.rows) * code_block;
  return {};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
