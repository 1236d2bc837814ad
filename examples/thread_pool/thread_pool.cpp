// SPDX-License-Identifier: MIT
#include "thread_pool.hpp"

namespace thread_pool_example {

thread_pool::thread_pool(std::size_t workers) {
  for (std::size_t worker = 1; worker < workers; ++worker) {
    threads_.emplace_back([this, worker] { serve(worker); });
  }
}

thread_pool::~thread_pool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

void thread_pool::run(std::size_t parts, pqattn::executor::task_function task, void* context) {
  {
    const std::lock_guard lock(mutex_);
    parts_ = parts;
    task_ = task;
    context_ = context;
    next_ = 0;
    busy_ = threads_.size();
    ++job_;
  }
  changed_.notify_all();
  take_parts(0);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return busy_ == 0; });
}

void thread_pool::serve(std::size_t worker) {
  std::size_t seen = 0;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || job_ != seen; });
      if (stopping_) {
        return;
      }
      seen = job_;
    }
    take_parts(worker);
    const std::lock_guard lock(mutex_);
    if (--busy_ == 0) {
      changed_.notify_all();
    }
  }
}

void thread_pool::take_parts(std::size_t worker) {
  for (std::size_t part = next_.fetch_add(1); part < parts_; part = next_.fetch_add(1)) {
    task_(context_, part, worker);
    if (worker != 0) {
      ++parts_elsewhere_;
    }
  }
}

}  // namespace thread_pool_example
