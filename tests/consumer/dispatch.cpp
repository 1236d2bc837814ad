// SPDX-License-Identifier: MIT
// Somebody else's program on the compiled library: it runs the best instruction set of the processor.
#include <cstdio>
#include <pqattn/bank/dispatch/dispatch_bank.hpp>

int main() {
  pqattn::dispatch_bank bank;
  const bool made = pqattn::dispatch_bank::make(bank).ok();
  std::puts(bank.arch_name());
  const bool refuses = !pqattn::dispatch_bank::make(bank, "nonsense").ok();
  return made && refuses && bank.code_block_bytes({64, 16, 256}) == 64 * 16 ? 0 : 1;
}
