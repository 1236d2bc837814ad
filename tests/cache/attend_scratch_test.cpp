// SPDX-License-Identifier: MIT
#include <pqattn/cache/attend_scratch.hpp>

#include <catch2/catch_test_macros.hpp>

#include "bank/scalar_bank.hpp"
#include "support/memory_resources.hpp"
#include "support/message.hpp"

namespace {

using namespace pqattn;
using bank_type = pqattn_test::scalar_bank;

TEST_CASE("scratch grows to the largest call and survives a refusal", "[cache]") {
  pqattn_test::counting_resource memory;
  bank_type bank;
  {
    attend_scratch<bank_type> scratch(bank, memory.resource());
    REQUIRE_OK(scratch.reserve(1000, 64));
    REQUIRE_OK(scratch.reserve(10, 8));
    CHECK(scratch.workspace_bytes() == 1000);
    CHECK(scratch.bytes() == 1064);
    CHECK(memory.allocations == 1);
    const void* kept = scratch.workspace();
    memory.fail_after = memory.allocations;
    CHECK(scratch.reserve(2000, 64).code == status_code::out_of_memory);
    CHECK(scratch.workspace() == kept);
    CHECK(scratch.workspace_bytes() == 1000);
    attend_scratch<bank_type> moved(std::move(scratch));
    CHECK(moved.workspace() == kept);
  }
  CHECK(memory.live_bytes == 0);
  CHECK(memory.mistakes == 0);
}

}  // namespace
