// SPDX-License-Identifier: MIT
#include "pqattn/cache/policy.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <vector>

namespace {

pqattn::pq_preset choose(std::uint32_t key_dim, std::uint32_t value_dim, const pqattn::bit_budget& bits,
                         std::size_t rows) {
  std::vector<std::byte> workspace(pqattn::preset_workspace_bytes());
  pqattn::pq_preset preset;
  REQUIRE(choose_preset(key_dim, value_dim, bits, rows, workspace.data(), workspace.size(), preset).ok());
  return preset;
}

}  // namespace

TEST_CASE("presets meet their budget for any head size", "[cache][policy]") {
  for (const std::uint32_t key_dim : {1u, 3u, 17u, 64u, 80u, 128u}) {
    for (const std::uint32_t value_dim : {1u, key_dim, 40u}) {
      for (double bits = 1.0; bits <= 6.0; bits += 0.37) {
        for (const std::size_t rows : {std::size_t{2}, std::size_t{90}, std::size_t{5000}}) {
          CAPTURE(key_dim, value_dim, bits, rows);
          const auto preset = choose(key_dim, value_dim, bits, rows);
          REQUIRE(check_geometry(preset.keys).ok());
          REQUIRE(check_geometry(preset.values).ok());
          REQUIRE(preset.keys.centroids <= std::max<std::size_t>(2, rows / 5));
          const double outliers = static_cast<double>(preset.outlier_share) * (16.0 + 64.0 / (key_dim + value_dim));
          const double spent =
              static_cast<double>(preset.keys.row_bits() + preset.values.row_bits()) / (key_dim + value_dim) + outliers;
          REQUIRE(std::abs(spent - preset.code_bits) < 1e-6);  // the share is a float
          REQUIRE((spent <= bits + 1e-6 || preset.keys.row_bits() + preset.values.row_bits() == 2));
          // One code more or less is the finest step; a row of at most 8 stages of one bit bounds tiny rows.
          if (rows == 5000 && key_dim >= 17 && value_dim >= 17) {
            REQUIRE(spent >= bits - 0.07);
          }
        }
      }
    }
  }
}

TEST_CASE("presets count everything when a length is given", "[cache][policy]") {
  using pqattn::codebook_storage;
  for (const std::uint32_t dim : {16u, 64u, 80u, 128u}) {
    for (const std::size_t tokens : {std::size_t{600}, std::size_t{2048}, std::size_t{30000}}) {
      double last = 0.0;
      for (double bits = 3.5; bits <= 7.0; bits += 0.5) {
        CAPTURE(dim, tokens, bits);
        const auto preset = choose(dim, dim, {bits, tokens}, tokens * 3 / 4);
        REQUIRE(check_geometry(preset.keys).ok());
        REQUIRE(check_geometry(preset.values).ok());
        // Counted again: 40 exact tokens, codes and outliers of the others, books in bytes, transforms.
        const auto coded = static_cast<double>(tokens - 40);
        const double outliers = static_cast<double>(preset.outlier_share) * coded * (32.0 * dim + 64.0);
        const double codes = static_cast<double>(preset.keys.row_bits() + preset.values.row_bits()) * coded;
        const double books = 8.0 * static_cast<double>(stored_codebook_bytes(preset.keys, codebook_storage::i8) +
                                                       stored_codebook_bytes(preset.values, codebook_storage::i8));
        const double width = dim;
        const double transforms = (preset.metric ? 8.0 * width * (width + 1.0) : 0.0) +
                                  (preset.rotated ? 8.0 * width * width + 64.0 * width : 0.0);
        const double all = (40 * 16.0 * 2.0 * width + outliers + codes + books + transforms) /
                           (2.0 * width * static_cast<double>(tokens));
        CHECK(all <= bits + 1e-6);
        CHECK(all > bits - 0.25);
        CHECK(std::abs(all - preset.all_bits) < 2.0 / width + 1e-6);  // a row's share is rounded up
        CHECK(preset.code_bits > last);
        last = preset.code_bits;
      }
    }
  }
  // Codebooks that many tokens share may be large, those of few must be small.
  CHECK(choose(64, 64, {3.0, 100000}, 8192).keys.codebook_values() >
        2 * choose(64, 64, {3.0, 2048}, 1528).keys.codebook_values());
  CHECK(choose(64, 64, {4.7, 2048}, 1528).metric);
  CHECK(choose(64, 64, {4.7, 2048}, 1528).rotated);
}

TEST_CASE("presets at usual sizes", "[cache][policy]") {
  const auto is = [](const pqattn::geometry& shape, std::uint32_t subvectors, std::uint32_t stages) {
    return shape.subvectors == subvectors && shape.stages == stages && shape.centroids == 256;
  };
  const auto two = choose(64, 64, 2.0, 1528);
  CHECK(is(two.keys, 4, 4));
  CHECK(is(two.values, 7, 2));
  CHECK(std::abs(two.outlier_share - 0.005f) < 1e-6f);
  const auto four = choose(128, 128, 4.0, 1528);
  CHECK(is(four.keys, 22, 3));
  CHECK(is(four.values, 28, 2));
  CHECK(choose(64, 64, 2.0, 500).keys.centroids == 64);
}

TEST_CASE("presets refuse what cannot be", "[cache][policy]") {
  std::vector<std::byte> workspace(pqattn::preset_workspace_bytes());
  pqattn::pq_preset preset;
  const auto run = [&](std::uint32_t dim, const pqattn::bit_budget& bits, std::size_t rows, std::size_t bytes) {
    return choose_preset(dim, 8, bits, rows, workspace.data(), bytes, preset).code;
  };
  using pqattn::status_code;
  CHECK(run(0, 2.0, 100, workspace.size()) == status_code::invalid_argument);
  CHECK(run(2000, 2.0, 100, workspace.size()) == status_code::invalid_argument);
  CHECK(run(8, 0.0, 100, workspace.size()) == status_code::invalid_argument);
  CHECK(run(8, std::nan(""), 100, workspace.size()) == status_code::invalid_argument);
  CHECK(run(8, 2.0, 1, workspace.size()) == status_code::too_few_samples);
  CHECK(run(8, 2.0, 100, 64) == status_code::capacity);
  CHECK(run(8, {3.0, 40}, 100, workspace.size()) == status_code::too_few_samples);
  CHECK(run(8, {2.0, 256}, 100, workspace.size()) == status_code::invalid_argument);  // exact tokens alone are 2.5 bits
}
