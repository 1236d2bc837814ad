// SPDX-License-Identifier: MIT
#include "pqattn/quant/code_rows.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <vector>

#include "support/random_data.hpp"

TEST_CASE("code rows of every width come back, and no byte more is written", "[quant]") {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  for (std::uint32_t bits = 1; bits <= 16; ++bits) {
    for (const std::uint32_t groups : {1u, 2u, 3u, 7u, 8u, 16u, 63u, 200u, 8192u}) {
      CAPTURE(bits, groups);
      const std::size_t bytes = (std::size_t{groups} * bits + 7) / 8;
      const std::vector<std::uint16_t> codes = random.codes(groups, std::size_t{1} << bits);
      std::vector<std::uint8_t> row(bytes + 1, 0xff);
      pqattn::pack_code_row(codes.data(), groups, bits, row.data());
      CHECK(row[bytes] == 0xff);
      // Bit i of the row, counted from the least significant bit of the first byte, is bit i % b of code i / b.
      bool right = true;
      for (std::size_t i = 0; i < bytes * 8; ++i) {
        const unsigned expected = i < std::size_t{groups} * bits ? (codes[i / bits] >> (i % bits)) & 1u : 0u;
        right = right && ((row[i / 8] >> (i % 8)) & 1u) == expected;
      }
      CHECK(right);
      std::vector<std::uint16_t> back(groups + 1, 0xabcd);
      std::vector<std::uint8_t> exact(row.begin(), row.end() - 1);  // a read past the end shows under the sanitizer
      pqattn::unpack_code_row(exact.data(), groups, bits, back.data());
      CHECK(back.back() == 0xabcd);
      back.pop_back();
      CHECK(back == codes);
    }
  }
}

TEST_CASE("the packed form is fixed", "[quant]") {
  const std::uint16_t codes[] = {1, 2, 3, 4, 5};
  std::uint8_t row[2];
  pqattn::pack_code_row(codes, 5, 3, row);
  CHECK(row[0] == 0xd1);  // 011 010 001 from the low end: 11 010 001
  CHECK(row[1] == 0x58);  // then 101 100 and the last bit of 011
}
