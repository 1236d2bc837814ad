// SPDX-License-Identifier: MIT
// The command walker: turns commands into cycles and counts, for all command channels of a device.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "../../config.hpp"
#include "../../core/status.hpp"
#include "channel_walker.hpp"
#include "commands.hpp"
#include "counters.hpp"
#include "device.hpp"
#include "energy.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

/// All command channels of a device.
class walker {
 public:
  /// Checks the device, copies it and allocates the channels' state. The walker must not be copied or moved after.
  status configure(const device& d, const walk_options& options = {}) {
    PQATTN_TRY(validate(d));
    device_ = d;
    const auto count = static_cast<std::size_t>(d.organisation.command_channels());
#if PQATTN_HAS_EXCEPTIONS
    try {
#endif
      channels_.resize(count);
#if PQATTN_HAS_EXCEPTIONS
    } catch (const std::bad_alloc&) {
      return failure(status_code::out_of_memory, "walker.configure", "cannot hold the channels' state");
    }
#endif
    for (std::size_t i = 0; i < count; ++i) {
      PQATTN_TRY(channels_[i].configure(device_, options, static_cast<std::int32_t>(i)));
    }
    return {};
  }
  walker() = default;
  walker(const walker&) = delete;
  walker& operator=(const walker&) = delete;

  /// Back to time 0 with every counter zero.
  void reset() noexcept {
    for (channel_walker& channel : channels_) {
      channel.reset();
    }
  }
  void set_phase(phase p) noexcept {
    for (channel_walker& channel : channels_) {
      channel.set_phase(p);
    }
  }
  /// Serves one command on its channel.
  status issue(const command& c) noexcept {
    if (c.channel < 0 || c.channel >= channel_count()) {
      return failure(status_code::invalid_argument, "command.channel", "must not exceed the last of the device",
                     channel_count() - 1, c.channel);
    }
    return channels_[static_cast<std::size_t>(c.channel)].issue(c);
  }

  [[nodiscard]] const device& description() const noexcept {
    return device_;
  }
  [[nodiscard]] std::int32_t channel_count() const noexcept {
    return static_cast<std::int32_t>(channels_.size());
  }
  [[nodiscard]] channel_walker& channel(std::int32_t index) noexcept {
    return channels_[static_cast<std::size_t>(index)];
  }
  [[nodiscard]] const channel_walker& channel(std::int32_t index) const noexcept {
    return channels_[static_cast<std::size_t>(index)];
  }

  /// Cycle at which the last channel has finished.
  [[nodiscard]] cycle_count finish_cycle() const noexcept {
    cycle_count last = 0;
    for (const channel_walker& channel : channels_) {
      last = (std::max)(last, channel.finish_cycle());
    }
    return last;
  }
  /// Sums over banks and channels; elapsed_cycles is the longest channel.
  [[nodiscard]] totals total() const noexcept {
    return sum([](const channel_walker& channel) { return channel.total(); });
  }
  [[nodiscard]] totals total(phase p) const noexcept {
    return sum([p](const channel_walker& channel) { return channel.total(p); });
  }
  /// Energy of everything so far; every channel is powered until the last has finished.
  [[nodiscard]] energy_report energy() const noexcept {
    return energy_of(device_, total(), finish_cycle() * channel_count());
  }
  /// Energy of one phase; standby is charged for the cycles the phase's channels used.
  [[nodiscard]] energy_report energy(phase p) const noexcept {
    const totals counted = total(p);
    return energy_of(device_, counted, (std::max)(counted.channel.cycles, counted.channel.open_cycles));
  }
  /// Max over mean of the banks' busy cycles.
  [[nodiscard]] imbalance bank_imbalance() const noexcept {
    imbalance result;
    std::int64_t sum_busy = 0;
    std::int64_t banks = 0;
    for (const channel_walker& channel : channels_) {
      for (std::int32_t b = 0; b < channel.bank_count(); ++b, ++banks) {
        const std::int64_t busy = channel.bank(b).busy_cycles;
        sum_busy += busy;
        result.max_busy_cycles = (std::max)(result.max_busy_cycles, busy);
      }
    }
    if (sum_busy > 0) {
      result.mean_busy_cycles = static_cast<double>(sum_busy) / static_cast<double>(banks);
      result.max_over_mean = static_cast<double>(result.max_busy_cycles) / result.mean_busy_cycles;
    }
    return result;
  }
  /// Emulated time of `cycles` in nanoseconds.
  [[nodiscard]] double nanoseconds(cycle_count cycles) const noexcept {
    return static_cast<double>(cycles) * static_cast<double>(device_.timing.tck_ps) * 1e-3;
  }

 private:
  device device_;
  std::vector<channel_walker> channels_;

  template <class Part>
  [[nodiscard]] totals sum(Part&& part_of) const noexcept {
    totals all;
    for (const channel_walker& channel : channels_) {
      const totals part = part_of(channel);
      all.bank += part.bank;
      all.channel += part.channel;
      all.elapsed_cycles = (std::max)(all.elapsed_cycles, part.elapsed_cycles);
    }
    return all;
  }
};

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
