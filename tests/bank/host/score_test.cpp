// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/score.hpp"

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <vector>

#include "bank/conformance.hpp"
#include "pqattn/bank/host/host_bank.hpp"

namespace isa = pqattn::isa;

TEMPLATE_TEST_CASE("a table entry is the product of a query's run with a centroid", "[bank]", isa::native,
                   isa::emulated<128>) {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  const std::vector<std::uint16_t> order = random.permutation<std::uint16_t>(11);
  for (const std::uint32_t centroids : {5u, 64u, 300u}) {
    const pqattn::geometry shape{11, 4, centroids, 2, order.data()};
    pqattn::host_bank<TestType> bank;
    pqattn_test::stored_book<pqattn::host_bank<TestType>> book(bank, shape, pqattn::codebook_storage::f16,
                                                               random.normals(shape.codebook_values()));
    const std::vector<float> queries = random.normals(3 * 13);
    const std::size_t entries = pqattn::detail::plane_entries(shape);
    pqattn_test::aligned_floats tables(pqattn::detail::score_table_floats(shape, 3));
    CHECK(tables.size() == 3 * 8 * entries);
    pqattn::detail::build_score_tables<TestType>({queries.data(), 3, 13}, pqattn::detail::host_codebook{book.resident},
                                                 tables.data());
    double worst = 0.0;
    for (std::size_t row = 0; row < 3; ++row) {
      for (std::uint32_t group = 0; group < 8; ++group) {
        for (std::size_t k = 0; k < entries; ++k) {
          double expected = 0.0;
          for (std::uint32_t c = 0; c < shape.width(group); ++c) {
            const std::size_t centroid = k < centroids ? k : 0;  // garbage codes meet finite numbers
            expected +=
                static_cast<double>(queries[row * 13 + order[shape.first_channel(group) + c]]) *
                static_cast<double>(book.centroids[shape.codebook_offset(group) + centroid * shape.width(group) + c]);
          }
          const double got = static_cast<double>(tables.data()[(row * 8 + group) * entries + k]);
          worst = std::max(worst, std::isfinite(got) ? std::abs(got - expected) : 1e9);
        }
      }
    }
    CHECK(worst <= 1e-5);
  }
}
