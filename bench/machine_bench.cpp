// SPDX-License-Identifier: MIT
// The limits the other families are held against.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "support/machine.hpp"

namespace {

/// One thread reads memory that is in no cache.
void dram_read(benchmark::State& state) {
  const std::size_t bytes = bench::cold_bytes();
  const std::byte* data = bench::random_bytes(bytes);
  const bench::dram_speed& best = bench::dram();
  for (auto iteration : state) {
    benchmark::DoNotOptimize(bench::read_all(data, bytes, best.streams, best.hints));
  }
  state.counters["bytes_per_second"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * static_cast<double>(bytes), benchmark::Counter::kIsRate);
}

BENCHMARK(dram_read)->UseRealTime();

#if defined(__x86_64__)
/// Hints a few lines that are in no cache, at random places so that no prefetcher guesses them, waits until they must
/// have come, and reads one after the other: what a line takes then tells which cache the hint has brought it to.
template <class Hint>
void read_after_hint(benchmark::State& state, const Hint& hint) {
  constexpr std::size_t window = std::size_t{1} << 20;
  constexpr std::size_t lines = 256;
  const std::size_t windows = bench::cold_bytes() / window;
  const std::byte* const data = bench::random_bytes(windows * window);
  std::vector<std::uint32_t> places(window / 64);
  std::iota(places.begin(), places.end(), 0u);
  std::shuffle(places.begin(), places.end(), std::mt19937(5));
  std::vector<double> seconds;
  static std::size_t turn = 0;  // no line is used twice, by any hint, before all have been
  for (auto iteration : state) {
    const std::byte* const at = data + turn % windows * window;
    const std::uint32_t* const mine = places.data() + turn / windows % (places.size() / lines) * lines;
    ++turn;
    for (std::size_t i = 0; i < lines; ++i) {
      hint(at + std::size_t{64} * mine[i]);
      for (int pause = 0; pause < 8; ++pause) {  // more hints at once than a processor can keep are lost
        asm volatile("pause");
      }
    }
    for (int pause = 0; pause < 200; ++pause) {
      asm volatile("pause");
    }
    seconds.push_back(bench::seconds_of([&] {
      std::uint64_t chain = 0;  // always 0, but each address waits for the line before
      for (std::size_t i = 0; i < lines; ++i) {
        const std::byte* const line = at + std::size_t{64} * mine[i];
        asm volatile("movzbq (%1, %0), %0\n\tandl $0, %k0" : "+r"(chain) : "r"(line) : "memory");
      }
    }));
  }
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2), seconds.end());
  state.counters["ns_per_line"] = seconds[seconds.size() / 2] * 1e9 / static_cast<double>(lines);
}
#define HINT(name, instruction)                                                                \
  void name(benchmark::State& state) {                                                         \
    read_after_hint(state, [](const std::byte* at) { asm volatile(instruction ::"m"(*at)); }); \
  }                                                                                            \
  BENCHMARK(name)->Name("read_after_hint/" #name)->Iterations(400)

HINT(none, "# %0");
HINT(prefetcht0, "prefetcht0 %0");
HINT(prefetcht1, "prefetcht1 %0");
HINT(prefetcht2, "prefetcht2 %0");
HINT(prefetchnta, "prefetchnta %0");
#endif

}  // namespace
