// SPDX-License-Identifier: MIT
#include "pqattn/quant/rope.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "support/random_data.hpp"
#include "support/reference.hpp"

using pqattn::rope;
using pqattn::rope_pairing;

namespace {

struct built_rope {
  explicit built_rope(std::uint32_t pairs, rope_pairing pairing = rope_pairing::half_split, double theta = 10000.0)
      : frequencies(pairs), memory(pqattn::rope_floats(pairs)) {
    pqattn::fill_rope_frequencies(frequencies.data(), 2 * pairs, theta);
    REQUIRE(build_rope(frequencies.data(), pairs, pairing, memory.data(), rotation).ok());
  }
  std::vector<float> frequencies;
  std::vector<float> memory;
  rope rotation;
};

}  // namespace

TEST_CASE("frequencies fall as in the paper", "[quant]") {
  float frequencies[32];
  pqattn::fill_rope_frequencies(frequencies, 64, 10000.0);
  CHECK(frequencies[0] == 1.0f);
  for (int i = 0; i < 32; ++i) {
    CHECK(std::abs(static_cast<double>(frequencies[i]) - std::pow(10000.0, -2.0 * i / 64)) <=
          1e-7 * static_cast<double>(frequencies[i]));
  }
}

TEST_CASE("angles at any position agree with double precision", "[quant]") {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  for (const double theta : {10000.0, 500000.0}) {
    const built_rope built(64, rope_pairing::half_split, theta);
    std::vector<std::int64_t> positions = {0,        1,        63,     64,     65,        4095,
                                           4096,     262143,   262144, 300000, 16777215,  16777216,
                                           20000000, 20000001, -1,     -64,    -20000000, 1000000000000};
    for (int i = 0; i < 200; ++i) {
      positions.push_back(static_cast<std::int64_t>(random.below(20000000)));
    }
    double worst = 0.0;
    for (const std::int64_t position : positions) {
      for (std::uint32_t pair = 0; pair < 64; ++pair) {
        const long double angle =
            static_cast<long double>(built.frequencies[pair]) * static_cast<long double>(position);
        const pqattn::rotation_angle got = rope_angle(built.rotation, pair, position);
        // Beyond 2^53 / 2^24 the product of position and frequency is no longer exact in double.
        const double slack = std::abs(static_cast<double>(position)) > 1e8 ? 1e-3 : 0.0;
        const auto error = [&](float number, long double exact) {
          return std::abs(static_cast<double>(number) - static_cast<double>(exact)) - slack;
        };
        worst = std::max({worst, error(got.cosine, std::cos(angle)), error(got.sine, std::sin(angle))});
      }
    }
    // Four table entries of half a unit each and three angle additions.
    CHECK(worst <= 5e-7);
  }
}

TEST_CASE("rows turn as defined, and back", "[quant]") {
  pqattn_test::random_data random(2);
  CAPTURE(random.seed());
  for (const rope_pairing pairing : {rope_pairing::half_split, rope_pairing::interleaved}) {
    for (const std::uint32_t pairs : {1u, 3u, 32u}) {
      const built_rope built(pairs, pairing);
      const std::size_t dim = 2 * pairs + 5;  // the last channels are left alone
      const std::vector<float> row = random.normals(dim);
      for (const std::int64_t position : {0, 77, -77, 19999999}) {
        std::vector<float> turned = row;
        rotate_row(built.rotation, position, 1.0f, turned.data());
        pqattn_test::doubles expected = pqattn_test::to_doubles(row);
        pqattn_test::rotate(built.frequencies.data(), pairs, pairing, position, 1.0, expected.data());
        CAPTURE(pairs, position, static_cast<int>(pairing));
        CHECK(pqattn_test::max_error(turned, expected) <= 4e-6);
        CHECK(std::equal(turned.end() - 5, turned.end(), row.end() - 5));
        rotate_row(built.rotation, position, -1.0f, turned.data());
        CHECK(pqattn_test::max_error(turned, pqattn_test::to_doubles(row)) <= 4e-6);
      }
    }
  }
}

TEST_CASE("channels know their pair", "[quant]") {
  for (const rope_pairing pairing : {rope_pairing::half_split, rope_pairing::interleaved}) {
    const built_rope built(5, pairing);
    const rope& rotation = built.rotation;
    for (std::uint32_t pair = 0; pair < 5; ++pair) {
      CHECK(rotation.pair_of(rotation.first(pair)) == pair);
      CHECK(rotation.pair_of(rotation.second(pair)) == pair);
      CHECK_FALSE(rotation.is_second(rotation.first(pair)));
      CHECK(rotation.is_second(rotation.second(pair)));
      CHECK(rotation.rotates(rotation.second(pair)));
    }
    CHECK_FALSE(rotation.rotates(10));
  }
  CHECK_FALSE(rope{}.enabled());
  CHECK_FALSE(rope{}.rotates(0));
}

TEST_CASE("a rope that cannot be is refused and nothing is built", "[quant]") {
  std::vector<float> frequencies(600, 1.0f);
  std::vector<float> memory(pqattn::rope_floats(600));
  const built_rope built(2);
  rope kept = built.rotation;
  CHECK(build_rope(frequencies.data(), 513, rope_pairing::half_split, memory.data(), kept).code ==
        pqattn::status_code::invalid_argument);
  CHECK_FALSE(build_rope(nullptr, 2, rope_pairing::half_split, memory.data(), kept).ok());
  CHECK_FALSE(build_rope(frequencies.data(), 2, rope_pairing::half_split, nullptr, kept).ok());
  frequencies[3] = std::numeric_limits<float>::infinity();
  const pqattn::status refused = build_rope(frequencies.data(), 5, rope_pairing::half_split, memory.data(), kept);
  CHECK(refused.code == pqattn::status_code::not_finite);
  CHECK(refused.got == 3);
  CHECK(kept.pairs == 2);
  CHECK(kept.frequencies == built.rotation.frequencies);
  rope none = built.rotation;
  CHECK(build_rope(nullptr, 0, rope_pairing::half_split, nullptr, none).ok());
  CHECK_FALSE(none.enabled());
}

TEST_CASE("turns are the angles of 64 positions in bytes", "[quant]") {
  const built_rope built(24);
  const rope& rotation = built.rotation;
  for (std::uint32_t pair = 0; pair < rotation.pairs; ++pair) {
    const std::uint8_t* turns = rotation.turns + std::size_t{pair} * rope::turn_bytes;
    for (std::uint32_t step = 0; step < rope::steps; ++step) {
      for (std::uint32_t i = 0; i < 2; ++i) {
        const float expected = (i == 0 ? rotation.cosines(0, step) : rotation.sines(0, step))[pair];
        const bool negative = (turns[2 * rope::steps + 8 * i + step / 8] >> (step % 8) & 1) != 0;
        const float value = static_cast<float>(turns[i * rope::steps + step]) / 255.0f;
        CHECK(std::abs((negative ? -value : value) - expected) <= 0.501f / 255.0f);
      }
    }
  }
}

TEST_CASE("a rope must fit its rows", "[quant]") {
  const built_rope built(32);
  CHECK(check_rope(built.rotation, 64).ok());
  CHECK(check_rope(built.rotation, 100).ok());
  const pqattn::status refused = check_rope(built.rotation, 63);
  CHECK(refused.code == pqattn::status_code::shape_mismatch);
  CHECK(pqattn::check_rope({}, 1).ok());
  rope unbuilt;
  unbuilt.pairs = 4;
  CHECK(check_rope(unbuilt, 64).code == pqattn::status_code::invalid_argument);
  unbuilt.pairs = std::numeric_limits<std::uint32_t>::max();
  unbuilt.frequencies = built.rotation.frequencies;
  unbuilt.angles = built.rotation.angles;
  CHECK_FALSE(check_rope(unbuilt, 64).ok());
}
