// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/host_bank.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "bank/conformance.hpp"
#include "support/memory_resources.hpp"

using native_bank = pqattn::host_bank<>;

static_assert(pqattn::bank_policy<native_bank>);
static_assert(std::is_same_v<native_bank::address, std::byte*>);
static_assert(native_bank::concurrent);

TEST_CASE("the host bank keeps the contract on the native instruction set", "[bank]") {
  native_bank bank;
  pqattn_test::check_bank(bank, pqattn_test::rounding_limits);
}

TEST_CASE("the host bank keeps the contract with 16-bit tables", "[bank]") {
  native_bank bank(pqattn::host_options{pqattn::score_precision::words, true});
  pqattn_test::check_bank(bank, pqattn_test::rounding_limits);
}

TEST_CASE("the host bank computes in f32 where it is told to", "[bank]") {
  native_bank bank(pqattn::exact_arithmetic);
  pqattn_test::check_bank(bank, pqattn_test::f32_limits);
}

TEST_CASE("the host bank names what it runs on", "[bank]") {
  const native_bank bank;
  CHECK(std::string(bank.name()) == "host");
  const std::string arch = bank.arch_name();
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__) && defined(__AVX512VL__)
  CHECK(arch == "avx512vbmi");
#elif defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
  CHECK(arch == "avx512");
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
  CHECK(arch == "avx2");
#elif defined(__SSE2__)
  CHECK(arch == "sse2");
#elif defined(__aarch64__)
  CHECK(arch == "neon64");
#endif
}

TEST_CASE("the host bank takes its memory from the caller's resource", "[bank]") {
  pqattn_test::counting_resource memory;
  const native_bank bank(memory.resource());
  std::byte* place = nullptr;
  REQUIRE(bank.reserve(1000, place).ok());
  CHECK(reinterpret_cast<std::uintptr_t>(place) % 64 == 0);
  CHECK(memory.live_bytes == 1000);
  std::byte* none = place;
  REQUIRE(bank.reserve(0, none).ok());
  CHECK(none == nullptr);
  bank.release(none, 0);
  bank.release(place, 1000);
  CHECK(memory.live_bytes == 0);
  CHECK(memory.mistakes == 0);

  memory.fail_after = memory.allocations;
  std::byte* unchanged = reinterpret_cast<std::byte*>(64);
  const pqattn::status refused = bank.reserve(77, unchanged);
  CHECK(refused.code == pqattn::status_code::out_of_memory);
  CHECK(refused.expected == 77);
  CHECK(unchanged == reinterpret_cast<std::byte*>(64));
}

TEST_CASE("the host bank's codes take the bits they should", "[bank]") {
  const native_bank bank;
  for (std::uint32_t bits = 1; bits <= 16; ++bits) {
    const pqattn::geometry shape{24, 6, 1u << bits, 2};
    CHECK(bank.code_block_bytes(shape) == pqattn::block_tokens * 12 * bits / 8);
  }
  CHECK(bank.code_block_bytes({24, 6, 300}) == pqattn::block_tokens * 6 * 9 / 8);
  // 64 entries a plane at least, a whole number of lines, and a scale and an offset per plane for bytes.
  CHECK(bank.codebook_bytes({24, 6, 16}, pqattn::codebook_storage::f32) == 24 * 64 * 4);
  CHECK(bank.codebook_bytes({24, 6, 300, 2}, pqattn::codebook_storage::f16) == 2 * 24 * 512 * 2);
  CHECK(bank.codebook_bytes({24, 6, 256}, pqattn::codebook_storage::i8) == 24 * 256 + 2 * 128);
}

TEST_CASE("numbers that are subnormal in binary16 survive in every value program", "[bank]") {
  native_bank bank;
  const pqattn::geometry shape{4, 2, 4};
  std::vector<float> centroids(shape.codebook_values());
  for (std::size_t i = 0; i < centroids.size(); ++i) {
    centroids[i] = static_cast<float>(i) * 0x1p-24f;
  }
  pqattn_test::stored_book<native_bank> book(bank, shape, pqattn::codebook_storage::f16, centroids);
  CHECK(book.centroids == centroids);
  pqattn_test::bank_block<native_bank> blocks(bank, bank.code_block_bytes(shape));
  const pqattn::code_span<std::byte*> codes{shape, blocks.get(), nullptr};
  for (std::uint16_t k = 0; k < 4; ++k) {
    const std::uint16_t row[] = {k, static_cast<std::uint16_t>(3 - k)};
    REQUIRE(bank.store_codes(codes, {k, 1}, row).ok());
  }
  pqattn_test::aligned_floats memory(64);
  std::fill(memory.data(), memory.data() + 64, 0.0f);
  std::fill(memory.data(), memory.data() + 4, 1.0f);
  const pqattn::score_tile tile{memory.data(), 1, 64};
  for (const auto method : {pqattn::value_method::reconstruct, pqattn::value_method::histogram}) {
    float out[4] = {};
    REQUIRE(bank.accumulate_values(tile, book.resident, codes, {0, 4}, {method, nullptr}, out, 4).ok());
    CHECK(out[0] == 12 * 0x1p-24f);
    CHECK(out[3] == 48 * 0x1p-24f);
  }
}
