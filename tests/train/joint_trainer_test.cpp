// SPDX-License-Identifier: MIT
#include "pqattn/train/joint_trainer.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <limits>
#include <vector>

#include "bank/archetype_bank.hpp"
#include "pqattn/bank/host/host_bank.hpp"
#include "support/random_data.hpp"
#include "support/shared_data.hpp"

using pqattn::codebook_storage;
using pqattn::geometry;
using pqattn::joint_training_params;
using pqattn::status_code;
using host_bank = pqattn::host_bank<>;

template pqattn::status
pqattn::train_codebook_jointly<pqattn::isa::native, pqattn_test::archetype_bank>(
    pqattn_test::archetype_bank&, const geometry&, const rows_view&, const float*, const float*,
    const joint_training_params&, void*, std::size_t, float*, training_report&);

namespace {

joint_training_params with(std::uint32_t passes) {
  joint_training_params params;
  params.passes = passes;
  params.storage = codebook_storage::f32;
  return params;
}

struct trained {
  trained(const geometry& cut, const pqattn::rows_view& samples, const float* metric,
          const joint_training_params& params, const float* weights = nullptr)
      : shape(cut), centroids(shape.codebook_values(), -77.0f) {
    host_bank bank;
    std::vector<std::byte> workspace(pqattn::joint_training_workspace_bytes(bank, shape, samples.rows, metric != nullptr));
    outcome = train_codebook_jointly(bank, shape, samples, weights, metric, params, workspace.data(), workspace.size(),
                                     centroids.data(), report);
  }

  /// Weighted sum over rows of (x - x')^T M (x - x') with the codes encode_with_metric finds.
  double error(const pqattn::rows_view& rows, const std::vector<float>& metric, std::uint32_t sweeps,
               const float* weights = nullptr) const {
    std::vector<std::byte> memory(pqattn::metric_encoder_bytes(shape, !metric.empty()));
    std::vector<std::byte> workspace(pqattn::metric_encode_workspace_bytes(shape));
    pqattn::metric_encoder encoder;
    const pqattn::codebook_view book{shape, centroids.data()};
    REQUIRE(build_metric_encoder(book, metric.empty() ? nullptr : metric.data(), memory.data(), memory.size(), encoder)
                .ok());
    std::vector<std::uint16_t> codes(rows.rows * shape.groups());
    REQUIRE(encode_with_metric(encoder, rows, sweeps, workspace.data(), workspace.size(), codes.data()).ok());
    std::vector<float> row(shape.dim), decoded(shape.dim);
    double sum = 0.0;
    for (std::size_t r = 0; r < rows.rows; ++r) {
      load_row(rows, r, row.data());
      decode_row(book, codes.data() + r * shape.groups(), decoded.data());
      for (std::uint32_t a = 0; a < shape.dim; ++a) {
        for (std::uint32_t b = metric.empty() ? a : 0; b < (metric.empty() ? a + 1 : shape.dim); ++b) {
          const double m = metric.empty() ? 1.0 : static_cast<double>(metric[a * shape.dim + b]);
          sum += (weights == nullptr ? 1.0 : static_cast<double>(weights[r])) * m *
                 static_cast<double>(row[a] - decoded[a]) * static_cast<double>(row[b] - decoded[b]);
        }
      }
    }
    return sum;
  }

  geometry shape;
  pqattn::status outcome;
  std::vector<float> centroids;
  pqattn::training_report report;
};

/// A metric with one heavy direction across all channels.
std::vector<float> skewed_metric(pqattn_test::random_data& random, std::size_t dim) {
  const std::vector<float> direction = random.normals(dim);
  std::vector<float> metric(dim * dim);
  for (std::size_t a = 0; a < dim; ++a) {
    for (std::size_t b = 0; b < dim; ++b) {
      metric[a * dim + b] = direction[a] * direction[b] + (a == b ? 0.1f : 0.0f);
    }
  }
  return metric;
}

}  // namespace

TEST_CASE("training in a metric serves that metric", "[train][joint]") {
  pqattn_test::random_data random(61);
  CAPTURE(random.seed());
  const std::size_t dim = 12;
  const std::vector<float> data = random.normals(600 * dim);
  const auto rows = pqattn::view_rows(data.data(), 600, dim);
  const std::vector<float> metric = skewed_metric(random, dim);
  const auto order = random.permutation<std::uint16_t>(dim);
  for (const geometry shape : {geometry{12, 3, 16, 2, order.data()}, geometry{12, 5, 8, 1}, geometry{12, 1, 32, 1}}) {
    CAPTURE(shape.subvectors, shape.stages);
    const trained plain(shape, rows, nullptr, with(0));
    const trained alone(shape, rows, metric.data(), with(0));
    const trained joint(shape, rows, metric.data(), with(4));
    REQUIRE(plain.outcome.ok());
    REQUIRE(alone.outcome.ok());
    REQUIRE(joint.outcome.ok());
    CHECK(joint.report.samples == 600);
    CHECK(joint.report.empty_clusters == 0);
    CHECK(alone.error(rows, metric, 0) < plain.error(rows, metric, 0));
    if (shape.groups() > 1) {
      CHECK(joint.error(rows, metric, 2) < 0.9 * alone.error(rows, metric, 0));
      CHECK(joint.error(rows, metric, 2) < 1.02 * alone.error(rows, metric, 2));
      CHECK(joint.error(rows, metric, 2) < 0.6 * plain.error(rows, metric, 0));
    }
  }
}

TEST_CASE("joint passes lower the error of additive stages", "[train][joint]") {
  pqattn_test::random_data random(62);
  CAPTURE(random.seed());
  const std::vector<float> data = random.normals(500 * 8);
  const auto rows = pqattn::view_rows(data.data(), 500, 8);
  double last = trained({8, 2, 16, 3}, rows, nullptr, with(0)).error(rows, {}, 40);
  const double first = last;
  for (const std::uint32_t passes : {2u, 8u, 30u}) {
    const double now = trained({8, 2, 16, 3}, rows, nullptr, with(passes)).error(rows, {}, 40);
    CHECK(now < 1.02 * last);  // the encoder may end in another local minimum than training did
    last = now;
  }
  CHECK(last < 0.98 * first);
}

TEST_CASE("weights pull centroids where they are large", "[train][joint]") {
  pqattn_test::random_data random(63);
  CAPTURE(random.seed());
  const std::vector<float> data = random.normals(400 * 6);
  const auto rows = pqattn::view_rows(data.data(), 400, 6);
  std::vector<float> weights(400, 0.01f);
  std::fill_n(weights.begin(), 100, 1.0f);
  const geometry shape{6, 2, 16, 2};
  const trained plain(shape, rows, nullptr, with(3));
  const trained weighted(shape, rows, nullptr, with(3), weights.data());
  CHECK(weighted.error(rows, {}, 2, weights.data()) < 0.8 * plain.error(rows, {}, 2, weights.data()));
}

TEST_CASE("joint training on real values beats plain training at equal bits", "[train][joint]") {
  const auto values = pqattn_test::shipped_activations("values");
  REQUIRE(values);
  const pqattn::rows_view rows = values->head(0).slice(8, 700);
  const trained one({64, 8, 64, 1}, rows, nullptr, with(0));
  const trained two({64, 4, 64, 2}, rows, nullptr, with(4));  // the same bits
  CHECK(two.error(rows, {}, 2) < 0.95 * one.error(rows, {}, 0));
}

TEST_CASE("same seed, same codebook; storage is rounded", "[train][joint]") {
  pqattn_test::random_data random(64);
  CAPTURE(random.seed());
  const std::vector<float> data = random.normals(200 * 5);
  const auto rows = pqattn::view_rows(data.data(), 200, 5);
  const std::vector<float> metric = skewed_metric(random, 5);
  const geometry shape{5, 2, 16, 2};
  const trained a(shape, rows, metric.data(), with(3));
  CHECK(a.centroids == trained(shape, rows, metric.data(), with(3)).centroids);
  joint_training_params bytes = with(3);
  bytes.storage = codebook_storage::i8;
  std::vector<float> rounded = a.centroids;
  REQUIRE(round_codebook(shape, codebook_storage::i8, rounded.data()).ok());
  CHECK(trained(shape, rows, metric.data(), bytes).centroids == rounded);
}

TEST_CASE("joint training survives degenerate rows and refuses bad arguments", "[train][joint]") {
  pqattn_test::random_data random(65);
  CAPTURE(random.seed());
  const geometry shape{6, 2, 8, 2};
  std::vector<float> data(50 * 6, 3.0f);  // all rows equal
  const auto rows = pqattn::view_rows(data.data(), 50, 6);
  const trained equal(shape, rows, nullptr, with(3));
  REQUIRE(equal.outcome.ok());
  CHECK(equal.error(rows, {}, 2) < 1e-6);
  CHECK(equal.report.empty_clusters > 0);

  const auto untouched = [](const trained& run) {
    return std::all_of(run.centroids.begin(), run.centroids.end(), [](float x) { return x == -77.0f; });
  };
  const auto refused = [&](const trained& run, status_code code) {
    CHECK(run.outcome.code == code);
    CHECK(untouched(run));
  };
  refused(trained(shape, rows.slice(0, 7), nullptr, with(1)), status_code::too_few_samples);
  refused(trained({5, 2, 8, 1}, rows, nullptr, with(1)), status_code::shape_mismatch);
  const std::vector<float> negative(36, -1.0f);
  refused(trained(shape, rows, negative.data(), with(1)), status_code::invalid_argument);
  const std::vector<float> none(50, 0.0f);
  refused(trained(shape, rows, nullptr, with(1), none.data()), status_code::invalid_argument);
  joint_training_params warm = with(1);
  warm.kmeans.init = pqattn::kmeans_init::warm_start;
  refused(trained(shape, rows, nullptr, warm), status_code::unsupported);
  data[6 * 4 + 5] = std::numeric_limits<float>::infinity();
  refused(trained(shape, rows, nullptr, with(1)), status_code::not_finite);
}
