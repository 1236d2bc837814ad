// SPDX-License-Identifier: MIT
// The only reader of compiler macros. Every macro here is 0 or 1 and has a default, so that copying the
// include folder into another tree works without CMake.
#pragma once

#include "version.hpp"

/// Exceptions are only used by the thin wrappers in core/throwing.hpp.
#ifndef PQATTN_HAS_EXCEPTIONS
#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define PQATTN_HAS_EXCEPTIONS 1
#else
#define PQATTN_HAS_EXCEPTIONS 0
#endif
#endif

/// Internal preconditions. Off unless the user defines PQATTN_ASSERT(condition, sentence) before including.
#ifndef PQATTN_ASSERT
#define PQATTN_ASSERT(condition, sentence) static_cast<void>(0)
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define PQATTN_RESTRICT __restrict
#define PQATTN_ALWAYS_INLINE __forceinline
#else
#define PQATTN_RESTRICT __restrict__
#define PQATTN_ALWAYS_INLINE inline __attribute__((always_inline))
#endif
