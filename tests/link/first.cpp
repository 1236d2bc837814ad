// SPDX-License-Identifier: MIT
#include "link.hpp"
#include "pqattn/pqattn.hpp"

symbols symbols_of_first() {
  return here();
}
