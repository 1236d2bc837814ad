// SPDX-License-Identifier: MIT
#include "pqattn/attend/partial_state.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "support/random_data.hpp"
#include "support/reference.hpp"

namespace {

constexpr float nothing = -std::numeric_limits<float>::infinity();

/// A state that owns its memory, rows apart by more than dim.
struct owned_state {
  owned_state(std::size_t row_count, std::size_t dim)
      : rows(row_count), cols(dim), out(rows * (dim + 2), 7.5f), lse(rows) {
    clear(get());
  }
  [[nodiscard]] pqattn::partial_state get() { return {out.data(), cols + 2, lse.data(), rows, cols}; }
  void fill(pqattn_test::random_data& random, float spread) {
    for (std::size_t row = 0; row < rows; ++row) {
      lse[row] = spread * random.normal();
      for (std::size_t c = 0; c < cols; ++c) {
        out[row * (cols + 2) + c] = random.normal();
      }
    }
  }
  std::size_t rows;
  std::size_t cols;
  std::vector<float> out;
  std::vector<float> lse;
};

}  // namespace

TEST_CASE("clear gives the neutral element and leaves the padding", "[attend]") {
  owned_state state(3, 5);
  CHECK(state.lse == std::vector<float>(3, nothing));
  for (std::size_t i = 0; i < state.out.size(); ++i) {
    CHECK(state.out[i] == (i % 7 < 5 ? 0.0f : 7.5f));
  }
}

TEST_CASE("the empty state is neutral, exactly", "[attend]") {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  owned_state state(4, 9);
  state.fill(random, 30.0f);
  owned_state before = state;
  owned_state empty(4, 9);
  merge(state.get(), empty.get());
  CHECK(state.out == before.out);
  CHECK(state.lse == before.lse);
  merge(empty.get(), before.get());
  CHECK(empty.lse == before.lse);
  CHECK(empty.out == before.out);
  owned_state both(4, 9);
  owned_state other(4, 9);
  merge(both.get(), other.get());
  CHECK(both.lse == std::vector<float>(4, nothing));
  CHECK(both.out == other.out);
  // A finite stand-in for -infinity, as -ffast-math callers use, is as empty.
  owned_state stand_in(4, 9);
  stand_in.lse.assign(4, pqattn::masked_score);
  stand_in.out.assign(stand_in.out.size(), std::numeric_limits<float>::quiet_NaN());
  merge(state.get(), stand_in.get());
  CHECK(state.out == before.out);
}

TEST_CASE("merging commutes and associates up to rounding", "[attend]") {
  pqattn_test::random_data random(2);
  CAPTURE(random.seed());
  for (const float spread : {1.0f, 30.0f, 1e4f, 1e20f}) {
    owned_state parts[3] = {{8, 6}, {8, 6}, {8, 6}};
    for (owned_state& part : parts) {
      part.fill(random, spread);
    }
    owned_state ab = parts[0];
    merge(ab.get(), parts[1].get());
    owned_state ba = parts[1];
    merge(ba.get(), parts[0].get());
    owned_state ab_c = ab;
    merge(ab_c.get(), parts[2].get());
    owned_state bc = parts[1];
    merge(bc.get(), parts[2].get());
    owned_state a_bc = parts[0];
    merge(a_bc.get(), bc.get());
    double reordered = 0.0;
    double regrouped = 0.0;
    double wrong = 0.0;
    for (std::size_t row = 0; row < 8; ++row) {
      double high = -1e30;
      for (const owned_state& part : parts) {
        high = std::max(high, static_cast<double>(part.lse[row]));
      }
      double mass = 0.0;
      for (const owned_state& part : parts) {
        mass += std::exp(static_cast<double>(part.lse[row]) - high);
      }
      for (std::size_t c = 0; c < 6; ++c) {
        const std::size_t i = row * 8 + c;
        double expected = 0.0;
        for (const owned_state& part : parts) {
          expected += std::exp(static_cast<double>(part.lse[row]) - high) / mass * static_cast<double>(part.out[i]);
        }
        reordered = std::max(reordered, std::abs(static_cast<double>(ab.out[i]) - static_cast<double>(ba.out[i])));
        regrouped = std::max(regrouped, std::abs(static_cast<double>(ab_c.out[i]) - static_cast<double>(a_bc.out[i])));
        wrong = std::max(wrong, std::abs(static_cast<double>(ab_c.out[i]) - expected));
      }
      CHECK(std::abs(static_cast<double>(ab_c.lse[row]) - (high + std::log(mass))) <= 1e-6 * (1.0 + std::abs(high)));
    }
    CAPTURE(spread);
    CHECK(reordered <= 1e-6);
    // Differences of large lse are themselves rounded.
    CHECK(regrouped <= 2e-6 + (spread < 1e3f ? 2e-6 * static_cast<double>(spread) : 2e-3));
    CHECK(wrong <= 2e-6 + (spread < 1e3f ? 2e-6 * static_cast<double>(spread) : 2e-3));
  }
}

TEST_CASE("a sink takes mass and gives no value", "[attend]") {
  pqattn_test::random_data random(3);
  CAPTURE(random.seed());
  owned_state state(5, 4);
  state.fill(random, 3.0f);
  state.lse[3] = nothing;
  std::fill_n(state.out.begin() + 3 * 6, 4, 0.0f);
  const owned_state before = state;
  const float logits[] = {0.5f, 1e4f, -1e4f, 2.0f, nothing};
  merge_sink(state.get(), logits);
  const double share = 1.0 / (1.0 + std::exp(0.5 - static_cast<double>(before.lse[0])));
  CHECK(std::abs(static_cast<double>(state.out[1]) - share * static_cast<double>(before.out[1])) <= 1e-6);
  CHECK(state.lse[1] == 1e4f);
  CHECK(state.out[6] == 0.0f);
  CHECK(state.lse[2] == before.lse[2]);
  CHECK(state.out[12] == before.out[12]);
  CHECK(state.lse[3] == 2.0f);  // only the sink
  CHECK(state.out[18] == 0.0f);
  CHECK(state.lse[4] == before.lse[4]);  // no sink
  CHECK(state.out[24] == before.out[24]);
}

TEST_CASE("bases of the logarithm", "[attend]") {
  CHECK(std::abs(pqattn::lse_to_base2(2.0f) - 2.885390082f) < 1e-6f);
  CHECK(pqattn::is_empty_lse(pqattn::empty_lse()));
  CHECK(pqattn::is_empty_lse(pqattn::masked_score));
  CHECK_FALSE(pqattn::is_empty_lse(-1e29f));
  CHECK_FALSE(pqattn::is_empty_lse(0.0f));
}
