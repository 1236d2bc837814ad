// SPDX-License-Identifier: MIT
#include "pqattn/train/channel_order.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
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

TEST_CASE("folding an order of values into the projections leaves the model as it was", "[train][channel_order]") {
  pqattn_test::random_data random(12);
  CAPTURE(random.seed());
  const std::uint32_t dim = 5;
  const std::size_t hidden = 7;
  const std::size_t stride = 9;  // the head's columns are part of a wider matrix
  const std::vector<std::uint16_t> order = random.permutation<std::uint16_t>(dim);
  const std::vector<float> w_v = random.normals(dim * hidden);
  const std::vector<float> b_v = random.normals(dim);
  const std::vector<float> w_o = random.normals(hidden * stride);
  std::vector<float> folded_v = w_v, folded_b = b_v, folded_o = w_o, scratch(dim);
  pqattn::fold_order_into_value_projection(order.data(), dim, folded_v.data(), hidden, folded_b.data(), scratch.data());
  pqattn::fold_order_into_output_projection(order.data(), dim, folded_o.data() + 2, hidden, stride, scratch.data());
  const std::vector<float> x = random.normals(hidden);
  const auto value = [&](const std::vector<float>& w, const std::vector<float>& b, std::size_t row) {
    double sum = static_cast<double>(b[row]);
    for (std::size_t h = 0; h < hidden; ++h) {
      sum += static_cast<double>(w[row * hidden + h]) * static_cast<double>(x[h]);
    }
    return sum;
  };
  for (std::uint32_t p = 0; p < dim; ++p) {
    CHECK(value(folded_v, folded_b, p) == value(w_v, b_v, order[p]));
  }
  for (std::size_t h = 0; h < hidden; ++h) {
    double plain = 0.0;
    double folded = 0.0;
    for (std::uint32_t c = 0; c < dim; ++c) {
      plain += static_cast<double>(w_o[h * stride + 2 + c]) * value(w_v, b_v, c);
      folded += static_cast<double>(folded_o[h * stride + 2 + c]) * value(folded_v, folded_b, c);
    }
    CHECK(std::abs(plain - folded) < 1e-9);
    CHECK(folded_o[h * stride] == w_o[h * stride]);
    CHECK(folded_o[h * stride + 8] == w_o[h * stride + 8]);
  }
}
