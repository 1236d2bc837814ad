// SPDX-License-Identifier: MIT
#include "study.hpp"

#include <pqattn/bank/host/host_bank.hpp>
#include <pqattn/core/random.hpp>
#include <pqattn/quant/codebook_rounding.hpp>
#include <pqattn/quant/rope.hpp>
#include <pqattn/study/baseline.hpp>
#include <pqattn/train/importance.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "pq_codec.hpp"

namespace pqattn_study {
namespace {

/// Query rows before the training boundary whose attention makes the k-means weights (t in AQPIM).
constexpr std::size_t weight_rows = 32;

/// Options with every default filled in for these inputs.
struct plan {
  pqattn::attention_window window;
  std::size_t coded_first = 0;
  std::size_t coded_last = 0;
  double scale = 1.0;
  bool is_pq = false;
  bool weighted = false;
  pqattn::baseline_format format = pqattn::baseline_format::exact;
  pqattn::codebook_storage storage = pqattn::codebook_storage::f16;
  pqattn::geometry key_shape;
  pqattn::geometry value_shape;
  plan() = default;
  plan(const plan&) = delete;  // rotation points into rope_tables
  plan& operator=(const plan&) = delete;
  std::vector<float> rope_tables;
  pqattn::rope rotation;
};

class stopwatch {
 public:
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

pqattn::geometry make_shape(std::size_t dim, std::size_t subvectors, std::size_t bits, const char* context) {
  pqattn::geometry shape;
  shape.dim = static_cast<std::uint32_t>(dim);
  shape.subvectors = static_cast<std::uint32_t>(subvectors);
  shape.centroids = std::uint32_t{1} << bits;
  require(check_geometry(shape), context);
  return shape;
}

void plan_shapes(const inputs& layer, const options& chosen, plan& made) {
  const std::size_t key_subvectors = chosen.subvectors.value_or((layer.key_dim + 3) / 4);
  const std::size_t same_width =
      std::max<std::size_t>(1, (key_subvectors * layer.value_dim + layer.key_dim / 2) / layer.key_dim);
  made.key_shape = make_shape(layer.key_dim, key_subvectors, chosen.bits, "--subvectors");
  made.value_shape =
      make_shape(layer.value_dim, chosen.value_subvectors.value_or(std::min(same_width, layer.value_dim)),
                 chosen.value_bits.value_or(chosen.bits), "--value-subvectors");
}

void plan_rope(const inputs& layer, const options& chosen, plan& made) {
  if (chosen.rope == "none" || chosen.method == "exact") {
    return;
  }
  if (layer.key_dim % 2 != 0) {
    throw study_error("--rope: needs an even number of channels, keys have " + std::to_string(layer.key_dim));
  }
  const auto dim = static_cast<std::uint32_t>(layer.key_dim);
  std::vector<float> frequencies(dim / 2);
  pqattn::fill_rope_frequencies(frequencies.data(), dim, chosen.rope_theta);
  made.rope_tables.resize(pqattn::rope_floats(dim / 2));
  const auto pairing = chosen.rope == "half" ? pqattn::rope_pairing::half_split : pqattn::rope_pairing::interleaved;
  require(build_rope(frequencies.data(), dim / 2, pairing, made.rope_tables.data(), made.rotation), "--rope");
}

void plan_method(const options& chosen, plan& made) {
  if (chosen.method == "pq_best" || chosen.method == "pq_shared") {
    throw study_error("--method " + chosen.method + ": is not available in this version");
  }
  if (chosen.target_bits) {
    throw study_error("--target-bits: belongs to --method pq_best, which is not available in this version");
  }
  made.is_pq = !pqattn::find_baseline(chosen.method, made.format);
  made.storage = chosen.codebooks == "f32"   ? pqattn::codebook_storage::f32
                 : chosen.codebooks == "f16" ? pqattn::codebook_storage::f16
                                             : pqattn::codebook_storage::i8;
  made.weighted = made.is_pq && chosen.method != "pq_plain" && chosen.weights == "attention";
}

void make_plan(const inputs& layer, const options& chosen, plan& made) {
  plan_method(chosen, made);
  if (chosen.kv_heads && *chosen.kv_heads != layer.kv_heads) {
    throw study_error("--kv-heads: is " + std::to_string(*chosen.kv_heads) + ", " + chosen.keys + " has " +
                      std::to_string(layer.kv_heads));
  }
  made.window.sinks = chosen.sinks;
  made.window.recent = chosen.recent;
  made.window.first_query = chosen.train_tokens.value_or(layer.tokens * 3 / 4);
  if (layer.tokens < 2) {
    throw study_error(chosen.keys + ": has one token, nothing can be trained and judged");
  }
  if (made.window.first_query >= layer.tokens) {
    throw study_error("--train-tokens: " + std::to_string(made.window.first_query) +
                      " leave no query to judge, the files have " + std::to_string(layer.tokens) + " tokens");
  }
  made.coded_first = std::min(chosen.sinks, layer.tokens);
  made.coded_last = std::max(made.coded_first, layer.tokens - std::min(chosen.recent, layer.tokens));
  made.scale = 1.0 / std::sqrt(static_cast<double>(layer.key_dim));
  if (made.is_pq) {
    plan_shapes(layer, chosen, made);
  }
  plan_rope(layer, chosen, made);
}

std::vector<float> widen(const pqattn::rows_view& rows) {
  std::vector<float> wide(rows.rows * rows.cols);
  for (std::size_t r = 0; r < rows.rows; ++r) {
    load_row(rows, r, wide.data() + r * rows.cols);
  }
  return wide;
}

/// Turns every row by its position, forward (+1) or back (-1).
void rotate_all(const pqattn::rope& rotation, float direction, std::size_t dim, std::vector<float>& rows) {
  for (std::size_t position = 0; position * dim < rows.size(); ++position) {
    rotate_row(rotation, static_cast<std::int64_t>(position), direction, rows.data() + position * dim);
  }
}

/// Weights of the tokens before the training boundary: the mass they get from the last query rows of the whole group.
std::vector<float> importance(const inputs& layer, const options& chosen, const plan& made, std::size_t kv_head) {
  const std::size_t end = made.window.first_query;
  const std::size_t rows = std::min(weight_rows, end);
  std::vector<std::int64_t> positions(rows);
  std::iota(positions.begin(), positions.end(), static_cast<std::int64_t>(end - rows));
  std::vector<float> weights(end, 0.0f);
  std::vector<std::byte> workspace(pqattn::importance_workspace_bytes(end, layer.key_dim));
  const pqattn::host_bank<> bank;
  for (std::size_t head = kv_head * layer.group(); head < (kv_head + 1) * layer.group(); ++head) {
    require(attention_importance(bank, layer.queries(head).slice(end - rows, rows), positions.data(),
                                 layer.keys(kv_head).slice(0, end), static_cast<float>(made.scale), workspace.data(),
                                 workspace.size(), weights.data()),
            "attention weights");
  }
  // Sinks take a large part of the mass but are not coded: the mean is taken over what is.
  const std::size_t coded = std::min(made.coded_first, end);
  pqattn::temper_weights(weights.data() + coded, end - coded, static_cast<float>(chosen.weight_exponent),
                         static_cast<float>(chosen.weight_floor));
  return weights;
}

/// Everything about coding one side of one KV head.
struct side_job {
  pqattn::cache_side side;
  std::size_t dim;
  std::size_t kv_head;
  const std::vector<float>* weights;
};

void code_rows(const side_job& job, const plan& made, const options& chosen, std::vector<float>& rows,
               side_result& result) {
  const bool keys = job.side == pqattn::cache_side::keys;
  const std::size_t count = made.coded_last - made.coded_first;
  // Rotations of a baseline are shared by the heads; each codebook has a seed of its own.
  if (!made.is_pq) {
    std::size_t bits = 0;
    require(code_as_baseline(made.format, job.side, rows.data() + made.coded_first * job.dim, count, job.dim,
                             chosen.seed, bits),
            chosen.method);
    result.code_bits += static_cast<double>(bits);
    return;
  }
  pq_settings settings;
  settings.shape = keys ? made.key_shape : made.value_shape;
  settings.iterations = chosen.iterations;
  settings.seed = pqattn::mix_seed(chosen.seed, 2 * job.kv_head + (keys ? 0 : 1));
  settings.storage = made.storage;
  // Sinks are never coded, so they do not teach either: their keys and their weights are unlike all others.
  const pq_ranges ranges{std::min(made.coded_first, made.window.first_query), made.window.first_query, made.coded_first,
                         made.coded_last};
  code_as_pq(settings, ranges, *job.weights, rows, result);
}

/// Codes the tokens between the sinks and the last recent window of `rows`, which are in the domain that is coded.
void code_side(const side_job& job, const plan& made, const options& chosen, std::vector<float>& rows,
               side_result& result) {
  const std::size_t first = made.coded_first * job.dim;
  const std::size_t elements = (made.coded_last - made.coded_first) * job.dim;
  const std::vector<float> before(rows);
  code_rows(job, made, chosen, rows, result);
  result.error.add(before.data() + first, rows.data() + first, elements);
  result.coded_elements += elements;
}

double norm_spread(const std::vector<float>& rows, std::size_t dim) {
  std::vector<double> norms;
  for (std::size_t first = 0; first < rows.size(); first += dim) {
    double sum = 0.0;
    for (std::size_t i = first; i < first + dim; ++i) {
      sum += static_cast<double>(rows[i]) * static_cast<double>(rows[i]);
    }
    norms.push_back(std::sqrt(sum));
  }
  std::sort(norms.begin(), norms.end());
  const double median = norms[norms.size() / 2];
  return median > 0.0 ? norms.back() / median : 0.0;
}

/// Codes one KV head, then judges every query head that reads it.
void study_kv_head(const inputs& layer, const options& chosen, const plan& made, std::size_t kv_head,
                   study_result& result) {
  const stopwatch coding;
  const std::vector<float> keys = widen(layer.keys(kv_head));
  const std::vector<float> values = widen(layer.values(kv_head));
  std::vector<float> coded_keys = keys;
  std::vector<float> coded_values = values;
  const std::vector<float> weights = made.weighted ? importance(layer, chosen, made, kv_head) : std::vector<float>();
  if (chosen.codes_keys()) {
    rotate_all(made.rotation, -1.0f, layer.key_dim, coded_keys);
    code_side({pqattn::cache_side::keys, layer.key_dim, kv_head, &weights}, made, chosen, coded_keys, result.keys);
    rotate_all(made.rotation, +1.0f, layer.key_dim, coded_keys);
  }
  if (chosen.codes_values()) {
    code_side({pqattn::cache_side::values, layer.value_dim, kv_head, &weights}, made, chosen, coded_values,
              result.values);
  }
  result.key_norm_spread.push_back(norm_spread(keys, layer.key_dim));
  result.code_seconds += coding.seconds();

  const stopwatch judging;
  const pqattn::reconstructed_head head{pqattn::view_rows(keys.data(), layer.tokens, layer.key_dim),
                                        pqattn::view_rows(values.data(), layer.tokens, layer.value_dim),
                                        pqattn::view_rows(coded_keys.data(), layer.tokens, layer.key_dim),
                                        pqattn::view_rows(coded_values.data(), layer.tokens, layer.value_dim)};
  for (std::size_t i = 0; i < layer.group(); ++i) {
    query_head_result judged;
    judged.kv_head = kv_head;
    require(
        add_attention_error(head, layer.queries(kv_head * layer.group() + i), made.window, made.scale, judged.error),
        "attention error");
    result.total.add(judged.error);
    result.heads.push_back(judged);
  }
  result.judge_seconds += judging.seconds();
}

/// Bits of what stays exact at the end of the sequence: sinks and window of a coded side, all of any other.
double exact_bits(const inputs& layer, const options& chosen, const plan& made) {
  const std::size_t exact_rows = layer.tokens - (made.coded_last - made.coded_first);
  const std::size_t key_rows = chosen.codes_keys() ? exact_rows : layer.tokens;
  const std::size_t value_rows = chosen.codes_values() ? exact_rows : layer.tokens;
  return 16.0 * static_cast<double>(layer.kv_heads) *
         static_cast<double>(key_rows * layer.key_dim + value_rows * layer.value_dim);
}

}  // namespace

double side_result::mse() const noexcept {
  return coded_elements == 0 ? 0.0 : error.error / static_cast<double>(coded_elements);
}

double study_result::bits_per_element() const noexcept {
  const double elements = static_cast<double>(kv_heads * tokens * (key_dim + value_dim));
  return (keys.code_bits + keys.codebook_bits + values.code_bits + values.codebook_bits + exact_bits) / elements;
}

double study_result::bits_per_element_codes() const noexcept {
  const std::size_t elements = keys.coded_elements + values.coded_elements;
  return elements == 0 ? 0.0 : (keys.code_bits + values.code_bits) / static_cast<double>(elements);
}

double study_result::codebook_mse() const noexcept {
  const std::size_t elements = keys.coded_elements + values.coded_elements;
  return elements == 0 ? 0.0 : (keys.error.error + values.error.error) / static_cast<double>(elements);
}

study_result run_study(const inputs& layer, const options& chosen) {
  plan made;
  make_plan(layer, chosen, made);
  study_result result;
  result.method = chosen.method;
  result.tokens = layer.tokens;
  result.train_tokens = made.window.first_query;
  result.kv_heads = layer.kv_heads;
  result.query_heads = layer.query_heads;
  result.key_dim = layer.key_dim;
  result.value_dim = layer.value_dim;
  result.exact_tokens = layer.tokens - (made.coded_last - made.coded_first);
  if (made.is_pq) {
    result.key_shape = made.key_shape;
    result.value_shape = made.value_shape;
  }
  result.exact_bits = exact_bits(layer, chosen, made);
  for (std::size_t kv_head = 0; kv_head < layer.kv_heads; ++kv_head) {
    study_kv_head(layer, chosen, made, kv_head, result);
  }
  return result;
}

}  // namespace pqattn_study
