// SPDX-License-Identifier: MIT
#include "evaluate.hpp"

#include <chrono>
#include <cmath>
#include <numeric>

namespace tiny_lm {
namespace {

/// logits -> ln softmax(logits), the sum in double.
void log_softmax(std::span<const float> logits, vector& result) {
  const auto values = as_vector(logits);
  const float largest = values.maxCoeff();
  const double sum = (values.array() - largest).exp().cast<double>().sum();
  result = values.array() - (largest + static_cast<float>(std::log(sum)));
}

double divergence(const vector& reference, const vector& run) {
  return (reference.array().exp() * (reference - run).array()).cast<double>().sum();
}

bool same_best(const vector& reference, const vector& run) {
  Eigen::Index reference_best = 0;
  Eigen::Index run_best = 0;
  reference.maxCoeff(&reference_best);
  run.maxCoeff(&run_best);
  return reference_best == run_best;
}

/// Called for every target with the distribution that predicts it.
using visitor = std::function<void(std::size_t target, const vector& distribution)>;

outcome run_tokens(const model& weights, kv_cache& cache, std::span<const token_id> tokens,
                   const progress_callback& progress, const visitor& visit, evaluation& result) {
  if (tokens.size() < 2) {
    return expected_got("tokens", "2 or more", tokens.size());
  }
  const auto start = std::chrono::steady_clock::now();
  result = {};
  result.loss.assign(tokens.size(), 0.0);
  result.divergence.assign(tokens.size(), 0.0);
  result.top1_agrees.assign(tokens.size(), 1.0);
  decoder decode(weights, cache);
  decode.reset();
  vector distribution;
  double total_loss = 0.0;
  for (std::size_t target = 1; target <= tokens.size(); ++target) {
    TINY_LM_TRY(decode.step(tokens[target - 1]));
    if (target == tokens.size()) {
      break;  // the last token only enters the cache
    }
    log_softmax(decode.logits(), distribution);
    const token_id truth = tokens[target];
    if (truth < 0 || truth >= distribution.size()) {
      return expected_got("token", "one of the vocabulary", truth);
    }
    result.loss[target] = -static_cast<double>(distribution[truth]);
    total_loss += result.loss[target];
    visit(target, distribution);
    if (progress) {
      progress(target + 1, total_loss / static_cast<double>(target));
    }
  }
  result.memory = cache.memory();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return {};
}

}  // namespace

outcome evaluate_reference(const model& weights, kv_cache& cache, std::span<const token_id> tokens,
                           const progress_callback& progress, log_probabilities& distributions, evaluation& result) {
  distributions.setZero(as_index(tokens.size()), as_index(weights.config.vocabulary));
  const auto keep = [&](std::size_t target, const vector& distribution) {
    distributions.row(as_index(target)) = distribution.transpose();
  };
  return run_tokens(weights, cache, tokens, progress, keep, result);
}

outcome evaluate_against(const log_probabilities& reference, const model& weights, kv_cache& cache,
                         std::span<const token_id> tokens, const progress_callback& progress, evaluation& result) {
  if (reference.rows() != as_index(tokens.size()) || reference.cols() != as_index(weights.config.vocabulary)) {
    return expected_got("rows of the reference", tokens.size(), reference.rows());
  }
  vector row;
  const auto compare = [&](std::size_t target, const vector& distribution) {
    row = reference.row(as_index(target)).transpose();
    result.divergence[target] = divergence(row, distribution);
    result.top1_agrees[target] = same_best(row, distribution) ? 1.0 : 0.0;
  };
  return run_tokens(weights, cache, tokens, progress, compare, result);
}

double mean_over(std::span<const double> per_target, target_range range) {
  const auto part = per_target.subspan(range.first, range.last - range.first + 1);
  return std::accumulate(part.begin(), part.end(), 0.0) / static_cast<double>(part.size());
}

}  // namespace tiny_lm
