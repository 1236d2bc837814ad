// SPDX-License-Identifier: MIT
// Which rotation a dump of keys was made with, for studies of files that do not say.
//
// Keys before RoPE are drawn from one distribution at every position; turned by the wrong angles they drift. So each
// candidate is undone, a Gaussian is fitted to the earlier rows, and the later rows are scored by it: rotations keep
// volumes, so the mean negative log-likelihoods compare.
#pragma once

#include <Eigen/Cholesky>
#include <Eigen/Core>

#include <cmath>
#include <cstddef>
#include <limits>

#include "../core/status.hpp"
#include "../core/view.hpp"
#include "../quant/rope.hpp"

namespace pqattn {
inline namespace v0 {

/// Mean negative log-likelihood (nats a row, without the constant) of the last third of `keys` (tokens, dim) under a
/// Gaussian fitted to the first two thirds, after undoing `rotation` (row r at position first_position + r). The
/// covariance gets a ridge of 1e-3 of its mean variance. Infinite when it has no Cholesky factor or there are fewer
/// than three rows. Allocates through Eigen. O(tokens dim^2 + dim^3).
inline double drift_of_keys(const rows_view& keys, const rope& rotation, std::size_t first_position) {
  if (keys.rows < 3) {
    return std::numeric_limits<double>::infinity();
  }
  const auto dim = static_cast<Eigen::Index>(keys.cols);
  const auto rows = static_cast<Eigen::Index>(keys.rows);
  const Eigen::Index fitted = rows * 2 / 3;
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> turned(rows, dim);
  for (std::size_t r = 0; r < keys.rows; ++r) {
    float* row = turned.data() + r * keys.cols;
    load_row(keys, r, row);
    rotate_row(rotation, static_cast<std::int64_t>(first_position + r), -1.0f, row);
  }
  const Eigen::RowVectorXd mean = turned.topRows(fitted).cast<double>().colwise().mean();
  const Eigen::MatrixXd earlier = turned.topRows(fitted).cast<double>().rowwise() - mean;
  const Eigen::MatrixXd later = turned.bottomRows(rows - fitted).cast<double>().rowwise() - mean;
  Eigen::MatrixXd covariance = earlier.transpose() * earlier / static_cast<double>(fitted);
  covariance.diagonal().array() += 1.0e-3 * covariance.trace() / static_cast<double>(dim) + 1.0e-30;
  const Eigen::LLT<Eigen::MatrixXd> factor(covariance);
  if (factor.info() != Eigen::Success) {
    return std::numeric_limits<double>::infinity();
  }
  const Eigen::MatrixXd whitened = factor.matrixL().solve(later.transpose());
  const double log_determinant = 2.0 * Eigen::MatrixXd(factor.matrixL()).diagonal().array().log().sum();
  return 0.5 * (whitened.squaredNorm() / static_cast<double>(rows - fitted) + log_determinant);
}

}  // namespace v0
}  // namespace pqattn
