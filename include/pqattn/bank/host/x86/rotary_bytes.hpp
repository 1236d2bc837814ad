// SPDX-License-Identifier: MIT
// The rotary kernel in 8 bits, for instruction sets with byte permutes and dot products of bytes.
//
// A pair of channels and 64 slots at a time: two look-ups give unsigned bytes (centroids 128 up), multiply-adds with
// the turn table give turned components in 16 bits, whose upper bits become bytes again. Those of two pairs are laid
// side by side for every slot, so that one dot product of bytes per 16 slots adds both pairs to a row's score.
//
// Numbers: cosine and sine are rounded to 1/255 and then to 1/105, the most whose product with two raised bytes fits 16
// bits. A turned component is kept as u = round(105 / 128 component) + 128, the query as bytes with the longest pair
// 127 long; the raised part of the score is a constant per row and block. Errors: a turned component 0.0068 of the
// pair's length at most (0.0028 rms) and 0.61 of a table's unit (0.35 rms); the query half a unit, its longest pair /
// 254, and what is lost when it is turned in 16 bits, a hundredth of one.
#pragma once

#include "rotary_queries.hpp"
#include "rotary_turns.hpp"

#if PQATTN_X86_AVX512VBMI

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

namespace detail {

/// Upper bytes of 16 words of 32 bits of one register and 16 of another, in turn.
struct turned_byte_order {
  alignas(64) std::uint8_t of[64];

  constexpr turned_byte_order() noexcept : of{} {
    for (int i = 0; i < 32; ++i) {
      of[i] = static_cast<std::uint8_t>(i / 2 * 4 + 3 + i % 2 * 64);
    }
  }
};
inline constexpr turned_byte_order turned_bytes;

}  // namespace detail

struct rotary_bytes {
  using isa = avx512vbmi;
  using ints = __m512i;
  using query = std::uint16_t;  ///< x and y of a pair

  static constexpr std::size_t batch = 8;
  /// Pairs that are turned before they are summed: the most, and as many as leave room on the stack for other tables.
  static constexpr std::size_t chunk = 32;
  [[nodiscard]] static constexpr std::size_t chunk_for(std::size_t pairs, std::size_t rows) noexcept {
    return pairs <= 64 && rows <= 8 ? chunk : chunk / 2;
  }
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

  // --- queries ---

  /// Bytes of a row's pair as it is turned: x and y in words, 8 bits behind the point.
  static constexpr std::size_t row_bytes = 4;
  static void fill_row(const float* x, const float* y, std::size_t padded, std::uint8_t* out) noexcept {
    const auto fixed = [](const float* in) PQATTN_X86_INLINE_LAMBDA {
      return isa::to_ints(isa::mulf(isa::loadf(in), isa::setf(256.0f)));
    };
    for (std::size_t pair = 0; pair < padded; pair += isa::lanes) {
      isa::store(out + pair * row_bytes, isa::pair_words(fixed(x + pair), fixed(y + pair)));
    }
  }
  /// What put_angles() makes of 16 cosines and sines: (c, s) and (-s, c), 15 bits behind the point.
  static PQATTN_ALWAYS_INLINE void put_angles(isa::floats cosine, isa::floats sine, float* first,
                                              float* second) noexcept {
    const auto fixed = [](isa::floats in)
                           PQATTN_X86_INLINE_LAMBDA { return isa::to_ints(isa::mulf(in, isa::setf(32767.0f))); };
    const ints c = fixed(cosine);
    const ints s = fixed(sine);
    isa::store(first, isa::pair_words(c, s));
    isa::store(second, isa::pair_words(_mm512_sub_epi32(isa::zero(), s), c));
  }
  /// Turns rows [row, row + Rows) back by a block's angles and rounds them to bytes, whose sums are returned.
  template <std::size_t Rows>
  static PQATTN_ALWAYS_INLINE void turn_rows(const rotary_queries& queries, std::size_t row, const float* first,
                                             const float* second, query* out, float* sums) noexcept {
    __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    const ints upper_bytes = isa::load(detail::turned_bytes.of);
    const std::size_t padded = queries.padded;
    const std::uint8_t* rows = queries.tables + row * padded * row_bytes;
    for (std::size_t pair = 0; pair < padded; pair += isa::lanes) {
      const ints a = isa::load(first + pair);
      const ints b = isa::load(second + pair);
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < Rows; ++i) {
        const ints q = isa::load(rows + (i * padded + pair) * row_bytes);
        // 23 bits behind the point and doubled, so that the upper bytes are what is rounded.
        const ints half = isa::set32(1 << 22);
        const ints x = isa::dot_words(half, q, a);
        const ints y = isa::dot_words(half, q, b);
        const __m256i bytes =
            _mm512_castsi512_si256(_mm512_permutex2var_epi8(isa::add32(x, x), upper_bytes, isa::add32(y, y)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * padded + pair), bytes);
        sum[i] = _mm256_dpbusd_epi32(sum[i], _mm256_set1_epi8(1), bytes);
      }
    }
    const auto wide = [](__m256i low) PQATTN_X86_INLINE_LAMBDA { return _mm512_zextsi256_si512(low); };
    _mm_storeu_ps(sums, _mm_cvtepi32_ps(isa::sums_of_four(wide(sum[0]), wide(sum[1]), wide(sum[2]), wide(sum[3]))));
  }

  // --- keys ---

  /// Per pair: cosines and sines of 64 slots in units of 1/circle.
  struct turn {
    ints cosine;
    ints sine;
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
    out.cosine = scale_bytes(c, c_sign);
    out.sine = scale_bytes(s, s_sign);
  }

  /// Signed factors of (x, y) for x' and y' of slots in the order of low8 and high8, then the words that take the
  /// raised part of each product away and put the result 128 * 128 up, rounded.
  struct factors {
    ints factor[4];
    ints offset[4];
  };
  static PQATTN_ALWAYS_INLINE factors factors_of(const turn& by) noexcept {
    factors out;
    const ints opposite = _mm512_sub_epi8(isa::zero(), by.sine);
    out.factor[0] = isa::low8(by.cosine, opposite);
    out.factor[1] = isa::high8(by.cosine, opposite);
    out.factor[2] = isa::low8(by.sine, by.cosine);
    out.factor[3] = isa::high8(by.sine, by.cosine);
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      out.offset[i] = isa::sub16(isa::set16(128 * 128 + 64), isa::mul_bytes(isa::set8(-128), out.factor[i]));
    }
    return out;
  }

  /// Turned x and y of 32 slots side by side.
  static PQATTN_ALWAYS_INLINE ints turn_half(ints key, const factors& by, int half) noexcept {
    const ints x = isa::add16(isa::mul_bytes(key, by.factor[half]), by.offset[half]);
    const ints y = isa::add16(isa::mul_bytes(key, by.factor[half + 2]), by.offset[half + 2]);
    // Bits 7 to 14 of every word, those of y in the upper byte. Sums run on more ports than permutes and shifts, and a
    // blend costs Zen 4 less than bitwise work on three registers.
    return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaaull, isa::right16<7>(x), isa::add16(y, y));
  }

  /// One pair of `blocks` blocks: turned x and y side by side, of slots in the order of low8, then of high8. Same:
  /// whether one code stands for both channels. Tables and turns stay in registers.
  template <unsigned Bits, bool Same>
  static PQATTN_NOINLINE void turn_pair(const turned_pair& pair, const std::int8_t* tables, table turns,
                                        const std::uint8_t* const* block, std::size_t blocks, std::byte* keys,
                                        std::size_t key_block) noexcept {
    using look = lookup<isa, Bits>;
    typename look::table table_x = look::load_table(tables + pair.table_x);
    typename look::table table_y = look::load_table(tables + pair.table_y);
    if constexpr (Bits <= 8) {  // wider ones are too many
      look::keep(table_x);
      look::keep(table_y);
    }
    factors by = factors_of(turns[pair.turn]);
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      keep_in_register(by.factor[i]);
      keep_in_register(by.offset[i]);
    }
    const auto table_at = [&](const typename look::table& kept, std::uint32_t at) PQATTN_X86_INLINE_LAMBDA {
      return look::in_memory ? look::load_table(not_hoisted(tables) + at) : kept;
    };
    const std::size_t at_x = pair.code_x;
    const std::size_t at_y = pair.code_y;
    for (std::size_t b = 0; b < blocks; ++b, keys += key_block) {
      typename look::codes code_x = look::load_codes(block[b] + at_x, 0);
      keep_in_register(code_x.low);
      const typename look::codes code_y = Same ? code_x : look::load_codes(block[b] + at_y, 0);
      const ints x = look::look(table_at(table_x, pair.table_x), code_x);
      const ints y = look::look(table_at(table_y, pair.table_y), code_y);
      isa::store(keys, turn_half(isa::low8(x, y), by, 0));
      isa::store(keys + 64, turn_half(isa::high8(x, y), by, 1));
    }
  }

  /// Decodes and turns pairs [first, first + count) of `blocks` blocks; an odd one out brings its double along.
  template <unsigned Bits>
  static void turn_keys(const rotary_book& book, table turns, std::size_t first, std::size_t count,
                        const std::uint8_t* const* block, std::size_t blocks, std::byte* keys,
                        std::size_t key_block) noexcept {
    for (std::size_t i = 0; i < (count + 1) / 2 * 2; ++i, keys += key_bytes) {
      const turned_pair& pair = book.pairs[first + i];
      pair.code_x == pair.code_y ? turn_pair<Bits, true>(pair, book.tables, turns, block, blocks, keys, key_block)
                                 : turn_pair<Bits, false>(pair, book.tables, turns, block, blocks, keys, key_block);
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
      const ints a_low = isa::load(keys);
      const ints a_high = isa::load(keys + 64);
      const ints b_low = isa::load(keys + key_bytes);
      const ints b_high = isa::load(keys + key_bytes + 64);
      ints key[4] = {isa::low16(a_low, b_low), isa::high16(a_low, b_low), isa::low16(a_high, b_high),
                     isa::high16(a_high, b_high)};
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
