// SPDX-License-Identifier: MIT
// What this machine can do, measured: bytes read from DRAM per second and clock cycles per nanosecond.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "pqattn/bank/host/x86/isa.hpp"
#include "support/memory.hpp"

namespace bench {

/// Seconds `work()` takes.
template <class Work>
double seconds_of(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Sums 8-byte words of `streams` streams side by side: on some processors one alone does not keep the memory busy, on
/// others many are slower than one. Returns the sum so that nothing is removed.
inline std::uint64_t read_all(const std::byte* data, std::size_t bytes, std::size_t streams) {
  constexpr std::size_t ahead = 1024;
  std::uint64_t sum[16] = {};
  const std::size_t stream_bytes = bytes / streams;
  for (std::size_t i = 0; i + 128 <= stream_bytes; i += 128) {
    for (std::size_t stream = 0; stream < streams; ++stream) {
      const std::byte* place = data + stream * stream_bytes + i;
      __builtin_prefetch(place + ahead);
      __builtin_prefetch(place + ahead + 64);
      std::uint64_t words[16];
      std::memcpy(words, place, 128);
      for (std::size_t j = 0; j < 16; ++j) {
        sum[j] += words[j];
      }
    }
  }
  std::uint64_t total = 0;
  for (const std::uint64_t part : sum) {
    total += part;
  }
  return total;
}

/// Cycles per nanosecond, from a chain of additions that takes one cycle each.
inline double cycles_per_ns() {
  static const double measured = [] {
    double best = 0.0;
    for (int repetition = 0; repetition < 5; ++repetition) {
      constexpr std::uint64_t steps = 20000000;
      std::uint64_t value = 0;
      const double seconds = seconds_of([&] {
        for (std::uint64_t i = 0; i < steps / 8; ++i) {
          for (int j = 0; j < 8; ++j) {
            value += i;
            asm volatile("" : "+r"(value));
          }
        }
      });
      best = static_cast<double>(steps) / seconds * 1e-9 > best ? static_cast<double>(steps) / seconds * 1e-9 : best;
    }
    return best;
  }();
  return measured;
}

/// Length of a cycle while 512-bit instructions run, from a chain of dot products that takes four: measured right after a
/// bench, it takes the clock and whoever shares the core out of its figure. 0 where there are none.
inline double vector_cycle_ns() {
#if PQATTN_X86_AVX512VBMI
  constexpr int rounds = 2000;
  double best = 1e30;
  for (int turn = 0; turn < 20; ++turn) {
    const double seconds = seconds_of([] {
      for (int i = 0; i < rounds; ++i) {
        asm volatile(
            "vpermb %%zmm20, %%zmm21, %%zmm0\n\tvpdpbusd %%zmm10, %%zmm11, %%zmm4\n\t"
            "vpermb %%zmm20, %%zmm21, %%zmm1\n\tvpdpbusd %%zmm10, %%zmm11, %%zmm5\n\t"
            "vpermb %%zmm20, %%zmm21, %%zmm2\n\tvpdpbusd %%zmm10, %%zmm11, %%zmm6\n\t"
            "vpermb %%zmm20, %%zmm21, %%zmm3\n\tvpdpbusd %%zmm10, %%zmm11, %%zmm7\n\t" ::
                : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
      }
    });
    best = seconds * 1e9 / (4.0 * rounds) < best ? seconds * 1e9 / (4.0 * rounds) : best;
  }
  return best;
#else
  return 0.0;
#endif
}

/// What one thread reads from memory that is in no cache, at best, and with how many streams.
struct dram_speed {
  double bytes_per_second = 0.0;
  std::size_t streams = 1;
};
inline const dram_speed& dram() {
  static const dram_speed measured = [] {
    const std::size_t bytes = cold_bytes();
    const std::byte* data = random_bytes(bytes);
    dram_speed best;
    for (int repetition = 0; repetition < 4; ++repetition) {
      for (const std::size_t streams : {1u, 2u, 4u, 8u}) {
        std::uint64_t sum = 0;
        const double seconds = seconds_of([&] { sum = read_all(data, bytes, streams); });
        asm volatile("" : "+r"(sum));
        if (static_cast<double>(bytes) / seconds > best.bytes_per_second) {
          best = {static_cast<double>(bytes) / seconds, streams};
        }
      }
    }
    return best;
  }();
  return measured;
}

}  // namespace bench
