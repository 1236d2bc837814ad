// SPDX-License-Identifier: MIT
// TurboQuant-style coding (Zandieh et al. 2025, the variant for mean squared error) as a baseline: a random rotation
// makes the coordinates of a row nearly Gaussian, a fixed Lloyd-Max codebook rounds each, the norm is kept in f16.
#pragma once

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../core/memory.hpp"
#include "../core/status.hpp"
#include "block_formats.hpp"
#include "rotation.hpp"

namespace pqattn {
inline namespace v0 {
inline namespace PQATTN_ISA_UNIT {

/// Most levels of a scalar codebook here (4 bits).
inline constexpr std::size_t max_gaussian_levels = 16;

/// Lloyd-Max quantizer of the standard normal distribution: the `levels` centroids of least mean squared error,
/// ascending, and the thresholds between neighbours. Lloyd's alternation with exact cell means. 2 to 16 levels.
struct gaussian_codebook {
  std::size_t levels = 0;
  double centroids[max_gaussian_levels] = {};
  double thresholds[max_gaussian_levels] = {};  ///< the first levels - 1 are used

  explicit gaussian_codebook(std::size_t level_count) noexcept
      : levels(std::clamp<std::size_t>(level_count, 2, max_gaussian_levels)) {
    for (std::size_t i = 0; i < levels; ++i) {
      centroids[i] = 6.0 * (static_cast<double>(i) + 0.5) / static_cast<double>(levels) - 3.0;
    }
    constexpr int most_rounds = 20000;  // 16 levels settle after about 2000
    double moved = 1.0;
    for (int round = 0; round < most_rounds && moved > 1e-14; ++round) {
      place_thresholds();
      moved = move_centroids();
    }
    place_thresholds();
  }

  /// Nearest centroid to x; on a threshold the lower one.
  [[nodiscard]] double nearest(double x) const noexcept {
    std::size_t cell = 0;
    for (std::size_t i = 0; i + 1 < levels; ++i) {
      cell += x > thresholds[i] ? 1 : 0;
    }
    return centroids[cell];
  }

 private:
  void place_thresholds() noexcept {
    for (std::size_t i = 0; i + 1 < levels; ++i) {
      thresholds[i] = 0.5 * (centroids[i] + centroids[i + 1]);
    }
  }
  /// Moves each centroid to the mean of its cell; returns the largest step.
  double move_centroids() noexcept {
    const auto density = [](double x) { return std::exp(-0.5 * x * x) * 0.3989422804014327; };
    const auto above = [](double x) { return 0.5 * std::erfc(x * 0.7071067811865476); };
    double moved = 0.0;
    for (std::size_t i = 0; i < levels; ++i) {
      const bool first = i == 0;
      const bool last = i + 1 == levels;
      const double low = first ? 0.0 : thresholds[i - 1];
      const double high = last ? 0.0 : thresholds[i];
      const double mass = (first ? 1.0 : above(low)) - (last ? 0.0 : above(high));
      const double mean = ((first ? 0.0 : density(low)) - (last ? 0.0 : density(high))) / mass;
      moved = (std::max)(moved, std::fabs(mean - centroids[i]));
      centroids[i] = mean;
    }
    return moved;
  }
};

/// Replaces rows (count, dim) by what TurboQuant reads back at `bits` (1 to 4) bits per coordinate, with the rotation
/// of `seed`. `spent` gets the bits: bits * dim + 16 per row; rotation and codebook come from constants and cost
/// nothing. out_of_memory when `memory` refuses 8 * dim * (dim + 2) bytes. O(count * dim^2 + dim^3).
[[nodiscard]] inline status code_turbo(float* rows, std::size_t count, std::size_t dim, std::size_t bits,
                                       std::uint64_t seed, std::size_t& spent, const memory_resource& memory = {}) {
  if (bits < 1 || bits > 4) {
    return failure(status_code::invalid_argument, "bits", "must be 1 to 4", 4, bits);
  }
  buffer block;
  PQATTN_TRY(buffer::make(memory, sizeof(double) * dim * (dim + 2) + 1, block));
  auto* matrix = reinterpret_cast<double*>(block.data());
  fill_random_rotation(matrix, dim, seed);
  const auto size = static_cast<Eigen::Index>(dim);
  using square = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::Map<const square> rotation(matrix, size, size);
  Eigen::Map<Eigen::VectorXd> plain(matrix + dim * dim, size);
  Eigen::Map<Eigen::VectorXd> turned(matrix + dim * dim + dim, size);
  const gaussian_codebook codebook(std::size_t{1} << bits);
  const double spread = 1.0 / std::sqrt(static_cast<double>(dim));  // standard deviation of a unit row's coordinates
  for (std::size_t r = 0; r < count; ++r) {
    Eigen::Map<Eigen::VectorXf> row(rows + r * dim, size);
    plain = row.cast<double>();
    const double norm = plain.norm();
    if (norm == 0.0) {
      continue;
    }
    turned.noalias() = rotation * plain;
    turned = turned.unaryExpr([&](double x) { return codebook.nearest(x / (norm * spread)); });
    plain.noalias() = rotation.transpose() * turned;
    row = (static_cast<double>(detail::through_half(static_cast<float>(norm))) * spread * plain).cast<float>();
  }
  spent = count * (bits * dim + 16);
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
