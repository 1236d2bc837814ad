// SPDX-License-Identifier: MIT
// What rows read back as after product quantization with everything the library has: a codebook trained jointly in a
// metric, rotated values, made-up rows where there are few, beam and sweeps, outliers kept exact.
#pragma once

#include <algorithm>
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
  bool rotate = false;         ///< onto principal components first (values)
  bool smooth = true;          ///< made-up rows where few rows teach (smooth_samples)
  double outlier_share = 0.0;  ///< of the coded rows stay exact, those with the largest error in the metric
  const float* metric = nullptr;  ///< (dim, dim), or null for the identity
};

/// Rows [taught_first, taught_last) teach the codebook, rows [coded_first, coded_last) are coded with it.
struct pq_ranges {
  std::size_t taught_first = 0;
  std::size_t taught_last = 0;
  std::size_t coded_first = 0;
  std::size_t coded_last = 0;
};

/// What coding costs.
struct pq_cost {
  double code_bits = 0.0;       ///< codes, and exact outliers with 32 bits for the position of each
  double codebook_bits = 0.0;
  double transform_bits = 0.0;  ///< rotation and mean in f16, metric in f32
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
  PQATTN_TRY(buffer::make(memory,
                          joint_training_workspace_bytes(bank, recipe.shape, samples.rows, recipe.metric != nullptr,
                                                         recipe.training.parts),
                          workspace));
  training_report report;
  return train_codebook_jointly(bank, recipe.shape, samples, weights, recipe.metric, recipe.training, workspace.data(),
                                workspace.size(), centroids, report);
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
  PQATTN_TRY(encode_with_metric(encoder, view_rows(rows, count, dim), recipe.sweeps, workspace.data(),
                                workspace.size(), codes));
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
      decode_row(book, codes + r * shape.groups(), rows + r * dim);
    }
  }
  cost.code_bits += static_cast<double>(count) * static_cast<double>(shape.row_bits()) +
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
status reconstruct_rows(Bank& bank, const pq_recipe& recipe, const pq_ranges& ranges, const float* weights,
                        float* rows, pq_cost& cost, const memory_resource& memory = {}) {
  PQATTN_TRY(check_geometry(recipe.shape));
  const std::size_t dim = recipe.shape.dim;
  if (recipe.outlier_share > 0.0 && recipe.shape.centroids > 65535) {
    return failure(status_code::unsupported, "recipe.outlier_share", "needs fewer than 65536 centroids");
  }
  const std::size_t taught = ranges.taught_last - ranges.taught_first;
  const std::size_t count = ranges.coded_last - ranges.coded_first;
  buffer block;
  float* taught_rows = nullptr;
  PQATTN_TRY(detail::make_array(memory, (taught + count) * dim + recipe.shape.codebook_values() + dim * (dim + 1),
                                block, taught_rows));
  float* coded_rows = taught_rows + taught * dim;
  float* centroids = coded_rows + count * dim;
  float* mean = centroids + recipe.shape.codebook_values();
  float* basis = mean + dim;
  std::copy_n(rows + ranges.taught_first * dim, taught * dim, taught_rows);
  std::copy_n(rows + ranges.coded_first * dim, count * dim, coded_rows);
  const value_rotation rotation{recipe.shape.dim, mean, basis};
  if (recipe.rotate) {
    buffer workspace;
    PQATTN_TRY(buffer::make(memory, value_rotation_workspace_bytes(recipe.shape.dim), workspace));
    PQATTN_TRY(train_value_rotation(view_rows(taught_rows, taught, dim), recipe.shape.subvectors, workspace.data(),
                                    workspace.size(), mean, basis));
    for (std::size_t i = 0; i < dim * (dim + 1); ++i) {
      mean[i] = to_float(to_half(mean[i]));
    }
    float turned[max_dim];
    for (std::size_t r = 0; r < taught + count; ++r) {
      rotate_value(rotation, taught_rows + r * dim, turned);
      std::copy_n(turned, dim, taught_rows + r * dim);
    }
    cost.transform_bits += 16.0 * static_cast<double>(dim * (dim + 1));
  }
  PQATTN_TRY(detail::train_recipe(bank, recipe, view_rows(taught_rows, taught, dim),
                                  weights == nullptr ? nullptr : weights + ranges.taught_first, memory, centroids));
  PQATTN_TRY(detail::code_recipe(recipe, centroids, count, coded_rows, memory, cost));
  for (std::size_t r = 0; r < count; ++r) {
    float* row = rows + (ranges.coded_first + r) * dim;
    if (recipe.rotate) {
      unrotate_value(rotation, coded_rows + r * dim, 1.0f, row);
    } else {
      std::copy_n(coded_rows + r * dim, dim, row);
    }
  }
  cost.codebook_bits += 8.0 * static_cast<double>(stored_codebook_bytes(recipe.shape, recipe.training.storage));
  if (recipe.metric != nullptr) {
    cost.transform_bits += 32.0 * static_cast<double>(dim * (dim + 1) / 2);
  }
  return {};
}

/// Metric of one KV head's keys from about `rows` queries of each of its query heads, spread over [first, keys.rows).
/// `queries` are (tokens, d_k) at positions 0, 1, ..., `keys` as attention meets them. `metric` (d_k, d_k).
inline status spread_query_metric(const rows_view* queries, std::size_t query_heads, const rows_view& keys,
                                  const rope& rotation, query_metric_params params, std::size_t first,
                                  std::size_t rows, float ridge, float* metric, const memory_resource& memory = {}) {
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
