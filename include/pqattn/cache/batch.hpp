// SPDX-License-Identifier: MIT
// Ragged batches: attention of many requests in one call, over sequences of a page_pool or over pages and slots that an
// engine keeps in its own memory. Every entry is served exactly as if it were alone: same bits in any batch, in any
// order, on any number of workers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#include "../attend/attend.hpp"
#include "../config.hpp"
#include "../core/executor.hpp"
#include "../core/memory.hpp"
#include "attend_scratch.hpp"
#include "sequence.hpp"
#include "staged_rows.hpp"

namespace pqattn {
inline namespace v0 {

// --- level 0: the engine's own memory -------------------------------------------------------------------------------

/// One request of a level-0 batch: query rows [first_row, first_row + rows) over segments that may lie anywhere: each
/// names its page table, live bits, positions and codebook (a block of codes says by its segment which codebook and
/// epoch it was coded with).
template <class Address>
struct ragged_item {
  std::size_t first_row = 0;
  std::size_t rows = 0;
  const segment<Address>* segments = nullptr;
  std::size_t segment_count = 0;
  const attention_params* params = nullptr;  ///< its executor is not used; per-row lists start at this item's row 0
};

inline namespace PQATTN_ISA_UNIT {

/// Bytes of workspace attend_items() needs.
template <class Address>
[[nodiscard]] std::size_t ragged_workspace_bytes(const ragged_item<Address>* items, std::size_t count,
                                                 std::size_t key_dim, std::size_t value_dim,
                                                 std::size_t workers) noexcept {
  std::size_t most = 0;
  for (std::size_t i = 0; i < count; ++i) {
    most = (std::max)(most, attention_workspace_bytes(items[i].segments, items[i].segment_count, items[i].rows, key_dim,
                                                      value_dim, 1));
  }
  return workers * align_up(most) + memory_alignment;
}

/// Attention of every item of one KV head. `queries` (rows, d_k) and `out` (rows, d_v) hold the rows of all items;
/// `lse_e` (rows) may be null. Items that share segment::tables must not run at the same time: give each item tables of
/// its own, or an executor of one worker. Rows of no item are left alone. An item that fails (see attend) leaves its
/// rows alone; the others are served. `outcomes` (count) receives what became of each, and the first failure by number
/// is returned. An executor without workers is refused before anything is looked at.
template <bank_policy Bank>
status attend_items(Bank& bank, const rows_view& queries, const ragged_item<typename Bank::address>* items,
                    std::size_t count, const executor& parts, void* workspace, std::size_t workspace_bytes,
                    const rows_ref& out, float* lse_e, status* outcomes) {
  PQATTN_TRY(check_executor(parts, "parts"));
  const executor runner = Bank::concurrent ? parts : executor{};
  const std::size_t share = workspace_bytes < memory_alignment ? 0
                                                               : (workspace_bytes - memory_alignment) / runner.workers /
                                                                     memory_alignment * memory_alignment;
  carver pieces(workspace, workspace_bytes);
  auto* memory = pieces.take<std::byte>(share * runner.workers);
  run_parts(runner, count, [&](std::size_t part, std::size_t worker) {
    const ragged_item<typename Bank::address>& item = items[part];
    if (item.first_row > queries.rows || item.rows > queries.rows - item.first_row || out.rows != queries.rows) {
      outcomes[part] = failure(status_code::shape_mismatch, "item", "has rows outside queries and out", queries.rows,
                               item.first_row + item.rows);
      return;
    }
    if (item.params == nullptr) {
      outcomes[part] = failure(status_code::invalid_argument, "item.params", "is null");
      return;
    }
    attention_params params = *item.params;
    params.parts = {};
    outcomes[part] = attend(bank, queries.slice(item.first_row, item.rows), item.segments, item.segment_count, params,
                            memory == nullptr ? nullptr : memory + worker * share, share,
                            out.slice(item.first_row, item.rows), lse_e == nullptr ? nullptr : lse_e + item.first_row);
  });
  for (std::size_t i = 0; i < count; ++i) {
    PQATTN_TRY(outcomes[i]);
  }
  return {};
}

/// A list of single slots, in any order, as blocks: what segment wants instead. Slot s of the engine's storage lies in
/// physical block s / 64. `pages`, `live` and, per 64 slots, `positions` have room for `count` blocks (each slot may be
/// alone in its block). slot_list[i] sits at slot_position[i]. Returns the number of blocks. Blocks come in the order
/// of their first slot in the list, so slots that arrive sorted give sorted pages. O(count * blocks found between two
/// slots of a block); a list sorted by slot costs O(count).
[[nodiscard]] inline std::size_t blocks_of_slots(const std::int64_t* slot_list, const std::int32_t* slot_position,
                                                 std::size_t count, std::uint32_t* pages, std::uint64_t* live,
                                                 std::int32_t* positions) noexcept {
  std::size_t blocks = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto page = static_cast<std::uint32_t>(slot_list[i] / static_cast<std::int64_t>(block_tokens));
    const auto inside = static_cast<std::size_t>(slot_list[i] % static_cast<std::int64_t>(block_tokens));
    std::size_t block = blocks;
    while (block > 0 && pages[block - 1] != page) {
      --block;
    }
    if (block == 0) {
      block = ++blocks;
      pages[block - 1] = page;
      live[block - 1] = 0;
      for (std::size_t k = 0; k < block_tokens; ++k) {
        positions[(block - 1) * block_tokens + k] = 0;
      }
    }
    live[block - 1] |= std::uint64_t{1} << inside;
    positions[(block - 1) * block_tokens + inside] = slot_position[i];
  }
  return blocks;
}

}  // namespace PQATTN_ISA_UNIT

// --- level 1: sequences ---------------------------------------------------------------------------------------------

/// One request of a batch over sequences of one pool.
template <class Bank>
struct batch_entry {
  std::size_t first_query = 0;  ///< query tokens [first_query, first_query + queries) of the batch are this entry's
  std::size_t queries = 0;
  std::int64_t first_position = 0;  ///< of its first query token; the others follow. See batch_params::positions.
  /// Its context: the union of these sequences, e.g. a shared prefix and a continuation (cascade). May be none.
  const sequence<Bank>* const* sequences = nullptr;
  std::size_t sequence_count = 0;
  /// Optional tokens that are not appended yet, exact: chunked prefill attends to the coded past and its own chunk,
  /// then appends. (kv_heads, n, d), keys rotated as attention sees them; token i sits at new_position + i.
  const head_rows* new_keys = nullptr;
  const head_rows* new_values = nullptr;  ///< null when values come from the keys
  std::int64_t new_position = 0;
  const std::int32_t* new_positions =
      nullptr;  ///< optional: of each new token instead, e.g. of drafts that form a tree
  /// Optional explicit mask (1 or q_heads, queries, columns): added to scores, minus infinity excludes; see
  /// score_modifiers. Columns belong to the latest tokens of the context: those of `sequences` in order, then the new
  /// ones. Tokens before the first column have no bias, so that a mask among drafts (tree speculation) is as small as
  /// the tree.
  const head_rows* bias = nullptr;
};

/// What holds for all entries of a batch. Everything per query head is indexed by query head.
struct batch_params {
  float scale = 0.0f;       ///< 0 means 1 / sqrt(d_k)
  bool causal = true;       ///< a query token sees keys up to its own position
  std::int64_t window = 0;  ///< > 0: sees only the last `window` positions, its own included
  float softcap = 0.0f;
  const float* alibi_slopes = nullptr;      ///< (q_heads)
  const float* sink_logits = nullptr;       ///< (q_heads)
  const std::int64_t* positions = nullptr;  ///< of every query token of the batch; overrides batch_entry's
  value_method method = value_method::automatic;
  float skip_mass = attention_params{}.skip_mass;  ///< see attention_params
  skip_statistics* skips = nullptr;                ///< optional: counts of all entries and heads are added here
};

/// Runs batches over one pool. Holds the scratch of its workers; one attend() at a time, but any number of these may
/// read the same sequences. Move-only.
template <class Bank>
class batch_attention {
 public:
  using address = typename Bank::address;

  batch_attention() = default;
  batch_attention(batch_attention&& other) noexcept { swap(other); }
  batch_attention& operator=(batch_attention&& other) noexcept {
    batch_attention taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~batch_attention() { std::destroy_n(workers_, parts_.workers * (workers_ != nullptr ? 1 : 0)); }

  /// Entries and KV heads run as parts of `parts`. Errors: an executor without workers, out of memory.
  static status make(Bank& bank, const executor& parts, const memory_resource& resource, batch_attention& result) {
    PQATTN_TRY(check_executor(parts, "parts"));
    batch_attention made;
    made.resource_ = resource;
    made.parts_ = Bank::concurrent ? parts : executor{};
    carver counting;
    counting.take<worker_memory>(made.parts_.workers);
    PQATTN_TRY(buffer::make(resource, counting.required(), made.memory_));
    carver placed(made.memory_.data(), made.memory_.size());
    made.workers_ = placed.take<worker_memory>(made.parts_.workers);
    for (std::size_t i = 0; i < made.parts_.workers; ++i) {
      new (made.workers_ + i) worker_memory{attend_scratch<Bank>(bank, resource),
                                            buffer(),
                                            growable<segment<address>>(resource),
                                            growable<std::int32_t>(resource),
                                            {},
                                            {},
                                            0};
    }
    result = std::move(made);
    return {};
  }

  /// Attention of `queries` (q_heads, tokens, d_k), rotated, into `out` (q_heads, tokens, d_v); `lse_e` (q_heads,
  /// tokens) or null. q_heads is any multiple of the pool's KV heads. Query tokens of no entry are left alone.
  /// Allocates only while entries grow. Errors (out untouched): an entry outside the batch or over another pool, shape
  /// mismatches, out of memory.
  status attend(const page_pool<Bank>& pool, const batch_entry<Bank>* entries, std::size_t count,
                const head_rows& queries, const batch_params& params, const head_rows_ref& out,
                float* lse_e = nullptr) {
    PQATTN_TRY(
        detail::check_call(queries, out, pool.kv_heads(), pool.row_dim(kv_side::keys), pool.config().values.shape.dim));
    for (std::size_t i = 0; params.positions != nullptr && i < queries.rows.rows; ++i) {
      PQATTN_TRY(check_reach(params.positions[i], "params.positions"));
    }
    for (std::size_t i = 0; i < count; ++i) {
      PQATTN_TRY(check_entry(pool, entries[i], queries.rows.rows));
      if (entries[i].bias != nullptr) {
        PQATTN_TRY(detail::check_mask(*entries[i].bias, queries.heads, entries[i].queries, context_tokens(entries[i])));
      }
    }
    const std::size_t group = queries.heads / pool.kv_heads();
    PQATTN_TRY(reserve(pool, entries, count, group));
    const batch_call call{pool, params, {queries, out, lse_e, group}};
    run_parts(parts_, count * pool.kv_heads(), [&](std::size_t part, std::size_t worker) {
      worker_memory& memory = workers_[worker];
      const status done = serve(call, entries[part / pool.kv_heads()], part % pool.kv_heads(), memory);
      if (!done && (memory.outcome.ok() || part < memory.failed_part)) {
        memory.outcome = done;
        memory.failed_part = part;
      }
    });
    for (std::size_t i = 0; params.skips != nullptr && i < parts_.workers; ++i) {
      *params.skips += workers_[i].skips;
    }
    return first_failure();
  }

  /// Host and bank memory held.
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = memory_.size();
    for (std::size_t i = 0; workers_ != nullptr && i < parts_.workers; ++i) {
      total += workers_[i].scratch.bytes() + workers_[i].staging.size() + workers_[i].segments.bytes() +
               workers_[i].columns.bytes() + workers_[i].gathered.size();
    }
    return total;
  }

 private:
  struct worker_memory {
    attend_scratch<Bank> scratch;
    buffer staging;
    growable<segment<address>> segments;  ///< a plain array: only its memory is used
    growable<std::int32_t> columns;       ///< the same: of the slots of masked contexts
    buffer gathered;                      ///< outliers of a head
    status outcome;
    std::size_t failed_part = 0;
    skip_statistics skips{};
  };
  struct batch_call {
    const page_pool<Bank>& pool;
    const batch_params& params;
    detail::staged_call rows;
  };
  using staged_rows = detail::staged_rows;

  status check_entry(const page_pool<Bank>& pool, const batch_entry<Bank>& entry, std::size_t tokens) const noexcept {
    if (entry.first_query > tokens || entry.queries > tokens - entry.first_query) {
      return failure(status_code::invalid_argument, "entry.first_query + queries", "must be within the batch", tokens,
                     static_cast<double>(entry.first_query) + static_cast<double>(entry.queries));
    }
    PQATTN_TRY(check_reach(entry.first_position, "entry.first_position"));
    for (std::size_t i = 0; i < entry.sequence_count; ++i) {
      if (&entry.sequences[i]->pool() != &pool) {
        return failure(status_code::invalid_argument, "entry.sequences", "belong to another pool; index", 0, i);
      }
    }
    const bool stores_values = pool.stores(kv_side::values);
    if (stores_values ? (entry.new_keys == nullptr) != (entry.new_values == nullptr) : entry.new_values != nullptr) {
      return failure(status_code::invalid_argument, "entry.new_keys",
                     "and new_values come together, unless values come "
                     "from the keys");
    }
    if (entry.new_keys == nullptr) {
      return {};
    }
    if (entry.new_keys->heads != pool.kv_heads() ||
        (stores_values &&
         (entry.new_values->heads != pool.kv_heads() || entry.new_keys->rows.rows != entry.new_values->rows.rows))) {
      return failure(status_code::shape_mismatch, "entry.new_keys or new_values",
                     "must have the pool's KV heads and the same rows; heads", pool.kv_heads(), entry.new_keys->heads);
    }
    if (entry.new_keys->rows.cols != pool.row_dim(kv_side::keys)) {
      return failure(status_code::shape_mismatch, "entry.new_keys", "must have the keys' channels",
                     pool.row_dim(kv_side::keys), entry.new_keys->rows.cols);
    }
    PQATTN_TRY(check_view(entry.new_keys->rows, "entry.new_keys"));
    PQATTN_TRY(check_reach(entry.new_position, "entry.new_position"));
    if (entry.new_keys->rows.rows > max_segment_slots) {
      return failure(status_code::invalid_argument, "entry.new_keys", "has more rows than memory can hold",
                     max_segment_slots, entry.new_keys->rows.rows);
    }
    if (!stores_values) {
      return {};
    }
    if (entry.new_values->rows.cols != pool.row_dim(kv_side::values)) {
      return failure(status_code::shape_mismatch, "entry.new_values", "must have the values' channels",
                     pool.row_dim(kv_side::values), entry.new_values->rows.cols);
    }
    return check_view(entry.new_values->rows, "entry.new_values");
  }

  [[nodiscard]] static std::size_t context_tokens(const batch_entry<Bank>& entry) noexcept {
    std::size_t count = entry.new_keys != nullptr ? entry.new_keys->rows.rows : 0;
    for (std::size_t i = 0; i < entry.sequence_count; ++i) {
      count += entry.sequences[i]->size();
    }
    return count;
  }
  [[nodiscard]] static std::size_t segment_count(const batch_entry<Bank>& entry) noexcept {
    std::size_t count = entry.new_keys != nullptr ? 1 : 0;
    for (std::size_t i = 0; i < entry.sequence_count; ++i) {
      count += entry.sequences[i]->segment_count();
    }
    return count;
  }
  static void collect(const page_pool<Bank>& pool, const batch_entry<Bank>& entry, std::size_t head, address tables,
                      segment<address>* segments, std::byte* gathered = nullptr) noexcept {
    for (std::size_t i = 0; i < entry.sequence_count; ++i) {
      segments += entry.sequences[i]->collect_segments(head, tables, segments, gathered);
      gathered += gathered == nullptr ? 0 : entry.sequences[i]->gathered_bytes();
    }
    if (entry.new_keys != nullptr) {
      *segments = {};
      segments->keys.rows = entry.new_keys->head(head);
      if (entry.new_values != nullptr) {
        segments->values.rows = entry.new_values->head(head);
      } else {  // the keys' first channels
        segments->values.rows = entry.new_keys->head(head);
        segments->values.rows.cols = pool.row_dim(kv_side::values);
      }
      segments->slots = {0, entry.new_keys->rows.rows};
      segments->positions = {entry.new_position, entry.new_positions};
    }
  }

  /// Columns of a mask for the segments that collect() made; `list` has room for columns_in_all().
  static void number_columns(const batch_entry<Bank>& entry, std::size_t head, segment<address>* segments,
                             std::int32_t* list) noexcept {
    auto column = static_cast<std::int64_t>(entry.bias->rows.cols) - static_cast<std::int64_t>(context_tokens(entry));
    for (std::size_t i = 0; i < entry.sequence_count; ++i) {
      column = entry.sequences[i]->number_columns(head, column, segments, list);
      segments += entry.sequences[i]->segment_count();
      list += entry.sequences[i]->columns_in_all();
    }
    if (entry.new_keys != nullptr) {
      segments->columns = {column, nullptr};
    }
  }
  [[nodiscard]] static std::size_t columns_in_all(const batch_entry<Bank>& entry) noexcept {
    std::size_t count = 0;
    for (std::size_t i = 0; entry.bias != nullptr && i < entry.sequence_count; ++i) {
      count += entry.sequences[i]->columns_in_all();
    }
    return count;
  }
  [[nodiscard]] static std::size_t gathered_bytes(const batch_entry<Bank>& entry) noexcept {
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < entry.sequence_count; ++i) {
      bytes += entry.sequences[i]->gathered_bytes();
    }
    return bytes;
  }

  /// Makes every worker's memory fit every entry.
  status reserve(const page_pool<Bank>& pool, const batch_entry<Bank>* entries, std::size_t count, std::size_t group) {
    const cache_config& config = pool.config();
    std::size_t segments = 0;
    std::size_t rows = 0;
    for (std::size_t i = 0; i < count; ++i) {
      segments = (std::max)(segments, segment_count(entries[i]));
      rows = (std::max)(rows, group * entries[i].queries);
    }
    for (std::size_t i = 0; i < parts_.workers; ++i) {
      PQATTN_TRY(workers_[i].segments.reserve(segments + 1));
      workers_[i].outcome = {};
      workers_[i].skips = {};
    }
    std::size_t workspace = 0;
    std::size_t columns = 0;
    std::size_t gathered = 0;
    for (std::size_t i = 0; i < count; ++i) {
      segment<address>* listed = workers_[0].segments.data();
      collect(pool, entries[i], 0, address{}, listed);
      columns = (std::max)(columns, columns_in_all(entries[i]));
      gathered = (std::max)(gathered, gathered_bytes(entries[i]));
      workspace =
          (std::max)(workspace, attention_workspace_bytes(listed, segment_count(entries[i]), group * entries[i].queries,
                                                          config.key_channels(), config.values.shape.dim, 1));
    }
    const std::size_t tables = config.keys.coded && pool.trained()
                                   ? pool.bank().table_bytes(config.keys.shape, rows, pool.code_rotation())
                                   : 0;
    carver counting;
    staged_rows{}.carve(counting, rows, config.key_channels(), config.values.shape.dim);
    for (std::size_t i = 0; i < parts_.workers; ++i) {
      PQATTN_TRY(workers_[i].scratch.reserve(workspace, tables));
      PQATTN_TRY(workers_[i].columns.reserve(columns));
      if (workers_[i].gathered.size() < gathered) {
        PQATTN_TRY(buffer::make(resource_, gathered, workers_[i].gathered));
      }
      if (workers_[i].staging.size() < counting.required()) {
        PQATTN_TRY(buffer::make(resource_, counting.required(), workers_[i].staging));
      }
    }
    return {};
  }

  [[nodiscard]] status first_failure() const noexcept {
    const worker_memory* first = nullptr;
    for (std::size_t i = 0; i < parts_.workers; ++i) {
      if (!workers_[i].outcome && (first == nullptr || workers_[i].failed_part < first->failed_part)) {
        first = workers_ + i;
      }
    }
    return first == nullptr ? status{} : first->outcome;
  }

  /// Whether some key may lie behind some query: if not, as in a decode step, the causal mask is not needed.
  static bool sees_later_keys(const batch_entry<Bank>& entry, const std::int64_t* positions,
                              std::size_t rows) noexcept {
    std::int64_t earliest = (std::numeric_limits<std::int64_t>::max)();
    for (std::size_t row = 0; row < rows; ++row) {
      earliest = (std::min)(earliest, positions[row]);
    }
    std::int64_t latest = -1;
    const slot_positions added{entry.new_position, entry.new_positions};
    for (std::size_t i = 0; entry.new_keys != nullptr && i < entry.new_keys->rows.rows; ++i) {
      latest = (std::max)(latest, added.at(i));
    }
    for (std::size_t i = 0; i < entry.sequence_count; ++i) {
      latest = (std::max)(latest, entry.sequences[i]->latest_position());
    }
    return latest > earliest;
  }

  /// One entry, one KV head.
  static status serve(const batch_call& call, const batch_entry<Bank>& entry, std::size_t head, worker_memory& memory) {
    const std::size_t tokens = entry.queries;
    const std::size_t rows = call.rows.group * tokens;
    const std::size_t key_dim = call.rows.queries.rows.cols;
    const std::size_t value_dim = call.rows.out.rows.cols;
    const batch_params& params = call.params;
    carver placed(memory.staging.data(), memory.staging.size());
    staged_rows staged;
    staged.carve(placed, rows, key_dim, value_dim);
    staged.gather(call.rows, params, head, entry.first_query, tokens, [&](std::size_t token) {
      return params.positions != nullptr ? params.positions[entry.first_query + token]
                                         : entry.first_position + static_cast<std::int64_t>(token);
    });
    const bool causal = params.causal && sees_later_keys(entry, staged.positions, rows);
    segment<address>* segments = memory.segments.data();
    collect(call.pool, entry, head, memory.scratch.tables(), segments, memory.gathered.data());
    attention_params one = staged.params(params, causal);
    one.skips = &memory.skips;
    if (entry.bias != nullptr) {
      staged.mask(*entry.bias, call.rows.group, head, tokens, one);
      number_columns(entry, head, segments, memory.columns.data());
    }
    PQATTN_TRY(pqattn::attend(call.pool.bank(), view_rows(staged.queries, rows, key_dim), segments,
                              segment_count(entry), one, memory.scratch.workspace(), memory.scratch.workspace_bytes(),
                              ref_rows(staged.out, rows, value_dim), staged.lse_e));
    staged.scatter(call.rows, head, entry.first_query, tokens);
    return {};
  }

  void swap(batch_attention& other) noexcept {
    std::swap(resource_, other.resource_);
    std::swap(parts_, other.parts_);
    memory_.swap(other.memory_);
    std::swap(workers_, other.workers_);
  }

  memory_resource resource_;
  executor parts_;
  buffer memory_;
  worker_memory* workers_ = nullptr;
};

}  // namespace v0
}  // namespace pqattn
