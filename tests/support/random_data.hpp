// SPDX-License-Identifier: MIT
// Random test data. The seed comes from Catch2 (printed at the start of a run, set with --rng-seed), so a failure can
// be repeated; tests that need a fixed statistic pass a seed of their own.
#pragma once

#include <catch2/catch_get_random_seed.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "pqattn/core/random.hpp"

namespace pqattn_test {

class random_data {
 public:
  /// One stream of the run's seed; print `seed()` with CAPTURE or INFO.
  explicit random_data(std::uint64_t stream) : random_data(Catch::getSeed(), stream) {}
  random_data(std::uint64_t seed, std::uint64_t stream) : seed_(pqattn::mix_seed(seed, stream)), source_(seed_) {}

  [[nodiscard]] std::uint64_t seed() const { return seed_; }

  double uniform(double low = 0.0, double high = 1.0) { return low + (high - low) * source_.uniform(); }
  std::size_t below(std::size_t bound) { return source_.below(bound); }
  bool chance(double probability) { return source_.uniform() < probability; }

  /// Standard normal, Box-Muller.
  float normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - source_.uniform()));
    return static_cast<float>(radius * std::cos(6.283185307179586 * source_.uniform()));
  }

  std::vector<float> normals(std::size_t count, float scale = 1.0f, float mean = 0.0f) {
    std::vector<float> values(count);
    for (float& value : values) {
      value = mean + scale * normal();
    }
    return values;
  }

  std::vector<std::uint16_t> codes(std::size_t count, std::size_t limit) {
    std::vector<std::uint16_t> values(count);
    for (std::uint16_t& value : values) {
      value = static_cast<std::uint16_t>(below(limit));
    }
    return values;
  }

  /// A random order of 0 .. count - 1.
  template <class Index>
  std::vector<Index> permutation(std::size_t count) {
    std::vector<Index> order(count);
    for (std::size_t i = 0; i < count; ++i) {
      order[i] = static_cast<Index>(i);
    }
    for (std::size_t i = count; i > 1; --i) {
      std::swap(order[i - 1], order[below(i)]);
    }
    return order;
  }

 private:
  std::uint64_t seed_;
  pqattn::random_source source_;
};

}  // namespace pqattn_test
