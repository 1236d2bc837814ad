// SPDX-License-Identifier: MIT
// Two translation units that include the library make one program, and agree on what they see.
#include "link.hpp"

int main() {
  const symbols first = symbols_of_first();
  const symbols second = symbols_of_second();
  return first.name_of == second.name_of && first.format == second.format ? 0 : 1;
}
