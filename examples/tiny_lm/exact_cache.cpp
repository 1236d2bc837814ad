// SPDX-License-Identifier: MIT
#include "exact_cache.hpp"

#include <algorithm>
#include <cmath>

namespace tiny_lm {

using pqattn::failure;
using pqattn::status;
using pqattn::status_code;

exact_cache::exact_cache(const cache_shape& shape, std::size_t sinks, std::size_t recent)
    : shape_(shape),
      sinks_(std::min(sinks, shape.max_tokens)),
      recent_(std::min(recent, shape.max_tokens - sinks_)),
      rows_(shape.layers * shape.kv_heads),
      scores_(as_index(slots())) {
  for (head_rows& head : rows_) {
    head.keys.setZero(as_index(slots()), as_index(shape.head_dim));
    head.values.setZero(as_index(slots()), as_index(shape.head_dim));
  }
}

// Attention does not depend on the order of the rows (RoPE is in the keys), so the window is a ring.
std::size_t exact_cache::slot_of(std::size_t position) const noexcept {
  return position < sinks_ ? position : sinks_ + (position - sinks_) % recent_;
}

status exact_cache::append(std::size_t layer, std::size_t position, std::span<const float> keys,
                           std::span<const float> values) {
  if (layer >= shape_.layers) {
    return failure(status_code::invalid_argument, "layer", "is too large", shape_.layers, layer);
  }
  if (position >= shape_.max_tokens || slots() == 0) {
    return failure(status_code::capacity, "position", "is beyond the cache", shape_.max_tokens, position);
  }
  if (position > tokens_) {
    return failure(status_code::invalid_argument, "position", "must follow the last one", tokens_, position);
  }
  if (keys.size() != shape_.kv_width() || values.size() != shape_.kv_width()) {
    return failure(status_code::shape_mismatch, "keys or values", "must be kv_heads rows", shape_.kv_width(),
                   keys.size());
  }
  const Eigen::Index slot = as_index(slot_of(position));
  for (std::size_t head = 0; head < shape_.kv_heads; ++head) {
    const std::size_t begin = head * shape_.head_dim;
    rows(layer, head).keys.row(slot) = as_vector(keys.subspan(begin, shape_.head_dim)).transpose();
    rows(layer, head).values.row(slot) = as_vector(values.subspan(begin, shape_.head_dim)).transpose();
  }
  tokens_ = std::max(tokens_, position + 1);
  return {};
}

status exact_cache::attend(std::size_t layer, std::size_t position, std::span<const float> queries,
                           std::span<float> out) {
  if (layer >= shape_.layers) {
    return failure(status_code::invalid_argument, "layer", "is too large", shape_.layers, layer);
  }
  if (position + 1 != tokens_) {
    return failure(status_code::invalid_argument, "position", "must be the last one appended", tokens_, position + 1);
  }
  if (queries.size() != shape_.query_width() || out.size() != shape_.query_width()) {
    return failure(status_code::shape_mismatch, "queries or out", "must be query_heads rows", shape_.query_width(),
                   queries.size());
  }
  const std::size_t filled = std::min(tokens_, slots());
  for (std::size_t head = 0; head < shape_.query_heads; ++head) {
    const std::size_t begin = head * shape_.head_dim;
    attend_head(rows(layer, head / shape_.group()), filled, queries.subspan(begin, shape_.head_dim),
                out.subspan(begin, shape_.head_dim));
  }
  return {};
}

void exact_cache::attend_head(const head_rows& head, std::size_t filled, std::span<const float> query,
                              std::span<float> out) {
  const Eigen::Index count = as_index(filled);
  const float scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim));
  auto scores = scores_.head(count);
  scores.noalias() = head.keys.topRows(count) * as_vector(query);
  scores = (scale * (scores.array() - scores.maxCoeff())).exp();
  scores /= scores.sum();
  as_vector(out).noalias() = head.values.topRows(count).transpose() * scores;
}

cache_memory exact_cache::memory() const {
  return {shape_.elements(slots()) * sizeof(float), tokens_};
}

}  // namespace tiny_lm
