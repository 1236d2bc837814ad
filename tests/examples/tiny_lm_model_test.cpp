// SPDX-License-Identifier: MIT
// The model against what was dumped when it was trained: activations of a layer, loss, a greedy continuation.
#include "examples/tiny_lm/model.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <cmath>
#include <filesystem>
#include <memory>
#include <pqattn/study/npy.hpp>
#include <string>
#include <vector>

#include "examples/tiny_lm/engine.hpp"
#include "examples/tiny_lm/evaluate.hpp"
#include "examples/tiny_lm/exact_cache.hpp"

using Catch::Matchers::WithinAbs;
using tiny_lm::token_id;

namespace {

const std::filesystem::path source = PQATTN_SOURCE_DIR;
const std::filesystem::path data = source / "examples/tiny_lm/data";

const tiny_lm::engine& loaded() {
  static const tiny_lm::engine instance = [] {
    tiny_lm::engine fresh;
    const auto outcome = tiny_lm::load_engine(data, fresh);
    INFO(outcome.message());
    REQUIRE(outcome);
    return fresh;
  }();
  return instance;
}

std::vector<token_id> context(int number, std::size_t tokens = 2048) {
  std::vector<token_id> ids;
  REQUIRE(tiny_lm::load_context(data, number, ids));
  REQUIRE(ids.size() == 2048);
  ids.resize(tokens);
  return ids;
}

tiny_lm::evaluation exact_run(std::span<const token_id> tokens) {
  tiny_lm::exact_cache cache(loaded().weights.config.shape(tokens.size()));
  tiny_lm::log_probabilities distributions;
  tiny_lm::evaluation run;
  const auto outcome = evaluate_reference(loaded().weights, cache, tokens, {}, distributions, run);
  INFO(outcome.message());
  REQUIRE(outcome);
  return run;
}

/// Dumped activations of layer 1: [heads][2048][64].
struct dump {
  explicit dump(const char* name) {
    REQUIRE(tiny_lm::read_file(source / "tests/data/tiny_lm/context0/layer1" / name, std::size_t{1} << 22, bytes));
    REQUIRE(pqattn::parse_npy(bytes, array).ok());
    REQUIRE(array.rank == 3);
  }
  /// Relative squared error of the rows [heads][head_dim] of one position.
  double error(std::size_t position, std::span<const float> rows) const {
    double difference = 0.0;
    double power = 0.0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const double expected = array.real((i / 64 * 2048 + position) * 64 + i % 64);
      difference += (rows[i] - expected) * (rows[i] - expected);
      power += expected * expected;
    }
    return difference / power;
  }
  std::vector<std::byte> bytes;
  pqattn::npy_array_view array;
};

/// Compares what passes through the door at layer 1 with the dump, and lets the exact cache do the work.
class comparing_cache final : public tiny_lm::kv_cache {
 public:
  explicit comparing_cache(const tiny_lm::cache_shape& shape) : exact_(shape) {}

  pqattn::status append(std::size_t layer, std::size_t position, std::span<const float> keys,
                        std::span<const float> values) override {
    if (layer == 1) {
      worst_ = std::max({worst_, keys_.error(position, keys), values_.error(position, values)});
      ++compared_;
    }
    return exact_.append(layer, position, keys, values);
  }
  pqattn::status attend(std::size_t layer, std::size_t position, std::span<const float> queries,
                        std::span<float> out) override {
    if (layer == 1) {
      worst_ = std::max(worst_, queries_.error(position, queries));
    }
    return exact_.attend(layer, position, queries, out);
  }
  void reset() override { exact_.reset(); }
  tiny_lm::cache_memory memory() const override { return exact_.memory(); }

  double worst_ = 0.0;
  int compared_ = 0;

 private:
  tiny_lm::exact_cache exact_;
  dump keys_{"keys.npy"};
  dump values_{"values.npy"};
  dump queries_{"queries.npy"};
};

}  // namespace

TEST_CASE("tiny_lm: keys, values and queries of layer 1 are the dumped ones", "[tiny_lm]") {
  constexpr std::size_t tokens = 200;
  comparing_cache cache(loaded().weights.config.shape(tokens));
  tiny_lm::decoder decode(loaded().weights, cache);
  for (const token_id token : context(0, tokens)) {
    REQUIRE(decode.step(token));
  }
  CHECK(cache.compared_ == tokens);
  // The dump is rounded to 11 bits: relative squared error about 2^-24 / 3 = 2e-8.
  CHECK(cache.worst_ < 1e-6);
  CHECK(cache.worst_ > 0.0);
}

TEST_CASE("tiny_lm: loss of the first 512 tokens", "[tiny_lm]") {
  const auto run = exact_run(context(0, 512));
  CHECK_THAT(tiny_lm::mean_over(run.loss, {1, 511}), WithinAbs(3.2897, 0.001));
}

TEST_CASE("tiny_lm: loss of both contexts", "[tiny_lm][slow]") {
#if defined(__SANITIZE_ADDRESS__)
  SKIP("takes minutes under AddressSanitizer; the 512-token run covers the same code");
#endif
  struct figure {
    int context;
    double all;
    double early;
    double late;
  };
  const auto expected = GENERATE(figure{0, 3.3949, 3.2897, 3.3800}, figure{1, 3.4894, 3.5707, 3.5586});
  const auto run = exact_run(context(expected.context));
  CAPTURE(expected.context);
  CHECK_THAT(tiny_lm::mean_over(run.loss, run.all_targets()), WithinAbs(expected.all, 0.001));
  CHECK_THAT(tiny_lm::mean_over(run.loss, {1, 511}), WithinAbs(expected.early, 0.001));
  CHECK_THAT(tiny_lm::mean_over(run.loss, {1536, 2047}), WithinAbs(expected.late, 0.001));
  CHECK(run.memory.tokens == 2048);
  CHECK(run.memory.bytes == std::size_t{2} * 4 * 2 * 2048 * 64 * 4);
}

TEST_CASE("tiny_lm: greedy continuation", "[tiny_lm]") {
  const std::vector<token_id> expected = {405, 261, 288, 104, 114, 819, 278, 261, 271,
                                          284, 339, 279, 261, 271, 284, 339, 44};
  std::vector<token_id> prompt = loaded().words.encode("It is a truth universally acknowledged");
  prompt.insert(prompt.begin(), tiny_lm::tokenizer::bos);
  tiny_lm::exact_cache cache(loaded().weights.config.shape(64));
  std::vector<token_id> ids;
  const auto emit = [&](token_id id) { ids.push_back(id); };
  REQUIRE(generate(loaded(), cache, prompt, expected.size(), {}, emit));
  CHECK(ids == expected);

  ids.clear();
  REQUIRE(generate(loaded(), cache, prompt, 3, {}, emit));  // the cache was reset
  CHECK(ids == std::vector<token_id>(expected.begin(), expected.begin() + 3));
  CHECK_FALSE(generate(loaded(), cache, {}, 3, {}, emit));
}

TEST_CASE("tiny_lm: sampling follows its seed", "[tiny_lm]") {
  const auto text = [](std::uint64_t seed) {
    tiny_lm::exact_cache cache(loaded().weights.config.shape(64));
    std::vector<token_id> ids;
    const std::vector<token_id> prompt = {tiny_lm::tokenizer::bos};
    REQUIRE(generate(loaded(), cache, prompt, 20, {1.0, seed}, [&](token_id id) { ids.push_back(id); }));
    return ids;
  };
  CHECK(text(1) == text(1));
  CHECK(text(1) != text(2));
}

TEST_CASE("tiny_lm: errors name expected and got", "[tiny_lm]") {
  tiny_lm::exact_cache cache(loaded().weights.config.shape(2));
  tiny_lm::decoder decode(loaded().weights, cache);
  CHECK_FALSE(decode.step(-1));
  CHECK(decode.step(2048).message() == "token: expected 0 to 2047, got 2048");
  CHECK(decode.position() == 0);
  REQUIRE(decode.step(256));
  REQUIRE(decode.step(35));
  CHECK(decode.step(35).message() == "position is beyond the cache: expected 2, got 2 (capacity)");
  decode.reset();
  CHECK(decode.step(256));

  tiny_lm::engine engine;
  CHECK_FALSE(load_engine(source / "no such folder", engine));
}

TEST_CASE("tiny_lm: weights that do not fit the sizes are refused", "[tiny_lm]") {
  std::vector<std::byte> bytes;
  REQUIRE(tiny_lm::read_file(data / "model.safetensors", std::size_t{1} << 24, bytes));
  tiny_lm::safetensors tensors;
  REQUIRE(parse_safetensors(bytes, tensors));
  auto config = loaded().weights.config;
  tiny_lm::model result;
  REQUIRE(load_model(config, tensors, result));

  config.layers = 5;
  CHECK(load_model(config, tensors, result).message() ==
        "model.layers.4.input_layernorm.weight: expected a tensor of shape [256], got none");
  config = loaded().weights.config;
  config.ffn_width = 511;
  CHECK(load_model(config, tensors, result).message() ==
        "model.layers.0.mlp.gate_proj.weight shape: expected [511, 256], got [512, 256]");
  config = loaded().weights.config;
  config.tied_embedding = false;
  CHECK_FALSE(load_model(config, tensors, result));

  // The last tensor's last number becomes an infinity.
  bytes[bytes.size() - 1] = std::byte{0x7c};
  bytes[bytes.size() - 2] = std::byte{0x00};
  CHECK_FALSE(load_model(loaded().weights.config, tensors, result));
}

TEST_CASE("tiny_lm: configurations", "[tiny_lm]") {
  std::string text;
  REQUIRE(tiny_lm::read_text(data / "config.json", 4096, text));
  tiny_lm::model_config config;
  REQUIRE(parse_config(text, config));
  CHECK(config.layers == 4);
  CHECK(config.kv_heads == 2);
  CHECK(config.tied_embedding);
  CHECK(config.shape(7).elements(7) == 2 * 4 * 2 * 64 * 7);

  const auto refused = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    const auto place = changed.find(from);
    REQUIRE(place != std::string::npos);
    changed.replace(place, from.size(), to);
    CAPTURE(to);
    CHECK_FALSE(parse_config(changed, config));
  };
  refused("\"hidden_size\": 256", "\"hidden_size\": 0");
  refused("\"hidden_size\": 256", "\"hidden_size\": -1");
  refused("\"hidden_size\": 256", "\"hidden_size\": 99999999999");
  refused("\"hidden_size\": 256", "\"hidden_size\": \"256\"");
  refused("\"num_hidden_layers\"", "\"layers\"");
  refused("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3");
  refused("\"head_dim\": 64", "\"head_dim\": 63");
  refused("\"rope_theta\": 10000.0", "\"rope_theta\": -1");
  refused("\"torch_dtype\"", "\"rope_scaling\": {\"type\": \"linear\"}, \"torch_dtype\"");
  refused("{", "[");
  CHECK(config.layers == 4);  // unchanged by the failures
}
