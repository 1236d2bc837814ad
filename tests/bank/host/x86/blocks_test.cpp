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

namespace {

/// Lines that lie side by side and are handed out as such.
struct piece {
  const std::uint8_t* at;
  std::size_t bytes;

  [[nodiscard]] std::size_t lines() const { return (bytes + 63) / 64; }
  [[nodiscard]] bool holds(const std::uint8_t* place) const { return place >= at && place < at + bytes; }
};

/// Takes all that a queue has, `together` lines at a time, in so many shares: each line once, in order, within a piece.
void check_queue(pqattn::x86::fetch_queue queue, const std::vector<piece>& pieces, std::size_t shares,
                 std::size_t together) {
  queue.share_among(shares);
  std::size_t lines = 0;
  for (const piece& one : pieces) {
    lines += one.lines();
  }
  std::size_t current = 0;
  std::size_t end = 0;  // of what was taken of that piece
  std::size_t given = 0;
  for (std::size_t share = 0; share < shares; ++share) {
    queue.add_share();
    const std::size_t due = queue.due();
    const std::size_t first_due = due > 2 * together ? due - 2 * together : 0;  // fetched before anything is given
    const bool near = queue.side_by_side() >= first_due + together;
    const std::uint8_t* taken = queue.take(together);
    CHECK(queue.due() <= 2 * together);
    CHECK((taken != nullptr || !near || due < together));
    given += due - queue.due();
    if (taken == nullptr) {
      continue;
    }
    while (current < pieces.size() && !pieces[current].holds(taken)) {
      ++current;
      end = 0;
    }
    REQUIRE(current < pieces.size());
    const auto at = static_cast<std::size_t>(taken - pieces[current].at);
    CHECK(at % 64 == 0);
    CHECK(at >= end);
    end = at + 64 * together;
    CHECK(end < pieces[current].bytes + 64);
  }
  given += queue.due();
  queue.fetch_due();
  CHECK(given == lines);
  queue.add_share();
  CHECK(queue.due() == 0);
}

}  // namespace

TEST_CASE("a fetch queue hands out every line once, within blocks and in order", "[x86]") {
  pqattn_test::random_data random(31);
  for (int turn = 0; turn < 300; ++turn) {
    const std::size_t block_bytes = 8 * (1 + random.below(600));
    const std::size_t blocks = random.below(40);
    const std::size_t shares = 1 + random.below(100);
    const std::size_t together = 1 + random.below(40);
    const std::vector<std::uint8_t> memory(block_bytes * (blocks + 1) + 64);
    std::vector<std::uint32_t> pages(blocks);
    std::vector<const std::uint8_t*> list(blocks);
    std::vector<piece> pieces(blocks);
    for (std::size_t block = 0; block < blocks; ++block) {
      pages[block] = static_cast<std::uint32_t>(blocks - block);
      list[block] = memory.data() + pages[block] * block_bytes;
      pieces[block] = {list[block], block_bytes};
    }
    INFO("block of " << block_bytes << " bytes, " << blocks << " of them, " << shares << " shares, " << together
                     << " lines at once, seed " << random.seed());
    const std::size_t slots = blocks * pqattn::x86::slots;
    switch (random.below(3)) {
      case 0: {
        INFO("listed");
        check_queue({list.data(), blocks, block_bytes}, pieces, shares, together);
        break;
      }
      case 1: {
        INFO("with pages");
        check_queue({nullptr, 0, {memory.data(), pages.data(), block_bytes, 0, slots}}, pieces, shares, together);
        break;
      }
      default: {  // blocks that lie one after the other are one piece
        INFO("without pages");
        check_queue({nullptr, 0, {memory.data(), nullptr, block_bytes, 0, slots}},
                    {{memory.data(), blocks * block_bytes}}, shares, together);
      }
    }
  }
}

#else
TEST_CASE("x86 blocks") {
  SKIP("not compiled for AVX2");
}
#endif
