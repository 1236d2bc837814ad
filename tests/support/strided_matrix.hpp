// SPDX-License-Identifier: MIT
// A matrix that owns its memory and lies in it as awkwardly as a view allows: any dtype, row and column strides of
// either sign, any byte offset. Everything between the elements is NaN, so that reading it shows in results, and
// padding_is_intact() tells whether somebody wrote there.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pqattn/core/view.hpp"

namespace pqattn_test {

/// How the elements lie.
struct matrix_layout {
  std::size_t row_padding = 0;    ///< elements after each row
  std::ptrdiff_t col_stride = 1;  ///< in elements, not 0
  bool reversed_rows = false;     ///< negative row stride
  std::size_t offset_bytes = 0;   ///< of the first element from a 64-byte boundary
};

inline constexpr matrix_layout dense_layout{};
inline constexpr matrix_layout padded_layout{5, 1, false, 4};
inline constexpr matrix_layout awkward_layout{3, 2, false, 1};
inline constexpr matrix_layout reversed_layout{1, -3, true, 2};

class strided_matrix {
 public:
  strided_matrix(std::size_t rows, std::size_t cols, pqattn::dtype type = pqattn::dtype::f32, matrix_layout layout = {})
      : rows_(rows), cols_(cols), type_(type) {
    const std::size_t spread = static_cast<std::size_t>(layout.col_stride < 0 ? -layout.col_stride : layout.col_stride);
    const std::size_t pitch = (cols == 0 ? 0 : (cols - 1) * spread + 1) + layout.row_padding;
    const std::size_t element = pqattn::size_of(type);
    memory_.assign(rows * pitch * element + layout.offset_bytes + 128, 0xff);
    const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(memory_.data()) % 64;
    std::size_t first = (64 - misaligned) % 64 + layout.offset_bytes;
    if (layout.col_stride < 0 && cols != 0) {
      first += (cols - 1) * spread * element;
    }
    if (layout.reversed_rows && rows != 0) {
      first += (rows - 1) * pitch * element;
    }
    first_ = first;
    row_stride_ = static_cast<std::ptrdiff_t>(pitch) * (layout.reversed_rows ? -1 : 1);
    col_stride_ = layout.col_stride;
  }

  /// Filled from dense row-major numbers, rounded to the dtype.
  strided_matrix(const std::vector<float>& values, std::size_t rows, std::size_t cols,
                 pqattn::dtype type = pqattn::dtype::f32, matrix_layout layout = {})
      : strided_matrix(rows, cols, type, layout) {
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t c = 0; c < cols; ++c) {
        set(r, c, values[r * cols + c]);
      }
    }
  }

  // The first element's place depends on the address of the vector's memory: moving keeps it, copying would not.
  strided_matrix(strided_matrix&&) = default;
  strided_matrix& operator=(strided_matrix&&) = default;
  strided_matrix(const strided_matrix&) = delete;
  strided_matrix& operator=(const strided_matrix&) = delete;

  [[nodiscard]] pqattn::rows_view view() const {
    return {memory_.data() + first_, type_, rows_, cols_, row_stride_, col_stride_};
  }
  [[nodiscard]] pqattn::rows_ref ref() {
    return {memory_.data() + first_, type_, rows_, cols_, row_stride_, col_stride_};
  }

  void set(std::size_t row, std::size_t col, float value) {
    std::uint8_t* target = memory_.data() + place(row, col);
    if (type_ == pqattn::dtype::f32) {
      std::memcpy(target, &value, 4);
    } else {
      const std::uint16_t bits =
          type_ == pqattn::dtype::f16 ? pqattn::to_half(value).bits : pqattn::to_bfloat16(value).bits;
      std::memcpy(target, &bits, 2);
    }
  }
  [[nodiscard]] float get(std::size_t row, std::size_t col) const {
    const std::uint8_t* source = memory_.data() + place(row, col);
    if (type_ == pqattn::dtype::f32) {
      float value = 0.0f;
      std::memcpy(&value, source, 4);
      return value;
    }
    std::uint16_t bits = 0;
    std::memcpy(&bits, source, 2);
    return type_ == pqattn::dtype::f16 ? to_float(pqattn::half{bits}) : to_float(pqattn::bfloat16{bits});
  }

  /// The numbers as a view reads them, dense row-major.
  [[nodiscard]] std::vector<float> values() const {
    std::vector<float> all(rows_ * cols_);
    for (std::size_t r = 0; r < rows_; ++r) {
      for (std::size_t c = 0; c < cols_; ++c) {
        all[r * cols_ + c] = get(r, c);
      }
    }
    return all;
  }

  [[nodiscard]] const std::vector<std::uint8_t>& bytes() const { return memory_; }
  void fill_bytes(std::uint8_t value) { std::fill(memory_.begin(), memory_.end(), value); }

  /// Whether no byte outside the elements has changed since construction.
  [[nodiscard]] bool padding_is_intact() const {
    std::vector<bool> owned(memory_.size(), false);
    for (std::size_t r = 0; r < rows_; ++r) {
      for (std::size_t c = 0; c < cols_; ++c) {
        for (std::size_t i = 0; i < pqattn::size_of(type_); ++i) {
          owned[place(r, c) + i] = true;
        }
      }
    }
    for (std::size_t i = 0; i < memory_.size(); ++i) {
      if (!owned[i] && memory_[i] != 0xff) {
        return false;
      }
    }
    return true;
  }

 private:
  [[nodiscard]] std::size_t place(std::size_t row, std::size_t col) const {
    const std::ptrdiff_t offset =
        static_cast<std::ptrdiff_t>(row) * row_stride_ + static_cast<std::ptrdiff_t>(col) * col_stride_;
    return static_cast<std::size_t>(static_cast<std::ptrdiff_t>(first_) +
                                    offset * static_cast<std::ptrdiff_t>(pqattn::size_of(type_)));
  }

  std::vector<std::uint8_t> memory_;
  std::size_t rows_;
  std::size_t cols_;
  pqattn::dtype type_;
  std::size_t first_ = 0;
  std::ptrdiff_t row_stride_ = 0;
  std::ptrdiff_t col_stride_ = 1;
};

}  // namespace pqattn_test
