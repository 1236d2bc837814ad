// SPDX-License-Identifier: MIT
// Appending to a sequence: what is checked, what trains, what is reserved, and where rows are then written.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "../attend/attend.hpp"
#include "../attend/attention_mass.hpp"
#include "../core/executor.hpp"
#include "../core/memory.hpp"
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
  /// Instead of weights: the queries (q_heads, n, d_k), rotated, of the appended tokens. The library then weighs tokens
  /// by the attention they receive from the last importance_rows query tokens of every such append until training.
  const head_rows* queries = nullptr;
  float softmax_scale = 0.0f;  ///< of those queries; 0 means 1 / sqrt(d_k)
  /// (kv_heads, d_k, d_k) metrics of the keys, for the append that trains, as training_options::key_metric; null makes
  /// them from the queries that observe() kept.
  const float* key_metrics = nullptr;
  executor parts;          ///< KV heads are coded in parallel; training runs sub-vectors in parallel
  progress_hook progress;  ///< of training
};

template <class Bank>
class sequence;

/// One append to one sequence: everything that can fail first, then everything that cannot. See sequence::append().
template <class Bank>
class sequence_append {
 public:
  using address = typename Bank::address;

  explicit sequence_append(sequence<Bank>& target) noexcept
      : self_(target),
        pool_(target.pool_),
        sinks_(target.sinks_),
        body_(target.body_),
        recent_(target.recent_),
        queries_(target.queries_) {}

  status run(const head_rows& keys, const head_rows& values, const append_options& options) {
    PQATTN_TRY(check_arrivals(keys, values));
    PQATTN_TRY(check_options(options, keys.rows.rows));
    const append_plan plan = plan_append(keys.rows.rows);
    arrival rows{keys, values, options, self_.next_position(), {}, recent_.slots(), nullptr};
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
      pool_->trim_cells();
      return reserved;
    }
    if (plan.trains) {
      pool_->keep_training();
    }
    add_pages(plan);
    run_parts(parts, pool_->kv_heads(),
              [&](std::size_t head, std::size_t worker) { write_head(rows, plan, head, worker); });
    record(rows, plan);
    pool_->trim_cells();
    return {};
  }

  /// Trains the next epoch of the pool on the recent window and these rows, which are not kept: sequence::refresh().
  status refresh(const head_rows& keys, const head_rows& values, const append_options& options) {
    PQATTN_TRY(check_arrivals(keys, values));
    PQATTN_TRY(check_options(options, keys.rows.rows));
    if (!pool_->trained()) {
      return failure(status_code::unsupported, "pool", "is not trained: there are no codebooks to start from");
    }
    if (options.queries != nullptr || options.key_metrics != nullptr) {
      return failure(status_code::unsupported, "options.queries or key_metrics", "teach the first epoch only");
    }
    const std::size_t count = recent_.tokens() + keys.rows.rows;
    if (count < pool_->config().most_centroids()) {
      return failure(status_code::too_few_samples, "keys", "and the recent window must be as many as the centroids",
                     pool_->config().most_centroids(), count);
    }
    const arrival rows{keys, values, options, self_.next_position(), {}, recent_.slots(), nullptr};
    PQATTN_TRY(train(rows, {}));
    pool_->keep_training();
    return {};
  }

 private:
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
    [[nodiscard]] const head_rows& rows(kv_side which) const noexcept { return which == kv_side::keys ? keys : values; }
    [[nodiscard]] std::int64_t position(std::size_t row) const noexcept {
      return options.positions != nullptr ? options.positions[row] : first_position + static_cast<std::int64_t>(row);
    }
    [[nodiscard]] float weight(std::size_t head, std::size_t row) const noexcept {
      return mass != nullptr              ? mass_of(head)[recent_slots + row]
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
    std::size_t skipped = 0;  ///< slots left in the last page of the body, which belongs to an older epoch
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
  status check_arrival(const head_rows& rows, kv_side which, std::size_t other_rows,
                       const char* subject) const noexcept {
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
    const cache_config& config = pool_->config();
    const float largest = which == kv_side::keys ? config.largest_key() : config.largest_value();
    for (std::size_t head = 0; head < rows.heads; ++head) {
      PQATTN_TRY(detail::check_finite(rows.head(head), subject, largest));
    }
    return {};
  }
  status check_options(const append_options& options, std::size_t rows) const noexcept {
    PQATTN_TRY(check_executor(options.parts, "options.parts"));
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
      if (options.weights != nullptr) {
        return failure(status_code::invalid_argument, "weights", "and queries cannot both say what matters");
      }
      PQATTN_TRY(detail::check_queries(*options.queries, pool_->kv_heads(), pool_->config().key_channels()));
      if (options.queries->rows.rows != rows) {
        return failure(status_code::shape_mismatch, "queries.rows", "must be one per key", rows,
                       options.queries->rows.rows);
      }
    }
    const auto last = self_.next_position() + static_cast<std::int64_t>(rows) - 1;
    if (options.positions == nullptr && rows != 0 && last > max_position) {
      return failure(status_code::invalid_argument, "positions", "would pass 2^31 - 1", max_position, last);
    }
    return {};
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
    if (out != 0 && body_.page_count() != 0 &&
        pool_->epoch_of(body_.page(body_.page_count() - 1)) != pool_->newest_epoch()) {
      plan.skipped = body_.slots_left();
    }
    return plan;
  }

  /// What page_pool::train() learns from: the recent window, then the arriving rows behind the sinks.
  struct lesson {
    const sequence_append& self;
    const arrival& rows;
    const append_plan& plan;
    buffer importance{};  ///< of one head's rows by attention, or none

    std::int64_t load(std::size_t head, kv_side which, std::size_t index, float* row) const noexcept {
      const std::size_t held = self.recent_.tokens();
      if (index < held) {
        const std::size_t slot = self.recent_.slot_of(index);
        static_cast<void>(self.self_.load_token(self.recent_, slot, head, which, row));
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
        static_cast<void>(self.self_.load_token(self.sinks_, slot, head, kv_side::keys, row));
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
      const float known = self.recent_.has_weights() ? self.recent_.weights(slot)[head] : 1.0f;
      return known + (rows.mass == nullptr ? 0.0f : rows.mass_of(head)[slot]);
    }
    /// Metric and importance of a head.
    status begin(std::size_t head, const cache_config& config, buffer& metric) {
      const page_pool<Bank>& pool = *self.pool_;
      const std::size_t dim = config.keys.shape.dim;
      const bool wants_metric = config.keys.coded && config.keys.metric;
      const float* given = rows.options.key_metrics;
      const std::size_t sinks = self.sinks_.tokens() + plan.to_sinks;
      const std::size_t tokens = self.self_.size() + rows.keys.rows.rows;
      detail::query_lesson<Bank> looks(pool.bank(), config, pool.resource(), tokens, sinks);
      if (self.queries_.is_open() && ((wants_metric && given == nullptr) || config.attention_weights)) {
        PQATTN_TRY(looks.gather(self.queries_.head(head), {}, nullptr,
                                [&](std::size_t token, float* row) { return load_key(head, token, row); }));
      }
      if (wants_metric && (given != nullptr || looks.query_count() != 0)) {
        PQATTN_TRY(looks.template pack_metric_of<float>(given == nullptr ? nullptr : given + head * dim * dim, metric));
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

  /// Attention that the recent window and the arriving rows get from the last arriving queries. Everything is exact
  /// still.
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
    std::fill_n(rows.mass, heads * (rows.recent_slots + tokens), 0.0f);
    if (tokens == 0) {
      return {};
    }
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
        self_.exact_segment(sink ? sinks_ : recent_, page, head, scene.segments[i]);
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
  void load_arriving(const arrival& rows, std::size_t row, std::size_t head, kv_side which,
                     float* target) const noexcept {
    // Values that come from the keys are their first channels.
    const kv_side source = pool_->stores(which) ? which : kv_side::keys;
    load_row(rows.rows(source).head(head), row, target);
    pool_->forms(head, source).to_exact(rows.position(row), pool_->row_dim(source), target);
  }

  /// Everything of an append that can fail, training aside.
  status reserve(const append_plan& plan, std::size_t workers) {
    const std::size_t coded = plan.leaving + plan.passing;
    const std::size_t written = plan.skipped == 0 ? coded : 0;  // slots from the last page of the body on
    PQATTN_TRY(pool_->reserve_coding(coded == 0 ? 0 : workers));
    PQATTN_TRY(sinks_.reserve(plan.to_sinks));
    PQATTN_TRY(recent_.reserve(plan.staying));
    PQATTN_TRY(body_.reserve(plan.skipped + coded));
    const std::size_t copies = copies_last(sinks_, plan.to_sinks) + copies_last(recent_, plan.staying);
    PQATTN_TRY(pool_->reserve_exact(sinks_.pages_for(plan.to_sinks) + recent_.pages_for(plan.staying) + copies));
    const std::size_t added_pages = body_.pages_for(plan.skipped + coded);
    PQATTN_TRY(pool_->reserve_coded(added_pages + copies_last(body_, written)));
    const std::size_t pages = added_pages + (body_.ends_inside_page() ? 1 : 0);
    const std::size_t copied =
        copies_last(body_, written) != 0 ? pool_->outliers().most_in(body_.page(body_.page_count() - 1)) : 0;
    PQATTN_TRY(pool_->outliers().reserve(copied + (std::min)(coded, pages * pool_->outlier_limit())));
    // Nothing fails from here on.
    for (token_list* list : {&sinks_, &body_, &recent_}) {
      const std::size_t added = list == &sinks_ ? plan.to_sinks : list == &body_ ? written : plan.staying;
      if (copies_last(*list, added) != 0) {
        self_.own_page(*list, list->page_count() - 1);
      }
    }
    return {};
  }
  /// 1 when `added` more slots would write into a last page that other sequences use too.
  [[nodiscard]] std::size_t copies_last(const token_list& list, std::size_t added) const noexcept {
    return added != 0 && list.ends_inside_page() && self_.is_shared(list, list.page_count() - 1) ? 1 : 0;
  }
  /// New pages are taken before any is given up, so that the reserved ones are there. A page has codes of one epoch.
  void add_pages(const append_plan& plan) noexcept {
    if (plan.skipped != 0) {
      body_.skip_slots_left();
    }
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
    const bool measures = pool_->measures();
    side_coder coders[] = {{memory, pool_->config().keys, measures}, {memory, pool_->config().values, measures}};
    for (const kv_side which : kv_sides) {
      if (pool_->stores(which)) {
        write_exact(rows, 0, plan.to_sinks, sinks_, head, which);
        write_exact(rows, plan.to_sinks + plan.passing, plan.staying, recent_, head, which);
      }
    }
    if (plan.leaving + plan.passing != 0) {
      write_body(rows, plan, head, coders);
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
  /// Up to a block of rows on their way into the body.
  struct body_tile {
    std::size_t first = 0;  ///< of the append's rows for the body
    std::size_t count = 0;
    std::size_t sources[block_tokens];  ///< slots of the window, then arriving rows
    std::int64_t positions[block_tokens];
    float errors[2][block_tokens];
  };

  void write_body(const arrival& rows, const append_plan& plan, std::size_t head, side_coder* coders) const noexcept {
    const std::size_t total = plan.leaving + plan.passing;
    for (const kv_side which : kv_sides) {
      if (pool_->stores(which) && pool_->side(which).coded) {
        coders[static_cast<std::size_t>(which)].start(coding_target(head, which), pool_->metric(head, which));
      }
    }
    drop_stale(head);
    std::size_t slot = recent_.next_live(0);
    for (body_tile tile; tile.first < total; tile.first += tile.count) {
      tile.count = (std::min)(block_tokens, total - tile.first);
      for (std::size_t i = 0; i < tile.count; ++i) {
        if (tile.first + i < plan.leaving) {
          tile.sources[i] = slot;
          tile.positions[i] = recent_.position(slot);
          slot = recent_.next_live(slot + 1);
        } else {
          tile.sources[i] = plan.to_sinks + tile.first + i - plan.leaving;
          tile.positions[i] = rows.position(tile.sources[i]);
        }
      }
      for (const kv_side which : kv_sides) {
        if (pool_->stores(which)) {
          write_tile(rows, plan, tile, head, which, coders[static_cast<std::size_t>(which)]);
        }
      }
      if (pool_->measures()) {
        judge_errors(rows, plan, tile, head);
      }
    }
  }
  [[nodiscard]] paged_codes<Bank> coding_target(std::size_t head, kv_side which) const noexcept {
    return pool_->coding_target(head, which, body_.pages(), pool_->newest_epoch());
  }
  /// Row `i` of a tile in exact form.
  void load_tile(const arrival& rows, const append_plan& plan, const body_tile& tile, std::size_t i, std::size_t head,
                 kv_side which, float* row) const noexcept {
    if (tile.first + i < plan.leaving) {
      static_cast<void>(self_.load_token(recent_, tile.sources[i], head, which, row));
    } else {
      load_arriving(rows, tile.sources[i], head, which, row);
    }
  }
  void write_tile(const arrival& rows, const append_plan& plan, body_tile& tile, std::size_t head, kv_side which,
                  side_coder& coder) const noexcept {
    const side_config& side = pool_->side(which);
    const row_forms forms = pool_->forms(head, which);
    const std::size_t first = body_.slots() + tile.first;
    float row[max_dim];
    for (std::size_t i = 0; i < tile.count; ++i) {
      load_tile(rows, plan, tile, i, head, which, row);
      const std::uint32_t page = body_.page((first + i) / block_tokens);
      const std::size_t inside = (first + i) % block_tokens;
      if (!side.coded) {
        store_row(pool_->body_rows(page, head, which), inside, row);
        continue;
      }
      if (which == kv_side::keys && pool_->config().key_tail != 0) {
        store_row(pool_->tail_rows(page, head), inside, row + side.shape.dim);
      }
      forms.to_coded(tile.positions[i], row);
      std::copy_n(row, side.shape.dim, coder.rows() + i * side.shape.dim);
    }
    if (side.coded) {
      const auto target = coding_target(head, which);
      coder.code(target, first, tile.count);
      if (pool_->measures()) {
        coder.measure(target, first, tile.count, tile.errors[static_cast<std::size_t>(which)]);
      }
    }
  }

  /// Cells of tokens that were cut off: their slots are written again. The last page is private by now.
  void drop_stale(std::size_t head) const noexcept {
    if (body_.ends_inside_page()) {
      pool_->outliers().drop(head, body_.page(body_.slots() / block_tokens),
                             ~std::uint64_t{0} << (body_.slots() % block_tokens));
    }
  }
  /// Counts what coding a tile lost. Rows that codes serve badly stay exact besides, as far as pages may have some.
  void judge_errors(const arrival& rows, const append_plan& plan, const body_tile& tile,
                    std::size_t head) const noexcept {
    const outlier_rule rule = pool_->rule(head);
    const auto error = [&](kv_side which, std::size_t i) {
      return pool_->stores(which) && pool_->side(which).coded ? tile.errors[static_cast<std::size_t>(which)][i] : 0.0f;
    };
    float key[max_dim];
    float value[max_dim];
    for (std::size_t i = 0; i < tile.count; ++i) {
      const std::size_t at = body_.slots() + tile.first + i;
      const std::uint32_t page = body_.page(at / block_tokens);
      const float errors[] = {error(kv_side::keys, i), error(kv_side::values, i)};
      pool_->count_errors(head, errors[0], errors[1]);
      const auto held = static_cast<std::size_t>(std::popcount(pool_->outliers().mask(head, page)));
      if (rule.score(errors[0], errors[1]) > rule.above && held < pool_->outlier_limit()) {
        load_tile(rows, plan, tile, i, head, kv_side::keys, key);
        load_tile(rows, plan, tile, i, head, kv_side::values, value);
        pool_->outliers().add(head, page, at % block_tokens, key, value);
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
    recent_.remove(0, plan.leaving, self_.dropper(&recent_));
    if (pool_->trained()) {
      recent_.drop_weights();
      queries_ = {};
    }
  }

  sequence<Bank>& self_;
  page_pool<Bank>* pool_;
  token_list& sinks_;
  token_list& body_;
  token_list& recent_;
  query_logs& queries_;
};

}  // namespace v0
}  // namespace pqattn
