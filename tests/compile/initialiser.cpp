// SPDX-License-Identifier: MIT
// Violates the rule on purpose, to see that check_object.cmake would notice.
#include <cstdlib>

static const char* const runs_before_main = std::getenv("HOME");
inline bool uses_it() {
  return runs_before_main != nullptr;
}
