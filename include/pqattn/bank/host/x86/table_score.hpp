// SPDX-License-Identifier: MIT
// Scores by table: score(row, slot) = sum over groups of T(row, group)[code], with the rounded tables of
// score_tables.hpp, looked up in registers and summed in 16 bits; 64 slots of four groups at a time. Sums of more than
// 256 groups do not fit 16 bits: they are taken of 256 groups at a time, and then added in f32. 16-bit tables take 1.6
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

/// Blocks handled together at most, so that a table is loaded once for all of them.
inline constexpr std::size_t table_batch = 16;

namespace detail {

/// Adds Groups groups to the 16-bit sums of Rows rows over `blocks` blocks. Sums of a block: for byte tables words of
/// both bytes and words of the high bytes; for 16-bit tables slots in the order of low8 and high8. With `fetches` the
/// codes of as many groups behind them come into the first-level cache, each block's with the block: a whole batch
/// ahead would push out what is in use, and those of all blocks at once would find no room in the queue of misses.
template <class Isa, unsigned Bits, std::size_t Planes, std::size_t Groups, std::size_t Rows>
PQATTN_NOINLINE void sum_tables(const std::uint8_t* tables, std::size_t row_bytes, const std::uint8_t* const* block,
                                std::size_t blocks, std::size_t code_at, std::byte* sums, bool first,
                                bool fetches) noexcept {
  using look = lookup<Isa, Bits, (Rows > 1)>;
  using ints = typename Isa::ints;
  typename look::table table[Rows][Groups * Planes];
  PQATTN_X86_UNROLL
  for (std::size_t row = 0; row < Rows; ++row) {
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Groups * Planes; ++i) {
      table[row][i] = look::load_table(tables + row * row_bytes + i * table_bytes(Bits));
    }
  }
  for (std::size_t b = 0; b < blocks; ++b) {
    if (fetches) {
      fetch_lines<_MM_HINT_T0>(block[b] + code_at + Groups * 8 * Bits, Groups * 8 * Bits);
    }
    PQATTN_X86_UNROLL
    for (std::size_t part = 0; part < parts<Isa>; ++part) {
      const std::uint8_t* here = look::in_memory ? not_hoisted(tables) : tables;
      const auto table_of = [&](std::size_t row, std::size_t i) PQATTN_X86_INLINE_LAMBDA {
        return look::in_memory ? look::load_table(here + row * row_bytes + i * table_bytes(Bits)) : table[row][i];
      };
      std::byte* place = sums + b * 128 + part * 2 * Isa::bytes;
      ints one[Rows];
      ints two[Rows];
      PQATTN_X86_UNROLL
      for (std::size_t row = 0; row < Rows; ++row) {
        one[row] = first ? Isa::zero() : Isa::load(place + row * table_batch * 128);
        two[row] = first ? Isa::zero() : Isa::load(place + row * table_batch * 128 + Isa::bytes);
      }
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < Groups; ++i) {
        const auto codes = look::load_codes(block[b] + code_at + i * 8 * Bits, part);
        PQATTN_X86_UNROLL
        for (std::size_t row = 0; row < Rows; ++row) {
          const ints value = look::look(table_of(row, i * Planes), codes);
          if constexpr (Planes == 1) {
            one[row] = Isa::add16(one[row], value);
            two[row] = Isa::add16(two[row], Isa::template right16<8>(value));
          } else {
            const ints high = look::look(table_of(row, i * Planes + Planes - 1), codes);
            one[row] = Isa::add16(one[row], Isa::low8(value, high));
            two[row] = Isa::add16(two[row], Isa::high8(value, high));
          }
        }
      }
      PQATTN_X86_UNROLL
      for (std::size_t row = 0; row < Rows; ++row) {
        Isa::store(place + row * table_batch * 128, one[row]);
        Isa::store(place + row * table_batch * 128 + Isa::bytes, two[row]);
      }
    }
  }
}

/// The same for any number of rows.
template <class Isa, unsigned Bits, std::size_t Planes, std::size_t Groups>
inline void sum_tables_rows(const std::uint8_t* tables, std::size_t row_bytes, std::size_t rows,
                            const std::uint8_t* const* block, std::size_t blocks, std::size_t code_at,
                            std::byte* sums, bool first, bool fetches) noexcept {
  // Tables in registers may take 16 of them.
  constexpr std::size_t together = lookup<Isa, Bits>::in_memory || Bits <= 6 ? 4 : Bits == 7 ? 2 : 1;
  for_rows<together>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
    sum_tables<Isa, Bits, Planes, Groups, Rows>(tables + row * row_bytes, row_bytes, block, blocks, code_at,
                                                sums + row * table_batch * 128, first, fetches && row == 0);
  });
}

/// Sums of one row and block to f32 scores in slot order: slots [begin, end) of a block whose slot 0 belongs at row +
/// offset.
template <class Isa, std::size_t Planes>
inline void finish_table_block(const std::byte* sums, float step, float base, std::ptrdiff_t offset,
                               std::ptrdiff_t begin, std::ptrdiff_t end, float* row) noexcept {
  using ints = typename Isa::ints;
  for (std::size_t part = 0; part < parts<Isa>; ++part) {
    ints low = Isa::load(sums + part * 2 * Isa::bytes);
    ints high = Isa::load(sums + part * 2 * Isa::bytes + Isa::bytes);
    if constexpr (Planes == 1) {
      const ints even = Isa::sub16(low, Isa::template left16<8>(high));  // all - 256 * odd, modulo 2^16
      const ints odd = high;
      low = Isa::low16(even, odd);
      high = Isa::high16(even, odd);
    }
    typename Isa::floats score[4];
    Isa::words_to_floats(low, high, score);
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      score[i] = Isa::fma(score[i], Isa::setf(step), Isa::setf(base));
    }
    store_slots<Isa>(row, offset, static_cast<std::ptrdiff_t>(part * Isa::bytes), begin, end, score);
  }
}
/// The same, added to what is there.
template <class Isa, std::size_t Planes>
inline void add_table_block(const std::byte* sums, float step, std::ptrdiff_t offset, std::ptrdiff_t begin,
                            std::ptrdiff_t end, float* row) noexcept {
  float more[slots];
  finish_table_block<Isa, Planes>(sums, step, 0.0f, 0, 0, static_cast<std::ptrdiff_t>(slots), more);
  for (std::ptrdiff_t slot = begin; slot < end; ++slot) {
    row[offset + slot] += more[slot];
  }
}

/// Blocks handled together. Where they lie a multiple of 4096 bytes apart, a group's codes of all of them fall into one
/// set of the first-level cache, which has 8 or 12 ways.
[[nodiscard]] constexpr std::size_t table_batch_for(std::size_t block_bytes) noexcept {
  return block_bytes % 4096 == 0 ? table_batch / 2 : table_batch;
}

template <class Isa, unsigned Bits, std::size_t Planes>
PQATTN_NOINLINE void table_score(const geometry& shape, const score_tables& tables, const slot_run& run, float* out,
                                 std::size_t stride, std::byte* sums, fetch_queue next) noexcept {
  constexpr std::size_t at_once = (Bits >= 9 ? 2 : 4) / Planes;
  const std::size_t groups = shape.groups();
  const std::size_t row_bytes = row_table_bytes(shape, tables.precision);
  const std::size_t batch = table_batch_for(run.block_bytes);
  const std::size_t batches = (run.end_block() - run.first_block() + batch - 1) / batch;
  next.share_among(batches * (groups / at_once + groups % at_once));
  for (std::size_t block = run.first_block(); block < run.end_block(); block += batch) {
    const std::size_t left = run.end_block() - block;
    const std::size_t blocks = left < batch ? left : batch;
    const std::uint8_t* codes[table_batch];
    for (std::size_t b = 0; b < blocks; ++b) {
      codes[b] = run.block(block + b);
    }
    const std::size_t ahead = left - blocks < batch ? left - blocks : batch;
    for (std::size_t first = 0; first < groups; first += summed_groups) {
      const std::size_t last = groups - first < summed_groups ? groups : first + summed_groups;
      for (std::size_t group = first; group < last;) {
        const std::size_t count = last - group >= at_once ? at_once : 1;
        const std::size_t code_at = group * 8 * Bits;
        const bool more = group + count < groups;
        for (std::size_t b = 0; !more && b < ahead; ++b) {
          fetch_lines<_MM_HINT_T0>(run.block(block + blocks + b), at_once * 8 * Bits);
        }
        next.fetch_share();
        const std::uint8_t* table = tables.bytes + group * Planes * table_bytes(Bits);
        if (count == at_once) {
          sum_tables_rows<Isa, Bits, Planes, at_once>(table, row_bytes, tables.rows, codes, blocks, code_at, sums,
                                                      group == first, more);
        } else {
          sum_tables_rows<Isa, Bits, Planes, 1>(table, row_bytes, tables.rows, codes, blocks, code_at, sums,
                                                group == first, more);
        }
        group += count;
      }
      for (std::size_t row = 0; row < tables.rows; ++row) {
        for (std::size_t b = 0; b < blocks; ++b) {
          const std::byte* mine = sums + (row * table_batch + b) * 128;
          const std::ptrdiff_t offset = run.offset_of(block + b);
          const std::ptrdiff_t begin = run.begin_in(block + b);
          const std::ptrdiff_t end = run.end_in(block + b);
          if (first == 0) {
            finish_table_block<Isa, Planes>(mine, tables.step[row], tables.base[row], offset, begin, end,
                                            out + row * stride);
          } else {
            add_table_block<Isa, Planes>(mine, tables.step[row], offset, begin, end, out + row * stride);
          }
        }
      }
    }
  }
}

}  // namespace detail

/// Bytes of workspace for table_score, aligned to 64.
[[nodiscard]] constexpr std::size_t table_scratch_bytes(std::size_t rows) noexcept {
  return rows * table_batch * 128;
}

/// out[row * stride + slot - run.first] = score of the slot. `next` is fetched meanwhile.
/// Returns false, and does nothing, when the code width has no look-up in registers (above widest_code<Isa>).
template <class Isa>
inline bool table_score(const geometry& shape, const score_tables& tables, const slot_run& run, float* out,
                        std::size_t stride, void* workspace, const fetch_queue& next = {}) noexcept {
  auto* sums = static_cast<std::byte*>(workspace);
  return with_code_bits<Isa>(shape.code_bits(), [&]<unsigned Bits>() noexcept {
    if (tables.precision == table_precision::words) {
      detail::table_score<Isa, Bits, 2>(shape, tables, run, out, stride, sums, next);
    } else {
      detail::table_score<Isa, Bits, 1>(shape, tables, run, out, stride, sums, next);
    }
  });
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
