// SPDX-License-Identifier: MIT
// Users compile with -ffast-math: the library must still be accepted.
#ifndef __FAST_MATH__
#error "this file is meant for -ffast-math"
#endif
#include "pqattn/pqattn.hpp"
