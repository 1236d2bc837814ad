// SPDX-License-Identifier: MIT
#include <pqattn/cache/side_store.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <vector>

#include "bank/scalar_bank.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"

namespace {

using namespace pqattn;
using pqattn_test::random_data;
using bank_type = pqattn_test::scalar_bank;

TEST_CASE("row forms undo each other", "[cache]") {
  std::vector<float> frequencies = {1.0f, 0.01f};
  std::vector<float> memory(rope_floats(2));
  row_forms forms;
  forms.exact_type = dtype::f32;
  REQUIRE_OK(build_rope(frequencies.data(), 2, rope_pairing::half_split, memory.data(), forms.rotation));
  const float original[5] = {1.0f, -2.0f, 0.5f, 3.0f, 7.0f};
  float row[5];
  std::copy_n(original, 5, row);
  forms.arrives_rotated = true;
  forms.to_exact(77, 5, row);
  CHECK(std::equal(row, row + 5, original));
  forms.to_coded(77, row);
  CHECK(row[0] != original[0]);
  CHECK(row[4] == 7.0f);  // not rotated
  forms.from_coded(77, row);
  for (int c = 0; c < 5; ++c) {
    CHECK_THAT(row[c], Catch::Matchers::WithinAbs(original[c], 1e-5));
  }
  forms.exact_type = dtype::f16;
  float third[1] = {1.0f / 3.0f};
  row_forms{{}, true, true, dtype::f16}.to_exact(0, 1, third);
  CHECK(third[0] == to_float(to_half(1.0f / 3.0f)));
}

TEST_CASE("rows pass from sinks and window to the body in order", "[cache]") {
  random_data random(32);
  CAPTURE(random.seed());
  bank_type bank;
  side_config side;
  side.coded = false;
  side.shape.dim = 2;
  side_store<bank_type> store(bank, {}, side, {{}, true, true, dtype::f32}, 3, 4);
  std::size_t tokens = 0;
  std::size_t body = 0;
  for (int step = 0; step < 60; ++step) {
    const std::size_t count = random.below(9);
    std::vector<float> rows(2 * count);
    for (std::size_t i = 0; i < count; ++i) {
      rows[2 * i] = static_cast<float>(tokens + i);
      rows[2 * i + 1] = -rows[2 * i];
    }
    const rows_view view = view_rows(rows.data(), count, 2);
    const std::size_t to_sinks = store.sinks_from(count);
    const rows_view added = view.slice(to_sinks, count - to_sinks);
    const std::size_t held = store.recent().size() + added.rows;
    const std::size_t leaving = held > 4 ? held - 4 : 0;
    REQUIRE_OK(store.reserve(count, leaving, body, true));
    store.push_sinks(view);
    std::vector<float> left(2 * leaving);
    for (std::size_t i = 0; i < leaving; ++i) {
      store.load(added, i, 0, left.data() + 2 * i);
    }
    store.push_exact_body(left.data(), leaving);
    store.push_window(added, leaving, store.sinks().size() + body);
    tokens += count;
    body += leaving;
    CHECK(store.sinks().size() == std::min<std::size_t>(tokens, 3));
    CHECK(store.recent().size() <= 4);
    CHECK(store.sinks().size() + body + store.recent().size() == tokens);
    for (std::size_t t = 0; t < tokens; ++t) {
      float row[2];
      REQUIRE_OK(store.read(t, body, 0, row));
      REQUIRE(row[0] == static_cast<float>(t));
      REQUIRE(row[1] == -static_cast<float>(t));
    }
  }
}

}  // namespace
