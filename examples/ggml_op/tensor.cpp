// SPDX-License-Identifier: MIT
#include "tensor.hpp"

#include <barrier>
#include <thread>

namespace ggml_op_example {

void compute(const std::vector<node>& nodes, int threads) {
  std::barrier all_done(threads);
  std::vector<std::thread> team;
  for (int ith = 0; ith < threads; ++ith) {
    team.emplace_back([&, ith] {
      for (const node& next : nodes) {
        next.op(next.dst, ith, threads, next.userdata);
        all_done.arrive_and_wait();
      }
    });
  }
  for (std::thread& thread : team) {
    thread.join();
  }
}

}  // namespace ggml_op_example
