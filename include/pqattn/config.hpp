// SPDX-License-Identifier: MIT
// The only reader of compiler macros. Every macro here is 0 or 1 and has a default, so that copying the
// include folder into another tree works without CMake.
#pragma once

#include "version.hpp"

/// Nothing throws; the emulated PIM bank, whose tables are standard containers, catches what they throw.
#ifndef PQATTN_HAS_EXCEPTIONS
#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define PQATTN_HAS_EXCEPTIONS 1
#else
#define PQATTN_HAS_EXCEPTIONS 0
#endif
#endif

// PQATTN_NOINLINE: loops of kernels that need all registers. Inlined into longer functions, GCC 12 spills them.
#if defined(_MSC_VER) && !defined(__clang__)
#define PQATTN_RESTRICT __restrict
#define PQATTN_ALWAYS_INLINE __forceinline
#define PQATTN_NOINLINE __declspec(noinline) inline
#else
#define PQATTN_RESTRICT __restrict__
#define PQATTN_ALWAYS_INLINE inline __attribute__((always_inline))
#define PQATTN_NOINLINE inline __attribute__((noinline))
#endif

// The instruction set this translation unit is compiled for, as a name. Whatever computes lives in an inline namespace
// of that name (types that cross between units do not), so the linker cannot replace the code of one unit by that of
// another which needs a newer processor. Whoever compiles units with flags that share a name below, say x86-64-v2 and
// x86-64, may define the macro as a name of their own for each.
#ifndef PQATTN_ISA_UNIT
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#define PQATTN_ISA_UNIT unit_avx512vbmi
#elif defined(__AVX512BW__)
#define PQATTN_ISA_UNIT unit_avx512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define PQATTN_ISA_UNIT unit_avx2
#elif defined(__AVX2__)
#define PQATTN_ISA_UNIT unit_avx2_without_fma
#elif defined(__AVX__)
#define PQATTN_ISA_UNIT unit_avx
#else
#define PQATTN_ISA_UNIT unit_baseline
#endif
#endif

#define PQATTN_QUOTE_EXPANDED(text) #text
#define PQATTN_QUOTE(text) PQATTN_QUOTE_EXPANDED(text)
/// Before a member function of such a type: the same by a tag on its symbol, as a member cannot change its namespace.
#if defined(__GNUC__)
#define PQATTN_UNIT_MEMBER __attribute__((abi_tag(PQATTN_QUOTE(PQATTN_ISA_UNIT))))
#else
#define PQATTN_UNIT_MEMBER
#endif
