// SPDX-License-Identifier: MIT
// The plain way to attend over product-quantized codes: token-major codes, f32 tables, scalar look-ups, and values
// decoded token by token. The compiler may vectorise what it can.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bench {

/// Codes of one head, `groups` bytes per token, and f32 centroids (groups, 256, width).
struct scalar_codes {
  std::size_t groups = 0;
  std::size_t width = 0;
  std::vector<std::uint8_t> codes;
  std::vector<float> centroids;

  [[nodiscard]] std::size_t tokens() const { return codes.size() / groups; }
  [[nodiscard]] const float* centroid(std::size_t group, std::size_t code) const {
    return centroids.data() + (group * 256 + code) * width;
  }
};

/// out (groups * width) = attention of one query (scale multiplied in). Rows of a group come one after the other.
inline void attend_by_scalar_lookup(const scalar_codes& keys, const scalar_codes& values, const float* query,
                                    std::vector<float>& scores, float* out) {
  const std::size_t dim = keys.groups * keys.width;
  std::vector<float> table(keys.groups * 256);
  for (std::size_t group = 0; group < keys.groups; ++group) {
    for (std::size_t code = 0; code < 256; ++code) {
      float sum = 0.0f;
      for (std::size_t i = 0; i < keys.width; ++i) {
        sum += query[group * keys.width + i] * keys.centroid(group, code)[i];
      }
      table[group * 256 + code] = sum;
    }
  }
  float largest = -1e30f;
  scores.resize(keys.tokens());
  for (std::size_t t = 0; t < keys.tokens(); ++t) {
    float sum = 0.0f;
    for (std::size_t group = 0; group < keys.groups; ++group) {
      sum += table[group * 256 + keys.codes[t * keys.groups + group]];
    }
    scores[t] = sum;
    largest = std::max(largest, sum);
  }
  float total = 0.0f;
  std::fill(out, out + dim, 0.0f);
  for (std::size_t t = 0; t < values.tokens(); ++t) {
    const float weight = std::exp(scores[t] - largest);
    total += weight;
    for (std::size_t group = 0; group < values.groups; ++group) {
      const float* centroid = values.centroid(group, values.codes[t * values.groups + group]);
      for (std::size_t i = 0; i < values.width; ++i) {
        out[group * values.width + i] += weight * centroid[i];
      }
    }
  }
  for (std::size_t c = 0; c < dim; ++c) {
    out[c] /= total;
  }
}

}  // namespace bench
