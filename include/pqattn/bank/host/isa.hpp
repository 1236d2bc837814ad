// SPDX-License-Identifier: MIT
// The one place that knows instruction sets: names them, maps them to xsimd, and says which one a translation unit
// is compiled for. Every kernel is a template over one of these tags, so that two translation units compiled with
// different flags have different symbols and the linker cannot merge their code.
#pragma once

#include "../../config.hpp"

#if !defined(XSIMD_WITH_EMULATED) && !defined(XSIMD_VERSION_MAJOR)
#define XSIMD_WITH_EMULATED 1  // must be set before xsimd is first included; without it there are no emulated tags
#endif
#include <xsimd/xsimd.hpp>

namespace pqattn {
inline namespace v0 {

/// Instruction-set tags. `native` is the best one the including translation unit is compiled for. host_bank<isa::avx2>
/// of an AVX2 unit and of an AVX-512 unit are different types, as their code is different.
namespace isa {
inline namespace PQATTN_ISA_UNIT {
struct sse2 {};
struct avx2 {};        // with FMA3 and F16C
struct avx512 {};      // F, CD, DQ, BW, VL
struct avx512vbmi {};  // and VBMI, VNNI: Ice Lake, Zen 4
struct neon64 {};
/// Portable code over Bits-wide registers, for testing every path on any machine.
template <unsigned Bits>
struct emulated {};

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__) && \
    defined(__AVX512DQ__) && defined(__AVX512CD__)
using native = avx512vbmi;
#elif defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512CD__)
using native = avx512;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
using native = avx2;
#elif defined(__SSE2__) || defined(_M_X64)
using native = sse2;
#elif defined(__aarch64__)
using native = neon64;
#else
using native = emulated<128>;
#endif
}  // namespace PQATTN_ISA_UNIT
}  // namespace isa

namespace detail {

template <class Isa>
struct isa_traits;

#if XSIMD_WITH_SSE2
template <>
struct isa_traits<isa::sse2> {
  using arch = xsimd::sse2;
  static constexpr const char* name = "sse2";
};
#endif
#if XSIMD_WITH_AVX2 && XSIMD_WITH_FMA3_AVX2
template <>
struct isa_traits<isa::avx2> {
  using arch = xsimd::fma3<xsimd::avx2>;
  static constexpr const char* name = "avx2";
};
#endif
#if XSIMD_WITH_AVX512BW
template <>
struct isa_traits<isa::avx512> {
  using arch = xsimd::avx512bw;
  static constexpr const char* name = "avx512";
};
#endif
#if XSIMD_WITH_AVX512BW && defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
template <>
struct isa_traits<isa::avx512vbmi> {
  // The batches need nothing newer than BW; VBMI and VNNI are used by the kernels in x86/.
  using arch = xsimd::avx512bw;
  static constexpr const char* name = "avx512vbmi";
};
#endif
#if XSIMD_WITH_NEON64
template <>
struct isa_traits<isa::neon64> {
  using arch = xsimd::neon64;
  static constexpr const char* name = "neon64";
};
#endif
#if defined(XSIMD_WITH_EMULATED) && XSIMD_WITH_EMULATED
template <>
struct isa_traits<isa::emulated<128>> {
  using arch = xsimd::emulated<128>;
  static constexpr const char* name = "emulated128";
};
template <>
struct isa_traits<isa::emulated<256>> {
  using arch = xsimd::emulated<256>;
  static constexpr const char* name = "emulated256";
};
template <>
struct isa_traits<isa::emulated<512>> {
  using arch = xsimd::emulated<512>;
  static constexpr const char* name = "emulated512";
};
#endif

template <class Isa>
using float_batch = xsimd::batch<float, typename isa_traits<Isa>::arch>;
template <class Isa>
using index_batch = xsimd::batch<std::int32_t, typename isa_traits<Isa>::arch>;

}  // namespace detail
}  // namespace v0
}  // namespace pqattn
