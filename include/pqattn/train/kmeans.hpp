// SPDX-License-Identifier: MIT
// Weighted k-means of one sub-vector, run where the bank keeps the points (AQPIM: importance-weighted k-means).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../bank/bank.hpp"
#include "../config.hpp"
#include "../core/memory.hpp"
#include "../core/progress.hpp"
#include "../core/random.hpp"
#include "../core/status.hpp"

namespace pqattn {
inline namespace v0 {

/// Where the first centroids come from.
enum class kmeans_init : std::uint8_t {
  plus_plus,   ///< k-means++: each next one drawn with probability weight * squared distance (Arthur 2007)
  sample,      ///< distinct points drawn by weight: free, worse
  warm_start,  ///< the centroids the caller passes in
};

/// Parameters of k-means. The same parameters, points and bank give the same centroids, bit for bit.
struct kmeans_params {
  std::uint32_t iterations = 10;  ///< Lloyd iterations; the paper uses 4
  kmeans_init init = kmeans_init::plus_plus;
  std::uint64_t seed = 1234;
};

/// What k-means did.
struct kmeans_report {
  std::uint32_t iterations = 0;      ///< Lloyd iterations run
  std::uint32_t empty_clusters = 0;  ///< centroids without a point at the end (fewer distinct points than centroids)
  double objective = 0.0;            ///< sum of weight * squared distance to the nearest centroid, at the end
};

/// Memory of one k-means run, sized for `count` points and `centroids` centroids of `width` numbers.
struct kmeans_workspace {
  std::uint16_t* codes = nullptr;  ///< count; after the run: the nearest centroid of each point
  float* distances = nullptr;      ///< count
  float* nearest = nullptr;        ///< count
  double* sums = nullptr;          ///< centroids * width
  double* mass = nullptr;          ///< centroids

  /// Takes (or counts) the pieces.
  void carve(carver& memory, std::size_t count, std::uint32_t width, std::uint32_t centroids) noexcept {
    codes = memory.take<std::uint16_t>(count);
    distances = memory.take<float>(count);
    nearest = memory.take<float>(count);
    sums = memory.take<double>(std::size_t{centroids} * width);
    mass = memory.take<double>(centroids);
  }
};

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Points of one run and everything that stays fixed while it iterates.
template <class Bank>
struct kmeans_problem {
  Bank& bank;
  typename Bank::address resident;  ///< the points in the bank
  const float* points;              ///< the same, row-major (count, width), in host memory
  const float* weights;             ///< count, or null for all 1
  std::size_t count;
  std::uint32_t width;
  std::uint32_t centroids;

  [[nodiscard]] double weight(std::size_t index) const noexcept {
    return weights == nullptr ? 1.0 : static_cast<double>(weights[index]);
  }
  [[nodiscard]] const float* point(std::size_t index) const noexcept { return points + index * width; }
};

/// First index whose running sum of mass(i) exceeds `target`; the last index with positive mass otherwise.
template <class Mass>
[[nodiscard]] std::size_t pick_by_mass(std::size_t count, double target, Mass&& mass) noexcept {
  double sum = 0.0;
  std::size_t last = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double m = mass(i);
    if (m > 0.0) {
      last = i;
      sum += m;
      if (sum > target) {
        return i;
      }
    }
  }
  return last;
}

template <class Mass>
[[nodiscard]] double total_mass(std::size_t count, Mass&& mass) noexcept {
  double sums[4] = {};  // an addition waits for the one before it
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (std::size_t chain = 0; chain < 4; ++chain) {
      sums[chain] += mass(i + chain);
    }
  }
  for (; i < count; ++i) {
    sums[0] += mass(i);
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/// Squared distances of all points to one centroid.
template <class Bank>
status distances_to(const kmeans_problem<Bank>& problem, const float* centroid, const kmeans_workspace& work) {
  return problem.bank.assign(problem.resident, problem.count, problem.width, centroid, 1, work.codes, work.distances);
}

/// k-means++ and sampling share the draw: sampling marks drawn points, k-means++ also weighs by distance.
template <class Bank>
status draw_initial(const kmeans_problem<Bank>& problem, const kmeans_params& params, const kmeans_workspace& work,
                    float* centroids) {
  random_source random(params.seed);
  const bool weigh_by_distance = params.init == kmeans_init::plus_plus;
  std::fill(work.nearest, work.nearest + problem.count, 1.0f);  // 0 once drawn
  for (std::uint32_t k = 0; k < problem.centroids; ++k) {
    const auto mass = [&](std::size_t i) { return problem.weight(i) * static_cast<double>(work.nearest[i]); };
    double total = total_mass(problem.count, mass);
    std::size_t drawn = 0;
    if (total > 0.0) {
      drawn = pick_by_mass(problem.count, random.uniform() * total, mass);
    } else {
      // Fewer distinct (or fewer weighted) points than centroids: repeats are harmless and repaired or reported.
      drawn = random.below(problem.count);
    }
    float* centroid = centroids + std::size_t{k} * problem.width;
    std::copy_n(problem.point(drawn), problem.width, centroid);
    if (!weigh_by_distance) {
      work.nearest[drawn] = 0.0f;
      continue;
    }
    PQATTN_TRY(distances_to(problem, centroid, work));
    for (std::size_t i = 0; i < problem.count; ++i) {
      work.nearest[i] = k == 0 ? work.distances[i] : (std::min)(work.nearest[i], work.distances[i]);
    }
  }
  return {};
}

[[nodiscard]] inline bool is_empty_cluster(double mass) noexcept {
  return !(mass > 0.0);
}

/// Weighted means of non-empty clusters. Empty ones move onto the worst-served point (largest weight * distance),
/// each onto another, which can only lower the objective; when every point is served exactly they stay where they are.
template <class Bank>
void update_centroids(const kmeans_problem<Bank>& problem, const kmeans_workspace& work, float* centroids) {
  for (std::uint32_t k = 0; k < problem.centroids; ++k) {
    float* centroid = centroids + std::size_t{k} * problem.width;
    if (!is_empty_cluster(work.mass[k])) {
      for (std::uint32_t c = 0; c < problem.width; ++c) {
        centroid[c] = static_cast<float>(work.sums[std::size_t{k} * problem.width + c] / work.mass[k]);
      }
      continue;
    }
    std::size_t worst = 0;
    double worst_cost = 0.0;
    for (std::size_t i = 0; i < problem.count; ++i) {
      const double cost = problem.weight(i) * static_cast<double>(work.distances[i]);
      if (cost > worst_cost) {
        worst = i;
        worst_cost = cost;
      }
    }
    if (worst_cost > 0.0) {
      std::copy_n(problem.point(worst), problem.width, centroid);
      work.distances[worst] = 0.0f;
    }
  }
}

/// Centroids that no point is assigned to. Overwrites the masses.
template <class Bank>
[[nodiscard]] std::uint32_t count_empty(const kmeans_problem<Bank>& problem, const kmeans_workspace& work) noexcept {
  std::fill_n(work.mass, problem.centroids, 0.0);
  for (std::size_t i = 0; i < problem.count; ++i) {
    work.mass[work.codes[i]] += 1.0;
  }
  return static_cast<std::uint32_t>(std::count(work.mass, work.mass + problem.centroids, 0.0));
}

template <class Bank>
[[nodiscard]] double objective_of(const kmeans_problem<Bank>& problem, const kmeans_workspace& work) noexcept {
  return total_mass(problem.count,
                    [&](std::size_t i) { return problem.weight(i) * static_cast<double>(work.distances[i]); });
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Clusters `count` row-major (count, width) points into `centroids` centroids.
///
/// `resident` holds bank.point_bytes(count, width) bytes of bank memory and is overwritten with the points.
/// `result` (centroids, width) is read first when params.init is warm_start. `objectives`, when not null, has room
/// for params.iterations + 1 numbers: the objective before each iteration and at the end; it never rises.
/// After success work.codes are the nearest centroids of the points.
/// Pre: finite points, finite weights >= 0 (see train_codebook, which checks). Errors: too_few_samples when
/// count < centroids; whatever the bank reports; cancelled.
/// Cost: (iterations + 1) * count * centroids * width multiply-adds, once more for k-means++.
template <bank_policy Bank>
status kmeans(Bank& bank, const float* points, const float* weights, std::size_t count, std::uint32_t width,
              std::uint32_t centroids, const kmeans_params& params, typename Bank::address resident,
              const kmeans_workspace& work, progress_counter& progress, float* result, double* objectives,
              kmeans_report& report) {
  if (count < centroids) {
    return failure(status_code::too_few_samples, "samples.rows", "must be at least the number of centroids", centroids,
                   count);
  }
  const detail::kmeans_problem<Bank> problem{bank, resident, points, weights, count, width, centroids};
  PQATTN_TRY(bank.store_points(points, count, width, resident));
  if (params.init != kmeans_init::warm_start) {
    PQATTN_TRY(detail::draw_initial(problem, params, work, result));
  }
  PQATTN_TRY(bank.assign(resident, count, width, result, centroids, work.codes, work.distances));
  report = {};
  report.objective = detail::objective_of(problem, work);
  for (std::uint32_t iteration = 0; iteration < params.iterations; ++iteration) {
    if (objectives != nullptr) {
      objectives[iteration] = report.objective;
    }
    PQATTN_TRY(bank.centroid_sums(resident, count, width, weights, work.codes, centroids, work.sums, work.mass));
    detail::update_centroids(problem, work, result);
    PQATTN_TRY(bank.assign(resident, count, width, result, centroids, work.codes, work.distances));
    report.objective = detail::objective_of(problem, work);
    ++report.iterations;
    PQATTN_TRY(progress.step());
  }
  if (objectives != nullptr) {
    objectives[params.iterations] = report.objective;
  }
  report.empty_clusters = detail::count_empty(problem, work);
  return {};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
