// SPDX-License-Identifier: MIT
// The x86 kernels one by one, and the caches a user would build instead. Inputs are random and fixed; ns_per_token is
// per token and KV head, whatever the number of query rows.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "baselines/block_scaled_cache.hpp"
#include "baselines/exact_cache.hpp"
#include "pqattn/bank/host/x86/exact_rows.hpp"
#include "pqattn/bank/host/x86/nearest.hpp"
#include "pqattn/bank/host/x86/rotary_score.hpp"
#include "pqattn/bank/host/x86/softmax.hpp"
#include "pqattn/bank/host/x86/table_score.hpp"
#include "pqattn/bank/host/x86/value_sum.hpp"
#include "support/coded_heads.hpp"
#include "support/machine.hpp"

#if PQATTN_X86_AVX2
namespace {

using pqattn::x86::native;
using rotary_narrow = pqattn::x86::rotary_narrow<native>;
using rotary_few = pqattn::x86::rotary_few<native>;

class aligned_block {
 public:
  explicit aligned_block(std::size_t bytes) : data_(::operator new (bytes + 64, std::align_val_t{64})) {
    std::memset(data_, 0, bytes + 64);
  }
  aligned_block(const aligned_block&) = delete;
  aligned_block& operator=(const aligned_block&) = delete;
  ~aligned_block() { ::operator delete (data_, std::align_val_t{64}); }
  [[nodiscard]] void* data() const { return data_; }

 private:
  void* data_;
};

std::vector<float> normals(std::size_t count, float scale = 1.0f) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) {
    value = normal(random);
  }
  return values;
}

/// Random codes of `tokens` tokens and a byte codebook, 128 channels in the order of their pairs.
struct coded_head {
  std::vector<std::uint16_t> order = pair_order();
  pqattn::geometry shape;
  std::size_t tokens;
  std::vector<float> scale = std::vector<float>(128, 0.02f);
  std::vector<float> offset = std::vector<float>(128, 0.1f);  // of values; keys that turn have none
  aligned_block tables;
  aligned_block codes;

  coded_head(std::uint32_t subvectors, std::uint32_t centroids, std::size_t count)
      : shape{128, subvectors, centroids, 1, order.data()},
        tokens(count),
        tables(128 * pqattn::x86::table_bytes(shape.code_bits())),
        codes(count / 64 * block_bytes()) {
    std::mt19937 random(1);
    for (std::size_t i = 0; i < 128 * pqattn::x86::table_bytes(shape.code_bits()); ++i) {
      static_cast<std::int8_t*>(tables.data())[i] = static_cast<std::int8_t>(static_cast<int>(random() % 179) - 89);
    }
    for (std::size_t i = 0; i < count / 64 * block_bytes(); ++i) {
      static_cast<std::uint8_t*>(codes.data())[i] = static_cast<std::uint8_t>(random());
    }
  }
  coded_head(const coded_head&) = delete;
  coded_head& operator=(const coded_head&) = delete;
  static std::vector<std::uint16_t> pair_order() {
    const bench::rotation_of turning(128);
    return {turning.order(), turning.order() + 128};
  }
  [[nodiscard]] std::size_t block_bytes() const { return std::size_t{shape.groups()} * 8 * shape.code_bits(); }
  [[nodiscard]] pqattn::x86::byte_codebook book() const {
    return {static_cast<const std::int8_t*>(tables.data()), scale.data(), offset.data()};
  }
  [[nodiscard]] pqattn::x86::slot_run run() const {
    return {static_cast<const std::uint8_t*>(codes.data()), nullptr, block_bytes(), 0, tokens};
  }
};

void count_tokens(benchmark::State& state, std::size_t tokens, std::size_t bytes_per_token) {
  const auto done = static_cast<double>(state.iterations()) * static_cast<double>(tokens);
  state.counters["ns_per_token"] =
      benchmark::Counter(done * 1e-9, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  state.counters["bytes_per_second"] =
      benchmark::Counter(done * static_cast<double>(bytes_per_token), benchmark::Counter::kIsRate);
  if (const double cycle = bench::vector_cycle_ns(); cycle > 0.0) {
    state.counters["cycles_per_token"] =
        benchmark::Counter(done * 1e-9 * cycle, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  }
  state.SetLabel(native::name);
}

/// Arguments: subvectors, centroids, tokens, query rows.
coded_head head_of(const benchmark::State& state) {
  return {static_cast<std::uint32_t>(state.range(0)), static_cast<std::uint32_t>(state.range(1)),
          static_cast<std::size_t>(state.range(2))};
}

/// Everything a call prepares for keys coded before RoPE, on a codebook that was stored for the rotation, and scores.
template <class Kernel>
class rotary_head {
 public:
  rotary_head(const coded_head& head, std::size_t rows)
      : head_(head),
        rows_(rows),
        rotation_(turning_.get()),
        book_memory_(pqattn::x86::rotary_book_bytes(head.shape, rotation_)),
        turns_(Kernel::table_bytes_for(64)),
        query_memory_(pqattn::x86::rotary_query_bytes<Kernel>(64, rows)),
        scratch_(pqattn::x86::rotary_scratch_bytes<Kernel>(head.shape, rotation_, rows)) {}

  void prepare(const std::vector<float>& queries) {
    pqattn::x86::list_rotary_pairs(head_.shape, rotation_, head_.book(), book_memory_.data());
    pqattn::x86::prepare_rotary_queries<Kernel>(book(), queries.data(), rows_, 128, query_memory_.data());
    pqattn::x86::fill_row_tables<Kernel>(pqattn::x86::rotary_queries_at(64, rows_, query_memory_.data()));
    pqattn::x86::finish_rotary_book<Kernel>(head_.shape, rotation_, head_.book().bytes, book_memory_.data());
    pqattn::x86::fill_turns<Kernel>(rotation_, nullptr, turns_.data());
  }
  void score(const pqattn::x86::slot_run& run, float* out, std::size_t stride) {
    pqattn::x86::rotary_score<Kernel>(book(), rotation_, turns_.data(),
                                      pqattn::x86::rotary_queries_at(64, rows_, query_memory_.data()), run,
                                      pqattn::slot_positions{}, out, stride, scratch_.data());
  }

 private:
  [[nodiscard]] pqattn::x86::rotary_book book() const {
    const bool own = Kernel::raised_tables || Kernel::by_phase;
    return pqattn::x86::rotary_book_at(head_.shape, rotation_, book_memory_.data(), own ? nullptr : head_.book().bytes);
  }

  const coded_head& head_;
  std::size_t rows_;
  bench::rotation_of turning_ = bench::rotation_of(128);
  const pqattn::rope& rotation_;
  aligned_block book_memory_;
  aligned_block turns_;
  aligned_block query_memory_;
  aligned_block scratch_;
};

template <class Kernel>
void rotary_score(benchmark::State& state) {
  const coded_head head = head_of(state);
  const auto rows = static_cast<std::size_t>(state.range(3));
  rotary_head<Kernel> keys(head, rows);
  keys.prepare(normals(rows * 128, 0.3f));
  const aligned_block out(rows * head.tokens * sizeof(float));
  for (auto iteration : state) {
    keys.score(head.run(), static_cast<float*>(out.data()), head.tokens);
    benchmark::ClobberMemory();
  }
  count_tokens(state, head.tokens, head.block_bytes() / 64);
}

void table_score(benchmark::State& state, pqattn::x86::table_precision precision) {
  const coded_head head = head_of(state);
  const auto rows = static_cast<std::size_t>(state.range(3));
  const std::vector<float> queries = normals(rows * 128, 0.3f);
  const aligned_block memory(pqattn::x86::score_table_bytes(head.shape, rows, precision));
  const aligned_block build_scratch(pqattn::x86::score_table_scratch_bytes(head.shape));
  const aligned_block out(rows * head.tokens * sizeof(float));
  pqattn::x86::build_score_tables<native>(head.shape, head.book(), queries.data(), rows, 128, precision, memory.data(),
                                          build_scratch.data());
  for (auto iteration : state) {
    pqattn::x86::table_score<native>(head.shape,
                                     pqattn::x86::score_tables_at(head.shape, rows, precision, memory.data()),
                                     head.run(), static_cast<float*>(out.data()), head.tokens);
    benchmark::ClobberMemory();
  }
  count_tokens(state, head.tokens, head.block_bytes() / 64);
}

void build_tables(benchmark::State& state) {
  const coded_head head = head_of(state);
  const auto rows = static_cast<std::size_t>(state.range(3));
  const std::vector<float> queries = normals(rows * 128, 0.3f);
  const auto precision = pqattn::x86::table_precision::bytes;
  const aligned_block memory(pqattn::x86::score_table_bytes(head.shape, rows, precision));
  const aligned_block scratch(pqattn::x86::score_table_scratch_bytes(head.shape));
  for (auto iteration : state) {
    pqattn::x86::build_score_tables<native>(head.shape, head.book(), queries.data(), rows, 128, precision,
                                            memory.data(), scratch.data());
    benchmark::ClobberMemory();
  }
  state.SetLabel(native::name);
}

/// What attention does once per call for keys coded before RoPE, on a codebook that was stored for the rotation.
template <class Kernel>
void prepare_rotary(benchmark::State& state) {
  const coded_head head = head_of(state);
  const auto rows = static_cast<std::size_t>(state.range(3));
  rotary_head<Kernel> keys(head, rows);
  const std::vector<float> queries = normals(rows * 128, 0.3f);
  for (auto iteration : state) {
    keys.prepare(queries);
    benchmark::ClobberMemory();
  }
  state.SetLabel(native::name);
}

/// Probabilities of one row after the other: those of a softmax of normal scores, or the worst there are, as many equal
/// ones as can lie above the largest byte, at random places, and nothing else.
std::vector<float> probabilities_of(std::size_t rows, std::size_t tokens, bool worst) {
  std::vector<float> result = normals(rows * tokens);
  for (float& p : result) {
    p = worst ? 0.0f : std::exp(p);
  }
  std::mt19937 random(5);
  const float room = native::byte_limit - 1.0f;
  const float share = room * room * 6.0f * pqattn::x86::value_noise;
  const auto peaks = static_cast<std::size_t>(static_cast<float>(tokens) / share);
  for (std::size_t i = 0; worst && i < rows * peaks; ++i) {
    result[i % rows * tokens + random() % tokens] = 1.0f;
  }
  return result;
}

void value_sum(benchmark::State& state, bool worst) {
  const coded_head head = head_of(state);
  const auto rows = static_cast<std::size_t>(state.range(3));
  const std::vector<float> probabilities = probabilities_of(rows, head.tokens, worst);
  const aligned_block scratch(pqattn::x86::value_scratch_bytes<native>(head.shape, rows));
  std::vector<float> out(rows * 128);
  std::size_t skipped = 0;
  for (auto iteration : state) {
    pqattn::x86::value_sum<native>(head.shape, head.book(), head.run(), probabilities.data(), head.tokens, rows,
                                   nullptr, out.data(), 128, skipped, scratch.data());
    benchmark::ClobberMemory();
  }
  count_tokens(state, head.tokens, head.block_bytes() / 64);
}

/// Whole decode attention on codes, keys and values alike: everything prepared for each call as the bank does, scores,
/// softmax, values. Kernel: that of keys before RoPE, or void for tables. Arguments as above.
template <class Kernel>
void decode(benchmark::State& state) {
  constexpr bool rotary = !std::is_void_v<Kernel>;
  constexpr std::size_t tile = 4096;
  const coded_head head = head_of(state);
  const auto rows = static_cast<std::size_t>(state.range(3));
  const auto precision = pqattn::x86::table_precision::bytes;
  rotary_head<std::conditional_t<rotary, Kernel, rotary_narrow>> keys(head, rows);
  const aligned_block tables(pqattn::x86::score_table_bytes(head.shape, rows, precision));
  const aligned_block scratch(pqattn::x86::score_table_scratch_bytes(head.shape) +
                              pqattn::x86::value_scratch_bytes<native>(head.shape, rows));
  const aligned_block score_memory(rows * tile * sizeof(float));
  auto* scores = static_cast<float*>(score_memory.data());
  const std::vector<float> queries = normals(rows * 128, 0.05f);
  std::vector<float> out(rows * 128);
  std::vector<float> maximum(rows);
  std::vector<float> sum(rows);
  std::size_t skipped = 0;
  for (auto iteration : state) {
    if constexpr (rotary) {
      keys.prepare(queries);
    } else {
      pqattn::x86::build_score_tables<native>(head.shape, head.book(), queries.data(), rows, 128, precision,
                                              tables.data(), scratch.data());
    }
    std::fill(out.begin(), out.end(), 0.0f);
    std::fill(maximum.begin(), maximum.end(), pqattn::masked_score);
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (std::size_t first = 0; first < head.tokens; first += tile) {
      pqattn::x86::slot_run run = head.run();
      run.first = first;
      run.count = std::min(tile, head.tokens - first);
      if constexpr (rotary) {
        keys.score(run, scores, tile);
      } else {
        pqattn::x86::table_score<native>(
            head.shape, pqattn::x86::score_tables_at(head.shape, rows, precision, tables.data()), run, scores, tile);
      }
      for (std::size_t row = 0; row < rows; ++row) {
        float rescale = 1.0f;
        pqattn::x86::softmax_row<native>(scores + row * tile, run.count, pqattn::masked_score, maximum[row], sum[row],
                                         rescale);
        for (std::size_t c = 0; c < 128; ++c) {
          out[row * 128 + c] *= rescale;
        }
      }
      pqattn::x86::value_sum<native>(head.shape, head.book(), run, scores, tile, rows, nullptr, out.data(), 128,
                                     skipped, scratch.data());
    }
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t c = 0; c < 128; ++c) {
        out[row * 128 + c] /= sum[row];
      }
    }
    benchmark::DoNotOptimize(out.data());
    benchmark::ClobberMemory();
  }
  count_tokens(state, head.tokens, 2 * head.block_bytes() / 64);
}

template <class Element>
struct exact_head {
  std::vector<Element> keys;
  std::vector<Element> values;
  std::size_t tokens;

  explicit exact_head(std::size_t count) : keys(count * 128), values(count * 128), tokens(count) {
    const std::vector<float> pattern = normals(128 * 1024);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if constexpr (std::is_same_v<Element, pqattn::half>) {
        keys[i] = values[i] = pqattn::to_half(pattern[i % pattern.size()]);
      } else {
        keys[i] = values[i] = pattern[i % pattern.size()];
      }
    }
  }
  [[nodiscard]] pqattn::x86::exact_rows<Element> rows(const std::vector<Element>& of) const {
    return {of.data(), tokens, 128, 128};
  }
};

/// Arguments: tokens, query rows.
template <class Isa, class Element>
void attend_exact(benchmark::State& state) {
  const exact_head<Element> head(static_cast<std::size_t>(state.range(0)));
  const auto rows = static_cast<std::size_t>(state.range(1));
  const std::vector<float> queries = normals(rows * 128, 0.1f);
  std::vector<float> out(rows * 128);
  for (auto iteration : state) {
    bench::attend_exact<Isa>(head.rows(head.keys), head.rows(head.values), queries.data(), rows, out.data());
    benchmark::ClobberMemory();
  }
  count_tokens(state, head.tokens, 2 * 128 * sizeof(Element));
  state.SetLabel(Isa::name);
}

template <int Bits>
void attend_block_scaled(benchmark::State& state) {
  using cache_type = bench::block_scaled_attention<Bits>;
  if (!cache_type::supported) {
    state.SkipWithError("needs AVX-512 VNNI");
    return;
  }
  const auto tokens = static_cast<std::size_t>(state.range(0));
  const auto rows = static_cast<std::size_t>(state.range(1));
  auto cache = std::make_unique<cache_type>();
  const std::vector<float> pattern = normals(128 * 1024);
  for (std::size_t t = 0; t < tokens; ++t) {
    cache->keys.append(pattern.data() + t % 1024 * 128);
    cache->values.append(pattern.data() + (t + 5) % 1024 * 128);
  }
  const std::vector<float> queries = normals(rows * 128, 0.1f);
  std::vector<float> out(rows * 128);
  for (auto iteration : state) {
    cache->attend(queries.data(), rows, out.data());
    benchmark::ClobberMemory();
  }
  // The result must be attention: compare the first row with plain loops over what the cache holds.
  double largest = -1e30;
  std::vector<double> scores(tokens);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t c = 0; c < 128; ++c) {
      scores[t] += static_cast<double>(queries[c]) * static_cast<double>(cache->keys.at(t, c));
    }
    largest = std::max(largest, scores[t]);
  }
  double error = 0.0;
  double signal = 0.0;
  double total = 0.0;
  std::vector<double> want(128);
  for (std::size_t t = 0; t < tokens; ++t) {
    const double weight = std::exp(scores[t] - largest);
    total += weight;
    for (std::size_t c = 0; c < 128; ++c) {
      want[c] += weight * static_cast<double>(cache->values.at(t, c));
    }
  }
  for (std::size_t c = 0; c < 128; ++c) {
    const double difference = static_cast<double>(out[c]) - want[c] / total;
    error += difference * difference;
    signal += want[c] / total * (want[c] / total);
  }
  if (!(error <= 1e-3 * signal)) {
    state.SkipWithError("the baseline computes something else");
    return;
  }
  count_tokens(state, tokens, 2 * cache->keys.row_bytes());
}

/// One Lloyd iteration of one head: 4096 points of 128 channels, 32 sub-vectors, 256 centroids.
void lloyd_iteration(benchmark::State& state) {
  constexpr std::size_t points = 4096;
  const std::vector<float> values = normals(points * 128);
  std::vector<float> centroids = normals(32 * 256 * 4, 0.9f);
  std::vector<std::uint16_t> codes(points);
  std::vector<float> distances(points);
  std::vector<double> sums(256 * 4);
  std::vector<double> mass(256);
  for (auto iteration : state) {
    for (std::size_t group = 0; group < 32; ++group) {
      const float* sub = values.data() + group * 4 * points;
      pqattn::x86::assign_points<native>(sub, points, points, 4, centroids.data() + group * 1024, 256, codes.data(),
                                         distances.data());
      std::fill(sums.begin(), sums.end(), 0.0);
      std::fill(mass.begin(), mass.end(), 0.0);
      pqattn::x86::add_points(sub, points, points, 4, nullptr, codes.data(), sums.data(), mass.data());
    }
    benchmark::ClobberMemory();
  }
  state.SetLabel(native::name);
}

/// One 128-channel vector at a time, 32 sub-vectors, 256 centroids; so many vectors that no branch is learned by heart.
template <class Planes>
void encode_with(benchmark::State& state, const Planes& planes) {
  constexpr std::size_t count = 4096;
  const std::vector<float> vectors = normals(count * 128);
  const pqattn::geometry shape{128, 32, 256};
  std::uint16_t codes[32];
  std::size_t vector = 0;
  for (auto iteration : state) {
    pqattn::group_walk at(shape);
    pqattn::x86::nearest_centroids<native, 1>(planes, shape, at, vectors.data() + vector * 128, 0, codes, 0);
    vector = (vector + 1) % count;
    benchmark::DoNotOptimize(codes);
    benchmark::ClobberMemory();
  }
  state.counters["ns_per_vector"] = benchmark::Counter(static_cast<double>(state.iterations()) * 1e-9,
                                                       benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  state.SetLabel(native::name);
}

void encode_floats(benchmark::State& state) {
  const std::vector<float> numbers = normals(128 * 256);
  encode_with(state, pqattn::x86::float_planes{numbers.data(), 256});
}

void encode_bytes(benchmark::State& state) {
  std::vector<std::int8_t> numbers(128 * 256);
  std::mt19937 random(2);
  for (std::int8_t& number : numbers) {
    number = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
  }
  const std::vector<float> scale(128, 0.02f);
  const std::vector<float> offset(128, 0.1f);
  encode_with(state, pqattn::x86::byte_planes{numbers.data(), scale.data(), offset.data(), 256});
}

constexpr std::int64_t cached = 4096;
constexpr std::int64_t decoded = 32768;
constexpr std::int64_t large = 131072;

void coded_arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"m", "K", "n", "g"});
  for (const std::int64_t rows : {1, 4, 8}) {
    bench->Args({32, 256, cached, rows});
    bench->Args({64, 16, cached, rows});
  }
  bench->Args({32, 256, cached, 32});
  bench->Args({64, 256, cached, 4});
  bench->Args({32, 256, large, 4});
}

void decode_arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"m", "K", "n", "g"});
  for (const std::int64_t rows : {1, 4, 8}) {
    bench->Args({32, 256, decoded, rows});
    bench->Args({64, 256, decoded, rows});
    bench->Args({64, 16, decoded, rows});
  }
}

void exact_arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"n", "g"});
  for (const std::int64_t tokens : {cached, decoded, large}) {
    for (const std::int64_t rows : {1, 4, 8}) {
      bench->Args({tokens, rows});
    }
  }
}

BENCHMARK(rotary_score<rotary_few>)->Name("rotary_score/phases")->Apply(coded_arguments);
BENCHMARK(rotary_score<rotary_narrow>)->Name("rotary_score/bytes")->Apply(coded_arguments);
BENCHMARK(rotary_score<pqattn::x86::rotary_words<native>>)->Name("rotary_score/words")->Apply(coded_arguments);
BENCHMARK_CAPTURE(table_score, bytes, pqattn::x86::table_precision::bytes)->Apply(coded_arguments);
BENCHMARK_CAPTURE(table_score, words, pqattn::x86::table_precision::words)->Apply(coded_arguments);
BENCHMARK_CAPTURE(value_sum, softmax, false)->Apply(coded_arguments);
BENCHMARK_CAPTURE(value_sum, worst, true)->Apply(coded_arguments);
BENCHMARK(decode<void>)->Name("decode_attention/tables")->Apply(decode_arguments);
BENCHMARK(decode<rotary_few>)->Name("decode_attention/phases")->Apply(decode_arguments);
BENCHMARK(decode<rotary_narrow>)->Name("decode_attention/bytes")->Apply(decode_arguments);
BENCHMARK(build_tables)->ArgNames({"m", "K", "n", "g"})->Args({32, 256, 64, 1})->Args({32, 256, 64, 4});
BENCHMARK(prepare_rotary<rotary_few>)
    ->Name("prepare_rotary/phases")
    ->ArgNames({"m", "K", "n", "g"})
    ->Args({32, 256, 64, 1})
    ->Args({32, 256, 64, 4});
BENCHMARK(prepare_rotary<rotary_narrow>)
    ->Name("prepare_rotary/bytes")
    ->ArgNames({"m", "K", "n", "g"})
    ->Args({32, 256, 64, 1})
    ->Args({32, 256, 64, 4});
BENCHMARK(attend_exact<native, pqattn::half>)->Name("attend_f16")->Apply(exact_arguments);
BENCHMARK(attend_exact<native, float>)->Name("attend_f32")->Apply(exact_arguments);
BENCHMARK(attend_exact<pqattn::x86::avx2, pqattn::half>)->Name("attend_f16_avx2")->Apply(exact_arguments);
BENCHMARK(attend_block_scaled<8>)->Name("attend_int8")->Apply(exact_arguments);
BENCHMARK(attend_block_scaled<4>)->Name("attend_int4")->Apply(exact_arguments);
BENCHMARK(lloyd_iteration)->Unit(benchmark::kMillisecond);
BENCHMARK(encode_floats);
BENCHMARK(encode_bytes);

}  // namespace
#endif  // PQATTN_X86_AVX2
