// SPDX-License-Identifier: MIT
// A processor core beside a bank that reaches it by DMA (UPMEM's class of device): hardware threads take chunks of
// work in turn, fetch one by DMA, compute on it, write one back. One DMA engine serves requests in order; of the
// running threads one instruction issues per cycle, and those of one thread keep `issue_distance` cycles apart. Event
// by event, integer, deterministic. How many instructions a piece of work takes is the caller's input: it is software.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "../../core/status.hpp"
#include "closed_forms.hpp"
#include "device.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

/// Work that is done `chunks` times by whichever thread is free.
struct core_work {
  std::int64_t chunks = 0;
  std::int64_t read_bytes = 0;    ///< from the bank into scratch memory, before
  std::int64_t instructions = 0;  ///< on them
  std::int64_t write_bytes = 0;   ///< back into the bank, after
};

/// What a core did. Additive.
struct core_counters {
  std::int64_t cycles = 0;  ///< of the core's clock
  std::int64_t instructions = 0;
  std::int64_t dma_bytes = 0;
  std::int64_t dma_transfers = 0;
  std::int64_t dma_cycles = 0;  ///< engine busy

  friend constexpr bool operator==(const core_counters&, const core_counters&) noexcept = default;
};

/// One core. Phases of work follow one another with a barrier between them.
class core_walker {
 public:
  static constexpr std::int64_t most_tasklets = 64;

  /// unsupported when the device has no cores; invalid_argument when it has more threads than most_tasklets.
  status configure(const device& d, std::int64_t tasklets) noexcept {
    if (!d.core.present || d.core.tasklets > most_tasklets) {
      return failure(status_code::unsupported, "device.core", "must be present, with threads of at most", most_tasklets,
                     d.core.tasklets);
    }
    core_ = d.core;
    tasklets_ = std::clamp<std::int64_t>(tasklets, 1, core_.tasklets);
    counted_ = {};
    return {};
  }
  [[nodiscard]] const core_counters& counted() const noexcept { return counted_; }
  [[nodiscard]] double nanoseconds() const noexcept {
    return static_cast<double>(counted_.cycles) / static_cast<double>(core_.clock_khz) * 1e6;
  }
  void reset() noexcept { counted_ = {}; }

  /// Does all chunks; returns when the last has been written back. Takes time per chunk.
  void run(const core_work& work) noexcept {
    counted_.instructions += work.chunks * work.instructions;
    counted_.dma_bytes += work.chunks * (work.read_bytes + work.write_bytes);
    work_ = work;
    left_ = work.chunks;
    now_ = engine_free_ = 0;
    for (std::int64_t t = 0; t < tasklets_; ++t) {
      take(threads_[static_cast<std::size_t>(t)]);
    }
    while (step()) {
    }
    counted_.cycles += now_;
  }

 private:
  enum class activity : std::uint8_t { reading, computing, writing, idle };
  struct thread {
    activity doing = activity::idle;
    std::int64_t until = 0;  ///< end of its DMA
    std::int64_t left = 0;   ///< instructions
  };

  dma_core core_;
  std::int64_t tasklets_ = 1;
  core_counters counted_;
  core_work work_;
  std::array<thread, most_tasklets> threads_{};
  std::int64_t left_ = 0, now_ = 0, engine_free_ = 0;

  void transfer(thread& t, std::int64_t bytes, bool write) noexcept {
    t.doing = write ? activity::writing : activity::reading;
    t.until = now_;
    if (bytes > 0) {
      const std::int64_t length = dma_cycles(core_, bytes, write);
      counted_.dma_transfers += ceil_div(bytes, core_.dma_max_bytes);
      counted_.dma_cycles += length;
      t.until = engine_free_ = (std::max)(engine_free_, now_) + length;
    }
  }
  void take(thread& t) noexcept {
    t.doing = activity::idle;
    if (left_ > 0) {
      --left_;
      transfer(t, work_.read_bytes, false);
    }
  }
  /// What follows in a thread whose DMA or instructions have ended.
  void go_on(thread& t) noexcept {
    if (t.doing == activity::reading) {
      t.doing = activity::computing;
      t.left = work_.instructions;
    }
    if (t.doing == activity::computing && t.left == 0) {
      transfer(t, work_.write_bytes, true);
      return;
    }
    if (t.doing == activity::writing) {
      take(t);
    }
  }

  /// To the next event. False when every thread is idle.
  bool step() noexcept {
    std::int64_t running = 0, least = -1, wake = -1;
    bool some = false;
    for (std::int64_t i = 0; i < tasklets_; ++i) {
      thread& t = threads_[static_cast<std::size_t>(i)];
      const bool moving = t.doing == activity::reading || t.doing == activity::writing;
      some = some || t.doing != activity::idle;
      if (moving && t.until <= now_) {
        go_on(t);
        return true;
      }
      if (moving) {
        wake = wake < 0 ? t.until : (std::min)(wake, t.until);
      } else if (t.doing == activity::computing) {
        ++running;
        least = least < 0 ? t.left : (std::min)(least, t.left);
      }
    }
    if (running == 0) {
      now_ = (std::max)(now_, wake);
      return some;
    }
    // Every running thread issues once per turn.
    const std::int64_t turn = (std::max<std::int64_t>)(running, core_.issue_distance);
    std::int64_t turns = least;
    if (wake >= 0) {
      turns = (std::min)(turns, (std::max<std::int64_t>)(1, ceil_div(wake - now_, turn)));
    }
    now_ += turns * turn;
    for (std::int64_t i = 0; i < tasklets_; ++i) {
      thread& t = threads_[static_cast<std::size_t>(i)];
      if (t.doing == activity::computing) {
        t.left -= turns;
        if (t.left == 0) {
          go_on(t);
        }
      }
    }
    return true;
  }
};

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
