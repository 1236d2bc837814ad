// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/x86/table_score.hpp"

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstring>

#include "bank/host/x86/coded_data.hpp"
#include "bank/host/x86/isa_list.hpp"

#ifdef PQATTN_TEST_X86_ISAS
namespace {

using pqattn::x86::table_precision;
using pqattn_test::aligned_bytes;
using pqattn_test::coded_data;

/// What rounding products to units of 1/30000 of the largest may add to a group's error.
double product_error(const coded_data& data, const float* query) {
  double largest = 0.0;
  std::uint32_t widest = 0;
  for (std::uint32_t group = 0; group < data.shape.groups(); ++group) {
    double sum = 0.0;
    const std::uint32_t width = data.shape.width(group);
    for (std::uint32_t i = 0; i < width; ++i) {
      const std::uint32_t position = data.shape.first_channel(group) + i;
      const std::size_t plane = group / data.shape.subvectors * data.shape.dim + position;
      sum += 128.0 * std::fabs(static_cast<double>(query[data.order[position]] * data.scale[plane]));
    }
    largest = std::max(largest, sum);
    widest = std::max(widest, width);
  }
  return largest / 30000.0 * (widest + 2);
}

/// Largest difference between two entries of one table of a query.
double widest_table(const coded_data& data, const float* query) {
  double widest = 0.0;
  for (std::uint32_t group = 0; group < data.shape.groups(); ++group) {
    double least = HUGE_VAL;
    double most = -HUGE_VAL;
    for (std::size_t k = 0; k < data.shape.centroids; ++k) {
      double product = 0.0;
      for (std::uint32_t i = 0; i < data.shape.width(group); ++i) {
        const std::uint32_t position = data.shape.first_channel(group) + i;
        const std::size_t plane = std::size_t{group / data.shape.subvectors} * data.shape.dim + position;
        product += static_cast<double>(query[data.order[position]]) * static_cast<double>(data.scale[plane]) *
                   static_cast<double>(static_cast<const std::int8_t*>(data.tables.data())[plane * data.entries + k]);
      }
      least = std::min(least, product);
      most = std::max(most, product);
    }
    widest = std::max(widest, most - least);
  }
  return widest;
}

template <class Isa>
void check(const pqattn_test::coded_case& shape, table_precision precision, std::size_t rows, std::size_t first,
           std::size_t count) {
  pqattn_test::random_data random(shape.dim * 1000 + rows);
  const coded_data data(random, shape.dim, shape.subvectors, shape.centroids, shape.stages, first + count);
  const std::size_t query_stride = shape.dim + 2;
  const std::vector<float> queries = random.normals(rows * query_stride);
  const aligned_bytes memory(pqattn::x86::score_table_bytes(data.shape, rows, precision));
  const aligned_bytes build_scratch(pqattn::x86::score_table_scratch_bytes(data.shape));
  pqattn::x86::build_score_tables<Isa>(data.shape, data.book(), queries.data(), rows, query_stride, precision,
                                       memory.data(), build_scratch.data());
  const auto tables = pqattn::x86::score_tables_at(data.shape, rows, precision, memory.data());
  const pqattn::x86::slot_run run{static_cast<const std::uint8_t*>(data.blocks.data()), data.pages.data(),
                                  data.block_bytes(), first, count};
  const std::size_t stride = count + 3;
  std::vector<float> out(rows * stride, -77.0f);
  const bool done = pqattn::x86::table_score<Isa>(data.shape, tables, run, out.data(), stride);
  INFO(Isa::name << ", " << data.name() << ", rows " << rows << ", first " << first << ", precision "
                 << static_cast<int>(precision) << ", seed " << random.seed());
  REQUIRE(done == (data.shape.code_bits() <= pqattn::x86::widest_code<Isa>));
  if (!done) {
    return;
  }
  std::vector<float> from_afar(out.size(), -77.0f);  // blocks in another order
  CHECK(pqattn::x86::table_score<Isa>(data.shape, tables, run, from_afar.data(), stride, {}, true));
  CHECK(from_afar == out);
  double squares = 0.0;
  double bounds = 0.0;
  for (std::size_t row = 0; row < rows; ++row) {
    const double step = static_cast<double>(tables.step[row]);
    const bool rounded = precision == table_precision::bytes;
    const double products = rounded ? product_error(data, queries.data() + row * query_stride) : 0.0;
    const double summed = std::min(256.0, static_cast<double>(data.shape.groups()));
    const double limit = rounded ? 255.0 : std::floor(65535.0 / summed);
    const double documented = widest_table(data, queries.data() + row * query_stride) / limit;
    REQUIRE(std::fabs(step - documented) <= (rounded ? 0.004 * documented + products / limit : 1e-5 * documented));
    for (std::size_t i = 0; i < count; ++i) {
      double want = 0.0;
      double magnitude = 0.0;
      for (std::uint32_t channel = 0; channel < shape.dim; ++channel) {
        const double product =
            static_cast<double>(queries[row * query_stride + channel]) * data.value(first + i, channel);
        want += product;
        magnitude += std::fabs(product);
      }
      const double error = static_cast<double>(out[row * stride + i]) - want;
      const double bound = (0.5 * step * 1.001 + products) * data.shape.groups() + 3e-6 * (magnitude + shape.dim);
      if (!(std::fabs(error) <= bound)) {
        INFO("row " << row << " slot " << first + i << " got " << out[row * stride + i] << " want " << want << " bound "
                    << bound);
        FAIL();
      }
      squares += error * error;
      bounds += bound * bound;
    }
    for (std::size_t i = count; i < stride; ++i) {
      REQUIRE(out[row * stride + i] == -77.0f);
    }
  }
  CHECK(squares <= bounds / std::min(3.0, static_cast<double>(data.shape.groups())));
}

}  // namespace

TEMPLATE_TEST_CASE("table scores are right to the documented roundings", "[x86]", PQATTN_TEST_X86_ISAS) {
  for (const auto& shape : pqattn_test::coded_cases) {
    for (const auto precision : {table_precision::bytes, table_precision::words}) {
      check<TestType>(shape, precision, 1, 0, 64);
      check<TestType>(shape, precision, 3, 5, 200);
      check<TestType>(shape, precision, 6, 63, 1100);
      check<TestType>(shape, precision, 1, 3, 15 * 64 - 9);  // 8, 4, 2 and 1 blocks at once
    }
  }
  check<TestType>({16, 8, 256, 1}, table_precision::bytes, 3, 7, 79 * 64);  // more blocks than are scored together
  // Sums of more than 256 groups do not fit 16 bits.
  for (const auto precision : {table_precision::bytes, table_precision::words}) {
    check<TestType>({257, 257, 16, 1}, precision, 1, 3, 70);
    check<TestType>({600, 300, 16, 1}, precision, 1, 0, 70);
    check<TestType>({1024, 512, 16, 1}, precision, 3, 61, 80);
    check<TestType>({131, 131, 4, 8}, precision, 2, 5, 1100);
  }
}

TEMPLATE_TEST_CASE("tables of a query do not depend on the queries beside it", "[x86]", PQATTN_TEST_X86_ISAS) {
  pqattn_test::random_data random(71);
  CAPTURE(random.seed());
  for (const auto& shape : pqattn_test::coded_cases) {
    const coded_data data(random, shape.dim, shape.subvectors, shape.centroids, shape.stages, 64);
    std::vector<float> queries = random.normals(7 * shape.dim);
    for (std::size_t i = 0; i < shape.dim; ++i) {
      queries[shape.dim + i] *= 1e-3f;
      queries[4 * shape.dim + i] = i == 0 ? 50.0f : 0.0f;
      queries[5 * shape.dim + i] = 0.0f;
    }
    for (const auto precision : {table_precision::bytes, table_precision::words}) {
      const aligned_bytes scratch(pqattn::x86::score_table_scratch_bytes(data.shape));
      const aligned_bytes all(pqattn::x86::score_table_bytes(data.shape, 7, precision));
      const aligned_bytes one(pqattn::x86::score_table_bytes(data.shape, 1, precision));
      pqattn::x86::build_score_tables<TestType>(data.shape, data.book(), queries.data(), 7, shape.dim, precision,
                                                all.data(), scratch.data());
      const auto together = pqattn::x86::score_tables_at(data.shape, 7, precision, all.data());
      const std::size_t row_bytes = pqattn::x86::detail::row_table_bytes(data.shape, precision);
      for (std::size_t row = 0; row < 7; ++row) {
        CAPTURE(data.name(), row);
        pqattn::x86::build_score_tables<TestType>(data.shape, data.book(), queries.data() + row * shape.dim, 1,
                                                  shape.dim, precision, one.data(), scratch.data());
        const auto alone = pqattn::x86::score_tables_at(data.shape, 1, precision, one.data());
        CHECK(std::memcmp(together.bytes + row * row_bytes, alone.bytes, row_bytes) == 0);
        CHECK(together.step[row] == alone.step[0]);
        CHECK(together.base[row] == alone.base[0]);
      }
    }
  }
}

#else
TEST_CASE("x86 table scores") {
  SKIP("not compiled for AVX2");
}
#endif
