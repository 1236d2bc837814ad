// SPDX-License-Identifier: MIT
// The rotary kernel in 8 bits, for instruction sets with byte permutes and dot products of bytes.
//
// Two pairs of channels and 64 slots at a time: four look-ups give unsigned bytes (centroids 128 up), multiply-adds with
// the turn table give turned components in 16 bits, whose upper bits become bytes again; four of them lie side by side
// for every slot, so that one dot product of bytes per 16 slots adds both pairs to a row's score.
//
// Numbers: cosine and sine are rounded to 1/255 and then to 1/105, the most whose product with two raised bytes fits 16
// bits. A turned component is kept as u = round(105 / 128 component) + 128, the query as bytes with the longest pair
// 127 long; the raised part of the score is a constant per row and block. Errors: a turned component 0.0068 of the pair's
// length at most (0.0028 rms) and 0.61 of a table's unit (0.35 rms); the query half a unit, its longest pair / 254.
#pragma once

#include "rotary_turns.hpp"

#if PQATTN_X86_AVX512VBMI

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

struct rotary_bytes {
  using isa = avx512vbmi;
  using ints = __m512i;
  using query = std::uint16_t;  ///< x and y of a pair

  static constexpr std::size_t batch = 8;
  static constexpr std::size_t chunk = 16;
  /// Blocks of a batch for so many rows: their sums should stay in the first-level cache.
  [[nodiscard]] static constexpr std::size_t batch_for(std::size_t rows) noexcept { return rows <= 8 ? batch : 4; }
  /// The most rows below `rows` with a larger batch; 0 when there are none.
  [[nodiscard]] static constexpr std::size_t fewer_rows(std::size_t rows) noexcept { return rows <= 8 ? 0 : 8; }
  static constexpr std::size_t key_bytes = 128;
  static constexpr int circle = 105;  ///< what cosine 1 is in the turn table
  static constexpr float product = static_cast<float>(circle) / 128.0f;
  static constexpr float key_offset = 128.0f;
  static constexpr bool raised_tables = true;
  static constexpr bool by_phase = false;

  static constexpr bool sums_magnitudes = false;
  [[nodiscard]] static float unit_of(float, float largest) noexcept { return largest / 126.99f; }
  static PQATTN_ALWAYS_INLINE void put_queries(ints x, ints y, query* out) noexcept {
    const __m256i bytes = _mm512_cvtepi16_epi8(isa::pair_words(x, y));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
  }
  /// Per pair: signed factors of (x, y) for x' and y' of slots in the order of low8 and high8, then the words that take
  /// the raised part of each product away and put the result 128 * 128 up, rounded.
  struct turn {
    ints factor[4];
    ints offset[4];
  };
  using table = const turn*;
  [[nodiscard]] static constexpr std::size_t table_bytes_for(std::size_t pairs) noexcept {
    return (pairs + 1) * sizeof(turn);
  }
  [[nodiscard]] static table table_at(std::size_t, const void* memory) noexcept { return static_cast<table>(memory); }

  static PQATTN_ALWAYS_INLINE ints scale_bytes(ints magnitude, ints negative) noexcept {
    // v / 255 for v < 2^16 as (257 v) >> 16, less than 2^-8 below.
    const auto scaled = [](ints words) PQATTN_X86_INLINE_LAMBDA {
      const ints v = _mm512_add_epi16(_mm512_mullo_epi16(words, isa::set16(circle)), isa::set16(128));
      return _mm512_mulhi_epu16(v, isa::set16(257));
    };
    const ints even = scaled(isa::and_(magnitude, isa::set16(255)));
    const ints odd = scaled(isa::right16<8>(magnitude));
    const ints bytes = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaaull, even, isa::left16<8>(odd));
    return isa::flip(bytes, _mm512_movepi8_mask(negative));
  }
  static PQATTN_ALWAYS_INLINE void store_turns(ints c, ints s, ints c_sign, ints s_sign, std::size_t, std::size_t pair,
                                               std::size_t, void* memory) noexcept {
    turn& out = static_cast<turn*>(memory)[pair];
    const ints cosine = scale_bytes(c, c_sign);
    const ints sine = scale_bytes(s, s_sign);
    const ints opposite = _mm512_sub_epi8(isa::zero(), sine);
    out.factor[0] = isa::low8(cosine, opposite);
    out.factor[1] = isa::high8(cosine, opposite);
    out.factor[2] = isa::low8(sine, cosine);
    out.factor[3] = isa::high8(sine, cosine);
    for (int i = 0; i < 4; ++i) {
      out.offset[i] = isa::sub16(isa::set16(128 * 128 + 64), isa::mul_bytes(isa::set8(-128), out.factor[i]));
    }
  }

  struct turned {
    ints low;
    ints high;
  };
  /// Turned x and y of 32 slots side by side.
  static PQATTN_ALWAYS_INLINE ints turn_half(ints key, const turn* t, int half) noexcept {
    const ints x = isa::add16(isa::mul_bytes(key, t->factor[half]), t->offset[half]);
    const ints y = isa::add16(isa::mul_bytes(key, t->factor[half + 2]), t->offset[half + 2]);
    // Bits 7 to 14 of every word, of y in the upper byte: x where the mask is 0 ... 255, 2 y elsewhere. Bitwise work and sums
    // run on more ports than permutes and shifts.
    return _mm512_ternarylogic_epi32(isa::right16<7>(x), isa::add16(y, y), isa::set16(255), 0xe4);
  }
  static PQATTN_ALWAYS_INLINE turned turn_pair(ints x, ints y, const turn* t) noexcept {
    return {turn_half(isa::low8(x, y), t, 0), turn_half(isa::high8(x, y), t, 1)};
  }
  static PQATTN_ALWAYS_INLINE void store_pairs(const turned& a, const turned& b, std::byte* out) noexcept {
    isa::store(out, isa::low16(a.low, b.low));
    isa::store(out + 64, isa::high16(a.low, b.low));
    isa::store(out + 128, isa::low16(a.high, b.high));
    isa::store(out + 192, isa::high16(a.high, b.high));
  }

  /// Two pairs of `blocks` blocks. Of: which of the four codes (x and y of the first pair, x and y of the second) each
  /// component reads, so that codes which are the same are loaded once.
  template <unsigned Bits, std::size_t... Of>
  static void turn_two(const turned_pair* pair, const std::int8_t* tables, table turns,
                       const std::uint8_t* const* block, std::size_t blocks, std::byte* keys) noexcept {
    using look = lookup<isa, Bits>;
    constexpr std::size_t of[4] = {Of...};
    const std::uint32_t code_at[4] = {pair[0].code_x, pair[0].code_y, pair[1].code_x, pair[1].code_y};
    const std::uint32_t table_at[4] = {pair[0].table_x, pair[0].table_y, pair[1].table_x, pair[1].table_y};
    typename look::table table[4];
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      table[i] = look::load_table(tables + table_at[i]);
    }
    for (std::size_t b = 0; b < blocks; ++b, keys += chunk * key_bytes) {
      typename look::codes codes[4];
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        if (of[i] == i) {
          codes[i] = look::load_codes(block[b] + code_at[i], 0);
        }
      }
      const auto component = [&](std::size_t i) PQATTN_X86_INLINE_LAMBDA {
        return look::look(look::in_memory ? look::load_table(not_hoisted(tables) + table_at[i]) : table[i], codes[of[i]]);
      };
      // Turns are read from memory in every round: in registers they would push the tables out.
      const turn* t = not_hoisted(turns);
      const turned first = turn_pair(component(0), component(1), t + pair[0].turn);
      store_pairs(first, turn_pair(component(2), component(3), t + pair[1].turn), keys);
    }
  }

  /// Decodes and turns pairs [first, first + count) of `blocks` blocks; an odd one out brings its double along.
  template <unsigned Bits>
  static void turn_keys(const rotary_book& book, table turns, std::size_t first, std::size_t count,
                        const std::uint8_t* const* block, std::size_t blocks, std::byte* keys) noexcept {
    for (std::size_t i = 0; i < count; i += 2, keys += 2 * key_bytes) {
      const turned_pair* pair = book.pairs + first + i;
      if (pair[0].code_x == pair[1].code_x && pair[0].code_y == pair[1].code_y) {
        pair[0].code_x == pair[0].code_y ? turn_two<Bits, 0, 0, 0, 0>(pair, book.tables, turns, block, blocks, keys)
                                         : turn_two<Bits, 0, 1, 0, 1>(pair, book.tables, turns, block, blocks, keys);
      } else if (pair[0].code_x == pair[0].code_y && pair[1].code_x == pair[1].code_y) {
        turn_two<Bits, 0, 0, 2, 2>(pair, book.tables, turns, block, blocks, keys);
      } else {
        turn_two<Bits, 0, 1, 2, 3>(pair, book.tables, turns, block, blocks, keys);
      }
    }
  }

  /// Adds `pairs` turned pairs of a block, rounded up to two, to the sums of Rows rows.
  template <std::size_t Rows>
  static PQATTN_ALWAYS_INLINE void sum_pairs(const std::byte* keys, std::size_t pairs, const query* queries,
                                             std::size_t query_stride, std::int32_t* sums, bool first) noexcept {
    ints sum[Rows][4];
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        sum[row][i] = first ? isa::zero() : isa::load(sums + row * slots + i * isa::lanes);
      }
    }
    for (std::size_t pair = 0; pair < pairs; pair += 2, keys += 2 * key_bytes) {
      ints key[4];
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        key[i] = isa::load(keys + i * 64);
      }
      PQATTN_X86_UNROLL
      for (std::size_t row = 0; row < Rows; ++row) {
        std::int32_t two = 0;
        std::memcpy(&two, queries + row * query_stride + pair, sizeof two);
        const ints q = isa::set32(two);
        PQATTN_X86_UNROLL
        for (std::size_t i = 0; i < 4; ++i) {
          sum[row][i] = isa::dot_bytes(sum[row][i], key[i], q);
        }
      }
    }
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        isa::store(sums + row * slots + i * isa::lanes, sum[row][i]);
      }
    }
  }
  static void sum_block(const std::byte* keys, std::size_t count, const query* queries, std::size_t query_stride,
                        std::size_t rows, std::int32_t* sums, bool first) noexcept {
    for_rows<4>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
      sum_pairs<Rows>(keys, count, queries + row * query_stride, query_stride, sums + row * slots, first);
    });
  }
};

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX512VBMI
