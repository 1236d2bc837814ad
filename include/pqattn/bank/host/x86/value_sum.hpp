// SPDX-License-Identifier: MIT
// Weighted sums of coded values: out(row, channel) += sum over slots of probability(row, slot) * value(slot, channel).
//
// Per component: 64 bytes are looked up once, in registers for up to four rows, into memory for more, and multiplied
// with probabilities rounded to bytes, four slots at a time. Sums of a batch of blocks are exact integers.
//
// Rounding of probabilities: each row has one step for 64 blocks, and what rounding leaves over is carried to the
// slot one block further, so that small probabilities are merged with others instead of lost; what the 64 slots of a
// block start with is spread evenly, so that equal ones are not rounded alike. That noise has a variance of step^2 / 6
// per slot where remainders are spread evenly, as softmax's are, and of step^2 where they conspire. The step is such
// that step^2 / 6 stays below value_noise of the row's energy (sum of p^2) per slot, which is the noise's share of the
// squared output when values are independent with mean 0, and less when they have something in common; or the largest
// probability over `byte_room` where that is finer. What a probability has above byte_room steps is its excess: its
// value is looked up by itself and added in f32. At most one slot in byte_room^2 * 6 * value_noise has any (116, or 28
// without VNNI), whatever the probabilities. The constant parts of the codebook (its offsets) use exact sums.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "../../../core/memory.hpp"
#include "../../../quant/geometry.hpp"
#include "../code_block.hpp"
#include "blocks.hpp"
#include "byte_codebook.hpp"

#if PQATTN_X86_AVX2

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

/// Blocks that share steps: those of a tile.
inline constexpr std::size_t most_value_blocks = 64;

/// Bound on the noise of rounded probabilities, see above.
inline constexpr float value_noise = 3e-4f;

/// What the probabilities of all slots of a call come to, per row: their sum, the sum of their squares, the largest. A
/// row whose mass is negative is not known.
struct known_sums {
  const float* mass = nullptr;
  const float* energy = nullptr;
  const float* largest = nullptr;
};

namespace detail {

/// Workspace of value_sum.
struct value_scratch {
  float* sums;           // (rows, planes): of bytes times steps; planes is stages * dim rounded up to 16
  float* mass;           // (rows): sums of the probabilities used
  float* steps;          // (rows): of the rounded probabilities
  float* limits;         // (rows): what is above is excess; huge where there is none
  std::uint64_t* above;  // (batch, rows): slots of a batch with an excess, a bit each
  float* left;           // (rows): mass that may still be skipped
  float* carried;        // (rows, 64): what rounding left over, in steps
  float* excess;         // (rows, planes): sums of excess * byte
  std::size_t planes;
  std::uint8_t* bytes;   // (batch, rows, 64): rounded probabilities
  std::int8_t* decoded;  // (batch, value_decoded, 64): components of a group, when many rows share them
  std::size_t size;
};

/// Query rows that share a look-up.
inline constexpr std::size_t most_value_rows = 4;
/// Components that are decoded together where more rows than that share them: looked up once into memory, multiplied
/// from there. Look-ups and dot products compete for the same ports, so that four rows at a time cost little less each
/// than one pass of dot products alone; see docs/performance.md for the crossing.
inline constexpr std::size_t value_decoded = 4;

/// Blocks handled together, so that tables are loaded and sums added up once: a whole tile where a few rows share
/// look-ups. One row is done with a batch before all blocks of a tile come from memory, and decoded components of more
/// blocks leave the first-level cache.
inline constexpr std::size_t small_value_batch = 16;
[[nodiscard]] constexpr std::size_t value_batch(std::size_t rows) noexcept {
  return rows >= 2 && rows <= most_value_rows ? most_value_blocks : small_value_batch;
}

inline value_scratch carve_value_scratch(const geometry& shape, std::size_t rows, void* base) noexcept {
  carver memory(base, base == nullptr ? 0 : ~std::size_t{0});
  value_scratch out{};
  out.planes = align_up(std::size_t{shape.stages} * shape.dim, 16);
  out.sums = memory.take<float>(out.planes * rows);
  out.mass = memory.take<float>(rows);
  out.steps = memory.take<float>(rows);
  out.limits = memory.take<float>(rows);
  out.above = memory.take<std::uint64_t>(value_batch(rows) * rows);
  out.left = memory.take<float>(rows);
  out.carried = memory.take<float>(rows * slots);
  out.excess = memory.take<float>(rows * out.planes);
  out.bytes = memory.take<std::uint8_t>(value_batch(rows) * rows * slots);
  out.decoded = memory.take<std::int8_t>(rows > most_value_rows ? value_batch(rows) * value_decoded * slots : 0);
  out.size = memory.used();
  return out;
}

/// Some of the blocks that are not skipped.
struct value_blocks {
  const std::size_t* index;
  const std::uint8_t* const* codes;
  std::size_t count;

  [[nodiscard]] value_blocks slice(std::size_t first, std::size_t most) const noexcept {
    return {index + first, codes + first, count - first < most ? count - first : most};
  }
};

/// All of them.
struct value_block_list {
  std::size_t index[most_value_blocks];
  const std::uint8_t* codes[most_value_blocks];
  std::size_t count = 0;

  [[nodiscard]] value_blocks all() const noexcept { return {index, codes, count}; }
};

/// Where a block's probabilities lie in a row, and which slots of the block the run has.
struct block_place {
  std::ptrdiff_t offset;
  std::ptrdiff_t begin;
  std::ptrdiff_t end;

  block_place(const slot_run& run, std::size_t block) noexcept
      : offset(run.offset_of(block)), begin(run.begin_in(block)), end(run.end_in(block)) {}
  [[nodiscard]] bool whole() const noexcept { return end - begin == static_cast<std::ptrdiff_t>(slots); }
};

/// Loads the probabilities of one block and row; slots outside the run are 0 and not read.
template <class Isa>
PQATTN_ALWAYS_INLINE void load_probabilities(const float* row, const block_place& place,
                                             typename Isa::floats* out) noexcept {
  const float* at = row + place.offset;
  constexpr auto lanes = static_cast<std::ptrdiff_t>(Isa::lanes);
  constexpr auto count = static_cast<std::ptrdiff_t>(slots) / lanes;
  if (place.whole()) {
    PQATTN_X86_UNROLL
    for (std::ptrdiff_t i = 0; i < count; ++i) {
      out[i] = Isa::loadf(at + i * lanes);
    }
  } else {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
      out[i] = Isa::loadf_range(at + i * lanes, place.begin - i * lanes, place.end - i * lanes);
    }
  }
}

/// Masses of `count` blocks in one row, at most Isa::lanes of them, one per lane.
template <class Isa>
PQATTN_ALWAYS_INLINE typename Isa::floats masses_of_blocks(const float* row, const slot_run& run, std::size_t block,
                                                           std::size_t count) noexcept {
  typename Isa::floats sums[Isa::lanes];
  for (std::size_t i = 0; i < Isa::lanes; ++i) {
    if (i < count) {
      typename Isa::floats p[slots / Isa::lanes];
      load_probabilities<Isa>(row, {run, block + i}, p);
      sums[i] = fold_registers(p, Isa::addf);
    } else {
      sums[i] = Isa::setf(0.0f);
    }
  }
  return Isa::sums(sums);
}

/// Masses of a run's blocks in every row, (rows, most_value_blocks), and for each block the largest share that they
/// have of left[row]. Where that is above 1 masses may be missing.
template <class Isa>
inline void weigh_blocks(const float* probabilities, std::size_t stride, std::size_t rows, const slot_run& run,
                         const float* left, float* masses, float* shares) noexcept {
  constexpr float most_inverse = 1e38f;  // of a row of which nothing is left
  std::fill_n(shares, most_value_blocks, 2.0f);
  for (std::size_t block = run.first_block(); block < run.end_block(); block += Isa::lanes) {
    const std::size_t at = block - run.first_block();
    typename Isa::floats share = Isa::setf(0.0f);
    for (std::size_t row = 0; row < rows && Isa::smallest(share) <= 1.0f; ++row) {
      const auto mass = masses_of_blocks<Isa>(probabilities + row * stride, run, block, run.end_block() - block);
      const float inverse = left[row] > 1.0f / most_inverse ? 1.0f / left[row] : most_inverse;
      Isa::storef(masses + row * most_value_blocks + at, mass);
      share = Isa::maxf(Isa::mulf(mass, Isa::setf(inverse)), share);
    }
    Isa::storef(shares + at, share);
  }
}

/// What the blocks of a row whose share is at most `limit` weigh together.
template <class Isa>
PQATTN_ALWAYS_INLINE float mass_within(const float* masses, const float* shares, float limit) noexcept {
  typename Isa::floats sum = Isa::setf(0.0f);
  for (std::size_t i = 0; i < most_value_blocks; i += Isa::lanes) {
    sum = Isa::addf(sum, Isa::where_at_most(Isa::loadf(shares + i), Isa::setf(limit), Isa::loadf(masses + i)));
  }
  return Isa::sum(sum);
}

/// Moves the masses of a block from what is left to what is taken, if that is enough in every row.
inline bool take_masses(const float* masses, std::size_t rows, float* left, float* taken) noexcept {
  for (std::size_t row = 0; row < rows; ++row) {
    if (!(masses[row * most_value_blocks] <= left[row])) {
      return false;
    }
  }
  for (std::size_t row = 0; row < rows; ++row) {
    left[row] -= masses[row * most_value_blocks];
    taken[row] += masses[row * most_value_blocks];
  }
  return true;
}

/// Which of at most most_value_blocks blocks are left out, a bit each: all whose share of left[row] is at most some
/// limit, the largest, within 4 %, at which together they stay within it, and of those within the 4 % as many as still
/// fit. Moves their masses from left[row] to taken[row]. `masses`: workspace, (rows, most_value_blocks).
template <class Isa>
inline std::uint64_t skipped_blocks(const float* probabilities, std::size_t stride, std::size_t rows,
                                    const slot_run& run, float* left, float* taken, float* masses) noexcept {
  alignas(64) float shares[most_value_blocks];
  weigh_blocks<Isa>(probabilities, stride, rows, run, left, masses, shares);
  const auto fits = [&](float limit) noexcept {
    std::size_t row = 0;
    while (row < rows && mass_within<Isa>(masses + row * most_value_blocks, shares, limit) <= left[row]) {
      ++row;
    }
    return row == rows;
  };
  float limit = 1.0f;
  float beyond = limit;
  if (!fits(limit)) {
    limit = 1.0f / most_value_blocks;
    for (int step = 0; step < 7; ++step) {
      const float middle = std::sqrt(limit * beyond);
      (fits(middle) ? limit : beyond) = middle;
    }
    if (!fits(limit)) {  // that of the smallest may be rounded
      beyond = limit;
      limit = -1.0f;
    }
  }
  for (std::size_t row = 0; row < rows; ++row) {
    const float mass = mass_within<Isa>(masses + row * most_value_blocks, shares, limit);
    left[row] -= mass;
    taken[row] += mass;
  }
  std::uint64_t skipped = 0;
  for (std::size_t i = 0; i < run.end_block() - run.first_block(); ++i) {
    if (shares[i] <= beyond) {
      const bool light = shares[i] <= limit || take_masses(masses + i, rows, left, taken);
      skipped |= std::uint64_t{light} << i;
    }
  }
  return skipped;
}

/// Mass, energy and largest probability of one row.
template <class Isa>
inline void measure(const float* row, const slot_run& run, const value_blocks& blocks, float& mass, float& energy,
                    float& peak) noexcept {
  using floats = typename Isa::floats;
  constexpr std::size_t registers = slots / Isa::lanes;
  floats sums[registers];  // chains of their own, to hide latencies
  floats squares[registers];
  floats largest[registers];
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < registers; ++i) {
    sums[i] = squares[i] = largest[i] = Isa::setf(0.0f);
  }
  for (std::size_t b = 0; b < blocks.count; ++b) {
    floats p[registers];
    load_probabilities<Isa>(row, {run, blocks.index[b]}, p);
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < registers; ++i) {
      sums[i] = Isa::addf(sums[i], p[i]);
      squares[i] = Isa::fma(p[i], p[i], squares[i]);
      largest[i] = Isa::maxf(largest[i], p[i]);
    }
  }
  mass = sum_of<Isa>(sums);
  energy = sum_of<Isa>(squares);
  peak = largest_of<Isa>(largest);
}

/// Steps of the largest rounded probability: leaves room for what is carried over, and is whole, so that what has an
/// excess is not rounded at all.
template <class Isa>
inline constexpr float byte_room = Isa::byte_limit - 1.0f;

/// The limit of a row without excess.
inline constexpr float no_limit = 3.0e38f;

/// A step so small that its inverse overflows contributes nothing.
PQATTN_ALWAYS_INLINE float inverse_step(float step) noexcept {
  return step > 1e-36f ? 1.0f / step : 0.0f;
}

/// Remainders that the slots of a block start from: in (-1/2, 1/2), apart from each other in neighbouring slots, and
/// adding up to 0.
struct first_remainders {
  float of[slots];

  constexpr first_remainders() noexcept : of{} {
    for (std::size_t i = 0; i < slots; ++i) {
      of[i] = (static_cast<float>(i * 39 % slots) + 0.5f) / static_cast<float>(slots) - 0.5f;
    }
  }
};

/// What a call starts from.
inline void clear_sums(const value_scratch& scratch, std::size_t rows) noexcept {
  static constexpr first_remainders remainders;
  std::memset(scratch.sums, 0, scratch.planes * rows * sizeof(float));
  std::memset(scratch.excess, 0, scratch.planes * rows * sizeof(float));
  for (std::size_t row = 0; row < rows; ++row) {
    std::memcpy(scratch.carried + row * slots, remainders.of, sizeof remainders.of);
  }
}

/// Rounds the probabilities of Rows rows of a batch to multiples of their steps, those above their row's limit to the
/// limit, and notes which these are.
template <class Isa, std::size_t Rows>
PQATTN_NOINLINE void round_rows(const slot_run& run, const value_blocks& blocks, const float* probabilities,
                                std::size_t stride, std::size_t rows, std::size_t first,
                                const value_scratch& scratch) noexcept {
  using floats = typename Isa::floats;
  using ints = typename Isa::ints;
  constexpr std::size_t registers = slots / Isa::lanes;
  floats inverse[Rows];
  floats limit[Rows];
  floats carried[Rows][registers];  // chains of their own, to hide the latency of four operations
  float* const carried_over = scratch.carried + first * slots;
  PQATTN_X86_UNROLL
  for (std::size_t row = 0; row < Rows; ++row) {
    inverse[row] = Isa::setf(inverse_step(scratch.steps[first + row]));
    limit[row] = Isa::setf(scratch.limits[first + row]);
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < registers; ++i) {
      carried[row][i] = Isa::loadf(carried_over + row * slots + i * Isa::lanes);
    }
  }
  std::uint8_t* bytes = scratch.bytes + first * slots;
  std::uint64_t* above = scratch.above + first;
  for (std::size_t b = 0; b < blocks.count; ++b, bytes += rows * slots, above += rows) {
    const block_place place(run, blocks.index[b]);
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      floats p[registers];
      ints rounded[registers];
      load_probabilities<Isa>(probabilities + (first + row) * stride, place, p);
      above[row] = Isa::above(p, limit[row]);
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < registers; ++i) {
        const floats wanted = Isa::fma(Isa::minf(p[i], limit[row]), inverse[row], carried[row][i]);
        rounded[i] = Isa::to_ints(wanted);
        carried[row][i] = Isa::subf(wanted, Isa::to_floats(rounded[i]));
      }
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < registers; i += 4) {
        Isa::store_bytes(bytes + row * slots + i * Isa::lanes, rounded[i], rounded[i + 1], rounded[i + 2],
                         rounded[i + 3]);
      }
    }
  }
  PQATTN_X86_UNROLL
  for (std::size_t row = 0; row < Rows; ++row) {
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < registers; ++i) {
      Isa::storef(carried_over + row * slots + i * Isa::lanes, carried[row][i]);
    }
  }
}

/// Adds the components that a slot's codes stand for, times `excess`. `codes`: of the slot's block.
template <unsigned Bits>
PQATTN_NOINLINE void add_excess(const geometry& shape, const byte_codebook& book, const std::uint8_t* codes,
                                std::size_t slot, float excess, float* sums) noexcept {
  for (group_walk group(shape); !group.done(); group.next(), codes += 8 * Bits) {
    const std::uint32_t code = pqattn::detail::get_code(reinterpret_cast<const std::byte*>(codes), Bits, slot);
    const std::int8_t* entry = book.bytes + group.plane() * table_bytes(Bits) + code;
    float* const at = sums + group.plane();
    for (std::size_t c = 0; c < group.width(); ++c, entry += table_bytes(Bits)) {
      at[c] = __builtin_fmaf(static_cast<float>(*entry), excess, at[c]);
    }
  }
}

/// The same for all that probabilities of a batch have above their rows' limits.
template <unsigned Bits>
inline void add_excesses(const geometry& shape, const byte_codebook& book, const slot_run& run,
                         const value_blocks& blocks, const float* probabilities, std::size_t stride, std::size_t rows,
                         const value_scratch& scratch) noexcept {
  const std::uint64_t* above = scratch.above;
  for (std::size_t i = 0; i < blocks.count; ++i, above += rows) {
    std::uint64_t any = 0;
    for (std::size_t row = 0; row < rows; ++row) {
      any |= above[row];
    }
    for (std::size_t row = 0; any != 0 && row < rows; ++row) {
      for (std::uint64_t left = above[row]; left != 0; left &= left - 1) {
        const auto slot = static_cast<std::ptrdiff_t>(std::countr_zero(left));
        const float probability = (probabilities + row * stride)[run.offset_of(blocks.index[i]) + slot];
        add_excess<Bits>(shape, book, blocks.codes[i], static_cast<std::size_t>(slot),
                         probability - scratch.limits[row], scratch.excess + row * scratch.planes);
      }
    }
  }
}

/// Adds the integer sums of a batch to the f32 sums of Count components and Rows rows, whose rows are `planes` apart.
template <class Isa, std::size_t Count, std::size_t Rows>
PQATTN_ALWAYS_INLINE void add_batch(const typename Isa::ints (&sum)[Count][Rows], std::size_t planes,
                                    float* sums) noexcept {
  static_assert(Count <= 4);
  constexpr std::size_t together = 4 / Count;  // rows that fill four lanes
  const auto register_of = [&](std::size_t number) PQATTN_X86_INLINE_LAMBDA {
    return number < Count * Rows ? sum[number % Count][number / Count] : Isa::zero();
  };
  PQATTN_X86_UNROLL
  for (std::size_t row = 0; row < Rows; row += together) {
    const std::size_t first = row * Count;
    const __m128 total = _mm_cvtepi32_ps(
        Isa::sums_of_four(register_of(first), register_of(first + 1), register_of(first + 2), register_of(first + 3)));
    float* const at = sums + row * planes;
    if constexpr (Count == 4) {
      _mm_storeu_ps(at, _mm_add_ps(total, _mm_loadu_ps(at)));
    } else if constexpr (Count == 2 && Rows > 1) {
      auto* const low = reinterpret_cast<__m64*>(at);
      auto* const high = reinterpret_cast<__m64*>(at + planes);
      const __m128 both = _mm_add_ps(total, _mm_loadh_pi(_mm_loadl_pi(_mm_setzero_ps(), low), high));
      _mm_storel_pi(low, both);
      _mm_storeh_pi(high, both);
    } else {
      alignas(16) float totals[4];
      _mm_store_ps(totals, total);
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        if (first + i < Count * Rows) {
          at[i / Count * planes + i % Count] += totals[i];
        }
      }
    }
  }
}

/// Cache lines that a kernel fetches with each block it works on: of many at once the queue of first-level misses has
/// no room for all.
inline constexpr std::size_t lines_with_block = 2;

/// `lines`: null where there is nothing to fetch.
PQATTN_ALWAYS_INLINE void fetch_with_block(const std::uint8_t* lines, std::size_t block) noexcept {
  if (lines != nullptr) {
    fetch_from_memory(lines + 64 * lines_with_block * block, 64 * lines_with_block);
  }
}

/// Sums of Count components of one group for Rows rows over `blocks` blocks. `load(block, part, use)` gives the
/// components of a part of a block.
template <class Isa, std::size_t Count, std::size_t Rows, class Load>
PQATTN_ALWAYS_INLINE void sum_blocks(std::size_t blocks, const std::uint8_t* bytes, std::size_t rows, float* sums,
                                     std::size_t planes, const Load& load) noexcept {
  using ints = typename Isa::ints;
  ints sum[Count][Rows];
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Count; ++i) {
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      sum[i][row] = Isa::zero();
    }
  }
  for (std::size_t block = 0; block < blocks; ++block, bytes += rows * slots) {
    PQATTN_X86_UNROLL
    for (std::size_t part = 0; part < parts<Isa>; ++part) {
      ints weight[Rows];
      PQATTN_X86_UNROLL
      for (std::size_t row = 0; row < Rows; ++row) {
        weight[row] = Isa::load(bytes + row * slots + part * Isa::bytes);
        keep_in_register(weight[row]);
      }
      load(block, part, [&](std::size_t i, ints value) PQATTN_X86_INLINE_LAMBDA {
        if constexpr (Rows == 4) {
          Isa::dot_four(sum[i], weight, value);
        } else {
          PQATTN_X86_UNROLL
          for (std::size_t row = 0; row < Rows; ++row) {
            sum[i][row] = Isa::dot_bytes(sum[i][row], weight[row], value);
          }
        }
      });
    }
  }
  add_batch<Isa, Count, Rows>(sum, planes, sums);
}

/// Groups whose codes come into the first-level cache ahead of the one that is looked up: a whole batch would push out
/// what is in use.
inline constexpr std::size_t value_groups_ahead = 2;

/// The codes of a group and part of a block.
template <class Look, unsigned Bits>
PQATTN_ALWAYS_INLINE typename Look::codes load_codes(const std::uint8_t* group, std::size_t part) noexcept {
  if (part == 0) {
    fetch_lines(group + value_groups_ahead * 8 * Bits, 8 * Bits);
  }
  return Look::load_codes(group, part);
}

/// By look-ups.
template <class Isa, unsigned Bits, std::size_t Count, std::size_t Rows>
PQATTN_NOINLINE void sum_components(const std::int8_t* tables, const value_blocks& blocks, std::size_t code_at,
                                    const std::uint8_t* lines, const std::uint8_t* bytes, std::size_t rows, float* sums,
                                    std::size_t planes) noexcept {
  using look = lookup<Isa, Bits>;
  constexpr bool halves = look::has_halves && Count == 4 && Rows > 1;
  const auto table_at = [](const std::int8_t* at) PQATTN_X86_INLINE_LAMBDA {
    if constexpr (halves) {
      return look::load_halves(at);
    } else {
      return look::load_table(at);
    }
  };
  decltype(table_at(tables)) table[Count];
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Count; ++i) {
    table[i] = table_at(tables + i * table_bytes(Bits));
    if constexpr (halves) {
      look::keep(table[i]);
    }
  }
  const auto load = [&](std::size_t block, std::size_t part, const auto& use) PQATTN_X86_INLINE_LAMBDA {
    if (part == 0) {
      fetch_with_block(lines, block);
    }
    auto codes = load_codes<look, Bits>(blocks.codes[block] + code_at, part);
    if constexpr (halves) {
      keep_in_register(codes.low);
    }
    const std::int8_t* here = look::in_memory ? not_hoisted(tables) : tables;
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Count; ++i) {
      use(i, look::look_merged(look::in_memory ? table_at(here + i * table_bytes(Bits)) : table[i], codes));
    }
  };
  sum_blocks<Isa, Count, Rows>(blocks.count, bytes, rows, sums, planes, load);
}

/// From decoded components.
template <class Isa, std::size_t Count, std::size_t Rows>
PQATTN_NOINLINE void sum_decoded(const std::int8_t* decoded, std::size_t blocks, const std::uint8_t* bytes,
                                 std::size_t rows, float* sums, std::size_t planes) noexcept {
  const auto load = [&](std::size_t block, std::size_t part, const auto& use) PQATTN_X86_INLINE_LAMBDA {
    const std::int8_t* at = decoded + block * value_decoded * slots + part * Isa::bytes;
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Count; ++i) {
      use(i, Isa::load(at + i * slots));
    }
  };
  sum_blocks<Isa, Count, Rows>(blocks, bytes, rows, sums, planes, load);
}

/// Components of one group that share a look at its codes: as many as registers hold sums and tables for.
template <class Isa, unsigned Bits, std::size_t Rows>
inline constexpr std::size_t components_at_once = Isa::bytes == 64 && (lookup<Isa, Bits>::in_memory ||
                                                                       lookup<Isa, Bits>::has_halves || Bits <= 4 ||
                                                                       (Bits <= 8 && Rows == 1))
                                                      ? 4
                                                      : 2;

/// Looks up Count components of all blocks of a batch.
template <class Isa, unsigned Bits, std::size_t Count>
PQATTN_NOINLINE void decode_components(const std::int8_t* tables, const value_blocks& blocks, std::size_t code_at,
                                       const std::uint8_t* lines, std::int8_t* decoded) noexcept {
  using look = lookup<Isa, Bits>;
  typename look::table table[Count];
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Count; ++i) {
    table[i] = look::load_table(tables + i * table_bytes(Bits));
  }
  for (std::size_t block = 0; block < blocks.count; ++block, decoded += value_decoded * slots) {
    fetch_with_block(lines, block);
    PQATTN_X86_UNROLL
    for (std::size_t part = 0; part < parts<Isa>; ++part) {
      const auto codes = load_codes<look, Bits>(blocks.codes[block] + code_at, part);
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < Count; ++i) {
        Isa::store(decoded + i * slots + part * Isa::bytes, look::look_merged(table[i], codes));
      }
    }
  }
}

/// All components of one group for all rows. The first pass over the blocks fetches `lines`; without any, and later,
/// what is there already.
template <class Isa, unsigned Bits>
inline void sum_group(const std::int8_t* tables, std::size_t width, const value_blocks& blocks, std::size_t code_at,
                      const std::uint8_t* lines, std::size_t rows, const value_scratch& scratch, float* sums) noexcept {
  const auto lines_of = [&](std::size_t i, std::size_t row) noexcept { return i == 0 && row == 0 ? lines : nullptr; };
  const auto tables_of = [&](std::size_t i) noexcept { return tables + i * table_bytes(Bits); };
  const auto sums_of = [&](std::size_t i, std::size_t row) noexcept { return sums + row * scratch.planes + i; };
  if (rows <= most_value_rows) {
    for_rows<most_value_rows>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
      for_rows<components_at_once<Isa, Bits, Rows>>(width, [&]<std::size_t Count>(std::size_t i) noexcept {
        sum_components<Isa, Bits, Count, Rows>(tables_of(i), blocks, code_at, lines_of(i, row),
                                               scratch.bytes + row * slots, rows, sums_of(i, row), scratch.planes);
      });
    });
    return;
  }
  constexpr std::size_t at_once = Isa::bytes == 64 ? value_decoded : 2;
  for_rows<at_once>(width, [&]<std::size_t Count>(std::size_t i) noexcept {
    decode_components<Isa, Bits, Count>(tables_of(i), blocks, code_at, lines_of(i, 0), scratch.decoded);
    for_rows<most_value_rows>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
      sum_decoded<Isa, Count, Rows>(scratch.decoded, blocks.count, scratch.bytes + row * slots, rows, sums_of(i, row),
                                    scratch.planes);
    });
  });
}

/// Adds a batch of blocks to the sums. Meanwhile `next`, the batch that follows, and a share of `later` for each group
/// are fetched.
template <class Isa, unsigned Bits>
inline void sum_batch(const geometry& shape, const byte_codebook& book, const value_blocks& blocks,
                      const value_blocks& next, fetch_queue& later, const slot_run& run, const float* probabilities,
                      std::size_t stride, std::size_t rows, const value_scratch& scratch) noexcept {
  for_rows<Isa::bytes == 64 ? 4 : 1>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
    round_rows<Isa, Rows>(run, blocks, probabilities, stride, rows, row, scratch);
  });
  add_excesses<Bits>(shape, book, run, blocks, probabilities, stride, rows, scratch);
  fetch_queue following(next.codes, next.count, run.block_bytes);
  following.share_among(shape.groups());
  for (group_walk group(shape); !group.done(); group.next()) {
    const std::size_t code_at = std::size_t{group.group()} * 8 * Bits;
    following.add_share();
    later.add_share();
    fetch_queue& longest = following.due() < later.due() ? later : following;
    const std::uint8_t* lines = longest.take(lines_with_block * blocks.count);
    const std::int8_t* tables = book.bytes + group.plane() * table_bytes(Bits);
    float* sums = scratch.sums + group.plane();
    sum_group<Isa, Bits>(tables, group.width(), blocks, code_at, lines, rows, scratch, sums);
  }
  following.fetch_due();
}

/// Adds the integer part's sums and the constant part to `out`.
template <class Isa>
inline void finish_values(const geometry& shape, const byte_codebook& book, std::size_t rows,
                          const value_scratch& scratch, float* out, std::size_t stride) noexcept {
  for (std::size_t row = 0; row < rows; ++row, out += stride) {
    const float* const sums = scratch.sums + row * scratch.planes;
    const float* const excess = scratch.excess + row * scratch.planes;
    const auto step = Isa::setf(scratch.steps[row]);
    const auto mass = Isa::setf(scratch.mass[row]);
    for (std::uint32_t stage = 0; stage < shape.stages; ++stage) {
      for (std::uint32_t position = 0; position < shape.dim; position += Isa::lanes) {
        const std::size_t plane = std::size_t{stage} * shape.dim + position;
        const std::size_t count = shape.dim - position < Isa::lanes ? shape.dim - position : Isa::lanes;
        const auto of = [&](const float* numbers) PQATTN_X86_INLINE_LAMBDA {
          return Isa::loadf_range(numbers + plane, 0, static_cast<std::ptrdiff_t>(count));
        };
        const auto sum = Isa::fma(step, of(sums), of(excess));
        const auto total = Isa::fma(of(book.scale), sum, Isa::mulf(of(book.offset), mass));
        if (shape.channel_order == nullptr && count == Isa::lanes) {
          Isa::storef(out + position, Isa::addf(Isa::loadf(out + position), total));
          continue;
        }
        alignas(64) float added[Isa::lanes];
        Isa::storef(added, total);
        for (std::size_t i = 0; i < count; ++i) {
          out[shape.channel(position + static_cast<std::uint32_t>(i))] += added[i];
        }
      }
    }
  }
}

/// Lists the blocks of a run of at most most_value_blocks that are not skipped; what the others hold is in scratch.mass
/// then. The first codes of the first small batch of what might have been skipped are fetched here; others are while
/// they are summed.
template <class Isa, unsigned Bits>
inline void list_blocks(const slot_run& run, const float* probabilities, std::size_t stride, std::size_t rows,
                        bool skips, const value_scratch& scratch, value_block_list& list) noexcept {
  std::memset(scratch.mass, 0, rows * sizeof(float));
  auto* masses = reinterpret_cast<float*>(scratch.bytes);  // not in use yet
  std::uint64_t skipped = 0;
  if (skips) {
    skipped = skipped_blocks<Isa>(probabilities, stride, rows, run, scratch.left, scratch.mass, masses);
  }
  for (std::size_t block = run.first_block(); block < run.end_block(); ++block, skipped >>= 1) {
    if ((skipped & 1) != 0) {
      continue;
    }
    const std::uint8_t* codes = run.block(block);
    list.index[list.count] = block;
    list.codes[list.count++] = codes;
    if (skips && list.count <= small_value_batch) {
      fetch_lines(codes, value_groups_ahead * 8 * Bits);
    }
  }
}

/// Masses, steps and limits of the rows. scratch.mass holds what is skipped.
template <class Isa>
inline void find_steps(const slot_run& run, const value_blocks& blocks, const float* probabilities, std::size_t stride,
                       std::size_t rows, const known_sums& known, const value_scratch& scratch) noexcept {
  for (std::size_t row = 0; row < rows; ++row) {
    float energy = 0.0f;
    float peak = 0.0f;
    if (known.mass == nullptr || known.mass[row] < 0.0f) {
      measure<Isa>(probabilities + row * stride, run, blocks, scratch.mass[row], energy, peak);
    } else {
      scratch.mass[row] = known.mass[row] - scratch.mass[row];
      energy = known.energy[row];
      peak = known.largest[row];
    }
    // Squares of small numbers vanish: such a row gets steps of its largest probability.
    const float square = 6.0f * value_noise * energy / static_cast<float>(blocks.count * slots);  // of a step
    const float limit = energy > 1e-30f ? byte_room<Isa> * std::sqrt(square) : no_limit;
    scratch.steps[row] = (peak < limit ? peak : limit) / byte_room<Isa>;
    scratch.limits[row] = peak <= limit ? no_limit : limit;
  }
}

/// value_sum for a run of at most most_value_blocks; scratch.left holds what may still be skipped.
template <class Isa, unsigned Bits>
inline void sum_run(const geometry& shape, const byte_codebook& book, const slot_run& run, const float* probabilities,
                    std::size_t stride, std::size_t rows, bool skips, float* out, std::size_t out_stride,
                    std::size_t& skipped, const value_scratch& scratch, fetch_queue& next, const known_sums& known,
                    bool far) noexcept {
  value_block_list list;
  list_blocks<Isa, Bits>(run, probabilities, stride, rows, skips, scratch, list);
  skipped += run.end_block() - run.first_block() - list.count;
  if (list.count == 0) {
    return;
  }
  const value_blocks blocks = list.all();
  find_steps<Isa>(run, blocks, probabilities, stride, rows, known, scratch);
  clear_sums(scratch, rows);
  // Of what lies in memory a batch is fetched while the one before it is summed.
  const std::size_t batch = far ? small_value_batch : value_batch(rows);
  next.share_among((list.count + batch - 1) / batch * shape.groups());
  for (std::size_t first = 0; first < list.count; first += batch) {
    const std::size_t after = first + batch < list.count ? first + batch : list.count;
    sum_batch<Isa, Bits>(shape, book, blocks.slice(first, batch), blocks.slice(after, batch), next, run, probabilities,
                         stride, rows, scratch);
  }
  next.fetch_due();
  finish_values<Isa>(shape, book, rows, scratch, out, out_stride);
}

}  // namespace detail

/// Bytes of workspace for value_sum of up to `rows` rows, aligned to 64.
template <class Isa>
[[nodiscard]] inline std::size_t value_scratch_bytes(const geometry& shape, std::size_t rows) noexcept {
  const std::size_t all = detail::carve_value_scratch(shape, rows, nullptr).size;
  const std::size_t few = detail::carve_value_scratch(shape, detail::most_value_rows, nullptr).size;
  return rows > detail::most_value_rows && few > all ? few : all;
}

/// out(row, channel) += sum over the run's slots of probabilities[row * stride + slot - run.first] * value.
/// Probabilities are at least 0. `skip_mass`: null, or per row a mass; blocks, light ones first, are left out while
/// their masses add up to at most that in every row, and counted in `skipped`. Any number of rows; look-ups are shared
/// by all. `next` is fetched meanwhile; `far`: whether the run's own codes may lie in memory. Without `known` the sums
/// are found in a pass of their own. Returns false, and
/// does nothing, when the code width has no look-up in registers (above widest_code<Isa>).
template <class Isa>
inline bool value_sum(const geometry& shape, const byte_codebook& book, const slot_run& run, const float* probabilities,
                      std::size_t stride, std::size_t rows, const float* skip_mass, float* out, std::size_t out_stride,
                      std::size_t& skipped, void* workspace, fetch_queue next = {}, const known_sums& known = {},
                      bool far = false) noexcept {
  return with_code_bits<Isa>(shape.code_bits(), [&]<unsigned Bits>() noexcept {
    const auto scratch = detail::carve_value_scratch(shape, rows, workspace);
    if (skip_mass != nullptr) {
      std::memcpy(scratch.left, skip_mass, rows * sizeof(float));
    }
    const std::size_t end = run.end_block();
    const bool whole = end - run.first_block() <= most_value_blocks;
    for (std::size_t block = run.first_block(); block < end; block += most_value_blocks) {
      const slot_run part = run.part(block, block + most_value_blocks);
      detail::sum_run<Isa, Bits>(shape, book, part, probabilities + (part.first - run.first), stride, rows,
                                 skip_mass != nullptr, out, out_stride, skipped, scratch, next,
                                 whole ? known : known_sums{}, far);
    }
  });
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
