// SPDX-License-Identifier: MIT
// Weighted sums of coded values: out(row, channel) += sum over slots of probability(row, slot) * value(slot, channel).
//
// Per component: 64 bytes are looked up once, in registers for up to four rows, into memory for more, and multiplied
// with probabilities rounded to bytes, four slots at a time. Sums of a batch of blocks are exact integers.
//
// Rounding of probabilities: each row has one step for the whole call, and what rounding leaves over is carried to the
// slot one block further, so that small probabilities are merged with others instead of lost; what the 64 slots of a
// block start with is spread evenly, so that equal ones are not rounded alike. That noise has a variance of step^2 / 6
// per slot where remainders are spread evenly, as softmax's are, and of step^2 where they conspire. The step is such
// that step^2 / 6 stays below value_noise of the row's energy (sum of p^2) per slot, which is the noise's share of the
// squared output when values are independent with mean 0, and less when they have something in common; or the largest
// probability over `byte_room` where that is finer. What a probability has above byte_room steps is its excess: its
// value is looked up by itself and added in f32. At most one slot in byte_room^2 * 6 * value_noise has any (116, or 28
// without VNNI), whatever the probabilities. The constant parts of the codebook (its offsets) use exact sums.
#pragma once

#include <bit>

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

/// Blocks handled together, so that tables are loaded once.
inline constexpr std::size_t value_batch = 16;

/// Bound on the noise of rounded probabilities, see above.
inline constexpr float value_noise = 3e-4f;

namespace detail {

/// Workspace of value_sum.
struct value_scratch {
  float* sums;           // (stages * dim, rows): of bytes times steps
  float* mass;           // (rows): sums of the probabilities used
  float* steps;          // (rows): of the rounded probabilities
  float* limits;         // (rows): what is above is excess; huge where there is none
  float* left;           // (2, rows): mass that may still be skipped; of one block
  float* carried;        // (rows, 64): what rounding left over, in steps
  float* excess;         // (rows, planes): sums of excess * byte; planes is stages * dim rounded up to 16
  std::int8_t* slot;     // (planes): bytes of one slot
  std::uint64_t* over;   // (rows): slots of a block with excess
  std::size_t planes;
  std::uint8_t* bytes;   // (batch, rows, 64)
  std::int8_t* decoded;  // (batch, value_decoded, 64): components of a group, when many rows share them
  std::size_t size;
};

/// Query rows that share a look-up.
inline constexpr std::size_t most_value_rows = 4;
/// Components that are decoded together where more rows than that share them: looked up once into memory, multiplied
/// from there. Look-ups and dot products compete for the same ports, so that four rows at a time cost little less each
/// than one pass of dot products alone; see docs/performance.md for the crossing.
inline constexpr std::size_t value_decoded = 4;

inline value_scratch carve_value_scratch(const geometry& shape, std::size_t rows, void* memory) noexcept {
  auto* base = static_cast<std::byte*>(memory);
  value_scratch out{};
  const auto carve = [&](auto*& part, std::size_t count) noexcept {
    using number = std::remove_reference_t<decltype(*part)>;
    part = base == nullptr ? nullptr : reinterpret_cast<number*>(base + out.size);
    out.size += align_up(count * sizeof(number));
  };
  out.planes = align_up(std::size_t{shape.stages} * shape.dim, 16);
  carve(out.sums, out.planes * rows);
  carve(out.mass, rows);
  carve(out.steps, rows);
  carve(out.limits, rows);
  carve(out.left, 2 * rows);
  carve(out.carried, rows * slots);
  carve(out.excess, rows * out.planes);
  carve(out.slot, out.planes);
  carve(out.over, rows);
  carve(out.bytes, value_batch * rows * slots);
  carve(out.decoded, value_batch * value_decoded * slots);
  return out;
}

/// Blocks of a batch that are not skipped.
struct value_blocks {
  std::size_t index[value_batch];
  const std::uint8_t* codes[value_batch];
  std::size_t count = 0;
};

/// Loads the probabilities of one block and row; slots outside the run are 0 and not read.
template <class Isa>
PQATTN_ALWAYS_INLINE void load_probabilities(const float* row, const slot_run& run, std::size_t block,
                                             typename Isa::floats* out) noexcept {
  const std::ptrdiff_t begin = run.begin_in(block);
  const std::ptrdiff_t end = run.end_in(block);
  const float* at = row + run.offset_of(block);
  constexpr auto lanes = static_cast<std::ptrdiff_t>(Isa::lanes);
  constexpr auto count = static_cast<std::ptrdiff_t>(slots) / lanes;
  if (begin == 0 && end == static_cast<std::ptrdiff_t>(slots)) {
    PQATTN_X86_UNROLL
    for (std::ptrdiff_t i = 0; i < count; ++i) {
      out[i] = Isa::loadf(at + i * lanes);
    }
  } else {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
      out[i] = Isa::loadf_range(at + i * lanes, begin - i * lanes, end - i * lanes);
    }
  }
}

/// Sum of the numbers of a block's registers.
template <class Isa>
PQATTN_ALWAYS_INLINE float sum_registers(const typename Isa::floats* v) noexcept {
  typename Isa::floats total = v[0];
  PQATTN_X86_UNROLL
  for (std::size_t i = 1; i < slots / Isa::lanes; ++i) {
    total = Isa::addf(total, v[i]);
  }
  return Isa::sum(total);
}

/// Largest of the numbers of a block's registers.
template <class Isa>
PQATTN_ALWAYS_INLINE float largest_of_registers(const typename Isa::floats* v) noexcept {
  typename Isa::floats largest = v[0];
  PQATTN_X86_UNROLL
  for (std::size_t i = 1; i < slots / Isa::lanes; ++i) {
    largest = Isa::maxf(largest, v[i]);
  }
  return Isa::largest(largest);
}

/// Whether the block's mass is at most left[row] in every row; if so it is taken from there. `masses` has a float per
/// row.
template <class Isa>
inline bool negligible(const float* probabilities, std::size_t stride, std::size_t rows, const slot_run& run,
                       std::size_t block, float* left, float* masses) noexcept {
  for (std::size_t row = 0; row < rows; ++row) {
    typename Isa::floats p[slots / Isa::lanes];
    load_probabilities<Isa>(probabilities + row * stride, run, block, p);
    masses[row] = sum_registers<Isa>(p);
    if (!(masses[row] <= left[row])) {
      return false;
    }
  }
  for (std::size_t row = 0; row < rows; ++row) {
    left[row] -= masses[row];
  }
  return true;
}

/// Adds the mass and the energy of one row of a batch and keeps its largest probability.
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
    load_probabilities<Isa>(row, run, blocks.index[b], p);
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < registers; ++i) {
      sums[i] = Isa::addf(sums[i], p[i]);
      squares[i] = Isa::fma(p[i], p[i], squares[i]);
      largest[i] = Isa::maxf(largest[i], p[i]);
    }
  }
  mass += sum_registers<Isa>(sums);
  energy += sum_registers<Isa>(squares);
  const float most = largest_of_registers<Isa>(largest);
  peak = peak < most ? most : peak;
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

/// What a call starts from. Carried remainders are in (-1/2, 1/2), apart from each other in neighbouring slots, and add
/// up to 0.
inline void clear_sums(const value_scratch& scratch, std::size_t rows) noexcept {
  std::memset(scratch.sums, 0, scratch.planes * rows * sizeof(float));
  std::memset(scratch.excess, 0, scratch.planes * rows * sizeof(float));
  std::memset(scratch.slot, 0, scratch.planes);
  for (std::size_t i = 0; i < rows * slots; ++i) {
    scratch.carried[i] = (static_cast<float>(i * 39 % slots) + 0.5f) / static_cast<float>(slots) - 0.5f;
  }
}

/// Rounds the probabilities of Rows rows of a batch to multiples of their steps, at most byte_limit of them.
template <class Isa, std::size_t Rows>
PQATTN_NOINLINE void round_rows(const slot_run& run, const value_blocks& blocks, const float* probabilities,
                                std::size_t stride, const float* steps, float* carried_over, std::uint8_t* bytes,
                                std::size_t byte_stride) noexcept {
  using floats = typename Isa::floats;
  using ints = typename Isa::ints;
  constexpr std::size_t registers = slots / Isa::lanes;
  floats inverse[Rows];
  floats most[Rows];
  floats carried[Rows][registers];  // chains of their own, to hide the latency of four operations
  PQATTN_X86_UNROLL
  for (std::size_t row = 0; row < Rows; ++row) {
    inverse[row] = Isa::setf(inverse_step(steps[row]));
    most[row] = Isa::setf(byte_room<Isa> * steps[row]);
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < registers; ++i) {
      carried[row][i] = Isa::loadf(carried_over + row * slots + i * Isa::lanes);
    }
  }
  for (std::size_t b = 0; b < blocks.count; ++b, bytes += byte_stride) {
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      floats p[registers];
      ints rounded[registers];
      load_probabilities<Isa>(probabilities + row * stride, run, blocks.index[b], p);
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < registers; ++i) {
        const floats wanted = Isa::fma(Isa::minf(p[i], most[row]), inverse[row], carried[row][i]);
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

/// Bytes that the codes of one slot stand for.
template <unsigned Bits>
inline void look_up_slot(const geometry& shape, const byte_codebook& book, const std::uint8_t* codes, std::size_t slot,
                         std::int8_t* out) noexcept {
  for (group_walk group(shape); !group.done(); group.next(), codes += 8 * Bits) {
    const std::size_t code = pqattn::detail::get_code(reinterpret_cast<const std::byte*>(codes), Bits, slot);
    const std::int8_t* value = book.bytes + group.plane() * table_bytes(Bits) + code;
    for (std::size_t i = 0; i < group.width(); ++i) {
      out[group.plane() + i] = value[i * table_bytes(Bits)];
    }
  }
}

/// Slots of a block, a bit each, whose probability in one row is above `limit`.
template <class Isa>
inline std::uint64_t slots_above(const float* row, const slot_run& run, std::size_t block, float limit) noexcept {
  typename Isa::floats p[slots / Isa::lanes];
  load_probabilities<Isa>(row, run, block, p);
  if (!(largest_of_registers<Isa>(p) > limit)) {
    return 0;
  }
  std::uint64_t above = 0;
  const float* at = row + run.offset_of(block);
  for (std::ptrdiff_t slot = run.begin_in(block); slot < run.end_in(block); ++slot) {
    above |= static_cast<std::uint64_t>(at[slot] > limit) << slot;
  }
  return above;
}

/// Adds what probabilities of one block have above their rows' limits. A slot is looked up once for all rows.
template <class Isa, unsigned Bits>
inline void add_excess(const geometry& shape, const byte_codebook& book, const slot_run& run, std::size_t block,
                       const std::uint8_t* codes, const float* probabilities, std::size_t stride, std::size_t rows,
                       const value_scratch& scratch) noexcept {
  std::uint64_t any = 0;
  for (std::size_t row = 0; row < rows; ++row) {
    const float limit = scratch.limits[row];
    scratch.over[row] = limit < no_limit ? slots_above<Isa>(probabilities + row * stride, run, block, limit) : 0;
    any |= scratch.over[row];
  }
  for (; any != 0; any &= any - 1) {
    const int slot = std::countr_zero(any);
    look_up_slot<Bits>(shape, book, codes, static_cast<std::size_t>(slot), scratch.slot);
    for (std::size_t row = 0; row < rows; ++row) {
      if ((scratch.over[row] >> slot & 1u) == 0) {
        continue;
      }
      const float* at = probabilities + row * stride + run.offset_of(block);
      const typename Isa::floats excess = Isa::setf(at[slot] - scratch.limits[row]);
      float* sums = scratch.excess + row * scratch.planes;
      for (std::size_t i = 0; i < scratch.planes; i += Isa::lanes) {
        const auto bytes = Isa::to_floats(Isa::widen_signed_bytes(scratch.slot + i));
        Isa::storef(sums + i, Isa::fma(bytes, excess, Isa::loadf(sums + i)));
      }
    }
  }
}

/// Adds the integer sums of a batch to the f32 sums of Count components and Rows rows; `sums` has `rows` for a
/// component.
template <class Isa, std::size_t Count, std::size_t Rows>
PQATTN_ALWAYS_INLINE void add_batch(const typename Isa::ints (&sum)[Count][Rows], std::size_t rows,
                                    float* sums) noexcept {
  static_assert(Rows <= 4);
  constexpr std::size_t together = 4 / Rows;  // components that fill four lanes
  const auto register_of = [&](std::size_t number) PQATTN_X86_INLINE_LAMBDA {
    return number < Count * Rows ? sum[number / Rows][number % Rows] : Isa::zero();
  };
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Count; i += together) {
    const std::size_t first = i * Rows;
    const __m128 total = _mm_cvtepi32_ps(Isa::sums_of_four(register_of(first), register_of(first + 1),
                                                           register_of(first + 2), register_of(first + 3)));
    float* at = sums + i * rows;
    if (Count * Rows % 4 == 0 && (Rows == 4 || Rows == rows)) {  // four sums side by side
      _mm_storeu_ps(at, _mm_add_ps(total, _mm_loadu_ps(at)));
    } else {
      alignas(16) float totals[4];
      _mm_store_ps(totals, total);
      PQATTN_X86_UNROLL
      for (std::size_t j = 0; j < 4; ++j) {
        if (first + j < Count * Rows) {
          at[j / Rows * rows + j % Rows] += totals[j];
        }
      }
    }
  }
}

/// Sums of Count components of one group for Rows rows over `blocks` blocks. `load(block, part, use)` gives the
/// components of a part of a block.
template <class Isa, std::size_t Count, std::size_t Rows, class Load>
PQATTN_ALWAYS_INLINE void sum_blocks(std::size_t blocks, const std::uint8_t* bytes, std::size_t rows, float* sums,
                                     const Load& load) noexcept {
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
  add_batch<Isa, Count, Rows>(sum, rows, sums);
}

/// The codes of a group and part of a block. Those of the next group are fetched into the first-level cache meanwhile:
/// a whole batch would push out what is in use.
template <class Look, unsigned Bits>
PQATTN_ALWAYS_INLINE typename Look::codes load_codes(const std::uint8_t* group, std::size_t part) noexcept {
  if (part == 0) {
    fetch_lines<_MM_HINT_T0>(group + 8 * Bits, 8 * Bits);
  }
  return Look::load_codes(group, part);
}

/// By look-ups.
template <class Isa, unsigned Bits, std::size_t Count, std::size_t Rows>
PQATTN_NOINLINE void sum_components(const std::int8_t* tables, const value_blocks& blocks, std::size_t code_at,
                                    const std::uint8_t* bytes, std::size_t rows, float* sums) noexcept {
  using look = lookup<Isa, Bits>;
  typename look::table table[Count];
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Count; ++i) {
    table[i] = look::load_table(tables + i * table_bytes(Bits));
  }
  const auto load = [&](std::size_t block, std::size_t part, const auto& use) PQATTN_X86_INLINE_LAMBDA {
    const auto codes = load_codes<look, Bits>(blocks.codes[block] + code_at, part);
    const std::int8_t* here = look::in_memory ? not_hoisted(tables) : tables;
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Count; ++i) {
      use(i, look::look(look::in_memory ? look::load_table(here + i * table_bytes(Bits)) : table[i], codes));
    }
  };
  sum_blocks<Isa, Count, Rows>(blocks.count, bytes, rows, sums, load);
}

/// From decoded components.
template <class Isa, std::size_t Count, std::size_t Rows>
PQATTN_NOINLINE void sum_decoded(const std::int8_t* decoded, std::size_t blocks, const std::uint8_t* bytes,
                                 std::size_t rows, float* sums) noexcept {
  const auto load = [&](std::size_t block, std::size_t part, const auto& use) PQATTN_X86_INLINE_LAMBDA {
    const std::int8_t* at = decoded + block * value_decoded * slots + part * Isa::bytes;
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Count; ++i) {
      use(i, Isa::load(at + i * slots));
    }
  };
  sum_blocks<Isa, Count, Rows>(blocks, bytes, rows, sums, load);
}

/// Components of one group that share a look at its codes: as many as registers hold sums for.
template <class Isa, unsigned Bits, std::size_t Rows>
inline constexpr std::size_t components_at_once =
    Isa::bytes == 64 && (lookup<Isa, Bits>::in_memory || Bits <= 4 || (Bits <= 8 && Rows == 1)) ? 4 : 2;

/// Looks up Count components of all blocks of a batch.
template <class Isa, unsigned Bits, std::size_t Count>
PQATTN_NOINLINE void decode_components(const std::int8_t* tables, const value_blocks& blocks, std::size_t code_at,
                                       std::int8_t* decoded) noexcept {
  using look = lookup<Isa, Bits>;
  typename look::table table[Count];
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Count; ++i) {
    table[i] = look::load_table(tables + i * table_bytes(Bits));
  }
  for (std::size_t block = 0; block < blocks.count; ++block, decoded += value_decoded * slots) {
    PQATTN_X86_UNROLL
    for (std::size_t part = 0; part < parts<Isa>; ++part) {
      const auto codes = load_codes<look, Bits>(blocks.codes[block] + code_at, part);
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < Count; ++i) {
        Isa::store(decoded + i * slots + part * Isa::bytes, look::look(table[i], codes));
      }
    }
  }
}

/// All components of one group for all rows.
template <class Isa, unsigned Bits>
inline void sum_group(const std::int8_t* tables, std::size_t width, const value_blocks& blocks, std::size_t code_at,
                      std::size_t rows, const value_scratch& scratch, float* sums) noexcept {
  const auto tables_of = [&](std::size_t i) noexcept { return tables + i * table_bytes(Bits); };
  const auto sums_of = [&](std::size_t i, std::size_t row) noexcept { return sums + i * rows + row; };
  if (rows <= most_value_rows) {
    for_rows<most_value_rows>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
      for_rows<components_at_once<Isa, Bits, Rows>>(width, [&]<std::size_t Count>(std::size_t i) noexcept {
        sum_components<Isa, Bits, Count, Rows>(tables_of(i), blocks, code_at, scratch.bytes + row * slots, rows,
                                               sums_of(i, row));
      });
    });
    return;
  }
  constexpr std::size_t at_once = Isa::bytes == 64 ? value_decoded : 2;
  for_rows<at_once>(width, [&]<std::size_t Count>(std::size_t i) noexcept {
    decode_components<Isa, Bits, Count>(tables_of(i), blocks, code_at, scratch.decoded);
    for_rows<most_value_rows>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
      sum_decoded<Isa, Count, Rows>(scratch.decoded, blocks.count, scratch.bytes + row * slots, rows, sums_of(i, row));
    });
  });
}

/// Adds a batch of blocks to the sums. Meanwhile `next`, the blocks of the batch that follows, and then a share of
/// `later` for each group are fetched.
template <class Isa, unsigned Bits>
inline void sum_batch(const geometry& shape, const byte_codebook& book, const value_blocks& blocks,
                      const value_blocks& next, fetch_queue& later, const slot_run& run, const float* probabilities,
                      std::size_t stride, std::size_t rows, const value_scratch& scratch) noexcept {
  for_rows<Isa::bytes == 64 ? 4 : 1>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
    round_rows<Isa, Rows>(run, blocks, probabilities + row * stride, stride, scratch.steps + row,
                          scratch.carried + row * slots, scratch.bytes + row * slots, rows * slots);
  });
  for (std::size_t i = 0; i < blocks.count; ++i) {
    add_excess<Isa, Bits>(shape, book, run, blocks.index[i], blocks.codes[i], probabilities, stride, rows, scratch);
  }
  for (group_walk group(shape); !group.done(); group.next()) {
    const std::size_t code_at = std::size_t{group.group()} * 8 * Bits;
    for (std::size_t i = 0; i < next.count; ++i) {
      fetch_lines<_MM_HINT_T1>(next.codes[i] + code_at, 8 * Bits);
    }
    later.fetch_share();
    const std::int8_t* tables = book.bytes + group.plane() * table_bytes(Bits);
    float* sums = scratch.sums + group.plane() * rows;
    sum_group<Isa, Bits>(tables, group.width(), blocks, code_at, rows, scratch, sums);
  }
}

/// Adds the integer part's sums and the constant part to `out`.
inline void finish_values(const geometry& shape, const byte_codebook& book, std::size_t rows,
                          const value_scratch& scratch, float* out, std::size_t stride) noexcept {
  for (std::size_t row = 0; row < rows; ++row, out += stride) {
    const float* excess = scratch.excess + row * scratch.planes;
    std::size_t plane = 0;
    for (std::uint32_t stage = 0; stage < shape.stages; ++stage) {
      for (std::uint32_t position = 0; position < shape.dim; ++position, ++plane) {
        const float sum = __builtin_fmaf(scratch.steps[row], scratch.sums[plane * rows + row], excess[plane]);
        out[shape.channel(position)] += __builtin_fmaf(book.scale[plane], sum, book.offset[plane] * scratch.mass[row]);
      }
    }
  }
}

/// First pass over the probabilities: masses, steps and limits of the rows. Returns the number of blocks not skipped.
template <class Isa, class Collect>
inline std::size_t find_steps(const slot_run& run, const float* probabilities, std::size_t stride, std::size_t rows,
                              const value_scratch& scratch, const Collect& collect) noexcept {
  float* const energies = scratch.steps;  // until all of them are known
  float* const peaks = scratch.limits;
  for (float* numbers : {scratch.mass, energies, peaks}) {
    std::memset(numbers, 0, rows * sizeof(float));
  }
  std::size_t used = 0;
  value_blocks list;
  std::size_t block = run.first_block();
  for (collect(block, list, true); list.count != 0; collect(block, list, true)) {
    used += list.count;
    for (std::size_t row = 0; row < rows; ++row) {
      measure<Isa>(probabilities + row * stride, run, list, scratch.mass[row], energies[row], peaks[row]);
    }
  }
  for (std::size_t row = 0; row < rows; ++row) {
    // Squares of small numbers vanish: such a row gets steps of its largest probability.
    const float square = 6.0f * value_noise * energies[row] / static_cast<float>(used * slots + 1);  // of a step
    const float limit = energies[row] > 1e-30f ? byte_room<Isa> * std::sqrt(square) : no_limit;
    scratch.steps[row] = (peaks[row] < limit ? peaks[row] : limit) / byte_room<Isa>;
    scratch.limits[row] = peaks[row] <= limit ? no_limit : limit;
  }
  return used;
}

}  // namespace detail

/// Bytes of workspace for value_sum, aligned to 64.
template <class Isa>
[[nodiscard]] inline std::size_t value_scratch_bytes(const geometry& shape, std::size_t rows) noexcept {
  return detail::carve_value_scratch(shape, rows, nullptr).size;
}

/// out(row, channel) += sum over the run's slots of probabilities[row * stride + slot - run.first] * value.
/// Probabilities are at least 0. `skip_mass`: null, or per row a mass; blocks are left out, from the first on, while
/// their masses add up to at most that in every row, and counted in `skipped`. Any number of rows; look-ups are shared
/// by all. `next` is fetched meanwhile.
/// Returns false, and does nothing, when the code width has no look-up in registers (above widest_code<Isa>).
template <class Isa>
inline bool value_sum(const geometry& shape, const byte_codebook& book, const slot_run& run,
                      const float* probabilities, std::size_t stride, std::size_t rows, const float* skip_mass,
                      float* out, std::size_t out_stride, std::size_t& skipped, void* workspace,
                      fetch_queue next = {}) noexcept {
  return with_code_bits<Isa>(shape.code_bits(), [&]<unsigned Bits>() noexcept {
    const auto scratch = detail::carve_value_scratch(shape, rows, workspace);
    const std::size_t end = run.end_block();
    // Blocks that might be skipped are not fetched before this call, but as soon as the first pass finds them needed.
    const auto collect = [&](std::size_t& block, detail::value_blocks& list, bool first_pass) noexcept {
      list.count = 0;
      if (block == run.first_block() && skip_mass != nullptr) {
        std::memcpy(scratch.left, skip_mass, rows * sizeof(float));
      }
      for (; block < end && list.count < value_batch; ++block) {
        if (skip_mass == nullptr || !detail::negligible<Isa>(probabilities, stride, rows, run, block, scratch.left,
                                                             scratch.left + rows)) {
          list.index[list.count] = block;
          list.codes[list.count++] = run.block(block);
          if (first_pass && skip_mass != nullptr) {
            fetch_lines<_MM_HINT_T1>(run.block(block), run.block_bytes);
          }
        }
      }
    };
    const std::size_t used = detail::find_steps<Isa>(run, probabilities, stride, rows, scratch, collect);
    skipped += end - run.first_block() - used;
    next.share_among((used + value_batch - 1) / value_batch * shape.groups());
    detail::clear_sums(scratch, rows);
    detail::value_blocks lists[2];
    std::size_t block = run.first_block();
    collect(block, lists[0], false);
    for (std::size_t turn = 0; lists[turn].count != 0; turn = 1 - turn) {
      collect(block, lists[1 - turn], false);
      detail::sum_batch<Isa, Bits>(shape, book, lists[turn], lists[1 - turn], next, run, probabilities, stride, rows,
                                   scratch);
    }
    detail::finish_values(shape, book, rows, scratch, out, out_stride);
  });
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
