// SPDX-License-Identifier: MIT
// What results are judged against: plain loops in double precision, written from the definitions and sharing no code
// with the library.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "pqattn/quant/geometry.hpp"
#include "pqattn/quant/rope.hpp"

namespace pqattn_test {

using doubles = std::vector<double>;

inline doubles to_doubles(const std::vector<float>& values) {
  return doubles(values.begin(), values.end());
}

// --- errors --------------------------------------------------------------------------------------------------------

/// sum of squared errors over sum of squared references; infinity when a result is not finite.
template <class Results>
double nmse(const Results& results, const doubles& reference) {
  double error = 0.0;
  double energy = 0.0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const double difference = static_cast<double>(results[i]) - reference[i];
    if (!std::isfinite(difference)) {
      return std::numeric_limits<double>::infinity();
    }
    error += difference * difference;
    energy += reference[i] * reference[i];
  }
  return energy > 0.0 ? error / energy : error;
}

/// Largest |result - reference|; infinity when a result is not finite.
template <class Results>
double max_error(const Results& results, const doubles& reference) {
  double largest = 0.0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const double difference = std::abs(static_cast<double>(results[i]) - reference[i]);
    if (!std::isfinite(difference)) {
      return std::numeric_limits<double>::infinity();
    }
    largest = std::max(largest, difference);
  }
  return largest;
}

inline double norm(const double* x, std::size_t count) {
  double sum = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    sum += x[i] * x[i];
  }
  return std::sqrt(sum);
}

inline double largest_magnitude(const doubles& values) {
  double largest = 0.0;
  for (const double value : values) {
    largest = std::max(largest, std::abs(value));
  }
  return largest;
}

// --- nearest centroid ----------------------------------------------------------------------------------------------

template <class Point, class Centroid>
double squared_distance(const Point* x, const Centroid* centroid, std::size_t width) {
  double sum = 0.0;
  for (std::size_t c = 0; c < width; ++c) {
    const double difference = static_cast<double>(x[c]) - static_cast<double>(centroid[c]);
    sum += difference * difference;
  }
  return sum;
}

struct nearest_result {
  std::size_t index = 0;
  double distance = 0.0;
};

/// Nearest of row-major (count, width) centroids, ties by lowest index.
template <class Point, class Centroid>
nearest_result nearest_centroid(const Point* x, const Centroid* centroids, std::size_t count, std::size_t width) {
  nearest_result best{0, std::numeric_limits<double>::infinity()};
  for (std::size_t k = 0; k < count; ++k) {
    const double distance = squared_distance(x, centroids + k * width, width);
    if (distance < best.distance) {
      best = {k, distance};
    }
  }
  return best;
}

/// Whether `code` is a right answer of f32 arithmetic: no other centroid is nearer by more than rounding explains,
/// and no identical centroid has a lower index. `magnitude` bounds the numbers that were subtracted on the way.
template <class Point, class Centroid>
bool code_is_nearest(std::size_t code, const Point* x, const Centroid* centroids, std::size_t count, std::size_t width,
                     double magnitude) {
  const double chosen = squared_distance(x, centroids + code * width, width);
  const double best = nearest_centroid(x, centroids, count, width).distance;
  // Each difference is off by eps * magnitude, each square by twice that times the difference, the sum by eps more.
  const double eps = 1.2e-7;
  const double w = static_cast<double>(width);
  const double slack =
      4.0 * eps * (w * chosen + magnitude * std::sqrt(w * chosen)) + w * eps * eps * magnitude * magnitude;
  if (chosen > best + slack) {
    return false;
  }
  for (std::size_t k = 0; k < code; ++k) {
    if (std::equal(centroids + k * width, centroids + (k + 1) * width, centroids + code * width)) {
      return false;
    }
  }
  return true;
}

/// sum of weight * squared distance to the nearest centroid: what k-means minimises.
inline double kmeans_objective(const float* points, const float* weights, std::size_t count, std::size_t width,
                               const float* centroids, std::size_t centroid_count) {
  double sum = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[i]);
    sum += weight * nearest_centroid(points + i * width, centroids, centroid_count, width).distance;
  }
  return sum;
}

// --- codes ---------------------------------------------------------------------------------------------------------

/// Decodes token-major codes (tokens, groups): the sum of the stages' centroids, put back into the model's channels.
inline doubles decode_rows(const pqattn::geometry& shape, const std::vector<float>& centroids,
                           const std::vector<std::uint16_t>& codes, std::size_t tokens) {
  doubles rows(tokens * shape.dim, 0.0);
  for (std::size_t token = 0; token < tokens; ++token) {
    const std::size_t wide = shape.dim % shape.subvectors;
    const float* group_centroids = centroids.data();
    for (std::size_t stage = 0; stage < shape.stages; ++stage) {
      std::size_t position = 0;
      for (std::size_t run = 0; run < shape.subvectors; ++run) {
        const std::size_t width = shape.dim / shape.subvectors + (run < wide ? 1 : 0);
        const std::size_t code = codes[token * shape.stages * shape.subvectors + stage * shape.subvectors + run];
        for (std::size_t c = 0; c < width; ++c, ++position) {
          const std::size_t channel = shape.channel_order == nullptr ? position : shape.channel_order[position];
          rows[token * shape.dim + channel] += static_cast<double>(group_centroids[code * width + c]);
        }
        group_centroids += width * shape.centroids;
      }
    }
  }
  return rows;
}

// --- RoPE ----------------------------------------------------------------------------------------------------------

/// Turns one row by the angle position * frequency of each pair, back when direction is -1.
inline void rotate(const float* frequencies, std::size_t pairs, pqattn::rope_pairing pairing, std::int64_t position,
                   double direction, double* row) {
  for (std::size_t pair = 0; pair < pairs; ++pair) {
    const std::size_t first = pairing == pqattn::rope_pairing::half_split ? pair : 2 * pair;
    const std::size_t second = pairing == pqattn::rope_pairing::half_split ? pair + pairs : 2 * pair + 1;
    const long double angle = static_cast<long double>(frequencies[pair]) * static_cast<long double>(position);
    const double cosine = static_cast<double>(std::cos(angle));
    const double sine = direction * static_cast<double>(std::sin(angle));
    const double x = row[first];
    const double y = row[second];
    row[first] = x * cosine - y * sine;
    row[second] = x * sine + y * cosine;
  }
}

// --- attention -----------------------------------------------------------------------------------------------------

/// Everything that happens to a score; empty vectors and zeros change nothing.
struct attention_case {
  std::size_t rows = 0;
  std::size_t tokens = 0;
  std::size_t key_dim = 0;
  std::size_t value_dim = 0;
  doubles queries;  ///< (rows, key_dim)
  doubles keys;     ///< (tokens, key_dim), rotated
  doubles values;   ///< (tokens, value_dim)
  double scale = 1.0;
  doubles bias;          ///< (rows, tokens), -infinity excludes
  doubles alibi_slopes;  ///< rows
  double softcap = 0.0;
  std::vector<std::int64_t> key_positions;  ///< tokens
  std::vector<std::int64_t> query_positions;
  bool causal = false;
  std::int64_t window = 0;
  std::vector<bool> live;  ///< tokens
  doubles sink_logits;     ///< rows
};

struct attention_result {
  doubles out;  ///< (rows, value_dim)
  doubles lse;  ///< rows, natural logarithm
};

/// The score of one (row, token) after modifiers 1 to 4; -infinity when the token is excluded.
inline double reference_score(const attention_case& in, std::size_t row, std::size_t token) {
  double score = 0.0;
  for (std::size_t c = 0; c < in.key_dim; ++c) {
    score += in.queries[row * in.key_dim + c] * in.keys[token * in.key_dim + c];
  }
  score *= in.scale;
  const double excluded = -std::numeric_limits<double>::infinity();
  if (!in.bias.empty()) {
    if (in.bias[row * in.tokens + token] == excluded) {
      return excluded;
    }
    score += in.bias[row * in.tokens + token];
  }
  if (!in.alibi_slopes.empty()) {
    score += in.alibi_slopes[row] * static_cast<double>(in.key_positions[token] - in.query_positions[row]);
  }
  if (in.softcap > 0.0) {
    score = in.softcap * std::tanh(score / in.softcap);
  }
  if (!in.live.empty() && !in.live[token]) {
    return excluded;
  }
  if (in.causal && in.key_positions[token] > in.query_positions[row]) {
    return excluded;
  }
  if (in.window > 0 && in.key_positions[token] <= in.query_positions[row] - in.window) {
    return excluded;
  }
  return score;
}

inline attention_result reference_attention(const attention_case& in) {
  attention_result result{doubles(in.rows * in.value_dim, 0.0), doubles(in.rows)};
  const double nothing = -std::numeric_limits<double>::infinity();
  for (std::size_t row = 0; row < in.rows; ++row) {
    doubles scores(in.tokens);
    double highest = in.sink_logits.empty() ? nothing : in.sink_logits[row];
    for (std::size_t token = 0; token < in.tokens; ++token) {
      scores[token] = reference_score(in, row, token);
      highest = std::max(highest, scores[token]);
    }
    if (highest == nothing) {
      result.lse[row] = nothing;
      continue;
    }
    double sum = in.sink_logits.empty() ? 0.0 : std::exp(in.sink_logits[row] - highest);
    double* out = result.out.data() + row * in.value_dim;
    for (std::size_t token = 0; token < in.tokens; ++token) {
      const double p = std::exp(scores[token] - highest);
      sum += p;
      for (std::size_t c = 0; p != 0.0 && c < in.value_dim; ++c) {
        out[c] += p * in.values[token * in.value_dim + c];
      }
    }
    for (std::size_t c = 0; c < in.value_dim; ++c) {
      out[c] /= sum;
    }
    result.lse[row] = highest + std::log(sum);
  }
  return result;
}

}  // namespace pqattn_test
