// SPDX-License-Identifier: MIT
// How many 512-bit instructions of the look-up kernels' kind a cycle takes, alone and in the mixtures the kernels have:
// the bounds docs/performance.md holds the kernels against. No instruction waits for a neighbour, except within a
// look-up.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <limits>

#include "support/machine.hpp"

#if PQATTN_X86_AVX512VBMI
namespace {

// zmm0 to zmm15 (and zmm24 to zmm27) are written; zmm16 to zmm23 and zmm28 to zmm31 are loaded before: a register that
// nobody has written since it was cleared is read without a port of the register file. Operands in the order of AT&T.
#define PERMB(r) "vpermb %%zmm19, %%zmm18, %%zmm" #r "\n\t"
#define PERMI2B(r) "vpermi2b %%zmm17, %%zmm16, %%zmm" #r "\n\t"
#define DPBUSD(r) "vpdpbusd %%zmm21, %%zmm20, %%zmm" #r "\n\t"
#define PADDW(r) "vpaddw %%zmm23, %%zmm22, %%zmm" #r "\n\t"
#define PSRLW(r) "vpsrlw $8, %%zmm16, %%zmm" #r "\n\t"
#define BLEND(r) "vpblendmb %%zmm20, %%zmm16, %%zmm" #r "%{%%k1%}\n\t"
#define SIGNS(r) "vpmovb2m %%zmm" #r ", %%k2\n\t"
#define LOAD(r) "vmovdqa64 64(%0), %%zmm" #r "\n\t"
#define STORE(r) "vmovdqa64 %%zmm" #r ", 128(%0)\n\t"

#define SIXTEEN_OF(a) a(0) a(1) a(2) a(3) a(4) a(5) a(6) a(7) a(8) a(9) a(10) a(11) a(12) a(13) a(14) a(15)
#define EIGHT_PAIRS(a, b) a(0) b(1) a(2) b(3) a(4) b(5) a(6) b(7) a(8) b(9) a(10) b(11) a(12) b(13) a(14) b(15)
// The loops of kernels for 64 slots and 256 centroids. Scores: tables in zmm16 to zmm19; codes are loaded once, a blend
// follows two permutes. Values: weights of four rows in zmm20 to zmm23; of four components' tables half is in zmm16 to
// zmm19, half in memory, and the second permute fills in, under a mask, what the first has left.
#define COPY(r, s) "vmovdqa64 %%zmm" #s ", %%zmm" #r "\n\t"
#define SCORE_LOOK_UP(r, s, one, two)                                                          \
  COPY(s, r)                                                                                   \
  "vpermi2b %%zmm17, %%zmm16, %%zmm" #r "\n\tvpermi2b %%zmm19, %%zmm18, %%zmm" #s              \
  "\n\t"                                                                                       \
  "vmovdqu8 %%zmm" #s ", %%zmm" #r "%{%%k2%}\n\tvpaddw %%zmm" #r ", %%zmm" #one ", %%zmm" #one \
  "\n\tvpsrlw $8, %%zmm" #r ", %%zmm" #s "\n\tvpaddw %%zmm" #s ", %%zmm" #two ", %%zmm" #two "\n\t"
#define NOT_SIGNS "knotq %%k2, %%k1\n\t"
#define DOT(value, weight, sum) "vpdpbusd %%zmm" #value ", %%zmm" #weight ", %%zmm" #sum "\n\t"
#define VALUE_LOOK_UP(r, a, b, c, d)                                                                                   \
  "vpermi2b 128(%0), %%zmm16, %%zmm" #r "%{%%k1%}\n\tvpermi2b 192(%0), %%zmm18, %%zmm" #r "%{%%k2%}\n\t" DOT(r, 20, a) \
      DOT(r, 21, b) DOT(r, 22, c) DOT(r, 23, d)
#define LOAD_WEIGHTS \
  "vmovdqa64 (%0), %%zmm20\n\tvmovdqa64 (%0), %%zmm21\n\tvmovdqa64 (%0), %%zmm22\n\tvmovdqa64 (%0), %%zmm23\n\t"

// Keys before RoPE: one pair of channels of 64 slots. Tables of x in zmm16 to zmm19, of y in zmm20 to zmm23; factors in
// zmm28 and zmm29, what the raised part comes to in zmm30 and zmm31.
#define LOOK_UP(r, s, one, two, three, four)                                                                 \
  "vpermi2b %%zmm" #two ", %%zmm" #one ", %%zmm" #r "\n\tvpermi2b %%zmm" #four ", %%zmm" #three ", %%zmm" #s \
  "\n\tvmovdqu8 %%zmm" #s ", %%zmm" #r "%{%%k2%}\n\t"
#define TURN_HALF(key, x, y)                                                                                        \
  "vpmaddubsw %%zmm28, %%zmm" #key ", %%zmm" #x "\n\tvpmaddubsw %%zmm29, %%zmm" #key ", %%zmm" #y                   \
  "\n\tvpaddw %%zmm30, %%zmm" #x ", %%zmm" #x "\n\tvpaddw %%zmm31, %%zmm" #y ", %%zmm" #y "\n\tvpsrlw $7, %%zmm" #x \
  ", %%zmm" #x "\n\tvpaddw %%zmm" #y ", %%zmm" #y ", %%zmm" #y "\n\tvmovdqu8 %%zmm" #y ", %%zmm" #x                 \
  "%{%%k1%}\n\t" STORE(x)
#define TURN(a, b, c, d, e, f)                                                                                \
  LOAD(a)                                                                                                     \
  SIGNS(a)                                                                                                    \
  COPY(b, a) COPY(c, a) COPY(d, a) LOOK_UP(a, b, 16, 17, 18, 19)                                              \
      LOOK_UP(c, d, 20, 21, 22, 23) "vpunpcklbw %%zmm" #c ", %%zmm" #a ", %%zmm" #e "\n\tvpunpckhbw %%zmm" #c \
                                    ", %%zmm" #a ", %%zmm" #f "\n\t" TURN_HALF(e, a, b) TURN_HALF(f, c, d)
// Products of two turned pairs with four rows.
#define LAY_SIDE_BY_SIDE(r, one, two) \
  LOAD(one) "vpunpcklwd 128(%0), %%zmm" #one ", %%zmm" #r "\n\tvpunpckhwd 128(%0), %%zmm" #one ", %%zmm" #two "\n\t"
#define PRODUCTS(a, b, c, d) \
  "vpbroadcastd (%0), %%zmm20\n\t" DOT(20, 24, a) DOT(20, 25, b) DOT(20, 26, c) DOT(20, 27, d)

// The search in integers: weights in zmm16 and zmm17, queries in zmm18 and zmm19, the two least sums in zmm14 and
// zmm15.
#define ADD_PAIR(unpack, two, weight, query)                                                                     \
#unpack " %%zmm" #two ", %%zmm20, %%zmm6\n\tvpmulhrsw %%zmm" #weight ", %%zmm6, %%zmm7\n\tvpsubw %%zmm" #query \
          ", %%zmm7, %%zmm7\n\tvpdpwssds %%zmm7, %%zmm6, %%zmm8\n\t"
#define SIXTEEN_CENTROIDS(unpack, first, second) \
  LOAD(8)                                        \
  ADD_PAIR(unpack, first, 16, 18)                \
  ADD_PAIR(unpack, second, 17, 19)               \
  "vpmaxsd %%zmm14, %%zmm8, %%zmm9\n\tvpminsd %%zmm14, %%zmm8, %%zmm14\n\tvpminsd %%zmm9, %%zmm15, %%zmm15\n\t"
#define LAY_BYTES_SIDE_BY_SIDE(r, low, high) \
  LOAD(r) "vpunpcklbw 128(%0), %%zmm" #r ", %%zmm" #low "\n\tvpunpckhbw 128(%0), %%zmm" #r ", %%zmm" #high "\n\t"

constexpr int rounds = 1000;

/// Cycles of one of the `rounds` rounds of `body`, at best.
template <class Body>
double cycles_of(benchmark::State& state, const Body& body) {
  double best = std::numeric_limits<double>::max();
  for (auto iteration : state) {
    best = std::min(best, bench::seconds_of(body) * 1e9 / rounds);
  }
  return best / bench::vector_cycle_ns();
}

alignas(64) std::byte memory[256];

void load_sources() {
  asm volatile(
      "vmovdqa64 (%0), %%zmm16\n\tvmovdqa64 (%0), %%zmm17\n\tvmovdqa64 (%0), %%zmm18\n\tvmovdqa64 (%0), %%zmm19\n\t"
      "vmovdqa64 (%0), %%zmm20\n\tvmovdqa64 (%0), %%zmm21\n\tvmovdqa64 (%0), %%zmm22\n\tvmovdqa64 (%0), %%zmm23\n\t"
      "vmovdqa64 (%0), %%zmm28\n\tvmovdqa64 (%0), %%zmm29\n\tvmovdqa64 (%0), %%zmm30\n\tvmovdqa64 (%0), %%zmm31" ::"r"(
          memory)
      : "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm28", "xmm29", "xmm30", "xmm31");
}

/// The counter `figure` becomes `value`, in terms of the cycles that a round of `body` takes.
#define MIXTURE(name, figure, value, body)                                                                             \
  void name(benchmark::State& state) {                                                                                 \
    const double cycles = cycles_of(state, [] {                                                                        \
      load_sources();                                                                                                  \
      for (int i = 0; i < rounds; ++i) {                                                                               \
        asm volatile(body ::"r"(memory)                                                                                \
                     : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",       \
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm24", "xmm25", "xmm26", "xmm27", "k1", \
                       "k2");                                                                                          \
      }                                                                                                                \
    });                                                                                                                \
    state.counters[#figure] = value;                                                                                   \
  }                                                                                                                    \
  BENCHMARK(name)->Name("instructions/" #name)

MIXTURE(vpermb, per_cycle, 16 / cycles, SIXTEEN_OF(PERMB));
MIXTURE(vpermi2b, per_cycle, 16 / cycles, SIXTEEN_OF(PERMI2B));
MIXTURE(vpdpbusd, per_cycle, 16 / cycles, SIXTEEN_OF(DPBUSD));
MIXTURE(vpaddw, per_cycle, 16 / cycles, SIXTEEN_OF(PADDW));
MIXTURE(vpsrlw, per_cycle, 16 / cycles, SIXTEEN_OF(PSRLW));
MIXTURE(vpblendmb, per_cycle, 16 / cycles, SIXTEEN_OF(BLEND));
MIXTURE(stores, per_cycle, 16 / cycles, SIXTEEN_OF(STORE));
MIXTURE(vpermb_and_vpdpbusd, per_cycle, 16 / cycles, EIGHT_PAIRS(PERMB, DPBUSD));
MIXTURE(vpermi2b_and_vpdpbusd, per_cycle, 16 / cycles, EIGHT_PAIRS(PERMI2B, DPBUSD));
MIXTURE(vpermi2b_and_vpaddw, per_cycle, 16 / cycles, EIGHT_PAIRS(PERMI2B, PADDW));
MIXTURE(vpermi2b_and_vpmovb2m, per_cycle, 16 / cycles, EIGHT_PAIRS(PERMI2B, SIGNS));
MIXTURE(vpermb_and_stores, per_cycle, 16 / cycles, EIGHT_PAIRS(PERMB, STORE));
MIXTURE(vpermi2b_and_stores, per_cycle, 16 / cycles, EIGHT_PAIRS(PERMI2B, STORE));
MIXTURE(look_up_of_scores, cycles, cycles / 4,
        LOAD(0) SIGNS(0) COPY(2, 0) SCORE_LOOK_UP(0, 1, 8, 9) SCORE_LOOK_UP(2, 3, 10, 11) LOAD(4) SIGNS(4) COPY(6, 4)
            SCORE_LOOK_UP(4, 5, 12, 13) SCORE_LOOK_UP(6, 7, 14, 15));
MIXTURE(look_up_of_values_four_rows, cycles, cycles / 4,
        LOAD_WEIGHTS LOAD(0) SIGNS(0) NOT_SIGNS COPY(1, 0) COPY(2, 0) COPY(3, 0) VALUE_LOOK_UP(0, 4, 5, 6, 7)
            VALUE_LOOK_UP(1, 8, 9, 10, 11) VALUE_LOOK_UP(2, 12, 13, 14, 15) VALUE_LOOK_UP(3, 24, 25, 26, 27));
MIXTURE(turn_of_a_pair, cycles, cycles / 2, TURN(0, 1, 2, 3, 4, 5) TURN(6, 7, 8, 9, 10, 11));
MIXTURE(products_of_a_pair_four_rows, cycles, cycles / 2,
        LAY_SIDE_BY_SIDE(24, 26, 25) LAY_SIDE_BY_SIDE(26, 21, 27) PRODUCTS(0, 1, 2, 3) PRODUCTS(4, 5, 6, 7)
            PRODUCTS(8, 9, 10, 11) PRODUCTS(12, 13, 14, 15));
MIXTURE(distances_of_16_centroids, cycles, cycles / 4,
        LAY_BYTES_SIDE_BY_SIDE(0, 2, 3) LAY_BYTES_SIDE_BY_SIDE(1, 4, 5) SIXTEEN_CENTROIDS(vpunpcklbw, 2, 4)
            SIXTEEN_CENTROIDS(vpunpckhbw, 2, 4) SIXTEEN_CENTROIDS(vpunpcklbw, 3, 5)
                SIXTEEN_CENTROIDS(vpunpckhbw, 3, 5));

}  // namespace
#endif  // PQATTN_X86_AVX512VBMI
