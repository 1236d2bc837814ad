// SPDX-License-Identifier: MIT
// A LLaMA-style decoder in f32: RMSNorm, RoPE on half-split pairs, grouped-query attention, SwiGLU. One token at a
// time; attention goes through `kv_cache`, so the model never knows how keys and values are kept.
#pragma once

#include "files.hpp"
#include "kv_cache.hpp"
#include "linear.hpp"
#include "model_config.hpp"
#include "outcome.hpp"
#include "safetensors.hpp"

#include <cstddef>
#include <span>
#include <vector>

namespace tiny_lm {

/// Weights of one layer; matrices [out, in].
struct layer_weights {
  vector attention_norm;
  matrix query;
  matrix key;
  matrix value;
  matrix attention_out;
  vector ffn_norm;
  matrix gate;
  matrix up;
  matrix down;
};

/// Weights of the whole model.
struct model {
  model_config config;
  matrix embedding;  ///< [vocabulary, width]
  matrix output;     ///< [vocabulary, width]; empty when the embedding is tied
  vector final_norm;
  std::vector<layer_weights> layers;
};

/// Takes the weights out of a parsed file, widened to f32. Names and shapes must be those of LlamaForCausalLM for
/// `config`, every number finite.
outcome load_model(const model_config& config, const safetensors& tensors, model& result);

/// Runs a model over one sequence. Holds references: model and cache must outlive it.
class decoder {
 public:
  decoder(const model& weights, kv_cache& cache);

  /// Feeds one token at the next position; logits() is then the prediction of the token after it.
  outcome step(token_id token);

  /// [vocabulary]; valid until the next step.
  [[nodiscard]] std::span<const float> logits() const { return as_span(logits_); }

  /// Tokens fed so far.
  [[nodiscard]] std::size_t position() const noexcept { return position_; }

  /// Starts a new sequence, in the cache as well.
  void reset();

 private:
  outcome attention(const layer_weights& layer, std::size_t index);
  void feed_forward(const layer_weights& layer);
  void prepare_rotation();
  void rotate(std::span<float> heads) const;

  const model& model_;
  kv_cache& cache_;
  std::size_t position_ = 0;

  vector stream_;                // residual stream, [width]
  vector normed_;                // [width]
  vector queries_;               // [query_heads * head_dim]
  vector keys_;                  // [kv_heads * head_dim]
  vector values_;                // [kv_heads * head_dim]
  vector attended_;              // [query_heads * head_dim]
  vector gate_;                  // [ffn_width]
  vector up_;                    // [ffn_width]
  vector logits_;                // [vocabulary]
  Eigen::VectorXd frequencies_;  // RoPE: radians per position of each pair, [head_dim / 2]
  vector cosines_;               // of the current position, [head_dim / 2]
  vector sines_;
};

}  // namespace tiny_lm
