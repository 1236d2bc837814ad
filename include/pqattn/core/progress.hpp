// SPDX-License-Identifier: MIT
// Long work reports progress and can be cancelled through a callback of the caller's.
#pragma once

#include <atomic>
#include <cstddef>

#include "../config.hpp"
#include "status.hpp"

namespace pqattn {
inline namespace v0 {

/// Called as work proceeds, `done` out of `total` steps; return false to cancel. May be called from any thread
/// of the executor that runs the work, one call per finished step. Null reports nothing.
struct progress_hook {
  bool (*report)(void* user, std::size_t done, std::size_t total) = nullptr;
  void* user = nullptr;
};

inline namespace PQATTN_ISA_UNIT {

/// Counts the finished steps of one piece of work over all its parts.
class progress_counter {
 public:
  progress_counter(const progress_hook& hook, std::size_t total) noexcept : hook_(hook), total_(total) {}

  /// One more step is done. Once the hook has asked to stop, every later call says `cancelled` too.
  status step() noexcept {
    const std::size_t done = done_.fetch_add(1, std::memory_order_relaxed) + 1;
    if (hook_.report != nullptr && !stopped_.load(std::memory_order_relaxed) &&
        !hook_.report(hook_.user, done, total_)) {
      stopped_.store(true, std::memory_order_relaxed);
    }
    return stopped_.load(std::memory_order_relaxed)
               ? failure(status_code::cancelled, "work", "was cancelled by its progress hook")
               : status{};
  }

 private:
  progress_hook hook_;
  std::size_t total_;
  std::atomic<std::size_t> done_{0};
  std::atomic<bool> stopped_{false};
};

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
