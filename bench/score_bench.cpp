// SPDX-License-Identifier: MIT
// Scores over codes, one bank program at a time, on one head that stays in the second-level cache.
#include <benchmark/benchmark.h>

#include "support/coded_heads.hpp"
#include "support/counters.hpp"

namespace {

using bank_type = pqattn::host_bank<>;

/// Queries, tables and tiles of one head. Arguments m, bits, n, g; d = 128.
struct score_scene {
  static constexpr std::size_t tile_slots = pqattn::max_tile_blocks * pqattn::block_tokens;

  score_scene(const benchmark::State& state, bool rotary)
      : rows(static_cast<std::size_t>(state.range(3))),
        rope(128),
        heads({128, static_cast<std::uint32_t>(state.range(0)), static_cast<std::uint32_t>(state.range(1)),
               static_cast<std::size_t>(state.range(2)), rotary ? rope.order() : nullptr},
              rotary ? rope.get() : pqattn::rope{}, 1),
        head(heads.head(0)),
        queries(bench::normals(rows * 128, 0.1f)),
        tables(bank.table_bytes(head.keys.book.shape, rows, head.rotation)),
        tile(rows * tile_slots * sizeof(float)) {}

  void prepare() {
    static_cast<void>(bank.prepare_scores({queries.data(), rows, 128}, head.keys.book, head.rotation, tables.data()));
  }
  void score() {
    const pqattn::score_tile scores{reinterpret_cast<float*>(tile.data()), rows, tile_slots};
    for (std::size_t first = 0; first < head.slots.count; first += tile_slots) {
      const pqattn::slot_range slots{first, std::min(tile_slots, head.slots.count - first)};
      static_cast<void>(bank.score(tables.data(), rows, head.keys.book, head.rotation, {}, head.keys.codes, slots, scores));
    }
  }

  bank_type bank;
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
  bench::count_ports(state, shape.tokens, Rotary ? bench::port_bound::rotary(128, rows, shape.bits)
                                                 : bench::port_bound::tables(shape.subvectors, rows, shape.bits));
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
  family->ArgNames({"m", "bits", "n", "g"})->UseRealTime();
  for (const auto& [subvectors, bits] : {std::pair{32, 8}, {64, 8}, {64, 4}, {16, 8}, {32, 9}}) {
    for (const int rows : {1, 4, 8}) {
      family->Args({subvectors, bits, 4096, rows});
    }
  }
}

BENCHMARK(score<false>)->Name("score_tables")->Apply(score_arguments);
BENCHMARK(score<true>)->Name("score_rotary")->Apply(score_arguments);
BENCHMARK(prepare<false>)->Name("prepare_tables")->Apply(score_arguments);
BENCHMARK(prepare<true>)->Name("prepare_rotary")->Apply(score_arguments);

}  // namespace
