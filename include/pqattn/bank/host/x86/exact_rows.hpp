// SPDX-License-Identifier: MIT
// Attention over token rows kept exact: inner products with query rows, and sums of rows weighted by probabilities.
// Rows are f32, f16 or bf16 with neighbouring channels; arithmetic is f32. Each row is read from memory once for four
// query rows. Bound by memory for one query row, by the conversions and multiply-adds for four.
#pragma once

#include "../../../core/half.hpp"
#include "isa.hpp"

#if PQATTN_X86_AVX2

#include <cstring>

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

/// Token rows: row t is `dim` elements of Element at data + t * stride (stride in elements, may be negative).
template <class Element>
struct exact_rows {
  const Element* data = nullptr;
  std::size_t count = 0;
  std::size_t dim = 0;
  std::ptrdiff_t stride = 0;

  [[nodiscard]] const Element* row(std::size_t index) const noexcept {
    return data + static_cast<std::ptrdiff_t>(index) * stride;
  }
};

namespace detail {

template <class Isa>
PQATTN_ALWAYS_INLINE typename Isa::floats load_elements(const float* p) noexcept {
  return Isa::loadf(p);
}
template <class Isa>
PQATTN_ALWAYS_INLINE typename Isa::floats load_elements(const half* p) noexcept {
  return Isa::load_half(p);
}
template <class Isa>
PQATTN_ALWAYS_INLINE typename Isa::floats load_elements(const bfloat16* p) noexcept {
  return Isa::load_bfloat16(p);
}

/// The first `count` < lanes elements, then zeros; reads no further.
template <class Isa, class Element>
inline typename Isa::floats load_tail(const Element* p, std::size_t count) noexcept {
  alignas(64) Element copy[Isa::lanes] = {};
  std::memcpy(copy, p, count * sizeof(Element));
  return load_elements<Isa>(copy);
}

/// Rows ahead of those in use that are fetched early, where the processor's own prefetchers do not follow: several
/// times the distance memory needs at full speed.
inline constexpr std::size_t exact_prefetch_rows = 24;

/// Into the second-level cache: the first level has few places for lines that are under way.
template <class Element>
PQATTN_ALWAYS_INLINE void prefetch_row(const exact_rows<Element>& rows, std::size_t index) noexcept {
  if (index < rows.count) {
    const auto* at = reinterpret_cast<const char*>(rows.row(index));
    for (std::size_t byte = 0; byte < rows.dim * sizeof(Element); byte += 64) {
      _mm_prefetch(at + byte, _MM_HINT_T1);
    }
  }
}

/// Whether Rows query rows read the token rows' bytes one after the other from start to end, which the processor's own
/// prefetchers follow best; hints would only be in their way.
template <std::size_t Rows, class Element>
PQATTN_ALWAYS_INLINE bool reads_in_order(const exact_rows<Element>& rows) noexcept {
  return Rows == 1 && rows.stride == static_cast<std::ptrdiff_t>(rows.dim);
}

/// Inner products of lanes / Rows token rows, from `first` on, with Rows query rows: one row takes its token rows one
/// after the other, more share a look at each register of channels.
template <class Isa, std::size_t Rows, class Element>
inline void score_exact(const exact_rows<Element>& rows, std::size_t first, const float* queries,
                        std::size_t query_stride, float* out, std::size_t stride) noexcept {
  using floats = typename Isa::floats;
  constexpr std::size_t tokens = Isa::lanes / Rows;
  const bool in_order = reads_in_order<Rows>(rows);
  const Element* at[tokens];
  PQATTN_X86_UNROLL
  for (std::size_t t = 0; t < tokens; ++t) {
    const std::size_t index = first + t < rows.count ? first + t : rows.count - 1;  // repeats the last row
    at[t] = rows.row(index);
    if (!in_order) {
      prefetch_row(rows, first + t + exact_prefetch_rows);
    }
  }
  floats sum[Isa::lanes];
  std::size_t c = 0;
  if constexpr (Rows == 1) {
    for (std::size_t t = 0; t < tokens; ++t) {
      floats total = Isa::setf(0.0f);
      for (c = 0; c + Isa::lanes <= rows.dim; c += Isa::lanes) {
        total = Isa::fma(load_elements<Isa>(at[t] + c), Isa::loadf(queries + c), total);
      }
      sum[t] = total;
    }
  } else {
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Isa::lanes; ++i) {
      sum[i] = Isa::setf(0.0f);
    }
  }
  for (; c + Isa::lanes <= rows.dim; c += Isa::lanes) {
    floats query[Rows];
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      query[row] = Isa::loadf(queries + row * query_stride + c);
      if constexpr (Rows > 2) {
        keep_in_register(query[row]);
      }
    }
    PQATTN_X86_UNROLL
    for (std::size_t t = 0; t < tokens; ++t) {
      const floats key = load_elements<Isa>(at[t] + c);
      PQATTN_X86_UNROLL
      for (std::size_t row = 0; row < Rows; ++row) {
        sum[row * tokens + t] = Isa::fma(key, query[row], sum[row * tokens + t]);
      }
    }
  }
  if (c < rows.dim) {
    floats query[Rows];
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      query[row] = load_tail<Isa>(queries + row * query_stride + c, rows.dim - c);
    }
    PQATTN_X86_UNROLL
    for (std::size_t t = 0; t < tokens; ++t) {
      const floats key = load_tail<Isa>(at[t] + c, rows.dim - c);
      PQATTN_X86_UNROLL
      for (std::size_t row = 0; row < Rows; ++row) {
        sum[row * tokens + t] = Isa::fma(key, query[row], sum[row * tokens + t]);
      }
    }
  }
  alignas(64) float scores[Isa::lanes];
  Isa::storef(scores, Isa::sums(sum));
  const std::size_t count = rows.count - first < tokens ? rows.count - first : tokens;
  for (std::size_t row = 0; row < Rows; ++row) {
    if (count == tokens) {  // a size the compiler knows is no call
      std::memcpy(out + row * stride + first, scores + row * tokens, tokens * sizeof(float));
    } else {
      std::memcpy(out + row * stride + first, scores + row * tokens, count * sizeof(float));
    }
  }
}

/// Adds tokens [first, last) to Vectors registers of channels, from `channel` on, of Rows rows of `out`.
template <class Isa, std::size_t Rows, std::size_t Vectors, class Element>
inline void add_exact(const exact_rows<Element>& rows, std::size_t first, std::size_t last, std::size_t channel,
                      const float* probabilities, std::size_t stride, float* out, std::size_t out_stride,
                      bool prefetch) noexcept {
  using floats = typename Isa::floats;
  floats sum[Rows][Vectors];
  PQATTN_X86_UNROLL
  for (std::size_t row = 0; row < Rows; ++row) {
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Vectors; ++i) {
      sum[row][i] = Isa::loadf(out + row * out_stride + channel + i * Isa::lanes);
    }
  }
  for (std::size_t t = first; t < last; ++t) {
    const Element* at = rows.row(t) + channel;
    if (prefetch && !reads_in_order<Rows>(rows)) {
      prefetch_row(rows, t + exact_prefetch_rows);
    }
    floats value[Vectors];
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Vectors; ++i) {
      value[i] = load_elements<Isa>(at + i * Isa::lanes);
    }
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      const floats weight = Isa::setf(probabilities[row * stride + t]);
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < Vectors; ++i) {
        sum[row][i] = Isa::fma(value[i], weight, sum[row][i]);
      }
    }
  }
  PQATTN_X86_UNROLL
  for (std::size_t row = 0; row < Rows; ++row) {
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < Vectors; ++i) {
      Isa::storef(out + row * out_stride + channel + i * Isa::lanes, sum[row][i]);
    }
  }
}

/// The channels that do not fill a register.
template <class Isa, class Element>
inline void add_exact_tail(const exact_rows<Element>& rows, std::size_t first, std::size_t last, std::size_t channel,
                           const float* probabilities, float* out) noexcept {
  typename Isa::floats sum = load_tail<Isa>(out + channel, rows.dim - channel);
  for (std::size_t t = first; t < last; ++t) {
    sum = Isa::fma(load_tail<Isa>(rows.row(t) + channel, rows.dim - channel), Isa::setf(probabilities[t]), sum);
  }
  alignas(64) float result[Isa::lanes];
  Isa::storef(result, sum);
  std::memcpy(out + channel, result, (rows.dim - channel) * sizeof(float));
}

/// Adds a tile of tokens to Rows rows, all channels.
template <class Isa, std::size_t Rows, class Element>
inline void add_exact_tile(const exact_rows<Element>& rows, std::size_t first, std::size_t last,
                           const float* probabilities, std::size_t stride, float* out, std::size_t out_stride,
                           bool prefetch) noexcept {
  constexpr std::size_t registers = Isa::lanes == 16 ? 16 : 8;
  constexpr std::size_t vectors = registers / Rows > 8 ? 8 : registers / Rows;
  std::size_t channel = 0;
  for (; channel + vectors * Isa::lanes <= rows.dim; channel += vectors * Isa::lanes) {
    add_exact<Isa, Rows, vectors>(rows, first, last, channel, probabilities, stride, out, out_stride,
                                  prefetch && channel == 0);
  }
  for (; channel + Isa::lanes <= rows.dim; channel += Isa::lanes) {
    add_exact<Isa, Rows, 1>(rows, first, last, channel, probabilities, stride, out, out_stride, false);
  }
  for (std::size_t row = 0; channel < rows.dim && row < Rows; ++row) {
    add_exact_tail<Isa>(rows, first, last, channel, probabilities + row * stride, out + row * out_stride);
  }
}

/// Whether token t weighs nothing in all Rows rows.
template <std::size_t Rows>
PQATTN_ALWAYS_INLINE bool is_masked(const float* probabilities, std::size_t stride, std::size_t t) noexcept {
  float mass = 0.0f;
  for (std::size_t row = 0; row < Rows; ++row) {
    mass += probabilities[row * stride + t];
  }
  return mass == 0.0f;
}

/// Whether any token of [first, last) weighs nothing in all Rows rows.
template <class Isa, std::size_t Rows>
inline bool any_masked(const float* probabilities, std::size_t stride, std::size_t first, std::size_t last) noexcept {
  typename Isa::floats highest = Isa::setf(-1.0f);  // of the negated masses
  for (; first + Isa::lanes <= last; first += Isa::lanes) {
    typename Isa::floats negated = Isa::setf(0.0f);
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      negated = Isa::subf(negated, Isa::loadf(probabilities + row * stride + first));
    }
    highest = Isa::maxf(highest, negated);
  }
  bool found = Isa::largest(highest) == 0.0f;
  for (; first < last; ++first) {
    found = found || is_masked<Rows>(probabilities, stride, first);
  }
  return found;
}

/// Adds a tile of tokens to Rows rows, leaving out those that weigh nothing: a masked token may hold anything, and
/// 0 * NaN is not 0. Few tiles have any, so this costs one look at the probabilities.
template <class Isa, std::size_t Rows, class Element>
inline void add_live_tile(const exact_rows<Element>& rows, std::size_t first, std::size_t last,
                          const float* probabilities, std::size_t stride, float* out, std::size_t out_stride,
                          bool prefetch) noexcept {
  if (!any_masked<Isa, Rows>(probabilities, stride, first, last)) {
    add_exact_tile<Isa, Rows>(rows, first, last, probabilities, stride, out, out_stride, prefetch);
    return;
  }
  while (first < last) {
    std::size_t end = first;
    while (end < last && !is_masked<Rows>(probabilities, stride, end)) {
      ++end;
    }
    if (end > first) {
      add_exact_tile<Isa, Rows>(rows, first, end, probabilities, stride, out, out_stride, prefetch);
    }
    first = end + 1;
  }
}

}  // namespace detail

/// out[row * stride + t] = <query row, token row t>, f32 sums.
/// `queries`: f32 rows, query_stride floats apart. Any number of rows and any dim.
template <class Isa, class Element>
inline void score_exact_rows(const exact_rows<Element>& rows, const float* queries, std::size_t query_rows,
                             std::size_t query_stride, float* out, std::size_t stride) noexcept {
  for (std::size_t tile = 0; tile < rows.count; tile += 64) {  // a tile of rows stays in cache for further queries
    const std::size_t end = tile + 64 < rows.count ? tile + 64 : rows.count;
    for_rows<4>(query_rows, [&]<std::size_t Rows>(std::size_t query) noexcept {
      for (std::size_t first = tile; first < end; first += Isa::lanes / Rows) {
        detail::score_exact<Isa, Rows>(rows, first, queries + query * query_stride, query_stride, out + query * stride,
                                       stride);
      }
    });
  }
}

/// out[row * out_stride + c] += sum over t of probabilities[row * stride + t] * token row t, element c. Probabilities
/// are not negative; a token that has 0 in every row adds nothing, whatever it holds.
template <class Isa, class Element>
inline void add_exact_rows(const exact_rows<Element>& rows, const float* probabilities, std::size_t query_rows,
                           std::size_t stride, float* out, std::size_t out_stride) noexcept {
  for (std::size_t tile = 0; tile < rows.count; tile += 64) {
    const std::size_t end = tile + 64 < rows.count ? tile + 64 : rows.count;
    for_rows<4>(query_rows, [&]<std::size_t Rows>(std::size_t query) noexcept {
      detail::add_live_tile<Isa, Rows>(rows, tile, end, probabilities + query * stride, stride,
                                       out + query * out_stride, out_stride, query == 0);
    });
  }
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
