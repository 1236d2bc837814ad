// SPDX-License-Identifier: MIT
// Threads belong to the program: a pool behind the library's executor. The calling thread is worker 0.
#pragma once

#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#include "pqattn/core/executor.hpp"

namespace bench {

class worker_pool {
 public:
  explicit worker_pool(std::size_t workers) {
    for (std::size_t worker = 1; worker < workers; ++worker) {
      threads_.emplace_back([this, worker] { serve(worker); });
    }
  }
  ~worker_pool() {
    stopping_ = true;
    generation_.fetch_add(1);
    generation_.notify_all();
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }
  worker_pool(const worker_pool&) = delete;
  worker_pool& operator=(const worker_pool&) = delete;

  [[nodiscard]] pqattn::executor executor() {
    return threads_.empty() ? pqattn::executor{} : pqattn::executor{&run, this, threads_.size() + 1};
  }

 private:
  static void run(void* self, std::size_t parts, pqattn::executor::task_function task, void* context) {
    static_cast<worker_pool*>(self)->run_all(parts, task, context);
  }

  void run_all(std::size_t parts, pqattn::executor::task_function task, void* context) {
    task_ = task;
    context_ = context;
    parts_ = parts;
    next_.store(0);
    busy_.store(threads_.size());
    generation_.fetch_add(1);
    generation_.notify_all();
    take_parts(0);
    while (busy_.load(std::memory_order_acquire) != 0) {  // the other workers finish their last part
    }
  }
  void take_parts(std::size_t worker) {
    for (std::size_t part = next_.fetch_add(1); part < parts_; part = next_.fetch_add(1)) {
      task_(context_, part, worker);
    }
  }
  void serve(std::size_t worker) {
    for (unsigned seen = 0;;) {
      // Decode steps follow each other within microseconds: look for a while before going to sleep.
      for (int i = 0; i < 20000 && generation_.load(std::memory_order_acquire) == seen; ++i) {
      }
      generation_.wait(seen);
      ++seen;
      if (stopping_) {
        return;
      }
      take_parts(worker);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> threads_;
  std::atomic<unsigned> generation_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<std::size_t> next_{0};
  std::atomic<std::size_t> busy_{0};
  std::size_t parts_ = 0;
  pqattn::executor::task_function task_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace bench
