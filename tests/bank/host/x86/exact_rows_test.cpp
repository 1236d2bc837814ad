// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/x86/exact_rows.hpp"

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "bank/host/x86/isa_list.hpp"
#include "support/random_data.hpp"

#ifdef PQATTN_TEST_X86_ISAS
namespace {

template <class Element>
Element narrow(float value) {
  if constexpr (std::is_same_v<Element, pqattn::half>) {
    return pqattn::to_half(value);
  } else if constexpr (std::is_same_v<Element, pqattn::bfloat16>) {
    return pqattn::to_bfloat16(value);
  } else {
    return value;
  }
}

template <class Isa, class Element>
void check(std::size_t dim, std::size_t count, std::size_t rows) {
  pqattn_test::random_data random(dim * 100 + count);
  const std::size_t stride = dim + 3;
  // Padding is NaN, and nothing lies behind the last row.
  std::vector<Element> memory(count * stride - 3, narrow<Element>(std::numeric_limits<float>::quiet_NaN()));
  for (std::size_t t = 0; t < count; ++t) {
    for (std::size_t c = 0; c < dim; ++c) {
      memory[t * stride + c] = narrow<Element>(random.normal());
    }
  }
  const pqattn::x86::exact_rows<Element> tokens{memory.data(), count, dim, static_cast<std::ptrdiff_t>(stride)};
  const std::vector<float> queries = random.normals(rows * (dim + 1) - 1);
  std::vector<float> scores(rows * (count + 2), -77.0f);
  pqattn::x86::score_exact_rows<Isa>(tokens, queries.data(), rows, dim + 1, scores.data(), count + 2);
  std::vector<float> sums(rows * (dim + 2), 0.5f);
  pqattn::x86::add_exact_rows<Isa>(tokens, scores.data(), rows, count + 2, sums.data(), dim + 2);
  INFO(Isa::name << ", dim " << dim << ", count " << count << ", rows " << rows << ", seed " << random.seed());
  const auto value = [&](std::size_t t, std::size_t c) {
    return static_cast<double>(pqattn::to_float(memory[t * stride + c]));
  };
  std::size_t wrong = 0;
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t t = 0; t < count; ++t) {
      double want = 0.0;
      double magnitude = 0.0;
      for (std::size_t c = 0; c < dim; ++c) {
        const double product = static_cast<double>(queries[row * (dim + 1) + c]) * value(t, c);
        want += product;
        magnitude += std::fabs(product);
      }
      const double error = std::fabs(static_cast<double>(scores[row * (count + 2) + t]) - want);
      wrong += error <= 1e-6 * magnitude ? 0 : 1;
    }
    CHECK(scores[row * (count + 2) + count] == -77.0f);
    for (std::size_t c = 0; c < dim; ++c) {
      double want = 0.5;
      double magnitude = 0.5;
      for (std::size_t t = 0; t < count; ++t) {
        const double product = static_cast<double>(scores[row * (count + 2) + t]) * value(t, c);
        want += product;
        magnitude += std::fabs(product);
      }
      const double error = std::fabs(static_cast<double>(sums[row * (dim + 2) + c]) - want);
      wrong += error <= 2e-6 * magnitude ? 0 : 1;
    }
    CHECK(sums[row * (dim + 2) + dim] == 0.5f);
  }
  CHECK(wrong == 0);
}

}  // namespace

TEMPLATE_TEST_CASE("exact rows against double loops", "[x86]", PQATTN_TEST_X86_ISAS) {
  for (const std::size_t dim : {1u, 7u, 8u, 15u, 16u, 33u, 64u, 80u, 128u, 136u, 200u}) {
    for (const std::size_t count : {1u, 5u, 16u, 70u}) {
      for (const std::size_t rows : {1u, 2u, 4u, 7u}) {
        check<TestType, float>(dim, count, rows);
        check<TestType, pqattn::half>(dim, count, rows);
        check<TestType, pqattn::bfloat16>(dim, count, rows);
      }
    }
  }
}

#else
TEST_CASE("x86 exact rows") {
  SKIP("not compiled for AVX2");
}
#endif
