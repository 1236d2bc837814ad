// SPDX-License-Identifier: MIT
// What an error of a key costs attention: the second moment of the queries that look at it, seen from the key.
//
// A key error e of the token at position j changes the score of query i by q_i . R(j) e. Averaged with the attention
// p_ij that the coded tokens get, the squared change is e^T M e with
//   M = sum over i, j of p_ij x x^T,   x = R(-j) q_i,
// the rotated query turned back into the frame of the key before RoPE (without RoPE x = q_i). Training and coding
// keys in this metric spends code bits where queries look (A2ATS and GPTQ use the same idea with E[q q^T]).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../core/memory.hpp"
#include "../core/random.hpp"
#include "../core/view.hpp"
#include "../quant/rope.hpp"

namespace pqattn {
inline namespace v0 {

/// How attention is read when the metric is made.
struct query_metric_params {
  float scale = 0.0f;         ///< softmax scale; 0 means 1 / sqrt(d_k)
  std::size_t sinks = 8;      ///< first tokens: never coded, so their attention does not count
  std::size_t recent = 32;    ///< tokens (t - recent, t] of a query at t: exact, so they do not count either
  std::uint32_t samples = 8;  ///< keys drawn per query row, stratified by attention; 0 takes all of them (slow)
  std::uint64_t seed = 1;
  /// Position of each key, for the rotation alone; null: key j sits at j. Which keys a query sees is counted in rows
  /// either way: those up to row query_positions[r].
  const std::int64_t* key_positions = nullptr;
};

inline namespace PQATTN_ISA_UNIT {

/// Bytes of workspace add_query_metric needs.
[[nodiscard]] inline std::size_t query_metric_workspace_bytes(std::size_t tokens, std::size_t key_dim) noexcept {
  carver memory;
  memory.take<float>(tokens * key_dim);
  memory.take<float>(tokens);
  memory.take<float>(key_dim);
  memory.take<float>(key_dim);
  return memory.required();
}

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Dot product in eight chains: the order is fixed, and a compiler may keep them in one register.
[[nodiscard]] inline float chained_dot(const float* a, const float* b, std::size_t count) noexcept {
  float chains[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (std::size_t c = 0; c < 8; ++c) {
      chains[c] += a[i + c] * b[i + c];
    }
  }
  float sum = 0.0f;
  for (; i < count; ++i) {
    sum += a[i] * b[i];
  }
  for (const float chain : chains) {
    sum += chain;
  }
  return sum;
}

/// One query row's attention turned into additions to the metric.
struct query_metric_row {
  const query_metric_params& params;
  const rope& rotation;
  const float* query;
  float* probabilities;  ///< of the tokens the row sees
  float* turned;         ///< dim floats of scratch
  std::size_t dim;
  double* sum;

  /// sum += weight * x x^T, upper triangle, for key `index`.
  void add(std::size_t index, double weight) const noexcept {
    const std::int64_t position =
        params.key_positions == nullptr ? static_cast<std::int64_t>(index) : params.key_positions[index];
    for (std::size_t c = 0; c < dim; ++c) {
      turned[c] = query[c];
    }
    rotate_row(rotation, position, -1.0f, turned);
    for (std::size_t a = 0; a < dim; ++a) {
      const double factor = weight * static_cast<double>(turned[a]);
      double* row = sum + a * dim;
      for (std::size_t b = a; b < dim; ++b) {
        row[b] += factor * static_cast<double>(turned[b]);
      }
    }
  }

  /// Scores of `seen` keys become probabilities.
  void attend(const float* keys, std::size_t seen, float scale) const noexcept {
    float maximum = -3.0e38f;
    for (std::size_t j = 0; j < seen; ++j) {
      probabilities[j] = scale * chained_dot(query, keys + j * dim, dim);
      maximum = probabilities[j] > maximum ? probabilities[j] : maximum;
    }
    double total = 0.0;
    for (std::size_t j = 0; j < seen; ++j) {
      probabilities[j] = std::exp(probabilities[j] - maximum);
      total += static_cast<double>(probabilities[j]);
    }
    const auto normalizer = static_cast<float>(1.0 / total);
    for (std::size_t j = 0; j < seen; ++j) {
      probabilities[j] *= normalizer;
    }
  }

  /// Adds the keys [first, last): all of them, or one from each stratum of their attention mass.
  void collect(std::size_t first, std::size_t last, random_source& random) const noexcept {
    double mass = 0.0;
    for (std::size_t j = first; j < last; ++j) {
      mass += static_cast<double>(probabilities[j]);
    }
    if (!(mass > 0.0)) {
      return;
    }
    if (!rotation.enabled()) {  // every key sees the same query
      add(0, mass);
      return;
    }
    if (params.samples == 0) {
      for (std::size_t j = first; j < last; ++j) {
        add(j, static_cast<double>(probabilities[j]));
      }
      return;
    }
    const double stratum = mass / params.samples;
    std::size_t j = first;
    double passed = static_cast<double>(probabilities[first]);
    for (std::uint32_t s = 0; s < params.samples; ++s) {
      const double target = (s + random.uniform()) * stratum;
      while (passed <= target && j + 1 < last) {
        passed += static_cast<double>(probabilities[++j]);
      }
      add(j, stratum);
    }
  }
};

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Adds to `sum` (d_k, d_k) the metric of one query head's rows; the heads of a GQA group add up. Only the upper
/// triangle is written. Start from zeros and end with finish_query_metric.
///
/// `queries` (rows, d_k) and `keys` (tokens, d_k) as attention meets them, rotated by `rotation` where the model has
/// RoPE; key j sits at position j, query row r at query_positions[r] (a few hundred rows spread over the prompt are
/// enough). Without RoPE pass a value-initialised rope. Errors: shape mismatch, workspace too small.
/// Cost: rows * (tokens + samples * d_k) * d_k multiply-adds; d_k times more with samples 0.
inline status add_query_metric(const rows_view& queries, const std::int64_t* query_positions, const rows_view& keys,
                               const rope& rotation, const query_metric_params& params, void* workspace,
                               std::size_t workspace_bytes, double* sum) noexcept {
  PQATTN_TRY(check_view(queries, "queries"));
  PQATTN_TRY(check_view(keys, "keys"));
  const std::size_t dim = keys.cols;
  if (queries.cols != dim || dim > max_dim) {
    return failure(status_code::shape_mismatch, "queries.cols", "must equal keys.cols, at most 1024", dim,
                   queries.cols);
  }
  PQATTN_TRY(check_rope(rotation, static_cast<std::uint32_t>(dim)));
  carver memory(workspace, workspace_bytes);
  auto* wide_keys = memory.take<float>(keys.rows * dim);
  auto* probabilities = memory.take<float>(keys.rows);
  auto* query = memory.take<float>(dim);
  auto* turned = memory.take<float>(dim);
  if (workspace == nullptr || !memory.fits()) {
    return failure(status_code::capacity, "workspace", "is too small for the query metric", memory.used(),
                   workspace_bytes);
  }
  for (std::size_t j = 0; j < keys.rows; ++j) {
    load_row(keys, j, wide_keys + j * dim);
  }
  const float scale = params.scale != 0.0f ? params.scale : 1.0f / std::sqrt(static_cast<float>(dim));
  random_source random(params.seed);
  const detail::query_metric_row row{params, rotation, query, probabilities, turned, dim, sum};
  for (std::size_t r = 0; r < queries.rows; ++r) {
    if (query_positions[r] < 0) {
      continue;
    }
    const std::size_t wanted = static_cast<std::size_t>(query_positions[r]) + 1;
    const std::size_t seen = wanted < keys.rows ? wanted : keys.rows;
    const std::size_t old = wanted > params.recent ? wanted - params.recent : 0;
    const std::size_t last = old < keys.rows ? old : keys.rows;
    if (last <= params.sinks) {
      continue;
    }
    load_row(queries, r, query);
    row.attend(wide_keys, seen, scale);
    row.collect(params.sinks, last, random);
  }
  return {};
}

/// Turns the sum into a metric: symmetric, trace d_k, plus `ridge` on the diagonal (0.05 is a good value: directions
/// no training query looked at stay coded). A sum of zeros, or one that is not finite, gives the identity.
/// `metric` (d_k, d_k) is positive definite. O(d_k^2).
inline void finish_query_metric(const double* sum, std::size_t dim, float ridge, float* metric) noexcept {
  double trace = 0.0;
  for (std::size_t a = 0; a < dim; ++a) {
    trace += sum[a * dim + a];
  }
  const bool usable = trace > 1.0e-30 && trace < 1.0e300;
  const double factor = usable ? static_cast<double>(dim) / trace : 0.0;
  for (std::size_t a = 0; a < dim; ++a) {
    for (std::size_t b = a; b < dim; ++b) {
      const double diagonal = a == b ? static_cast<double>(ridge) + (usable ? 0.0 : 1.0) : 0.0;
      const auto entry = static_cast<float>(factor * sum[a * dim + b] + diagonal);
      metric[a * dim + b] = entry;
      metric[b * dim + a] = entry;
    }
  }
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
