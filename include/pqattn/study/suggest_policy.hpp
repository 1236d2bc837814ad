// SPDX-License-Identifier: MIT
// Which bits where: every KV head's keys and values are coded at several rates on calibration activations, and bits go
// where they lower the attention error most.
//
// Errors of different sides and heads add up (small ones do), so the best split for a budget walks the lower convex
// hulls of the measured curves, always taking the step with the largest gain per bit (Lagrangian bit allocation).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../cache/policy.hpp"
#include "../config.hpp"
#include "../core/memory.hpp"
#include "../train/channel_order.hpp"
#include "attention_error.hpp"
#include "pq_reconstruction.hpp"

namespace pqattn {
inline namespace v0 {
inline namespace PQATTN_ISA_UNIT {

/// Activations of one KV head for calibration. Positions start at 0.
struct calibration_head {
  std::uint32_t layer = 0;
  std::uint32_t kv_head = 0;
  rows_view keys;                      ///< (tokens, d_k) as attention meets them
  rows_view values;                    ///< (tokens, d_v)
  const rows_view* queries = nullptr;  ///< (tokens, d_k) of each query head that reads this KV head
  std::size_t query_heads = 0;
};

/// What is wanted and how it is measured. Exactly one of the targets is above 0.
struct suggest_params {
  double target_bits = 0.0;   ///< mean code bits per element
  double target_error = 0.0;  ///< mean output NMSE, with as few bits as possible
  std::uint32_t sinks = 8;
  std::uint32_t recent = 32;
  /// Share of the calibration tokens that teaches; the queries after it judge.
  double taught_share = 0.75;
  float scale = 0.0f;  ///< of the softmax; 0 means 1 / sqrt(d_k)
  rope rotation;       ///< keys are coded before it
  std::uint64_t seed = 1;
  bool allow_exact = true;  ///< a side may stay exact when the target asks for it
};

/// One side's measured choice: index into the rates that were tried.
struct rate_choice {
  side_policy how;
  double bits = 0.0;   ///< of the codes of one token row, and its share of outliers
  double error = 0.0;  ///< output NMSE of this side alone, summed over its query heads
};

/// Why a side is coded as it is.
struct policy_reason {
  std::size_t head = 0;  ///< index of the calibration head
  bool keys = false;
  double bits = 0.0;         ///< per element
  double error = 0.0;        ///< output NMSE of this side alone, mean over its query heads
  double error_below = 0.0;  ///< of the next cheaper choice on the hull; 0 when there is none
  double error_above = 0.0;  ///< of the next dearer choice
};

/// The policy as a whole.
struct policy_summary {
  double code_bits = 0.0;       ///< mean per element over all heads, K and V
  double expected_error = 0.0;  ///< mean output NMSE, errors of K and V added
  double uniform_error = 0.0;   ///< the same for one shape of keys and one of values everywhere, at no more bits
};

/// Most choices a side may have.
inline constexpr std::size_t max_rate_choices = 16;

/// One side's curve.
struct rate_curve {
  rate_choice choices[max_rate_choices];
  std::size_t count = 0;
  std::size_t hull[max_rate_choices] = {};  ///< indices on the lower convex hull, bits rising, errors falling
  std::size_t hull_count = 0;
};

/// Finds the hull of a curve. Choices may come in any order. O(count^2).
inline void find_hull(rate_curve& curve) noexcept {
  curve.hull_count = 0;
  std::size_t at = 0;
  for (std::size_t i = 1; i < curve.count; ++i) {
    const rate_choice& a = curve.choices[i];
    const rate_choice& b = curve.choices[at];
    at = a.bits < b.bits || (a.bits == b.bits && a.error < b.error) ? i : at;
  }
  while (curve.count != 0) {
    curve.hull[curve.hull_count++] = at;
    std::size_t next = curve.count;
    double best = 0.0;
    for (std::size_t i = 0; i < curve.count; ++i) {
      const double bits = curve.choices[i].bits - curve.choices[at].bits;
      const double gain = curve.choices[at].error - curve.choices[i].error;
      if (bits > 0.0 && gain > 0.0 && gain / bits > best) {
        best = gain / bits;
        next = i;
      }
    }
    if (next == curve.count) {
      return;
    }
    at = next;
  }
}

/// Walks the hulls from their cheapest ends, always by the step with the largest gain per bit that still fits, until
/// `bits` (sum over curves) are spent or the sum of errors is at most `error`; steps[i] is curve i's place on its hull.
/// Pass an infinite `bits` or a negative `error` to leave one out. O(steps * count).
inline void allocate_bits(const rate_curve* curves, std::size_t count, double bits, double error,
                          std::size_t* steps) noexcept {
  double spent = 0.0;
  double left = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    steps[i] = 0;
    spent += curves[i].choices[curves[i].hull[0]].bits;
    left += curves[i].choices[curves[i].hull[0]].error;
  }
  while (left > error) {
    std::size_t best = count;
    double best_slope = 0.0;
    for (std::size_t i = 0; i < count; ++i) {
      if (steps[i] + 1 >= curves[i].hull_count) {
        continue;
      }
      const rate_choice& now = curves[i].choices[curves[i].hull[steps[i]]];
      const rate_choice& next = curves[i].choices[curves[i].hull[steps[i] + 1]];
      const double slope = (now.error - next.error) / (next.bits - now.bits);
      if (spent + next.bits - now.bits <= bits && slope > best_slope) {
        best = i;
        best_slope = slope;
      }
    }
    if (best == count) {
      return;
    }
    const rate_choice& now = curves[best].choices[curves[best].hull[steps[best]]];
    const rate_choice& next = curves[best].choices[curves[best].hull[steps[best] + 1]];
    spent += next.bits - now.bits;
    left -= now.error - next.error;
    ++steps[best];
  }
}

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Rates every side is measured at, besides the preset's own and exact.
inline constexpr double tried_rates[] = {0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0};

/// Measures the curves of one head.
template <class Bank>
struct head_measurement {
  Bank& bank;
  const calibration_head& head;
  const suggest_params& params;
  std::size_t taught;  ///< first judged token
  const memory_resource& memory;
  float* rows = nullptr;    ///< (tokens, max of the widths): what is coded
  float* metric = nullptr;  ///< (d_k, d_k)

  [[nodiscard]] std::size_t dim(bool keys) const noexcept { return keys ? head.keys.cols : head.values.cols; }
  [[nodiscard]] std::size_t first() const noexcept { return params.sinks < taught ? params.sinks : taught; }
  [[nodiscard]] std::size_t last() const noexcept {
    const std::size_t tokens = head.keys.rows;
    const std::size_t end = params.recent < tokens ? tokens - params.recent : 0;
    return end > first() ? end : first();
  }

  status make_metric() const {
    query_metric_params settings;
    settings.scale = params.scale;
    settings.sinks = params.sinks;
    settings.recent = params.recent;
    settings.seed = mix_seed(params.seed, head.kv_head);
    const std::size_t start = first() + params.recent < taught / 2 ? first() + params.recent : taught / 2;
    return spread_query_metric(head.queries, head.query_heads, head.keys.slice(0, taught), params.rotation, settings,
                               start, 256, 0.05f, metric, memory);
  }

  /// Error of attention when only one side is coded with `shape`.
  status measure(bool keys, const geometry& shape, float outlier_share, double& error) const {
    const rows_view& source = keys ? head.keys : head.values;
    const std::size_t width = source.cols;
    std::uint16_t order[max_dim];
    pq_recipe recipe;
    recipe.shape = shape;
    recipe.outlier_share = static_cast<double>(outlier_share);
    recipe.training.kmeans.seed = mix_seed(params.seed, keys ? 0 : 1);
    recipe.rotate = !keys;
    if (keys) {
      fill_pair_order(params.rotation, shape.dim, order);
      recipe.shape.channel_order = order;
      recipe.metric = metric;
    }
    for (std::size_t r = 0; r < source.rows; ++r) {
      load_row(source, r, rows + r * width);
      if (keys) {
        rotate_row(params.rotation, static_cast<std::int64_t>(r), -1.0f, rows + r * width);
      }
    }
    pq_cost cost;
    PQATTN_TRY(reconstruct_rows(bank, recipe, {first(), taught, first(), last()}, nullptr, rows, cost, memory));
    for (std::size_t r = 0; keys && r < source.rows; ++r) {
      rotate_row(params.rotation, static_cast<std::int64_t>(r), 1.0f, rows + r * width);
    }
    const rows_view coded = view_rows(rows, source.rows, width);
    const reconstructed_head judged{head.keys, head.values, keys ? coded : head.keys, keys ? head.values : coded};
    const double scale =
        params.scale != 0.0f ? static_cast<double>(params.scale) : 1.0 / std::sqrt(static_cast<double>(head.keys.cols));
    error = 0.0;
    for (std::size_t i = 0; i < head.query_heads; ++i) {
      attention_error sum;
      PQATTN_TRY(
          add_attention_error(judged, head.queries[i], {params.sinks, params.recent, taught}, scale, sum, memory));
      error += sum.output_nmse();
    }
    return {};
  }

  /// One side's curve. The last choice is exact; the one before it is the preset's, when the target is bits.
  status measure_side(bool keys, const pq_preset* preset, rate_curve& curve) const {
    buffer workspace;
    PQATTN_TRY(buffer::make(memory, preset_workspace_bytes(), workspace));
    curve.count = 0;
    const std::size_t rates = sizeof(tried_rates) / sizeof(tried_rates[0]);
    for (std::size_t i = 0; i < rates + (preset != nullptr ? 1 : 0); ++i) {
      pq_preset found;
      if (i < rates) {
        PQATTN_TRY(choose_preset(static_cast<std::uint32_t>(dim(keys)), static_cast<std::uint32_t>(dim(keys)),
                                 tried_rates[i], taught - first(), workspace.data(), workspace.size(), found));
      } else {
        found = *preset;
      }
      const geometry& shape = keys ? found.keys : found.values;
      const double width = static_cast<double>(dim(keys));
      rate_choice& choice = curve.choices[curve.count++];
      choice.how = {false,        shape.subvectors,     shape.code_bits(),
                    shape.stages, codebook_storage::i8, found.outlier_share};
      choice.bits = static_cast<double>(shape.row_bits()) +
                    outlier_bits(static_cast<double>(found.outlier_share), width, width) * width;
      PQATTN_TRY(measure(keys, shape, found.outlier_share, choice.error));
    }
    if (params.allow_exact) {
      rate_choice& choice = curve.choices[curve.count++];
      choice = {};
      choice.how.exact = true;
      choice.bits = 16.0 * static_cast<double>(dim(keys));
    }
    find_hull(curve);
    return {};
  }
};

inline status check_calibration(const calibration_head* heads, std::size_t count,
                                const suggest_params& params) noexcept {
  if (count == 0) {
    return failure(status_code::invalid_argument, "heads", "are none", 1, 0);
  }
  if ((params.target_bits > 0.0) == (params.target_error > 0.0)) {
    return failure(status_code::invalid_argument, "params", "need a target of bits or of error, not both");
  }
  if (!(params.taught_share > 0.0 && params.taught_share < 1.0)) {
    return failure(status_code::invalid_argument, "params.taught_share", "must be between 0 and 1", 1,
                   params.taught_share);
  }
  for (std::size_t i = 0; i < count; ++i) {
    const calibration_head& head = heads[i];
    if (head.queries == nullptr || head.query_heads == 0 || head.keys.rows < 16) {
      return failure(status_code::invalid_argument, "heads", "need queries and at least 16 tokens; bad is number", 0,
                     i);
    }
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Finds a policy for `count` heads (all layers that share the budget). `policy` (count) and `reasons` (2 * count:
/// keys, values of each head) receive it; `summary` says what it should cost and lose. Bits are those of the codes (an
/// exact side counts 16); codebooks come on top. With a target of bits the policy is never worse on the activations it
/// was made from than the preset's shapes everywhere, and is those where no split is better. The same activations and
/// seed give the same policy. Errors: two or no targets, no heads, heads without queries, whatever training reports,
/// out of memory. Cost: ten trainings of each side of each head, each judged on the queries after the taught tokens.
template <bank_policy Bank>
status suggest_policy(Bank& bank, const calibration_head* heads, std::size_t count, const suggest_params& params,
                      head_policy* policy, policy_reason* reasons, policy_summary& summary,
                      const memory_resource& memory = {}) {
  PQATTN_TRY(detail::check_calibration(heads, count, params));
  buffer curve_memory;
  buffer step_memory;
  rate_curve* curves = nullptr;
  std::size_t* steps = nullptr;
  PQATTN_TRY(detail::make_array(memory, 2 * count, curve_memory, curves));
  PQATTN_TRY(detail::make_array(memory, 2 * count, step_memory, steps));
  double elements = 0.0;
  double query_heads = 0.0;
  double uniform_error = 0.0;
  double uniform_bits = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    const calibration_head& head = heads[i];
    const std::size_t tokens = head.keys.rows;
    const std::size_t widest = head.keys.cols > head.values.cols ? head.keys.cols : head.values.cols;
    const auto taught = static_cast<std::size_t>(params.taught_share * static_cast<double>(tokens));
    buffer row_memory;
    float* rows = nullptr;
    PQATTN_TRY(detail::make_array(memory, tokens * widest + head.keys.cols * head.keys.cols, row_memory, rows));
    const detail::head_measurement<Bank> measured{bank, head, params, taught, memory, rows, rows + tokens * widest};
    PQATTN_TRY(measured.make_metric());
    pq_preset preset;
    if (params.target_bits > 0.0) {
      buffer workspace;
      PQATTN_TRY(buffer::make(memory, preset_workspace_bytes(), workspace));
      PQATTN_TRY(choose_preset(static_cast<std::uint32_t>(head.keys.cols), static_cast<std::uint32_t>(head.values.cols),
                               params.target_bits < 8.0 ? params.target_bits : 8.0, taught - measured.first(),
                               workspace.data(), workspace.size(), preset));
    }
    for (const bool keys : {true, false}) {
      rate_curve& curve = curves[2 * i + (keys ? 0 : 1)];
      curve = {};
      PQATTN_TRY(measured.measure_side(keys, params.target_bits > 0.0 ? &preset : nullptr, curve));
      if (params.target_bits > 0.0) {
        const rate_choice& own = curve.choices[curve.count - (params.allow_exact ? 2 : 1)];
        uniform_error += own.error;
        uniform_bits += own.bits;
      }
    }
    elements += static_cast<double>(head.keys.cols + head.values.cols);
    query_heads += static_cast<double>(head.query_heads);
  }
  // The target, or what the preset makes of it: equal bits.
  const double budget = params.target_bits > 0.0 ? (std::max)(params.target_bits * elements, uniform_bits) : 1.0e300;
  allocate_bits(curves, 2 * count, budget, params.target_error > 0.0 ? params.target_error * query_heads : -1.0, steps);
  // Steps that do not fit can leave more unused than a better split gains: then the preset is the better policy.
  double split_error = 0.0;
  for (std::size_t side = 0; side < 2 * count; ++side) {
    split_error += curves[side].choices[curves[side].hull[steps[side]]].error;
  }
  const bool uniform = params.target_bits > 0.0 && uniform_error < split_error;
  summary = {};
  for (std::size_t i = 0; i < count; ++i) {
    policy[i] = {};
    policy[i].layer = heads[i].layer;
    policy[i].kv_head = heads[i].kv_head;
    policy[i].sinks = params.sinks;
    policy[i].recent = params.recent;
    for (const bool keys : {true, false}) {
      const std::size_t side = 2 * i + (keys ? 0 : 1);
      const rate_curve& curve = curves[side];
      const auto at = [&](std::size_t step) -> const rate_choice& { return curve.choices[curve.hull[step]]; };
      const std::size_t preset_choice = curve.count - (params.allow_exact ? 2 : 1);
      const rate_choice& chosen = uniform ? curve.choices[preset_choice] : at(steps[side]);
      (keys ? policy[i].keys : policy[i].values) = chosen.how;
      const auto group = static_cast<double>(heads[i].query_heads);
      reasons[side] = {i,
                       keys,
                       chosen.bits / static_cast<double>(keys ? heads[i].keys.cols : heads[i].values.cols),
                       chosen.error / group,
                       !uniform && steps[side] > 0 ? at(steps[side] - 1).error / group : 0.0,
                       !uniform && steps[side] + 1 < curve.hull_count ? at(steps[side] + 1).error / group : 0.0};
      summary.code_bits += chosen.bits / elements;
      summary.expected_error += chosen.error / query_heads;
    }
  }
  summary.uniform_error = uniform_error / query_heads;
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
