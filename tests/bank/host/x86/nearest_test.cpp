// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/x86/nearest.hpp"

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "bank/host/x86/isa_list.hpp"
#include "support/random_data.hpp"

#ifdef PQATTN_TEST_X86_ISAS
namespace {

/// Squared distance in the order the kernels document.
float distance(const float* x, const float* c, std::size_t width) {
  float sum = (x[0] - c[0]) * (x[0] - c[0]);
  for (std::size_t i = 1; i < width; ++i) {
    sum = std::fma(x[i] - c[i], x[i] - c[i], sum);
  }
  return sum;
}

std::uint32_t nearest(const float* x, const std::vector<float>& centroids, std::size_t width, std::uint32_t count) {
  std::uint32_t best = 0;
  for (std::uint32_t k = 1; k < count; ++k) {
    if (distance(x, &centroids[k * width], width) < distance(x, &centroids[best * width], width)) {
      best = k;
    }
  }
  return best;
}

/// Few distinct coordinates, so that equal distances and equal centroids are common.
std::vector<float> coarse(pqattn_test::random_data& random, std::size_t count) {
  std::vector<float> values(count);
  for (float& value : values) {
    value = static_cast<float>(random.below(5)) * 0.5f - 1.0f;
  }
  return values;
}

template <class Isa>
void check_assign(std::size_t width, std::uint32_t count, std::size_t points, bool ties) {
  pqattn_test::random_data random(width * 1000 + points);
  const std::size_t stride = points + 3;
  const std::vector<float> values = ties ? coarse(random, width * stride - 3) : random.normals(width * stride - 3);
  const std::vector<float> centroids = ties ? coarse(random, count * width) : random.normals(count * width);
  std::vector<std::uint16_t> codes(points + 1, 0xabcd);
  std::vector<float> distances(points + 1, -1.0f);
  pqattn::x86::assign_points<Isa>(values.data(), stride, points, width, centroids.data(), count, codes.data(),
                                  distances.data());
  INFO(Isa::name << ", width " << width << ", centroids " << count << ", points " << points << ", seed "
                 << random.seed());
  std::vector<float> x(width);
  for (std::size_t i = 0; i < points; ++i) {
    for (std::size_t c = 0; c < width; ++c) {
      x[c] = values[c * stride + i];
    }
    const std::uint32_t want = nearest(x.data(), centroids, width, count);
    CHECK(codes[i] == want);
    CHECK(distances[i] == distance(x.data(), &centroids[want * width], width));
  }
  CHECK(codes[points] == 0xabcd);
  CHECK(distances[points] == -1.0f);

  std::vector<double> sums(count * width, 0.0);
  std::vector<double> mass(count, 0.0);
  std::vector<double> want_sums = sums;
  std::vector<double> want_mass = mass;
  const std::vector<float> weights = random.normals(points);
  pqattn::x86::add_points(values.data(), stride, points, width, ties ? nullptr : weights.data(), codes.data(),
                          sums.data(), mass.data());
  for (std::size_t i = 0; i < points; ++i) {
    const double weight = ties ? 1.0 : static_cast<double>(weights[i]);
    for (std::size_t c = 0; c < width; ++c) {
      want_sums[codes[i] * width + c] += weight * static_cast<double>(values[c * stride + i]);
    }
    want_mass[codes[i]] += weight;
  }
  CHECK(sums == want_sums);
  CHECK(mass == want_mass);
}

/// Planes of `groups` groups (one more channel in the first of them where dim does not divide), all at once.
template <class Isa>
void check_planes(std::uint32_t groups, std::uint32_t dim, std::uint32_t count, bool ties) {
  pqattn_test::random_data random(dim * 1000 + count);
  const pqattn::geometry shape{dim, groups, count, 1, nullptr};
  const std::size_t entries = (count + 63) / 64 * 64;
  const std::vector<float> components = ties ? coarse(random, count * dim) : random.normals(count * dim);
  std::vector<float> planes(dim * entries);
  std::vector<pqattn::half> halves(planes.size());
  std::vector<std::int8_t> bytes(planes.size());
  const std::vector<float> scale(dim, 0.01f);
  const std::vector<float> offset(dim, 0.1f);
  for (std::size_t k = 0; k < entries; ++k) {
    for (std::size_t c = 0; c < dim; ++c) {
      const std::size_t at = c * entries + k;
      const float value = components[(k < count ? k : 0) * dim + c];
      planes[at] = value;
      halves[at] = pqattn::to_half(value);
      bytes[at] = static_cast<std::int8_t>(std::lround(std::fmax(-100.0f, std::fmin(100.0f, value * 30.0f))));
    }
  }
  INFO(Isa::name << ", groups " << groups << ", dim " << dim << ", centroids " << count << ", seed " << random.seed());
  for (int round = 0; round < 10; ++round) {
    const std::vector<float> x = ties ? coarse(random, dim) : random.normals(dim);
    std::vector<std::uint16_t> codes(groups + 1, 0xabcd);
    const auto find = [&](const auto& in) {
      pqattn::group_walk at(shape);
      pqattn::x86::nearest_centroids<Isa, 1>(in, shape, at, x.data(), 0, codes.data(), 0);
      CHECK(at.done());
      CHECK(codes[groups] == 0xabcd);
      // Beside another row, on either side of it, the same.
      const std::size_t stride = dim + random.below(5);
      const std::size_t code_stride = groups + 1 + random.below(3);
      for (const std::size_t place : {0u, 1u}) {
        std::vector<float> two = random.normals(2 * stride);
        std::copy(x.begin(), x.end(), two.begin() + static_cast<std::ptrdiff_t>(place * stride));
        std::vector<std::uint16_t> both(2 * code_stride, 0xabcd);
        pqattn::group_walk again(shape);
        pqattn::x86::nearest_centroids<Isa, 2>(in, shape, again, two.data(), stride, both.data(), code_stride);
        const auto mine = both.begin() + static_cast<std::ptrdiff_t>(place * code_stride);
        CHECK(again.done());
        CHECK(std::equal(codes.begin(), codes.end(), mine));  // and none behind the last is written
      }
    };
    // Rounded planes: the chosen centroid is as near as the nearest, up to rounding of the distance, and of equal ones
    // the first.
    const auto check_near = [&](std::uint32_t group, const auto& value_of) {
      const std::uint32_t code = codes[group];
      REQUIRE(code < count);
      const std::size_t first = shape.first_channel(group);
      const auto distance_to = [&](std::uint32_t k) {
        double sum = 0.0;
        for (std::size_t c = first; c < first + shape.width(group); ++c) {
          const double difference = static_cast<double>(x[c]) - value_of(c * entries + k);
          sum += difference * difference;
        }
        return sum;
      };
      double least = std::numeric_limits<double>::max();
      for (std::uint32_t k = 0; k < count; ++k) {
        least = std::fmin(least, distance_to(k));
      }
      CHECK(distance_to(code) <= least * (1.0 + 1e-5) + 1e-12);
      for (std::uint32_t k = 0; k < code; ++k) {
        bool same = true;
        for (std::size_t c = first; c < first + shape.width(group); ++c) {
          same = same && value_of(c * entries + k) == value_of(c * entries + code);
        }
        CHECK(!same);
      }
    };
    find(pqattn::x86::float_planes{planes.data(), entries});
    for (std::uint32_t group = 0; group < groups; ++group) {
      const std::size_t width = shape.width(group);
      std::vector<float> centroids(count * width);
      for (std::size_t k = 0; k < count; ++k) {
        for (std::size_t c = 0; c < width; ++c) {
          centroids[k * width + c] = planes[(shape.first_channel(group) + c) * entries + k];
        }
      }
      CHECK(codes[group] == nearest(x.data() + shape.first_channel(group), centroids, width, count));
    }
    find(pqattn::x86::half_planes{halves.data(), entries});
    for (std::uint32_t group = 0; group < groups; ++group) {
      check_near(group, [&](std::size_t at) { return static_cast<double>(pqattn::to_float(halves[at])); });
    }
    find(pqattn::x86::byte_planes{bytes.data(), scale.data(), offset.data(), entries});
    for (std::uint32_t group = 0; group < groups; ++group) {
      check_near(group, [&](std::size_t at) {
        return static_cast<double>(offset[0]) + static_cast<double>(scale[0]) * static_cast<double>(bytes[at]);
      });
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("assignment of points is exact, ties go to the lowest index", "[x86]", PQATTN_TEST_X86_ISAS) {
  for (const bool ties : {false, true}) {
    for (const std::size_t width : {1u, 2u, 3u, 4u, 8u, 70u}) {
      for (const std::size_t points : {1u, 31u, 64u, 65u, 200u}) {
        check_assign<TestType>(width, 37, points, ties);
      }
    }
    check_assign<TestType>(4, 256, 130, ties);
    check_assign<TestType>(200, 5, 33, ties);
  }
}

TEMPLATE_TEST_CASE("nearest centroids in planes", "[x86]", PQATTN_TEST_X86_ISAS) {
  for (const bool ties : {false, true}) {
    for (const std::uint32_t count : {2u, 16u, 64u, 100u, 256u, 300u, 512u, 700u}) {
      for (const std::uint32_t width : {1u, 2u, 3u, 4u, 9u}) {
        check_planes<TestType>(1, width, count, ties);
      }
      check_planes<TestType>(3, 11, count, ties);
      check_planes<TestType>(static_cast<std::uint32_t>(TestType::lanes), 4 * TestType::lanes, count, ties);
      check_planes<TestType>(static_cast<std::uint32_t>(TestType::lanes) - 1, 2 * TestType::lanes, count, ties);
    }
  }
}

#else
TEST_CASE("x86 nearest centroids") {
  SKIP("not compiled for AVX2");
}
#endif
