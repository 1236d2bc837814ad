// SPDX-License-Identifier: MIT
// A status that nobody looks at is a mistake.
// expect: ignoring return
#pragma GCC diagnostic error "-Wunused-result"
#include "pqattn/core/status.hpp"

pqattn::status work();

void caller() {
#if PQATTN_COMPILE_FAIL
  work();
#else
  static_cast<void>(work().ok());
#endif
}
