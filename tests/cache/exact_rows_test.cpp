// SPDX-License-Identifier: MIT
#include <pqattn/cache/exact_rows.hpp>

#include <catch2/catch_test_macros.hpp>
#include <deque>

#include "support/memory_resources.hpp"
#include "support/message.hpp"

namespace {

using namespace pqattn;

TEST_CASE("a queue of rows equals a deque under random use", "[cache]") {
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16}) {
    pqattn_test::counting_resource memory;
    exact_rows rows(memory.resource(), type, 3);
    std::deque<float> model;
    float next = 0.0f;
    for (int step = 0; step < 400; ++step) {
      const std::size_t dropped = static_cast<std::size_t>(step * 7 % 3);
      if (dropped <= rows.size() && step % 5 == 0) {
        rows.drop_front(dropped);
        model.erase(model.begin(), model.begin() + static_cast<std::ptrdiff_t>(dropped));
      } else if (step % 11 == 3 && rows.size() > 0) {
        rows.drop_back(1);
        model.pop_back();
      } else {
        REQUIRE_OK(rows.grow(rows.size() + 1));
        rows.make_room(rows.size() + 1);
        const float row[3] = {next, next + 0.5f, -next};
        rows.push_back(row);
        model.push_back(next);
        next = next >= 64.0f ? 0.0f : next + 1.0f;  // exact in every dtype
      }
      REQUIRE(rows.size() == model.size());
      REQUIRE(rows.view().type == type);
      for (std::size_t i = 0; i < model.size(); ++i) {
        float row[3];
        load_row(rows.view(), i, row);
        REQUIRE(row[0] == model[i]);
        REQUIRE(row[1] == model[i] + 0.5f);
        REQUIRE(row[2] == -model[i]);
      }
      REQUIRE(rows.bytes() == memory.live_bytes);
    }
  }
}

TEST_CASE("rows keep what they hold when growing fails", "[cache]") {
  pqattn_test::counting_resource memory;
  exact_rows rows(memory.resource(), dtype::f32, 2);
  REQUIRE_OK(rows.grow(1));
  const float row[2] = {1.0f, 2.0f};
  rows.push_back(row);
  memory.fail_after = memory.allocations;
  CHECK(rows.grow(2).code == status_code::out_of_memory);
  float got[2];
  load_row(rows.view(), 0, got);
  CHECK(got[1] == 2.0f);
}

}  // namespace
