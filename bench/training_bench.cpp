// SPDX-License-Identifier: MIT
// Training of one head's codebook: n tokens of d = 128 channels in m sub-vectors of K centroids.
#include <benchmark/benchmark.h>

#include <algorithm>

#include "pqattn/bank/host/host_bank.hpp"
#include "pqattn/train/codebook_trainer.hpp"
#include "support/counters.hpp"
#include "support/memory.hpp"

namespace {

using bank_type = pqattn::host_bank<>;

/// Points of all sub-vectors in the bank. Arguments n, m, K.
struct training_scene {
  explicit training_scene(const benchmark::State& state)
      : count(static_cast<std::size_t>(state.range(0))),
        groups(static_cast<std::uint32_t>(state.range(1))),
        centroids(static_cast<std::uint32_t>(state.range(2))),
        width(128 / groups),
        book(bench::normals(std::size_t{128} * centroids)),
        codes(count),
        distances(count),
        sums(std::size_t{centroids} * width),
        mass(centroids),
        points(groups * bank.point_bytes(count, width)) {
    const std::vector<float> rows = bench::normals(count * width);
    for (std::uint32_t group = 0; group < groups; ++group) {
      static_cast<void>(bank.store_points(rows.data(), count, width, points_of(group)));
    }
  }
  [[nodiscard]] std::byte* points_of(std::uint32_t group) const {
    return points.data() + group * bank.point_bytes(count, width);
  }
  /// Bytes a pass over all points reads, and their codes.
  [[nodiscard]] double point_bytes_read() const { return static_cast<double>(count) * 128.0 * sizeof(float); }
  [[nodiscard]] double code_bytes_read() const { return static_cast<double>(count) * groups * sizeof(std::uint16_t); }
  [[nodiscard]] float* book_of(std::uint32_t group) { return book.data() + std::size_t{group} * centroids * width; }

  void assign(std::uint32_t group) {
    static_cast<void>(
        bank.assign(points_of(group), count, width, book_of(group), centroids, codes.data(), distances.data()));
  }
  void sum(std::uint32_t group) {
    static_cast<void>(
        bank.centroid_sums(points_of(group), count, width, nullptr, codes.data(), centroids, sums.data(), mass.data()));
  }
  void move_centroids(std::uint32_t group) {
    for (std::uint32_t k = 0; k < centroids; ++k) {
      for (std::uint32_t c = 0; c < width && mass[k] > 0.0; ++c) {
        book_of(group)[k * width + c] = static_cast<float>(sums[k * width + c] / mass[k]);
      }
    }
  }

  bank_type bank;
  std::size_t count;
  std::uint32_t groups;
  std::uint32_t centroids;
  std::uint32_t width;
  std::vector<float> book;
  std::vector<std::uint16_t> codes;
  std::vector<float> distances;
  std::vector<double> sums;
  std::vector<double> mass;
  bench::pages points;
};

template <bool Assign, bool Sum>
void training_program(benchmark::State& state) {
  training_scene scene(state);
  scene.assign(0);
  for (auto iteration : state) {
    for (std::uint32_t group = 0; group < scene.groups; ++group) {
      if constexpr (Assign) {
        scene.assign(group);
      }
      if constexpr (Sum) {
        scene.sum(group);
      }
      if constexpr (Assign && Sum) {
        scene.move_centroids(group);
      }
    }
    benchmark::ClobberMemory();
  }
  if constexpr (Assign) {
    // Two floating-point operations per coordinate of each (point, centroid) pair.
    state.counters["flop_per_second"] = benchmark::Counter(
        2.0 * static_cast<double>(state.iterations()) * static_cast<double>(scene.count) * 128.0 * scene.centroids,
        benchmark::Counter::kIsRate);
    bench::count_ports(state, scene.count, bench::port_bound<>::distances(128, scene.centroids));
  }
  bench::count_bytes(state, (Assign ? scene.point_bytes_read() : 0.0) +
                                (Sum ? scene.point_bytes_read() + scene.code_bytes_read() : 0.0));
  bench::label<pqattn::isa::native>(state);
}

/// train_codebook as a cache calls it: gathering, the first centroids, the nearest of all points, 4 iterations,
/// rounding. Drawn: whether the first centroids are drawn by k-means++, which measures every point against one centroid
/// after the other and is part of the time, or given, the same ones in every iteration of the bench.
template <bool Drawn>
void train_codebook(benchmark::State& state) {
  const auto count = static_cast<std::size_t>(state.range(0));
  const pqattn::geometry shape{128, static_cast<std::uint32_t>(state.range(1)),
                               static_cast<std::uint32_t>(state.range(2)), 1, nullptr};
  const std::vector<float> rows = bench::normals(count * 128);
  const pqattn::rows_view samples = pqattn::view_rows(rows.data(), count, 128);
  bank_type bank;
  pqattn::training_params params;
  params.storage = pqattn::codebook_storage::i8;
  const std::size_t bytes = pqattn::training_workspace_bytes(bank, shape, samples, params);
  const bench::pages workspace(bytes);
  std::vector<float> centroids(shape.codebook_values());
  pqattn::training_report report;
  const auto train = [&] {
    return pqattn::train_codebook(bank, shape, samples, nullptr, params, workspace.data(), bytes, centroids.data(),
                                  report);
  };
  if constexpr (!Drawn) {
    params.kmeans.iterations = 0;
    static_cast<void>(train());
    params.kmeans.init = pqattn::kmeans_init::warm_start;
  }
  params.kmeans.iterations = 4;
  const std::vector<float> start = centroids;
  for (auto iteration : state) {
    std::copy(start.begin(), start.end(), centroids.begin());
    if (!train()) {
      state.SkipWithError("training refused");
      break;
    }
  }
  const double assignments = params.kmeans.iterations + (Drawn ? 2.0 : 1.0);
  bench::count_ports(state, count, bench::port_bound<>::distances(128, assignments * shape.centroids));
  bench::label<pqattn::isa::native>(state);
}

void training_arguments(benchmark::internal::Benchmark* family) {
  family->ArgNames({"n", "m", "K"})->Unit(benchmark::kMillisecond)->UseRealTime();
  family->Args({4096, 32, 256})->Args({4096, 64, 256})->Args({4096, 64, 16});
}

BENCHMARK(training_program<true, true>)->Name("lloyd_iteration")->Apply(training_arguments);
BENCHMARK(training_program<true, false>)->Name("assign")->Apply(training_arguments);
BENCHMARK(training_program<false, true>)->Name("centroid_sums")->Apply(training_arguments);
BENCHMARK(train_codebook<true>)->Name("train_codebook")->Apply(training_arguments);
BENCHMARK(train_codebook<false>)->Name("train_iterations")->Apply(training_arguments);

}  // namespace
