// SPDX-License-Identifier: MIT
// Violates the rules on purpose, to see that check_calls.cmake would notice.
#include <cstdlib>
#include <cstring>

int counter = 0;

void* violate(const void* data, unsigned long size) {
  if (++counter == 3) {
    std::abort();
  }
  char* copy = new char[8];
  return std::memcpy(::operator new(size), std::memcpy(copy, data, size), size);
}
