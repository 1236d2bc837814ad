// SPDX-License-Identifier: MIT
// A small pool of threads as an engine has one, and the ten lines that make it a pqattn::executor.
#pragma once

#include <pqattn/core/executor.hpp>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

namespace thread_pool_example {

/// Threads that wait for numbered parts. The thread that calls run() is worker 0.
class thread_pool {
 public:
  explicit thread_pool(std::size_t workers);
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;
  ~thread_pool();

  /// Runs task(context, part, worker) for every part below `parts`; returns when all are done.
  void run(std::size_t parts, pqattn::executor::task_function task, void* context);

  /// What pqattn asks for: a function, this pool, and how many workers there are.
  [[nodiscard]] pqattn::executor executor() noexcept {
    return {[](void* self, std::size_t parts, pqattn::executor::task_function task, void* context) {
              static_cast<thread_pool*>(self)->run(parts, task, context);
            },
            this, threads_.size() + 1};
  }

  /// Parts that the pool's own threads ran, not the caller.
  [[nodiscard]] std::size_t parts_elsewhere() const noexcept { return parts_elsewhere_; }

 private:
  void serve(std::size_t worker);
  void take_parts(std::size_t worker);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t job_ = 0;   ///< counts jobs; a thread that sees a new number works on it
  std::size_t busy_ = 0;  ///< threads that have not finished the job
  bool stopping_ = false;
  std::size_t parts_ = 0;
  pqattn::executor::task_function task_ = nullptr;
  void* context_ = nullptr;
  std::atomic<std::size_t> next_{0};
  std::atomic<std::size_t> parts_elsewhere_{0};
  std::vector<std::thread> threads_;
};

}  // namespace thread_pool_example
