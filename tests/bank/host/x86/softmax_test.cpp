// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/x86/softmax.hpp"

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <vector>

#include "bank/host/x86/isa_list.hpp"
#include "support/random_data.hpp"

#ifdef PQATTN_TEST_X86_ISAS
namespace {
constexpr float masked = -1.0e30f;
}

TEMPLATE_TEST_CASE("softmax of tiles against double", "[x86]", PQATTN_TEST_X86_ISAS) {
  for (const std::size_t count : {1u, 15u, 64u, 65u, 300u}) {
    for (const float spread : {0.0f, 1.0f, 30.0f, 300.0f}) {
      pqattn_test::random_data random(count);
      float maximum = masked;
      float sum = 0.0f;
      double want_maximum = static_cast<double>(masked);
      double want_sum = 0.0;
      for (int tile = 0; tile < 3; ++tile) {
        std::vector<float> scores = random.normals((count + 63) / 64 * 64, spread, 5.0f * static_cast<float>(tile));
        if (count > 10) {
          scores[3] = masked;
          scores[4] = 2.0f * masked;
        }
        std::vector<double> want(scores.begin(), scores.begin() + static_cast<std::ptrdiff_t>(count));
        const double before = want_maximum;
        want_maximum = std::max(want_maximum, *std::max_element(want.begin(), want.end()));
        const double want_rescale = want_sum == 0.0 ? 1.0 : std::exp(before - want_maximum);
        want_sum *= want_rescale;
        float rescale = -1.0f;
        const pqattn::x86::row_sums sums =
            pqattn::x86::softmax_row<TestType>(scores.data(), count, masked, maximum, sum, rescale);
        double want_mass = 0.0;
        double want_energy = 0.0;
        double want_largest = 0.0;
        INFO(TestType::name << ", count " << count << ", spread " << spread << ", tile " << tile << ", seed "
                            << random.seed());
        for (std::size_t i = 0; i < count; ++i) {
          const double p = std::exp(want[i] - want_maximum);
          want_sum += p;
          want_mass += p;
          want_energy += p * p;
          want_largest = std::max(want_largest, p);
          CHECK(std::fabs(static_cast<double>(scores[i]) - p) <= 2e-7 * p * (1.0 + want_maximum - want[i]) + 1.2e-38);
        }
        for (std::size_t i = count; i < scores.size(); ++i) {
          CHECK(scores[i] == 0.0f);
        }
        CHECK(static_cast<double>(maximum) == want_maximum);
        CHECK(std::fabs(static_cast<double>(rescale) - want_rescale) <= 1e-5 * want_rescale + 1e-38);
        CHECK(std::fabs(static_cast<double>(sum) - want_sum) <= 1e-5 * want_sum);
        CHECK(std::fabs(static_cast<double>(sums.mass) - want_mass) <= 1e-5 * want_mass + 1e-37);
        CHECK(std::fabs(static_cast<double>(sums.energy) - want_energy) <= 1e-5 * want_energy + 1e-37);
        CHECK(std::fabs(static_cast<double>(sums.largest) - want_largest) <= 1e-5 * want_largest + 1e-37);
      }
    }
  }
}

TEMPLATE_TEST_CASE("softmax of several rows is that of each", "[x86]", PQATTN_TEST_X86_ISAS) {
  pqattn_test::random_data random(7);
  INFO(TestType::name << ", seed " << random.seed());
  for (const std::size_t rows : {1u, 2u, 3u, 7u}) {
    for (const std::size_t count : {1u, 64u, 190u}) {
      const std::size_t padded = (count + 63) / 64 * 64;
      const std::size_t stride = padded + random.below(20);
      std::vector<float> scores = random.normals(rows * stride, 3.0f, -8.0f);
      std::fill_n(scores.begin() + static_cast<std::ptrdiff_t>((rows - 1) * stride), count, masked);
      std::vector<float> want = scores;
      std::vector<float> maximum = random.normals(rows, 9.0f);
      std::vector<float> sum(rows, 2.0f);
      std::vector<float> rescale(rows);
      std::vector<float> want_maximum = maximum;
      std::vector<float> want_sum = sum;
      std::vector<float> want_rescale(rows);
      std::vector<pqattn::x86::row_sums> sums(rows);
      pqattn::x86::softmax_rows<TestType>(
          scores.data(), stride, rows, count, masked, maximum.data(), sum.data(), rescale.data(),
          [&](std::size_t row, const pqattn::x86::row_sums& of_row) { sums[row] = of_row; });
      for (std::size_t row = 0; row < rows; ++row) {
        const pqattn::x86::row_sums alone = pqattn::x86::softmax_row<TestType>(
            want.data() + row * stride, count, masked, want_maximum[row], want_sum[row], want_rescale[row]);
        CHECK(sums[row].mass == alone.mass);
        CHECK(sums[row].energy == alone.energy);
        CHECK(sums[row].largest == alone.largest);
      }
      CHECK(scores == want);  // and what lies between rows is untouched
      CHECK(maximum == want_maximum);
      CHECK(sum == want_sum);
      CHECK(rescale == want_rescale);
    }
  }
}

TEMPLATE_TEST_CASE("softmax of nothing but masked scores is 0", "[x86]", PQATTN_TEST_X86_ISAS) {
  std::vector<float> scores(64, masked);
  float maximum = masked;
  float sum = 0.0f;
  float rescale = 0.0f;
  const pqattn::x86::row_sums sums =
      pqattn::x86::softmax_row<TestType>(scores.data(), 50, masked, maximum, sum, rescale);
  CHECK(sums.mass == 0.0f);
  CHECK(sums.energy == 0.0f);
  CHECK(sums.largest == 0.0f);
  CHECK(scores == std::vector<float>(64, 0.0f));
  CHECK(sum == 0.0f);
  CHECK(maximum == masked);
  CHECK(rescale == 1.0f);
}

#else
TEST_CASE("x86 softmax") {
  SKIP("not compiled for AVX2");
}
#endif
