// SPDX-License-Identifier: MIT
#include "pqattn/bank/bank.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <type_traits>

#include "bank/archetype_bank.hpp"
#include "bank/conformance.hpp"
#include "bank/scalar_bank.hpp"
#include "support/count_allocations.hpp"

using pqattn_test::archetype_bank;
using pqattn_test::scalar_bank;

namespace {

// Each sub-concept notices what is missing.
struct no_name : scalar_bank {
  int name = 0;
};
static_assert(!pqattn::bank_identity<no_name>);
static_assert(!pqattn::bank_policy<no_name>);
struct pointerless : scalar_bank {
  struct address {};  // not regular: no comparison
};
static_assert(!pqattn::bank_memory<pointerless>);
struct throwing_encode : scalar_bank {
  pqattn::status encode(const pqattn::rows_view&, const pqattn::resident_codebook<address>&,
                        const pqattn::code_span<address>&, pqattn::slot_range);
};
static_assert(!pqattn::bank_coding<throwing_encode>);
static_assert(pqattn::bank_attention<throwing_encode>);
static_assert(!pqattn::bank_policy<int>);

static_assert(std::is_trivially_copyable_v<pqattn::resident_codebook<std::byte*>>);
static_assert(std::is_trivially_copyable_v<pqattn::code_span<std::byte*>>);

}  // namespace

TEST_CASE("blocks cover slots", "[bank]") {
  CHECK(pqattn::blocks_for(0) == 0);
  CHECK(pqattn::blocks_for(1) == 1);
  CHECK(pqattn::blocks_for(64) == 1);
  CHECK(pqattn::blocks_for(65) == 2);
  CHECK(pqattn::max_tile_blocks * pqattn::block_tokens == 4096);
}

TEST_CASE("pages map logical blocks", "[bank]") {
  pqattn::code_span<int> span;
  CHECK(span.page(5) == 5);
  const std::uint32_t pages[] = {7, 3};
  span.pages = pages;
  CHECK(span.page(0) == 7);
  CHECK(span.page(1) == 3);
}

TEST_CASE("positions come from a base or a list", "[bank]") {
  pqattn::slot_positions positions{-5, nullptr};
  CHECK(positions.at(3) == -2);
  CHECK(positions.consecutive(0, 1000));
  const std::int32_t list[] = {4, 5, 6, 8, 9};
  positions.list = list;
  CHECK(positions.at(3) == 8);
  CHECK(positions.consecutive(0, 3));
  CHECK_FALSE(positions.consecutive(0, 4));
  CHECK_FALSE(positions.consecutive(2, 2));
  CHECK(positions.consecutive(3, 2));
  CHECK(positions.consecutive(2, 1));
}

TEST_CASE("the scalar reference bank keeps the contract", "[bank]") {
  scalar_bank bank;
  // Double sums rounded once; allowed to allocate, as it is for tests only.
  pqattn_test::check_bank(bank, {1e-12, 1e-6, true});
  CHECK(bank.used_bytes() == 0);
}

TEST_CASE("the scalar reference bank refuses what does not fit", "[bank]") {
  scalar_bank bank;
  bank.capacity_bytes = 100;
  scalar_bank::address first{};
  scalar_bank::address second{};
  REQUIRE(bank.reserve(60, first).ok());
  const pqattn::status refused = bank.reserve(60, second);
  CHECK(refused.code == pqattn::status_code::out_of_memory);
  CHECK(second == scalar_bank::address{});
  bank.release(first, 60);
  CHECK(bank.reserve(100, second).ok());
}
