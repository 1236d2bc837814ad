// SPDX-License-Identifier: MIT
// Eigen matrices as views and back, without copies. The only public header that names Eigen types.
#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <type_traits>

#include "../core/view.hpp"

namespace pqattn {
inline namespace v0 {

/// f32 matrix over any strides, in Eigen's words.
using eigen_rows = Eigen::Map<Eigen::MatrixXf, Eigen::Unaligned, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;
using eigen_const_rows =
    Eigen::Map<const Eigen::MatrixXf, Eigen::Unaligned, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;

/// View of an f32 Eigen matrix, map or block with direct access (no expressions): row r of the matrix is token row r,
/// whatever its storage order. The matrix must outlive the view.
template <class Derived>
[[nodiscard]] rows_view view_rows(const Eigen::DenseBase<Derived>& matrix) noexcept {
  static_assert(std::is_same_v<typename Derived::Scalar, float>, "only f32 matrices can be viewed");
  static_assert((Derived::Flags & Eigen::DirectAccessBit) != 0,
                "an expression has no memory to view: evaluate it first");
  const Derived& m = matrix.derived();
  const std::ptrdiff_t inner = m.innerStride();
  const std::ptrdiff_t outer = m.outerStride();
  return {m.data(),
          dtype::f32,
          static_cast<std::size_t>(m.rows()),
          static_cast<std::size_t>(m.cols()),
          Derived::IsRowMajor ? outer : inner,
          Derived::IsRowMajor ? inner : outer};
}

/// Writable view of an f32 Eigen matrix.
template <class Derived>
[[nodiscard]] rows_ref ref_rows(Eigen::DenseBase<Derived>& matrix) noexcept {
  const rows_view view = view_rows(static_cast<const Eigen::DenseBase<Derived>&>(matrix));
  return {matrix.derived().data(), view.type, view.rows, view.cols, view.row_stride, view.col_stride};
}

/// Eigen map of an f32 view. Pre: view.type is f32 and strides are not negative (Eigen has no negative strides).
[[nodiscard]] inline eigen_const_rows as_eigen(const rows_view& view) noexcept {
  return {static_cast<const float*>(view.data),
          static_cast<Eigen::Index>(view.rows),
          static_cast<Eigen::Index>(view.cols),
          {view.col_stride, view.row_stride}};
}
[[nodiscard]] inline eigen_rows as_eigen(const rows_ref& view) noexcept {
  return {static_cast<float*>(view.data),
          static_cast<Eigen::Index>(view.rows),
          static_cast<Eigen::Index>(view.cols),
          {view.col_stride, view.row_stride}};
}

}  // namespace v0
}  // namespace pqattn
