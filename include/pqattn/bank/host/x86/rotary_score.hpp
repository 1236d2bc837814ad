// SPDX-License-Identifier: MIT
// Scores of keys that were coded before RoPE.
//
// score(row, slot) = <q, R(t) k> with R(t) the rotation by the slot's position t = base + i. For a block of 64
// consecutive positions R(t) = R(base) R(i), so the query is turned back by the block's base once per row and the
// keys are turned by R(i), i < 64: one small table of bytes that serves every block, head and layer.
//
// How keys are decoded, turned and multiplied is a kernel's: rotary_words for every instruction set, rotary_bytes and, for
// few rows, rotary_phases where there are byte permutes and dot products of bytes. Their headers state the numbers and
// errors. Kernels by_phase add the block's turn to the keys' phases instead of turning queries.
#pragma once

#include "../../bank.hpp"
#include "rotary_bytes.hpp"
#include "rotary_phases.hpp"
#include "rotary_words.hpp"

#if PQATTN_X86_AVX2

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

/// The kernel of 8-bit scores, and that of few rows.
#if PQATTN_X86_AVX512VBMI
template <class Isa>
using rotary_narrow = std::conditional_t<std::is_same_v<Isa, avx512vbmi>, rotary_bytes, rotary_words<Isa>>;
template <class Isa>
using rotary_few = std::conditional_t<std::is_same_v<Isa, avx512vbmi>, rotary_phases, rotary_narrow<Isa>>;
#else
template <class Isa>
using rotary_narrow = rotary_words<Isa>;
template <class Isa>
using rotary_few = rotary_words<Isa>;
#endif

// --- codebooks and turns ---------------------------------------------------------------------------------------------

/// Makes the listed or built book at `memory` one that Kernel reads. `resident`: the tables list_rotary_pairs was for, or
/// null where the book has its own. O(stages * dim * 2^code_bits).
template <class Kernel>
inline void finish_rotary_book(const geometry& shape, const rope& rotation, const std::int8_t* resident,
                               void* memory) noexcept {
  if constexpr (Kernel::by_phase) {
    Kernel::store_phases(shape, rotation, resident, memory);
  } else if constexpr (Kernel::raised_tables) {
    raise_tables<typename Kernel::isa>(shape, rotation, resident, memory);
  }
}

/// Fills a turn table for slots at `offsets[0..64)` positions from the block's base, or 0..63 when null. O(64 * pairs).
template <class Kernel>
inline void fill_turns(const rope& rotation, const std::int64_t* offsets, void* memory) noexcept {
  if constexpr (Kernel::by_phase) {
    Kernel::fill_turns(rotation, offsets, memory);
  } else if (offsets == nullptr) {
    load_turn_table<Kernel>(rotation, memory);
  } else {
    fill_turn_table<Kernel>(rotation, offsets, memory);
  }
}

// --- queries ---------------------------------------------------------------------------------------------------------

/// Query rows as the kernel turns them: per row x and y of every pair, scaled so that rounding to an integer is the
/// kernel's query, and the factor that takes an integer score back.
struct rotary_queries {
  const float* x = nullptr;  ///< (rows, padded pairs)
  const float* y = nullptr;
  const float* factor = nullptr;  ///< (rows)
  const std::uint8_t* tables = nullptr;  ///< (rows, padded pairs, row_bytes) of kernels by_phase
  std::size_t rows = 0;
  std::size_t padded = 0;  ///< pairs rounded up to 16
};

template <class Kernel>
[[nodiscard]] inline std::size_t rotary_query_bytes(std::size_t pairs, std::size_t rows) noexcept {
  std::size_t tables = 0;
  if constexpr (Kernel::by_phase) {
    tables = rows * detail::pad16(pairs) * Kernel::row_bytes;
  }
  return 2 * align_up(rows * detail::pad16(pairs) * sizeof(float)) + align_up(rows * sizeof(float)) + tables;
}

[[nodiscard]] inline rotary_queries rotary_queries_at(std::size_t pairs, std::size_t rows,
                                                      const void* memory) noexcept {
  const std::size_t padded = detail::pad16(pairs);
  const auto* base = static_cast<const std::byte*>(memory);
  const std::size_t plane = align_up(rows * padded * sizeof(float));
  return {reinterpret_cast<const float*>(base), reinterpret_cast<const float*>(base + plane),
          reinterpret_cast<const float*>(base + 2 * plane),
          reinterpret_cast<const std::uint8_t*>(base + 2 * plane + align_up(rows * sizeof(float))), rows, padded};
}

namespace detail {

template <class Isa>
PQATTN_ALWAYS_INLINE typename Isa::floats squares(const float* x, const float* y) noexcept {
  const auto a = Isa::loadf(x);
  const auto b = Isa::loadf(y);
  return Isa::fma(a, a, Isa::mulf(b, b));
}

}  // namespace detail

/// Prepares `rows` queries (f32, `stride` apart, channels in the model's order, softmax scale multiplied in).
/// O(rows * dim).
template <class Kernel>
inline void prepare_rotary_queries(const rotary_book& book, const float* queries, std::size_t rows,
                                   std::size_t stride, void* memory) noexcept {
  using Isa = typename Kernel::isa;
  using floats = typename Isa::floats;
  const rotary_queries out = rotary_queries_at(book.count, rows, memory);
  for (std::size_t row = 0; row < rows; ++row) {
    const float* query = queries + row * stride;
    float* x = const_cast<float*>(out.x) + row * out.padded;
    float* y = const_cast<float*>(out.y) + row * out.padded;
    for (std::size_t i = 0; i < book.count; ++i) {
      const turned_pair& pair = book.pairs[i];
      x[i] = query[pair.channel_x] * pair.scale;
      y[i] = pair.channel_y == no_channel ? 0.0f : query[pair.channel_y] * pair.scale;
    }
    for (std::size_t i = book.count; i < out.padded; ++i) {
      x[i] = y[i] = 0.0f;
    }
    float magnitudes = 0.0f;
    for (std::size_t i = 0; Kernel::sums_magnitudes && i < book.count; ++i) {
      magnitudes += std::sqrt(x[i] * x[i] + y[i] * y[i]);
    }
    floats longest = Isa::setf(0.0f);  // squared
    for (std::size_t i = 0; i < out.padded; i += Isa::lanes) {
      longest = Isa::maxf(longest, detail::squares<Isa>(x + i, y + i));
    }
    const float unit = Kernel::unit_of(magnitudes, std::sqrt(Isa::largest(longest)));
    const floats inverse = Isa::setf(unit > 0.0f ? 1.0f / unit : 0.0f);
    for (std::size_t i = 0; i < out.padded; i += Isa::lanes) {
      Isa::storef(x + i, Isa::mulf(Isa::loadf(x + i), inverse));
      Isa::storef(y + i, Isa::mulf(Isa::loadf(y + i), inverse));
    }
    const_cast<float*>(out.factor)[row] = unit / Kernel::product;
  }
}

/// Fills the rows' tables of a kernel by_phase from prepared queries. O(rows * pairs).
template <class Kernel>
inline void fill_row_tables(const rotary_queries& queries) noexcept {
  if constexpr (Kernel::by_phase) {
    for (std::size_t row = 0; row < queries.rows; ++row) {
      const std::size_t at = row * queries.padded;
      Kernel::fill_row(queries.x + at, queries.y + at, queries.padded,
                       const_cast<std::uint8_t*>(queries.tables) + at * Kernel::row_bytes);
    }
  }
}

/// About the variance of the error that rounded phases add to a score, were every pair as long as its longest centroid, across
/// the query and rounded independently: the largest of all rows. Frequencies near odd halves of a step exceed it by a third.
template <class Kernel>
[[nodiscard]] inline float phase_noise(const rotary_queries& queries) noexcept {
  using Isa = typename Kernel::isa;
  float most = 0.0f;
  for (std::size_t row = 0; row < queries.rows; ++row) {
    auto squares = Isa::setf(0.0f);
    for (std::size_t i = row * queries.padded; i < (row + 1) * queries.padded; i += Isa::lanes) {
      squares = Isa::addf(squares, detail::squares<Isa>(queries.x + i, queries.y + i));
    }
    const float longest = 127.0f * Kernel::product * queries.factor[row];
    const float noise = 0.5f * Kernel::phase_variance * longest * longest * Isa::sum(squares);
    most = most < noise ? noise : most;
  }
  return most;
}

// --- scores ----------------------------------------------------------------------------------------------------------

namespace detail {

/// Workspace of rotary_score.
template <class Kernel>
struct rotary_scratch {
  std::byte* keys;                  // (batch, chunk, key_bytes): turned keys
  std::int32_t* sums;               // (batch, rows, 64), in the order of the unpacking
  typename Kernel::query* queries;  // (batch, rows, padded): rounded, turned back by the block's base; by_phase (batch,
                                    // padded): the block's turns
  float* offsets;                   // (batch, rows): what the keys' offset adds to a score
  float* angles;                    // (4, padded): cosines and sines of position `angles_of`, if has_angles; of a block
  std::int64_t angles_of;
  bool has_angles;
  void* turns;                      // a turn table for a block whose positions are not consecutive
  std::size_t bytes;
};

/// Bytes from the turned keys of one block to those of the next. Blocks that were a page apart would share sets of the
/// first-level cache, and loads wait for stores to other pages: turning keys takes a fifth longer.
template <class Kernel>
[[nodiscard]] constexpr std::size_t key_block_bytes(std::size_t pairs, std::size_t rows) noexcept {
  const std::size_t bytes = Kernel::chunk_for(pairs, rows) * Kernel::key_bytes;
  return bytes % 4096 == 0 ? bytes + 64 : bytes;
}

template <class Kernel>
inline rotary_scratch<Kernel> carve_rotary_scratch(std::size_t pairs, std::size_t turns, std::size_t rows,
                                                   void* memory) noexcept {
  const std::size_t batch = Kernel::batch_for(rows);
  const std::size_t keys = batch * key_block_bytes<Kernel>(pairs, rows);
  const std::size_t sums = batch * rows * slots * sizeof(std::int32_t);
  const std::size_t queries =
      align_up(batch * (Kernel::by_phase ? 1 : rows) * pad16(pairs) * sizeof(typename Kernel::query));
  const std::size_t offsets = align_up(batch * rows * sizeof(float));
  const std::size_t angles = 4 * pad16(pairs) * sizeof(float);
  auto* base = static_cast<std::byte*>(memory);
  rotary_scratch<Kernel> parts{};
  parts.bytes = keys + sums + queries + offsets + angles + Kernel::table_bytes_for(turns);
  if (base != nullptr) {
    parts.keys = base;
    parts.sums = reinterpret_cast<std::int32_t*>(base + keys);
    parts.queries = reinterpret_cast<typename Kernel::query*>(base + keys + sums);
    parts.offsets = reinterpret_cast<float*>(base + keys + sums + queries);
    parts.angles = reinterpret_cast<float*>(base + keys + sums + queries + offsets);
    parts.turns = base + keys + sums + queries + offsets + angles;
  }
  return parts;
}

/// Turns Rows queries back by the angles given and rounds them; `offsets` gets what the keys' offset adds to their scores.
template <class Kernel, std::size_t Rows>
inline void round_queries(const rotary_queries& queries, const float* cosines, const float* sines, std::size_t first,
                          typename Kernel::query* out, float* offsets) noexcept {
  using Isa = typename Kernel::isa;
  using floats = typename Isa::floats;
  typename Isa::ints sum[4] = {Isa::zero(), Isa::zero(), Isa::zero(), Isa::zero()};
  for (std::size_t pair = 0; pair < queries.padded; pair += Isa::lanes) {
    const floats cosine = Isa::loadf(cosines + pair);
    const floats sine = Isa::loadf(sines + pair);
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      const std::size_t at = (first + row) * queries.padded + pair;
      const floats x = Isa::loadf(queries.x + at);
      const floats y = Isa::loadf(queries.y + at);
      const auto turned_x = Isa::to_ints(Isa::fma(x, cosine, Isa::mulf(y, sine)));
      const auto turned_y = Isa::to_ints(Isa::fnma(x, sine, Isa::mulf(y, cosine)));
      Kernel::put_queries(turned_x, turned_y, out + at);
      if constexpr (Kernel::raised_tables) {
        sum[row] = Isa::add32(sum[row], Isa::add32(turned_x, turned_y));
      }
    }
  }
  if constexpr (Kernel::raised_tables) {
    alignas(16) float sums[4];
    _mm_store_ps(sums, _mm_cvtepi32_ps(Isa::sums_of_four(sum[0], sum[1], sum[2], sum[3])));
    for (std::size_t row = 0; row < Rows; ++row) {
      offsets[first + row] = -Kernel::key_offset * queries.factor[first + row] * sums[row];
    }
  } else {
    for (std::size_t row = 0; row < Rows; ++row) {
      offsets[first + row] = 0.0f;
    }
  }
}

/// Turns every query back by `base` positions and rounds it. Where the rotation has tables that fit the pairs,
/// the angle is that of base without its multiple of 64 below 4096, which blocks of 4096 positions share, plus that
/// multiple's from the tables: the same numbers whatever was asked before.
template <class Kernel>
inline void turn_queries(const rotary_book& book, const rope& rotation, const rotary_queries& queries,
                         std::int64_t base, rotary_scratch<Kernel>& scratch, std::size_t b) noexcept {
  using Isa = typename Kernel::isa;
  using floats = typename Isa::floats;
  const bool tabulated = rotation.angles != nullptr && book.count == rotation.pairs && rotation.pairs % 16 == 0;
  const auto step = tabulated ? static_cast<std::uint32_t>(base >> 6) % rope::steps : 0;
  const std::int64_t shared = base - 64 * static_cast<std::int64_t>(step);
  if (!scratch.has_angles || scratch.angles_of != shared) {
    for (std::size_t pair = 0; pair < queries.padded; pair += Isa::lanes) {
      floats cosine, sine;
      cosine_sine<Isa>(Isa::phases(book.steps + pair, static_cast<std::uint64_t>(shared)), cosine, sine);
      Isa::storef(scratch.angles + pair, cosine);
      Isa::storef(scratch.angles + queries.padded + pair, sine);
    }
    scratch.angles_of = shared;
    scratch.has_angles = true;
  }
  float* cosines = scratch.angles;
  float* sines = scratch.angles + queries.padded;
  if (tabulated) {
    cosines += 2 * queries.padded;
    sines += 2 * queries.padded;
    for (std::size_t pair = 0; pair < queries.padded; pair += Isa::lanes) {
      const floats cosine = Isa::loadf(scratch.angles + pair);
      const floats sine = Isa::loadf(scratch.angles + queries.padded + pair);
      const floats c = Isa::loadf(rotation.cosines(1, step) + pair);
      const floats s = Isa::loadf(rotation.sines(1, step) + pair);
      Isa::storef(cosines + pair, Isa::fnma(sine, s, Isa::mulf(cosine, c)));
      Isa::storef(sines + pair, Isa::fma(sine, c, Isa::mulf(cosine, s)));
    }
  }
  for_rows<4>(queries.rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
    round_queries<Kernel, Rows>(queries, cosines, sines, row, scratch.queries + b * queries.rows * queries.padded,
                                scratch.offsets + b * queries.rows);
  });
}

/// Integer sums of one row and block to f32 scores in slot order.
template <class Isa>
inline void finish_block(const std::int32_t* sums, float factor, float offset, const slot_run& run,
                         std::size_t block, float* row) noexcept {
  for (std::size_t part = 0; part < parts<Isa>; ++part) {
    typename Isa::ints sum[4];
    typename Isa::floats score[4];
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      sum[i] = Isa::load(sums + part * Isa::bytes + i * Isa::lanes);
    }
    Isa::restore_order(sum);
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      score[i] = Isa::fma(Isa::to_floats(sum[i]), Isa::setf(factor), Isa::setf(offset));
    }
    store_slots<Isa>(row, run.offset_of(block), static_cast<std::ptrdiff_t>(part * Isa::bytes), run.begin_in(block),
                     run.end_in(block), score);
  }
}

/// Scores of up to Kernel::batch_for(rows) blocks that share a turn table.
template <class Kernel, unsigned Bits>
inline void rotary_blocks(const rotary_book& book, const rope& rotation, const typename Kernel::table& turns,
                          const rotary_queries& queries, const slot_run& run, std::size_t block,
                          const std::int64_t* bases, std::size_t blocks, rotary_scratch<Kernel>& scratch, float* out,
                          std::size_t stride, fetch_queue& next) noexcept {
  const std::uint8_t* codes[Kernel::batch];
  const std::size_t query_block = (Kernel::by_phase ? 1 : queries.rows) * queries.padded;
  for (std::size_t b = 0; b < blocks; ++b) {
    codes[b] = run.block(block + b);
    if constexpr (Kernel::by_phase) {
      Kernel::turn_block(book.steps, queries.padded, bases[b], scratch.queries + b * query_block);
    } else {
      turn_queries<Kernel>(book, rotation, queries, bases[b], scratch, b);
    }
  }
  const std::size_t end = run.end_block();
  const std::size_t after = block + blocks;
  const std::size_t batch = Kernel::batch_for(queries.rows);
  const std::size_t ahead = end - after < batch ? end - after : batch;
  const std::size_t chunk = Kernel::chunk_for(book.count, queries.rows);
  const std::size_t key_block = key_block_bytes<Kernel>(book.count, queries.rows);
  for (std::size_t pair = 0; pair < book.count; pair += chunk) {
    const std::size_t count = book.count - pair < chunk ? book.count - pair : chunk;
    // The next batch is fetched meanwhile, a share of every block with each chunk.
    const std::size_t from = run.block_bytes * pair / book.count;
    const std::size_t to = run.block_bytes * (pair + count) / book.count;
    for (std::size_t b = 0; b < ahead; ++b) {
      fetch_from_memory(run.block(after + b) + from / 64 * 64, to - from / 64 * 64);
    }
    next.fetch_share();
    const auto sum_blocks = [&](const auto* rows, std::size_t row_stride, std::size_t block_stride) noexcept {
      for (std::size_t b = 0; b < blocks; ++b) {
        Kernel::sum_block(scratch.keys + b * key_block, count, rows + b * block_stride, row_stride,
                          queries.rows, scratch.sums + b * queries.rows * slots, pair == 0);
      }
    };
    if constexpr (Kernel::by_phase) {
      Kernel::template turn_keys<Bits>(book, turns, pair, count, codes, blocks, scratch.queries + pair, query_block,
                                       scratch.keys);
      sum_blocks(queries.tables + pair * Kernel::row_bytes, queries.padded * Kernel::row_bytes, 0);
    } else {
      Kernel::template turn_keys<Bits>(book, turns, pair, count, codes, blocks, scratch.keys, key_block);
      sum_blocks(scratch.queries + pair, queries.padded, query_block);
    }
  }
  for (std::size_t b = 0; b < blocks; ++b) {
    for (std::size_t row = 0; row < queries.rows; ++row) {
      const std::size_t at = b * queries.rows + row;
      finish_block<typename Kernel::isa>(scratch.sums + at * slots, queries.factor[row],
                                         Kernel::by_phase ? 0.0f : scratch.offsets[at], run, block + b,
                                         out + row * stride);
    }
  }
}

}  // namespace detail

/// Bytes of workspace for rotary_score of up to `rows` rows, aligned to 64: fewer rows may take larger batches of blocks,
/// and more memory.
template <class Kernel>
[[nodiscard]] inline std::size_t rotary_scratch_bytes(const geometry& shape, const rope& rotation,
                                                      std::size_t rows) noexcept {
  const std::size_t pairs = detail::rotary_pairs(shape, rotation);
  std::size_t most = 0;
  for (std::size_t count = rows; count != 0; count = Kernel::fewer_rows(count)) {
    const std::size_t bytes = detail::carve_rotary_scratch<Kernel>(pairs, rotation.pairs, count, nullptr).bytes;
    most = most < bytes ? bytes : most;
  }
  return most;
}

/// out(row, slot - run.first) = score of the slot at its position.
/// `next` is fetched meanwhile. `turns`: the memory of the turn table of offsets 0..63. Blocks whose used slots are not
/// consecutive get a table of their own, which costs several times what the block's scores do. Returns false, and does
/// nothing, when the code width has no look-up in registers (above widest_code).
template <class Kernel>
inline bool rotary_score(const rotary_book& book, const rope& rotation, const void* turns,
                         const rotary_queries& queries, const slot_run& run, const slot_positions& positions,
                         float* out, std::size_t stride, void* workspace, fetch_queue next = {}) noexcept {
  return with_code_bits<typename Kernel::isa>(book.code_bits, [&]<unsigned Bits>() noexcept {
    auto scratch = detail::carve_rotary_scratch<Kernel>(book.count, rotation.pairs, queries.rows, workspace);
    const std::size_t batch = Kernel::batch_for(queries.rows);
    const std::size_t chunk = Kernel::chunk_for(book.count, queries.rows);
    next.share_among((run.end_block() - run.first_block() + batch - 1) / batch *
                     ((book.count + chunk - 1) / chunk));
    std::int64_t bases[Kernel::batch];
    std::size_t pending = 0;
    std::size_t block = run.first_block();
    const auto flush = [&](std::size_t end) noexcept {
      if (pending != 0) {
        detail::rotary_blocks<Kernel, Bits>(book, rotation, Kernel::table_at(rotation.pairs, turns), queries, run,
                                            end - pending, bases, pending, scratch, out, stride, next);
        pending = 0;
      }
    };
    for (; block < run.end_block(); ++block) {
      const std::ptrdiff_t begin = run.begin_in(block);
      const std::ptrdiff_t end = run.end_in(block);
      const std::size_t slot = block * slots;
      const std::size_t first = slot + static_cast<std::size_t>(begin);
      const std::int64_t base = positions.at(first) - begin;
      if (positions.consecutive(first, static_cast<std::size_t>(end - begin))) {
        bases[pending++] = base;
        if (pending == batch) {
          flush(block + 1);
        }
      } else {
        flush(block);
        std::int64_t offsets[slots] = {};
        for (std::ptrdiff_t i = begin; i < end; ++i) {
          offsets[i] = positions.at(slot + static_cast<std::size_t>(i)) - base;
        }
        fill_turns<Kernel>(rotation, offsets, scratch.turns);
        detail::rotary_blocks<Kernel, Bits>(book, rotation, Kernel::table_at(rotation.pairs, scratch.turns), queries,
                                            run, block, &base, 1, scratch, out, stride, next);
      }
    }
    flush(block);
  });
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
