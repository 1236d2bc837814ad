// SPDX-License-Identifier: MIT
// What every family reports beside its time, and the arguments of components.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "pqattn/bank/host/isa.hpp"
#include "support/machine.hpp"

namespace bench {

/// Bytes per second, of `bytes` in each iteration, and their share of what one thread reads from DRAM.
inline void count_bytes(benchmark::State& state, double bytes) {
  using benchmark::Counter;
  const double done = static_cast<double>(state.iterations()) * bytes;
  state.counters["bytes_per_second"] = Counter(done, Counter::kIsRate);
  state.counters["dram_share"] = Counter(done / dram().bytes_per_second, Counter::kIsRate);
}

/// ns per token of one KV head, whatever the number of query rows, and the bytes of the tokens.
inline void count_tokens(benchmark::State& state, std::size_t tokens, double bytes_per_token) {
  using benchmark::Counter;
  const double done = static_cast<double>(state.iterations()) * static_cast<double>(tokens);
  state.counters["ns_per_token"] = Counter(done * 1e-9, Counter::kIsRate | Counter::kInvert);
  count_bytes(state, static_cast<double>(tokens) * bytes_per_token);
}

/// Share of the port bound: the least cycles the counted instructions take, over the cycles taken.
///
/// One shuffle and two vector instructions of 512 bits issue per cycle, or twice as many of 256 bits, of which two
/// count as one here: cycles >= max(shuffles, (shuffles + arithmetic) / 2). Counted for codes: look-ups (see
/// shuffles_per_look_up) and the dot products of bytes or words that follow them. Counted for distances: the
/// subtraction and the multiply-add of 16 f32 lanes. Everything else (unpacking, the turns of keys, softmax, minima) is
/// left out: the bound is lower than the truth. Zen 5 issues more than that, two shuffles, or two multiply-adds beside
/// two subtractions: up to a factor of two, by which the share may exceed 1 there.
template <class Isa = pqattn::isa::native>
struct port_bound {
  double shuffles = 0.0;    ///< per token or point
  double arithmetic = 0.0;  ///< per token or point

  static constexpr bool vbmi = std::is_same_v<Isa, pqattn::isa::avx512vbmi>;
  static constexpr bool words = std::is_same_v<Isa, pqattn::isa::avx512>;
  /// Other instruction sets run portable code, whose instructions the compiler chooses.
  static constexpr bool known = vbmi || words || std::is_same_v<Isa, pqattn::isa::avx2>;
  /// Of 64 bytes: one instruction with VNNI, elsewhere products, sums of pairs and the addition.
  static constexpr double dot_of_bytes = vbmi ? 1.0 : 3.0;

  [[nodiscard]] double cycles() const { return std::max(shuffles, (shuffles + arithmetic) / 2.0); }
  port_bound& operator+=(const port_bound& other) {
    shuffles += other.shuffles;
    arithmetic += other.arithmetic;
    return *this;
  }

  /// One code in a table of 2^bits bytes. VBMI: 64 codes in 128 entries at a time (vpermi2b). Without it: 32 words of
  /// 128 entries (vpermi2w), so once for even and once for odd codes, or 16 entries (vpshufb), all that AVX2 has.
  static double shuffles_per_look_up(unsigned bits) {
    const auto tables_of = [&](unsigned log_entries) {
      return bits > log_entries ? static_cast<double>(1u << (bits - log_entries)) : 1.0;
    };
    return (vbmi ? tables_of(7) : words && bits > 4 ? 2.0 * tables_of(7) : tables_of(4)) / 64.0;
  }

  /// Scores by tables: a look-up per (group, row); their additions are not counted.
  static port_bound tables(double groups, double rows, unsigned bits) {
    return {groups * rows * shuffles_per_look_up(bits), 0.0};
  }
  /// Values: a look-up per channel, a dot product of 64 slots per (channel, row).
  static port_bound values(double dim, double rows, unsigned bits) {
    return {dim * shuffles_per_look_up(bits), dim * rows * dot_of_bytes / 64.0};
  }
  /// Keys before RoPE. With VBMI and up to two rows by phases, if both channels of every pair are in one sub-vector, as
  /// in the order a cache has: per pair a look-up of its phase and one of its length, and per row one of the cosine in
  /// a table of 128 bytes (vpermi2b) and a dot product of 64 bytes. More rows, by components: as values. Without VBMI
  /// components are words: per (channel, row) two instructions, products and sums, of 32 words each.
  static port_bound rotary(double dim, double rows, unsigned bits) {
    constexpr double most_rows_by_phase = 2;
    if (vbmi && rows <= most_rows_by_phase) {
      const double pairs = dim / 2.0;
      return {pairs * (2.0 * shuffles_per_look_up(bits) + rows / 64.0), pairs * rows / 64.0};
    }
    const double dot = vbmi ? 1.0 / 64.0 : 2.0 / 32.0;
    return {dim * shuffles_per_look_up(bits), dim * rows * dot};
  }
  /// Squared distances of a point to all centroids in f32: of each coordinate a difference and a multiply-add, 16 lanes
  /// at once. A search in integers may need less.
  static port_bound distances(double dim, double centroids) { return {0.0, 2.0 * dim * centroids / 16.0}; }
};

/// `tokens` (or points) in each iteration.
template <class Isa>
void count_ports(benchmark::State& state, std::size_t tokens, const port_bound<Isa>& bound) {
  if constexpr (port_bound<Isa>::known) {
    const double done = static_cast<double>(state.iterations()) * static_cast<double>(tokens);
    state.counters["port_share"] =
        benchmark::Counter(done * bound.cycles() / cycles_per_ns() * 1e-9, benchmark::Counter::kIsRate);
  }
}

/// Arguments d, m, bits, n, g of a component: the codings of decode attention and 9 bits, for each number of tokens.
inline void component_arguments(benchmark::internal::Benchmark* family, std::initializer_list<std::int64_t> lengths) {
  family->ArgNames({"d", "m", "bits", "n", "g"})->UseRealTime();
  for (const std::int64_t dim : {128, 64}) {
    const std::int64_t codings[][2] = {{dim / 4, 8}, {dim / 2, 8}, {dim / 2, 4}, {dim / 8, 8}, {dim / 4, 9}};
    for (const auto& [subvectors, bits] : codings) {
      for (const std::int64_t tokens : lengths) {
        for (const std::int64_t rows : {1, 4, 8}) {
          family->Args({dim, subvectors, bits, tokens, rows});
        }
      }
    }
  }
}

template <class Isa>
void label(benchmark::State& state) {
  state.SetLabel(pqattn::detail::isa_traits<Isa>::name);
}

}  // namespace bench
