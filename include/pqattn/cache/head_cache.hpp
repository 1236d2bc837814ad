// SPDX-License-Identifier: MIT
// The cache of one KV head: exact until there is enough to train on, then sinks | codes | recent window.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "../attend/attend.hpp"
#include "../bank/bank.hpp"
#include "../core/growable.hpp"
#include "../core/memory.hpp"
#include "../encode/encode.hpp"
#include "attend_scratch.hpp"
#include "cache_config.hpp"
#include "drift.hpp"
#include "outlier_rows.hpp"
#include "query_lesson.hpp"
#include "query_log.hpp"
#include "side_coder.hpp"
#include "side_store.hpp"
#include "side_trainer.hpp"

namespace pqattn {
inline namespace v0 {

/// One training of both sides' codebooks and the tokens they code.
struct coding_epoch {
  std::size_t first = 0;   ///< first slot of the body; the epoch ends where the next begins
  float key_error = 0.0f;  ///< mean error of a training row, see side_coder::measure; 0 when not measured
  float value_error = 0.0f;
  float outlier_above = 0.0f;  ///< importance * relative error from which a token is an outlier
};

/// KV cache of one KV head, over a bank that outlives it. Move-only. One writer at a time; attend() is const and may
/// run concurrently with other readers that use other scratch.
///
/// Token t of the cache sits at position t. After any failed call the cache holds what it held before.
///
/// Tokens: sinks | body | recent window, exact before training. Codes of the body lie in chunks (pieces of memory) and
/// belong to epochs (codebooks, at most max_epochs; after the last one they stay as they are): segments of attention
/// are where both are the same. Outliers of the body are kept a second time, exact; their slots are dead. What each
/// switch costs stands beside it in cache_config.
template <class Bank>
class head_cache {
  static_assert(bank_policy<Bank>, "Bank must satisfy bank_policy (see pqattn/bank/bank.hpp)");

 public:
  using address = typename Bank::address;

  head_cache() = default;

  /// Makes an empty cache. Errors: whatever check_config finds, out of memory.
  static status make(Bank& bank, const cache_config& config, const memory_resource& resource, head_cache& result) {
    PQATTN_TRY(check_config(config));
    if (config.key_tail != 0 || config.values_from_keys) {
      return failure(status_code::unsupported, "config.key_tail or values_from_keys", "is served by page_pool only");
    }
    head_cache made;
    made.bank_ = &bank;
    made.config_ = config;
    made.resource_ = resource;
    const row_forms key_forms{config.rotation, config.keys_arrive_rotated, config.code_keys_after_rope,
                              config.exact_type};
    const row_forms value_forms{{}, true, true, config.exact_type};
    made.keys_ = side_store<Bank>(bank, resource, config.keys, key_forms, config.sinks, config.recent);
    made.values_ = side_store<Bank>(bank, resource, config.values, value_forms, config.sinks, config.recent);
    made.weights_ = growable<float>(resource);
    made.epochs_ = growable<coding_epoch>(resource);
    made.queries_ = query_log(resource, config.codes_anything() ? config.query_rows : 0, config.keys.shape.dim);
    made.outliers_ =
        outlier_rows(resource, config.exact_type, config.keys.shape.dim, config.values.shape.dim, config.outlier_share);
    made.scratch_ = coding_scratch(resource);
    result = std::move(made);
    return {};
  }

  /// Appends tokens: keys (n, d_k) and values (n, d_v), any n. Trains and codes when there is enough; `weights` (n,
  /// >= 0, or null for 1) are the tokens' importance, used only by training. Tokens that leave the recent window are
  /// coded with the frozen codebook. One long append and many short ones store the same, given the same codebook.
  /// Errors (cache unchanged): shape mismatch, NaN or infinity with its row and column, bad weights or metric, out of
  /// memory, cancelled training.
  status append(const rows_view& keys, const rows_view& values, const float* weights = nullptr,
                const training_options& options = {}) {
    PQATTN_TRY(begin_append(keys, values, weights, options));
    finish_append(keys, values, weights);
    return {};
  }

  /// First half of append(): everything that can fail (checks, training, memory). Nothing that can be seen changes.
  /// Follow with finish_append() with the same rows, or with cancel_append(): a layer begins on all heads first.
  /// `scratch` replaces the cache's own; finish_append() may be given another that is as large.
  status begin_append(const rows_view& keys, const rows_view& values, const float* weights,
                      const training_options& options, coding_scratch* scratch = nullptr) {
    PQATTN_TRY(check_arrival(keys, config_.keys, values.rows, config_.largest_key(), "keys"));
    PQATTN_TRY(check_arrival(values, config_.values, keys.rows, config_.largest_value(), "values"));
    PQATTN_TRY(check_new_weights(weights, keys.rows));
    PQATTN_TRY(check_lesson(options));
    if constexpr (bank_homes<Bank>) {
      bank_->select_home(config_.home);
    }
    plan_ = make_plan(keys.rows);
    status done = plan_.new_epochs == 0 ? status{} : train(keys, values, weights, options);
    if (done) {
      done = reserve(keys.rows, scratch == nullptr ? scratch_ : *scratch);
    }
    if (!done) {
      cancel_append();
    }
    return done;
  }

  /// Undoes begin_append().
  void cancel_append() noexcept {
    keys_.coded().drop_codebooks(config_.keys.coded ? known_epochs_ : 0);
    values_.coded().drop_codebooks(config_.values.coded ? known_epochs_ : 0);
    epochs_.truncate(known_epochs_);
    if (plan_.new_metric) {
      keys_.swap_metric(old_metric_);
    }
    if (!trained_) {
      values_.set_rotation({}, {});
      epochs_.reset();
    }
    old_metric_ = {};
    importance_ = {};
    plan_ = {};
  }

  /// Second half of append(): moves the rows where they belong. Cannot fail.
  void finish_append(const rows_view& keys, const rows_view& values, const float* weights,
                     coding_scratch* scratch = nullptr) noexcept {
    const std::size_t to_sinks = keys_.sinks_from(keys.rows);
    const arriving_rows added{keys.slice(to_sinks, plan_.added), values.slice(to_sinks, plan_.added),
                              weights == nullptr ? nullptr : weights + to_sinks};
    for (std::size_t i = 0; keeps_weights() && i < plan_.added; ++i) {
      static_cast<void>(weights_.push_back(added.weights == nullptr ? 1.0f : added.weights[i]));
    }
    keys_.push_sinks(keys);
    values_.push_sinks(values);
    if (plan_.leaving != 0) {
      code_body(added, scratch == nullptr ? scratch_ : *scratch);
    }
    const std::size_t base = keys_.sinks().size() + body_;
    keys_.push_window(added.keys, plan_.leaving, base);
    values_.push_window(added.values, plan_.leaving, base);
    body_ += plan_.leaving;
    size_ += keys.rows;
    if (plan_.new_epochs != 0) {
      settle();
    }
    gathering_ = gathering_ || refresh_is_due();
    plan_ = {};
  }

  /// Bytes of scratch that finish_append() needs once the cache codes.
  [[nodiscard]] std::size_t coding_bytes() const noexcept {
    carver memory;
    static_cast<void>(coders(memory, config_));
    return memory.required();
  }

  /// Keeps query rows (n, d_k; the heads of the group, rotated as for attend()) at `positions` (n) for the training to
  /// come: up to config.query_rows of them, spread evenly. Does nothing afterwards. An engine calls it with the rows it
  /// attends with. Errors (nothing kept): wrong number of channels, not finite, out of memory.
  status observe(const rows_view& queries, const std::int64_t* positions) {
    if (trained_) {
      return {};
    }
    PQATTN_TRY(check_queries(queries, positions));
    return queries_.add(queries, positions);
  }

  /// Asks for new codebooks: tokens stay exact from here on until config.refresh_tokens of them can teach the next
  /// epoch, which starts from the last. Codes so far stay valid.
  void refresh() noexcept { gathering_ = trained_ && known_epochs_ < max_epochs; }
  /// Whether tokens are being collected for the next epoch.
  [[nodiscard]] bool refreshing() const noexcept { return gathering_; }

  /// Running errors of what was coded since the last training; ratios are 1 unless the configuration measures errors.
  [[nodiscard]] drift_report drift() const noexcept {
    const coding_epoch epoch = known_epochs_ == 0 ? coding_epoch{} : epochs_[known_epochs_ - 1];
    return measured_.over(epoch.key_error, epoch.value_error);
  }

  /// Attention of `queries` (rows, d_k: the query heads of the group times the query tokens, rotated) over all
  /// tokens. Column c of `params.modifiers.bias`, if any, belongs to token size() - cols + c: of all tokens, or of the
  /// latest ones when there are fewer columns. `out` (rows, d_v); `lse_e` (rows) or null.
  /// Allocates only while `scratch` grows (see prepare). Errors (out untouched): see pqattn::attend.
  status attend(const rows_view& queries, const attention_params& params, attend_scratch<Bank>& scratch,
                const rows_ref& out, float* lse_e) const {
    const bool biased = params.modifiers.bias.data != nullptr;
    if (biased && params.modifiers.bias.cols > size_) {
      return failure(status_code::shape_mismatch, "modifiers.bias", "must not have more columns than there are tokens",
                     size_, params.modifiers.bias.cols);
    }
    PQATTN_TRY(prepare(queries.rows, params.parts.workers, scratch));
    segment<address> segments[max_segments];
    const std::size_t count = collect_segments(scratch.tables(), segments);
    for (std::size_t i = 0; biased && i < count; ++i) {  // token t of a cache sits at position t
      segments[i].columns = {segments[i].positions.base, segments[i].positions.list};
      segments[i].columns.base +=
          static_cast<std::int64_t>(params.modifiers.bias.cols) - static_cast<std::int64_t>(size_);
    }
    return pqattn::attend(*bank_, queries, segments, count, params, scratch.workspace(), scratch.workspace_bytes(), out,
                          lse_e);
  }

  /// Copies tokens [first, first + keys.rows) out as attention sees them: keys rotated, coded tokens decoded.
  /// keys (n, d_k) and values (n, d_v) in any dtype. Errors: shape mismatch, tokens the cache does not hold.
  status read(std::size_t first, const rows_ref& keys, const rows_ref& values) const {
    if (keys.cols != config_.keys.shape.dim || values.cols != config_.values.shape.dim || keys.rows != values.rows) {
      return failure(status_code::shape_mismatch, "keys or values",
                     "must have the configured channels, same rows; keys", config_.keys.shape.dim, keys.cols);
    }
    if (first > size_ || keys.rows > size_ - first) {
      return failure(status_code::invalid_argument, "first + rows", "must be within the cache", size_,
                     static_cast<double>(first) + static_cast<double>(keys.rows));
    }
    float row[max_dim];
    for (std::size_t i = 0; i < keys.rows; ++i) {
      const std::size_t token = first + i;
      const std::size_t epoch = epoch_of(token < keys_.sinks().size() ? 0 : token - keys_.sinks().size());
      const std::size_t outlier = outliers_.find(token);
      PQATTN_TRY(keys_.read(token, body_, epoch, row));
      if (outlier < outliers_.size()) {
        load_row(outliers_.keys(), outlier, row);
      }
      store_row(keys, i, row);
      PQATTN_TRY(values_.read(token, body_, epoch, row));
      if (outlier < outliers_.size()) {
        load_row(outliers_.values(), outlier, row);
      }
      store_row(values, i, row);
    }
    return {};
  }

  /// Grows `scratch` to what attend() needs for `rows` query rows on `workers` workers, for every context up to the
  /// room already reserved: until the cache grows again, attend() then allocates nothing.
  status prepare(std::size_t rows, std::size_t workers, attend_scratch<Bank>& scratch) const {
    segment<address> segments[max_segments];
    std::size_t count = collect_segments(address{}, segments);
    // Room that is not yet used: of outliers, of the last chunks.
    segment<address>& outliers = segments[count++];
    outliers = {};
    outliers.slots.count = outliers_.room();
    for (std::size_t i = 0; i < chunk_count(); ++i) {
      const code_chunk<address>& chunk = chunk_source().chunk(i);
      if (chunk.first + chunk.slots > body_) {
        segment<address>& next = segments[count++];
        next = {};
        next.keys.coded = true;  // counted in whole blocks
        next.slots.count = chunk.slots;
      }
    }
    const std::size_t workspace =
        attention_workspace_bytes(segments, count, rows, config_.keys.shape.dim, config_.values.shape.dim, workers);
    const std::size_t tables =
        config_.keys.coded && trained_ ? bank_->table_bytes(config_.keys.shape, rows, code_rotation()) : 0;
    return scratch.reserve(workspace, tables);
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// Whether codebooks exist: before that every token is exact.
  [[nodiscard]] bool trained() const noexcept { return trained_; }
  [[nodiscard]] std::size_t coded_tokens() const noexcept { return body_; }
  /// Of the coded tokens, those also kept exact.
  [[nodiscard]] std::size_t outlier_tokens() const noexcept { return outliers_.size(); }
  [[nodiscard]] std::size_t epoch_count() const noexcept { return known_epochs_; }
  [[nodiscard]] const coding_epoch& epoch(std::size_t index) const noexcept { return epochs_[index]; }
  [[nodiscard]] const cache_config& config() const noexcept { return config_; }
  /// What the last training reported; all zero before it.
  [[nodiscard]] const training_report& key_training() const noexcept { return key_report_; }
  [[nodiscard]] const training_report& value_training() const noexcept { return value_report_; }

  [[nodiscard]] memory_report memory() const noexcept {
    memory_report report;
    keys_.add_to(report);
    values_.add_to(report);
    outliers_.add_to(report);
    report.metadata_bytes += weights_.bytes() + epochs_.bytes() + queries_.bytes();
    report.scratch_bytes += scratch_.size();
    report.tokens = size_;
    report.elements = size_ * (config_.keys.shape.dim + config_.values.shape.dim);
    return report;
  }

 private:
  /// Sinks, chunks of the body cut at epochs, outliers, recent window, and in prepare() chunks not yet used.
  static constexpr std::size_t max_segments = max_chunks + max_epochs + 6;

  /// What an append will do; decided by begin_append().
  struct append_plan {
    std::size_t added = 0;       ///< rows behind the sinks
    std::size_t leaving = 0;     ///< rows that leave the window for the body
    std::size_t new_epochs = 0;  ///< trained before that
    bool coding = false;         ///< codebooks exist afterwards
    bool new_metric = false;
    training_report key_report;
    training_report value_report;
  };
  /// The arriving rows behind the sinks.
  struct arriving_rows {
    rows_view keys;
    rows_view values;
    const float* weights;  ///< or null
  };
  struct coders {
    side_coder keys;
    side_coder values;
    coders(carver& memory, const cache_config& config) noexcept
        : keys(memory, config.keys, config.measures_errors()),
          values(memory, config.values, config.measures_errors()) {}
  };

  static status check_arrival(const rows_view& rows, const side_config& side, std::size_t other_rows, float largest,
                              const char* subject) noexcept {
    PQATTN_TRY(check_view(rows, subject));
    if (rows.cols != side.shape.dim) {
      return failure(status_code::shape_mismatch, subject, "must have the configured number of channels",
                     side.shape.dim, rows.cols);
    }
    if (rows.rows != other_rows) {
      return failure(status_code::shape_mismatch, subject, "must have as many rows as the other side", other_rows,
                     rows.rows);
    }
    return detail::check_finite(rows, subject, largest);
  }

  static status check_new_weights(const float* weights, std::size_t count) noexcept {
    for (std::size_t i = 0; weights != nullptr && i < count; ++i) {
      if (!is_finite(weights[i]) || weights[i] < 0.0f) {
        return failure(status_code::invalid_argument, "weights", "must be finite and at least 0; bad entry at index", 0,
                       i);
      }
    }
    return {};
  }

  status check_queries(const rows_view& queries, const std::int64_t* positions) const noexcept {
    PQATTN_TRY(check_view(queries, "queries"));
    if (queries.rows == 0) {
      return {};
    }
    if (queries.cols != config_.keys.shape.dim) {
      return failure(status_code::shape_mismatch, "queries.cols", "must equal the keys' channels",
                     config_.keys.shape.dim, queries.cols);
    }
    if (positions == nullptr) {
      return failure(status_code::invalid_argument, "query_positions", "are null");
    }
    return detail::check_finite(queries, "queries");
  }
  status check_lesson(const training_options& options) const noexcept {
    const std::size_t dim = config_.keys.shape.dim;
    if (options.key_metric != nullptr) {
      PQATTN_TRY(detail::check_finite(view_rows(options.key_metric, dim, dim), "key_metric"));
    }
    return check_queries(options.queries, options.query_positions);
  }

  [[nodiscard]] rope code_rotation() const noexcept { return config_.rotates_codes() ? config_.rotation : rope{}; }
  [[nodiscard]] bool keeps_weights() const noexcept { return !plan_.coding && config_.codes_anything(); }

  // --- planning ---

  [[nodiscard]] append_plan make_plan(std::size_t rows) const noexcept {
    append_plan plan;
    plan.added = rows - keys_.sinks_from(rows);
    const std::size_t held = keys_.recent().size() + plan.added;
    const std::size_t beyond = held > config_.recent ? held - config_.recent : 0;
    const bool first =
        !trained_ && config_.codes_anything() && size_ + rows >= config_.sinks + config_.training_start();
    const bool refreshed = gathering_ && beyond >= config_.refresh_start();
    plan.coding = trained_ || first;
    if (!plan.coding || (gathering_ && !refreshed)) {
      return plan;
    }
    plan.leaving = (body_ + beyond) / config_.coding_batch * config_.coding_batch;
    plan.leaving = plan.leaving > body_ ? plan.leaving - body_ : 0;
    if (config_.window_tokens != 0) {
      const std::size_t windows = plan.leaving / config_.window_tokens;
      plan.new_epochs = (std::min)(windows, max_epochs - known_epochs_);
    }
    if ((first || refreshed) && plan.new_epochs == 0) {
      plan.new_epochs = 1;
    }
    return plan;
  }

  [[nodiscard]] bool refresh_is_due() const noexcept {
    return config_.refresh_above > 0.0f && known_epochs_ < max_epochs &&
           measured_.rows() >= running_errors::memory / 2 && drift().largest() > config_.refresh_above;
  }

  // --- training ---

  /// Trains the epochs of the plan. On failure cancel_append() undoes what was done.
  status train(const rows_view& keys, const rows_view& values, const float* weights, const training_options& options) {
    const std::size_t to_sinks = keys_.sinks_from(keys.rows);
    const arriving_rows added{keys.slice(to_sinks, plan_.added), values.slice(to_sinks, plan_.added),
                              weights == nullptr ? nullptr : weights + to_sinks};
    PQATTN_TRY(collect_importance(added));
    PQATTN_TRY(learn_from_queries(keys, options));
    PQATTN_TRY(epochs_.reserve(known_epochs_ + plan_.new_epochs));
    const std::size_t held = keys_.recent().size() + plan_.added;
    const std::size_t base = keys_.sinks().size() + to_sinks + body_;
    for (std::size_t i = 0; i < plan_.new_epochs; ++i) {
      const std::size_t first = i * config_.window_tokens;
      const bool last = i + 1 == plan_.new_epochs;
      const std::size_t count = last ? held - first : config_.window_tokens;
      coding_epoch epoch;
      epoch.first = body_ + first;
      PQATTN_TRY(train_epoch({{}, first, count, base, importance()}, added, options, epoch));
      PQATTN_TRY(epochs_.push_back(epoch));
    }
    return {};
  }

  [[nodiscard]] float* importance() const noexcept { return reinterpret_cast<float*>(importance_.data()); }

  /// The caller's weights of all rows behind the body.
  status collect_importance(const arriving_rows& added) {
    const std::size_t held = keys_.recent().size();
    PQATTN_TRY(buffer::make(resource_, (held + plan_.added) * sizeof(float), importance_));
    for (std::size_t i = 0; i < held + plan_.added; ++i) {
      const float known = i < weights_.size() ? weights_[i] : 1.0f;
      importance()[i] = i < held || added.weights == nullptr ? known : added.weights[i - held];
    }
    return {};
  }

  /// Metric and attention weights. Query rows count at the first training only: later most keys are codes.
  status learn_from_queries(const rows_view& keys, const training_options& options) {
    const bool wants_metric = config_.keys.coded && config_.keys.metric;
    const std::size_t sinks = keys_.sinks().size() + keys_.sinks_from(keys.rows);
    detail::query_lesson<Bank> lesson(*bank_, config_, resource_, size_ + keys.rows, sinks);
    const bool asks = !trained_ && ((wants_metric && options.key_metric == nullptr) || config_.attention_weights);
    if (asks && queries_.size() + options.queries.rows != 0) {
      PQATTN_TRY(lesson.gather(queries_, options.queries, options.query_positions,
                               [&](std::size_t token, float* row) { return load_exact_key(keys, token, row); }));
    }
    if (wants_metric && (options.key_metric != nullptr || lesson.query_count() != 0)) {
      buffer packed;
      PQATTN_TRY(lesson.template pack_metric_of<half>(options.key_metric, packed));
      old_metric_ = std::move(packed);
      keys_.swap_metric(old_metric_);
      plan_.new_metric = true;
    }
    if (config_.attention_weights && lesson.query_count() != 0) {
      PQATTN_TRY(lesson.weigh(importance()));
    }
    return {};
  }

  /// Key of a token that is still exact, held or arriving with `keys`; returns its position.
  std::int64_t load_exact_key(const rows_view& keys, std::size_t token, float* row) const noexcept {
    const std::size_t held = keys_.sinks().size();
    const auto position = static_cast<std::int64_t>(token);
    if (token < held) {
      load_row(keys_.sinks().view(), token, row);
    } else {
      keys_.load(keys, token - held, position, row);
    }
    return position;
  }

  status train_epoch(detail::lesson_rows lesson, const arriving_rows& added, const training_options& options,
                     coding_epoch& epoch) {
    detail::side_trainer<Bank> key_trainer(*bank_, config_, resource_, keys_, 0);
    detail::side_trainer<Bank> value_trainer(*bank_, config_, resource_, values_, 1);
    const std::size_t samples = key_trainer.samples(lesson);
    buffer errors;
    if (config_.measures_errors()) {
      PQATTN_TRY(buffer::make(resource_, 2 * samples * sizeof(float), errors));
      std::fill_n(reinterpret_cast<float*>(errors.data()), 2 * samples, 0.0f);
    }
    auto* key_errors = reinterpret_cast<float*>(errors.data());
    float* value_errors = key_errors == nullptr ? nullptr : key_errors + samples;
    if (config_.keys.coded) {
      lesson.added = added.keys;
      PQATTN_TRY(key_trainer.run(lesson, options, plan_.key_report, key_errors));
    }
    if (config_.values.coded) {
      lesson.added = added.values;
      PQATTN_TRY(value_trainer.run(lesson, options, plan_.value_report, value_errors));
    }
    if (key_errors != nullptr) {
      judge_training(lesson, samples, key_errors, value_errors, epoch);
    }
    return {};
  }

  /// Mean errors, and the score above which lies the share of outliers. Overwrites the errors.
  void judge_training(const detail::lesson_rows& lesson, std::size_t samples, float* key_errors,
                      const float* value_errors, coding_epoch& epoch) const noexcept {
    double sums[2] = {};
    for (std::size_t i = 0; i < samples; ++i) {
      sums[0] += static_cast<double>(key_errors[i]);
      sums[1] += static_cast<double>(value_errors[i]);
    }
    epoch.key_error = static_cast<float>(sums[0] / static_cast<double>(samples));
    epoch.value_error = static_cast<float>(sums[1] / static_cast<double>(samples));
    for (std::size_t i = 0; i < samples; ++i) {
      const float weight = lesson.importance[lesson.first + i * lesson.count / samples];
      key_errors[i] = outlier_score(epoch, weight, key_errors[i], value_errors[i]);
    }
    // Half of the share on the training rows: the budget is for what comes later, too.
    const auto kept = static_cast<std::size_t>((1.0 - 0.5 * static_cast<double>(config_.outlier_share)) *
                                               static_cast<double>(samples - 1));
    // A comparison of its own keeps the algorithm's code apart from that of units with other instruction sets.
    std::nth_element(key_errors, key_errors + kept, key_errors + samples, [](float a, float b) { return a < b; });
    epoch.outlier_above = key_errors[kept];
    if (!is_finite(epoch.key_error) || !is_finite(epoch.value_error) || !is_finite(epoch.outlier_above)) {
      const coding_epoch untaught;  // rows whose errors overflow teach nothing
      epoch.key_error = untaught.key_error;
      epoch.value_error = untaught.value_error;
      epoch.outlier_above = untaught.outlier_above;
    }
  }

  /// How much a token loses by being coded, relative to the mean training row of weight 1.
  [[nodiscard]] static float outlier_score(const coding_epoch& epoch, float weight, float key_error,
                                           float value_error) noexcept {
    const float keys = epoch.key_error > 0.0f ? key_error / epoch.key_error : 0.0f;
    const float values = epoch.value_error > 0.0f ? value_error / epoch.value_error : 0.0f;
    return weight * (keys + values);
  }

  /// After the first append with new codebooks: what only training needed goes back.
  void settle() noexcept {
    if (!trained_) {
      keys_.shrink_window();
      values_.shrink_window();
      weights_.reset();
      queries_.close();
    }
    trained_ = true;
    gathering_ = false;
    key_report_ = plan_.key_report;
    value_report_ = plan_.value_report;
    known_epochs_ = epochs_.size();
    importance_ = {};
    old_metric_ = {};
  }

  status reserve(std::size_t rows, coding_scratch& scratch) {
    PQATTN_TRY(keys_.reserve(rows, plan_.leaving, body_, plan_.coding));
    PQATTN_TRY(values_.reserve(rows, plan_.leaving, body_, plan_.coding));
    if (plan_.coding) {
      PQATTN_TRY(scratch.reserve(coding_bytes()));
      const std::size_t room = config_.codes_anything() ? chunk_source().capacity() : 0;
      PQATTN_TRY(outliers_.reserve((std::max)(room, body_ + plan_.leaving)));
    }
    return keeps_weights() ? weights_.reserve(weights_.size() + rows) : status{};
  }

  // --- coding ---

  /// Moves the rows that leave the window into the body, epoch after epoch.
  void code_body(const arriving_rows& added, coding_scratch& scratch) noexcept {
    carver memory(scratch.data(), scratch.size());
    coders coding(memory, config_);
    std::size_t done = 0;
    while (done < plan_.leaving) {
      const std::size_t epoch = epoch_of(body_ + done);
      const std::size_t epoch_end = epoch + 1 < epochs_.size() ? epochs_[epoch + 1].first : body_ + plan_.leaving;
      const std::size_t end = (std::min)(epoch_end - body_, plan_.leaving);
      start_epoch(epoch, coding);
      for (; done < end; done += (std::min)(block_tokens, end - done)) {
        code_tile(added, done, (std::min)(block_tokens, end - done), epoch, coding);
      }
    }
  }

  void start_epoch(std::size_t epoch, coders& coding) noexcept {
    if (config_.keys.coded) {
      coding.keys.start(epoch_codes<Bank>(keys_.coded(), epoch), keys_.packed_metric());
    }
    if (config_.values.coded) {
      coding.values.start(epoch_codes<Bank>(values_.coded(), epoch), values_.packed_metric());
    }
    if (body_ <= epochs_[epoch].first) {  // the epoch is new: its errors are counted from here
      measured_ = {};
    }
  }

  /// Rows [first, first + count) of the window continued by `added`.
  void code_tile(const arriving_rows& added, std::size_t first, std::size_t count, std::size_t epoch,
                 coders& coding) noexcept {
    float key_errors[block_tokens] = {};
    float value_errors[block_tokens] = {};
    code_side(keys_, added.keys, first, count, coding.keys, epoch, key_errors);
    code_side(values_, added.values, first, count, coding.values, epoch, value_errors);
    for (std::size_t i = 0; config_.measures_errors() && i < count; ++i) {
      measured_.add(key_errors[i], value_errors[i]);
    }
    for (std::size_t i = 0; config_.outlier_share > 0.0f && i < count; ++i) {
      const float score = outlier_score(epochs_[epoch], weight_of(added, first + i), key_errors[i], value_errors[i]);
      outliers_.add_slot();
      if (score > epochs_[epoch].outlier_above && outliers_.has_room()) {
        keep_outlier(added, first + i, coding);
      }
    }
  }

  void code_side(side_store<Bank>& store, const rows_view& added, std::size_t first, std::size_t count,
                 side_coder& coder, std::size_t epoch, float* errors) noexcept {
    const std::size_t dim = store.side().shape.dim;
    const std::size_t base = keys_.sinks().size() + body_;
    for (std::size_t i = 0; i < count; ++i) {
      float* row = coder.rows() + i * dim;
      const auto position = static_cast<std::int64_t>(base + first + i);
      store.load(added, first + i, position, row);
      if (store.side().coded) {
        store.forms().to_coded(position, row);
      }
    }
    if (!store.side().coded) {
      store.push_exact_body(coder.rows(), count);
      return;
    }
    const epoch_codes<Bank> target(store.coded(), epoch);
    coder.code(target, body_ + first, count);
    if (config_.measures_errors()) {
      coder.measure(target, body_ + first, count, errors);
    }
  }

  /// Importance of a row that is being coded: known to training, or given with it, or 1.
  [[nodiscard]] float weight_of(const arriving_rows& added, std::size_t index) const noexcept {
    if (importance_.size() != 0) {
      return importance()[index];
    }
    const std::size_t held = keys_.recent().size();
    return index < held || added.weights == nullptr ? 1.0f : added.weights[index - held];
  }

  void keep_outlier(const arriving_rows& added, std::size_t index, coders& coding) noexcept {
    const std::size_t token = keys_.sinks().size() + body_ + index;
    keys_.load(added.keys, index, static_cast<std::int64_t>(token), coding.keys.rows());
    values_.load(added.values, index, static_cast<std::int64_t>(token), coding.values.rows());
    outliers_.add(token, body_ + index, coding.keys.rows(), coding.values.rows());
  }

  // --- attention ---

  /// Both coded sides grow alike; their chunks cut the body into segments.
  [[nodiscard]] const code_store<Bank>& chunk_source() const noexcept {
    return config_.keys.coded ? keys_.coded() : values_.coded();
  }
  /// Chunks that both coded sides have: one may have a chunk more after the other ran out of memory.
  [[nodiscard]] std::size_t chunk_count() const noexcept {
    const std::size_t values = config_.values.coded ? values_.coded().chunk_count() : max_chunks;
    const std::size_t keys = config_.keys.coded ? keys_.coded().chunk_count() : max_chunks;
    return config_.codes_anything() ? (std::min)(keys, values) : 0;
  }

  static token_source<address> exact_source(const rows_view& rows) noexcept {
    token_source<address> source;
    source.rows = rows;
    return source;
  }
  /// Body rows [first, first + count) of one side; they are chunk `index` of a coded one.
  static token_source<address> body_source(const side_store<Bank>& store, std::size_t index, std::size_t epoch,
                                           std::size_t first, std::size_t count) noexcept {
    if (!store.side().coded) {
      return exact_source(store.exact_body().view().slice(first, count));
    }
    token_source<address> source;
    source.coded = true;
    source.codes = store.coded().span(index);
    source.book = store.coded().book(epoch);
    return source;
  }

  /// Epoch that coded a slot of the body.
  [[nodiscard]] std::size_t epoch_of(std::size_t slot) const noexcept {
    std::size_t epoch = 0;
    while (epoch + 1 < epochs_.size() && epochs_[epoch + 1].first <= slot) {
      ++epoch;
    }
    return epoch;
  }

  /// Segments in the order of their tokens: sinks, body chunk by chunk and epoch by epoch, outliers, recent window.
  /// Returns how many.
  std::size_t collect_segments(address tables, segment<address>* segments) const noexcept {
    std::size_t count = 0;
    const auto add_exact = [&](const rows_view& keys, const rows_view& values, slot_positions positions) {
      segment<address>& next = segments[count++];
      next.keys = exact_source(keys);
      next.values = exact_source(values);
      next.slots = {0, keys.rows};
      next.positions = positions;
    };
    const std::size_t sinks = keys_.sinks().size();
    add_exact(keys_.sinks().view(), values_.sinks().view(), {0, nullptr});
    for (std::size_t i = 0; i < chunk_count() && chunk_source().chunk(i).first < body_; ++i) {
      const code_chunk<address>& chunk = chunk_source().chunk(i);
      const std::size_t end = (std::min)(body_, chunk.first + chunk.slots);
      for (std::size_t first = chunk.first; first < end;) {
        const std::size_t epoch = epoch_of(first);
        const bool last = epoch + 1 >= epochs_.size();
        const std::size_t stop = last ? end : (std::min)(end, epochs_[epoch + 1].first);
        segment<address>& next = segments[count++];
        next.keys = body_source(keys_, i, epoch, chunk.first, end - chunk.first);
        next.values = body_source(values_, i, epoch, chunk.first, end - chunk.first);
        next.slots = {first - chunk.first, stop - first};
        next.positions = {static_cast<std::int64_t>(sinks + chunk.first), nullptr};
        next.live = outliers_.live(chunk.first);
        next.rotation = next.keys.coded ? code_rotation() : rope{};
        next.tables = tables;
        next.turned_values = values_.forms().turn;
        first = stop;
      }
    }
    if (outliers_.size() != 0) {
      add_exact(outliers_.keys(), outliers_.values(), {0, outliers_.positions()});
    }
    add_exact(keys_.recent().view(), values_.recent().view(), {static_cast<std::int64_t>(sinks + body_), nullptr});
    return count;
  }

  Bank* bank_ = nullptr;
  cache_config config_;
  memory_resource resource_;
  side_store<Bank> keys_;
  side_store<Bank> values_;
  growable<float> weights_;        ///< importance of the rows in the recent window, until training
  growable<coding_epoch> epochs_;  ///< beyond known_epochs_: trained by an append that is under way
  query_log queries_;
  outlier_rows outliers_;
  coding_scratch scratch_;
  std::size_t size_ = 0;
  std::size_t body_ = 0;
  std::size_t known_epochs_ = 0;
  running_errors measured_;  ///< of what was coded since the last epoch began
  bool trained_ = false;
  bool gathering_ = false;  ///< rows stay in the window until they can teach the next epoch
  append_plan plan_;        ///< between begin_append() and finish_append(), as the next two
  buffer importance_;       ///< of the rows behind the body, while training
  buffer old_metric_;
  training_report key_report_;
  training_report value_report_;
};

}  // namespace v0
}  // namespace pqattn
