// SPDX-License-Identifier: MIT
// One layer with two streams, fed a prompt in chunks and then single tokens, through the operations.
#pragma once

#include <pqattn/core/status.hpp>

#include <cstddef>
#include <vector>

namespace ggml_op_example {

struct scene_result {
  std::vector<float> out;  ///< of the last step: (streams, tokens, query heads, dim_v)
  double nmse = 0.0;       ///< of all steps against attention by the definition in double precision
  std::size_t tokens = 0;
  std::size_t coded_tokens = 0;
  double bits_per_element = 0.0;
};

/// Runs the scene on `threads` threads; `coded` false keeps every row exact (f32).
pqattn::status run_scene(int threads, bool coded, scene_result& result);

}  // namespace ggml_op_example
