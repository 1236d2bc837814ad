// SPDX-License-Identifier: MIT
// Bring your own threads: the same layer on the calling thread and on pools of 1, 2 and 7 workers. Prints a digest of
// every bit of the output for each, and fails when two differ. docs/threads.md has other shapes.
#include <cstdio>

#include "run_layer.hpp"
#include "thread_pool.hpp"

int main() {
  using namespace thread_pool_example;
  const auto report = [](const char* who, std::size_t workers, const layer_result& result, std::size_t elsewhere) {
    std::printf("%s %zu: %zu tokens coded, digest %016llx, %zu parts on other threads\n", who, workers,
                result.coded_tokens, digest(result), elsewhere);
  };
  layer_result reference;
  if (const pqattn::status done = run_layer({}, reference); !done) {
    char text[200];
    done.format(text, sizeof text);
    std::fprintf(stderr, "%s\n", text);
    return 1;
  }
  report("inline", 1, reference, 0);
  bool same = true;
  for (const std::size_t workers : {1U, 2U, 7U}) {
    thread_pool pool(workers);
    layer_result result;
    if (!run_layer(pool.executor(), result)) {
      return 1;
    }
    report("pool", workers, result, pool.parts_elsewhere());
    same = same && digest(result) == digest(reference);
  }
  std::puts(same ? "all the same bits" : "DIFFERENT BITS");
  return same ? 0 : 1;
}
