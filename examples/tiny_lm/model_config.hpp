// SPDX-License-Identifier: MIT
// The sizes of a LLaMA-style model, as `config.json` of the Hugging Face layout gives them.
#pragma once

#include "kv_cache.hpp"
#include "outcome.hpp"

#include <cstddef>
#include <string_view>

namespace tiny_lm {

struct model_config {
  std::size_t layers = 0;
  std::size_t width = 0;      ///< hidden_size
  std::size_t ffn_width = 0;  ///< intermediate_size
  std::size_t query_heads = 0;
  std::size_t kv_heads = 0;
  std::size_t head_dim = 0;
  std::size_t vocabulary = 0;
  std::size_t context = 0;  ///< max_position_embeddings
  double rope_theta = 0.0;
  double norm_epsilon = 0.0;
  bool tied_embedding = false;  ///< the output matrix is the embedding

  /// The cache this model needs for `tokens` tokens (at most `context`).
  [[nodiscard]] cache_shape shape(std::size_t tokens) const noexcept {
    return {layers, query_heads, kv_heads, head_dim, tokens, rope_theta};
  }
};

/// Reads and checks config.json: every size within sane bounds, heads that divide, an even head size.
/// Scaled RoPE ("rope_scaling" other than null) is refused.
outcome parse_config(std::string_view json, model_config& config);

}  // namespace tiny_lm
