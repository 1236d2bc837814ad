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
#include "../train/codebook_trainer.hpp"
#include "../train/importance.hpp"
#include "attend_scratch.hpp"
#include "cache_config.hpp"
#include "side_store.hpp"

namespace pqattn {
inline namespace v0 {

/// How an append that trains runs its training.
struct training_options {
  executor parts;
  progress_hook progress;
};

/// KV cache of one KV head, over a bank that outlives it. Move-only. One writer at a time; attend() is const and may
/// run concurrently with other readers that use other scratch.
///
/// Token t of the cache sits at position t. After any failed call the cache holds what it held before.
template <class Bank>
class head_cache {
  static_assert(bank_policy<Bank>, "Bank must satisfy bank_policy (see pqattn/bank/bank.hpp)");

 public:
  using address = typename Bank::address;

  head_cache() = default;

  /// Makes an empty cache. Errors: whatever check_config finds, out of memory.
  static status make(Bank& bank, const cache_config& config, const memory_resource& resource, head_cache& result) {
    PQATTN_TRY(check_config(config));
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
    const std::size_t widest = (std::max)(config.keys.shape.dim, config.values.shape.dim);
    PQATTN_TRY(buffer::make(resource, block_tokens * widest * sizeof(float), made.row_tile_));
    result = std::move(made);
    return {};
  }

  /// Appends tokens: keys (n, d_k) and values (n, d_v), any n. Trains and codes when there is enough; `weights` (n,
  /// >= 0, or null for 1) are the tokens' importance, used only by training. Tokens that leave the recent window are
  /// coded with the frozen codebook. One long append and many short ones store the same, given the same codebook.
  /// Errors (cache unchanged): shape mismatch, NaN or infinity with its row and column, bad weights, out of memory,
  /// cancelled training.
  status append(const rows_view& keys, const rows_view& values, const float* weights = nullptr,
                const training_options& options = {}) {
    PQATTN_TRY(begin_append(keys, values, weights, options));
    finish_append(keys, values, weights);
    return {};
  }

  /// First half of append(): everything that can fail (checks, training, memory). Nothing that can be seen changes.
  /// Follow with finish_append() with the same rows, or with cancel_append(): a layer begins on all heads first.
  status begin_append(const rows_view& keys, const rows_view& values, const float* weights,
                      const training_options& options) {
    PQATTN_TRY(check_arrival(keys, config_.keys, values.rows, "keys"));
    PQATTN_TRY(check_arrival(values, config_.values, keys.rows, "values"));
    PQATTN_TRY(check_new_weights(weights, keys.rows));
    const std::size_t rows = keys.rows;
    if constexpr (bank_homes<Bank>) {
      bank_->select_home(config_.home);
    }
    trains_now_ = !trained_ && config_.codes_anything() && size_ + rows >= config_.sinks + config_.training_start();
    if (trains_now_) {
      if (const status trained = train(keys, values, weights, options); !trained) {
        trains_now_ = false;
        return trained;
      }
    }
    const status reserved = reserve(rows, trained_ || trains_now_);
    if (!reserved) {
      cancel_append();
    }
    return reserved;
  }

  /// Undoes begin_append().
  void cancel_append() noexcept {
    if (trains_now_) {
      keys_.coded().release_codebook();
      values_.coded().release_codebook();
      trains_now_ = false;
    }
  }

  /// Second half of append(): moves the rows where they belong. Cannot fail.
  void finish_append(const rows_view& keys, const rows_view& values, const float* weights) noexcept {
    const std::size_t rows = keys.rows;
    const bool coding = trained_ || trains_now_;
    const std::size_t added = rows - keys_.sinks_from(rows);
    const std::size_t left = keys_.leaving(added, coding);
    for (std::size_t i = rows - added; keeps_weights(coding) && i < rows; ++i) {
      static_cast<void>(weights_.push_back(weights == nullptr ? 1.0f : weights[i]));
    }
    auto* tile = reinterpret_cast<float*>(row_tile_.data());
    keys_.push(keys, body_, coding, tile);
    values_.push(values, body_, coding, tile);
    body_ += left;
    size_ += rows;
    trained_ = coding;
    if (trains_now_) {
      trains_now_ = false;
      keys_.shrink_window();
      values_.shrink_window();
      weights_.reset();
    }
  }

  /// Attention of `queries` (rows, d_k: the query heads of the group times the query tokens, rotated) over all
  /// tokens. `params.modifiers.bias` must be empty. `out` (rows, d_v); `lse_e` (rows) or null.
  /// Allocates only while `scratch` grows (see prepare). Errors (out untouched): see pqattn::attend.
  status attend(const rows_view& queries, const attention_params& params, attend_scratch<Bank>& scratch,
                const rows_ref& out, float* lse_e) const {
    if (params.modifiers.bias.data != nullptr) {
      return failure(status_code::unsupported, "modifiers.bias", "is indexed by segment and cannot serve a cache");
    }
    PQATTN_TRY(prepare(queries.rows, params.parts.workers, scratch));
    segment<address> segments[max_segments];
    const std::size_t count = collect_segments(scratch.tables(), segments);
    return pqattn::attend(*bank_, queries, segments, count, params, scratch.workspace(), scratch.workspace_bytes(),
                          out, lse_e);
  }

  /// Copies tokens [first, first + keys.rows) out as attention sees them: keys rotated, coded tokens decoded.
  /// keys (n, d_k) and values (n, d_v) in any dtype. Errors: shape mismatch, tokens the cache does not hold.
  status read(std::size_t first, const rows_ref& keys, const rows_ref& values) const {
    if (keys.cols != config_.keys.shape.dim || values.cols != config_.values.shape.dim || keys.rows != values.rows) {
      return failure(status_code::shape_mismatch, "keys or values", "must have the configured channels, same rows; keys",
                     config_.keys.shape.dim, keys.cols);
    }
    if (first > size_ || keys.rows > size_ - first) {
      return failure(status_code::invalid_argument, "first + rows", "must be within the cache", size_,
                     first + keys.rows);
    }
    float row[max_dim];
    for (std::size_t i = 0; i < keys.rows; ++i) {
      PQATTN_TRY(keys_.read(first + i, body_, row));
      store_row(keys, i, row);
      PQATTN_TRY(values_.read(first + i, body_, row));
      store_row(values, i, row);
    }
    return {};
  }

  /// Grows `scratch` to what attend() needs for `rows` query rows on `workers` workers, for every context up to the
  /// room already reserved: until the cache grows again, attend() then allocates nothing.
  status prepare(std::size_t rows, std::size_t workers, attend_scratch<Bank>& scratch) const {
    segment<address> segments[max_segments];
    const std::size_t count = collect_segments(address{}, segments);
    for (std::size_t i = 0; i + 2 < count; ++i) {
      segments[i + 1].slots.count = chunk_source().chunk(i).slots;
    }
    const std::size_t workspace = attention_workspace_bytes(segments, count, rows, config_.keys.shape.dim,
                                                            config_.values.shape.dim, workers);
    const std::size_t tables =
        config_.keys.coded && trained_ ? bank_->table_bytes(config_.keys.shape, rows, code_rotation()) : 0;
    return scratch.reserve(workspace, tables);
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// Whether codebooks exist: before that every token is exact.
  [[nodiscard]] bool trained() const noexcept { return trained_; }
  [[nodiscard]] std::size_t coded_tokens() const noexcept { return body_; }
  [[nodiscard]] const cache_config& config() const noexcept { return config_; }
  /// What training reported; all zero before it.
  [[nodiscard]] const training_report& key_training() const noexcept { return key_report_; }
  [[nodiscard]] const training_report& value_training() const noexcept { return value_report_; }

  [[nodiscard]] memory_report memory() const noexcept {
    memory_report report;
    keys_.add_to(report);
    values_.add_to(report);
    report.metadata_bytes += weights_.bytes();
    report.scratch_bytes += row_tile_.size();
    report.tokens = size_;
    report.elements = size_ * (config_.keys.shape.dim + config_.values.shape.dim);
    return report;
  }

 private:
  /// Sinks, chunks of the body, recent window.
  static constexpr std::size_t max_segments = max_chunks + 2;

  static status check_arrival(const rows_view& rows, const side_config& side, std::size_t other_rows,
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
    return detail::check_finite(rows, subject);
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

  [[nodiscard]] rope code_rotation() const noexcept { return config_.rotates_codes() ? config_.rotation : rope{}; }
  [[nodiscard]] bool keeps_weights(bool coding) const noexcept { return !coding && config_.codes_anything(); }

  // --- training ---

  /// Trains the coded sides on everything behind the sinks. On failure nothing changes.
  status train(const rows_view& keys, const rows_view& values, const float* weights, const training_options& options) {
    if (config_.keys.coded) {
      PQATTN_TRY(train_side(keys_, keys, weights, 0, options, key_report_));
    }
    if (config_.values.coded) {
      if (const status trained = train_side(values_, values, weights, 1, options, value_report_); !trained) {
        keys_.coded().release_codebook();
        return trained;
      }
    }
    return {};
  }

  /// Memory of one training call, apart from the trainer's own.
  struct training_rows {
    float* rows = nullptr;
    float* weights = nullptr;
    float* centroids = nullptr;

    void carve(carver& memory, std::size_t samples, const geometry& shape) noexcept {
      rows = memory.take<float>(samples * shape.dim);
      weights = memory.take<float>(samples);
      centroids = memory.take<float>(shape.codebook_values());
    }
  };

  status train_side(side_store<Bank>& store, const rows_view& arriving, const float* arriving_weights,
                    std::uint64_t stream, const training_options& options, training_report& report) {
    const side_config& side = store.side();
    const std::size_t to_sinks = store.sinks_from(arriving.rows);
    const rows_view added = arriving.slice(to_sinks, arriving.rows - to_sinks);
    const std::size_t available = store.recent().size() + added.rows;
    const std::size_t samples = (std::min<std::size_t>)(available, config_.max_training_tokens);

    training_params params{config_.kmeans, side.storage, options.parts, options.progress};
    params.kmeans.seed = mix_seed(config_.kmeans.seed, stream);
    carver counting;
    training_rows work;
    work.carve(counting, samples, side.shape);
    buffer memory;
    PQATTN_TRY(buffer::make(resource_, counting.required(), memory));
    carver placed(memory.data(), memory.size());
    work.carve(placed, samples, side.shape);

    for (std::size_t i = 0; i < samples; ++i) {
      const std::size_t source = i * available / samples;  // evenly spaced
      const auto position = static_cast<std::int64_t>(store.sinks().size() + to_sinks + source);
      store.load_coded(added, source, position, work.rows + i * side.shape.dim);
      work.weights[i] = source < weights_.size()      ? weights_[source]
                        : arriving_weights == nullptr ? 1.0f
                                                      : arriving_weights[to_sinks + source - store.recent().size()];
    }
    temper_weights(work.weights, samples, config_.weight_exponent, config_.weight_floor);

    const rows_view view = view_rows(work.rows, samples, side.shape.dim);
    buffer workspace;
    PQATTN_TRY(buffer::make(resource_, training_workspace_bytes(*bank_, side.shape, view, params), workspace));
    training_report trained;
    PQATTN_TRY(train_codebook(*bank_, side.shape, view, work.weights, params, workspace.data(), workspace.size(),
                              work.centroids, trained));
    PQATTN_TRY(store.coded().set_codebook({side.shape, work.centroids, 0, 0}));
    report = trained;
    return {};
  }

  status reserve(std::size_t rows, bool coding) {
    PQATTN_TRY(keys_.reserve(rows, body_, coding));
    PQATTN_TRY(values_.reserve(rows, body_, coding));
    return keeps_weights(coding) ? weights_.reserve(weights_.size() + rows) : status{};
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
  static token_source<address> body_source(const side_store<Bank>& store, std::size_t index, std::size_t first,
                                           std::size_t count) noexcept {
    if (!store.side().coded) {
      return exact_source(store.exact_body().view().slice(first, count));
    }
    token_source<address> source;
    source.coded = true;
    source.codes = store.coded().span(index);
    source.book = store.coded().book();
    return source;
  }

  /// Segments in the order of their tokens: sinks, body chunk by chunk, recent window. Returns how many.
  std::size_t collect_segments(address tables, segment<address>* segments) const noexcept {
    std::size_t count = 0;
    const auto add = [&](token_source<address> keys, token_source<address> values, std::size_t rows,
                         std::size_t position) {
      segment<address>& next = segments[count++];
      next.keys = keys;
      next.values = values;
      next.slots = {0, rows};
      next.positions = {static_cast<std::int64_t>(position), nullptr};
      next.rotation = keys.coded ? code_rotation() : rope{};
      next.tables = tables;
    };
    const std::size_t sinks = keys_.sinks().size();
    add(exact_source(keys_.sinks().view()), exact_source(values_.sinks().view()), sinks, 0);
    for (std::size_t i = 0; i < chunk_count(); ++i) {
      const code_chunk<address>& chunk = chunk_source().chunk(i);
      const std::size_t rows = body_ > chunk.first ? (std::min)(body_ - chunk.first, chunk.slots) : 0;
      add(body_source(keys_, i, chunk.first, rows), body_source(values_, i, chunk.first, rows), rows,
          sinks + chunk.first);
    }
    add(exact_source(keys_.recent().view()), exact_source(values_.recent().view()), keys_.recent().size(),
        sinks + body_);
    return count;
  }

  Bank* bank_ = nullptr;
  cache_config config_;
  memory_resource resource_;
  side_store<Bank> keys_;
  side_store<Bank> values_;
  growable<float> weights_;  ///< importance of the rows in the recent window, until training
  buffer row_tile_;          ///< rows on their way into the body
  std::size_t size_ = 0;
  std::size_t body_ = 0;
  bool trained_ = false;
  bool trains_now_ = false;  ///< between begin_append() and finish_append(): codebooks are new
  training_report key_report_;
  training_report value_report_;
};

}  // namespace v0
}  // namespace pqattn
