// SPDX-License-Identifier: MIT
#include "checkpoint.hpp"

#include <pqattn/core/random.hpp>

#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <utility>

namespace llama2c {

static_assert(std::endian::native == std::endian::little, "checkpoints are little-endian");

namespace {

constexpr std::size_t header_fields = 7;
constexpr std::size_t header_bytes = header_fields * sizeof(std::int32_t);

/// Far above any model of this format, far below what could overflow the sums of weight_count().
constexpr std::int32_t largest_width = 1 << 20;
constexpr std::int32_t largest_depth = 1 << 12;

struct field {
  const char* name;
  std::int64_t value;
  std::int64_t largest;
};

bool fail(std::string& problem, std::string text) {
  problem = std::move(text);
  return false;
}

model_shape shape_of(const std::int32_t (&header)[header_fields]) {
  model_shape shape{header[0], header[1], header[2], header[3], header[4], header[5], header[6], true};
  if (shape.vocab_size < 0) {
    shape.shared_classifier = false;
    // The one number without a positive twin stays negative and is refused as out of range.
    shape.vocab_size = shape.vocab_size == std::numeric_limits<std::int32_t>::min() ? -1 : -shape.vocab_size;
  }
  return shape;
}

/// Weights before the two tables of rotation angles that the format carries but nobody reads.
std::int64_t before_angles(const model_shape& s) noexcept {
  const std::int64_t dim = s.dim;
  const std::int64_t per_layer = 2 * dim + 2 * dim * dim + 2 * dim * s.kv_dim() + 3 * dim * std::int64_t{s.hidden_dim};
  return std::int64_t{s.vocab_size} * dim + s.layers * per_layer + dim;
}

}  // namespace

std::int64_t model_shape::weight_count() const noexcept {
  const std::int64_t angles = max_tokens * head_dim() / 2 * 2;
  return before_angles(*this) + angles + (shared_classifier ? 0 : std::int64_t{vocab_size} * dim);
}

bool check_shape(const model_shape& shape, std::string& problem) {
  const field fields[] = {{"dim", shape.dim, largest_width},
                          {"hidden_dim", shape.hidden_dim, largest_width},
                          {"n_layers", shape.layers, largest_depth},
                          {"n_heads", shape.heads, largest_depth},
                          {"n_kv_heads", shape.kv_heads, largest_depth},
                          {"vocab_size", shape.vocab_size, largest_width},
                          {"seq_len", shape.max_tokens, largest_width}};
  for (const field& one : fields) {
    if (one.value < 1 || one.value > one.largest) {
      return fail(problem, std::string(one.name) + " must be 1 to " + std::to_string(one.largest) + ", got " +
                               std::to_string(one.value));
    }
  }
  if (shape.dim % shape.heads != 0 || shape.head_dim() % 2 != 0 || shape.head_dim() > 1024) {
    return fail(problem, "dim must be n_heads times an even head size up to 1024, got " + std::to_string(shape.dim) +
                             " for " + std::to_string(shape.heads) + " heads");
  }
  if (shape.heads % shape.kv_heads != 0) {
    return fail(problem, "n_heads must be a multiple of n_kv_heads, got " + std::to_string(shape.heads) + " and " +
                             std::to_string(shape.kv_heads));
  }
  return true;
}

void checkpoint::cut() {
  std::size_t used = 0;
  const auto take = [&](std::int64_t count) {
    const std::span<const float> part(memory_.data() + used, static_cast<std::size_t>(count));
    used += static_cast<std::size_t>(count);
    return part;
  };
  const std::int64_t dim = shape_.dim;
  const std::int64_t layers = shape_.layers;
  const std::int64_t hidden = shape_.hidden_dim;
  const std::int64_t kv_dim = shape_.kv_dim();
  parts_.token_embedding = take(shape_.vocab_size * dim);
  parts_.attention_norm = take(layers * dim);
  parts_.query = take(layers * dim * dim);
  parts_.key = take(layers * kv_dim * dim);
  parts_.value = take(layers * kv_dim * dim);
  parts_.attention_out = take(layers * dim * dim);
  parts_.feed_norm = take(layers * dim);
  parts_.gate = take(layers * hidden * dim);
  parts_.down = take(layers * dim * hidden);
  parts_.up = take(layers * hidden * dim);
  parts_.final_norm = take(dim);
  static_cast<void>(take(shape_.max_tokens * shape_.head_dim() / 2 * 2));
  parts_.classifier = shape_.shared_classifier ? parts_.token_embedding : take(shape_.vocab_size * dim);
}

bool checkpoint::make(const model_shape& shape, std::vector<float> weights, checkpoint& result, std::string& problem) {
  if (!check_shape(shape, problem)) {
    return false;
  }
  if (weights.size() != static_cast<std::size_t>(shape.weight_count())) {
    return fail(problem, "the header asks for " + std::to_string(shape.weight_count()) + " weights, got " +
                             std::to_string(weights.size()));
  }
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!std::isfinite(weights[i])) {
      return fail(problem, "weight " + std::to_string(i) + " is not finite");
    }
  }
  result.shape_ = shape;
  result.memory_ = std::move(weights);
  result.cut();
  return true;
}

bool checkpoint::read(const std::string& path, checkpoint& result, std::string& problem) {
  std::error_code error;
  const std::uintmax_t bytes = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) {
    return fail(problem, path + " cannot be read");
  }
  return read(file, bytes, result, problem) || fail(problem, path + " " + problem);
}

bool checkpoint::read(std::istream& file, std::uintmax_t bytes, checkpoint& result, std::string& problem) {
  std::int32_t header[header_fields];
  if (bytes < header_bytes || !file.read(reinterpret_cast<char*>(header), header_bytes)) {
    return fail(problem, "is too short for a header of 28 bytes: " + std::to_string(bytes));
  }
  const model_shape shape = shape_of(header);
  if (!check_shape(shape, problem)) {
    return fail(problem, "has a bad header: " + problem);
  }
  const auto expected = header_bytes + static_cast<std::uintmax_t>(shape.weight_count()) * sizeof(float);
  if (bytes != expected) {
    return fail(problem,
                "must have " + std::to_string(expected) + " bytes for its header, got " + std::to_string(bytes));
  }
  std::vector<float> weights(static_cast<std::size_t>(shape.weight_count()));
  if (!file.read(reinterpret_cast<char*>(weights.data()), static_cast<std::streamsize>(expected - header_bytes))) {
    return fail(problem, "ended early");
  }
  return make(shape, std::move(weights), result, problem) || fail(problem, "is no model: " + problem);
}

void checkpoint::write(std::ostream& file) const {
  const std::int32_t header[header_fields] = {
      shape_.dim,       shape_.hidden_dim, shape_.layers,
      shape_.heads,     shape_.kv_heads,   shape_.shared_classifier ? shape_.vocab_size : -shape_.vocab_size,
      shape_.max_tokens};
  file.write(reinterpret_cast<const char*>(header), header_bytes);
  file.write(reinterpret_cast<const char*>(memory_.data()),
             static_cast<std::streamsize>(memory_.size() * sizeof(float)));
  file.flush();
}

bool checkpoint::write(const std::string& path, std::string& problem) const {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  write(file);
  return file.good() || fail(problem, path + " cannot be written");
}

checkpoint checkpoint::random(const model_shape& shape, std::uint64_t seed) {
  pqattn::random_source source(seed);
  std::vector<float> weights(static_cast<std::size_t>(shape.weight_count()));
  for (float& weight : weights) {
    weight = static_cast<float>(2.0 * source.uniform() - 1.0);
  }
  checkpoint made;
  std::string problem;
  static_cast<void>(make(shape, std::move(weights), made, problem));
  const auto scale = [&](std::span<const float> part, double factor, float offset) {
    const auto first = static_cast<std::size_t>(part.data() - made.memory_.data());
    for (std::size_t i = first; i < first + part.size(); ++i) {
      made.memory_[i] = offset + static_cast<float>(factor) * made.memory_[i];
    }
  };
  // Uniform numbers have variance 1/3: sqrt(3 / inputs) keeps the variance of what goes through a matrix.
  const double by_dim = std::sqrt(3.0 / shape.dim);
  const checkpoint::parts& parts = made.parts_;
  scale(parts.attention_norm, 0.1, 1.0f);
  scale(parts.feed_norm, 0.1, 1.0f);
  scale(parts.final_norm, 0.1, 1.0f);
  scale(parts.query, 1.3 * by_dim, 0.0f);
  scale(parts.key, 1.3 * by_dim, 0.0f);
  scale(parts.value, by_dim, 0.0f);
  scale(parts.attention_out, by_dim, 0.0f);
  scale(parts.gate, by_dim, 0.0f);
  scale(parts.up, by_dim, 0.0f);
  scale(parts.down, std::sqrt(3.0 / shape.hidden_dim), 0.0f);
  if (!shape.shared_classifier) {
    scale(parts.classifier, by_dim, 0.0f);
  }
  return made;
}

}  // namespace llama2c
