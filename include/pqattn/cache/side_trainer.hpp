// SPDX-License-Identifier: MIT
// What a cache learns when it goes over to codes: where queries look, and a codebook for each side and epoch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

#include "../bank/bank.hpp"
#include "../core/executor.hpp"
#include "../core/memory.hpp"
#include "../core/progress.hpp"
#include "../core/view.hpp"
#include "../train/codebook_trainer.hpp"
#include "../train/importance.hpp"
#include "../train/joint_trainer.hpp"
#include "../train/query_metric.hpp"
#include "../train/value_rotation.hpp"
#include "cache_config.hpp"
#include "query_log.hpp"
#include "side_coder.hpp"
#include "side_store.hpp"

namespace pqattn {
inline namespace v0 {

/// What an append that trains is given besides rows.
struct training_options {
  executor parts;
  progress_hook progress;
  /// Metric of the keys (d_k, d_k), symmetric positive definite, in the channel order of the model; null makes it from
  /// the query rows. Only read when side_config::metric is set.
  const float* key_metric = nullptr;
  /// Query rows of the group (n, d_k), rotated as for attend(), and their positions (n): they join those observed.
  rows_view queries;
  const std::int64_t* query_positions = nullptr;
};

namespace detail {

/// Positions of query rows whose attention makes the importance of tokens (t in AQPIM).
inline constexpr std::size_t importance_positions = 32;

/// Everything that is known of one cache when it trains for the first time: all tokens are still exact.
template <class Bank>
class query_lesson {
 public:
  query_lesson(Bank& bank, const cache_config& config, const memory_resource& resource, const side_store<Bank>& keys,
               const rows_view& arriving) noexcept
      : bank_(bank), config_(config), resource_(resource), keys_(keys), arriving_(arriving) {
    // Long prompts: the last max_training_tokens keys, with positions counted from the first of them.
    total_ = keys.sinks().size() + keys.recent().size() + arriving.rows;
    base_ = total_ > config.max_training_tokens ? total_ - config.max_training_tokens : 0;
    scale_ = config.softmax_scale;
  }

  /// Gathers keys and those query rows of `log` and `options` that look at them. query_count() may be 0 afterwards.
  status gather(const query_log& log, const training_options& options) {
    const std::size_t dim = config_.keys.shape.dim;
    carver counting;
    carve(counting, log.size() + options.queries.rows);
    PQATTN_TRY(buffer::make(resource_, counting.required(), memory_));
    carver placed(memory_.data(), memory_.size());
    carve(placed, log.size() + options.queries.rows);
    add_queries(log.rows(), log.positions());
    add_queries(options.queries, options.query_positions);
    for (std::size_t token = base_; query_count_ != 0 && token < total_; ++token) {
      float* row = key_rows_ + (token - base_) * dim;
      load_key(token, row);
      rotate_row(config_.rotation, static_cast<std::int64_t>(base_), -1.0f, row);
    }
    return {};
  }
  [[nodiscard]] std::size_t query_count() const noexcept { return query_count_; }

  /// The metric of the keys (d_k, d_k).
  status make_metric(float* metric) const {
    const std::size_t dim = config_.keys.shape.dim;
    query_metric_params params;
    params.scale = scale_;
    params.sinks = config_.sinks > base_ ? config_.sinks - base_ : 0;
    params.recent = config_.recent;
    params.seed = config_.kmeans.seed;
    std::fill_n(sum_, dim * dim, 0.0);
    PQATTN_TRY(add_query_metric(view_rows(query_rows_, query_count_, dim), positions_, keys(),
                                config_.rotates_codes() ? config_.rotation : rope{}, params, workspace_,
                                workspace_bytes_, sum_));
    finish_query_metric(sum_, dim, config_.metric_ridge, metric);
    return {};
  }

  /// Attention that the tokens behind the sinks get from the last query rows, into `importance` (total - sinks
  /// entries); tokens before the gathered ones get the mean.
  status weigh(std::size_t sinks, float* importance) const {
    std::fill_n(weights_, total_ - base_, 0.0f);
    const std::int64_t from = last_positions();
    for (std::size_t i = 0; i < query_count_; ++i) {
      if (positions_[i] >= from) {
        PQATTN_TRY(attention_importance(bank_, view_rows(query_rows_ + i * config_.keys.shape.dim, 1, keys().cols),
                                        positions_ + i, keys(), scale_, workspace_, workspace_bytes_, weights_));
      }
    }
    double sum = 0.0;
    const std::size_t first = (std::max)(sinks, base_);
    for (std::size_t token = first; token < total_; ++token) {
      importance[token - sinks] = weights_[token - base_];
      sum += static_cast<double>(weights_[token - base_]);
    }
    const double mean = total_ == first ? 1.0 : sum / static_cast<double>(total_ - first);
    for (std::size_t token = sinks; token < first; ++token) {
      importance[token - sinks] = static_cast<float>(mean);
    }
    return {};
  }

 private:
  void carve(carver& memory, std::size_t queries) noexcept {
    const std::size_t dim = config_.keys.shape.dim;
    const std::size_t tokens = total_ - base_;
    key_rows_ = memory.take<float>(tokens * dim);
    query_rows_ = memory.take<float>(queries * dim);
    positions_ = memory.take<std::int64_t>(queries);
    sorted_ = memory.take<std::int64_t>(queries);
    sum_ = memory.take<double>(dim * dim);
    weights_ = memory.take<float>(tokens);
    workspace_bytes_ = (std::max)(query_metric_workspace_bytes(tokens, dim), importance_workspace_bytes(tokens, dim));
    workspace_ = memory.take<std::byte>(workspace_bytes_);
  }

  void add_queries(const rows_view& rows, const std::int64_t* positions) noexcept {
    const auto base = static_cast<std::int64_t>(base_);
    for (std::size_t i = 0; i < rows.rows; ++i) {
      if (positions[i] >= base) {
        float* row = query_rows_ + query_count_ * rows.cols;
        load_row(rows, i, row);
        rotate_row(config_.rotation, base, -1.0f, row);
        positions_[query_count_++] = positions[i] - base;
      }
    }
  }

  void load_key(std::size_t token, float* row) const noexcept {
    const std::size_t sinks = keys_.sinks().size();
    if (token < sinks) {
      load_row(keys_.sinks().view(), token, row);
    } else {
      keys_.load(arriving_, token - sinks, static_cast<std::int64_t>(token), row);
    }
  }

  /// Smallest of the importance_positions largest positions.
  [[nodiscard]] std::int64_t last_positions() const noexcept {
    std::copy_n(positions_, query_count_, sorted_);
    std::sort(sorted_, sorted_ + query_count_, std::greater<std::int64_t>());
    std::size_t distinct = 0;
    for (std::size_t i = 0; i < query_count_; ++i) {
      distinct += i == 0 || sorted_[i] != sorted_[i - 1] ? 1 : 0;
      if (distinct == importance_positions) {
        return sorted_[i];
      }
    }
    return 0;
  }

  [[nodiscard]] rows_view keys() const noexcept {
    return view_rows(key_rows_, total_ - base_, config_.keys.shape.dim);
  }

  Bank& bank_;
  const cache_config& config_;
  const memory_resource& resource_;
  const side_store<Bank>& keys_;
  const rows_view& arriving_;
  std::size_t total_ = 0;
  std::size_t base_ = 0;
  float scale_ = 0.0f;
  buffer memory_;
  float* key_rows_ = nullptr;
  float* query_rows_ = nullptr;
  std::int64_t* positions_ = nullptr;
  std::int64_t* sorted_ = nullptr;
  double* sum_ = nullptr;
  float* weights_ = nullptr;
  std::byte* workspace_ = nullptr;
  std::size_t workspace_bytes_ = 0;
  std::size_t query_count_ = 0;
};

/// Rows that teach one epoch: [first, first + count) of the recent window continued by the arriving rows.
struct lesson_rows {
  rows_view added;                    ///< arriving rows behind the sinks
  std::size_t first = 0;
  std::size_t count = 0;
  std::size_t base = 0;               ///< position of row 0 of the window
  const float* importance = nullptr;  ///< of row 0 of the window and on, or null for all 1
};

/// Trains the codebook of one side's next epoch.
template <class Bank>
class side_trainer {
 public:
  side_trainer(Bank& bank, const cache_config& config, const memory_resource& resource, side_store<Bank>& store,
               std::uint64_t stream) noexcept
      : bank_(bank), config_(config), resource_(resource), store_(store), stream_(stream) {}

  [[nodiscard]] std::size_t samples(const lesson_rows& lesson) const noexcept {
    return (std::min<std::size_t>)(lesson.count, config_.max_training_tokens);
  }

  /// Adds a codebook to the store; the first epoch also learns the rotation of values. Later ones start from the book
  /// before. `errors` (samples entries) receives what the new book loses of each sample, or is null.
  status run(const lesson_rows& lesson, const training_options& options, training_report& report, float* errors) {
    const std::size_t count = samples(lesson);
    carver counting;
    carve(counting, count);
    buffer memory;
    PQATTN_TRY(buffer::make(resource_, counting.required(), memory));
    carver placed(memory.data(), memory.size());
    carve(placed, count);
    PQATTN_TRY(load(lesson, count));
    const std::size_t epoch = store_.coded().codebook_count();
    if (epoch != 0) {
      PQATTN_TRY(store_.coded().load_codebook(epoch - 1, centroids_));
    }
    kmeans_params kmeans = config_.kmeans;
    kmeans.seed = mix_seed(config_.kmeans.seed, stream_ + 2 * epoch);
    kmeans.init = epoch != 0 ? kmeans_init::warm_start : kmeans.init;
    const side_config& side = store_.side();
    if (side.joint_passes != 0 || metric_ != nullptr) {
      PQATTN_TRY(train_jointly(count, kmeans, options, report));
    } else {
      PQATTN_TRY(train_groups(count, kmeans, options, report));
    }
    PQATTN_TRY(store_.coded().add_codebook({side.shape, centroids_, 0, static_cast<std::uint32_t>(epoch)}));
    return errors == nullptr ? status{} : measure(count, errors);
  }

 private:
  void carve(carver& memory, std::size_t count) noexcept {
    const side_config& side = store_.side();
    rows_ = memory.take<float>(count * side.shape.dim);
    weights_ = memory.take<float>(count);
    centroids_ = memory.take<float>(side.shape.codebook_values());
    metric_ = store_.packed_metric() != nullptr ? memory.take<float>(std::size_t{side.shape.dim} * side.shape.dim)
                                                : nullptr;
  }

  /// Evenly spaced rows of the lesson in coded form, and their tempered weights.
  status load(const lesson_rows& lesson, std::size_t count) {
    const side_config& side = store_.side();
    const auto source = [&](std::size_t i) { return lesson.first + i * lesson.count / count; };
    const auto position = [&](std::size_t i) { return static_cast<std::int64_t>(lesson.base + source(i)); };
    for (std::size_t i = 0; i < count; ++i) {
      store_.load(lesson.added, source(i), position(i), rows_ + i * side.shape.dim);
      weights_[i] = lesson.importance == nullptr ? 1.0f : lesson.importance[source(i)];
    }
    if (side.rotated && !store_.forms().turn.enabled()) {
      PQATTN_TRY(learn_rotation(count));
    }
    for (std::size_t i = 0; i < count; ++i) {
      store_.forms().to_coded(position(i), rows_ + i * side.shape.dim);
    }
    temper_weights(weights_, count, config_.weight_exponent, config_.weight_floor);
    if (metric_ != nullptr) {
      unpack_metric(store_.packed_metric(), side.shape.dim, metric_);
    }
    return {};
  }

  status learn_rotation(std::size_t count) {
    const geometry& shape = store_.side().shape;
    buffer numbers;
    buffer workspace;
    PQATTN_TRY(buffer::make(resource_, (std::size_t{shape.dim} + 1) * shape.dim * sizeof(float), numbers));
    PQATTN_TRY(buffer::make(resource_, value_rotation_workspace_bytes(shape.dim), workspace));
    auto* mean = reinterpret_cast<float*>(numbers.data());
    PQATTN_TRY(train_value_rotation(view(count), shape.subvectors, workspace.data(), workspace.size(), mean,
                                    mean + shape.dim));
    store_.set_rotation(std::move(numbers));
    return {};
  }

  status train_groups(std::size_t count, const kmeans_params& kmeans, const training_options& options,
                      training_report& report) {
    const side_config& side = store_.side();
    training_params params;
    params.kmeans = kmeans;
    params.storage = side.storage;
    params.parts = options.parts;
    params.progress = options.progress;
    buffer workspace;
    PQATTN_TRY(
        buffer::make(resource_, training_workspace_bytes(bank_, side.shape, view(count), params), workspace));
    return train_codebook(bank_, side.shape, view(count), weights_, params, workspace.data(), workspace.size(),
                          centroids_, report);
  }

  status train_jointly(std::size_t count, const kmeans_params& kmeans, const training_options& options,
                       training_report& report) {
    const side_config& side = store_.side();
    joint_training_params params;
    params.kmeans = kmeans;
    params.passes = side.joint_passes;
    params.storage = side.storage;
    params.parts = options.parts;
    params.progress = options.progress;
    buffer workspace;
    PQATTN_TRY(buffer::make(
        resource_, joint_training_workspace_bytes(bank_, side.shape, count, metric_ != nullptr, params.parts),
        workspace));
    return train_codebook_jointly(bank_, side.shape, view(count), weights_, metric_, params, workspace.data(),
                                  workspace.size(), centroids_, report);
  }

  /// Codes the samples into a store of their own and compares.
  status measure(std::size_t count, float* errors) {
    const side_config& side = store_.side();
    code_store<Bank> probe(bank_, resource_, side, store_.forms().coded_rotated ? rope{} : store_.forms().rotation);
    PQATTN_TRY(probe.add_codebook({side.shape, centroids_, 0, 0}));
    PQATTN_TRY(probe.reserve(block_tokens));
    carver counting;
    static_cast<void>(side_coder<Bank>(counting, side, true));
    buffer memory;
    PQATTN_TRY(buffer::make(resource_, counting.required(), memory));
    carver placed(memory.data(), memory.size());
    side_coder<Bank> coder(placed, side, true);
    coder.start(probe, 0, store_.packed_metric());
    for (std::size_t first = 0; first < count; first += block_tokens) {
      const std::size_t rows = (std::min)(block_tokens, count - first);
      std::copy_n(rows_ + first * side.shape.dim, rows * side.shape.dim, coder.rows());
      coder.code(probe, 0, rows);
      coder.measure(probe, 0, rows, errors + first);
    }
    return {};
  }

  [[nodiscard]] rows_view view(std::size_t count) const noexcept {
    return view_rows(rows_, count, store_.side().shape.dim);
  }

  Bank& bank_;
  const cache_config& config_;
  const memory_resource& resource_;
  side_store<Bank>& store_;
  std::uint64_t stream_;
  float* rows_ = nullptr;
  float* weights_ = nullptr;
  float* centroids_ = nullptr;
  float* metric_ = nullptr;
};

}  // namespace detail

}  // namespace v0
}  // namespace pqattn
