// SPDX-License-Identifier: MIT
// Users compile with -ffast-math: every header must still be accepted.
#ifndef __FAST_MATH__
#error "this file is meant for -ffast-math"
#endif
#include "all_headers.hpp"
