// SPDX-License-Identifier: MIT
// From token rows to a codebook: k-means of every sub-vector, stage after stage.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../bank/bank.hpp"
#include "../core/executor.hpp"
#include "../core/memory.hpp"
#include "../core/progress.hpp"
#include "../core/view.hpp"
#include "kmeans.hpp"

namespace pqattn {
inline namespace v0 {

/// Parameters of codebook training.
struct training_params {
  kmeans_params kmeans;
  codebook_storage storage = codebook_storage::f16;  ///< what the centroids are rounded to at the end
  executor parts;                                    ///< runs sub-vectors as parts; the result does not depend on it
  progress_hook progress;
};

/// What training did, summed over sub-vectors and stages.
struct training_report {
  std::size_t samples = 0;
  std::uint32_t iterations = 0;      ///< of the longest run
  std::uint32_t empty_clusters = 0;  ///< centroids without a sample
  double objective = 0.0;            ///< final sum of weight * squared distance, all sub-vectors, last stage
};

namespace detail {

template <class T>
void gather_run(const rows_view& samples, const geometry& shape, std::uint32_t group, float* points) noexcept {
  const std::uint32_t width = shape.width(group);
  for (std::uint32_t c = 0; c < width; ++c) {
    const auto* column =
        static_cast<const std::byte*>(samples.at(0, shape.channel(shape.first_channel(group) + c)));
    for (std::size_t i = 0; i < samples.rows; ++i) {
      T element;
      std::memcpy(&element,
                  column + static_cast<std::ptrdiff_t>(i) * samples.row_stride * static_cast<std::ptrdiff_t>(sizeof(T)),
                  sizeof(T));
      points[i * width + c] = to_float(element);
    }
  }
}

/// Gathers one sub-vector of all samples, row-major; reports the first number that is not finite.
inline status gather_points(const rows_view& samples, const geometry& shape, std::uint32_t group,
                            float* points) noexcept {
  switch (samples.type) {
    case dtype::f32: gather_run<float>(samples, shape, group, points); break;
    case dtype::f16: gather_run<half>(samples, shape, group, points); break;
    case dtype::bf16: gather_run<bfloat16>(samples, shape, group, points); break;
  }
  const std::uint32_t width = shape.width(group);
  for (std::size_t i = 0; i < samples.rows * width; ++i) {
    if (!is_finite(points[i])) {
      return failure(status_code::not_finite, "samples", "has a NaN or infinity", i / width,
                     shape.channel(shape.first_channel(group) + static_cast<std::uint32_t>(i % width)));
    }
  }
  return {};
}

inline status check_weights(const float* weights, std::size_t count) noexcept {
  if (weights == nullptr) {
    return {};
  }
  double sum = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    if (!is_finite(weights[i])) {
      return failure(status_code::not_finite, "weights", "has a NaN or infinity", i, 0);
    }
    if (weights[i] < 0.0f) {
      return failure(status_code::invalid_argument, "weights", "has a negative entry; expected at least 0, at index", 0,
                     i);
    }
    sum += static_cast<double>(weights[i]);
  }
  return sum > 0.0 ? status{} : failure(status_code::invalid_argument, "weights", "are all zero");
}

/// What one worker needs to train one sub-vector.
struct trainer_scratch {
  float* points = nullptr;
  kmeans_workspace kmeans;

  void carve(carver& memory, const geometry& shape, std::size_t samples) noexcept {
    points = memory.take<float>(samples * shape.max_width());
    kmeans.carve(memory, samples, shape.max_width(), shape.centroids);
  }
};

/// Subtracts from every point its centroid: what the next stage codes.
inline void subtract_centroids(const std::uint16_t* codes, const float* centroids, std::size_t count,
                               std::uint32_t width, float* points) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    for (std::uint32_t c = 0; c < width; ++c) {
      points[i * width + c] -= centroids[std::size_t{codes[i]} * width + c];
    }
  }
}

/// One call of train_codebook: its arguments and the memory carved for it.
template <class Bank>
struct training_run {
  Bank& bank;
  const geometry& shape;
  const rows_view& samples;
  const float* weights;
  const training_params& params;
  progress_counter& progress;
  float* centroids = nullptr;  ///< all groups
  status* outcomes = nullptr;  ///< per sub-vector
  training_report* reports = nullptr;
  trainer_scratch* scratch = nullptr;            ///< per worker
  typename Bank::address* resident = nullptr;    ///< per worker

  void carve(carver& memory) noexcept {
    const std::size_t workers = params.parts.workers;
    centroids = memory.take<float>(shape.codebook_values());
    outcomes = memory.take<status>(shape.subvectors);
    reports = memory.take<training_report>(shape.subvectors);
    scratch = memory.take<trainer_scratch>(workers);
    resident = memory.take<typename Bank::address>(workers);
    for (std::size_t worker = 0; worker < workers; ++worker) {
      trainer_scratch pieces;
      pieces.carve(memory, shape, samples.rows);
      if (scratch != nullptr && memory.fits()) {
        scratch[worker] = pieces;
        resident[worker] = {};
      }
    }
  }

  [[nodiscard]] std::size_t resident_bytes() const noexcept {
    return bank.point_bytes(samples.rows, shape.max_width());
  }

  /// Trains all stages of one sub-vector.
  status train_subvector(std::uint32_t subvector, std::size_t worker) const {
    const trainer_scratch& work = scratch[worker];
    const std::uint32_t width = shape.width(subvector);
    training_report& report = reports[subvector];
    report = {};
    PQATTN_TRY(gather_points(samples, shape, subvector, work.points));
    for (std::uint32_t stage = 0; stage < shape.stages; ++stage) {
      const std::uint32_t group = stage * shape.subvectors + subvector;
      float* stage_centroids = centroids + shape.codebook_offset(group);
      kmeans_params stage_params = params.kmeans;
      stage_params.seed = mix_seed(params.kmeans.seed, group);
      kmeans_report stage_report;
      PQATTN_TRY(kmeans(bank, work.points, weights, samples.rows, width, shape.centroids, stage_params,
                        resident[worker], work.kmeans, progress, stage_centroids, nullptr, stage_report));
      report.iterations = (std::max)(report.iterations, stage_report.iterations);
      report.empty_clusters += stage_report.empty_clusters;
      report.objective = stage_report.objective;
      if (stage + 1 < shape.stages) {
        subtract_centroids(work.kmeans.codes, stage_centroids, samples.rows, width, work.points);
      }
    }
    return {};
  }
};

}  // namespace detail

/// Bytes of workspace train_codebook needs.
template <bank_policy Bank>
[[nodiscard]] std::size_t training_workspace_bytes(Bank& bank, const geometry& shape, const rows_view& samples,
                                                   const training_params& params) {
  progress_counter progress({}, 0);
  carver memory;
  detail::training_run<Bank>{bank, shape, samples, nullptr, params, progress}.carve(memory);
  return memory.required();
}

/// Trains the codebook of one (layer, KV head, K-or-V) on `samples` (tokens, dim) in any dtype and strides.
///
/// `weights` (tokens) are importance weights >= 0, or null for all 1 (AQPIM: weighted k-means). `centroids`
/// (shape.codebook_values() floats) receives the codebook, rounded to params.storage, and with warm_start also
/// holds the start. On any error it is left as it was. Sub-vectors are parts of the executor; reserves and releases
/// bank memory for one sub-vector of all samples per worker.
/// Errors: invalid geometry, shape mismatch, too few samples, NaN or infinity with its row and column, negative or
/// all-zero weights, workspace too small, out of memory, cancelled, a codebook binary16 cannot hold.
template <bank_policy Bank>
status train_codebook(Bank& bank, const geometry& shape, const rows_view& samples, const float* weights,
                      const training_params& params, void* workspace, std::size_t workspace_bytes, float* centroids,
                      training_report& report) {
  PQATTN_TRY(check_geometry(shape));
  PQATTN_TRY(check_view(samples, "samples"));
  if (samples.cols != shape.dim) {
    return failure(status_code::shape_mismatch, "samples.cols", "must equal geometry.dim", shape.dim, samples.cols);
  }
  if (samples.rows < shape.centroids) {
    return failure(status_code::too_few_samples, "samples.rows", "must be at least the number of centroids",
                   shape.centroids, samples.rows);
  }
  PQATTN_TRY(detail::check_weights(weights, samples.rows));
  progress_counter progress(params.progress,
                            std::size_t{shape.groups()} * (std::max<std::uint32_t>)(params.kmeans.iterations, 1));
  detail::training_run<Bank> run{bank, shape, samples, weights, params, progress};
  carver memory(workspace, workspace_bytes);
  run.carve(memory);
  if (workspace == nullptr || !memory.fits()) {
    return failure(status_code::capacity, "workspace", "is too small for training", memory.used(), workspace_bytes);
  }
  if (params.kmeans.init == kmeans_init::warm_start) {
    std::copy_n(centroids, shape.codebook_values(), run.centroids);
  }

  const std::size_t workers = params.parts.workers;
  status outcome;
  for (std::size_t worker = 0; worker < workers && outcome; ++worker) {
    outcome = bank.reserve(run.resident_bytes(), run.resident[worker]);
  }
  if (outcome) {
    run_parts(Bank::concurrent ? params.parts : executor{}, shape.subvectors,
              [&](std::size_t part, std::size_t worker) {
                run.outcomes[part] = run.train_subvector(static_cast<std::uint32_t>(part), worker);
              });
    for (std::uint32_t part = 0; part < shape.subvectors && outcome; ++part) {
      outcome = run.outcomes[part];
    }
  }
  for (std::size_t worker = 0; worker < workers; ++worker) {
    if (run.resident[worker] != typename Bank::address{}) {
      bank.release(run.resident[worker], run.resident_bytes());
    }
  }
  PQATTN_TRY(outcome);
  PQATTN_TRY(round_codebook(shape, params.storage, run.centroids));

  report = {};
  report.samples = samples.rows;
  for (std::uint32_t part = 0; part < shape.subvectors; ++part) {
    report.iterations = (std::max)(report.iterations, run.reports[part].iterations);
    report.empty_clusters += run.reports[part].empty_clusters;
    report.objective += run.reports[part].objective;
  }
  std::copy_n(run.centroids, shape.codebook_values(), centroids);
  return {};
}

}  // namespace v0
}  // namespace pqattn
