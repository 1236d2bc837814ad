// SPDX-License-Identifier: MIT
// Strided views over memory the caller owns. Views are type-erased over the element type, so that kernels
// do not multiply with the number of dtypes; one row is widened to f32 at the edge.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../config.hpp"
#include "half.hpp"
#include "status.hpp"

namespace pqattn {
inline namespace v0 {

/// Element type of a view.
enum class dtype : std::uint8_t { f32, f16, bf16 };

[[nodiscard]] constexpr std::size_t size_of(dtype type) noexcept {
  return type == dtype::f32 ? 4 : 2;
}

/// Largest finite number of a dtype.
[[nodiscard]] constexpr float largest_of(dtype type) noexcept {
  return type == dtype::f16 ? 65504.0f : type == dtype::bf16 ? 0x1.fep127f : 0x1.fffffep127f;
}
[[nodiscard]] constexpr const char* name_of(dtype type) noexcept {
  return type == dtype::f32 ? "f32" : type == dtype::f16 ? "f16" : "bf16";
}

/// The dtype that stores T (float, half or bfloat16).
template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr dtype value = dtype::f32;
};
template <>
struct dtype_of<half> {
  static constexpr dtype value = dtype::f16;
};
template <>
struct dtype_of<bfloat16> {
  static constexpr dtype value = dtype::bf16;
};

/// Read-only matrix of token rows: element (r, c) lies at data + (r * row_stride + c * col_stride) elements.
/// Strides may be negative; any alignment of the element type is allowed. Does not own its memory.
struct rows_view {
  const void* data = nullptr;
  dtype type = dtype::f32;
  std::size_t rows = 0;
  std::size_t cols = 0;
  std::ptrdiff_t row_stride = 0;  ///< in elements
  std::ptrdiff_t col_stride = 1;  ///< in elements

  /// Address of element (row, col).
  [[nodiscard]] const void* at(std::size_t row, std::size_t col = 0) const noexcept {
    const std::ptrdiff_t offset =
        static_cast<std::ptrdiff_t>(row) * row_stride + static_cast<std::ptrdiff_t>(col) * col_stride;
    return static_cast<const std::byte*>(data) + offset * static_cast<std::ptrdiff_t>(size_of(type));
  }

  /// Rows [first, first + count). Of no rows the address is not computed: row `first` need not exist.
  [[nodiscard]] PQATTN_UNIT_MEMBER rows_view slice(std::size_t first, std::size_t count) const noexcept {
    rows_view part = *this;
    part.data = count == 0 ? data : at(first);
    part.rows = count;
    return part;
  }
};

/// Writable counterpart of rows_view.
struct rows_ref {
  void* data = nullptr;
  dtype type = dtype::f32;
  std::size_t rows = 0;
  std::size_t cols = 0;
  std::ptrdiff_t row_stride = 0;
  std::ptrdiff_t col_stride = 1;

  [[nodiscard]] void* at(std::size_t row, std::size_t col = 0) const noexcept {
    return const_cast<void*>(view().at(row, col));
  }
  [[nodiscard]] rows_view view() const noexcept { return {data, type, rows, cols, row_stride, col_stride}; }
  [[nodiscard]] PQATTN_UNIT_MEMBER rows_ref slice(std::size_t first, std::size_t count) const noexcept {
    return {count == 0 ? data : at(first), type, count, cols, row_stride, col_stride};
  }
};

inline namespace PQATTN_ISA_UNIT {

/// View of row-major memory; `row_stride` 0 means densely packed rows.
template <class T>
[[nodiscard]] rows_view view_rows(const T* data, std::size_t rows, std::size_t cols, std::ptrdiff_t row_stride = 0,
                                  std::ptrdiff_t col_stride = 1) noexcept {
  return {data,      dtype_of<T>::value, rows, cols, row_stride != 0 ? row_stride : static_cast<std::ptrdiff_t>(cols),
          col_stride};
}

/// Writable view of row-major memory; `row_stride` 0 means densely packed rows.
template <class T>
[[nodiscard]] rows_ref ref_rows(T* data, std::size_t rows, std::size_t cols, std::ptrdiff_t row_stride = 0,
                                std::ptrdiff_t col_stride = 1) noexcept {
  return {data,      dtype_of<T>::value, rows, cols, row_stride != 0 ? row_stride : static_cast<std::ptrdiff_t>(cols),
          col_stride};
}

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

template <class T>
void widen_elements(const void* source, std::ptrdiff_t stride, std::size_t count, float* target) noexcept {
  const auto* bytes = static_cast<const std::byte*>(source);
  for (std::size_t i = 0; i < count; ++i) {
    T element;  // memcpy: the source may have any alignment
    std::memcpy(&element, bytes + static_cast<std::ptrdiff_t>(i) * stride * static_cast<std::ptrdiff_t>(sizeof(T)),
                sizeof(T));
    target[i] = to_float(element);
  }
}

template <class T, class Narrow>
void narrow_elements(const float* source, std::size_t count, void* target, std::ptrdiff_t stride,
                     Narrow narrow) noexcept {
  auto* bytes = static_cast<std::byte*>(target);
  for (std::size_t i = 0; i < count; ++i) {
    const T element = narrow(source[i]);
    std::memcpy(bytes + static_cast<std::ptrdiff_t>(i) * stride * static_cast<std::ptrdiff_t>(sizeof(T)), &element,
                sizeof(T));
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Widens row `row` to f32. `target` holds view.cols floats.
inline void load_row(const rows_view& view, std::size_t row, float* target) noexcept {
  const void* source = view.at(row);
  if (view.col_stride == 1 && view.type == dtype::f32) {
    std::memcpy(target, source, view.cols * sizeof(float));
    return;
  }
  switch (view.type) {
    case dtype::f32: return detail::widen_elements<float>(source, view.col_stride, view.cols, target);
    case dtype::f16: return detail::widen_elements<half>(source, view.col_stride, view.cols, target);
    case dtype::bf16: return detail::widen_elements<bfloat16>(source, view.col_stride, view.cols, target);
  }
}

/// Row `row` where it lies, if it can be read there as view.cols floats side by side; else null.
[[nodiscard]] inline const float* floats_at(const rows_view& view, std::size_t row) noexcept {
  const void* source = view.at(row);
  const bool as_floats =
      view.type == dtype::f32 && view.col_stride == 1 && reinterpret_cast<std::uintptr_t>(source) % alignof(float) == 0;
  return as_floats ? static_cast<const float*>(source) : nullptr;
}

/// Rounds f32 values into row `row`. `source` holds view.cols floats.
inline void store_row(const rows_ref& view, std::size_t row, const float* source) noexcept {
  void* target = view.at(row);
  switch (view.type) {
    case dtype::f32:
      return detail::narrow_elements<float>(source, view.cols, target, view.col_stride, [](float x) { return x; });
    case dtype::f16: return detail::narrow_elements<half>(source, view.cols, target, view.col_stride, to_half);
    case dtype::bf16: return detail::narrow_elements<bfloat16>(source, view.cols, target, view.col_stride, to_bfloat16);
  }
}

/// Whether a view that claims rows has memory behind it.
[[nodiscard]] inline status check_view(const rows_view& view, const char* subject) noexcept {
  if (view.data == nullptr && view.rows != 0 && view.cols != 0) {
    return failure(status_code::invalid_argument, subject, "has rows but a null data pointer");
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
