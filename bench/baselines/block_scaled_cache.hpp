// SPDX-License-Identifier: MIT
// What a user would build instead: a KV cache of 8-bit or 4-bit numbers with one f16 scale per 32 (as ggml's q8_0 and
// q4_0), one head's rows contiguous, and decode attention on it with VNNI dot products for keys and f32 multiply-adds
// for values. The g query heads of a group share every load, unpacking and conversion; tokens are handled 16 / g at a
// time so that sums stay in registers and one transposition reduces 16 of them. Threads share a head by its tokens.
// Without AVX-512 VNNI plain loops do the same, which is no strong baseline: `vector_dot_products` says which it is.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pqattn/bank/bank.hpp"
#include "pqattn/bank/host/x86/isa.hpp"
#include "pqattn/bank/host/x86/softmax.hpp"
#include "pqattn/core/executor.hpp"
#include "pqattn/core/half.hpp"
#include "support/memory.hpp"

namespace bench {

/// Keys or values: `dim` numbers per row, a multiple of 64, in blocks of 32 with one scale.
template <int Bits>
class block_scaled_rows {
 public:
  static_assert(Bits == 8 || Bits == 4);
  static constexpr std::size_t block = 32;

  explicit block_scaled_rows(std::size_t dim) : dim_(dim) {}

  [[nodiscard]] std::size_t number_bytes() const { return dim_ * Bits / 8; }
  [[nodiscard]] std::size_t row_bytes() const { return number_bytes() + dim_ / block * 2; }
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] std::size_t dim() const { return dim_; }
  [[nodiscard]] const std::uint8_t* row(std::size_t index) const { return bytes_.data() + index * row_bytes(); }

  void append(const float* values) {
    bytes_.resize((count_ + 1) * row_bytes() + 64);  // registers may read past the last row
    std::uint8_t* out = bytes_.data() + count_ * row_bytes();
    for (std::size_t b = 0; b < dim_ / block; ++b) {
      float largest = 0.0f;
      for (std::size_t i = 0; i < block; ++i) {
        largest = std::max(largest, std::fabs(values[b * block + i]));
      }
      const float limit = Bits == 8 ? 127.0f : 7.0f;
      const pqattn::half scale = pqattn::to_half(largest / limit);
      std::memcpy(out + number_bytes() + 2 * b, &scale.bits, 2);
      const float step = pqattn::to_float(scale);
      for (std::size_t i = 0; i < block; ++i) {
        const float level = step > 0.0f ? std::nearbyint(values[b * block + i] / step) : 0.0f;
        const int number = static_cast<int>(std::clamp(level, -limit, limit));
        put(out, b * block + i, number);
      }
    }
    ++count_;
  }

  [[nodiscard]] float at(std::size_t index, std::size_t column) const {
    pqattn::half scale;
    std::memcpy(&scale.bits, row(index) + number_bytes() + 2 * (column / block), 2);
    return pqattn::to_float(scale) * static_cast<float>(get(row(index), column));
  }

 private:
  // 8 bits: number + 128. 4 bits: of every 128 numbers, number i + 8 is the low nibble of byte i and number i + 64 + 8
  // the high one (for a last run of 64: i + 32).
  [[nodiscard]] std::size_t half_run(std::size_t column) const { return dim_ - column / 128 * 128 >= 128 ? 64 : 32; }
  void put(std::uint8_t* out, std::size_t column, int number) const {
    if constexpr (Bits == 8) {
      out[column] = static_cast<std::uint8_t>(number + 128);
    } else {
      const std::size_t run = half_run(column);
      const std::size_t within = column % 128;
      std::uint8_t& pair = out[column / 128 * 64 + within % run];
      const int level = number + 8;
      pair = static_cast<std::uint8_t>(within < run ? (pair & 0xf0) | level : (pair & 0x0f) | (level << 4));
    }
  }
  [[nodiscard]] int get(const std::uint8_t* in, std::size_t column) const {
    if constexpr (Bits == 8) {
      return in[column] - 128;
    } else {
      const std::size_t run = half_run(column);
      const std::size_t within = column % 128;
      const int pair = in[column / 128 * 64 + within % run];
      return (within < run ? pair & 15 : pair >> 4) - 8;
    }
  }

  std::size_t dim_;
  std::size_t count_ = 0;
  std::vector<std::uint8_t, huge_page_allocator<std::uint8_t>> bytes_;
};

/// Decode attention over rows of 64 or 128 dimensions.
template <int Bits, std::size_t Dim = 128>
class block_scaled_attention {
 public:
  static_assert(Dim == 64 || Dim == 128);
  static constexpr std::size_t dim = Dim;
  static constexpr std::size_t most_rows = 8;
  static constexpr bool supported = true;
#if PQATTN_X86_AVX512VBMI
  static constexpr bool vector_dot_products = true;
#else
  static constexpr bool vector_dot_products = false;
#endif

  block_scaled_rows<Bits> keys{dim};
  block_scaled_rows<Bits> values{dim};

  /// out (rows, dim) = attention of the queries (rows, dim, scale multiplied in) over the given tokens. rows: 1, 2, 4
  /// or 8.
  void attend(const float* queries, std::size_t rows, pqattn::slot_range tokens, float* out,
              const pqattn::executor& parts = {}) const {
    partial pieces[most_parts];
    const std::size_t count = part_count(tokens.count, parts.workers);
    pqattn::run_parts(parts, count, [&](std::size_t part, std::size_t) {
      const std::size_t first = tokens.count * part / count;
      const std::size_t end = tokens.count * (part + 1) / count;
      attend_part(queries, rows, {tokens.first + first, end - first}, pieces[part]);
    });
    for (std::size_t row = 0; row < rows; ++row) {
      merge(pieces, count, row, out + row * dim);
    }
  }
  void attend(const float* queries, std::size_t rows, float* out) const {
    attend(queries, rows, {0, keys.size()}, out);
  }

  /// Whether attend() is attention, by plain loops over what the cache holds.
  [[nodiscard]] bool answers_right(const float* queries, pqattn::slot_range tokens, std::size_t rows,
                                   const pqattn::executor& parts = {}) const {
    std::vector<float> out(rows * dim);
    attend(queries, rows, tokens, out.data(), parts);
    std::vector<float> expected(dim);
    double error = 0.0;
    double signal = 0.0;
    for (std::size_t row = 0; row < rows; ++row) {
      partial plain;
      run_plain(queries + row * dim, tokens, plain, 0);
      merge(&plain, 1, 0, expected.data());
      for (std::size_t c = 0; c < dim; ++c) {
        const double want = static_cast<double>(expected[c]);
        const double difference = static_cast<double>(out[row * dim + c]) - want;
        error += difference * difference;
        signal += want * want;
      }
    }
    return error <= 1e-3 * signal;
  }

 private:
  /// Attention over some of the tokens: the largest score of each row, and sums of exp(score - largest). No two of them
  /// share a line, which threads would take from each other.
  struct alignas(64) partial {
    float largest[most_rows];
    float sum[most_rows];
    float out[most_rows * dim];
  };
  static constexpr std::size_t most_parts = 16;

  /// Of one worker one; of more several each, so that none waits long for the last, of 256 tokens at least.
  static std::size_t part_count(std::size_t tokens, std::size_t workers) {
    return workers == 1 ? 1 : std::clamp<std::size_t>(tokens / 256, 1, std::min(most_parts, 8 * workers));
  }

  void attend_part(const float* queries, std::size_t rows, pqattn::slot_range tokens, partial& piece) const {
#if PQATTN_X86_AVX512VBMI
    switch (rows) {
      case 1: return run<1>(queries, tokens, piece, 0);
      case 2: return run<2>(queries, tokens, piece, 0);
      case 4: return run<4>(queries, tokens, piece, 0);
      default: run<4>(queries, tokens, piece, 0); return run<4>(queries + 4 * dim, tokens, piece, 4);
    }
#else
    for (std::size_t row = 0; row < rows; ++row) {
      run_plain(queries + row * dim, tokens, piece, row);
    }
#endif
  }

  static void merge(const partial* pieces, std::size_t count, std::size_t row, float* out) {
    float largest = pqattn::masked_score;
    for (std::size_t part = 0; part < count; ++part) {
      largest = std::max(largest, pieces[part].largest[row]);
    }
    float sum = 0.0f;
    std::fill(out, out + dim, 0.0f);
    for (std::size_t part = 0; part < count; ++part) {
      const float weight = std::exp(pieces[part].largest[row] - largest);
      sum += weight * pieces[part].sum[row];
      for (std::size_t c = 0; c < dim; ++c) {
        out[c] += weight * pieces[part].out[row * dim + c];
      }
    }
    for (std::size_t c = 0; c < dim; ++c) {
      out[c] /= sum;
    }
  }

  void run_plain(const float* query, pqattn::slot_range tokens, partial& piece, std::size_t row) const {
    std::vector<float> scores(tokens.count);
    float largest = pqattn::masked_score;
    for (std::size_t t = 0; t < tokens.count; ++t) {
      float score = 0.0f;
      for (std::size_t c = 0; c < dim; ++c) {
        score += query[c] * keys.at(tokens.first + t, c);
      }
      scores[t] = score;
      largest = std::max(largest, score);
    }
    float* out = piece.out + row * dim;
    float sum = 0.0f;
    std::fill(out, out + dim, 0.0f);
    for (std::size_t t = 0; t < tokens.count; ++t) {
      const float weight = std::exp(scores[t] - largest);
      sum += weight;
      for (std::size_t c = 0; c < dim; ++c) {
        out[c] += weight * values.at(tokens.first + t, c);
      }
    }
    piece.largest[row] = largest;
    piece.sum[row] = sum;
  }

#if PQATTN_X86_AVX512VBMI
  using isa = pqattn::x86::avx512vbmi;
  static constexpr std::size_t tile = 256;
  static constexpr int zero_level = Bits == 8 ? 128 : 8;
  static constexpr std::size_t registers = dim / 64;     // of a row's numbers
  static constexpr std::size_t rows_ahead = 3072 / dim;  // fetched: as many bytes whatever the width

  /// Queries rounded to bytes with one scale each, and what the unsigned keys' zero level must be corrected by.
  struct rounded_query {
    __m512i numbers[registers];
    __m512i correction[registers];
    float scale;
  };

  static rounded_query round_query(const float* query) {
    rounded_query result;
    float largest = 1e-30f;
    for (std::size_t i = 0; i < dim; ++i) {
      largest = std::max(largest, std::fabs(query[i]));
    }
    result.scale = largest / 127.0f;
    alignas(64) std::int8_t numbers[dim];
    alignas(64) std::int32_t correction[dim / 4];
    for (std::size_t i = 0; i < dim; ++i) {
      numbers[i] = static_cast<std::int8_t>(std::nearbyint(query[i] / result.scale));
    }
    for (std::size_t i = 0; i < dim / 4; ++i) {
      correction[i] = 0;
      for (std::size_t j = 0; j < 4; ++j) {
        correction[i] -= zero_level * numbers[4 * i + j];
      }
    }
    for (std::size_t i = 0; i < registers; ++i) {
      result.numbers[i] = _mm512_load_si512(numbers + 64 * i);
      result.correction[i] = _mm512_load_si512(correction + 16 * i);
    }
    return result;
  }

  /// The registers of unsigned numbers of one row.
  static PQATTN_ALWAYS_INLINE void load_row(const std::uint8_t* row, __m512i* numbers) {
    const __m512i low = _mm512_set1_epi8(15);
    if constexpr (Bits == 8) {
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < registers; ++i) {
        numbers[i] = _mm512_loadu_si512(row + 64 * i);
      }
    } else if constexpr (dim == 128) {
      const __m512i pairs = _mm512_loadu_si512(row);
      numbers[0] = _mm512_and_si512(pairs, low);
      numbers[1] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low);
    } else {
      const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
      const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(pairs), _mm256_srli_epi16(pairs, 4), 1);
      numbers[0] = _mm512_and_si512(both, low);
    }
  }
  /// The scales of a row, one per 32 channels; of 64 channels the upper two are 0.
  static PQATTN_ALWAYS_INLINE __m128 load_scales(const std::uint8_t* scales) {
    if constexpr (dim == 128) {
      return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales)));
    } else {
      std::int32_t two = 0;
      std::memcpy(&two, scales, sizeof two);
      return _mm_cvtph_ps(_mm_cvtsi32_si128(two));
    }
  }
  static PQATTN_ALWAYS_INLINE void fetch_ahead(const block_scaled_rows<Bits>& side, const std::uint8_t* row) {
    const auto* ahead = reinterpret_cast<const char*>(row + rows_ahead * side.row_bytes());
    _mm_prefetch(ahead, _MM_HINT_T0);
    if constexpr (Bits * dim / 8 >= 64) {  // the beginnings of shorter rows lie in every line
      _mm_prefetch(ahead + 64, _MM_HINT_T0);
    }
  }

  template <std::size_t Rows>
  PQATTN_ALWAYS_INLINE void score_tile(const rounded_query* query, std::size_t first, std::size_t count,
                                       float* scores) const {
    constexpr std::size_t tokens = 16 / Rows;
    const __m512i pick[2] = {_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
                             _mm512_setr_epi32(2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3)};
    for (std::size_t t = 0; t < count; t += tokens) {
      __m512 sum[16];
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < tokens; ++i) {
        const std::uint8_t* row = keys.row(first + std::min(t + i, count - 1));
        fetch_ahead(keys, row);
        __m512i numbers[registers];
        load_row(row, numbers);
        const __m512 scales = _mm512_castps128_ps512(load_scales(row + keys.number_bytes()));
        PQATTN_X86_UNROLL
        for (std::size_t part = 0; part < registers; ++part) {
          const __m512 scale = _mm512_permutexvar_ps(pick[part], scales);
          PQATTN_X86_UNROLL
          for (std::size_t r = 0; r < Rows; ++r) {
            const __m512 product = _mm512_cvtepi32_ps(
                _mm512_dpbusd_epi32(query[r].correction[part], numbers[part], query[r].numbers[part]));
            __m512& total = sum[r * tokens + i];
            total = part == 0 ? _mm512_mul_ps(product, scale) : _mm512_fmadd_ps(product, scale, total);
          }
        }
      }
      alignas(64) float reduced[16];
      _mm512_store_ps(reduced, isa::sums(sum));
      for (std::size_t r = 0; r < Rows; ++r) {
        for (std::size_t i = 0; i < tokens; ++i) {
          scores[r * tile + t + i] = reduced[r * tokens + i] * query[r].scale;
        }
      }
    }
  }

  /// The scales of a row go into the probabilities, and the zero level is subtracted at the end: what is left per
  /// channel is to widen the number and one multiply-add per query row, whose factor is a broadcast from memory.
  template <std::size_t Rows>
  PQATTN_ALWAYS_INLINE void add_tile(std::size_t first, std::size_t count, const float* probabilities,
                                     float* out) const {
    constexpr std::size_t vectors = Rows == 1 ? dim / 16 : 4;  // registers of channels at a time
    alignas(64) float weights[Rows][tile][4];                  // one per block of channels
    float mass[Rows][4];
    for (std::size_t r = 0; r < Rows; ++r) {
      __m128 total = _mm_setzero_ps();
      for (std::size_t t = 0; t < count; ++t) {
        const __m128 scales = load_scales(values.row(first + t) + values.number_bytes());
        const __m128 weight = _mm_mul_ps(scales, _mm_set1_ps(probabilities[r * tile + t]));
        _mm_store_ps(weights[r][t], weight);
        total = _mm_add_ps(total, weight);
      }
      _mm_storeu_ps(mass[r], total);
    }
    for (std::size_t part = 0; part < dim / 16 / vectors; ++part) {
      __m512 sum[Rows][vectors];
      PQATTN_X86_UNROLL
      for (std::size_t r = 0; r < Rows; ++r) {
        PQATTN_X86_UNROLL
        for (std::size_t i = 0; i < vectors; ++i) {
          const std::size_t channel = (part * vectors + i) * 16;
          const float zero = mass[r][channel / 32] * static_cast<float>(zero_level);
          sum[r][i] = _mm512_sub_ps(_mm512_loadu_ps(out + r * dim + channel), _mm512_set1_ps(zero));
        }
      }
      for (std::size_t t = 0; t < count; ++t) {
        const std::uint8_t* row = values.row(first + t);
        if (part == 0) {
          fetch_ahead(values, row);
        }
        PQATTN_X86_UNROLL
        for (std::size_t i = 0; i < vectors; ++i) {
          const std::size_t channel = (part * vectors + i) * 16;
          const __m512 value = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_sixteen(row, channel)));
          PQATTN_X86_UNROLL
          for (std::size_t r = 0; r < Rows; ++r) {
            sum[r][i] = _mm512_fmadd_ps(value, _mm512_set1_ps(weights[r][t][channel / 32]), sum[r][i]);
          }
        }
      }
      PQATTN_X86_UNROLL
      for (std::size_t r = 0; r < Rows; ++r) {
        PQATTN_X86_UNROLL
        for (std::size_t i = 0; i < vectors; ++i) {
          _mm512_storeu_ps(out + r * dim + (part * vectors + i) * 16, sum[r][i]);
        }
      }
    }
  }

  static PQATTN_ALWAYS_INLINE __m128i load_sixteen(const std::uint8_t* row, std::size_t channel) {
    if constexpr (Bits == 8) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + channel));
    } else {
      constexpr std::size_t half = dim / 2;
      const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + channel % half));
      return _mm_and_si128(channel < half ? pairs : _mm_srli_epi16(pairs, 4), _mm_set1_epi8(15));
    }
  }

  /// Fills rows [at, at + Rows) of the piece.
  template <std::size_t Rows>
  void run(const float* queries, pqattn::slot_range tokens, partial& piece, std::size_t at) const {
    float* out = piece.out + at * dim;
    float* maximum = piece.largest + at;
    float* sum = piece.sum + at;
    rounded_query rounded[Rows];
    for (std::size_t r = 0; r < Rows; ++r) {
      rounded[r] = round_query(queries + r * dim);
      maximum[r] = pqattn::masked_score;
      sum[r] = 0.0f;
    }
    std::fill(out, out + Rows * dim, 0.0f);
    alignas(64) float scores[Rows * tile];
    const std::size_t end = tokens.first + tokens.count;
    for (std::size_t first = tokens.first; first < end; first += tile) {
      const std::size_t count = std::min(tile, end - first);
      score_tile<Rows>(rounded, first, count, scores);
      for (std::size_t r = 0; r < Rows; ++r) {
        float rescale = 1.0f;
        pqattn::x86::softmax_row<isa>(scores + r * tile, count, pqattn::masked_score, maximum[r], sum[r], rescale);
        if (rescale != 1.0f) {
          for (std::size_t c = 0; c < dim; ++c) {
            out[r * dim + c] *= rescale;
          }
        }
      }
      add_tile<Rows>(first, count, scores, out);
    }
  }
#endif
};

}  // namespace bench
