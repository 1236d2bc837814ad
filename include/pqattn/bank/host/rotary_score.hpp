// SPDX-License-Identifier: MIT
// Scores over keys coded before RoPE. One table per query cannot serve all positions, so keys are decoded once
// for all query rows and turned inside their block only: with positions p0 + i,
//   <q, R(p0 + i) k> = <R(-p0) q, R(i) k>,
// the query takes the block's position (one turn per row and block) and R(i), i < 64, is one fixed table. Written
// per channel, a pair (x, y) adds x (q'x cos + q'y sin) + y (q'y cos - q'x sin), q' = R(-p0) q, so that each decoded
// channel is used where it is looked up and no decoded tile is kept.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lookup.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Prepared queries: a copy of the rows (rows, dim), then the in-block rotation, slots as lanes: cosines (pairs, 64)
/// and sines (pairs, 64).
[[nodiscard]] constexpr std::size_t rotary_table_floats(const geometry& shape, std::size_t rows,
                                                        const rope& rotation) noexcept {
  return align_up(rows * shape.dim, 16) + std::size_t{2} * rotation.pairs * block_tokens;
}

template <class Isa>
void prepare_rotary(const query_rows& queries, const geometry& shape, const rope& rotation, float* tables) noexcept {
  for (std::size_t row = 0; row < queries.rows; ++row) {
    std::memcpy(tables + row * shape.dim, queries.row(row), shape.dim * sizeof(float));
  }
  float* cosines = tables + align_up(queries.rows * shape.dim, 16);
  float* sines = cosines + rotation.pairs * block_tokens;
  for (std::uint32_t step = 0; step < block_tokens; ++step) {
    for (std::uint32_t pair = 0; pair < rotation.pairs; ++pair) {
      cosines[pair * block_tokens + step] = rotation.cosines(0, step)[pair];
      sines[pair * block_tokens + step] = rotation.sines(0, step)[pair];
    }
  }
}

/// Cosines and sines of one pair at the 64 slots of a block, relative to `origin`.
struct block_angles {
  const float* cosines;
  const float* sines;
  std::int64_t origin;
};

/// Where the slots of a block are not at consecutive positions, their angles are computed one by one.
struct scattered_angles {
  alignas(64) float cosines[block_tokens];
  alignas(64) float sines[block_tokens];

  void fill(const rope& rotation, std::uint32_t pair, const slot_positions& positions, std::size_t first,
            std::size_t count) noexcept {
    for (std::size_t s = 0; s < block_tokens; ++s) {
      const rotation_angle angle = rope_angle(rotation, pair, positions.at(first + (s < count ? s : 0)));
      cosines[s] = angle.cosine;
      sines[s] = angle.sine;
    }
  }
};

/// Adds one channel's products of one block to all rows of the tile.
template <class Isa>
void add_rotated_channel(const group_planes<Isa>& planes, std::uint32_t plane, const std::int32_t* codes,
                         std::uint32_t channel, const rope& rotation, const block_angles& angles, const float* queries,
                         std::size_t dim, const score_tile& tile, std::size_t offset) noexcept {
  using batch = float_batch<Isa>;
  constexpr std::size_t parts = block_tokens / batch::size;
  batch key[parts];
  for (std::size_t i = 0; i < parts; ++i) {
    key[i] = planes.look_up_channel(plane, codes + i * batch::size);
  }
  const bool rotated = rotation.rotates(channel);
  const std::uint32_t pair = rotated ? rotation.pair_of(channel) : 0;
  const rotation_angle origin = rotated ? rope_angle(rotation, pair, angles.origin) : rotation_angle{};
  for (std::size_t row = 0; row < tile.rows; ++row) {
    const float* q = queries + row * dim;
    float* sums = tile.row(row) + offset;
    if (!rotated) {
      const batch factor(q[channel]);
      for (std::size_t i = 0; i < parts; ++i) {
        float* sum = sums + i * batch::size;
        xsimd::fma(key[i], factor, batch::load_aligned(sum)).store_aligned(sum);
      }
      continue;
    }
    const float qx = q[rotation.first(pair)];
    const float qy = q[rotation.second(pair)];
    const float turned_x = qx * origin.cosine + qy * origin.sine;
    const float turned_y = qy * origin.cosine - qx * origin.sine;
    const bool second = rotation.is_second(channel);
    const batch along(second ? turned_y : turned_x);
    const batch across(second ? -turned_x : turned_y);
    for (std::size_t i = 0; i < parts; ++i) {
      float* sum = sums + i * batch::size;
      const batch cosine = batch::load_aligned(angles.cosines + i * batch::size);
      const batch sine = batch::load_aligned(angles.sines + i * batch::size);
      const batch factor = xsimd::fma(across, sine, along * cosine);
      xsimd::fma(key[i], factor, batch::load_aligned(sum)).store_aligned(sum);
    }
  }
}

/// tile(r, s) = <query r, R(position of s) key of slot s>, for whole blocks.
template <class Isa>
void score_rotary(const float* tables, const host_codebook& book, const rope& rotation, const slot_positions& positions,
                  const code_span<std::byte*>& codes, slot_range slots, const score_tile& tile) noexcept {
  const geometry& shape = codes.shape;
  const float* cosines = tables + align_up(tile.rows * shape.dim, 16);
  const float* sines = cosines + rotation.pairs * block_tokens;
  for (std::size_t row = 0; row < tile.rows; ++row) {
    std::memset(tile.row(row), 0, blocks_for(slots.count) * block_tokens * sizeof(float));
  }
  alignas(64) std::int32_t unpacked[block_tokens];
  group_planes<Isa> planes;
  scattered_angles scattered;
  for (std::uint32_t group = 0; group < shape.groups(); ++group) {
    for (std::uint32_t first = 0; first < shape.width(group); first += planes.channels) {
      const std::uint32_t left = shape.width(group) - first;
      const std::uint32_t count = left < planes.channels ? left : planes.channels;
      planes.select(book, group, first, count);
      for (std::size_t block = 0; block < blocks_for(slots.count); ++block) {
        const std::size_t offset = block * block_tokens;
        const std::size_t live = slots.count - offset < block_tokens ? slots.count - offset : block_tokens;
        const bool consecutive = positions.consecutive(slots.first + offset, live);
        unpack_group<Isa>(group_codes(codes, slots.first / block_tokens + block, group), shape.code_bits(), unpacked);
        for (std::uint32_t c = 0; c < count; ++c) {
          const std::uint32_t channel = shape.channel(shape.first_channel(group) + first + c);
          block_angles angles{nullptr, nullptr, 0};
          if (rotation.rotates(channel)) {
            const std::uint32_t pair = rotation.pair_of(channel);
            if (consecutive) {
              angles = {cosines + pair * block_tokens, sines + pair * block_tokens, positions.at(slots.first + offset)};
            } else {
              scattered.fill(rotation, pair, positions, slots.first + offset, live);
              angles = {scattered.cosines, scattered.sines, 0};
            }
          }
          add_rotated_channel<Isa>(planes, c, unpacked, channel, rotation, angles, tables, shape.dim, tile, offset);
        }
      }
    }
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
