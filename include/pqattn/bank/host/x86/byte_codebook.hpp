// SPDX-License-Identifier: MIT
// The codebook the x86 kernels look up: bytes with an affine map per component.
#pragma once

#include <cstdint>

namespace pqattn {
inline namespace v0 {
namespace x86 {

/// Value of component (stage s, position p) of code c: offset[s * dim + p] + scale[s * dim + p] * table[c], where
/// table is the (s * dim + p)-th of consecutive tables of max(64, 2^bits) bytes at `bytes`, aligned to 64.
struct byte_codebook {
  const std::int8_t* bytes = nullptr;
  const float* scale = nullptr;
  const float* offset = nullptr;
};

}  // namespace x86
}  // namespace v0
}  // namespace pqattn
