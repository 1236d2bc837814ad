// SPDX-License-Identifier: MIT
#include "pqattn/core/memory.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/memory_resources.hpp"

static_assert(!std::is_copy_constructible_v<pqattn::buffer>);
static_assert(std::is_nothrow_move_constructible_v<pqattn::buffer>);
static_assert(pqattn::align_up(0) == 0 && pqattn::align_up(1) == 64 && pqattn::align_up(64) == 64 &&
              pqattn::align_up(65, 16) == 80);

TEST_CASE("a buffer gives back what it took, once", "[core]") {
  pqattn_test::counting_resource memory;
  {
    pqattn::buffer first;
    REQUIRE(pqattn::buffer::make(memory.resource(), 100, first).ok());
    CHECK(first.size() == 100);
    CHECK(reinterpret_cast<std::uintptr_t>(first.data()) % pqattn::memory_alignment == 0);
    pqattn::buffer second(std::move(first));
    CHECK(first.data() == nullptr);
    CHECK(first.size() == 0);
    pqattn::buffer third;
    REQUIRE(pqattn::buffer::make(memory.resource(), 50, third).ok());
    third = std::move(second);  // the 50 bytes go now
    CHECK(memory.live_bytes == 100);
    pqattn::buffer& alias = third;
    third = std::move(alias);
    CHECK(memory.live_bytes == 100);
    CHECK(third.size() == 100);
    REQUIRE(pqattn::buffer::make(memory.resource(), 0, third).ok());
    CHECK(third.data() == nullptr);
    CHECK(memory.live_bytes == 0);
    REQUIRE(pqattn::buffer::make({}, 10, third).ok());
  }
  CHECK(memory.live_bytes == 0);
  CHECK(memory.mistakes == 0);
  CHECK(memory.allocations == 2);
}

TEST_CASE("a refused buffer leaves the old one", "[core]") {
  pqattn_test::counting_resource memory;
  pqattn::buffer kept;
  REQUIRE(pqattn::buffer::make(memory.resource(), 8, kept).ok());
  const std::byte* data = kept.data();
  memory.fail_after = memory.allocations;
  const pqattn::status refused = pqattn::buffer::make(memory.resource(), 1000, kept);
  CHECK(refused.code == pqattn::status_code::out_of_memory);
  CHECK(refused.expected == 1000);
  CHECK(kept.data() == data);
  CHECK(kept.size() == 8);
}

TEST_CASE("a carver counts what it hands out, whatever the block's alignment", "[core]") {
  const auto carve = [](pqattn::carver& pieces, std::vector<std::pair<std::uintptr_t, std::size_t>>& taken) {
    const auto add = [&](const void* piece, std::size_t bytes) {
      taken.emplace_back(reinterpret_cast<std::uintptr_t>(piece), bytes);
    };
    add(pieces.take<char>(1), 1);
    add(pieces.take<double>(9), 72);
    add(pieces.take<float>(0), 0);
    add(pieces.take<std::uint16_t>(33), 66);
  };
  pqattn::carver counting;
  std::vector<std::pair<std::uintptr_t, std::size_t>> nothing;
  carve(counting, nothing);
  for (const auto& [piece, bytes] : nothing) {
    CHECK(piece == 0);
  }
  const std::size_t needed = counting.required();
  std::vector<std::byte> memory(needed + 64);
  for (std::size_t offset = 0; offset < 64; ++offset) {
    CAPTURE(offset);
    pqattn::carver pieces(memory.data() + offset, needed);
    std::vector<std::pair<std::uintptr_t, std::size_t>> taken;
    carve(pieces, taken);
    CHECK(pieces.fits());
    const auto begin = reinterpret_cast<std::uintptr_t>(memory.data() + offset);
    std::uintptr_t end = begin;
    for (const auto& [piece, bytes] : taken) {
      REQUIRE(piece != 0);
      CHECK(piece % 64 == 0);
      CHECK(piece >= end);
      end = piece + bytes;
    }
    CHECK(end <= begin + needed);
  }
  pqattn::carver small(memory.data(), 128);  // one piece, wherever the first aligned byte is
  CHECK(small.take<float>(1) != nullptr);
  CHECK(small.fits());
  CHECK(small.take<float>(100) == nullptr);
  CHECK_FALSE(small.fits());
  // What no memory holds does not wrap around to something small, nor does what comes after it.
  constexpr std::size_t all = std::numeric_limits<std::size_t>::max();
  for (const std::size_t count : {all, all / 2, all / sizeof(double), all / sizeof(double) - 7}) {
    CAPTURE(count);
    pqattn::carver huge(memory.data(), memory.size());
    CHECK(huge.take<double>(count) == nullptr);
    CHECK(huge.take<double>(count) == nullptr);
    CHECK(huge.take<char>(1) == nullptr);
    CHECK_FALSE(huge.fits());
    pqattn::carver counted;
    counted.take<double>(count);
    counted.take<double>(3);
    CHECK(counted.required() > all / 2);
  }
}
