// SPDX-License-Identifier: MIT
#include "pqattn/study/metrics.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <cmath>
#include <limits>
#include <vector>

using Catch::Matchers::WithinRel;

TEST_CASE("normalized mean squared error", "[study][metrics]") {
  const float exact[] = {3.0f, 4.0f};
  const float close[] = {3.0f, 4.5f};
  CHECK_THAT(pqattn::nmse(exact, close, 2), WithinRel(0.25 / 25.0, 1e-15));
  CHECK(pqattn::nmse(exact, exact, 2) == 0.0);
  const double zero[] = {0.0, 0.0};
  const double one[] = {0.0, 1.0};
  CHECK(pqattn::nmse(zero, zero, 2) == 0.0);
  CHECK(std::isinf(pqattn::nmse(zero, one, 2)));
  CHECK(pqattn::nmse(exact, close, 0) == 0.0);
}

TEST_CASE("squared errors of parts add up", "[study][metrics]") {
  const float exact[] = {1.0f, -2.0f, 3.0f, 0.5f, 8.0f};
  const float close[] = {1.5f, -2.0f, 2.0f, 0.0f, 9.0f};
  pqattn::squared_error first;
  pqattn::squared_error second;
  first.add(exact, close, 2);
  second.add(exact + 2, close + 2, 3);
  first.add(second);
  CHECK_THAT(first.normalized(), WithinRel(pqattn::nmse(exact, close, 5), 1e-15));
}

TEST_CASE("squared errors are summed in double precision", "[study][metrics]") {
  std::vector<float> exact(1 << 20, 1.0f);
  std::vector<float> close(exact.size(), 1.0f + 0x1.0p-12f);
  CHECK_THAT(pqattn::nmse(exact.data(), close.data(), exact.size()), WithinRel(0x1.0p-24, 1e-12));
}

TEST_CASE("Kullback-Leibler divergence", "[study][metrics]") {
  const double p[] = {0.5, 0.25, 0.25, 0.0};
  const double q[] = {0.25, 0.5, 0.125, 0.125};
  CHECK_THAT(pqattn::kl_divergence(p, q, 4), WithinRel(0.5 * std::log(2.0), 1e-14));
  CHECK_THAT(pqattn::kl_divergence(q, q, 4) + 1.0, WithinRel(1.0, 1e-15));
  CHECK(std::isinf(pqattn::kl_divergence(q, p, 4)));
}

TEST_CASE("top-1 takes the lowest index on ties", "[study][metrics]") {
  const float row[] = {1.0f, 5.0f, 5.0f};
  const float other[] = {1.0f, 4.0f, 5.0f};
  CHECK(pqattn::top_1(row, 3) == 1);
  CHECK(pqattn::top_1_agrees(row, row, 3));
  CHECK_FALSE(pqattn::top_1_agrees(row, other, 3));
  CHECK(pqattn::top_1(row, 1) == 0);
}

TEST_CASE("logit error", "[study][metrics]") {
  const float exact[] = {1.0f, 2.0f, 3.0f, 4.0f};
  const float close[] = {2.0f, 1.0f, 4.0f, 3.0f};
  CHECK_THAT(pqattn::logit_error(exact, close, 4), WithinRel(1.0, 1e-15));
  CHECK(pqattn::logit_error(exact, close, 0) == 0.0);
}
