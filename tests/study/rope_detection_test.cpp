// SPDX-License-Identifier: MIT
#include "pqattn/study/rope_detection.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <vector>

#include "support/random_data.hpp"
#include "support/shared_data.hpp"

namespace {

struct rotation {
  rotation(std::uint32_t dim, pqattn::rope_pairing pairing, double theta) : angles(pqattn::rope_floats(dim / 2)) {
    std::vector<float> frequencies(dim / 2);
    pqattn::fill_rope_frequencies(frequencies.data(), dim, theta);
    REQUIRE(build_rope(frequencies.data(), dim / 2, pairing, angles.data(), turn).ok());
  }
  std::vector<float> angles;
  pqattn::rope turn;
};

}  // namespace

TEST_CASE("keys drift least under the rotation they were made with", "[study][rope]") {
  pqattn_test::random_data random(11);
  CAPTURE(random.seed());
  const std::size_t rows = 400;
  const std::uint32_t dim = 32;
  const rotation half(dim, pqattn::rope_pairing::half_split, 1.0e4);
  const rotation interleaved(dim, pqattn::rope_pairing::interleaved, 1.0e4);
  const rotation slow(dim, pqattn::rope_pairing::half_split, 1.0e6);
  const std::vector<float> mean = random.normals(dim, 2.0f);
  for (const rotation* truth : {&half, &interleaved, &slow}) {
    std::vector<float> keys = random.normals(rows * dim);
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t c = 0; c < dim; ++c) {
        keys[r * dim + c] += mean[c];
      }
      rotate_row(truth->turn, static_cast<std::int64_t>(5 + r), 1.0f, keys.data() + r * dim);
    }
    const auto view = pqattn::view_rows(keys.data(), rows, dim);
    const double right = pqattn::drift_of_keys(view, truth->turn, 5);
    CHECK(right < pqattn::drift_of_keys(view, {}, 5) - 1.0);
    for (const rotation* other : {&half, &interleaved, &slow}) {
      if (other != truth) {
        CHECK(right < pqattn::drift_of_keys(view, other->turn, 5));
      }
    }
  }
}

TEST_CASE("few keys: a rotation is found where there is one and nowhere else", "[study][rope]") {
  pqattn_test::random_data random(12);
  CAPTURE(random.seed());
  int found = 0;
  int invented = 0;
  for (int trial = 0; trial < 20; ++trial) {
    const std::uint32_t dim = trial % 2 == 0 ? 32 : 64;
    const std::size_t rows = 100 + 10 * static_cast<std::size_t>(trial);
    const rotation half(dim, pqattn::rope_pairing::half_split, 1.0e4);
    const rotation interleaved(dim, pqattn::rope_pairing::interleaved, 1.0e4);
    const std::vector<float> mean = random.normals(dim, 1.5f);
    std::vector<float> still = random.normals(rows * dim);
    for (std::size_t i = 0; i < still.size(); ++i) {
      still[i] += mean[i % dim];
    }
    std::vector<float> keys = still;
    for (std::size_t r = 0; r < rows; ++r) {
      rotate_row(half.turn, static_cast<std::int64_t>(8 + r), 1.0f, keys.data() + r * dim);
    }
    const auto gain = [&](const std::vector<float>& data, const pqattn::rope& turn) {
      const auto view = pqattn::view_rows(data.data(), rows, dim);
      std::vector<double> plain;
      std::vector<double> turned;
      REQUIRE(pqattn::add_surprise_of_keys(view, {}, 8, plain));
      REQUIRE(pqattn::add_surprise_of_keys(view, turn, 8, turned));
      return pqattn::clear_gain(plain, turned, dim);
    };
    found += gain(keys, half.turn) > gain(keys, interleaved.turn) ? 1 : 0;
    invented += gain(still, half.turn) > 0.0 || gain(still, interleaved.turn) > 0.0 ? 1 : 0;
  }
  CHECK(found >= 19);
  CHECK(invented == 0);
}

TEST_CASE("the shipped keys show their rotation", "[study][rope]") {
  const auto keys = pqattn_test::shipped_activations("keys");
  REQUIRE(keys);
  const rotation half(64, pqattn::rope_pairing::half_split, 1.0e4);
  const rotation interleaved(64, pqattn::rope_pairing::interleaved, 1.0e4);
  for (std::size_t head = 0; head < 2; ++head) {
    const pqattn::rows_view rows = keys->head(head).slice(8, 700);
    const double right = pqattn::drift_of_keys(rows, half.turn, 8);
    CHECK(right < pqattn::drift_of_keys(rows, {}, 8) - 0.02 * 64);
    CHECK(right < pqattn::drift_of_keys(rows, interleaved.turn, 8));
  }
}

TEST_CASE("drift of constant or too few keys is a number or infinite", "[study][rope]") {
  const std::vector<float> constant(20 * 4, 3.0f);
  CHECK(std::isfinite(pqattn::drift_of_keys(pqattn::view_rows(constant.data(), 20, 4), {}, 0)));
  CHECK(std::isinf(pqattn::drift_of_keys(pqattn::view_rows(constant.data(), 2, 4), {}, 0)));
}
