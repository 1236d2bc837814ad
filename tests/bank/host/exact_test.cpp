// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/exact.hpp"

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstring>
#include <vector>

#include "support/random_data.hpp"
#include "support/strided_matrix.hpp"

namespace isa = pqattn::isa;

TEMPLATE_TEST_CASE("dot products and scaled sums of any length and alignment", "[bank]", isa::native,
                   isa::emulated<128>, isa::emulated<512>) {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  for (std::size_t count = 0; count <= 70; ++count) {
    for (const std::size_t offset : {0U, 1U, 3U}) {
      const std::vector<float> a = random.normals(count + offset);
      const std::vector<float> b = random.normals(count + offset);
      double expected = 0.0;
      double size = 1e-30;
      for (std::size_t i = 0; i < count; ++i) {
        const double product = static_cast<double>(a[offset + i]) * static_cast<double>(b[offset + i]);
        expected += product;
        size += std::abs(product);
      }
      CAPTURE(count, offset);
      const float got = pqattn::detail::dot<TestType>(a.data() + offset, b.data() + offset, count);
      CHECK(std::abs(static_cast<double>(got) - expected) <= 1e-6 * size);
      std::vector<float> sum = random.normals(count + offset + 1);
      const std::vector<float> before = sum;
      pqattn::detail::add_scaled<TestType>(0.75f, a.data() + offset, count, sum.data() + offset);
      double worst = 0.0;
      for (std::size_t i = 0; i < count; ++i) {
        const double want = static_cast<double>(before[offset + i]) + 0.75 * static_cast<double>(a[offset + i]);
        worst = std::max(worst, std::abs(static_cast<double>(sum[offset + i]) - want));
      }
      CHECK(worst <= 1e-6);
      CHECK(sum.back() == before.back());
      CHECK(std::memcmp(sum.data(), before.data(), offset * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("rows are used where they lie when they can be", "[bank]") {
  pqattn_test::random_data random(2);
  const std::vector<float> numbers = random.normals(4 * 8);
  float scratch[8];
  const pqattn::rows_view dense = pqattn::view_rows(numbers.data(), 4, 8);
  CHECK(pqattn::detail::row_as_floats(dense, 2, scratch) == numbers.data() + 16);
  for (const auto& layout : {pqattn_test::awkward_layout, pqattn_test::matrix_layout{0, 1, false, 2}}) {
    const pqattn_test::strided_matrix copy(numbers, 4, 8, pqattn::dtype::f32, layout);
    CHECK(pqattn::detail::row_as_floats(copy.view(), 2, scratch) == scratch);
    CHECK(std::memcmp(scratch, numbers.data() + 16, sizeof scratch) == 0);
  }
}
