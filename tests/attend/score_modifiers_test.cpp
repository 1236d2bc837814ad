// SPDX-License-Identifier: MIT
#include "pqattn/attend/score_modifiers.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/random_data.hpp"
#include "support/strided_matrix.hpp"

using pqattn::masked_score;
using pqattn::score_modifiers;

TEST_CASE("what needs query positions says so", "[attend]") {
  score_modifiers modifiers;
  CHECK(check_modifiers(modifiers, 1).ok());
  modifiers.causal = true;
  CHECK(check_modifiers(modifiers, 1).code == pqattn::status_code::invalid_argument);
  const std::int64_t position = 0;
  modifiers.query_positions = &position;
  CHECK(check_modifiers(modifiers, 1).ok());
  modifiers = {};
  modifiers.window = 1;
  CHECK_FALSE(check_modifiers(modifiers, 1).ok());
  modifiers.window = -1;
  modifiers.query_positions = &position;
  CHECK(std::string(check_modifiers(modifiers, 1).subject) == "modifiers.window");
  modifiers = {};
  const float slope = 0.5f;
  modifiers.alibi_slopes = &slope;
  CHECK_FALSE(check_modifiers(modifiers, 1).ok());
}

TEST_CASE("a default object changes nothing", "[attend]") {
  float scores[] = {1.0f, -2.0f, 1e30f, -1e30f};
  pqattn::detail::modify_row({}, 5, {64, 4}, {}, nullptr, 64, scores);
  CHECK(scores[0] == 1.0f);
  CHECK(scores[1] == -2.0f);
  CHECK(scores[2] == 1e30f);
  CHECK(scores[3] == -1e30f);
}

TEST_CASE("one score through all modifiers", "[attend]") {
  // score 3, bias 0.5, ALiBi 0.25 * (7 - 10), then the cap at 2.
  const std::int64_t positions[] = {0, 10};
  const float slopes[] = {0.0f, 0.25f};
  const float bias[] = {9.0f, 9.0f, 0.5f, -1.0f, -std::numeric_limits<float>::infinity()};
  score_modifiers modifiers;
  modifiers.softcap = 2.0f;
  modifiers.alibi_slopes = slopes;
  modifiers.bias = {bias, pqattn::dtype::f32, 2, 5, 0, 1};
  modifiers.query_positions = positions;
  modifiers.causal = true;
  const pqattn::slot_positions keys{5, nullptr};
  float scores[] = {3.0f, 4.0f, 5.0f};
  pqattn::detail::modify_row(modifiers, 1, {2, 3}, keys, nullptr, 0, scores);
  CHECK(std::abs(scores[0] - 2.0f * std::tanh((3.0f + 0.5f - 0.75f) / 2.0f)) < 1e-6f);
  CHECK(std::abs(scores[1] - 2.0f * std::tanh((4.0f - 1.0f - 0.5f) / 2.0f)) < 1e-6f);
  CHECK(scores[2] == masked_score);  // the cap does not bring it back
}

TEST_CASE("causal, window, live bits and the slots in front", "[attend]") {
  const std::int64_t query = 100;
  const std::int32_t list[] = {100, 101, 97, 96, 95, 99, 0, -5, 100, 100};
  score_modifiers modifiers;
  modifiers.query_positions = &query;
  modifiers.causal = true;
  modifiers.window = 4;  // 97, 98, 99, 100
  const std::uint64_t live[] = {0x3ff & ~(std::uint64_t{1} << 5)};
  std::vector<float> scores(10, 1.0f);
  pqattn::detail::modify_row(modifiers, 0, {0, 10}, {0, list}, live, 1, scores.data());
  const bool kept[] = {false, false, true, false, false, false, false, false, true, true};
  for (std::size_t slot = 0; slot < 10; ++slot) {
    CAPTURE(slot);
    CHECK(scores[slot] == (kept[slot] ? 1.0f : masked_score));
  }
  // Bits belong to slots of the storage, not of the tile.
  std::vector<std::uint64_t> bits(3, ~std::uint64_t{0});
  bits[2] = ~(std::uint64_t{1} << 3);
  std::vector<float> tile(64, 1.0f);
  pqattn::detail::modify_row({}, 0, {128, 64}, {}, bits.data(), 0, tile.data());
  for (std::size_t i = 0; i < 64; ++i) {
    REQUIRE(tile[i] == (i == 3 ? masked_score : 1.0f));
  }
}

TEST_CASE("NaN of what was never a token does not survive the mask", "[attend]") {
  const std::uint64_t live = 1;
  float scores[] = {1.0f, std::numeric_limits<float>::quiet_NaN()};
  score_modifiers modifiers;
  modifiers.softcap = 3.0f;
  pqattn::detail::modify_row(modifiers, 0, {0, 2}, {}, &live, 0, scores);
  CHECK(scores[1] == masked_score);
}

TEST_CASE("what stands for minus infinity in a mask excludes, whatever the soft-cap", "[attend]") {
  using limits = std::numeric_limits<float>;
  const std::vector<float> entries = {
      -65504.0f,           -1.0e9f,   limits::lowest(), -limits::infinity(), limits::infinity(),
      limits::quiet_NaN(), -65000.0f, -10000.0f};
  constexpr std::size_t excluded = 6;
  for (const auto type : {pqattn::dtype::f32, pqattn::dtype::f16, pqattn::dtype::bf16}) {
    for (const float softcap : {0.0f, 50.0f}) {
      CAPTURE(static_cast<int>(type), softcap);
      const pqattn_test::strided_matrix bias(entries, 1, entries.size(), type, pqattn_test::dense_layout);
      score_modifiers modifiers;
      modifiers.bias = bias.view();
      modifiers.softcap = softcap;
      std::vector<float> scores(entries.size(), 3.0f);
      pqattn::detail::modify_row(modifiers, 0, {0, scores.size()}, {}, nullptr, 0, scores.data());
      for (std::size_t i = 0; i < scores.size(); ++i) {
        CAPTURE(i);
        const float added = 3.0f + bias.get(0, i);
        CHECK(scores[i] == (i < excluded ? masked_score : softcap > 0.0f ? -softcap : added));
      }
    }
  }
}

TEST_CASE("a bias of any dtype and stride, longer than a register", "[attend]") {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  for (const auto type : {pqattn::dtype::f32, pqattn::dtype::f16, pqattn::dtype::bf16}) {
    for (const auto& layout : {pqattn_test::dense_layout, pqattn_test::awkward_layout, pqattn_test::reversed_layout}) {
      const pqattn_test::strided_matrix bias(random.normals(3 * 200), 3, 200, type, layout);
      score_modifiers modifiers;
      modifiers.bias = bias.view();
      const std::vector<float> before = random.normals(150);
      std::vector<float> scores = before;
      pqattn::detail::modify_row(modifiers, 2, {50, 150}, {}, nullptr, 50, scores.data());
      bool right = true;
      for (std::size_t i = 0; i < 150; ++i) {
        right = right && scores[i] == before[i] + bias.get(2, 50 + i);
      }
      CHECK(right);
    }
  }
}
