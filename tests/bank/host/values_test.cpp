// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/values.hpp"

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include "bank/conformance.hpp"

namespace isa = pqattn::isa;

TEMPLATE_TEST_CASE("a block is negligible when its mass is small in every row", "[bank]", isa::native,
                   isa::emulated<128>) {
  pqattn_test::aligned_floats memory(2 * 128);
  std::fill_n(memory.data(), 256, 0.0f);
  const pqattn::score_tile tile{memory.data(), 2, 128};
  const float limits[] = {0.5f, 0.0f};
  using pqattn::detail::negligible_block;
  CHECK(negligible_block<TestType>(tile, 0, limits));
  std::fill_n(tile.row(0), 64, 0.5f / 64);  // exactly the limit
  CHECK(negligible_block<TestType>(tile, 0, limits));
  tile.row(0)[63] += 0.01f;
  CHECK_FALSE(negligible_block<TestType>(tile, 0, limits));
  CHECK(negligible_block<TestType>(tile, 64, limits));
  tile.row(1)[64 + 17] = 1e-30f;
  CHECK_FALSE(negligible_block<TestType>(tile, 64, limits));
  // A mass that is no number is not negligible.
  std::fill_n(tile.row(0), 64, std::numeric_limits<float>::quiet_NaN());
  CHECK_FALSE(negligible_block<TestType>(tile, 0, limits));
}
