// SPDX-License-Identifier: MIT
// Canonical code rows: token-major, geometry::row_bytes() bytes per token, codes packed least significant bit
// first in group order. This is the exchange format; banks keep codes in layouts of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../config.hpp"
#include "geometry.hpp"

namespace pqattn {
inline namespace v0 {

inline namespace PQATTN_ISA_UNIT {

/// Packs `groups` codes of `code_bits` bits each into `row` (row_bytes bytes; padding bits become 0).
inline void pack_code_row(const std::uint16_t* codes, std::uint32_t groups, std::uint32_t code_bits,
                          std::uint8_t* row) noexcept {
  std::uint64_t pending = 0;
  std::uint32_t pending_bits = 0;
  for (std::uint32_t group = 0; group < groups; ++group) {
    pending |= static_cast<std::uint64_t>(codes[group]) << pending_bits;
    for (pending_bits += code_bits; pending_bits >= 8; pending_bits -= 8) {
      *row++ = static_cast<std::uint8_t>(pending);
      pending >>= 8;
    }
  }
  if (pending_bits != 0) {
    *row = static_cast<std::uint8_t>(pending);
  }
}

/// Inverse of pack_code_row.
inline void unpack_code_row(const std::uint8_t* row, std::uint32_t groups, std::uint32_t code_bits,
                            std::uint16_t* codes) noexcept {
  const std::uint32_t mask = (1u << code_bits) - 1;
  std::uint64_t pending = 0;
  std::uint32_t pending_bits = 0;
  for (std::uint32_t group = 0; group < groups; ++group) {
    for (; pending_bits < code_bits; pending_bits += 8) {
      pending |= static_cast<std::uint64_t>(*row++) << pending_bits;
    }
    codes[group] = static_cast<std::uint16_t>(pending & mask);
    pending >>= code_bits;
    pending_bits -= code_bits;
  }
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
