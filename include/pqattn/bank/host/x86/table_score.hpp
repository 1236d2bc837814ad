// SPDX-License-Identifier: MIT
// Scores by table: score(row, slot) = sum over groups of T(row, group)[code], T the inner products of the query's
// sub-vectors with the centroids. Tables are rounded to unsigned integers, looked up in registers and summed in 16
// bits; 64 slots of four groups at a time.
//
// Rounding: from every table its minimum is taken (the minima's sum returns as one constant per row), then all tables
// of a row are divided by one step, the widest table's range / limit. Each group's error is at most step / 2, so a
// score is off by at most groups * step / 2 and, as errors are independent of each other, by about step * sqrt(groups /
// 12) rms. limit is 255 for byte tables and 65535 / min(groups, 256) for 16-bit tables (2047 at 32 groups), which take
// 1.6 times as long. Sums of more than 256 groups do not fit 16 bits: they are taken of 256 groups at a time, and then
// added in f32.
#pragma once

#include "../../../core/memory.hpp"
#include "../../../quant/geometry.hpp"
#include "blocks.hpp"
#include "byte_codebook.hpp"

#if PQATTN_X86_AVX2

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

/// Precision of rounded tables.
enum class table_precision : std::uint8_t {
  bytes,
  words,  ///< low bytes and high bytes in two tables
};

/// Rounded tables of query rows. score = base[row] + step[row] * sum of entries.
struct score_tables {
  const std::uint8_t* bytes = nullptr;  ///< (rows, groups, planes, table_bytes(code bits))
  const float* step = nullptr;
  const float* base = nullptr;
  std::size_t rows = 0;
  table_precision precision = table_precision::bytes;
};

/// Groups whose entries are summed in 16 bits.
inline constexpr std::size_t summed_groups = 256;
static_assert(summed_groups * 255 <= 65535);

/// Blocks handled together, so that a table is loaded once for all of them.
inline constexpr std::size_t table_batch = 16;

namespace detail {

[[nodiscard]] constexpr std::size_t planes_of(table_precision precision) noexcept {
  return precision == table_precision::words ? 2 : 1;
}

[[nodiscard]] inline std::size_t row_table_bytes(const geometry& shape, table_precision precision) noexcept {
  return shape.groups() * planes_of(precision) * table_bytes(shape.code_bits());
}

/// Inner products of one group for Rows rows, `entries` floats each, `out_stride` apart; their ranges widen minimum
/// and maximum.
template <class Isa, std::size_t Rows>
inline void group_products(const std::int8_t* tables, std::size_t entries, std::size_t width, const float* factors,
                           std::size_t factor_stride, float* out, std::size_t out_stride, float* minimum,
                           float* maximum) noexcept {
  using floats = typename Isa::floats;
  floats low[Rows];
  floats high[Rows];
  PQATTN_X86_UNROLL
  for (std::size_t row = 0; row < Rows; ++row) {
    low[row] = Isa::setf(3.0e38f);
    high[row] = Isa::setf(-3.0e38f);
  }
  for (std::size_t code = 0; code < entries; code += Isa::lanes) {
    floats sum[Rows];
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      sum[row] = Isa::setf(0.0f);
    }
    for (std::size_t i = 0; i < width; ++i) {
      const floats component = Isa::to_floats(Isa::widen_signed_bytes(tables + i * entries + code));
      PQATTN_X86_UNROLL
      for (std::size_t row = 0; row < Rows; ++row) {
        sum[row] = Isa::fma(component, Isa::setf(factors[row * factor_stride + i]), sum[row]);
      }
    }
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      Isa::storef(out + row * out_stride + code, sum[row]);
      low[row] = Isa::minf(low[row], sum[row]);
      high[row] = Isa::maxf(high[row], sum[row]);
    }
  }
  for (std::size_t row = 0; row < Rows; ++row) {
    minimum[row] = -Isa::largest(Isa::subf(Isa::setf(0.0f), low[row]));
    maximum[row] = Isa::largest(high[row]);
  }
}

/// Rounds one table: (product - minimum) * inverse.
template <class Isa>
inline void round_table(const float* products, std::size_t entries, float minimum, float inverse,
                        table_precision precision, std::uint8_t* out) noexcept {
  using ints = typename Isa::ints;
  for (std::size_t code = 0; code < entries; code += Isa::bytes) {
    ints part[4];
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      const auto shifted = Isa::subf(Isa::loadf(products + code + i * Isa::lanes), Isa::setf(minimum));
      part[i] = Isa::to_ints(Isa::mulf(shifted, Isa::setf(inverse)));
    }
    if (precision == table_precision::bytes) {
      Isa::store_bytes(out + code, part[0], part[1], part[2], part[3]);
      continue;
    }
    ints high[4];
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      high[i] = Isa::template right16<8>(part[i]);
      part[i] = Isa::and_(part[i], Isa::set32(0xff));
    }
    Isa::store_bytes(out + code, part[0], part[1], part[2], part[3]);
    Isa::store_bytes(out + entries + code, high[0], high[1], high[2], high[3]);
  }
}

}  // namespace detail

/// Bytes of the memory behind score_tables, aligned to 64.
[[nodiscard]] inline std::size_t score_table_bytes(const geometry& shape, std::size_t rows,
                                                   table_precision precision) noexcept {
  return rows * detail::row_table_bytes(shape, precision) + 2 * align_up(rows * sizeof(float));
}

/// Bytes of workspace for build_score_tables, aligned to 64.
[[nodiscard]] inline std::size_t score_table_scratch_bytes(const geometry& shape) noexcept {
  const std::size_t products = shape.groups() * table_bytes(shape.code_bits());
  const std::size_t factors = std::size_t{shape.stages} * shape.dim;
  return 4 * sizeof(float) * (products + align_up(factors, 16) + 2 * align_up(shape.groups(), 16));
}

/// The tables that build_score_tables left in `memory`.
[[nodiscard]] inline score_tables score_tables_at(const geometry& shape, std::size_t rows, table_precision precision,
                                                  const void* memory) noexcept {
  const auto* base = static_cast<const std::byte*>(memory);
  const std::size_t bytes = rows * detail::row_table_bytes(shape, precision);
  return {reinterpret_cast<const std::uint8_t*>(base), reinterpret_cast<const float*>(base + bytes),
          reinterpret_cast<const float*>(base + bytes + align_up(rows * sizeof(float))), rows, precision};
}

/// Builds rounded tables of `rows` queries (f32, `stride` apart, channels in the model's order, scale multiplied in).
/// O(rows * stages * dim * 2^code_bits).
template <class Isa>
inline void build_score_tables(const geometry& shape, const byte_codebook& book, const float* queries,
                               std::size_t rows, std::size_t stride, table_precision precision, void* memory,
                               void* workspace) noexcept {
  const score_tables tables = score_tables_at(shape, rows, precision, memory);
  const std::size_t entries = table_bytes(shape.code_bits());
  const std::size_t groups = shape.groups();
  const std::size_t row_products = groups * entries;
  const std::size_t row_factors = align_up(std::size_t{shape.stages} * shape.dim, 16);
  const std::size_t row_ranges = align_up(groups, 16);
  auto* products = static_cast<float*>(workspace);
  float* factors = products + 4 * row_products;
  float* minimum = factors + 4 * row_factors;  // (groups, 4)
  float* maximum = minimum + 4 * row_ranges;
  const std::size_t fitting = 65535 / (groups < summed_groups ? groups : summed_groups);
  const float limit = precision == table_precision::words ? static_cast<float>(fitting) : 255.0f;
  for (std::size_t first = 0; first < rows;) {
    const std::size_t count = rows - first >= 4 ? 4 : rows - first >= 2 ? 2 : 1;
    float base[4] = {};
    for (std::size_t row = 0; row < count; ++row) {
      const float* query = queries + (first + row) * stride;
      for (std::uint32_t stage = 0; stage < shape.stages; ++stage) {
        for (std::uint32_t position = 0; position < shape.dim; ++position) {
          const std::size_t at = std::size_t{stage} * shape.dim + position;
          const float component = query[shape.channel(position)];
          factors[row * row_factors + at] = component * book.scale[at];
          base[row] += component * book.offset[at];
        }
      }
    }
    for (std::uint32_t group = 0; group < groups; ++group) {
      const std::size_t plane = std::size_t{group / shape.subvectors} * shape.dim + shape.first_channel(group);
      const auto run = [&]<std::size_t Rows>() noexcept {
        detail::group_products<Isa, Rows>(book.bytes + plane * entries, entries, shape.width(group), factors + plane,
                                          row_factors, products + group * entries, row_products, minimum + 4 * group,
                                          maximum + 4 * group);
      };
      count == 4 ? run.template operator()<4>() : count == 2 ? run.template operator()<2>()
                                                             : run.template operator()<1>();
    }
    for (std::size_t row = 0; row < count; ++row) {
      float range = 0.0f;
      for (std::size_t group = 0; group < groups; ++group) {
        const float width = maximum[4 * group + row] - minimum[4 * group + row];
        range = range < width ? width : range;
        base[row] += minimum[4 * group + row];
      }
      const float inverse = range > 1e-36f ? limit / range : 0.0f;
      const_cast<float*>(tables.step)[first + row] = range / limit;
      const_cast<float*>(tables.base)[first + row] = base[row];
      auto* out = const_cast<std::uint8_t*>(tables.bytes) + (first + row) * detail::row_table_bytes(shape, precision);
      for (std::size_t group = 0; group < groups; ++group) {
        detail::round_table<Isa>(products + row * row_products + group * entries, entries, minimum[4 * group + row],
                                 inverse, precision, out + group * entries * detail::planes_of(precision));
      }
    }
    first += count;
  }
}

namespace detail {

/// Adds Groups groups to the 16-bit sums of Rows rows over `blocks` blocks. Sums of a block: for byte tables words of
/// both bytes and words of the high bytes; for 16-bit tables slots in the order of low8 and high8.
template <class Isa, unsigned Bits, std::size_t Planes, std::size_t Groups, std::size_t Rows>
inline void sum_tables(const std::uint8_t* tables, std::size_t row_bytes, const std::uint8_t* const* block,
                       std::size_t blocks, std::size_t code_at, std::byte* sums, bool first) noexcept {
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
                            std::byte* sums, bool first) noexcept {
  // Tables in registers may take 16 of them.
  constexpr std::size_t together = lookup<Isa, Bits>::in_memory || Bits <= 6 ? 4 : Bits == 7 ? 2 : 1;
  for_rows<together>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
    sum_tables<Isa, Bits, Planes, Groups, Rows>(tables + row * row_bytes, row_bytes, block, blocks, code_at,
                                                sums + row * table_batch * 128, first);
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

template <class Isa, unsigned Bits, std::size_t Planes>
inline void table_score(const geometry& shape, const score_tables& tables, const slot_run& run, float* out,
                        std::size_t stride, std::byte* sums) noexcept {
  constexpr std::size_t at_once = (Bits >= 9 ? 2 : 4) / Planes;
  const std::size_t groups = shape.groups();
  const std::size_t row_bytes = row_table_bytes(shape, tables.precision);
  for (std::size_t block = run.first_block(); block < run.end_block(); block += table_batch) {
    const std::size_t left = run.end_block() - block;
    const std::size_t blocks = left < table_batch ? left : table_batch;
    const std::uint8_t* codes[table_batch];
    for (std::size_t b = 0; b < blocks; ++b) {
      codes[b] = run.block(block + b);
    }
    const std::size_t ahead = left - blocks < table_batch ? left - blocks : table_batch;
    for (std::size_t first = 0; first < groups; first += summed_groups) {
      const std::size_t last = groups - first < summed_groups ? groups : first + summed_groups;
      for (std::size_t group = first; group < last;) {
        const std::size_t count = last - group >= at_once ? at_once : 1;
        const std::size_t code_at = group * 8 * Bits;
        for (std::size_t b = 0; b < ahead; ++b) {
          fetch_lines<_MM_HINT_T0>(run.block(block + blocks + b) + code_at, count * 8 * Bits);
        }
        const std::uint8_t* table = tables.bytes + group * Planes * table_bytes(Bits);
        if (count == at_once) {
          sum_tables_rows<Isa, Bits, Planes, at_once>(table, row_bytes, tables.rows, codes, blocks, code_at, sums,
                                                      group == first);
        } else {
          sum_tables_rows<Isa, Bits, Planes, 1>(table, row_bytes, tables.rows, codes, blocks, code_at, sums,
                                                group == first);
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

/// out[row * stride + slot - run.first] = score of the slot.
/// Returns false, and does nothing, when the code width has no look-up in registers (above widest_code<Isa>).
template <class Isa>
inline bool table_score(const geometry& shape, const score_tables& tables, const slot_run& run, float* out,
                        std::size_t stride, void* workspace) noexcept {
  auto* sums = static_cast<std::byte*>(workspace);
  return with_code_bits<Isa>(shape.code_bits(), [&]<unsigned Bits>() noexcept {
    if (tables.precision == table_precision::words) {
      detail::table_score<Isa, Bits, 2>(shape, tables, run, out, stride, sums);
    } else {
      detail::table_score<Isa, Bits, 1>(shape, tables, run, out, stride, sums);
    }
  });
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
