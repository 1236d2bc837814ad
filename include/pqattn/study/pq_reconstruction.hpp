// SPDX-License-Identifier: MIT
// What rows read back as after product quantization with everything the library has: a codebook trained jointly in a
// metric, rotated values, made-up rows where there are few, beam and sweeps, outliers kept exact.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "../config.hpp"
#include "../core/memory.hpp"
#include "../core/view.hpp"
#include "../encode/metric_encoder.hpp"
#include "../train/joint_trainer.hpp"
#include "../train/query_metric.hpp"
#include "../train/smoothing.hpp"
#include "../train/value_rotation.hpp"

namespace pqattn {
inline namespace v0 {

/// How one side (keys or values) of one KV head is coded.
struct pq_recipe {
  geometry shape;
  joint_training_params training{{12, kmeans_init::plus_plus, 1}, 4, codebook_storage::i8, {}, {}, nullptr, nullptr};
  std::uint32_t sweeps = 2;
  std::uint32_t beam = 4;
  bool rotate = false;            ///< onto principal components first (values)
  bool smooth = true;             ///< made-up rows where few rows teach (smooth_samples)
  double outlier_share = 0.0;     ///< of the coded rows stay exact, those with the largest error in the metric
  const float* metric = nullptr;  ///< (dim, dim), or null for the identity; used as binary16 holds it
  bool block_metric = false;      ///< only the metric within each sub-vector
  std::uint32_t restarts = 1;     ///< trainings, each with a seed of its own; the one with the least objective is kept
  std::uint32_t scale_bits = 0;   ///< of a scale for each sub-vector of a row, from 3/4 on
  std::uint32_t epochs = 1;       ///< runs of the taught rows with a codebook each, starting from the one before
  codebook_storage basis = codebook_storage::i8;  ///< numbers of the rotation; i8 has a scale per direction
};

/// Rows [taught_first, taught_last) teach the codebook, rows [coded_first, coded_last) are coded with it. Recipes with
/// epochs take both ranges to begin with the same row.
struct pq_ranges {
  std::size_t taught_first = 0;
  std::size_t taught_last = 0;
  std::size_t coded_first = 0;
  std::size_t coded_last = 0;
};

/// What coding costs.
struct pq_cost {
  double code_bits = 0.0;  ///< codes, and exact outliers with 32 bits for the position of each
  double codebook_bits = 0.0;
  double transform_bits = 0.0;  ///< rotation, mean and metric
};

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Makes room for `count` objects.
template <class T>
status make_array(const memory_resource& memory, std::size_t count, buffer& block, T*& array) {
  PQATTN_TRY(buffer::make(memory, count * sizeof(T), block));
  array = reinterpret_cast<T*>(block.data());
  return {};
}

template <class Bank>
status train_recipe(Bank& bank, const pq_recipe& recipe, const rows_view& real, const float* real_weights,
                    const memory_resource& memory, float* centroids) {
  rows_view samples = real;
  const float* weights = real_weights;
  buffer block;
  const smoothing_params smoothing;
  if (recipe.smooth && real.rows < smoothing.rows) {
    float* made = nullptr;
    PQATTN_TRY(make_array(memory, smoothing.rows * (real.cols + 1), block, made));
    float* made_weights = made + smoothing.rows * real.cols;
    PQATTN_TRY(smooth_samples(real, real_weights, smoothing, made, made_weights));
    samples = view_rows(made, smoothing.rows, real.cols);
    weights = made_weights;
  }
  buffer workspace;
  PQATTN_TRY(buffer::make(
      memory,
      joint_training_workspace_bytes(bank, recipe.shape, samples.rows, recipe.metric != nullptr, recipe.training.parts),
      workspace));
  buffer trial_memory;
  float* trial = nullptr;
  PQATTN_TRY(make_array(memory, recipe.shape.codebook_values(), trial_memory, trial));
  joint_training_params training = recipe.training;
  double best = 0.0;
  for (std::uint32_t attempt = 0; attempt < (recipe.restarts > 1 ? recipe.restarts : 1); ++attempt) {
    training_report report;
    std::copy_n(centroids, recipe.shape.codebook_values(), trial);  // a warm start reads it
    PQATTN_TRY(train_codebook_jointly(bank, recipe.shape, samples, weights, recipe.metric, training, workspace.data(),
                                      workspace.size(), trial, report));
    if (attempt == 0 || report.objective < best) {
      best = report.objective;
      std::copy_n(trial, recipe.shape.codebook_values(), centroids);
    }
    training.kmeans.seed = mix_seed(training.kmeans.seed, 77);
  }
  return {};
}

/// Scales each sub-vector of a decoded row to what serves the exact one best, in 2^bits steps around 1 from 3/4 on.
inline void scale_subvectors(const geometry& shape, std::uint32_t bits, const float* exact, float* decoded) noexcept {
  const auto half = static_cast<float>(1u << (bits - 1));
  for (std::uint32_t run = 0; run < shape.subvectors; ++run) {
    float dot = 0.0f;
    float energy = 0.0f;
    const std::uint32_t first = shape.first_channel(run);
    for (std::uint32_t p = first; p < first + shape.width(run); ++p) {
      const std::uint32_t c = shape.channel(p);
      dot += exact[c] * decoded[c];
      energy += decoded[c] * decoded[c];
    }
    const float wanted = energy > 0.0f ? dot / energy : 1.0f;
    const float level = std::nearbyint((wanted - 1.0f) * 4.0f * half);
    const float scale = 1.0f + (level < -half ? -half : level > half - 1.0f ? half - 1.0f : level) / (4.0f * half);
    for (std::uint32_t p = first; p < first + shape.width(run); ++p) {
      decoded[shape.channel(p)] *= scale;
    }
  }
}

/// The metric as a cache keeps it: rounded to binary16, without what links sub-vectors if the recipe says so. Returns
/// the entries of one triangle.
inline std::size_t keep_metric(const pq_recipe& recipe, float* metric) noexcept {
  const geometry& shape = recipe.shape;
  std::fill_n(metric, std::size_t{shape.dim} * shape.dim, 0.0f);
  std::size_t kept = 0;
  const std::uint32_t runs = recipe.block_metric ? shape.subvectors : 1;
  for (std::uint32_t run = 0; run < runs; ++run) {
    const std::uint32_t first = recipe.block_metric ? shape.first_channel(run) : 0;
    const std::uint32_t width = recipe.block_metric ? shape.width(run) : shape.dim;
    for (std::uint32_t a = first; a < first + width; ++a) {
      for (std::uint32_t b = first; b < first + width; ++b) {
        const std::size_t at = std::size_t{shape.channel(a)} * shape.dim + shape.channel(b);
        metric[at] = to_float(to_half(recipe.metric[at]));
      }
    }
    kept += std::size_t{width} * (width + 1) / 2;
  }
  return kept;
}

/// Bits of the rotation; in f16 it is rounded.
inline double keep_rotation(std::size_t dim, codebook_storage storage, float* mean, float* basis) noexcept {
  if (storage == codebook_storage::i8) {
    return 8.0 * static_cast<double>(compact_rotation_bytes(static_cast<std::uint32_t>(dim)));
  }
  for (std::size_t i = 0; storage == codebook_storage::f16 && i < dim; ++i) {
    mean[i] = to_float(to_half(mean[i]));
  }
  for (std::size_t i = 0; storage == codebook_storage::f16 && i < dim * dim; ++i) {
    basis[i] = to_float(to_half(basis[i]));
  }
  return (storage == codebook_storage::f16 ? 16.0 : 32.0) * static_cast<double>(dim * (dim + 1));
}

/// Error of a decoded row in the recipe's metric.
inline double recipe_error(const pq_recipe& recipe, const float* exact, const float* decoded) noexcept {
  const std::size_t dim = recipe.shape.dim;
  float rest[max_dim];
  for (std::size_t c = 0; c < dim; ++c) {
    rest[c] = exact[c] - decoded[c];
  }
  double sum = 0.0;
  for (std::size_t a = 0; a < dim; ++a) {
    sum += static_cast<double>(rest[a]) *
           static_cast<double>(recipe.metric == nullptr ? rest[a] : chained_dot(recipe.metric + a * dim, rest, dim));
  }
  return sum;
}

/// Codes `rows` (count, dim) and replaces them by what their codes read back as, but for the outliers.
inline status code_recipe(const pq_recipe& recipe, const float* centroids, std::size_t count, float* rows,
                          const memory_resource& memory, pq_cost& cost) {
  const geometry& shape = recipe.shape;
  const std::size_t dim = shape.dim;
  buffer encoder_memory;
  buffer workspace;
  buffer code_memory;
  buffer error_memory;
  std::uint16_t* codes = nullptr;
  std::pair<double, std::size_t>* errors = nullptr;
  PQATTN_TRY(buffer::make(memory, metric_encoder_bytes(shape, recipe.metric != nullptr), encoder_memory));
  PQATTN_TRY(buffer::make(memory, metric_encode_workspace_bytes(shape), workspace));
  PQATTN_TRY(make_array(memory, count * shape.groups(), code_memory, codes));
  PQATTN_TRY(make_array(memory, count, error_memory, errors));
  const codebook_view book{shape, centroids};
  metric_encoder encoder;
  PQATTN_TRY(build_metric_encoder(book, recipe.metric, encoder_memory.data(), encoder_memory.size(), encoder));
  encoder.beam = recipe.beam;
  PQATTN_TRY(encode_with_metric(encoder, view_rows(rows, count, dim), recipe.sweeps, workspace.data(), workspace.size(),
                                codes));
  const auto outliers = static_cast<std::size_t>(recipe.outlier_share * static_cast<double>(count));
  float decoded[max_dim];
  for (std::size_t r = 0; outliers != 0 && r < count; ++r) {
    decode_row(book, codes + r * shape.groups(), decoded);
    errors[r] = {-recipe_error(recipe, rows + r * dim, decoded), r};
  }
  if (outliers != 0) {
    std::sort(errors, errors + count);
    for (std::size_t i = 0; i < outliers; ++i) {
      codes[errors[i].second * shape.groups()] = 0xffff;  // no code: K is at most 256 where the study codes
    }
  }
  for (std::size_t r = 0; r < count; ++r) {
    if (outliers == 0 || codes[r * shape.groups()] < shape.centroids) {
      decode_row(book, codes + r * shape.groups(), decoded);
      if (recipe.scale_bits != 0) {
        scale_subvectors(shape, recipe.scale_bits, rows + r * dim, decoded);
      }
      std::copy_n(decoded, dim, rows + r * dim);
    }
  }
  const std::size_t row_bits = shape.row_bits() + std::size_t{recipe.scale_bits} * shape.subvectors;
  cost.code_bits += static_cast<double>(count) * static_cast<double>(row_bits) +
                    static_cast<double>(outliers) * (16.0 * static_cast<double>(dim) + 32.0);
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Trains on the taught rows and replaces the coded ones of `rows` (tokens, dim dense, in the domain that is coded) by
/// what their codes read back as; other rows are left alone. `weights` (tokens) or null; adds to `cost`.
/// Errors: as train_codebook_jointly; outliers with more than 65535 centroids; out of memory.
template <bank_policy Bank>
status reconstruct_rows(Bank& bank, const pq_recipe& asked, const pq_ranges& ranges, const float* weights, float* rows,
                        pq_cost& cost, const memory_resource& memory = {}) {
  PQATTN_TRY(check_geometry(asked.shape));
  pq_recipe recipe = asked;
  const std::size_t dim = recipe.shape.dim;
  if (recipe.outlier_share > 0.0 && recipe.shape.centroids > 65535) {
    return failure(status_code::unsupported, "recipe.outlier_share", "needs fewer than 65536 centroids");
  }
  const std::size_t taught = ranges.taught_last - ranges.taught_first;
  const std::size_t count = ranges.coded_last - ranges.coded_first;
  buffer block;
  float* taught_rows = nullptr;
  PQATTN_TRY(detail::make_array(memory, (taught + count) * dim + recipe.shape.codebook_values() + 2 * dim * (dim + 1),
                                block, taught_rows));
  float* coded_rows = taught_rows + taught * dim;
  float* centroids = coded_rows + count * dim;
  float* mean = centroids + recipe.shape.codebook_values();
  float* basis = mean + dim;
  std::copy_n(rows + ranges.taught_first * dim, taught * dim, taught_rows);
  std::copy_n(rows + ranges.coded_first * dim, count * dim, coded_rows);
  value_rotation rotation{recipe.shape.dim, mean, basis};
  buffer compact;
  if (recipe.rotate) {
    buffer workspace;
    PQATTN_TRY(buffer::make(memory, value_rotation_workspace_bytes(recipe.shape.dim), workspace));
    PQATTN_TRY(train_value_rotation(view_rows(taught_rows, taught, dim), recipe.shape.subvectors, workspace.data(),
                                    workspace.size(), mean, basis));
    cost.transform_bits += detail::keep_rotation(dim, recipe.basis, mean, basis);
    if (recipe.basis == codebook_storage::i8) {
      PQATTN_TRY(buffer::make(memory, compact_rotation_bytes(recipe.shape.dim), compact));
      rotation = compact_rotation(rotation, compact.data());
    }
    float turned[max_dim];
    for (std::size_t r = 0; r < taught + count; ++r) {
      rotate_value(rotation, taught_rows + r * dim, turned);
      std::copy_n(turned, dim, taught_rows + r * dim);
    }
  }
  if (recipe.metric != nullptr) {
    float* kept = basis + dim * dim;
    cost.transform_bits += 16.0 * static_cast<double>(detail::keep_metric(recipe, kept));
    recipe.metric = kept;
  }
  // The last epoch also codes what comes after the taught rows.
  const std::size_t epochs = recipe.epochs > 1 ? recipe.epochs : 1;
  for (std::size_t epoch = 0; epoch < epochs; ++epoch) {
    const std::size_t first = epoch * taught / epochs;
    const std::size_t last = (epoch + 1) * taught / epochs;
    PQATTN_TRY(detail::train_recipe(bank, recipe, view_rows(taught_rows + first * dim, last - first, dim),
                                    weights == nullptr ? nullptr : weights + ranges.taught_first + first, memory,
                                    centroids));
    const std::size_t coded_first = (std::min)(first, count);
    const std::size_t coded_last = epoch + 1 == epochs ? count : (std::min)(last, count);
    PQATTN_TRY(
        detail::code_recipe(recipe, centroids, coded_last - coded_first, coded_rows + coded_first * dim, memory, cost));
    cost.codebook_bits += 8.0 * static_cast<double>(stored_codebook_bytes(recipe.shape, recipe.training.storage));
    recipe.training.kmeans.init = kmeans_init::warm_start;
  }
  for (std::size_t r = 0; r < count; ++r) {
    float* row = rows + (ranges.coded_first + r) * dim;
    if (recipe.rotate) {
      unrotate_value(rotation, coded_rows + r * dim, 1.0f, row);
    } else {
      std::copy_n(coded_rows + r * dim, dim, row);
    }
  }
  return {};
}

/// Metric of one KV head's keys from about `rows` queries of each of its query heads, spread over [first, keys.rows).
/// `queries` are (tokens, d_k) at positions 0, 1, ..., `keys` as attention meets them. `metric` (d_k, d_k).
inline status spread_query_metric(const rows_view* queries, std::size_t query_heads, const rows_view& keys,
                                  const rope& rotation, query_metric_params params, std::size_t first, std::size_t rows,
                                  float ridge, float* metric, const memory_resource& memory = {}) {
  const std::size_t dim = keys.cols;
  const std::size_t last = keys.rows;
  if (first >= last || rows == 0) {
    return failure(status_code::too_few_samples, "rows", "leave no query for the metric");
  }
  const std::size_t count = rows < last - first ? rows : last - first;
  buffer workspace;
  buffer block;
  PQATTN_TRY(buffer::make(memory, query_metric_workspace_bytes(last, dim), workspace));
  carver sizes;
  sizes.take<double>(dim * dim);
  sizes.take<std::int64_t>(count);
  sizes.take<float>(count * dim);
  PQATTN_TRY(buffer::make(memory, sizes.required(), block));
  carver pieces(block.data(), block.size());
  auto* sum = pieces.take<double>(dim * dim);
  auto* positions = pieces.take<std::int64_t>(count);
  auto* picked = pieces.take<float>(count * dim);
  std::fill_n(sum, dim * dim, 0.0);
  const std::uint64_t seed = params.seed;
  for (std::size_t head = 0; head < query_heads; ++head) {
    for (std::size_t r = 0; r < count; ++r) {
      const std::size_t position = count == 1 ? last - 1 : first + r * (last - 1 - first) / (count - 1);
      positions[r] = static_cast<std::int64_t>(position);
      load_row(queries[head], position, picked + r * dim);
    }
    params.seed = mix_seed(seed, head);
    PQATTN_TRY(add_query_metric(view_rows(picked, count, dim), positions, keys, rotation, params, workspace.data(),
                                workspace.size(), sum));
  }
  finish_query_metric(sum, dim, ridge, metric);
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
