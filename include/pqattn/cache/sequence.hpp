// SPDX-License-Identifier: MIT
// One sequence of one layer: exact sinks | coded body | exact recent window, in pages of a page_pool. Every edit is one
// operation over all of it; docs/sequences.md says what stays exact after which edit.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#include "../attend/attend.hpp"
#include "../attend/attention_mass.hpp"
#include "../core/memory.hpp"
#include "../core/executor.hpp"
#include "../encode/encode.hpp"
#include "head_rows.hpp"
#include "page_pool.hpp"
#include "query_lesson.hpp"
#include "query_log.hpp"
#include "token_list.hpp"

namespace pqattn {
inline namespace v0 {

/// What comes with appended tokens.
struct append_options {
  /// Position of each token, 0 to 2^31 - 1, any order; null: each follows the token before it.
  const std::int64_t* positions = nullptr;
  /// (kv_heads, n) importance weights >= 0, used by training only; null: 1 each.
  const float* weights = nullptr;
  /// Instead of weights: the queries (q_heads, n, d_k), rotated, of the appended tokens. The library then weighs tokens by
  /// the attention they receive from the last importance_rows query tokens of every such append until training.
  const head_rows* queries = nullptr;
  float softmax_scale = 0.0f;  ///< of those queries; 0 means 1 / sqrt(d_k)
  /// (kv_heads, d_k, d_k) metrics of the keys, for the append that trains, as training_options::key_metric; null makes
  /// them from the queries that observe() kept.
  const float* key_metrics = nullptr;
  executor parts;          ///< KV heads are coded in parallel; training runs sub-vectors in parallel
  progress_hook progress;  ///< of training
};

/// What a position shift costs.
enum class shift_cost : std::uint8_t {
  exact,    ///< codes stay as they are; exact keys under RoPE are turned and rounded once more to their dtype
  recoded,  ///< keys were coded after RoPE: they are decoded, turned and coded again, which adds an error
};

/// What a position shift did, over all heads.
struct shift_report {
  std::size_t tokens = 0;         ///< moved
  std::size_t recoded_keys = 0;   ///< decoded, turned and coded again
  double recoding_error = 0.0;    ///< sum of squared differences between turned and recoded keys
  double recoded_energy = 0.0;    ///< sum of squares of the turned keys

  /// Error added by recoding, as a share of the keys' energy.
  [[nodiscard]] double relative_error() const noexcept {
    return recoded_energy > 0.0 ? recoding_error / recoded_energy : 0.0;
  }
};

/// Tokens of one sequence, all KV heads of a layer. Tokens are numbered from 0 in the order they were appended; each has
/// a position (for RoPE, masks and ALiBi) that edits of other tokens do not change. Move-only; fork() copies.
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
  /// tokens beyond config.recent leave it, oldest first and config.coding_batch at a time, and are coded. The append that brings an untrained pool's
  /// sequence to config.training_start() tokens behind the sinks trains the codebooks of all sequences. One long append
  /// and many short ones hold the same, given the same codebooks.
  /// Errors (nothing changed): shape mismatch, NaN or infinity with its row and column, bad weights or positions, out of
  /// memory, cancelled training.
  status append(const head_rows& keys, const head_rows& values, const append_options& options = {}) {
    PQATTN_TRY(check_arrivals(keys, values));
    PQATTN_TRY(check_options(options, keys.rows.rows));
    const append_plan plan = plan_append(keys.rows.rows);
    arrival rows{keys, values, options, next_position(), {}, recent_.slots(), nullptr};
    if (options.queries != nullptr && pool_->config().codes_anything() && !pool_->trained()) {
      PQATTN_TRY(gather_mass(rows));
    }
    if (plan.trains) {
      PQATTN_TRY(train(rows, plan));
    }
    const executor parts = Bank::concurrent ? options.parts : executor{};
    const status reserved = reserve(plan, parts.workers);
    if (!reserved) {
      pool_->discard_training();
      return reserved;
    }
    if (plan.trains) {
      pool_->keep_training();
    }
    add_pages(plan);
    run_parts(parts, pool_->kv_heads(),
              [&](std::size_t head, std::size_t worker) { write_head(rows, plan, head, worker); });
    record(rows, plan);
    return {};
  }

  /// Keeps query rows (q_heads, n, d_k) of positions first_position, first_position + 1, ... for the training to come: up
  /// to config.query_rows of each KV head, spread evenly. They teach the keys' metric and, with config.attention_weights,
  /// the importance of tokens. Forks keep a copy; edits leave them alone. Does nothing once the pool is trained. Errors
  /// (nothing kept): shape mismatch, positions out of range, not finite, out of memory.
  status observe(const head_rows& queries, std::int64_t first_position) {
    const cache_config& config = pool_->config();
    PQATTN_TRY(check_view(queries.rows, "queries"));
    if (queries.heads == 0 || queries.heads % pool_->kv_heads() != 0 || queries.rows.cols != config.key_channels()) {
      return failure(status_code::shape_mismatch, "queries",
                     "must have a multiple of the KV heads and the keys' channels; heads", pool_->kv_heads(),
                     queries.heads);
    }
    if (first_position < 0 || queries.rows.rows > static_cast<std::size_t>(max_position) ||
        first_position > max_position - static_cast<std::int64_t>(queries.rows.rows)) {
      return failure(status_code::invalid_argument, "first_position", "and what follows must be 0 to 2^31 - 1",
                     max_position, first_position);
    }
    for (std::size_t head = 0; head < queries.heads; ++head) {
      PQATTN_TRY(detail::check_finite(queries.head(head), "queries"));
    }
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

  /// Makes room for `tokens` more tokens, so that appends of that many in all allocate nothing but what training needs.
  /// Errors (nothing that can be seen changed): more tokens than there are positions, out of memory.
  status reserve(std::size_t tokens) {
    if (tokens > static_cast<std::size_t>(max_position)) {
      return failure(status_code::capacity, "tokens", "are more than a sequence has positions", max_position, tokens);
    }
    const std::size_t window = std::size_t{pool_->config().recent} + pool_->config().coding_batch;
    PQATTN_TRY(pool_->reserve_exact(2 + (std::min)(blocks_for(tokens), blocks_for(window) + 1)));
    PQATTN_TRY(pool_->reserve_coded(2 + (pool_->trained() ? blocks_for(tokens) : 0)));
    PQATTN_TRY(pool_->reserve_coding(pool_->trained() ? 1 : 0));
    PQATTN_TRY(body_.reserve(tokens + block_tokens));
    return recent_.reserve((std::min)(tokens, window) + 2 * block_tokens);
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

  /// Removes everything, queries kept for training included.
  void clear() noexcept {
    for (token_list* list : {&sinks_, &body_, &recent_}) {
      list->clear(dropper(list));
    }
    queries_ = {};
  }

  // --- copying ---

  /// Makes `copy` (its old tokens are given back) hold the same tokens. Pages are shared until one side writes into one:
  /// O(tokens) for lists of a few bytes a token, no code or row is copied. Errors (`copy` unchanged): out of memory.
  status fork(sequence& copy) const {
    sequence made;
    made.pool_ = pool_;
    if (queries_.is_open() && !pool_->trained()) {
      PQATTN_TRY(queries_.duplicate(pool_->resource(), made.queries_));
    }
    PQATTN_TRY(sinks_.duplicate(pool_->resource(), made.sinks_));
    PQATTN_TRY(body_.duplicate(pool_->resource(), made.body_));
    if (const status copied = recent_.duplicate(pool_->resource(), made.recent_); !copied) {
      made.forget();
      return copied;
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
  [[nodiscard]] shift_cost can_shift() const noexcept {
    return recodes() ? shift_cost::recoded : shift_cost::exact;
  }

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
      for_each(*this, first, count, [&](token_list& list, std::size_t slot) {
        list.set_position(slot, list.position(slot) + delta);
      });
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
      return failure(status_code::shape_mismatch, "keys or values", "must have the configured channels, same rows; keys",
                     pool_->row_dim(kv_side::keys), keys.cols);
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

  /// Segments that collect_segments() gives.
  [[nodiscard]] std::size_t segment_count() const noexcept {
    return sinks_.page_count() + (paged_body() ? body_.page_count() : body_.tokens() != 0 ? 1 : 0) +
           recent_.page_count();
  }
  /// Segments of one head for pqattn::attend, in the order of their tokens: exact pages one by one, the body in one (page
  /// by page when a side of it is exact). Valid until the next edit of any sequence of the pool. `tables`: see segment.
  std::size_t collect_segments(std::size_t head, address tables, segment<address>* segments) const noexcept {
    std::size_t count = 0;
    for (std::size_t i = 0; i < sinks_.page_count(); ++i) {
      exact_segment(sinks_, i, head, segments[count++]);
    }
    if (paged_body()) {
      for (std::size_t i = 0; i < body_.page_count(); ++i) {
        body_segment(head, i, tables, segments[count++]);
      }
    } else if (body_.tokens() != 0) {
      body_segment(head, 0, tables, segments[count++]);
    }
    for (std::size_t i = 0; i < recent_.page_count(); ++i) {
      exact_segment(recent_, i, head, segments[count++]);
    }
    return count;
  }

 private:
  template <class>
  friend class sequence_restorer;

  static constexpr std::int64_t max_position = (std::numeric_limits<std::int32_t>::max)();

  struct place {
    const token_list* list;
    std::size_t slot;
  };
  /// Rows of one append.
  struct arrival {
    const head_rows& keys;
    const head_rows& values;
    const append_options& options;
    std::int64_t first_position;
    /// Attention mass gathered by this append, per head: of the recent window's slots, then of the arriving rows.
    buffer mass_memory;
    std::size_t recent_slots;
    float* mass;

    [[nodiscard]] float* mass_of(std::size_t head) const noexcept {
      return mass + head * (recent_slots + keys.rows.rows);
    }
    [[nodiscard]] const head_rows& rows(kv_side which) const noexcept {
      return which == kv_side::keys ? keys : values;
    }
    [[nodiscard]] std::int64_t position(std::size_t row) const noexcept {
      return options.positions != nullptr ? options.positions[row] : first_position + static_cast<std::int64_t>(row);
    }
    [[nodiscard]] float weight(std::size_t head, std::size_t row) const noexcept {
      return mass != nullptr               ? mass_of(head)[recent_slots + row]
             : options.weights == nullptr ? 1.0f
                                          : options.weights[head * keys.rows.rows + row];
    }
  };
  /// Memory of gather_mass().
  struct mass_scene {
    segment<address>* segments = nullptr;
    float** mass = nullptr;
    float* queries = nullptr;
    std::int64_t* query_positions = nullptr;
    float* keys = nullptr;
    std::int32_t* positions = nullptr;
    std::byte* workspace = nullptr;
    std::size_t workspace_bytes = 0;

    void carve(carver& memory, std::size_t segment_count, std::size_t query_count, std::size_t tokens,
               std::size_t dim) noexcept {
      segments = memory.take<segment<address>>(segment_count);
      mass = memory.take<float*>(segment_count);
      queries = memory.take<float>(query_count * dim);
      query_positions = memory.take<std::int64_t>(query_count);
      keys = memory.take<float>(tokens * dim);
      positions = memory.take<std::int32_t>(tokens);
      workspace_bytes = mass_workspace_bytes<address>(nullptr, 0, query_count, dim);
      workspace = memory.take<std::byte>(workspace_bytes);
    }
  };
  /// Where the rows of one append go: sinks first, then those that are coded at once, then the recent window.
  struct append_plan {
    std::size_t to_sinks = 0;
    std::size_t leaving = 0;  ///< tokens that leave the recent window, oldest first
    std::size_t passing = 0;  ///< arriving rows that are coded at once
    std::size_t staying = 0;  ///< arriving rows that stay in the recent window
    bool trains = false;
  };

  // --- checks ---

  status check_arrivals(const head_rows& keys, const head_rows& values) const noexcept {
    if (pool_->stores(kv_side::values)) {
      PQATTN_TRY(check_arrival(keys, kv_side::keys, values.rows.rows, "keys"));
      return check_arrival(values, kv_side::values, keys.rows.rows, "values");
    }
    if (values.heads != 0 || values.rows.rows != 0) {
      return failure(status_code::invalid_argument, "values", "come from the keys and must be empty; heads", 0,
                     values.heads);
    }
    return check_arrival(keys, kv_side::keys, keys.rows.rows, "keys");
  }
  status check_arrival(const head_rows& rows, kv_side which, std::size_t other_rows, const char* subject) const noexcept {
    if (rows.heads != pool_->kv_heads()) {
      return failure(status_code::shape_mismatch, subject, "must have the pool's KV heads", pool_->kv_heads(),
                     rows.heads);
    }
    PQATTN_TRY(check_view(rows.rows, subject));
    if (rows.rows.cols != pool_->row_dim(which)) {
      return failure(status_code::shape_mismatch, subject, "must have the configured number of channels",
                     pool_->row_dim(which), rows.rows.cols);
    }
    if (rows.rows.rows != other_rows) {
      return failure(status_code::shape_mismatch, subject, "must have as many rows as the other side", other_rows,
                     rows.rows.rows);
    }
    for (std::size_t head = 0; head < rows.heads; ++head) {
      PQATTN_TRY(detail::check_finite(rows.head(head), subject));
    }
    return {};
  }
  status check_options(const append_options& options, std::size_t rows) const noexcept {
    const std::size_t dim = pool_->config().keys.shape.dim;
    if (options.key_metrics != nullptr && pool_->config().keys.metric) {
      PQATTN_TRY(
          detail::check_finite(view_rows(options.key_metrics, pool_->kv_heads() * dim, dim), "options.key_metrics"));
    }
    for (std::size_t i = 0; options.weights != nullptr && i < rows * pool_->kv_heads(); ++i) {
      if (!is_finite(options.weights[i]) || options.weights[i] < 0.0f) {
        return failure(status_code::invalid_argument, "weights", "must be finite and at least 0; bad entry at index", 0,
                       i);
      }
    }
    for (std::size_t i = 0; options.positions != nullptr && i < rows; ++i) {
      if (options.positions[i] < 0 || options.positions[i] > max_position) {
        return failure(status_code::invalid_argument, "positions", "must be 0 to 2^31 - 1", max_position,
                       options.positions[i]);
      }
    }
    if (options.queries != nullptr) {
      const head_rows& queries = *options.queries;
      PQATTN_TRY(check_view(queries.rows, "queries"));
      if (options.weights != nullptr) {
        return failure(status_code::invalid_argument, "weights", "and queries cannot both say what matters");
      }
      if (queries.heads == 0 || queries.heads % pool_->kv_heads() != 0 || queries.rows.rows != rows ||
          queries.rows.cols != pool_->config().key_channels()) {
        return failure(status_code::shape_mismatch, "queries",
                       "must have a multiple of the KV heads, a row per key and the keys' channels; rows", rows,
                       queries.rows.rows);
      }
    }
    const auto last = next_position() + static_cast<std::int64_t>(rows) - 1;
    if (options.positions == nullptr && rows != 0 && last > max_position) {
      return failure(status_code::invalid_argument, "positions", "would pass 2^31 - 1", max_position, last);
    }
    return {};
  }
  status check_range(std::size_t first, std::size_t count) const noexcept {
    return first <= size() && count <= size() - first
               ? status{}
               : failure(status_code::invalid_argument, "first + count", "must be within the sequence", size(),
                         first + count);
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
    if (&list != &body_) {
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
    return pool_->bank().decode(pool_->book(head, which), pool_->codes(head, which, body_.pages()), {slot, 1},
                                ref_rows(row, 1, pool_->side(which).shape.dim));
  }

  // --- appending ---

  [[nodiscard]] append_plan plan_append(std::size_t rows) const noexcept {
    const cache_config& config = pool_->config();
    append_plan plan;
    if (body_.tokens() == 0 && recent_.tokens() == 0 && sinks_.tokens() < config.sinks) {
      plan.to_sinks = (std::min)(rows, config.sinks - sinks_.tokens());
    }
    const std::size_t added = rows - plan.to_sinks;
    const std::size_t held = recent_.tokens() + added;
    plan.trains = config.codes_anything() && !pool_->trained() && added != 0 && held >= config.training_start();
    const bool coding = config.codes_anything() && (pool_->trained() || plan.trains);
    const std::size_t beyond = coding && held > config.recent ? held - config.recent : 0;
    const std::size_t out = beyond / config.coding_batch * config.coding_batch;
    plan.leaving = (std::min)(out, recent_.tokens());
    plan.passing = out - plan.leaving;
    plan.staying = added - plan.passing;
    return plan;
  }

  /// What page_pool::train() learns from: the recent window, then the arriving rows behind the sinks.
  struct lesson {
    const sequence& self;
    const arrival& rows;
    const append_plan& plan;
    buffer importance{};  ///< of one head's rows by attention, or none

    std::int64_t load(std::size_t head, kv_side which, std::size_t index, float* row) const noexcept {
      const std::size_t held = self.recent_.tokens();
      if (index < held) {
        const std::size_t slot = self.recent_.slot_of(index);
        static_cast<void>(self.load_token(self.recent_, slot, head, which, row));
        return self.recent_.position(slot);
      }
      const std::size_t source = plan.to_sinks + index - held;
      self.load_arriving(rows, source, head, which, row);
      return rows.position(source);
    }
    /// The same of all tokens, sinks first.
    std::int64_t load_key(std::size_t head, std::size_t token, float* row) const noexcept {
      const std::size_t held = self.sinks_.tokens();
      if (token < held) {
        const std::size_t slot = self.sinks_.slot_of(token);
        static_cast<void>(self.load_token(self.sinks_, slot, head, kv_side::keys, row));
        return self.sinks_.position(slot);
      }
      if (token < held + plan.to_sinks) {
        self.load_arriving(rows, token - held, head, kv_side::keys, row);
        return rows.position(token - held);
      }
      return load(head, kv_side::keys, token - held - plan.to_sinks, row);
    }
    [[nodiscard]] float weight(std::size_t head, std::size_t index) const noexcept {
      if (importance.size() != 0) {
        return reinterpret_cast<const float*>(importance.data())[index];
      }
      const std::size_t held = self.recent_.tokens();
      if (index >= held) {
        return rows.weight(head, plan.to_sinks + index - held);
      }
      const std::size_t slot = self.recent_.slot_of(index);
      return self.recent_.weights(slot)[head] + (rows.mass == nullptr ? 0.0f : rows.mass_of(head)[slot]);
    }
    /// Metric and importance of a head.
    status begin(std::size_t head, const cache_config& config, buffer& metric) {
      const page_pool<Bank>& pool = *self.pool_;
      const std::size_t dim = config.keys.shape.dim;
      const bool wants_metric = config.keys.coded && config.keys.metric;
      const float* given = rows.options.key_metrics;
      const std::size_t sinks = self.sinks_.tokens() + plan.to_sinks;
      const std::size_t tokens = self.size() + rows.keys.rows.rows;
      detail::query_lesson<Bank> looks(pool.bank(), config, pool.resource(), tokens, sinks);
      if (self.queries_.is_open() && ((wants_metric && given == nullptr) || config.attention_weights)) {
        PQATTN_TRY(looks.gather(self.queries_.head(head), {}, nullptr, [&](std::size_t token, float* row) {
          return load_key(head, token, row);
        }));
      }
      if (wants_metric && (given != nullptr || looks.query_count() != 0)) {
        buffer full;
        PQATTN_TRY(buffer::make(pool.resource(), dim * dim * sizeof(float), full));
        PQATTN_TRY(buffer::make(pool.resource(), packed_metric_floats(dim) * sizeof(float), metric));
        auto* numbers = reinterpret_cast<float*>(full.data());
        if (given == nullptr) {
          PQATTN_TRY(looks.make_metric(numbers));
        } else {
          std::copy_n(given + head * dim * dim, dim * dim, numbers);
        }
        pack_metric(numbers, dim, reinterpret_cast<float*>(metric.data()));
      }
      if (config.attention_weights && looks.query_count() != 0) {
        PQATTN_TRY(buffer::make(pool.resource(), (tokens - sinks) * sizeof(float), importance));
        return looks.weigh(reinterpret_cast<float*>(importance.data()));
      }
      importance = {};
      return {};
    }
  };
  status train(const arrival& rows, const append_plan& plan) {
    return pool_->train(recent_.tokens() + rows.keys.rows.rows - plan.to_sinks, lesson{*this, rows, plan},
                        rows.options.parts, rows.options.progress);
  }

  /// Attention that the recent window and the arriving rows get from the last arriving queries. Everything is exact still.
  status gather_mass(arrival& rows) const {
    const head_rows& queries = *rows.options.queries;
    const std::size_t heads = pool_->kv_heads();
    const std::size_t tokens = rows.keys.rows.rows;
    const std::size_t dim = pool_->row_dim(kv_side::keys);
    const std::size_t last = (std::min)(tokens, importance_rows);
    const std::size_t group = queries.heads / heads;
    const std::size_t query_count = group * last;
    const std::size_t pages = sinks_.page_count() + recent_.page_count();
    buffer staging;
    PQATTN_TRY(buffer::make(pool_->resource(), heads * (rows.recent_slots + tokens) * sizeof(float), rows.mass_memory));
    rows.mass = reinterpret_cast<float*>(rows.mass_memory.data());
    if (tokens == 0) {
      return {};
    }
    std::fill_n(rows.mass, heads * (rows.recent_slots + tokens), 0.0f);
    mass_scene scene;
    carver counting;
    scene.carve(counting, pages + 1, query_count, tokens, dim);
    PQATTN_TRY(buffer::make(pool_->resource(), counting.required(), staging));
    carver placed(staging.data(), staging.size());
    scene.carve(placed, pages + 1, query_count, tokens, dim);
    for (std::size_t i = 0; i < tokens; ++i) {
      scene.positions[i] = static_cast<std::int32_t>(rows.position(i));
    }
    for (std::size_t row = 0; row < query_count; ++row) {
      scene.query_positions[row] = rows.position(tokens - last + row % last);
    }
    attention_params params;
    params.scale = rows.options.softmax_scale;
    params.modifiers.causal = true;
    params.modifiers.query_positions = scene.query_positions;
    for (std::size_t head = 0; head < heads; ++head) {
      for (std::size_t row = 0; row < query_count; ++row) {
        load_row(queries.head(head * group + row / last), tokens - last + row % last, scene.queries + row * dim);
      }
      for (std::size_t i = 0; i < tokens; ++i) {
        load_arriving(rows, i, head, kv_side::keys, scene.keys + i * dim);
      }
      for (std::size_t i = 0; i < pages; ++i) {
        const bool sink = i < sinks_.page_count();
        const std::size_t page = sink ? i : i - sinks_.page_count();
        exact_segment(sink ? sinks_ : recent_, page, head, scene.segments[i]);
        scene.mass[i] = sink ? nullptr : rows.mass_of(head) + page * block_tokens;
      }
      segment<address>& arriving = scene.segments[pages];
      arriving = {};
      arriving.keys.rows = arriving.values.rows = view_rows(scene.keys, tokens, dim);
      arriving.slots = {0, tokens};
      arriving.positions = {0, scene.positions};
      scene.mass[pages] = rows.mass_of(head) + rows.recent_slots;
      PQATTN_TRY(attention_mass(pool_->bank(), view_rows(scene.queries, query_count, dim), scene.segments, pages + 1,
                                params, scene.workspace, scene.workspace_bytes, scene.mass));
    }
    return {};
  }

  /// An arriving row in exact form.
  void load_arriving(const arrival& rows, std::size_t row, std::size_t head, kv_side which, float* target) const noexcept {
    // Values that come from the keys are their first channels.
    const kv_side source = pool_->stores(which) ? which : kv_side::keys;
    load_row(rows.rows(source).head(head), row, target);
    pool_->forms(head, source).to_exact(rows.position(row), pool_->row_dim(source), target);
  }

  /// Everything of an append that can fail, training aside.
  status reserve(const append_plan& plan, std::size_t workers) {
    const std::size_t coded = plan.leaving + plan.passing;
    PQATTN_TRY(pool_->reserve_coding(coded == 0 ? 0 : workers));
    PQATTN_TRY(sinks_.reserve(plan.to_sinks));
    PQATTN_TRY(recent_.reserve(plan.staying));
    PQATTN_TRY(body_.reserve(coded));
    const std::size_t copies = copies_last(sinks_, plan.to_sinks) + copies_last(recent_, plan.staying);
    PQATTN_TRY(
        pool_->reserve_exact(sinks_.pages_for(plan.to_sinks) + recent_.pages_for(plan.staying) + copies));
    PQATTN_TRY(pool_->reserve_coded(body_.pages_for(coded) + copies_last(body_, coded)));
    // Nothing fails from here on.
    for (token_list* list : {&sinks_, &body_, &recent_}) {
      const std::size_t added = list == &sinks_ ? plan.to_sinks : list == &body_ ? coded : plan.staying;
      if (copies_last(*list, added) != 0) {
        own_page(*list, list->page_count() - 1);
      }
    }
    return {};
  }
  /// 1 when `added` more slots would write into a last page that other sequences use too.
  [[nodiscard]] std::size_t copies_last(const token_list& list, std::size_t added) const noexcept {
    return added != 0 && list.ends_inside_page() && is_shared(list, list.page_count() - 1) ? 1 : 0;
  }
  [[nodiscard]] bool is_shared(const token_list& list, std::size_t index) const noexcept {
    return (&list == &body_ ? pool_->coded_pages() : pool_->exact_pages()).shared(list.page(index));
  }
  /// Replaces a shared page by a private copy. Pre: a free page is reserved.
  void own_page(token_list& list, std::size_t index) noexcept {
    const std::uint32_t old = list.page(index);
    list.replace_page(index, &list == &body_ ? pool_->copy_coded(old) : pool_->copy_exact(old));
    dropper(&list)(old);
  }

  /// New pages are taken before any is given up, so that the reserved ones are there.
  void add_pages(const append_plan& plan) noexcept {
    for (std::size_t n = sinks_.pages_for(plan.to_sinks); n > 0; --n) {
      sinks_.push_page(pool_->take_exact());
    }
    for (std::size_t n = recent_.pages_for(plan.staying); n > 0; --n) {
      recent_.push_page(pool_->take_exact());
    }
    for (std::size_t n = body_.pages_for(plan.leaving + plan.passing); n > 0; --n) {
      body_.push_page(pool_->take_coded());
    }
  }

  /// Moves the rows of one head where they belong.
  void write_head(const arrival& rows, const append_plan& plan, std::size_t head, std::size_t worker) const noexcept {
    carver memory = pool_->coding_memory(worker);
    side_coder coders[] = {{memory, pool_->config().keys, false}, {memory, pool_->config().values, false}};
    for (const kv_side which : kv_sides) {
      if (pool_->stores(which)) {
        write_exact(rows, 0, plan.to_sinks, sinks_, head, which);
        write_body(rows, plan, head, which, coders[static_cast<std::size_t>(which)]);
        write_exact(rows, plan.to_sinks + plan.passing, plan.staying, recent_, head, which);
      }
    }
  }
  void write_exact(const arrival& rows, std::size_t first, std::size_t count, const token_list& list, std::size_t head,
                   kv_side which) const noexcept {
    float row[max_dim];
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t slot = list.slots() + i;
      load_arriving(rows, first + i, head, which, row);
      store_row(pool_->exact_rows(list.page(slot / block_tokens), head, which), slot % block_tokens, row);
    }
  }
  void write_body(const arrival& rows, const append_plan& plan, std::size_t head, kv_side which,
                  side_coder& coder) const noexcept {
    const std::size_t total = plan.leaving + plan.passing;
    if (total == 0) {
      return;
    }
    const side_config& side = pool_->side(which);
    const row_forms forms = pool_->forms(head, which);
    const auto target = pool_->coding_target(head, which, body_.pages());
    if (side.coded) {
      coder.start(target, pool_->transform(head, which));
    }
    float row[max_dim];
    std::size_t slot = recent_.next_live(0);
    for (std::size_t i = 0; i < total; ++i) {
      std::int64_t position = 0;
      if (i < plan.leaving) {
        static_cast<void>(load_token(recent_, slot, head, which, row));
        position = recent_.position(slot);
        slot = recent_.next_live(slot + 1);
      } else {
        const std::size_t source = plan.to_sinks + i - plan.leaving;
        load_arriving(rows, source, head, which, row);
        position = rows.position(source);
      }
      const std::size_t at = body_.slots() + i;
      const std::uint32_t page = body_.page(at / block_tokens);
      if (!side.coded) {
        store_row(pool_->body_rows(page, head, which), at % block_tokens, row);
        continue;
      }
      if (which == kv_side::keys && pool_->config().key_tail != 0) {
        store_row(pool_->tail_rows(page, head), at % block_tokens, row + side.shape.dim);
      }
      forms.to_coded(position, row);
      const std::size_t waiting = i % block_tokens;
      std::copy_n(row, side.shape.dim, coder.rows() + waiting * side.shape.dim);
      if (waiting + 1 == block_tokens || i + 1 == total) {
        coder.code(target, at - waiting, waiting + 1);
      }
    }
  }

  /// Enters the tokens into the lists, once their rows are written.
  void record(const arrival& rows, const append_plan& plan) noexcept {
    for (std::size_t i = 0; i < plan.to_sinks; ++i) {
      sinks_.push(rows.position(i));
    }
    for (std::size_t head = 0; rows.mass != nullptr && head < pool_->kv_heads(); ++head) {
      for (std::size_t i = 0; i < rows.recent_slots; ++i) {
        recent_.weights(i)[head] += rows.mass_of(head)[i];
      }
    }
    std::size_t slot = recent_.next_live(0);
    for (std::size_t i = 0; i < plan.leaving; ++i, slot = recent_.next_live(slot + 1)) {
      body_.push(recent_.position(slot));
    }
    for (std::size_t i = 0; i < plan.passing; ++i) {
      body_.push(rows.position(plan.to_sinks + i));
    }
    for (std::size_t i = 0; i < plan.staying; ++i) {
      const std::size_t row = plan.to_sinks + plan.passing + i;
      const std::size_t entered = recent_.push(rows.position(row));
      for (std::size_t head = 0; recent_.has_weights() && head < pool_->kv_heads(); ++head) {
        recent_.weights(entered)[head] = rows.weight(head, row);
      }
    }
    recent_.remove(0, plan.leaving, dropper(&recent_));
    if (pool_->trained()) {
      recent_.drop_weights();
      queries_ = {};
    }
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
  /// Makes every page that shift() rewrites private.
  status own_rotated(std::size_t first, std::size_t count) {
    for (int pass = 0; pass < 2; ++pass) {
      std::size_t exact = 0;
      std::size_t coded = 0;
      const token_list* last_list = nullptr;
      std::size_t last_page = 0;
      for_each(*this, first, count, [&](token_list& list, std::size_t slot) {
        const std::size_t index = slot / block_tokens;
        if (!rewrites(list) || (&list == last_list && index == last_page)) {
          return;
        }
        last_list = &list;
        last_page = index;
        if (is_shared(list, index)) {
          ++(&list == &body_ ? coded : exact);
          if (pass == 1) {
            own_page(list, index);
          }
        }
      });
      if (pass == 0) {
        PQATTN_TRY(pool_->reserve_exact(exact));
        PQATTN_TRY(pool_->reserve_coded(coded));
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
    const auto target = pool_->coding_target(head, kv_side::keys, body_.pages());
    if (recodes()) {
      coder.start(target, pool_->transform(head, kv_side::keys));
    }
    float row[max_dim] = {};
    for_each(*this, first, count, [&](const token_list& list, std::size_t slot) {
      if (!rewrites(list)) {
        return;
      }
      if (&list == &body_ && recodes()) {
        turn_code(target, coder, slot, turn, report);
        return;
      }
      const std::uint32_t page = list.page(slot / block_tokens);
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
      next.slots = {0, body_.slots()};
      next.live = body_.tokens() == body_.slots() ? nullptr : body_.live();
    }
    for (const kv_side which : kv_sides) {
      token_source<address>& source = which == kv_side::keys ? next.keys : next.values;
      source.coded = pool_->side(which).coded;
      if (source.coded) {
        source.codes = pool_->codes(head, which, body_.pages() + index);
        source.book = pool_->book(head, which);
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
  }

  page_pool<Bank>* pool_ = nullptr;
  token_list sinks_;
  token_list body_;    ///< coded
  token_list recent_;
  query_logs queries_;  ///< until training
};

}  // namespace v0
}  // namespace pqattn
