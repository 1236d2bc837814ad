// SPDX-License-Identifier: MIT
// The host bank's layout of codes: blocks of 64 slots, group after group ("sub-vector major"), 8 * b bytes a group.
//
// The b bits of a group's 64 codes are kept in planes, low bits first:
//   b / 8 byte planes of 64 bytes      byte s holds 8 bits of slot s
//   one nibble plane of 32 bytes       if b % 8 >= 4: byte i holds slot i (low nibble) and slot i + 32 (high)
//   b % 4 bit planes of 8 bytes        bit s of the little-endian word belongs to slot s
// so 8-bit codes are a register of bytes, 4-bit codes half of one, and any other width unpacks with a few masks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../../config.hpp"
#include "../bank.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

[[nodiscard]] constexpr std::size_t group_bytes(std::uint32_t code_bits) noexcept {
  return std::size_t{8} * code_bits;
}

[[nodiscard]] constexpr std::size_t host_block_bytes(const geometry& shape) noexcept {
  return shape.groups() * group_bytes(shape.code_bits());
}

/// Writes one code. Reads and writes only bits of this slot's bytes: appending costs O(1) a group.
template <class Isa>
PQATTN_ALWAYS_INLINE void put_code(std::byte* group, std::uint32_t code_bits, std::size_t slot,
                                   std::uint32_t code) noexcept {
  auto* bytes = reinterpret_cast<std::uint8_t*>(group);
  std::uint32_t bits = code_bits;
  for (; bits >= 8; bits -= 8, code >>= 8, bytes += 64) {
    bytes[slot] = static_cast<std::uint8_t>(code);
  }
  if (bits >= 4) {
    std::uint8_t& pair = bytes[slot % 32];
    const std::uint32_t nibble = code & 15u;
    pair = static_cast<std::uint8_t>(slot < 32 ? (pair & 0xf0u) | nibble : (pair & 0x0fu) | (nibble << 4));
    bits -= 4, code >>= 4, bytes += 32;
  }
  for (; bits > 0; --bits, code >>= 1, bytes += 8) {
    std::uint8_t& octet = bytes[slot / 8];
    const auto mask = static_cast<std::uint8_t>(1u << (slot % 8));
    octet = static_cast<std::uint8_t>((code & 1u) != 0 ? octet | mask : octet & ~mask);
  }
}

[[nodiscard]] inline std::uint32_t get_code(const std::byte* group, std::uint32_t code_bits,
                                            std::size_t slot) noexcept {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(group);
  std::uint32_t code = 0;
  std::uint32_t shift = 0;
  for (; code_bits - shift >= 8; shift += 8, bytes += 64) {
    code |= static_cast<std::uint32_t>(bytes[slot]) << shift;
  }
  if (code_bits - shift >= 4) {
    code |= static_cast<std::uint32_t>((bytes[slot % 32] >> (slot < 32 ? 0 : 4)) & 15u) << shift;
    shift += 4, bytes += 32;
  }
  for (; shift < code_bits; ++shift, bytes += 8) {
    code |= static_cast<std::uint32_t>((bytes[slot / 8] >> (slot % 8)) & 1u) << shift;
  }
  return code;
}

/// Unpacks all 64 codes of one group. Fixed trip counts, so that compilers vectorise every loop.
template <class Isa>
void unpack_group(const std::byte* group, std::uint32_t code_bits, std::int32_t* PQATTN_RESTRICT codes) noexcept {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(group);
  std::uint32_t shift = 0;
  if (code_bits >= 8) {
    for (std::size_t s = 0; s < 64; ++s) {
      codes[s] = bytes[s];
    }
    shift = 8, bytes += 64;
    if (code_bits == 16) {
      for (std::size_t s = 0; s < 64; ++s) {
        codes[s] |= bytes[s] << 8;
      }
      return;
    }
  } else {
    for (std::size_t s = 0; s < 64; ++s) {
      codes[s] = 0;
    }
  }
  if (code_bits - shift >= 4) {
    for (std::size_t s = 0; s < 32; ++s) {
      codes[s] |= (bytes[s] & 15) << shift;
      codes[s + 32] |= (bytes[s] >> 4) << shift;
    }
    shift += 4, bytes += 32;
  }
  for (; shift < code_bits; ++shift, bytes += 8) {
    for (std::size_t s = 0; s < 64; ++s) {
      codes[s] |= ((bytes[s / 8] >> (s % 8)) & 1) << shift;
    }
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
