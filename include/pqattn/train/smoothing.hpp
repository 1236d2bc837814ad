// SPDX-License-Identifier: MIT
// Few training rows, many centroids: a codebook learns its rows by heart. Made-up rows between and around the real
// ones, with a small weight, keep its centroids from that.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../core/random.hpp"
#include "../core/status.hpp"
#include "../core/view.hpp"

namespace pqattn {
inline namespace v0 {

/// How rows are made up.
struct smoothing_params {
  /// Up to this many rows in all; from there on real rows are enough.
  std::size_t rows = 1536;
  /// A made-up row is mean + sqrt(1 - spread^2) (x - mean) + spread (y - z) / sqrt(2) of three real ones: the mean and
  /// the covariance stay what they are. 0 repeats rows, 1 forgets everything but the covariance.
  float spread = 0.5f;
  float weight = 0.2f;  ///< of a made-up row, a real one counting 1
  std::uint64_t seed = 1;
};

inline namespace PQATTN_ISA_UNIT {

/// Rows smooth_samples writes for `count` samples.
[[nodiscard]] constexpr std::size_t smoothed_rows(std::size_t count, const smoothing_params& params) noexcept {
  return count < params.rows ? params.rows : count;
}

}  // namespace PQATTN_ISA_UNIT

inline namespace PQATTN_ISA_UNIT {

/// Copies `samples` (tokens, dim) and fills up with made-up rows: `rows` (smoothed_rows, dim) dense, `row_weights`
/// (smoothed_rows) ready for training. `weights` are importance weights of the samples, or null for all 1; a made-up
/// row takes the weight of the row it is made from. Errors: no samples, a spread outside 0 to 1.
inline status smooth_samples(const rows_view& samples, const float* weights, const smoothing_params& params,
                             float* rows, float* row_weights) noexcept {
  PQATTN_TRY(check_view(samples, "samples"));
  if (samples.rows == 0) {
    return failure(status_code::too_few_samples, "samples.rows", "must be at least 1", 1, 0);
  }
  if (!(params.spread >= 0.0f && params.spread <= 1.0f)) {
    return failure(status_code::invalid_argument, "params.spread", "must be 0 to 1", 1, params.spread);
  }
  const std::size_t dim = samples.cols;
  const std::size_t count = samples.rows;
  for (std::size_t i = 0; i < count; ++i) {
    load_row(samples, i, rows + i * dim);
    row_weights[i] = weights == nullptr ? 1.0f : weights[i];
  }
  const std::size_t total = smoothed_rows(count, params);
  const float kept = std::sqrt(1.0f - params.spread * params.spread);
  const float noise = params.spread * 0.70710678f;
  random_source random(params.seed);
  for (std::size_t i = count; i < total; ++i) {
    const std::size_t x = i % count;
    const std::size_t y = random.below(count);
    const std::size_t z = random.below(count);
    row_weights[i] = params.weight * row_weights[x];
    for (std::size_t c = 0; c < dim; ++c) {
      rows[i * dim + c] = kept * rows[x * dim + c] + noise * (rows[y * dim + c] - rows[z * dim + c]);
    }
  }
  // What shrinking took off the mean.
  for (std::size_t c = 0; c < dim && total > count; ++c) {
    double mean = 0.0;
    for (std::size_t i = 0; i < count; ++i) {
      mean += static_cast<double>(rows[i * dim + c]) / static_cast<double>(count);
    }
    const auto shift = static_cast<float>((1.0 - static_cast<double>(kept)) * mean);
    for (std::size_t i = count; i < total; ++i) {
      rows[i * dim + c] += shift;
    }
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
