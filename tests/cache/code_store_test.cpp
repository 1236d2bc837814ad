// SPDX-License-Identifier: MIT
#include <pqattn/cache/code_store.hpp>

#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "bank/scalar_bank.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"

namespace {

using namespace pqattn;
using pqattn_test::random_data;
using bank_type = pqattn_test::scalar_bank;

TEST_CASE("chunks follow each other without gaps and waste at most a ninth", "[cache]") {
  std::size_t capacity = 0;
  for (int i = 0; i < 60; ++i) {
    const std::size_t slots = next_chunk_slots(capacity);
    CHECK(slots % block_tokens == 0);
    CHECK(slots >= 256);
    if (capacity > 4096) {
      CHECK(slots * 8 <= capacity);
    }
    capacity += slots;
  }
  for (int i = 60; i < static_cast<int>(max_chunks); ++i) {
    capacity += next_chunk_slots(capacity);
  }
  CHECK(capacity > std::size_t{1} << 32);
}

TEST_CASE("rows coded across chunks decode to the nearest centroids", "[cache]") {
  random_data random(31);
  CAPTURE(random.seed());
  bank_type bank;
  side_config side;
  side.shape = {6, 3, 5};
  side.storage = codebook_storage::f32;
  const std::vector<float> centroids = random.normals(side.shape.codebook_values());
  {
    code_store<bank_type> store(bank, {}, side);
    CHECK(store.codebook_count() == 0);
    REQUIRE_OK(store.add_codebook({side.shape, centroids.data()}));
    CHECK(store.codebook_count() == 1);
    // Every row is made of centroids, so it is coded without error wherever it lies.
    constexpr std::size_t rows = 700;
    std::vector<float> data(rows * 6);
    std::vector<std::uint16_t> codes = random.codes(rows * 3, 5);
    for (std::size_t i = 0; i < rows; ++i) {
      decode_row({side.shape, centroids.data()}, codes.data() + i * 3, data.data() + i * 6);
    }
    REQUIRE_OK(store.reserve(rows));
    CHECK(store.chunk_count() > 1);
    REQUIRE_OK(store.encode(0, view_rows(data.data(), 250, 6), 0));
    REQUIRE_OK(store.encode(0, view_rows(data.data() + 250 * 6, rows - 250, 6), 250));
    float row[6];
    for (std::size_t i = 0; i < rows; ++i) {
      REQUIRE_OK(store.decode(0, i, ref_rows(row, 1, 6)));
      for (std::size_t c = 0; c < 6; ++c) {
        REQUIRE(row[c] == data[i * 6 + c]);
      }
    }
    CHECK(store.codes_bytes() == store.capacity() / block_tokens * bank.code_block_bytes(side.shape));
    code_store<bank_type> moved(std::move(store));
    CHECK(moved.codebook_count() == 1);
    moved.drop_codebooks(0);
    CHECK(moved.codebook_bytes() == 0);
  }
}

}  // namespace
