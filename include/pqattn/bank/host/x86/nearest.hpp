// SPDX-License-Identifier: MIT
// Nearest centroids by squared distance, fused with the argmin, and sums of the points of each centroid.
//
// All searches sum (x - c)^2 over channels in order, a product first and then fused multiply-adds: on f32 centroids
// they agree bit for bit. Of equal distances the lowest index wins.
#pragma once

#include "../../../core/half.hpp"
#include "../../../quant/geometry.hpp"
#include "isa.hpp"

#if PQATTN_X86_AVX2

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
        add(c,
            [&](std::size_t i) PQATTN_X86_INLINE_LAMBDA { return Isa::loadf(points + c * stride + i * Isa::lanes); });
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

// --- one or two vectors, centroids in planes: lanes run over centroids -----------------------------------------------

/// Component planes of a codebook as stored: entry k of plane c. difference() is x - entry, up to rounding, given
/// relative(x) and what load() reads, which vectors share.
template <class Number>
struct number_planes {
  const Number* numbers;
  std::size_t entries;  ///< of one plane, a multiple of 64

  [[nodiscard]] float relative(float x, std::size_t) const noexcept { return x; }
  template <class Isa>
  PQATTN_ALWAYS_INLINE typename Isa::floats load(std::size_t plane, std::size_t k) const noexcept {
    const Number* at = numbers + plane * entries + k;
    if constexpr (sizeof(Number) == sizeof(float)) {
      return Isa::loadf(at);
    } else {
      return Isa::load_half(at);
    }
  }
  template <class Isa>
  PQATTN_ALWAYS_INLINE typename Isa::floats difference(typename Isa::floats relative_x, typename Isa::floats loaded,
                                                       std::size_t) const noexcept {
    return Isa::subf(relative_x, loaded);
  }
};
using float_planes = number_planes<float>;
using half_planes = number_planes<half>;
/// offset + scale * byte.
struct byte_planes {
  const std::int8_t* numbers;
  const float* scale;
  const float* offset;
  std::size_t entries;

  /// The offset is subtracted once per vector: x - offset, then minus scale * byte.
  [[nodiscard]] float relative(float x, std::size_t plane) const noexcept { return x - offset[plane]; }
  template <class Isa>
  PQATTN_ALWAYS_INLINE typename Isa::floats load(std::size_t plane, std::size_t k) const noexcept {
    return Isa::to_floats(Isa::widen_signed_bytes(numbers + plane * entries + k));
  }
  template <class Isa>
  PQATTN_ALWAYS_INLINE typename Isa::floats difference(typename Isa::floats relative_x, typename Isa::floats loaded,
                                                       std::size_t plane) const noexcept {
    return Isa::fnma(loaded, Isa::setf(scale[plane]), relative_x);
  }
};

namespace detail {

/// Of each of `lanes` registers the lane with the least value and, of equal ones, the least index: afterwards in one
/// lane each of the first. All of them take hardly more instructions together than one alone.
template <class Isa, int Step = 0>
PQATTN_ALWAYS_INLINE void reduce_to_least(typename Isa::floats* value, typename Isa::ints* index) noexcept {
  constexpr std::size_t pairs = Isa::lanes >> (Step + 1);
  for (std::size_t i = 0; i < pairs; ++i) {
    typename Isa::floats other;
    typename Isa::floats first_index;
    typename Isa::floats other_index;
    typename Isa::floats best;
    Isa::template deal<Step>(Isa::as_floats(index[2 * i]), Isa::as_floats(index[2 * i + 1]), first_index, other_index);
    Isa::template deal<Step>(value[2 * i], value[2 * i + 1], best, other);
    index[i] = Isa::as_ints(first_index);
    Isa::keep_least(other, Isa::as_ints(other_index), best, index[i]);
    value[i] = best;
  }
  if constexpr (Step + 1 < Isa::deal_steps) {
    reduce_to_least<Isa, Step + 1>(value, index);
  }
}

/// Nearest centroids of one sub-vector of Rows vectors, `stride` apart from x on, in each lane: of the entries whose
/// number modulo `lanes` is the lane's. Row r's go to least[r * lanes] and least_index[r * lanes]. Chains of running
/// minima, each over its share of the entries, so that of equal distances in a lane the earlier chain's is the lower
/// index: two, and four for one row where the loop over the channels is not unrolled. No branch depends on the data.
template <class Isa, std::size_t Width, std::size_t Rows, class Planes>
PQATTN_NOINLINE void nearest_of_lanes(const Planes& planes, std::size_t plane, std::size_t width, std::size_t count,
                                      const float* x, std::size_t stride, typename Isa::floats* least,
                                      typename Isa::ints* least_index) noexcept {
  using floats = typename Isa::floats;
  using ints = typename Isa::ints;
  constexpr std::size_t chains = Width == 0 && Rows == 1 ? 4 : 2;
  const std::size_t share = (count + 63) / 64 * (64 / chains);
  floats best[Rows][chains];
  ints index[Rows][chains];
  ints step = Isa::zero();
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Rows * chains; ++i) {
    best[i / chains][i % chains] = Isa::setf((std::numeric_limits<float>::max)());
    index[i / chains][i % chains] = Isa::zero();
  }
  const auto relative = [&](std::size_t row, std::size_t c) PQATTN_X86_INLINE_LAMBDA {
    return Isa::setf(planes.relative(x[row * stride + c], plane + c));
  };
  floats kept[Width == 0 ? 1 : Width][Rows];
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Width * Rows; ++i) {
    kept[i / Rows][i % Rows] = relative(i % Rows, i / Rows);
  }
  for (std::size_t k = 0; k < share; k += Isa::lanes) {
    floats sum[Rows][chains];
    const auto channel = [&](std::size_t c, const floats(&value)[Rows]) PQATTN_X86_INLINE_LAMBDA {
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < chains; ++i) {
        const floats loaded = planes.template load<Isa>(plane + c, k + i * share);
        PQATTN_X86_UNROLL
        for (std::size_t row = 0; row < Rows; ++row) {
          const floats difference = planes.template difference<Isa>(value[row], loaded, plane + c);
          sum[row][i] = c == 0 ? Isa::mulf(difference, difference) : Isa::fma(difference, difference, sum[row][i]);
        }
      }
    };
    if constexpr (Width != 0) {
      PQATTN_X86_UNROLL
      for (std::size_t c = 0; c < Width; ++c) {
        channel(c, kept[c]);
      }
    } else {
      for (std::size_t c = 0; c < width; ++c) {
        PQATTN_X86_UNROLL
        for (std::size_t row = 0; row < Rows; ++row) {
          kept[0][row] = relative(row, c);
        }
        channel(c, kept[0]);
      }
    }
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Rows * chains; ++i) {
      Isa::keep_smaller(sum[i / chains][i % chains], step, best[i / chains][i % chains], index[i / chains][i % chains]);
    }
    step = Isa::add32(step, Isa::set32(static_cast<std::int32_t>(Isa::lanes)));
  }
  PQATTN_X86_UNROLL
  for (std::size_t row = 0; row < Rows; ++row) {
    PQATTN_X86_UNROLL
    for (std::size_t i = 1; i < chains; ++i) {
      const ints there = Isa::add32(index[row][i], Isa::set32(static_cast<std::int32_t>(i * share)));
      Isa::keep_smaller(best[row][i], there, best[row][0], index[row][0]);
    }
    least[row * Isa::lanes] = best[row][0];
    least_index[row * Isa::lanes] = Isa::add32(index[row][0], Isa::lane_indices());
  }
}

/// Calls find<Width>(), where the loop over channels is unrolled for Width of them, or for none: Width 0.
template <class Find>
PQATTN_ALWAYS_INLINE void with_unrolled_width(std::size_t width, const Find& find) noexcept {
  switch (width) {
    case 2: find.template operator()<2>(); break;
    case 4: find.template operator()<4>(); break;
    default: find.template operator()<0>(); break;
  }
}

/// Codes of `groups` groups from what nearest_of_lanes() found for each. Both registers' arrays are overwritten.
template <class Isa>
PQATTN_ALWAYS_INLINE void codes_of_least(typename Isa::floats (&least)[Isa::lanes],
                                         typename Isa::ints (&index)[Isa::lanes], std::size_t groups,
                                         std::uint16_t* codes) noexcept {
  for (std::size_t i = groups; i < Isa::lanes; ++i) {
    least[i] = Isa::setf(0.0f);
    index[i] = Isa::zero();
  }
  reduce_to_least<Isa>(least, index);
  std::uint32_t found[Isa::lanes];
  Isa::store(found, index[0]);
  for (std::size_t lane = 0; lane < Isa::lanes; ++lane) {
    if (const std::size_t group = Isa::lane_source(lane); group < groups) {
      codes[group] = static_cast<std::uint16_t>(found[lane]);
    }
  }
}

/// Sub-vectors of byte codebooks that are searched in f32 as nearest_centroids() does, and decided when there are as
/// many as lanes: those of which integers are not certain.
template <class Isa>
class deferred_search {
 public:
  static constexpr std::size_t widest = 8;

  deferred_search(const byte_planes& planes, std::size_t count) noexcept : planes_(planes), count_(count) {}

  /// A sub-vector of `width` components, at most `widest`, `stride` apart; *code is set here, later, or by finish().
  void add(std::size_t plane, std::size_t width, const float* x, std::size_t stride, std::uint16_t* code) noexcept {
    float values[widest];
    for (std::size_t c = 0; c < width; ++c) {
      values[c] = x[c * stride];
    }
    const auto find = [&]<std::size_t Width>() noexcept {
      nearest_of_lanes<Isa, Width, 1>(planes_, plane, width, count_, values, 0, &least_[waiting_], &index_[waiting_]);
    };
    with_unrolled_width(width, find);
    code_[waiting_] = code;
    if (++waiting_ == Isa::lanes) {
      finish();
    }
  }
  void finish() noexcept {
    if (waiting_ == 0) {
      return;
    }
    std::uint16_t found[Isa::lanes];
    codes_of_least<Isa>(least_, index_, waiting_, found);
    for (std::size_t i = 0; i < waiting_; ++i) {
      *code_[i] = found[i];
    }
    waiting_ = 0;
  }

 private:
  const byte_planes& planes_;
  std::size_t count_;
  std::size_t waiting_ = 0;
  std::uint16_t* code_[Isa::lanes];
  typename Isa::floats least_[Isa::lanes];
  typename Isa::ints index_[Isa::lanes];
};

}  // namespace detail

/// Nearest centroids of the sub-vectors of a stage, which lie one after the other in each of Rows vectors, 1 or 2,
/// `stride` apart from x on; codes of row r go to codes[r * code_stride] and after. Planes [at.plane(), at.plane() +
/// width) hold the components of a group's centroids. `at` moves past the stage. Reads whole runs of 64 entries, so
/// planes must be padded to 64, entries past the last centroid repeating centroid 0, which then never win. A row's
/// codes do not depend on the rows beside it. O(width * count) a row and group.
template <class Isa, std::size_t Rows, class Planes>
inline void nearest_centroids(const Planes& planes, const geometry& shape, group_walk& at, const float* x,
                              std::size_t stride, std::uint16_t* codes, std::size_t code_stride) noexcept {
  typename Isa::floats least[Rows][Isa::lanes];
  typename Isa::ints index[Rows][Isa::lanes];
  for (std::size_t done = 0; done < shape.subvectors; done += Isa::lanes) {
    const std::size_t groups = shape.subvectors - done < Isa::lanes ? shape.subvectors - done : Isa::lanes;
    for (std::size_t i = 0; i < groups; ++i, x += at.width(), at.next()) {
      detail::with_unrolled_width(at.width(), [&]<std::size_t Width>() noexcept {
        detail::nearest_of_lanes<Isa, Width, Rows>(planes, at.plane(), at.width(), shape.centroids, x, stride,
                                                   &least[0][i], &index[0][i]);
      });
    }
    for (std::size_t row = 0; row < Rows; ++row) {
      detail::codes_of_least<Isa>(least[row], index[row], groups, codes + row * code_stride + done);
    }
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
