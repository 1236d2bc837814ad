// SPDX-License-Identifier: MIT
// Scores of keys that were coded before RoPE.
//
// score(row, slot) = <q, R(t) k> with R(t) the rotation by the slot's position t = base + i. For a block of 64
// consecutive positions R(t) = R(base) R(i), so the query is turned back by the block's base once per row and the
// keys are turned by R(i), i < 64: one small table of bytes that serves every block, head and layer.
//
// How keys are decoded, turned and multiplied is a kernel's: rotary_words for every instruction set, rotary_bytes and,
// for few rows, rotary_phases where there are byte permutes and dot products of bytes. Their headers state the numbers
// and errors. Kernels by_phase add the block's turn to the keys' phases instead of turning queries.
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

/// Makes the listed or built book at `memory` one that Kernel reads. `resident`: the tables list_rotary_pairs was for,
/// or null where the book has its own. O(stages * dim * 2^code_bits).
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
  void* turns;  // a turn table for a block whose positions are not consecutive
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

/// Turns every query back by `base` positions and rounds it. Where the rotation has tables that fit the pairs,
/// the angle is that of base without its multiple of 64 below 4096, which blocks of 4096 positions share, plus that
/// multiple's from the tables: the same numbers whatever was asked before.
template <class Kernel>
inline void turn_queries(const rotary_book& book, const rope& rotation, const rotary_queries& queries,
                         std::int64_t base, rotary_scratch<Kernel>& scratch, typename Kernel::query* out,
                         float* offsets) noexcept {
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
  for (std::size_t pair = 0; pair < queries.padded; pair += Isa::lanes) {
    floats cosine = Isa::loadf(scratch.angles + pair);
    floats sine = Isa::loadf(scratch.angles + queries.padded + pair);
    if (tabulated) {
      const floats c = Isa::loadf(rotation.cosines(1, step) + pair);
      const floats s = Isa::loadf(rotation.sines(1, step) + pair);
      const floats turned = Isa::fnma(sine, s, Isa::mulf(cosine, c));
      sine = Isa::fma(sine, c, Isa::mulf(cosine, s));
      cosine = turned;
    }
    Kernel::put_angles(cosine, sine, scratch.angles + 2 * queries.padded + pair,
                       scratch.angles + 3 * queries.padded + pair);
  }
  for_rows<4>(queries.rows, [&]<std::size_t Rows>(std::size_t row) noexcept {
    float sums[4] = {};
    Kernel::template turn_rows<Rows>(queries, row, scratch.angles + 2 * queries.padded,
                                     scratch.angles + 3 * queries.padded, out + row * queries.padded, sums);
    for (std::size_t i = 0; i < Rows; ++i) {
      offsets[row + i] = -Kernel::key_offset * queries.factor[row + i] * sums[i];
    }
  });
}

/// Integer sums of one row and block to f32 scores in slot order.
template <class Isa>
inline void finish_block(const std::int32_t* sums, float factor, float offset, const slot_run& run, std::size_t block,
                         float* row) noexcept {
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

/// Pairs that are turned in one step; chunks are multiples of it.
template <class Kernel>
inline constexpr std::size_t pairs_at_once = Kernel::by_phase ? 8 : 4;
/// Whether lines are fetched with the products of turned pairs too: where these take as long as turning.
template <class Kernel>
inline constexpr bool fetches_with_products = !Kernel::by_phase;
/// Steps of `batches` batches of together `blocks` blocks: some pairs of a batch's blocks are turned, or a chunk of
/// turned pairs of one block is multiplied. With each a few lines of what is read next are fetched; of many at once the
/// queue of misses has no room for all.
template <class Kernel>
[[nodiscard]] constexpr std::size_t steps_of_batches(std::size_t pairs, std::size_t rows, std::size_t batches,
                                                     std::size_t blocks) noexcept {
  constexpr std::size_t together = pairs_at_once<Kernel>;
  const std::size_t chunk = Kernel::chunk_for(pairs, rows);
  const std::size_t products = (pairs + chunk - 1) / chunk * blocks;
  return (pairs + together - 1) / together * batches + (fetches_with_products<Kernel> ? products : 0);
}

/// Scores of up to Kernel::batch_for(rows) blocks that share a turn table. Meanwhile the batch that follows and a share
/// of `next` are fetched.
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
      turn_queries<Kernel>(book, rotation, queries, bases[b], scratch, scratch.queries + b * query_block,
                           scratch.offsets + b * queries.rows);
    }
  }
  const std::size_t after = block + blocks;
  fetch_queue following(
      nullptr, 0, after < run.end_block() ? run.part(after, after + Kernel::batch_for(queries.rows)) : slot_run{});
  following.share_among(steps_of_batches<Kernel>(book.count, queries.rows, 1, blocks));
  const auto fetch_some = [&]() noexcept {
    following.fetch_share();
    next.fetch_share();
  };
  const std::size_t chunk = Kernel::chunk_for(book.count, queries.rows);
  const std::size_t key_block = key_block_bytes<Kernel>(book.count, queries.rows);
  for (std::size_t pair = 0; pair < book.count; pair += chunk) {
    const std::size_t count = book.count - pair < chunk ? book.count - pair : chunk;
    const auto sum_blocks = [&](const auto* rows, std::size_t row_stride, std::size_t block_stride) noexcept {
      for (std::size_t b = 0; b < blocks; ++b) {
        if constexpr (fetches_with_products<Kernel>) {
          fetch_some();
        }
        Kernel::sum_block(scratch.keys + b * key_block, count, rows + b * block_stride, row_stride, queries.rows,
                          scratch.sums + b * queries.rows * slots, pair == 0);
      }
    };
    constexpr std::size_t together = pairs_at_once<Kernel>;
    for (std::size_t i = 0; i < count; i += together) {
      const std::size_t first = pair + i;
      const std::size_t some = count - i < together ? count - i : together;
      std::byte* const keys = scratch.keys + i * Kernel::key_bytes;
      fetch_some();
      if constexpr (Kernel::by_phase) {
        Kernel::template turn_keys<Bits>(book, turns, first, some, codes, blocks, scratch.queries + first, query_block,
                                         keys);
      } else {
        Kernel::template turn_keys<Bits>(book, turns, first, some, codes, blocks, keys, key_block);
      }
    }
    if constexpr (Kernel::by_phase) {
      sum_blocks(queries.tables + pair * Kernel::row_bytes, queries.padded * Kernel::row_bytes, 0);
    } else {
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

/// Bytes of workspace for rotary_score of up to `rows` rows, aligned to 64: fewer rows may take larger batches of
/// blocks, and more memory.
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
    const std::size_t blocks = run.end_block() - run.first_block();
    next.share_among(detail::steps_of_batches<Kernel>(book.count, queries.rows, (blocks + batch - 1) / batch, blocks));
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
