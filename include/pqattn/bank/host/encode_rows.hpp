// SPDX-License-Identifier: MIT
// Coding token rows.
#pragma once

#include <cstdint>

#include "nearest.hpp"
#include "x86_programs.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Codes of the groups of one stage, from `at` on, for sub-vectors that lie one after the other in Rows rows from x on,
/// `stride` floats apart; codes of row r go to codes[r * code_stride] and after.
template <class Isa, std::size_t Rows>
void nearest_of_stage(const host_codebook& book, group_walk& at, const float* x, std::size_t stride,
                      std::uint16_t* codes, std::size_t code_stride) noexcept {
  if constexpr (x86_programs<Isa>::available) {
    x86_programs<Isa>::template nearest<Rows>(book, at, x, stride, codes, code_stride);
  } else {
    for (std::uint32_t i = 0; i < book.book.shape.subvectors; ++i, x += at.width(), at.next()) {
      for (std::size_t row = 0; row < Rows; ++row) {
        codes[row * code_stride + i] =
            static_cast<std::uint16_t>(nearest_centroid<Isa>(book, at.group(), x + row * stride));
      }
    }
  }
}

/// Subtracts what the codes of a stage stand for from a row in the order of codes.
inline void take_off_stage(const host_codebook& book, std::uint32_t stage, const std::uint16_t* codes,
                           float* ordered) noexcept {
  const std::size_t plane = std::size_t{stage} * book.book.shape.dim;
  std::size_t position = 0;
  for (std::uint32_t i = 0; i < book.book.shape.subvectors; ++i) {
    for (std::uint32_t c = 0; c < book.book.shape.width(i); ++c, ++position) {
      ordered[position] -= book.entry(plane + position, codes[i]);
    }
  }
}

/// Codes of Rows token rows, `stride` floats apart, in the channel order of the model; `ordered` is scratch of Rows *
/// dim floats, `codes` has Rows * groups. Stages are coded greedily, each taking what the earlier ones left.
template <class Isa, std::size_t Rows>
void encode_rows(const host_codebook& book, const float* rows, std::size_t stride, float* ordered,
                 std::uint16_t* codes) noexcept {
  const geometry& shape = book.book.shape;
  const std::size_t groups = shape.groups();
  if (shape.channel_order != nullptr || shape.stages > 1) {
    for (std::size_t row = 0; row < Rows; ++row) {
      for (std::uint32_t position = 0; position < shape.dim; ++position) {
        ordered[row * shape.dim + position] = rows[row * stride + shape.channel(position)];
      }
    }
    rows = ordered;
    stride = shape.dim;
  }
  group_walk at(shape);
  for (std::uint32_t stage = 0; stage < shape.stages; ++stage) {
    std::uint16_t* const of_stage = codes + std::size_t{stage} * shape.subvectors;
    nearest_of_stage<Isa, Rows>(book, at, rows, stride, of_stage, groups);
    if (stage + 1 < shape.stages) {
      for (std::size_t row = 0; row < Rows; ++row) {
        take_off_stage(book, stage, of_stage + row * groups, ordered + row * shape.dim);
      }
    }
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
