// SPDX-License-Identifier: MIT
#include "runner.hpp"

#include <pqattn/core/random.hpp>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

namespace llama2c {

namespace {

using matrix = Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;

/// out = matrix `layer` of (layers, out.size(), in.size()) times in.
void multiply(std::span<const float> matrices, std::size_t layer, std::span<const float> in, std::span<float> out) {
  const matrix weights(matrices.data() + layer * in.size() * out.size(), static_cast<Eigen::Index>(out.size()),
                       static_cast<Eigen::Index>(in.size()));
  Eigen::Map<Eigen::VectorXf>(out.data(), weights.rows()).noalias() =
      weights * Eigen::Map<const Eigen::VectorXf>(in.data(), weights.cols());
}

void normalise(std::span<const float> in, const float* weights, std::span<float> out) {
  float squares = 0.0f;
  for (const float x : in) {
    squares += x * x;
  }
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(in.size()) + 1e-5f);
  for (std::size_t i = 0; i < in.size(); ++i) {
    out[i] = weights[i] * scale * in[i];
  }
}

/// RoPE over neighbouring channels, base 10000.
void rotate(std::span<float> rows, std::size_t head_dim, std::int64_t position) {
  for (std::size_t i = 0; i < rows.size(); i += 2) {
    const double exponent = static_cast<double>(i % head_dim) / static_cast<double>(head_dim);
    const double angle = static_cast<double>(position) * std::pow(10000.0, -exponent);
    const auto cosine = static_cast<float>(std::cos(angle));
    const auto sine = static_cast<float>(std::sin(angle));
    const float x = rows[i];
    rows[i] = x * cosine - rows[i + 1] * sine;
    rows[i + 1] = x * sine + rows[i + 1] * cosine;
  }
}

void add(std::span<const float> source, std::span<float> target) {
  for (std::size_t i = 0; i < source.size(); ++i) {
    target[i] += source[i];
  }
}

/// Log-probabilities of a row of logits.
std::vector<double> log_softmax(std::span<const float> logits) {
  const double highest = *std::max_element(logits.begin(), logits.end());
  double total = 0.0;
  for (const float logit : logits) {
    total += std::exp(double{logit} - highest);
  }
  std::vector<double> result;
  for (const float logit : logits) {
    result.push_back(double{logit} - highest - std::log(total));
  }
  return result;
}

}  // namespace

runner::runner(const checkpoint& model, kv_cache& cache) : model_(&model), cache_(&cache) {
  const model_shape& shape = model.shape();
  const auto dim = static_cast<std::size_t>(shape.dim);
  const auto kv_dim = static_cast<std::size_t>(shape.kv_dim());
  for (std::vector<float>* buffer : {&state_, &normed_, &queries_, &mixed_, &projected_}) {
    buffer->resize(dim);
  }
  keys_.resize(kv_dim);
  values_.resize(kv_dim);
  gate_.resize(static_cast<std::size_t>(shape.hidden_dim));
  up_.resize(gate_.size());
  logits_.resize(static_cast<std::size_t>(shape.vocab_size));
}

pqattn::status runner::forward(std::int32_t token) {
  const model_shape& shape = model_->shape();
  if (token < 0 || token >= shape.vocab_size) {
    return pqattn::failure(pqattn::status_code::invalid_argument, "token", "must be in the vocabulary",
                           shape.vocab_size - 1, token);
  }
  if (position_ >= shape.max_tokens) {
    return pqattn::failure(pqattn::status_code::capacity, "position", "is beyond the model's context",
                           shape.max_tokens - 1, position_);
  }
  const auto dim = static_cast<std::size_t>(shape.dim);
  std::copy_n(model_->weights().token_embedding.begin() + static_cast<std::ptrdiff_t>(token) * shape.dim, dim,
              state_.begin());
  for (std::size_t layer = 0; layer < static_cast<std::size_t>(shape.layers); ++layer) {
    PQATTN_TRY(attention(layer));
    feed_forward(layer);
  }
  normalise(state_, model_->weights().final_norm.data(), normed_);
  multiply(model_->weights().classifier, 0, normed_, logits_);
  ++position_;
  return {};
}

pqattn::status runner::attention(std::size_t layer) {
  const checkpoint::parts& weights = model_->weights();
  const auto head_dim = static_cast<std::size_t>(model_->shape().head_dim());
  normalise(state_, weights.attention_norm.data() + layer * state_.size(), normed_);
  multiply(weights.query, layer, normed_, queries_);
  multiply(weights.key, layer, normed_, keys_);
  multiply(weights.value, layer, normed_, values_);
  rotate(queries_, head_dim, position_);
  rotate(keys_, head_dim, position_);
  PQATTN_TRY(cache_->append(layer, keys_, values_));
  PQATTN_TRY(cache_->attend(layer, queries_, mixed_));
  multiply(weights.attention_out, layer, mixed_, projected_);
  add(projected_, state_);
  return {};
}

void runner::feed_forward(std::size_t layer) {
  const checkpoint::parts& weights = model_->weights();
  normalise(state_, weights.feed_norm.data() + layer * state_.size(), normed_);
  multiply(weights.gate, layer, normed_, gate_);
  multiply(weights.up, layer, normed_, up_);
  for (std::size_t i = 0; i < gate_.size(); ++i) {
    gate_[i] *= up_[i] / (1.0f + std::exp(-gate_[i]));
  }
  multiply(weights.down, layer, gate_, projected_);
  add(projected_, state_);
}

std::int32_t runner::most_likely() const noexcept {
  return static_cast<std::int32_t>(std::max_element(logits_.begin(), logits_.end()) - logits_.begin());
}

bool compare(const checkpoint& model, std::span<const std::int32_t> tokens, const std::string& reference,
             const std::string& cache, std::uint32_t train_tokens, comparison& result, std::string& problem) {
  const auto first_cache = make_cache(reference, model.shape(), train_tokens, problem);
  const auto second_cache = make_cache(cache, model.shape(), train_tokens, problem);
  if (first_cache == nullptr || second_cache == nullptr) {
    return false;
  }
  runner first(model, *first_cache);
  runner second(model, *second_cache);
  result = {};
  double wrong = 0.0;
  double right = 0.0;
  for (const std::int32_t token : tokens) {
    for (runner* one : {&first, &second}) {
      if (const pqattn::status done = one->forward(token); !done) {
        char text[200];
        done.format(text, sizeof text);
        problem = text;
        return false;
      }
    }
    const std::vector<double> p = log_softmax(first.logits());
    const std::vector<double> q = log_softmax(second.logits());
    for (std::size_t i = 0; i < p.size(); ++i) {
      const double difference = double{first.logits()[i]} - double{second.logits()[i]};
      result.largest_difference = std::max(result.largest_difference, std::abs(difference));
      wrong += difference * difference;
      right += double{first.logits()[i]} * double{first.logits()[i]};
      result.kl += std::exp(p[i]) * (p[i] - q[i]) / static_cast<double>(tokens.size());
    }
    result.same_top += first.most_likely() == second.most_likely() ? 1 : 0;
  }
  result.nmse = wrong / right;
  result.tokens = tokens.size();
  result.coded_tokens = second_cache->coded_tokens();
  result.bytes = second_cache->bytes();
  return true;
}

std::vector<std::int32_t> random_tokens(const model_shape& shape, std::size_t count, std::uint64_t seed) {
  pqattn::random_source source(seed);
  std::vector<std::int32_t> tokens(count);
  for (std::int32_t& token : tokens) {
    token = static_cast<std::int32_t>(source.below(static_cast<std::size_t>(shape.vocab_size)));
  }
  return tokens;
}

}  // namespace llama2c
