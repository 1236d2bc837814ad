// SPDX-License-Identifier: MIT
// The search in integers finds what the search in f32 finds, whatever the numbers.
#include <pqattn/bank/host/x86/nearest_bytes.hpp>

#include <catch2/catch_test_macros.hpp>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "support/random_data.hpp"

#if PQATTN_X86_AVX512VBMI
namespace {

using generator = pqattn_test::random_data;
using isa = pqattn::x86::avx512vbmi;
constexpr std::size_t width = pqattn::x86::integer_width;
constexpr float infinity = std::numeric_limits<float>::infinity();

/// Byte planes of `groups` groups.
struct book_of {
  std::size_t groups;
  std::uint32_t count;
  std::size_t entries = count;
  std::vector<std::int8_t> bytes = std::vector<std::int8_t>(groups * width * entries);
  std::vector<float> scale = std::vector<float>(groups * width, 0.02f);
  std::vector<float> offset = std::vector<float>(groups * width, 0.1f);

  void fill(generator& random, float spread) {
    for (std::int8_t& byte : bytes) {
      byte = static_cast<std::int8_t>(std::lround(std::fmax(-127.0f, std::fmin(127.0f, spread * random.normal()))));
    }
  }
  /// Planes in memory of exactly their size.
  [[nodiscard]] pqattn::x86::byte_planes planes() const {
    return {bytes.data(), scale.data(), offset.data(), entries};
  }
};

/// Compares both searches of all groups, 16 at a time.
void compare(const book_of& book, const std::vector<float>& x) {
  const pqattn::geometry shape{static_cast<std::uint32_t>(book.groups * width), static_cast<std::uint32_t>(book.groups),
                               book.count, 1, nullptr};
  REQUIRE(pqattn::x86::suits_integers(shape));
  std::vector<std::uint16_t> want(book.groups + 1, 0xabcd);
  std::vector<std::uint16_t> got = want;
  pqattn::group_walk at(shape);
  pqattn::group_walk again(shape);
  for (std::size_t first = 0; first < book.groups; first += isa::lanes) {
    const std::size_t groups = std::min(book.groups - first, isa::lanes);
    pqattn::x86::nearest_centroids<isa, 1>(book.planes(), at, groups, book.count, x.data() + first * width, 0,
                                           want.data() + first, 0);
    pqattn::x86::nearest_bytes<isa>(book.planes(), again, groups, book.count, x.data() + first * width,
                                    got.data() + first);
  }
  CHECK(again.done());
  CHECK(got == want);
}

std::vector<float> values_near(const book_of& book, generator& random, float spread) {
  std::vector<float> x(book.groups * width);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = book.offset[i] + book.scale[i] * spread * random.normal();
  }
  return x;
}

}  // namespace

TEST_CASE("the search in integers agrees with f32", "[x86]") {
  generator random(31);
  INFO("seed " << random.seed());
  for (const std::uint32_t count : {64u, 128u, 192u, 256u}) {
    for (const std::size_t groups : {1u, 7u, 16u, 17u, 32u}) {
      for (const float spread : {1.5f, 20.0f, 45.0f, 120.0f}) {
        book_of book{groups, count};
        book.fill(random, spread);
        for (float& scale : book.scale) {  // of different sizes within a group
          scale = (random.below(20) == 0 ? -1.0f : 1.0f) * std::exp(random.normal());
        }
        for (float& offset : book.offset) {
          offset = 3.0f * random.normal();
        }
        for (int round = 0; round < 8; ++round) {
          compare(book, values_near(book, random, spread));
        }
        compare(book, values_near(book, random, 4.0f * spread));  // many beyond the centroids
      }
    }
  }
}

TEST_CASE("two centroids nearly as near as each other, by integers", "[x86]") {
  generator random(35);
  INFO("seed " << random.seed());
  book_of book{16, 256};
  book.fill(random, 45.0f);
  for (float& scale : book.scale) {
    scale = std::exp(0.5f * random.normal());
  }
  const auto restored = [&](std::size_t plane, std::size_t k) {
    return static_cast<double>(book.offset[plane]) +
           static_cast<double>(book.scale[plane]) * static_cast<double>(book.bytes[plane * book.entries + k]);
  };
  for (int round = 0; round < 100; ++round) {
    std::vector<float> x = values_near(book, random, 45.0f);
    for (std::size_t plane = 0; plane < x.size(); plane += width) {
      double least[2] = {1e30, 1e30};  // of the two nearest, and which these are
      std::size_t nearest[2] = {0, 0};
      for (std::size_t k = 0; k < book.count; ++k) {
        double distance = 0.0;
        for (std::size_t c = plane; c < plane + width; ++c) {
          distance += std::pow(static_cast<double>(x[c]) - restored(c, k), 2.0);
        }
        const int place = distance < least[0] ? 0 : distance < least[1] ? 1 : 2;
        if (place == 0) {
          least[1] = least[0];
          nearest[1] = nearest[0];
        }
        if (place < 2) {
          least[place] = distance;
          nearest[place] = k;
        }
      }
      double apart = 0.0;
      for (std::size_t c = plane; c < plane + width; ++c) {
        apart += std::pow(restored(c, nearest[1]) - restored(c, nearest[0]), 2.0);
      }
      // To the plane between them, but for a little.
      const double share = (least[1] - least[0]) / (2.0 * apart) + 1e-5 * static_cast<double>(random.normal());
      for (std::size_t c = plane; c < plane + width && apart > 0.0; ++c) {
        x[c] += static_cast<float>(share * (restored(c, nearest[1]) - restored(c, nearest[0])));
      }
    }
    compare(book, x);
  }
}

TEST_CASE("equal centroids: the first, also by integers", "[x86]") {
  generator random(32);
  INFO("seed " << random.seed());
  book_of book{16, 256};
  book.fill(random, 1.0f);  // few different bytes: most centroids occur many times
  for (int round = 0; round < 50; ++round) {
    std::vector<float> x = values_near(book, random, 1.0f);
    compare(book, x);
    for (std::size_t i = 0; i < x.size(); ++i) {  // halfway between two, or on one
      x[i] = book.offset[i] + 0.5f * book.scale[i] * std::round(2.0f * random.normal());
    }
    compare(book, x);
  }
}

TEST_CASE("numbers at the limits of the search in integers", "[x86]") {
  generator random(33);
  INFO("seed " << random.seed());
  for (const float scale : {0.0f, -0.0f, -1e-3f, 1e-38f, 1e-30f, 2e-15f, 1e-3f, 5e14f, 1e30f}) {
    for (const std::size_t odd : {std::size_t{0}, std::size_t{2}, width}) {  // how many channels have this scale
      book_of book{16, 256};
      book.fill(random, 60.0f);
      for (std::size_t i = 0; i < book.scale.size(); ++i) {
        book.scale[i] = i % width < odd ? scale : 0.02f;
      }
      std::vector<float> x = values_near(book, random, 60.0f);
      compare(book, x);
      for (std::size_t i = 0; i < x.size(); ++i) {  // exactly at, just inside and just outside the furthest step
        const float far = std::nextafter(192.0f, i % 3 == 0 ? 0.0f : 400.0f);
        x[i] = book.offset[i] + (i % 2 == 0 ? far : -far) * book.scale[i];
      }
      compare(book, x);
      for (const float value : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN(), 3e38f, -3e38f, 1e-40f}) {
        std::vector<float> one = x;
        for (std::size_t group = 0; group < book.groups; ++group) {
          one[group * width + group % width] = value;
        }
        compare(book, one);
      }
    }
  }
}

TEST_CASE("all corners of the range of bytes", "[x86]") {
  generator random(34);
  INFO("seed " << random.seed());
  book_of book{16, 256};
  for (std::int8_t& byte : book.bytes) {
    byte = random.below(2) == 0 ? std::int8_t{-128} : std::int8_t{127};
  }
  for (int round = 0; round < 50; ++round) {
    std::vector<float> x = values_near(book, random, 1.0f);
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = book.offset[i] + book.scale[i] * (random.below(2) == 0 ? -191.0f : 191.0f) * static_cast<float>(random.uniform());
    }
    compare(book, x);
  }
}
#endif
