// SPDX-License-Identifier: MIT
// What the queries say when a cache or a pool trains for the first time and every token is still exact: the metric that
// keys are coded in, and how much attention each token gets.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../bank/bank.hpp"
#include "../core/memory.hpp"
#include "../core/view.hpp"
#include "../train/importance.hpp"
#include "../train/query_metric.hpp"
#include "cache_config.hpp"
#include "packed_metric.hpp"
#include "query_log.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {

/// Positions of query rows whose attention makes the importance of tokens (t in AQPIM).
inline constexpr std::size_t importance_positions = 32;

/// Keys of one KV head, as attention sees them, and the query rows that look at them. Of long prompts the last
/// max_training_tokens keys.
template <class Bank>
class query_lesson {
 public:
  /// `tokens` in all, of which the first `sinks` are never coded.
  query_lesson(Bank& bank, const cache_config& config, const memory_resource& resource, std::size_t tokens,
               std::size_t sinks) noexcept
      : bank_(bank), config_(config), resource_(resource), total_(tokens), sinks_(sinks) {
    base_ = tokens > config.max_training_tokens ? tokens - config.max_training_tokens : 0;
  }

  /// Gathers keys, and those query rows of `log` and of `queries` at `query_positions` that look at them.
  /// load(token, row) gives a key and returns its position. query_count() may be 0 afterwards.
  template <class Load>
  status gather(const query_log& log, const rows_view& queries, const std::int64_t* query_positions, Load&& load) {
    const std::size_t dim = config_.keys.shape.dim;
    carver counting;
    carve(counting, log.size() + queries.rows);
    PQATTN_TRY(buffer::make(resource_, counting.required(), memory_));
    carver placed(memory_.data(), memory_.size());
    carve(placed, log.size() + queries.rows);
    for (std::size_t token = base_; token < total_; ++token) {
      key_positions_[token - base_] = load(token, key_rows_ + (token - base_) * dim);
    }
    add_queries(log.rows(), log.positions());
    add_queries(queries, query_positions);
    return {};
  }
  [[nodiscard]] std::size_t query_count() const noexcept { return query_count_; }

  /// The metric that keys are coded in: `given` (d_k, d_k) or, when that is null, made of the queries. Settled and
  /// packed as Number, float or half.
  template <class Number>
  status pack_metric_of(const float* given, buffer& packed) const {
    const std::size_t dim = config_.keys.shape.dim;
    buffer full;
    PQATTN_TRY(buffer::make(resource_, dim * dim * sizeof(float), full));
    PQATTN_TRY(buffer::make(resource_, packed_metric_floats(dim) * sizeof(Number), packed));
    auto* metric = reinterpret_cast<float*>(full.data());
    if (given == nullptr) {
      PQATTN_TRY(make_metric(metric));
    } else {
      std::copy_n(given, dim * dim, metric);
    }
    settle_metric(metric, dim);
    pack_metric(metric, dim, reinterpret_cast<Number*>(packed.data()));
    return {};
  }
  /// The metric of the keys (d_k, d_k) that the queries make.
  status make_metric(float* metric) const {
    const std::size_t dim = config_.keys.shape.dim;
    query_metric_params params;
    params.scale = config_.softmax_scale;
    params.sinks = sinks_ > base_ ? sinks_ - base_ : 0;
    params.recent = config_.recent;
    params.seed = config_.kmeans.seed;
    params.key_positions = key_positions_;
    std::fill_n(sum_, dim * dim, 0.0);
    PQATTN_TRY(add_query_metric(view_rows(query_rows_, query_count_, dim), places_, keys(),
                                config_.rotates_codes() ? config_.rotation : rope{}, params, workspace_,
                                workspace_bytes_, sum_));
    finish_query_metric(sum_, dim, config_.metric_ridge, metric);
    return {};
  }

  /// Attention that the tokens behind the sinks get from the last query rows, into `importance` (total - sinks
  /// entries); tokens before the gathered ones get the mean.
  status weigh(float* importance) const {
    std::fill_n(weights_, total_ - base_, 0.0f);
    const std::int64_t from = last_places();
    for (std::size_t i = 0; i < query_count_; ++i) {
      if (places_[i] >= from) {
        PQATTN_TRY(attention_importance(bank_, view_rows(query_rows_ + i * config_.keys.shape.dim, 1, keys().cols),
                                        places_ + i, keys(), config_.softmax_scale, workspace_, workspace_bytes_,
                                        weights_));
      }
    }
    double sum = 0.0;
    const std::size_t first = (std::max)(sinks_, base_);
    for (std::size_t token = first; token < total_; ++token) {
      importance[token - sinks_] = weights_[token - base_];
      sum += static_cast<double>(weights_[token - base_]);
    }
    const double mean = total_ == first ? 1.0 : sum / static_cast<double>(total_ - first);
    for (std::size_t token = sinks_; token < first; ++token) {
      importance[token - sinks_] = static_cast<float>(mean);
    }
    return {};
  }

 private:
  void carve(carver& memory, std::size_t queries) noexcept {
    const std::size_t dim = config_.keys.shape.dim;
    const std::size_t tokens = total_ - base_;
    key_rows_ = memory.take<float>(tokens * dim);
    key_positions_ = memory.take<std::int64_t>(tokens);
    query_rows_ = memory.take<float>(queries * dim);
    places_ = memory.take<std::int64_t>(queries);
    sorted_ = memory.take<std::int64_t>(queries);
    sum_ = memory.take<double>(dim * dim);
    weights_ = memory.take<float>(tokens);
    workspace_bytes_ = (std::max)(query_metric_workspace_bytes(tokens, dim), importance_workspace_bytes(tokens, dim));
    workspace_ = memory.take<std::byte>(workspace_bytes_);
  }

  void add_queries(const rows_view& rows, const std::int64_t* positions) noexcept {
    for (std::size_t i = 0; i < rows.rows; ++i) {
      const std::int64_t place = place_of(positions[i]);
      if (place >= 0) {
        load_row(rows, i, query_rows_ + query_count_ * rows.cols);
        places_[query_count_++] = place;
      }
    }
  }
  /// The last of the gathered keys that a query at `position` sees, counted from 0; behind the last key the counting
  /// goes on. -1 when it sees none. Keys stand in the order of their positions, as far as edits have left them so.
  [[nodiscard]] std::int64_t place_of(std::int64_t position) const noexcept {
    const std::size_t tokens = total_ - base_;
    if (tokens == 0) {
      return -1;
    }
    const std::int64_t last = key_positions_[tokens - 1];
    // A comparison of its own keeps the algorithm's code apart from that of units with other instruction sets.
    const std::int64_t* end = std::upper_bound(key_positions_, key_positions_ + tokens, position,
                                               [](std::int64_t a, std::int64_t b) { return a < b; });
    return (end - key_positions_) - 1 + (position > last ? position - last : 0);
  }

  /// Smallest of the importance_positions largest places.
  [[nodiscard]] std::int64_t last_places() const noexcept {
    std::copy_n(places_, query_count_, sorted_);
    std::sort(sorted_, sorted_ + query_count_, [](std::int64_t a, std::int64_t b) { return a > b; });
    std::size_t distinct = 0;
    for (std::size_t i = 0; i < query_count_; ++i) {
      distinct += i == 0 || sorted_[i] != sorted_[i - 1] ? 1 : 0;
      if (distinct == importance_positions) {
        return sorted_[i];
      }
    }
    return 0;
  }

  [[nodiscard]] rows_view keys() const noexcept { return view_rows(key_rows_, total_ - base_, config_.keys.shape.dim); }

  Bank& bank_;
  const cache_config& config_;
  const memory_resource& resource_;
  std::size_t total_;
  std::size_t sinks_;
  std::size_t base_ = 0;
  buffer memory_;
  float* key_rows_ = nullptr;
  std::int64_t* key_positions_ = nullptr;
  float* query_rows_ = nullptr;
  std::int64_t* places_ = nullptr;  ///< of the query rows: row of the last key that each sees
  std::int64_t* sorted_ = nullptr;
  double* sum_ = nullptr;
  float* weights_ = nullptr;
  std::byte* workspace_ = nullptr;
  std::size_t workspace_bytes_ = 0;
  std::size_t query_count_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace pqattn
