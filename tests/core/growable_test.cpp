// SPDX-License-Identifier: MIT
#include <pqattn/core/growable.hpp>

#include <catch2/catch_test_macros.hpp>

#include "support/memory_resources.hpp"
#include "support/message.hpp"

namespace {

using namespace pqattn;

TEST_CASE("a growable array keeps its elements while it grows", "[core]") {
  pqattn_test::counting_resource memory;
  {
    growable<int> numbers(memory.resource());
    CHECK(numbers.size() == 0);
    for (int i = 0; i < 1000; ++i) {
      REQUIRE_OK(numbers.push_back(i));
    }
    // A reference into the array may be pushed while the array moves.
    REQUIRE_OK(numbers.reserve(1024));
    while (numbers.size() < numbers.capacity()) {
      REQUIRE_OK(numbers.push_back(0));
    }
    REQUIRE_OK(numbers.push_back(numbers[999]));
    CHECK(numbers[numbers.size() - 1] == 999);
    for (int i = 0; i < 1000; ++i) {
      REQUIRE(numbers[static_cast<std::size_t>(i)] == i);
    }
    CHECK(memory.allocations < 20);
    CHECK(numbers.bytes() == memory.live_bytes);
    numbers.truncate(3);
    CHECK(numbers.size() == 3);
    numbers.truncate(7);
    CHECK(numbers.size() == 3);
    growable<int> moved(std::move(numbers));
    CHECK(moved[2] == 2);
    moved.reset();
    CHECK(memory.live_bytes == 0);
  }
  CHECK(memory.mistakes == 0);
}

TEST_CASE("a refused allocation leaves a growable array as it was", "[core]") {
  pqattn_test::counting_resource memory;
  growable<double> numbers(memory.resource());
  REQUIRE_OK(numbers.push_back(1.5));
  const std::size_t capacity = numbers.capacity();
  memory.fail_after = memory.allocations;
  CHECK(numbers.reserve(capacity + 1).code == status_code::out_of_memory);
  CHECK(numbers.size() == 1);
  CHECK(numbers.capacity() == capacity);
  CHECK(numbers[0] == 1.5);
}

}  // namespace
