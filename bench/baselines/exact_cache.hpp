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

/// A tile of `exact_tile` rows is read as `exact_streams` runs side by side, a few rows of each in turn: the
/// prefetchers of a processor follow several pages at once, which one run after the other does not use.
inline constexpr std::size_t exact_tile = 256;
inline constexpr std::size_t exact_streams = 4;
inline constexpr std::size_t exact_rows_in_turn = 8;

/// Calls visit(first, count) for every few rows of [0, count), from all runs in turn.
template <class Visit>
void visit_rows(std::size_t count, const Visit& visit) {
  if (count < exact_tile) {
    return visit(std::size_t{0}, count);
  }
  constexpr std::size_t run = exact_tile / exact_streams;
  for (std::size_t first = 0; first < run; first += exact_rows_in_turn) {
    for (std::size_t stream = 0; stream < exact_streams; ++stream) {
      visit(stream * run + first, exact_rows_in_turn);
    }
  }
}

template <class Isa, class Element>
void attend_exact(const pqattn::x86::exact_rows<Element>& keys, const pqattn::x86::exact_rows<Element>& values,
                  const float* queries, std::size_t rows, float* out) {
  constexpr std::size_t most_rows = 8;
  alignas(64) float scores[most_rows * exact_tile];
  float maximum[most_rows];
  float sum[most_rows] = {};
  std::fill(maximum, maximum + most_rows, pqattn::masked_score);
  std::fill(out, out + rows * keys.dim, 0.0f);
  for (std::size_t first = 0; first < keys.count; first += exact_tile) {
    const std::size_t count = std::min(exact_tile, keys.count - first);
    const auto part_of = [&](const pqattn::x86::exact_rows<Element>& side, std::size_t from, std::size_t part_rows) {
      auto part = side;
      part.data = side.row(first + from);
      part.count = part_rows;
      return part;
    };
    visit_rows(count, [&](std::size_t from, std::size_t part_rows) {
      pqattn::x86::score_exact_rows<Isa>(part_of(keys, from, part_rows), queries, rows, keys.dim, scores + from,
                                         exact_tile);
    });
    for (std::size_t row = 0; row < rows; ++row) {
      float rescale = 1.0f;
      pqattn::x86::softmax_row<Isa>(scores + row * exact_tile, count, pqattn::masked_score, maximum[row], sum[row],
                                    rescale);
      for (std::size_t c = 0; rescale != 1.0f && c < keys.dim; ++c) {
        out[row * keys.dim + c] *= rescale;
      }
    }
    visit_rows(count, [&](std::size_t from, std::size_t part_rows) {
      pqattn::x86::add_exact_rows<Isa>(part_of(values, from, part_rows), scores + from, rows, exact_tile, out,
                                       keys.dim);
    });
  }
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t c = 0; c < keys.dim; ++c) {
      out[row * keys.dim + c] /= sum[row];
    }
  }
}

}  // namespace bench

#endif  // PQATTN_X86_AVX2
