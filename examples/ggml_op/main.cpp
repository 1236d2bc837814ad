// SPDX-License-Identifier: MIT
// pqattn behind operations of ggml's call shape, run by 1, 2, 3 and 8 threads: prints the error against attention in
// double precision, and fails when two thread counts give different bits. docs/ggml.md says how to use it in ggml.
#include <cstdio>

#include "scene.hpp"

int main() {
  using namespace ggml_op_example;
  bool same = true;
  for (const bool coded : {false, true}) {
    scene_result reference;
    for (const int threads : {1, 2, 3, 8}) {
      scene_result result;
      if (const pqattn::status done = run_scene(threads, coded, result); !done) {
        char text[200];
        done.format(text, sizeof text);
        std::fprintf(stderr, "%s\n", text);
        return 1;
      }
      std::printf("%s, %d threads: %zu tokens, %zu coded, %.2f bits per element, NMSE %.2e\n",
                  coded ? "codes" : "exact", threads, result.tokens, result.coded_tokens, result.bits_per_element,
                  result.nmse);
      if (threads == 1) {
        reference = result;
      }
      same = same && result.out == reference.out && result.nmse == reference.nmse;
    }
  }
  std::puts(same ? "all the same bits" : "DIFFERENT BITS");
  return same ? 0 : 1;
}
