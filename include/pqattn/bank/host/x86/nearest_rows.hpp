// SPDX-License-Identifier: MIT
// Nearest centroids of byte codebooks for many vectors: in integers, where that is certain, with a vector per lane.
//
// With r = x - offset and L the largest scale of a group, the squared distance to a centroid of bytes b is, over L^2
// and without what all centroids share, the sum over channels of (scale b / L)^2 - 2 b scale r / L^2. Times S it is the
// sum of a number per centroid, rounded, and of products of b with what -2 S scale r / L^2 rounds to, which fits 16
// bits. All of it times 256 leaves eight bits for the centroid's number: the least sum names its centroid, and of equal
// ones the lowest.
//
// S is such that sums fit 32 bits for values within `row_reach` steps of the offset; others, and codebooks whose scales
// are beyond the range of f32's squares, are left to f32. A sum is off by at most 256 (3 + 65 a channel): the
// centroid's number by 2.5 with what f32 rounds, a product by 128 times 0.508. Where the two least sums are further
// apart than twice that, and than f32 rounds distances, the least is what the search in f32 finds.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "nearest.hpp"

#if PQATTN_X86_AVX2

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

/// Vectors that nearest_of_rows() takes at once.
inline constexpr std::size_t rows_of_search = 64;
/// Channels of the widest sub-vectors it codes.
inline constexpr std::size_t widest_row_search = 8;

/// Whether nearest_of_rows() codes this shape: codes of at most 8 bits without residual stages, of two channels or
/// more. In one channel too many centroids are too close to each other.
[[nodiscard]] constexpr bool suits_row_search(const geometry& shape) noexcept {
  return shape.centroids <= 256 && shape.stages == 1 && shape.dim >= 2 * shape.subvectors &&
         (shape.dim + shape.subvectors - 1) / shape.subvectors <= widest_row_search;
}

namespace detail {

/// Furthest a value may be from its channel's offset, in steps of the group's largest scale; bytes reach 127.
inline constexpr float row_reach = 192.0f;
/// S times the channels. Sums are (128^2 + 2 * 128 row_reach) times that at most and -row_reach^2 times it at least,
/// and are moved down by what makes them as far from 0 on either side.
inline constexpr float row_scale = 163.0f;
inline constexpr float row_middle =
    0.5f * (128.0f * 128.0f + 2.0f * 128.0f * row_reach - row_reach * row_reach) * row_scale;
/// Sums whose difference is larger are in the order of the distances.
[[nodiscard]] constexpr std::uint32_t certain_row_difference(std::size_t width) noexcept {
  return static_cast<std::uint32_t>(2 * 256 * (3 + 65 * width) + 8192);
}

/// Centroids of a group as least_of_rows() reads them.
struct row_centroids {
  alignas(64) std::int32_t start[256];                         ///< what a sum begins with
  alignas(64) std::int32_t words[widest_row_search / 2][256];  ///< 256 b of two channels
};

/// Largest of the scales of a group, without sign, or 0 where squares of it cannot be trusted.
[[nodiscard]] inline float largest_scale_of(const float* scales, std::size_t width) noexcept {
  float largest = 0.0f;
  for (std::size_t c = 0; c < width; ++c) {
    const float size = std::fabs(scales[c]);
    if (!(size <= 1e15f)) {
      return 0.0f;
    }
    largest = largest < size ? size : largest;
  }
  return largest >= 1e-15f ? largest : 0.0f;
}

/// Prepares a group of Pairs pairs of channels, the last of which may have only one. O(count * width).
template <class Isa, std::size_t Pairs>
inline void prepare_row_centroids(const byte_planes& planes, std::size_t plane, std::size_t width, std::size_t count,
                                  float largest, float scale, row_centroids& out) noexcept {
  using floats = typename Isa::floats;
  using ints = typename Isa::ints;
  for (std::size_t k = 0; k < count; k += Isa::lanes) {
    floats sum = Isa::setf(-row_middle);
    PQATTN_X86_UNROLL
    for (std::size_t pair = 0; pair < Pairs; ++pair) {
      ints bytes[2] = {Isa::zero(), Isa::zero()};
      for (std::size_t c = 2 * pair; c < 2 * pair + 2 && c < width; ++c) {
        bytes[c % 2] = Isa::widen_signed_bytes(planes.numbers + (plane + c) * planes.entries + k);
        const floats along = Isa::mulf(Isa::to_floats(bytes[c % 2]), Isa::setf(planes.scale[plane + c] / largest));
        sum = Isa::fma(Isa::mulf(along, along), Isa::setf(scale), sum);
      }
      Isa::store(out.words[pair] + k, Isa::template left16<8>(Isa::pair_words(bytes[0], bytes[1])));
    }
    const ints number = Isa::add32(Isa::lane_indices(), Isa::set32(static_cast<std::int32_t>(k)));
    Isa::store(out.start + k, Isa::add32(Isa::template left32<8>(Isa::to_ints(sum)), number));
  }
}

/// Factors of the centroids' bytes for the components of rows_of_search vectors, two channels side by side; returns a
/// bit per vector that is out of reach. `values`: channel-major, rows_of_search a channel.
template <class Isa, std::size_t Pairs>
inline std::uint64_t prepare_rows(const byte_planes& planes, std::size_t plane, std::size_t width, const float* values,
                                  float largest, float scale, std::int32_t (&factors)[Pairs][rows_of_search]) noexcept {
  using floats = typename Isa::floats;
  using ints = typename Isa::ints;
  constexpr std::size_t sets = rows_of_search / Isa::lanes;
  const floats far = Isa::setf(std::numeric_limits<float>::infinity());
  std::uint64_t outside = 0;
  PQATTN_X86_UNROLL
  for (std::size_t pair = 0; pair < Pairs; ++pair) {
    ints rounded[2][sets];
    for (std::size_t i = 0; i < 2; ++i) {
      const std::size_t c = 2 * pair + i;
      if (c >= width) {
        std::fill_n(rounded[i], sets, Isa::zero());
        continue;
      }
      const floats offset = Isa::setf(planes.offset[plane + c]);
      const floats factor = Isa::setf(-2.0f * scale * (planes.scale[plane + c] / largest) / largest);
      floats distance[sets];
      PQATTN_X86_UNROLL
      for (std::size_t set = 0; set < sets; ++set) {
        const floats relative = Isa::subf(Isa::loadf(values + c * rows_of_search + set * Isa::lanes), offset);
        distance[set] = Isa::minf(Isa::magnitude(relative), far);  // what is not a number is far
        rounded[i][set] = Isa::to_ints(Isa::mulf(relative, factor));
      }
      outside |= Isa::above(distance, Isa::setf(row_reach * largest));
    }
    PQATTN_X86_UNROLL
    for (std::size_t set = 0; set < sets; ++set) {
      Isa::store(factors[pair] + set * Isa::lanes, Isa::pair_words(rounded[0][set], rounded[1][set]));
    }
  }
  return outside;
}

/// The two least sums of Sets registers of vectors, whose factors are Pairs rows of rows_of_search.
template <class Isa, std::size_t Pairs, std::size_t Sets>
PQATTN_NOINLINE void least_of_rows(const row_centroids& centroids, std::size_t count, const std::int32_t* factors,
                                   std::int32_t* least_out, std::int32_t* second_out) noexcept {
  using ints = typename Isa::ints;
  ints factor[Pairs][Sets];
  ints least[Sets];
  ints second[Sets];
  PQATTN_X86_UNROLL
  for (std::size_t set = 0; set < Sets; ++set) {
    least[set] = second[set] = Isa::set32((std::numeric_limits<std::int32_t>::max)());
    PQATTN_X86_UNROLL
    for (std::size_t pair = 0; pair < Pairs; ++pair) {
      factor[pair][set] = Isa::load(factors + pair * rows_of_search + set * Isa::lanes);
    }
  }
  for (std::size_t k = 0; k < count; ++k) {
    ints sum[Sets];
    PQATTN_X86_UNROLL
    for (std::size_t set = 0; set < Sets; ++set) {
      sum[set] = Isa::set32(centroids.start[k]);
    }
    PQATTN_X86_UNROLL
    for (std::size_t pair = 0; pair < Pairs; ++pair) {
      const ints words = Isa::set32(centroids.words[pair][k]);
      PQATTN_X86_UNROLL
      for (std::size_t set = 0; set < Sets; ++set) {
        sum[set] = Isa::dot_words(sum[set], words, factor[pair][set]);
      }
    }
    PQATTN_X86_UNROLL
    for (std::size_t set = 0; set < Sets; ++set) {
      const ints larger = Isa::max32(sum[set], least[set]);
      least[set] = Isa::min32(sum[set], least[set]);
      second[set] = Isa::min32(second[set], larger);
    }
  }
  PQATTN_X86_UNROLL
  for (std::size_t set = 0; set < Sets; ++set) {
    Isa::store(least_out + set * Isa::lanes, least[set]);
    Isa::store(second_out + set * Isa::lanes, second[set]);
  }
}

/// Codes of one group of `rows` vectors.
template <class Isa, std::size_t Pairs>
PQATTN_NOINLINE void nearest_of_group(const byte_planes& planes, std::size_t plane, std::size_t width,
                                      std::size_t count, const float* values, std::size_t rows, std::uint16_t* codes,
                                      std::size_t code_stride, deferred_search<Isa>& search) noexcept {
  const float largest = largest_scale_of(planes.scale + plane, width);
  std::uint64_t unsure = ~std::uint64_t{0};
  if (largest > 0.0f) {
    const float scale = row_scale / static_cast<float>(width);
    row_centroids centroids;
    alignas(64) std::int32_t factors[Pairs][rows_of_search];
    alignas(64) std::int32_t least[rows_of_search];
    alignas(64) std::int32_t second[rows_of_search];
    prepare_row_centroids<Isa, Pairs>(planes, plane, width, count, largest, scale, centroids);
    unsure = prepare_rows<Isa, Pairs>(planes, plane, width, values, largest, scale, factors);
    constexpr std::size_t sets_at_once = Isa::bytes == 64 ? 4 : Pairs <= 2 ? 2 : 1;
    for_rows<sets_at_once>((rows + Isa::lanes - 1) / Isa::lanes, [&]<std::size_t Sets>(std::size_t set) noexcept {
      const std::size_t row = set * Isa::lanes;
      least_of_rows<Isa, Pairs, Sets>(centroids, count, factors[0] + row, least + row, second + row);
    });
    const std::uint32_t certain = certain_row_difference(width);
    for (std::size_t row = 0; row < rows; ++row) {
      const auto apart = static_cast<std::uint32_t>(second[row]) - static_cast<std::uint32_t>(least[row]);
      codes[row * code_stride] = static_cast<std::uint16_t>(least[row] & 255);
      unsure |= std::uint64_t{apart <= certain} << row;
    }
  }
  for (std::size_t row = 0; row < rows; ++row, unsure >>= 1) {
    if ((unsure & 1) != 0) {
      search.add(plane, width, values + row, rows_of_search, codes + row * code_stride);
    }
  }
}

}  // namespace detail

/// Codes of `rows` vectors, at most rows_of_search, of a shape that suits_row_search(): those that nearest_centroids()
/// finds. `values`: channel-major in the order of codes, rows_of_search a channel, all of them readable; codes of row r
/// go to codes[r * code_stride] and after. Planes as there. O(rows_of_search * dim * count).
template <class Isa>
inline void nearest_of_rows(const byte_planes& planes, const geometry& shape, const float* values, std::size_t rows,
                            std::uint16_t* codes, std::size_t code_stride) noexcept {
  static_assert(widest_row_search <= detail::deferred_search<Isa>::widest);
  detail::deferred_search<Isa> search(planes, shape.centroids);
  for (group_walk at(shape); !at.done(); at.next()) {
    const auto find = [&]<std::size_t Pairs>() noexcept {
      detail::nearest_of_group<Isa, Pairs>(planes, at.plane(), at.width(), shape.centroids,
                                           values + at.plane() * rows_of_search, rows, codes + at.group(), code_stride,
                                           search);
    };
    switch ((at.width() + 1) / 2) {
      case 1: find.template operator()<1>(); break;
      case 2: find.template operator()<2>(); break;
      case 3: find.template operator()<3>(); break;
      default: find.template operator()<4>(); break;
    }
  }
  search.finish();
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
