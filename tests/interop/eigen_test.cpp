// SPDX-License-Identifier: MIT
#include <pqattn/interop/eigen.hpp>

#include <catch2/catch_test_macros.hpp>
#include <vector>

namespace {

using namespace pqattn;
using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class Matrix>
void check_view(const Matrix& matrix) {
  const rows_view view = view_rows(matrix);
  REQUIRE(view.rows == std::size_t(matrix.rows()));
  REQUIRE(view.cols == std::size_t(matrix.cols()));
  std::vector<float> row(view.cols);
  for (Eigen::Index r = 0; r < matrix.rows(); ++r) {
    load_row(view, std::size_t(r), row.data());
    for (Eigen::Index c = 0; c < matrix.cols(); ++c) {
      CHECK(row[std::size_t(c)] == matrix(r, c));
    }
  }
  CHECK((as_eigen(view) - matrix).cwiseAbs().maxCoeff() == 0.0f);
}

TEST_CASE("Eigen matrices of either storage order, blocks and maps are viewed in place", "[interop]") {
  Eigen::MatrixXf columns = Eigen::MatrixXf::Random(7, 5);
  row_major rows = columns;
  check_view(columns);
  check_view(rows);
  check_view(columns.block(1, 2, 4, 3));
  check_view(rows.block(2, 1, 3, 4));
  check_view(rows.transpose());
  CHECK(view_rows(rows).data == rows.data());
}

TEST_CASE("writing through a view writes the Eigen matrix", "[interop]") {
  Eigen::MatrixXf matrix = Eigen::MatrixXf::Zero(3, 4);
  const float row[4] = {1, 2, 3, 4};
  store_row(ref_rows(matrix), 1, row);
  CHECK(matrix.row(1) == Eigen::RowVector4f(1, 2, 3, 4));
  CHECK(matrix.row(0).isZero());
  as_eigen(ref_rows(matrix))(2, 3) = 9.0f;
  CHECK(matrix(2, 3) == 9.0f);
}

}  // namespace
