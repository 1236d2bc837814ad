// SPDX-License-Identifier: MIT
#include "study.hpp"

#include <pqattn/bank/host/host_bank.hpp>
#include <pqattn/cache/policy.hpp>
#include <pqattn/core/random.hpp>
#include <pqattn/quant/codebook_rounding.hpp>
#include <pqattn/quant/rope.hpp>
#include <pqattn/study/baseline.hpp>
#include <pqattn/study/policy_json.hpp>
#include <pqattn/study/rope_detection.hpp>
#include <pqattn/train/channel_order.hpp>
#include <pqattn/train/importance.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <numeric>
#include <sstream>

#include "pq_codec.hpp"

namespace pqattn_study {
namespace {

/// Query rows before the training boundary whose attention makes the k-means weights (t in AQPIM).
constexpr std::size_t weight_rows = 32;
/// Added to the metric's diagonal, whose mean is 1.
constexpr float metric_ridge = 0.05f;
/// Most rows that teach a codebook shared by all heads.
constexpr std::size_t most_shared_rows = 32768;

/// Options with every default filled in for these inputs.
struct plan {
  pqattn::attention_window window;
  std::size_t coded_first = 0;
  std::size_t coded_last = 0;
  double scale = 1.0;
  bool is_pq = false;
  bool is_best = false;
  bool is_shared = false;
  bool weighted = false;
  double weight_exponent = 1.0;
  double weight_floor = 1.0;
  double outlier_share = 0.0;
  std::string metric = "none";
  bool rotates_values = false;
  pqattn::baseline_format format = pqattn::baseline_format::exact;
  pqattn::codebook_storage storage = pqattn::codebook_storage::f16;
  pqattn::geometry key_shape;
  pqattn::geometry value_shape;
  plan() = default;
  plan(const plan&) = delete;  // rotation points into rope_tables
  plan& operator=(const plan&) = delete;
  std::string rope = "none";
  double rope_theta = 0.0;
  std::vector<float> rope_tables;
  pqattn::rope rotation;
  std::vector<std::uint16_t> key_order;
  std::vector<pqattn::head_policy> policy;  ///< per KV head; empty without --policy
  std::vector<float> shared_keys;           ///< pq_shared: centroids for all heads
  std::vector<float> shared_values;
};

class stopwatch {
 public:
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

pqattn::geometry make_shape(std::size_t dim, std::size_t subvectors, std::size_t bits, std::size_t stages,
                            const char* context) {
  pqattn::geometry shape;
  shape.dim = static_cast<std::uint32_t>(dim);
  shape.subvectors = static_cast<std::uint32_t>(subvectors);
  shape.centroids = std::uint32_t{1} << bits;
  shape.stages = static_cast<std::uint32_t>(stages);
  require(check_geometry(shape), context);
  return shape;
}

void plan_shapes(const inputs& layer, const options& chosen, plan& made) {
  const std::size_t key_subvectors = chosen.subvectors.value_or((layer.key_dim + 3) / 4);
  const std::size_t same_width =
      std::max<std::size_t>(1, (key_subvectors * layer.value_dim + layer.key_dim / 2) / layer.key_dim);
  const std::size_t stages = chosen.stages.value_or(1);
  made.key_shape = make_shape(layer.key_dim, key_subvectors, chosen.bits, stages, "--subvectors");
  made.value_shape =
      make_shape(layer.value_dim, chosen.value_subvectors.value_or(std::min(same_width, layer.value_dim)),
                 chosen.value_bits.value_or(chosen.bits), chosen.value_stages.value_or(stages), "--value-subvectors");
}

/// pq_best: shapes for the target unless the command line names them, rotation pairs of keys side by side.
void plan_best(const inputs& layer, const options& chosen, plan& made) {
  const std::size_t end = made.window.first_query;
  std::vector<std::byte> workspace(pqattn::preset_workspace_bytes());
  pqattn::pq_preset preset;
  pqattn::bit_budget budget = chosen.target_bits.value_or(2.0);
  if (chosen.target_all_bits) {
    budget = {*chosen.target_all_bits, layer.tokens};
    budget.exact_tokens = layer.tokens - (made.coded_last - made.coded_first);
  }
  require(choose_preset(static_cast<std::uint32_t>(layer.key_dim), static_cast<std::uint32_t>(layer.value_dim), budget,
                        end - std::min(made.coded_first, end), workspace.data(), workspace.size(), preset),
          chosen.target_all_bits ? "--target-all-bits" : "--target-bits");
  made.metric = chosen.metric.value_or(preset.metric ? "sampled" : "none");
  made.rotates_values = chosen.value_rotation.value_or(preset.rotated ? "pca" : "none") == "pca";
  if (chosen.subvectors) {
    plan_shapes(layer, chosen, made);
    made.outlier_share = chosen.outlier_share.value_or(0.0);
  } else {
    made.key_shape = preset.keys;
    made.value_shape = preset.values;
    made.outlier_share = chosen.outlier_share.value_or(static_cast<double>(preset.outlier_share));
  }
  if (chosen.channel_order != "pairs") {
    return;
  }
  made.key_order.resize(layer.key_dim);
  pqattn::fill_pair_order(made.rotation, made.key_shape.dim, made.key_order.data());
  made.key_shape.channel_order = made.key_order.data();
}

/// A rotation with tables of its own.
struct rotation_tables {
  std::vector<float> angles;
  pqattn::rope rotation;

  rotation_tables(std::size_t dim, const std::string& pairing, double theta)
      : angles(pqattn::rope_floats(static_cast<std::uint32_t>(dim / 2))) {
    std::vector<float> frequencies(dim / 2);
    pqattn::fill_rope_frequencies(frequencies.data(), static_cast<std::uint32_t>(dim), theta);
    require(build_rope(frequencies.data(), static_cast<std::uint32_t>(dim / 2),
                       pairing == "half" ? pqattn::rope_pairing::half_split : pqattn::rope_pairing::interleaved,
                       angles.data(), rotation),
            "--rope");
  }
};

/// The rotation whose undoing lets the keys before the training boundary drift least, over all KV heads; none unless
/// one is clearly better.
void detect_rope(const inputs& layer, const options& chosen, plan& made) {
  constexpr std::size_t most_rows = 1024;
  constexpr std::size_t least_rows = 48;
  const std::size_t first = std::min(chosen.sinks, made.window.first_query);
  const std::size_t rows = std::min(made.window.first_query - first, most_rows);
  if (layer.key_dim % 2 != 0 || rows < least_rows) {
    return;
  }
  const auto surprise = [&](const pqattn::rope& rotation) {
    std::vector<double> sum;
    for (std::size_t head = 0; head < layer.kv_heads; ++head) {
      if (!add_surprise_of_keys(layer.keys(head).slice(first, rows), rotation, first, sum)) {
        return std::vector<double>();
      }
    }
    return sum;
  };
  const std::vector<double> plain = surprise({});
  double best = 0.0;
  std::vector<double> thetas = {chosen.rope_theta};
  for (const double theta : {1.0e4, 5.0e5, 1.0e6}) {
    if (theta != chosen.rope_theta) {
      thetas.push_back(theta);
    }
  }
  for (const char* pairing : {"half", "interleaved"}) {
    for (const double theta : thetas) {
      const std::vector<double> turned = surprise(rotation_tables(layer.key_dim, pairing, theta).rotation);
      const double gain = pqattn::clear_gain(plain, turned, layer.key_dim);
      if (gain > best) {
        best = gain;
        made.rope = pairing;
        made.rope_theta = theta;
      }
    }
  }
}

void plan_rope(const inputs& layer, const options& chosen, plan& made) {
  const std::string wanted = chosen.rope.value_or(made.is_best ? "auto" : "none");
  if (wanted == "none" || chosen.method == "exact") {
    return;
  }
  if (wanted == "auto") {
    detect_rope(layer, chosen, made);
  } else {
    made.rope = wanted;
    made.rope_theta = chosen.rope_theta;
  }
  if (made.rope == "none") {
    return;
  }
  if (layer.key_dim % 2 != 0) {
    throw study_error("--rope: needs an even number of channels, keys have " + std::to_string(layer.key_dim));
  }
  rotation_tables tables(layer.key_dim, made.rope, made.rope_theta);
  made.rotation = tables.rotation;
  made.rope_tables = std::move(tables.angles);  // what the rotation points to
}

pqattn::codebook_storage storage_named(const std::string& name) {
  return name == "f32"   ? pqattn::codebook_storage::f32
         : name == "f16" ? pqattn::codebook_storage::f16
                         : pqattn::codebook_storage::i8;
}

void plan_method(const options& chosen, plan& made) {
  made.is_pq = !pqattn::find_baseline(chosen.method, made.format);
  made.is_best = chosen.method == "pq_best";
  made.is_shared = chosen.method == "pq_shared";
  if (!chosen.policy.empty() && !made.is_best) {
    throw study_error("--policy: belongs to --method pq_best");
  }
  if (chosen.refine != 0 && !made.is_shared) {
    throw study_error("--refine: belongs to --method pq_shared");
  }
  const bool by_hand = chosen.codebooks.value_or("i8") != "i8" || chosen.windows > 1 || chosen.subvectors ||
                       chosen.value_subvectors || chosen.stages || chosen.value_stages || chosen.value_basis != "i8";
  if (chosen.target_all_bits && by_hand) {
    throw study_error("--target-all-bits: chooses codebooks, shapes, windows and transforms by itself");
  }
  if ((chosen.target_bits || chosen.target_all_bits) && !made.is_best) {
    throw study_error(std::string(chosen.target_bits ? "--target-bits" : "--target-all-bits") +
                      ": belongs to --method pq_best");
  }
  if (!chosen.calibration_keys.empty() || !chosen.calibration_values.empty()) {
    if (!made.is_shared) {
      throw study_error("--calibration-keys and --calibration-values: belong to --method pq_shared");
    }
    if ((chosen.calibration_keys.empty() && chosen.codes_keys()) ||
        (chosen.calibration_values.empty() && chosen.codes_values())) {
      throw study_error("--calibration-keys: needs --calibration-values too, and the other way round");
    }
  }
  made.storage = storage_named(chosen.codebooks.value_or(made.is_best ? "i8" : "f16"));
  made.weighted = (made.is_best || chosen.method == "pq") && chosen.weights.value_or("attention") == "attention";
  made.weight_exponent = chosen.weight_exponent.value_or(made.is_best ? 0.5 : 1.0);
  made.weight_floor = chosen.weight_floor.value_or(made.is_best ? 0.05 : 1.0);
}

/// The rules of a policy file for the KV heads of this layer.
std::vector<pqattn::head_policy> read_policy(const std::string& path, std::size_t layer_index, const inputs& layer) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) {
    throw study_error(path + ": cannot be read");
  }
  std::vector<pqattn::head_policy> all;
  require(pqattn::policy_from_json(text.str(), all), path);
  std::vector<pqattn::head_policy> found;
  for (std::size_t head = 0; head < layer.kv_heads; ++head) {
    const auto entry = std::find_if(all.begin(), all.end(), [&](const pqattn::head_policy& rule) {
      return rule.layer == layer_index && rule.kv_head == head;
    });
    if (entry == all.end()) {
      throw study_error(path + ": says nothing of layer " + std::to_string(layer_index) + ", KV head " +
                        std::to_string(head));
    }
    found.push_back(*entry);
    if (!entry->keys.exact) {
      require(check_geometry(entry->keys.shape(static_cast<std::uint32_t>(layer.key_dim))), path);
    }
    if (!entry->values.exact) {
      require(check_geometry(entry->values.shape(static_cast<std::uint32_t>(layer.value_dim))), path);
    }
  }
  return found;
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
  plan_rope(layer, chosen, made);
  if (made.is_best) {
    plan_best(layer, chosen, made);
    if (!chosen.policy.empty()) {
      made.policy = read_policy(chosen.policy, chosen.layer, layer);
    }
  } else if (made.is_pq) {
    plan_shapes(layer, chosen, made);
  }
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
std::vector<float> importance(const inputs& layer, const plan& made, std::size_t kv_head) {
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
  pqattn::temper_weights(weights.data() + coded, end - coded, static_cast<float>(made.weight_exponent),
                         static_cast<float>(made.weight_floor));
  return weights;
}

/// Metric of one KV head's keys from query rows spread over the training range, of every head of the group.
std::vector<float> key_metric(const inputs& layer, const options& chosen, const plan& made, std::size_t kv_head) {
  const std::size_t end = made.window.first_query;
  pqattn::query_metric_params params;
  params.scale = static_cast<float>(made.scale);
  params.sinks = chosen.sinks;
  params.recent = chosen.recent;
  params.samples = made.metric == "exact" ? 0 : params.samples;
  params.seed = pqattn::mix_seed(chosen.seed, 1000 + kv_head);
  std::vector<pqattn::rows_view> queries;
  for (std::size_t i = 0; i < layer.group(); ++i) {
    queries.push_back(layer.queries(kv_head * layer.group() + i));
  }
  std::vector<float> metric(layer.key_dim * layer.key_dim);
  require(spread_query_metric(queries.data(), queries.size(), layer.keys(kv_head).slice(0, end), made.rotation, params,
                              std::min(chosen.sinks + chosen.recent, end / 2), chosen.metric_rows, metric_ridge,
                              metric.data()),
          "query metric");
  return metric;
}

/// Rows of every head of `heads` that teach a shared codebook, before RoPE when keys are coded there: rows
/// [first, last) of each, thinned evenly when there are very many.
std::vector<float> pooled_rows(const pqattn::npy_array_view& heads, const pqattn::rope& rotation, std::size_t first,
                               std::size_t last) {
  const std::size_t dim = heads.shape[2];
  const std::size_t step = std::max<std::size_t>(1, heads.shape[0] * (last - first) / most_shared_rows);
  std::vector<float> rows;
  std::vector<float> row(dim);
  for (std::size_t head = 0; head < heads.shape[0]; ++head) {
    for (std::size_t t = first; t < last; t += step) {
      load_row(heads.matrix(head), t, row.data());
      rotate_row(rotation, static_cast<std::int64_t>(t), -1.0f, row.data());
      rows.insert(rows.end(), row.begin(), row.end());
    }
  }
  return rows;
}

pq_settings settings_of(const options& chosen, const plan& made, bool keys, std::size_t stream) {
  pq_settings settings;
  settings.shape = keys ? made.key_shape : made.value_shape;
  settings.iterations = chosen.iterations.value_or(made.is_best ? 12 : 25);
  settings.seed = pqattn::mix_seed(chosen.seed, stream);  // each codebook has a seed of its own
  settings.storage = made.storage;
  return settings;
}

/// pq_shared: the codebook of one side, from a calibration file or from the training range of all heads.
std::vector<float> train_shared(const inputs& layer, const options& chosen, const plan& made, bool keys,
                                side_result& cost) {
  const std::string& path = keys ? chosen.calibration_keys : chosen.calibration_values;
  pqattn::npy_file calibration;
  if (!path.empty()) {
    calibration = load_heads(path, "(kv_heads, tokens, d)");
  }
  const pqattn::npy_array_view& own = keys ? layer.keys_file.array : layer.values_file.array;
  const pqattn::npy_array_view& source = path.empty() ? own : calibration.array;
  if (source.shape[2] != own.shape[2]) {
    throw study_error(path + ": has " + std::to_string(source.shape[2]) + " channels, the layer has " +
                      std::to_string(own.shape[2]));
  }
  const std::size_t last = path.empty() ? made.window.first_query : source.shape[1];
  const std::vector<float> rows =
      pooled_rows(source, keys ? made.rotation : pqattn::rope{}, std::min(made.coded_first, last), last);
  const pq_settings settings = settings_of(chosen, made, keys, keys ? 0 : 1);
  if (chosen.refine == 0) {  // else each head has its own
    cost.codebook_bits += codebook_bits(settings);
  }
  return train_pq(settings, pqattn::view_rows(rows.data(), rows.size() / own.shape[2], own.shape[2]), nullptr);
}

/// Everything about coding one side of one KV head.
struct side_job {
  pqattn::cache_side side;
  std::size_t dim;
  std::size_t kv_head;
  const std::vector<float>* weights;
  const std::vector<float>* metric;  ///< empty for the identity

  [[nodiscard]] bool keys() const { return side == pqattn::cache_side::keys; }
};

/// The paper's channel sorting, from the rows that train.
std::vector<std::uint16_t> cosine_order(const pqattn::rows_view& samples, std::uint32_t subvectors) {
  const auto dim = static_cast<std::uint32_t>(samples.cols);
  std::vector<std::uint16_t> order(dim);
  std::vector<std::byte> workspace(pqattn::cosine_order_workspace_bytes(dim));
  require(fill_cosine_order(samples, subvectors, workspace.data(), workspace.size(), order.data()), "channel order");
  return order;
}

/// The paper's page-aware windows: the training range is cut into `windows` of them, each with a codebook of its own
/// that starts from the one before; the last one also codes what comes after training.
void code_in_windows(const side_job& job, const pq_settings& settings, std::size_t windows,
                     const pqattn::pq_ranges& ranges, std::vector<float>& rows, side_result& result) {
  const std::size_t taught = ranges.taught_last - ranges.taught_first;
  std::vector<float> centroids;
  for (std::size_t window = 0; window < windows; ++window) {
    const std::size_t first = ranges.taught_first + window * taught / windows;
    const std::size_t last = ranges.taught_first + (window + 1) * taught / windows;
    const pqattn::rows_view samples = pqattn::view_rows(rows.data() + first * job.dim, last - first, job.dim);
    centroids = train_pq(settings, samples, job.weights->empty() ? nullptr : job.weights->data() + first, centroids);
    result.codebook_bits += codebook_bits(settings);
    // Fewer rows may be coded than teach: the recent window can reach into the training range.
    const std::size_t end = window + 1 == windows ? ranges.coded_last : std::min(last, ranges.coded_last);
    if (first < end) {
      code_with_pq(settings, centroids, first, end, rows, result);
    }
  }
}

void code_rows(const side_job& job, const plan& made, const options& chosen, std::vector<float>& rows,
               side_result& result) {
  const std::size_t count = made.coded_last - made.coded_first;
  if (count == 0) {
    return;
  }
  // Rotations of a baseline are shared by the heads.
  if (!made.is_pq) {
    std::size_t bits = 0;
    require(code_as_baseline(made.format, job.side, rows.data() + made.coded_first * job.dim, count, job.dim,
                             chosen.seed, bits),
            chosen.method);
    result.code_bits += static_cast<double>(bits);
    return;
  }
  pq_settings settings = settings_of(chosen, made, job.keys(), 2 * job.kv_head + (job.keys() ? 0 : 1));
  double outlier_share = made.outlier_share;
  if (!made.policy.empty()) {
    const pqattn::side_policy& side = job.keys() ? made.policy[job.kv_head].keys : made.policy[job.kv_head].values;
    if (side.exact) {
      result.code_bits += 16.0 * static_cast<double>(count * job.dim);
      return;
    }
    const std::uint16_t* order = settings.shape.channel_order;
    settings.shape = side.shape(static_cast<std::uint32_t>(job.dim));
    settings.shape.channel_order = order;
    settings.storage = side.storage;
    outlier_share = static_cast<double>(side.outlier_share);
  }
  // Sinks are never coded, so they do not teach either: their keys and their weights are unlike all others.
  const std::size_t train_last = made.window.first_query;
  const std::size_t train_first = std::min(made.coded_first, train_last);
  if (made.is_shared) {
    std::vector<float> centroids = job.keys() ? made.shared_keys : made.shared_values;
    if (chosen.refine != 0) {
      settings.iterations = chosen.refine;
      centroids =
          train_pq(settings, pqattn::view_rows(rows.data() + train_first * job.dim, train_last - train_first, job.dim),
                   nullptr, centroids);
      result.codebook_bits += codebook_bits(settings);
    }
    code_with_pq(settings, centroids, made.coded_first, made.coded_last, rows, result);
    return;
  }
  std::vector<std::uint16_t> order;
  if (chosen.channel_order == "cosine") {
    order = cosine_order(pqattn::view_rows(rows.data() + train_first * job.dim, train_last - train_first, job.dim),
                         settings.shape.subvectors);
    settings.shape.channel_order = order.data();
    result.transform_bits += 16.0 * static_cast<double>(job.dim);
  }
  if (made.is_best) {
    pqattn::pq_recipe recipe;
    recipe.shape = settings.shape;
    recipe.training.kmeans.iterations = static_cast<std::uint32_t>(settings.iterations);
    recipe.training.kmeans.seed = settings.seed;
    recipe.training.passes = static_cast<std::uint32_t>(chosen.joint_passes);
    recipe.training.storage = settings.storage;
    recipe.sweeps = static_cast<std::uint32_t>(chosen.sweeps);
    recipe.beam = static_cast<std::uint32_t>(chosen.beam);
    recipe.rotate = !job.keys() && made.rotates_values;
    recipe.smooth = chosen.smooth;
    recipe.outlier_share = outlier_share;
    recipe.metric = job.metric->empty() ? nullptr : job.metric->data();
    recipe.block_metric = chosen.block_metric;
    recipe.restarts = static_cast<std::uint32_t>(chosen.restarts);
    recipe.scale_bits = static_cast<std::uint32_t>(chosen.scale_bits);
    recipe.epochs = static_cast<std::uint32_t>(chosen.windows);
    recipe.basis = storage_named(chosen.value_basis);
    code_jointly(recipe, {train_first, train_last, made.coded_first, made.coded_last}, *job.weights, rows, result);
    return;
  }
  code_in_windows(job, settings, chosen.windows, {train_first, train_last, made.coded_first, made.coded_last}, rows,
                  result);
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
  const std::vector<float> weights = made.weighted ? importance(layer, made, kv_head) : std::vector<float>();
  if (chosen.codes_keys()) {
    const std::vector<float> metric =
        made.is_best && made.metric != "none" ? key_metric(layer, chosen, made, kv_head) : std::vector<float>();
    rotate_all(made.rotation, -1.0f, layer.key_dim, coded_keys);
    code_side({pqattn::cache_side::keys, layer.key_dim, kv_head, &weights, &metric}, made, chosen, coded_keys,
              result.keys);
    rotate_all(made.rotation, +1.0f, layer.key_dim, coded_keys);
  }
  if (chosen.codes_values()) {
    const std::vector<float> identity;
    code_side({pqattn::cache_side::values, layer.value_dim, kv_head, &weights, &identity}, made, chosen, coded_values,
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
  const auto side_bits = [](const side_result& side) {
    return side.code_bits + side.codebook_bits + side.transform_bits;
  };
  return (side_bits(keys) + side_bits(values) + exact_bits) / elements;
}

double study_result::bits_per_element_codes() const noexcept {
  const std::size_t elements = keys.coded_elements + values.coded_elements;
  return elements == 0 ? 0.0 : (keys.code_bits + values.code_bits) / static_cast<double>(elements);
}

double study_result::codebook_mse() const noexcept {
  const std::size_t elements = keys.coded_elements + values.coded_elements;
  return elements == 0 ? 0.0 : (keys.error.error + values.error.error) / static_cast<double>(elements);
}

suggestion suggest(const inputs& layer, const options& chosen) {
  if (chosen.target_all_bits) {
    throw study_error("--target-all-bits: is not for --suggest; use --target-bits");
  }
  plan made;
  make_plan(layer, chosen, made);
  if (!made.is_best) {
    throw study_error("--suggest: belongs to --method pq_best");
  }
  suggestion result;
  std::vector<std::vector<pqattn::rows_view>> queries(layer.kv_heads);
  std::vector<pqattn::calibration_head> heads(layer.kv_heads);
  for (std::size_t head = 0; head < layer.kv_heads; ++head) {
    for (std::size_t i = 0; i < layer.group(); ++i) {
      queries[head].push_back(layer.queries(head * layer.group() + i).slice(0, made.window.first_query));
    }
    heads[head] = {static_cast<std::uint32_t>(chosen.layer),
                   static_cast<std::uint32_t>(head),
                   layer.keys(head).slice(0, made.window.first_query),
                   layer.values(head).slice(0, made.window.first_query),
                   queries[head].data(),
                   queries[head].size()};
  }
  pqattn::suggest_params params;
  params.target_bits = chosen.target_error ? 0.0 : chosen.target_bits.value_or(2.0);
  params.target_error = chosen.target_error.value_or(0.0);
  params.sinks = static_cast<std::uint32_t>(chosen.sinks);
  params.recent = static_cast<std::uint32_t>(chosen.recent);
  params.rotation = made.rotation;
  params.seed = chosen.seed;
  result.policy.resize(heads.size());
  result.reasons.resize(2 * heads.size());
  pqattn::host_bank<> bank;
  require(suggest_policy(bank, heads.data(), heads.size(), params, result.policy.data(), result.reasons.data(),
                         result.summary),
          "suggestion");
  return result;
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
    result.iterations = settings_of(chosen, made, true, 0).iterations;
    result.weights = made.weighted ? "attention" : "none";
    result.codebooks = made.storage == pqattn::codebook_storage::f32   ? "f32"
                       : made.storage == pqattn::codebook_storage::f16 ? "f16"
                                                                       : "i8";
    // Their orders belong to this call's plan.
    result.key_shape.channel_order = nullptr;
  }
  result.rope = made.rope;
  result.rope_theta = made.rope_theta;
  result.exact_bits = exact_bits(layer, chosen, made);
  if (made.is_shared) {
    const stopwatch training;
    if (chosen.codes_keys()) {
      made.shared_keys = train_shared(layer, chosen, made, true, result.keys);
    }
    if (chosen.codes_values()) {
      made.shared_values = train_shared(layer, chosen, made, false, result.values);
    }
    result.code_seconds += training.seconds();
  }
  for (std::size_t kv_head = 0; kv_head < layer.kv_heads; ++kv_head) {
    study_kv_head(layer, chosen, made, kv_head, result);
  }
  return result;
}

}  // namespace pqattn_study
