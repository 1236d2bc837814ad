// SPDX-License-Identifier: MIT
// What somebody else's project does with the library: includes it, relies on the C++ standard it asks for, and sees
// neither our warning flags nor our assertions.
#include <concepts>
#include <cstdio>
#include <cstring>
#include <pqattn/pqattn.hpp>

#ifdef __FAST_MATH__
#error "pqattn must not change floating-point rules"
#endif
#ifdef XSIMD_ENABLE_XTL_COMPLEX
#error "pqattn must not pass on the complex-number option of a packaged xsimd"
#endif

static_assert(std::same_as<decltype(pqattn::status{}.code), pqattn::status_code>);

int main() {
  char text[80];
  pqattn::failure(pqattn::status_code::capacity, "consumer", "works").format(text, sizeof text);
  std::puts(text);
  return std::strcmp(text, "consumer works (capacity)") == 0 ? 0 : 1;
}
