// SPDX-License-Identifier: MIT
// Parallelism belongs to the caller: the library cuts work into numbered parts and hands them to an executor.
#pragma once

#include <cstddef>
#include <type_traits>

#include "../config.hpp"
#include "status.hpp"

namespace pqattn {
inline namespace v0 {

/// Runs numbered parts, possibly on several threads of the caller's.
///
/// `run(self, parts, task, context)` must call task(context, part, worker) exactly once for every part in
/// [0, parts) and return only when all are done. `worker` is below `workers` and no two parts that run at
/// the same time share one: it selects scratch memory. Results never depend on `workers` or on the order.
/// The default runs everything inline on the calling thread.
struct executor {
  using task_function = void (*)(void* context, std::size_t part, std::size_t worker);

  void (*run)(void* self, std::size_t parts, task_function task, void* context) = &run_inline;
  void* self = nullptr;
  std::size_t workers = 1;  ///< 1 to max_workers

  static void run_inline(void*, std::size_t parts, task_function task, void* context) {
    for (std::size_t part = 0; part < parts; ++part) {
      task(context, part, 0);
    }
  }
};

/// Most workers of an executor: sizes of scratch for all of them stay far from what size_t holds.
inline constexpr std::size_t max_workers = 4096;

inline namespace PQATTN_ISA_UNIT {

/// Whether an executor can run anything.
[[nodiscard]] constexpr status check_executor(const executor& parts, const char* subject) noexcept {
  if (parts.run == nullptr) {
    return failure(status_code::invalid_argument, subject, "has no run function");
  }
  if (parts.workers == 0) {
    return failure(status_code::invalid_argument, subject, "must have at least 1 worker", 1, 0);
  }
  return parts.workers <= max_workers
             ? status{}
             : failure(status_code::invalid_argument, subject, "has too many workers", max_workers, parts.workers);
}

}  // namespace PQATTN_ISA_UNIT

/// Runs `task(part, worker)` for every part. No allocation: the callable is passed by address.
template <class Task>
void run_parts(const executor& target, std::size_t parts, Task&& task) {
  using task_type = std::remove_reference_t<Task>;
  target.run(
      target.self, parts,
      [](void* context, std::size_t part, std::size_t worker) { (*static_cast<task_type*>(context))(part, worker); },
      const_cast<void*>(static_cast<const void*>(&task)));
}

}  // namespace v0
}  // namespace pqattn
