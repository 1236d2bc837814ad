// SPDX-License-Identifier: MIT
// The rotary kernel in 16 bits.
//
// Per pair of channels and block: two look-ups give 64 x and 64 y bytes, two multiply-adds of bytes with the turn table
// give 16-bit numbers (shared by all rows), and a multiply-add per row of 16-bit numbers sums the score.
//
// Numbers: cosine and sine are rounded to 1/255 with the sign kept aside, so a turned component is below
// 127 * 255.7 < 2^15 and exact given its factors. The query is rounded to 16 bits such that the sum of its magnitudes
// is at most 65000: sums stay below 2^31. Errors relative to a pair's contribution: cosine 0.002 at most, 0.0011 rms;
// query magnitude sum / 65000.
#pragma once

#include "rotary_queries.hpp"
#include "rotary_turns.hpp"

#if PQATTN_X86_AVX2

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

template <class Isa>
struct rotary_words {
  using isa = Isa;
  using ints = typename Isa::ints;
  using floats = typename Isa::floats;
  using query = std::uint32_t;  ///< x and y of a pair

  /// Blocks handled together, so that a table is loaded once for all of them, pairs turned before they are summed, and
  /// bytes of a pair's turned keys.
  static constexpr std::size_t batch = 4;
  [[nodiscard]] static constexpr std::size_t batch_for(std::size_t) noexcept { return batch; }
  [[nodiscard]] static constexpr std::size_t fewer_rows(std::size_t) noexcept { return 0; }
  static constexpr std::size_t chunk = 8;
  [[nodiscard]] static constexpr std::size_t chunk_for(std::size_t, std::size_t) noexcept { return chunk; }
  static constexpr std::size_t key_bytes = 256;
  /// What a unit of query times table byte becomes in a sum, and what a key of 0 does.
  static constexpr float product = 255.0f;
  static constexpr float key_offset = 0.0f;
  static constexpr bool raised_tables = false;
  static constexpr bool by_phase = false;

  /// Unit of the query's integers. The sum of |x| + |y| is at most sqrt(2) times the sum of magnitudes, however the
  /// pairs are turned.
  static constexpr bool sums_magnitudes = true;
  [[nodiscard]] static float unit_of(float magnitudes, float largest) noexcept {
    const float by_sum = 1.41421357f * magnitudes / 65000.0f;
    const float by_largest = largest / 32766.0f;
    return by_sum > by_largest ? by_sum : by_largest;
  }
  static constexpr std::size_t row_bytes = 0;

  static PQATTN_ALWAYS_INLINE void put_angles(floats cosine, floats sine, float* first, float* second) noexcept {
    Isa::storef(first, cosine);
    Isa::storef(second, sine);
  }
  /// Turns rows [row, row + Rows) back by a block's angles and rounds them. Keys have no offset: their sums are not
  /// needed.
  template <std::size_t Rows>
  static PQATTN_ALWAYS_INLINE void turn_rows(const rotary_queries& queries, std::size_t row, const float* cosines,
                                             const float* sines, query* out, float*) noexcept {
    for (std::size_t pair = 0; pair < queries.padded; pair += Isa::lanes) {
      const floats cosine = Isa::loadf(cosines + pair);
      const floats sine = Isa::loadf(sines + pair);
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < Rows; ++i) {
        const std::size_t at = (row + i) * queries.padded + pair;
        const floats x = Isa::loadf(queries.x + at);
        const floats y = Isa::loadf(queries.y + at);
        const ints turned_x = Isa::to_ints(Isa::fma(x, cosine, Isa::mulf(y, sine)));
        const ints turned_y = Isa::to_ints(Isa::fnma(x, sine, Isa::mulf(y, cosine)));
        Isa::store(out + i * queries.padded + pair, Isa::pair_words(turned_x, turned_y));
      }
    }
  }

  static constexpr std::size_t sign_stride = 4 * parts<Isa> * Isa::sign_bytes;
  struct table {
    const std::uint8_t* factors;  ///< per pair 256 bytes
    const std::byte* signs;       ///< per pair sign_stride bytes
  };
  [[nodiscard]] static constexpr std::size_t table_bytes_for(std::size_t pairs) noexcept {
    return align_up((pairs + 1) * 256) + align_up((pairs + 1) * sign_stride);
  }
  [[nodiscard]] static table table_at(std::size_t pairs, const void* memory) noexcept {
    const auto* base = static_cast<const std::byte*>(memory);
    return {reinterpret_cast<const std::uint8_t*>(base), base + align_up((pairs + 1) * 256)};
  }
  /// One part of one pair from magnitudes and signs (bytes of 0 or 255) of cosines and sines.
  static PQATTN_ALWAYS_INLINE void store_turns(ints c, ints s, ints c_sign, ints s_sign, std::size_t pairs,
                                               std::size_t pair, std::size_t part, void* memory) noexcept {
    auto* base = static_cast<std::byte*>(memory);
    std::byte* factor = base + pair * 256 + part * 4 * Isa::bytes;
    std::byte* sign = base + align_up((pairs + 1) * 256) + pair * sign_stride + part * 4 * Isa::sign_bytes;
    const auto s_opposite = Isa::xor_(s_sign, Isa::set8(-1));
    Isa::store(factor, Isa::low8(c, s));
    Isa::store(factor + Isa::bytes, Isa::high8(c, s));
    Isa::store(factor + 2 * Isa::bytes, Isa::low8(s, c));
    Isa::store(factor + 3 * Isa::bytes, Isa::high8(s, c));
    Isa::store_signs(sign, Isa::low8(c_sign, s_opposite));
    Isa::store_signs(sign + Isa::sign_bytes, Isa::high8(c_sign, s_opposite));
    Isa::store_signs(sign + 2 * Isa::sign_bytes, Isa::low8(s_sign, c_sign));
    Isa::store_signs(sign + 3 * Isa::sign_bytes, Isa::high8(s_sign, c_sign));
  }

  /// Decodes and turns pairs [first, first + count) of `blocks` blocks.
  template <unsigned Bits>
  static void turn_keys(const rotary_book& book, const table& turns, std::size_t first, std::size_t count,
                        const std::uint8_t* const* block, std::size_t blocks, std::byte* keys,
                        std::size_t key_block) noexcept {
    using look = lookup<Isa, Bits, false>;
    constexpr std::size_t width = Isa::bytes;
    for (std::size_t i = 0; i < count; ++i) {
      const turned_pair& pair = book.pairs[first + i];
      const auto table_x = look::load_table(book.tables + pair.table_x);
      const auto table_y = look::load_table(book.tables + pair.table_y);
      for (std::size_t part = 0; part < parts<Isa>; ++part) {
        const std::uint8_t* factor = turns.factors + std::size_t{pair.turn} * 256 + part * 4 * width;
        const ints x_low = Isa::load(factor);
        const ints x_high = Isa::load(factor + width);
        const ints y_low = Isa::load(factor + 2 * width);
        const ints y_high = Isa::load(factor + 3 * width);
        const std::byte* sign = turns.signs + pair.turn * sign_stride + part * 4 * Isa::sign_bytes;
        const auto x_low_sign = Isa::load_signs(sign);
        const auto x_high_sign = Isa::load_signs(sign + Isa::sign_bytes);
        const auto y_low_sign = Isa::load_signs(sign + 2 * Isa::sign_bytes);
        const auto y_high_sign = Isa::load_signs(sign + 3 * Isa::sign_bytes);
        std::byte* out = keys + i * 256 + part * 4 * width;
        for (std::size_t b = 0; b < blocks; ++b, out += key_block) {
          const ints x = look::look(table_x, look::load_codes(block[b] + pair.code_x, part));
          const ints y = look::look(table_y, look::load_codes(block[b] + pair.code_y, part));
          const ints low = Isa::low8(x, y);
          const ints high = Isa::high8(x, y);
          const ints turned_x_low = Isa::mul_bytes(x_low, Isa::flip(low, x_low_sign));
          const ints turned_y_low = Isa::mul_bytes(y_low, Isa::flip(low, y_low_sign));
          const ints turned_x_high = Isa::mul_bytes(x_high, Isa::flip(high, x_high_sign));
          const ints turned_y_high = Isa::mul_bytes(y_high, Isa::flip(high, y_high_sign));
          Isa::store(out, Isa::low16(turned_x_low, turned_y_low));
          Isa::store(out + width, Isa::high16(turned_x_low, turned_y_low));
          Isa::store(out + 2 * width, Isa::low16(turned_x_high, turned_y_high));
          Isa::store(out + 3 * width, Isa::high16(turned_x_high, turned_y_high));
        }
      }
    }
  }

  /// Adds `count` turned pairs of one part of a block to the sums of Rows rows.
  template <std::size_t Rows>
  static PQATTN_ALWAYS_INLINE void sum_pairs(const std::byte* keys, std::size_t count, const query* queries,
                                             std::size_t query_stride, std::int32_t* sums, bool first) noexcept {
    ints sum[Rows][4];
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        sum[row][i] = first ? Isa::zero() : Isa::load(sums + row * slots + i * Isa::lanes);
      }
    }
    for (std::size_t pair = 0; pair < count; ++pair, keys += 256) {
      ints key[4];
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        key[i] = Isa::load(keys + i * Isa::bytes);
      }
      PQATTN_X86_UNROLL
      for (std::size_t row = 0; row < Rows; ++row) {
        const ints query = Isa::set32(static_cast<std::int32_t>(queries[row * query_stride + pair]));
        PQATTN_X86_UNROLL
        for (std::size_t i = 0; i < 4; ++i) {
          sum[row][i] = Isa::dot_words(sum[row][i], key[i], query);
        }
      }
    }
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        Isa::store(sums + row * slots + i * Isa::lanes, sum[row][i]);
      }
    }
  }

  static void sum_block(const std::byte* keys, std::size_t count, const query* queries, std::size_t query_stride,
                        std::size_t rows, std::int32_t* sums, bool first) noexcept {
    for (std::size_t part = 0; part < parts<Isa>; ++part) {
      const std::byte* key = keys + part * 4 * Isa::bytes;
      std::int32_t* sum = sums + part * Isa::bytes;
      std::size_t row = 0;
      if constexpr (Isa::bytes == 64) {
        for (; row + 4 <= rows; row += 4) {
          sum_pairs<4>(key, count, queries + row * query_stride, query_stride, sum + row * slots, first);
        }
      }
      for (; row + 2 <= rows; row += 2) {
        sum_pairs<2>(key, count, queries + row * query_stride, query_stride, sum + row * slots, first);
      }
      if (row < rows) {
        sum_pairs<1>(key, count, queries + row * query_stride, query_stride, sum + row * slots, first);
      }
    }
  }
};

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
