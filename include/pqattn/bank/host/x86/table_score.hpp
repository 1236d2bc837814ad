// SPDX-License-Identifier: MIT
// Scores by table: score(row, slot) = sum over groups of T(row, group)[code], with the rounded tables of
// score_tables.hpp, looked up in registers and summed in 16 bits; 64 slots of some blocks and rows at a time, whose
// sums stay in registers over all groups: stores would take turns with two-register permutes. Sums of more than 256
// groups do not fit 16 bits: they are taken of 256 groups at a time, and then added in f32. 16-bit tables take 1.5
// times as long as byte tables.
#pragma once

#include "../../../core/memory.hpp"
#include "../../../quant/geometry.hpp"
#include "blocks.hpp"
#include "score_tables.hpp"

#if PQATTN_X86_AVX2

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

namespace detail {

/// Query rows that share a look at the codes. Two where a table takes four registers or more and its upper half comes
/// from memory with every permute: more rows of them take longer.
template <class Isa, unsigned Bits>
inline constexpr std::size_t scored_rows = widest_code<Isa> > 8 && Bits >= 8 ? 2 : 4;

/// Blocks that share the tables of `Rows` rows: as many as registers hold sums for.
template <class Isa, std::size_t Rows>
inline constexpr std::size_t scored_blocks = (Isa::bytes == 64 ? 8 : 4) / Rows;

/// Blocks whose codes stay in the second-level cache while all rows are scored. Fewer where they come from memory
/// meanwhile, which then is asked for them more evenly.
inline constexpr std::size_t score_batch = 64;
inline constexpr std::size_t far_score_batch = 16;

/// Groups whose codes come into the first-level cache ahead of the one that is looked up.
inline constexpr std::size_t groups_ahead = 4;

/// Blocks whose codes come into the second-level cache ahead of those that are looked up, where they may lie in memory.
inline constexpr std::size_t blocks_ahead = 8;

/// Lines that are fetched meanwhile, one or two with each group: the more evenly, the fewer are lost.
struct score_lines {
  const std::uint8_t* at;
  std::size_t step;  ///< bytes between those of two groups: 64 or 128, or 0 when there is nothing to fetch
};

/// The next lines of a queue: two for each group where as many lie side by side.
[[nodiscard]] inline score_lines next_lines(fetch_queue& next, std::size_t groups,
                                            const std::uint8_t* nothing) noexcept {
  next.add_share();
  const std::size_t lines = next.side_by_side() >= 2 * groups ? 2 : 1;
  const std::uint8_t* taken = next.take(lines * groups);
  return taken == nullptr ? score_lines{nothing, 0} : score_lines{taken, 64 * lines};
}

/// What the passes over a run have in common: tables of groups [first, first + groups).
struct score_pass {
  score_tables tables;
  std::size_t row_bytes;
  std::size_t first;
  std::size_t groups;
  slot_run run;
  bool far;  ///< whether codes that are looked up for the first time may lie in memory
  float* out;
  std::size_t stride;
};

/// Adds what was looked up for one group to sums of 16 bits. Byte tables: words of both bytes, and words of the high
/// bytes; 16-bit tables: slots in the order of low8 and high8.
template <class Isa, std::size_t Planes>
PQATTN_ALWAYS_INLINE void add_entries(const typename Isa::ints (&value)[Planes],
                                      typename Isa::ints (&sum)[2]) noexcept {
  if constexpr (Planes == 1) {
    Isa::add_to16(sum[0], value[0]);
    Isa::add_to16(sum[1], Isa::high_bytes(value[0]));
  } else {
    Isa::add_to16(sum[0], Isa::low8(value[0], value[1]));
    Isa::add_to16(sum[1], Isa::high8(value[0], value[1]));
  }
}

/// Sums of a part of a block to scores in slot order.
template <class Isa, std::size_t Planes>
PQATTN_ALWAYS_INLINE void sums_to_scores(const typename Isa::ints (&sum)[2], float step, float base,
                                         typename Isa::floats (&score)[4]) noexcept {
  if constexpr (Planes == 1) {  // the words' sums without 256 times those of the high bytes, modulo 2^16
    Isa::even_odd_to_floats(Isa::sub16(sum[0], Isa::template left16<8>(sum[1])), sum[1], score);
  } else {
    Isa::words_to_floats(sum[0], sum[1], score);
  }
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < 4; ++i) {
    score[i] = Isa::fma(score[i], Isa::setf(step), Isa::setf(base));
  }
}

/// Stores the scores of one row and a part of a block, of which the run may have some slots only; those of groups after
/// the first 256 are added to what is there.
template <class Isa, std::size_t Planes>
PQATTN_NOINLINE void store_any_scores(const score_pass& pass, std::size_t row, std::size_t block, std::size_t part,
                                      typename Isa::ints first_sum, typename Isa::ints second_sum) noexcept {
  const typename Isa::ints sum[2] = {first_sum, second_sum};
  float* const scores = pass.out + row * pass.stride;
  const std::ptrdiff_t offset = pass.run.offset_of(block);
  const std::ptrdiff_t begin = pass.run.begin_in(block);
  const std::ptrdiff_t end = pass.run.end_in(block);
  const auto slot = static_cast<std::ptrdiff_t>(part * Isa::bytes);
  const bool adds = pass.first != 0;
  typename Isa::floats score[4];
  sums_to_scores<Isa, Planes>(sum, pass.tables.step[row], adds ? 0.0f : pass.tables.base[row], score);
  if (adds) {
    add_slots<Isa>(scores, offset, slot, begin, end, score);
  }
  store_slots<Isa>(scores, offset, slot, begin, end, score);
}

/// The same. Nearly all blocks are whole and have no more groups; the rest is out of line, as its masks would take
/// ports.
template <class Isa, std::size_t Planes>
PQATTN_ALWAYS_INLINE void store_scores(const score_pass& pass, std::size_t row, std::size_t block, std::size_t part,
                                       const typename Isa::ints (&sum)[2]) noexcept {
  const std::size_t slot = block * slots;
  if (pass.first != 0 || slot < pass.run.first || slot + slots > pass.run.first + pass.run.count) {
    store_any_scores<Isa, Planes>(pass, row, block, part, sum[0], sum[1]);
    return;
  }
  typename Isa::floats score[4];
  sums_to_scores<Isa, Planes>(sum, pass.tables.step[row], pass.tables.base[row], score);
  float* const at = pass.out + row * pass.stride + (slot - pass.run.first) + part * Isa::bytes;
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < 4; ++i) {
    Isa::storef(at + i * Isa::lanes, score[i]);
  }
}

/// Scores of Rows rows from `row` on and Blocks blocks from `block` on.
template <class Isa, unsigned Bits, std::size_t Planes, std::size_t Rows, std::size_t Blocks>
PQATTN_NOINLINE void score_blocks(const score_pass& pass, std::size_t row, std::size_t block,
                                  const score_lines& lines) noexcept {
  using look = lookup<Isa, Bits, (Rows > 1)>;
  using ints = typename Isa::ints;
  const std::uint8_t* const tables = pass.tables.bytes + row * pass.row_bytes + pass.first * Planes * table_bytes(Bits);
  // One row is done with a pass before all that was fetched for it is there.
  const std::size_t last = pass.run.end_block() - 1;
  const bool fetches_ahead = (pass.far || Rows == 1) && row == 0 && block + blocks_ahead <= last;
  const std::uint8_t* codes[Blocks];
  const std::uint8_t* ahead[Blocks] = {};
  PQATTN_X86_UNROLL
  for (std::size_t b = 0; b < Blocks; ++b) {
    codes[b] = pass.run.block(block + b) + pass.first * 8 * Bits;
    if (fetches_ahead) {
      const std::size_t later = block + blocks_ahead + b;
      ahead[b] = pass.run.block(later < last ? later : last) + pass.first * 8 * Bits;
    }
  }
  for (std::size_t part = 0; part < parts<Isa>; ++part) {
    ints sum[Rows][Blocks][2];
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Rows * Blocks; ++i) {
      sum[i / Blocks][i % Blocks][0] = sum[i / Blocks][i % Blocks][1] = Isa::zero();
    }
    for (std::size_t group = 0; group < pass.groups; ++group) {
      fetch_from_memory(lines.at + group * lines.step, 64);
      fetch_from_memory(lines.at + group * lines.step + lines.step / 2, 64);
      if (fetches_ahead) {
        PQATTN_X86_UNROLL
        for (std::size_t b = 0; b < Blocks; ++b) {
          fetch_from_memory(ahead[b] + group * 8 * Bits, 8 * Bits);
        }
      }
      const std::uint8_t* const of_group = tables + group * Planes * table_bytes(Bits);
      const auto table_of = [&](const std::uint8_t* here, std::size_t r, std::size_t i) PQATTN_X86_INLINE_LAMBDA {
        return look::load_table(here + r * pass.row_bytes + i * table_bytes(Bits));
      };
      typename look::table table[Rows][Planes];
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < Rows * Planes; ++i) {
        table[i / Planes][i % Planes] = table_of(of_group, i / Planes, i % Planes);
        if constexpr (Planes == 1) {  // two tables a row do not fit
          look::keep(table[i][0]);
        }
      }
      PQATTN_X86_UNROLL
      for (std::size_t b = 0; b < Blocks; ++b) {
        const std::uint8_t* here = look::in_memory && Bits > 4 ? not_hoisted(of_group) : of_group;
        const std::uint8_t* const group_codes = codes[b] + group * 8 * Bits;
        fetch_lines(group_codes + groups_ahead * 8 * Bits, 8 * Bits);
        const auto code = look::load_codes(group_codes, part);
        PQATTN_X86_UNROLL
        for (std::size_t r = 0; r < Rows; ++r) {
          ints value[Planes];
          PQATTN_X86_UNROLL
          for (std::size_t i = 0; i < Planes; ++i) {
            value[i] = look::look(look::in_memory ? table_of(here, r, i) : table[r][i], code);
          }
          add_entries<Isa, Planes>(value, sum[r][b]);
        }
      }
    }
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Rows * Blocks; ++i) {
      store_scores<Isa, Planes>(pass, row + i / Blocks, block + i % Blocks, part, sum[i / Blocks][i % Blocks]);
    }
  }
}

template <class Isa, unsigned Bits, std::size_t Planes>
PQATTN_NOINLINE void table_score(const geometry& shape, const score_tables& tables, const slot_run& run, float* out,
                                 std::size_t stride, fetch_queue next, bool far) noexcept {
  const std::size_t row_bytes = row_table_bytes(shape, tables.precision);
  const std::size_t blocks = run.end_block() - run.first_block();
  std::size_t passes = 0;
  for_rows<scored_rows<Isa, Bits>>(tables.rows, [&]<std::size_t Rows>(std::size_t) noexcept {
    passes += calls_of_for_rows<scored_blocks<Isa, Rows>>(blocks);
  });
  next.share_among((shape.groups() + summed_groups - 1) / summed_groups * passes);
  for (std::size_t first = 0; first < shape.groups(); first += summed_groups) {
    const std::size_t left = shape.groups() - first;
    const score_pass pass{tables, row_bytes, first, left < summed_groups ? left : summed_groups, run, far, out, stride};
    const std::size_t at_once = far ? far_score_batch : score_batch;
    for (std::size_t done = 0; done < blocks; done += at_once) {
      const std::size_t batch = blocks - done < at_once ? blocks - done : at_once;
      for_rows<scored_rows<Isa, Bits>>(tables.rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
        for_rows<scored_blocks<Isa, Rows>>(batch, [&]<std::size_t Blocks>(std::size_t block) noexcept {
          const score_lines lines = next_lines(next, pass.groups, tables.bytes);
          score_blocks<Isa, Bits, Planes, Rows, Blocks>(pass, row, run.first_block() + done + block, lines);
        });
      });
    }
  }
  next.fetch_due();
}

}  // namespace detail

/// out[row * stride + slot - run.first] = score of the slot. `next` is fetched meanwhile; `far`: whether the run's own
/// codes may lie in memory.
/// Returns false, and does nothing, when the code width has no look-up in registers (above widest_code<Isa>).
template <class Isa>
inline bool table_score(const geometry& shape, const score_tables& tables, const slot_run& run, float* out,
                        std::size_t stride, const fetch_queue& next = {}, bool far = false) noexcept {
  return with_code_bits<Isa>(shape.code_bits(), [&]<unsigned Bits>() noexcept {
    if (tables.precision == table_precision::words) {
      detail::table_score<Isa, Bits, 2>(shape, tables, run, out, stride, next, far);
    } else {
      detail::table_score<Isa, Bits, 1>(shape, tables, run, out, stride, next, far);
    }
  });
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
