// SPDX-License-Identifier: MIT
#include "pqattn/train/kmeans.hpp"

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstring>
#include <set>
#include <vector>

#include "bank/archetype_bank.hpp"
#include "bank/scalar_bank.hpp"
#include "pqattn/bank/host/host_bank.hpp"
#include "support/random_data.hpp"
#include "support/reference.hpp"
#include "support/resident.hpp"

using pqattn::kmeans_init;
using pqattn::kmeans_params;
using pqattn_test::archetype_bank;
using pqattn_test::bank_block;
using pqattn_test::scalar_bank;
using host_bank = pqattn::host_bank<>;

template pqattn::status pqattn::kmeans<archetype_bank>(archetype_bank&, const float*, const float*, std::size_t,
                                                       std::uint32_t, std::uint32_t, const kmeans_params&,
                                                       archetype_bank::address, const kmeans_workspace&,
                                                       progress_counter&, float*, double*, kmeans_report&);

namespace {

/// One run with memory of its own.
template <class Bank>
struct clustering {
  clustering(Bank& bank, const std::vector<float>& points, const float* weights, std::uint32_t width,
             std::uint32_t centroid_count, const kmeans_params& params, const std::vector<float>& start = {})
      : centroids(start.empty() ? std::vector<float>(centroid_count * std::size_t{width}, -77.0f) : start),
        objectives(params.iterations + 1, -1.0) {
    const std::size_t count = points.size() / width;
    pqattn::carver counting;
    pqattn::kmeans_workspace work;
    work.carve(counting, count, width, centroid_count);
    std::vector<std::byte> memory(counting.required());
    pqattn::carver carving(memory.data(), memory.size());
    work.carve(carving, count, width, centroid_count);
    REQUIRE(carving.fits());
    bank_block<Bank> resident(bank, bank.point_bytes(count, width));
    pqattn::progress_counter progress({}, params.iterations);
    outcome = kmeans(bank, points.data(), weights, count, width, centroid_count, params, resident.get(), work, progress,
                     centroids.data(), objectives.data(), report);
    codes.assign(work.codes, work.codes + count);
  }

  pqattn::status outcome;
  std::vector<float> centroids;
  std::vector<double> objectives;
  std::vector<std::uint16_t> codes;
  pqattn::kmeans_report report;
};

kmeans_params with(std::uint32_t iterations, kmeans_init init = kmeans_init::plus_plus, std::uint64_t seed = 1) {
  kmeans_params params;
  params.iterations = iterations;
  params.init = init;
  params.seed = seed;
  return params;
}

/// Clumps of points with gaps between them.
std::vector<float> clumps(pqattn_test::random_data& random, std::size_t count, std::uint32_t width,
                          std::size_t number) {
  const std::vector<float> centers = random.normals(number * width, 10.0f);
  std::vector<float> points;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t clump = random.below(number);
    for (std::size_t c = 0; c < width; ++c) {
      points.push_back(centers[clump * width + c] + random.normal());
    }
  }
  return points;
}

}  // namespace

TEMPLATE_TEST_CASE("the objective never rises and is what the centroids give", "[train]", host_bank, scalar_bank) {
  TestType bank;
  for (std::uint64_t stream = 0; stream < 24; ++stream) {
    pqattn_test::random_data random(stream);
    const auto width = static_cast<std::uint32_t>(1 + random.below(9));
    const auto centroids = static_cast<std::uint32_t>(1 + random.below(60));
    const std::size_t count = centroids + random.below(500);
    CAPTURE(random.seed(), count, width, centroids);
    const std::vector<float> points = stream % 2 == 0 ? clumps(random, count, width, 1 + random.below(30))
                                                      : random.normals(count * width, 3.0f, 100.0f);
    std::vector<float> weights(count);
    for (float& weight : weights) {
      weight = random.chance(0.3) ? 0.0f : static_cast<float>(std::exp(3.0 * random.uniform(-1.0, 1.0)));
    }
    weights[0] = 1.0f;
    const float* used = stream % 3 == 0 ? nullptr : weights.data();
    const kmeans_init init = stream % 4 < 2 ? kmeans_init::plus_plus : kmeans_init::sample;
    const clustering<TestType> run(bank, points, used, width, centroids, with(12, init, stream));
    REQUIRE_OK(run.outcome);
    CHECK(run.report.iterations == 12);
    const double scale = run.objectives[0] + 1e-9;
    for (std::size_t i = 1; i < run.objectives.size(); ++i) {
      CAPTURE(i, run.objectives[i - 1], run.objectives[i]);
      CHECK(run.objectives[i] <= run.objectives[i - 1] + 1e-6 * scale);
    }
    CHECK(run.objectives.back() == run.report.objective);
    const double recomputed =
        pqattn_test::kmeans_objective(points.data(), used, count, width, run.centroids.data(), centroids);
    // Distances of points far from the origin lose digits before they are squared.
    CHECK(std::abs(recomputed - run.report.objective) <= 1e-5 * scale);
    bool nearest = true;
    std::set<std::uint16_t> used_codes;
    for (std::size_t i = 0; i < count; ++i) {
      nearest = nearest && pqattn_test::code_is_nearest(run.codes[i], points.data() + i * width, run.centroids.data(),
                                                        centroids, width, 0.0);
      used_codes.insert(run.codes[i]);
    }
    CHECK(nearest);
    CHECK(run.report.empty_clusters == centroids - used_codes.size());
  }
}

TEMPLATE_TEST_CASE("one centroid is the weighted mean", "[train]", host_bank, scalar_bank) {
  TestType bank;
  pqattn_test::random_data random(50);
  CAPTURE(random.seed());
  const std::vector<float> points = random.normals(1000 * 3, 5.0f, 50.0f);
  std::vector<float> weights(1000);
  double mass = 0.0;
  double sums[3] = {};
  for (std::size_t i = 0; i < 1000; ++i) {
    weights[i] = static_cast<float>(random.uniform(0.0, 1.0) * (i % 10 == 0 ? 1e4 : 1.0));
    mass += static_cast<double>(weights[i]);
    for (std::size_t c = 0; c < 3; ++c) {
      sums[c] += static_cast<double>(weights[i]) * static_cast<double>(points[i * 3 + c]);
    }
  }
  const clustering<TestType> run(bank, points, weights.data(), 3, 1, with(1));
  REQUIRE_OK(run.outcome);
  for (std::size_t c = 0; c < 3; ++c) {
    CHECK(std::abs(static_cast<double>(run.centroids[c]) - sums[c] / mass) <= 1e-5);
  }
}

TEST_CASE("after convergence each centroid is the weighted mean of its points", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(51);
  CAPTURE(random.seed());
  const std::vector<float> points = clumps(random, 600, 2, 8);
  std::vector<float> weights(600);
  for (float& weight : weights) {
    weight = static_cast<float>(random.uniform(0.1, 5.0));
  }
  const clustering<host_bank> run(bank, points, weights.data(), 2, 8, with(100));
  REQUIRE_OK(run.outcome);
  for (std::size_t k = 0; k < 8; ++k) {
    double mass = 0.0;
    double sums[2] = {};
    for (std::size_t i = 0; i < 600; ++i) {
      if (run.codes[i] == k) {
        mass += static_cast<double>(weights[i]);
        sums[0] += static_cast<double>(weights[i]) * static_cast<double>(points[2 * i]);
        sums[1] += static_cast<double>(weights[i]) * static_cast<double>(points[2 * i + 1]);
      }
    }
    REQUIRE(mass > 0.0);
    CHECK(std::abs(static_cast<double>(run.centroids[2 * k]) - sums[0] / mass) <= 1e-4);
    CHECK(std::abs(static_cast<double>(run.centroids[2 * k + 1]) - sums[1] / mass) <= 1e-4);
  }
}

TEST_CASE("a weight of n is n copies, a weight of 0 is no point", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(52);
  CAPTURE(random.seed());
  const std::vector<float> points = random.normals(200 * 2);
  std::vector<float> weights(200);
  std::vector<float> copies;
  for (std::size_t i = 0; i < 200; ++i) {
    weights[i] = static_cast<float>(1 + random.below(4));
    for (float copy = 0.0f; copy < weights[i]; copy += 1.0f) {
      copies.insert(copies.end(), {points[2 * i], points[2 * i + 1]});
    }
  }
  const std::vector<float> start(points.begin(), points.begin() + 14);
  const kmeans_params params = with(15, kmeans_init::warm_start);
  const clustering<host_bank> weighted(bank, points, weights.data(), 2, 7, params, start);
  const clustering<host_bank> copied(bank, copies, nullptr, 2, 7, params, start);
  REQUIRE_OK(weighted.outcome);
  REQUIRE_OK(copied.outcome);
  CHECK(pqattn_test::max_error(weighted.centroids, pqattn_test::to_doubles(copied.centroids)) <= 1e-5);
  CHECK(std::abs(weighted.report.objective - copied.report.objective) <= 1e-5 * copied.report.objective);

  std::vector<float> more = points;
  std::vector<float> more_weights = weights;
  for (int i = 0; i < 50; ++i) {
    more.insert(more.end(), {1000.0f * random.normal(), 1e6f});
    more_weights.push_back(0.0f);
  }
  for (const kmeans_init init : {kmeans_init::plus_plus, kmeans_init::sample, kmeans_init::warm_start}) {
    const clustering<host_bank> without(bank, points, weights.data(), 2, 7, with(5, init), start);
    const clustering<host_bank> ignored(bank, more, more_weights.data(), 2, 7, with(5, init), start);
    REQUIRE_OK(ignored.outcome);
    CHECK(ignored.centroids == without.centroids);
  }
}

TEST_CASE("seeds decide, and nothing else", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(53);
  CAPTURE(random.seed());
  const std::vector<float> points = random.normals(500 * 4);
  for (const kmeans_init init : {kmeans_init::plus_plus, kmeans_init::sample}) {
    const clustering<host_bank> first(bank, points, nullptr, 4, 16, with(4, init, 9));
    const clustering<host_bank> again(bank, points, nullptr, 4, 16, with(4, init, 9));
    const clustering<host_bank> other(bank, points, nullptr, 4, 16, with(4, init, 10));
    REQUIRE_OK(first.outcome);
    CHECK(first.centroids == again.centroids);
    CHECK(first.codes == again.codes);
    CHECK(first.centroids != other.centroids);
  }
}

TEMPLATE_TEST_CASE("as many centroids as points: every point is one", "[train]", host_bank, scalar_bank) {
  TestType bank;
  pqattn_test::random_data random(54);
  CAPTURE(random.seed());
  for (const std::uint32_t count : {1u, 2u, 17u, 64u}) {
    for (const kmeans_init init : {kmeans_init::plus_plus, kmeans_init::sample}) {
      const std::vector<float> points = random.normals(count * 3);
      const clustering<TestType> run(bank, points, nullptr, 3, count, with(2, init));
      REQUIRE_OK(run.outcome);
      CHECK(run.report.objective == 0.0);
      CHECK(run.report.empty_clusters == 0);
      std::vector<std::uint16_t> codes = run.codes;
      std::sort(codes.begin(), codes.end());
      CHECK(std::adjacent_find(codes.begin(), codes.end()) == codes.end());
    }
  }
}

TEMPLATE_TEST_CASE("fewer points than centroids is an error and leaves the result", "[train]", host_bank, scalar_bank) {
  TestType bank;
  const std::vector<float> points(15 * 2, 1.0f);
  const clustering<TestType> run(bank, points, nullptr, 2, 16, with(3));
  CHECK(run.outcome.code == pqattn::status_code::too_few_samples);
  CHECK(run.outcome.expected == 16);
  CHECK(run.outcome.got == 15);
  CHECK(std::all_of(run.centroids.begin(), run.centroids.end(), [](float x) { return x == -77.0f; }));
}

TEMPLATE_TEST_CASE("duplicates leave centroids empty, and the report says how many", "[train]", host_bank,
                   scalar_bank) {
  TestType bank;
  pqattn_test::random_data random(55);
  CAPTURE(random.seed());
  const std::vector<float> distinct = random.normals(5 * 2);
  std::vector<float> points;
  for (std::size_t i = 0; i < 100; ++i) {
    points.insert(points.end(), {distinct[2 * (i % 5)], distinct[2 * (i % 5) + 1]});
  }
  for (const kmeans_init init : {kmeans_init::plus_plus, kmeans_init::sample}) {
    for (const std::uint32_t iterations : {0u, 1u, 10u}) {
      const clustering<TestType> run(bank, points, nullptr, 2, 16, with(iterations, init));
      REQUIRE_OK(run.outcome);
      CAPTURE(iterations, static_cast<int>(init));
      const std::set<std::uint16_t> used(run.codes.begin(), run.codes.end());
      CHECK(run.report.empty_clusters == 16 - used.size());
      CHECK(std::all_of(run.centroids.begin(), run.centroids.end(), [](float x) { return std::isfinite(x); }));
      if (iterations == 10) {
        CHECK(run.report.objective <= 1e-9);
        CHECK(run.report.empty_clusters == 11);
      }
    }
  }
  // All points alike.
  const clustering<TestType> alike(bank, std::vector<float>(40, 3.25f), nullptr, 1, 8, with(3));
  REQUIRE_OK(alike.outcome);
  CHECK(alike.report.objective == 0.0);
  CHECK(alike.report.empty_clusters == 7);
  CHECK(std::all_of(alike.centroids.begin(), alike.centroids.end(), [](float x) { return x == 3.25f; }));
}

TEMPLATE_TEST_CASE("empty clusters are moved to where they help", "[train]", host_bank, scalar_bank) {
  TestType bank;
  pqattn_test::random_data random(56);
  CAPTURE(random.seed());
  const std::vector<float> points = clumps(random, 400, 2, 12);
  // One centroid in the middle, the others far away: without repair they would stay there.
  std::vector<float> start(12 * 2, 1e6f);
  start[0] = start[1] = 0.0f;
  const clustering<TestType> run(bank, points, nullptr, 2, 12, with(30, kmeans_init::warm_start), start);
  REQUIRE_OK(run.outcome);
  CHECK(run.report.empty_clusters == 0);
  CHECK(std::all_of(run.centroids.begin(), run.centroids.end(), [](float x) { return std::abs(x) < 1000.0f; }));
  CHECK(run.report.objective < 0.9 * run.objectives[0]);
  for (std::size_t i = 1; i < run.objectives.size(); ++i) {
    CHECK(run.objectives[i] <= run.objectives[i - 1] * (1.0 + 1e-6));
  }
}

TEMPLATE_TEST_CASE("one repair gives every empty cluster a point of its own", "[train]", host_bank, scalar_bank) {
  TestType bank;
  pqattn_test::random_data random(59);
  CAPTURE(random.seed());
  const std::vector<float> points = random.normals(100 * 2);
  std::vector<float> start(12 * 2, 1e6f);
  start[0] = start[1] = 0.0f;
  const clustering<TestType> run(bank, points, nullptr, 2, 12, with(1, kmeans_init::warm_start), start);
  REQUIRE_OK(run.outcome);
  CHECK(run.report.empty_clusters == 0);
  CHECK(std::set<std::uint16_t>(run.codes.begin(), run.codes.end()).size() == 12);
}

TEMPLATE_TEST_CASE("repair looks at weights, not at distance alone", "[train]", host_bank, scalar_bank) {
  TestType bank;
  // A heavy pair one apart, and a light point far away.
  const std::vector<float> points = {-1.0f, 1.0f, 0.0f, 1000.0f};
  const float weights[] = {1e6f, 2e6f, 1e6f, 1e-3f};
  const clustering<TestType> run(bank, points, weights, 1, 2, with(1, kmeans_init::warm_start), {0.25f, 1e9f});
  REQUIRE_OK(run.outcome);
  CHECK(run.centroids[1] == -1.0f);  // 1e6 * 1.25^2 is the largest cost
}

TEST_CASE("a warm start from the result changes next to nothing", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(57);
  CAPTURE(random.seed());
  const std::vector<float> points = clumps(random, 300, 3, 6);
  const clustering<host_bank> first(bank, points, nullptr, 3, 6, with(60));
  const clustering<host_bank> second(bank, points, nullptr, 3, 6, with(3, kmeans_init::warm_start), first.centroids);
  CHECK(std::abs(second.objectives[0] - first.report.objective) <= 1e-9 * first.report.objective);
  CHECK(pqattn_test::max_error(second.centroids, pqattn_test::to_doubles(first.centroids)) <= 1e-5);
  // No iterations: the start comes back as it was.
  const clustering<host_bank> none(bank, points, nullptr, 3, 6, with(0, kmeans_init::warm_start), first.centroids);
  REQUIRE_OK(none.outcome);
  CHECK(none.centroids == first.centroids);
  CHECK(none.report.iterations == 0);
}

TEST_CASE("k-means++ starts better than sampling", "[train]") {
  host_bank bank;
  // Fixed seeds: a statement about a mean.
  double plus_plus = 0.0;
  double sampled = 0.0;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    pqattn_test::random_data random(123, seed);
    const std::vector<float> points = clumps(random, 400, 2, 20);
    plus_plus +=
        clustering<host_bank>(bank, points, nullptr, 2, 20, with(0, kmeans_init::plus_plus, seed)).objectives[0];
    sampled += clustering<host_bank>(bank, points, nullptr, 2, 20, with(0, kmeans_init::sample, seed)).objectives[0];
  }
  CHECK(plus_plus < 0.8 * sampled);
}

TEST_CASE("sampling draws distinct points in proportion to their weights", "[train]") {
  host_bank bank;
  std::vector<float> points(50);
  for (std::size_t i = 0; i < 50; ++i) {
    points[i] = static_cast<float>(i);
  }
  std::vector<float> weights(50, 1.0f);
  weights[7] = 50.0f;
  int drawn = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const clustering<host_bank> run(bank, points, weights.data(), 1, 3, with(0, kmeans_init::sample, seed));
    const std::set<float> distinct(run.centroids.begin(), run.centroids.end());
    CHECK(distinct.size() == 3);
    drawn += run.centroids[0] == 7.0f;
  }
  CHECK(drawn > 80);  // expected 101 of 200, standard deviation 7
  CHECK(drawn < 122);
}

TEST_CASE("points of any finite size give finite centroids", "[train]") {
  host_bank bank;
  pqattn_test::random_data random(58);
  CAPTURE(random.seed());
  for (const float scale : {1e-40f, 1e-20f, 1e18f, 1e30f, 3e37f}) {
    const std::vector<float> points = random.normals(100 * 2, scale);
    const clustering<host_bank> run(bank, points, nullptr, 2, 5, with(5));
    CAPTURE(scale);
    REQUIRE_OK(run.outcome);
    CHECK(std::all_of(run.centroids.begin(), run.centroids.end(), [](float x) { return std::isfinite(x); }));
    CHECK(std::isfinite(run.report.objective));
  }
}
