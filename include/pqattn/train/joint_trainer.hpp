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

#include "../config.hpp"
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
  executor parts;                ///< runs sub-vectors, then chunks of rows; the result does not depend on it
  double* objectives = nullptr;  ///< of the k-means runs, as in training_params
  /// Null, or room for passes + 1 numbers: sum of weight * (x - x')^T M (x - x') before each pass and at the end.
  double* pass_objectives = nullptr;
};

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Rows one part of a joint pass works on: sums are merged in the order of the parts, whoever ran them.
inline constexpr std::size_t joint_part_rows = 1024;

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
  const geometry& shape;
  std::size_t count;
  const float* weights;
  const joint_training_params& params;
  subvector_training<Bank> start;
  float* metric = nullptr;         ///< coded order; null for the identity
  float* residuals = nullptr;      ///< (count, dim) in coded order; from the joint passes on, residual * metric
  std::uint16_t* codes = nullptr;  ///< (groups, count)
  std::uint16_t* found = nullptr;  ///< count: new codes of one group
  double* sums = nullptr;          ///< per part (centroids, max_width)
  double* mass = nullptr;          ///< per part (centroids)
  double* costs = nullptr;         ///< per part
  float* old_centroids = nullptr;  ///< (centroids, max_width)
  metric_factors factors;
  metric_encoder_memory encoder;

  joint_run(Bank& bank, carver& memory, const geometry& cut, std::size_t rows, const float* row_weights,
            bool with_metric, const joint_training_params& settings) noexcept
      : shape(cut),
        count(rows),
        weights(row_weights),
        params(settings),
        start{bank, cut, rows, row_weights, settings.kmeans, settings.objectives},
        encoder(memory, cut, with_metric) {
    const std::size_t width = shape.max_width();
    start.carve(memory, params.parts.workers);
    metric = encoder.metric;
    residuals = memory.take<float>(count * shape.dim);
    codes = memory.take<std::uint16_t>(count * shape.groups());
    found = memory.take<std::uint16_t>(count);
    sums = memory.take<double>(parts() * shape.centroids * width);
    mass = memory.take<double>(parts() * shape.centroids);
    costs = memory.take<double>(parts());
    old_centroids = memory.take<float>(shape.centroids * width);
    factors.shape = &shape;
    factors.lower = memory.take<double>(shape.subvectors * width * width);
  }

  [[nodiscard]] std::size_t parts() const noexcept { return (count + joint_part_rows - 1) / joint_part_rows; }
  [[nodiscard]] double weight(std::size_t i) const noexcept {
    return weights == nullptr ? 1.0 : static_cast<double>(weights[i]);
  }
  [[nodiscard]] float* run_of(std::size_t i, std::uint32_t group) const noexcept {
    return residuals + i * shape.dim + shape.first_channel(group);
  }

  void load(const rows_view& samples) const noexcept {
    float row[max_dim];
    for (std::size_t i = 0; i < count; ++i) {
      load_row(samples, i, row);
      for (std::uint32_t p = 0; p < shape.dim; ++p) {
        residuals[i * shape.dim + p] = row[shape.channel(p)];
      }
    }
  }

  /// A group's centroids between the model's frame and the frame of its block of the metric, in place.
  void turn_book(std::uint32_t group, bool into_frame) const noexcept {
    const std::uint32_t width = shape.width(group);
    float* book = start.centroids + shape.codebook_offset(group);
    for (std::uint32_t k = 0; k < shape.centroids; ++k) {
      float* centroid = book + std::size_t{k} * width;
      if (into_frame) {
        float turned[max_dim];
        factors.into_frame(group, centroid, turned);
        std::copy_n(turned, width, centroid);
        continue;
      }
      double turned[max_dim];
      std::copy_n(centroid, width, turned);
      factors.out_of_frame(group, turned);
      for (std::uint32_t c = 0; c < width; ++c) {
        centroid[c] = static_cast<float>(turned[c]);
      }
    }
  }

  /// k-means of one group's residual in the frame of its block; takes the centroids off the residual.
  status start_group(std::uint32_t group, const trainer_scratch<Bank>& work, progress_counter& progress) const {
    const std::uint32_t width = shape.width(group);
    for (std::size_t i = 0; i < count; ++i) {
      factors.into_frame(group, run_of(i, group), work.points + i * width);
    }
    if (params.kmeans.init == kmeans_init::warm_start) {
      turn_book(group, true);
    }
    PQATTN_TRY(start.train_group(group, work, progress));
    turn_book(group, false);
    const float* book = start.centroids + shape.codebook_offset(group);
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint16_t code = work.kmeans.codes[i];
      codes[group * count + i] = code;
      float* run = run_of(i, group);
      for (std::uint32_t c = 0; c < width; ++c) {
        run[c] -= book[std::size_t{code} * width + c];
      }
    }
    return {};
  }

  /// Calls work(part, first row, row after the last) for every chunk of rows, on the caller's workers.
  template <class Work>
  void each_part(Work&& work) const {
    run_parts(params.parts, parts(), [&](std::size_t part, std::size_t) {
      work(part, part * joint_part_rows, (std::min)(count, (part + 1) * joint_part_rows));
    });
  }

  /// Residuals become residual * metric; returns the objective.
  [[nodiscard]] double apply() const {
    each_part([this](std::size_t part, std::size_t first, std::size_t last) {
      costs[part] = 0.0;
      float applied[max_dim];
      for (std::size_t i = first; i < last; ++i) {
        float* residual = residuals + i * shape.dim;
        apply_metric(shape, metric, residual, applied);
        double error = 0.0;
        for (std::uint32_t c = 0; c < shape.dim; ++c) {
          error += static_cast<double>(residual[c]) * static_cast<double>(applied[c]);
        }
        costs[part] += weight(i) * error;
        std::copy_n(applied, shape.dim, residual);
      }
    });
    return total_mass(parts(), [this](std::size_t part) { return costs[part]; });
  }

  /// New codes of rows [first, last) for one group, and the sums its new centroids need. costs[part] becomes what the
  /// old codes cost, up to what other groups cost.
  void assign_part(std::uint32_t group, std::size_t part, std::size_t first, std::size_t last) const noexcept {
    const std::uint32_t width = shape.width(group);
    const std::size_t lanes = metric_padded(shape.centroids);
    const float* planes = encoder.planes + metric_plane_offset(shape, group);
    const float* half_norms = encoder.half_norms + group * lanes;
    const std::uint16_t* assigned = codes + group * count;
    double* part_sums = sums + part * shape.centroids * shape.max_width();
    double* part_mass = mass + part * shape.centroids;
    std::fill_n(part_sums, std::size_t{shape.centroids} * width, 0.0);
    std::fill_n(part_mass, shape.centroids, 0.0);
    costs[part] = 0.0;
    float target[max_dim];
    for (std::size_t i = first; i < last; ++i) {
      const float* old_centroid = old_centroids + std::size_t{assigned[i]} * width;
      metric_target(shape, metric, group, old_centroid, residuals + i * shape.dim, target);
      found[i] = find_centroid<Isa>(planes, half_norms, lanes, width, target);
      const double row_weight = weight(i);
      double* sum = part_sums + std::size_t{found[i]} * width;
      part_mass[found[i]] += row_weight;
      double cost = static_cast<double>(half_norms[assigned[i]]);
      for (std::uint32_t c = 0; c < width; ++c) {
        sum[c] += row_weight * static_cast<double>(target[c]);
        cost -= static_cast<double>(target[c]) * static_cast<double>(old_centroid[c]);
      }
      costs[part] += 2.0 * row_weight * cost;
    }
  }

  /// Moves centroids to the minimisers and returns what the new codes cost, up to what other groups cost.
  [[nodiscard]] double update_group(std::uint32_t group) const noexcept {
    const std::uint32_t width = shape.width(group);
    const std::size_t part_stride = shape.centroids * std::size_t{shape.max_width()};
    float* book = start.centroids + shape.codebook_offset(group);
    double cost = 0.0;
    for (std::uint32_t k = 0; k < shape.centroids; ++k) {
      double* sum = sums + std::size_t{k} * width;
      for (std::size_t part = 1; part < parts(); ++part) {
        mass[k] += mass[part * shape.centroids + k];
        for (std::uint32_t c = 0; c < width; ++c) {
          sum[c] += sums[part * part_stride + std::size_t{k} * width + c];
        }
      }
      if (is_empty_cluster(mass[k])) {
        continue;
      }
      double centroid[max_dim];
      for (std::uint32_t c = 0; c < width; ++c) {
        centroid[c] = sum[c] / mass[k];
      }
      factors.solve(group, centroid);
      for (std::uint32_t c = 0; c < width; ++c) {
        book[std::size_t{k} * width + c] = static_cast<float>(centroid[c]);
        cost -= sum[c] * centroid[c];  // at the minimiser c^T M c / 2 - y c = -y c / 2
      }
    }
    return cost;
  }

  /// New codes and new centroids of one group, all others fixed. Returns by how much the objective changed.
  [[nodiscard]] double refine_group(std::uint32_t group) const {
    const std::uint32_t width = shape.width(group);
    float* book = start.centroids + shape.codebook_offset(group);
    prepare_metric_group(shape, metric, group, book, encoder);
    std::copy_n(book, std::size_t{shape.centroids} * width, old_centroids);
    each_part([&](std::size_t part, std::size_t first, std::size_t last) { assign_part(group, part, first, last); });
    const double before = total_mass(parts(), [this](std::size_t part) { return costs[part]; });
    const double after = update_group(group);
    std::uint16_t* assigned = codes + group * count;
    each_part([&](std::size_t, std::size_t first, std::size_t last) {
      for (std::size_t i = first; i < last; ++i) {
        shift_metric_residual(shape, metric, group, old_centroids + std::size_t{assigned[i]} * width,
                              book + std::size_t{found[i]} * width, residuals + i * shape.dim);
        assigned[i] = found[i];
      }
    });
    return after - before;
  }

  status refine(progress_counter& progress, double& objective) const {
    objective = apply();
    for (std::uint32_t pass = 0; pass < params.passes; ++pass) {
      if (params.pass_objectives != nullptr) {
        params.pass_objectives[pass] = objective;
      }
      for (std::uint32_t group = 0; group < shape.groups(); ++group) {
        objective += refine_group(group);
        PQATTN_TRY(progress.step());
      }
      objective = (std::max)(objective, 0.0);
    }
    if (params.pass_objectives != nullptr) {
      params.pass_objectives[params.passes] = objective;
    }
    return {};
  }
};

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Bytes of workspace train_codebook_jointly needs when params.parts is `parts`.
template <class Isa = isa::native, bank_policy Bank>
[[nodiscard]] std::size_t joint_training_workspace_bytes(Bank& bank, const geometry& shape, std::size_t samples,
                                                         bool with_metric, const executor& parts = {}) {
  carver memory;
  joint_training_params params;
  params.parts = parts;
  static_cast<void>(detail::joint_run<Bank, Isa>(bank, memory, shape, samples, nullptr, with_metric, params));
  return memory.required();
}

/// Trains the codebook of one (layer, KV head, K-or-V) on `samples` (tokens, dim) in `metric`.
///
/// `metric` (dim, dim) symmetric positive definite in the channel order of the model (finish_query_metric makes it for
/// keys), or null for the identity. `weights` (tokens) >= 0, or null for all 1; the metric already weighs by attention,
/// weights on top of it do not help. `centroids` (shape.codebook_values() floats) receives the codebook, rounded to
/// params.storage, and with warm_start also holds the start; on any error it is left as it was. report.objective is
/// the sum of weight * (x - x')^T M (x - x'). Code the rows with encode_with_metric and the same metric; plain encode
/// works too, with larger errors.
/// Reserves and releases bank memory for one sub-vector of all samples per worker. The joint passes run on the host.
/// Errors: as train_codebook, and a metric that is not positive definite.
/// Cost: k-means of every group, and per joint pass stages * dim * (K + 2 dim) multiply-adds a row.
template <class Isa = isa::native, bank_policy Bank>
status train_codebook_jointly(Bank& bank, const geometry& shape, const rows_view& samples, const float* weights,
                              const float* metric, const joint_training_params& params, void* workspace,
                              std::size_t workspace_bytes, float* centroids, training_report& report) {
  PQATTN_TRY(detail::check_training(shape, samples, weights, params.parts));
  carver memory(workspace, workspace_bytes);
  const detail::joint_run<Bank, Isa> run(bank, memory, shape, samples.rows, weights, metric != nullptr, params);
  if (workspace == nullptr || !memory.fits()) {
    return failure(status_code::capacity, "workspace", "is too small for training", memory.used(), workspace_bytes);
  }
  run.load(samples);
  if (metric != nullptr) {
    detail::order_metric(shape, metric, run.metric);
  }
  if (!run.factors.factor(run.metric)) {
    return failure(status_code::invalid_argument, "metric", "is not positive definite");
  }
  if (params.kmeans.init == kmeans_init::warm_start) {
    std::copy_n(centroids, shape.codebook_values(), run.start.centroids);
  }
  progress_counter progress(params.progress, std::size_t{shape.groups()} * (params.kmeans.iterations + params.passes));
  training_report made;
  const auto train = [&](std::uint32_t subvector, const auto& work) -> status {
    for (std::uint32_t group = subvector; group < shape.groups(); group += shape.subvectors) {
      PQATTN_TRY(run.start_group(group, work, progress));
    }
    return {};
  };
  PQATTN_TRY(run.start.run(params.parts, made, train));
  PQATTN_TRY(run.refine(progress, made.objective));
  PQATTN_TRY(round_codebook(shape, params.storage, run.start.centroids));
  std::copy_n(run.start.centroids, shape.codebook_values(), centroids);
  report = made;
  return {};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
