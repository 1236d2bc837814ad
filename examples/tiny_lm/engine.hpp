// SPDX-License-Identifier: MIT
// A model and its tokenizer, loaded from a folder.
#pragma once

#include "files.hpp"
#include "model.hpp"
#include "outcome.hpp"
#include "tokenizer.hpp"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <random>
#include <string_view>
#include <vector>

namespace tiny_lm {

struct engine {
  model weights;
  tokenizer words;
};

/// Reads config.json, model.safetensors and tokenizer.json from `folder`.
outcome load_engine(const std::filesystem::path& folder, engine& result);

/// The demo's context number `number` (BOS and 2047 tokens of a text the model has not seen).
outcome load_context(const std::filesystem::path& folder, int number, std::vector<token_id>& tokens);

/// How the next token is chosen.
struct sampling {
  double temperature = 0.0;  ///< 0 takes the most likely token
  std::uint64_t seed = 1;
};

/// Feeds `prompt` (at least one token), then generates up to `count` tokens, each given to `emit` as it comes.
/// Stops early where the context or the cache ends.
outcome generate(const engine& loaded, kv_cache& cache, std::span<const token_id> prompt, std::size_t count,
                 const sampling& choice, const std::function<void(token_id)>& emit);

}  // namespace tiny_lm
