// SPDX-License-Identifier: MIT
// The Eigen types the engine computes with. Weights are row-major as in the files: [out, in].
#pragma once

#include <Eigen/Core>

#include <cstddef>
#include <span>

namespace tiny_lm {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using vector = Eigen::VectorXf;

/// Sizes are unsigned in our interfaces and signed in Eigen's.
[[nodiscard]] constexpr Eigen::Index as_index(std::size_t size) noexcept {
  return static_cast<Eigen::Index>(size);
}

[[nodiscard]] inline Eigen::Map<const vector> as_vector(std::span<const float> values) {
  return {values.data(), as_index(values.size())};
}
[[nodiscard]] inline Eigen::Map<vector> as_vector(std::span<float> values) {
  return {values.data(), as_index(values.size())};
}

[[nodiscard]] inline std::span<float> as_span(vector& values) {
  return {values.data(), static_cast<std::size_t>(values.size())};
}
[[nodiscard]] inline std::span<const float> as_span(const vector& values) {
  return {values.data(), static_cast<std::size_t>(values.size())};
}

}  // namespace tiny_lm
