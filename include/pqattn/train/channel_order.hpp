// SPDX-License-Identifier: MIT
// Which channels share a sub-vector: orders for geometry::channel_order.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../core/memory.hpp"
#include "../core/view.hpp"
#include "../quant/geometry.hpp"
#include "../quant/rope.hpp"

namespace pqattn {
inline namespace v0 {

inline namespace PQATTN_ISA_UNIT {

/// Order that puts the two channels of each rotation pair side by side, pairs in their own order, channels that are
/// not rotated last: (0, d/2, 1, d/2 + 1, ...) for half-split pairing, the identity for interleaved pairing and
/// without RoPE. Keys coded before RoPE have much in common within a pair. `order` has dim entries.
inline void fill_pair_order(const rope& rotation, std::uint32_t dim, std::uint16_t* order) noexcept {
  std::uint32_t position = 0;
  for (std::uint32_t pair = 0; pair < rotation.pairs; ++pair) {
    order[position++] = static_cast<std::uint16_t>(rotation.first(pair));
    order[position++] = static_cast<std::uint16_t>(rotation.second(pair));
  }
  for (; position < dim; ++position) {
    order[position] = static_cast<std::uint16_t>(position);
  }
}

/// Bytes of workspace fill_cosine_order needs.
[[nodiscard]] inline std::size_t cosine_order_workspace_bytes(std::uint32_t dim) noexcept {
  carver memory;
  memory.take<double>(std::size_t{dim} * dim);
  memory.take<float>(dim);
  return memory.required();
}

/// The paper's channel sorting: take the first channel that has no group yet, fill its group with the channels whose
/// columns are most cosine-similar to it, repeat. Groups have the sizes of geometry's runs (AQPIM, channel sorting).
///
/// `samples` (tokens, dim) in the domain that is coded. A permutation of keys after RoPE cannot be absorbed in the
/// projections; one of values always can. A channel that is zero in every row is similar to nothing.
/// Errors: subvectors outside 1..dim, workspace too small. O((tokens + subvectors) dim^2).
inline status fill_cosine_order(const rows_view& samples, std::uint32_t subvectors, void* workspace,
                                std::size_t workspace_bytes, std::uint16_t* order) noexcept {
  geometry shape;
  shape.dim = static_cast<std::uint32_t>(samples.cols);
  shape.subvectors = subvectors;
  shape.centroids = 2;
  PQATTN_TRY(check_geometry(shape));
  PQATTN_TRY(check_view(samples, "samples"));
  const std::size_t dim = samples.cols;
  carver memory(workspace, workspace_bytes);
  auto* gram = memory.take<double>(dim * dim);
  auto* row = memory.take<float>(dim);
  if (workspace == nullptr || !memory.fits()) {
    return failure(status_code::capacity, "workspace", "is too small for channel sorting", memory.used(),
                   workspace_bytes);
  }
  for (std::size_t i = 0; i < dim * dim; ++i) {
    gram[i] = 0.0;
  }
  for (std::size_t r = 0; r < samples.rows; ++r) {
    load_row(samples, r, row);
    for (std::size_t a = 0; a < dim; ++a) {
      for (std::size_t b = 0; b < dim; ++b) {
        gram[a * dim + b] += static_cast<double>(row[a]) * static_cast<double>(row[b]);
      }
    }
  }
  const auto similarity = [&](std::size_t a, std::size_t b) noexcept {
    const double norms = std::sqrt(gram[a * dim + a] * gram[b * dim + b]);
    return norms > 0.0 ? gram[a * dim + b] / norms : -2.0;
  };
  bool taken[max_dim] = {};
  std::uint32_t position = 0;
  for (std::uint32_t run = 0; run < subvectors; ++run) {
    std::size_t reference = 0;
    while (taken[reference]) {
      ++reference;
    }
    taken[reference] = true;
    order[position++] = static_cast<std::uint16_t>(reference);
    for (std::uint32_t filled = 1; filled < shape.width(run); ++filled) {
      std::size_t best = dim;
      for (std::size_t c = 0; c < dim; ++c) {
        if (!taken[c] && (best == dim || similarity(reference, c) > similarity(reference, best))) {
          best = c;
        }
      }
      taken[best] = true;
      order[position++] = static_cast<std::uint16_t>(best);
    }
  }
  return {};
}

/// Absorbs an order of value channels in one KV head's value projection, in place, so that the model produces values in
/// coded order: row p of W_v becomes row order[p]. `weights` (d_v, hidden) row-major, y = W x + b; `bias` (d_v) or
/// null; `column` has d_v floats of scratch.
inline void fold_order_into_value_projection(const std::uint16_t* order, std::uint32_t dim, float* weights,
                                             std::size_t hidden, float* bias, float* column) noexcept {
  const auto reorder = [&](float* numbers, std::size_t stride) noexcept {
    for (std::uint32_t p = 0; p < dim; ++p) {
      column[p] = numbers[order[p] * stride];
    }
    for (std::uint32_t p = 0; p < dim; ++p) {
      numbers[p * stride] = column[p];
    }
  };
  for (std::size_t h = 0; h < hidden; ++h) {
    reorder(weights + h, hidden);
  }
  if (bias != nullptr) {
    reorder(bias, 1);
  }
}

/// The other half, for each query head that reads the KV head: column p of the head's part of W_o becomes column
/// order[p]. `weights` points at the head's first column of the (hidden, stride) row-major output projection; `scratch`
/// has d_v floats.
inline void fold_order_into_output_projection(const std::uint16_t* order, std::uint32_t dim, float* weights,
                                              std::size_t hidden, std::size_t stride, float* scratch) noexcept {
  for (std::size_t h = 0; h < hidden; ++h) {
    float* row = weights + h * stride;
    for (std::uint32_t p = 0; p < dim; ++p) {
      scratch[p] = row[order[p]];
    }
    for (std::uint32_t p = 0; p < dim; ++p) {
      row[p] = scratch[p];
    }
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
