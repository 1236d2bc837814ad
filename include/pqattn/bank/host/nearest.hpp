// SPDX-License-Identifier: MIT
// Nearest-centroid search, fused with its argmin: no (points x centroids) matrix is ever formed.
// Both kernels sum (x - c)^2 over channels in the same order with fused multiply-adds, so that they agree
// bit for bit, and both keep the first of equal distances.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "code_block.hpp"
#include "isa.hpp"
#include "resident.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Points of one sub-vector, channel-major: channel c of point i at values[c * stride + i]; stride is a multiple of
/// 16 and the padding holds finite numbers.
struct point_block {
  const float* values;
  std::size_t stride;
};

[[nodiscard]] constexpr std::size_t point_stride(std::size_t count) noexcept {
  return (count + 15) / 16 * 16;
}

/// Nearest of `centroids` row-major (centroids, width) centroids for every point: lanes run over points.
template <class Isa>
void assign_points(const point_block& points, std::size_t count, std::uint32_t width, const float* centroids,
                   std::uint32_t centroid_count, std::uint16_t* codes, float* distances) noexcept {
  using batch = float_batch<Isa>;
  constexpr std::size_t lanes = batch::size;
  constexpr std::size_t unroll = 4;  // independent chains hide the latency of the multiply-adds
  constexpr std::size_t tile = lanes * unroll;
  alignas(64) float best_distance[tile];
  alignas(64) float best_index[tile];
  for (std::size_t first = 0; first < count; first += tile) {
    const std::size_t chains = first + tile <= points.stride ? unroll : (points.stride - first + lanes - 1) / lanes;
    batch nearest[unroll];
    batch winner[unroll];  // an index below 2^16 is exact in f32 and blends in the same register class
    for (std::size_t u = 0; u < unroll; ++u) {
      nearest[u] = batch((std::numeric_limits<float>::max)());
      winner[u] = batch(0.0f);
    }
    const auto scan = [&](auto chain_count) {
      for (std::uint32_t k = 0; k < centroid_count; ++k) {
        const float* centroid = centroids + static_cast<std::size_t>(k) * width;
        batch sum[unroll];
        for (std::size_t u = 0; u < chain_count; ++u) {
          sum[u] = batch(0.0f);
        }
        for (std::uint32_t c = 0; c < width; ++c) {
          const batch center(centroid[c]);
          const float* channel = points.values + c * points.stride + first;
          for (std::size_t u = 0; u < chain_count; ++u) {
            const batch difference = batch::load_unaligned(channel + u * lanes) - center;
            sum[u] = xsimd::fma(difference, difference, sum[u]);
          }
        }
        const batch index(static_cast<float>(k));
        for (std::size_t u = 0; u < chain_count; ++u) {
          const auto closer = sum[u] < nearest[u];
          nearest[u] = xsimd::select(closer, sum[u], nearest[u]);
          winner[u] = xsimd::select(closer, index, winner[u]);
        }
      }
    };
    if (chains == unroll) {
      scan(std::integral_constant<std::size_t, unroll>{});
    } else {
      scan(chains);
    }
    for (std::size_t u = 0; u < unroll; ++u) {
      nearest[u].store_aligned(best_distance + u * lanes);
      winner[u].store_aligned(best_index + u * lanes);
    }
    for (std::size_t i = 0; i < tile && first + i < count; ++i) {
      codes[first + i] = static_cast<std::uint16_t>(best_index[i]);
      distances[first + i] = best_distance[i];
    }
  }
}

/// Nearest centroid of one sub-vector of one row: lanes run over centroids.
template <class Isa>
[[nodiscard]] std::uint32_t nearest_centroid(const host_codebook& book, std::uint32_t group, const float* x) noexcept {
  using batch = float_batch<Isa>;
  constexpr std::size_t lanes = batch::size;
  constexpr std::size_t chunk = 64;
  const std::uint32_t width = book.book.shape.width(group);
  alignas(64) float plane[chunk];
  alignas(64) float sums[chunk];
  float best = (std::numeric_limits<float>::max)();
  std::uint32_t winner = 0;
  for (std::size_t k0 = 0; k0 < book.book.shape.centroids; k0 += chunk) {
    for (std::size_t k = 0; k < chunk; k += lanes) {
      batch(0.0f).store_aligned(sums + k);
    }
    for (std::uint32_t c = 0; c < width; ++c) {
      book.expand<Isa>(book.plane_of(group, c), k0, chunk, plane);
      const batch value(x[c]);
      for (std::size_t k = 0; k < chunk; k += lanes) {
        const batch difference = value - batch::load_aligned(plane + k);
        xsimd::fma(difference, difference, batch::load_aligned(sums + k)).store_aligned(sums + k);
      }
    }
    batch lowest = batch::load_aligned(sums);
    for (std::size_t k = lanes; k < chunk; k += lanes) {
      lowest = (xsimd::min)(lowest, batch::load_aligned(sums + k));
    }
    const float chunk_best = xsimd::reduce_min(lowest);
    if (chunk_best < best) {
      best = chunk_best;
      std::size_t k = 0;
      while (sums[k] != chunk_best && k + 1 < chunk) {
        ++k;
      }
      winner = static_cast<std::uint32_t>(k0 + k);
    }
  }
  // Padding repeats centroid 0, which comes first, so a padded entry can only tie with it and never wins.
  return winner;
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
