// SPDX-License-Identifier: MIT
#include <pqattn/cache/presets.hpp>

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <utility>
#include <vector>

#include "pqattn/bank/host/host_bank.hpp"
#include "pqattn/cache/head_cache.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"

namespace {

using namespace pqattn;
using pqattn_test::random_data;

struct preset {
  std::vector<float> tables;
  std::vector<std::uint16_t> order;
  cache_config config;
  status outcome;

  preset(std::uint32_t key_dim, std::uint32_t value_dim, bool with_rope, const bit_budget& bits, std::size_t rows)
      : tables(rope_floats(key_dim / 2)), order(key_dim, 7777) {
    rope rotation;
    if (with_rope) {
      std::vector<float> frequencies(key_dim / 2);
      fill_rope_frequencies(frequencies.data(), key_dim, 10000.0);
      REQUIRE_OK(build_rope(frequencies.data(), key_dim / 2, rope_pairing::half_split, tables.data(), rotation));
    }
    std::vector<std::byte> workspace(preset_workspace_bytes());
    outcome = preset_config(key_dim, value_dim, rotation, bits, rows, workspace.data(), workspace.size(), order.data(),
                            config);
  }
  preset(const preset&) = delete;
  preset& operator=(const preset&) = delete;
};

TEST_CASE("presets have the bits of their names, for any head", "[cache]") {
  for (const double bits : {1.0, 2.0, 3.0, 4.0}) {
    for (const std::size_t rows : {64U, 512U, 1536U, 20000U}) {
      using dims = std::pair<std::uint32_t, std::uint32_t>;
      for (const auto& [key_dim, value_dim] : {dims{64, 64}, dims{128, 128}, dims{80, 96}, dims{33, 17}}) {
        CAPTURE(bits, rows, key_dim, value_dim);
        const preset made(key_dim, value_dim, true, bits, rows);
        REQUIRE_OK(made.outcome);
        CHECK(check_config(made.config).ok());
        const double outliers = outlier_bits(preset_outliers_per_bit * bits, key_dim, value_dim);
        const double code_bits =
            static_cast<double>(made.config.keys.shape.row_bits() + made.config.values.shape.row_bits()) /
                (key_dim + value_dim) +
            outliers;
        CHECK(std::abs(static_cast<double>(made.config.outlier_share) - preset_outliers_per_bit * bits) < 1e-6);
        CHECK(code_bits <= bits + 1e-6);
        CHECK(code_bits > bits - 0.11);
        CHECK(made.config.training_start() >= made.config.most_centroids());
        CHECK(made.config.keys.shape.channel_order == made.order.data());
      }
    }
  }
}

TEST_CASE("presets for pools spend the bits of outliers on codes", "[cache]") {
  for (const double bits : {1.0, 2.0, 4.0}) {
    const preset made(64, 64, true, bit_budget(bits).without_outliers(), 1536);
    REQUIRE_OK(made.outcome);
    CHECK(made.config.outlier_share == 0.0f);
    const double code_bits =
        static_cast<double>(made.config.keys.shape.row_bits() + made.config.values.shape.row_bits()) / 128.0;
    CHECK(code_bits <= bits);
    CHECK(code_bits > bits - 0.05);
  }
}

TEST_CASE("a cache with a preset for its length holds what the preset says, up to a tenth", "[cache]") {
  random_data random(53);
  CAPTURE(random.seed());
  constexpr std::uint32_t dim = 64;
  host_bank<> bank;
  for (const bit_budget& budget : {bit_budget{4.0, 2048}, bit_budget{2.0, 1024}, bit_budget{3.0, 1024}}) {
    CAPTURE(budget.bits, budget.tokens);
    const std::vector<float> rows = random.normals(budget.tokens * dim);
    const preset made(dim, dim, true, budget, budget.tokens * 3 / 4);
    REQUIRE_OK(made.outcome);
    head_cache<host_bank<>> cache;
    REQUIRE_OK(head_cache<host_bank<>>::make(bank, made.config, {}, cache));
    const rows_view view = view_rows(rows.data(), budget.tokens, dim);
    for (std::size_t t = 0; t < budget.tokens; t += 64) {
      const auto position = static_cast<std::int64_t>(t);
      REQUIRE_OK(cache.append(view.slice(t, 64), view.slice(t, 64)));
      REQUIRE_OK(cache.observe(view.slice(t, 1), &position));
    }
    REQUIRE(cache.trained());
    const memory_report report = cache.memory();
    const auto held = static_cast<double>(report.total_bytes() - report.scratch_bytes);
    CHECK(8.0 * held <= 1.1 * budget.bits * 2.0 * dim * static_cast<double>(budget.tokens));
    // Codebooks and transforms are what the preset counted, to the byte: planes have at least 64 entries.
    std::size_t books = 0;
    for (geometry shape : {made.config.keys.shape, made.config.values.shape}) {
      shape.centroids = std::max(shape.centroids, 64U);
      books += stored_codebook_bytes(shape, codebook_storage::i8);
    }
    const double transforms = (made.config.keys.metric ? detail::transform_bits(true, dim) : 0.0) +
                              (made.config.values.rotated ? detail::transform_bits(false, dim) : 0.0);
    CHECK(report.codebooks_bytes == books);
    CHECK(static_cast<double>(report.transforms_bytes) == transforms / 8.0);
  }
}

TEST_CASE("a preset serves a cache, with and without RoPE and queries", "[cache]") {
  random_data random(51);
  CAPTURE(random.seed());
  host_bank<> bank;
  for (const bool with_rope : {true, false}) {
    const preset made(24, 16, with_rope, 2.0, 100);
    REQUIRE_OK(made.outcome);
    head_cache<host_bank<>> cache;
    REQUIRE_OK(head_cache<host_bank<>>::make(bank, made.config, {}, cache));
    const std::vector<float> keys = random.normals(400 * 24);
    const std::vector<float> values = random.normals(400 * 16);
    for (std::size_t t = 0; t < 400; ++t) {
      const auto position = static_cast<std::int64_t>(t);
      REQUIRE_OK(cache.append(view_rows(keys.data() + t * 24, 1, 24), view_rows(values.data() + t * 16, 1, 16)));
      REQUIRE_OK(cache.observe(view_rows(keys.data() + t * 24, with_rope ? 1 : 0, 24), &position));
    }
    CHECK(cache.trained());
    CHECK(cache.coded_tokens() == (400 - 8 - 32) / 64 * 64);
    CHECK((cache.memory().transforms_bytes > compact_rotation_bytes(16)) == with_rope);
  }
}

TEST_CASE("presets that cannot be made are refused", "[cache]") {
  CHECK(preset(0, 16, false, 2.0, 100).outcome.code == status_code::invalid_argument);
  CHECK(preset(16, 16, false, 0.0, 100).outcome.code == status_code::invalid_argument);
  CHECK(preset(16, 16, false, 2.0, 1).outcome.code == status_code::too_few_samples);
  // A context of that length would never train.
  const std::uint32_t sinks = cache_config{}.sinks;
  CHECK(preset(64, 64, false, bit_budget(4.0, 2048), 2048 - sinks).outcome.ok());
  CHECK(preset(64, 64, false, bit_budget(4.0, 2048), 2049 - sinks).outcome.code == status_code::invalid_argument);
  CHECK(preset(64, 64, false, bit_budget(16.0, 3), 2).outcome.code == status_code::invalid_argument);
  CHECK(preset(64, 64, false, 2.0, std::size_t{1} << 33).outcome.code == status_code::invalid_argument);
}

}  // namespace
