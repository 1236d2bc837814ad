// SPDX-License-Identifier: MIT
// How much a cache changes what the model says: loss per token, and the distance of its next-token distributions from
// those of the exact cache on the same text.
#pragma once

#include "files.hpp"
#include "kv_cache.hpp"
#include "linear.hpp"
#include "model.hpp"
#include "outcome.hpp"

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

namespace tiny_lm {

/// Targets `first` to `last`, both included. Target t is tokens[t], predicted from tokens[0 .. t-1]; t >= 1.
struct target_range {
  std::size_t first = 1;
  std::size_t last = 1;
};

/// One run over a text. The vectors are indexed by target; entry 0 means nothing (no one predicts the first token).
struct evaluation {
  std::vector<double> loss;         ///< -ln p(target), nats
  std::vector<double> divergence;   ///< KL(reference || run) of the distribution that predicts the target, nats
  std::vector<double> top1_agrees;  ///< 1 where both runs hold the same token most likely, else 0
  cache_memory memory;              ///< after the last token
  double seconds = 0.0;

  [[nodiscard]] target_range all_targets() const noexcept { return {1, loss.size() - 1}; }
};

/// Natural-log next-token probabilities, one row per target: [tokens][vocabulary], row 0 unused.
using log_probabilities = matrix;

/// Told after every token: tokens done, and the mean loss so far.
using progress_callback = std::function<void(std::size_t done, double mean_loss)>;

/// Runs `tokens` (2 or more) through the model and keeps every distribution in `distributions`. Divergences are 0.
outcome evaluate_reference(const model& weights, kv_cache& cache, std::span<const token_id> tokens,
                           const progress_callback& progress, log_probabilities& distributions, evaluation& result);

/// Runs `tokens` through the model with another cache and compares with the reference's distributions.
outcome evaluate_against(const log_probabilities& reference, const model& weights, kv_cache& cache,
                         std::span<const token_id> tokens, const progress_callback& progress, evaluation& result);

/// Mean over a range of targets. Pre: 1 <= first <= last < per_target.size().
[[nodiscard]] double mean_over(std::span<const double> per_target, target_range range);

}  // namespace tiny_lm
