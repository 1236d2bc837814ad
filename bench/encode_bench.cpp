// SPDX-License-Identifier: MIT
// Coding of token rows through the public API: one row per call, as tokens arrive, or many, as a prompt does.
#include <benchmark/benchmark.h>

#include "pqattn/encode/encode.hpp"
#include "support/coded_heads.hpp"
#include "support/counters.hpp"

namespace {

/// Arguments m, bits, rows per call; d = 128. Rows go to the slots of one head, one call after the other. Bytes are
/// those of the f32 rows: the codebook stays in the first- or second-level cache.
void encode(benchmark::State& state) {
  constexpr std::size_t tokens = 4096;
  const bench::head_shape shape{128, static_cast<std::uint32_t>(state.range(0)),
                                static_cast<std::uint32_t>(state.range(1)), tokens};
  const auto rows = static_cast<std::size_t>(state.range(2));
  bench::coded_heads<> heads(shape, {}, 1);
  const auto head = heads.head(0);
  const bench::pages codes(heads.bank().code_block_bytes(shape.geometry()) * pqattn::blocks_for(tokens));
  const pqattn::code_span<std::byte*> span{shape.geometry(), codes.data(), nullptr};
  const std::vector<float> numbers = bench::normals(tokens * 128);
  const pqattn::rows_view all = pqattn::view_rows(numbers.data(), tokens, 128);
  std::size_t slot = 0;
  for (auto iteration : state) {
    if (!pqattn::encode(heads.bank(), all.slice(slot, rows), head.keys.book, span, {slot, rows})) {
      state.SkipWithError("encode refused");
      break;
    }
    slot = slot + 2 * rows <= tokens ? slot + rows : 0;
  }
  const double done = static_cast<double>(state.iterations()) * static_cast<double>(rows);
  state.counters["ns_per_vector"] =
      benchmark::Counter(done * 1e-9, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  bench::count_bytes(state, static_cast<double>(rows) * shape.dim * sizeof(float));
  bench::count_ports(state, rows, bench::port_bound<>::distances(shape.dim, shape.geometry().centroids));
  bench::label<pqattn::isa::native>(state);
}

void encode_arguments(benchmark::internal::Benchmark* family) {
  family->ArgNames({"m", "bits", "rows"})->UseRealTime();
  for (const auto& [subvectors, bits] : {std::pair{32, 8}, {64, 8}, {64, 4}, {16, 8}}) {
    for (const int rows : {1, 4, 64}) {
      family->Args({subvectors, bits, rows});
    }
  }
}

BENCHMARK(encode)->Apply(encode_arguments);

}  // namespace
