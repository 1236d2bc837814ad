// SPDX-License-Identifier: MIT
#include <pqattn/cache/outlier_rows.hpp>

#include <catch2/catch_test_macros.hpp>

#include "support/memory_resources.hpp"
#include "support/message.hpp"

namespace {

using namespace pqattn;

TEST_CASE("outliers are found by token, and their slots are dead", "[cache]") {
  outlier_rows kept({}, dtype::f32, 2, 1, 0.1f);
  REQUIRE_OK(kept.reserve(1000));
  CHECK(kept.live(0) == nullptr);
  std::size_t refused = 0;
  for (std::size_t slot = 0; slot < 1000; ++slot) {
    kept.add_slot();
    if (slot % 7 == 3) {
      if (!kept.has_room()) {
        ++refused;
        continue;
      }
      const float key[2] = {static_cast<float>(slot), 1.0f};
      const float value = -static_cast<float>(slot);
      kept.add(slot + 8, slot, key, &value);
    }
    CHECK(kept.size() <= (slot + 1) / 10);
  }
  CHECK(refused > 0);
  CHECK(kept.size() >= 95);
  std::size_t found = 0;
  for (std::size_t slot = 0; slot < 1000; ++slot) {
    const std::size_t index = kept.find(slot + 8);
    const bool dead = (kept.live(slot / 64 * 64)[0] >> (slot % 64) & 1u) == 0;
    CHECK(dead == (index < kept.size()));
    if (index < kept.size()) {
      ++found;
      CHECK(kept.positions()[index] == static_cast<std::int32_t>(slot + 8));
      float row[2];
      load_row(kept.keys(), index, row);
      CHECK(row[0] == static_cast<float>(slot));
      load_row(kept.values(), index, row);
      CHECK(row[0] == -static_cast<float>(slot));
    }
  }
  CHECK(found == kept.size());
  CHECK(kept.find(7) == kept.size());
}

TEST_CASE("without a share outliers take no memory", "[cache]") {
  pqattn_test::counting_resource memory;
  outlier_rows none(memory.resource(), dtype::f16, 8, 8, 0.0f);
  REQUIRE_OK(none.reserve(100000));
  CHECK_FALSE(none.has_room());
  CHECK(memory.live_bytes == 0);
  CHECK(none.find(0) == 0);
  outlier_rows some(memory.resource(), dtype::f16, 8, 8, 0.0625f);
  REQUIRE_OK(some.reserve(1000));
  memory_report report;
  some.add_to(report);
  CHECK(report.total_bytes() == memory.live_bytes);
  CHECK(report.exact_bytes == 2 * 62 * 8 * 2);
}

}  // namespace
