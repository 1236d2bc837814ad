// SPDX-License-Identifier: MIT
// The search in integers finds what the search in f32 finds, whatever the numbers.
#include <pqattn/bank/host/x86/nearest_bytes.hpp>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <vector>

#include "byte_books.hpp"

#if PQATTN_X86_AVX512VBMI
namespace {

using isa = pqattn::x86::avx512vbmi;
constexpr std::size_t width = pqattn::x86::integer_width;

/// Compares both searches of all groups.
void compare(const pqattn_test::byte_book& book, const pqattn_test::byte_rows& rows) {
  const pqattn::geometry shape = book.shape();
  REQUIRE(pqattn::x86::suits_integers(shape));
  for (const std::vector<float>& x : rows) {
    std::vector<std::uint16_t> got(book.groups, 0xabcd);
    pqattn::group_walk at(shape);
    pqattn::x86::nearest_bytes<isa>(book.planes(), shape, at, x.data(), got.data());
    CHECK(at.done());
    CHECK(got == pqattn_test::codes_in_f32<isa>(book, x));
  }
}

}  // namespace

TEST_CASE("the search in integers agrees with f32", "[x86]") {
  pqattn_test::random_data random(31);
  INFO("seed " << random.seed());
  for (const std::uint32_t count : {64u, 128u, 192u, 256u}) {
    for (const std::size_t groups : {1u, 7u, 16u, 32u, 64u, 67u}) {
      pqattn_test::compare_anywhere(random, groups, width, count, compare);
    }
  }
}

TEST_CASE("two centroids nearly as near as each other, by integers", "[x86]") {
  pqattn_test::random_data random(35);
  INFO("seed " << random.seed());
  pqattn_test::compare_near_ties(random, 16, width, 256, compare);
}

TEST_CASE("equal centroids: the first, also by integers", "[x86]") {
  pqattn_test::random_data random(32);
  INFO("seed " << random.seed());
  pqattn_test::compare_equal_centroids(random, 16, width, 256, compare);
}

TEST_CASE("numbers at the limits of the search in integers", "[x86]") {
  pqattn_test::random_data random(33);
  INFO("seed " << random.seed());
  pqattn_test::compare_at_limits(random, 16, width, 256, compare);
}

TEST_CASE("all corners of the range of bytes", "[x86]") {
  pqattn_test::random_data random(34);
  INFO("seed " << random.seed());
  pqattn_test::compare_corners(random, 16, width, 256, compare);
}
#endif
