// SPDX-License-Identifier: MIT
// Token rows to codes and back, and codes to canonical code rows and back, with the checks that bank programs leave to
// their callers.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../bank/bank.hpp"
#include "../config.hpp"
#include "../core/executor.hpp"
#include "../core/view.hpp"
#include "../quant/code_rows.hpp"

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
  float loaded[max_dim];
  for (std::size_t i = 0; i < rows.rows; ++i) {
    const float* row = floats_at(rows, i);
    if (row == nullptr) {
      load_row(rows, i, loaded);
      row = loaded;
    }
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

/// Codes token rows (slots.count, dim) into consecutive slots: nearest centroid per group, ties by lowest index;
/// squared distances beyond f32 count as equal. Touches only those slots. Errors (nothing written): shape mismatch,
/// codes or codebook without memory, NaN or infinity with its row and column. Cost: K * dim * stages multiply-adds per
/// row; no allocation.
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

/// Codes of scratch that load_code_rows and store_code_rows need for `slots` slots.
[[nodiscard]] constexpr std::size_t code_rows_scratch(const geometry& shape, std::size_t slots) noexcept {
  return slots * shape.groups();
}

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Codes with memory, and buffers that hold the rows (bytes) and codes of `slots`.
template <class Address>
status check_code_rows(const code_span<Address>& codes, slot_range slots, const void* rows, std::size_t bytes,
                       const void* scratch, std::size_t scratch_codes) noexcept {
  const geometry& shape = codes.shape;
  PQATTN_TRY(check_geometry(shape));
  if (codes.memory == Address{}) {
    return failure(status_code::invalid_argument, "codes", "have no memory");
  }
  constexpr std::size_t most_codes = std::size_t{max_dim} * max_stages;  // of a slot: two bytes each at most
  constexpr std::size_t most = static_cast<std::size_t>(-1) / (2 * most_codes);
  if (slots.first > most || slots.count > most - slots.first) {
    return failure(status_code::invalid_argument, "slots", "are more than memory can hold", most,
                   slots.first > most ? slots.first : slots.count);
  }
  const std::size_t row_bytes = slots.count * shape.row_bytes();
  if (bytes < row_bytes || (rows == nullptr && row_bytes != 0)) {
    return failure(status_code::capacity, "rows", "must hold geometry.row_bytes() bytes per slot", row_bytes,
                   rows == nullptr ? 0 : bytes);
  }
  const std::size_t needed = code_rows_scratch(shape, slots.count);
  if (scratch_codes < needed || (scratch == nullptr && needed != 0)) {
    return failure(status_code::capacity, "scratch", "must hold code_rows_scratch() codes", needed,
                   scratch == nullptr ? 0 : scratch_codes);
  }
  return {};
}

/// Every code names a centroid.
inline status check_code_values(const geometry& shape, const std::uint16_t* codes, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    if (codes[i] >= shape.centroids) {
      return failure(status_code::corrupt_data, "rows", "must have codes below the number of centroids",
                     shape.centroids, codes[i]);
    }
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Codes of consecutive slots as canonical code rows (quant/code_rows.hpp), whatever the bank's own layout: slot after
/// slot, codes.shape.row_bytes() bytes each, from the start of `rows`, which has `bytes` bytes, as many or more.
/// `scratch` holds code_rows_scratch(codes.shape, slots.count) codes: cut long ranges to keep it small. A span does not
/// know its length, so that its slots exist is the caller's to see to; slots never coded give any codes.
/// Errors (rows untouched): invalid geometry, codes without memory, slots beyond size_t, rows or scratch too small,
/// what the bank reports.
/// Cost: one load and one shift per code; no allocation.
template <bank_policy Bank>
status load_code_rows(Bank& bank, const code_span<typename Bank::address>& codes, slot_range slots, std::uint8_t* rows,
                      std::size_t bytes, std::uint16_t* scratch, std::size_t scratch_codes) noexcept {
  PQATTN_TRY(detail::check_code_rows(codes, slots, rows, bytes, scratch, scratch_codes));
  if (slots.count == 0) {
    return {};
  }
  PQATTN_TRY(bank.load_codes(codes, slots, scratch));
  const geometry& shape = codes.shape;
  for (std::size_t i = 0; i < slots.count; ++i) {
    pack_code_row(scratch + i * shape.groups(), shape.groups(), shape.code_bits(), rows + i * shape.row_bytes());
  }
  return {};
}

/// Inverse of load_code_rows: canonical code rows into consecutive slots, in the bank's own layout. Padding bits of the
/// rows are not looked at.
/// Errors (no code written): those of load_code_rows, and a code that names no centroid (corrupt_data).
/// Cost: two shifts, a comparison and a store per code; no allocation.
template <bank_policy Bank>
status store_code_rows(Bank& bank, const std::uint8_t* rows, std::size_t bytes,
                       const code_span<typename Bank::address>& codes, slot_range slots, std::uint16_t* scratch,
                       std::size_t scratch_codes) noexcept {
  PQATTN_TRY(detail::check_code_rows(codes, slots, rows, bytes, scratch, scratch_codes));
  if (slots.count == 0) {
    return {};
  }
  const geometry& shape = codes.shape;
  for (std::size_t i = 0; i < slots.count; ++i) {
    unpack_code_row(rows + i * shape.row_bytes(), shape.groups(), shape.code_bits(), scratch + i * shape.groups());
  }
  PQATTN_TRY(detail::check_code_values(shape, scratch, code_rows_scratch(shape, slots.count)));
  return bank.store_codes(codes, slots, scratch);
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
