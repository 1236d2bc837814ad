// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/values.hpp"

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <limits>

#include "bank/conformance.hpp"

namespace isa = pqattn::isa;

TEMPLATE_TEST_CASE("a block is negligible when its mass is small in every row", "[bank]", isa::native,
                   isa::emulated<128>) {
  pqattn_test::aligned_floats memory(2 * 128);
  std::fill_n(memory.data(), 256, 0.0f);
  const pqattn::score_tile tile{memory.data(), 2, 128};
  const float limits[] = {0.5f, 0.0f};
  using pqattn::detail::negligible_block;
  CHECK(negligible_block<TestType>(tile, 0, limits, 1.0f));
  std::fill_n(tile.row(0), 64, 0.5f / 64);  // exactly the limit
  CHECK(negligible_block<TestType>(tile, 0, limits, 1.0f));
  CHECK_FALSE(negligible_block<TestType>(tile, 0, limits, 0.5f));  // of half the mass it is twice as much
  tile.row(0)[63] += 0.01f;
  CHECK_FALSE(negligible_block<TestType>(tile, 0, limits, 1.0f));
  CHECK(negligible_block<TestType>(tile, 64, limits, 1.0f));
  tile.row(1)[64 + 17] = 1e-30f;
  CHECK_FALSE(negligible_block<TestType>(tile, 64, limits, 1.0f));
  // A mass that is no number is not negligible.
  std::fill_n(tile.row(0), 64, std::numeric_limits<float>::quiet_NaN());
  CHECK_FALSE(negligible_block<TestType>(tile, 0, limits, 1.0f));
}

TEMPLATE_TEST_CASE("skipped blocks share the mass that may be left out", "[bank]", isa::native, isa::emulated<128>) {
  constexpr std::size_t blocks = 4;
  pqattn_test::aligned_floats memory(blocks * 64);
  const pqattn::score_tile tile{memory.data(), 1, blocks * 64};
  for (std::size_t block = 0; block < blocks; ++block) {
    std::fill_n(tile.row(0) + block * 64, 64, 0.1f * static_cast<float>(block + 1) / 64);
  }
  const float budget[] = {1.0f};  // a quarter for each block: the blocks of 0.1 and 0.2 fit
  std::uint64_t skipped = 0;
  CHECK(pqattn::detail::choose_skipped<TestType>(tile, blocks, budget, &skipped) == 2);
  CHECK(skipped == 0b0011);
}
