// SPDX-License-Identifier: MIT
// The call shape of a ggml custom operation, without ggml: tensors of four dimensions with byte strides, a function
// that is called with (dst, ith, nth, userdata) on every thread, and a list of nodes with a barrier between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ggml_op_example {

enum class element_type { f32, f16, bf16 };

/// The fields of ggml_tensor that an operation reads: ne counts elements, nb is in bytes, dimension 0 first.
struct tensor {
  element_type type = element_type::f32;
  std::int64_t ne[4] = {1, 1, 1, 1};
  std::size_t nb[4] = {0, 0, 0, 0};
  void* data = nullptr;
  const tensor* src[10] = {};
};

/// Shape of ggml_custom_op_t.
using custom_op = void (*)(tensor* dst, int ith, int nth, void* userdata);

/// One node of a graph.
struct node {
  custom_op op = nullptr;
  tensor* dst = nullptr;
  void* userdata = nullptr;
};

/// Runs node after node, each on `threads` threads that all finish it before the next one starts.
void compute(const std::vector<node>& nodes, int threads);

}  // namespace ggml_op_example
