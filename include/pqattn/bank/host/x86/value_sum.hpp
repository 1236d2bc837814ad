// SPDX-License-Identifier: MIT
// Weighted sums of coded values: out(row, channel) += sum over slots of probability(row, slot) * value(slot, channel).
//
// Per component: the bytes of 64 slots are looked up once for up to eight rows and multiplied with probabilities rounded
// to bytes, four neighbouring slots at a time. Sums of a set of blocks are integers and exact; then they are scaled to f32.
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
  float* sums;           // (stages * dim, rows, lanes)
  float* mass;           // (rows, lanes): sums of the probabilities used
  float* noise;          // (rows): what one set may add, huge when bytes will do everywhere
  float* left;           // (2, rows): mass that may still be skipped; of one block
  float* steps;          // (sets of a batch, rows)
  std::uint8_t* bytes;   // (2 * batch, rows, 64)
  std::size_t size;
  std::size_t set = value_set;  // blocks that share a step
};

/// Query rows that share a look-up.
template <class Isa>
inline constexpr std::size_t most_value_rows = Isa::bytes == 64 ? 8 : 4;

template <class Isa>
inline value_scratch carve_value_scratch(const geometry& shape, std::size_t rows, void* memory) noexcept {
  const std::size_t sums = std::size_t{shape.stages} * shape.dim * rows * Isa::lanes * sizeof(float);
  const std::size_t mass = align_up(rows * Isa::lanes * sizeof(float));
  const std::size_t noise = align_up(rows * sizeof(float));
  const std::size_t steps = align_up(2 * value_batch / value_set * rows * sizeof(float));
  auto* base = static_cast<std::byte*>(memory);
  value_scratch out{};
  out.size = align_up(sums) + mass + 3 * noise + steps + 2 * value_batch * rows * slots;
  if (base != nullptr) {
    out.sums = reinterpret_cast<float*>(base);
    base += align_up(sums);
    out.mass = reinterpret_cast<float*>(base);
    out.noise = reinterpret_cast<float*>(base + mass);
    out.left = reinterpret_cast<float*>(base + mass + noise);
    out.steps = reinterpret_cast<float*>(base + mass + 3 * noise);
    out.bytes = reinterpret_cast<std::uint8_t*>(base + mass + 3 * noise + steps);
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

/// Whether the block's mass is at most left[row] in every row; if so it is taken from there. `masses` has a float per row.
template <class Isa>
inline bool negligible(const float* probabilities, std::size_t stride, std::size_t rows, const slot_run& run,
                       std::size_t block, float* left, float* masses) noexcept {
  for (std::size_t row = 0; row < rows; ++row) {
    typename Isa::floats p[slots / Isa::lanes];
    load_probabilities<Isa>(probabilities + row * stride, run, block, p);
    typename Isa::floats total = p[0];
    PQATTN_X86_UNROLL
    for (std::size_t i = 1; i < slots / Isa::lanes; ++i) {
      total = Isa::addf(total, p[i]);
    }
    masses[row] = Isa::sum(total);
    if (!(masses[row] <= left[row])) {
      return false;
    }
  }
  for (std::size_t row = 0; row < rows; ++row) {
    left[row] -= masses[row];
  }
  return true;
}

/// Largest probability of one row in a set. With Sums: adds its sums lane by lane to `mass`, its squares to `energy`.
template <class Isa, bool Sums>
PQATTN_ALWAYS_INLINE float set_peak(const float* row, const slot_run& run, const std::size_t* blocks,
                                    std::size_t count, typename Isa::floats& mass,
                                    typename Isa::floats& energy) noexcept {
  using floats = typename Isa::floats;
  constexpr std::size_t registers = slots / Isa::lanes;
  floats largest = Isa::setf(0.0f);
  for (std::size_t b = 0; b < count; ++b) {
    floats p[registers];
    load_probabilities<Isa>(row, run, blocks[b], p);
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < registers; ++i) {
      largest = Isa::maxf(largest, p[i]);
      if constexpr (Sums) {
        mass = Isa::addf(mass, p[i]);
        energy = Isa::fma(p[i], p[i], energy);
      }
    }
  }
  return Isa::largest(largest);
}

/// Variance that rounding to bytes adds to a set of `blocks` blocks, over the variance of one value.
template <class Isa>
PQATTN_ALWAYS_INLINE float set_noise(float peak, std::size_t blocks) noexcept {
  const float step = peak / (Isa::byte_limit - 0.5f);
  return step * step * static_cast<float>(blocks * slots) / 6.0f;
}

/// Rounds one row's probabilities of a set to multiples of 1 / inverse. `low` null: to bytes; else to two digits of
/// byte_limit + 1 each.
template <class Isa>
inline void round_set(const float* row, const slot_run& run, const std::size_t* blocks, std::size_t count,
                      float inverse, std::uint8_t* bytes, std::uint8_t* low, std::size_t byte_stride) noexcept {
  using floats = typename Isa::floats;
  using ints = typename Isa::ints;
  constexpr std::size_t registers = slots / Isa::lanes;
  constexpr int digit = Isa::byte_limit > 128.0f ? 8 : 7;
  floats carried[registers];  // a chain for each register of a block, to hide the latency of four operations
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < registers; ++i) {
    carried[i] = Isa::setf(0.0f);
  }
  for (std::size_t b = 0; b < count; ++b) {
    floats p[registers];
    ints rounded[registers];
    load_probabilities<Isa>(row, run, blocks[b], p);
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < registers; ++i) {
      const floats wanted = Isa::fma(p[i], Isa::setf(inverse), carried[i]);
      rounded[i] = Isa::to_ints(wanted);
      carried[i] = Isa::subf(wanted, Isa::to_floats(rounded[i]));
    }
    if (low != nullptr) {
      ints digits[registers];
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < registers; ++i) {
        digits[i] = Isa::and_(rounded[i], Isa::set32((1 << digit) - 1));
        rounded[i] = Isa::template right16<digit>(rounded[i]);  // below 2^16, so the upper half is 0
      }
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < registers; i += 4) {
        Isa::store_bytes(low + b * byte_stride + i * Isa::lanes, digits[i], digits[i + 1], digits[i + 2],
                         digits[i + 3]);
      }
    }
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < registers; i += 4) {
      Isa::store_bytes(bytes + b * byte_stride + i * Isa::lanes, rounded[i], rounded[i + 1], rounded[i + 2],
                       rounded[i + 3]);
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
    auto unused = Isa::setf(0.0f);
    const float peak =
        set_peak<Isa, false>(probabilities + row * stride, run, blocks.index + first, count, unused, unused);
    const bool fine = set_noise<Isa>(peak, count) <= scratch.noise[row];
    high_steps[row] = peak / limit;
    low_steps[row] = fine ? 0.0f : peak / (limit * radix);
    any_low = any_low || !fine;
  }
  std::uint8_t* bytes = scratch.bytes + sets.end[sets.count] * rows * slots;
  std::uint8_t* low = bytes + count * rows * slots;
  for (std::size_t row = 0; row < rows; ++row) {
    const bool two = low_steps[row] != 0.0f;
    const float step = two ? low_steps[row] : high_steps[row];
    if (two) {
      high_steps[row] = step * radix;
    } else if (any_low) {
      for (std::size_t b = 0; b < count; ++b) {
        std::memset(low + (b * rows + row) * slots, 0, slots);
      }
    }
    // A step so small that its inverse overflows contributes nothing.
    round_set<Isa>(probabilities + row * stride, run, blocks.index + first, count, step > 1e-36f ? 1.0f / step : 0.0f,
                   bytes + row * slots, two ? low + row * slots : nullptr, rows * slots);
  }
  for (std::size_t copy = 0; copy < (any_low ? 2u : 1u); ++copy) {
    const std::size_t at = sets.end[sets.count];
    for (std::size_t b = 0; b < count; ++b) {
      sets.codes[at + b] = blocks.codes[first + b];
    }
    sets.end[++sets.count] = at + count;
  }
}

/// Sums of Count components of one group for Rows rows over the sets of a batch.
template <class Isa, unsigned Bits, std::size_t Count, std::size_t Rows>
inline void sum_components(const std::int8_t* tables, const value_sets& sets, std::size_t code_at,
                           const std::uint8_t* bytes, std::size_t rows, const float* steps, float* sums) noexcept {
  using look = lookup<Isa, Bits>;
  using ints = typename Isa::ints;
  typename look::table table[Count];
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Count; ++i) {
    table[i] = look::load_table(tables + i * table_bytes(Bits));
  }
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
        const auto codes = look::load_codes(sets.codes[block] + code_at, part);
        const std::uint8_t* weights = bytes + block * rows * slots + part * Isa::bytes;
        const std::int8_t* here = look::in_memory ? not_hoisted(tables) : tables;
        ints weight[Rows];
        PQATTN_X86_UNROLL
        for (std::size_t row = 0; row < Rows; ++row) {
          weight[row] = Isa::load(weights + row * slots);
          if constexpr (Count * Rows <= 8) {
            keep_in_register(weight[row]);
          }
        }
        PQATTN_X86_UNROLL
        for (std::size_t i = 0; i < Count; ++i) {
          const ints value = look::look(look::in_memory ? look::load_table(here + i * table_bytes(Bits)) : table[i], codes);
          PQATTN_X86_UNROLL
          for (std::size_t row = 0; row < Rows; ++row) {
            sum[i][row] = Isa::dot_bytes(sum[i][row], weight[row], value);
          }
        }
      }
    }
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Count; ++i) {
      PQATTN_X86_UNROLL
      for (std::size_t row = 0; row < Rows; ++row) {
        float* total = sums + (i * rows + row) * Isa::lanes;
        Isa::storef(total, Isa::fma(Isa::to_floats(sum[i][row]), Isa::setf(steps[row]), Isa::loadf(total)));
      }
    }
  }
}

/// Components of one group that share a look at its codes: as many as registers hold sums for.
template <class Isa, unsigned Bits, std::size_t Rows>
inline constexpr std::size_t components_at_once =
    Isa::bytes == 64 && (lookup<Isa, Bits>::in_memory || Bits <= 4) && Rows <= 4 ? 4 : 2;

template <class Isa, unsigned Bits, std::size_t Rows>
inline void sum_group(const std::int8_t* tables, std::size_t width, const value_sets& sets, std::size_t code_at,
                      const std::uint8_t* bytes, std::size_t rows, const float* steps, float* sums) noexcept {
  for_rows<components_at_once<Isa, Bits, Rows>>(width, [&]<std::size_t Count>(std::size_t i) noexcept {
    sum_components<Isa, Bits, Count, Rows>(tables + i * table_bytes(Bits), sets, code_at, bytes, rows, steps,
                                           sums + i * rows * Isa::lanes);
  });
}

/// Adds a batch of blocks to the sums. `next`: blocks to prefetch meanwhile.
template <class Isa, unsigned Bits>
inline void sum_batch(const geometry& shape, const byte_codebook& book, const value_blocks& blocks,
                      const value_blocks& next, const slot_run& run, const float* probabilities, std::size_t stride,
                      std::size_t rows, const value_scratch& scratch) noexcept {
  value_sets sets;
  const std::size_t step = scratch.set;
  for (std::size_t first = 0; first < blocks.count; first += step) {
    append_set<Isa>(run, blocks, first, blocks.count - first < step ? blocks.count - first : step, probabilities,
                    stride, rows, scratch, sets);
  }
  for (std::uint32_t group = 0; group < shape.groups(); ++group) {
    const std::size_t code_at = std::size_t{group} * 8 * Bits;
    for (std::size_t i = 0; i < next.count; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(next.codes[i] + code_at), _MM_HINT_T0);
    }
    const std::size_t plane = std::size_t{group / shape.subvectors} * shape.dim + shape.first_channel(group);
    const std::int8_t* tables = book.bytes + plane * table_bytes(Bits);
    float* sums = scratch.sums + plane * rows * Isa::lanes;
    for_rows<most_value_rows<Isa>>(rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
      sum_group<Isa, Bits, Rows>(tables, shape.width(group), sets, code_at, scratch.bytes + row * slots, rows,
                                 scratch.steps + row, sums + row * Isa::lanes);
    });
  }
}

/// Adds the integer part's sums and the constant part to `out`.
template <class Isa>
inline void finish_values(const geometry& shape, const byte_codebook& book, std::size_t rows,
                          const value_scratch& scratch, float* out, std::size_t stride) noexcept {
  for (std::size_t row = 0; row < rows; ++row, out += stride) {
    const auto mass = Isa::setf(Isa::sum(Isa::loadf(scratch.mass + row * Isa::lanes)));
    for (std::size_t stage = 0; stage < shape.stages; ++stage) {
      for (std::size_t first = 0; first < shape.dim; first += Isa::lanes) {
        const std::size_t count = shape.dim - first < Isa::lanes ? shape.dim - first : Isa::lanes;
        const std::size_t plane = stage * shape.dim + first;
        typename Isa::floats partial[Isa::lanes];
        PQATTN_X86_UNROLL
        for (std::size_t i = 0; i < Isa::lanes; ++i) {
          partial[i] = Isa::loadf(scratch.sums + ((plane + (i < count ? i : 0)) * rows + row) * Isa::lanes);
        }
        const auto end = static_cast<std::ptrdiff_t>(count);
        const auto total = Isa::fma(Isa::loadf_range(book.scale + plane, 0, end), Isa::sums(partial),
                                    Isa::mulf(Isa::loadf_range(book.offset + plane, 0, end), mass));
        if (shape.channel_order == nullptr) {
          Isa::storef_range(out + first, 0, end, Isa::addf(Isa::loadf_range(out + first, 0, end), total));
        } else {
          alignas(64) float totals[Isa::lanes];
          Isa::storef(totals, total);
          for (std::size_t i = 0; i < count; ++i) {
            out[shape.channel_order[first + i]] += totals[i];
          }
        }
      }
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
  float* energies = scratch.sums;                                                    // nor are sums
  for (float* of_size : noise) {
    std::memset(of_size, 0, rows * sizeof(float));
  }
  std::memset(scratch.mass, 0, rows * Isa::lanes * sizeof(float));
  std::memset(energies, 0, rows * Isa::lanes * sizeof(float));
  std::size_t blocks = 0;
  value_blocks list;
  std::size_t block = run.first_block();
  for (collect(block, list); list.count != 0; collect(block, list)) {
    blocks += list.count;
    for (std::size_t row = 0; row < rows; ++row) {
      auto mass = Isa::loadf(scratch.mass + row * Isa::lanes);
      auto energy = Isa::loadf(energies + row * Isa::lanes);
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
      Isa::storef(scratch.mass + row * Isa::lanes, mass);
      Isa::storef(energies + row * Isa::lanes, energy);
    }
  }
  scratch.set = value_batch;
  for (std::size_t row = 0; row < rows; ++row) {
    const float bound = value_noise * Isa::sum(Isa::loadf(energies + row * Isa::lanes));
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
/// by eight.
/// Returns false, and does nothing, when the code width has no look-up in registers (above widest_code<Isa>).
template <class Isa>
inline bool value_sum(const geometry& shape, const byte_codebook& book, const slot_run& run,
                      const float* probabilities, std::size_t stride, std::size_t rows, const float* skip_mass,
                      float* out, std::size_t out_stride, std::size_t& skipped, void* workspace) noexcept {
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
    skipped += end - run.first_block() - detail::find_noise<Isa>(run, probabilities, stride, rows, scratch, collect);
    std::memset(scratch.sums, 0, std::size_t{shape.stages} * shape.dim * rows * Isa::lanes * sizeof(float));
    detail::value_blocks lists[2];
    std::size_t block = run.first_block();
    collect(block, lists[0]);
    for (std::size_t turn = 0; lists[turn].count != 0; turn = 1 - turn) {
      collect(block, lists[1 - turn]);
      detail::sum_batch<Isa, Bits>(shape, book, lists[turn], lists[1 - turn], run, probabilities, stride, rows,
                                   scratch);
    }
    detail::finish_values<Isa>(shape, book, rows, scratch, out, out_stride);
  });
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
