// SPDX-License-Identifier: MIT
// Scores over codes, f32 tables: table(row, group, k) = <query sub-vector, centroid k> (AQPIM, attention on codes,
// steps 2 to 4), then one gather and add per (row, group, slot).
#pragma once

#include <cstddef>
#include <cstdint>

#include "lookup.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Tables of all query rows: (rows, groups, plane_entries) f32.
[[nodiscard]] constexpr std::size_t score_table_floats(const geometry& shape, std::size_t rows) noexcept {
  return rows * shape.groups() * plane_entries(shape);
}

/// Cost: rows * stages * dim * K multiply-adds.
template <class Isa>
void build_score_tables(const query_rows& queries, const host_codebook& book, float* tables) noexcept {
  using batch = float_batch<Isa>;
  const geometry& shape = book.book.shape;
  const std::size_t entries = plane_entries(shape);
  constexpr std::size_t chunk = 64;
  alignas(64) float plane[chunk];
  for (std::size_t i = 0; i < score_table_floats(shape, queries.rows); ++i) {
    tables[i] = 0.0f;
  }
  for (std::uint32_t group = 0; group < shape.groups(); ++group) {
    for (std::uint32_t c = 0; c < shape.width(group); ++c) {
      const std::size_t index = book.plane_of(group, c);
      const std::uint32_t channel = shape.channel(shape.first_channel(group) + c);
      for (std::size_t k0 = 0; k0 < entries; k0 += chunk) {
        book.expand<Isa>(index, k0, chunk, plane);
        for (std::size_t row = 0; row < queries.rows; ++row) {
          const batch q(queries.row(row)[channel]);
          float* table = tables + (row * shape.groups() + group) * entries + k0;
          for (std::size_t k = 0; k < chunk; k += batch::size) {
            xsimd::fma(q, batch::load_aligned(plane + k), batch::load_aligned(table + k)).store_aligned(table + k);
          }
        }
      }
    }
  }
}

/// tile(r, s) = sum over groups of table(r, group, code of slot s), for whole blocks.
template <class Isa>
void score_by_tables(const float* tables, std::size_t rows, const code_span<std::byte*>& codes, slot_range slots,
                     const score_tile& tile) noexcept {
  using batch = float_batch<Isa>;
  const geometry& shape = codes.shape;
  const std::size_t entries = plane_entries(shape);
  alignas(64) std::int32_t unpacked[block_tokens];
  for (std::size_t block = 0; block < blocks_for(slots.count); ++block) {
    const std::size_t offset = block * block_tokens;
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t s = 0; s < block_tokens; s += batch::size) {
        batch(0.0f).store_aligned(tile.row(row) + offset + s);
      }
    }
    for (std::uint32_t group = 0; group < shape.groups(); ++group) {
      unpack_group<Isa>(group_codes(codes, slots.first / block_tokens + block, group), shape.code_bits(), unpacked);
      for (std::size_t row = 0; row < rows; ++row) {
        const float* table = tables + (row * shape.groups() + group) * entries;
        float* sums = tile.row(row) + offset;
        for (std::size_t s = 0; s < block_tokens; s += batch::size) {
          (batch::load_aligned(sums + s) + look_up<Isa>(table, unpacked + s)).store_aligned(sums + s);
        }
      }
    }
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
