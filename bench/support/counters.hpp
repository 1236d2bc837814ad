// SPDX-License-Identifier: MIT
// What every family reports beside its time.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>

#include "pqattn/bank/host/isa.hpp"
#include "support/machine.hpp"

namespace bench {

/// ns per token of one KV head, whatever the number of query rows; bytes per second and their share of what one thread
/// reads from DRAM.
inline void count_tokens(benchmark::State& state, std::size_t tokens, double bytes_per_token) {
  using benchmark::Counter;
  const double done = static_cast<double>(state.iterations()) * static_cast<double>(tokens);
  state.counters["ns_per_token"] = Counter(done * 1e-9, Counter::kIsRate | Counter::kInvert);
  state.counters["bytes_per_second"] = Counter(done * bytes_per_token, Counter::kIsRate);
  state.counters["dram_share"] = Counter(done * bytes_per_token / dram().bytes_per_second, Counter::kIsRate);
}

/// Share of the port bound: the least cycles the counted instructions take, over the cycles taken.
///
/// Counted per token: a look-up of 64 codes in a table of 256 bytes takes two shuffles of 512 bits (one for 16 bytes),
/// one look-up per (group, row) for scores by tables and per channel for values and for keys before RoPE; a multiply-add
/// of 64 bytes per (channel, row) for values, and for keys before RoPE. One shuffle and two vector instructions issue per
/// cycle, so cycles >= max(shuffles, (shuffles + multiply-adds) / 2). Everything else (unpacking, rotation, softmax) is
/// left out: the bound is lower than the truth. It is for 512-bit registers with VBMI; other instruction sets need more.
struct port_bound {
  double shuffles = 0.0;       ///< per token
  double multiply_adds = 0.0;  ///< per token

  static double shuffles_per_look_up(unsigned bits) { return (bits > 6 ? static_cast<double>(1u << (bits - 7)) : 1.0) / 64; }
  [[nodiscard]] double cycles() const { return std::max(shuffles, (shuffles + multiply_adds) / 2.0); }
  port_bound& operator+=(const port_bound& other) {
    shuffles += other.shuffles;
    multiply_adds += other.multiply_adds;
    return *this;
  }
  static port_bound tables(double groups, double rows, unsigned bits) {
    return {groups * rows * shuffles_per_look_up(bits), 0.0};
  }
  static port_bound values(double dim, double rows, unsigned bits) {
    return {dim * shuffles_per_look_up(bits), dim * rows / 64.0};
  }
  static port_bound rotary(double dim, double rows, unsigned bits) { return values(dim, rows, bits); }
};

inline void count_ports(benchmark::State& state, std::size_t tokens, const port_bound& bound) {
  const double done = static_cast<double>(state.iterations()) * static_cast<double>(tokens);
  state.counters["port_share"] =
      benchmark::Counter(done * bound.cycles() / cycles_per_ns() * 1e-9, benchmark::Counter::kIsRate);
}

template <class Isa>
void label(benchmark::State& state) {
  state.SetLabel(pqattn::detail::isa_traits<Isa>::name);
}

}  // namespace bench
