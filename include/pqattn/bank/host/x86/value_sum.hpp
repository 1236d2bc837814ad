// SPDX-License-Identifier: MIT
// Weighted sums of coded values: out(row, channel) += sum over slots of probability(row, slot) * value(slot, channel).
//
// Per component: 64 bytes are looked up once, in registers for up to four rows, into memory for more, and multiplied with
// probabilities rounded to bytes, four slots at a time. Sums of a set of blocks are exact integers, then scaled to f32.
//
// Rounding of probabilities: each row has one step per set of blocks, their largest probability divided by byte_limit,
// and what rounding leaves over is carried to the slot one block further, so that small probabilities are merged with
// others instead of lost. That noise has a variance of at most step^2 / 6 per slot. Sets have 16 blocks, or 8 or 4 where
// a row's noise over the whole call would exceed value_noise times its energy (sum of p^2). Where it still does, the sets
// with more than an even share of that bound get 16-bit probabilities (14 bits without VNNI), as a second set of low
// digits: few sets when attention is peaked, none when it is flat. So the noise stays below value_noise of the energy,
// which is its share of the squared output when values are independent with mean 0, and less when they have something in
// common. The constant parts of the codebook (its offsets) use exact sums.
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

/// Blocks that share a step of the probabilities, and blocks handled together so that tables are loaded once.
inline constexpr std::size_t value_set = 4;
inline constexpr std::size_t value_batch = 16;

/// Bound on the noise of rounded probabilities, see above.
inline constexpr float value_noise = 3e-4f;

namespace detail {

/// Workspace of value_sum.
struct value_scratch {
  float* sums;           // (stages * dim, rows)
  float* mass;           // (rows): sums of the probabilities used
  float* noise;          // (rows): what one set may add, huge when bytes will do everywhere
  float* left;           // (2, rows): mass that may still be skipped; of one block
  float* energies;       // (rows): sums of the squared probabilities
  float* steps;          // (sets of a batch, rows)
  std::uint8_t* bytes;   // (2 * batch, rows, 64)
  std::int8_t* decoded;  // (batch, value_decoded, 64): components of a group, when many rows share them
  std::size_t size;
  std::size_t set = value_set;  // blocks that share a step
};

/// Query rows that share a look-up.
inline constexpr std::size_t most_value_rows = 4;
/// Components that are decoded together where more rows than that share them: looked up once into memory, multiplied from
/// there. Look-ups and dot products compete for the same ports, so that four rows at a time cost little less each than
/// one pass of dot products alone; see docs/performance.md for the crossing.
inline constexpr std::size_t value_decoded = 4;

template <class Isa>
inline value_scratch carve_value_scratch(const geometry& shape, std::size_t rows, void* memory) noexcept {
  const std::size_t sums = std::size_t{shape.stages} * shape.dim * rows * sizeof(float);
  const std::size_t mass = align_up(rows * sizeof(float));
  const std::size_t noise = align_up(rows * sizeof(float));
  const std::size_t steps = align_up(2 * value_batch / value_set * rows * sizeof(float));
  auto* base = static_cast<std::byte*>(memory);
  value_scratch out{};
  const std::size_t bytes = 2 * value_batch * rows * slots;
  out.size = align_up(sums) + mass + 4 * noise + steps + bytes + value_batch * value_decoded * slots;
  if (base != nullptr) {
    out.sums = reinterpret_cast<float*>(base);
    base += align_up(sums);
    out.mass = reinterpret_cast<float*>(base);
    out.noise = reinterpret_cast<float*>(base + mass);
    out.left = reinterpret_cast<float*>(base + mass + noise);
    out.energies = reinterpret_cast<float*>(base + mass + 3 * noise);
    out.steps = reinterpret_cast<float*>(base + mass + 4 * noise);
    out.bytes = reinterpret_cast<std::uint8_t*>(base + mass + 4 * noise + steps);
    out.decoded = reinterpret_cast<std::int8_t*>(out.bytes + bytes);
  }
  return out;
}

/// Blocks of a batch that are not skipped.
struct value_blocks {
  std::size_t index[value_batch];
  const std::uint8_t* codes[value_batch];
  std::size_t count = 0;
};

/// What the kernel runs over: set s is blocks [end[s], end[s + 1]) with bytes of probabilities.
struct value_sets {
  const std::uint8_t* codes[2 * value_batch];
  std::uint8_t block[2 * value_batch];  ///< its number in the batch
  std::size_t end[2 * value_batch / value_set + 1] = {};
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

/// Whether the block's mass is at most left[row] in every row; if so it is taken from there. `masses` has a float per row.
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

/// Largest probability of one row in a set. With Sums: adds its sums to `mass`, its squares to `energy`, in chains of their
/// own for each register of a block.
template <class Isa, bool Sums>
PQATTN_ALWAYS_INLINE float set_peak(const float* row, const slot_run& run, const std::size_t* blocks, std::size_t count,
                                    typename Isa::floats* mass, typename Isa::floats* energy) noexcept {
  using floats = typename Isa::floats;
  constexpr std::size_t registers = slots / Isa::lanes;
  floats largest[registers];
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < registers; ++i) {
    largest[i] = Isa::setf(0.0f);
  }
  for (std::size_t b = 0; b < count; ++b) {
    floats p[registers];
    load_probabilities<Isa>(row, run, blocks[b], p);
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < registers; ++i) {
      largest[i] = Isa::maxf(largest[i], p[i]);
      if constexpr (Sums) {
        mass[i] = Isa::addf(mass[i], p[i]);
        energy[i] = Isa::fma(p[i], p[i], energy[i]);
      }
    }
  }
  PQATTN_X86_UNROLL
  for (std::size_t i = 1; i < registers; ++i) {
    largest[0] = Isa::maxf(largest[0], largest[i]);
  }
  return Isa::largest(largest[0]);
}

/// Variance that rounding to bytes adds to a set of `blocks` blocks, over the variance of one value.
template <class Isa>
PQATTN_ALWAYS_INLINE float set_noise(float peak, std::size_t blocks) noexcept {
  const float step = peak / (Isa::byte_limit - 0.5f);
  return step * step * static_cast<float>(blocks * slots) / 6.0f;
}

/// Rounds the probabilities of Rows rows of a set to multiples of 1 / inverse[row]. With Two: to two digits of
/// byte_limit + 1 each, the low ones into `low`; else to bytes.
template <class Isa, std::size_t Rows, bool Two>
inline void round_set(const float* probabilities, std::size_t stride, const slot_run& run, const std::size_t* blocks,
                      std::size_t count, const float* inverse, std::uint8_t* bytes, std::uint8_t* low,
                      std::size_t byte_stride) noexcept {
  using floats = typename Isa::floats;
  using ints = typename Isa::ints;
  constexpr std::size_t registers = slots / Isa::lanes;
  constexpr int digit = Isa::byte_limit > 128.0f ? 8 : 7;
  floats carried[Rows][registers];  // chains of their own, to hide the latency of four operations
  PQATTN_X86_UNROLL
  for (std::size_t row = 0; row < Rows; ++row) {
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < registers; ++i) {
      carried[row][i] = Isa::setf(0.0f);
    }
  }
  for (std::size_t b = 0; b < count; ++b) {
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      floats p[registers];
      ints rounded[registers];
      load_probabilities<Isa>(probabilities + row * stride, run, blocks[b], p);
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < registers; ++i) {
        const floats wanted = Isa::fma(p[i], Isa::setf(inverse[row]), carried[row][i]);
        rounded[i] = Isa::to_ints(wanted);
        carried[row][i] = Isa::subf(wanted, Isa::to_floats(rounded[i]));
      }
      const std::size_t at = b * byte_stride + row * slots;
      if constexpr (Two) {
        ints digits[registers];
        PQATTN_X86_UNROLL
        for (std::size_t i = 0; i < registers; ++i) {
          digits[i] = Isa::and_(rounded[i], Isa::set32((1 << digit) - 1));
          rounded[i] = Isa::template right16<digit>(rounded[i]);  // below 2^16, so the upper half is 0
        }
        PQATTN_X86_UNROLL
        for (std::size_t i = 0; i < registers; i += 4) {
          Isa::store_bytes(low + at + i * Isa::lanes, digits[i], digits[i + 1], digits[i + 2], digits[i + 3]);
        }
      }
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < registers; i += 4) {
        Isa::store_bytes(bytes + at + i * Isa::lanes, rounded[i], rounded[i + 1], rounded[i + 2], rounded[i + 3]);
      }
    }
  }
}

/// Appends blocks [first, first + count) of a batch as one set; as a second one with low digits if any row needs them.
template <class Isa>
inline void append_set(const slot_run& run, const value_blocks& blocks, std::size_t first, std::size_t count,
                       const float* probabilities, std::size_t stride, std::size_t rows, const value_scratch& scratch,
                       value_sets& sets) noexcept {
  constexpr float limit = Isa::byte_limit - 0.5f;  // room for what is carried over
  constexpr float radix = Isa::byte_limit + 1.0f;
  float* high_steps = scratch.steps + sets.count * rows;
  float* low_steps = high_steps + rows;
  bool any_low = false;
  for (std::size_t row = 0; row < rows; ++row) {
    const float peak = set_peak<Isa, false>(probabilities + row * stride, run, blocks.index + first, count, nullptr, nullptr);
    const bool fine = set_noise<Isa>(peak, count) <= scratch.noise[row];
    high_steps[row] = peak / limit;
    low_steps[row] = fine ? 0.0f : peak / (limit * radix);
    any_low = any_low || !fine;
  }
  std::uint8_t* bytes = scratch.bytes + sets.end[sets.count] * rows * slots;
  std::uint8_t* low = bytes + count * rows * slots;
  // A step so small that its inverse overflows contributes nothing.
  const auto inverse_of = [](float step) { return step > 1e-36f ? 1.0f / step : 0.0f; };
  if (!any_low) {
    for_rows<most_value_rows>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
      float inverse[Rows];
      for (std::size_t i = 0; i < Rows; ++i) {
        inverse[i] = inverse_of(high_steps[row + i]);
      }
      round_set<Isa, Rows, false>(probabilities + row * stride, stride, run, blocks.index + first, count, inverse,
                                  bytes + row * slots, nullptr, rows * slots);
    });
  }
  for (std::size_t row = 0; any_low && row < rows; ++row) {
    const bool two = low_steps[row] != 0.0f;
    const float inverse = inverse_of(two ? low_steps[row] : high_steps[row]);
    const auto round = [&]<bool Two>() noexcept {
      round_set<Isa, 1, Two>(probabilities + row * stride, stride, run, blocks.index + first, count, &inverse,
                             bytes + row * slots, low + row * slots, rows * slots);
    };
    if (two) {
      high_steps[row] = low_steps[row] * radix;
      round.template operator()<true>();
    } else {
      for (std::size_t b = 0; b < count; ++b) {
        std::memset(low + (b * rows + row) * slots, 0, slots);
      }
      round.template operator()<false>();
    }
  }
  for (std::size_t copy = 0; copy < (any_low ? 2u : 1u); ++copy) {
    const std::size_t at = sets.end[sets.count];
    for (std::size_t b = 0; b < count; ++b) {
      sets.codes[at + b] = blocks.codes[first + b];
      sets.block[at + b] = static_cast<std::uint8_t>(first + b);
    }
    sets.end[++sets.count] = at + count;
  }
}

/// Adds the integer sums of one set to the f32 sums of Count components and Rows rows; `sums` has `rows` for a component.
template <class Isa, std::size_t Count, std::size_t Rows>
PQATTN_ALWAYS_INLINE void add_set(const typename Isa::ints (&sum)[Count][Rows], std::size_t rows, const float* steps,
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
    if (Rows == 4 || (Rows == 1 && rows == 1 && Count % 4 == 0)) {  // four sums side by side
      const __m128 step = Rows == 4 ? _mm_loadu_ps(steps) : _mm_set1_ps(steps[0]);
      _mm_storeu_ps(at, _mm_fmadd_ps(total, step, _mm_loadu_ps(at)));
    } else {
      alignas(16) float totals[4];
      _mm_store_ps(totals, total);
      PQATTN_X86_UNROLL
      for (std::size_t j = 0; j < 4; ++j) {
        if (first + j < Count * Rows) {
          float& place = at[j / Rows * rows + j % Rows];
          place = __builtin_fmaf(totals[j], steps[j % Rows], place);
        }
      }
    }
  }
}

/// Sums of Count components of one group for Rows rows over the sets of a batch. `load(block, part, value)` gives the
/// components of a part of a block: numbered as in `sets`.
template <class Isa, std::size_t Count, std::size_t Rows, class Load>
PQATTN_ALWAYS_INLINE void sum_sets(const value_sets& sets, const std::uint8_t* bytes, std::size_t rows,
                                   const float* steps, float* sums, const Load& load) noexcept {
  using ints = typename Isa::ints;
  for (std::size_t set = 0; set < sets.count; ++set, steps += rows) {
    ints sum[Count][Rows];
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Count; ++i) {
      PQATTN_X86_UNROLL
      for (std::size_t row = 0; row < Rows; ++row) {
        sum[i][row] = Isa::zero();
      }
    }
    for (std::size_t block = sets.end[set]; block < sets.end[set + 1]; ++block) {
      PQATTN_X86_UNROLL
      for (std::size_t part = 0; part < parts<Isa>; ++part) {
        const std::uint8_t* weights = bytes + block * rows * slots + part * Isa::bytes;
        ints weight[Rows];
        PQATTN_X86_UNROLL
        for (std::size_t row = 0; row < Rows; ++row) {
          weight[row] = Isa::load(weights + row * slots);
          keep_in_register(weight[row]);
        }
        load(block, part, [&](std::size_t i, ints value) PQATTN_X86_INLINE_LAMBDA {
          PQATTN_X86_UNROLL
          for (std::size_t row = 0; row < Rows; ++row) {
            sum[i][row] = Isa::dot_bytes(sum[i][row], weight[row], value);
          }
        });
      }
    }
    add_set<Isa, Count, Rows>(sum, rows, steps, sums);
  }
}

/// By look-ups.
template <class Isa, unsigned Bits, std::size_t Count, std::size_t Rows>
inline void sum_components(const std::int8_t* tables, const value_sets& sets, std::size_t code_at,
                           const std::uint8_t* bytes, std::size_t rows, const float* steps, float* sums) noexcept {
  using look = lookup<Isa, Bits>;
  typename look::table table[Count];
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Count; ++i) {
    table[i] = look::load_table(tables + i * table_bytes(Bits));
  }
  const auto load = [&](std::size_t block, std::size_t part, const auto& use) PQATTN_X86_INLINE_LAMBDA {
    const auto codes = look::load_codes(sets.codes[block] + code_at, part);
    const std::int8_t* here = look::in_memory ? not_hoisted(tables) : tables;
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Count; ++i) {
      use(i, look::look(look::in_memory ? look::load_table(here + i * table_bytes(Bits)) : table[i], codes));
    }
  };
  sum_sets<Isa, Count, Rows>(sets, bytes, rows, steps, sums, load);
}

/// From decoded components.
template <class Isa, std::size_t Count, std::size_t Rows>
inline void sum_decoded(const std::int8_t* decoded, const value_sets& sets, const std::uint8_t* bytes,
                        std::size_t rows, const float* steps, float* sums) noexcept {
  const auto load = [&](std::size_t block, std::size_t part, const auto& use) PQATTN_X86_INLINE_LAMBDA {
    const std::int8_t* at = decoded + sets.block[block] * value_decoded * slots + part * Isa::bytes;
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Count; ++i) {
      use(i, Isa::load(at + i * slots));
    }
  };
  sum_sets<Isa, Count, Rows>(sets, bytes, rows, steps, sums, load);
}

/// Components of one group that share a look at its codes: as many as registers hold sums for.
template <class Isa, unsigned Bits, std::size_t Rows>
inline constexpr std::size_t components_at_once =
    Isa::bytes == 64 && (lookup<Isa, Bits>::in_memory || Bits <= 4 || (Bits <= 8 && Rows == 1)) ? 4 : 2;

/// Looks up Count components of all blocks of a batch.
template <class Isa, unsigned Bits, std::size_t Count>
inline void decode_components(const std::int8_t* tables, const value_blocks& blocks, std::size_t code_at,
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
      const auto codes = look::load_codes(blocks.codes[block] + code_at, part);
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < Count; ++i) {
        Isa::store(decoded + i * slots + part * Isa::bytes, look::look(table[i], codes));
      }
    }
  }
}

/// All components of one group for all rows.
template <class Isa, unsigned Bits>
inline void sum_group(const std::int8_t* tables, std::size_t width, const value_blocks& blocks, const value_sets& sets,
                      std::size_t code_at, std::size_t rows, const value_scratch& scratch, float* sums) noexcept {
  const auto tables_of = [&](std::size_t i) noexcept { return tables + i * table_bytes(Bits); };
  const auto sums_of = [&](std::size_t i, std::size_t row) noexcept { return sums + i * rows + row; };
  if (rows <= most_value_rows) {
    for_rows<most_value_rows>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
      for_rows<components_at_once<Isa, Bits, Rows>>(width, [&]<std::size_t Count>(std::size_t i) noexcept {
        sum_components<Isa, Bits, Count, Rows>(tables_of(i), sets, code_at, scratch.bytes + row * slots, rows,
                                               scratch.steps + row, sums_of(i, row));
      });
    });
    return;
  }
  constexpr std::size_t at_once = Isa::bytes == 64 ? value_decoded : 2;
  for_rows<at_once>(width, [&]<std::size_t Count>(std::size_t i) noexcept {
    decode_components<Isa, Bits, Count>(tables_of(i), blocks, code_at, scratch.decoded);
    for_rows<most_value_rows>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
      sum_decoded<Isa, Count, Rows>(scratch.decoded, sets, scratch.bytes + row * slots, rows, scratch.steps + row,
                                    sums_of(i, row));
    });
  });
}

/// Adds a batch of blocks to the sums. Meanwhile `next`, the blocks of the batch that follows, and then a share of `later`
/// for each group are fetched.
template <class Isa, unsigned Bits>
inline void sum_batch(const geometry& shape, const byte_codebook& book, const value_blocks& blocks,
                      const value_blocks& next, fetch_queue& later, const slot_run& run, const float* probabilities,
                      std::size_t stride, std::size_t rows, const value_scratch& scratch) noexcept {
  value_sets sets;
  const std::size_t step = scratch.set;
  for (std::size_t first = 0; first < blocks.count; first += step) {
    append_set<Isa>(run, blocks, first, blocks.count - first < step ? blocks.count - first : step, probabilities,
                    stride, rows, scratch, sets);
  }
  for (group_walk group(shape); !group.done(); group.next()) {
    const std::size_t code_at = std::size_t{group.group()} * 8 * Bits;
    // From memory a batch ahead, into the first-level cache a group ahead: a whole batch would push out what is in use.
    for (std::size_t i = 0; i < next.count; ++i) {
      fetch_lines<_MM_HINT_T1>(next.codes[i] + code_at, 8 * Bits);
    }
    later.fetch_share();
    for (std::size_t i = 0; i < blocks.count; ++i) {
      fetch_lines<_MM_HINT_T0>(blocks.codes[i] + code_at + 8 * Bits, 8 * Bits);
    }
    const std::int8_t* tables = book.bytes + group.plane() * table_bytes(Bits);
    float* sums = scratch.sums + group.plane() * rows;
    sum_group<Isa, Bits>(tables, group.width(), blocks, sets, code_at, rows, scratch, sums);
  }
}

/// Adds the integer part's sums and the constant part to `out`.
inline void finish_values(const geometry& shape, const byte_codebook& book, std::size_t rows,
                          const value_scratch& scratch, float* out, std::size_t stride) noexcept {
  for (std::size_t row = 0; row < rows; ++row, out += stride) {
    for (std::size_t plane = 0; plane < std::size_t{shape.stages} * shape.dim; ++plane) {
      const float sum = scratch.sums[plane * rows + row];
      out[shape.channel(static_cast<std::uint32_t>(plane % shape.dim))] +=
          __builtin_fmaf(book.scale[plane], sum, book.offset[plane] * scratch.mass[row]);
    }
  }
}

/// First pass over the probabilities: masses, how many blocks may share a step, and, where sets of value_set blocks are
/// too long for a row, how much noise one of them may get. Returns the number of blocks not skipped.
template <class Isa, class Collect>
inline std::size_t find_noise(const slot_run& run, const float* probabilities, std::size_t stride, std::size_t rows,
                              value_scratch& scratch, const Collect& collect) noexcept {
  constexpr std::size_t sizes = 3;  // of sets: value_set, twice that, four times
  static_assert(value_batch == value_set << (sizes - 1));
  float* const noise[sizes] = {scratch.noise, scratch.steps, scratch.steps + rows};  // steps are not used yet
  for (float* of_size : noise) {
    std::memset(of_size, 0, rows * sizeof(float));
  }
  std::memset(scratch.mass, 0, rows * sizeof(float));
  std::memset(scratch.energies, 0, rows * sizeof(float));
  std::size_t blocks = 0;
  value_blocks list;
  std::size_t block = run.first_block();
  for (collect(block, list); list.count != 0; collect(block, list)) {
    blocks += list.count;
    for (std::size_t row = 0; row < rows; ++row) {
      typename Isa::floats mass[slots / Isa::lanes];
      typename Isa::floats energy[slots / Isa::lanes];
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < slots / Isa::lanes; ++i) {
        mass[i] = energy[i] = Isa::setf(0.0f);
      }
      float peaks[value_batch / value_set] = {};
      for (std::size_t first = 0; first < list.count; first += value_set) {
        const std::size_t count = list.count - first < value_set ? list.count - first : value_set;
        peaks[first / value_set] =
            set_peak<Isa, true>(probabilities + row * stride, run, list.index + first, count, mass, energy);
      }
      for (std::size_t size = 0; size < sizes; ++size) {
        const std::size_t sets = std::size_t{1} << size;
        for (std::size_t first = 0; first * value_set < list.count; first += sets) {
          const std::size_t left = list.count - first * value_set;
          for (std::size_t i = first + 1; i < first + sets; ++i) {
            peaks[first] = peaks[first] < peaks[i] ? peaks[i] : peaks[first];
          }
          noise[size][row] += set_noise<Isa>(peaks[first], left < sets * value_set ? left : sets * value_set);
        }
      }
      scratch.mass[row] += sum_registers<Isa>(mass);
      scratch.energies[row] += sum_registers<Isa>(energy);
    }
  }
  scratch.set = value_batch;
  for (std::size_t row = 0; row < rows; ++row) {
    const float bound = value_noise * scratch.energies[row];
    while (scratch.set > value_set && noise[scratch.set / (2 * value_set)][row] > bound) {
      scratch.set /= 2;
    }
    const float share = bound * value_set / static_cast<float>(blocks + value_set);
    noise[0][row] = noise[0][row] <= bound ? 3.0e38f : share;
  }
  return blocks;
}

}  // namespace detail

/// Bytes of workspace for value_sum, aligned to 64.
template <class Isa>
[[nodiscard]] inline std::size_t value_scratch_bytes(const geometry& shape, std::size_t rows) noexcept {
  return detail::carve_value_scratch<Isa>(shape, rows, nullptr).size;
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
    auto scratch = detail::carve_value_scratch<Isa>(shape, rows, workspace);
    const std::size_t end = run.end_block();
    const auto collect = [&](std::size_t& block, detail::value_blocks& list) noexcept {
      list.count = 0;
      if (block == run.first_block() && skip_mass != nullptr) {
        std::memcpy(scratch.left, skip_mass, rows * sizeof(float));
      }
      for (; block < end && list.count < value_batch; ++block) {
        if (skip_mass == nullptr || !detail::negligible<Isa>(probabilities, stride, rows, run, block, scratch.left,
                                                             scratch.left + rows)) {
          list.index[list.count] = block;
          list.codes[list.count++] = run.block(block);
        }
      }
    };
    const std::size_t used = detail::find_noise<Isa>(run, probabilities, stride, rows, scratch, collect);
    skipped += end - run.first_block() - used;
    next.share_among((used + value_batch - 1) / value_batch * shape.groups());
    std::memset(scratch.sums, 0, std::size_t{shape.stages} * shape.dim * rows * sizeof(float));
    detail::value_blocks lists[2];
    std::size_t block = run.first_block();
    collect(block, lists[0]);
    for (std::size_t turn = 0; lists[turn].count != 0; turn = 1 - turn) {
      collect(block, lists[1 - turn]);
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
