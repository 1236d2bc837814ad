// SPDX-License-Identifier: MIT
// The rotary kernel by phases, for few query rows and codes whose pairs have both channels in one sub-vector, on
// instruction sets with byte permutes and dot products of bytes.
//
// A pair of channels is kept as its length r and its phase, in units of 1/256 turn. Turning it is adding to the phase,
// and what it adds to a row's score is r |q| cos(phase - phase of q): a look-up in the row's own table, times r. So
// keys take half the work of turned components (rotary_bytes), and every row two and a half times as much.
//
// Two pairs of channels and 64 slots at a time, four look-ups give phases and lengths; the block's and the slot's turns
// are added to the phases. For four pairs, two-register permutes look up each row's half turn by phase, bit 7 of which
// is the sign; four bytes lie side by side for every slot, so that one dot product of bytes per 16 slots adds four
// pairs.
//
// Numbers: a centroid's phase, from components whose ratio is cut to 7 bits, is off by 0.64 steps at most, 0.0157
// radians, 0.0073 rms; a position's, which keeps two bits more for the block and rounds the sum, by 0.63 steps, 0.0073
// rms. Lengths, 2 per unit of the table, are off by half a unit of theirs and 1/200 at most, 0.5 units rms; a row's
// table, the longest of whose pairs is 127 long, by 0.51 units, 0.29 rms.
#pragma once

#include "rotary_turns.hpp"

#if PQATTN_X86_AVX512VBMI

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

namespace detail {

/// Functions of an angle in 1/256 turns and of a ratio in 1/128, rounded.
struct arc_tables {
  alignas(64) std::uint8_t reciprocal_low[128] = {};  ///< of n: 32767 / n
  alignas(64) std::uint8_t reciprocal_high[128] = {};
  alignas(64) std::uint8_t angle[128] = {};   ///< arc tangent of n + 1/2 in 1/256 turns
  alignas(64) std::uint8_t secant[128] = {};  ///< of that angle, in 1/128
  alignas(64) std::int16_t cosine[192] = {};  ///< of the angle n - 64, in 2^-15
  alignas(64) std::uint8_t odd_bytes[64] = {};
  alignas(64) std::uint16_t odd_words[32] = {};
};

[[nodiscard]] constexpr double constant_cosine(double x) noexcept {
  double term = 1.0;
  double sum = 1.0;
  for (int n = 2; n < 40; n += 2) {
    term *= -x * x / (n * (n - 1));
    sum += term;
  }
  return sum;
}

[[nodiscard]] constexpr arc_tables make_arc_tables() noexcept {
  constexpr double unit = 6.283185307179586 / 256.0;
  arc_tables t;
  for (int n = 0; n < 128; ++n) {
    const int reciprocal = n == 0 ? 0 : 32767 / n;
    t.reciprocal_low[n] = static_cast<std::uint8_t>(reciprocal & 255);
    t.reciprocal_high[n] = static_cast<std::uint8_t>(reciprocal >> 8);
    // The angle whose neighbour half a unit on has a larger tangent, and the secant by Newton's square root.
    const double ratio = (n + 0.5) / 128.0;
    int angle = 0;
    while (constant_cosine((angle + 0.5) * unit - 64.0 * unit) < ratio * constant_cosine((angle + 0.5) * unit)) {
      ++angle;
    }
    t.angle[n] = static_cast<std::uint8_t>(angle);
    double root = 1.2;
    for (int i = 0; i < 6; ++i) {
      root = 0.5 * (root + (1.0 + ratio * ratio) / root);
    }
    t.secant[n] = static_cast<std::uint8_t>(128.0 * root + 0.5);
  }
  for (int n = 0; n < 192; ++n) {
    const double value = 32768.0 * constant_cosine((n - 64) * unit);
    const double rounded = value < 0.0 ? value - 0.5 : value + 0.5;
    t.cosine[n] = static_cast<std::int16_t>(rounded > 32767.0 ? 32767.0 : rounded);
  }
  for (int n = 0; n < 64; ++n) {
    t.odd_bytes[n] = static_cast<std::uint8_t>(2 * n + 1);
    if (n < 32) {
      t.odd_words[n] = static_cast<std::uint16_t>(2 * n + 1);
    }
  }
  return t;
}

inline constexpr arc_tables arcs = make_arc_tables();

}  // namespace detail

struct rotary_phases {
  using isa = avx512vbmi;
  using ints = __m512i;
  /// The turn of a block's first slot, per pair and for all rows: phase in the lower byte, quarters of its unit in the
  /// upper.
  using query = std::uint16_t;

  static constexpr std::size_t batch = 8;
  static constexpr std::size_t chunk = 16;
  [[nodiscard]] static constexpr std::size_t chunk_for(std::size_t, std::size_t) noexcept { return chunk; }
  [[nodiscard]] static constexpr std::size_t batch_for(std::size_t) noexcept { return batch; }
  [[nodiscard]] static constexpr std::size_t fewer_rows(std::size_t) noexcept { return 0; }
  static constexpr std::size_t key_bytes = 128;
  static constexpr float product = 2.0f;  ///< of a unit of the row's table and one of the codebook's
  static constexpr bool raised_tables = false;
  static constexpr bool by_phase = true;

  /// The most rows for which this kernel is faster than turned components.
  static constexpr std::size_t most_rows = 2;
  /// Variance of a pair's phase in radians: a centroid's and a position's.
  static constexpr float phase_variance = 0.0073f * 0.0073f + 0.0073f * 0.0073f;

  static constexpr bool sums_magnitudes = false;
  [[nodiscard]] static float unit_of(float, float largest) noexcept { return largest / 126.99f; }

  // --- turns: per pair 4 x 64 phases, of the block's 64 offsets after 0, 1, 2 and 3 quarters of a unit ---

  static constexpr std::size_t turn_bytes = 4 * slots;
  using table = const std::uint8_t*;
  [[nodiscard]] static constexpr std::size_t table_bytes_for(std::size_t pairs) noexcept {
    return (pairs + 1) * turn_bytes;
  }
  [[nodiscard]] static table table_at(std::size_t, const void* memory) noexcept { return static_cast<table>(memory); }

  /// Stores the turns of one pair from phases in units of 2^-32 turns, 16 slots each.
  static PQATTN_ALWAYS_INLINE void store_turns(const ints (&phase)[4], std::uint8_t* out) noexcept {
    const ints upper = isa::load(detail::arcs.odd_words);
    const ints words[2] = {_mm512_permutex2var_epi16(phase[0], upper, phase[1]),
                           _mm512_permutex2var_epi16(phase[2], upper, phase[3])};
    PQATTN_X86_UNROLL
    for (int quarter = 0; quarter < 4; ++quarter) {
      const ints rounded = isa::set16(128 + 64 * quarter);
      isa::store(out + slots * static_cast<std::size_t>(quarter),
                 upper_bytes(isa::add16(words[0], rounded), isa::add16(words[1], rounded)));
    }
  }
  /// Fills the turns of slots at `offsets[0..64)` positions from the block's base, or 0..63 when null. O(64 * pairs).
  static void fill_turns(const rope& rotation, const std::int64_t* offsets, void* memory) noexcept {
    auto* out = static_cast<std::uint8_t*>(memory);
    for (std::size_t pair = 0; pair <= rotation.pairs; ++pair, out += turn_bytes) {
      const std::uint64_t step = pair < rotation.pairs ? turn_step(rotation.frequencies[pair]) : 0;
      const auto short_step = static_cast<std::uint32_t>((step + (std::uint64_t{1} << 31)) >> 32);
      ints phase[4];
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        phase[i] = isa::multiples32(short_step, static_cast<std::uint32_t>(i * isa::lanes));
      }
      if (offsets != nullptr) {
        alignas(64) std::uint32_t phases[slots];
        for (std::size_t slot = 0; slot < slots; ++slot) {
          phases[slot] = static_cast<std::uint32_t>((step * static_cast<std::uint64_t>(offsets[slot])) >> 32);
        }
        PQATTN_X86_UNROLL
        for (std::size_t i = 0; i < 4; ++i) {
          phase[i] = isa::load(phases + i * isa::lanes);
        }
      }
      store_turns(phase, out);
    }
  }

  /// Turns of a block that begins at `base`, for `padded` pairs.
  static PQATTN_ALWAYS_INLINE void turn_block(const std::uint64_t* steps, std::size_t padded, std::int64_t base,
                                              query* out) noexcept {
    for (std::size_t pair = 0; pair < padded; pair += isa::lanes) {
      // Rounded to a quarter of a unit.
      const ints phase = isa::add32(isa::phases(steps + pair, static_cast<std::uint64_t>(base)), isa::set32(1 << 21));
      const ints quarters = _mm512_and_si512(_mm512_srli_epi32(phase, 14), isa::set32(0x300));
      const __m256i turns = _mm512_cvtepi32_epi16(_mm512_or_si512(_mm512_srli_epi32(phase, 24), quarters));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + pair), turns);
    }
  }

  // --- codebook ---

  /// Phases and twice the lengths of 64 pairs of signed bytes, hypot(x, y) <= 127.
  static PQATTN_ALWAYS_INLINE void to_phases(ints x, ints y, ints& phase, ints& length) noexcept {
    const ints ax = _mm512_abs_epi8(x);
    const ints ay = _mm512_abs_epi8(y);
    const ints longer = _mm512_max_epu8(ax, ay);
    const ints shorter = _mm512_min_epu8(ax, ay);
    // shorter / longer in 7 bits, rounded down: tables of it stand for the middle of each step.
    const detail::arc_tables& arc = detail::arcs;
    const ints low = look128(arc.reciprocal_low, longer);
    const ints high = look128(arc.reciprocal_high, longer);
    const ints zero = isa::zero();
    const ints first = _mm512_mullo_epi16(isa::low8(low, high), isa::low8(shorter, zero));
    const ints second = _mm512_mullo_epi16(isa::high8(low, high), isa::high8(shorter, zero));
    const ints ratio = _mm512_packus_epi16(isa::right16<8>(first), isa::right16<8>(second));
    ints angle = look128(arc.angle, ratio);
    angle = _mm512_mask_sub_epi8(angle, _mm512_cmpgt_epu8_mask(ay, ax), isa::set8(64), angle);
    angle = _mm512_mask_sub_epi8(angle, _mm512_movepi8_mask(x), isa::set8(-128), angle);
    phase = _mm512_mask_sub_epi8(angle, _mm512_movepi8_mask(y), zero, angle);
    // 2 hypot(x, y) = longer * secant, the secant in units of 1/64 of half of it. Components were rounded: what is a
    // little too long is cut.
    const ints secant = look128(arc.secant, ratio);
    const auto doubled = [&](ints component) PQATTN_X86_INLINE_LAMBDA {
      return _mm512_min_epu16(isa::add16(isa::mul_bytes(secant, component), isa::set16(32)), isa::set16(255 * 64));
    };
    const ints even = doubled(isa::and_(longer, isa::set16(255)));
    const ints odd = doubled(isa::and_(longer, isa::set16(-256)));
    length = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaaull, isa::right16<6>(even), isa::left16<2>(odd));
  }

  /// Phases and lengths of a book's pairs, in its own memory: from `resident`, the tables list_rotary_pairs was for, or
  /// from those that the memory has when null. O(pairs * 2^code_bits), about 40 instructions for 64 centroids of a
  /// pair.
  static void store_phases(const geometry& shape, const rope& rotation, const std::int8_t* resident,
                           void* memory) noexcept {
    const auto parts = detail::carve_rotary_book(shape, rotation, memory);
    const std::size_t entries = table_bytes(shape.code_bits());
    const std::int8_t* in = resident == nullptr ? parts.tables : resident;
    const std::size_t count = detail::rotary_pairs(shape, rotation);
    for (std::size_t index = 0; index < count; ++index) {
      turned_pair& pair = parts.pairs[index];
      std::int8_t* phases = parts.tables + 2 * index * entries;
      std::int8_t* lengths = phases + entries;
      for (std::size_t i = 0; i < entries; i += isa::bytes) {
        const ints x = isa::load(in + pair.table_x + i);
        const ints y = pair.channel_y == no_channel ? isa::zero() : isa::load(in + pair.table_y + i);
        ints phase, length;
        to_phases(x, y, phase, length);
        isa::store(phases + i, phase);
        isa::store(lengths + i, length);
      }
      pair.table_x = static_cast<std::uint32_t>(2 * index * entries);
      pair.table_y = static_cast<std::uint32_t>((2 * index + 1) * entries);
    }
    detail::double_last(parts.pairs, count);
  }

  // --- rows ---

  /// Bytes of a row's table per pair: |q| cos(phase - phase of q) for half a turn.
  static constexpr std::size_t row_bytes = 128;

  /// Fills the tables of one row from x and y of `padded` pairs in its units. O(pairs), 25 instructions each.
  static void fill_row(const float* x, const float* y, std::size_t padded, std::uint8_t* out) noexcept {
    const detail::arc_tables& arc = detail::arcs;
    alignas(64) std::int16_t fixed[2][isa::lanes];  // 8 bits behind the point
    for (std::size_t pair = 0; pair < padded; ++pair, out += row_bytes) {
      if (pair % isa::lanes == 0) {
        put_fixed(x + pair, fixed[0]);
        put_fixed(y + pair, fixed[1]);
      }
      const ints qx = isa::set16(fixed[0][pair % isa::lanes]);
      const ints qy = isa::set16(fixed[1][pair % isa::lanes]);
      PQATTN_X86_UNROLL
      for (std::size_t part = 0; part < 2; ++part) {
        ints words[2];
        PQATTN_X86_UNROLL
        for (std::size_t i = 0; i < 2; ++i) {
          const std::int16_t* cosine = arc.cosine + 64 + 64 * part + 32 * i;
          const ints along = _mm512_mulhrs_epi16(qx, isa::load(cosine));
          const ints across = _mm512_mulhrs_epi16(qy, isa::load(cosine - 64));  // the sine
          words[i] = isa::add16(isa::add16(along, across), isa::set16(128));
        }
        isa::store(out + 64 * part, upper_bytes(words[0], words[1]));
      }
    }
  }

  // --- scores ---

  /// Phases of two pairs and their lengths side by side, `blocks` blocks. Same: whether both pairs read the same code.
  template <unsigned Bits, bool Same>
  static void turn_two(const turned_pair* pair, const std::int8_t* tables, table turns,
                       const std::uint8_t* const* block, std::size_t blocks, const query* block_turns,
                       std::size_t turn_stride, std::byte* keys) noexcept {
    using look = lookup<isa, Bits>;
    const std::uint32_t table_at[4] = {pair[0].table_x, pair[1].table_x, pair[0].table_y, pair[1].table_y};
    typename look::table table[4];
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      table[i] = look::load_table(tables + table_at[i]);
    }
    for (std::size_t b = 0; b < blocks; ++b, keys += chunk * key_bytes, block_turns += turn_stride) {
      const auto* block_bytes = reinterpret_cast<const std::uint8_t*>(block_turns);
      typename look::codes codes[2];
      codes[0] = look::load_codes(block[b] + pair[0].code_x, 0);
      codes[1] = Same ? codes[0] : look::load_codes(block[b] + pair[1].code_x, 0);
      const auto component = [&](std::size_t i) PQATTN_X86_INLINE_LAMBDA {
        return look::look(look::in_memory ? look::load_table(not_hoisted(tables) + table_at[i]) : table[i],
                          codes[i % 2]);
      };
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 2; ++i) {
        const std::uint8_t* slot_turns = turns + pair[i].turn * turn_bytes + block_bytes[2 * i + 1] * slots;
        const ints turned = _mm512_add_epi8(component(i), isa::load(slot_turns));
        isa::store(keys + 64 * i, _mm512_add_epi8(turned, isa::set8(block_bytes[2 * i])));
      }
      const ints a = component(2);
      const ints b2 = component(3);
      isa::store(keys + 128, isa::low8(a, b2));
      isa::store(keys + 192, isa::high8(a, b2));
    }
  }

  /// Decodes and turns pairs [first, first + count) of `blocks` blocks; an odd one out brings its double along.
  template <unsigned Bits>
  static void turn_keys(const rotary_book& book, table turns, std::size_t first, std::size_t count,
                        const std::uint8_t* const* block, std::size_t blocks, const query* block_turns,
                        std::size_t turn_stride, std::byte* keys) noexcept {
    for (std::size_t i = 0; i < count; i += 2, keys += 2 * key_bytes, block_turns += 2) {
      const turned_pair* pair = book.pairs + first + i;
      pair[0].code_x == pair[1].code_x
          ? turn_two<Bits, true>(pair, book.tables, turns, block, blocks, block_turns, turn_stride, keys)
          : turn_two<Bits, false>(pair, book.tables, turns, block, blocks, block_turns, turn_stride, keys);
    }
  }

  /// Adds `pairs` pairs of a block to the sums of Rows rows, four at a time. Rows' tables are 0 for pairs that do not
  /// exist.
  template <std::size_t Rows>
  static PQATTN_ALWAYS_INLINE void sum_pairs(const std::byte* keys, std::size_t pairs, const std::uint8_t* tables,
                                             std::size_t table_stride, std::int32_t* sums, bool first) noexcept {
    ints sum[Rows][4];
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        sum[row][i] = first ? isa::zero() : isa::load(sums + row * slots + i * isa::lanes);
      }
    }
    for (std::size_t pair = 0; pair < pairs; pair += 4, tables += 4 * row_bytes) {
      const std::byte* two[2] = {keys + pair * key_bytes, keys + (pair + 2 < pairs ? pair + 2 : pair) * key_bytes};
      ints phase[4];
      __mmask64 opposite[4];
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        phase[i] = isa::load(two[i / 2] + i % 2 * 64);
        opposite[i] = _mm512_movepi8_mask(phase[i]);
      }
      const ints low[2] = {isa::load(two[0] + 128), isa::load(two[1] + 128)};
      const ints high[2] = {isa::load(two[0] + 192), isa::load(two[1] + 192)};
      const ints length[4] = {isa::low16(low[0], low[1]), isa::high16(low[0], low[1]), isa::low16(high[0], high[1]),
                              isa::high16(high[0], high[1])};
      PQATTN_X86_UNROLL
      for (std::size_t row = 0; row < Rows; ++row) {
        const std::uint8_t* table = tables + row * table_stride;
        ints cosine[4];
        PQATTN_X86_UNROLL
        for (std::size_t i = 0; i < 4; ++i) {
          const ints half = look128(table + i * row_bytes, phase[i]);
          cosine[i] = _mm512_mask_sub_epi8(half, opposite[i], isa::zero(), half);
        }
        const ints lows[2] = {isa::low8(cosine[0], cosine[1]), isa::low8(cosine[2], cosine[3])};
        const ints highs[2] = {isa::high8(cosine[0], cosine[1]), isa::high8(cosine[2], cosine[3])};
        sum[row][0] = isa::dot_bytes(sum[row][0], length[0], isa::low16(lows[0], lows[1]));
        sum[row][1] = isa::dot_bytes(sum[row][1], length[1], isa::high16(lows[0], lows[1]));
        sum[row][2] = isa::dot_bytes(sum[row][2], length[2], isa::low16(highs[0], highs[1]));
        sum[row][3] = isa::dot_bytes(sum[row][3], length[3], isa::high16(highs[0], highs[1]));
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
  static void sum_block(const std::byte* keys, std::size_t count, const std::uint8_t* tables, std::size_t table_stride,
                        std::size_t rows, std::int32_t* sums, bool first) noexcept {
    for_rows<2>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
      sum_pairs<Rows>(keys, count, tables + row * table_stride, table_stride, sums + row * slots, first);
    });
  }

 private:
  static PQATTN_ALWAYS_INLINE ints look128(const void* table, ints index) noexcept {
    return _mm512_permutex2var_epi8(isa::load(table), index, isa::load(static_cast<const std::byte*>(table) + 64));
  }
  static PQATTN_ALWAYS_INLINE void put_fixed(const float* in, std::int16_t* out) noexcept {
    const ints fixed = isa::to_ints(isa::mulf(isa::loadf(in), isa::setf(256.0f)));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(fixed));
  }
  /// Upper bytes of 64 words.
  static PQATTN_ALWAYS_INLINE ints upper_bytes(ints first, ints second) noexcept {
    return _mm512_permutex2var_epi8(first, isa::load(detail::arcs.odd_bytes), second);
  }
};

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX512VBMI
