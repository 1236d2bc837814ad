// SPDX-License-Identifier: MIT
// What the x86 kernels are written in: one struct of operations per instruction set, so that a kernel is written
// once and compiled for AVX2, AVX-512BW and AVX-512 VBMI+VNNI alike.
//
// Nothing here raises the instruction set: a translation unit gets the operations its own flags allow. All kernel
// code lives in an inline namespace named after those flags, so that copies compiled with different flags are
// different functions to the linker (an AVX2 kernel in an AVX-512 unit may well use AVX-512 encodings).
#pragma once

#include "../../../config.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define PQATTN_X86_AVX2 1
#else
#define PQATTN_X86_AVX2 0
#endif

#if PQATTN_X86_AVX2 && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define PQATTN_X86_AVX512BW 1
#else
#define PQATTN_X86_AVX512BW 0
#endif

#if PQATTN_X86_AVX512BW && defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#define PQATTN_X86_AVX512VBMI 1
#else
#define PQATTN_X86_AVX512VBMI 0
#endif

#define PQATTN_X86_UNIT PQATTN_ISA_UNIT

/// Before a short loop over an array of registers: without it GCC 12 at -O2 keeps the array in memory.
#if defined(__clang__)
#define PQATTN_X86_UNROLL _Pragma("unroll")
#else
#define PQATTN_X86_UNROLL _Pragma("GCC unroll 16")
#endif

/// After the parameters of a lambda that must be inlined.
#define PQATTN_X86_INLINE_LAMBDA __attribute__((always_inline))

#if PQATTN_X86_AVX2

#include <immintrin.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

/// 256-bit operations. `ints` holds `bytes` bytes, `floats` holds `lanes` f32.
struct avx2 {
  using ints = __m256i;
  using floats = __m256;
  static constexpr std::size_t bytes = 32;
  static constexpr std::size_t lanes = 8;
  static constexpr const char* name = "avx2";
  /// Largest probability byte: without VNNI the product goes through 16 bits, 2 * 127 * 128 must fit.
  static constexpr float byte_limit = 127.0f;
  /// Sign pattern of 32 bytes: +1 or -1 each.
  using signs = __m256i;
  static constexpr std::size_t sign_bytes = 32;

  static PQATTN_ALWAYS_INLINE ints load(const void* p) noexcept {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static PQATTN_ALWAYS_INLINE void store(void* p, ints v) noexcept { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  static PQATTN_ALWAYS_INLINE ints zero() noexcept { return _mm256_setzero_si256(); }
  static PQATTN_ALWAYS_INLINE ints set8(int v) noexcept { return _mm256_set1_epi8(static_cast<char>(v)); }
  static PQATTN_ALWAYS_INLINE ints set16(int v) noexcept { return _mm256_set1_epi16(static_cast<short>(v)); }
  static PQATTN_ALWAYS_INLINE ints set32(std::int32_t v) noexcept { return _mm256_set1_epi32(v); }
  static PQATTN_ALWAYS_INLINE ints low8(ints a, ints b) noexcept { return _mm256_unpacklo_epi8(a, b); }
  static PQATTN_ALWAYS_INLINE ints high8(ints a, ints b) noexcept { return _mm256_unpackhi_epi8(a, b); }
  static PQATTN_ALWAYS_INLINE ints low16(ints a, ints b) noexcept { return _mm256_unpacklo_epi16(a, b); }
  static PQATTN_ALWAYS_INLINE ints high16(ints a, ints b) noexcept { return _mm256_unpackhi_epi16(a, b); }
  static PQATTN_ALWAYS_INLINE ints add16(ints a, ints b) noexcept { return _mm256_add_epi16(a, b); }
  static PQATTN_ALWAYS_INLINE void add_to16(ints& sum, ints a) noexcept { sum = add16(sum, a); }
  static PQATTN_ALWAYS_INLINE ints sub16(ints a, ints b) noexcept { return _mm256_sub_epi16(a, b); }
  static PQATTN_ALWAYS_INLINE ints add32(ints a, ints b) noexcept { return _mm256_add_epi32(a, b); }
  static PQATTN_ALWAYS_INLINE ints and_(ints a, ints b) noexcept { return _mm256_and_si256(a, b); }
  static PQATTN_ALWAYS_INLINE ints xor_(ints a, ints b) noexcept { return _mm256_xor_si256(a, b); }
  static PQATTN_ALWAYS_INLINE ints min16(ints a, ints b) noexcept { return _mm256_min_epi16(a, b); }
  static PQATTN_ALWAYS_INLINE ints min32(ints a, ints b) noexcept { return _mm256_min_epi32(a, b); }
  static PQATTN_ALWAYS_INLINE ints max32(ints a, ints b) noexcept { return _mm256_max_epi32(a, b); }
  template <int Count>
  static PQATTN_ALWAYS_INLINE ints left32(ints a) noexcept {
    return _mm256_slli_epi32(a, Count);
  }
  static PQATTN_ALWAYS_INLINE ints max16(ints a, ints b) noexcept { return _mm256_max_epi16(a, b); }
  /// High halves of products of unsigned 16-bit numbers.
  static PQATTN_ALWAYS_INLINE ints mul_high16(ints a, ints b) noexcept { return _mm256_mulhi_epu16(a, b); }
  /// Arithmetic shift of 32-bit numbers by a count in the low half of a register.
  static PQATTN_ALWAYS_INLINE ints shift_right32(ints a, __m128i count) noexcept { return _mm256_sra_epi32(a, count); }
  /// `bytes` / 2 signed bytes to 16 bits, in order.
  static PQATTN_ALWAYS_INLINE ints bytes_to_words(const std::int8_t* p) noexcept {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  /// Signed 32-bit numbers to 16 bits with saturation: what was in the order of low16 and high16 is in order again.
  static PQATTN_ALWAYS_INLINE ints pack_words(ints a, ints b) noexcept { return _mm256_packs_epi32(a, b); }
  /// Two vectors of 16-bit numbers from 0 to 255 to bytes, in order.
  static PQATTN_ALWAYS_INLINE ints pack_bytes(ints a, ints b) noexcept {
    return _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
  }
  /// Smallest of the signed 16-bit numbers.
  static PQATTN_ALWAYS_INLINE int smallest16(ints v) noexcept {
    const __m128i four = _mm_min_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i flip = _mm_set1_epi16(-32768);  // the instruction compares unsigned numbers
    return static_cast<std::int16_t>(
        _mm_cvtsi128_si32(_mm_xor_si128(_mm_minpos_epu16(_mm_xor_si128(four, flip)), flip)));
  }
  static PQATTN_ALWAYS_INLINE int largest16(ints v) noexcept { return ~smallest16(_mm256_xor_si256(v, set32(-1))); }
  /// The high byte of each word.
  static PQATTN_ALWAYS_INLINE ints high_bytes(ints words) noexcept { return _mm256_srli_epi16(words, 8); }
  template <int Count>
  static PQATTN_ALWAYS_INLINE ints right16(ints a) noexcept {
    return _mm256_srli_epi16(a, Count);
  }
  template <int Count>
  static PQATTN_ALWAYS_INLINE ints left16(ints a) noexcept {
    return _mm256_slli_epi16(a, Count);
  }
  /// Sums of two neighbouring products, unsigned bytes times signed bytes, saturating to 16 bits.
  static PQATTN_ALWAYS_INLINE ints mul_bytes(ints u, ints s) noexcept { return _mm256_maddubs_epi16(u, s); }
  static PQATTN_ALWAYS_INLINE ints flip(ints v, signs s) noexcept { return _mm256_sign_epi8(v, s); }
  static PQATTN_ALWAYS_INLINE signs load_signs(const void* p) noexcept { return load(p); }
  /// Keeps a sign pattern; `negative` has bytes of 0 or 255.
  static PQATTN_ALWAYS_INLINE void store_signs(void* p, ints negative) noexcept {
    store(p, _mm256_or_si256(negative, _mm256_set1_epi8(1)));
  }
  /// One byte of 0 or 255 for each of `bytes` bits.
  static PQATTN_ALWAYS_INLINE ints spread_bits(const void* p) noexcept {
    std::int32_t word = 0;
    std::memcpy(&word, p, 4);
    const ints spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3,
                                         3, 3, 3, 3, 3, 3);
    const ints pick = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
    return _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), spread), pick), pick);
  }
  /// sum + four neighbouring products of bytes, unsigned (at most byte_limit) times signed.
  static PQATTN_ALWAYS_INLINE ints dot_bytes(ints sum, ints u, ints s) noexcept {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
  }
  /// Four sums of one register of signed bytes with four of unsigned ones.
  static PQATTN_ALWAYS_INLINE void dot_four(ints (&sum)[4], const ints (&u)[4], ints s) noexcept {
    PQATTN_X86_UNROLL
    for (int i = 0; i < 4; ++i) {
      sum[i] = dot_bytes(sum[i], u[i], s);
    }
  }
  /// sum + two neighbouring products of signed 16-bit numbers.
  static PQATTN_ALWAYS_INLINE ints dot_words(ints sum, ints a, ints b) noexcept {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  }
  /// Puts the four accumulators of 32 slots, filled from low16/high16 of low8/high8, back into slot order.
  static PQATTN_ALWAYS_INLINE void restore_order(ints* v) noexcept {
    const ints a = _mm256_permute2x128_si256(v[0], v[1], 0x20);
    const ints b = _mm256_permute2x128_si256(v[2], v[3], 0x20);
    const ints c = _mm256_permute2x128_si256(v[0], v[1], 0x31);
    const ints d = _mm256_permute2x128_si256(v[2], v[3], 0x31);
    v[0] = a;
    v[1] = b;
    v[2] = c;
    v[3] = d;
  }
  /// low8(v, 0) and high8(v, 0) words, as f32 in slot order: part 0..3 of 8 slots.
  /// Words of slots 2 i in `even`, 2 i + 1 in `odd`, to f32 in slot order.
  static PQATTN_ALWAYS_INLINE void even_odd_to_floats(ints even, ints odd, floats* out) noexcept {
    words_to_floats(low16(even, odd), high16(even, odd), out);
  }
  static PQATTN_ALWAYS_INLINE void words_to_floats(ints low, ints high, floats* out) noexcept {
    const ints a = _mm256_permute2x128_si256(low, high, 0x20);  // slots 0-15
    const ints b = _mm256_permute2x128_si256(low, high, 0x31);  // slots 16-31
    out[0] = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)));
    out[1] = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1)));
    out[2] = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(b)));
    out[3] = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(b, 1)));
  }

  static PQATTN_ALWAYS_INLINE floats loadf(const float* p) noexcept { return _mm256_loadu_ps(p); }
  static PQATTN_ALWAYS_INLINE void storef(float* p, floats v) noexcept { _mm256_storeu_ps(p, v); }
  static PQATTN_ALWAYS_INLINE floats setf(float v) noexcept { return _mm256_set1_ps(v); }
  static PQATTN_ALWAYS_INLINE floats addf(floats a, floats b) noexcept { return _mm256_add_ps(a, b); }
  static PQATTN_ALWAYS_INLINE floats magnitude(floats v) noexcept { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
  static PQATTN_ALWAYS_INLINE floats round(floats v) noexcept {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  /// v * 2^power for whole powers up to 127; below 2^-126 the result may be 0.
  static PQATTN_ALWAYS_INLINE floats scale_by_power(floats v, floats power) noexcept {
    const ints biased = _mm256_add_epi32(to_ints(_mm256_max_ps(power, _mm256_set1_ps(-127.0f))), set32(127));
    return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
  }
  /// -1 where the sign bit is set, else 0.
  static PQATTN_ALWAYS_INLINE ints sign_of(floats v) noexcept { return _mm256_srai_epi32(_mm256_castps_si256(v), 31); }
  /// Low bytes of four vectors, in order.
  static PQATTN_ALWAYS_INLINE void store_low_bytes(std::uint8_t* p, ints a, ints b, ints c, ints d) noexcept {
    const ints low = set32(0xff);
    store_bytes(p, and_(a, low), and_(b, low), and_(c, low), and_(d, low));
  }
  static PQATTN_ALWAYS_INLINE floats subf(floats a, floats b) noexcept { return _mm256_sub_ps(a, b); }
  static PQATTN_ALWAYS_INLINE floats mulf(floats a, floats b) noexcept { return _mm256_mul_ps(a, b); }
  static PQATTN_ALWAYS_INLINE floats maxf(floats a, floats b) noexcept { return _mm256_max_ps(a, b); }
  static PQATTN_ALWAYS_INLINE floats minf(floats a, floats b) noexcept { return _mm256_min_ps(a, b); }
  static PQATTN_ALWAYS_INLINE floats fma(floats a, floats b, floats c) noexcept { return _mm256_fmadd_ps(a, b, c); }
  static PQATTN_ALWAYS_INLINE floats fnma(floats a, floats b, floats c) noexcept { return _mm256_fnmadd_ps(a, b, c); }
  /// best = min(best, value) and, where value is strictly smaller, index = candidate.
  static PQATTN_ALWAYS_INLINE void keep_smaller(floats value, ints candidate, floats& best, ints& index) noexcept {
    const floats closer = _mm256_cmp_ps(value, best, _CMP_LT_OQ);
    best = _mm256_min_ps(value, best);
    index = _mm256_blendv_epi8(index, candidate, _mm256_castps_si256(closer));
  }
  /// The same where value is smaller, or equal with a smaller candidate.
  static PQATTN_ALWAYS_INLINE void keep_least(floats value, ints candidate, floats& best, ints& index) noexcept {
    const floats closer = _mm256_cmp_ps(value, best, _CMP_LT_OQ);
    const floats lower = _mm256_and_ps(_mm256_cmp_ps(value, best, _CMP_EQ_OQ),
                                       _mm256_castsi256_ps(_mm256_cmpgt_epi32(index, candidate)));
    best = _mm256_min_ps(value, best);
    index = _mm256_blendv_epi8(index, candidate, _mm256_castps_si256(_mm256_or_ps(closer, lower)));
  }
  /// One step of bringing what belongs to `lanes` registers together, one lane each: half of a's and half of b's lanes
  /// into `first`, the others into `second`. After `deal_steps` of them, each over half as many registers, lane i
  /// belongs to register lane_source(i).
  template <int Step>
  static PQATTN_ALWAYS_INLINE void deal(floats a, floats b, floats& first, floats& second) noexcept {
    if constexpr (Step == 0) {
      first = _mm256_permute2f128_ps(a, b, 0x20);
      second = _mm256_permute2f128_ps(a, b, 0x31);
    } else {
      first = _mm256_shuffle_ps(a, b, Step == 1 ? 0x44 : 0x88);
      second = _mm256_shuffle_ps(a, b, Step == 1 ? 0xee : 0xdd);
    }
  }
  static constexpr int deal_steps = 3;
  [[nodiscard]] static constexpr std::size_t lane_source(std::size_t lane) noexcept { return lane / 4 + lane % 4 * 2; }
  static PQATTN_ALWAYS_INLINE floats as_floats(ints v) noexcept { return _mm256_castsi256_ps(v); }
  static PQATTN_ALWAYS_INLINE ints as_ints(floats v) noexcept { return _mm256_castps_si256(v); }
  static PQATTN_ALWAYS_INLINE floats to_floats(ints v) noexcept { return _mm256_cvtepi32_ps(v); }
  static PQATTN_ALWAYS_INLINE ints to_ints(floats v) noexcept { return _mm256_cvtps_epi32(v); }  // nearest even
  static PQATTN_ALWAYS_INLINE float sum(floats v) noexcept {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
  }
  /// Which of 64 numbers are above the limit, a bit each.
  static PQATTN_ALWAYS_INLINE std::uint64_t above(const floats (&v)[8], floats limit) noexcept {
    std::uint64_t bits = 0;
    PQATTN_X86_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int eight = _mm256_movemask_ps(_mm256_cmp_ps(v[i], limit, _CMP_GT_OQ));
      bits |= static_cast<std::uint64_t>(static_cast<unsigned>(eight)) << 8 * i;
    }
    return bits;
  }
  /// v where key <= limit, 0 elsewhere.
  static PQATTN_ALWAYS_INLINE floats where_at_most(floats key, floats limit, floats v) noexcept {
    return _mm256_and_ps(_mm256_cmp_ps(key, limit, _CMP_LE_OQ), v);
  }
  /// Sums of the `lanes` registers v[0..lanes), one per lane.
  static PQATTN_ALWAYS_INLINE floats sums(const floats* v) noexcept {
    const floats a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const floats b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  }
  /// Sums of the 32-bit numbers of four registers, one per lane.
  static PQATTN_ALWAYS_INLINE __m128i sums_of_four(ints a, ints b, ints c, ints d) noexcept {
    const ints sums = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  }
  static PQATTN_ALWAYS_INLINE floats load_half(const void* p) noexcept {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static PQATTN_ALWAYS_INLINE floats load_bfloat16(const void* p) noexcept {
    const ints wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static PQATTN_ALWAYS_INLINE float largest(floats v) noexcept {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
  }
  static PQATTN_ALWAYS_INLINE float smallest(floats v) noexcept {
    __m128 s = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_min_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_min_ss(s, _mm_shuffle_ps(s, s, 1)));
  }
  /// 0, 1, 2, ...
  static PQATTN_ALWAYS_INLINE ints lane_indices() noexcept { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  /// The `lanes` floats at p whose index lies in [first, last); others 0. Reads nothing else.
  static PQATTN_ALWAYS_INLINE ints lane_mask(std::ptrdiff_t first, std::ptrdiff_t last) noexcept {
    const ints lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int low = static_cast<int>(first < -1 ? -1 : first > 8 ? 8 : first);
    const int high = static_cast<int>(last < 0 ? 0 : last > 8 ? 8 : last);
    return _mm256_and_si256(_mm256_cmpgt_epi32(lane, _mm256_set1_epi32(low - 1)),
                            _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lane));
  }
  static PQATTN_ALWAYS_INLINE floats loadf_range(const float* p, std::ptrdiff_t first, std::ptrdiff_t last) noexcept {
    return _mm256_maskload_ps(p, lane_mask(first, last));
  }
  static PQATTN_ALWAYS_INLINE void storef_range(float* p, std::ptrdiff_t first, std::ptrdiff_t last,
                                                floats v) noexcept {
    _mm256_maskstore_ps(p, lane_mask(first, last), v);
  }
  /// Four vectors of small non-negative ints to bytes in order.
  static PQATTN_ALWAYS_INLINE void store_bytes(std::uint8_t* p, ints a, ints b, ints c, ints d) noexcept {
    const ints packed = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    store(p, _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  }
  static PQATTN_ALWAYS_INLINE ints widen_signed_bytes(const std::int8_t* p) noexcept {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  /// x in the low, y in the high 16 bits of each 32.
  static PQATTN_ALWAYS_INLINE ints pair_words(ints x, ints y) noexcept {
    return _mm256_blend_epi16(x, _mm256_slli_epi32(y, 16), 0xaa);
  }
  /// (first, first + 1, ...) * factor modulo 2^32.
  static PQATTN_ALWAYS_INLINE ints multiples32(std::uint32_t factor, std::uint32_t first) noexcept {
    const ints count = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), set32(static_cast<int>(first)));
    return _mm256_mullo_epi32(count, set32(static_cast<int>(factor)));
  }
  /// High 32 bits of position * steps[0..lanes), modulo 2^64.
  static PQATTN_ALWAYS_INLINE ints phases(const std::uint64_t* steps, std::uint64_t position) noexcept {
    std::uint32_t high[8];
    PQATTN_X86_UNROLL
    for (int i = 0; i < 8; ++i) {
      high[i] = static_cast<std::uint32_t>((steps[i] * position) >> 32);
    }
    return load(high);
  }
  static PQATTN_ALWAYS_INLINE ints nearest_quadrant(ints phase) noexcept {
    return _mm256_srai_epi32(_mm256_add_epi32(phase, _mm256_set1_epi32(1 << 29)), 30);
  }
  static PQATTN_ALWAYS_INLINE floats from_quadrant(ints phase, ints quadrant) noexcept {
    return to_floats(_mm256_sub_epi32(phase, _mm256_slli_epi32(quadrant, 30)));
  }
  /// Cosine and sine of quadrant * 90 degrees + an angle with these two.
  static PQATTN_ALWAYS_INLINE void turn_quadrants(ints quadrant, floats& cosine, floats& sine) noexcept {
    const floats odd = _mm256_castsi256_ps(_mm256_slli_epi32(quadrant, 31));
    const ints next = _mm256_add_epi32(quadrant, _mm256_set1_epi32(1));
    const ints two = _mm256_set1_epi32(2);
    const floats c = _mm256_blendv_ps(cosine, sine, odd);
    const floats s = _mm256_blendv_ps(sine, cosine, odd);
    cosine = _mm256_xor_ps(c, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_and_si256(next, two), 30)));
    sine = _mm256_xor_ps(s, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_and_si256(quadrant, two), 30)));
  }
};

#if PQATTN_X86_AVX512BW
/// 512-bit operations of AVX-512 F, BW, VL and DQ.
struct avx512bw {
  using ints = __m512i;
  using floats = __m512;
  static constexpr std::size_t bytes = 64;
  static constexpr std::size_t lanes = 16;
  static constexpr const char* name = "avx512bw";
  static constexpr float byte_limit = 127.0f;
  /// Sign pattern of 64 bytes: a set bit means -1.
  using signs = __mmask64;
  static constexpr std::size_t sign_bytes = 8;

  static PQATTN_ALWAYS_INLINE ints load(const void* p) noexcept { return _mm512_loadu_si512(p); }
  static PQATTN_ALWAYS_INLINE void store(void* p, ints v) noexcept { _mm512_storeu_si512(p, v); }
  static PQATTN_ALWAYS_INLINE ints zero() noexcept { return _mm512_setzero_si512(); }
  static PQATTN_ALWAYS_INLINE ints set8(int v) noexcept { return _mm512_set1_epi8(static_cast<char>(v)); }
  static PQATTN_ALWAYS_INLINE ints set16(int v) noexcept { return _mm512_set1_epi16(static_cast<short>(v)); }
  static PQATTN_ALWAYS_INLINE ints set32(std::int32_t v) noexcept { return _mm512_set1_epi32(v); }
  static PQATTN_ALWAYS_INLINE ints low8(ints a, ints b) noexcept { return _mm512_unpacklo_epi8(a, b); }
  static PQATTN_ALWAYS_INLINE ints high8(ints a, ints b) noexcept { return _mm512_unpackhi_epi8(a, b); }
  static PQATTN_ALWAYS_INLINE ints low16(ints a, ints b) noexcept { return _mm512_unpacklo_epi16(a, b); }
  static PQATTN_ALWAYS_INLINE ints high16(ints a, ints b) noexcept { return _mm512_unpackhi_epi16(a, b); }
  static PQATTN_ALWAYS_INLINE ints add16(ints a, ints b) noexcept { return _mm512_add_epi16(a, b); }
  /// GCC keeps two registers for a sum in a loop and copies one to the other in each round; it does not with this.
  static PQATTN_ALWAYS_INLINE void add_to16(ints& sum, ints a) noexcept {
    __asm__("vpaddw {%1, %0, %0|%0, %0, %1}" : "+v"(sum) : "v"(a));
  }
  static PQATTN_ALWAYS_INLINE ints sub16(ints a, ints b) noexcept { return _mm512_sub_epi16(a, b); }
  static PQATTN_ALWAYS_INLINE ints add32(ints a, ints b) noexcept { return _mm512_add_epi32(a, b); }
  static PQATTN_ALWAYS_INLINE ints and_(ints a, ints b) noexcept { return _mm512_and_si512(a, b); }
  static PQATTN_ALWAYS_INLINE ints xor_(ints a, ints b) noexcept { return _mm512_xor_si512(a, b); }
  static PQATTN_ALWAYS_INLINE ints min16(ints a, ints b) noexcept { return _mm512_min_epi16(a, b); }
  static PQATTN_ALWAYS_INLINE ints min32(ints a, ints b) noexcept { return _mm512_min_epi32(a, b); }
  static PQATTN_ALWAYS_INLINE ints max32(ints a, ints b) noexcept { return _mm512_max_epi32(a, b); }
  template <int Count>
  static PQATTN_ALWAYS_INLINE ints left32(ints a) noexcept {
    return _mm512_slli_epi32(a, Count);
  }
  static PQATTN_ALWAYS_INLINE ints max16(ints a, ints b) noexcept { return _mm512_max_epi16(a, b); }
  static PQATTN_ALWAYS_INLINE ints mul_high16(ints a, ints b) noexcept { return _mm512_mulhi_epu16(a, b); }
  static PQATTN_ALWAYS_INLINE ints shift_right32(ints a, __m128i count) noexcept { return _mm512_sra_epi32(a, count); }
  static PQATTN_ALWAYS_INLINE ints bytes_to_words(const std::int8_t* p) noexcept {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static PQATTN_ALWAYS_INLINE ints pack_words(ints a, ints b) noexcept { return _mm512_packs_epi32(a, b); }
  static PQATTN_ALWAYS_INLINE ints pack_bytes(ints a, ints b) noexcept {
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packus_epi16(a, b));
  }
  static PQATTN_ALWAYS_INLINE int smallest16(ints v) noexcept {
    return avx2::smallest16(_mm256_min_epi16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1)));
  }
  static PQATTN_ALWAYS_INLINE int largest16(ints v) noexcept { return ~smallest16(_mm512_xor_si512(v, set32(-1))); }
  /// By a product: on Zen 4 shifts take the pipes of permutes, and multipliers have nothing else to do.
  static PQATTN_ALWAYS_INLINE ints high_bytes(ints words) noexcept {
    return _mm512_mulhi_epu16(words, _mm512_set1_epi16(256));
  }
  template <int Count>
  static PQATTN_ALWAYS_INLINE ints right16(ints a) noexcept {
    return _mm512_srli_epi16(a, Count);
  }
  template <int Count>
  static PQATTN_ALWAYS_INLINE ints left16(ints a) noexcept {
    return _mm512_slli_epi16(a, Count);
  }
  static PQATTN_ALWAYS_INLINE ints mul_bytes(ints u, ints s) noexcept { return _mm512_maddubs_epi16(u, s); }
  static PQATTN_ALWAYS_INLINE ints flip(ints v, signs s) noexcept {
    return _mm512_mask_sub_epi8(v, s, _mm512_setzero_si512(), v);
  }
  static PQATTN_ALWAYS_INLINE signs load_signs(const void* p) noexcept { return *static_cast<const std::uint64_t*>(p); }
  static PQATTN_ALWAYS_INLINE void store_signs(void* p, ints negative) noexcept {
    *static_cast<std::uint64_t*>(p) = _mm512_movepi8_mask(negative);
  }
  static PQATTN_ALWAYS_INLINE ints spread_bits(const void* p) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, p, 8);
    return _mm512_movm_epi8(word);
  }
  static PQATTN_ALWAYS_INLINE ints dot_bytes(ints sum, ints u, ints s) noexcept {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1)));
  }
  static PQATTN_ALWAYS_INLINE void dot_four(ints (&sum)[4], const ints (&u)[4], ints s) noexcept {
    PQATTN_X86_UNROLL
    for (int i = 0; i < 4; ++i) {
      sum[i] = dot_bytes(sum[i], u[i], s);
    }
  }
  static PQATTN_ALWAYS_INLINE ints dot_words(ints sum, ints a, ints b) noexcept {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
  }
  static PQATTN_ALWAYS_INLINE void restore_order(ints* v) noexcept {
    // Lane L of accumulator A holds slots 16 L + 4 A and on: a 4 x 4 transposition of 128-bit lanes.
    const ints a = _mm512_shuffle_i32x4(v[0], v[1], 0x44);
    const ints b = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
    const ints c = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
    const ints d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
    v[0] = _mm512_shuffle_i32x4(a, b, 0x88);
    v[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
    v[2] = _mm512_shuffle_i32x4(c, d, 0x88);
    v[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
  /// Words of slots 2 i in `even`, 2 i + 1 in `odd`.
  static PQATTN_ALWAYS_INLINE void even_odd_to_floats(ints even, ints odd, floats* out) noexcept {
    ints at = _mm512_setr_epi32(0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39);
    PQATTN_X86_UNROLL
    for (int i = 0; i < 4; ++i) {
      out[i] = to_floats(_mm512_maskz_permutex2var_epi16(0x55555555u, even, at, odd));
      at = _mm512_add_epi32(at, _mm512_set1_epi32(8));
    }
  }
  static PQATTN_ALWAYS_INLINE void words_to_floats(ints low, ints high, floats* out) noexcept {
    ints v[4] = {low16(low, zero()), high16(low, zero()), low16(high, zero()), high16(high, zero())};
    restore_order(v);
    PQATTN_X86_UNROLL
    for (int i = 0; i < 4; ++i) {
      out[i] = to_floats(v[i]);
    }
  }

  static PQATTN_ALWAYS_INLINE floats loadf(const float* p) noexcept { return _mm512_loadu_ps(p); }
  static PQATTN_ALWAYS_INLINE void storef(float* p, floats v) noexcept { _mm512_storeu_ps(p, v); }
  static PQATTN_ALWAYS_INLINE floats setf(float v) noexcept { return _mm512_set1_ps(v); }
  static PQATTN_ALWAYS_INLINE floats addf(floats a, floats b) noexcept { return _mm512_add_ps(a, b); }
  static PQATTN_ALWAYS_INLINE floats magnitude(floats v) noexcept { return _mm512_abs_ps(v); }
  static PQATTN_ALWAYS_INLINE floats round(floats v) noexcept {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static PQATTN_ALWAYS_INLINE floats scale_by_power(floats v, floats power) noexcept {
    return _mm512_scalef_ps(v, power);
  }
  static PQATTN_ALWAYS_INLINE ints sign_of(floats v) noexcept { return _mm512_srai_epi32(_mm512_castps_si512(v), 31); }
  static PQATTN_ALWAYS_INLINE void store_low_bytes(std::uint8_t* p, ints a, ints b, ints c, ints d) noexcept {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16), _mm512_cvtepi32_epi8(b));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 32), _mm512_cvtepi32_epi8(c));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 48), _mm512_cvtepi32_epi8(d));
  }
  static PQATTN_ALWAYS_INLINE floats subf(floats a, floats b) noexcept { return _mm512_sub_ps(a, b); }
  static PQATTN_ALWAYS_INLINE floats mulf(floats a, floats b) noexcept { return _mm512_mul_ps(a, b); }
  static PQATTN_ALWAYS_INLINE floats maxf(floats a, floats b) noexcept { return _mm512_max_ps(a, b); }
  static PQATTN_ALWAYS_INLINE floats minf(floats a, floats b) noexcept { return _mm512_min_ps(a, b); }
  static PQATTN_ALWAYS_INLINE floats fma(floats a, floats b, floats c) noexcept { return _mm512_fmadd_ps(a, b, c); }
  static PQATTN_ALWAYS_INLINE floats fnma(floats a, floats b, floats c) noexcept { return _mm512_fnmadd_ps(a, b, c); }
  static PQATTN_ALWAYS_INLINE void keep_smaller(floats value, ints candidate, floats& best, ints& index) noexcept {
    const __mmask16 closer = _mm512_cmp_ps_mask(value, best, _CMP_LT_OQ);
    best = _mm512_min_ps(value, best);
    index = _mm512_mask_mov_epi32(index, closer, candidate);
  }
  static PQATTN_ALWAYS_INLINE void keep_least(floats value, ints candidate, floats& best, ints& index) noexcept {
    const __mmask16 lower = _mm512_mask_cmp_ps_mask(_mm512_cmplt_epi32_mask(candidate, index), value, best, _CMP_EQ_OQ);
    const __mmask16 closer = _mm512_cmp_ps_mask(value, best, _CMP_LT_OQ);
    best = _mm512_min_ps(value, best);
    index = _mm512_mask_mov_epi32(index, _kor_mask16(closer, lower), candidate);
  }
  template <int Step>
  static PQATTN_ALWAYS_INLINE void deal(floats a, floats b, floats& first, floats& second) noexcept {
    if constexpr (Step < 2) {
      first = _mm512_shuffle_f32x4(a, b, Step == 0 ? 0x44 : 0x88);
      second = _mm512_shuffle_f32x4(a, b, Step == 0 ? 0xee : 0xdd);
    } else {
      first = _mm512_shuffle_ps(a, b, Step == 2 ? 0x44 : 0x88);
      second = _mm512_shuffle_ps(a, b, Step == 2 ? 0xee : 0xdd);
    }
  }
  static constexpr int deal_steps = 4;
  [[nodiscard]] static constexpr std::size_t lane_source(std::size_t lane) noexcept { return lane / 4 + lane % 4 * 4; }
  static PQATTN_ALWAYS_INLINE floats as_floats(ints v) noexcept { return _mm512_castsi512_ps(v); }
  static PQATTN_ALWAYS_INLINE ints as_ints(floats v) noexcept { return _mm512_castps_si512(v); }
  static PQATTN_ALWAYS_INLINE floats to_floats(ints v) noexcept { return _mm512_cvtepi32_ps(v); }
  static PQATTN_ALWAYS_INLINE ints to_ints(floats v) noexcept { return _mm512_cvtps_epi32(v); }
  static PQATTN_ALWAYS_INLINE float sum(floats v) noexcept { return _mm512_reduce_add_ps(v); }
  static PQATTN_ALWAYS_INLINE std::uint64_t above(const floats (&v)[4], floats limit) noexcept {
    const auto sixteen = [&](int i) PQATTN_X86_INLINE_LAMBDA {
      return static_cast<__mmask32>(_mm512_cmp_ps_mask(v[i], limit, _CMP_GT_OQ));
    };
    return _mm512_kunpackd(_mm512_kunpackw(sixteen(3), sixteen(2)), _mm512_kunpackw(sixteen(1), sixteen(0)));
  }
  static PQATTN_ALWAYS_INLINE floats where_at_most(floats key, floats limit, floats v) noexcept {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(key, limit, _CMP_LE_OQ), v);
  }
  static PQATTN_ALWAYS_INLINE floats sums(const floats* v) noexcept {
    floats four[4];
    PQATTN_X86_UNROLL
    for (int i = 0; i < 4; ++i) {
      // Each 128-bit lane of four[i] holds that lane's partial sums of v[4 i .. 4 i + 3].
      const floats a = addf(_mm512_unpacklo_ps(v[4 * i], v[4 * i + 1]), _mm512_unpackhi_ps(v[4 * i], v[4 * i + 1]));
      const floats b =
          addf(_mm512_unpacklo_ps(v[4 * i + 2], v[4 * i + 3]), _mm512_unpackhi_ps(v[4 * i + 2], v[4 * i + 3]));
      four[i] = addf(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    }
    const floats c = addf(_mm512_shuffle_f32x4(four[0], four[1], 0x44), _mm512_shuffle_f32x4(four[0], four[1], 0xee));
    const floats d = addf(_mm512_shuffle_f32x4(four[2], four[3], 0x44), _mm512_shuffle_f32x4(four[2], four[3], 0xee));
    return addf(_mm512_shuffle_f32x4(c, d, 0x88), _mm512_shuffle_f32x4(c, d, 0xdd));
  }
  static PQATTN_ALWAYS_INLINE __m128i sums_of_four(ints a, ints b, ints c, ints d) noexcept {
    const ints ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const ints cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    const ints sums = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  }
  static PQATTN_ALWAYS_INLINE floats load_half(const void* p) noexcept {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static PQATTN_ALWAYS_INLINE floats load_bfloat16(const void* p) noexcept {
    const ints wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static PQATTN_ALWAYS_INLINE float largest(floats v) noexcept { return _mm512_reduce_max_ps(v); }
  static PQATTN_ALWAYS_INLINE float smallest(floats v) noexcept { return _mm512_reduce_min_ps(v); }
  static PQATTN_ALWAYS_INLINE ints lane_indices() noexcept {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  static PQATTN_ALWAYS_INLINE __mmask16 lane_mask(std::ptrdiff_t first, std::ptrdiff_t last) noexcept {
    const unsigned low = static_cast<unsigned>(first < 0 ? 0 : first > 16 ? 16 : first);
    const unsigned high = static_cast<unsigned>(last < 0 ? 0 : last > 16 ? 16 : last);
    return static_cast<__mmask16>(((1u << high) - 1) & ~((1u << low) - 1));
  }
  static PQATTN_ALWAYS_INLINE floats loadf_range(const float* p, std::ptrdiff_t first, std::ptrdiff_t last) noexcept {
    return _mm512_maskz_loadu_ps(lane_mask(first, last), p);
  }
  static PQATTN_ALWAYS_INLINE void storef_range(float* p, std::ptrdiff_t first, std::ptrdiff_t last,
                                                floats v) noexcept {
    _mm512_mask_storeu_ps(p, lane_mask(first, last), v);
  }
  static PQATTN_ALWAYS_INLINE void store_bytes(std::uint8_t* p, ints a, ints b, ints c, ints d) noexcept {
    const ints packed = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    const ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    store(p, _mm512_permutexvar_epi32(order, packed));
  }
  static PQATTN_ALWAYS_INLINE ints widen_signed_bytes(const std::int8_t* p) noexcept {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static PQATTN_ALWAYS_INLINE ints pair_words(ints x, ints y) noexcept {
    return _mm512_mask_blend_epi16(0xaaaaaaaau, x, _mm512_slli_epi32(y, 16));
  }
  static PQATTN_ALWAYS_INLINE ints multiples32(std::uint32_t factor, std::uint32_t first) noexcept {
    const ints count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_mullo_epi32(_mm512_add_epi32(count, set32(static_cast<int>(first))), set32(static_cast<int>(factor)));
  }
  static PQATTN_ALWAYS_INLINE ints phases(const std::uint64_t* steps, std::uint64_t position) noexcept {
    const __m512i factor = _mm512_set1_epi64(static_cast<long long>(position));
    const __m512i a = _mm512_mullo_epi64(_mm512_loadu_si512(steps), factor);
    const __m512i b = _mm512_mullo_epi64(_mm512_loadu_si512(steps + 8), factor);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_permutex2var_epi32(a, odd, b);
  }
  static PQATTN_ALWAYS_INLINE ints nearest_quadrant(ints phase) noexcept {
    return _mm512_srai_epi32(_mm512_add_epi32(phase, _mm512_set1_epi32(1 << 29)), 30);
  }
  static PQATTN_ALWAYS_INLINE floats from_quadrant(ints phase, ints quadrant) noexcept {
    return to_floats(_mm512_sub_epi32(phase, _mm512_slli_epi32(quadrant, 30)));
  }
  static PQATTN_ALWAYS_INLINE void turn_quadrants(ints quadrant, floats& cosine, floats& sine) noexcept {
    const __mmask16 odd = _mm512_test_epi32_mask(quadrant, _mm512_set1_epi32(1));
    const ints next = _mm512_add_epi32(quadrant, _mm512_set1_epi32(1));
    const ints two = _mm512_set1_epi32(2);
    const floats c = _mm512_mask_blend_ps(odd, cosine, sine);
    const floats s = _mm512_mask_blend_ps(odd, sine, cosine);
    cosine = _mm512_xor_ps(c, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_and_si512(next, two), 30)));
    sine = _mm512_xor_ps(s, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_and_si512(quadrant, two), 30)));
  }
};
#endif

#if PQATTN_X86_AVX512VBMI
/// AVX-512 with byte permutes (VBMI) and dot-product accumulation (VNNI): Ice Lake, Zen 4 and later.
struct avx512vbmi : avx512bw {
  static constexpr const char* name = "avx512vbmi";
  static constexpr float byte_limit = 255.0f;

  // Written as assembly because GCC 12 copies the sums to other registers and back in every round of a loop, which
  // costs a third of the value program's time.
  static PQATTN_ALWAYS_INLINE ints dot_bytes(ints sum, ints u, ints s) noexcept {
    __asm__("vpdpbusd {%2, %1, %0|%0, %1, %2}" : "+v"(sum) : "v"(u), "v"(s));
    return sum;
  }
  // In one piece, because the copies come back where a loop holds eight sums.
  static PQATTN_ALWAYS_INLINE void dot_four(ints (&sum)[4], const ints (&u)[4], ints s) noexcept {
    __asm__(
        "vpdpbusd {%8, %4, %0|%0, %4, %8}\n\t"
        "vpdpbusd {%8, %5, %1|%1, %5, %8}\n\t"
        "vpdpbusd {%8, %6, %2|%2, %6, %8}\n\t"
        "vpdpbusd {%8, %7, %3|%3, %7, %8}"
        : "+&v"(sum[0]), "+&v"(sum[1]), "+&v"(sum[2]), "+&v"(sum[3])
        : "v"(u[0]), "v"(u[1]), "v"(u[2]), "v"(u[3]), "v"(s));
  }
  static PQATTN_ALWAYS_INLINE ints dot_words(ints sum, ints a, ints b) noexcept {
    __asm__("vpdpwssd {%2, %1, %0|%0, %1, %2}" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
};
#endif

/// Keeps the compiler from loading what lies at `p` ahead of a loop: hoisted tables push sums out of registers.
template <class Number>
PQATTN_ALWAYS_INLINE const Number* not_hoisted(const Number* p) noexcept {
  __asm__ volatile("" : "+r"(p));
  return p;
}

/// Keeps the compiler from loading a vector again at each of its uses: loads, not registers, would be what is short.
template <class Vector>
PQATTN_ALWAYS_INLINE void keep_in_register(Vector& v) noexcept {
  __asm__("" : "+v"(v));
}

/// Combines registers in pairs, and what comes of them again: op(op(v[0], v[1]), op(v[2], v[3])). Count: a power of
/// two.
template <std::size_t Count, class Vector, class Operation>
PQATTN_ALWAYS_INLINE Vector fold_registers(const Vector (&v)[Count], const Operation& op) noexcept {
  Vector folded[Count];
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Count; ++i) {
    folded[i] = v[i];
  }
  PQATTN_X86_UNROLL
  for (std::size_t half = Count / 2; half != 0; half /= 2) {
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < half; ++i) {
      folded[i] = op(folded[2 * i], folded[2 * i + 1]);
    }
  }
  return folded[0];
}

/// Sum of the numbers of some registers.
template <class Isa, std::size_t Count>
PQATTN_ALWAYS_INLINE float sum_of(const typename Isa::floats (&v)[Count]) noexcept {
  return Isa::sum(fold_registers(v, Isa::addf));
}

/// Largest of the numbers of some registers.
template <class Isa, std::size_t Count>
PQATTN_ALWAYS_INLINE float largest_of(const typename Isa::floats (&v)[Count]) noexcept {
  return Isa::largest(fold_registers(v, Isa::maxf));
}

/// Calls body<Count>(first) for rows (or whatever is counted) [first, first + Count): as often as possible with
/// Count = Most, a power of two, then with those below.
template <std::size_t Most, class Body>
PQATTN_ALWAYS_INLINE void for_rows(std::size_t rows, const Body& body, std::size_t first = 0) noexcept {
  for (; rows - first >= Most; first += Most) {
    body.template operator()<Most>(first);
  }
  if constexpr (Most > 1) {
    for_rows<Most / 2>(rows, body, first);
  }
}

/// How often for_rows<Most> calls its body.
template <std::size_t Most>
[[nodiscard]] constexpr std::size_t calls_of_for_rows(std::size_t rows) noexcept {
  return rows / Most + static_cast<std::size_t>(std::popcount(rows % Most));
}

/// The best instruction set of this translation unit.
#if PQATTN_X86_AVX512VBMI
using native = avx512vbmi;
#elif PQATTN_X86_AVX512BW
using native = avx512bw;
#else
using native = avx2;
#endif

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
