// SPDX-License-Identifier: MIT
// Decode attention over exact f32 or f16 rows, one head's rows contiguous, with the library's own exact kernels.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "pqattn/bank/bank.hpp"
#include "pqattn/bank/host/x86/exact_rows.hpp"
#include "pqattn/bank/host/x86/softmax.hpp"

#if PQATTN_X86_AVX2

namespace bench {

template <class Isa, class Element>
void attend_exact(const pqattn::x86::exact_rows<Element>& keys, const pqattn::x86::exact_rows<Element>& values,
                  const float* queries, std::size_t rows, float* out) {
  constexpr std::size_t tile = 256;
  constexpr std::size_t most_rows = 8;
  alignas(64) float scores[most_rows * tile];
  float maximum[most_rows];
  float sum[most_rows] = {};
  std::fill(maximum, maximum + most_rows, pqattn::masked_score);
  std::fill(out, out + rows * keys.dim, 0.0f);
  for (std::size_t first = 0; first < keys.count; first += tile) {
    auto part = keys;
    part.data = keys.row(first);
    part.count = std::min(tile, keys.count - first);
    pqattn::x86::score_exact_rows<Isa>(part, queries, rows, keys.dim, scores, tile);
    for (std::size_t row = 0; row < rows; ++row) {
      float rescale = 1.0f;
      pqattn::x86::softmax_row<Isa>(scores + row * tile, part.count, pqattn::masked_score, maximum[row], sum[row],
                                    rescale);
      for (std::size_t c = 0; rescale != 1.0f && c < keys.dim; ++c) {
        out[row * keys.dim + c] *= rescale;
      }
    }
    part.data = values.row(first);
    pqattn::x86::add_exact_rows<Isa>(part, scores, rows, tile, out, keys.dim);
  }
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t c = 0; c < keys.dim; ++c) {
      out[row * keys.dim + c] /= sum[row];
    }
  }
}

}  // namespace bench

#endif  // PQATTN_X86_AVX2
