// SPDX-License-Identifier: MIT
// Rounded tables of inner products: T(row, group)[code] = <query row's sub-vector, centroid>, as unsigned integers.
//
// From every table its minimum is taken (the minima's sum returns as one constant per row), then all tables of a row
// are divided by one step, the widest table's range / limit. limit is 255 for byte tables and 65535 / min(groups, 256)
// for 16-bit tables (2047 at 32 groups). Each group's error is at most half a step, so a score is off by at most groups
// * step / 2 and, as errors are independent of each other, by about step * sqrt(groups / 12) rms.
//
// Products for byte tables are integers, too, two components per multiply-add: queries in 15 bits, products in units of
// 1/30000 of the largest that bytes could give. That adds at most width + 2 units to a group's error, a few hundredths
// of a step in practice, and the step is up to 0.4 % longer. Products for 16-bit tables are f32.
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

namespace detail {

[[nodiscard]] constexpr std::size_t planes_of(table_precision precision) noexcept {
  return precision == table_precision::words ? 2 : 1;
}

[[nodiscard]] inline std::size_t row_table_bytes(const geometry& shape, table_precision precision) noexcept {
  return shape.groups() * planes_of(precision) * table_bytes(shape.code_bits());
}

/// Query rows that share a codebook's components, one per lane of 128 bits.
inline constexpr std::size_t table_rows = 4;
/// Largest product of a byte table's row in its units: with minima taken off it fits 16 bits with room for rounding.
inline constexpr float most_product = 30000.0f;

/// Workspace of build_score_tables. Products are floats for 16-bit tables, std::int16_t for byte tables.
struct table_scratch {
  float* products;      // (rows, groups, entries)
  float* factors;       // (stages * dim, 4): components of the queries times the codebook's scale
  std::int32_t* pairs;  // (pairs of components of a group, 4): two 15-bit numbers each
  float* ranges;        // (groups, 2, 4): least and largest product; std::int32_t for byte tables
  std::size_t row_products;
  std::size_t bytes;

  table_scratch(const geometry& shape, void* memory) noexcept
      : row_products(shape.groups() * table_bytes(shape.code_bits())) {
    const std::size_t planes = std::size_t{shape.stages} * shape.dim;
    auto* at = static_cast<float*>(memory);
    const auto take = [&](std::size_t count) noexcept {
      float* const piece = at;
      at += memory == nullptr ? 0 : align_up(table_rows * count, 16);
      bytes += align_up(table_rows * count, 16) * sizeof(float);
      return piece;
    };
    bytes = 0;
    products = take(row_products);
    factors = take(planes);
    pairs = reinterpret_cast<std::int32_t*>(take((shape.max_width() + 1) / 2));
    ranges = take(2 * std::size_t{shape.groups()});
  }
};

/// Of up to four query rows, one per lane.
struct row_sums {
  __m128 base;     ///< inner product with the codebook's offsets
  __m128 bound;    ///< largest product of a group that any bytes could give, over 128
  __m128 largest;  ///< factor
};

/// Fills `factors` for rows queries[i * stride], i < count; the others are copies of the first.
inline row_sums load_factors(const geometry& shape, const byte_codebook& book, const float* queries, std::size_t stride,
                             std::size_t count, float* factors) noexcept {
  const float* const row[table_rows] = {queries, queries + (count > 1 ? stride : 0),
                                        queries + (count > 2 ? 2 * stride : 0), queries + (count > 3 ? 3 * stride : 0)};
  const __m128 sign = _mm_set1_ps(-0.0f);
  row_sums sums{_mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps()};
  std::uint32_t position = 0;
  for (group_walk at(shape); !at.done(); at.next()) {
    const std::size_t plane = at.plane();
    __m128 magnitudes = _mm_setzero_ps();
    for (std::uint32_t i = 0; i < at.width(); ++i) {
      const std::uint32_t channel = shape.channel(position);
      position = position + 1 == shape.dim ? 0 : position + 1;
      const __m128 component = _mm_setr_ps(row[0][channel], row[1][channel], row[2][channel], row[3][channel]);
      const __m128 factor = _mm_mul_ps(component, _mm_set1_ps(book.scale[plane + i]));
      _mm_store_ps(factors + table_rows * (plane + i), factor);
      sums.base = _mm_fmadd_ps(component, _mm_set1_ps(book.offset[plane + i]), sums.base);
      magnitudes = _mm_add_ps(magnitudes, _mm_andnot_ps(sign, factor));
      sums.largest = _mm_max_ps(sums.largest, _mm_andnot_ps(sign, factor));
    }
    sums.bound = _mm_max_ps(sums.bound, magnitudes);
  }
  return sums;
}

// --- 16-bit tables: products in f32 ---

/// Inner products of one group for Rows rows, `entries` floats each, `out_stride` apart, and their ranges.
template <class Isa, std::size_t Rows>
inline void float_products(const std::int8_t* tables, std::size_t entries, std::size_t width, const float* factors,
                           float* out, std::size_t out_stride, float* minimum, float* maximum) noexcept {
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
        sum[row] = Isa::fma(component, Isa::setf(factors[table_rows * i + row]), sum[row]);
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
    minimum[row] = Isa::smallest(low[row]);
    maximum[row] = Isa::largest(high[row]);
  }
}

/// Rounds one table: (product - minimum) * inverse, low bytes and then high bytes.
template <class Isa>
inline void round_word_table(const float* products, std::size_t entries, float minimum, float inverse,
                             std::uint8_t* out) noexcept {
  using ints = typename Isa::ints;
  for (std::size_t code = 0; code < entries; code += Isa::bytes) {
    ints low[4];
    ints high[4];
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      const auto shifted = Isa::subf(Isa::loadf(products + code + i * Isa::lanes), Isa::setf(minimum));
      const ints rounded = Isa::to_ints(Isa::mulf(shifted, Isa::setf(inverse)));
      high[i] = Isa::template right16<8>(rounded);
      low[i] = Isa::and_(rounded, Isa::set32(0xff));
    }
    Isa::store_bytes(out + code, low[0], low[1], low[2], low[3]);
    Isa::store_bytes(out + entries + code, high[0], high[1], high[2], high[3]);
  }
}

/// Tables of Rows rows from their factors; `base` holds what the offsets give and gets the minima, too.
template <class Isa, std::size_t Rows>
inline void build_word_tables(const geometry& shape, const byte_codebook& book, const table_scratch& scratch,
                              float limit, std::uint8_t* out, std::size_t out_stride, float* step, float* base,
                              fetch_queue& next) noexcept {
  const std::size_t entries = table_bytes(shape.code_bits());
  for (group_walk at(shape); !at.done(); at.next()) {
    next.fetch_share();
    float* range = scratch.ranges + 2 * table_rows * at.group();
    float_products<Isa, Rows>(book.bytes + at.plane() * entries, entries, at.width(),
                              scratch.factors + table_rows * at.plane(), scratch.products + at.group() * entries,
                              scratch.row_products, range, range + table_rows);
    next.fetch_share();
  }
  for (std::size_t row = 0; row < Rows; ++row) {
    const float* minimum = scratch.ranges + row;
    float widest = 0.0f;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
      const float width = minimum[(2 * group + 1) * table_rows] - minimum[2 * group * table_rows];
      widest = widest < width ? width : widest;
      base[row] += minimum[2 * group * table_rows];
    }
    const float inverse = widest > 1e-36f ? limit / widest : 0.0f;
    step[row] = widest / limit;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
      round_word_table<Isa>(scratch.products + row * scratch.row_products + group * entries, entries,
                            minimum[2 * group * table_rows], inverse, out + row * out_stride + 2 * group * entries);
    }
  }
}

// --- byte tables: products in 16-bit integers ---

/// Rounds the factors of a group to integers, two components side by side.
inline void round_factors(const float* factors, std::size_t width, __m128 inverse, std::int32_t* pairs) noexcept {
  for (std::size_t i = 0; i < width; i += 2, pairs += table_rows) {
    const __m128i even = _mm_cvtps_epi32(_mm_mul_ps(_mm_load_ps(factors + table_rows * i), inverse));
    const __m128i odd = i + 1 == width
                            ? _mm_setzero_si128()
                            : _mm_cvtps_epi32(_mm_mul_ps(_mm_load_ps(factors + table_rows * (i + 1)), inverse));
    _mm_store_si128(reinterpret_cast<__m128i*>(pairs), _mm_blend_epi16(even, _mm_slli_epi32(odd, 16), 0xaa));
  }
}

/// Inner products of one group for Rows rows, shifted right, `entries` numbers each, `out_stride` apart, and their
/// ranges.
template <class Isa, std::size_t Rows>
inline void word_products(const std::int8_t* tables, std::size_t entries, std::size_t width, const std::int32_t* pairs,
                          const __m128i* shifts, std::int16_t* out, std::size_t out_stride, std::int32_t* minimum,
                          std::int32_t* maximum) noexcept {
  using ints = typename Isa::ints;
  ints low[Rows];
  ints high[Rows];
  PQATTN_X86_UNROLL
  for (std::size_t row = 0; row < Rows; ++row) {
    low[row] = Isa::set16(32767);
    high[row] = Isa::set16(-32768);
  }
  for (std::size_t code = 0; code < entries; code += Isa::bytes / 2) {
    ints sum[Rows][2];
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      sum[row][0] = sum[row][1] = Isa::zero();
    }
    for (std::size_t i = 0; i < width; i += 2) {
      const std::int8_t* at = tables + i * entries + code;
      const ints even = Isa::bytes_to_words(at);
      const ints odd = Isa::bytes_to_words(at + (i + 1 == width ? 0 : entries));  // whose factor is 0
      const ints both[2] = {Isa::low16(even, odd), Isa::high16(even, odd)};
      PQATTN_X86_UNROLL
      for (std::size_t row = 0; row < Rows; ++row) {
        const ints factor = Isa::set32(pairs[i / 2 * table_rows + row]);
        sum[row][0] = Isa::dot_words(sum[row][0], both[0], factor);
        sum[row][1] = Isa::dot_words(sum[row][1], both[1], factor);
      }
    }
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      const ints products =
          Isa::pack_words(Isa::shift_right32(sum[row][0], shifts[row]), Isa::shift_right32(sum[row][1], shifts[row]));
      Isa::store(out + row * out_stride + code, products);
      low[row] = Isa::min16(low[row], products);
      high[row] = Isa::max16(high[row], products);
    }
  }
  for (std::size_t row = 0; row < Rows; ++row) {
    minimum[row] = Isa::smallest16(low[row]);
    maximum[row] = Isa::largest16(high[row]);
  }
}

/// Rounds one table: (product - minimum) * multiplier / 2^16 to the nearest; `from` is the minimum less what makes the
/// cut to whole numbers round.
template <class Isa>
inline void round_byte_table(const std::int16_t* products, std::size_t entries, int from, std::uint32_t multiplier,
                             std::uint8_t* out) noexcept {
  const auto scaled = [&](std::size_t code) PQATTN_X86_INLINE_LAMBDA {
    return Isa::mul_high16(Isa::sub16(Isa::load(products + code), Isa::set16(from)),
                           Isa::set16(static_cast<int>(multiplier)));
  };
  for (std::size_t code = 0; code < entries; code += Isa::bytes) {
    Isa::store(out + code, Isa::pack_bytes(scaled(code), scaled(code + Isa::bytes / 2)));
  }
}

/// Tables of Rows rows from their factors; `base` holds what the offsets give and gets the minima, too.
template <class Isa, std::size_t Rows>
inline void build_byte_tables(const geometry& shape, const byte_codebook& book, const row_sums& sums,
                              const table_scratch& scratch, float limit, std::uint8_t* out, std::size_t out_stride,
                              float* step, float* base, fetch_queue& next) noexcept {
  const std::size_t entries = table_bytes(shape.code_bits());
  // unit: of a product. Factors get as many bits more as 15 hold. Nothing of a row depends on the others.
  alignas(16) float unit[table_rows];
  const __m128 units = _mm_mul_ps(sums.bound, _mm_set1_ps(128.0f / most_product));
  _mm_store_ps(unit, units);
  const __m128 used = _mm_cmpgt_ps(units, _mm_set1_ps(1e-34f));  // else products are as good as 0
  const __m128 inverse = _mm_and_ps(used, _mm_div_ps(_mm_set1_ps(1.0f), units));
  alignas(16) float factor[table_rows];
  _mm_store_ps(factor, _mm_mul_ps(sums.largest, inverse));
  alignas(16) float powers[table_rows] = {};
  __m128i shifts[Rows];
  for (std::size_t row = 0; row < Rows; ++row) {
    int bits = 16;
    while (bits > 7 && !(factor[row] * static_cast<float>(1 << bits) < 32767.0f)) {
      --bits;
    }
    powers[row] = static_cast<float>(1 << bits);
    shifts[row] = _mm_cvtsi32_si128(bits);
  }
  const __m128 scale = _mm_mul_ps(inverse, _mm_load_ps(powers));
  auto* const products = reinterpret_cast<std::int16_t*>(scratch.products);
  auto* const ranges = reinterpret_cast<std::int32_t*>(scratch.ranges);
  for (group_walk at(shape); !at.done(); at.next()) {
    const std::size_t width = at.width();
    const std::int8_t* tables = book.bytes + at.plane() * entries;
    fetch_from_memory(reinterpret_cast<const std::uint8_t*>(tables) + 4096, width * entries);
    next.fetch_share();
    round_factors(scratch.factors + table_rows * at.plane(), width, scale, scratch.pairs);
    std::int32_t* range = ranges + 2 * table_rows * at.group();
    word_products<Isa, Rows>(tables, entries, width, scratch.pairs, shifts, products + at.group() * entries,
                             scratch.row_products, range, range + table_rows);
    next.fetch_share();
  }
  for (std::size_t row = 0; row < Rows; ++row) {
    const std::int32_t* minimum = ranges + row;
    std::int32_t widest = 0;
    std::int64_t minima = 0;
    for (std::size_t group = 0; group < shape.groups(); ++group) {
      const std::int32_t width = minimum[(2 * group + 1) * table_rows] - minimum[2 * group * table_rows];
      widest = widest < width ? width : widest;
      minima += minimum[2 * group * table_rows];
    }
    const float wanted = limit * 65536.0f / static_cast<float>(widest == 0 ? 1 : widest);
    const std::uint32_t multiplier = wanted < 65535.0f ? static_cast<std::uint32_t>(wanted) : 65535u;
    const auto half = static_cast<int>((32768 + multiplier / 2) / multiplier);
    base[row] += unit[row] * static_cast<float>(minima);
    step[row] = unit[row] * (65536.0f / static_cast<float>(multiplier));
    for (std::size_t group = 0; group < shape.groups(); ++group) {
      round_byte_table<Isa>(products + row * scratch.row_products + group * entries, entries,
                            minimum[2 * group * table_rows] - half, multiplier,
                            out + row * out_stride + group * entries);
    }
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
  return detail::table_scratch(shape, nullptr).bytes;
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
/// O(rows * stages * dim * 2^code_bits). `next` is fetched meanwhile.
template <class Isa>
inline void build_score_tables(const geometry& shape, const byte_codebook& book, const float* queries, std::size_t rows,
                               std::size_t stride, table_precision precision, void* memory, void* workspace,
                               fetch_queue next = {}) noexcept {
  const score_tables tables = score_tables_at(shape, rows, precision, memory);
  const detail::table_scratch scratch(shape, workspace);
  const std::size_t out_stride = detail::row_table_bytes(shape, precision);
  const bool words = precision == table_precision::words;
  const std::size_t summed = shape.groups() < summed_groups ? shape.groups() : summed_groups;
  const float limit = static_cast<float>(words ? 65535 / summed : 255);
  auto* const out = const_cast<std::uint8_t*>(tables.bytes);
  auto* const step = const_cast<float*>(tables.step);
  auto* const base = const_cast<float*>(tables.base);
  // Two shares a group, before and after its products: of more lines at once more are lost.
  next.share_among(2 * ((rows + detail::table_rows - 1) / detail::table_rows) * shape.groups());
  for_rows<detail::table_rows>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
    alignas(16) float offsets[detail::table_rows];
    const auto sums = detail::load_factors(shape, book, queries + row * stride, stride, Rows, scratch.factors);
    _mm_store_ps(offsets, sums.base);
    std::memcpy(base + row, offsets, Rows * sizeof(float));
    std::uint8_t* const at = out + row * out_stride;
    if (words) {
      detail::build_word_tables<Isa, Rows>(shape, book, scratch, limit, at, out_stride, step + row, base + row, next);
    } else {
      detail::build_byte_tables<Isa, Rows>(shape, book, sums, scratch, limit, at, out_stride, step + row, base + row,
                                           next);
    }
  });
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
