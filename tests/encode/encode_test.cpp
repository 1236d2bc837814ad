// SPDX-License-Identifier: MIT
#include "pqattn/encode/encode.hpp"

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "bank/archetype_bank.hpp"
#include "bank/scalar_bank.hpp"
#include "pqattn/bank/host/host_bank.hpp"
#include "support/count_allocations.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"
#include "support/reference.hpp"
#include "support/resident.hpp"
#include "support/strided_matrix.hpp"

using pqattn::codebook_storage;
using pqattn::dtype;
using pqattn::geometry;
using pqattn::status_code;
using pqattn_test::archetype_bank;
using pqattn_test::bank_block;
using pqattn_test::scalar_bank;
using pqattn_test::stored_book;
using pqattn_test::strided_matrix;
using host_bank = pqattn::host_bank<>;

// Every function template compiles with the least capable bank.
template pqattn::status pqattn::encode<archetype_bank>(archetype_bank&, const pqattn::rows_view&,
                                                       const pqattn::resident_codebook<archetype_bank::address>&,
                                                       const pqattn::code_span<archetype_bank::address>&,
                                                       pqattn::slot_range) noexcept;
template pqattn::status pqattn::decode<archetype_bank>(archetype_bank&,
                                                       const pqattn::resident_codebook<archetype_bank::address>&,
                                                       const pqattn::code_span<archetype_bank::address>&,
                                                       pqattn::slot_range, const pqattn::rows_ref&) noexcept;
template pqattn::status pqattn::load_code_rows<archetype_bank>(archetype_bank&,
                                                               const pqattn::code_span<archetype_bank::address>&,
                                                               pqattn::slot_range, std::uint8_t*, std::size_t,
                                                               std::uint16_t*, std::size_t) noexcept;
template pqattn::status pqattn::store_code_rows<archetype_bank>(archetype_bank&, const std::uint8_t*, std::size_t,
                                                                const pqattn::code_span<archetype_bank::address>&,
                                                                pqattn::slot_range, std::uint16_t*,
                                                                std::size_t) noexcept;
static_assert(pqattn::host_addressable_bank<host_bank>);
static_assert(!pqattn::host_addressable_bank<scalar_bank>, "its addresses are not pointers");
static_assert(!pqattn::host_addressable_bank<archetype_bank>);

namespace {

/// A codebook in a bank and blocks of codes.
template <class Bank>
struct coder {
  coder(Bank& bank, const geometry& shape, codebook_storage storage, const std::vector<float>& source,
        std::size_t tokens)
      : book(bank, shape, storage, source),
        blocks(bank, pqattn::blocks_for(tokens) * bank.code_block_bytes(shape)),
        codes{shape, blocks.get(), nullptr} {}
  stored_book<Bank> book;
  bank_block<Bank> blocks;
  pqattn::code_span<typename Bank::address> codes;
};

}  // namespace

TEMPLATE_TEST_CASE("encoding what was decoded gives the same codes", "[encode]", host_bank, scalar_bank) {
  TestType bank;
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  for (const auto storage : {codebook_storage::f32, codebook_storage::f16, codebook_storage::i8}) {
    for (const std::uint32_t centroids : {2u, 3u, 16u, 200u, 256u}) {
      const geometry shape{30, 7, centroids};
      const std::vector<float> source = random.normals(shape.codebook_values());
      coder<TestType> coder(bank, shape, storage, source, 200);
      const std::vector<std::uint16_t> codes = random.codes(200 * shape.groups(), centroids);
      REQUIRE_OK(bank.store_codes(coder.codes, {0, 200}, codes.data()));
      std::vector<float> rows(200 * 30);
      REQUIRE_OK(decode(bank, coder.book.resident, coder.codes, {0, 200}, pqattn::ref_rows(rows.data(), 200, 30)));
      const std::vector<std::uint16_t> zeros(codes.size());
      REQUIRE_OK(bank.store_codes(coder.codes, {0, 200}, zeros.data()));
      REQUIRE_OK(encode(bank, pqattn::view_rows(rows.data(), 200, 30), coder.book.resident, coder.codes, {0, 200}));
      std::vector<std::uint16_t> again(codes.size());
      REQUIRE_OK(bank.load_codes(coder.codes, {0, 200}, again.data()));
      // Rounded centroids may coincide (bytes): then the lower index is right.
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < codes.size(); ++i) {
        const auto group = static_cast<std::uint32_t>(i % shape.groups());
        const std::size_t width = shape.width(group);
        const float* centers = coder.book.centroids.data() + shape.codebook_offset(group);
        const bool same =
            std::equal(centers + codes[i] * width, centers + (codes[i] + 1) * width, centers + again[i] * width);
        wrong += again[i] > codes[i] || !same;
      }
      CAPTURE(static_cast<int>(storage), centroids);
      CHECK(wrong == 0);
    }
  }
}

TEMPLATE_TEST_CASE("token by token is the same as a block", "[encode]", host_bank, scalar_bank) {
  TestType bank;
  pqattn_test::random_data random(2);
  CAPTURE(random.seed());
  constexpr std::size_t tokens = 131;  // programs may take rows in pairs
  std::vector<std::uint16_t> order;
  for (unsigned i = 0; i < 24; ++i) {
    order.push_back(static_cast<std::uint16_t>(i * 7 % 24));
  }
  for (const auto storage : {codebook_storage::f32, codebook_storage::f16, codebook_storage::i8}) {
    const geometry shape{24, 5, 40, 2, order.data()};
    const std::vector<float> source = random.normals(shape.codebook_values());
    const std::vector<float> rows = random.normals(tokens * 24);
    coder<TestType> block(bank, shape, storage, source, tokens);
    coder<TestType> single(bank, shape, storage, source, tokens);
    const pqattn::rows_view view = pqattn::view_rows(rows.data(), tokens, 24);
    REQUIRE_OK(encode(bank, view, block.book.resident, block.codes, {0, tokens}));
    for (std::size_t i = 0; i < tokens; ++i) {
      const std::size_t token = i * 77 % tokens;
      REQUIRE_OK(encode(bank, view.slice(token, 1), single.book.resident, single.codes, {token, 1}));
    }
    std::vector<std::uint16_t> a(tokens * shape.groups());
    std::vector<std::uint16_t> b(tokens * shape.groups());
    REQUIRE_OK(bank.load_codes(block.codes, {0, tokens}, a.data()));
    REQUIRE_OK(bank.load_codes(single.codes, {0, tokens}, b.data()));
    CHECK(a == b);
    REQUIRE_OK(encode(bank, view.slice(0, 0), block.book.resident, block.codes, {5, 0}));  // nothing to do
  }
}

TEMPLATE_TEST_CASE("what cannot be encoded changes no code", "[encode]", host_bank, scalar_bank) {
  TestType bank;
  pqattn_test::random_data random(3);
  CAPTURE(random.seed());
  const geometry shape{12, 4, 9};
  coder<TestType> coder(bank, shape, codebook_storage::f32, random.normals(shape.codebook_values()), 64);
  const std::vector<std::uint16_t> before = random.codes(64 * 4, 9);
  REQUIRE_OK(bank.store_codes(coder.codes, {0, 64}, before.data()));
  const auto& book = coder.book.resident;
  strided_matrix rows(random.normals(10 * 12), 10, 12, dtype::f16, pqattn_test::awkward_layout);

  rows.set(7, 11, std::numeric_limits<float>::infinity());
  rows.set(8, 0, std::numeric_limits<float>::quiet_NaN());
  pqattn::status refused = encode(bank, rows.view(), book, coder.codes, {0, 10});
  CHECK(refused.code == status_code::not_finite);
  CHECK(refused.expected == 7);
  CHECK(refused.got == 11);
  rows.set(7, 11, 1.0f);
  refused = encode(bank, rows.view(), book, coder.codes, {0, 10});
  CHECK(refused.expected == 8);
  CHECK(refused.got == 0);
  rows.set(8, 0, 1.0f);

  CHECK(encode(bank, rows.view(), book, coder.codes, {0, 9}).code == status_code::shape_mismatch);
  CHECK(encode(bank, rows.view(), book, coder.codes, {0, 11}).code == status_code::shape_mismatch);
  pqattn::rows_view narrow = rows.view();
  narrow.cols = 11;
  CHECK(encode(bank, narrow, book, coder.codes, {0, 10}).code == status_code::shape_mismatch);
  narrow.cols = std::numeric_limits<std::size_t>::max();
  CHECK(encode(bank, narrow, book, coder.codes, {0, 10}).code == status_code::shape_mismatch);
  pqattn::rows_view nowhere = rows.view();
  nowhere.data = nullptr;
  CHECK(encode(bank, nowhere, book, coder.codes, {0, 10}).code == status_code::invalid_argument);
  auto other = coder.codes;
  other.shape.centroids = 8;
  CHECK(encode(bank, rows.view(), book, other, {0, 10}).code == status_code::shape_mismatch);
  auto wrong = book;
  wrong.shape.subvectors = 0;
  CHECK(encode(bank, rows.view(), wrong, coder.codes, {0, 10}).code == status_code::invalid_argument);
  auto missing = coder.codes;
  missing.memory = {};
  CHECK(encode(bank, rows.view(), book, missing, {0, 10}).code == status_code::invalid_argument);
  wrong = book;
  wrong.memory = {};
  CHECK(encode(bank, rows.view(), wrong, coder.codes, {0, 10}).code == status_code::invalid_argument);

  std::vector<std::uint16_t> after(64 * 4);
  REQUIRE_OK(bank.load_codes(coder.codes, {0, 64}, after.data()));
  CHECK(after == before);
  REQUIRE_OK(encode(bank, rows.view(), book, coder.codes, {0, 10}));
}

TEMPLATE_TEST_CASE("what cannot be decoded changes no row", "[encode]", host_bank, scalar_bank) {
  TestType bank;
  pqattn_test::random_data random(4);
  CAPTURE(random.seed());
  const geometry shape{12, 4, 9};
  coder<TestType> coder(bank, shape, codebook_storage::f32, random.normals(shape.codebook_values()), 64);
  const std::vector<std::uint16_t> codes = random.codes(64 * 4, 9);
  REQUIRE_OK(bank.store_codes(coder.codes, {0, 64}, codes.data()));
  strided_matrix rows(10, 12, dtype::bf16, pqattn_test::reversed_layout);
  const std::vector<std::uint8_t> before = rows.bytes();
  const auto& book = coder.book.resident;
  CHECK(decode(bank, book, coder.codes, {0, 9}, rows.ref()).code == status_code::shape_mismatch);
  pqattn::rows_ref wide = rows.ref();
  wide.cols = 13;
  CHECK(decode(bank, book, coder.codes, {0, 10}, wide).code == status_code::shape_mismatch);
  pqattn::rows_ref nowhere = rows.ref();
  nowhere.data = nullptr;
  CHECK(decode(bank, book, coder.codes, {0, 10}, nowhere).code == status_code::invalid_argument);
  auto other = coder.codes;
  other.shape.stages = 2;
  CHECK(decode(bank, book, other, {0, 10}, rows.ref()).code == status_code::shape_mismatch);
  other = coder.codes;
  other.memory = {};
  CHECK(decode(bank, book, other, {0, 10}, rows.ref()).code == status_code::invalid_argument);
  CHECK(rows.bytes() == before);
  REQUIRE_OK(decode(bank, book, coder.codes, {13, 10}, rows.ref()));
  const pqattn_test::doubles all = pqattn_test::decode_rows(shape, coder.book.centroids, codes, 23);
  CHECK(pqattn_test::max_error(rows.values(), {all.begin() + 13 * 12, all.end()}) <= 0.02);
  CHECK(rows.padding_is_intact());
}

namespace {

/// Buffers for canonical code rows: filled with 0xa5 and a byte longer than asked, which must stay.
struct code_rows_buffers {
  code_rows_buffers(const geometry& shape, std::size_t slots)
      : rows(slots * shape.row_bytes() + 1, 0xa5), scratch(code_rows_scratch(shape, slots) + 1, 0xa5a5) {}
  [[nodiscard]] std::size_t bytes() const { return rows.size() - 1; }
  [[nodiscard]] std::size_t codes() const { return scratch.size() - 1; }
  [[nodiscard]] bool untouched() const {
    return std::all_of(rows.begin(), rows.end(), [](std::uint8_t byte) { return byte == 0xa5; });
  }
  std::vector<std::uint8_t> rows;
  std::vector<std::uint16_t> scratch;
};

/// A bank that refuses to hand its codes out.
struct mute_bank : scalar_bank {
  pqattn::status load_codes(const pqattn::code_span<address>&, pqattn::slot_range, std::uint16_t*) noexcept {
    return pqattn::failure(status_code::unsupported, "codes", "stay where they are");
  }
};

}  // namespace

TEMPLATE_TEST_CASE("canonical code rows come out of any bank and go back in", "[encode]", host_bank, scalar_bank) {
  TestType bank;
  pqattn_test::random_data random(8);
  CAPTURE(random.seed());
  for (const std::uint32_t centroids : {2u, 5u, 16u, 256u, 3000u}) {
    for (const pqattn::slot_range slots : {pqattn::slot_range{0, 1}, {63, 2}, {5, 150}, {0, 192}, {191, 1}}) {
      const geometry shape{14, 7, centroids, 2};
      const bank_block<TestType> memory(bank, 3 * bank.code_block_bytes(shape));
      const pqattn::code_span<typename TestType::address> codes{shape, memory.get(), nullptr};
      std::vector<std::uint16_t> stored = random.codes(192 * shape.groups(), centroids);
      REQUIRE_OK(bank.store_codes(codes, {0, 192}, stored.data()));
      code_rows_buffers out(shape, slots.count);
      REQUIRE_OK(load_code_rows(bank, codes, slots, out.rows.data(), out.bytes(), out.scratch.data(), out.codes()));
      CHECK(out.rows.back() == 0xa5);
      CHECK(out.scratch.back() == 0xa5a5);
      // Rows as pack_code_row makes them.
      std::vector<std::uint8_t> expected(out.bytes());
      for (std::size_t i = 0; i < slots.count; ++i) {
        pqattn::pack_code_row(stored.data() + (slots.first + i) * shape.groups(), shape.groups(), shape.code_bits(),
                              expected.data() + i * shape.row_bytes());
      }
      CHECK(std::equal(expected.begin(), expected.end(), out.rows.begin()));
      // Into other codes: those slots change and no other.
      const std::vector<std::uint16_t> other = random.codes(stored.size(), centroids);
      REQUIRE_OK(bank.store_codes(codes, {0, 192}, other.data()));
      REQUIRE_OK(store_code_rows(bank, out.rows.data(), out.bytes(), codes, slots, out.scratch.data(), out.codes()));
      std::copy_n(other.begin(), slots.first * shape.groups(), stored.begin());
      const auto behind = static_cast<std::ptrdiff_t>((slots.first + slots.count) * shape.groups());
      std::copy(other.begin() + behind, other.end(), stored.begin() + behind);
      std::vector<std::uint16_t> now(stored.size());
      REQUIRE_OK(bank.load_codes(codes, {0, 192}, now.data()));
      CHECK(now == stored);
    }
  }
}

TEMPLATE_TEST_CASE("code rows that cannot be had or stored change nothing", "[encode]", host_bank, scalar_bank) {
  TestType bank;
  pqattn_test::random_data random(9);
  CAPTURE(random.seed());
  const geometry shape{12, 5, 5};  // rows of 15 bits
  const bank_block<TestType> memory(bank, bank.code_block_bytes(shape));
  const pqattn::code_span<typename TestType::address> good{shape, memory.get(), nullptr};
  const std::vector<std::uint16_t> before = random.codes(64 * shape.groups(), 5);
  REQUIRE_OK(bank.store_codes(good, {0, 64}, before.data()));
  code_rows_buffers held(shape, 10);
  // Both ways refuse alike.
  const auto refuse = [&](const auto& codes, pqattn::slot_range slots, bool rows, std::size_t bytes, bool scratch,
                          std::size_t scratch_codes) {
    std::uint8_t* const row = rows ? held.rows.data() : nullptr;
    std::uint16_t* const code = scratch ? held.scratch.data() : nullptr;
    const pqattn::status loaded = load_code_rows(bank, codes, slots, row, bytes, code, scratch_codes);
    const pqattn::status stored = store_code_rows(bank, row, bytes, codes, slots, code, scratch_codes);
    CHECK(pqattn_test::message_of(loaded) == pqattn_test::message_of(stored));
    CHECK(held.untouched());
    return pqattn_test::message_of(loaded);
  };
  constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();
  CHECK(refuse(good, {0, 10}, true, 19, true, 50) ==
        "rows must hold geometry.row_bytes() bytes per slot: expected 20, got 19 (capacity)");
  CHECK(refuse(good, {0, 10}, false, 20, true, 50) ==
        "rows must hold geometry.row_bytes() bytes per slot: expected 20, got 0 (capacity)");
  CHECK(refuse(good, {0, 10}, true, 20, true, 49) ==
        "scratch must hold code_rows_scratch() codes: expected 50, got 49 (capacity)");
  CHECK(refuse(good, {0, 10}, true, 20, false, 50) ==
        "scratch must hold code_rows_scratch() codes: expected 50, got 0 (capacity)");
  CHECK(refuse(good, {0, huge}, true, 20, true, 50).starts_with("slots are more than memory can hold"));
  CHECK(refuse(good, {huge, 10}, true, 20, true, 50).starts_with("slots are more than memory can hold"));
  CHECK(refuse(good, {huge / 4, huge / 2}, true, 20, true, 50).starts_with("slots are more than memory can hold"));
  auto codes = good;
  codes.memory = {};
  CHECK(refuse(codes, {0, 10}, true, 20, true, 50) == "codes have no memory (invalid_argument)");
  codes = good;
  codes.shape.subvectors = 13;
  CHECK(refuse(codes, {0, 10}, true, 20, true, 50).ends_with("(invalid_argument)"));
  // No slots need no buffers.
  CHECK(refuse(good, {7, 0}, false, 0, false, 0) == "ok");
  CHECK(refuse(good, {7, 0}, true, 20, true, 50) == "ok");

  // Codes 5 to 7 fit three bits and name no centroid.
  std::vector<std::uint16_t> wrong = random.codes(10 * shape.groups(), 5);
  wrong[9 * shape.groups() + 4] = 6;
  for (std::size_t i = 0; i < 10; ++i) {
    pqattn::pack_code_row(wrong.data() + i * shape.groups(), shape.groups(), shape.code_bits(),
                          held.rows.data() + i * shape.row_bytes());
  }
  const pqattn::status refused =
      store_code_rows(bank, held.rows.data(), held.bytes(), good, {0, 10}, held.scratch.data(), held.codes());
  CHECK(pqattn_test::message_of(refused) ==
        "rows must have codes below the number of centroids: expected 5, got 6 (corrupt_data)");

  std::vector<std::uint16_t> after(before.size());
  REQUIRE_OK(bank.load_codes(good, {0, 64}, after.data()));
  CHECK(after == before);
}

TEST_CASE("code rows are as before when the bank fails", "[encode]") {
  mute_bank bank;
  const geometry shape{12, 5, 5};
  const bank_block<mute_bank> memory(bank, bank.code_block_bytes(shape));
  code_rows_buffers held(shape, 10);
  const pqattn::code_span<mute_bank::address> codes{shape, memory.get(), nullptr};
  const pqattn::status refused =
      load_code_rows(bank, codes, {0, 10}, held.rows.data(), held.bytes(), held.scratch.data(), held.codes());
  CHECK(pqattn_test::message_of(refused) == "codes stay where they are (unsupported)");
  CHECK(held.untouched());
}

TEST_CASE("encoding in place gives the codes of encoding elsewhere, and the tail back", "[encode]") {
  host_bank bank;
  pqattn_test::random_data random(5);
  CAPTURE(random.seed());
  for (const std::size_t tokens : {32U, 63U, 64U, 65U, 100U, 128U, 1000U}) {
    for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16}) {
      for (const std::size_t offset : {0U, 1U, 2U}) {
        const geometry shape{20, 5, 256};
        const std::vector<float> source = random.normals(shape.codebook_values());
        const std::size_t bytes = tokens * 20 * size_of(type);
        if (pqattn::blocks_for(tokens) * bank.code_block_bytes(shape) > bytes) {
          continue;
        }
        coder<host_bank> normal(bank, shape, codebook_storage::f16, source, tokens);
        const strided_matrix rows(random.normals(tokens * 20), tokens, 20, type);
        std::vector<std::byte> buffer(bytes + offset + 8, std::byte{0x5a});
        std::memcpy(buffer.data() + offset, rows.view().data, bytes);
        REQUIRE_OK(encode(bank, rows.view(), normal.book.resident, normal.codes, {0, tokens}));
        std::vector<std::uint16_t> expected(tokens * 5);
        REQUIRE_OK(bank.load_codes(normal.codes, {0, tokens}, expected.data()));

        const pqattn::rows_ref in_place{buffer.data() + offset, type, tokens, 20, 20, 1};
        std::vector<std::byte> scratch(bank.code_block_bytes(shape) + 1, std::byte{0x3c});
        std::size_t used = 0;
        pqattn::status outcome;
        const std::size_t allocations = pqattn_test::allocations_of([&] {
          outcome = encode_in_place(bank, in_place, normal.book.resident, scratch.data(), scratch.size() - 1, used);
        });
        CAPTURE(tokens, name_of(type), offset);
        REQUIRE_OK(outcome);
        // The peak is the scratch, one block, whatever the length.
        CHECK(allocations == 0);
        CHECK(scratch.back() == std::byte{0x3c});
        CHECK(used == pqattn::blocks_for(tokens) * bank.code_block_bytes(shape));
        std::vector<std::uint16_t> got(tokens * 5);
        REQUIRE_OK(bank.load_codes({shape, buffer.data() + offset, nullptr}, {0, tokens}, got.data()));
        CHECK(got == expected);
        // Behind the codes nothing was touched, inside and outside the rows.
        const auto* original = static_cast<const std::byte*>(rows.view().data);
        CHECK(std::equal(original + used, original + bytes, buffer.data() + offset + used));
        CHECK(std::all_of(buffer.data(), buffer.data() + offset, [](std::byte b) { return b == std::byte{0x5a}; }));
        CHECK(std::all_of(buffer.data() + offset + bytes, buffer.data() + buffer.size(),
                          [](std::byte b) { return b == std::byte{0x5a}; }));
      }
    }
  }
}

TEST_CASE("the same rows give the same bytes in place", "[encode]") {
  // Unused slots of the last block are zeroed, so that snapshots of equal content are equal.
  host_bank bank;
  pqattn_test::random_data random(6);
  CAPTURE(random.seed());
  const geometry shape{16, 4, 16};
  stored_book<host_bank> book(bank, shape, codebook_storage::f32, random.normals(shape.codebook_values()));
  const std::vector<float> rows = random.normals(30 * 16);
  std::vector<std::byte> images[2];
  for (int pass = 0; pass < 2; ++pass) {
    std::vector<float> buffer = rows;
    std::vector<std::byte> scratch(bank.code_block_bytes(shape), pass == 0 ? std::byte{0} : std::byte{0xff});
    std::size_t used = 0;
    REQUIRE_OK(encode_in_place(bank, pqattn::ref_rows(buffer.data(), 30, 16), book.resident, scratch.data(),
                               scratch.size(), used));
    const auto* bytes = reinterpret_cast<const std::byte*>(buffer.data());
    images[pass].assign(bytes, bytes + used);
  }
  CHECK(images[0] == images[1]);
}

TEST_CASE("what cannot be encoded in place leaves the rows", "[encode]") {
  host_bank bank;
  pqattn_test::random_data random(7);
  CAPTURE(random.seed());
  const geometry shape{16, 4, 16};
  stored_book<host_bank> book(bank, shape, codebook_storage::f32, random.normals(shape.codebook_values()));
  std::vector<float> rows = random.normals(100 * 16);
  std::vector<std::byte> scratch(bank.code_block_bytes(shape));
  std::size_t used = 12345;
  const auto attempt = [&](const pqattn::rows_ref& view, std::size_t scratch_bytes) {
    const std::vector<float> before = rows;
    const pqattn::status result =
        encode_in_place(bank, view, book.resident, scratch_bytes == 0 ? nullptr : scratch.data(), scratch_bytes, used);
    CHECK(std::memcmp(before.data(), rows.data(), rows.size() * 4) == 0);
    CHECK(used == 12345);
    return result;
  };
  const pqattn::rows_ref good = pqattn::ref_rows(rows.data(), 100, 16);
  CHECK(attempt(good, scratch.size() - 1).code == status_code::capacity);
  CHECK(attempt(good, 0).code == status_code::capacity);
  CHECK(attempt(pqattn::ref_rows(rows.data(), 50, 16, 32), scratch.size()).code == status_code::invalid_argument);
  CHECK(attempt(pqattn::ref_rows(rows.data(), 50, 16, 16, 2), scratch.size()).code == status_code::invalid_argument);
  CHECK(attempt(pqattn::ref_rows(rows.data(), 100, 15), scratch.size()).code == status_code::shape_mismatch);
  CHECK(attempt(pqattn::ref_rows(rows.data(), 1, 16), scratch.size()).code == status_code::capacity);
  rows[99 * 16 + 3] = std::numeric_limits<float>::quiet_NaN();
  const pqattn::status refused = attempt(good, scratch.size());
  CHECK(refused.code == status_code::not_finite);
  CHECK(refused.expected == 99);
  CHECK(refused.got == 3);
  rows[99 * 16 + 3] = 0.0f;
  REQUIRE_OK(encode_in_place(bank, good, book.resident, scratch.data(), scratch.size(), used));
  rows[0] = 1.0f;
  auto nowhere = book.resident;
  nowhere.memory = nullptr;
  CHECK(encode_in_place(bank, good, nowhere, scratch.data(), scratch.size(), used).code ==
        status_code::invalid_argument);
  CHECK(rows[0] == 1.0f);
  // Codes that are larger than the rows: 16 stages of 16 bits in a row of halves.
  const geometry large{2, 2, 65536, 8};
  const std::vector<float> numbers(large.codebook_values());
  stored_book<host_bank> large_book(bank, large, codebook_storage::f32, numbers);
  std::vector<std::byte> large_scratch(bank.code_block_bytes(large));
  CHECK(encode_in_place(bank, pqattn::ref_rows(rows.data(), 200, 2), large_book.resident, large_scratch.data(),
                        large_scratch.size(), used)
            .code == status_code::capacity);
}
