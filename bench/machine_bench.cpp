// SPDX-License-Identifier: MIT
// The limits the other families are held against.
#include <benchmark/benchmark.h>

#include "support/machine.hpp"

namespace {

/// One thread reads memory that is in no cache.
void dram_read(benchmark::State& state) {
  const std::size_t bytes = bench::cold_bytes();
  const std::byte* data = bench::random_bytes(bytes);
  const std::size_t streams = bench::dram().streams;
  for (auto iteration : state) {
    benchmark::DoNotOptimize(bench::read_all(data, bytes, streams));
  }
  state.counters["bytes_per_second"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * static_cast<double>(bytes), benchmark::Counter::kIsRate);
}

BENCHMARK(dram_read)->UseRealTime();

}  // namespace
