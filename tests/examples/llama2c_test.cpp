// SPDX-License-Identifier: MIT
// llama2.c checkpoints: written, read, refused when hostile; the model on float, exact and coded caches.
#include <catch2/catch_test_macros.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "examples/llama2c/checkpoint.hpp"
#include "examples/llama2c/runner.hpp"
#include "support/run_program.hpp"
#include "support/scratch_folder.hpp"

using llama2c::checkpoint;
using llama2c::model_shape;

namespace {

using pqattn_test::scratch_folder;

void write_bytes(const std::string& path, const std::vector<char>& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::vector<char> read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

constexpr model_shape small{16, 24, 2, 4, 2, 20, 32, true};

TEST_CASE("a checkpoint has the layout of the format and survives a round trip", "[examples]") {
  const scratch_folder folder;
  for (const bool shared : {true, false}) {
    CAPTURE(shared);
    model_shape shape = small;
    shape.shared_classifier = shared;
    const checkpoint model = checkpoint::random(shape, 3);
    std::string problem;
    REQUIRE(model.write(folder.file("m.bin"), problem));

    const std::vector<char> bytes = read_bytes(folder.file("m.bin"));
    std::array<std::int32_t, 7> header{};
    std::memcpy(header.data(), bytes.data(), sizeof header);
    REQUIRE(header == std::array<std::int32_t, 7>{16, 24, 2, 4, 2, shared ? 20 : -20, 32});
    // embedding; per layer: 2 norms, wq, wk, wv, wo, w1, w2, w3; final norm; two tables of angles; own classifier
    const std::size_t floats =
        20 * 16 + 2 * (2 * 16 + 2 * 16 * 16 + 2 * 8 * 16 + 3 * 24 * 16) + 16 + 2 * 32 * 2 + (shared ? 0 : 20 * 16);
    REQUIRE(bytes.size() == 28 + 4 * floats);

    checkpoint back;
    REQUIRE(checkpoint::read(folder.file("m.bin"), back, problem));
    REQUIRE(back.weights().down.size() == 2 * 16 * 24);
    REQUIRE(std::equal(back.weights().down.begin(), back.weights().down.end(), model.weights().down.begin()));
    const float* end = back.weights().classifier.data() + back.weights().classifier.size();
    REQUIRE((back.weights().classifier.data() == back.weights().token_embedding.data()) == shared);
    REQUIRE(end[-1] == model.weights().classifier.back());
    REQUIRE(back.write(folder.file("again.bin"), problem));
    REQUIRE(read_bytes(folder.file("again.bin")) == bytes);
  }
}

TEST_CASE("files that are not checkpoints are refused with the reason, and leave the model alone", "[examples]") {
  const scratch_folder folder;
  std::string problem;
  const checkpoint model = checkpoint::random(small, 1);
  REQUIRE(model.write(folder.file("good.bin"), problem));
  const std::vector<char> good = read_bytes(folder.file("good.bin"));
  const auto refused = [&](const std::vector<char>& bytes, const std::string& reason) {
    write_bytes(folder.file("bad.bin"), bytes);
    checkpoint result = model;
    std::string message;
    const bool taken = checkpoint::read(folder.file("bad.bin"), result, message);
    INFO(message);
    CHECK_FALSE(taken);
    CHECK(message.find(reason) != std::string::npos);
    CHECK(result.shape().dim == 16);
  };
  const auto with_field = [&](std::size_t index, std::int32_t value) {
    std::vector<char> bytes = good;
    std::memcpy(bytes.data() + 4 * index, &value, 4);
    return bytes;
  };
  refused({}, "too short");
  refused({good.begin(), good.begin() + 27}, "too short");
  refused({good.begin(), good.end() - 1}, "must have");
  std::vector<char> longer = good;
  longer.push_back(0);
  refused(longer, "must have");
  refused(with_field(0, 0), "dim must be");
  refused(with_field(0, -16), "dim must be");
  refused(with_field(1, std::numeric_limits<std::int32_t>::max()), "hidden_dim must be");
  refused(with_field(2, 1 << 30), "n_layers must be");
  refused(with_field(3, 3), "dim must be n_heads");
  refused(with_field(3, 16), "even head size");
  refused(with_field(4, 3), "n_heads must be a multiple");
  refused(with_field(5, std::numeric_limits<std::int32_t>::min()), "vocab_size must be");
  refused(with_field(5, 0), "vocab_size must be");
  refused(with_field(6, 0), "seq_len must be");
  refused(with_field(1, 1 << 20), "must have");  // 400 MB of weights: refused by size, nothing allocated
  refused(with_field(5, -20), "must have");      // claims a classifier that is not there
  std::vector<char> bad_weight = good;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bad_weight.data() + 28 + 4 * 10, &nan, 4);
  refused(bad_weight, "weight 10 is not finite");
  checkpoint result;
  REQUIRE_FALSE(checkpoint::read(folder.file("none.bin"), result, problem));
}

/// Logits of a one-layer model with one head by an independent loop in double, for the last of `tokens`.
std::vector<double> logits_by_definition(const checkpoint& model, const std::vector<std::int32_t>& tokens) {
  const model_shape& s = model.shape();
  const auto dim = static_cast<std::size_t>(s.dim);
  const auto times = [](std::span<const float> matrix, std::size_t outputs, const std::vector<double>& in) {
    std::vector<double> out(outputs, 0.0);
    for (std::size_t i = 0; i < outputs * in.size(); ++i) {
      out[i / in.size()] += double{matrix[i]} * in[i % in.size()];
    }
    return out;
  };
  const auto norm = [](std::span<const float> weights, const std::vector<double>& in) {
    const double squares = std::inner_product(in.begin(), in.end(), in.begin(), 0.0);
    std::vector<double> out(in);
    for (std::size_t i = 0; i < in.size(); ++i) {
      out[i] *= double{weights[i]} / std::sqrt(squares / static_cast<double>(in.size()) + 1e-5);
    }
    return out;
  };
  const auto turn = [&](std::vector<double> row, std::size_t position) {
    for (std::size_t i = 0; i < dim; i += 2) {
      const double angle =
          static_cast<double>(position) / std::pow(10000.0, static_cast<double>(i) / static_cast<double>(dim));
      const double x = row[i];
      row[i] = x * std::cos(angle) - row[i + 1] * std::sin(angle);
      row[i + 1] = x * std::sin(angle) + row[i + 1] * std::cos(angle);
    }
    return row;
  };
  const auto& w = model.weights();
  std::vector<std::vector<double>> keys;
  std::vector<std::vector<double>> values;
  std::vector<double> state;
  std::vector<double> query;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    state.assign(w.token_embedding.begin() + tokens[t] * s.dim, w.token_embedding.begin() + (tokens[t] + 1) * s.dim);
    const std::vector<double> normed = norm(w.attention_norm, state);
    keys.push_back(turn(times(w.key, dim, normed), t));
    values.push_back(times(w.value, dim, normed));
    query = turn(times(w.query, dim, normed), t);
  }
  std::vector<double> mixed(dim, 0.0);
  double total = 0.0;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const double score = std::inner_product(query.begin(), query.end(), keys[t].begin(), 0.0);
    const double weight = std::exp(score / std::sqrt(static_cast<double>(dim)));
    total += weight;
    for (std::size_t c = 0; c < dim; ++c) {
      mixed[c] += weight * values[t][c];
    }
  }
  for (double& x : mixed) {
    x /= total;
  }
  const auto add = [&](const std::vector<double>& more) {
    for (std::size_t i = 0; i < dim; ++i) {
      state[i] += more[i];
    }
  };
  add(times(w.attention_out, dim, mixed));
  const std::vector<double> normed = norm(w.feed_norm, state);
  std::vector<double> gate = times(w.gate, static_cast<std::size_t>(s.hidden_dim), normed);
  const std::vector<double> up = times(w.up, static_cast<std::size_t>(s.hidden_dim), normed);
  for (std::size_t i = 0; i < gate.size(); ++i) {
    gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
  }
  add(times(w.down, dim, gate));
  return times(w.classifier, static_cast<std::size_t>(s.vocab_size), norm(w.final_norm, state));
}

TEST_CASE("logits equal a plain double-precision forward pass", "[examples]") {
  const model_shape shape{12, 20, 1, 1, 1, 17, 64, false};
  const checkpoint model = checkpoint::random(shape, 5);
  const std::vector<std::int32_t> tokens = llama2c::random_tokens(shape, 40, 2);
  const std::vector<double> expected = logits_by_definition(model, tokens);
  for (const char* name : {"float", "pqattn-exact"}) {
    CAPTURE(name);
    std::string problem;
    const auto cache = llama2c::make_cache(name, shape, 0, problem);
    REQUIRE(cache != nullptr);
    llama2c::runner run(model, *cache);
    for (const std::int32_t token : tokens) {
      REQUIRE(run.forward(token));
    }
    for (std::size_t i = 0; i < expected.size(); ++i) {
      REQUIRE(std::abs(double{run.logits()[i]} - expected[i]) < 1e-4);
    }
    REQUIRE(run.forward(17).code == pqattn::status_code::invalid_argument);
    REQUIRE(run.forward(-1).code == pqattn::status_code::invalid_argument);
    for (std::size_t t = tokens.size(); t < 64; ++t) {
      REQUIRE(run.forward(0));
    }
    REQUIRE(run.forward(0).code == pqattn::status_code::capacity);
  }
}

TEST_CASE("the exact cache changes no logit, the coded one little", "[examples]") {
  const model_shape shape{64, 128, 2, 4, 2, 96, 1024, false};
  const checkpoint model = checkpoint::random(shape, 1);
  const std::vector<std::int32_t> tokens = llama2c::random_tokens(shape, 400, 1);
  llama2c::comparison exact;
  llama2c::comparison coded;
  std::string problem;
  REQUIRE(llama2c::compare(model, tokens, "float", "pqattn-exact", 0, exact, problem));
  REQUIRE(llama2c::compare(model, tokens, "float", "pqattn", 0, coded, problem));
  CAPTURE(exact.nmse, coded.nmse, coded.kl);
  REQUIRE(exact.coded_tokens == 0);
  REQUIRE(exact.nmse < 1e-11);
  REQUIRE(exact.same_top == tokens.size());
  REQUIRE(coded.coded_tokens == 400 - 40);
  REQUIRE(coded.nmse > exact.nmse);
  REQUIRE(coded.nmse < 2e-3);
  REQUIRE(coded.kl < 2e-3);
  REQUIRE_FALSE(llama2c::compare(model, tokens, "float", "none", 0, coded, problem));
  REQUIRE(problem.find("there is no cache none") != std::string::npos);
}

TEST_CASE("llama2c writes, generates and compares", "[examples]") {
  const scratch_folder folder;
  const std::string file = folder.file("tiny.bin");
  REQUIRE(pqattn_test::run_program("llama2c", "make " + file).code == 0);
  const auto floats = pqattn_test::run_program("llama2c", "generate " + file + " --tokens 24 --cache float");
  const auto exact = pqattn_test::run_program("llama2c", "generate " + file + " --tokens 24 --cache pqattn-exact");
  INFO(floats.text);
  REQUIRE(floats.code == 0);
  REQUIRE(exact.text == floats.text);
  const auto compared = pqattn_test::run_program("llama2c", "compare " + file + " --tokens 350");
  INFO(compared.text);
  REQUIRE(compared.code == 0);
  REQUIRE(compared.text.find("310 of 350 tokens coded") != std::string::npos);
  std::filesystem::resize_file(file, 1000);
  const auto hostile = pqattn_test::run_program("llama2c", "generate " + file);
  REQUIRE(hostile.code == 2);
  REQUIRE(hostile.text.find("must have") != std::string::npos);
  REQUIRE(pqattn_test::run_program("llama2c", "").code == 2);
}

}  // namespace
