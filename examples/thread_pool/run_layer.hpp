// SPDX-License-Identifier: MIT
// One layer's life on a given executor, down to the bits of its output.
#pragma once

#include <pqattn/core/executor.hpp>
#include <pqattn/core/status.hpp>

#include <cstddef>
#include <vector>

namespace thread_pool_example {

struct layer_result {
  std::vector<float> out;    ///< (query heads, 1, dim) of every step, one after the other
  std::vector<float> lse_e;  ///< (query heads) of every step
  std::size_t coded_tokens = 0;
};

/// Appends a prompt (trains and codes), decodes a few tokens, attends after each; data depends on nothing but the code.
pqattn::status run_layer(const pqattn::executor& parts, layer_result& result);

/// FNV-1a over the bits of all numbers.
[[nodiscard]] unsigned long long digest(const layer_result& result) noexcept;

}  // namespace thread_pool_example
