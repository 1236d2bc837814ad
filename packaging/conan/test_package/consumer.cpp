// SPDX-License-Identifier: MIT
#include <cstdio>
#include <pqattn/pqattn.hpp>

int main() {
  return std::printf("pqattn on %s\n", pqattn::host_bank<>().arch_name()) > 0 ? 0 : 1;
}
