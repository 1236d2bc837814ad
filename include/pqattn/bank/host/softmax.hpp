// SPDX-License-Identifier: MIT
// The softmax part of one tile: scores become exp(score - maximum) against running statistics.
#pragma once

#include <cmath>
#include <cstddef>

#include "../bank.hpp"
#include "isa.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

template <class Isa>
void softmax_row(float* scores, std::size_t count, float& maximum, float& sum, float& rescale) noexcept {
  using batch = float_batch<Isa>;
  const std::size_t padded = blocks_for(count) * block_tokens;
  for (std::size_t s = count; s < padded; ++s) {
    scores[s] = masked_score;
  }
  batch highest(masked_score);
  for (std::size_t s = 0; s < padded; s += batch::size) {
    highest = (xsimd::max)(highest, batch::load_aligned(scores + s));
  }
  const float tile_maximum = xsimd::reduce_max(highest);
  const float new_maximum = tile_maximum > maximum ? tile_maximum : maximum;
  // Nothing but masked slots so far: exp(masked - masked) would be 1, so the threshold below zeroes them.
  const batch reference(new_maximum);
  const batch threshold(0.5f * masked_score);
  batch total(0.0f);
  for (std::size_t s = 0; s < padded; s += batch::size) {
    const batch score = batch::load_aligned(scores + s);
    const batch probability = xsimd::select(score > threshold, xsimd::exp(score - reference), batch(0.0f));
    probability.store_aligned(scores + s);
    total += probability;
  }
  rescale = sum == 0.0f ? 1.0f : std::exp(maximum - new_maximum);
  sum = sum * rescale + xsimd::reduce_add(total);
  maximum = new_maximum;
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
