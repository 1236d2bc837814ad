// SPDX-License-Identifier: MIT
// Executors for tests: parts in a shuffled order on pretended workers, and real threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "pqattn/core/executor.hpp"
#include "support/random_data.hpp"

namespace pqattn_test {

/// Runs parts one after the other in a random order, each on a random worker.
class shuffled_executor {
 public:
  shuffled_executor(std::size_t workers, std::uint64_t seed) : workers_(workers), random_(seed, workers) {}

  [[nodiscard]] pqattn::executor get() { return {&run, this, workers_}; }
  std::size_t parts_run = 0;

 private:
  static void run(void* self, std::size_t parts, pqattn::executor::task_function task, void* context) {
    auto& me = *static_cast<shuffled_executor*>(self);
    for (const std::size_t part : me.random_.permutation<std::size_t>(parts)) {
      task(context, part, me.random_.below(me.workers_));
      ++me.parts_run;
    }
  }

  std::size_t workers_;
  random_data random_;
};

/// Runs parts on threads that take the next one when free.
class thread_executor {
 public:
  explicit thread_executor(std::size_t workers) : workers_(workers) {}

  [[nodiscard]] pqattn::executor get() { return {&run, this, workers_}; }

 private:
  static void run(void* self, std::size_t parts, pqattn::executor::task_function task, void* context) {
    const std::size_t workers = static_cast<thread_executor*>(self)->workers_;
    std::atomic<std::size_t> next{0};
    std::vector<std::thread> threads;
    for (std::size_t worker = 0; worker < workers; ++worker) {
      threads.emplace_back([&, worker] {
        for (std::size_t part = next.fetch_add(1); part < parts; part = next.fetch_add(1)) {
          task(context, part, worker);
        }
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
  }

  std::size_t workers_;
};

}  // namespace pqattn_test
