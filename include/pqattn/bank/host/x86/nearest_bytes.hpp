// SPDX-License-Identifier: MIT
// Nearest centroids of byte codebooks in integers, where that is certain; else by f32 distances of those that may be
// nearest, or of all.
//
// With r = x - offset, the squared distance to a centroid of bytes b is, over the group's largest scale squared and
// without what all centroids share, the sum over channels of b (w b - 2 y), w = scale^2 / largest^2, y = r scale /
// largest^2. With a factor S for each group, words of 256 b are multiplied with what 128 S w rounds to, which gives S w
// b, what 2 S y rounds to is subtracted, and dot products with 256 b add the channels up. Sums are multiples of 256, so
// that eight bits are free for the centroid's number: the least sum names its centroid, and of equal ones the lowest.
//
// S is the largest at which differences fit 16 bits, by how far the group's values are from the middle of its
// centroids. Those beyond 1.5 times the range of the centroids are left to f32. A difference is off by at most 1.51
// (the roundings of S w b, of 128 S w and of 2 S y), a sum by 256 * 128 * 1.51 a channel. Where the two least sums are
// further apart than twice that, and than f32 rounds distances, the least is what the search in f32 finds.
#pragma once

#include <bit>

#include "nearest.hpp"

#if PQATTN_X86_AVX512VBMI

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

/// Channels of the sub-vectors that nearest_bytes() codes. In two channels the two nearest of 256 centroids are too
/// close to each other half of the time.
inline constexpr std::size_t integer_width = 4;

/// Whether nearest_bytes() searches codebooks of this shape: 64 to 256 centroids, a multiple of 64, of four channels.
[[nodiscard]] constexpr bool suits_integers(const geometry& shape) noexcept {
  return shape.centroids % 64 == 0 && shape.centroids <= 256 && shape.dim == integer_width * shape.subvectors;
}

namespace detail {

/// Sums whose difference is larger are in the order of the distances.
inline constexpr int certain_difference = 2 * static_cast<int>(256 * 128 * 1.51 * integer_width) + 8192;

/// Furthest a value may be from the middle of the range of the centroids, in their steps, of which the range has 127 on
/// either side: so that no sum of four channels saturates below 0.
inline constexpr float furthest_steps = 192.0f;

/// What the sums of up to 16 groups need per component.
struct integer_factors {
  alignas(64) std::int16_t weight[16 * integer_width];  ///< 128 S w
  alignas(64) std::int16_t query[16 * integer_width];   ///< 2 S y
  std::uint64_t outside = 0;                            ///< a bit per component that does not fit

  /// A bit per group with such a component.
  [[nodiscard]] std::uint32_t groups_outside() const noexcept {
    std::uint32_t groups = 0;
    for (std::uint64_t left = outside; left != 0; left &= left - 1) {
      groups |= 1u << (static_cast<std::size_t>(std::countr_zero(left)) / integer_width);
    }
    return groups;
  }
};
/// Bits of 1e-15 and 1e15 as f32: where the least and the largest scale may be.
inline constexpr int smallest_scale = std::bit_cast<int>(1e-15f);
inline constexpr int largest_scale = std::bit_cast<int>(1e15f);

/// The largest of the four numbers of each group, in all its lanes.
PQATTN_ALWAYS_INLINE __m512 largest_of_groups(__m512 v) noexcept {
  const __m512 two = _mm512_max_ps(v, _mm512_permute_ps(v, 0xb1));
  return _mm512_max_ps(two, _mm512_permute_ps(two, 0x4e));
}

PQATTN_ALWAYS_INLINE void store_words(std::int16_t* out, __m512 numbers) noexcept {
  _mm256_store_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(numbers)));
}

/// Reciprocals may be rough, 2^-14: they scale all sums of a group alike, and the limits have room for them.
inline void prepare_integers(const byte_planes& planes, std::size_t plane, std::size_t count, const float* x,
                             integer_factors& out) noexcept {
  for (std::size_t i = 0; i < count; i += 16) {
    const auto there = static_cast<__mmask16>(count - i < 16 ? (1u << (count - i)) - 1 : 0xffffu);
    const __m512 scale = _mm512_maskz_loadu_ps(there, planes.scale + plane + i);
    const __m512 offset = _mm512_maskz_loadu_ps(there, planes.offset + plane + i);
    const __m512 value = _mm512_sub_ps(_mm512_maskz_loadu_ps(there, x + i), offset);
    const __m512 size = _mm512_abs_ps(scale);
    const __m512 largest = largest_of_groups(size);
    const __m512 inverse = _mm512_rcp14_ps(largest);
    const __m512 relative = _mm512_mul_ps(scale, inverse);
    const __m512 weight = _mm512_mul_ps(relative, relative);
    const __m512 query = _mm512_mul_ps(_mm512_mul_ps(value, inverse), relative);
    // Scales whose squares f32 holds with room, by their bits. A channel of scale 0 says nothing, but large numbers
    // there would hide what others say in f32: it is held to the largest scale.
    const __m512i above = _mm512_sub_epi32(_mm512_castps_si512(largest), _mm512_set1_epi32(smallest_scale));
    const __mmask16 usable = _mm512_cmplt_epu32_mask(above, _mm512_set1_epi32(largest_scale - smallest_scale));
    const __mmask16 varies = _mm512_test_epi32_mask(_mm512_castps_si512(size), _mm512_castps_si512(size));
    const __m512 steps = _mm512_mul_ps(_mm512_abs_ps(value), _mm512_mask_rcp14_ps(inverse, varies, size));
    const __mmask16 inside = _mm512_mask_cmp_ps_mask(usable, steps, _mm512_set1_ps(furthest_steps), _CMP_LE_OQ);
    out.outside |= std::uint64_t{static_cast<__mmask16>(there & ~inside)} << i;
    const __m512 furthest = _mm512_min_ps(largest_of_groups(steps), _mm512_set1_ps(furthest_steps));
    const __m512 range = _mm512_fmadd_ps(furthest, _mm512_set1_ps(2.0f), _mm512_set1_ps(128.0f));
    const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(32690.0f), _mm512_rcp14_ps(range));
    store_words(out.weight + i, _mm512_mul_ps(weight, _mm512_mul_ps(factor, _mm512_set1_ps(128.0f))));
    store_words(out.query + i, _mm512_mul_ps(query, _mm512_add_ps(factor, factor)));
  }
}

/// Numbers of the centroids in the lanes of each register of sums: interleaving bytes twice leaves four of 16 side by
/// side.
struct centroid_numbers {
  alignas(64) std::int32_t of[16][16];

  constexpr centroid_numbers() noexcept : of{} {
    for (int part = 0; part < 16; ++part) {
      for (int lane = 0; lane < 16; ++lane) {
        of[part][lane] = part / 4 * 64 + lane / 4 * 16 + part % 4 * 4 + lane % 4;
      }
    }
  }
};

/// The two least sums of the centroids in each lane, of the group whose components begin with `plane`. `weight`,
/// `query`: the group's factors.
PQATTN_NOINLINE void least_sums(const byte_planes& planes, std::size_t plane, std::size_t count,
                                const std::int16_t* weight, const std::int16_t* query, __m512i& least_out,
                                __m512i& second_out) noexcept {
  static constexpr centroid_numbers numbers;
  constexpr std::size_t pairs = integer_width / 2;
  __m512i weights[pairs];
  __m512i queries[pairs];
  PQATTN_X86_UNROLL
  for (std::size_t pair = 0; pair < pairs; ++pair) {
    std::int32_t two[2];
    std::memcpy(two, weight + 2 * pair, sizeof two[0]);
    std::memcpy(two + 1, query + 2 * pair, sizeof two[1]);
    weights[pair] = _mm512_set1_epi32(two[0]);
    queries[pair] = _mm512_set1_epi32(two[1]);
  }
  __m512i least = _mm512_set1_epi32((std::numeric_limits<std::int32_t>::max)());
  __m512i second = least;
  const std::int8_t* bytes = planes.numbers + plane * planes.entries;
  for (std::size_t k = 0; k < count; k += 64, bytes += 64) {
    __m512i side_by_side[2][pairs];
    PQATTN_X86_UNROLL
    for (std::size_t pair = 0; pair < pairs; ++pair) {
      const __m512i a = _mm512_loadu_si512(bytes + 2 * pair * planes.entries);
      const __m512i b = _mm512_loadu_si512(bytes + (2 * pair + 1) * planes.entries);
      side_by_side[0][pair] = _mm512_unpacklo_epi8(a, b);
      side_by_side[1][pair] = _mm512_unpackhi_epi8(a, b);
    }
    PQATTN_X86_UNROLL
    for (std::size_t part = 0; part < 4; ++part) {
      __m512i sum = _mm512_load_si512(numbers.of[k / 16 + part]);
      PQATTN_X86_UNROLL
      for (std::size_t pair = 0; pair < pairs; ++pair) {
        const __m512i two = side_by_side[part / 2][pair];
        const __m512i words = part % 2 == 0 ? _mm512_unpacklo_epi8(_mm512_setzero_si512(), two)
                                            : _mm512_unpackhi_epi8(_mm512_setzero_si512(), two);
        const __m512i factor = _mm512_sub_epi16(_mm512_mulhrs_epi16(words, weights[pair]), queries[pair]);
        sum = _mm512_dpwssds_epi32(sum, words, factor);
      }
      const __m512i larger = _mm512_max_epi32(sum, least);
      least = _mm512_min_epi32(sum, least);
      second = _mm512_min_epi32(second, larger);
    }
  }
  least_out = least;
  second_out = second;
}

/// Of each of 16 pairs of registers the two least sums of all lanes: afterwards in one lane each of the first.
template <class Isa, int Step = 0>
PQATTN_ALWAYS_INLINE void reduce_to_two(typename Isa::ints* least, typename Isa::ints* second) noexcept {
  const auto deal = [](const typename Isa::ints* pair, typename Isa::ints& a, typename Isa::ints& b) {
    typename Isa::floats first;
    typename Isa::floats other;
    Isa::template deal<Step>(Isa::as_floats(pair[0]), Isa::as_floats(pair[1]), first, other);
    a = Isa::as_ints(first);
    b = Isa::as_ints(other);
  };
  for (std::size_t i = 0; i < Isa::lanes >> (Step + 1); ++i) {
    typename Isa::ints a, b, second_a, second_b;
    deal(least + 2 * i, a, b);
    deal(second + 2 * i, second_a, second_b);
    least[i] = _mm512_min_epi32(a, b);
    second[i] = _mm512_min_epi32(_mm512_max_epi32(a, b), _mm512_min_epi32(second_a, second_b));
  }
  if constexpr (Step + 1 < Isa::deal_steps) {
    reduce_to_two<Isa, Step + 1>(least, second);
  }
}

/// The nearest of the centroids whose sums are within certain_difference of the least, by distances as
/// nearest_centroids() takes them; false where a lane may have more of them than its least, or all sums may be
/// saturated.
inline bool nearest_of_few(const byte_planes& planes, std::size_t plane, const float* x, __m512i least, __m512i second,
                           std::uint16_t& code) noexcept {
  const int smallest = _mm512_reduce_min_epi32(least);
  const __m512i limit = _mm512_set1_epi32(smallest + certain_difference);
  const bool saturated = smallest > (std::numeric_limits<std::int32_t>::max)() - certain_difference;
  if (saturated || _mm512_cmple_epi32_mask(second, limit) != 0) {
    return false;
  }
  alignas(64) std::int32_t sums[16];
  _mm512_store_si512(sums, least);
  float nearest = (std::numeric_limits<float>::max)();
  for (std::uint32_t left = _mm512_cmple_epi32_mask(least, limit); left != 0; left &= left - 1) {
    const auto k = static_cast<std::uint16_t>(sums[std::countr_zero(left)] & 255);
    float distance = 0.0f;
    for (std::size_t c = 0; c < integer_width; ++c) {
      const auto number = static_cast<float>(planes.numbers[(plane + c) * planes.entries + k]);
      const float difference = __builtin_fmaf(-number, planes.scale[plane + c], planes.relative(x[c], plane + c));
      distance = c == 0 ? difference * difference : __builtin_fmaf(difference, difference, distance);
    }
    if (distance < nearest || (distance == nearest && k < code)) {
      nearest = distance;
      code = k;
    }
  }
  return true;
}

/// Codes of `groups` groups from `plane` on, at most Isa::lanes.
template <class Isa>
PQATTN_NOINLINE void nearest_of_groups(const byte_planes& planes, std::size_t plane, std::size_t groups,
                                       std::size_t count, const float* x, std::uint16_t* codes) noexcept {
  integer_factors factors;
  prepare_integers(planes, plane, groups * integer_width, x, factors);
  __m512i least[Isa::lanes];
  __m512i second[Isa::lanes];
  __m512i of_lanes[2][Isa::lanes];  // the same before lanes are reduced
  for (std::size_t i = 0; i < Isa::lanes; ++i) {
    if (i < groups) {
      const std::size_t c = i * integer_width;
      least_sums(planes, plane + c, count, factors.weight + c, factors.query + c, least[i], second[i]);
      of_lanes[0][i] = least[i];
      of_lanes[1][i] = second[i];
    } else {
      least[i] = second[i] = Isa::zero();
    }
  }
  reduce_to_two<Isa>(least, second);
  const auto there = static_cast<__mmask16>((1u << groups) - 1);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);  // lanes of the groups
  const __m512i found = _mm512_permutexvar_epi32(order, least[0]);
  const __m512i apart = _mm512_sub_epi32(_mm512_permutexvar_epi32(order, second[0]), found);
  _mm256_mask_storeu_epi16(codes, there, _mm512_cvtepi32_epi16(_mm512_and_si512(found, _mm512_set1_epi32(255))));
  const __mmask16 unsure = _mm512_mask_cmple_epu32_mask(there, apart, _mm512_set1_epi32(certain_difference));
  const std::uint32_t outside = factors.groups_outside();
  deferred_search<Isa> search(planes, count);
  for (std::uint32_t left = unsure | outside; left != 0; left &= left - 1) {
    const auto i = static_cast<std::size_t>(std::countr_zero(left));
    const std::size_t c = i * integer_width;
    if ((outside >> i & 1) != 0 ||
        !nearest_of_few(planes, plane + c, x + c, of_lanes[0][i], of_lanes[1][i], codes[i])) {
      search.add(plane + c, integer_width, x + c, 1, codes + i);
    }
  }
  search.finish();
}

}  // namespace detail

/// Codes of the sub-vectors of one vector, which lie one after the other from x on, for byte planes of a shape that
/// suits_integers(): those that nearest_centroids() finds. `at` moves past the stage.
template <class Isa>
inline void nearest_bytes(const byte_planes& planes, const geometry& shape, group_walk& at, const float* x,
                          std::uint16_t* codes) noexcept {
  for (std::size_t done = 0; done < shape.subvectors; done += Isa::lanes) {
    const std::size_t groups = shape.subvectors - done < Isa::lanes ? shape.subvectors - done : Isa::lanes;
    detail::nearest_of_groups<Isa>(planes, at.plane(), groups, shape.centroids, x + done * integer_width, codes + done);
    for (std::size_t i = 0; i < groups; ++i) {
      at.next();
    }
  }
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX512VBMI
