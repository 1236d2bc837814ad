// SPDX-License-Identifier: MIT
#include "pqattn/train/channel_order.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "support/random_data.hpp"

namespace {

std::vector<std::uint16_t> pair_order(std::uint32_t pairs, pqattn::rope_pairing pairing, std::uint32_t dim) {
  pqattn::rope rotation;
  rotation.pairs = pairs;
  rotation.pairing = pairing;
  std::vector<std::uint16_t> order(dim, 999);
  pqattn::fill_pair_order(rotation, dim, order.data());
  return order;
}

}  // namespace

TEST_CASE("rotation pairs come side by side", "[train][channel_order]") {
  using pqattn::rope_pairing;
  using order = std::vector<std::uint16_t>;
  CHECK(pair_order(3, rope_pairing::half_split, 6) == order{0, 3, 1, 4, 2, 5});
  CHECK(pair_order(2, rope_pairing::half_split, 7) == order{0, 2, 1, 3, 4, 5, 6});
  CHECK(pair_order(2, rope_pairing::interleaved, 5) == order{0, 1, 2, 3, 4});
  CHECK(pair_order(0, rope_pairing::half_split, 3) == order{0, 1, 2});
}

TEST_CASE("cosine order gathers similar channels", "[train][channel_order]") {
  pqattn_test::random_data random(81);
  CAPTURE(random.seed());
  // Channels 0, 4, 2 are copies of one signal at different scales, 1, 5, 6 of another, 3 is always zero.
  const std::size_t tokens = 200;
  std::vector<float> rows(tokens * 7);
  for (std::size_t t = 0; t < tokens; ++t) {
    const float a = random.normal(), b = random.normal();
    const float values[7] = {a, b, 0.1f * a, 0.0f, 5.0f * a, 2.0f * b, b};
    std::copy(values, values + 7, rows.begin() + static_cast<std::ptrdiff_t>(7 * t));
  }
  std::vector<std::byte> workspace(pqattn::cosine_order_workspace_bytes(7));
  std::vector<std::uint16_t> order(7);
  const auto view = pqattn::view_rows(rows.data(), tokens, 7);
  // 7 channels in 3 runs: widths 3, 2, 2.
  REQUIRE(fill_cosine_order(view, 3, workspace.data(), workspace.size(), order.data()).ok());
  pqattn::geometry shape{7, 3, 2};
  shape.channel_order = order.data();
  REQUIRE(check_geometry(shape).ok());
  CHECK(std::vector<std::uint16_t>(order.begin(), order.begin() + 1) == std::vector<std::uint16_t>{0});
  CHECK(order[1] + order[2] == 2 + 4);
  CHECK(order[3] == 1);
  CHECK((order[4] == 5 || order[4] == 6));

  CHECK(fill_cosine_order(view, 8, workspace.data(), workspace.size(), order.data()).code ==
        pqattn::status_code::invalid_argument);
  CHECK(fill_cosine_order(view, 3, workspace.data(), 100, order.data()).code == pqattn::status_code::capacity);
}
