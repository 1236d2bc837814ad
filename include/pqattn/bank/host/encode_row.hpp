// SPDX-License-Identifier: MIT
// Coding one token row.
#pragma once

#include <cstdint>

#include "nearest.hpp"
#include "x86_programs.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Codes of one token row. `row` (channel order of the model) and `ordered` have dim floats; `ordered` is scratch and
/// ends as the residual. Stages are coded greedily, each taking what the earlier ones left.
template <class Isa>
void encode_row(const host_codebook& book, const float* row, float* ordered, std::uint16_t* codes) noexcept {
  const geometry& shape = book.book.shape;
  for (std::uint32_t position = 0; position < shape.dim; ++position) {
    ordered[position] = row[shape.channel(position)];
  }
  for (std::uint32_t group = 0; group < shape.groups(); ++group) {
    float* run = ordered + shape.first_channel(group);
    std::uint32_t code = 0;
    if constexpr (x86_programs<Isa>::available) {
      code = x86_programs<Isa>::nearest(book, group, run);
    } else {
      code = nearest_centroid<Isa>(book, group, run);
    }
    codes[group] = static_cast<std::uint16_t>(code);
    if (shape.stages > 1) {
      for (std::uint32_t c = 0; c < shape.width(group); ++c) {
        run[c] -= book.entry(book.plane_of(group, c), code);
      }
    }
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
