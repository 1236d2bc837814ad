// SPDX-License-Identifier: MIT
// Weighted value sums over codes: out(r, c) += sum over slots of p(r, s) * centroid component.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lookup.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Largest K for the histogram form: its bins live on the stack.
inline constexpr std::uint32_t max_histogram_entries = 4096;

/// Whether a block may be left out: its mass is at most `share` of skip_mass in every row.
template <class Isa>
[[nodiscard]] bool negligible_block(const score_tile& tile, std::size_t offset, const float* skip_mass,
                                    float share) noexcept {
  using batch = float_batch<Isa>;
  for (std::size_t row = 0; row < tile.rows; ++row) {
    batch mass(0.0f);
    for (std::size_t s = 0; s < block_tokens; s += batch::size) {
      mass += batch::load_aligned(tile.row(row) + offset + s);
    }
    if (!(xsimd::reduce_add(mass) <= share * skip_mass[row])) {
      return false;
    }
  }
  return true;
}

/// Marks the blocks that may be left out, each for an even share of the mass that may be; returns their number.
template <class Isa>
std::size_t choose_skipped(const score_tile& tile, std::size_t blocks, const float* skip_mass,
                           std::uint64_t* skipped) noexcept {
  std::size_t count = 0;
  const float share = blocks == 0 ? 0.0f : 1.0f / static_cast<float>(blocks);
  for (std::size_t block = 0; block < blocks; ++block) {
    if (negligible_block<Isa>(tile, block * block_tokens, skip_mass, share)) {
      skipped[block / 64] |= std::uint64_t{1} << (block % 64);
      ++count;
    }
  }
  return count;
}

/// Reconstruction: decode each channel of 64 slots, multiply by the probabilities of up to four rows. Sums stay in
/// registers over all blocks.
template <class Isa>
void add_values_reconstructed(const score_tile& tile, const host_codebook& book, const code_span<std::byte*>& codes,
                              slot_range slots, const std::uint64_t* skipped, float* out, std::size_t stride) noexcept {
  using batch = float_batch<Isa>;
  constexpr std::size_t rows_at_once = 4;
  const geometry& shape = codes.shape;
  alignas(64) std::int32_t unpacked[block_tokens];
  group_planes<Isa> planes;
  for (std::uint32_t group = 0; group < shape.groups(); ++group) {
    for (std::uint32_t first = 0; first < shape.width(group); first += planes.channels) {
      const std::uint32_t left = shape.width(group) - first;
      const std::uint32_t count = left < planes.channels ? left : planes.channels;
      planes.select(book, group, first, count);
      for (std::size_t row0 = 0; row0 < tile.rows; row0 += rows_at_once) {
        const std::size_t rows = tile.rows - row0 < rows_at_once ? tile.rows - row0 : rows_at_once;
        batch sums[rows_at_once][group_planes<Isa>::channels];
        for (auto& row_sums : sums) {
          for (batch& sum : row_sums) {
            sum = batch(0.0f);
          }
        }
        for (std::size_t block = 0; block < blocks_for(slots.count); ++block) {
          if ((skipped[block / 64] >> (block % 64) & 1u) != 0) {
            continue;
          }
          unpack_group<Isa>(group_codes(codes, slots.first / block_tokens + block, group), shape.code_bits(), unpacked);
          for (std::size_t s = 0; s < block_tokens; s += batch::size) {
            for (std::uint32_t c = 0; c < count; ++c) {
              const batch value = planes.look_up_channel(c, unpacked + s);
              for (std::size_t r = 0; r < rows; ++r) {
                const batch p = batch::load_aligned(tile.row(row0 + r) + block * block_tokens + s);
                sums[r][c] = xsimd::fma(p, value, sums[r][c]);
              }
            }
          }
        }
        for (std::size_t r = 0; r < rows; ++r) {
          for (std::uint32_t c = 0; c < count; ++c) {
            out[(row0 + r) * stride + shape.channel(shape.first_channel(group) + first + c)] +=
                xsimd::reduce_add(sums[r][c]);
          }
        }
      }
    }
  }
}

/// Histogram: p is added into the bin of the code, then one (K x width) product per group. Same sum, other order.
template <class Isa>
void add_values_by_histogram(const score_tile& tile, const host_codebook& book, const code_span<std::byte*>& codes,
                             slot_range slots, const std::uint64_t* skipped, float* out, std::size_t stride) noexcept {
  using batch = float_batch<Isa>;
  const geometry& shape = codes.shape;
  const std::size_t entries = plane_entries(shape);
  alignas(64) std::int32_t unpacked[block_tokens];
  alignas(64) float bins[max_histogram_entries];
  alignas(64) float plane[block_tokens];
  for (std::uint32_t group = 0; group < shape.groups(); ++group) {
    for (std::size_t row = 0; row < tile.rows; ++row) {
      std::memset(bins, 0, entries * sizeof(float));
      for (std::size_t block = 0; block < blocks_for(slots.count); ++block) {
        if ((skipped[block / 64] >> (block % 64) & 1u) != 0) {
          continue;
        }
        unpack_group<Isa>(group_codes(codes, slots.first / block_tokens + block, group), shape.code_bits(), unpacked);
        const float* p = tile.row(row) + block * block_tokens;
        for (std::size_t s = 0; s < block_tokens; ++s) {
          bins[unpacked[s]] += p[s];
        }
      }
      for (std::uint32_t c = 0; c < shape.width(group); ++c) {
        batch sum(0.0f);
        for (std::size_t k0 = 0; k0 < entries; k0 += block_tokens) {
          book.expand<Isa>(book.plane_of(group, c), k0, block_tokens, plane);
          for (std::size_t k = 0; k < block_tokens; k += batch::size) {
            sum = xsimd::fma(batch::load_aligned(bins + k0 + k), batch::load_aligned(plane + k), sum);
          }
        }
        out[row * stride + shape.channel(shape.first_channel(group) + c)] += xsimd::reduce_add(sum);
      }
    }
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
