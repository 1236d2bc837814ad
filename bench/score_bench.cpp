// SPDX-License-Identifier: MIT
// Scores over codes, one bank program at a time, on one head: of 4096 tokens its codes stay in the second-level cache,
// of 32768 in the third.
#include <benchmark/benchmark.h>

#include "support/coded_heads.hpp"
#include "support/counters.hpp"

namespace {

using bank_type = pqattn::host_bank<>;

/// Queries, tables and tiles of one head. Arguments d, m, bits, n, g.
struct score_scene {
  static constexpr std::size_t tile_slots = pqattn::max_tile_blocks * pqattn::block_tokens;

  score_scene(const benchmark::State& state, bool rotary)
      : dim(static_cast<std::uint32_t>(state.range(0))),
        rows(static_cast<std::size_t>(state.range(4))),
        rope(dim),
        heads({dim, static_cast<std::uint32_t>(state.range(1)), static_cast<std::uint32_t>(state.range(2)),
               static_cast<std::size_t>(state.range(3)), rotary ? rope.order() : nullptr},
              rotary ? rope.get() : pqattn::rope{}, 1),
        head(heads.head(0)),
        queries(bench::normals(rows * dim, 0.1f)),
        tables(bank.table_bytes(head.keys.book.shape, rows, head.rotation)),
        tile(rows * tile_slots * sizeof(float)) {}

  void prepare() {
    static_cast<void>(bank.prepare_scores({queries.data(), rows, dim}, head.keys.book, head.rotation, tables.data()));
  }
  void score() {
    const pqattn::score_tile scores{reinterpret_cast<float*>(tile.data()), rows, tile_slots};
    for (std::size_t first = 0; first < head.slots.count; first += tile_slots) {
      const pqattn::slot_range slots{first, std::min(tile_slots, head.slots.count - first)};
      static_cast<void>(
          bank.score(tables.data(), rows, head.keys.book, head.rotation, {}, head.keys.codes, slots, scores));
    }
  }

  bank_type bank;
  std::uint32_t dim;
  std::size_t rows;
  bench::rotation_of rope;
  bench::coded_heads<> heads;
  pqattn::segment<std::byte*> head;
  std::vector<float> queries;
  bench::pages tables;
  bench::pages tile;
};

template <bool Rotary>
void score(benchmark::State& state) {
  score_scene scene(state, Rotary);
  scene.prepare();
  for (auto iteration : state) {
    scene.score();
    benchmark::ClobberMemory();
  }
  const auto& shape = scene.heads.shape();
  bench::count_tokens(state, shape.tokens, shape.code_bytes_per_token() / 2);
  const auto rows = static_cast<double>(scene.rows);
  using bound = bench::port_bound<>;
  bench::count_ports(
      state, shape.tokens,
      Rotary ? bound::rotary(shape.dim, rows, shape.bits) : bound::tables(shape.subvectors, rows, shape.bits));
  bench::label<pqattn::isa::native>(state);
}

/// What a decode step pays once per head, whatever the number of tokens.
template <bool Rotary>
void prepare(benchmark::State& state) {
  score_scene scene(state, Rotary);
  for (auto iteration : state) {
    scene.prepare();
    benchmark::ClobberMemory();
  }
  bench::label<pqattn::isa::native>(state);
}

void score_arguments(benchmark::internal::Benchmark* family) {
  bench::component_arguments(family, {4096, 32768});
}

BENCHMARK(score<false>)->Name("score_tables")->Apply(score_arguments);
BENCHMARK(score<true>)->Name("score_rotary")->Apply(score_arguments);
BENCHMARK(prepare<false>)->Name("prepare_tables")->Apply(score_arguments);
BENCHMARK(prepare<true>)->Name("prepare_rotary")->Apply(score_arguments);

}  // namespace
