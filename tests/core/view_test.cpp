// SPDX-License-Identifier: MIT
#include "pqattn/core/view.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "support/random_data.hpp"
#include "support/strided_matrix.hpp"

using pqattn::dtype;
using pqattn_test::strided_matrix;

static_assert(std::is_trivially_copyable_v<pqattn::rows_view>);
static_assert(pqattn::size_of(dtype::f32) == 4);
static_assert(pqattn::size_of(dtype::f16) == 2 && pqattn::size_of(dtype::bf16) == 2);

TEST_CASE("rows load and store through every dtype, stride and alignment", "[core]") {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16}) {
    for (const auto& layout : {pqattn_test::dense_layout, pqattn_test::padded_layout, pqattn_test::awkward_layout,
                               pqattn_test::reversed_layout}) {
      for (const std::size_t cols : {1U, 2U, 7U, 64U, 129U}) {
        CAPTURE(name_of(type), layout.col_stride, layout.offset_bytes, cols);
        const std::size_t rows = 5;
        const std::vector<float> source = random.normals(rows * cols);
        strided_matrix matrix(source, rows, cols, type, layout);
        const std::vector<float> expected = matrix.values();
        bool same = true;
        for (std::size_t r = 0; r < rows; ++r) {
          std::vector<float> row(cols + 1, -3.0f);
          load_row(matrix.view(), r, row.data());
          same = same && std::equal(row.begin(), row.end() - 1, expected.data() + r * cols);
          same = same && row.back() == -3.0f;
        }
        CHECK(same);
        // A slice of rows is a view of the same elements.
        std::vector<float> row(cols);
        load_row(matrix.view().slice(2, 3), 1, row.data());
        CHECK(std::equal(row.begin(), row.end(), expected.begin() + static_cast<std::ptrdiff_t>(3 * cols)));

        strided_matrix target(rows, cols, type, layout);
        for (std::size_t r = 0; r < rows; ++r) {
          store_row(target.ref().slice(r, 1), 0, source.data() + r * cols);
        }
        CHECK(target.values() == expected);
        CHECK(target.padding_is_intact());
      }
    }
  }
}

TEST_CASE("view_rows packs rows densely unless told otherwise", "[core]") {
  float numbers[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  const pqattn::rows_view dense = pqattn::view_rows(numbers, 3, 4);
  CHECK(dense.row_stride == 4);
  CHECK(dense.type == dtype::f32);
  CHECK(*static_cast<const float*>(dense.at(2, 1)) == 9.0f);
  const pqattn::rows_view columns = pqattn::view_rows(numbers, 4, 3, 1, 4);  // the transpose
  CHECK(*static_cast<const float*>(columns.at(1, 2)) == 9.0f);
  const pqattn::rows_ref backwards = pqattn::ref_rows(numbers + 8, 3, 4, -4);
  CHECK(*static_cast<const float*>(backwards.at(2, 3)) == 3.0f);
  CHECK(*static_cast<const float*>(backwards.slice(1, 2).at(0)) == 4.0f);
}

TEST_CASE("no address is made of a row that is not there", "[core]") {
  const float number = 1.0f;
  const auto far = std::numeric_limits<std::ptrdiff_t>::max();
  CHECK(pqattn::rows_view{&number, dtype::f32, 1, 1, far, far}.slice(1, 0).data == &number);
  float written = 2.0f;
  CHECK(pqattn::rows_ref{&written, dtype::f32, 1, 1, far, far}.slice(1, 0).data == &written);
}

TEST_CASE("the largest number of a dtype is finite, and nothing above it", "[core]") {
  CHECK(std::isfinite(to_float(pqattn::to_half(largest_of(dtype::f16)))));
  CHECK(std::isinf(to_float(pqattn::to_half(65520.0f))));
  CHECK(std::isfinite(to_float(pqattn::to_bfloat16(largest_of(dtype::bf16)))));
  CHECK(std::isinf(to_float(pqattn::to_bfloat16(0x1.ffp127f))));
  CHECK(largest_of(dtype::f32) == std::numeric_limits<float>::max());
}

TEST_CASE("a view with rows needs memory", "[core]") {
  CHECK(pqattn::check_view({}, "x").ok());
  CHECK(pqattn::check_view({nullptr, dtype::f16, 0, 5, 5, 1}, "x").ok());
  const pqattn::status refused = pqattn::check_view({nullptr, dtype::f16, 2, 5, 5, 1}, "keys");
  CHECK(refused.code == pqattn::status_code::invalid_argument);
  CHECK(std::string(refused.subject) == "keys");
}
