// SPDX-License-Identifier: MIT
// Users who use xsimd themselves include it before us, without any of its options.
#include <xsimd/xsimd.hpp>

#include "pqattn/pqattn.hpp"
