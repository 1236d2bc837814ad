// SPDX-License-Identifier: MIT
#include "pqattn/quant/geometry.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "support/random_data.hpp"

using pqattn::geometry;
using pqattn::status_code;

static_assert(std::is_trivially_copyable_v<geometry>);
static_assert(geometry{64, 16, 256}.row_bytes() == 16 && geometry{64, 16, 16, 2}.row_bytes() == 16);

TEST_CASE("runs cover every channel once, the wide ones first", "[quant]") {
  for (std::uint32_t dim = 1; dim <= 130; ++dim) {
    for (std::uint32_t subvectors = 1; subvectors <= dim; ++subvectors) {
      const geometry shape{dim, subvectors, 5, 2};
      std::uint32_t next = 0;
      std::size_t offset = 0;
      bool good = true;
      for (std::uint32_t group = 0; group < shape.groups(); ++group) {
        next = group == subvectors ? 0 : next;
        good = good && shape.first_channel(group) == next && shape.codebook_offset(group) == offset;
        good = good && shape.width(group) >= 1 && shape.width(group) <= shape.max_width();
        good = good && (group % subvectors == 0 || shape.width(group) <= shape.width(group - 1));
        good = good && shape.max_width() - shape.width(group) <= 1;
        next += shape.width(group);
        offset += std::size_t{shape.width(group)} * 5;
      }
      if (!good || next != dim || offset != shape.codebook_values()) {
        CAPTURE(dim, subvectors);
        FAIL("runs do not cover the row");
      }
    }
  }
}

TEST_CASE("code widths", "[quant]") {
  const auto bits = [](std::uint32_t centroids) { return geometry{1, 1, centroids}.code_bits(); };
  CHECK(bits(2) == 1);
  CHECK(bits(3) == 2);
  CHECK(bits(4) == 2);
  CHECK(bits(5) == 3);
  CHECK(bits(256) == 8);
  CHECK(bits(257) == 9);
  CHECK(bits(65535) == 16);
  CHECK(bits(65536) == 16);
  CHECK(geometry{1, 1, 300}.code_limit() == 512);
  CHECK(geometry{1, 1, 65536}.code_limit() == 65536);
  CHECK(geometry{7, 3, 5}.row_bits() == 9);
  CHECK(geometry{7, 3, 5}.row_bytes() == 2);
  CHECK(geometry{1024, 1024, 65536, 8}.row_bytes() == 16384);
  CHECK(geometry{1024, 1024, 65536, 8}.codebook_values() == std::size_t{1024} * 8 * 65536);
}

TEST_CASE("fields out of range are named", "[quant]") {
  const auto problem = [](const geometry& shape) {
    const pqattn::status result = check_geometry(shape);
    CHECK(result.code == status_code::invalid_argument);
    return std::string(result.subject);
  };
  constexpr std::uint32_t huge = std::numeric_limits<std::uint32_t>::max();
  CHECK(problem({}) == "geometry.dim");
  CHECK(problem({0, 1, 2}) == "geometry.dim");
  CHECK(problem({1025, 1, 2}) == "geometry.dim");
  CHECK(problem({huge, huge, huge, huge}) == "geometry.dim");
  CHECK(problem({0x10000, 1, 2}) == "geometry.dim");
  CHECK(problem({64, 0, 2}) == "geometry.subvectors");
  CHECK(problem({64, 65, 2}) == "geometry.subvectors");
  CHECK(problem({64, huge, 2}) == "geometry.subvectors");
  CHECK(problem({64, 16, 0}) == "geometry.centroids");
  CHECK(problem({64, 16, 1}) == "geometry.centroids");
  CHECK(problem({64, 16, 65537}) == "geometry.centroids");
  CHECK(problem({64, 16, huge}) == "geometry.centroids");
  CHECK(problem({64, 16, 2, 0}) == "geometry.stages");
  CHECK(problem({64, 16, 2, 9}) == "geometry.stages");
  CHECK(problem({64, 16, 2, huge}) == "geometry.stages");
  CHECK(pqattn::check_geometry({1, 1, 2, 1}).ok());
  CHECK(pqattn::check_geometry({1024, 1024, 65536, 8}).ok());
}

TEST_CASE("a channel order is a permutation", "[quant]") {
  pqattn_test::random_data random(3);
  CAPTURE(random.seed());
  for (const std::uint32_t dim : {1u, 2u, 63u, 64u, 65u, 1024u}) {
    std::vector<std::uint16_t> order = random.permutation<std::uint16_t>(dim);
    const geometry shape{dim, 1, 2, 1, order.data()};
    CHECK(check_geometry(shape).ok());
    for (std::uint32_t position = 0; position < dim; ++position) {
      REQUIRE(shape.channel(position) == order[position]);
    }
    const std::size_t at = random.below(dim);
    const std::uint16_t kept = order[at];
    order[at] = static_cast<std::uint16_t>(dim);  // out of range
    CHECK(check_geometry(shape).code == status_code::invalid_argument);
    CHECK(check_geometry(shape).expected == static_cast<double>(at));
    order[at] = 65535;
    CHECK_FALSE(check_geometry(shape).ok());
    order[at] = kept;
    if (dim > 1) {
      order[dim - 1] = order[0];  // twice
      CHECK(check_geometry(shape).expected == dim - 1);
      CHECK_FALSE(check_geometry(shape).ok());
    }
  }
  CHECK(geometry{4, 2, 2}.channel(3) == 3);
}

TEST_CASE("shapes compare by value, orders by address", "[quant]") {
  const std::uint16_t order[] = {0, 1};
  const std::uint16_t same[] = {0, 1};
  CHECK(geometry{2, 1, 2} == geometry{2, 1, 2});
  CHECK(geometry{2, 1, 2} != geometry{2, 1, 3});
  CHECK(geometry{2, 1, 2, 1, order} == geometry{2, 1, 2, 1, order});
  CHECK(geometry{2, 1, 2, 1, order} != geometry{2, 1, 2, 1, same});
}

TEST_CASE("geometries that must be equal are refused with the first number that differs", "[quant]") {
  const geometry expected{8, 4, 16, 2};
  CHECK(check_same_geometry(expected, expected, "codes").ok());
  struct difference {
    geometry got;
    const char* number;
    std::uint32_t is_expected;
    std::uint32_t is_given;
  };
  const difference differences[] = {{{9, 3, 17, 1}, "dim", 8, 9},
                                    {{8, 3, 17, 1}, "subvectors", 4, 3},
                                    {{8, 4, 17, 1}, "centroids", 16, 17},
                                    {{8, 4, 16, 1}, "stages", 2, 1}};
  for (const difference& one : differences) {
    CAPTURE(one.number);
    const pqattn::status refused = check_same_geometry(expected, one.got, "codes");
    CHECK(refused.code == status_code::shape_mismatch);
    CHECK(std::string(refused.problem) == std::string("has another geometry.") + one.number);
    CHECK(refused.expected == one.is_expected);
    CHECK(refused.got == one.is_given);
  }
  const std::uint16_t order[] = {7, 6, 5, 4, 3, 2, 1, 0};
  CHECK(check_same_geometry(expected, {8, 4, 16, 2, order}, "codes").code == status_code::shape_mismatch);
}
