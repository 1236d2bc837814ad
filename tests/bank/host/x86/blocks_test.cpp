// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/x86/blocks.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <vector>

#include "support/random_data.hpp"

#if PQATTN_X86_AVX2

TEST_CASE("parts of a run cover its slots once", "[x86]") {
  const pqattn::x86::slot_run run{nullptr, nullptr, 64, 70, 500};
  std::size_t next = 70;
  for (std::size_t block = run.first_block(); block < run.end_block(); block += 3) {
    const pqattn::x86::slot_run part = run.part(block, block + 3);
    CHECK(part.first == next);
    CHECK(part.count != 0);
    CHECK(part.first_block() == block);
    CHECK(part.end_block() <= block + 3);
    next += part.count;
  }
  CHECK(next == 570);
}

TEST_CASE("a fetch queue hands out every line once, within blocks and in order", "[x86]") {
  pqattn_test::random_data random(31);
  for (int turn = 0; turn < 200; ++turn) {
    const std::size_t block_bytes = 8 * (1 + random.below(600));
    const std::size_t blocks = random.below(40);
    const std::size_t shares = 1 + random.below(100);
    const std::size_t together = 1 + random.below(40);
    const std::vector<std::uint8_t> memory(block_bytes * (blocks + 1) + 64);
    std::vector<std::uint32_t> pages(blocks);
    std::vector<const std::uint8_t*> list(blocks);
    for (std::size_t block = 0; block < blocks; ++block) {
      pages[block] = static_cast<std::uint32_t>(blocks - block);
      list[block] = memory.data() + pages[block] * block_bytes;
    }
    const bool listed = random.chance(0.5);
    const pqattn::x86::slot_run run{memory.data(), pages.data(), block_bytes, 0, blocks * pqattn::x86::slots};
    pqattn::x86::fetch_queue queue = listed ? pqattn::x86::fetch_queue(list.data(), blocks, block_bytes)
                                            : pqattn::x86::fetch_queue(nullptr, 0, run);
    INFO("block of " << block_bytes << " bytes, " << blocks << " of them, " << shares << " shares, " << together
                     << " lines at once, listed " << listed << ", seed " << random.seed());
    queue.share_among(shares);
    const std::size_t lines = blocks * ((block_bytes + 63) / 64);
    std::size_t block = 0;
    std::size_t end = 0;  // of what was taken of that block
    std::size_t given = 0;
    for (std::size_t share = 0; share < shares; ++share) {
      queue.add_share();
      const std::size_t due = queue.due();
      const std::uint8_t* taken = queue.take(together);
      CHECK(queue.due() <= 2 * together);
      given += due - queue.due();
      if (taken == nullptr) {
        continue;
      }
      while (block < blocks && !(taken >= list[block] && taken < list[block] + block_bytes)) {
        ++block;
        end = 0;
      }
      REQUIRE(block < blocks);
      const auto at = static_cast<std::size_t>(taken - list[block]);
      CHECK(at % 64 == 0);
      CHECK(at >= end);
      end = at + 64 * together;
      CHECK(end < block_bytes + 64);
    }
    given += queue.due();
    queue.fetch_due();
    CHECK(given == lines);
    queue.add_share();
    CHECK(queue.due() == 0);
  }
}

#else
TEST_CASE("x86 blocks") { SKIP("not compiled for AVX2"); }
#endif
