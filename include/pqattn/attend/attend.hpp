// SPDX-License-Identifier: MIT
// Attention of the query rows of one KV head over segments of coded and exact tokens.
//
//   q --> table --> score --> modifiers --> softmax part --> weighted value sum --> partial state --> merge
//
// A segment is cut into parts of fixed size, a part into tiles; each part yields one partial state, and states are
// merged in order. Sizes and order depend on nothing but the segments, so any executor gives the same bits.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../bank/bank.hpp"
#include "../config.hpp"
#include "../core/executor.hpp"
#include "../core/memory.hpp"
#include "../quant/value_rotation.hpp"
#include "partial_state.hpp"
#include "score_modifiers.hpp"

namespace pqattn {
inline namespace v0 {

/// Tokens of a tile at least: scores of a few rows stay in the first-level cache.
inline constexpr std::size_t tile_tokens = 1024;
/// Tokens of one part.
inline constexpr std::size_t part_tokens = max_tile_blocks * block_tokens;
static_assert(part_tokens == 4 * tile_tokens);

/// Most slots of a segment's storage: sizes of what is computed from them fit size_t.
inline constexpr std::size_t max_segment_slots = std::size_t{1} << (sizeof(std::size_t) > 4 ? 40 : 24);

/// Tokens of one tile of an attention call: what a tile costs once, such as summing up the values' registers, counts
/// less the longer it is, and scores of up to four rows of a whole part stay in the second-level cache.
[[nodiscard]] constexpr std::size_t attention_tile_tokens(std::size_t rows) noexcept {
  return rows <= 4 ? part_tokens : rows <= 8 ? part_tokens / 2 : tile_tokens;
}

/// Keys or values of a segment: codes with their codebook, or exact rows.
template <class Address>
struct token_source {
  bool coded = false;
  code_span<Address> codes;         ///< when coded
  resident_codebook<Address> book;  ///< when coded
  rows_view rows;                   ///< when exact: (tokens, d)

  [[nodiscard]] std::size_t dim() const noexcept { return coded ? book.shape.dim : rows.cols; }
};

/// Slots [first, first + count) of some tokens of one KV head.
template <class Address>
struct segment {
  token_source<Address> keys;
  token_source<Address> values;
  slot_range slots;
  slot_positions positions;             ///< of slot s, counted from slot 0 of the segment's storage
  const std::uint64_t* live = nullptr;  ///< optional, one bit per slot of the storage; 0 excludes the slot
  /// Set when the keys were coded before RoPE: the bank rotates them. Exact keys are stored rotated.
  rope rotation;
  Address tables{};  ///< bank memory for the score tables: see attention_table_bytes; unused for exact keys
  /// Set when the values were rotated before coding: what such segments add to the output is turned back, once for
  /// consecutive segments that share the rotation.
  value_rotation turned_values;
  /// Optional exact channels behind the coded ones of each key, (tokens, d_tail), rotated: the queries have keys.dim()
  /// + d_tail channels. Latent attention (MLA) has the latent as coded keys and as values (the same codes), and the
  /// part with positions as tail.
  rows_view key_tail;
  /// Where the tails of each block of 64 slots lie, in blocks of rows of key_tail; null: block b at row 64 * b.
  const std::uint32_t* tail_pages = nullptr;
  /// Column of score_modifiers::bias for each slot; needed when a call with a bias has several segments.
  slot_columns columns;
};

/// What an attention call left out.
struct skip_statistics {
  std::uint64_t blocks = 0;   ///< blocks of coded values
  std::uint64_t skipped = 0;  ///< of which were left out

  constexpr skip_statistics& operator+=(const skip_statistics& other) noexcept {
    blocks += other.blocks;
    skipped += other.skipped;
    return *this;
  }
};

/// What stays fixed over all segments of a call.
struct attention_params {
  float scale = 0.0f;  ///< multiplies <q, k>; 0 means 1 / sqrt(d_k)
  score_modifiers modifiers;
  const float* sink_logits = nullptr;  ///< rows, or null
  value_method method = value_method::automatic;
  /// Blocks of coded values are left out while their total probability mass stays at most this share of each row's: the
  /// output moves by at most 2 * skip_mass * max |v|, 1e-4 of the largest value by default. 0 skips nothing.
  float skip_mass = 5e-5f;
  skip_statistics* skips = nullptr;  ///< optional: counts are added here
  executor parts;
};

inline namespace PQATTN_ISA_UNIT {

/// Bytes of bank memory for segment::tables.
template <bank_policy Bank>
[[nodiscard]] std::size_t attention_table_bytes(Bank& bank, const geometry& key_shape, std::size_t rows,
                                                const rope& rotation) noexcept {
  return bank.table_bytes(key_shape, rows, rotation);
}

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// First slot of a segment rounded down to a block: coded programs run on whole blocks, the slots in front are masked.
template <class Address>
[[nodiscard]] std::size_t aligned_first(const segment<Address>& tokens) noexcept {
  const bool whole_blocks = tokens.keys.coded || tokens.values.coded;
  return whole_blocks ? tokens.slots.first / block_tokens * block_tokens : tokens.slots.first;
}

/// The first of some slots: as many as a bank is told of before the program that reads them all, which fetches the
/// others itself while it works.
[[nodiscard]] inline slot_range first_slots(slot_range slots) noexcept {
  constexpr std::size_t most = 16 * block_tokens;
  return {slots.first, slots.count < most ? slots.count : most};
}

/// Those of a tile's values that a bank is told of with its scores. Scores of two to four rows take long enough for all
/// of them, and their values are best summed over many blocks at a time.
[[nodiscard]] inline slot_range values_with_scores(slot_range slots, std::size_t rows) noexcept {
  return rows >= 2 && rows <= 4 ? slots : first_slots(slots);
}

/// All slots of a segment, from the first of a block.
template <class Address>
[[nodiscard]] slot_range covered_slots(const segment<Address>& tokens) noexcept {
  const std::size_t first = aligned_first(tokens);
  return {first, tokens.slots.first + tokens.slots.count - first};
}

template <class Address>
[[nodiscard]] std::size_t parts_of(const segment<Address>& tokens) noexcept {
  if (tokens.slots.count == 0) {
    return 0;
  }
  return (covered_slots(tokens).count + part_tokens - 1) / part_tokens;
}

/// Scratch of one worker.
struct attention_scratch {
  score_tile tile;
  score_tile tail;  ///< scores of the keys' exact tails, when a segment has them
  softmax_state softmax;
  float* skip_mass = nullptr;
  bool skips_most = false;  ///< whether the worker's last tile left out most of its value blocks
  slot_range announced{};   ///< keys that the bank has been told of

  void carve(carver& memory, std::size_t rows, bool tails) noexcept {
    tile = {memory.take<float>(rows * attention_tile_tokens(rows)), rows, attention_tile_tokens(rows)};
    tail = {memory.take<float>(tails ? rows * attention_tile_tokens(rows) : 0), rows, attention_tile_tokens(rows)};
    softmax = {memory.take<float>(rows),
               memory.take<float>(rows),
               memory.take<float>(rows),
               {memory.take<float>(rows), memory.take<float>(rows), memory.take<float>(rows)}};
    skip_mass = memory.take<float>(rows);
  }
};

/// Memory of one call: scaled queries, one state per part, one scratch per worker.
struct attention_memory {
  float* queries = nullptr;
  float* outs = nullptr;
  float* lses = nullptr;
  float* earlier = nullptr;        ///< log-sum-exp of each row over segments that are done
  std::size_t* skipped = nullptr;  ///< blocks left out by each part
  attention_scratch* scratch = nullptr;

  void carve(carver& memory, std::size_t rows, std::size_t key_dim, std::size_t value_dim, std::size_t parts,
             std::size_t workers, bool tails) noexcept {
    queries = memory.take<float>(rows * key_dim);
    outs = memory.take<float>(parts * rows * value_dim);
    lses = memory.take<float>(parts * rows);
    earlier = memory.take<float>(rows);
    skipped = memory.take<std::size_t>(parts);
    scratch = memory.take<attention_scratch>(workers);
    for (std::size_t worker = 0; worker < workers; ++worker) {
      attention_scratch pieces;
      pieces.carve(memory, rows, tails);
      if (scratch != nullptr && memory.fits()) {
        scratch[worker] = pieces;
      }
    }
  }
};

/// Calls a program of the bank with the hint, if it wants one.
template <class Bank, class Program>
status with_hint(const Program& program, const upcoming<typename Bank::address>& next) {
  if constexpr (bank_reads_ahead<Bank>) {
    return program(next);
  } else {
    return program();
  }
}

/// Slots of one source that are read next: nothing of exact rows, which banks fetch by themselves.
template <class Address>
[[nodiscard]] upcoming<Address> upcoming_slots(const token_source<Address>& source, slot_range slots) noexcept {
  return source.coded && slots.count != 0 ? upcoming<Address>{{}, source.codes, slots} : upcoming<Address>{};
}

/// Adds what the exact channels behind the coded ones contribute.
template <class Bank>
status add_tail_scores(Bank& bank, const segment<typename Bank::address>& tokens, const query_rows& queries,
                       slot_range slots, const score_tile& tile, const score_tile& tail) {
  const query_rows ends{queries.data + tokens.keys.dim(), queries.rows, queries.stride};
  if (tokens.tail_pages == nullptr) {
    PQATTN_TRY(bank.score_rows(ends, tokens.key_tail.slice(slots.first, slots.count), tail));
  }
  for (std::size_t done = 0; tokens.tail_pages != nullptr && done < slots.count; done += block_tokens) {
    const std::size_t left = slots.count - done;
    const std::size_t page = tokens.tail_pages[(slots.first + done) / block_tokens];
    PQATTN_TRY(bank.score_rows(ends,
                               tokens.key_tail.slice(page * block_tokens, left < block_tokens ? left : block_tokens),
                               {tail.data + done, tail.rows, tail.stride}));
  }
  for (std::size_t row = 0; row < queries.rows; ++row) {
    for (std::size_t i = 0; i < slots.count; ++i) {
      tile.row(row)[i] += tail.row(row)[i];
    }
  }
  return {};
}

template <class Bank>
status score_tile_slots(Bank& bank, const segment<typename Bank::address>& tokens, const query_rows& queries,
                        slot_range slots, const score_tile& tile, const score_tile& tail,
                        const upcoming<typename Bank::address>& next = {}) {
  if (tokens.keys.coded) {
    const auto score = [&](const auto&... hint) {
      return bank.score(tokens.tables, queries.rows, tokens.keys.book, tokens.rotation, tokens.positions,
                        tokens.keys.codes, slots, tile, hint...);
    };
    PQATTN_TRY(with_hint<Bank>(score, next));
    return tokens.key_tail.cols == 0 ? status{} : add_tail_scores(bank, tokens, queries, slots, tile, tail);
  }
  return bank.score_rows(queries, tokens.keys.rows.slice(slots.first, slots.count), tile);
}

/// The tile that a worker scores after `done`: the next of the part, or the first of the part that is its next if
/// workers take them in turn.
[[nodiscard]] inline slot_range slots_after(slot_range done, std::size_t step, std::size_t part_end, std::size_t end,
                                            std::size_t workers) noexcept {
  const std::size_t next = done.first + done.count;
  const std::size_t first = next < part_end ? next : next + (workers - 1) * part_tokens;
  return {first, first >= end ? 0 : end - first < step ? end - first : step};
}

/// What a part knows of the rest of the call.
struct call_context {
  const float* earlier = nullptr;  ///< log-sum-exp of each row over segments that are done
  std::size_t parts = 1;           ///< that share this mass
  std::size_t workers = 1;         ///< that take parts in turn
};

/// Probability mass that a tile may leave out, per row, of `tiles` tiles of a part: its share of what the part has seen
/// so far and of earlier segments. Over all tiles and parts the shares add up to at most skip_mass of the final sum.
inline void set_skip_mass(float skip_mass, const softmax_state& softmax, const call_context& context, std::size_t tiles,
                          std::size_t rows, float* budget) noexcept {
  for (std::size_t row = 0; row < rows; ++row) {
    const float exponent = context.earlier[row] - softmax.maximum[row];
    const float before = std::exp(exponent < 60.0f ? exponent : 60.0f) / static_cast<float>(context.parts);
    budget[row] = skip_mass * (softmax.sum[row] + before) / static_cast<float>(tiles);
  }
}

/// masses[row] = log(exp(masses[row]) + exp(lse_e[row])), where masked_score and below stand for nothing.
inline void add_masses(const partial_state& state, float* masses) noexcept {
  for (std::size_t row = 0; row < state.rows; ++row) {
    const float added = state.lse_e[row];
    if (is_empty_lse(added)) {
      continue;
    }
    const float high = masses[row] < added ? added : masses[row];
    const float low = masses[row] < added ? masses[row] : added;
    masses[row] = high + std::log1p(std::exp(low - high));
  }
}

/// Attention over one part of one segment into `state`. `skipped`: number of value blocks left out.
template <class Bank>
status attend_part(Bank& bank, const segment<typename Bank::address>& tokens, const query_rows& queries,
                   const attention_params& params, const call_context& context, std::size_t part,
                   attention_scratch& work, const partial_state& state, std::size_t& skipped) {
  skipped = 0;
  clear(state);
  for (std::size_t row = 0; row < queries.rows; ++row) {
    work.softmax.maximum[row] = masked_score;
    work.softmax.sum[row] = 0.0f;
  }
  const std::size_t end = tokens.slots.first + tokens.slots.count;
  const std::size_t part_first = aligned_first(tokens) + part * part_tokens;
  const std::size_t part_end = end < part_first + part_tokens ? end : part_first + part_tokens;
  const bool skips = params.skip_mass > 0.0f && tokens.values.coded;
  const value_options options{params.method, skips ? work.skip_mass : nullptr, &skipped, work.softmax.sums};
  const std::size_t step = attention_tile_tokens(queries.rows);
  const std::size_t tiles = (part_end - part_first + step - 1) / step;
  const bool first_part = part == 0;
  for (std::size_t first = part_first; first < part_end; first += step) {
    const slot_range slots{first, part_end - first < step ? part_end - first : step};
    // With the scores the first values are fetched, and the next keys with the values; or these with the scores where
    // most values are likely to be left out.
    const bool few_values = work.skips_most;
    const auto next_keys = upcoming_slots(tokens.keys, slots_after(slots, step, part_end, end, context.workers));
    auto with_scores = few_values ? next_keys : upcoming_slots(tokens.values, values_with_scores(slots, queries.rows));
    if (first == part_first && first_part && tokens.values.coded) {
      with_scores.book = tokens.values.book;
    }
    with_scores.unannounced = slots.first != work.announced.first || work.announced.count == 0;
    work.announced = few_values || tokens.values.coded ? next_keys.slots : slot_range{};
    PQATTN_TRY(score_tile_slots(bank, tokens, queries, slots, work.tile, work.tail, with_scores));
    for (std::size_t row = 0; row < queries.rows; ++row) {
      modify_row(params.modifiers, row, slots, tokens.positions, tokens.live, tokens.slots.first, work.tile.row(row),
                 tokens.columns);
    }
    std::fill_n(work.softmax.sums.mass, queries.rows, unknown_mass);
    PQATTN_TRY(bank.softmax_part(work.tile, slots.count, work.softmax));
    for (std::size_t row = 0; row < queries.rows; ++row) {
      if (work.softmax.rescale[row] != 1.0f) {
        for (std::size_t c = 0; c < state.dim; ++c) {
          state.out[row * state.stride + c] *= work.softmax.rescale[row];
        }
      }
    }
    if (tokens.values.coded) {
      if (skips) {
        set_skip_mass(params.skip_mass, work.softmax, context, tiles, queries.rows, work.skip_mass);
      }
      const std::size_t before = skipped;
      const auto accumulate = [&](const auto&... hint) {
        return bank.accumulate_values(work.tile, tokens.values.book, tokens.values.codes, slots, options, state.out,
                                      state.stride, hint...);
      };
      auto with_values = few_values ? upcoming<typename Bank::address>{} : next_keys;
      with_values.unannounced = few_values || !tokens.keys.coded;  // programs of exact keys take no hint
      PQATTN_TRY(with_hint<Bank>(accumulate, with_values));
      work.skips_most = 2 * (skipped - before) > blocks_for(slots.count);
    } else {
      PQATTN_TRY(
          bank.accumulate_rows(work.tile, tokens.values.rows.slice(slots.first, slots.count), state.out, state.stride));
    }
  }
  for (std::size_t row = 0; row < queries.rows; ++row) {
    const float sum = work.softmax.sum[row];
    if (sum > 0.0f) {
      for (std::size_t c = 0; c < state.dim; ++c) {
        state.out[row * state.stride + c] /= sum;
      }
      state.lse_e[row] = work.softmax.maximum[row] + std::log(sum);
    }
  }
  return {};
}

/// One source of a segment: its channels, its memory, and that it reaches to slot `end`.
template <class Address>
status check_source(const token_source<Address>& source, std::size_t dim, std::size_t end,
                    const char* subject) noexcept {
  if (source.dim() != dim) {
    return failure(status_code::shape_mismatch, subject, "must have as many channels as the queries or the output", dim,
                   source.dim());
  }
  if (!source.coded) {
    PQATTN_TRY(check_view(source.rows, subject));
    return source.rows.rows >= end
               ? status{}
               : failure(status_code::shape_mismatch, subject, "must cover the slots", end, source.rows.rows);
  }
  PQATTN_TRY(check_geometry(source.book.shape));
  PQATTN_TRY(check_same_geometry(source.book.shape, source.codes.shape, subject));
  if (end != 0 && (source.codes.memory == Address{} || source.book.memory == Address{})) {
    return failure(status_code::invalid_argument, subject, "are coded but have no codes or no codebook memory");
  }
  return {};
}

/// Whether the tables prepared for one segment serve another: chunks of one context share codebook and tables.
template <class Address>
[[nodiscard]] bool share_tables(const segment<Address>& prepared, const segment<Address>& next) noexcept {
  return prepared.tables == next.tables && prepared.keys.book.memory == next.keys.book.memory &&
         prepared.keys.book.shape == next.keys.book.shape && prepared.keys.book.storage == next.keys.book.storage &&
         prepared.rotation.angles == next.rotation.angles && prepared.rotation.pairs == next.rotation.pairs;
}

/// Exact channels behind coded keys: only there, fewer than the queries have, and reaching to slot `end`.
template <class Address>
status check_tail(const segment<Address>& tokens, std::size_t key_dim, std::size_t end) noexcept {
  const rows_view& tail = tokens.key_tail;
  if (tail.cols == 0) {
    return {};
  }
  if (!tokens.keys.coded) {
    return failure(status_code::unsupported, "segment.key_tail", "is for coded keys; exact keys have all channels");
  }
  if (tail.cols >= key_dim) {
    return failure(status_code::shape_mismatch, "segment.key_tail", "must have fewer channels than the queries",
                   key_dim, tail.cols);
  }
  PQATTN_TRY(check_view(tail, "segment.key_tail"));
  return tokens.tail_pages != nullptr || tail.rows >= end
             ? status{}
             : failure(status_code::shape_mismatch, "segment.key_tail", "must cover the slots", end, tail.rows);
}

/// The blocks of an exact tail lie within it.
template <class Address>
status check_tail_pages(const segment<Address>& tokens) noexcept {
  const std::size_t blocks = tokens.slots.count == 0 ? 0 : blocks_for(tokens.slots.first + tokens.slots.count);
  const std::size_t held = tokens.key_tail.rows / block_tokens;
  for (std::size_t block = 0; tokens.key_tail.cols != 0 && tokens.tail_pages != nullptr && block < blocks; ++block) {
    if (tokens.tail_pages[block] >= held) {
      return failure(status_code::shape_mismatch, "segment.tail_pages", "must lie within key_tail; blocks", held,
                     tokens.tail_pages[block]);
    }
  }
  return {};
}

/// Whether some segment has exact channels behind its coded keys.
template <class Address>
[[nodiscard]] bool has_tails(const segment<Address>* segments, std::size_t count) noexcept {
  bool found = false;
  for (std::size_t i = 0; i < count; ++i) {
    found = found || segments[i].key_tail.cols != 0;
  }
  return found;
}

template <class Address>
status check_segment(const segment<Address>& tokens, std::size_t key_dim, std::size_t value_dim) noexcept {
  if (tokens.slots.first > max_segment_slots || tokens.slots.count > max_segment_slots - tokens.slots.first) {
    return failure(status_code::invalid_argument, "segment.slots", "are more than memory can hold", max_segment_slots,
                   tokens.slots.count);
  }
  const std::size_t end = tokens.slots.first + tokens.slots.count;
  const std::size_t used = tokens.slots.count == 0 ? 0 : end;
  PQATTN_TRY(check_tail(tokens, key_dim, used));
  PQATTN_TRY(check_source(tokens.keys, key_dim - tokens.key_tail.cols, used, "segment.keys"));
  PQATTN_TRY(check_source(tokens.values, value_dim, used, "segment.values"));
  if (tokens.positions.list == nullptr) {
    PQATTN_TRY(check_reach(tokens.positions.base, "segment.positions"));
  }
  if (tokens.columns.base != slot_columns::by_slot) {
    PQATTN_TRY(check_reach(tokens.columns.base, "segment.columns"));
  }
  if (tokens.turned_values.enabled() && tokens.turned_values.dim != value_dim) {
    return failure(status_code::shape_mismatch, "segment.turned_values", "must have the output's channels", value_dim,
                   tokens.turned_values.dim);
  }
  if (tokens.keys.coded) {
    PQATTN_TRY(check_rope(tokens.rotation, static_cast<std::uint32_t>(tokens.keys.dim())));
    if (used != 0 && tokens.tables == Address{}) {
      return failure(status_code::invalid_argument, "segment.tables", "are needed for coded keys");
    }
  }
  return {};
}

/// Out of a rotation of the values, in place: an output whose probabilities sum to 1 turns back like a value.
inline void unrotate_state(const value_rotation& rotation, const partial_state& state) noexcept {
  float coded[max_dim];
  for (std::size_t row = 0; row < state.rows; ++row) {
    if (!is_empty_lse(state.lse_e[row])) {
      float* out = state.out + row * state.stride;
      std::memcpy(coded, out, state.dim * sizeof(float));
      unrotate_value(rotation, coded, 1.0f, out);
    }
  }
}

/// Merges the states of all parts, in order, into the first.
template <class Address, class StateOf>
void merge_parts(const segment<Address>* segments, std::size_t segment_count, const StateOf& state_of) noexcept {
  std::size_t end = 0;
  for (std::size_t i = 0; i < segment_count;) {
    const value_rotation& rotation = segments[i].turned_values;
    const std::size_t first = end;
    end += parts_of(segments[i++]);
    while (rotation.enabled() && i < segment_count && segments[i].turned_values == rotation) {
      end += parts_of(segments[i++]);
    }
    if (rotation.enabled() && end != first) {
      for (std::size_t part = first + 1; part < end; ++part) {
        merge(state_of(first), state_of(part));
      }
      unrotate_state(rotation, state_of(first));
    }
    const std::size_t last = rotation.enabled() && end != first ? first + 1 : end;
    for (std::size_t part = first == 0 ? 1 : first; part < last; ++part) {
      merge(state_of(0), state_of(part));
    }
  }
}

/// One past the largest column that the slots of a segment have, at least 0.
template <class Address>
[[nodiscard]] std::int64_t columns_end(const segment<Address>& tokens) noexcept {
  std::int64_t end = 0;
  const std::size_t first =
      tokens.columns.list != nullptr || tokens.slots.count == 0
          ? tokens.slots.first
          : tokens.slots.first + tokens.slots.count - 1;  // without a list the last is the largest
  for (std::size_t slot = first; slot < tokens.slots.first + tokens.slots.count; ++slot) {
    end = tokens.columns.at(slot) >= end ? tokens.columns.at(slot) + 1 : end;
  }
  return end;
}

/// The bias covers every row, and every column that a slot names.
template <class Address>
status check_bias(const score_modifiers& modifiers, std::size_t rows, const segment<Address>* segments,
                  std::size_t segment_count) noexcept {
  const rows_view& bias = modifiers.bias;
  if (bias.data == nullptr) {
    return {};
  }
  if (modifiers.bias_offsets == nullptr && bias.rows != rows) {
    return failure(status_code::shape_mismatch, "modifiers.bias", "must have a row per query row", rows, bias.rows);
  }
  for (std::size_t i = 0; i < segment_count; ++i) {
    if (segment_count != 1 && !segments[i].columns.given()) {
      return failure(status_code::invalid_argument, "segment.columns",
                     "is needed by a bias over several segments; segment", 0, i);
    }
    if (const std::int64_t end = columns_end(segments[i]); end > static_cast<std::int64_t>(bias.cols)) {
      return failure(status_code::shape_mismatch, "modifiers.bias", "must have every column that a slot names", end,
                     bias.cols);
    }
  }
  return {};
}

/// What the caller's lists say. They are read only after everything else has been checked: a wrong number beside them
/// must not send the look beyond their ends.
template <class Address>
status check_lists(const score_modifiers& modifiers, std::size_t rows, const segment<Address>* segments,
                   std::size_t segment_count) noexcept {
  PQATTN_TRY(check_modifiers(modifiers, rows));
  for (std::size_t i = 0; i < segment_count; ++i) {
    PQATTN_TRY(check_tail_pages(segments[i]));
  }
  return check_bias(modifiers, rows, segments, segment_count);
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Bytes of workspace attend() needs for these segments.
template <class Address>
[[nodiscard]] std::size_t attention_workspace_bytes(const segment<Address>* segments, std::size_t segment_count,
                                                    std::size_t rows, std::size_t key_dim, std::size_t value_dim,
                                                    std::size_t workers) noexcept {
  std::size_t parts = 0;
  for (std::size_t i = 0; i < segment_count; ++i) {
    parts += detail::parts_of(segments[i]);
  }
  carver memory;
  detail::attention_memory{}.carve(memory, rows, key_dim, value_dim, parts, workers,
                                   detail::has_tails(segments, segment_count));
  return memory.required();
}

/// Attention of all query rows of one KV head over the union of disjoint segments.
///
/// `queries` (rows, d_k): the query heads of the group times the query tokens, in any order, rotated as the model
/// rotates them; scores must be finite in f32, and one at or below masked_score counts as masked. `out` (rows, d_v) in
/// any dtype; `lse_e` (rows, natural logarithm) may be null. A row with every slot masked gives 0 and -infinity (or its
/// sink logit). Nothing is allocated; results do not depend on the executor. Errors (out untouched): shape mismatches,
/// missing memory, a bias that lacks columns, workspace too small.
template <bank_policy Bank>
status attend(Bank& bank, const rows_view& queries, const segment<typename Bank::address>* segments,
              std::size_t segment_count, const attention_params& params, void* workspace, std::size_t workspace_bytes,
              const rows_ref& out, float* lse_e) {
  PQATTN_TRY(check_view(queries, "queries"));
  PQATTN_TRY(check_view(out.view(), "out"));
  if (out.rows != queries.rows) {
    return failure(status_code::shape_mismatch, "out.rows", "must equal queries.rows", queries.rows, out.rows);
  }
  if (queries.cols < 1 || queries.cols > max_dim || out.cols < 1 || out.cols > max_dim) {
    return failure(status_code::invalid_argument, "queries.cols or out.cols", "must be 1 to 1024", max_dim,
                   queries.cols < 1 || queries.cols > max_dim ? queries.cols : out.cols);
  }
  if (segment_count != 0 && segments == nullptr) {
    return failure(status_code::invalid_argument, "segments", "is null");
  }
  std::size_t parts = 0;
  for (std::size_t i = 0; i < segment_count; ++i) {
    PQATTN_TRY(detail::check_segment(segments[i], queries.cols, out.cols));
    parts += detail::parts_of(segments[i]);
  }
  PQATTN_TRY(check_executor(params.parts, "params.parts"));
  const executor runner = Bank::concurrent ? params.parts : executor{};
  carver pieces(workspace, workspace_bytes);
  detail::attention_memory memory;
  memory.carve(pieces, queries.rows, queries.cols, out.cols, parts, params.parts.workers,
               detail::has_tails(segments, segment_count));
  if (workspace == nullptr || !pieces.fits()) {
    return failure(status_code::capacity, "workspace", "is too small for attention", pieces.used(), workspace_bytes);
  }
  PQATTN_TRY(detail::check_lists(params.modifiers, queries.rows, segments, segment_count));

  const float scale = params.scale != 0.0f ? params.scale : 1.0f / std::sqrt(static_cast<float>(queries.cols));
  for (std::size_t row = 0; row < queries.rows; ++row) {
    float* scaled = memory.queries + row * queries.cols;
    load_row(queries, row, scaled);
    for (std::size_t c = 0; c < queries.cols; ++c) {
      scaled[c] *= scale;
    }
  }
  const query_rows scaled{memory.queries, queries.rows, queries.cols};
  const auto state_of = [&](std::size_t part) {
    return partial_state{memory.outs + part * queries.rows * out.cols, out.cols, memory.lses + part * queries.rows,
                         queries.rows, out.cols};
  };

  // Segments of exact values come first: the mass they hold, sinks above all, lets coded blocks be skipped.
  std::size_t coded_parts = 0;
  for (std::size_t i = 0; i < segment_count; ++i) {
    coded_parts += segments[i].values.coded ? detail::parts_of(segments[i]) : 0;
  }
  for (std::size_t row = 0; row < queries.rows; ++row) {
    memory.earlier[row] = masked_score;
  }
  const detail::call_context context{memory.earlier, coded_parts, runner.workers};
  const segment<typename Bank::address>* prepared = nullptr;  // whose tables are in the bank
  for (const bool coded : {false, true}) {
    for (std::size_t i = 0, first_part = 0; i < segment_count; ++i) {
      const segment<typename Bank::address>& tokens = segments[i];
      const std::size_t first = first_part;
      const std::size_t count = detail::parts_of(tokens);
      first_part += count;
      if (count == 0 || tokens.values.coded != coded) {
        continue;
      }
      if (tokens.keys.coded && (prepared == nullptr || !detail::share_tables(*prepared, tokens))) {
        const auto prepare = [&](const auto&... hint) {
          return bank.prepare_scores(scaled, tokens.keys.book, tokens.rotation, tokens.tables, hint...);
        };
        const slot_range soon = detail::first_slots(detail::covered_slots(tokens));
        PQATTN_TRY(detail::with_hint<Bank>(prepare, detail::upcoming_slots(tokens.keys, soon)));
        prepared = &tokens;
      }
      std::atomic<bool> failed{false};
      status outcome;
      run_parts(runner, count, [&](std::size_t part, std::size_t worker) {
        const status done = detail::attend_part(bank, tokens, scaled, params, context, part, memory.scratch[worker],
                                                state_of(first + part), memory.skipped[first + part]);
        if (!done && !failed.exchange(true)) {
          outcome = done;
        }
      });
      PQATTN_TRY(outcome);
      for (std::size_t part = first; part < first + count; ++part) {
        if (!coded) {
          detail::add_masses(state_of(part), memory.earlier);
        } else if (params.skips != nullptr) {
          params.skips->skipped += memory.skipped[part];
        }
      }
      if (coded && params.skips != nullptr) {
        params.skips->blocks += blocks_for(detail::covered_slots(tokens).count);
      }
    }
  }

  if (parts == 0) {
    // No tokens at all: every row is the empty state.
    float nothing[max_dim] = {};
    float lse = 0.0f;
    for (std::size_t row = 0; row < queries.rows; ++row) {
      const partial_state state{nothing, out.cols, &lse, 1, out.cols};
      clear(state);
      if (params.sink_logits != nullptr) {
        merge_sink(state, params.sink_logits + row);
      }
      store_row(out, row, nothing);
      if (lse_e != nullptr) {
        lse_e[row] = lse;
      }
    }
    return {};
  }
  const partial_state total = state_of(0);
  detail::merge_parts(segments, segment_count, state_of);
  if (params.sink_logits != nullptr) {
    merge_sink(total, params.sink_logits);
  }
  for (std::size_t row = 0; row < queries.rows; ++row) {
    store_row(out, row, total.out + row * total.stride);
    if (lse_e != nullptr) {
      lse_e[row] = total.lse_e[row];
    }
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
