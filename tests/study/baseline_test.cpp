// SPDX-License-Identifier: MIT
#include "pqattn/study/baseline.hpp"

#include <catch2/catch_test_macros.hpp>

#include <string>
#include <vector>

#include "pqattn/core/view.hpp"
#include "pqattn/study/metrics.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"
#include "support/shared_data.hpp"

using pqattn::baseline_format;
using pqattn::cache_side;
using pqattn::code_as_baseline;

namespace {

struct coded {
  double nmse;
  double bits;
};

coded code(baseline_format format, cache_side side, const std::vector<float>& rows, std::size_t dim) {
  std::vector<float> result = rows;
  std::size_t spent = 0;
  REQUIRE_OK(code_as_baseline(format, side, result.data(), rows.size() / dim, dim, 1, spent));
  return {pqattn::nmse(rows.data(), result.data(), rows.size()),
          static_cast<double>(spent) / static_cast<double>(rows.size())};
}

}  // namespace

TEST_CASE("every baseline is found by its name", "[study][baseline]") {
  for (const pqattn::baseline_name& entry : pqattn::baseline_names) {
    baseline_format found = baseline_format::exact;
    REQUIRE(pqattn::find_baseline(entry.name, found));
    CHECK(found == entry.format);
    CHECK(std::string(name_of(found)) == entry.name);
  }
  baseline_format found = baseline_format::q4_0;
  CHECK_FALSE(pqattn::find_baseline("pq", found));
  CHECK(found == baseline_format::q4_0);
}

TEST_CASE("bits per element of the baselines", "[study][baseline]") {
  pqattn_test::random_data random(16);
  CAPTURE(random.seed());
  const std::vector<float> rows = random.normals(64 * 64);
  const double bits[] = {16, 8.5, 4.5, 4.5, 3, 5, 2.25, 3.25, 4.25};
  for (std::size_t i = 0; i < std::size(pqattn::baseline_names); ++i) {
    CAPTURE(pqattn::baseline_names[i].name);
    CHECK(code(pqattn::baseline_names[i].format, cache_side::keys, rows, 64).bits == bits[i]);
    CHECK(code(pqattn::baseline_names[i].format, cache_side::values, rows, 64).bits == bits[i]);
  }
}

TEST_CASE("baselines on Gaussian rows lose what theory says", "[study][baseline]") {
  pqattn_test::random_data random(17);
  CAPTURE(random.seed());
  const std::vector<float> rows = random.normals(512 * 64);
  CHECK(code(baseline_format::exact, cache_side::keys, rows, 64).nmse == 0.0);
  // Uniform steps: largest of 32 normal numbers is about 2.2 (range 4.1), error step^2 / 12.
  const auto near = [&](baseline_format format, double expected) {
    for (const cache_side side : {cache_side::keys, cache_side::values}) {
      const double got = code(format, side, rows, 64).nmse;
      CAPTURE(name_of(format), got);
      CHECK(got > 0.8 * expected);
      CHECK(got < 1.25 * expected);
    }
  };
  near(baseline_format::q8_0, 2.2 * 2.2 / (127.0 * 127.0 * 12.0));
  near(baseline_format::q4_0, 2.2 * 2.2 / (64.0 * 12.0) * 1.05);
  near(baseline_format::q4_0_rot, 2.2 * 2.2 / (64.0 * 12.0) * 1.05);
  near(baseline_format::kivi2, 4.1 * 4.1 / (9.0 * 12.0));
  near(baseline_format::kivi4, 4.1 * 4.1 / (225.0 * 12.0));
  near(baseline_format::turbo2, 0.1175);
  near(baseline_format::turbo3, 0.03454);
  near(baseline_format::turbo4, 0.0095);
}

TEST_CASE("an outlier channel hurts plain blocks, a rotation or channel groups mend it", "[study][baseline]") {
  pqattn_test::random_data random(18);
  CAPTURE(random.seed());
  std::vector<float> rows = random.normals(128 * 64);
  for (std::size_t r = 0; r < 128; ++r) {
    rows[r * 64 + 5] += 60.0f;
  }
  const double plain = code(baseline_format::q4_0, cache_side::keys, rows, 64).nmse;
  const double rotated = code(baseline_format::q4_0_rot, cache_side::keys, rows, 64).nmse;
  const double per_channel = code(baseline_format::kivi4, cache_side::keys, rows, 64).nmse;
  const double per_token = code(baseline_format::kivi4, cache_side::values, rows, 64).nmse;
  CAPTURE(plain, rotated, per_channel, per_token);
  CHECK(rotated < plain);
  CHECK(per_channel < 0.02 * per_token);
}

TEST_CASE("baselines on real keys keep their order", "[study][baseline]") {
  const auto keys = pqattn_test::shipped_activations("keys");
  REQUIRE(keys.has_value());
  const pqattn::rows_view head = keys->head(0);
  std::vector<float> rows(head.rows * head.cols);
  for (std::size_t r = 0; r < head.rows; ++r) {
    load_row(head, r, rows.data() + r * head.cols);
  }
  const auto nmse = [&](baseline_format format) { return code(format, cache_side::keys, rows, head.cols).nmse; };
  CHECK(nmse(baseline_format::q8_0) < 1e-4);
  CHECK(nmse(baseline_format::turbo4) < nmse(baseline_format::turbo3));
  CHECK(nmse(baseline_format::turbo3) < nmse(baseline_format::turbo2));
  CHECK(nmse(baseline_format::kivi4) < nmse(baseline_format::kivi2));
  CHECK(nmse(baseline_format::q4_0) < nmse(baseline_format::turbo3));
}
