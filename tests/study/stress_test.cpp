// SPDX-License-Identifier: MIT
// Activations that break quantizers: product quantization at 2 bits must stay finite and at most as wrong as a 2-bit
// scalar format after rotation.
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <string>
#include <vector>

#include "pqattn/bank/host/host_bank.hpp"
#include "pqattn/cache/policy.hpp"
#include "pqattn/study/attention_error.hpp"
#include "pqattn/study/baseline.hpp"
#include "pqattn/study/pq_reconstruction.hpp"
#include "support/random_data.hpp"

namespace {

constexpr std::size_t tokens = 700;
constexpr std::size_t taught = 500;
constexpr std::size_t dim = 32;

struct activations {
  std::vector<float> keys, values, queries;
};

activations make(const std::string& kind, pqattn_test::random_data& random) {
  activations made{random.normals(tokens * dim), random.normals(tokens * dim), random.normals(tokens * dim)};
  const auto each = [](std::vector<float>& rows, auto&& change) {
    for (std::size_t t = 0; t < tokens; ++t) {
      change(t, rows.data() + t * dim);
    }
  };
  if (kind == "huge key norms") {
    const std::vector<float> mean = random.normals(dim, 300.0f);
    each(made.keys, [&](std::size_t, float* row) {
      for (std::size_t c = 0; c < dim; ++c) {
        row[c] += mean[c];
      }
    });
  } else if (kind == "outlier channels") {
    each(made.keys, [](std::size_t, float* row) { row[3] *= 30.0f; });
    each(made.values, [](std::size_t, float* row) { row[7] = 50.0f + 10.0f * row[7]; });
    each(made.queries, [](std::size_t, float* row) { row[3] *= 0.05f; });
  } else if (kind == "sink-dominated rows") {
    each(made.queries, [](std::size_t, float* row) { row[0] = 6.0f; });
    each(made.keys, [](std::size_t t, float* row) { row[0] = t == 0 ? 12.0f : 0.1f * row[0]; });
    each(made.values, [](std::size_t t, float* row) { row[0] *= t == 0 ? 0.01f : 1.0f; });
  } else if (kind == "near-duplicate tokens") {
    for (std::vector<float>* rows : {&made.keys, &made.values}) {
      const std::vector<float> originals(rows->begin(), rows->begin() + 20 * dim);
      each(*rows, [&](std::size_t t, float* row) {
        for (std::size_t c = 0; c < dim; ++c) {
          row[c] = originals[(t % 20) * dim + c] + 1.0e-3f * row[c];
        }
      });
    }
  } else if (kind == "constant channels") {
    for (std::vector<float>* rows : {&made.keys, &made.values}) {
      each(*rows, [](std::size_t, float* row) {
        for (std::size_t c = 0; c < dim / 2; ++c) {
          row[c] = 2.0f;
        }
      });
    }
  } else if (kind == "zeros") {
    made.keys.assign(tokens * dim, 0.0f);
    made.values.assign(tokens * dim, 0.0f);
  }
  return made;
}

pqattn::attention_error judge(const activations& exact, const std::vector<float>& keys,
                              const std::vector<float>& values) {
  const auto view = [](const std::vector<float>& rows) { return pqattn::view_rows(rows.data(), tokens, dim); };
  pqattn::attention_error error;
  REQUIRE(add_attention_error({view(exact.keys), view(exact.values), view(keys), view(values)}, view(exact.queries),
                              {8, 32, taught}, 1.0 / std::sqrt(32.0), error)
              .ok());
  return error;
}

}  // namespace

TEST_CASE("hard activations are coded sanely", "[study][stress]") {
  pqattn_test::random_data random(71);
  CAPTURE(random.seed());
  pqattn::host_bank<> bank;
  std::vector<std::byte> workspace(pqattn::preset_workspace_bytes());
  pqattn::pq_preset preset;
  REQUIRE(choose_preset(dim, dim, 2.0, taught - 8, workspace.data(), workspace.size(), preset).ok());
  for (const char* kind : {"normal", "huge key norms", "outlier channels", "sink-dominated rows",
                           "near-duplicate tokens", "constant channels", "zeros"}) {
    CAPTURE(kind);
    const activations made = make(kind, random);
    const auto queries = pqattn::view_rows(made.queries.data(), tokens, dim);
    std::vector<float> metric(dim * dim);
    REQUIRE(pqattn::spread_query_metric(&queries, 1, pqattn::view_rows(made.keys.data(), taught, dim), {}, {}, 40, 128,
                                        0.05f, metric.data())
                .ok());
    std::vector<float> keys = made.keys;
    std::vector<float> values = made.values;
    pqattn::pq_cost cost;
    pqattn::pq_recipe recipe;
    recipe.shape = preset.keys;
    recipe.outlier_share = static_cast<double>(preset.outlier_share);
    recipe.metric = metric.data();
    const pqattn::pq_ranges ranges{8, taught, 8, tokens - 32};
    REQUIRE(reconstruct_rows(bank, recipe, ranges, nullptr, keys.data(), cost).ok());
    recipe.shape = preset.values;
    recipe.metric = nullptr;
    recipe.rotate = true;
    REQUIRE(reconstruct_rows(bank, recipe, ranges, nullptr, values.data(), cost).ok());
    const pqattn::attention_error coded = judge(made, keys, values);

    std::vector<float> scalar_keys = made.keys;
    std::vector<float> scalar_values = made.values;
    pqattn::baseline_format turbo{};
    REQUIRE(pqattn::find_baseline("turbo2", turbo));
    std::size_t bits = 0;
    REQUIRE(code_as_baseline(turbo, pqattn::cache_side::keys, scalar_keys.data() + 8 * dim, tokens - 40, dim, 1, bits)
                .ok());
    REQUIRE(
        code_as_baseline(turbo, pqattn::cache_side::values, scalar_values.data() + 8 * dim, tokens - 40, dim, 1, bits)
            .ok());
    const pqattn::attention_error scalar = judge(made, scalar_keys, scalar_values);
    CAPTURE(coded.output_nmse(), coded.kl(), scalar.output_nmse(), scalar.kl());
    CHECK(std::isfinite(coded.output_nmse()));
    CHECK(std::isfinite(coded.kl()));
    CHECK(coded.output_nmse() <= 1.05 * scalar.output_nmse() + 1e-9);
    CHECK(coded.kl() <= 1.05 * scalar.kl() + 1e-9);
    // Random rows are incompressible; everything else has structure that two bits catch.
    CHECK(coded.output_nmse() < 0.3);
  }
}
