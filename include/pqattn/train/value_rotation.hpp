// SPDX-License-Identifier: MIT
// Values before coding: subtract the mean, rotate onto principal components, deal the components to sub-vectors so
// that each carries the same share (OPQ's eigenvalue allocation, Ge et al. 2013). Attention is linear in the values,
// so the way back is applied once to the output, or absorbed in the projections.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../core/memory.hpp"
#include "../core/view.hpp"
#include "../quant/geometry.hpp"
#include "../quant/value_rotation.hpp"
#include "symmetric_eigen.hpp"

namespace pqattn {
inline namespace v0 {

inline namespace PQATTN_ISA_UNIT {

/// Bytes of workspace train_value_rotation needs.
[[nodiscard]] inline std::size_t value_rotation_workspace_bytes(std::uint32_t dim) noexcept {
  carver memory;
  memory.take<double>(std::size_t{dim} * dim);
  memory.take<double>(std::size_t{dim} * dim);
  memory.take<double>(symmetric_eigen_scratch(dim));
  memory.take<double>(dim);
  memory.take<double>(dim);
  memory.take<float>(dim);
  memory.take<std::uint16_t>(dim);
  return memory.required();
}

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Deals components, largest eigenvalue first, each to the sub-vector with the smallest sum of log-variances among
/// those with room. `order[p]` is the rank of the component at coded position p; `sums` has shape.subvectors entries.
inline void balance_components(const double* descending, const geometry& shape, double* sums,
                               std::uint16_t* order) noexcept {
  std::uint32_t filled[max_dim] = {};
  const double floor = 1.0e-9 * (descending[0] > 0.0 ? descending[0] : 1.0);
  for (std::uint32_t run = 0; run < shape.subvectors; ++run) {
    sums[run] = 0.0;
  }
  for (std::uint32_t rank = 0; rank < shape.dim; ++rank) {
    std::uint32_t chosen = shape.subvectors;
    for (std::uint32_t run = 0; run < shape.subvectors; ++run) {
      if (filled[run] < shape.width(run) && (chosen == shape.subvectors || sums[run] < sums[chosen])) {
        chosen = run;
      }
    }
    order[shape.first_channel(chosen) + filled[chosen]++] = static_cast<std::uint16_t>(rank);
    // Log-variances above the floor are positive, so an emptier sub-vector is always the smaller one.
    sums[chosen] += std::log((descending[rank] > floor ? descending[rank] : floor) / floor) + 1.0e-6;
  }
}

/// What the two fold_into functions need.
inline status check_folding(const value_rotation& rotation, const float* weights, const float* bias,
                            const float* scratch) noexcept {
  if (!rotation.enabled()) {
    return {};
  }
  if (rotation.dim > max_dim) {
    return failure(status_code::invalid_argument, "rotation.dim", "must be at most 1024", max_dim, rotation.dim);
  }
  if (rotation.basis == nullptr) {
    return failure(status_code::invalid_argument, "rotation.basis",
                   "is null: of a compact rotation fold the one that it was made of");
  }
  if (rotation.mean == nullptr || weights == nullptr || scratch == nullptr) {
    return failure(status_code::invalid_argument, "rotation.mean, weights or scratch", "is null");
  }
  for (std::uint32_t c = 0; bias == nullptr && c < rotation.dim; ++c) {
    if (rotation.mean[c] != 0.0f) {
      return failure(status_code::invalid_argument, "bias", "is null although the rotation has a mean");
    }
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Learns mean and rotation from `samples` (tokens, d_v) for a quantizer that cuts the row in `subvectors` runs.
/// `mean` (d_v) and `basis` (d_v, d_v) receive the result, ready for a geometry without channel order.
/// Errors: no samples, NaN or infinity, subvectors outside 1..d_v, workspace too small.
/// Cost: tokens * d_v^2 multiply-adds and an eigendecomposition of about 6 d_v^3; nothing is allocated.
inline status train_value_rotation(const rows_view& samples, std::uint32_t subvectors, void* workspace,
                                   std::size_t workspace_bytes, float* mean, float* basis) {
  geometry shape;
  shape.dim = static_cast<std::uint32_t>(samples.cols);
  shape.subvectors = subvectors;
  shape.centroids = 2;
  PQATTN_TRY(check_geometry(shape));
  PQATTN_TRY(check_view(samples, "samples"));
  if (samples.rows == 0) {
    return failure(status_code::too_few_samples, "samples.rows", "must be at least 1", 1, 0);
  }
  const std::size_t dim = samples.cols;
  carver memory(workspace, workspace_bytes);
  auto* covariance = memory.take<double>(dim * dim);
  auto* directions = memory.take<double>(dim * dim);
  auto* solver = memory.take<double>(symmetric_eigen_scratch(dim));
  auto* center = memory.take<double>(dim);
  auto* spectrum = memory.take<double>(dim);
  auto* row = memory.take<float>(dim);
  auto* order = memory.take<std::uint16_t>(dim);
  if (workspace == nullptr || !memory.fits()) {
    return failure(status_code::capacity, "workspace", "is too small for the value rotation", memory.used(),
                   workspace_bytes);
  }
  for (std::size_t i = 0; i < dim * dim; ++i) {
    covariance[i] = 0.0;
  }
  for (std::size_t c = 0; c < dim; ++c) {
    center[c] = 0.0;
  }
  for (std::size_t r = 0; r < samples.rows; ++r) {
    load_row(samples, r, row);
    for (std::size_t c = 0; c < dim; ++c) {
      if (!is_finite(row[c])) {
        return failure(status_code::not_finite, "samples", "has a NaN or infinity", r, c);
      }
      center[c] += static_cast<double>(row[c]) / static_cast<double>(samples.rows);
    }
  }
  for (std::size_t r = 0; r < samples.rows; ++r) {
    load_row(samples, r, row);
    for (std::size_t c = 0; c < dim; ++c) {
      spectrum[c] = static_cast<double>(row[c]) - center[c];
    }
    for (std::size_t a = 0; a < dim; ++a) {
      for (std::size_t b = a; b < dim; ++b) {
        covariance[a * dim + b] += spectrum[a] * spectrum[b];
      }
    }
  }
  for (std::size_t a = 0; a < dim; ++a) {
    for (std::size_t b = 0; b < a; ++b) {
      covariance[a * dim + b] = covariance[b * dim + a];
    }
    mean[a] = static_cast<float>(center[a]);
  }
  if (!symmetric_eigen(covariance, dim, spectrum, directions, solver)) {
    return failure(status_code::not_finite, "samples", "have no eigendecomposition: their squares overflow");
  }
  detail::balance_components(spectrum, shape, center, order);
  for (std::size_t p = 0; p < dim; ++p) {
    const double* direction = directions + std::size_t{order[p]} * dim;
    for (std::size_t c = 0; c < dim; ++c) {
      basis[p * dim + c] = static_cast<float>(direction[c]);
    }
  }
  return {};
}

/// Absorbs the rotation in one KV head's value projection, in place: W_v := basis W_v, b_v := basis (b_v - mean), so
/// that the model produces coded-domain values. `weights` (d_v, hidden) row-major, y = W x + b; `bias` (d_v) may be
/// null only when the mean is zero. `column` has d_v floats of scratch. A disabled rotation changes nothing. Errors
/// (nothing changed): null pointers, a compact rotation (fold the one it was made of), a mean but no bias.
inline status fold_into_value_projection(const value_rotation& rotation, float* weights, std::size_t hidden,
                                         float* bias, float* column) noexcept {
  PQATTN_TRY(detail::check_folding(rotation, weights, bias, column));
  for (std::size_t h = 0; h < hidden; ++h) {
    for (std::uint32_t p = 0; p < rotation.dim; ++p) {
      float sum = 0.0f;
      for (std::uint32_t c = 0; c < rotation.dim; ++c) {
        sum += rotation.basis[std::size_t{p} * rotation.dim + c] * weights[c * hidden + h];
      }
      column[p] = sum;
    }
    for (std::uint32_t p = 0; p < rotation.dim; ++p) {
      weights[p * hidden + h] = column[p];
    }
  }
  if (bias != nullptr && rotation.enabled()) {
    rotate_value(rotation, bias, column);
    for (std::uint32_t p = 0; p < rotation.dim; ++p) {
      bias[p] = column[p];
    }
  }
  return {};
}

/// The other half, for each query head that reads the KV head: W_o := W_o basis^T over the head's columns, and b_o +=
/// W_o mean (exact when the head's probabilities sum to 1: no sink logit). `weights` points at the head's first column
/// of the (hidden, stride) row-major output projection; `bias` (hidden), null only when the mean is zero; `scratch` has
/// d_v floats. Errors as above.
inline status fold_into_output_projection(const value_rotation& rotation, float* weights, std::size_t hidden,
                                          std::size_t stride, float* bias, float* scratch) noexcept {
  PQATTN_TRY(detail::check_folding(rotation, weights, bias, scratch));
  for (std::size_t h = 0; h < hidden; ++h) {
    float* row = weights + h * stride;
    for (std::uint32_t c = 0; bias != nullptr && c < rotation.dim; ++c) {
      bias[h] += row[c] * rotation.mean[c];
    }
    for (std::uint32_t p = 0; p < rotation.dim; ++p) {
      scratch[p] = 0.0f;
      for (std::uint32_t c = 0; c < rotation.dim; ++c) {
        scratch[p] += row[c] * rotation.basis[std::size_t{p} * rotation.dim + c];
      }
    }
    for (std::uint32_t p = 0; p < rotation.dim; ++p) {
      row[p] = scratch[p];
    }
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
