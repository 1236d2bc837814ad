// SPDX-License-Identifier: MIT
// Users come with macros of their own, some as short as these. The standard library and our dependencies cannot be
// protected from them and come first (system_headers.hpp is collected from the library's own include lines).
#include "system_headers.hpp"

#undef min
#undef max
#define min(a, b) HOSTILE_MACRO_IN_A_HEADER
#define max(a, b) HOSTILE_MACRO_IN_A_HEADER
#define abs(a) HOSTILE_MACRO_IN_A_HEADER
#undef I
#define I HOSTILE_MACRO_IN_A_HEADER
#define N HOSTILE_MACRO_IN_A_HEADER
#define K HOSTILE_MACRO_IN_A_HEADER
#define M HOSTILE_MACRO_IN_A_HEADER
#define T HOSTILE_MACRO_IN_A_HEADER
#define D HOSTILE_MACRO_IN_A_HEADER
#define _N HOSTILE_MACRO_IN_A_HEADER
#define _T HOSTILE_MACRO_IN_A_HEADER
#define near HOSTILE_MACRO_IN_A_HEADER
#define far HOSTILE_MACRO_IN_A_HEADER
#define small HOSTILE_MACRO_IN_A_HEADER
#define interface HOSTILE_MACRO_IN_A_HEADER
#define ERROR HOSTILE_MACRO_IN_A_HEADER
#define OK HOSTILE_MACRO_IN_A_HEADER
#define check(a) HOSTILE_MACRO_IN_A_HEADER

#include "all_headers.hpp"
