// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/score.hpp"

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <vector>

#include "bank/conformance.hpp"
#include "pqattn/bank/host/host_bank.hpp"
#include "pqattn/bank/host/host_options.hpp"

namespace isa = pqattn::isa;

TEMPLATE_TEST_CASE("a table entry is the product of a query's run with a centroid", "[bank]", isa::native,
                   isa::emulated<128>) {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  const std::vector<std::uint16_t> order = random.permutation<std::uint16_t>(11);
  for (const std::uint32_t centroids : {5u, 64u, 300u}) {
    const pqattn::geometry shape{11, 4, centroids, 2, order.data()};
    pqattn::host_bank<TestType> bank;
    pqattn_test::stored_book<pqattn::host_bank<TestType>> book(bank, shape, pqattn::codebook_storage::f16,
                                                               random.normals(shape.codebook_values()));
    const std::vector<float> queries = random.normals(3 * 13);
    const std::size_t entries = pqattn::detail::plane_entries(shape);
    pqattn_test::aligned_floats tables(pqattn::detail::score_table_floats(shape, 3));
    CHECK(tables.size() == 3 * 8 * entries);
    pqattn::detail::build_score_tables<TestType>({queries.data(), 3, 13}, pqattn::detail::host_codebook{book.resident},
                                                 tables.data());
    double worst = 0.0;
    for (std::size_t row = 0; row < 3; ++row) {
      for (std::uint32_t group = 0; group < 8; ++group) {
        for (std::size_t k = 0; k < entries; ++k) {
          double expected = 0.0;
          for (std::uint32_t c = 0; c < shape.width(group); ++c) {
            const std::size_t centroid = k < centroids ? k : 0;  // garbage codes meet finite numbers
            expected +=
                static_cast<double>(queries[row * 13 + order[shape.first_channel(group) + c]]) *
                static_cast<double>(book.centroids[shape.codebook_offset(group) + centroid * shape.width(group) + c]);
          }
          const double got = static_cast<double>(tables.data()[(row * 8 + group) * entries + k]);
          worst = std::max(worst, std::isfinite(got) ? std::abs(got - expected) : 1e9);
        }
      }
    }
    CHECK(worst <= 1e-5);
  }
}

TEMPLATE_TEST_CASE("scores in f32 keep the bound of score_precision::f32", "[bank]", isa::native, isa::emulated<128>) {
  using bank_type = pqattn::host_bank<TestType>;
  pqattn_test::random_data random(2);
  CAPTURE(random.seed());
  bank_type bank(pqattn::exact_arithmetic);
  constexpr std::size_t tokens = 200;
  constexpr std::int64_t base = 100000;  // positions
  struct coding {
    std::uint32_t dim, subvectors, centroids, stages;
    bool rotates;
  };
  for (const coding& of : {coding{128, 32, 256, 1, false}, coding{64, 64, 16, 3, false}, coding{7, 2, 300, 1, false},
                           coding{128, 32, 256, 1, true}, coding{64, 32, 16, 2, true}}) {
    const pqattn::geometry shape{of.dim, of.subvectors, of.centroids, of.stages, nullptr};
    const std::uint32_t pairs = of.rotates ? of.dim / 2 : 0;
    std::vector<float> frequencies(pairs);
    std::vector<float> rope_memory(pqattn::rope_floats(pairs));
    pqattn::rope rotation;
    if (of.rotates) {
      pqattn::fill_rope_frequencies(frequencies.data(), of.dim, 10000.0);
      REQUIRE_OK(build_rope(frequencies.data(), pairs, pqattn::rope_pairing::half_split, rope_memory.data(), rotation));
    }
    const pqattn_test::stored_book<bank_type> book(bank, shape, pqattn::codebook_storage::f32,
                                                   random.normals(shape.codebook_values()), rotation);
    const pqattn_test::bank_block<bank_type> memory(bank, pqattn::blocks_for(tokens) * bank.code_block_bytes(shape));
    const pqattn::code_span<std::byte*> codes{shape, memory.get(), nullptr};
    std::vector<std::uint16_t> code(tokens * shape.groups());
    for (std::uint16_t& one : code) {
      one = static_cast<std::uint16_t>(random.below(of.centroids));
    }
    REQUIRE_OK(bank.store_codes(codes, {0, tokens}, code.data()));
    const std::vector<float> query = random.normals(of.dim, 3.0f);
    const pqattn_test::bank_block<bank_type> tables(bank, bank.table_bytes(shape, 1, rotation));
    pqattn_test::aligned_floats scores(pqattn::blocks_for(tokens) * pqattn::block_tokens);
    const pqattn::slot_positions positions{base, nullptr};
    REQUIRE_OK(bank.prepare_scores({query.data(), 1, of.dim}, book.resident, rotation, tables.get()));
    REQUIRE_OK(bank.score(tables.get(), 1, book.resident, rotation, positions, codes, {0, tokens},
                          {scores.data(), 1, scores.size()}));
    double worst = 0.0;  // in terms of the bound
    for (std::size_t t = 0; t < tokens; ++t) {
      std::vector<double> key(of.dim, 0.0);
      for (std::uint32_t group = 0; group < shape.groups(); ++group) {
        const std::uint32_t width = shape.width(group);
        for (std::uint32_t c = 0; c < width; ++c) {
          key[shape.first_channel(group) + c] += static_cast<double>(
              book.centroids[shape.codebook_offset(group) + code[t * shape.groups() + group] * width + c]);
        }
      }
      double want = 0.0;
      double size = 0.0;
      for (std::uint32_t i = 0; i < of.dim; ++i) {
        size += std::abs(static_cast<double>(query[i]) * key[i]);
        want += static_cast<double>(query[i]) * key[i];
      }
      if (of.rotates) {
        want = size = 0.0;
        for (std::uint32_t i = 0; i < pairs; ++i) {
          // A frequency is what the rotation keeps of it: turns in 64 bits.
          const double angle =
              static_cast<double>(base + static_cast<std::int64_t>(t)) * static_cast<double>(frequencies[i]);
          const double x = key[i] * std::cos(angle) - key[i + pairs] * std::sin(angle);
          const double y = key[i] * std::sin(angle) + key[i + pairs] * std::cos(angle);
          want += static_cast<double>(query[i]) * x + static_cast<double>(query[i + pairs]) * y;
          size += std::hypot(static_cast<double>(query[i]), static_cast<double>(query[i + pairs])) *
                  std::hypot(key[i], key[i + pairs]);
        }
      }
      const double bound = (of.stages * of.dim + 32.0) * 0x1p-24 * size;
      worst = std::max(worst, std::abs(static_cast<double>(scores.data()[t]) - want) / bound);
    }
    CAPTURE(of.dim, of.stages, of.rotates, worst);
    CHECK(worst <= 1.0);
    CHECK(worst > 1e-4);  // the bound says something
  }
}
