// SPDX-License-Identifier: MIT
// All KV heads of one layer: what an engine holds per layer and sequence.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include "../core/executor.hpp"
#include "../core/memory.hpp"
#include "head_cache.hpp"
#include "head_rows.hpp"
#include "staged_rows.hpp"

namespace pqattn {
inline namespace v0 {

/// One attention call of a layer. Everything per query head is indexed by query head.
struct layer_attention_params {
  float scale = 0.0f;               ///< 0 means 1 / sqrt(d_k)
  std::int64_t first_position = 0;  ///< of the first query token; the others follow
  bool causal = true;               ///< query token i sees keys up to its own position
  std::int64_t window = 0;          ///< > 0: sees only the last `window` positions, its own included
  float softcap = 0.0f;
  const float* alibi_slopes = nullptr;  ///< (q_heads)
  const float* sink_logits = nullptr;   ///< (q_heads)
  /// Optional explicit mask (1 or q_heads, n, columns): added to scores, minus infinity excludes; see score_modifiers.
  /// The columns belong to the latest tokens of the cache; tokens before them have no bias.
  const head_rows* bias = nullptr;
  value_method method = value_method::automatic;
  float skip_mass = attention_params{}.skip_mass;  ///< see attention_params
  skip_statistics* skips = nullptr;                ///< optional: counts of all heads are added here
};

/// What a layer's append is given besides rows.
struct layer_append_options {
  const float* weights = nullptr;  ///< (kv_heads, n) importance, or null
  progress_hook progress;
  const float* key_metrics = nullptr;  ///< (kv_heads, d_k, d_k): training_options::key_metric of each head, or null
};

/// KV cache of one layer: `kv_heads` head caches of one configuration, or each of its own. Query head h reads KV
/// head h / group, for any whole group size (MHA, GQA, MQA). Move-only; one append() or attend() at a time (the scratch
/// is its own).
template <class Bank>
class layer_cache {
 public:
  layer_cache() = default;
  layer_cache(layer_cache&& other) noexcept { swap(other); }
  layer_cache& operator=(layer_cache&& other) noexcept {
    layer_cache taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~layer_cache() {
    std::destroy_n(heads_, head_count_);
    std::destroy_n(workers_, worker_count_);
  }

  /// Makes an empty cache. Up to `parts.workers` heads are served at a time; each head trains from a seed of its own.
  /// Errors: whatever head_cache::make finds, no heads or too many, an executor without workers.
  static status make(Bank& bank, const cache_config& config, std::size_t kv_heads, const executor& parts,
                     const memory_resource& resource, layer_cache& result) {
    return make(bank, &config, 0, kv_heads, parts, resource, result);
  }
  /// The same with a configuration for each head, configs[0 .. kv_heads), as apply_policy() makes them: heads may
  /// differ in everything but their channels.
  static status make(Bank& bank, const cache_config* configs, std::size_t kv_heads, const executor& parts,
                     const memory_resource& resource, layer_cache& result) {
    return configs != nullptr ? make(bank, configs, 1, kv_heads, parts, resource, result)
                              : failure(status_code::invalid_argument, "configs", "must not be null");
  }

  /// Appends tokens to every head: keys (kv_heads, n, d_k), values (kv_heads, n, d_v). Heads train in parallel when
  /// this call reaches the training point. After any error every head is as before.
  status append(const head_rows& keys, const head_rows& values, const layer_append_options& options) {
    PQATTN_TRY(check_heads(keys.heads, "keys.heads"));
    PQATTN_TRY(check_heads(values.heads, "values.heads"));
    const std::size_t rows = keys.rows.rows;
    const auto weights_of = [&](std::size_t head) {
      return options.weights == nullptr ? nullptr : options.weights + head * rows;
    };
    run_parts(parts_, head_count_, [&](std::size_t head, std::size_t worker) {
      outcomes_[head] = heads_[head].begin_append(keys.head(head), values.head(head), weights_of(head),
                                                  lesson_of(head, options), &workers_[worker].coding);
    });
    if (const status outcome = reserve_coding(); !outcome) {
      for (std::size_t head = 0; head < head_count_; ++head) {
        if (outcomes_[head]) {
          heads_[head].cancel_append();
        }
      }
      return outcome;
    }
    run_parts(parts_, head_count_, [&](std::size_t head, std::size_t worker) {
      heads_[head].finish_append(keys.head(head), values.head(head), weights_of(head), &workers_[worker].coding);
    });
    return {};
  }
  status append(const head_rows& keys, const head_rows& values, const float* weights = nullptr,
                const progress_hook& progress = {}) {
    return append(keys, values, layer_append_options{weights, progress, nullptr});
  }

  /// Shows the heads query rows (q_heads, n, d_k) of positions first_position, first_position + 1, ... for the training
  /// to come: see head_cache::observe(). Errors (nothing kept): shape mismatch, positions out of range, not finite, out
  /// of memory.
  status observe(const head_rows& queries, std::int64_t first_position) {
    PQATTN_TRY(detail::check_queries(queries, head_count_, heads_[0].config().key_channels()));
    PQATTN_TRY(detail::check_positions(first_position, queries.rows.rows, "first_position"));
    for (std::size_t head = 0; head < head_count_; ++head) {
      PQATTN_TRY(heads_[head].observe(queries.head(0).slice(0, 0), nullptr));  // takes the memory
    }
    const std::size_t group = queries.heads / head_count_;
    for (std::size_t i = 0; i < queries.rows.rows; ++i) {
      const std::int64_t position = first_position + static_cast<std::int64_t>(i);
      for (std::size_t head = 0; head < queries.heads; ++head) {
        PQATTN_TRY(heads_[head / group].observe(queries.head(head).slice(i, 1), &position));
      }
    }
    return {};
  }

  /// Asks every head for new codebooks: see head_cache::refresh().
  void refresh() noexcept {
    for (std::size_t head = 0; head < head_count_; ++head) {
      heads_[head].refresh();
    }
  }

  /// Attention of `queries` (q_heads, n, d_k), rotated, into `out` (q_heads, n, d_v); `lse_e` (q_heads, n) or null.
  /// q_heads must be a multiple of the number of KV heads. Keys of the same n tokens must have been appended before.
  /// Allocates only while contexts or n grow. Errors: shape mismatches (out untouched), out of memory.
  status attend(const head_rows& queries, const layer_attention_params& params, const head_rows_ref& out,
                float* lse_e = nullptr) {
    const std::size_t tokens = queries.rows.rows;
    const cache_config& config = heads_[0].config();
    PQATTN_TRY(detail::check_call(queries, out, head_count_, config.keys.shape.dim, config.values.shape.dim));
    PQATTN_TRY(check_reach(params.first_position, "params.first_position"));
    if (params.bias != nullptr) {
      PQATTN_TRY(detail::check_mask(*params.bias, queries.heads, tokens, size()));
    }
    const std::size_t group = queries.heads / head_count_;
    PQATTN_TRY(reserve(group * tokens, queries.rows.cols, out.rows.cols));
    for (std::size_t worker = 0; worker < worker_count_; ++worker) {
      workers_[worker].skips = {};
    }
    run_parts(parts_, head_count_, [&](std::size_t head, std::size_t worker) {
      outcomes_[head] = attend_head(head, group, queries, params, out, lse_e, workers_[worker]);
    });
    for (std::size_t worker = 0; params.skips != nullptr && worker < worker_count_; ++worker) {
      *params.skips += workers_[worker].skips;
    }
    return first_failure();
  }

  [[nodiscard]] std::size_t kv_heads() const noexcept { return head_count_; }
  [[nodiscard]] const head_cache<Bank>& head(std::size_t index) const noexcept { return heads_[index]; }
  [[nodiscard]] std::size_t size() const noexcept { return head_count_ == 0 ? 0 : heads_[0].size(); }

  /// Memory of all heads and of the layer itself.
  [[nodiscard]] memory_report memory() const noexcept {
    memory_report report;
    for (std::size_t head = 0; head < head_count_; ++head) {
      report += heads_[head].memory();
    }
    for (std::size_t worker = 0; worker < worker_count_; ++worker) {
      const worker_memory& memory = workers_[worker];
      report.scratch_bytes += memory.scratch.bytes() + memory.staging.size() + memory.coding.size();
    }
    report.metadata_bytes += memory_.size();
    return report;
  }

 private:
  static constexpr std::size_t max_heads = 4096;

  /// Head i has configs[i * step].
  static status make(Bank& bank, const cache_config* configs, std::size_t step, std::size_t kv_heads,
                     const executor& parts, const memory_resource& resource, layer_cache& result) {
    if (kv_heads < 1 || kv_heads > max_heads) {
      return failure(status_code::invalid_argument, "kv_heads", "must be 1 to 4096", max_heads, kv_heads);
    }
    for (std::size_t head = 1; head < kv_heads && step != 0; ++head) {
      if (configs[head].keys.shape.dim != configs[0].keys.shape.dim) {
        return failure(status_code::shape_mismatch, "configs", "must have the same key channels; head 0 and another",
                       configs[0].keys.shape.dim, configs[head].keys.shape.dim);
      }
      if (configs[head].values.shape.dim != configs[0].values.shape.dim) {
        return failure(status_code::shape_mismatch, "configs", "must have the same value channels; head 0 and another",
                       configs[0].values.shape.dim, configs[head].values.shape.dim);
      }
    }
    PQATTN_TRY(check_executor(parts, "parts"));
    layer_cache made;
    made.resource_ = resource;
    made.parts_ = Bank::concurrent ? parts : executor{};
    carver counting;
    made.carve(counting, kv_heads);
    PQATTN_TRY(buffer::make(resource, counting.required(), made.memory_));
    carver placed(made.memory_.data(), made.memory_.size());
    made.carve(placed, kv_heads);
    for (; made.worker_count_ < made.parts_.workers; ++made.worker_count_) {
      new (made.workers_ + made.worker_count_)
          worker_memory{attend_scratch<Bank>(bank, resource), buffer(), coding_scratch(resource)};
    }
    while (made.head_count_ < kv_heads) {
      cache_config seeded = configs[made.head_count_ * step];
      seeded.kmeans.seed = mix_seed(seeded.kmeans.seed, made.head_count_);
      seeded.home += static_cast<std::uint32_t>(made.head_count_);
      auto* place = new (made.heads_ + made.head_count_) head_cache<Bank>();
      ++made.head_count_;
      PQATTN_TRY(head_cache<Bank>::make(bank, seeded, resource, *place));
    }
    result = std::move(made);
    return {};
  }

  /// What one worker needs: scratch of the heads, and the rows of one head gathered from the engine's layout.
  struct worker_memory {
    attend_scratch<Bank> scratch;
    buffer staging;
    coding_scratch coding;
    skip_statistics skips{};
  };

  using staged_rows = detail::staged_rows;

  void carve(carver& memory, std::size_t kv_heads) noexcept {
    heads_ = memory.take<head_cache<Bank>>(kv_heads);
    workers_ = memory.take<worker_memory>(parts_.workers);
    outcomes_ = memory.take<status>(kv_heads);
  }

  [[nodiscard]] status check_heads(std::size_t heads, const char* subject) const noexcept {
    return heads == head_count_
               ? status{}
               : failure(status_code::shape_mismatch, subject, "must equal the layer's KV heads", head_count_, heads);
  }

  [[nodiscard]] training_options lesson_of(std::size_t head, const layer_append_options& options) const noexcept {
    training_options one;
    one.progress = options.progress;
    const std::size_t dim = heads_[head].config().keys.shape.dim;
    one.key_metric = options.key_metrics == nullptr ? nullptr : options.key_metrics + head * dim * dim;
    return one;
  }

  /// Any worker may finish any head: all get as much scratch as the first one that a head needed it of.
  status reserve_coding() {
    PQATTN_TRY(first_failure());
    std::size_t bytes = 0;
    for (std::size_t worker = 0; worker < worker_count_; ++worker) {
      bytes = (std::max)(bytes, workers_[worker].coding.size());
    }
    for (std::size_t worker = 0; worker < worker_count_; ++worker) {
      PQATTN_TRY(workers_[worker].coding.reserve(bytes));
    }
    return {};
  }

  [[nodiscard]] status first_failure() const noexcept {
    for (std::size_t head = 0; head < head_count_; ++head) {
      PQATTN_TRY(outcomes_[head]);
    }
    return {};
  }

  status reserve(std::size_t rows, std::size_t key_dim, std::size_t value_dim) {
    carver counting;
    staged_rows{}.carve(counting, rows, key_dim, value_dim);
    for (std::size_t worker = 0; worker < worker_count_; ++worker) {
      worker_memory& memory = workers_[worker];
      if (memory.staging.size() < counting.required()) {
        PQATTN_TRY(buffer::make(resource_, counting.required(), memory.staging));
      }
      for (std::size_t head = 0; head < head_count_; ++head) {  // which may differ in what they need
        PQATTN_TRY(heads_[head].prepare(rows, 1, memory.scratch));
      }
    }
    return {};
  }

  status attend_head(std::size_t head, std::size_t group, const head_rows& queries,
                     const layer_attention_params& params, const head_rows_ref& out, float* lse_e,
                     worker_memory& memory) const {
    const std::size_t tokens = queries.rows.rows;
    const std::size_t rows = group * tokens;
    carver placed(memory.staging.data(), memory.staging.size());
    staged_rows staged;
    staged.carve(placed, rows, queries.rows.cols, out.rows.cols);
    const detail::staged_call call{queries, out, lse_e, group};
    staged.gather(call, params, head, 0, tokens,
                  [&](std::size_t token) { return params.first_position + static_cast<std::int64_t>(token); });
    // A single query token at the end of the context sees every key: no per-slot mask is needed.
    const bool causal =
        params.causal && (tokens > 1 || params.first_position + 1 < static_cast<std::int64_t>(heads_[head].size()));
    attention_params one = staged.params(params, causal);
    one.skips = &memory.skips;
    if (params.bias != nullptr) {
      staged.mask(*params.bias, group, head, tokens, one);
    }
    PQATTN_TRY(heads_[head].attend(view_rows(staged.queries, rows, queries.rows.cols), one, memory.scratch,
                                   ref_rows(staged.out, rows, out.rows.cols), staged.lse_e));
    staged.scatter(call, head, 0, tokens);
    return {};
  }

  void swap(layer_cache& other) noexcept {
    std::swap(resource_, other.resource_);
    std::swap(parts_, other.parts_);
    memory_.swap(other.memory_);
    std::swap(heads_, other.heads_);
    std::swap(workers_, other.workers_);
    std::swap(outcomes_, other.outcomes_);
    std::swap(head_count_, other.head_count_);
    std::swap(worker_count_, other.worker_count_);
  }

  memory_resource resource_;
  executor parts_;
  buffer memory_;
  head_cache<Bank>* heads_ = nullptr;
  worker_memory* workers_ = nullptr;
  status* outcomes_ = nullptr;
  std::size_t head_count_ = 0;
  std::size_t worker_count_ = 0;
};

}  // namespace v0
}  // namespace pqattn
