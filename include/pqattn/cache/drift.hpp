// SPDX-License-Identifier: MIT
// How well codebooks serve what came after their training: the error of what is coded now over the training rows'.
#pragma once

#include <cstddef>

#include "../config.hpp"

namespace pqattn {
inline namespace v0 {

/// How well the codebooks serve what came after their training.
struct drift_report {
  float key_ratio = 1.0f;  ///< running error of keys over their training error
  float value_ratio = 1.0f;
  std::size_t rows = 0;  ///< coded since the training
  [[nodiscard]] PQATTN_UNIT_MEMBER float largest() const noexcept {
    return key_ratio > value_ratio ? key_ratio : value_ratio;
  }
};

/// Running mean of the errors (side_coder::measure) of one head's newly coded rows: of the first ones the plain mean,
/// then one that forgets.
class running_errors {
 public:
  /// Rows over which the mean forgets.
  static constexpr std::size_t memory = 256;

  PQATTN_UNIT_MEMBER void add(float key_error, float value_error) noexcept {
    rows_ += 1;
    const float share = 1.0f / static_cast<float>(rows_ < memory ? rows_ : memory);
    key_error_ += share * (key_error - key_error_);
    value_error_ += share * (value_error - value_error_);
  }
  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  /// The means over those of the training rows; 1 where there is nothing to compare.
  [[nodiscard]] PQATTN_UNIT_MEMBER drift_report over(float key_training, float value_training) const noexcept {
    drift_report report;
    report.rows = rows_;
    if (rows_ != 0) {
      report.key_ratio = key_training > 0.0f ? key_error_ / key_training : 1.0f;
      report.value_ratio = value_training > 0.0f ? value_error_ / value_training : 1.0f;
    }
    return report;
  }

 private:
  std::size_t rows_ = 0;
  float key_error_ = 0.0f;
  float value_error_ = 0.0f;
};

}  // namespace v0
}  // namespace pqattn
