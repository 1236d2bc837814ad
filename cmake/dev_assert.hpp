// SPDX-License-Identifier: MIT
// Included before everything in the project's own non-release builds: internal preconditions become visible.
#pragma once

#include <cstdio>
#include <cstdlib>

#define PQATTN_ASSERT(condition, sentence)                                                             \
  do {                                                                                                 \
    if (!(condition)) {                                                                                \
      std::fprintf(stderr, "%s:%d: assertion `%s` failed: %s\n", __FILE__, __LINE__, #condition, sentence); \
      std::abort();                                                                                    \
    }                                                                                                  \
  } while (false)
