// SPDX-License-Identifier: MIT
// Look-ups of code blocks in byte tables held in registers, and the geometry of the host bank's block layout.
//
// A code block holds 64 slots, group after group; group g starts at byte 8 * bits * g and has first bits / 8 planes
// of 64 bytes, then one plane of 32 nibbles pairs (byte i: slot i low, slot i + 32 high) if bits % 8 >= 4, then
// bits % 4 planes of 64 bits. `part` numbers the registers that cover the 64 slots: one of 64 bytes or two of 32.
#pragma once

#include "isa.hpp"

#if PQATTN_X86_AVX2

#include <cstring>
#include <type_traits>
#include <utility>

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

/// Slots of a code block.
inline constexpr std::size_t slots = 64;

/// Registers that cover a block's slots.
template <class Isa>
inline constexpr std::size_t parts = slots / Isa::bytes;

/// Bytes of one table of 2^bits signed or unsigned bytes: what codebook planes and score tables have.
[[nodiscard]] constexpr std::size_t table_bytes(unsigned bits) noexcept {
  return bits < 6 ? 64 : std::size_t{1} << bits;
}

/// Widest code each instruction set looks up in registers.
template <class Isa>
inline constexpr unsigned widest_code = 8;

/// Offset of the bit planes in a group.
template <unsigned Bits>
inline constexpr std::size_t bit_planes_at = (Bits / 8) * 64 + (Bits % 8 >= 4 ? 32 : 0);

/// Low eight bits of the codes of one part, 256 bits at a time.
template <unsigned Bits>
PQATTN_ALWAYS_INLINE __m256i load_codes_256(const std::uint8_t* group, std::size_t part) noexcept {
  if constexpr (Bits >= 8) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + 32 * part));
  } else {
    __m256i codes = _mm256_setzero_si256();
    if constexpr (Bits >= 4) {
      const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group));
      codes = _mm256_and_si256(part == 0 ? pairs : _mm256_srli_epi16(pairs, 4), _mm256_set1_epi8(15));
    }
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3,
                                            3, 3, 3, 3, 3, 3, 3);
    const __m256i pick = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
    for (unsigned bit = 0; bit < Bits % 4; ++bit) {
      std::int32_t word = 0;
      std::memcpy(&word, group + bit_planes_at<Bits> + 8 * bit + 4 * part, 4);
      const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(word), spread);
      const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, pick), pick);
      const __m256i value = _mm256_set1_epi8(static_cast<char>(1u << (Bits / 4 * 4 + bit)));
      codes = _mm256_or_si256(codes, _mm256_and_si256(set, value));
    }
    return codes;
  }
}

/// The codes of one group as a kernel needs them, and a table of bytes to look them up in: kept in registers, or read
/// from memory at each look-up (in_memory). Shared: whether the same codes are looked up in several tables.
template <class Isa, unsigned Bits, bool Shared = true>
struct lookup;

/// What only some of them have.
template <class Lookup>
struct plain_lookup {
  static constexpr bool has_halves = false;
  template <class Table, class Codes>
  static PQATTN_ALWAYS_INLINE auto look_merged(const Table& t, const Codes& c) noexcept {
    return Lookup::look(t, c);
  }
  template <class Table>
  static PQATTN_ALWAYS_INLINE void keep(Table&) noexcept {}
};

template <unsigned Bits, bool Shared>
struct lookup<avx2, Bits, Shared> : plain_lookup<lookup<avx2, Bits, Shared>> {
  struct codes {
    __m256i low;
  };
  static PQATTN_ALWAYS_INLINE codes load_codes(const std::uint8_t* group, std::size_t part) noexcept {
    return {load_codes_256<Bits>(group, part)};
  }
  static constexpr bool in_memory = true;
  struct table {
    const std::uint8_t* memory;
  };
  static PQATTN_ALWAYS_INLINE table load_table(const void* memory) noexcept {
    return {static_cast<const std::uint8_t*>(memory)};
  }
  static PQATTN_ALWAYS_INLINE __m256i sixteen(const std::uint8_t* memory) noexcept {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(memory)));
  }
  static PQATTN_ALWAYS_INLINE __m256i look(const table& t, const codes& c) noexcept {
    if constexpr (Bits <= 4) {
      return _mm256_shuffle_epi8(sixteen(t.memory), c.low);
    } else {
      // Sixteen entries at a time: an index outside them saturates past 127 and looks up a zero.
      __m256i result = _mm256_setzero_si256();
      __m256i index = c.low;
      PQATTN_X86_UNROLL
      for (unsigned row = 0; row < 1u << (Bits - 4); ++row) {
        const __m256i inside = _mm256_adds_epu8(index, _mm256_set1_epi8(0x70));
        result = _mm256_or_si256(result, _mm256_shuffle_epi8(sixteen(t.memory + 16 * row), inside));
        index = _mm256_sub_epi8(index, _mm256_set1_epi8(16));
      }
      return result;
    }
  }
};

#if PQATTN_X86_AVX512BW
template <unsigned Bits>
PQATTN_ALWAYS_INLINE __m512i load_codes_512(const std::uint8_t* group) noexcept {
  if constexpr (Bits >= 8) {
    return _mm512_loadu_si512(group);
  } else {
    __m512i codes = _mm512_setzero_si512();
    if constexpr (Bits >= 4) {
      const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group));
      codes = _mm512_inserti64x4(_mm512_castsi256_si512(pairs), _mm256_srli_epi16(pairs, 4), 1);
      codes = _mm512_and_si512(codes, _mm512_set1_epi8(15));
    }
    for (unsigned bit = 0; bit < Bits % 4; ++bit) {
      std::uint64_t plane = 0;
      std::memcpy(&plane, group + bit_planes_at<Bits> + 8 * bit, 8);
      const __m512i value = _mm512_set1_epi8(static_cast<char>(1u << (Bits / 4 * 4 + bit)));
      codes = _mm512_mask_add_epi8(codes, plane, codes, value);
    }
    return codes;
  }
}

/// A table of sizeof...(Index) registers. Not a loop: GCC 12 would build the result in memory.
template <class Table, std::size_t... Index>
PQATTN_ALWAYS_INLINE Table load_registers(const void* memory, std::index_sequence<Index...>) noexcept {
  return {{_mm512_loadu_si512(static_cast<const std::uint8_t*>(memory) + 64 * Index)...}};
}

/// Without byte permutes, tables wider than 16 bytes are looked up as 16-bit words: one look-up for the even and
/// one for the odd slots, then the wanted half of the word is moved into place.
template <unsigned Bits, bool Shared>
struct lookup<avx512bw, Bits, Shared> : plain_lookup<lookup<avx512bw, Bits, Shared>> {
  struct codes {
    __m512i low;
    __m512i odd;          // word index of the odd slots
    __m512i even_shift;   // bits to move an even slot's byte down
    __m512i odd_shift;    // bits to move an odd slot's byte up
    __mmask32 even_high;  // bit 7 of the code
    __mmask32 odd_high;
  };
  static constexpr unsigned registers = Bits <= 6 ? 1 : 1u << (Bits - 6);
  static PQATTN_ALWAYS_INLINE codes load_codes(const std::uint8_t* group, std::size_t) noexcept {
    codes c = {};
    c.low = load_codes_512<Bits>(group);
    if constexpr (Bits > 4) {
      const __m512i eight = _mm512_set1_epi16(8);
      c.odd = _mm512_srli_epi16(c.low, 9);
      c.even_shift = _mm512_and_si512(_mm512_slli_epi16(c.low, 3), eight);
      c.odd_shift = _mm512_andnot_si512(_mm512_srli_epi16(c.low, 5), eight);
      if constexpr (Bits == 8) {
        c.even_high = _mm512_test_epi16_mask(c.low, _mm512_set1_epi16(0x80));
        c.odd_high = _mm512_movepi16_mask(c.low);
      }
      c.low = _mm512_srli_epi16(c.low, 1);
    }
    return c;
  }
  static constexpr bool in_memory = false;
  struct table {
    __m512i words[registers];
  };
  static PQATTN_ALWAYS_INLINE table load_table(const void* memory) noexcept {
    if constexpr (Bits <= 4) {
      return {{_mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(memory)))}};
    } else {
      return load_registers<table>(memory, std::make_index_sequence<registers>{});
    }
  }
  static PQATTN_ALWAYS_INLINE __m512i words_at(const table& t, __m512i index, __mmask32 high) noexcept {
    if constexpr (registers == 1) {
      return _mm512_permutexvar_epi16(index, t.words[0]);
    } else if constexpr (registers == 2) {
      return _mm512_permutex2var_epi16(t.words[0], index, t.words[1]);
    } else {
      return _mm512_mask_blend_epi16(high, _mm512_permutex2var_epi16(t.words[0], index, t.words[1]),
                                     _mm512_permutex2var_epi16(t.words[2], index, t.words[3]));
    }
  }
  static PQATTN_ALWAYS_INLINE __m512i look(const table& t, const codes& c) noexcept {
    if constexpr (Bits <= 4) {
      return _mm512_shuffle_epi8(t.words[0], c.low);
    } else {
      const __m512i even = _mm512_srlv_epi16(words_at(t, c.low, c.even_high), c.even_shift);
      const __m512i odd = _mm512_sllv_epi16(words_at(t, c.odd, c.odd_high), c.odd_shift);
      return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaaull, even, odd);
    }
  }
};
#endif

#if PQATTN_X86_AVX512VBMI
template <>
inline constexpr unsigned widest_code<avx512vbmi> = 9;

// A permute of two tables (vpermi2b) takes a cycle on AMD and two on Intel, where a masked permute of one table
// (vpermb) takes one: there a look-up in four registers is four masked permutes, elsewhere two permutes and a blend.
#if defined(__icelake_client__) || defined(__icelake_server__) || defined(__tigerlake__) || defined(__rocketlake__) || \
    defined(__sapphirerapids__) || defined(__emeraldrapids__) || defined(__graniterapids__) ||                         \
    defined(__tune_sapphirerapids__) || defined(__tune_icelake_server__)
inline constexpr bool masked_permutes = true;
#else
inline constexpr bool masked_permutes = false;
#endif

template <unsigned Bits, bool Shared>
struct lookup<avx512vbmi, Bits, Shared> {
  static constexpr bool masked = masked_permutes && Shared && Bits >= 7;  // else masks cost more than they save
  struct codes {
    __m512i low;
    __mmask64 bit6;
    __mmask64 bit7;
    __mmask64 not7;
    __mmask64 bits67;
    __mmask64 bit8;
  };
  static constexpr unsigned registers = Bits <= 6 ? 1 : 1u << (Bits - 6);
  static PQATTN_ALWAYS_INLINE codes load_codes(const std::uint8_t* group, std::size_t) noexcept {
    codes c = {};
    c.low = load_codes_512<Bits>(group);
    if constexpr (Bits >= 8) {
      c.bit7 = _mm512_movepi8_mask(c.low);
      c.not7 = _knot_mask64(c.bit7);
    }
    if constexpr (masked) {
      c.bit6 = _mm512_movepi8_mask(_mm512_add_epi8(c.low, c.low));
      c.bits67 = _kand_mask64(c.bit6, c.bit7);
    }
    if constexpr (Bits == 9) {
      std::memcpy(&c.bit8, group + bit_planes_at<9>, 8);
    }
    return c;
  }
  struct register_table {
    __m512i bytes[registers];
  };
  struct memory_table {
    const __m512i* bytes;
  };
  /// Masked permutes read their table from memory, which costs them nothing and leaves registers free.
  static constexpr bool in_memory = masked;
  using table = std::conditional_t<in_memory, memory_table, register_table>;
  static PQATTN_ALWAYS_INLINE table load_table(const void* memory) noexcept {
    if constexpr (in_memory) {
      return {static_cast<const __m512i*>(memory)};
    } else {
      return load_registers<table>(memory, std::make_index_sequence<registers>{});
    }
  }
  static PQATTN_ALWAYS_INLINE __m512i look128(const __m512i* t, const codes& c) noexcept {
    if constexpr (masked) {
      return _mm512_mask_permutexvar_epi8(_mm512_permutexvar_epi8(c.low, t[0]), c.bit6, c.low, t[1]);
    } else {
      return _mm512_permutex2var_epi8(t[0], c.low, t[1]);
    }
  }
  static PQATTN_ALWAYS_INLINE __m512i look256(const __m512i* t, const codes& c) noexcept {
    if constexpr (masked) {
      return _mm512_mask_permutexvar_epi8(_mm512_mask_permutexvar_epi8(look128(t, c), c.bit7, c.low, t[2]), c.bits67,
                                          c.low, t[3]);
    } else {
      return _mm512_mask_blend_epi8(c.bit7, look128(t, c), look128(t + 2, c));
    }
  }
  static PQATTN_ALWAYS_INLINE __m512i look(const table& t, const codes& c) noexcept {
    if constexpr (Bits <= 6) {
      return _mm512_permutexvar_epi8(c.low, t.bytes[0]);
    } else if constexpr (Bits == 7) {
      return look128(t.bytes, c);
    } else if constexpr (Bits == 8) {
      return look256(t.bytes, c);
    } else {
      return _mm512_mask_blend_epi8(c.bit8, look256(t.bytes, c), look256(t.bytes + 4, c));
    }
  }

  /// A table of which every second register is read from memory with each look-up.
  struct half_table {
    __m512i first;
    __m512i third;
    const __m512i* memory;
  };
  static constexpr bool has_halves = Bits == 8 && !masked;
  static PQATTN_ALWAYS_INLINE __m512i merge(__m512i first, __m512i second, __m512i third, __m512i fourth,
                                            const codes& c) noexcept {
    const __m512i found = _mm512_mask2_permutex2var_epi8(first, c.low, c.not7, second);
    return _mm512_mask2_permutex2var_epi8(third, found, c.bit7, fourth);
  }
  static PQATTN_ALWAYS_INLINE half_table load_halves(const void* memory) noexcept {
    const auto* at = static_cast<const __m512i*>(memory);
    return {_mm512_loadu_si512(at), _mm512_loadu_si512(at + 2), at};
  }
  /// look() without a blend: the second permute fills in what the first, under a mask, has left as it was. One
  /// instruction less and a longer chain: for look-ups among dot products.
  static PQATTN_ALWAYS_INLINE __m512i look_merged(const table& t, const codes& c) noexcept {
    if constexpr (has_halves) {
      return merge(t.bytes[0], t.bytes[1], t.bytes[2], t.bytes[3], c);
    } else {
      return look(t, c);
    }
  }
  static PQATTN_ALWAYS_INLINE __m512i look_merged(const half_table& t, const codes& c) noexcept {
    const __m512i* memory = not_hoisted(t.memory);
    return merge(t.first, _mm512_load_si512(memory + 1), t.third, _mm512_load_si512(memory + 3), c);
  }

  /// Keeps the compiler from reading tables from memory with each look-up: loads have one port, or two.
  static PQATTN_ALWAYS_INLINE void keep(table& t) noexcept {
    if constexpr (!in_memory) {
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < registers; ++i) {
        keep_in_register(t.bytes[i]);
      }
    }
  }
  static PQATTN_ALWAYS_INLINE void keep(half_table& t) noexcept {
    keep_in_register(t.first);
    keep_in_register(t.third);
  }
};
#endif

/// Calls `body` with the code width as a compile-time constant; false when this instruction set has no look-up
/// of that width in registers.
template <class Isa, class Body>
inline bool with_code_bits(unsigned bits, const Body& body) noexcept {
  switch (bits) {
    case 1: body.template operator()<1>(); return true;
    case 2: body.template operator()<2>(); return true;
    case 3: body.template operator()<3>(); return true;
    case 4: body.template operator()<4>(); return true;
    case 5: body.template operator()<5>(); return true;
    case 6: body.template operator()<6>(); return true;
    case 7: body.template operator()<7>(); return true;
    case 8: body.template operator()<8>(); return true;
    case 9:
      if constexpr (widest_code<Isa> >= 9) {
        body.template operator()<9>();
        return true;
      }
      return false;
    default: return false;
  }
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
