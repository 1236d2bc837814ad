// SPDX-License-Identifier: MIT
// One sequence of one layer: exact sinks | coded body | exact recent window, in pages of a page_pool. Every edit is one
// operation over all of it; docs/sequences.md says what stays exact after which edit.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "../attend/attend.hpp"
#include "../core/executor.hpp"
#include "../core/memory.hpp"
#include "../encode/encode.hpp"
#include "head_rows.hpp"
#include "page_pool.hpp"
#include "query_log.hpp"
#include "sequence_append.hpp"
#include "token_list.hpp"

namespace pqattn {
inline namespace v0 {

inline namespace PQATTN_ISA_UNIT {
template <class>
class sequence_restorer;
}  // namespace PQATTN_ISA_UNIT

/// What a position shift costs.
enum class shift_cost : std::uint8_t {
  exact,    ///< codes stay as they are; exact keys under RoPE are turned and rounded once more to their dtype
  recoded,  ///< keys were coded after RoPE: they are decoded, turned and coded again, which adds an error
};

/// What a position shift did, over all heads.
struct shift_report {
  std::size_t tokens = 0;        ///< moved
  std::size_t recoded_keys = 0;  ///< decoded, turned and coded again
  double recoding_error = 0.0;   ///< sum of squared differences between turned and recoded keys
  double recoded_energy = 0.0;   ///< sum of squares of the turned keys

  /// Error added by recoding, as a share of the keys' energy.
  [[nodiscard]] double relative_error() const noexcept {
    return recoded_energy > 0.0 ? recoding_error / recoded_energy : 0.0;
  }
};

/// Tokens of one sequence, all KV heads of a layer. Tokens are numbered from 0 in the order they were appended; each
/// has a position (for RoPE, masks and ALiBi) that edits of other tokens do not change. Move-only; fork() copies.
///
/// After any failed call the sequence, and every other sequence of the pool, holds what it held before. A
/// default-constructed or moved-from sequence is empty and can only be assigned to.
template <class Bank>
class sequence {
 public:
  using address = typename Bank::address;

  sequence() = default;
  /// An empty sequence. Allocates nothing.
  explicit sequence(page_pool<Bank>& pool) noexcept
      : pool_(&pool),
        sinks_(pool.resource()),
        body_(pool.resource()),
        recent_(pool.resource(), pool.config().codes_anything() && !pool.trained() ? pool.kv_heads() : 0) {}
  sequence(sequence&& other) noexcept { swap(other); }
  sequence& operator=(sequence&& other) noexcept {
    sequence taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~sequence() { clear(); }

  // --- what it holds ---

  [[nodiscard]] page_pool<Bank>& pool() const noexcept { return *pool_; }
  [[nodiscard]] std::size_t size() const noexcept { return sinks_.tokens() + body_.tokens() + recent_.tokens(); }
  [[nodiscard]] std::size_t coded_tokens() const noexcept { return body_.tokens(); }
  [[nodiscard]] bool is_coded(std::size_t token) const noexcept {
    return token >= sinks_.tokens() && token - sinks_.tokens() < body_.tokens();
  }
  /// Whether a head keeps a coded token's rows exact besides, because codes serve them too badly. Pre: token < size().
  [[nodiscard]] bool is_outlier(std::size_t head, std::size_t token) const noexcept {
    const place found = find(token);
    return found.list == &body_ &&
           (outliers_in(head, found.slot / block_tokens) >> (found.slot % block_tokens) & 1u) != 0;
  }
  /// Coded tokens of a head that are outliers. O(pages).
  [[nodiscard]] std::size_t outlier_tokens(std::size_t head) const noexcept {
    std::size_t count = 0;
    for (std::size_t page = 0; page < body_.page_count(); ++page) {
      count += static_cast<std::size_t>(std::popcount(outliers_in(head, page) & body_.live()[page]));
    }
    return count;
  }
  /// Position of token `token`. Pre: token < size(). O(pages).
  [[nodiscard]] std::int64_t position(std::size_t token) const noexcept {
    const place found = find(token);
    return found.list->position(found.slot);
  }
  /// Position that the next token gets by default: one after the last token's, 0 when there is none. O(1).
  [[nodiscard]] std::int64_t next_position() const noexcept {
    const token_list& last = recent_.tokens() != 0 ? recent_ : body_.tokens() != 0 ? body_ : sinks_;
    return last.tokens() == 0 ? 0 : last.position(last.last_slot()) + 1;
  }
  /// No token sits behind this position (of a removed one it may be); -1 when empty. O(slots), a plain maximum.
  [[nodiscard]] std::int64_t latest_position() const noexcept {
    std::int32_t latest = -1;
    for (const token_list* list : {&sinks_, &body_, &recent_}) {
      for (std::size_t slot = 0; slot < list->slots(); ++slot) {
        latest = (std::max)(latest, list->positions()[slot]);
      }
    }
    return latest;
  }
  /// The parts of the sequence, for snapshots and reports.
  [[nodiscard]] const token_list& sinks() const noexcept { return sinks_; }
  [[nodiscard]] const token_list& body() const noexcept { return body_; }
  [[nodiscard]] const token_list& recent() const noexcept { return recent_; }
  /// What observe() has kept; closed when there is nothing.
  [[nodiscard]] const query_logs& queries() const noexcept { return queries_; }
  /// Bytes of lists and of queries kept for training; pages are the pool's and may be shared.
  [[nodiscard]] std::size_t metadata_bytes() const noexcept {
    return sinks_.bytes() + body_.bytes() + recent_.bytes() + queries_.bytes();
  }

  // --- growing ---

  /// Appends n tokens: keys (kv_heads, n, d_k), values (kv_heads, n, d_v), any dtype and strides. Keys have their tail;
  /// values that come from the keys are {}.
  ///
  /// The first tokens of an empty sequence become sinks. The others enter the recent window; once the pool is trained,
  /// tokens beyond config.recent leave it, oldest first and config.coding_batch at a time, and are coded. The append
  /// that brings an untrained pool's sequence to config.training_start() tokens behind the sinks trains the codebooks
  /// of all sequences. One long append and many short ones hold the same, given the same codebooks. Errors (nothing
  /// changed): shape mismatch, NaN or infinity with its row and column, bad weights or positions, out of memory,
  /// cancelled training.
  status append(const head_rows& keys, const head_rows& values, const append_options& options = {}) {
    return sequence_append<Bank>(*this).run(keys, values, options);
  }

  /// Trains new codebooks for the pool, its next epoch, each starting from the newest: on the rows that are exact in
  /// the recent window and on `keys` and `values`, given as for append(), for instance what is appended next; they are
  /// not kept here. All tokens coded from now on, of any sequence, are coded in it; what is coded stays as it is.
  /// Metric, rotation and everything configured stay. page_pool::drift() says when it may pay: it is the caller's
  /// decision. `options` brings positions, weights, executor and progress. Errors (nothing changed): those of append(),
  /// an untrained pool, fewer rows than centroids, as many epochs with pages as config.most_epochs.
  status refresh(const head_rows& keys, const head_rows& values, const append_options& options = {}) {
    return sequence_append<Bank>(*this).refresh(keys, values, options);
  }

  /// Keeps query rows (q_heads, n, d_k) of positions first_position, first_position + 1, ... for the training to come:
  /// up to config.query_rows of each KV head, spread evenly. They teach the keys' metric and, with
  /// config.attention_weights, the importance of tokens. Forks keep a copy; edits leave them alone. Does nothing once
  /// the pool is trained. Errors (nothing kept): shape mismatch, positions out of range, not finite, out of memory.
  status observe(const head_rows& queries, std::int64_t first_position) {
    const cache_config& config = pool_->config();
    PQATTN_TRY(detail::check_queries(queries, pool_->kv_heads(), config.key_channels()));
    PQATTN_TRY(detail::check_positions(first_position, queries.rows.rows, "first_position"));
    if (pool_->trained() || !config.codes_anything() || config.query_rows == 0) {
      return {};
    }
    if (!queries_.is_open()) {
      PQATTN_TRY(queries_.open(pool_->resource(), pool_->kv_heads(), config.query_rows, config.keys.shape.dim));
    }
    const std::size_t group = queries.heads / pool_->kv_heads();
    for (std::size_t i = 0; i < queries.rows.rows; ++i) {
      const std::int64_t position = first_position + static_cast<std::int64_t>(i);
      for (std::size_t head = 0; head < queries.heads; ++head) {
        // All memory is there.
        static_cast<void>(queries_.head(head / group).add(queries.head(head).slice(i, 1), &position));
      }
    }
    return {};
  }

  /// Makes room for `tokens` more tokens, in place of what was reserved before: appends of up to that many in all, in
  /// any portions and with up to `workers` workers, allocate nothing but what training needs, whether the pool is
  /// trained by now or not. It lasts over other edits, until clear(), reserve(0) or a copy of another sequence in this
  /// one's place. Reserves of several sequences add up. What they do not foresee takes from them, and later appends may
  /// allocate: refreshes, appends to sequences without a reserve, pages shared by later forks or copied by a shift,
  /// windows with tokens removed from their middle. Errors (nothing that can be seen changed): more tokens than there
  /// are positions, no worker or too many, out of memory.
  status reserve(std::size_t tokens, std::size_t workers = 1) {
    if (tokens > static_cast<std::size_t>(max_position)) {
      return failure(status_code::capacity, "tokens", "are more than a sequence has positions", max_position, tokens);
    }
    PQATTN_TRY(check_executor({&executor::run_inline, nullptr, workers}, "workers"));
    if (tokens == 0) {
      pool_->end_reserve(reserved_);
      return {};
    }
    const cache_config& config = pool_->config();
    const bool codes = config.codes_anything();
    const std::size_t to_sinks = (std::min)(tokens, std::size_t{config.sinks});
    const std::size_t held = recent_.tokens() + tokens;
    const std::size_t leaving = codes && held > config.recent ? held - config.recent : 0;
    // New tokens in the window: at most what a full one holds, twice, as tokens enter before others leave. Before
    // training it is as long as training asks for.
    const std::size_t full =
        2 * (std::size_t{config.recent} + config.coding_batch) + (pool_->trained() ? 0 : config.training_start());
    const std::size_t staying = codes ? (std::min)(tokens, full) : tokens;
    PQATTN_TRY(sinks_.reserve(to_sinks));
    PQATTN_TRY(body_.reserve(leaving + 2 * block_tokens));
    PQATTN_TRY(recent_.reserve(staying + block_tokens));
    PQATTN_TRY(pool_->reserve_coding(leaving == 0 ? 0 : Bank::concurrent ? workers : 1));
    // The window may begin inside a page, the last page of each part may have to be copied, coded tokens may have to
    // begin a new page, and an append asks for cells of the page before once more.
    page_reserve wanted{3 + blocks_for(to_sinks) + blocks_for(staying)};
    if (leaving != 0) {
      const std::size_t limit = pool_->outlier_limit();
      wanted.coded = 2 + blocks_for(leaving);
      wanted.cells = limit + (std::min)(leaving, (3 + blocks_for(leaving)) * limit);
    }
    return pool_->keep_reserve(reserved_, wanted);
  }

  // --- removing ---

  /// Keeps the first `tokens` tokens. O(removed / 64 + 1), cannot fail; more than size() keeps all. Coded tokens stay
  /// coded: the recent window fills again with what is appended next.
  void truncate(std::size_t tokens) noexcept {
    std::size_t removed = size() - (std::min)(tokens, size());
    for (token_list* list : {&recent_, &body_, &sinks_}) {
      const std::size_t here = (std::min)(removed, list->tokens());
      list->drop_back(here, dropper(list));
      removed -= here;
    }
  }

  /// Removes tokens [first, first + count); the others keep their positions and their form. Pages without a token left
  /// are given back. O(pages). Errors (nothing changed): a range outside the sequence.
  status remove(std::size_t first, std::size_t count) noexcept {
    PQATTN_TRY(check_range(first, count));
    for (token_list* list : {&sinks_, &body_, &recent_}) {
      const std::size_t here = first < list->tokens() ? (std::min)(count, list->tokens() - first) : 0;
      const std::size_t start = (std::min)(first, list->tokens());
      first -= start;
      count -= here;
      list->remove(start, here, dropper(list));
    }
    return {};
  }

  /// Removes everything, queries kept for training and what is reserved included.
  void clear() noexcept {
    if (pool_ != nullptr) {
      pool_->end_reserve(reserved_);
    }
    for (token_list* list : {&sinks_, &body_, &recent_}) {
      list->clear(dropper(list));
    }
    queries_ = {};
  }

  // --- copying ---

  /// Makes `copy` (its old tokens are given back) hold the same tokens. Pages are shared until one side writes into
  /// one: O(tokens) for lists of a few bytes a token, no code or row is copied. Errors (`copy` unchanged): out of
  /// memory.
  status fork(sequence& copy) const {
    sequence made;
    made.pool_ = pool_;
    if (queries_.is_open() && !pool_->trained()) {
      PQATTN_TRY(queries_.duplicate(pool_->resource(), made.queries_));
    }
    const token_list* mine[] = {&sinks_, &body_, &recent_};
    token_list* copies[] = {&made.sinks_, &made.body_, &made.recent_};
    for (std::size_t i = 0; i < 3; ++i) {
      if (const status copied = mine[i]->duplicate(pool_->resource(), *copies[i]); !copied) {
        made.forget();  // no page has been counted yet
        return copied;
      }
    }
    for (const token_list* list : {&made.sinks_, &made.body_, &made.recent_}) {
      for (std::size_t i = 0; i < list->page_count(); ++i) {
        list == &made.body_ ? pool_->share_coded(list->page(i)) : pool_->share_exact(list->page(i));
      }
    }
    copy = std::move(made);
    return {};
  }

  /// Beam search: sequence i becomes a copy of what sequence parents[i] held before. All sequences belong to one pool.
  /// Errors (nothing changed): a parent outside [0, count), out of memory.
  static status select(sequence* sequences, std::size_t count, const std::size_t* parents) {
    for (std::size_t i = 0; i < count; ++i) {
      if (parents[i] >= count) {
        return failure(status_code::invalid_argument, "parents", "must name one of the sequences; count", count,
                       parents[i]);
      }
    }
    if (count == 0) {
      return {};
    }
    buffer memory;
    PQATTN_TRY(buffer::make(sequences[0].pool_->resource(), count * sizeof(sequence), memory));
    auto* chosen = reinterpret_cast<sequence*>(memory.data());
    std::uninitialized_default_construct_n(chosen, count);
    status outcome;
    for (std::size_t i = 0; i < count && outcome; ++i) {
      outcome = sequences[parents[i]].fork(chosen[i]);
    }
    for (std::size_t i = 0; i < count && outcome; ++i) {
      sequences[i] = std::move(chosen[i]);
    }
    std::destroy_n(chosen, count);
    return outcome;
  }

  // --- moving ---

  /// What shift() costs in this pool.
  [[nodiscard]] shift_cost can_shift() const noexcept { return recodes() ? shift_cost::recoded : shift_cost::exact; }

  /// Adds `delta` to the positions of tokens [first, first + count). Codes of keys before RoPE do not change; what does
  /// is said by can_shift(). Shared pages that must be rewritten are copied first.
  /// Errors (nothing changed): a range outside the sequence, a position that would leave [0, 2^31 - 1], out of memory.
  status shift(std::size_t first, std::size_t count, std::int64_t delta, shift_report* report = nullptr) {
    PQATTN_TRY(check_range(first, count));
    if (delta > max_position || delta < -max_position) {
      return failure(status_code::invalid_argument, "delta", "is larger than any position", max_position, delta);
    }
    shift_report done;
    done.tokens = count;
    if (count != 0 && delta != 0) {
      PQATTN_TRY(check_positions(first, count, delta));
      PQATTN_TRY(pool_->reserve_coding(recodes() ? 1 : 0));
      PQATTN_TRY(own_rotated(first, count));
      for (std::size_t head = 0; head < pool_->kv_heads(); ++head) {
        rotate_tokens(first, count, delta, head, done);
      }
      for_each(*this, first, count,
               [&](token_list& list, std::size_t slot) { list.set_position(slot, list.position(slot) + delta); });
    }
    if (report != nullptr) {
      *report = done;
    }
    return {};
  }

  // --- reading ---

  /// Copies tokens [first, first + n) of one head out as attention sees them: keys rotated, coded tokens decoded.
  /// keys (n, d_k) and values (n, d_v) in any dtype. Errors: shape mismatch, tokens the sequence does not hold.
  status read(std::size_t head, std::size_t first, const rows_ref& keys, const rows_ref& values) const {
    if (keys.cols != pool_->row_dim(kv_side::keys) || values.cols != pool_->row_dim(kv_side::values) ||
        keys.rows != values.rows) {
      return failure(status_code::shape_mismatch, "keys or values",
                     "must have the configured channels, same rows; keys", pool_->row_dim(kv_side::keys), keys.cols);
    }
    if (head >= pool_->kv_heads()) {
      return failure(status_code::invalid_argument, "head", "must be below the KV heads", pool_->kv_heads(), head);
    }
    PQATTN_TRY(check_range(first, keys.rows));
    float row[max_dim];
    for (std::size_t i = 0; i < keys.rows; ++i) {
      const place found = find(first + i);
      PQATTN_TRY(load_token(*found.list, found.slot, head, kv_side::keys, row));
      store_row(keys, i, row);
      PQATTN_TRY(load_token(*found.list, found.slot, head, kv_side::values, row));
      store_row(values, i, row);
    }
    return {};
  }

  /// Segments that collect_segments() gives. O(pages).
  [[nodiscard]] std::size_t segment_count() const noexcept {
    std::size_t runs = 0;
    for (std::size_t page = 0; page < body_.page_count(); page = run_end(page)) {
      ++runs;
    }
    return sinks_.page_count() + runs + (gathers_outliers() ? 1 : 0) + recent_.page_count();
  }
  /// Bytes of memory that collect_segments() needs besides, for any head: 0 unless outliers are kept.
  [[nodiscard]] std::size_t gathered_bytes() const noexcept {
    if (!gathers_outliers()) {
      return 0;
    }
    carver memory;
    static_cast<void>(gathered_rows(memory, *this));
    return memory.required();
  }
  /// Segments of one head for pqattn::attend, in the order of their tokens: exact pages one by one, the body in one for
  /// each run of pages of an epoch (page by page when a side of it is exact), then its outliers gathered into `memory`
  /// of gathered_bytes(). Valid until the next edit of any sequence of the pool. With null memory only numbers of slots
  /// count, with as many outliers as there can be. `tables`: see segment.
  std::size_t collect_segments(std::size_t head, address tables, segment<address>* segments,
                               std::byte* memory = nullptr) const noexcept {
    std::size_t count = 0;
    for (std::size_t i = 0; i < sinks_.page_count(); ++i) {
      exact_segment(sinks_, i, head, segments[count++]);
    }
    carver pieces(memory, memory == nullptr ? 0 : gathered_bytes());
    const gathered_rows gathered(pieces, *this);
    const std::size_t first_run = count;
    for (std::size_t page = 0; page < body_.page_count(); page = run_end(page)) {
      body_segment(head, page, tables, segments[count++]);
    }
    if (gathers_outliers()) {
      gather_outliers(head, gathered, segments + first_run, count - first_run, segments[count]);
      ++count;
    }
    for (std::size_t i = 0; i < recent_.page_count(); ++i) {
      exact_segment(recent_, i, head, segments[count++]);
    }
    return count;
  }
  /// Gives the segments that collect_segments() made columns of a mask (segment::columns): token t of the sequence has
  /// column first + t. `list` has room for columns_in_all() numbers. Returns the column behind the last token.
  std::int64_t number_columns(std::size_t head, std::int64_t first, segment<address>* segments,
                              std::int32_t* list) const noexcept {
    std::int32_t token = 0;
    for (const token_list* part : {&sinks_, &body_, &recent_}) {
      std::int32_t* of_slots = list;
      for (std::size_t slot = 0; slot < part->slots(); ++slot) {
        list[slot] = part->is_live(slot) || token == 0 ? token : token - 1;  // a dead slot names a column that is there
        token += part->is_live(slot) ? 1 : 0;
      }
      list += part->slots();
      for (std::size_t page = 0; page < part->page_count(); page = part == &body_ ? run_end(page) : page + 1) {
        (segments++)->columns = {first, of_slots + page * block_tokens};
      }
      if (part == &body_ && gathers_outliers()) {
        std::size_t found = 0;
        for_each_outlier(head, [&](std::size_t slot) { list[found++] = of_slots[slot]; });
        (segments++)->columns = {first, list};
        list += found;
      }
    }
    return first + token;
  }
  /// Numbers that number_columns() writes, for any head.
  [[nodiscard]] std::size_t columns_in_all() const noexcept {
    return sinks_.slots() + body_.slots() + recent_.slots() + most_outliers();
  }

 private:
  template <class>
  friend class sequence_append;
  template <class>
  friend class sequence_restorer;

  struct place {
    const token_list* list;
    std::size_t slot;
  };
  // --- checks ---

  status check_range(std::size_t first, std::size_t count) const noexcept {
    return first <= size() && count <= size() - first
               ? status{}
               : failure(status_code::invalid_argument, "first + count", "must be within the sequence", size(),
                         static_cast<double>(first) + static_cast<double>(count));
  }
  status check_positions(std::size_t first, std::size_t count, std::int64_t delta) const noexcept {
    status outcome;
    for_each(*this, first, count, [&](const token_list& list, std::size_t slot) {
      const std::int64_t moved = list.position(slot) + delta;
      if (outcome && (moved < 0 || moved > max_position)) {
        outcome = failure(status_code::invalid_argument, "delta", "would move a position out of 0 to 2^31 - 1",
                          max_position, moved);
      }
    });
    return outcome;
  }

  // --- tokens ---

  [[nodiscard]] place find(std::size_t token) const noexcept {
    for (const token_list* list : {&sinks_, &body_}) {
      if (token < list->tokens()) {
        return {list, list->slot_of(token)};
      }
      token -= list->tokens();
    }
    return {&recent_, recent_.slot_of(token)};
  }
  /// visit(list, slot) for tokens [first, first + count) in order; lists are const when `self` is.
  template <class Self, class Visit>
  static void for_each(Self& self, std::size_t first, std::size_t count, Visit&& visit) noexcept {
    for (auto* list : {&self.sinks_, &self.body_, &self.recent_}) {
      if (first >= list->tokens()) {
        first -= list->tokens();
        continue;
      }
      const std::size_t here = (std::min)(count, list->tokens() - first);
      for (std::size_t i = 0, slot = here == 0 ? 0 : list->slot_of(first); i < here;
           ++i, slot = list->next_live(slot + 1)) {
        visit(*list, slot);
      }
      count -= here;
      first = 0;
    }
  }

  /// Passed to what gives pages of `list` up.
  [[nodiscard]] auto dropper(const token_list* list) noexcept {
    return [this, coded = list == &body_](std::uint32_t page) {
      coded ? pool_->drop_coded(page) : pool_->drop_exact(page);
    };
  }
  /// Empties the lists without giving pages back: they were never counted.
  void forget() noexcept {
    for (token_list* list : {&sinks_, &body_, &recent_}) {
      list->clear([](std::uint32_t) {});
    }
  }

  /// A token's row as attention sees it.
  status load_token(const token_list& list, std::size_t slot, std::size_t head, kv_side which,
                    float* row) const noexcept {
    const std::uint32_t page = list.page(slot / block_tokens);
    if (&list == &body_ && (pool_->outliers().mask(head, page) >> (slot % block_tokens) & 1u) != 0) {
      load_row(outlier_row(head, page, slot, which).view(), 0, row);
    } else if (&list != &body_) {
      load_row(pool_->exact_rows(page, head, which).view(), slot % block_tokens, row);
    } else if (!pool_->side(which).coded) {
      load_row(pool_->body_rows(page, head, which).view(), slot % block_tokens, row);
    } else {
      PQATTN_TRY(decode_slot(slot, head, which, row));
      pool_->forms(head, which).from_coded(list.position(slot), row);
      if (which == kv_side::keys && pool_->config().key_tail != 0) {
        load_row(pool_->tail_rows(page, head).view(), slot % block_tokens, row + pool_->side(which).shape.dim);
      }
    }
    return {};
  }
  status decode_slot(std::size_t slot, std::size_t head, kv_side which, float* row) const noexcept {
    return pool_->bank().decode(pool_->book(head, which, epoch_of(slot)), pool_->codes(head, which, body_.pages()),
                                {slot, 1}, ref_rows(row, 1, pool_->side(which).shape.dim));
  }

  /// Epoch of a slot of the body.
  [[nodiscard]] std::size_t epoch_of(std::size_t slot) const noexcept {
    return pool_->epoch_of(body_.page(slot / block_tokens));
  }

  // --- outliers ---

  /// Slots of page `index` of the body that are outliers, dead ones included.
  [[nodiscard]] std::uint64_t outliers_in(std::size_t head, std::size_t index) const noexcept {
    return pool_->outliers().mask(head, body_.page(index));
  }
  [[nodiscard]] rows_ref outlier_row(std::size_t head, std::uint32_t page, std::size_t slot,
                                     kv_side which) const noexcept {
    const outlier_cells& cells = pool_->outliers();
    return which == kv_side::keys ? cells.key(head, page, slot % block_tokens)
                                  : cells.value(head, page, slot % block_tokens, pool_->row_dim(which));
  }
  /// visit(slot) for the outliers of a head that are still there, in order.
  template <class Visit>
  void for_each_outlier(std::size_t head, Visit&& visit) const noexcept {
    for (std::size_t page = 0; page < body_.page_count(); ++page) {
      for (std::uint64_t left = outliers_in(head, page) & body_.live()[page]; left != 0; left &= left - 1) {
        visit(page * block_tokens + static_cast<std::size_t>(std::countr_zero(left)));
      }
    }
  }
  [[nodiscard]] bool gathers_outliers() const noexcept { return pool_->outliers().enabled() && body_.tokens() != 0; }
  /// Of any head, in all the room of the body: what grows with tokens only when room does.
  [[nodiscard]] std::size_t most_outliers() const noexcept {
    return gathers_outliers() ? pool_->outlier_limit() * body_.page_capacity() : 0;
  }
  /// Outliers of one head as attention wants them, and the bits of the slots whose codes count.
  struct gathered_rows {
    std::size_t most;
    std::uint64_t* live;
    std::int32_t* positions;
    std::byte* keys;
    std::byte* values;

    gathered_rows(carver& memory, const sequence& tokens) noexcept
        : most(tokens.most_outliers()),
          live(memory.take<std::uint64_t>(tokens.body_.page_capacity())),
          positions(memory.take<std::int32_t>(most)),
          keys(memory.take<std::byte>(most * tokens.row_bytes(kv_side::keys))),
          values(memory.take<std::byte>(tokens.pool_->stores(kv_side::values) ? most * tokens.row_bytes(kv_side::values)
                                                                              : 0)) {}
  };
  [[nodiscard]] std::size_t row_bytes(kv_side which) const noexcept {
    return pool_->row_dim(which) * size_of(pool_->config().exact_type);
  }
  [[nodiscard]] rows_view gathered_view(const std::byte* rows, std::size_t count, kv_side stored,
                                        kv_side which) const noexcept {
    return {rows,
            pool_->config().exact_type,
            count,
            pool_->row_dim(which),
            static_cast<std::ptrdiff_t>(pool_->row_dim(stored)),
            1};
  }
  /// Fills the segment of a head's outliers and takes their slots out of the body's `runs` segments.
  void gather_outliers(std::size_t head, const gathered_rows& gathered, segment<address>* body, std::size_t runs,
                       segment<address>& next) const noexcept {
    next = {};
    std::size_t count = 0;
    const kv_side value_rows = pool_->stores(kv_side::values) ? kv_side::values : kv_side::keys;
    if (gathered.keys != nullptr) {
      for_each_outlier(head, [&](std::size_t slot) {
        const std::uint32_t page = body_.page(slot / block_tokens);
        gathered.positions[count] = body_.positions()[slot];
        for (const kv_side which : kv_sides) {
          if (pool_->stores(which)) {
            std::memcpy((which == kv_side::keys ? gathered.keys : gathered.values) + count * row_bytes(which),
                        outlier_row(head, page, slot, which).data, row_bytes(which));
          }
        }
        ++count;
      });
    }
    next.slots = {0, gathered.keys == nullptr ? gathered.most : count};
    next.positions = {0, gathered.positions};
    next.keys.rows = gathered_view(gathered.keys, count, kv_side::keys, kv_side::keys);
    next.values.rows = gathered_view(value_rows == kv_side::keys ? gathered.keys : gathered.values, count, value_rows,
                                     kv_side::values);
    for (std::size_t page = 0; count != 0 && page < body_.page_count(); ++page) {
      gathered.live[page] = body_.live()[page] & ~outliers_in(head, page);
    }
    for (std::size_t i = 0, page = 0; count != 0 && i < runs; ++i, page = run_end(page)) {
      body[i].live = gathered.live + page;
    }
  }

  [[nodiscard]] bool is_shared(const token_list& list, std::size_t index) const noexcept {
    return (&list == &body_ ? pool_->coded_pages() : pool_->exact_pages()).shared(list.page(index));
  }
  /// Replaces a shared page by a private copy. Pre: a free page is reserved.
  void own_page(token_list& list, std::size_t index) noexcept {
    const std::uint32_t old = list.page(index);
    list.replace_page(index, &list == &body_ ? pool_->copy_coded(old) : pool_->copy_exact(old));
    dropper (&list)(old);
  }

  // --- moving ---

  /// Whether codes of keys must be made again.
  [[nodiscard]] bool recodes() const noexcept {
    const cache_config& config = pool_->config();
    return config.rotation.enabled() && config.keys.coded && config.key_tail == 0 && config.code_keys_after_rope;
  }
  [[nodiscard]] bool rewrites(const token_list& list) const noexcept {
    const cache_config& config = pool_->config();
    return config.rotation.enabled() && (&list != &body_ || !config.rotates_codes());
  }
  /// The same of one page: exact keys of outliers turn, too.
  [[nodiscard]] bool rewrites(const token_list& list, std::size_t index) const noexcept {
    return rewrites(list) ||
           (&list == &body_ && pool_->config().rotation.enabled() && pool_->outliers().most_in(list.page(index)) != 0);
  }
  /// Makes every page that shift() rewrites private.
  status own_rotated(std::size_t first, std::size_t count) {
    for (int pass = 0; pass < 2; ++pass) {
      std::size_t exact = 0;
      std::size_t coded = 0;
      std::size_t cells = 0;
      const token_list* last_list = nullptr;
      std::size_t last_page = 0;
      for_each(*this, first, count, [&](token_list& list, std::size_t slot) {
        const std::size_t index = slot / block_tokens;
        if (&list == last_list && index == last_page) {
          return;
        }
        last_list = &list;
        last_page = index;
        if (rewrites(list, index) && is_shared(list, index)) {
          ++(&list == &body_ ? coded : exact);
          cells += &list == &body_ ? pool_->outliers().most_in(list.page(index)) : 0;
          if (pass == 1) {
            own_page(list, index);
          }
        }
      });
      if (pass == 0) {
        PQATTN_TRY(pool_->reserve_exact(exact));
        PQATTN_TRY(pool_->reserve_coded(coded));
        PQATTN_TRY(pool_->outliers().reserve(cells));
      }
    }
    return {};
  }

  /// Turns the keys of one head by `delta` positions where they are kept rotated. Pre: their pages are private.
  void rotate_tokens(std::size_t first, std::size_t count, std::int64_t delta, std::size_t head,
                     shift_report& report) const noexcept {
    const cache_config& config = pool_->config();
    const auto turn = [&](float* row) {
      rotate_row(config.rotation, delta < 0 ? -delta : delta, delta < 0 ? -1.0f : 1.0f, row);
    };
    carver memory = pool_->coding_memory(0);
    side_coder coder(memory, config.keys, false);
    std::size_t started = max_epochs + 1;  // the epoch that the coder codes in: none yet
    float row[max_dim] = {};
    for_each(*this, first, count, [&](const token_list& list, std::size_t slot) {
      const std::uint32_t page = list.page(slot / block_tokens);
      if (&list == &body_ && config.rotation.enabled() &&
          (pool_->outliers().mask(head, page) >> (slot % block_tokens) & 1u) != 0) {
        const rows_ref key = outlier_row(head, page, slot, kv_side::keys);
        load_row(key.view(), 0, row);
        turn(row + pool_->forms(head, kv_side::keys).rotated_from);
        store_row(key, 0, row);
      }
      if (!rewrites(list)) {
        return;
      }
      if (&list == &body_ && recodes()) {
        const auto target = pool_->coding_target(head, kv_side::keys, body_.pages(), epoch_of(slot));
        if (started != epoch_of(slot)) {
          started = epoch_of(slot);
          coder.start(target, pool_->metric(head, kv_side::keys));
        }
        turn_code(target, coder, slot, turn, report);
        return;
      }
      const bool tail = &list == &body_ && config.keys.coded;
      const rows_ref rows = tail              ? pool_->tail_rows(page, head)
                            : &list == &body_ ? pool_->body_rows(page, head, kv_side::keys)
                                              : pool_->exact_rows(page, head, kv_side::keys);
      load_row(rows.view(), slot % block_tokens, row);
      turn(row + (tail ? 0 : pool_->forms(head, kv_side::keys).rotated_from));
      store_row(rows, slot % block_tokens, row);
    });
  }
  /// Decodes a key, turns it and codes it again.
  template <class Turn>
  void turn_code(const paged_codes<Bank>& target, side_coder& coder, std::size_t slot, const Turn& turn,
                 shift_report& report) const noexcept {
    const std::size_t dim = pool_->config().keys.shape.dim;
    float recoded[max_dim] = {};
    float* turned = coder.rows();
    // Banks have no reason to refuse their own memory.
    static_cast<void>(target.decode(slot, ref_rows(turned, 1, dim)));
    turn(turned);
    coder.code(target, slot, 1);
    static_cast<void>(target.decode(slot, ref_rows(recoded, 1, dim)));
    ++report.recoded_keys;
    for (std::size_t c = 0; c < dim; ++c) {
      const double error = static_cast<double>(recoded[c]) - static_cast<double>(turned[c]);
      report.recoding_error += error * error;
      report.recoded_energy += static_cast<double>(turned[c]) * static_cast<double>(turned[c]);
    }
  }

  // --- attention ---

  /// Whether the body is attended page by page: exact rows of different pages are not contiguous.
  [[nodiscard]] bool paged_body() const noexcept {
    return !pool_->config().keys.coded || !pool_->config().values.coded;
  }
  /// One behind the last page of the body that goes into one segment with page `index`: same epoch, codes throughout.
  [[nodiscard]] std::size_t run_end(std::size_t index) const noexcept {
    std::size_t end = index + 1;
    while (!paged_body() && end < body_.page_count() &&
           epoch_of(end * block_tokens) == epoch_of(index * block_tokens)) {
      ++end;
    }
    return end;
  }
  /// Slots of page `index` and what is known about them.
  static void place_page(const token_list& list, std::size_t index, segment<address>& next) noexcept {
    next = {};
    next.slots = {0, (std::min)(block_tokens, list.slots() - index * block_tokens)};
    next.positions = {0, list.positions() + index * block_tokens};
    next.live = list.live() + index;
  }
  void exact_segment(const token_list& list, std::size_t index, std::size_t head,
                     segment<address>& next) const noexcept {
    place_page(list, index, next);
    next.keys.rows = pool_->exact_rows(list.page(index), head, kv_side::keys).view();
    next.values.rows = pool_->exact_rows(list.page(index), head, kv_side::values).view();
  }
  void body_segment(std::size_t head, std::size_t index, address tables, segment<address>& next) const noexcept {
    place_page(body_, index, next);
    if (!paged_body()) {
      next.slots = {0, (std::min)(body_.slots(), run_end(index) * block_tokens) - index * block_tokens};
      next.live = body_.tokens() == body_.slots() ? nullptr : next.live;
    }
    for (const kv_side which : kv_sides) {
      token_source<address>& source = which == kv_side::keys ? next.keys : next.values;
      source.coded = pool_->side(which).coded;
      if (source.coded) {
        source.codes = pool_->codes(head, which, body_.pages() + index);
        source.book = pool_->book(head, which, epoch_of(index * block_tokens));
      } else {
        source.rows = pool_->body_rows(body_.page(index), head, which).view();
      }
    }
    if (next.keys.coded) {
      next.rotation = pool_->code_rotation();
      next.tables = tables;
    }
    if (pool_->config().key_tail != 0) {
      next.key_tail = pool_->all_tails(head);
      next.tail_pages = body_.pages() + index;
    }
    next.turned_values = pool_->turn(head);
  }

  void swap(sequence& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(sinks_, other.sinks_);
    std::swap(body_, other.body_);
    std::swap(recent_, other.recent_);
    std::swap(queries_, other.queries_);
    std::swap(reserved_, other.reserved_);
  }

  page_pool<Bank>* pool_ = nullptr;
  token_list sinks_;
  token_list body_;  ///< coded
  token_list recent_;
  query_logs queries_;  ///< until training
  page_reserve reserved_;
};

}  // namespace v0
}  // namespace pqattn
