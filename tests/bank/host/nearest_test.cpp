// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/nearest.hpp"

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <limits>
#include <vector>

#include "pqattn/bank/host/host_bank.hpp"
#include "support/random_data.hpp"
#include "support/resident.hpp"

using pqattn::geometry;
namespace isa = pqattn::isa;

namespace {

/// Codes and distances of points by both kernels.
template <class Isa>
struct searched {
  searched(const std::vector<float>& points, std::uint32_t width, const std::vector<float>& centroids)
      : codes(points.size() / width), distances(codes.size()), row_codes(codes.size()) {
    const std::size_t count = codes.size();
    const std::size_t stride = pqattn::detail::point_stride(count);
    std::vector<float> columns(stride * width, 0.0f);
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t c = 0; c < width; ++c) {
        columns[c * stride + i] = points[i * width + c];
      }
    }
    const auto centroid_count = static_cast<std::uint32_t>(centroids.size() / width);
    pqattn::detail::assign_points<Isa>({columns.data(), stride}, count, width, centroids.data(), centroid_count,
                                       codes.data(), distances.data());
    pqattn::host_bank<Isa> bank;
    pqattn_test::stored_book<pqattn::host_bank<Isa>> book(bank, {width, 1, centroid_count},
                                                          pqattn::codebook_storage::f32, centroids);
    std::vector<float> scratch(width);
    for (std::size_t i = 0; i < count; ++i) {
      pqattn::detail::encode_rows<Isa, 1>(pqattn::detail::host_codebook{book.resident}, points.data() + i * width,
                                          width, scratch.data(), &row_codes[i]);
    }
  }
  std::vector<std::uint16_t> codes;
  std::vector<float> distances;
  std::vector<std::uint16_t> row_codes;
};

}  // namespace

TEMPLATE_TEST_CASE("ties go to the lowest index, in lanes and over chunks", "[bank]", isa::native, isa::emulated<128>) {
  // All centroids alike but one, which moves through lanes, registers and chunks.
  for (const std::uint32_t centroids : {2u, 15u, 64u, 65u, 200u}) {
    for (std::uint32_t other = 0; other < centroids; other += 1 + centroids / 40) {
      std::vector<float> numbers(centroids * 2, 1.0f);
      numbers[2 * other] = numbers[2 * other + 1] = 5.0f;
      const searched<TestType> found({1.0f, 1.0f, 5.0f, 5.0f, 3.0f, 3.0f}, 2, numbers);
      const std::uint16_t first = other == 0 ? 1 : 0;
      CAPTURE(centroids, other);
      CHECK(found.codes == std::vector<std::uint16_t>{first, static_cast<std::uint16_t>(other), 0});
      CHECK(found.row_codes == found.codes);
      CHECK(found.distances == std::vector<float>{0.0f, 0.0f, 8.0f});
    }
  }
}

TEMPLATE_TEST_CASE("both searches agree bit for bit", "[bank]", isa::native, isa::emulated<128>, isa::emulated<512>) {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  for (const std::uint32_t width : {1u, 2u, 4u, 7u, 33u}) {
    const std::vector<float> centroids = random.normals(300 * width);
    const searched<TestType> found(random.normals(500 * width), width, centroids);
    CHECK(found.codes == found.row_codes);
  }
}

TEST_CASE("distances beyond f32 still give a valid code and a finite distance", "[bank]") {
  const float huge = std::numeric_limits<float>::max();
  const searched<isa::native> found({huge, -huge, 1e25f}, 1, {-huge, 3e38f, 0.0f});
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(found.codes[i] < 3);
    CHECK(found.row_codes[i] == found.codes[i]);
    CHECK(found.distances[i] <= huge);
  }
}
