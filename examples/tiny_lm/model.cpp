// SPDX-License-Identifier: MIT
#include "model.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace tiny_lm {
namespace {

std::string in_brackets(std::span<const std::size_t> shape) {
  std::string text = "[";
  for (const std::size_t extent : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  }
  return text + "]";
}

/// The tensor of that name, if it has that shape.
outcome find_tensor(const safetensors& tensors, const std::string& name, std::span<const std::size_t> shape,
                    const tensor_view*& tensor) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) {
    return expected_got(name, "a tensor of shape " + in_brackets(shape), "none");
  }
  const auto actual = found->second.shape();
  if (!std::equal(actual.begin(), actual.end(), shape.begin(), shape.end())) {
    return expected_got(name + " shape", in_brackets(shape), in_brackets(actual));
  }
  tensor = &found->second;
  return {};
}

outcome widen_finite(const std::string& name, const tensor_view& tensor, std::span<float> values) {
  TINY_LM_TRY(widen(tensor, values).within(name));
  if (!as_vector(values).allFinite()) {
    return expected_got(name, "finite weights", "NaN or infinity");
  }
  return {};
}

outcome load(const safetensors& tensors, const std::string& name, std::size_t rows, std::size_t columns, matrix& out) {
  const std::size_t shape[] = {rows, columns};
  const tensor_view* tensor = nullptr;
  TINY_LM_TRY(find_tensor(tensors, name, shape, tensor));
  out.resize(as_index(rows), as_index(columns));
  return widen_finite(name, *tensor, {out.data(), tensor->elements});
}

outcome load(const safetensors& tensors, const std::string& name, std::size_t size, vector& out) {
  const std::size_t shape[] = {size};
  const tensor_view* tensor = nullptr;
  TINY_LM_TRY(find_tensor(tensors, name, shape, tensor));
  out.resize(as_index(size));
  return widen_finite(name, *tensor, as_span(out));
}

outcome load_layer(const model_config& config, const safetensors& tensors, std::size_t index, layer_weights& layer) {
  const std::string prefix = "model.layers." + std::to_string(index) + ".";
  const std::size_t width = config.width;
  const std::size_t query_width = config.query_heads * config.head_dim;
  const std::size_t kv_width = config.kv_heads * config.head_dim;
  TINY_LM_TRY(load(tensors, prefix + "input_layernorm.weight", width, layer.attention_norm));
  TINY_LM_TRY(load(tensors, prefix + "self_attn.q_proj.weight", query_width, width, layer.query));
  TINY_LM_TRY(load(tensors, prefix + "self_attn.k_proj.weight", kv_width, width, layer.key));
  TINY_LM_TRY(load(tensors, prefix + "self_attn.v_proj.weight", kv_width, width, layer.value));
  TINY_LM_TRY(load(tensors, prefix + "self_attn.o_proj.weight", width, query_width, layer.attention_out));
  TINY_LM_TRY(load(tensors, prefix + "post_attention_layernorm.weight", width, layer.ffn_norm));
  TINY_LM_TRY(load(tensors, prefix + "mlp.gate_proj.weight", config.ffn_width, width, layer.gate));
  TINY_LM_TRY(load(tensors, prefix + "mlp.up_proj.weight", config.ffn_width, width, layer.up));
  return load(tensors, prefix + "mlp.down_proj.weight", width, config.ffn_width, layer.down);
}

void rms_norm(const vector& input, const vector& weight, double epsilon, vector& output) {
  const float mean_square = input.squaredNorm() / static_cast<float>(input.size());
  output = input.cwiseProduct(weight) / std::sqrt(mean_square + static_cast<float>(epsilon));
}

}  // namespace

outcome load_model(const model_config& config, const safetensors& tensors, model& result) {
  model fresh;
  fresh.config = config;
  TINY_LM_TRY(load(tensors, "model.embed_tokens.weight", config.vocabulary, config.width, fresh.embedding));
  if (!config.tied_embedding) {
    TINY_LM_TRY(load(tensors, "lm_head.weight", config.vocabulary, config.width, fresh.output));
  }
  TINY_LM_TRY(load(tensors, "model.norm.weight", config.width, fresh.final_norm));
  fresh.layers.resize(config.layers);
  for (std::size_t i = 0; i < config.layers; ++i) {
    TINY_LM_TRY(load_layer(config, tensors, i, fresh.layers[i]));
  }
  result = std::move(fresh);
  return {};
}

decoder::decoder(const model& weights, kv_cache& cache) : model_(weights), cache_(cache) {
  const model_config& config = weights.config;
  stream_.resize(as_index(config.width));
  normed_.resize(as_index(config.width));
  queries_.resize(as_index(config.query_heads * config.head_dim));
  keys_.resize(as_index(config.kv_heads * config.head_dim));
  values_.resize(as_index(config.kv_heads * config.head_dim));
  attended_.resize(queries_.size());
  gate_.resize(as_index(config.ffn_width));
  up_.resize(as_index(config.ffn_width));
  logits_.setZero(as_index(config.vocabulary));

  const auto pairs = as_index(config.head_dim / 2);
  frequencies_.resize(pairs);
  for (Eigen::Index i = 0; i < pairs; ++i) {
    frequencies_[i] = std::pow(config.rope_theta, -static_cast<double>(i) / static_cast<double>(pairs));
  }
  cosines_.resize(pairs);
  sines_.resize(pairs);
}

void decoder::reset() {
  position_ = 0;
  cache_.reset();
}

outcome decoder::step(token_id token) {
  const model_config& config = model_.config;
  if (token < 0 || static_cast<std::size_t>(token) >= config.vocabulary) {
    return expected_got("token", "0 to " + std::to_string(config.vocabulary - 1), token);
  }
  if (position_ >= config.context) {
    return expected_got("position", "less than the context", position_);
  }

  prepare_rotation();
  stream_ = model_.embedding.row(token).transpose();
  for (std::size_t i = 0; i < config.layers; ++i) {
    TINY_LM_TRY(attention(model_.layers[i], i));
    feed_forward(model_.layers[i]);
  }
  rms_norm(stream_, model_.final_norm, config.norm_epsilon, normed_);
  logits_.noalias() = (config.tied_embedding ? model_.embedding : model_.output) * normed_;
  ++position_;
  return {};
}

outcome decoder::attention(const layer_weights& layer, std::size_t index) {
  rms_norm(stream_, layer.attention_norm, model_.config.norm_epsilon, normed_);
  queries_.noalias() = layer.query * normed_;
  keys_.noalias() = layer.key * normed_;
  values_.noalias() = layer.value * normed_;
  rotate(as_span(queries_));
  rotate(as_span(keys_));
  TINY_LM_TRY(cache_.append(index, position_, as_span(keys_), as_span(values_)));
  TINY_LM_TRY(cache_.attend(index, position_, as_span(queries_), as_span(attended_)));
  stream_.noalias() += layer.attention_out * attended_;
  return {};
}

void decoder::feed_forward(const layer_weights& layer) {
  rms_norm(stream_, layer.ffn_norm, model_.config.norm_epsilon, normed_);
  gate_.noalias() = layer.gate * normed_;
  up_.noalias() = layer.up * normed_;
  gate_.array() *= up_.array() / (1.0F + (-gate_.array()).exp());  // SiLU(gate) * up
  stream_.noalias() += layer.down * gate_;
}

/// Cosines and sines of this position. In double: in f32 the angle's error grows with the position.
void decoder::prepare_rotation() {
  const Eigen::ArrayXd angles = frequencies_.array() * static_cast<double>(position_);
  cosines_ = angles.cos().cast<float>();
  sines_ = angles.sin().cast<float>();
}

void decoder::rotate(std::span<float> heads) const {
  const std::size_t head_dim = model_.config.head_dim;
  const auto pairs = as_index(head_dim / 2);
  for (std::size_t begin = 0; begin < heads.size(); begin += head_dim) {
    auto head = as_vector(heads.subspan(begin, head_dim));
    for (Eigen::Index i = 0; i < pairs; ++i) {
      const float first = head[i];
      const float second = head[i + pairs];
      head[i] = first * cosines_[i] - second * sines_[i];
      head[i + pairs] = second * cosines_[i] + first * sines_[i];
    }
  }
}

}  // namespace tiny_lm
