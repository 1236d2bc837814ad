// SPDX-License-Identifier: MIT
// Which quantizer to take for a budget of bits.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "../config.hpp"
#include "../core/status.hpp"
#include "../quant/codebook_rounding.hpp"
#include "../quant/geometry.hpp"

namespace pqattn {
inline namespace v0 {

/// How the keys or the values of one KV head are kept: plain data, without channel order.
struct side_policy {
  bool exact = false;  ///< every token as it is; what follows is then ignored
  std::uint32_t subvectors = 0;
  std::uint32_t bits = 8;    ///< of a code
  std::uint32_t stages = 1;  ///< additive
  codebook_storage storage = codebook_storage::i8;
  float outlier_share = 0.0f;  ///< of the coded tokens that may stay exact

  [[nodiscard]] constexpr geometry shape(std::uint32_t dim) const noexcept {
    return {dim, subvectors, bits < 1 || bits > 16 ? 0 : std::uint32_t{1} << bits, stages, nullptr};
  }
  PQATTN_UNIT_MEMBER friend constexpr bool operator==(const side_policy&, const side_policy&) noexcept = default;
};

/// How one KV head of one layer is kept.
struct head_policy {
  std::uint32_t layer = 0;
  std::uint32_t kv_head = 0;
  std::uint32_t sinks = 8;          ///< first tokens kept exact
  std::uint32_t recent = 32;        ///< latest tokens kept exact
  std::uint32_t window_tokens = 0;  ///< tokens a codebook serves before the next one; 0 means all
  side_policy keys;
  side_policy values;

  PQATTN_UNIT_MEMBER friend constexpr bool operator==(const head_policy&, const head_policy&) noexcept = default;
};

/// What a preset may cost: `bits` per element, the mean over K and V. A plain number means bits of codes and outliers;
/// with `tokens` they are all there is at that context length: codes, outliers, codebooks, metric and rotation, exact
/// tokens at 16 bits. What allocation rounds up and bookkeeping are not counted: up to a tenth more at a thousand
/// tokens.
struct bit_budget {
  double bits = 2.0;
  std::size_t tokens = 0;         ///< context length to count everything at; 0 counts codes and outliers alone
  std::size_t exact_tokens = 40;  ///< sinks, recent tokens and what waits to be coded; read with `tokens` only
  bool outliers = true;           ///< false spends their bits on codes

  // NOLINTNEXTLINE(google-explicit-constructor): "2 bits" reads as it is meant.
  constexpr bit_budget(double code_bits) noexcept : bits(code_bits) {}
  constexpr bit_budget(double all_bits, std::size_t at_tokens) noexcept : bits(all_bits), tokens(at_tokens) {}
  [[nodiscard]] constexpr bit_budget without_outliers() const noexcept {
    bit_budget changed = *this;
    changed.outliers = false;
    return changed;
  }
};

/// Quantizers for the keys and values of one KV head.
struct pq_preset {
  geometry keys;
  geometry values;
  float outlier_share = 0.0f;  ///< of the coded tokens, kept exact where codes serve them worst
  double code_bits = 0.0;      ///< mean bits of codes and outliers per element over keys and values
  double all_bits = 0.0;       ///< everything at the budget's tokens; 0 without them
  bool metric = true;          ///< keys in the metric of the queries: worth its memory
  bool rotated = true;         ///< values turned to principal components: worth its memory
};

/// Share of the coded tokens a preset keeps exact, for each of its bits: about 4 % of the budget go there. Tokens that
/// no codebook serves (heavy tails, contents that training has not seen) cost little else and would dominate errors.
inline constexpr double preset_outliers_per_bit = 0.0025;

inline namespace PQATTN_ISA_UNIT {

/// Bits per element that outliers cost: 16 an element and 32 for the position of each row, keys and values apart.
[[nodiscard]] constexpr double outlier_bits(double share, double key_dim, double value_dim) noexcept {
  return share * (16.0 + 64.0 / (key_dim + value_dim));
}

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Stages that serve a rate well: wide sub-vectors with several additive stages, where a single stage would need narrow
/// sub-vectors; keys gain more from them than values. Further stages would gain a little more, but each is d * K bytes
/// of codebook.
[[nodiscard]] inline double preferred_stages(bool keys, double rate) noexcept {
  if (keys) {
    return rate < 3.5 ? 4.0 : 3.0;
  }
  return rate < 2.3 || (rate >= 3.5 && rate < 5.0) ? 2.0 : 3.0;
}

/// Expected error of one side, up to a common factor, from a fit to measured attention errors: powers of two per bit,
/// per halving of the stages, and per bit by which codes are shorter than they could be.
[[nodiscard]] inline double expected_error(bool keys, double rate, std::uint32_t stages, std::uint32_t bits,
                                           std::uint32_t top_bits) noexcept {
  // Short codes take more stages for the same bits of a run.
  const double preferred = preferred_stages(keys, rate) * 8.0 / static_cast<double>(top_bits);
  const double stage_gap = std::log2(static_cast<double>(stages) / preferred);
  const double too_few = keys ? 0.7 : 0.3;
  constexpr double too_many = 0.3;  // of memory: errors would fall
  const double stage_penalty = (stage_gap < 0.0 ? -too_few : too_many) * stage_gap;
  const double penalty = stage_penalty + 0.6 * static_cast<double>(top_bits - bits);
  return (keys ? 2.0 : 1.0) * std::exp2(penalty - (keys ? 1.5 : 1.8) * (rate - 2.0));
}

/// Expected error of one side where codebooks count, up to a common factor: a fit to attention errors of layers coded
/// with 8 to 256 centroids in 1 to 8 stages. What a codebook holds (stages * centroids) matters most.
[[nodiscard]] inline double expected_error_of(bool keys, double rate, std::uint32_t stages, std::uint32_t bits,
                                              bool transformed) noexcept {
  const double fewer = 8.0 - static_cast<double>(bits);
  const double doublings = std::log2(static_cast<double>(stages));
  const double shape = keys ? 0.79 + 0.70 * fewer - 1.23 * doublings + 0.074 * fewer * doublings +
                                  0.067 * doublings * doublings - 0.029 * fewer * fewer
                            : -0.06 + 0.44 * fewer - 0.65 * doublings - 0.037 * fewer * doublings +
                                  0.127 * doublings * doublings + 0.013 * fewer * fewer;
  // Rows in few directions lose much more without a rotation than the layers of the fit.
  const double untransformed = keys ? 1.4 : 3.0;
  return (transformed ? 1.0 : untransformed) * (keys ? 2.5 : 1.0) *
         std::exp2(shape - (keys ? 1.3 : 1.65) * (rate - 2.0));
}

/// Bits of what a side is coded in: the keys' metric in binary16, or the values' rotation in bytes with a scale per
/// direction, and their mean.
[[nodiscard]] constexpr double transform_bits(bool keys, std::uint32_t dim) noexcept {
  const double width = dim;
  return keys ? 8.0 * width * (width + 1.0) : 8.0 * width * width + 64.0 * width;
}

/// Bits of the codes that `samples` training rows can teach: five rows a centroid, 8 bits at most.
[[nodiscard]] constexpr std::uint32_t teachable_bits(std::size_t samples) noexcept {
  std::uint32_t bits = 1;
  while (bits < 8 && (std::size_t{5} << (bits + 1)) <= samples) {
    ++bits;
  }
  return bits;
}

/// For each cost of a row in bits the best geometry with it: candidates of one side.
struct side_candidates {
  static constexpr std::size_t most_bits = 8 * max_dim;  // 8 bits an element
  double error[most_bits + 1];
  geometry shape[most_bits + 1];
  bool transformed[most_bits + 1];

  void clear() noexcept {
    for (double& entry : error) {
      entry = -1.0;
    }
  }
  void offer(std::size_t cost, double expected, const geometry& cut, bool with_transform) noexcept {
    if (error[cost] < 0.0 || expected < error[cost]) {
      error[cost] = expected;
      shape[cost] = cut;
      transformed[cost] = with_transform;
    }
  }

  /// A row costs its share of everything the side needs at budget.tokens, rounded up.
  void fill_for_length(bool keys, std::uint32_t dim, std::uint32_t top_bits, const bit_budget& budget) noexcept {
    clear();
    const auto tokens = static_cast<double>(budget.tokens);
    const auto coded = static_cast<double>(budget.tokens - budget.exact_tokens);
    const auto each = [&](std::uint32_t bits, std::uint32_t stages, std::uint32_t runs) {
      const geometry cut{dim, runs, std::uint32_t{1} << bits, stages, nullptr};
      geometry held = cut;
      held.centroids = cut.centroids < 64 ? 64 : cut.centroids;  // the host bank's planes have at least 64 entries
      const double book = 8.0 * static_cast<double>(stored_codebook_bytes(held, codebook_storage::i8));
      const double rate = static_cast<double>(bits * stages * runs) / dim;
      for (const bool with_transform : {true, false}) {
        const double fixed = book + (with_transform ? transform_bits(keys, dim) : 0.0);
        const double cost = std::ceil((rate * dim * coded + fixed) / tokens);
        if (cost <= static_cast<double>(std::size_t{8} * dim)) {
          const double uneven = dim % runs == 0 ? 1.0 : 1.05;
          offer(static_cast<std::size_t>(cost), uneven * expected_error_of(keys, rate, stages, bits, with_transform),
                cut, with_transform);
        }
      }
    };
    for (std::uint32_t bits = 1; bits <= top_bits; ++bits) {
      for (std::uint32_t stages = 1; stages <= max_stages; ++stages) {
        for (std::uint32_t runs = 1; runs <= dim && std::size_t{bits} * stages * runs <= std::size_t{8} * dim; ++runs) {
          each(bits, stages, runs);
        }
      }
    }
  }

  void fill(bool keys, std::uint32_t dim, std::uint32_t top_bits) noexcept {
    clear();
    for (std::uint32_t bits = 1; bits <= top_bits; ++bits) {
      for (std::uint32_t stages = 1; stages <= max_stages; ++stages) {
        for (std::uint32_t runs = 1; runs <= dim; ++runs) {
          const std::size_t total = std::size_t{bits} * stages * runs;
          if (total > std::size_t{8} * dim) {
            break;
          }
          // Runs of one width are what kernels like best; uneven ones must earn their place.
          const double uneven = dim % runs == 0 ? 1.0 : 1.1;
          const double expected =
              uneven * expected_error(keys, static_cast<double>(total) / dim, stages, bits, top_bits);
          offer(total, expected, {dim, runs, std::uint32_t{1} << bits, stages, nullptr}, true);
        }
      }
    }
  }
};

/// One search for shapes of keys and values.
struct preset_search {
  side_candidates& keys;
  side_candidates& values;
  std::uint32_t key_dim;
  std::uint32_t value_dim;
  const bit_budget& budget;

  [[nodiscard]] double elements() const noexcept {
    return static_cast<double>(key_dim) + static_cast<double>(value_dim);
  }
  [[nodiscard]] double outlier_row_bits(double share) const noexcept {
    return outlier_bits(share, key_dim, value_dim) * elements();
  }

  /// Calls use(k, v) for every pair of candidates whose costs are at most `most` together.
  template <class Use>
  void each_pair(double most, Use&& use) const noexcept {
    for (std::size_t k = 0; k <= std::size_t{8} * key_dim; ++k) {
      for (std::size_t v = 0; v <= std::size_t{8} * value_dim && static_cast<double>(k + v) <= most; ++v) {
        if (keys.error[k] >= 0.0 && values.error[v] >= 0.0) {
          use(k, v);
        }
      }
    }
  }

  status by_codes(std::uint32_t top_bits, pq_preset& result) const noexcept {
    keys.fill(true, key_dim, top_bits);
    values.fill(false, value_dim, top_bits);
    const double share = budget.outliers ? preset_outliers_per_bit * budget.bits : 0.0;
    const double target = budget.bits * elements() - outlier_row_bits(share);
    const double most = target + 1.0e-9;  // sums of floats
    std::size_t used = 0;
    each_pair(most, [&](std::size_t k, std::size_t v) { used = k + v > used ? k + v : used; });
    if (used == 0) {
      result = {keys.shape[1], values.shape[1], 0.0f, 2.0 / elements()};
      return {};
    }
    // The smallest error among what is near enough to the most bits that fit.
    const double least = static_cast<double>(used) - 0.04 * elements();
    double best = -1.0;
    each_pair(most, [&](std::size_t k, std::size_t v) {
      const double error = keys.error[k] + values.error[v];
      if (static_cast<double>(k + v) >= least && (best < 0.0 || error < best)) {
        best = error;
        result = {keys.shape[k], values.shape[v], static_cast<float>(share),
                  (static_cast<double>(k + v) + outlier_row_bits(share)) / elements()};
      }
    });
    return {};
  }

  status by_everything(std::uint32_t top_bits, pq_preset& result) const noexcept {
    if (budget.tokens <= budget.exact_tokens) {
      return failure(status_code::too_few_samples, "budget.tokens", "must be more than the exact tokens",
                     budget.exact_tokens + 1, budget.tokens);
    }
    keys.fill_for_length(true, key_dim, top_bits, budget);
    values.fill_for_length(false, value_dim, top_bits, budget);
    const auto tokens = static_cast<double>(budget.tokens);
    const double exact = 16.0 * elements() * static_cast<double>(budget.exact_tokens) / tokens;
    const double coded = 1.0 - static_cast<double>(budget.exact_tokens) / tokens;
    // About half of such a budget are codes.
    double share = budget.outliers ? 0.5 * preset_outliers_per_bit * budget.bits : 0.0;
    double best = -1.0;
    for (int attempt = 0; attempt < 2 && best < 0.0; ++attempt, share = 0.0) {
      const double fixed = exact + coded * outlier_row_bits(share);
      each_pair(budget.bits * elements() - fixed, [&](std::size_t k, std::size_t v) {
        const double error = keys.error[k] + values.error[v];
        if (best < 0.0 || error < best) {
          best = error;
          const auto code_bits = static_cast<double>(keys.shape[k].row_bits() + values.shape[v].row_bits());
          result = {keys.shape[k],
                    values.shape[v],
                    static_cast<float>(share),
                    (code_bits + outlier_row_bits(share)) / elements(),
                    (static_cast<double>(k + v) + fixed) / elements(),
                    keys.transformed[k],
                    values.transformed[v]};
        }
      });
    }
    return best < 0.0 ? too_few_bits(exact) : status{};
  }

 private:
  [[nodiscard]] status too_few_bits(double exact) const noexcept {
    double least = 0.0;
    for (const side_candidates* side : {&keys, &values}) {
      std::size_t cost = 0;
      while (cost < side_candidates::most_bits && side->error[cost] < 0.0) {
        ++cost;
      }
      least += static_cast<double>(cost);
    }
    return failure(status_code::invalid_argument, "budget.bits",
                   "are too few at budget.tokens for exact tokens and the smallest codebooks (in hundredths)",
                   static_cast<std::size_t>(std::ceil(100.0 * (least + exact) / elements())),
                   static_cast<std::size_t>(100.0 * budget.bits));
  }
};

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Bytes of workspace choose_preset needs.
[[nodiscard]] constexpr std::size_t preset_workspace_bytes() noexcept {
  return 2 * sizeof(detail::side_candidates) + alignof(detail::side_candidates);
}

/// Shapes for `budget`, never above it. Codes have up to 8 bits, fewer when `training_rows` are too few to teach 256
/// centroids. Sub-vectors are cut as evenly as possible, so any head size works. Channel orders are left null.
///
/// A budget of codes: mean code bits per element over K and V, with those of outliers, as near as shapes allow; among
/// those within 0.04 of the best, the smallest expected error. When nothing fits (a row has at least one bit) the
/// smallest shapes without outliers result.
/// A budget of everything at budget.tokens: the smallest expected error that fits, with fewer centroids, without a
/// metric or without a rotation where their memory is worth more as codes.
///
/// Errors: dims outside 1..1024, bits outside 0..8 (0..16 with tokens), fewer than two training rows; with tokens, too
/// few bits for exact tokens and the smallest codebooks. O(8 * 8 * 8 * dim + bits of a key row * bits of a value row).
inline status choose_preset(std::uint32_t key_dim, std::uint32_t value_dim, const bit_budget& budget,
                            std::size_t training_rows, void* workspace, std::size_t workspace_bytes,
                            pq_preset& result) noexcept {
  if (key_dim < 1 || key_dim > max_dim) {
    return failure(status_code::invalid_argument, "key_dim", "must be 1 to 1024", max_dim, key_dim);
  }
  if (value_dim < 1 || value_dim > max_dim) {
    return failure(status_code::invalid_argument, "value_dim", "must be 1 to 1024", max_dim, value_dim);
  }
  const double most_bits = budget.tokens == 0 ? 8.0 : 16.0;
  if (!(budget.bits > 0.0 && budget.bits <= most_bits)) {
    return failure(status_code::invalid_argument, "budget.bits",
                   "must be above 0 and at most 8, or 16 when everything counts", most_bits, budget.bits);
  }
  if (training_rows < 2) {
    return failure(status_code::too_few_samples, "training_rows", "must be at least 2", 2, training_rows);
  }
  const auto start = reinterpret_cast<std::uintptr_t>(workspace);
  const std::size_t skip = (0 - start) & (alignof(detail::side_candidates) - 1);
  if (workspace == nullptr || workspace_bytes < skip + 2 * sizeof(detail::side_candidates)) {
    return failure(status_code::capacity, "workspace", "is too small for choosing a preset", preset_workspace_bytes(),
                   workspace_bytes);
  }
  auto* sides = reinterpret_cast<detail::side_candidates*>(static_cast<std::byte*>(workspace) + skip);
  const std::uint32_t top_bits = detail::teachable_bits(training_rows);
  const detail::preset_search search{sides[0], sides[1], key_dim, value_dim, budget};
  return budget.tokens == 0 ? search.by_codes(top_bits, result) : search.by_everything(top_bits, result);
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
