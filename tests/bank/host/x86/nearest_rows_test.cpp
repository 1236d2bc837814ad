// SPDX-License-Identifier: MIT
// The search for many rows finds what the search in f32 finds for each, whatever the numbers.
#include <pqattn/bank/host/x86/nearest_rows.hpp>

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <cstdint>
#include <vector>

#include "byte_books.hpp"
#include "isa_list.hpp"

#if PQATTN_X86_AVX2
namespace {

using pqattn_test::byte_book;
using pqattn_test::byte_rows;
constexpr std::size_t most = pqattn::x86::rows_of_search;

/// Codes of rows [first, first + count); memory beside them must stay as it is.
template <class Isa>
std::vector<std::uint16_t> codes_of(const byte_book& book, const byte_rows& rows, std::size_t first,
                                    std::size_t count) {
  constexpr std::uint16_t untouched = 0xabcd;
  const std::size_t stride = book.groups + 3;
  std::vector<float> values(book.scale.size() * most);
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t plane = 0; plane < book.scale.size(); ++plane) {
      values[plane * most + i] = rows[first + i][plane];
    }
  }
  std::vector<std::uint16_t> codes(count * stride, untouched);
  pqattn::x86::nearest_of_rows<Isa>(book.planes(), book.shape(), values.data(), count, codes.data(), stride);
  std::vector<std::uint16_t> kept;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    if (i % stride < book.groups) {
      kept.push_back(codes[i]);
    } else {
      REQUIRE(codes[i] == untouched);
    }
  }
  return kept;
}

/// Compares both searches, a few rows at a time or many.
template <class Isa>
auto comparison(pqattn_test::random_data& random) {
  return [&random](const byte_book& book, const byte_rows& rows) {
    REQUIRE(pqattn::x86::suits_row_search(book.shape()));
    for (std::size_t first = 0; first < rows.size();) {
      const std::size_t count = std::min<std::size_t>(rows.size() - first, 1 + random.below(most));
      std::vector<std::uint16_t> want;
      for (std::size_t i = 0; i < count; ++i) {
        const std::vector<std::uint16_t> of_row = pqattn_test::codes_in_f32<Isa>(book, rows[first + i]);
        want.insert(want.end(), of_row.begin(), of_row.end());
      }
      CHECK(codes_of<Isa>(book, rows, first, count) == want);
      first += count;
    }
  };
}

}  // namespace

TEMPLATE_TEST_CASE("the search for many rows agrees with f32", "[x86]", PQATTN_TEST_X86_ISAS) {
  pqattn_test::random_data random(41);
  INFO("seed " << random.seed());
  for (const std::uint32_t count : {2u, 16u, 100u, 256u}) {
    for (std::size_t width = 2; width <= pqattn::x86::widest_row_search; ++width) {
      pqattn_test::compare_anywhere(random, 1 + random.below(20), width, count, comparison<TestType>(random));
    }
  }
}

TEMPLATE_TEST_CASE("two centroids nearly as near as each other, for many rows", "[x86]", PQATTN_TEST_X86_ISAS) {
  pqattn_test::random_data random(42);
  INFO("seed " << random.seed());
  for (std::size_t width = 2; width <= pqattn::x86::widest_row_search; ++width) {
    pqattn_test::compare_near_ties(random, 16, width, 256, comparison<TestType>(random));
  }
}

TEMPLATE_TEST_CASE("equal centroids: the first, also for many rows", "[x86]", PQATTN_TEST_X86_ISAS) {
  pqattn_test::random_data random(43);
  INFO("seed " << random.seed());
  for (const std::size_t width : {2u, 4u, 7u}) {
    pqattn_test::compare_equal_centroids(random, 16, width, 256, comparison<TestType>(random));
  }
}

TEMPLATE_TEST_CASE("numbers at the limits of the search for many rows", "[x86]", PQATTN_TEST_X86_ISAS) {
  pqattn_test::random_data random(44);
  INFO("seed " << random.seed());
  for (const std::size_t width : {2u, 3u, 4u, 8u}) {
    pqattn_test::compare_at_limits(random, 9, width, 256, comparison<TestType>(random));
  }
}

TEMPLATE_TEST_CASE("all corners of the range of bytes, for many rows", "[x86]", PQATTN_TEST_X86_ISAS) {
  pqattn_test::random_data random(45);
  INFO("seed " << random.seed());
  for (std::size_t width = 2; width <= pqattn::x86::widest_row_search; ++width) {
    pqattn_test::compare_corners(random, 5, width, 256, comparison<TestType>(random));
  }
}

TEMPLATE_TEST_CASE("sub-vectors of two widths, for many rows", "[x86]", PQATTN_TEST_X86_ISAS) {
  pqattn_test::random_data random(46);
  INFO("seed " << random.seed());
  const pqattn::geometry shape{50, 14, 64, 1, nullptr};  // of 3 and 4 channels
  byte_book book{50, 1, 64};
  book.fill_normal(random, 45.0f);
  std::vector<float> values(50 * most);
  byte_rows rows;
  for (std::size_t i = 0; i < most; ++i) {
    rows.push_back(pqattn_test::row_near(book, random, 45.0f));
    for (std::size_t plane = 0; plane < 50; ++plane) {
      values[plane * most + i] = rows.back()[plane];
    }
  }
  std::vector<std::uint16_t> got(most * 14);
  pqattn::x86::nearest_of_rows<TestType>(book.planes(), shape, values.data(), most, got.data(), 14);
  for (std::size_t i = 0; i < most; ++i) {
    std::vector<std::uint16_t> want(14);
    pqattn::group_walk at(shape);
    pqattn::x86::nearest_centroids<TestType, 1>(book.planes(), shape, at, rows[i].data(), 0, want.data(), 0);
    CHECK(std::equal(want.begin(), want.end(), got.begin() + static_cast<std::ptrdiff_t>(14 * i)));
  }
}
#endif
