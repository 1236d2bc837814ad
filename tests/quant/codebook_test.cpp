// SPDX-License-Identifier: MIT
#include "pqattn/quant/codebook.hpp"

#include <catch2/catch_test_macros.hpp>
#include <string>
#include <vector>

#include "support/random_data.hpp"
#include "support/reference.hpp"

TEST_CASE("a row decodes to the sum of its centroids in the model's channels", "[quant]") {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  for (const std::uint32_t stages : {1u, 2u, 8u}) {
    for (const std::uint32_t dim : {1u, 5u, 16u, 129u}) {
      const std::vector<std::uint16_t> order = random.permutation<std::uint16_t>(dim);
      for (const std::uint16_t* channels : {static_cast<const std::uint16_t*>(nullptr), order.data()}) {
        const auto subvectors = static_cast<std::uint32_t>(1 + random.below(dim));
        const pqattn::geometry shape{dim, subvectors, 11, stages, channels};
        const std::vector<float> centroids = random.normals(shape.codebook_values());
        const std::vector<std::uint16_t> codes = random.codes(shape.groups(), 11);
        std::vector<float> row(dim, 1e9f);
        pqattn::decode_row({shape, centroids.data()}, codes.data(), row.data());
        CAPTURE(dim, subvectors, stages);
        CHECK(pqattn_test::max_error(row, pqattn_test::decode_rows(shape, centroids, codes, 1)) <= 1e-5);
      }
    }
  }
}

TEST_CASE("groups start where the geometry says", "[quant]") {
  const std::vector<float> centroids(100);
  const pqattn::codebook_view book{{5, 2, 10, 2}, centroids.data()};
  CHECK(book.group(0) == centroids.data());
  CHECK(book.group(1) == centroids.data() + 30);
  CHECK(book.group(2) == centroids.data() + 50);
  CHECK(book.group(3) == centroids.data() + 80);
}

TEST_CASE("a codebook needs a shape and numbers", "[quant]") {
  const float numbers[4] = {};
  CHECK(pqattn::check_codebook({{2, 1, 2}, numbers}).ok());
  CHECK(std::string(pqattn::check_codebook({{2, 1, 2}, nullptr}).subject) == "codebook.centroids");
  CHECK(std::string(pqattn::check_codebook({{2, 3, 2}, numbers}).subject) == "geometry.subvectors");
}
