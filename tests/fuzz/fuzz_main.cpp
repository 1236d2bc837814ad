// SPDX-License-Identifier: MIT
// The libFuzzer entry of one target, built by scripts/fuzz with -DPQATTN_FUZZ_TARGET=<name>.
#include "fuzz/targets.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  pqattn_fuzz::PQATTN_FUZZ_TARGET({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
