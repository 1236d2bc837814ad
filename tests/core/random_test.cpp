// SPDX-License-Identifier: MIT
#include "pqattn/core/random.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <set>

TEST_CASE("the generator is the published SplitMix64", "[core]") {
  // First outputs of SplitMix64 from state 0 and 1234567 (Steele, Lea, Flood 2014; the reference code of xoshiro).
  pqattn::random_source zero(0);
  CHECK(zero.next() == 0xe220a8397b1dcdafULL);
  CHECK(zero.next() == 0x6e789e6aa1b965f4ULL);
  CHECK(zero.next() == 0x06c45d188009454fULL);
  pqattn::random_source other(1234567);
  CHECK(other.next() == 6457827717110365317ULL);
  CHECK(other.next() == 3203168211198807973ULL);
}

TEST_CASE("uniform numbers are uniform and below the bound", "[core]") {
  pqattn::random_source random(7);
  double sum = 0.0;
  double square = 0.0;
  int bins[10] = {};
  constexpr int count = 100000;
  for (int i = 0; i < count; ++i) {
    const double x = random.uniform();
    REQUIRE((x >= 0.0 && x < 1.0));
    sum += x;
    square += x * x;
    ++bins[random.below(10)];
  }
  CHECK(std::abs(sum / count - 0.5) < 0.005);
  CHECK(std::abs(square / count - 1.0 / 3.0) < 0.005);
  for (const int bin : bins) {
    CHECK(std::abs(bin - count / 10) < 500);
  }
  for (int i = 0; i < 100; ++i) {
    CHECK(random.below(1) == 0);
  }
}

TEST_CASE("derived seeds differ", "[core]") {
  std::set<std::uint64_t> seeds;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    for (std::uint64_t stream = 0; stream < 50; ++stream) {
      seeds.insert(pqattn::mix_seed(seed, stream));
    }
  }
  CHECK(seeds.size() == 2500);
}
