// SPDX-License-Identifier: MIT
#include "pqattn/core/executor.hpp"

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "support/executors.hpp"

TEST_CASE("every part runs once, with a worker in range", "[core]") {
  pqattn_test::shuffled_executor shuffled(3, 11);
  pqattn_test::thread_executor threads(4);
  for (const pqattn::executor& runner : {pqattn::executor{}, shuffled.get(), threads.get()}) {
    for (const std::size_t parts : {0U, 1U, 2U, 100U}) {
      std::vector<std::atomic<int>> runs(parts);
      std::atomic<int> strays{0};
      run_parts(runner, parts, [&](std::size_t part, std::size_t worker) {
        runs[part] += 1;
        strays += worker >= runner.workers;
      });
      bool once = true;
      for (const auto& count : runs) {
        once = once && count == 1;
      }
      CHECK(once);
      CHECK(strays == 0);
    }
  }
}

TEST_CASE("the default runs parts in order on the calling thread", "[core]") {
  std::vector<std::size_t> order;
  const auto record = [&](std::size_t part, std::size_t) { order.push_back(part); };  // const callables work too
  pqattn::run_parts({}, 4, record);
  CHECK(order == std::vector<std::size_t>{0, 1, 2, 3});
}
