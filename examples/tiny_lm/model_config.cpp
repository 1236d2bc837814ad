// SPDX-License-Identifier: MIT
#include "model_config.hpp"

#include <nlohmann/json.hpp>

#include <array>
#include <cmath>

namespace tiny_lm {
namespace {

using nlohmann::json;

outcome read_size(const json& root, const char* key, std::size_t limit, std::size_t& value) {
  const auto found = root.find(key);
  if (found == root.end() || !found->is_number_unsigned()) {
    return expected_got(key, "a whole number", found == root.end() ? "none" : "something else");
  }
  const auto number = found->get<std::uint64_t>();
  if (number == 0 || number > limit) {
    return expected_got(key, "1 to " + std::to_string(limit), number);
  }
  value = static_cast<std::size_t>(number);
  return {};
}

outcome read_positive(const json& root, const char* key, double& value) {
  const auto found = root.find(key);
  if (found == root.end() || !found->is_number()) {
    return expected_got(key, "a number", "none");
  }
  value = found->get<double>();
  if (!std::isfinite(value) || value <= 0.0) {
    return expected_got(key, "a positive number", value);
  }
  return {};
}

outcome read_sizes(const json& root, model_config& config) {
  struct field {
    const char* key;
    std::size_t limit;
    std::size_t model_config::*place;
  };
  static constexpr std::array<field, 8> fields{{
      {"num_hidden_layers", 1024, &model_config::layers},
      {"hidden_size", 65536, &model_config::width},
      {"intermediate_size", 262144, &model_config::ffn_width},
      {"num_attention_heads", 1024, &model_config::query_heads},
      {"num_key_value_heads", 1024, &model_config::kv_heads},
      {"head_dim", 1024, &model_config::head_dim},
      {"vocab_size", 1048576, &model_config::vocabulary},
      {"max_position_embeddings", 1048576, &model_config::context},
  }};
  for (const field& entry : fields) {
    TINY_LM_TRY(read_size(root, entry.key, entry.limit, config.*entry.place));
  }
  return {};
}

outcome check_supported(const json& root, const model_config& config) {
  if (config.query_heads % config.kv_heads != 0) {
    return expected_got("num_attention_heads", "a multiple of num_key_value_heads", config.query_heads);
  }
  if (config.head_dim % 2 != 0) {
    return expected_got("head_dim", "an even number (RoPE pairs)", config.head_dim);
  }
  const auto scaling = root.find("rope_scaling");
  if (scaling != root.end() && !scaling->is_null()) {
    return expected_got("rope_scaling", "none", "a scaling");
  }
  return {};
}

}  // namespace

outcome parse_config(std::string_view text, model_config& config) {
  const json root = json::parse(text.begin(), text.end(), nullptr, false);
  if (!root.is_object()) {
    return expected_got("config", "a JSON object", "something else");
  }
  model_config fresh;
  TINY_LM_TRY(read_sizes(root, fresh));
  TINY_LM_TRY(read_positive(root, "rope_theta", fresh.rope_theta));
  TINY_LM_TRY(read_positive(root, "rms_norm_eps", fresh.norm_epsilon));
  const auto tied = root.find("tie_word_embeddings");
  fresh.tied_embedding = tied != root.end() && *tied == true;
  TINY_LM_TRY(check_supported(root, fresh));
  config = fresh;
  return {};
}

}  // namespace tiny_lm
