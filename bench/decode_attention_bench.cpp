// SPDX-License-Identifier: MIT
// One decode step of one KV head and its group of g query heads, tables and all, through the public level-0 API, and
// what a user would run instead. Every iteration takes the next of so many heads that none is in a cache when its turn
// comes.
#include <benchmark/benchmark.h>

#include <cmath>
#include <memory>
#include <random>

#include "baselines/block_scaled_cache.hpp"
#include "baselines/exact_cache.hpp"
#include "baselines/scalar_lookup.hpp"
#include "support/coded_heads.hpp"
#include "support/counters.hpp"

namespace {

using bench::coded_heads;
using bench::decode_step;
using bench::head_shape;

/// Arguments d, m, bits, n, g, threads.
head_shape shape_of(const benchmark::State& state) {
  return {static_cast<std::uint32_t>(state.range(0)), static_cast<std::uint32_t>(state.range(1)),
          static_cast<std::uint32_t>(state.range(2)), static_cast<std::size_t>(state.range(3))};
}
std::size_t rows_of(const benchmark::State& state) {
  return static_cast<std::size_t>(state.range(4));
}
std::size_t threads_of(const benchmark::State& state) {
  return static_cast<std::size_t>(state.range(5));
}

template <class Isa>
bench::port_bound<Isa> bound_of(const head_shape& shape, double rows, bool rotary) {
  using bound = bench::port_bound<Isa>;
  bound both = rotary ? bound::rotary(shape.dim, rows, shape.bits) : bound::tables(shape.subvectors, rows, shape.bits);
  both += bound::values(shape.dim, rows, shape.bits);
  return both;
}

/// Calls step.run on one head after the other.
template <class Isa>
void run_heads(benchmark::State& state, coded_heads<Isa>& heads, decode_step<pqattn::host_bank<Isa>>& step) {
  std::size_t next = 0;
  for (auto iteration : state) {
    if (!step.run({heads.head(next)})) {
      state.SkipWithError("attend refused");
      break;
    }
    benchmark::DoNotOptimize(step.out.data());
    next = next + 1 < heads.count() ? next + 1 : 0;
  }
  bench::label<Isa>(state);
}

/// Of no more than at_most heads: one stays in the processor's caches.
template <class Isa, bool Rotary>
void decode_coded(benchmark::State& state, std::size_t at_most = SIZE_MAX) {
  head_shape shape = shape_of(state);
  const bench::rotation_of rope(shape.dim);
  shape.key_order = Rotary ? rope.order() : nullptr;
  coded_heads<Isa> heads(shape, Rotary ? rope.get() : pqattn::rope{}, at_most);
  decode_step<pqattn::host_bank<Isa>> step(heads.bank(), {heads.head(0)}, shape.dim, rows_of(state), threads_of(state));
  run_heads(state, heads, step);
  bench::count_tokens(state, shape.tokens, shape.code_bytes_per_token());
  bench::count_ports(state, shape.tokens, bound_of<Isa>(shape, static_cast<double>(rows_of(state)), Rotary));
}
void decode_tables(benchmark::State& state) {
  decode_coded<pqattn::isa::native, false>(state);
}
void decode_rotary(benchmark::State& state) {
  decode_coded<pqattn::isa::native, true>(state);
}
void decode_tables_cached(benchmark::State& state) {
  decode_coded<pqattn::isa::native, false>(state, 1);
}
void decode_rotary_cached(benchmark::State& state) {
  decode_coded<pqattn::isa::native, true>(state, 1);
}

/// Where peaked attention has its probability.
enum class peak {
  sinks,   ///< on the first tokens, which a cache keeps exact: the usual case in language models
  needle,  ///< each query head on one coded token of its own, at a random place
};

/// Peaked attention: 8 exact tokens, then codes. A query is twice the key it looks for, so all but about 1e-4 of its
/// probability lies there; value blocks of at most skip_mass = 1e-4 in all are left out.
void decode_peaked(benchmark::State& state, peak where) {
  constexpr std::size_t sinks = 8;
  const head_shape shape = shape_of(state);
  const std::size_t rows = rows_of(state);
  coded_heads<pqattn::isa::native> heads(shape);
  auto& bank = heads.bank();
  const std::vector<float> sink_rows = bench::normals(sinks * shape.dim);
  const auto head = [&](std::size_t index) {
    pqattn::segment<std::byte*> exact;
    exact.keys.rows = exact.values.rows = pqattn::view_rows(sink_rows.data(), sinks, shape.dim);
    exact.slots = {0, sinks};
    return std::vector<pqattn::segment<std::byte*>>{exact, heads.head(index)};
  };
  decode_step<pqattn::host_bank<>> step(bank, head(0), shape.dim, rows, threads_of(state));
  step.params.skip_mass = 1e-4f;
  std::mt19937 random(3);
  std::vector<std::vector<float>> queries(heads.count(), std::vector<float>(rows * shape.dim));
  for (std::size_t index = 0; index < heads.count(); ++index) {
    const auto tokens = heads.head(index);
    for (std::size_t row = 0; row < rows; ++row) {
      float* query = queries[index].data() + row * shape.dim;
      if (where == peak::sinks) {
        std::copy_n(sink_rows.data() + row % sinks * shape.dim, shape.dim, query);
      } else {
        static_cast<void>(bank.decode(tokens.keys.book, tokens.keys.codes, {random() % shape.tokens, 1},
                                      pqattn::ref_rows(query, 1, shape.dim)));
      }
      for (std::size_t c = 0; c < shape.dim; ++c) {
        query[c] *= 2.0f;
      }
    }
  }
  pqattn::skip_statistics skips;
  step.params.skips = &skips;
  std::size_t next = 0;
  for (auto iteration : state) {
    step.queries.swap(queries[next]);
    if (!step.run(head(next))) {
      state.SkipWithError("attend refused");
      break;
    }
    step.queries.swap(queries[next]);
    benchmark::DoNotOptimize(step.out.data());
    next = next + 1 < heads.count() ? next + 1 : 0;
  }
  bench::count_tokens(state, shape.tokens, shape.code_bytes_per_token());
  state.counters["skipped_fraction"] =
      skips.blocks == 0 ? 0.0 : static_cast<double>(skips.skipped) / static_cast<double>(skips.blocks);
  bench::label<pqattn::isa::native>(state);
}
void decode_sinks(benchmark::State& state) {
  decode_peaked(state, peak::sinks);
}
void decode_needle(benchmark::State& state) {
  decode_peaked(state, peak::needle);
}

/// Exact rows of one element type, all heads one after the other: keys of a head, then its values.
template <class Element>
struct exact_heads {
  std::size_t dim;
  std::size_t tokens;
  std::size_t count;
  const Element* data;

  exact_heads(std::size_t dim_, std::size_t tokens_)
      : dim(dim_), tokens(tokens_), count(std::max<std::size_t>(1, bench::cold_bytes() / bytes())), data(make()) {}
  [[nodiscard]] std::size_t bytes() const { return 2 * tokens * dim * sizeof(Element); }
  [[nodiscard]] const Element* side(std::size_t index) const { return data + index * tokens * dim; }

 private:
  [[nodiscard]] const Element* make() const {
    if constexpr (std::is_same_v<Element, float>) {
      return bench::random_elements<float>(count * 2 * tokens * dim, [](float x) { return x; });
    } else {
      return bench::random_elements<Element>(count * 2 * tokens * dim, [](float x) { return pqattn::to_half(x); });
    }
  }
};

/// Arguments d, n, g, threads: exact rows through the public API.
template <class Element>
void attend_rows(benchmark::State& state) {
  const auto dim = static_cast<std::uint32_t>(state.range(0));
  const exact_heads<Element> heads(dim, static_cast<std::size_t>(state.range(1)));
  const auto head = [&](std::size_t index) {
    pqattn::segment<std::byte*> tokens;
    tokens.keys.rows = pqattn::view_rows(heads.side(2 * index), heads.tokens, heads.dim);
    tokens.values.rows = pqattn::view_rows(heads.side(2 * index + 1), heads.tokens, heads.dim);
    tokens.slots = {0, heads.tokens};
    return tokens;
  };
  pqattn::host_bank<> bank;
  decode_step<pqattn::host_bank<>> step(bank, {head(0)}, dim, static_cast<std::size_t>(state.range(2)),
                                        static_cast<std::size_t>(state.range(3)));
  std::size_t next = 0;
  for (auto iteration : state) {
    if (!step.run({head(next)})) {
      state.SkipWithError("attend refused");
      break;
    }
    benchmark::DoNotOptimize(step.out.data());
    next = next + 1 < heads.count ? next + 1 : 0;
  }
  bench::count_tokens(state, heads.tokens, 2.0 * dim * sizeof(Element));
  bench::label<pqattn::isa::native>(state);
}

#if PQATTN_X86_AVX2
/// Arguments d, n, g: the exact kernels alone, without modifiers, parts or checks.
template <class Isa, class Element>
void exact_kernels(benchmark::State& state) {
  const exact_heads<Element> heads(static_cast<std::size_t>(state.range(0)), static_cast<std::size_t>(state.range(1)));
  const auto rows = static_cast<std::size_t>(state.range(2));
  const std::vector<float> queries = bench::normals(rows * heads.dim, 0.1f);
  std::vector<float> out(rows * heads.dim);
  std::size_t next = 0;
  for (auto iteration : state) {
    const auto side = [&](std::size_t which) {
      return pqattn::x86::exact_rows<Element>{heads.side(2 * next + which), heads.tokens, heads.dim,
                                              static_cast<std::ptrdiff_t>(heads.dim)};
    };
    bench::attend_exact<Isa>(side(0), side(1), queries.data(), rows, out.data());
    benchmark::DoNotOptimize(out.data());
    next = next + 1 < heads.count ? next + 1 : 0;
  }
  bench::count_tokens(state, heads.tokens, 2.0 * static_cast<double>(heads.dim) * sizeof(Element));
  state.SetLabel(Isa::name);
}
#endif

/// Heads of one cache of scaled integers. Filling takes long, so the caches of one width stay for the whole program.
template <int Bits, std::size_t Dim>
const bench::block_scaled_attention<Bits, Dim>& scaled_cache(std::size_t tokens) {
  static bench::block_scaled_attention<Bits, Dim> cache;
  static const std::vector<float> pattern = bench::normals(Dim * 1021);
  while (cache.keys.size() < tokens) {
    cache.keys.append(pattern.data() + cache.keys.size() % 1021 * Dim);
    cache.values.append(pattern.data() + (cache.values.size() + 5) % 1021 * Dim);
  }
  return cache;
}

template <int Bits, std::size_t Dim>
void attend_scaled_rows(benchmark::State& state) {
  const auto tokens = static_cast<std::size_t>(state.range(1));
  const auto rows = static_cast<std::size_t>(state.range(2));
  bench::worker_pool pool(static_cast<std::size_t>(state.range(3)));
  const double bytes_per_token = 2.0 * static_cast<double>(bench::block_scaled_rows<Bits>(Dim).row_bytes());
  const std::size_t heads = std::max<std::size_t>(
      1, bench::cold_bytes() / static_cast<std::size_t>(static_cast<double>(tokens) * bytes_per_token));
  const auto& cache = scaled_cache<Bits, Dim>(heads * tokens);
  const std::vector<float> queries = bench::normals(rows * Dim, 0.1f);
  std::vector<float> out(rows * Dim);
  std::size_t next = 0;
  for (auto iteration : state) {
    cache.attend(queries.data(), rows, {next * tokens, tokens}, out.data(), pool.executor());
    benchmark::DoNotOptimize(out.data());
    next = next + 1 < heads ? next + 1 : 0;
  }
  if (!cache.answers_right(queries.data(), {0, tokens}, rows, pool.executor())) {
    state.SkipWithError("the baseline computes something else");
  }
  bench::count_tokens(state, tokens, bytes_per_token);
  state.SetLabel(bench::block_scaled_attention<Bits, Dim>::vector_dot_products ? "vnni" : "plain loops");
}

/// Arguments d, n, g, threads: a cache of integers with scales.
template <int Bits>
void attend_scaled(benchmark::State& state) {
  state.range(0) == 64 ? attend_scaled_rows<Bits, 64>(state) : attend_scaled_rows<Bits, 128>(state);
}

/// Arguments n, g; d = 128, m = 32, 8 bits, one head.
void attend_scalar(benchmark::State& state) {
  const auto tokens = static_cast<std::size_t>(state.range(0));
  const auto rows = static_cast<std::size_t>(state.range(1));
  bench::scalar_codes keys{32, 4, std::vector<std::uint8_t>(32 * tokens), bench::normals(128 * 256)};
  std::mt19937 random(3);
  for (std::uint8_t& code : keys.codes) {
    code = static_cast<std::uint8_t>(random());
  }
  const bench::scalar_codes values = keys;
  const std::vector<float> queries = bench::normals(rows * 128, 0.1f);
  std::vector<float> out(128);
  std::vector<float> scores;
  for (auto iteration : state) {
    for (std::size_t row = 0; row < rows; ++row) {
      bench::attend_by_scalar_lookup(keys, values, queries.data() + row * 128, scores, out.data());
    }
    benchmark::ClobberMemory();
  }
  bench::count_tokens(state, tokens, 64);
}

constexpr std::int64_t lengths[] = {512, 4096, 32768, 131072, 1048576};
/// Where codes begin to beat exact rows, and the curve of the picture: 128 channels, 4 query heads.
constexpr std::int64_t more_lengths[] = {64, 128, 256, 384, 768, 1024, 2048, 8192};
constexpr std::int64_t groups[] = {1, 4, 8};

benchmark::internal::Benchmark* decode_arguments(benchmark::internal::Benchmark* family) {
  return family->ArgNames({"d", "m", "bits", "n", "g", "threads"})->UseRealTime();
}

/// A family for each head size and coding: Google Benchmark warns of more than 100 in one.
int register_coded(const char* name, void (*run)(benchmark::State&)) {
  for (const std::int64_t dim : {128, 64}) {
    const std::int64_t codings[][2] = {{dim / 4, 8}, {dim / 2, 8}, {dim / 2, 4}, {dim / 8, 8}};
    for (const auto& [subvectors, bits] : codings) {
      benchmark::internal::Benchmark* family = decode_arguments(benchmark::RegisterBenchmark(name, run));
      for (const std::int64_t tokens : lengths) {
        for (const std::int64_t rows : groups) {
          for (const std::int64_t threads : {1, 2}) {
            family->Args({dim, subvectors, bits, tokens, rows, threads});
          }
        }
      }
      if (dim == 128 && subvectors == 32) {
        for (const std::int64_t tokens : more_lengths) {
          family->Args({dim, subvectors, bits, tokens, 4, 1});
        }
      }
    }
  }
  return 0;
}

void uncoded_arguments(benchmark::internal::Benchmark* family) {
  family->ArgNames({"d", "n", "g", "threads"})->UseRealTime();
  for (const std::int64_t dim : {128, 64}) {
    for (const std::int64_t tokens : lengths) {
      for (const std::int64_t rows : groups) {
        for (const std::int64_t threads : {1, 2}) {
          family->Args({dim, tokens, rows, threads});
        }
      }
    }
  }
  for (const std::int64_t tokens : more_lengths) {
    family->Args({128, tokens, 4, 1});
  }
}

void kernel_arguments(benchmark::internal::Benchmark* family) {
  family->ArgNames({"d", "n", "g"})->UseRealTime();
  for (const std::int64_t tokens : {512, 2048, 4096, 8192, 32768, 131072}) {
    for (const std::int64_t rows : groups) {
      family->Args({128, tokens, rows});
    }
  }
  for (const std::int64_t tokens : {64, 128, 256, 384, 768, 1024}) {
    family->Args({128, tokens, 4});
  }
}

void peaked_arguments(benchmark::internal::Benchmark* family) {
  decode_arguments(family)->Args({128, 32, 8, 32768, 4, 1});
}
void cached_arguments(benchmark::internal::Benchmark* family) {
  decode_arguments(family)->ArgsProduct({{128}, {32, 64}, {8}, {32768}, {1, 4}, {1}});
}

const int registered[] = {register_coded("decode_attention/tables", decode_tables),
                          register_coded("decode_attention/rotary", decode_rotary)};
BENCHMARK(decode_sinks)->Name("decode_attention/sinks")->Apply(peaked_arguments);
BENCHMARK(decode_needle)->Name("decode_attention/needle")->Apply(peaked_arguments);
BENCHMARK(decode_tables_cached)->Name("decode_attention/tables_cached")->Apply(cached_arguments);
BENCHMARK(decode_rotary_cached)->Name("decode_attention/rotary_cached")->Apply(cached_arguments);
BENCHMARK(attend_rows<pqattn::half>)->Name("attend_f16")->Apply(uncoded_arguments);
BENCHMARK(attend_rows<float>)->Name("attend_f32")->Apply(uncoded_arguments);
BENCHMARK(attend_scaled<8>)->Name("attend_int8")->Apply(uncoded_arguments);
BENCHMARK(attend_scaled<4>)->Name("attend_int4")->Apply(uncoded_arguments);
BENCHMARK(attend_scalar)->ArgNames({"n", "g"})->Args({4096, 1})->Args({4096, 4});
#if PQATTN_X86_AVX2
BENCHMARK(exact_kernels<pqattn::x86::native, pqattn::half>)->Name("kernels_f16")->Apply(kernel_arguments);
BENCHMARK(exact_kernels<pqattn::x86::avx2, pqattn::half>)->Name("kernels_f16_avx2")->Apply(kernel_arguments);
void decode_tables_avx2(benchmark::State& state) {
  decode_coded<pqattn::isa::avx2, false>(state);
}
void avx2_arguments(benchmark::internal::Benchmark* family) {
  decode_arguments(family)->ArgsProduct({{128}, {64}, {4}, {32768}, {1, 4}, {1}});
}
BENCHMARK(decode_tables_avx2)->Name("decode_attention/tables_avx2")->Apply(avx2_arguments);
#endif

}  // namespace
