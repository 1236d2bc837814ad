// SPDX-License-Identifier: MIT
// Checkpoints in the first llama2.c format: seven int32, then float weights, little-endian, nothing else.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <span>
#include <string>
#include <vector>

namespace llama2c {

/// The header. A negative vocab_size in the file says that the classifier has weights of its own.
struct model_shape {
  std::int32_t dim = 0;
  std::int32_t hidden_dim = 0;
  std::int32_t layers = 0;
  std::int32_t heads = 0;
  std::int32_t kv_heads = 0;
  std::int32_t vocab_size = 0;
  std::int32_t max_tokens = 0;
  bool shared_classifier = true;

  [[nodiscard]] std::int64_t head_dim() const noexcept { return dim / heads; }
  [[nodiscard]] std::int64_t kv_dim() const noexcept { return head_dim() * kv_heads; }
  /// Floats behind the header.
  [[nodiscard]] std::int64_t weight_count() const noexcept;
};

/// A checkpoint in memory. Matrices are (layers, outputs, inputs) row-major.
class checkpoint {
 public:
  /// The parts of `weights`, in the order of the file.
  struct parts {
    std::span<const float> token_embedding;  ///< (vocab_size, dim)
    std::span<const float> attention_norm;   ///< (layers, dim)
    std::span<const float> query;            ///< (layers, dim, dim)
    std::span<const float> key;              ///< (layers, kv_dim, dim)
    std::span<const float> value;            ///< (layers, kv_dim, dim)
    std::span<const float> attention_out;    ///< (layers, dim, dim)
    std::span<const float> feed_norm;        ///< (layers, dim)
    std::span<const float> gate;             ///< w1 (layers, hidden_dim, dim)
    std::span<const float> down;             ///< w2 (layers, dim, hidden_dim)
    std::span<const float> up;               ///< w3 (layers, hidden_dim, dim)
    std::span<const float> final_norm;       ///< (dim)
    std::span<const float> classifier;       ///< (vocab_size, dim)
  };

  /// Takes shape and weights; false with a message when they do not fit together.
  static bool make(const model_shape& shape, std::vector<float> weights, checkpoint& result, std::string& problem);

  /// Reads a file, or `bytes` bytes of a stream. False with a message, `result` as before, for anything that is not a
  /// whole checkpoint: nothing is allocated before the sizes in the header have been held against the size of the file.
  static bool read(const std::string& path, checkpoint& result, std::string& problem);
  static bool read(std::istream& file, std::uintmax_t bytes, checkpoint& result, std::string& problem);
  [[nodiscard]] bool write(const std::string& path, std::string& problem) const;
  void write(std::ostream& file) const;

  /// A model with seeded random weights, the same on every machine. Scaled so that attention is neither uniform nor
  /// stuck on one token.
  static checkpoint random(const model_shape& shape, std::uint64_t seed);

  [[nodiscard]] const model_shape& shape() const noexcept { return shape_; }
  [[nodiscard]] const parts& weights() const noexcept { return parts_; }

 private:
  void cut();

  model_shape shape_;
  std::vector<float> memory_;
  parts parts_;
};

/// Whether a header can be one of a model; a message if not.
[[nodiscard]] bool check_shape(const model_shape& shape, std::string& problem);

}  // namespace llama2c
