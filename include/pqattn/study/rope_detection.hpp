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
#include <vector>

#include "../config.hpp"
#include "../core/status.hpp"
#include "../core/view.hpp"
#include "../quant/rope.hpp"

namespace pqattn {
inline namespace v0 {
inline namespace PQATTN_ISA_UNIT {

/// Negative log-likelihood (nats, without the constant) of each row of the last third of `keys` (tokens, dim) under a
/// Gaussian fitted to the first two thirds, after undoing `rotation` (row r at position first_position + r), added to
/// `surprise`. The covariance is shrunk towards its diagonal, the more the fewer rows there are, and gets a ridge of
/// 1e-3 of its mean variance. False, adding nothing, when there are fewer than three rows or it has no Cholesky factor.
/// Allocates through Eigen. O(tokens dim^2 + dim^3).
inline bool add_surprise_of_keys(const rows_view& keys, const rope& rotation, std::size_t first_position,
                                 std::vector<double>& surprise) {
  if (keys.rows < 3) {
    return false;
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
  const Eigen::VectorXd variances = covariance.diagonal();
  const double trusted = static_cast<double>(fitted) / static_cast<double>(fitted + dim);
  covariance *= trusted;
  covariance.diagonal() = variances;
  covariance.diagonal().array() += 1.0e-3 * variances.mean() + 1.0e-30;
  const Eigen::LLT<Eigen::MatrixXd> factor(covariance);
  if (factor.info() != Eigen::Success) {
    return false;
  }
  const Eigen::MatrixXd whitened = factor.matrixL().solve(later.transpose());
  const double log_determinant = 2.0 * Eigen::MatrixXd(factor.matrixL()).diagonal().array().log().sum();
  for (Eigen::Index r = 0; r < rows - fitted; ++r) {
    surprise.push_back(0.5 * (whitened.col(r).squaredNorm() + log_determinant));
  }
  return true;
}

/// Mean of add_surprise_of_keys; infinite without rows or factor.
inline double drift_of_keys(const rows_view& keys, const rope& rotation, std::size_t first_position) {
  std::vector<double> surprise;
  if (!add_surprise_of_keys(keys, rotation, first_position, surprise)) {
    return std::numeric_limits<double>::infinity();
  }
  double sum = 0.0;
  for (const double row : surprise) {
    sum += row;
  }
  return sum / static_cast<double>(surprise.size());
}

/// Mean of `plain` - `turned`, surprises of the same rows of `dim` channels without and with undoing a rotation, when
/// it is clearly above chance; 0 otherwise. Clearly: 0.02 nats a channel and four standard errors of the paired
/// differences.
inline double clear_gain(const std::vector<double>& plain, const std::vector<double>& turned, std::size_t dim) {
  if (plain.size() != turned.size() || plain.size() < 2) {
    return 0.0;
  }
  const auto count = static_cast<double>(plain.size());
  double sum = 0.0;
  double squares = 0.0;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const double gain = plain[i] - turned[i];
    sum += gain;
    squares += gain * gain;
  }
  const double mean = sum / count;
  const double variance = (squares - sum * mean) / (count - 1.0);
  const double chance = 4.0 * std::sqrt(variance > 0.0 ? variance / count : 0.0);
  return mean > 0.02 * static_cast<double>(dim) && mean > chance ? mean : 0.0;
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
