// SPDX-License-Identifier: MIT
// Nearest centroids by squared distance, fused with the argmin, and sums of the points of each centroid.
//
// All searches sum (x - c)^2 over channels in order, a product first and then fused multiply-adds: on f32 centroids
// they agree bit for bit. Of equal distances the lowest index wins.
#pragma once

#include "../../../core/half.hpp"
#include "isa.hpp"

#if PQATTN_X86_AVX2

#include <bit>
#include <limits>

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

// --- many points, centroids row-major: lanes run over points ---------------------------------------------------------

namespace detail {

/// Four registers of points against all centroids. Width 0: any width, points read again for each centroid.
template <class Isa, std::size_t Width>
inline void assign_registers(const float* points, std::size_t stride, std::size_t width, const float* centroids,
                             std::uint32_t count, float* distances, std::int32_t* indices) noexcept {
  using floats = typename Isa::floats;
  using ints = typename Isa::ints;
  constexpr std::size_t kept = Width == 0 ? 1 : Width;
  floats point[kept][4];
  floats best[4];
  ints index[4];
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < 4; ++i) {
    best[i] = Isa::setf((std::numeric_limits<float>::max)());
    index[i] = Isa::zero();
    if constexpr (Width != 0) {
      PQATTN_X86_UNROLL
      for (std::size_t c = 0; c < kept; ++c) {
        point[c][i] = Isa::loadf(points + c * stride + i * Isa::lanes);
      }
    }
  }
  for (std::uint32_t k = 0; k < count; ++k, centroids += width) {
    floats sum[4];
    const floats first = Isa::setf(centroids[0]);
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      const floats at = Width != 0 ? point[0][i] : Isa::loadf(points + i * Isa::lanes);
      const floats difference = Isa::subf(at, first);
      sum[i] = Isa::mulf(difference, difference);
    }
    const auto add = [&](std::size_t c, const auto& load) PQATTN_X86_INLINE_LAMBDA {
      const floats center = Isa::setf(centroids[c]);
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        const floats difference = Isa::subf(load(i), center);
        sum[i] = Isa::fma(difference, difference, sum[i]);
      }
    };
    if constexpr (Width != 0) {
      PQATTN_X86_UNROLL
      for (std::size_t c = 1; c < kept; ++c) {
        add(c, [&](std::size_t i) PQATTN_X86_INLINE_LAMBDA { return point[c][i]; });
      }
    } else {
      for (std::size_t c = 1; c < width; ++c) {
        add(c, [&](std::size_t i) PQATTN_X86_INLINE_LAMBDA {
          return Isa::loadf(points + c * stride + i * Isa::lanes);
        });
      }
    }
    const ints candidate = Isa::set32(static_cast<std::int32_t>(k));
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      Isa::keep_smaller(sum[i], candidate, best[i], index[i]);
    }
  }
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < 4; ++i) {
    Isa::storef(distances + i * Isa::lanes, best[i]);
    Isa::store(indices + i * Isa::lanes, index[i]);
  }
}

}  // namespace detail

/// Nearest of `centroids` (count, width) for points given channel-major: channel c of point i at
/// points[c * stride + i]. Reads only points below point_count. O(point_count * count * width).
template <class Isa>
inline void assign_points(const float* points, std::size_t stride, std::size_t point_count, std::size_t width,
                          const float* centroids, std::uint32_t count, std::uint16_t* codes,
                          float* distances) noexcept {
  constexpr std::size_t tile = 4 * Isa::lanes;
  alignas(64) float best[tile];
  alignas(64) std::int32_t index[tile];
  const auto run = [&](const float* at, std::size_t at_stride) noexcept {
    switch (width) {
      case 2: return detail::assign_registers<Isa, 2>(at, at_stride, width, centroids, count, best, index);
      case 4:
        if constexpr (Isa::lanes == 16) {
          return detail::assign_registers<Isa, 4>(at, at_stride, width, centroids, count, best, index);
        }
        [[fallthrough]];
      default: return detail::assign_registers<Isa, 0>(at, at_stride, width, centroids, count, best, index);
    }
  };
  for (std::size_t first = 0; first < point_count; first += tile) {
    const std::size_t here = point_count - first < tile ? point_count - first : tile;
    if (here == tile) {
      run(points + first, stride);
    } else {
      // The last points are copied, channel by channel where the width is large, so that nothing beyond is read.
      constexpr std::size_t widest = 1024;
      alignas(64) float copy[widest * tile / 16];  // tiles of lanes points would overflow the stack at width 1024
      const std::size_t fits = sizeof copy / sizeof(float) / tile;
      if (width <= fits) {
        for (std::size_t c = 0; c < width; ++c) {
          for (std::size_t i = 0; i < tile; ++i) {
            copy[c * tile + i] = points[c * stride + first + (i < here ? i : 0)];
          }
        }
        run(copy, tile);
      } else {
        for (std::size_t i = 0; i < here; ++i) {
          best[i] = (std::numeric_limits<float>::max)();
          index[i] = 0;
          for (std::uint32_t k = 0; k < count; ++k) {
            float sum = 0.0f;
            for (std::size_t c = 0; c < width; ++c) {
              const float difference = points[c * stride + first + i] - centroids[k * width + c];
              sum = __builtin_fmaf(difference, difference, sum);
            }
            if (sum < best[i]) {
              best[i] = sum;
              index[i] = static_cast<std::int32_t>(k);
            }
          }
        }
      }
    }
    for (std::size_t i = 0; i < here; ++i) {
      codes[first + i] = static_cast<std::uint16_t>(index[i]);
      distances[first + i] = best[i];
    }
  }
}

// --- one vector, centroids in planes: lanes run over centroids -------------------------------------------------------

/// Component planes of a codebook as stored: entry k of plane c. difference() is x - entry, up to rounding, given
/// relative(x).
template <class Number>
struct number_planes {
  const Number* numbers;
  std::size_t entries;  ///< of one plane, a multiple of 64

  template <class Isa>
  PQATTN_ALWAYS_INLINE typename Isa::floats load(std::size_t plane, std::size_t k) const noexcept {
    if constexpr (sizeof(Number) == sizeof(float)) {
      return Isa::loadf(numbers + plane * entries + k);
    } else {
      return Isa::load_half(numbers + plane * entries + k);
    }
  }
  [[nodiscard]] float relative(float x, std::size_t) const noexcept { return x; }
  template <class Isa>
  PQATTN_ALWAYS_INLINE typename Isa::floats difference(typename Isa::floats relative_x, std::size_t plane,
                                                       std::size_t k) const noexcept {
    return Isa::subf(relative_x, load<Isa>(plane, k));
  }
};
using float_planes = number_planes<float>;
using half_planes = number_planes<half>;
/// offset + scale * byte, one rounding.
struct byte_planes {
  const std::int8_t* numbers;
  const float* scale;
  const float* offset;
  std::size_t entries;

  template <class Isa>
  PQATTN_ALWAYS_INLINE typename Isa::floats load(std::size_t plane, std::size_t k) const noexcept {
    return Isa::fma(Isa::to_floats(Isa::widen_signed_bytes(numbers + plane * entries + k)), Isa::setf(scale[plane]),
                    Isa::setf(offset[plane]));
  }
  /// One vector saves the addition of the offset: x - offset, then minus scale * byte.
  [[nodiscard]] float relative(float x, std::size_t plane) const noexcept { return x - offset[plane]; }
  template <class Isa>
  PQATTN_ALWAYS_INLINE typename Isa::floats difference(typename Isa::floats relative_x, std::size_t plane,
                                                       std::size_t k) const noexcept {
    return Isa::fnma(Isa::to_floats(Isa::widen_signed_bytes(numbers + plane * entries + k)), Isa::setf(scale[plane]),
                     relative_x);
  }
};

namespace detail {

/// Least distance from one sub-vector to Registers * lanes centroids from k on, all distances kept in registers, and
/// the lowest index that has it.
template <class Isa, std::size_t Registers, std::size_t Width, class Planes>
PQATTN_ALWAYS_INLINE float nearest_in_chunk(const Planes& planes, std::size_t plane, std::size_t width, std::size_t k,
                                            const float* x, std::uint32_t& code) noexcept {
  using floats = typename Isa::floats;
  floats sum[Registers];
  const auto channel = [&](std::size_t c) PQATTN_X86_INLINE_LAMBDA {
    const floats value = Isa::setf(planes.relative(x[c], plane + c));
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Registers; ++i) {
      const floats difference = planes.template difference<Isa>(value, plane + c, k + i * Isa::lanes);
      sum[i] = c == 0 ? Isa::mulf(difference, difference) : Isa::fma(difference, difference, sum[i]);
    }
  };
  channel(0);
  if constexpr (Width != 0) {
    PQATTN_X86_UNROLL
    for (std::size_t c = 1; c < Width; ++c) {
      channel(c);
    }
  } else {
    for (std::size_t c = 1; c < width; ++c) {
      channel(c);
    }
  }
  floats low[4] = {sum[0], sum[1], sum[2], sum[3]};
  PQATTN_X86_UNROLL
  for (std::size_t i = 4; i < Registers; ++i) {
    low[i % 4] = Isa::minf(low[i % 4], sum[i]);
  }
  const float least = Isa::smallest(Isa::minf(Isa::minf(low[0], low[1]), Isa::minf(low[2], low[3])));
  const floats wanted = Isa::setf(least);
  constexpr std::size_t per_word = 64 / Isa::lanes;
  std::uint64_t words[Registers / per_word] = {};
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Registers; ++i) {
    words[i / per_word] |= Isa::equal_bits(sum[i], wanted) << (i % per_word * Isa::lanes);
  }
  std::size_t word = 0;
  while (word + 1 < Registers / per_word && words[word] == 0) {
    ++word;
  }
  code = static_cast<std::uint32_t>(k + 64 * word + static_cast<std::size_t>(std::countr_zero(words[word])));
  return least;
}

/// Nearest centroid of one sub-vector.
template <class Isa, std::size_t Width, class Planes>
inline std::uint32_t nearest_of_one(const Planes& planes, std::size_t plane, std::size_t width, std::size_t count,
                                    const float* x) noexcept {
  constexpr std::size_t short_run = 64;
  constexpr std::size_t long_run = Isa::lanes == 16 ? 256 : 64;
  float best = (std::numeric_limits<float>::max)();
  std::uint32_t winner = 0;
  for (std::size_t k = 0; k < count;) {
    std::uint32_t code = 0;
    float least = 0.0f;
    if (count - k > long_run - short_run) {
      least = nearest_in_chunk<Isa, long_run / Isa::lanes, Width>(planes, plane, width, k, x, code);
      k += long_run;
    } else {
      least = nearest_in_chunk<Isa, short_run / Isa::lanes, Width>(planes, plane, width, k, x, code);
      k += short_run;
    }
    winner = least < best ? code : winner;
    best = least < best ? least : best;
  }
  return winner;
}

/// Nearest centroid of Vectors sub-vectors (x[v] has `width` floats) in planes [plane, plane + width).
template <class Isa, std::size_t Vectors, std::size_t Width, class Planes>
inline void nearest_in_planes(const Planes& planes, std::size_t plane, std::size_t width, std::size_t count,
                              const float* const* x, std::uint32_t* codes) noexcept {
  using floats = typename Isa::floats;
  using ints = typename Isa::ints;
  constexpr std::size_t chains = Vectors == 1 ? 4 : Vectors == 2 ? 2 : 1;  // independent sums to hide latencies
  const std::size_t channels = Width == 0 ? width : Width;
  floats best[Vectors][chains];
  ints index[Vectors][chains];
  PQATTN_X86_UNROLL
  for (std::size_t v = 0; v < Vectors; ++v) {
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < chains; ++i) {
      best[v][i] = Isa::setf((std::numeric_limits<float>::max)());
      index[v][i] = Isa::zero();
    }
  }
  for (std::size_t k = 0; k < count; k += chains * Isa::lanes) {
    floats sum[Vectors][chains];
    const auto channel = [&](std::size_t c) PQATTN_X86_INLINE_LAMBDA {
      floats center[chains];
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < chains; ++i) {
        center[i] = planes.template load<Isa>(plane + c, k + i * Isa::lanes);
      }
      PQATTN_X86_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v) {
        const floats value = Isa::setf(x[v][c]);
        PQATTN_X86_UNROLL
        for (std::size_t i = 0; i < chains; ++i) {
          const floats difference = Isa::subf(value, center[i]);
          sum[v][i] = c == 0 ? Isa::mulf(difference, difference) : Isa::fma(difference, difference, sum[v][i]);
        }
      }
    };
    channel(0);
    if constexpr (Width != 0) {
      PQATTN_X86_UNROLL
      for (std::size_t c = 1; c < Width; ++c) {
        channel(c);
      }
    } else {
      for (std::size_t c = 1; c < channels; ++c) {
        channel(c);
      }
    }
    const ints candidate = Isa::set32(static_cast<std::int32_t>(k));
    PQATTN_X86_UNROLL
    for (std::size_t v = 0; v < Vectors; ++v) {
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < chains; ++i) {
        Isa::keep_smaller(sum[v][i], candidate, best[v][i], index[v][i]);
      }
    }
  }
  PQATTN_X86_UNROLL
  for (std::size_t v = 0; v < Vectors; ++v) {
    floats smallest = best[v][0];
    PQATTN_X86_UNROLL
    for (std::size_t i = 1; i < chains; ++i) {
      smallest = Isa::minf(smallest, best[v][i]);
    }
    const floats least = Isa::setf(Isa::smallest(smallest));
    // Of the lanes that reach the least distance the lowest index wins; indices below 2^24 are exact in f32.
    floats winner = Isa::setf((std::numeric_limits<float>::max)());
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < chains; ++i) {
      const floats first = Isa::addf(Isa::lane_numbers(), Isa::setf(static_cast<float>(i * Isa::lanes)));
      const floats code = Isa::addf(Isa::to_floats(index[v][i]), first);
      winner = Isa::minf(winner, Isa::where_equal(best[v][i], least, code, winner));
    }
    codes[v] = static_cast<std::uint32_t>(Isa::smallest(winner));
  }
}

}  // namespace detail

/// Nearest centroids of `Vectors` sub-vectors (1, 2 or 4): x[v] has `width` floats, planes [plane, plane + width) hold
/// the centroids' components. Reads whole runs of 64 entries (one vector: 256 where more than 192 are left), so planes
/// must be padded to 64, entries past the last centroid repeating centroid 0, which then never win.
template <class Isa, std::size_t Vectors, class Planes>
inline void nearest_centroids(const Planes& planes, std::size_t plane, std::size_t width, std::size_t count,
                              const float* const* x, std::uint32_t* codes) noexcept {
  if constexpr (Vectors == 1) {
    const auto one = [&]<std::size_t Width>() noexcept {
      return detail::nearest_of_one<Isa, Width>(planes, plane, width, count, x[0]);
    };
    codes[0] = width == 4 ? one.template operator()<4>()
               : width == 2 ? one.template operator()<2>()
                            : one.template operator()<0>();
    return;
  }
  switch (width) {
    case 2: return detail::nearest_in_planes<Isa, Vectors, 2>(planes, plane, width, count, x, codes);
    case 4: return detail::nearest_in_planes<Isa, Vectors, 4>(planes, plane, width, count, x, codes);
    default: return detail::nearest_in_planes<Isa, Vectors, 0>(planes, plane, width, count, x, codes);
  }
}

// --- sums of points --------------------------------------------------------------------------------------------------

/// sums[code * width + c] += weight * point, mass[code] += weight, point after point in double, so that the result
/// does not depend on the instruction set. Points channel-major as in assign_points; null weights are 1.
inline void add_points(const float* points, std::size_t stride, std::size_t point_count, std::size_t width,
                       const float* weights, const std::uint16_t* codes, double* sums, double* mass) noexcept {
  const auto add_one = [&](std::size_t i) noexcept {
    const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[i]);
    double* sum = sums + std::size_t{codes[i]} * width;
    for (std::size_t c = 0; c < width; ++c) {
      sum[c] += weight * static_cast<double>(points[c * stride + i]);
    }
    mass[codes[i]] += weight;
  };
  const std::size_t fours = width == 4 ? point_count / 4 : 0;
  for (std::size_t four = 0; four < fours; ++four) {
    const std::size_t i = 4 * four;
    __m128 a = _mm_loadu_ps(points + i);
    __m128 b = _mm_loadu_ps(points + stride + i);
    __m128 c = _mm_loadu_ps(points + 2 * stride + i);
    __m128 d = _mm_loadu_ps(points + 3 * stride + i);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    const __m128 rows[4] = {a, b, c, d};
    PQATTN_X86_UNROLL
    for (std::size_t j = 0; j < 4; ++j) {
      const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[i + j]);
      double* sum = sums + std::size_t{codes[i + j]} * 4;
      // A product of two f32 numbers is exact in double, so fusing or not makes no difference.
      _mm256_storeu_pd(
          sum, _mm256_add_pd(_mm256_loadu_pd(sum), _mm256_mul_pd(_mm256_cvtps_pd(rows[j]), _mm256_set1_pd(weight))));
      mass[codes[i + j]] += weight;
    }
  }
  for (std::size_t i = 4 * fours; i < point_count; ++i) {
    add_one(i);
  }
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
