// SPDX-License-Identifier: MIT
// One program of three translation units with different instruction sets: each must train, code and attend as if it
// were alone. Judged by plain loops over what each unit decodes.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "isa_unit.hpp"

namespace {

int failures = 0;

void expect(bool holds, const char* arch, const char* what, double value) {
  if (!holds) {
    std::printf("FAILED on %s: %s (%g)\n", arch, what, value);
    ++failures;
  }
}

/// Exact attention over the given keys and values in double precision.
std::vector<double> attention(const unit_task& task, const std::vector<float>& keys, const std::vector<float>& values) {
  constexpr std::size_t dim = unit_task::dim;
  std::vector<double> out(unit_task::rows * dim);
  for (std::size_t row = 0; row < unit_task::rows; ++row) {
    std::vector<double> weights(unit_task::tokens);
    double total = 0.0;
    for (std::size_t t = 0; t < unit_task::tokens; ++t) {
      double score = 0.0;
      for (std::size_t c = 0; c < dim; ++c) {
        score += static_cast<double>(task.queries[row * dim + c]) * static_cast<double>(keys[t * dim + c]);
      }
      total += weights[t] = std::exp(score / std::sqrt(static_cast<double>(dim)));
    }
    for (std::size_t t = 0; t < unit_task::tokens; ++t) {
      for (std::size_t c = 0; c < dim; ++c) {
        out[row * dim + c] += weights[t] / total * static_cast<double>(values[t * dim + c]);
      }
    }
  }
  return out;
}

/// Squared error as a share of the squared signal.
template <class Signal>
double relative_error(const std::vector<float>& got, const Signal& expected) {
  double error = 0.0;
  double signal = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto want = static_cast<double>(expected[i]);
    error += (static_cast<double>(got[i]) - want) * (static_cast<double>(got[i]) - want);
    signal += want * want;
  }
  return got.empty() ? 1.0 : error / signal;
}

/// Tokens whose code is not the nearest centroid, beyond rounding.
std::size_t wrong_codes(const unit_task& task, const unit_result& result) {
  constexpr std::size_t width = unit_task::dim / unit_task::subvectors;
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < result.codes.size(); ++i) {
    const std::size_t group = i % unit_task::subvectors;
    const float* x = task.keys.data() + i / unit_task::subvectors * unit_task::dim + group * width;
    double own = 0.0;
    double best = 1e30;
    for (std::size_t k = 0; k < unit_task::centroids; ++k) {
      const float* centroid = result.centroids.data() + (group * unit_task::centroids + k) * width;
      double distance = 0.0;
      for (std::size_t c = 0; c < width; ++c) {
        const double difference = static_cast<double>(x[c]) - static_cast<double>(centroid[c]);
        distance += difference * difference;
      }
      best = std::min(best, distance);
      if (k == result.codes[i]) {
        own = distance;
      }
    }
    wrong += own > best + 1e-5 ? 1 : 0;
  }
  return wrong;
}

void check(const unit_task& task, const unit_result& result) {
  if (result.failure != nullptr) {
    expect(false, result.arch, result.failure, 0.0);
    return;
  }
  expect(wrong_codes(task, result) == 0, result.arch, "codes that are not nearest", 0.0);
  const double coding = relative_error(result.decoded_keys, task.keys);
  expect(coding > 0.0 && coding < 0.35, result.arch, "coding error of the keys", coding);
  const double rounding = relative_error(result.out, attention(task, result.decoded_keys, result.decoded_values));
  expect(rounding < 5e-4, result.arch, "error against attention over the decoded rows", rounding);
  const double cached = relative_error(result.cached_out, attention(task, task.keys, task.values));
  expect(cached < 0.5, result.arch, "error of the cache against exact attention", cached);
  expect(!result.saved_rows.empty() && result.saved_rows == result.loaded_rows, result.arch,
         "a saved sequence, loaded, is another", 0.0);
  expect(
      std::string(result.message) == "policy.outlier_share must be 0 to 0.5: expected 0.5, got 0.75 (invalid_argument)",
      result.arch, result.message, 0.0);
  std::printf("%-12s coding error %.4f, attention error %.2e, cache error %.4f\n", result.arch, coding, rounding,
              cached);
}

using unit_function = void (*)(const unit_task&, unit_result&);

unit_result run(unit_function unit, const unit_task& task) {
  unit_result result;
  result.centroids.resize(unit_task::centroids * unit_task::dim);
  result.codes.resize(unit_task::tokens * unit_task::subvectors);
  result.decoded_keys.resize(task.keys.size());
  result.decoded_values.resize(task.values.size());
  result.out.resize(task.queries.size());
  result.cached_out.resize(task.queries.size());
  result.saved_rows.resize(2 * task.keys.size());
  result.loaded_rows.resize(2 * task.keys.size());
  unit(task, result);
  return result;
}

}  // namespace

int main() {
  unit_task task;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (auto* data : {&task.keys, &task.values, &task.queries}) {
    data->resize((data == &task.queries ? unit_task::rows : unit_task::tokens) * unit_task::dim);
    for (float& x : *data) {
      x = normal(random);
    }
  }
  std::vector<unit_result> results{run(run_baseline, task)};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    results.push_back(run(run_avx2, task));
    expect(std::strcmp(results[0].arch, results[1].arch) != 0, results[1].arch, "must differ from the baseline", 0.0);
  }
#endif
  results.push_back(run(run_native, task));
  for (const unit_result& result : results) {
    check(task, result);
  }
  // Every unit, once more, after the others ran.
  expect(run(run_baseline, task).out == results[0].out, results[0].arch, "another answer the second time", 0.0);
  return failures == 0 ? 0 : 1;
}
