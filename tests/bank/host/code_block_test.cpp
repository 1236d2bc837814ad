// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/code_block.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "pqattn/bank/host/isa.hpp"
#include "support/random_data.hpp"

using pqattn::detail::get_code;
using pqattn::detail::group_bytes;
using pqattn::detail::put_code;
using pqattn::detail::unpack_group;
using native = pqattn::isa::native;

static_assert(group_bytes(1) == 8 && group_bytes(16) == 128);
static_assert(pqattn::detail::host_block_bytes({64, 16, 256}) == 16 * 64);
static_assert(pqattn::detail::host_block_bytes({64, 16, 16, 2}) == 32 * 32);

namespace {

/// The documented layout: byte planes, a nibble plane, bit planes, low bits first.
std::uint32_t documented_code(const std::vector<std::byte>& group, std::uint32_t bits, std::size_t slot) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(group[i]); };
  std::uint32_t code = 0;
  std::uint32_t shift = 0;
  std::size_t at = 0;
  for (; shift + 8 <= bits; shift += 8, at += 64) {
    code |= byte(at + slot) << shift;
  }
  if (bits % 8 >= 4) {
    code |= (byte(at + slot % 32) >> (slot < 32 ? 0 : 4) & 15u) << shift;
    shift += 4, at += 32;
  }
  for (; shift < bits; ++shift, at += 8) {
    code |= (byte(at + slot / 8) >> (slot % 8) & 1u) << shift;
  }
  return code;
}

}  // namespace

TEST_CASE("codes of every width lie as documented, and only where they should", "[bank]") {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  for (std::uint32_t bits = 1; bits <= 16; ++bits) {
    CAPTURE(bits);
    const std::size_t bytes = group_bytes(bits);
    std::vector<std::byte> group(bytes + 1);
    for (std::byte& b : group) {
      b = static_cast<std::byte>(random.below(256));
    }
    const std::byte behind = group.back();
    std::vector<std::uint32_t> expected(64);
    for (std::size_t slot = 0; slot < 64; ++slot) {
      expected[slot] = documented_code(group, bits, slot);  // garbage, but below 2^bits
    }
    for (int i = 0; i < 300; ++i) {
      const std::size_t slot = random.below(64);
      expected[slot] = static_cast<std::uint32_t>(random.below(std::size_t{1} << bits));
      put_code<native>(group.data(), bits, slot, expected[slot]);
      if (i % 50 == 0) {
        bool same = true;
        for (std::size_t s = 0; s < 64; ++s) {
          same =
              same && documented_code(group, bits, s) == expected[s] && get_code(group.data(), bits, s) == expected[s];
        }
        REQUIRE(same);
      }
    }
    alignas(64) std::int32_t unpacked[64];
    unpack_group<native>(group.data(), bits, unpacked);
    bool same = true;
    for (std::size_t s = 0; s < 64; ++s) {
      same = same && static_cast<std::uint32_t>(unpacked[s]) == expected[s];
    }
    CHECK(same);
    CHECK(group.back() == behind);
  }
}
