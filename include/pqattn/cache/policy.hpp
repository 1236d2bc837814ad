// SPDX-License-Identifier: MIT
// Which quantizer to take for a budget of bits.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

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
  friend constexpr bool operator==(const side_policy&, const side_policy&) noexcept = default;
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

  friend constexpr bool operator==(const head_policy&, const head_policy&) noexcept = default;
};

/// Quantizers for the keys and values of one KV head.
struct pq_preset {
  geometry keys;
  geometry values;
  float outlier_share = 0.0f;  ///< of the coded tokens, kept exact where codes serve them worst
  double code_bits = 0.0;      ///< mean bits of codes and outliers per element over keys and values
};

/// Share of the coded tokens a preset keeps exact, for each of its bits: about 4 % of the budget go there. Tokens that
/// no codebook serves (heavy tails, contents that training has not seen) cost little else and would dominate errors.
inline constexpr double preset_outliers_per_bit = 0.0025;

/// Bits per element that outliers cost: 16 an element and 32 for the position of each row, keys and values apart.
[[nodiscard]] constexpr double outlier_bits(double share, double key_dim, double value_dim) noexcept {
  return share * (16.0 + 64.0 / (key_dim + value_dim));
}

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Stages that serve a rate well: wide sub-vectors with several additive stages, where a single stage would need narrow
/// sub-vectors; keys gain more from them than values. Further stages would gain a little more, but each is d * K bytes
/// of codebook.
[[nodiscard]] inline double preferred_stages(bool keys, double rate) noexcept {
  return rate < 2.3 ? (keys ? 4.0 : 2.0) : rate < 3.5 ? 3.0 : keys || rate >= 5.0 ? 3.0 : 2.0;
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

/// Bits of the codes that `samples` training rows can teach: five rows a centroid, 8 bits at most.
[[nodiscard]] constexpr std::uint32_t teachable_bits(std::size_t samples) noexcept {
  std::uint32_t bits = 1;
  while (bits < 8 && (std::size_t{5} << (bits + 1)) <= samples) {
    ++bits;
  }
  return bits;
}

/// For each row length in bits the best geometry with it: candidates of one side.
struct side_candidates {
  static constexpr std::size_t most_bits = 8 * max_dim;  // 8 bits an element
  double error[most_bits + 1];
  geometry shape[most_bits + 1];

  void fill(bool keys, std::uint32_t dim, std::uint32_t top_bits) noexcept {
    for (double& entry : error) {
      entry = -1.0;
    }
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
          if (error[total] < 0.0 || expected < error[total]) {
            error[total] = expected;
            shape[total] = {dim, runs, std::uint32_t{1} << bits, stages, nullptr};
          }
        }
      }
    }
  }
};

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Bytes of workspace choose_preset needs.
[[nodiscard]] constexpr std::size_t preset_workspace_bytes() noexcept {
  return 2 * sizeof(detail::side_candidates) + alignof(detail::side_candidates);
}

/// Shapes whose mean code bits per element over K and V, with those of outliers, are as near `target_bits` (above 0, at
/// most 8) as shapes allow and never above; among those within 0.04 of the best, the smallest expected error. Codes
/// have up to 8 bits, fewer when `training_rows` are too few to teach 256 centroids. Sub-vectors are cut as evenly as
/// possible, so any head size works. When nothing fits below the target (a row has at least one bit) the smallest
/// shapes without outliers result. Channel orders are left null. Errors: dims outside 1..1024, a target outside 0..8,
/// fewer than two training rows. O(8 * 8 * 8 * dim + bits of a key row * bits of a value row).
inline status choose_preset(std::uint32_t key_dim, std::uint32_t value_dim, double target_bits,
                            std::size_t training_rows, void* workspace, std::size_t workspace_bytes,
                            pq_preset& result) noexcept {
  if (key_dim < 1 || key_dim > max_dim || value_dim < 1 || value_dim > max_dim) {
    return failure(status_code::invalid_argument, "key_dim", "and value_dim must be 1 to 1024");
  }
  if (!(target_bits > 0.0 && target_bits <= 8.0)) {
    return failure(status_code::invalid_argument, "target_bits", "must be above 0 and at most 8");
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
  detail::side_candidates& keys = sides[0];
  detail::side_candidates& values = sides[1];
  const std::uint32_t top_bits = detail::teachable_bits(training_rows);
  keys.fill(true, key_dim, top_bits);
  values.fill(false, value_dim, top_bits);

  const double elements = static_cast<double>(key_dim) + static_cast<double>(value_dim);
  const double share = preset_outliers_per_bit * target_bits;
  const double spent_on_outliers = outlier_bits(share, key_dim, value_dim) * elements;
  const double target = target_bits * elements - spent_on_outliers;
  const double most = target + 1.0e-9;  // sums of floats
  // First pass: the most bits that fit. Second pass: the smallest error among what is near enough.
  double used = 0.0;
  for (int pass = 0; pass < 2; ++pass) {
    double best = -1.0;
    const double least = target < used ? target : used;
    for (std::size_t k = 1; k <= std::size_t{8} * key_dim; ++k) {
      for (std::size_t v = 1; v <= std::size_t{8} * value_dim && static_cast<double>(k + v) <= most; ++v) {
        if (keys.error[k] < 0.0 || values.error[v] < 0.0) {
          continue;
        }
        const auto total = static_cast<double>(k + v);
        if (pass == 0) {
          used = total > used ? total : used;
          continue;
        }
        const double error = keys.error[k] + values.error[v];
        if (total >= least - 0.04 * elements && (best < 0.0 || error < best)) {
          best = error;
          result = {keys.shape[k], values.shape[v], static_cast<float>(share), (total + spent_on_outliers) / elements};
        }
      }
    }
    if (pass == 0 && used == 0.0) {
      result = {keys.shape[1], values.shape[1], 0.0f, 2.0 / elements};
      return {};
    }
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
