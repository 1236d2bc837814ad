// SPDX-License-Identifier: MIT
#include <pqattn/cache/query_log.hpp>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "support/memory_resources.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"

namespace {

using namespace pqattn;
using pqattn_test::random_data;

TEST_CASE("a query log spreads what it keeps evenly, however the rows come", "[cache]") {
  random_data random(41);
  CAPTURE(random.seed());
  constexpr std::size_t dim = 3;
  constexpr std::size_t tokens = 1000;
  const std::vector<float> rows = random.normals(2 * tokens * dim);
  std::vector<std::int64_t> positions(2 * tokens);  // two heads
  for (std::size_t i = 0; i < 2 * tokens; ++i) {
    positions[i] = static_cast<std::int64_t>(i / 2);
  }
  query_log whole({}, 50, dim);
  query_log pieces({}, 50, dim);
  REQUIRE_OK(whole.add(view_rows(rows.data(), 2 * tokens, dim), positions.data()));
  for (std::size_t done = 0; done < 2 * tokens;) {
    const std::size_t count = std::min<std::size_t>(1 + random.below(9), 2 * tokens - done);
    REQUIRE_OK(pieces.add(view_rows(rows.data() + done * dim, count, dim), positions.data() + done));
    done += count;
  }
  REQUIRE(whole.size() == pieces.size());
  CHECK(whole.size() > 25);
  CHECK(whole.size() <= 50);
  const std::int64_t stride = whole.positions()[2] - whole.positions()[0];
  for (std::size_t i = 0; i < whole.size(); ++i) {
    CHECK(whole.positions()[i] == static_cast<std::int64_t>(i / 2) * stride);
    CHECK(whole.positions()[i] == pieces.positions()[i]);
    const auto source = static_cast<std::size_t>(whole.positions()[i]) * 2 + i % 2;
    for (std::size_t c = 0; c < dim; ++c) {
      float row[dim];
      load_row(whole.rows(), i, row);
      CHECK(row[c] == rows[source * dim + c]);
    }
  }
}

TEST_CASE("a query log of no rows, of one position, and after closing", "[cache]") {
  pqattn_test::counting_resource memory;
  const float row[4] = {1, 2, 3, 4};
  const std::int64_t position = 0;
  query_log none(memory.resource(), 0, 2);
  REQUIRE_OK(none.add(view_rows(row, 1, 2), &position));
  CHECK(none.bytes() == 0);
  query_log one(memory.resource(), 3, 4);
  for (int i = 0; i < 10; ++i) {
    REQUIRE_OK(one.add(view_rows(row, 1, 4), &position));
  }
  CHECK(one.size() == 3);
  CHECK(one.bytes() == memory.live_bytes);
  one.close();
  CHECK(memory.live_bytes == 0);
  REQUIRE_OK(one.add(view_rows(row, 1, 4), &position));
  CHECK(one.size() == 0);
  memory.fail_after = memory.allocations + 1;
  query_log poor(memory.resource(), 3, 4);
  CHECK(poor.add(view_rows(row, 1, 4), &position).code == status_code::out_of_memory);
  CHECK(poor.size() == 0);
}

}  // namespace
