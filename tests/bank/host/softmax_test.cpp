// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/softmax.hpp"

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>

#include "bank/conformance.hpp"

namespace isa = pqattn::isa;

TEMPLATE_TEST_CASE("exponentials are right over their whole range", "[bank]", isa::native, isa::emulated<128>) {
  pqattn_test::aligned_floats memory(1024);
  double worst = 0.0;
  for (int part = 0; part < 90; ++part) {
    // Gaps of 0 to 90 below the maximum, exact in f32 so that only exp itself is judged.
    float maximum = pqattn::masked_score;
    float sum = 0.0f;
    float rescale = 0.0f;
    memory.data()[0] = 0.0f;
    for (int i = 1; i < 1024; ++i) {
      memory.data()[i] = -static_cast<float>(part) - static_cast<float>(i) / 1024.0f;
    }
    pqattn::detail::softmax_row<TestType>(memory.data(), 1024, maximum, sum, rescale);
    REQUIRE(maximum == 0.0f);
    REQUIRE(memory.data()[0] == 1.0f);
    for (int i = 1; i < 1024; ++i) {
      const double exact = std::exp(-static_cast<double>(part) - i / 1024.0);
      if (exact > 1.2e-38) {  // normal in f32
        worst = std::max(worst, std::abs(static_cast<double>(memory.data()[i]) / exact - 1.0));
      }
    }
  }
  CHECK(worst <= 3e-7);
}

TEST_CASE("a masked row stays out of the way of later tiles", "[bank]") {
  pqattn_test::aligned_floats memory(64);
  float maximum = pqattn::masked_score;
  float sum = 0.0f;
  float rescale = -1.0f;
  std::fill_n(memory.data(), 64, pqattn::masked_score);
  pqattn::detail::softmax_row<isa::native>(memory.data(), 64, maximum, sum, rescale);
  CHECK(sum == 0.0f);
  CHECK(rescale == 1.0f);
  CHECK(std::all_of(memory.data(), memory.data() + 64, [](float p) { return p == 0.0f; }));
  memory.data()[0] = -1000.0f;
  memory.data()[1] = -1000.0f;
  pqattn::detail::softmax_row<isa::native>(memory.data(), 2, maximum, sum, rescale);
  CHECK(maximum == -1000.0f);
  CHECK(sum == 2.0f);
  CHECK(rescale == 1.0f);
}
