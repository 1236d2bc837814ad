// SPDX-License-Identifier: MIT
// Weighted sums of coded values, on one head: of 4096 tokens its codes stay in the second-level cache, of 32768 in the
// third.
#include <benchmark/benchmark.h>

#include <cmath>

#include "support/coded_heads.hpp"
#include "support/counters.hpp"

namespace {

pqattn::value_options value_options_of(pqattn::value_method method) {
  pqattn::value_options options;
  options.method = method;
  return options;
}

/// Arguments d, m, bits, n, g.
void accumulate(benchmark::State& state, pqattn::value_method method) {
  constexpr std::size_t tile_slots = pqattn::max_tile_blocks * pqattn::block_tokens;
  const bench::head_shape shape{static_cast<std::uint32_t>(state.range(0)), static_cast<std::uint32_t>(state.range(1)),
                                static_cast<std::uint32_t>(state.range(2)), static_cast<std::size_t>(state.range(3))};
  const auto rows = static_cast<std::size_t>(state.range(4));
  bench::coded_heads<> heads(shape, {}, 1);
  const auto head = heads.head(0);
  const bench::pages memory(rows * tile_slots * sizeof(float));
  auto* probabilities = reinterpret_cast<float*>(memory.data());
  const std::vector<float> scores = bench::normals(rows * tile_slots);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    probabilities[i] = std::exp(scores[i] - 4.0f);
  }
  const pqattn::score_tile tile{probabilities, rows, tile_slots};
  std::vector<float> out(rows * shape.dim);
  for (auto iteration : state) {
    for (std::size_t first = 0; first < shape.tokens; first += tile_slots) {
      static_cast<void>(heads.bank().accumulate_values(tile, head.values.book, head.values.codes,
                                                       {first, std::min(tile_slots, shape.tokens - first)},
                                                       value_options_of(method), out.data(), shape.dim));
    }
    benchmark::ClobberMemory();
  }
  bench::count_tokens(state, shape.tokens, shape.code_bytes_per_token() / 2);
  bench::count_ports(state, shape.tokens,
                     bench::port_bound<>::values(shape.dim, static_cast<double>(rows), shape.bits));
  bench::label<pqattn::isa::native>(state);
}

void value_arguments(benchmark::internal::Benchmark* family) {
  bench::component_arguments(family, {4096, 32768});
}

BENCHMARK_CAPTURE(accumulate, values, pqattn::value_method::automatic)->Name("values")->Apply(value_arguments);
BENCHMARK_CAPTURE(accumulate, histogram, pqattn::value_method::histogram)
    ->Name("values_histogram")
    ->ArgNames({"d", "m", "bits", "n", "g"})
    ->UseRealTime()
    ->Args({128, 64, 4, 4096, 4})
    ->Args({128, 32, 8, 4096, 4});

}  // namespace
