// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/isa.hpp"

#include <catch2/catch_test_macros.hpp>
#include <string>
#include <type_traits>

using pqattn::detail::float_batch;
using pqattn::detail::index_batch;
using pqattn::detail::isa_traits;
namespace isa = pqattn::isa;

static_assert(float_batch<isa::emulated<128>>::size == 4);
static_assert(float_batch<isa::emulated<256>>::size == 8);
static_assert(float_batch<isa::emulated<512>>::size == 16);
static_assert(index_batch<isa::native>::size == float_batch<isa::native>::size);
// Kernels work on blocks of 64 tokens in whole registers.
static_assert(64 % float_batch<isa::native>::size == 0);
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512CD__)
static_assert(float_batch<isa::native>::size == 16, "a silent fallback to narrower registers");
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
static_assert(std::is_same_v<isa::native, isa::avx2> && float_batch<isa::native>::size == 8);
#endif

TEST_CASE("instruction sets have their names", "[bank]") {
  CHECK(std::string(isa_traits<isa::emulated<128>>::name) == "emulated128");
  CHECK(std::string(isa_traits<isa::emulated<256>>::name) == "emulated256");
  CHECK(std::string(isa_traits<isa::emulated<512>>::name) == "emulated512");
#if XSIMD_WITH_SSE2
  CHECK(std::string(isa_traits<isa::sse2>::name) == "sse2");
#endif
#if XSIMD_WITH_AVX2 && XSIMD_WITH_FMA3_AVX2
  CHECK(std::string(isa_traits<isa::avx2>::name) == "avx2");
#endif
}
