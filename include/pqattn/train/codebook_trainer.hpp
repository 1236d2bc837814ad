// SPDX-License-Identifier: MIT
// From token rows to a codebook: k-means of every sub-vector, stage after stage.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../bank/bank.hpp"
#include "../config.hpp"
#include "../core/executor.hpp"
#include "../core/memory.hpp"
#include "../core/progress.hpp"
#include "../core/view.hpp"
#include "../encode/encode.hpp"
#include "kmeans.hpp"

namespace pqattn {
inline namespace v0 {

/// Parameters of codebook training.
struct training_params {
  kmeans_params kmeans;
  codebook_storage storage = codebook_storage::f16;  ///< what the centroids are rounded to at the end
  executor parts;                                    ///< runs sub-vectors as parts; the result does not depend on it
  progress_hook progress;
  /// Null, or room for groups * (kmeans.iterations + 1) numbers: row g receives group g's objective before each
  /// iteration and at the end. It never rises.
  double* objectives = nullptr;
};

/// What training did, summed over sub-vectors and stages.
struct training_report {
  std::size_t samples = 0;
  std::uint32_t iterations = 0;      ///< of the longest run
  std::uint32_t empty_clusters = 0;  ///< centroids without a sample
  double objective = 0.0;            ///< sum of weight * squared error of the samples, before rounding
};

namespace detail {
inline namespace PQATTN_ISA_UNIT {

template <class T>
void gather_run(const rows_view& samples, const geometry& shape, std::uint32_t group, float* points) noexcept {
  const std::uint32_t width = shape.width(group);
  for (std::uint32_t c = 0; c < width; ++c) {
    const auto* column = static_cast<const std::byte*>(samples.at(0, shape.channel(shape.first_channel(group) + c)));
    for (std::size_t i = 0; i < samples.rows; ++i) {
      T element;
      std::memcpy(&element,
                  column + static_cast<std::ptrdiff_t>(i) * samples.row_stride * static_cast<std::ptrdiff_t>(sizeof(T)),
                  sizeof(T));
      points[i * width + c] = to_float(element);
    }
  }
}

/// Gathers one sub-vector of all samples, row-major.
inline void gather_points(const rows_view& samples, const geometry& shape, std::uint32_t group,
                          float* points) noexcept {
  switch (samples.type) {
    case dtype::f32: gather_run<float>(samples, shape, group, points); break;
    case dtype::f16: gather_run<half>(samples, shape, group, points); break;
    case dtype::bf16: gather_run<bfloat16>(samples, shape, group, points); break;
  }
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

/// What every way of training asks of its arguments. Reads all samples, so that nothing starts on a NaN.
inline status check_training(const geometry& shape, const rows_view& samples, const float* weights,
                             const executor& parts) noexcept {
  PQATTN_TRY(check_geometry(shape));
  PQATTN_TRY(check_view(samples, "samples"));
  if (samples.cols != shape.dim) {
    return failure(status_code::shape_mismatch, "samples.cols", "must equal geometry.dim", shape.dim, samples.cols);
  }
  if (samples.rows < shape.centroids) {
    return failure(status_code::too_few_samples, "samples.rows", "must be at least the number of centroids",
                   shape.centroids, samples.rows);
  }
  PQATTN_TRY(check_executor(parts, "params.parts"));
  PQATTN_TRY(check_weights(weights, samples.rows));
  return check_finite(samples, "samples");
}

/// What one worker needs to train one sub-vector.
template <class Bank>
struct trainer_scratch {
  float* points = nullptr;
  kmeans_workspace kmeans;
  typename Bank::address resident{};  ///< the bank's copy of the points

  void carve(carver& memory, const geometry& shape, std::size_t samples) noexcept {
    points = memory.take<float>(samples * shape.max_width());
    kmeans.carve(memory, samples, shape.max_width(), shape.centroids);
  }
};

/// Sub-vectors trained side by side: memory of all workers, and what became of each sub-vector.
template <class Bank>
struct subvector_training {
  Bank& bank;
  const geometry& shape;
  std::size_t count;  ///< samples
  const float* weights;
  const kmeans_params& kmeans_settings;
  double* objectives;          ///< as in training_params
  float* centroids = nullptr;  ///< all groups
  status* outcomes = nullptr;  ///< per sub-vector
  training_report* reports = nullptr;
  trainer_scratch<Bank>* scratch = nullptr;  ///< per worker

  void carve(carver& memory, std::size_t workers) noexcept {
    centroids = memory.take<float>(shape.codebook_values());
    outcomes = memory.take<status>(shape.subvectors);
    reports = memory.take<training_report>(shape.subvectors);
    scratch = memory.take<trainer_scratch<Bank>>(workers);
    for (std::size_t worker = 0; worker < workers; ++worker) {
      trainer_scratch<Bank> pieces;
      pieces.carve(memory, shape, count);
      if (scratch != nullptr && memory.fits()) {
        scratch[worker] = pieces;
      }
    }
  }

  /// k-means of one group on the worker's points; the codes stay in the worker's k-means memory.
  status train_group(std::uint32_t group, const trainer_scratch<Bank>& work, progress_counter& progress) const {
    kmeans_params settings = kmeans_settings;
    settings.seed = mix_seed(kmeans_settings.seed, group);
    double* trace = objectives == nullptr ? nullptr : objectives + std::size_t{group} * (settings.iterations + 1);
    kmeans_report found;
    PQATTN_TRY(kmeans(bank, work.points, weights, count, shape.width(group), shape.centroids, settings, work.resident,
                      work.kmeans, progress, centroids + shape.codebook_offset(group), trace, found));
    training_report& report = reports[group % shape.subvectors];
    report.iterations = (std::max)(report.iterations, found.iterations);
    report.empty_clusters += found.empty_clusters;
    report.objective = found.objective;  // of the last stage: earlier ones are what it started from
    return {};
  }

  /// Runs train(subvector, scratch) -> status for every sub-vector as parts, with bank memory for the points; adds up
  /// the reports. The first sub-vector that failed names the error.
  template <class Train>
  status run(const executor& parts, training_report& report, Train&& train) const {
    const std::size_t resident_bytes = bank.point_bytes(count, shape.max_width());
    status outcome;
    for (std::size_t worker = 0; worker < parts.workers && outcome; ++worker) {
      outcome = bank.reserve(resident_bytes, scratch[worker].resident);
    }
    if (outcome) {
      run_parts(Bank::concurrent ? parts : executor{}, shape.subvectors, [&](std::size_t part, std::size_t worker) {
        reports[part] = {};
        outcomes[part] = train(static_cast<std::uint32_t>(part), scratch[worker]);
      });
      for (std::uint32_t part = 0; part < shape.subvectors && outcome; ++part) {
        outcome = outcomes[part];
      }
    }
    for (std::size_t worker = 0; worker < parts.workers; ++worker) {
      if (scratch[worker].resident != typename Bank::address{}) {
        bank.release(scratch[worker].resident, resident_bytes);
      }
    }
    PQATTN_TRY(outcome);
    report = {};
    report.samples = count;
    for (std::uint32_t part = 0; part < shape.subvectors; ++part) {
      report.iterations = (std::max)(report.iterations, reports[part].iterations);
      report.empty_clusters += reports[part].empty_clusters;
      report.objective += reports[part].objective;
    }
    return {};
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

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Bytes of workspace train_codebook needs.
template <bank_policy Bank>
[[nodiscard]] std::size_t training_workspace_bytes(Bank& bank, const geometry& shape, const rows_view& samples,
                                                   const training_params& params) {
  carver memory;
  detail::subvector_training<Bank>{bank, shape, samples.rows, nullptr, params.kmeans, nullptr}.carve(
      memory, params.parts.workers);
  return memory.required();
}

/// Trains the codebook of one (layer, KV head, K-or-V) on `samples` (tokens, dim) in any dtype and strides.
///
/// `weights` (tokens) are importance weights >= 0, or null for all 1 (AQPIM: weighted k-means). `centroids`
/// (shape.codebook_values() floats) receives the codebook, rounded to params.storage, and with warm_start also
/// holds the start. On any error it is left as it was. Sub-vectors are parts of the executor; reserves and releases
/// bank memory for one sub-vector of all samples per worker.
/// Errors: invalid geometry, shape mismatch, too few samples, an executor without workers, negative or all-zero
/// weights, NaN or infinity with its row and column (all before any training), workspace too small, out of memory,
/// cancelled, a codebook binary16 cannot hold.
template <bank_policy Bank>
status train_codebook(Bank& bank, const geometry& shape, const rows_view& samples, const float* weights,
                      const training_params& params, void* workspace, std::size_t workspace_bytes, float* centroids,
                      training_report& report) {
  PQATTN_TRY(detail::check_training(shape, samples, weights, params.parts));
  progress_counter progress(params.progress,
                            std::size_t{shape.groups()} * (std::max<std::uint32_t>)(params.kmeans.iterations, 1));
  detail::subvector_training<Bank> run{bank, shape, samples.rows, weights, params.kmeans, params.objectives};
  carver memory(workspace, workspace_bytes);
  run.carve(memory, params.parts.workers);
  if (workspace == nullptr || !memory.fits()) {
    return failure(status_code::capacity, "workspace", "is too small for training", memory.used(), workspace_bytes);
  }
  if (params.kmeans.init == kmeans_init::warm_start) {
    std::copy_n(centroids, shape.codebook_values(), run.centroids);
  }
  training_report made;
  const auto train = [&](std::uint32_t subvector, const auto& work) -> status {
    detail::gather_points(samples, shape, subvector, work.points);
    for (std::uint32_t group = subvector; group < shape.groups(); group += shape.subvectors) {
      PQATTN_TRY(run.train_group(group, work, progress));
      detail::subtract_centroids(work.kmeans.codes, run.centroids + shape.codebook_offset(group), samples.rows,
                                 shape.width(group), work.points);
    }
    return {};
  };
  PQATTN_TRY(run.run(params.parts, made, train));
  PQATTN_TRY(round_codebook(shape, params.storage, run.centroids));
  std::copy_n(run.centroids, shape.codebook_values(), centroids);
  report = made;
  return {};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
