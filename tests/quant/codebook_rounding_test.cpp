// SPDX-License-Identifier: MIT
#include "pqattn/quant/codebook_rounding.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "support/random_data.hpp"

using pqattn::codebook_storage;
using pqattn::geometry;

TEST_CASE("f32 storage changes nothing", "[quant]") {
  pqattn_test::random_data random(1);
  const geometry shape{5, 2, 7};
  std::vector<float> numbers = random.normals(shape.codebook_values());
  const std::vector<float> before = numbers;
  REQUIRE(round_codebook(shape, codebook_storage::f32, numbers.data()).ok());
  CHECK(numbers == before);
}

TEST_CASE("f16 storage rounds to binary16, and refuses what it cannot hold", "[quant]") {
  pqattn_test::random_data random(2);
  CAPTURE(random.seed());
  const geometry shape{5, 2, 7};
  std::vector<float> numbers = random.normals(shape.codebook_values(), 100.0f);
  const std::vector<float> before = numbers;
  REQUIRE(round_codebook(shape, codebook_storage::f16, numbers.data()).ok());
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    CHECK(numbers[i] == to_float(pqattn::to_half(before[i])));
  }
  const std::vector<float> rounded = numbers;
  REQUIRE(round_codebook(shape, codebook_storage::f16, numbers.data()).ok());
  CHECK(numbers == rounded);
  for (const float bad :
       {65520.0f, -1e30f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> refused = before;
    refused[33] = bad;
    refused[34] = bad;
    const pqattn::status result = round_codebook(shape, codebook_storage::f16, refused.data());
    CHECK(result.code == pqattn::status_code::unsupported);
    CHECK(result.got == 33);
    CHECK(std::equal(refused.begin(), refused.begin() + 33, before.begin()));  // nothing was rounded
  }
}

TEST_CASE("i8 storage keeps every number within half a step of its channel", "[quant]") {
  pqattn_test::random_data random(3);
  CAPTURE(random.seed());
  const geometry shape{7, 3, 100, 2};
  for (const float scale : {1.0f, 1e-3f, 1e4f, 1e-30f, 1e30f, 1e-38f, 3e38f, 1e-43f, 2.3e-43f}) {
    CAPTURE(scale);
    std::vector<float> numbers(shape.codebook_values());
    for (float& number : numbers) {
      number = static_cast<float>(random.uniform(-1.0, 1.0) * static_cast<double>(scale));
    }
    const std::vector<float> before = numbers;
    REQUIRE(round_codebook(shape, codebook_storage::i8, numbers.data()).ok());
    for (std::uint32_t group = 0; group < shape.groups(); ++group) {
      const std::size_t width = shape.width(group);
      for (std::size_t channel = 0; channel < width; ++channel) {
        float low = std::numeric_limits<float>::infinity();
        float high = -low;
        double worst = 0.0;
        for (std::size_t k = 0; k < shape.centroids; ++k) {
          const std::size_t i = shape.codebook_offset(group) + k * width + channel;
          low = std::min(low, before[i]);
          high = std::max(high, before[i]);
          REQUIRE(std::isfinite(numbers[i]));
          worst = std::max(worst, std::abs(static_cast<double>(numbers[i]) - static_cast<double>(before[i])));
        }
        const double step = (static_cast<double>(high) - static_cast<double>(low)) / 254.0;
        const double denormal = static_cast<double>(std::numeric_limits<float>::denorm_min());
        CHECK(worst <= 0.51 * step + 130.0 * denormal);
      }
    }
  }
}

TEST_CASE("i8 storage of constant channels is exact, of rounded numbers nearly", "[quant]") {
  pqattn_test::random_data random(4);
  CAPTURE(random.seed());
  const geometry shape{6, 2, 256};
  std::vector<float> numbers(shape.codebook_values(), -3.7f);
  REQUIRE(round_codebook(shape, codebook_storage::i8, numbers.data()).ok());
  CHECK(std::all_of(numbers.begin(), numbers.end(), [](float x) { return x == -3.7f; }));

  numbers = random.normals(shape.codebook_values());
  REQUIRE(round_codebook(shape, codebook_storage::i8, numbers.data()).ok());
  std::vector<float> again = numbers;
  REQUIRE(round_codebook(shape, codebook_storage::i8, again.data()).ok());
  double worst = 0.0;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(again[i]) - static_cast<double>(numbers[i])));
  }
  CHECK(worst <= 2e-6);  // a few units in the last place of the largest, never a level
}

TEST_CASE("channels that turn together are stored in one scale without an offset", "[quant]") {
  pqattn_test::random_data random(5);
  CAPTURE(random.seed());
  std::vector<float> frequencies(8, 0.1f);
  std::vector<float> memory(pqattn::rope_floats(8));
  const std::vector<std::uint16_t> order = random.permutation<std::uint16_t>(19);
  for (const auto pairing : {pqattn::rope_pairing::half_split, pqattn::rope_pairing::interleaved}) {
    pqattn::rope rotation;
    REQUIRE(build_rope(frequencies.data(), 8, pairing, memory.data(), rotation).ok());
    const geometry shape{19, 5, 40, 2, order.data()};
    std::vector<float> numbers = random.normals(shape.codebook_values(), 2.0f, 1.0f);
    const std::vector<float> before = numbers;
    const pqattn::codebook_view book{shape, before.data()};
    REQUIRE(round_codebook(shape, codebook_storage::i8, numbers.data(), rotation).ok());
    std::vector<float> scales(2 * 19);
    for (std::uint32_t group = 0; group < shape.groups(); ++group) {
      const std::uint32_t width = shape.width(group);
      for (std::uint32_t c = 0; c < width; ++c) {
        const pqattn::channel_scale map = scale_of_channel(book, group, c, rotation);
        CHECK(map.offset == 0.0f);
        scales[group / 5 * 19 + shape.channel(shape.first_channel(group) + c)] = map.scale;
        for (std::size_t k = 0; k < shape.centroids; ++k) {
          const std::size_t i = shape.codebook_offset(group) + k * width + c;
          REQUIRE(std::abs(numbers[i] - before[i]) <= 0.501f * map.scale);
          REQUIRE(std::abs(numbers[i]) <= (pqattn::turning_levels + 0.01f) * map.scale);
        }
      }
    }
    for (std::size_t stage = 0; stage < 2; ++stage) {
      for (std::uint32_t pair = 0; pair < 8; ++pair) {
        CHECK(scales[stage * 19 + rotation.first(pair)] == scales[stage * 19 + rotation.second(pair)]);
      }
      CHECK(scales[stage * 19 + 16] == scales[stage * 19 + 17]);
    }
    std::vector<float> again = numbers;
    REQUIRE(round_codebook(shape, codebook_storage::i8, again.data(), rotation).ok());
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      REQUIRE(std::abs(again[i] - numbers[i]) <= 1e-5f);  // never a level
    }
  }
}

TEST_CASE("stored bytes count the scales", "[quant]") {
  const geometry shape{64, 16, 256, 2};
  CHECK(stored_codebook_bytes(shape, codebook_storage::f32) == 2 * 64 * 256 * 4);
  CHECK(stored_codebook_bytes(shape, codebook_storage::f16) == 2 * 64 * 256 * 2);
  CHECK(stored_codebook_bytes(shape, codebook_storage::i8) == 2 * 64 * 256 + 2 * 64 * 8);
}
