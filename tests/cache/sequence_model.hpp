// SPDX-License-Identifier: MIT
// A naive model of a page_pool and its sequences: every token is a struct with its position, its form (exact or coded)
// and the rows that attention sees, held in plain vectors. Codes come from encoding that one token alone.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "pqattn/bank/host/host_bank.hpp"
#include "pqattn/cache/batch.hpp"
#include "pqattn/cache/presets.hpp"
#include "pqattn/encode/encode.hpp"
#include "pqattn/encode/metric_encoder.hpp"
#include "support/memory_resources.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"
#include "support/reference.hpp"
#include "support/strided_matrix.hpp"

namespace pqattn_test {

/// The host bank, unless told otherwise in f32 throughout, so that attention can be compared tightly.
struct f32_bank : pqattn::host_bank<> {
  explicit f32_bank(const pqattn::memory_resource& memory = {},
                    const pqattn::host_options& options = pqattn::exact_arithmetic) noexcept
      : pqattn::host_bank<>(memory, options) {}
};

using pool_type = pqattn::page_pool<f32_bank>;
using sequence_type = pqattn::sequence<f32_bank>;
using batch_type = pqattn::batch_attention<f32_bank>;

/// What a run is about.
struct edit_shape {
  const char* name = "";
  std::uint32_t key_dim = 16;
  std::uint32_t value_dim = 24;
  std::uint32_t key_subvectors = 4;
  std::uint32_t value_subvectors = 6;
  std::uint32_t centroids = 8;
  std::uint32_t stages = 1;
  std::size_t heads = 2;
  std::size_t group = 2;
  std::uint32_t sinks = 4;
  std::uint32_t recent = 10;
  std::uint32_t train_tokens = 60;
  bool keys_coded = true;
  bool values_coded = true;
  bool rope = true;
  bool arrives_rotated = true;
  bool after_rope = false;
  pqattn::rope_pairing pairing = pqattn::rope_pairing::half_split;
  pqattn::dtype exact = pqattn::dtype::f32;
  pqattn::codebook_storage storage = pqattn::codebook_storage::i8;
  bool metric = false;
  bool turned_values = false;
  std::uint32_t joint_passes = 0;
  std::uint32_t sweeps = 0;
  std::uint32_t coding_batch = 1;
  std::uint32_t query_rows = 0;
  bool attention_weights = false;
  std::uint32_t key_tail = 0;
  bool values_from_keys = false;
  float outlier_share = 0.0f;  ///< above 0: some tokens drawn are unlike the others, too
  bool track_errors = false;
  double preset_bits = 0.0;  ///< above 0: shapes and switches come from preset_config()

  [[nodiscard]] std::uint32_t key_channels() const { return key_dim + key_tail; }
};

inline const edit_shape edit_shapes[] = {
    {.name = "before RoPE"},
    {.name = "after RoPE, f16",
     .after_rope = true,
     .pairing = pqattn::rope_pairing::interleaved,
     .exact = pqattn::dtype::f16,
     .storage = pqattn::codebook_storage::f16},
    {.name = "no RoPE, odd sizes, MHA",
     .key_dim = 7,
     .value_dim = 5,
     .key_subvectors = 3,
     .value_subvectors = 2,
     .centroids = 5,
     .heads = 3,
     .group = 1,
     .rope = false,
     .exact = pqattn::dtype::bf16},
    {.name = "keys only", .values_coded = false, .arrives_rotated = false},
    {.name = "values only, GQA of 5", .heads = 1, .group = 5, .keys_coded = false, .exact = pqattn::dtype::f16},
    {.name = "one channel",
     .key_dim = 1,
     .value_dim = 1,
     .key_subvectors = 1,
     .value_subvectors = 1,
     .centroids = 2,
     .rope = false,
     .storage = pqattn::codebook_storage::f32},
    {.name = "nothing coded", .keys_coded = false, .values_coded = false},
    {.name = "no sinks, no window", .stages = 2, .sinks = 0, .recent = 0, .arrives_rotated = false},
    {.name = "sinks and window over pages", .centroids = 16, .sinks = 70, .recent = 90, .train_tokens = 130},
    {.name = "wide",
     .key_dim = 1024,
     .value_dim = 513,
     .key_subvectors = 40,
     .value_subvectors = 33,
     .centroids = 4,
     .heads = 1,
     .group = 1,
     .recent = 6,
     .train_tokens = 24,
     .exact = pqattn::dtype::f16},
    {.name = "preset of 2 bits", .key_dim = 24, .value_dim = 16, .preset_bits = 2.0},
    {.name = "metric after RoPE, weights by attention",
     .stages = 2,
     .after_rope = true,
     .metric = true,
     .sweeps = 1,
     .query_rows = 40,
     .attention_weights = true},
    {.name = "keys exact, values turned",
     .value_dim = 9,
     .value_subvectors = 2,
     .keys_coded = false,
     .exact = pqattn::dtype::f16,
     .turned_values = true,
     .joint_passes = 2,
     .coding_batch = 7},
    {.name = "latent keys that are values, tails with RoPE",
     .value_dim = 16,
     .value_subvectors = 4,
     .heads = 1,
     .group = 3,
     .pairing = pqattn::rope_pairing::interleaved,
     .joint_passes = 1,
     .sweeps = 1,
     .coding_batch = 3,
     .key_tail = 6,
     .values_from_keys = true},
    {.name = "keys with a tail, values of their own",
     .key_dim = 5,
     .key_subvectors = 2,
     .values_coded = false,
     .arrives_rotated = false,
     .exact = pqattn::dtype::bf16,
     .key_tail = 2},
    {.name = "outliers before RoPE", .outlier_share = 0.1f},
    {.name = "outliers after RoPE, f16, pages full of them",
     .after_rope = true,
     .exact = pqattn::dtype::f16,
     .coding_batch = 5,
     .outlier_share = 0.02f},
    {.name = "outliers, values exact", .values_coded = false, .arrives_rotated = false, .outlier_share = 0.2f},
    {.name = "outliers of latent keys with tails",
     .value_dim = 16,
     .value_subvectors = 4,
     .heads = 1,
     .group = 3,
     .key_tail = 6,
     .values_from_keys = true,
     .outlier_share = 0.05f},
    {.name = "outliers of a preset", .key_dim = 24, .value_dim = 16, .outlier_share = 0.05f, .preset_bits = 2.0},
    {.name = "pairs within sub-vectors",
     .key_dim = 64,
     .key_subvectors = 16,
     .centroids = 16,
     .pairing = pqattn::rope_pairing::interleaved},
};

/// Rows of one token, per head.
struct model_token {
  std::int64_t position = 0;
  bool coded = false;
  std::size_t epoch = 0;                       ///< of the pool that its codes are of; when coded
  std::vector<bool> outlier;                   ///< of a head: its rows are exact besides; when coded
  std::vector<std::vector<float>> coded_keys;  ///< decoded, in the form keys are coded in; when coded
  std::vector<std::vector<float>> keys;        ///< as attention sees them
  std::vector<std::vector<float>> values;
};

/// A sequence as three plain lists.
struct model_sequence {
  std::vector<model_token> sinks;
  std::vector<model_token> body;
  std::vector<model_token> recent;

  [[nodiscard]] std::size_t size() const { return sinks.size() + body.size() + recent.size(); }
  [[nodiscard]] std::vector<const model_token*> all() const {
    std::vector<const model_token*> tokens;
    for (const auto* list : {&sinks, &body, &recent}) {
      for (const model_token& token : *list) {
        tokens.push_back(&token);
      }
    }
    return tokens;
  }
  void remove(std::size_t first, std::size_t count) {
    std::size_t index = 0;
    for (auto* list : {&sinks, &body, &recent}) {
      std::vector<model_token> kept;
      for (model_token& token : *list) {
        if (index < first || index >= first + count) {
          kept.push_back(std::move(token));
        }
        ++index;
      }
      *list = std::move(kept);
    }
  }
};

class sequence_world {
 public:
  sequence_world(const edit_shape& given, std::uint64_t stream, const pqattn::memory_resource& resource = {},
                 const pqattn::host_options& options = pqattn::exact_arithmetic)
      : shape(given), random(stream), bank(resource, options), resource_(resource) {
    const std::uint32_t rotated = (shape.key_tail != 0 ? shape.key_tail : shape.key_dim) / 2 * 2;
    frequencies_.resize(rotated / 2 + 1);
    pqattn::fill_rope_frequencies(frequencies_.data(), rotated, 10000.0);
    rope_memory_.resize(pqattn::rope_floats(rotated / 2));
    REQUIRE_OK(build_rope(frequencies_.data(), rotated / 2, shape.pairing, rope_memory_.data(), rotation_));
    config.keys = {
        shape.keys_coded, {shape.key_dim, shape.key_subvectors, shape.centroids, shape.stages}, shape.storage};
    config.values = {
        shape.values_coded, {shape.value_dim, shape.value_subvectors, shape.centroids, shape.stages}, shape.storage};
    config.sinks = shape.sinks;
    config.recent = shape.recent;
    config.train_tokens = shape.train_tokens;
    config.exact_type = shape.exact;
    config.rotation = shape.rope ? rotation_ : pqattn::rope{};
    config.keys_arrive_rotated = shape.arrives_rotated;
    config.code_keys_after_rope = shape.after_rope;
    config.kmeans.iterations = 2;
    config.most_epochs = 3;
    for (pqattn::side_config* side : {&config.keys, &config.values}) {
      side->joint_passes = shape.joint_passes;
      side->sweeps = shape.sweeps;
    }
    config.keys.metric = shape.metric;
    config.values.rotated = shape.turned_values;
    config.coding_batch = shape.coding_batch;
    config.query_rows = shape.query_rows;
    config.attention_weights = shape.attention_weights;
    config.key_tail = shape.key_tail;
    config.values_from_keys = shape.values_from_keys;
    config.outlier_share = shape.outlier_share;
    config.track_errors = shape.track_errors;
    if (shape.preset_bits > 0.0) {
      take_preset();
    }
    REQUIRE_OK(pool_type::make(bank, config, shape.heads, resource, pool));
  }

  /// Rows of `count` new tokens, of numbers that `type` has: keys as the engine hands them over.
  void draw(std::size_t count, pqattn::dtype type = pqattn::dtype::f32) {
    new_keys = random.normals(shape.heads * count * shape.key_channels());
    new_values = random.normals(shape.heads * count * shape.value_dim);
    drawn_ = count;
    for (std::size_t row = 0; shape.outlier_share > 0.0f && row < shape.heads * count; ++row) {
      const float scale = random.chance(0.1) ? 3.0f : 1.0f;
      for (std::size_t c = 0; c < shape.key_channels(); ++c) {
        new_keys[row * shape.key_channels() + c] *= scale;
      }
    }
    drawn_type_ = type;
    round_to(type, new_keys);
    round_to(type, new_values);
  }
  [[nodiscard]] pqattn::dtype any_type() {
    return random.chance(0.5) ? pqattn::dtype::f32 : random.chance(0.5) ? pqattn::dtype::f16 : pqattn::dtype::bf16;
  }

  /// Rows (heads, count, dim) as some engine keeps them: head by head or token by token, any dtype, strides and
  /// alignment.
  struct handed_rows {
    strided_matrix memory;
    bool by_token;
    pqattn::head_rows rows;

    [[nodiscard]] std::size_t row_of(std::size_t head, std::size_t i) const {
      return by_token ? i * rows.heads + head : head * rows.rows.rows + i;
    }
  };
  handed_rows hand_over(const std::vector<float>& numbers, std::size_t heads, std::size_t dim, pqattn::dtype type) {
    const matrix_layout layouts[] = {dense_layout, padded_layout, awkward_layout, reversed_layout};
    const std::size_t count = numbers.size() / (heads * dim);
    handed_rows handed{strided_matrix(heads * count, dim, type, layouts[random.below(4)]), random.chance(0.5), {}};
    const pqattn::rows_view view = handed.memory.view();
    handed.rows = {view, heads, view.row_stride * (handed.by_token ? 1 : static_cast<std::ptrdiff_t>(count))};
    handed.rows.rows.rows = count;
    handed.rows.rows.row_stride *= handed.by_token ? static_cast<std::ptrdiff_t>(heads) : 1;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      handed.memory.set(handed.row_of(i / dim / count, i / dim % count), i % dim, numbers[i]);
    }
    return handed;
  }
  /// Appends the drawn tokens out of such memory.
  pqattn::status append_handed(sequence_type& tokens, const pqattn::append_options& options = {}) {
    const handed_rows keys = hand_over(new_keys, shape.heads, shape.key_channels(), drawn_type_);
    const handed_rows values = hand_over(new_values, shape.heads, shape.value_dim, drawn_type_);
    return tokens.append(keys.rows, shape.values_from_keys ? pqattn::head_rows{} : values.rows, options);
  }
  /// New codebooks for the pool, from drawn rows that no sequence keeps.
  pqattn::status refresh(sequence_type& tokens) {
    draw(config.most_centroids() + random.below(20));
    return tokens.refresh(key_rows(), value_rows());
  }
  /// Shows a sequence queries for the training to come.
  void observe(sequence_type& tokens, std::size_t count) {
    const std::size_t heads = shape.heads * shape.group;
    const std::vector<float> queries = random.normals(heads * count * shape.key_channels(), 2.0f);
    REQUIRE_OK(tokens.observe({pqattn::view_rows(queries.data(), count, shape.key_channels()), heads,
                               static_cast<std::ptrdiff_t>(count * shape.key_channels())},
                              tokens.next_position()));
  }
  [[nodiscard]] pqattn::head_rows key_rows() const {
    return {pqattn::view_rows(new_keys.data(), drawn_, shape.key_channels()), shape.heads,
            static_cast<std::ptrdiff_t>(drawn_ * shape.key_channels())};
  }
  [[nodiscard]] pqattn::head_rows value_rows() const {
    if (shape.values_from_keys) {
      return {};
    }
    return {pqattn::view_rows(new_values.data(), drawn_, shape.value_dim), shape.heads,
            static_cast<std::ptrdiff_t>(drawn_ * shape.value_dim)};
  }

  // --- the model's edits ---

  /// Enters the drawn tokens, which `tokens` has appended: codebooks trained by that are there.
  void append(model_sequence& model, std::int64_t first_position, const sequence_type& tokens) {
    const std::int64_t start = first_position;
    for (std::size_t i = 0; i < drawn_; ++i) {
      model_token token;
      token.position = start + static_cast<std::int64_t>(i);
      for (std::size_t head = 0; head < shape.heads; ++head) {
        token.keys.emplace_back(new_keys.begin() + offset(head, i, shape.key_channels()),
                                new_keys.begin() + offset(head, i + 1, shape.key_channels()));
        if (!shape.arrives_rotated) {
          turn(token.keys.back(), token.position);
        }
        round(token.keys.back());
        if (shape.values_from_keys) {
          token.values.emplace_back(token.keys.back().begin(), token.keys.back().begin() + shape.value_dim);
        } else {
          token.values.emplace_back(new_values.begin() + offset(head, i, shape.value_dim),
                                    new_values.begin() + offset(head, i + 1, shape.value_dim));
        }
        round(token.values.back());
      }
      const bool sink = model.body.empty() && model.recent.empty() && model.sinks.size() < shape.sinks;
      (sink ? model.sinks : model.recent).push_back(std::move(token));
    }
    const bool coding = pool.trained() && (shape.keys_coded || shape.values_coded);
    while (coding && drawn_ != 0 && model.recent.size() >= shape.recent + config.coding_batch) {
      for (std::size_t i = 0; i < config.coding_batch; ++i) {
        model_token token = std::move(model.recent.front());
        model.recent.erase(model.recent.begin());
        code(token, tokens, model.sinks.size() + model.body.size());
        model.body.push_back(std::move(token));
      }
    }
  }

  void shift(model_sequence& model, std::size_t first, std::size_t count, std::int64_t delta) {
    std::size_t index = 0;
    for (auto* list : {&model.sinks, &model.body, &model.recent}) {
      for (model_token& token : *list) {
        const bool moved = index >= first && index < first + count;
        ++index;
        if (!moved) {
          continue;
        }
        token.position += delta;
        for (std::size_t head = 0; shape.rope && delta != 0 && head < shape.heads; ++head) {
          if (shape.key_tail != 0) {
            turn(token.keys[head], delta);
            round_tail(token.keys[head]);
          } else if (token.coded && token.outlier[head]) {
            turn(token.keys[head], delta);
            round(token.keys[head]);
          } else if (token.coded && shape.keys_coded && !shape.after_rope) {
            token.keys[head] = token.coded_keys[head];
            turn(token.keys[head], token.position);
          } else if (token.coded && shape.keys_coded) {
            turn(token.coded_keys[head], delta);
            token.coded_keys[head] = through_codes(token.coded_keys[head], head, pqattn::kv_side::keys, token.epoch);
            token.keys[head] = token.coded_keys[head];
          } else {
            turn(token.keys[head], delta);
            round(token.keys[head]);
          }
        }
      }
    }
  }

  // --- comparisons ---

  /// Sizes, positions, forms and rows, and attention against double precision.
  void check(const sequence_type& tokens, const model_sequence& model) {
    const std::vector<const model_token*> all = model.all();
    bool same = tokens.size() == all.size() && tokens.coded_tokens() == model.body.size();
    REQUIRE(same);
    std::vector<float> keys(all.size() * shape.key_channels());
    std::vector<float> values(all.size() * shape.value_dim);
    // f32 rows differ by how compilers contract products, if at all; rows of 16 bits by one rounding then.
    const float slack = shape.exact == pqattn::dtype::f32 ? 2e-6f : shape.exact == pqattn::dtype::f16 ? 2e-3f : 2e-2f;
    for (std::size_t i = 0; i < all.size(); ++i) {
      same = same && tokens.position(i) == all[i]->position && tokens.is_coded(i) == all[i]->coded;
    }
    REQUIRE(same);
    for (std::size_t head = 0; head < shape.heads; ++head) {
      REQUIRE_OK(tokens.read(head, 0, pqattn::ref_rows(keys.data(), all.size(), shape.key_channels()),
                             pqattn::ref_rows(values.data(), all.size(), shape.value_dim)));
      for (std::size_t i = 0; i < all.size(); ++i) {
        same = same && close(keys.data() + i * shape.key_channels(), all[i]->keys[head], slack) &&
               close(values.data() + i * shape.value_dim, all[i]->values[head], slack);
      }
    }
    REQUIRE(same);
  }

  /// Attention of a few query tokens over the union of sequences and, when `chunk`, the drawn tokens behind `position`.
  /// Half of the time under an explicit mask of some of the latest tokens, for all heads or for each; at times with a
  /// soft-cap, and with ALiBi and sinks of each query head. Queries, chunk and outputs lie as some engine has them.
  void check_attention(const std::vector<const sequence_type*>& tokens,
                       const std::vector<const model_sequence*>& models, std::int64_t position, bool chunk,
                       std::int64_t window) {
    const std::size_t steps = chunk ? drawn_ : 2;
    const std::size_t heads = shape.heads * shape.group;
    std::vector<float> queries = random.normals(heads * steps * shape.key_channels());
    const pqattn::dtype query_type = any_type();
    round_to(query_type, queries);
    const handed_rows query_rows = hand_over(queries, heads, shape.key_channels(), query_type);
    handed_rows out = hand_over(std::vector<float>(heads * steps * shape.value_dim, 9.0f), heads, shape.value_dim,
                                pqattn::dtype::f32);
    pqattn::head_rows_ref out_rows{out.memory.ref(), heads, out.rows.head_stride};
    out_rows.rows.rows = steps;
    out_rows.rows.row_stride = out.rows.rows.row_stride;
    std::vector<float> lse(heads * steps, 9.0f);
    std::vector<float> rotated = new_keys;
    if (chunk && !shape.arrives_rotated && shape.rope) {
      for (std::size_t head = 0; head < shape.heads; ++head) {
        for (std::size_t i = 0; i < drawn_; ++i) {
          rotate_row(rotation_, position + static_cast<std::int64_t>(i), 1.0f,
                     rotated.data() + offset(head, i, shape.key_channels()) + rotated_from());
        }
      }
      round_to(drawn_type_, rotated);
    }
    const handed_rows chunk_keys = hand_over(rotated, shape.heads, shape.key_channels(), drawn_type_);
    const handed_rows chunk_values = hand_over(new_values, shape.heads, shape.value_dim, drawn_type_);
    pqattn::batch_entry<f32_bank> entry;
    entry.queries = steps;
    entry.first_position = position;
    entry.sequences = tokens.data();
    entry.sequence_count = tokens.size();
    if (chunk) {
      entry.new_keys = &chunk_keys.rows;
      entry.new_values = shape.values_from_keys ? nullptr : &chunk_values.rows;
      entry.new_position = position;
    }
    std::size_t context = chunk ? drawn_ : 0;
    for (const model_sequence* model : models) {
      context += model->size();
    }
    const std::size_t columns = random.chance(0.5) ? random.below(context + 1) : 0;
    const std::size_t mask_heads = random.chance(0.5) ? 1 : heads;
    strided_matrix mask(mask_heads * steps, columns, random.chance(0.5) ? pqattn::dtype::f16 : pqattn::dtype::f32,
                        random.chance(0.5) ? awkward_layout : matrix_layout{});
    for (std::size_t row = 0; row < mask_heads * steps; ++row) {
      for (std::size_t column = 0; column < columns; ++column) {
        mask.set(row, column, random.chance(0.3) ? -std::numeric_limits<float>::infinity() : random.normal());
      }
    }
    pqattn::head_rows mask_rows{mask.view(), mask_heads, 0};
    mask_rows.rows.rows = steps;
    mask_rows.head_stride = static_cast<std::ptrdiff_t>(steps) * mask_rows.rows.row_stride;
    if (columns != 0) {
      entry.bias = &mask_rows;
    }
    pqattn::batch_params params;
    params.window = window;
    params.softcap = random.chance(0.3) ? 2.5f : 0.0f;
    const std::vector<float> slopes = random.normals(heads, 0.01f);
    params.alibi_slopes = random.chance(0.3) ? slopes.data() : nullptr;
    const std::vector<float> sinks = random.normals(heads, 2.0f);
    params.sink_logits = random.chance(0.3) ? sinks.data() : nullptr;
    std::vector<std::int64_t> positions(steps);
    for (std::size_t i = 0; i < steps; ++i) {
      positions[i] = position + static_cast<std::int64_t>(i);
    }
    if (random.chance(0.3)) {
      params.positions = positions.data();
      entry.first_position = -1;  // does not count
    }
    if (batch_bytes_ == 0) {
      REQUIRE_OK(batch_type::make(bank, {}, resource_, batch_));
      batch_bytes_ = 1;
    }
    REQUIRE_OK(batch_.attend(pool, &entry, 1, query_rows.rows, params, out_rows, lse.data()));
    REQUIRE(out.memory.padding_is_intact());
    for (std::size_t q = 0; q < heads; ++q) {
      attention_case expected;
      expected.rows = steps;
      expected.key_dim = shape.key_channels();
      expected.value_dim = shape.value_dim;
      expected.scale = 1.0 / std::sqrt(static_cast<double>(shape.key_channels()));
      expected.queries.assign(queries.begin() + offset_of(q * steps * shape.key_channels()),
                              queries.begin() + offset_of((q + 1) * steps * shape.key_channels()));
      expected.causal = true;
      expected.window = window;
      expected.softcap = static_cast<double>(params.softcap);
      if (params.alibi_slopes != nullptr) {
        expected.alibi_slopes.assign(steps, static_cast<double>(slopes[q]));
      }
      if (params.sink_logits != nullptr) {
        expected.sink_logits.assign(steps, static_cast<double>(sinks[q]));
      }
      expected.query_positions = positions;
      const std::size_t head = q / shape.group;
      const auto add = [&](const float* key, const float* value, std::int64_t at) {
        expected.keys.insert(expected.keys.end(), key, key + shape.key_channels());
        expected.values.insert(expected.values.end(), value, value + shape.value_dim);
        expected.key_positions.push_back(at);
        ++expected.tokens;
      };
      for (const model_sequence* model : models) {
        for (const model_token* token : model->all()) {
          add(token->keys[head].data(), token->values[head].data(), token->position);
        }
      }
      for (std::size_t i = 0; chunk && i < drawn_; ++i) {
        const float* key = rotated.data() + offset(head, i, shape.key_channels());
        add(key, shape.values_from_keys ? key : new_values.data() + offset(head, i, shape.value_dim),
            position + static_cast<std::int64_t>(i));
      }
      expected.live.assign(expected.tokens, true);
      for (std::size_t i = 0; columns != 0 && i < steps; ++i) {
        const std::size_t row = (mask_heads == 1 ? 0 : q * steps) + i;
        expected.bias.insert(expected.bias.end(), expected.tokens - columns, 0.0);
        for (std::size_t column = 0; column < columns; ++column) {
          expected.bias.push_back(static_cast<double>(mask.get(row, column)));
        }
      }
      const attention_result want = reference_attention(expected);
      std::vector<float> got;
      for (std::size_t i = 0; i < steps * shape.value_dim; ++i) {
        got.push_back(out.memory.get(out.row_of(q, i / shape.value_dim), i % shape.value_dim));
      }
      // Rows of 16 bits are the same numbers on both sides; what differs is f32 arithmetic on scores of a few units.
      const double tolerance = shape.exact == pqattn::dtype::f32 ? 5e-5 : 5e-3;
      bool right = max_error(got, want.out) <= tolerance;
      for (std::size_t i = 0; i < steps; ++i) {
        const double lse_got = static_cast<double>(lse[q * steps + i]);
        right =
            right && (std::isinf(want.lse[i]) ? lse_got == want.lse[i] : std::abs(lse_got - want.lse[i]) <= tolerance);
      }
      REQUIRE(right);
    }
  }

  edit_shape shape;
  random_data random;
  f32_bank bank;
  pqattn::cache_config config;
  pool_type pool;
  std::vector<float> new_keys;    ///< (heads, drawn, d_k + tail)
  std::vector<float> new_values;  ///< (heads, drawn, d_v)

 private:
  static std::ptrdiff_t offset_of(std::size_t index) { return static_cast<std::ptrdiff_t>(index); }
  [[nodiscard]] std::ptrdiff_t offset(std::size_t head, std::size_t row, std::size_t dim) const {
    return static_cast<std::ptrdiff_t>((head * drawn_ + row) * dim);
  }
  /// First channel that RoPE turns.
  [[nodiscard]] std::size_t rotated_from() const { return shape.key_tail != 0 ? shape.key_dim : 0; }
  void turn(std::vector<float>& row, std::int64_t position) const {
    if (shape.rope) {
      rotate_row(rotation_, position < 0 ? -position : position, position < 0 ? -1.0f : 1.0f,
                 row.data() + rotated_from());
    }
  }
  void turn_back(std::vector<float>& row, std::int64_t position) const {
    if (shape.rope) {
      rotate_row(rotation_, position, -1.0f, row.data());
    }
  }
  static void round_to(pqattn::dtype type, std::vector<float>& row, std::size_t first = 0) {
    for (std::size_t c = first; c < row.size(); ++c) {
      float& x = row[c];
      x = type == pqattn::dtype::f16    ? pqattn::to_float(pqattn::to_half(x))
          : type == pqattn::dtype::bf16 ? pqattn::to_float(pqattn::to_bfloat16(x))
                                        : x;
    }
  }
  void round(std::vector<float>& row, std::size_t first = 0) const { round_to(shape.exact, row, first); }
  /// Of a key whose other channels are as they were: exact ones are rounded again, which changes nothing.
  void round_tail(std::vector<float>& row) const { round(row, rotated_from()); }

  /// The preset's shapes and switches over this world's sizes, trained as early as `train_tokens` says.
  void take_preset() {
    const pqattn::cache_config plain = config;
    std::vector<std::byte> workspace(pqattn::preset_workspace_bytes());
    key_order_.resize(shape.key_dim);
    pqattn::bit_budget budget = shape.preset_bits;
    budget.outliers = shape.outlier_share > 0.0f;
    REQUIRE_OK(pqattn::preset_config(shape.key_dim, shape.value_dim, plain.rotation, budget, shape.train_tokens,
                                     workspace.data(), workspace.size(), key_order_.data(), config));
    config.sinks = plain.sinks;
    config.recent = plain.recent;
    config.exact_type = plain.exact_type;
    config.outlier_share = plain.outlier_share;
    config.track_errors = plain.track_errors;
    config.kmeans.iterations = 2;
    config.most_epochs = plain.most_epochs;
    config.coding_batch = 16;
  }
  static bool close(const float* got, const std::vector<float>& want, float slack) {
    for (std::size_t c = 0; c < want.size(); ++c) {
      if (!(std::abs(got[c] - want[c]) <= slack * (1.0f + std::abs(want[c])))) {
        return false;
      }
    }
    return true;
  }

  /// decode(encode(row)) of this row alone.
  std::vector<float> through_codes(const std::vector<float>& row, std::size_t head, pqattn::kv_side side,
                                   std::size_t epoch) {
    const auto& book = pool.book(head, side, epoch);
    code_block_.assign(bank.code_block_bytes(book.shape) + 64, std::byte{0});
    auto* memory = code_block_.data() + (64 - reinterpret_cast<std::uintptr_t>(code_block_.data()) % 64) % 64;
    const pqattn::code_span<std::byte*> span{book.shape, memory, nullptr};
    std::vector<float> decoded(row.size());
    if (pool.side(side).coded_on_host()) {
      host_encode(row, head, side, epoch, span);
    } else {
      REQUIRE_OK(pqattn::encode(bank, pqattn::view_rows(row.data(), 1, row.size()), book, span, {0, 1}));
    }
    REQUIRE_OK(pqattn::decode(bank, book, span, {0, 1}, pqattn::ref_rows(decoded.data(), 1, row.size())));
    return decoded;
  }
  /// The row's codes as encode_with_metric() finds them for it alone.
  void host_encode(const std::vector<float>& row, std::size_t head, pqattn::kv_side side, std::size_t epoch,
                   const pqattn::code_span<std::byte*>& span) {
    laid_out& layout = encoders_[{pool.epoch_id(epoch), 2 * head + static_cast<std::size_t>(side)}];
    const pqattn::geometry& geometry = pool.side(side).shape;
    const pqattn::half* packed = pool.metric(head, side);
    if (layout.memory.empty()) {
      layout.centroids.resize(geometry.codebook_values());
      REQUIRE_OK(pool.read_codebook(head, side, epoch, layout.centroids.data()));
      std::vector<float> metric(std::size_t{geometry.dim} * geometry.dim);
      if (packed != nullptr) {
        pqattn::unpack_metric(packed, geometry.dim, metric.data());
      }
      layout.memory.resize(pqattn::metric_encoder_bytes(geometry, packed != nullptr));
      layout.workspace.resize(pqattn::metric_encode_workspace_bytes(geometry));
      REQUIRE_OK(pqattn::build_metric_encoder({geometry, layout.centroids.data(), 0, 0},
                                              packed != nullptr ? metric.data() : nullptr, layout.memory.data(),
                                              layout.memory.size(), layout.encoder));
    }
    std::vector<std::uint16_t> codes(geometry.groups());
    REQUIRE_OK(pqattn::encode_with_metric(layout.encoder, pqattn::view_rows(row.data(), 1, row.size()),
                                          pool.side(side).sweeps, layout.workspace.data(), layout.workspace.size(),
                                          codes.data()));
    REQUIRE_OK(bank.store_codes(span, {0, 1}, codes.data()));
  }
  /// What coding a row loses, as the library defines it.
  double loss(const std::vector<float>& row, const std::vector<float>& decoded, std::size_t head,
              pqattn::kv_side side) {
    const std::size_t dim = row.size();
    std::vector<float> metric(dim * dim);
    const bool metered = pool.metric(head, side) != nullptr;
    if (metered) {
      pqattn::unpack_metric(pool.metric(head, side), dim, metric.data());
    }
    double sum = 0.0;
    for (std::size_t a = 0; a < dim; ++a) {
      for (std::size_t b = metered ? 0 : a; b < (metered ? dim : a + 1); ++b) {
        sum += (double{row[a]} - double{decoded[a]}) * (metered ? double{metric[a * dim + b]} : 1.0) *
               (double{row[b]} - double{decoded[b]});
      }
    }
    return sum;
  }
  /// Whether token `index` is an outlier of a head: what the library says, if that agrees with the rule.
  bool is_outlier(const sequence_type& tokens, std::size_t index, std::size_t head, double key_loss,
                  double value_loss) {
    const bool said = tokens.is_outlier(head, index);
    const pqattn::outlier_rule rule = pool.rule(head);
    const double score = (rule.key_error > 0.0f ? key_loss / double{rule.key_error} : 0.0) +
                         (rule.value_error > 0.0f ? value_loss / double{rule.value_error} : 0.0);
    const std::size_t page = tokens.body().slot_of(index - tokens.sinks().tokens()) / 64;
    const auto held = static_cast<std::size_t>(std::popcount(pool.outliers().mask(head, tokens.body().page(page))));
    const bool full = held == pool.outlier_limit();
    const bool wanted = score > double{rule.above};
    const bool close_call = std::abs(score - double{rule.above}) <= 1e-3 * score;  // f32 against double precision
    const bool agrees = said == wanted || close_call || (wanted && full);
    REQUIRE(agrees);
    REQUIRE(held <= pool.outlier_limit());
    return said;
  }
  void code(model_token& token, const sequence_type& tokens, std::size_t index) {
    token.coded = true;
    token.epoch = pool.newest_epoch();
    for (std::size_t head = 0; head < shape.heads; ++head) {
      std::vector<float> key = token.keys[head];
      std::vector<float> value = token.values[head];
      double key_loss = 0.0;
      double value_loss = 0.0;
      if (shape.keys_coded && shape.key_tail == 0) {
        if (!shape.after_rope) {
          turn_back(key, token.position);
        }
        token.coded_keys.push_back(through_codes(key, head, pqattn::kv_side::keys, token.epoch));
        key_loss = loss(key, token.coded_keys.back(), head, pqattn::kv_side::keys);
        key = token.coded_keys.back();
        if (!shape.after_rope) {
          turn(key, token.position);
        }
      } else if (shape.keys_coded) {
        const std::vector<float> row(key.begin(), key.begin() + shape.key_dim);
        const std::vector<float> decoded = through_codes(row, head, pqattn::kv_side::keys, token.epoch);
        key_loss = loss(row, decoded, head, pqattn::kv_side::keys);
        std::copy(decoded.begin(), decoded.end(), key.begin());
      }
      if (shape.values_from_keys) {
        value.assign(key.begin(), key.begin() + shape.value_dim);
      } else if (shape.values_coded) {
        const pqattn::value_rotation turned = pool.turn(head);
        std::vector<float> row = value;
        if (turned.enabled()) {
          rotate_value(turned, value.data(), row.data());
        }
        const std::vector<float> decoded = through_codes(row, head, pqattn::kv_side::values, token.epoch);
        value_loss = loss(row, decoded, head, pqattn::kv_side::values);
        value = decoded;
        if (turned.enabled()) {
          unrotate_value(turned, decoded.data(), 1.0f, value.data());
        }
      }
      token.outlier.push_back(is_outlier(tokens, index, head, key_loss, value_loss));
      if (!token.outlier.back()) {
        token.keys[head] = key;
        token.values[head] = value;
      }
    }
  }

  /// A codebook laid out for coding on the host.
  struct laid_out {
    std::vector<float> centroids;
    std::vector<std::byte> memory;
    std::vector<std::byte> workspace;
    pqattn::metric_encoder encoder;
  };

  pqattn::memory_resource resource_;
  std::vector<float> frequencies_;
  std::vector<float> rope_memory_;
  pqattn::rope rotation_;
  std::vector<std::byte> code_block_;
  std::vector<std::uint16_t> key_order_;
  std::map<std::pair<std::uint64_t, std::size_t>, laid_out> encoders_;  ///< by epoch, head and side
  std::size_t drawn_ = 0;
  pqattn::dtype drawn_type_ = pqattn::dtype::f32;
  std::size_t batch_bytes_ = 0;
  batch_type batch_;
};

}  // namespace pqattn_test
