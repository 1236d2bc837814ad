// SPDX-License-Identifier: MIT
// Codebook training in a metric, and the refinement of all groups together.
//
// Start: every sub-vector alone, stage after stage, k-means in the Cholesky frame of its block of the metric, where
// the metric is a plain distance. Then joint passes over the full metric: for each group in turn, with all others
// fixed, choose the codes again and move each centroid to the minimiser (alternating minimisation of
// sum over rows of (x - x')^T M (x - x')). With the identity as metric the passes couple additive stages only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../encode/metric_encoder.hpp"
#include "codebook_trainer.hpp"

namespace pqattn {
inline namespace v0 {

/// Parameters of joint training.
struct joint_training_params {
  kmeans_params kmeans{12, kmeans_init::plus_plus, 1234};
  std::uint32_t passes = 4;  ///< joint passes; 0 leaves the groups as their own k-means made them
  codebook_storage storage = codebook_storage::f16;
  progress_hook progress;
};

namespace detail {

/// Cholesky factors of the metric's diagonal blocks, one per run: block = L L^T, double, row-major (width, width).
struct metric_factors {
  const geometry* shape = nullptr;
  double* lower = nullptr;  ///< subvectors * max_width^2

  [[nodiscard]] double* of(std::uint32_t group) const noexcept {
    const std::size_t width = shape->max_width();
    return lower + (group % shape->subvectors) * width * width;
  }

  /// Factors every block, each with a ridge of 1e-6 of its mean diagonal. False when one is not positive definite.
  [[nodiscard]] bool factor(const float* metric) const noexcept {
    for (std::uint32_t run = 0; run < shape->subvectors; ++run) {
      const std::size_t width = shape->width(run);
      const std::size_t first = shape->first_channel(run);
      double* l = of(run);
      double trace = 0.0;
      for (std::size_t i = 0; i < width; ++i) {
        for (std::size_t j = 0; j < width; ++j) {
          l[i * width + j] = metric == nullptr ? (i == j ? 1.0 : 0.0)
                                               : static_cast<double>(metric[(first + i) * shape->dim + first + j]);
        }
        trace += l[i * width + i];
      }
      const double ridge = metric == nullptr ? 0.0 : 1.0e-6 * trace / static_cast<double>(width);
      for (std::size_t j = 0; j < width; ++j) {
        double pivot = l[j * width + j] + ridge;
        for (std::size_t k = 0; k < j; ++k) {
          pivot -= l[j * width + k] * l[j * width + k];
        }
        if (!(pivot > 0.0)) {
          return false;
        }
        l[j * width + j] = std::sqrt(pivot);
        for (std::size_t i = j + 1; i < width; ++i) {
          double sum = l[i * width + j];
          for (std::size_t k = 0; k < j; ++k) {
            sum -= l[i * width + k] * l[j * width + k];
          }
          l[i * width + j] = sum / l[j * width + j];
        }
      }
    }
    return true;
  }

  /// out = x L: where distances in the metric are plain distances.
  void into_frame(std::uint32_t group, const float* x, float* out) const noexcept {
    const std::size_t width = shape->width(group);
    const double* l = of(group);
    for (std::size_t j = 0; j < width; ++j) {
      double sum = 0.0;
      for (std::size_t i = j; i < width; ++i) {
        sum += static_cast<double>(x[i]) * l[i * width + j];
      }
      out[j] = static_cast<float>(sum);
    }
  }

  /// Solves z L = y in place, from the last column on.
  void out_of_frame(std::uint32_t group, double* y) const noexcept {
    const std::size_t width = shape->width(group);
    const double* l = of(group);
    for (std::size_t j = width; j-- > 0;) {
      for (std::size_t i = j + 1; i < width; ++i) {
        y[j] -= y[i] * l[i * width + j];
      }
      y[j] /= l[j * width + j];
    }
  }

  /// Solves z (L L^T) = y in place.
  void solve(std::uint32_t group, double* y) const noexcept {
    const std::size_t width = shape->width(group);
    const double* l = of(group);
    for (std::size_t j = 0; j < width; ++j) {
      for (std::size_t i = 0; i < j; ++i) {
        y[j] -= y[i] * l[j * width + i];
      }
      y[j] /= l[j * width + j];
    }
    out_of_frame(group, y);
  }
};

/// One call of train_codebook_jointly: its arguments and the memory carved for it.
template <class Bank, class Isa>
struct joint_run {
  Bank& bank;
  const geometry& shape;
  std::size_t count;
  const float* weights;
  const joint_training_params& params;
  float* metric = nullptr;     ///< coded order; null for the identity
  float* centroids = nullptr;  ///< all groups
  float* residuals = nullptr;  ///< (count, dim) in coded order; from the joint passes on, residual * metric
  float* points = nullptr;     ///< (count, max_width)
  std::uint16_t* codes = nullptr;  ///< (groups, count)
  double* sums = nullptr;          ///< (centroids, max_width)
  double* mass = nullptr;          ///< centroids
  float* old_centroids = nullptr;  ///< (centroids, max_width)
  float* row = nullptr;            ///< dim
  metric_factors factors;
  kmeans_workspace kmeans_memory;
  metric_encoder_memory encoder;

  joint_run(Bank& owner, carver& memory, const geometry& cut, std::size_t rows, const float* row_weights,
            bool with_metric, const joint_training_params& settings) noexcept
      : bank(owner), shape(cut), count(rows), weights(row_weights), params(settings), encoder(memory, cut, with_metric) {
    const std::size_t width = shape.max_width();
    metric = encoder.metric;
    centroids = memory.take<float>(shape.codebook_values());
    residuals = memory.take<float>(count * shape.dim);
    points = memory.take<float>(count * width);
    codes = memory.take<std::uint16_t>(count * shape.groups());
    sums = memory.take<double>(shape.centroids * width);
    mass = memory.take<double>(shape.centroids);
    old_centroids = memory.take<float>(shape.centroids * width);
    row = memory.take<float>(shape.dim);
    factors.shape = &shape;
    factors.lower = memory.take<double>(shape.subvectors * width * width);
    kmeans_memory.carve(memory, count, shape.max_width(), shape.centroids);
  }

  [[nodiscard]] float* run_of(std::size_t i, std::uint32_t group) const noexcept {
    return residuals + i * shape.dim + shape.first_channel(group);
  }

  status load(const rows_view& samples) const noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      load_row(samples, i, row);
      for (std::uint32_t p = 0; p < shape.dim; ++p) {
        const float value = row[shape.channel(p)];
        if (!is_finite(value)) {
          return failure(status_code::not_finite, "samples", "has a NaN or infinity", i, shape.channel(p));
        }
        residuals[i * shape.dim + p] = value;
      }
    }
    return {};
  }

  /// k-means of one group's residual in the frame of its block; takes the centroids off the residual.
  status start_group(std::uint32_t group, typename Bank::address resident, progress_counter& progress,
                     training_report& report) const {
    const std::uint32_t width = shape.width(group);
    float* book = centroids + shape.codebook_offset(group);
    std::uint16_t* assigned = codes + group * count;
    for (std::size_t i = 0; i < count; ++i) {
      factors.into_frame(group, run_of(i, group), points + i * width);
    }
    kmeans_params settings = params.kmeans;
    settings.seed = mix_seed(params.kmeans.seed, group);
    kmeans_report found;
    PQATTN_TRY(kmeans(bank, points, weights, count, width, shape.centroids, settings, resident, kmeans_memory, progress,
                      book, nullptr, found));
    report.iterations = (std::max)(report.iterations, found.iterations);
    report.empty_clusters += found.empty_clusters;
    for (std::uint32_t k = 0; k < shape.centroids; ++k) {
      float* centroid = book + std::size_t{k} * width;
      std::copy_n(centroid, width, sums);
      factors.out_of_frame(group, sums);
      for (std::uint32_t c = 0; c < width; ++c) {
        centroid[c] = static_cast<float>(sums[c]);
      }
    }
    for (std::size_t i = 0; i < count; ++i) {
      assigned[i] = kmeans_memory.codes[i];
      const float* centroid = book + std::size_t{assigned[i]} * width;
      float* run = run_of(i, group);
      for (std::uint32_t c = 0; c < width; ++c) {
        run[c] -= centroid[c];
      }
    }
    return {};
  }

  /// New codes and new centroids of one group, all others fixed.
  void refine_group(std::uint32_t group) const noexcept {
    const std::uint32_t width = shape.width(group);
    const std::size_t lanes = metric_padded(shape.centroids);
    const float* planes = encoder.planes + metric_plane_offset(shape, group);
    const float* half_norms = encoder.half_norms + group * lanes;
    float* book = centroids + shape.codebook_offset(group);
    std::uint16_t* assigned = codes + group * count;
    prepare_metric_group(shape, metric, group, book, encoder);
    std::copy_n(book, std::size_t{shape.centroids} * width, old_centroids);
    std::fill_n(sums, std::size_t{shape.centroids} * width, 0.0);
    std::fill_n(mass, shape.centroids, 0.0);
    std::uint16_t* found = kmeans_memory.codes;
    for (std::size_t i = 0; i < count; ++i) {
      metric_target(shape, metric, group, old_centroids + std::size_t{assigned[i]} * width, residuals + i * shape.dim,
                    row);
      found[i] = find_centroid<Isa>(planes, half_norms, lanes, width, row);
      const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[i]);
      double* sum = sums + std::size_t{found[i]} * width;
      mass[found[i]] += weight;
      for (std::uint32_t c = 0; c < width; ++c) {
        sum[c] += weight * static_cast<double>(row[c]);
      }
    }
    for (std::uint32_t k = 0; k < shape.centroids; ++k) {
      if (!is_empty_cluster(mass[k])) {
        double* sum = sums + std::size_t{k} * width;
        for (std::uint32_t c = 0; c < width; ++c) {
          sum[c] /= mass[k];
        }
        factors.solve(group, sum);
        for (std::uint32_t c = 0; c < width; ++c) {
          book[std::size_t{k} * width + c] = static_cast<float>(sum[c]);
        }
      }
    }
    for (std::size_t i = 0; i < count; ++i) {
      shift_metric_residual(shape, metric, group, old_centroids + std::size_t{assigned[i]} * width,
                            book + std::size_t{found[i]} * width, residuals + i * shape.dim);
      assigned[i] = found[i];
    }
  }

  void refine() const noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      apply_metric(shape, metric, residuals + i * shape.dim, row);
      std::copy_n(row, shape.dim, residuals + i * shape.dim);
    }
    for (std::uint32_t pass = 0; pass < params.passes; ++pass) {
      for (std::uint32_t group = 0; group < shape.groups(); ++group) {
        refine_group(group);
      }
    }
  }
};

}  // namespace detail

/// Bytes of workspace train_codebook_jointly needs.
template <class Isa = isa::native, bank_policy Bank>
[[nodiscard]] std::size_t joint_training_workspace_bytes(Bank& bank, const geometry& shape, std::size_t samples,
                                                         bool with_metric) {
  carver memory;
  const joint_training_params params;
  static_cast<void>(detail::joint_run<Bank, Isa>(bank, memory, shape, samples, nullptr, with_metric, params));
  return memory.required();
}

/// Trains the codebook of one (layer, KV head, K-or-V) on `samples` (tokens, dim) in `metric`.
///
/// `metric` (dim, dim) symmetric positive definite in the channel order of the model (finish_query_metric makes it for
/// keys), or null for the identity. `weights` (tokens) >= 0, or null for all 1; the metric already weighs by attention,
/// weights on top of it do not help. `centroids` (shape.codebook_values() floats) receives the codebook, rounded to
/// params.storage; on any error it is left as it was. report.objective is not filled in. Code the rows with
/// encode_with_metric and the same metric; plain encode works too, with larger errors.
/// Reserves and releases bank memory for one sub-vector of all samples. The joint passes run on the host.
/// Errors: invalid geometry, shape mismatch, too few samples, NaN or infinity with its row and column, negative or
/// all-zero weights, a metric that is not positive definite, workspace too small, out of memory, cancelled, a codebook
/// binary16 cannot hold. warm_start is not supported.
/// Cost: k-means of every group, and per joint pass stages * dim * (K + 2 dim) multiply-adds a row.
template <class Isa = isa::native, bank_policy Bank>
status train_codebook_jointly(Bank& bank, const geometry& shape, const rows_view& samples, const float* weights,
                              const float* metric, const joint_training_params& params, void* workspace,
                              std::size_t workspace_bytes, float* centroids, training_report& report) {
  PQATTN_TRY(check_geometry(shape));
  PQATTN_TRY(check_view(samples, "samples"));
  if (samples.cols != shape.dim) {
    return failure(status_code::shape_mismatch, "samples.cols", "must equal geometry.dim", shape.dim, samples.cols);
  }
  if (samples.rows < shape.centroids) {
    return failure(status_code::too_few_samples, "samples.rows", "must be at least the number of centroids",
                   shape.centroids, samples.rows);
  }
  if (params.kmeans.init == kmeans_init::warm_start) {
    return failure(status_code::unsupported, "kmeans.init", "warm_start is not supported by joint training");
  }
  PQATTN_TRY(detail::check_weights(weights, samples.rows));
  carver memory(workspace, workspace_bytes);
  const detail::joint_run<Bank, Isa> run(bank, memory, shape, samples.rows, weights, metric != nullptr, params);
  if (workspace == nullptr || !memory.fits()) {
    return failure(status_code::capacity, "workspace", "is too small for training", memory.used(), workspace_bytes);
  }
  PQATTN_TRY(run.load(samples));
  if (metric != nullptr) {
    detail::order_metric(shape, metric, run.metric);
  }
  if (!run.factors.factor(run.metric)) {
    return failure(status_code::invalid_argument, "metric", "is not positive definite");
  }
  progress_counter progress(params.progress, std::size_t{shape.groups()} * params.kmeans.iterations);
  const std::size_t resident_bytes = bank.point_bytes(samples.rows, shape.max_width());
  typename Bank::address resident{};
  PQATTN_TRY(bank.reserve(resident_bytes, resident));
  training_report made;
  made.samples = samples.rows;
  status outcome;
  for (std::uint32_t group = 0; group < shape.groups() && outcome; ++group) {
    outcome = run.start_group(group, resident, progress, made);
  }
  bank.release(resident, resident_bytes);
  PQATTN_TRY(outcome);
  run.refine();
  PQATTN_TRY(round_codebook(shape, params.storage, run.centroids));
  std::copy_n(run.centroids, shape.codebook_values(), centroids);
  report = made;
  return {};
}

}  // namespace v0
}  // namespace pqattn
