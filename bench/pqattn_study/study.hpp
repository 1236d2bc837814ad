// SPDX-License-Identifier: MIT
// One study: code a layer's keys and values by one method, judge its attention.
#pragma once

#include <pqattn/quant/geometry.hpp>
#include <pqattn/study/attention_error.hpp>
#include <pqattn/study/suggest_policy.hpp>

#include <cstddef>
#include <string>
#include <vector>

#include "inputs.hpp"
#include "options.hpp"

namespace pqattn_study {

/// What one side (keys or values) of all heads costs and loses.
struct side_result {
  double code_bits = 0.0;  ///< codes, scales and norms of the coded tokens
  double codebook_bits = 0.0;
  double transform_bits = 0.0;  ///< rotation and mean of values, metric of keys
  std::size_t coded_elements = 0;
  pqattn::squared_error error;  ///< coded rows in the domain they were coded in

  [[nodiscard]] double mse() const noexcept;
};

struct query_head_result {
  std::size_t kv_head = 0;
  pqattn::attention_error error;
};

struct study_result {
  std::string method;
  std::size_t tokens = 0;
  std::size_t train_tokens = 0;
  std::size_t kv_heads = 0;
  std::size_t query_heads = 0;
  std::size_t key_dim = 0;
  std::size_t value_dim = 0;
  std::size_t exact_tokens = 0;
  pqattn::geometry key_shape;  ///< dim 0 for methods without codebooks
  pqattn::geometry value_shape;
  std::size_t iterations = 0;  ///< of k-means
  std::string rope = "none";   ///< keys were coded before this rotation
  double rope_theta = 0.0;
  std::string weights;    ///< as used; empty for methods without codebooks
  std::string codebooks;  ///< as used; empty for methods without codebooks
  side_result keys;
  side_result values;
  std::vector<query_head_result> heads;
  std::vector<double> key_norm_spread;  ///< per KV head: largest key norm / median key norm
  pqattn::attention_error total;
  double exact_bits = 0.0;    ///< of tokens or sides kept exact, 16 bits an element
  double code_seconds = 0.0;  ///< training and coding
  double judge_seconds = 0.0;

  /// Everything over all elements of K and V.
  [[nodiscard]] double bits_per_element() const noexcept;
  /// Mean squared error of coded elements, in the domain they were coded in.
  [[nodiscard]] double codebook_mse() const noexcept;
  /// Codes alone, per element that was coded.
  [[nodiscard]] double bits_per_element_codes() const noexcept;
};

/// What --suggest finds from the tokens before the training boundary.
struct suggestion {
  std::vector<pqattn::head_policy> policy;
  std::vector<pqattn::policy_reason> reasons;  ///< keys and values of each KV head
  pqattn::policy_summary summary;
};

/// Throws study_error.
[[nodiscard]] suggestion suggest(const inputs& layer, const options& chosen);

/// Throws study_error when the options do not fit the inputs or the method cannot run.
[[nodiscard]] study_result run_study(const inputs& layer, const options& chosen);

}  // namespace pqattn_study
