// SPDX-License-Identifier: MIT
#include "pqattn/train/codebook_trainer.hpp"

#include <algorithm>
#include <atomic>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "bank/archetype_bank.hpp"
#include "bank/scalar_bank.hpp"
#include "pqattn/bank/host/host_bank.hpp"
#include "pqattn/encode/encode.hpp"
#include "support/executors.hpp"
#include "support/memory_resources.hpp"
#include "support/random_data.hpp"
#include "support/reference.hpp"
#include "support/resident.hpp"
#include "support/sanitizers.hpp"
#include "support/shared_data.hpp"
#include "support/strided_matrix.hpp"

using pqattn::codebook_storage;
using pqattn::dtype;
using pqattn::geometry;
using pqattn::status_code;
using pqattn::training_params;
using pqattn_test::archetype_bank;
using pqattn_test::scalar_bank;
using pqattn_test::strided_matrix;
using host_bank = pqattn::host_bank<>;

template std::size_t pqattn::training_workspace_bytes<archetype_bank>(archetype_bank&, const geometry&,
                                                                      const rows_view&, const training_params&);
template pqattn::status pqattn::train_codebook<archetype_bank>(archetype_bank&, const geometry&, const rows_view&,
                                                               const float*, const training_params&, void*, std::size_t,
                                                               float*, training_report&);

namespace {

/// One training with memory of its own.
struct trained {
  template <class Bank>
  trained(Bank& bank, const geometry& shape, const pqattn::rows_view& samples, const float* weights,
          const training_params& params, std::vector<float> start = {})
      : centroids(start.empty() ? std::vector<float>(shape.codebook_values(), -77.0f) : std::move(start)) {
    std::vector<std::byte> workspace(pqattn::training_workspace_bytes(bank, shape, samples, params));
    outcome = train_codebook(bank, shape, samples, weights, params, workspace.data(), workspace.size(),
                             centroids.data(), report);
  }
  [[nodiscard]] bool untouched() const {
    return std::all_of(centroids.begin(), centroids.end(), [](float x) { return x == -77.0f; });
  }

  pqattn::status outcome;
  std::vector<float> centroids;
  pqattn::training_report report;
};

training_params with(std::uint32_t iterations, codebook_storage storage = codebook_storage::f32) {
  training_params params;
  params.kmeans.iterations = iterations;
  params.storage = storage;
  return params;
}

/// Squared error of coding the rows greedily with a codebook, over their energy; per-row weights when given.
double relative_error(const geometry& shape, const std::vector<float>& centroids, const std::vector<float>& rows,
                      const float* weights = nullptr) {
  double error = 0.0;
  double energy = 0.0;
  const std::size_t count = rows.size() / shape.dim;
  for (std::size_t i = 0; i < count; ++i) {
    const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[i]);
    for (std::uint32_t run = 0; run < shape.subvectors; ++run) {
      const std::uint32_t width = shape.width(run);
      std::vector<double> rest(width);
      for (std::uint32_t c = 0; c < width; ++c) {
        rest[c] = static_cast<double>(rows[i * shape.dim + shape.channel(shape.first_channel(run) + c)]);
        energy += weight * rest[c] * rest[c];
      }
      for (std::uint32_t stage = 0; stage < shape.stages; ++stage) {
        const float* group = centroids.data() + shape.codebook_offset(stage * shape.subvectors + run);
        const auto nearest = pqattn_test::nearest_centroid(rest.data(), group, shape.centroids, width);
        for (std::uint32_t c = 0; c < width; ++c) {
          rest[c] -= static_cast<double>(group[nearest.index * width + c]);
        }
      }
      for (const double left : rest) {
        error += weight * left * left;
      }
    }
  }
  return error / energy;
}

}  // namespace

TEMPLATE_TEST_CASE("a codebook is k-means of every sub-vector", "[train]", host_bank, scalar_bank) {
  TestType bank;
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  const geometry shape{11, 3, 8};
  const std::vector<float> rows = random.normals(200 * 11);
  const trained result(bank, shape, pqattn::view_rows(rows.data(), 200, 11), nullptr, with(6));
  REQUIRE_OK(result.outcome);
  CHECK(result.report.samples == 200);
  CHECK(result.report.iterations == 6);
  CHECK(result.report.empty_clusters == 0);
  // The objective that is reported is the error of coding the samples.
  double energy = 0.0;
  for (const float x : rows) {
    energy += static_cast<double>(x) * static_cast<double>(x);
  }
  const double error = relative_error(shape, result.centroids, rows);
  CHECK(std::abs(result.report.objective / energy - error) <= 1e-5 * error);
  CHECK(error < 0.5);
}

TEST_CASE("samples of every dtype and stride train the same codebook as their f32 copy", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(2);
  CAPTURE(random.seed());
  const geometry shape{9, 4, 7, 2};
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16}) {
    for (const auto& layout : {pqattn_test::dense_layout, pqattn_test::padded_layout, pqattn_test::awkward_layout,
                               pqattn_test::reversed_layout}) {
      const strided_matrix samples(random.normals(100 * 9), 100, 9, type, layout);
      const std::vector<float> dense = samples.values();
      const trained strided(bank, shape, samples.view(), nullptr, with(3));
      const trained copy(bank, shape, pqattn::view_rows(dense.data(), 100, 9), nullptr, with(3));
      REQUIRE_OK(strided.outcome);
      CHECK(strided.centroids == copy.centroids);
    }
  }
}

TEST_CASE("a channel order trains what reordered samples train", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(3);
  CAPTURE(random.seed());
  const std::vector<std::uint16_t> order = random.permutation<std::uint16_t>(10);
  const std::vector<float> rows = random.normals(80 * 10);
  std::vector<float> reordered(rows.size());
  for (std::size_t i = 0; i < 80; ++i) {
    for (std::size_t p = 0; p < 10; ++p) {
      reordered[i * 10 + p] = rows[i * 10 + order[p]];
    }
  }
  const trained ordered(bank, {10, 3, 5, 1, order.data()}, pqattn::view_rows(rows.data(), 80, 10), nullptr, with(3));
  const trained plain(bank, {10, 3, 5}, pqattn::view_rows(reordered.data(), 80, 10), nullptr, with(3));
  REQUIRE_OK(ordered.outcome);
  CHECK(ordered.centroids == plain.centroids);
}

TEST_CASE("any executor trains the same bits, another seed others", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(4);
  CAPTURE(random.seed());
  const geometry shape{32, 11, 16, 2};
  const std::vector<float> rows = random.normals(300 * 32);
  const pqattn::rows_view view = pqattn::view_rows(rows.data(), 300, 32);
  training_params params = with(4, codebook_storage::f16);
  const trained first(bank, shape, view, nullptr, params);
  REQUIRE_OK(first.outcome);
  for (const std::size_t workers : {1U, 2U, 7U}) {
    pqattn_test::shuffled_executor shuffled(workers, random.seed());
    pqattn_test::thread_executor threads(workers);
    for (const pqattn::executor& runner : {shuffled.get(), threads.get()}) {
      params.parts = runner;
      const trained other(bank, shape, view, nullptr, params);
      REQUIRE_OK(other.outcome);
      CHECK(other.centroids == first.centroids);
      CHECK(other.report.objective == first.report.objective);
    }
    CHECK(shuffled.parts_run == 11);
  }
  params = with(4, codebook_storage::f16);
  params.kmeans.seed += 1;
  CHECK(trained(bank, shape, view, nullptr, params).centroids != first.centroids);
}

TEST_CASE("training reports the objective of every iteration", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(41);
  CAPTURE(random.seed());
  const geometry shape{9, 2, 16, 2};
  const std::vector<float> rows = random.normals(300 * 9);
  training_params params = with(6);
  std::vector<double> objectives(shape.groups() * 7, -1.0);
  params.objectives = objectives.data();
  const trained result(bank, shape, pqattn::view_rows(rows.data(), 300, 9), nullptr, params);
  REQUIRE_OK(result.outcome);
  for (std::size_t g = 0; g < shape.groups(); ++g) {
    CAPTURE(g);
    CHECK(objectives[g * 7] > 0.0);
    for (std::size_t i = 1; i < 7; ++i) {
      CHECK(objectives[g * 7 + i] <= objectives[g * 7 + i - 1] * 1.000001);
    }
  }
  // The last stage's last objective, over sub-vectors, is what is left.
  const double left = objectives[2 * 7 + 6] + objectives[3 * 7 + 6];
  CHECK(std::abs(left - result.report.objective) <= 1e-9 * left);
}

TEST_CASE("nothing is trained before all samples are known to be finite", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(42);
  std::vector<float> rows = random.normals(50 * 8);
  rows[49 * 8 + 7] = std::numeric_limits<float>::quiet_NaN();
  training_params params = with(3);
  std::size_t steps = 0;
  params.progress = {[](void* user, std::size_t, std::size_t) {
                       ++*static_cast<std::size_t*>(user);
                       return true;
                     },
                     &steps};
  const trained result(bank, {8, 8, 4}, pqattn::view_rows(rows.data(), 50, 8), nullptr, params);
  CHECK(result.outcome.code == status_code::not_finite);
  CHECK(result.outcome.expected == 49);
  CHECK(result.outcome.got == 7);
  CHECK(steps == 0);
}

TEST_CASE("an executor without workers is refused", "[train]") {
  host_bank bank;
  const std::vector<float> rows(20 * 4, 1.0f);
  training_params params = with(3);
  params.parts.workers = 0;
  const trained result(bank, {4, 2, 4}, pqattn::view_rows(rows.data(), 20, 4), nullptr, params);
  CHECK(result.outcome.code == status_code::invalid_argument);
  CHECK(std::string(result.outcome.subject) == "params.parts");
  CHECK(result.untouched());
}

TEST_CASE("stages lower the error", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(5);
  CAPTURE(random.seed());
  const std::vector<float> rows = random.normals(500 * 8);
  double last = 1.0;
  double last_objective = std::numeric_limits<double>::infinity();
  for (const std::uint32_t stages : {1u, 2u, 3u, 4u}) {
    const geometry shape{8, 2, 16, stages};
    const trained result(bank, shape, pqattn::view_rows(rows.data(), 500, 8), nullptr, with(8));
    REQUIRE_OK(result.outcome);
    const double error = relative_error(shape, result.centroids, rows);
    CAPTURE(stages, error);
    CHECK(error < 0.7 * last);
    CHECK(result.report.objective < last_objective);
    last = error;
    last_objective = result.report.objective;
  }
}

TEST_CASE("weights move the error to where they are small", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(6);
  CAPTURE(random.seed());
  const geometry shape{8, 2, 16};
  const std::vector<float> rows = random.normals(600 * 8);
  std::vector<float> weights(600);
  for (std::size_t i = 0; i < 600; ++i) {
    weights[i] = i % 6 == 0 ? 100.0f : 1.0f;
  }
  const pqattn::rows_view view = pqattn::view_rows(rows.data(), 600, 8);
  const trained weighted(bank, shape, view, weights.data(), with(15));
  const trained plain(bank, shape, view, nullptr, with(15));
  REQUIRE_OK(weighted.outcome);
  CHECK(relative_error(shape, weighted.centroids, rows, weights.data()) <
        0.9 * relative_error(shape, plain.centroids, rows, weights.data()));
  // All alike is as none: only the scale of the objective changes.
  const std::vector<float> alike(600, 0.25f);
  const trained same(bank, shape, view, alike.data(), with(15));
  CHECK(pqattn_test::max_error(same.centroids, pqattn_test::to_doubles(plain.centroids)) <= 1e-4);
  CHECK(std::abs(4.0 * same.report.objective - plain.report.objective) <= 1e-3 * plain.report.objective);
}

TEMPLATE_TEST_CASE("bad samples are refused with their position and the codebook left alone", "[train]", host_bank,
                   scalar_bank) {
  TestType bank;
  pqattn_test::random_data random(7);
  CAPTURE(random.seed());
  const std::vector<std::uint16_t> order = random.permutation<std::uint16_t>(6);
  for (const std::uint16_t* channels : {static_cast<const std::uint16_t*>(nullptr), order.data()}) {
    const geometry shape{6, 4, 3, 2, channels};
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
      for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16}) {
        strided_matrix samples(random.normals(20 * 6), 20, 6, type, pqattn_test::awkward_layout);
        const std::size_t row = random.below(20);
        const std::size_t col = random.below(6);
        samples.set(row, col, bad);
        const trained result(bank, shape, samples.view(), nullptr, with(2));
        CHECK(result.outcome.code == status_code::not_finite);
        CHECK(result.outcome.expected == static_cast<double>(row));
        CHECK(result.outcome.got == static_cast<double>(col));
        CHECK(result.untouched());
      }
    }
  }
}

TEST_CASE("bad arguments are refused and the codebook left alone", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(8);
  CAPTURE(random.seed());
  const geometry shape{6, 3, 4};
  const std::vector<float> rows = random.normals(20 * 6);
  const pqattn::rows_view view = pqattn::view_rows(rows.data(), 20, 6);
  const auto refusal = [&](const geometry& used, const pqattn::rows_view& samples, const float* weights) {
    // The workspace is asked for a good geometry: a bad one must be noticed before memory is.
    std::vector<std::byte> workspace(pqattn::training_workspace_bytes(bank, shape, view, with(2)));
    std::vector<float> centroids(shape.codebook_values(), -77.0f);
    pqattn::training_report report;
    const pqattn::status result = train_codebook(bank, used, samples, weights, with(2), workspace.data(),
                                                 workspace.size(), centroids.data(), report);
    CHECK(std::all_of(centroids.begin(), centroids.end(), [](float x) { return x == -77.0f; }));
    return result;
  };
  CHECK(refusal({6, 0, 4}, view, nullptr).code == status_code::invalid_argument);
  CHECK(refusal({6, 3, 1}, view, nullptr).code == status_code::invalid_argument);
  CHECK(refusal({5, 3, 4}, view, nullptr).code == status_code::shape_mismatch);
  pqattn::rows_view nowhere = view;
  nowhere.data = nullptr;
  CHECK(refusal(shape, nowhere, nullptr).code == status_code::invalid_argument);
  const pqattn::status few = refusal(shape, view.slice(0, 3), nullptr);
  CHECK(few.code == status_code::too_few_samples);
  CHECK(few.expected == 4);
  CHECK(few.got == 3);
  CHECK(refusal(shape, view.slice(0, 0), nullptr).code == status_code::too_few_samples);

  std::vector<float> weights(20, 1.0f);
  weights[13] = -1e-30f;
  const pqattn::status negative = refusal(shape, view, weights.data());
  CHECK(negative.code == status_code::invalid_argument);
  CHECK(negative.got == 13);
  weights[5] = std::numeric_limits<float>::quiet_NaN();
  const pqattn::status nan = refusal(shape, view, weights.data());
  CHECK(nan.code == status_code::not_finite);
  CHECK(nan.expected == 5);
  weights[5] = std::numeric_limits<float>::infinity();
  CHECK(refusal(shape, view, weights.data()).code == status_code::not_finite);
  const std::vector<float> none(20, 0.0f);
  CHECK(refusal(shape, view, none.data()).code == status_code::invalid_argument);
}

TEST_CASE("weight on fewer samples than centroids still gives finite centroids", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(9);
  CAPTURE(random.seed());
  const geometry shape{6, 3, 8};
  const std::vector<float> rows = random.normals(20 * 6);
  std::vector<float> weights(20, 0.0f);
  weights[3] = 1.0f;
  weights[11] = 1e-20f;
  const trained result(bank, shape, pqattn::view_rows(rows.data(), 20, 6), weights.data(), with(4));
  REQUIRE_OK(result.outcome);
  CHECK(std::all_of(result.centroids.begin(), result.centroids.end(), [](float x) { return std::isfinite(x); }));
  CHECK(result.report.objective <= 1e-12);
}

TEST_CASE("progress counts every iteration of every sub-vector and stage", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(10);
  const geometry shape{6, 3, 4, 2};
  const std::vector<float> rows = random.normals(50 * 6);
  const pqattn::rows_view view = pqattn::view_rows(rows.data(), 50, 6);
  struct listener {
    std::atomic<std::size_t> calls{0};
    std::atomic<std::size_t> last{0};
    std::atomic<std::size_t> total{0};
    std::size_t stop_at = 0;
  } user;
  training_params params = with(5);
  params.progress = {[](void* self, std::size_t done, std::size_t total) {
                       auto& me = *static_cast<listener*>(self);
                       ++me.calls;
                       me.last = done;
                       me.total = total;
                       return done != me.stop_at;
                     },
                     &user};
  REQUIRE_OK(trained(bank, shape, view, nullptr, params).outcome);
  CHECK(user.total == 30);
  CHECK(user.calls == 30);
  CHECK(user.last == 30);

  pqattn_test::counting_resource memory;
  host_bank counted(memory.resource());
  for (const std::size_t stop : {1U, 17U, 30U}) {
    user.stop_at = stop;
    const trained stopped(counted, shape, view, nullptr, params);
    CHECK(stopped.outcome.code == status_code::cancelled);
    CHECK(stopped.untouched());
  }
  CHECK(memory.live_bytes == 0);
  CHECK(memory.mistakes == 0);
}

TEST_CASE("memory that is refused or too small is an error, and none is kept", "[train]") {
  pqattn_test::random_data random(11);
  const geometry shape{6, 3, 4};
  const std::vector<float> rows = random.normals(50 * 6);
  const pqattn::rows_view view = pqattn::view_rows(rows.data(), 50, 6);
  pqattn_test::thread_executor threads(3);
  for (std::size_t allowed = 0; allowed <= 3; ++allowed) {
    pqattn_test::counting_resource memory;
    memory.fail_after = allowed;
    host_bank bank(memory.resource());
    training_params params = with(2);
    params.parts = threads.get();
    const trained result(bank, shape, view, nullptr, params);
    CAPTURE(allowed);
    CHECK(result.outcome.code == (allowed == 3 ? status_code::ok : status_code::out_of_memory));
    CHECK(result.untouched() == (allowed != 3));
    CHECK(memory.live_bytes == 0);
    CHECK(memory.mistakes == 0);
  }
  host_bank bank;
  const std::size_t needed = pqattn::training_workspace_bytes(bank, shape, view, with(2));
  pqattn::training_report report;
  for (const std::size_t offset : {0U, 1U, 33U}) {
    std::vector<std::byte> workspace(needed + offset + 64, std::byte{0x5a});
    std::vector<float> centroids(shape.codebook_values(), -77.0f);
    REQUIRE_OK(train_codebook(bank, shape, view, nullptr, with(2), workspace.data() + offset, needed, centroids.data(),
                              report));
    CHECK(std::all_of(workspace.end() - 64, workspace.end(), [](std::byte b) { return b == std::byte{0x5a}; }));
    std::fill(centroids.begin(), centroids.end(), -77.0f);
    CHECK(train_codebook(bank, shape, view, nullptr, with(2), workspace.data(), needed - 129, centroids.data(), report)
              .code == status_code::capacity);
    CHECK(train_codebook(bank, shape, view, nullptr, with(2), nullptr, needed, centroids.data(), report).code ==
          status_code::capacity);
    CHECK(std::all_of(centroids.begin(), centroids.end(), [](float x) { return x == -77.0f; }));
  }
}

TEST_CASE("training rounds to the storage, and refuses what binary16 cannot hold", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(12);
  CAPTURE(random.seed());
  const geometry shape{6, 3, 4};
  std::vector<float> rows = random.normals(50 * 6);
  const pqattn::rows_view view = pqattn::view_rows(rows.data(), 50, 6);
  const trained full(bank, shape, view, nullptr, with(3, codebook_storage::f32));
  for (const auto storage : {codebook_storage::f16, codebook_storage::i8}) {
    const trained rounded(bank, shape, view, nullptr, with(3, storage));
    REQUIRE_OK(rounded.outcome);
    std::vector<float> expected = full.centroids;
    REQUIRE_OK(round_codebook(shape, storage, expected.data()));
    CHECK(rounded.centroids == expected);
    CHECK(rounded.centroids != full.centroids);
  }
  for (float& x : rows) {
    x *= 1e6f;
  }
  const trained refused(bank, shape, view, nullptr, with(3, codebook_storage::f16));
  CHECK(refused.outcome.code == status_code::unsupported);
  CHECK(refused.untouched());
  CHECK(trained(bank, shape, view, nullptr, with(3, codebook_storage::i8)).outcome.ok());
}

TEST_CASE("a warm start begins where the caller says", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(13);
  CAPTURE(random.seed());
  const geometry shape{6, 3, 4, 2};
  const std::vector<float> rows = random.normals(100 * 6);
  const pqattn::rows_view view = pqattn::view_rows(rows.data(), 100, 6);
  const trained first(bank, shape, view, nullptr, with(10));
  training_params params = with(0);
  params.kmeans.init = pqattn::kmeans_init::warm_start;
  const trained kept(bank, shape, view, nullptr, params, first.centroids);
  REQUIRE_OK(kept.outcome);
  CHECK(kept.centroids == first.centroids);
  params.kmeans.iterations = 3;
  const trained better(bank, shape, view, nullptr, params, first.centroids);
  CHECK(relative_error(shape, better.centroids, rows) <= relative_error(shape, first.centroids, rows) * 1.02);
}

namespace {

/// Relative MSE of a codebook trained on `samples` standard normal rows, as quantization libraries report it.
double gaussian_distortion(std::size_t samples, const geometry& shape) {
  host_bank bank;
  pqattn_test::random_data random(20240601, shape.subvectors);  // fixed: a figure, not a property
  const std::vector<float> rows = random.normals(samples * shape.dim);
  pqattn_test::thread_executor threads(2);
  training_params params = with(25);
  params.parts = threads.get();
  const trained result(bank, shape, pqattn::view_rows(rows.data(), samples, shape.dim), nullptr, params);
  REQUIRE_OK(result.outcome);
  double energy = 0.0;
  for (const float x : rows) {
    energy += static_cast<double>(x) * static_cast<double>(x);
  }
  return result.report.objective / energy;
}

}  // namespace

// Sub-vectors are independent, so an eighth of them has the same relative error. Faiss reaches 0.098.
TEST_CASE("distortion on normal data, four channels in 8 bits", "[train]") {
  const double error = gaussian_distortion(32768, {16, 4, 256});
  CAPTURE(error);
  CHECK(error <= 0.098);
  CHECK(error > 0.08);  // below the best a quantizer of this rate and width can do, something else was measured
}

TEST_CASE("distortion on normal data, two channels in 4 bits", "[train]") {
  const double error = gaussian_distortion(32768, {32, 16, 16});
  CAPTURE(error);
  CHECK(error <= 0.111);
  CHECK(error > 0.09);
}

TEST_CASE("distortion on normal data at full size", "[train][slow]") {
#if PQATTN_TEST_ASAN
  SKIP("takes minutes under AddressSanitizer");
#else
  CHECK(gaussian_distortion(32768, {128, 32, 256}) <= 0.098);
  CHECK(gaussian_distortion(32768, {128, 64, 16}) <= 0.111);
#endif
}

TEST_CASE("real keys before RoPE and values, trained on three quarters, code the rest", "[train]") {
  const auto keys = pqattn_test::shipped_activations("keys_prerope");
  const auto values = pqattn_test::shipped_activations("values");
  if (!keys || !values) {
    SKIP("no activations in " << pqattn_test::test_data_folder());
  }
  host_bank bank;
  const std::size_t train = keys->tokens() * 3 / 4;
  const std::size_t rest = keys->tokens() - train;
  for (const auto* file : {&*keys, &*values}) {
    const auto dim = static_cast<std::uint32_t>(file->dim());
    double last = 1.0;
    for (const std::uint32_t subvectors : {dim / 8, dim / 4, dim / 2}) {
      const geometry shape{dim, subvectors, 256};
      const trained result(bank, shape, file->head(0).slice(0, train), nullptr, with(8, codebook_storage::f16));
      REQUIRE_OK(result.outcome);
      CHECK(result.report.empty_clusters == 0);
      pqattn_test::stored_book<host_bank> book(bank, shape, codebook_storage::f16, result.centroids);
      pqattn_test::bank_block<host_bank> blocks(bank, pqattn::blocks_for(rest) * bank.code_block_bytes(shape));
      const pqattn::code_span<std::byte*> codes{shape, blocks.get(), nullptr};
      const pqattn::rows_view later = file->head(0).slice(train, rest);
      REQUIRE_OK(encode(bank, later, book.resident, codes, {0, rest}));
      std::vector<float> decoded(rest * dim);
      REQUIRE_OK(decode(bank, book.resident, codes, {0, rest}, pqattn::ref_rows(decoded.data(), rest, dim)));
      std::vector<float> original(rest * dim);
      std::vector<double> mean(dim, 0.0);
      for (std::size_t i = 0; i < rest; ++i) {
        load_row(later, i, original.data() + i * dim);
        for (std::size_t c = 0; c < dim; ++c) {
          mean[c] += static_cast<double>(original[i * dim + c]) / static_cast<double>(rest);
        }
      }
      double error = 0.0;
      double variance = 0.0;
      for (std::size_t i = 0; i < rest * dim; ++i) {
        error += std::pow(static_cast<double>(decoded[i]) - static_cast<double>(original[i]), 2.0);
        variance += std::pow(static_cast<double>(original[i]) - mean[i % dim], 2.0);
      }
      CAPTURE(subvectors, error / variance, last);
      // The codebook says much about tokens it never saw, and twice the codes at least halve the error.
      CHECK(error / variance < 0.5 * last);
      last = error / variance;
    }
  }
}
