// SPDX-License-Identifier: MIT
// Coding rows in a metric: the codes that minimise (x - x')^T M (x - x') instead of |x - x'|^2.
//
// A beam search in stage order first, each sub-vector in its own block of M; then sweeps that choose each group's code
// again with all other groups held fixed (iterated conditional modes over the full M). Decoding is the same as for any
// codes. With M null the metric is the identity; sweeps then help additive stages only. Runs in host memory; the codes
// go to any bank through store_codes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "../bank/host/isa.hpp"
#include "../config.hpp"
#include "../core/memory.hpp"
#include "../core/view.hpp"
#include "../quant/codebook.hpp"

namespace pqattn {
inline namespace v0 {

/// A codebook and a metric laid out for the search; filled by build_metric_encoder in memory of the caller's.
struct metric_encoder {
  codebook_view book;
  const float* metric = nullptr;      ///< (dim, dim) in coded order; null for the identity
  const float* planes = nullptr;      ///< per group (width, lanes): centroid channels, centroids side by side
  const float* half_norms = nullptr;  ///< (groups, lanes): c^T M c / 2, huge in the padding
  std::size_t lanes = 0;              ///< centroids rounded up to whole vectors
  /// Candidates kept from stage to stage when a row is coded, 1 to 8; 1 is greedy. Sub-vectors with one stage do not
  /// need any. The caller may change it.
  std::uint32_t beam = 4;
};

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Centroids of a group are padded to a multiple of this: four registers of any width up to 512 bits.
inline constexpr std::size_t metric_lanes = 64;
/// Rows coded together, so that a group's centroids are read from the nearest cache.
inline constexpr std::size_t metric_block_rows = 32;

[[nodiscard]] constexpr std::size_t metric_padded(std::uint32_t centroids) noexcept {
  return (centroids + metric_lanes - 1) / metric_lanes * metric_lanes;
}

[[nodiscard]] constexpr std::size_t metric_plane_offset(const geometry& shape, std::uint32_t group) noexcept {
  return (std::size_t{group / shape.subvectors} * shape.dim + shape.first_channel(group)) *
         metric_padded(shape.centroids);
}

/// Mutable pieces of a metric_encoder.
struct metric_encoder_memory {
  float* metric;
  float* planes;
  float* half_norms;

  metric_encoder_memory(carver& memory, const geometry& shape, bool with_metric) noexcept
      : metric(with_metric ? memory.take<float>(std::size_t{shape.dim} * shape.dim) : nullptr),
        planes(memory.take<float>(std::size_t{shape.stages} * shape.dim * metric_padded(shape.centroids))),
        half_norms(memory.take<float>(shape.groups() * metric_padded(shape.centroids))) {}
};

/// The metric with rows and columns in coded order.
inline void order_metric(const geometry& shape, const float* metric, float* ordered) noexcept {
  for (std::uint32_t a = 0; a < shape.dim; ++a) {
    for (std::uint32_t b = 0; b < shape.dim; ++b) {
      ordered[std::size_t{a} * shape.dim + b] = metric[std::size_t{shape.channel(a)} * shape.dim + shape.channel(b)];
    }
  }
}

/// out = (block of the metric at the group's run) * x; x itself for the identity.
inline void metric_block_times(const geometry& shape, const float* metric, std::uint32_t group, const float* x,
                               float* out) noexcept {
  const std::uint32_t width = shape.width(group);
  if (metric == nullptr) {
    std::memcpy(out, x, width * sizeof(float));
    return;
  }
  const std::size_t first = shape.first_channel(group);
  for (std::uint32_t i = 0; i < width; ++i) {
    out[i] = 0.0f;
  }
  for (std::uint32_t j = 0; j < width; ++j) {
    const float* row = metric + (first + j) * shape.dim + first;
    for (std::uint32_t i = 0; i < width; ++i) {
      out[i] += x[j] * row[i];
    }
  }
}

/// Lays out one group's centroids (centroids, width) for the search.
inline void prepare_metric_group(const geometry& shape, const float* metric, std::uint32_t group,
                                 const float* centroids, const metric_encoder_memory& memory) noexcept {
  const std::uint32_t width = shape.width(group);
  const std::size_t lanes = metric_padded(shape.centroids);
  float* planes = memory.planes + metric_plane_offset(shape, group);
  float* half_norms = memory.half_norms + group * lanes;
  float turned[max_dim];
  for (std::uint32_t k = 0; k < shape.centroids; ++k) {
    const float* centroid = centroids + std::size_t{k} * width;
    metric_block_times(shape, metric, group, centroid, turned);
    double norm = 0.0;
    for (std::uint32_t c = 0; c < width; ++c) {
      planes[c * lanes + k] = centroid[c];
      norm += static_cast<double>(turned[c]) * static_cast<double>(centroid[c]);
    }
    half_norms[k] = static_cast<float>(0.5 * norm);
  }
  for (std::size_t k = shape.centroids; k < lanes; ++k) {
    half_norms[k] = (std::numeric_limits<float>::max)();
    for (std::uint32_t c = 0; c < width; ++c) {
      planes[c * lanes + k] = 0.0f;
    }
  }
}

/// Centroid with the smallest half_norm - y . c, the lowest index of equals. Lanes run over centroids.
template <class Isa>
[[nodiscard]] std::uint16_t find_centroid(const float* planes, const float* half_norms, std::size_t lanes,
                                          std::uint32_t width, const float* y) noexcept {
  using batch = float_batch<Isa>;
  constexpr std::size_t wide = batch::size;
  constexpr std::size_t chains = metric_lanes / wide < 4 ? metric_lanes / wide : 4;
  batch best[chains];
  batch winner[chains];
  for (std::size_t u = 0; u < chains; ++u) {
    best[u] = batch((std::numeric_limits<float>::max)());
    winner[u] = batch(0.0f);
  }
  for (std::size_t k = 0; k < lanes; k += chains * wide) {
    batch cost[chains];
    for (std::size_t u = 0; u < chains; ++u) {
      cost[u] = batch::load_unaligned(half_norms + k + u * wide);
    }
    for (std::uint32_t c = 0; c < width; ++c) {
      const batch factor(y[c]);
      const float* plane = planes + c * lanes + k;
      for (std::size_t u = 0; u < chains; ++u) {
        cost[u] = xsimd::fnma(factor, batch::load_unaligned(plane + u * wide), cost[u]);
      }
    }
    const batch start(static_cast<float>(k));  // an index below 2^16 is exact in f32
    for (std::size_t u = 0; u < chains; ++u) {
      const auto closer = cost[u] < best[u];
      best[u] = xsimd::select(closer, cost[u], best[u]);
      winner[u] = xsimd::select(closer, start, winner[u]);
    }
  }
  alignas(64) float costs[chains * wide];
  alignas(64) float starts[chains * wide];
  for (std::size_t u = 0; u < chains; ++u) {
    best[u].store_aligned(costs + u * wide);
    winner[u].store_aligned(starts + u * wide);
  }
  float lowest = (std::numeric_limits<float>::max)();
  std::size_t code = 0;
  for (std::size_t i = 0; i < chains * wide; ++i) {
    const std::size_t index = static_cast<std::size_t>(starts[i]) + i;
    if (costs[i] < lowest || (costs[i] == lowest && index < code)) {
      lowest = costs[i];
      code = index;
    }
  }
  return static_cast<std::uint16_t>(code);
}

/// residual M for one row; a copy for the identity.
inline void apply_metric(const geometry& shape, const float* metric, const float* residual, float* out) noexcept {
  if (metric == nullptr) {
    std::memcpy(out, residual, shape.dim * sizeof(float));
    return;
  }
  std::memset(out, 0, shape.dim * sizeof(float));
  for (std::uint32_t j = 0; j < shape.dim; ++j) {
    const float* row = metric + std::size_t{j} * shape.dim;
    for (std::uint32_t i = 0; i < shape.dim; ++i) {
      out[i] += residual[j] * row[i];
    }
  }
}

/// A run of the residual changed by `old_centroid` - `new_centroid`: brings residual * M up to date.
inline void shift_metric_residual(const geometry& shape, const float* metric, std::uint32_t group,
                                  const float* old_centroid, const float* new_centroid, float* applied) noexcept {
  const std::size_t first = shape.first_channel(group);
  for (std::uint32_t c = 0; c < shape.width(group); ++c) {
    const float change = old_centroid[c] - new_centroid[c];
    if (metric == nullptr) {
      applied[first + c] += change;
      continue;
    }
    const float* row = metric + (first + c) * shape.dim;
    for (std::uint32_t i = 0; i < shape.dim; ++i) {
      applied[i] += change * row[i];
    }
  }
}

/// What the group's centroid should satisfy with all other groups fixed: (M (residual + centroid))_run.
inline void metric_target(const geometry& shape, const float* metric, std::uint32_t group, const float* centroid,
                          const float* applied, float* y) noexcept {
  metric_block_times(shape, metric, group, centroid, y);
  const float* run = applied + shape.first_channel(group);
  for (std::uint32_t c = 0; c < shape.width(group); ++c) {
    y[c] += run[c];
  }
}

/// Most candidates a beam holds.
inline constexpr std::uint32_t max_beam = 8;

/// A candidate of the beam search of one sub-vector.
struct beam_state {
  float cost;
  std::uint16_t codes[max_stages];
};

/// The codes of all stages of one sub-vector: from stage to stage the `encoder.beam` cheapest prefixes are kept.
/// `residual` is the sub-vector's run; `codes` points at the row's code of the first stage, further stages follow at
/// distance `subvectors`. `costs` has encoder.lanes floats, `targets` 2 * max_beam * width: M (run - prefix).
template <class Isa>
void search_stages(const metric_encoder& encoder, std::uint32_t run, const float* residual, float* costs,
                   float* targets, std::uint16_t* codes) noexcept {
  const geometry& shape = encoder.book.shape;
  const std::uint32_t width = shape.width(run);
  using batch = float_batch<Isa>;
  beam_state states[2][max_beam] = {};
  float* current = targets;
  float* next = targets + std::size_t{max_beam} * width;
  std::uint32_t held = 1;
  metric_block_times(shape, encoder.metric, run, residual, current);
  beam_state* from = states[0];
  beam_state* to = states[1];
  for (std::uint32_t stage = 0; stage < shape.stages; ++stage) {
    const std::uint32_t group = stage * shape.subvectors + run;
    const float* planes = encoder.planes + metric_plane_offset(shape, group);
    const float* half_norms = encoder.half_norms + group * encoder.lanes;
    const std::uint32_t room = stage + 1 == shape.stages ? 1 : encoder.beam;
    std::uint32_t kept = 0;
    std::uint32_t parents[max_beam] = {};
    for (std::uint32_t state = 0; state < held; ++state) {
      const float* y = current + std::size_t{state} * width;
      for (std::size_t k = 0; k < encoder.lanes; k += batch::size) {
        batch cost = batch::load_unaligned(half_norms + k);
        for (std::uint32_t c = 0; c < width; ++c) {
          cost = xsimd::fnma(batch(y[c]), batch::load_unaligned(planes + c * encoder.lanes + k), cost);
        }
        cost.store_unaligned(costs + k);
      }
      const auto consider = [&](std::uint32_t k) {
        const float cost = from[state].cost + costs[k];
        if (kept == room && !(cost < to[kept - 1].cost)) {
          return;
        }
        // Insert behind equals: the lowest state and code come first.
        std::uint32_t place = kept < room ? kept++ : room - 1;
        for (; place > 0 && cost < to[place - 1].cost; --place) {
          to[place] = to[place - 1];
          parents[place] = parents[place - 1];
        }
        to[place] = from[state];
        to[place].cost = cost;
        to[place].codes[stage] = static_cast<std::uint16_t>(k);
        parents[place] = state;
      };
      // Few centroids are among the best: whole vectors of others are passed over.
      constexpr auto wide = static_cast<std::uint32_t>(batch::size);
      const batch before(from[state].cost);
      for (std::uint32_t k = 0; k < shape.centroids; k += wide) {
        if (kept == room && !xsimd::any(before + batch::load_unaligned(costs + k) < batch(to[kept - 1].cost))) {
          continue;
        }
        const std::uint32_t end = k + wide < shape.centroids ? k + wide : shape.centroids;
        for (std::uint32_t i = k; i < end; ++i) {
          consider(i);
        }
      }
    }
    if (stage + 1 < shape.stages) {
      const float* centroids = encoder.book.group(group);
      float turned[max_dim];
      for (std::uint32_t i = 0; i < kept; ++i) {
        metric_block_times(shape, encoder.metric, group, centroids + std::size_t{to[i].codes[stage]} * width, turned);
        for (std::uint32_t c = 0; c < width; ++c) {
          next[std::size_t{i} * width + c] = current[std::size_t{parents[i]} * width + c] - turned[c];
        }
      }
    }
    held = kept;
    std::swap(from, to);
    std::swap(current, next);
  }
  for (std::uint32_t stage = 0; stage < shape.stages; ++stage) {
    codes[std::size_t{stage} * shape.subvectors] = from[0].codes[stage];
  }
}

/// Scratch of encode_metric_block.
struct metric_block_scratch {
  float* residuals = nullptr;  ///< (metric_block_rows, dim): the rows in coded order on entry
  float* applied = nullptr;    ///< the same size: residual * metric on exit, when there are sweeps
  float* costs = nullptr;      ///< lanes
  float* targets = nullptr;    ///< 2 * max_beam * max_width

  void carve(carver& memory, const geometry& shape) noexcept {
    residuals = memory.take<float>(metric_block_rows * shape.dim);
    applied = memory.take<float>(metric_block_rows * shape.dim);
    costs = memory.take<float>(metric_padded(shape.centroids));
    targets = memory.take<float>(std::size_t{2} * max_beam * shape.max_width());
  }
};

/// Up to metric_block_rows rows: codes of each sub-vector alone, then sweeps.
template <class Isa>
void encode_metric_block(const metric_encoder& encoder, std::size_t rows, std::uint32_t sweeps,
                         const metric_block_scratch& scratch, std::uint16_t* codes) noexcept {
  float* residuals = scratch.residuals;
  float* applied = scratch.applied;
  const geometry& shape = encoder.book.shape;
  const std::size_t dim = shape.dim;
  const std::size_t groups = shape.groups();
  float y[max_dim];
  const auto find = [&](std::uint32_t group) {
    return find_centroid<Isa>(encoder.planes + metric_plane_offset(shape, group),
                              encoder.half_norms + group * encoder.lanes, encoder.lanes, shape.width(group), y);
  };
  for (std::uint32_t subvector = 0; subvector < shape.subvectors; ++subvector) {
    for (std::size_t r = 0; r < rows; ++r) {
      float* run = residuals + r * dim + shape.first_channel(subvector);
      std::uint16_t* row_codes = codes + r * groups;
      if (shape.stages == 1) {
        metric_block_times(shape, encoder.metric, subvector, run, y);
        row_codes[subvector] = find(subvector);
      } else {
        search_stages<Isa>(encoder, subvector, run, scratch.costs, scratch.targets, row_codes + subvector);
      }
      for (std::uint32_t group = subvector; group < groups; group += shape.subvectors) {
        const std::uint32_t width = shape.width(group);
        const float* centroid = encoder.book.group(group) + std::size_t{row_codes[group]} * width;
        for (std::uint32_t c = 0; c < width; ++c) {
          run[c] -= centroid[c];
        }
      }
    }
  }
  if (sweeps == 0) {
    return;
  }
  for (std::size_t r = 0; r < rows; ++r) {
    apply_metric(shape, encoder.metric, residuals + r * dim, applied + r * dim);
  }
  for (std::uint32_t sweep = 0; sweep < sweeps; ++sweep) {
    for (std::uint32_t group = 0; group < groups; ++group) {
      const std::uint32_t width = shape.width(group);
      const float* centroids = encoder.book.group(group);
      for (std::size_t r = 0; r < rows; ++r) {
        std::uint16_t& code = codes[r * groups + group];
        const float* old_centroid = centroids + std::size_t{code} * width;
        metric_target(shape, encoder.metric, group, old_centroid, applied + r * dim, y);
        const std::uint16_t found = find(group);
        if (found != code) {
          shift_metric_residual(shape, encoder.metric, group, old_centroid, centroids + std::size_t{found} * width,
                                applied + r * dim);
          code = found;
        }
      }
    }
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Bytes of memory build_metric_encoder needs.
[[nodiscard]] inline std::size_t metric_encoder_bytes(const geometry& shape, bool with_metric) noexcept {
  carver memory;
  static_cast<void>(detail::metric_encoder_memory(memory, shape, with_metric));
  return memory.required();
}

/// Lays out `book` and `metric` in `memory` (metric_encoder_bytes), which must outlive the result, as must the book.
/// `metric` (dim, dim) symmetric positive definite in the channel order of the model (query_metric.hpp makes it for
/// keys), or null for the identity. Give it the centroids as the bank holds them (round_codebook), so that codes are
/// chosen for what will be decoded. Errors: invalid codebook, memory too small. O(codebook values * width).
inline status build_metric_encoder(const codebook_view& book, const float* metric, void* memory,
                                   std::size_t memory_bytes, metric_encoder& result) noexcept {
  PQATTN_TRY(check_codebook(book));
  carver pieces(memory, memory_bytes);
  const detail::metric_encoder_memory parts(pieces, book.shape, metric != nullptr);
  if (memory == nullptr || !pieces.fits()) {
    return failure(status_code::capacity, "memory", "is too small for the encoder", pieces.used(), memory_bytes);
  }
  if (metric != nullptr) {
    detail::order_metric(book.shape, metric, parts.metric);
  }
  for (std::uint32_t group = 0; group < book.shape.groups(); ++group) {
    detail::prepare_metric_group(book.shape, parts.metric, group, book.group(group), parts);
  }
  result = {book, parts.metric, parts.planes, parts.half_norms, detail::metric_padded(book.shape.centroids)};
  return {};
}

/// Bytes of workspace encode_with_metric needs.
[[nodiscard]] inline std::size_t metric_encode_workspace_bytes(const geometry& shape) noexcept {
  carver memory;
  memory.take<float>(shape.dim);
  detail::metric_block_scratch{}.carve(memory, shape);
  return memory.required();
}

/// Codes of `rows` (tokens, dim), any dtype and strides: `codes` (tokens, groups). Each row is coded alone; the same
/// row gets the same codes in any call. Two sweeps are usually enough.
/// Errors: shape mismatch, NaN or infinity with its row and column (codes of earlier rows may have been written),
/// workspace too small, a beam outside 1 to 8. Cost per row: (beam + sweeps) * stages * dim * (K + dim) multiply-adds;
/// no allocation.
template <class Isa = isa::native>
status encode_with_metric(const metric_encoder& encoder, const rows_view& rows, std::uint32_t sweeps, void* workspace,
                          std::size_t workspace_bytes, std::uint16_t* codes) noexcept {
  const geometry& shape = encoder.book.shape;
  PQATTN_TRY(check_view(rows, "rows"));
  if (rows.cols != shape.dim) {
    return failure(status_code::shape_mismatch, "rows.cols", "must equal geometry.dim", shape.dim, rows.cols);
  }
  if (encoder.beam < 1 || encoder.beam > detail::max_beam) {
    return failure(status_code::invalid_argument, "encoder.beam", "must be 1 to 8", detail::max_beam, encoder.beam);
  }
  carver memory(workspace, workspace_bytes);
  auto* row = memory.take<float>(shape.dim);
  detail::metric_block_scratch scratch;
  scratch.carve(memory, shape);
  if (workspace == nullptr || !memory.fits()) {
    return failure(status_code::capacity, "workspace", "is too small for encoding", memory.used(), workspace_bytes);
  }
  for (std::size_t first = 0; first < rows.rows; first += detail::metric_block_rows) {
    const std::size_t left = rows.rows - first;
    const std::size_t count = left < detail::metric_block_rows ? left : detail::metric_block_rows;
    for (std::size_t r = 0; r < count; ++r) {
      load_row(rows, first + r, row);
      for (std::uint32_t p = 0; p < shape.dim; ++p) {
        const float value = row[shape.channel(p)];
        if (!is_finite(value)) {
          return failure(status_code::not_finite, "rows", "has a NaN or infinity", first + r, shape.channel(p));
        }
        scratch.residuals[r * shape.dim + p] = value;
      }
    }
    detail::encode_metric_block<Isa>(encoder, count, sweeps, scratch, codes + first * shape.groups());
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
