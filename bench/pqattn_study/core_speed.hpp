// SPDX-License-Identifier: MIT
// How fast one core multiplies matrices: what a prefill on it is made of.
#pragma once

#include <string>

namespace pqattn_study {

/// {"f32_gflops": the best of several products of (512, 2048) by (2048, 2048) in Eigen, one thread}.
[[nodiscard]] std::string core_speed_json();

}  // namespace pqattn_study
