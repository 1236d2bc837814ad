// SPDX-License-Identifier: MIT
#include "engine.hpp"

#include <algorithm>
#include <cmath>
#include <string>

namespace tiny_lm {
namespace {

constexpr std::size_t max_json_bytes = std::size_t{1} << 24;
constexpr std::size_t max_model_bytes = std::size_t{1} << 32;

outcome load_weights(const std::filesystem::path& folder, model& result) {
  std::string text;
  TINY_LM_TRY(read_text(folder / "config.json", max_json_bytes, text));
  model_config config;
  TINY_LM_TRY(parse_config(text, config).within("config.json"));
  std::vector<std::byte> bytes;
  TINY_LM_TRY(read_file(folder / "model.safetensors", max_model_bytes, bytes));
  safetensors tensors;
  TINY_LM_TRY(parse_safetensors(bytes, tensors).within("model.safetensors"));
  return load_model(config, tensors, result).within("model.safetensors");
}

/// A token drawn from softmax(logits / temperature).
token_id draw(std::span<const float> logits, double temperature, std::mt19937_64& random) {
  const auto values = as_vector(logits);
  const double largest = values.maxCoeff();
  const Eigen::ArrayXd weights = ((values.array().cast<double>() - largest) / temperature).exp();
  // The generator's top 53 bits, not std::uniform_real_distribution: the same text on every standard library.
  double remaining = static_cast<double>(random() >> 11U) * 0x1p-53 * weights.sum();
  for (Eigen::Index i = 0; i < weights.size(); ++i) {
    remaining -= weights[i];
    if (remaining < 0.0) {
      return static_cast<token_id>(i);
    }
  }
  return static_cast<token_id>(weights.size() - 1);
}

token_id most_likely(std::span<const float> logits) {
  return static_cast<token_id>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

outcome load_engine(const std::filesystem::path& folder, engine& result) {
  TINY_LM_TRY(load_weights(folder, result.weights));
  std::string text;
  TINY_LM_TRY(read_text(folder / "tokenizer.json", max_json_bytes, text));
  TINY_LM_TRY(tokenizer::parse(text, result.words).within("tokenizer.json"));
  if (result.words.vocabulary() != result.weights.config.vocabulary) {
    return expected_got("vocabulary of the tokenizer", result.weights.config.vocabulary, result.words.vocabulary());
  }
  return {};
}

outcome load_context(const std::filesystem::path& folder, int number, std::vector<token_id>& tokens) {
  return read_tokens(folder / ("context" + std::to_string(number) + "_tokens.npy"), tokens);
}

outcome generate(const engine& loaded, kv_cache& cache, std::span<const token_id> prompt, std::size_t count,
                 const sampling& choice, const std::function<void(token_id)>& emit) {
  if (prompt.empty()) {
    return expected_got("prompt tokens", "1 or more", 0);
  }
  decoder decode(loaded.weights, cache);
  decode.reset();
  for (const token_id token : prompt) {
    TINY_LM_TRY(decode.step(token));
  }
  std::mt19937_64 random(choice.seed);
  for (std::size_t i = 0; i < count; ++i) {
    const auto logits = decode.logits();
    const token_id next = choice.temperature > 0.0 ? draw(logits, choice.temperature, random) : most_likely(logits);
    emit(next);
    if (i + 1 == count || decode.position() == loaded.weights.config.context) {
      break;
    }
    TINY_LM_TRY(decode.step(next));
  }
  return {};
}

}  // namespace tiny_lm
