// SPDX-License-Identifier: MIT
#include "core_speed.hpp"

#include <Eigen/Core>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace pqattn_study {

std::string core_speed_json() {
  using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const matrix rows = matrix::Random(512, 2048);
  const matrix weights = matrix::Random(2048, 2048);
  matrix result(512, 2048);
  double best = 0.0;
  for (int repeat = 0; repeat < 8; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    result.noalias() = rows * weights;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, 2.0 * 512 * 2048 * 2048 / seconds * 1e-9);
  }
  // The sum keeps the products from being left out.
  return nlohmann::ordered_json{{"f32_gflops", best}, {"finite", std::isfinite(result.sum())}}.dump() + "\n";
}

}  // namespace pqattn_study
