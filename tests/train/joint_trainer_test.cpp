// SPDX-License-Identifier: MIT
#include "pqattn/train/joint_trainer.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "bank/archetype_bank.hpp"
#include "pqattn/bank/host/host_bank.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"
#include "support/shared_data.hpp"

using pqattn::codebook_storage;
using pqattn::geometry;
using pqattn::joint_training_params;
using pqattn::status_code;
using host_bank = pqattn::host_bank<>;

template pqattn::status pqattn::train_codebook_jointly<pqattn::isa::native, pqattn_test::archetype_bank>(
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
          const joint_training_params& params, const float* weights = nullptr, const std::vector<float>& start = {})
      : shape(cut), centroids(shape.codebook_values(), -77.0f) {
    host_bank bank;
    std::vector<std::byte> workspace(
        pqattn::joint_training_workspace_bytes(bank, shape, samples.rows, metric != nullptr, params.parts));
    if (params.kmeans.init == pqattn::kmeans_init::warm_start) {
      centroids = start;
    }
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
  std::vector<float> direction = random.normals(dim);
  float square = 0.0f;
  for (const float x : direction) {
    square += x * x;
  }
  for (float& x : direction) {
    x *= std::sqrt(static_cast<float>(dim) / square);  // as heavy whatever was drawn
  }
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
  double joint_errors = 0.0;
  double plain_errors = 0.0;
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
      joint_errors += joint.error(rows, metric, 2);
      plain_errors += plain.error(rows, metric, 0);
    }
  }
  CHECK(joint_errors < 0.6 * plain_errors);
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
  joint_training_params idle = with(1);
  idle.parts.workers = 0;
  const trained without_workers(shape, rows, nullptr, idle);
  refused(without_workers, status_code::invalid_argument);
  CHECK(std::string(without_workers.outcome.subject) == "params.parts");
  data[6 * 4 + 5] = std::numeric_limits<float>::infinity();
  refused(trained(shape, rows, nullptr, with(1)), status_code::not_finite);
}

TEST_CASE("joint training reports its objectives, which never rise", "[train][joint]") {
  pqattn_test::random_data random(66);
  CAPTURE(random.seed());
  const std::size_t rows_count = 1500;  // more than one part
  const std::vector<float> data = random.normals(rows_count * 10);
  const auto rows = pqattn::view_rows(data.data(), rows_count, 10);
  const std::vector<float> metric = skewed_metric(random, 10);
  std::vector<float> weights = random.normals(rows_count);
  std::transform(weights.begin(), weights.end(), weights.begin(), [](float w) { return 0.1f + w * w; });
  const geometry shape{10, 3, 16, 2};
  joint_training_params params = with(5);
  std::vector<double> objectives(shape.groups() * (params.kmeans.iterations + 1), -1.0);
  std::vector<double> passes(params.passes + 1, -1.0);
  params.objectives = objectives.data();
  params.pass_objectives = passes.data();
  const trained run(shape, rows, metric.data(), params, weights.data());
  REQUIRE(run.outcome.ok());
  for (std::size_t g = 0; g < shape.groups(); ++g) {
    const auto first = objectives.begin() + static_cast<std::ptrdiff_t>(g * (params.kmeans.iterations + 1));
    CHECK(*first > 0.0);
    CHECK(std::is_sorted(first, first + params.kmeans.iterations + 1,
                         [](double a, double b) { return b < a * 0.999999; }));
  }
  for (std::size_t i = 1; i < passes.size(); ++i) {
    CHECK(passes[i] <= passes[i - 1] * 1.000001);
  }
  CHECK(passes.back() < 0.95 * passes.front());
  CHECK(run.report.objective == passes.back());
  // The encoder may find other codes than training left off with, but not far from them.
  const double coded = run.error(rows, metric, 2, weights.data());
  CHECK(coded < 1.1 * passes.back());
  CHECK(coded > 0.8 * passes.back());
}

TEST_CASE("any executor trains the same joint codebook", "[train][joint]") {
  pqattn_test::random_data random(67);
  CAPTURE(random.seed());
  const std::vector<float> data = random.normals(2500 * 12);
  const auto rows = pqattn::view_rows(data.data(), 2500, 12);
  const std::vector<float> metric = skewed_metric(random, 12);
  const geometry shape{12, 5, 8, 2};
  const trained first(shape, rows, metric.data(), with(2));
  REQUIRE(first.outcome.ok());
  for (const std::size_t workers : {1U, 2U, 5U}) {
    pqattn_test::shuffled_executor shuffled(workers, random.seed());
    pqattn_test::thread_executor threads(workers);
    for (const pqattn::executor& runner : {shuffled.get(), threads.get()}) {
      joint_training_params params = with(2);
      params.parts = runner;
      const trained other(shape, rows, metric.data(), params);
      REQUIRE(other.outcome.ok());
      CHECK(other.centroids == first.centroids);
      CHECK(other.report.objective == first.report.objective);
    }
    // Sub-vectors, then three parts for the residuals and for both halves of each group of each pass.
    CHECK(shuffled.parts_run == 5 + 3 * (1 + 2 * shape.groups() * 2));
  }
}

TEST_CASE("a warm start goes on from the caller's codebook", "[train][joint]") {
  pqattn_test::random_data random(68);
  CAPTURE(random.seed());
  const std::vector<float> data = random.normals(600 * 8);
  const auto rows = pqattn::view_rows(data.data(), 600, 8);
  const std::vector<float> metric = skewed_metric(random, 8);
  const geometry shape{8, 2, 16, 2};
  const trained cold(shape, rows, metric.data(), with(2));
  joint_training_params warm = with(0);
  warm.kmeans.init = pqattn::kmeans_init::warm_start;
  warm.kmeans.iterations = 0;
  const trained same(shape, rows, metric.data(), warm, nullptr, cold.centroids);
  REQUIRE(same.outcome.ok());
  // Only the trip into the metric's frame and back.
  for (std::size_t i = 0; i < cold.centroids.size(); ++i) {
    CHECK(std::abs(same.centroids[i] - cold.centroids[i]) < 1e-3f);
  }
  warm.passes = 4;
  const trained further(shape, rows, metric.data(), warm, nullptr, cold.centroids);
  REQUIRE(further.outcome.ok());
  CHECK(further.report.objective < same.report.objective);
}

TEST_CASE("joint training reports progress and can be cancelled", "[train][joint]") {
  pqattn_test::random_data random(69);
  CAPTURE(random.seed());
  const std::vector<float> data = random.normals(100 * 6);
  const auto rows = pqattn::view_rows(data.data(), 100, 6);
  const geometry shape{6, 2, 8, 2};
  struct watcher {
    std::size_t calls = 0;
    std::size_t total = 0;
    std::size_t stop_at = 0;
  } seen;
  joint_training_params params = with(3);
  params.kmeans.iterations = 5;
  params.progress = {[](void* user, std::size_t done, std::size_t total) {
                       auto& watch = *static_cast<watcher*>(user);
                       ++watch.calls;
                       watch.total = total;
                       return done != watch.stop_at;
                     },
                     &seen};
  REQUIRE(trained(shape, rows, nullptr, params).outcome.ok());
  CHECK(seen.calls == 4 * (5 + 3));
  CHECK(seen.total == seen.calls);
  for (const std::size_t stop : {std::size_t{7}, std::size_t{25}}) {  // in k-means, in a joint pass
    seen = {0, 0, stop};
    const trained stopped(shape, rows, nullptr, params);
    CHECK(stopped.outcome.code == status_code::cancelled);
    CHECK(stopped.centroids.front() == -77.0f);
  }
}
