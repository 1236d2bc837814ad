// SPDX-License-Identifier: MIT
// The softmax part of one row of scores.
#pragma once

#include <algorithm>
#include <cmath>

#include "isa.hpp"

#if PQATTN_X86_AVX2

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

/// Sums of one row's probabilities: of themselves, of their squares; and the largest.
struct row_sums {
  float mass;
  float energy;
  float largest;
};

namespace detail {

/// exp(score - reference), relative error below 2e-7 for results above 2^-126, 0 far below.
template <class Isa>
PQATTN_ALWAYS_INLINE typename Isa::floats exp_from(typename Isa::floats score,
                                                   typename Isa::floats reference) noexcept {
  using floats = typename Isa::floats;
  const floats t = Isa::mulf(Isa::subf(score, reference), Isa::setf(1.44269504f));
  const floats power = Isa::round(t);
  const floats r = Isa::subf(t, power);
  // Minimax for 2^r on [-1/2, 1/2], relative error 9.2e-8, exact at 0.
  floats p = Isa::fma(Isa::setf(1.32647273e-3f), r, Isa::setf(9.67151299e-3f));
  p = Isa::fma(p, r, Isa::setf(5.55073358e-2f));
  p = Isa::fma(p, r, Isa::setf(2.40222424e-1f));
  p = Isa::fma(p, r, Isa::setf(6.93147004e-1f));
  p = Isa::fma(p, r, Isa::setf(1.0f));
  return Isa::scale_by_power(p, power);
}

/// The largest score of a row, or `masked` where all are below.
template <class Isa>
inline float largest_score(const float* scores, std::size_t padded, float masked) noexcept {
  typename Isa::floats highest[4] = {Isa::setf(masked), Isa::setf(masked), Isa::setf(masked), Isa::setf(masked)};
  for (std::size_t i = 0; i < padded; i += 4 * Isa::lanes) {
    PQATTN_X86_UNROLL
    for (std::size_t j = 0; j < 4; ++j) {
      highest[j] = Isa::maxf(highest[j], Isa::loadf(scores + i + j * Isa::lanes));
    }
  }
  return largest_of<Isa>(highest);
}

/// softmax_row() of a row whose largest score is known; `largest` becomes that of `next` if there is a next row: its
/// loads and comparisons fit between the multiplications.
template <class Isa, bool HasNext>
inline row_sums exponentials(float* scores, const float* next, std::size_t padded, float masked, float& largest,
                             float& maximum, float& sum, float& rescale) noexcept {
  using floats = typename Isa::floats;
  const float tile = largest;
  const float reached = tile > maximum ? tile : maximum;
  // Against 0 a masked score vanishes; against itself, where there is nothing else, it would be exp(0).
  const floats reference = Isa::setf(reached > 0.5f * masked ? reached : 0.0f);
  floats total[4] = {Isa::setf(0.0f), Isa::setf(0.0f), Isa::setf(0.0f), Isa::setf(0.0f)};
  floats squares[4] = {total[0], total[1], total[2], total[3]};
  floats highest[4] = {Isa::setf(masked), Isa::setf(masked), Isa::setf(masked), Isa::setf(masked)};
  for (std::size_t i = 0; i < padded; i += 4 * Isa::lanes) {
    PQATTN_X86_UNROLL
    for (std::size_t j = 0; j < 4; ++j) {
      const std::size_t at = i + j * Isa::lanes;
      const floats p = exp_from<Isa>(Isa::loadf(scores + at), reference);
      Isa::storef(scores + at, p);
      total[j] = Isa::addf(total[j], p);
      squares[j] = Isa::fma(p, p, squares[j]);
      if constexpr (HasNext) {
        highest[j] = Isa::maxf(highest[j], Isa::loadf(next + at));
      }
    }
  }
  if constexpr (HasNext) {
    largest = largest_of<Isa>(highest);
  }
  rescale = sum == 0.0f ? 1.0f : std::exp(maximum - reached);
  const float mass = sum_of<Isa>(total);
  sum = sum * rescale + mass;
  maximum = reached;
  return {mass, sum_of<Isa>(squares), tile > 0.5f * masked ? std::exp(tile - reached) : 0.0f};
}

}  // namespace detail

/// softmax_row() of `rows` rows, at least one, `stride` apart; keep(row, sums) gets what each row's probabilities come
/// to.
template <class Isa, class Keep>
inline void softmax_rows(float* scores, std::size_t stride, std::size_t rows, std::size_t count, float masked,
                         float* maximum, float* sum, float* rescale, const Keep& keep) noexcept {
  const std::size_t padded = (count + 63) / 64 * 64;
  for (std::size_t row = 0; row < rows; ++row) {
    std::fill(scores + row * stride + count, scores + row * stride + padded, masked);
  }
  float largest = detail::largest_score<Isa>(scores, padded, masked);
  for (std::size_t row = 0; row + 1 < rows; ++row, scores += stride) {
    keep(row, detail::exponentials<Isa, true>(scores, scores + stride, padded, masked, largest, maximum[row], sum[row],
                                              rescale[row]));
  }
  const std::size_t last = rows - 1;
  keep(last, detail::exponentials<Isa, false>(scores, nullptr, padded, masked, largest, maximum[last], sum[last],
                                              rescale[last]));
}

/// Scores become exp(score - maximum) against running statistics; a score at or below `masked` / 2 becomes 0.
/// `scores` has room for `count` rounded up to 64 floats, and the padding becomes 0. The error of an exponential grows
/// with its argument as f32 rounds it: relative 1e-7 * (1 + maximum - score).
/// maximum, sum: of earlier tiles, updated. rescale: exp(old maximum - new maximum), or 1 when the sum was 0.
/// Returns what the probabilities come to.
template <class Isa>
inline row_sums softmax_row(float* scores, std::size_t count, float masked, float& maximum, float& sum,
                            float& rescale) noexcept {
  row_sums sums{};
  softmax_rows<Isa>(scores, 0, 1, count, masked, &maximum, &sum, &rescale,
                    [&](std::size_t, const row_sums& of_row) noexcept { sums = of_row; });
  return sums;
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
