// SPDX-License-Identifier: MIT
// A codebook as a value: what training produces, what every bank loads, what snapshots save.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../core/status.hpp"
#include "geometry.hpp"

namespace pqattn {
inline namespace v0 {

/// Centroids of one (layer, KV head, K-or-V), f32, not owned.
/// Layout: group after group at geometry::codebook_offset(g), each (centroids, width(g)) row-major.
struct codebook_view {
  geometry shape;
  const float* centroids = nullptr;  ///< shape.codebook_values() floats
  std::uint32_t id = 0;              ///< caller's name for the codebook
  std::uint32_t epoch = 0;           ///< counts refreshes; blocks of codes name the epoch they were coded in

  /// The (centroids, width(group)) matrix of one group.
  [[nodiscard]] const float* group(std::uint32_t index) const noexcept {
    return centroids + shape.codebook_offset(index);
  }
};

inline namespace PQATTN_ISA_UNIT {

/// Decodes one row of codes: row[channel(p)] = sum over stages of the centroid component at p. `row` has dim floats.
inline void decode_row(const codebook_view& book, const std::uint16_t* codes, float* row) noexcept {
  for (std::uint32_t position = 0; position < book.shape.dim; ++position) {
    row[position] = 0.0f;
  }
  for (std::uint32_t group = 0; group < book.shape.groups(); ++group) {
    const std::uint32_t width = book.shape.width(group);
    const std::uint32_t first = book.shape.first_channel(group);
    const float* centroid = book.group(group) + static_cast<std::size_t>(codes[group]) * width;
    for (std::uint32_t i = 0; i < width; ++i) {
      row[book.shape.channel(first + i)] += centroid[i];
    }
  }
}

/// Whether the shape is valid and the memory is there.
[[nodiscard]] constexpr status check_codebook(const codebook_view& book) noexcept {
  PQATTN_TRY(check_geometry(book.shape));
  if (book.centroids == nullptr) {
    return failure(status_code::invalid_argument, "codebook.centroids", "is null");
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
