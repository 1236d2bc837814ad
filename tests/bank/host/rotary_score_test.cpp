// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/rotary_score.hpp"

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <vector>

#include "bank/conformance.hpp"
#include "pqattn/bank/host/host_bank.hpp"

namespace isa = pqattn::isa;

TEMPLATE_TEST_CASE("consecutive positions and the same positions as a list give the same scores", "[bank]", isa::native,
                   isa::emulated<128>) {
  // Two ways through the kernel: in-block angles with a turned query, and angles computed slot by slot.
  for (const std::int64_t base : {0, 63, 100000, 19999000}) {
    pqattn_test::case_data data(
        {24, 7, 32, 1, pqattn::codebook_storage::f16, 200, 3, pqattn_test::rope_kind::partial, base},
        static_cast<std::uint64_t>(base));
    CAPTURE(data.random.seed(), base);
    pqattn::host_bank<TestType> bank;
    pqattn_test::stored_book<pqattn::host_bank<TestType>> book(bank, data.shape, pqattn::codebook_storage::f16,
                                                               data.source);
    pqattn_test::bank_block<pqattn::host_bank<TestType>> blocks(bank, 4 * bank.code_block_bytes(data.shape));
    const pqattn::code_span<std::byte*> codes{data.shape, blocks.get(), nullptr};
    const std::vector<std::uint16_t> stored = data.random.codes(256 * data.shape.groups(), 32);
    REQUIRE(bank.store_codes(codes, {0, 256}, stored.data()).ok());
    const std::vector<float> queries = data.random.normals(3 * 24);
    pqattn_test::aligned_floats tables(pqattn::detail::rotary_table_floats(data.shape, 3, data.rotation));
    pqattn::detail::prepare_rotary<TestType>({queries.data(), 3, 24}, data.shape, data.rotation, tables.data());
    std::vector<std::int32_t> list(256);
    for (std::size_t slot = 0; slot < 256; ++slot) {
      list[slot] = static_cast<std::int32_t>(base + static_cast<std::int64_t>(slot));
    }
    // Break the run in every block where no score is looked at: slot 63 of each.
    for (std::size_t slot = 63; slot < 256; slot += 64) {
      list[slot] += 5;
    }
    pqattn_test::aligned_floats memory(2 * 3 * 256);
    const pqattn::score_tile runs{memory.data(), 3, 256};
    const pqattn::score_tile listed{memory.data() + 3 * 256, 3, 256};
    const pqattn::detail::host_codebook planes{book.resident};
    pqattn::detail::score_rotary<TestType>(tables.data(), planes, data.rotation, {base, nullptr}, codes, {0, 256},
                                           runs);
    pqattn::detail::score_rotary<TestType>(tables.data(), planes, data.rotation, {0, list.data()}, codes, {0, 256},
                                           listed);
    double worst = 0.0;
    double broken = 0.0;
    for (std::size_t row = 0; row < 3; ++row) {
      for (std::size_t slot = 0; slot < 256; ++slot) {
        const double difference =
            std::abs(static_cast<double>(runs.row(row)[slot]) - static_cast<double>(listed.row(row)[slot]));
        (slot % 64 == 63 ? broken : worst) = std::max(slot % 64 == 63 ? broken : worst, difference);
      }
    }
    CHECK(worst <= 1e-4);
    CHECK(broken > 1e-2);
  }
}
