// SPDX-License-Identifier: MIT
// What this machine can do, measured: bytes read from DRAM per second and clock cycles per nanosecond.
#pragma once

#include <algorithm>
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

/// Numbers that are read at once: as wide as loads get, so that many lines are under way.
#if PQATTN_X86_AVX2
using word = pqattn::x86::native::ints;
#else
using word = std::uint64_t;
#endif

/// Reads `streams` streams side by side, with hints or without: which of these keeps the memory busiest differs between
/// processors. Returns a sum so that nothing is removed.
inline std::uint64_t read_all(const std::byte* data, std::size_t bytes, std::size_t streams, bool hints) {
  constexpr std::size_t ahead = 1024;
  constexpr std::size_t step = 256;
  constexpr std::size_t words = step / sizeof(word);
  word sum[words] = {};
  const std::size_t stream_bytes = bytes / streams;
  for (std::size_t i = 0; i + step <= stream_bytes; i += step) {
    for (std::size_t stream = 0; stream < streams; ++stream) {
      const std::byte* place = data + stream * stream_bytes + i;
      for (std::size_t line = 0; hints && line < step; line += 64) {
        __builtin_prefetch(place + ahead + line);
      }
      for (std::size_t j = 0; j < words; ++j) {
        word here;
        std::memcpy(&here, place + j * sizeof(word), sizeof here);
        sum[j] ^= here;
      }
    }
  }
  std::uint64_t total = 0;
  for (const word& part : sum) {
    std::uint64_t first = 0;
    std::memcpy(&first, &part, sizeof first);
    total ^= first;
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

/// Length of a cycle while 512-bit instructions run, from a chain of scalar additions of one cycle each beside them:
/// measured right after a bench, it takes the clock and whoever shares the core out of its figure. 0 where there are
/// none.
inline double vector_cycle_ns() {
#if PQATTN_X86_AVX512VBMI
  constexpr int rounds = 2000;
  double best = 1e30;
  for (int turn = 0; turn < 20; ++turn) {
    const double seconds = seconds_of([] {
      std::uint64_t chain = 0;
      for (int i = 0; i < rounds; ++i) {
        asm volatile(
            "add $1, %0\n\tvpdpbusd %%zmm10, %%zmm11, %%zmm0\n\tadd $1, %0\n\t"
            "add $1, %0\n\tvpermb %%zmm10, %%zmm11, %%zmm1\n\tadd $1, %0\n\t"
            "add $1, %0\n\tvpdpbusd %%zmm10, %%zmm11, %%zmm2\n\tadd $1, %0\n\t"
            "add $1, %0\n\tvpermb %%zmm10, %%zmm11, %%zmm3\n\tadd $1, %0\n\t"
            : "+r"(chain)::"xmm0", "xmm1", "xmm2", "xmm3", "cc");
      }
    });
    best = seconds * 1e9 / (8.0 * rounds) < best ? seconds * 1e9 / (8.0 * rounds) : best;
  }
  return best;
#else
  return 0.0;
#endif
}

/// What one thread reads from memory that is in no cache, at best, and how.
struct dram_speed {
  double bytes_per_second = 0.0;
  std::size_t streams = 1;
  bool hints = false;
};
inline const dram_speed& dram() {
  static const dram_speed measured = [] {
    const std::size_t bytes = cold_bytes();
    const std::byte* data = random_bytes(bytes);
    dram_speed best;
    for (const std::size_t way : {0u, 1u, 2u, 3u, 4u, 5u, 6u, 7u}) {
      const std::size_t streams = std::size_t{1} << way / 2;
      const bool hints = way % 2 != 0;
      double seconds[5];
      for (double& of_turn : seconds) {
        std::uint64_t sum = 0;
        of_turn = seconds_of([&] { sum = read_all(data, bytes, streams, hints); });
        asm volatile("" : "+r"(sum));
      }
      std::sort(seconds, seconds + 5);
      if (static_cast<double>(bytes) / seconds[2] > best.bytes_per_second) {
        best = {static_cast<double>(bytes) / seconds[2], streams, hints};
      }
    }
    return best;
  }();
  return measured;
}

}  // namespace bench
