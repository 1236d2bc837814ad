// SPDX-License-Identifier: MIT
// The instruction sets that this translation unit can test, and whether the processor can run them.
#pragma once

#include "pqattn/bank/host/x86/isa.hpp"

#if PQATTN_X86_AVX512VBMI
#define PQATTN_TEST_X86_ISAS pqattn::x86::avx2, pqattn::x86::avx512bw, pqattn::x86::avx512vbmi
#elif PQATTN_X86_AVX512BW
#define PQATTN_TEST_X86_ISAS pqattn::x86::avx2, pqattn::x86::avx512bw
#elif PQATTN_X86_AVX2
#define PQATTN_TEST_X86_ISAS pqattn::x86::avx2
#endif
