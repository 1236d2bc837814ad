// SPDX-License-Identifier: MIT
// What one side of a cache learns when it goes over to codes: a codebook for each epoch, with the first the rotation.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "../bank/bank.hpp"
#include "../core/executor.hpp"
#include "../core/memory.hpp"
#include "../core/progress.hpp"
#include "../core/view.hpp"
#include "cache_config.hpp"
#include "codebook_lesson.hpp"
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

/// Rows that teach one epoch: [first, first + count) of the recent window continued by the arriving rows.
struct lesson_rows {
  rows_view added;  ///< arriving rows behind the sinks
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
      : bank_(bank),
        config_(config),
        resource_(resource),
        store_(store),
        stream_(stream),
        rows_(bank, config, store.side(), resource) {}

  [[nodiscard]] std::size_t samples(const lesson_rows& lesson) const noexcept {
    return (std::min<std::size_t>)(lesson.count, config_.max_training_tokens);
  }

  /// Adds a codebook to the store; the first epoch also learns the rotation of values. Later ones start from the book
  /// before. `errors` (samples entries) receives what the new book loses of each sample, or is null.
  status run(const lesson_rows& lesson, const training_options& options, training_report& report, float* errors) {
    PQATTN_TRY(rows_.make(samples(lesson), store_.packed_metric()));
    PQATTN_TRY(load(lesson));
    const std::size_t epoch = store_.coded().codebook_count();
    if (epoch != 0) {
      PQATTN_TRY(store_.coded().load_codebook(epoch - 1, rows_.centroids()));
    }
    kmeans_params kmeans = config_.kmeans;
    kmeans.seed = mix_seed(config_.kmeans.seed, stream_ + 2 * epoch);
    kmeans.init = epoch != 0 ? kmeans_init::warm_start : kmeans.init;
    const rope turned = store_.forms().coded_rotated ? rope{} : store_.forms().rotation;
    PQATTN_TRY(rows_.train(kmeans, turned, options.parts, options.progress, report));
    PQATTN_TRY(
        store_.coded().add_codebook({store_.side().shape, rows_.centroids(), 0, static_cast<std::uint32_t>(epoch)}));
    return errors == nullptr ? status{} : measure(errors);
  }

 private:
  /// Evenly spaced rows of the lesson in coded form, and their weights.
  status load(const lesson_rows& lesson) {
    const std::size_t count = rows_.count();
    const auto source = [&](std::size_t i) { return lesson.first + i * lesson.count / count; };
    const auto position = [&](std::size_t i) { return static_cast<std::int64_t>(lesson.base + source(i)); };
    for (std::size_t i = 0; i < count; ++i) {
      store_.load(lesson.added, source(i), position(i), rows_.row(i));
      rows_.weights()[i] = lesson.importance == nullptr ? 1.0f : lesson.importance[source(i)];
    }
    if (store_.side().rotated && !store_.forms().turn.enabled()) {
      const std::uint32_t dim = store_.side().shape.dim;
      buffer learned;
      buffer kept;
      PQATTN_TRY(rows_.learn_rotation(learned));
      PQATTN_TRY(buffer::make(resource_, compact_rotation_bytes(dim), kept));
      const auto* numbers = reinterpret_cast<const float*>(learned.data());
      const value_rotation rotation = compact_rotation({dim, numbers, numbers + dim}, kept.data());
      store_.set_rotation(std::move(kept), rotation);
    }
    for (std::size_t i = 0; i < count; ++i) {
      store_.forms().to_coded(position(i), rows_.row(i));
    }
    return {};
  }

  /// Codes the samples into a store of their own and compares.
  status measure(float* errors) {
    const side_config& side = store_.side();
    code_store<Bank> probe(bank_, resource_, side, store_.forms().coded_rotated ? rope{} : store_.forms().rotation);
    PQATTN_TRY(probe.add_codebook({side.shape, rows_.centroids(), 0, 0}));
    PQATTN_TRY(probe.reserve(block_tokens));
    carver counting;
    static_cast<void>(side_coder(counting, side, true));
    buffer memory;
    PQATTN_TRY(buffer::make(resource_, counting.required(), memory));
    carver placed(memory.data(), memory.size());
    side_coder coder(placed, side, true);
    const epoch_codes<Bank> target(probe, 0);
    coder.start(target, store_.packed_metric());
    for (std::size_t first = 0; first < rows_.count(); first += block_tokens) {
      const std::size_t rows = (std::min)(block_tokens, rows_.count() - first);
      std::copy_n(rows_.row(first), rows * side.shape.dim, coder.rows());
      coder.code(target, 0, rows);
      coder.measure(target, 0, rows, errors + first);
    }
    return {};
  }

  Bank& bank_;
  const cache_config& config_;
  const memory_resource& resource_;
  side_store<Bank>& store_;
  std::uint64_t stream_;
  codebook_lesson<Bank> rows_;
};

}  // namespace detail
}  // namespace v0
}  // namespace pqattn
