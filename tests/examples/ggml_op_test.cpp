// SPDX-License-Identifier: MIT
// Operations of ggml's shape: right against the definition, the same for any nth, and all or nothing over all heads.
#include "examples/ggml_op/attention_op.hpp"

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "examples/ggml_op/scene.hpp"
#include "support/random_data.hpp"
#include "support/run_program.hpp"

using ggml_op_example::layer_state;
using ggml_op_example::tensor;

namespace {

using pqattn_test::random_data;

TEST_CASE("exact and coded layers agree with the definition whatever nth is", "[examples]") {
  for (const bool coded : {false, true}) {
    ggml_op_example::scene_result reference;
    REQUIRE(ggml_op_example::run_scene(1, coded, reference));
    REQUIRE(reference.nmse < (coded ? 0.06 : 1e-11));
    REQUIRE((reference.coded_tokens == 0) != coded);
    for (const int threads : {2, 5}) {
      CAPTURE(coded, threads);
      ggml_op_example::scene_result result;
      REQUIRE(ggml_op_example::run_scene(threads, coded, result));
      REQUIRE(result.out == reference.out);
    }
  }
}

constexpr std::size_t dim = 16;
constexpr std::size_t heads = 2;

tensor rows(std::vector<float>& memory, std::size_t tokens) {
  tensor made;
  made.ne[0] = dim;
  made.ne[1] = heads;
  made.ne[2] = static_cast<std::int64_t>(tokens);
  made.nb[0] = sizeof(float);
  made.nb[1] = dim * sizeof(float);
  made.nb[2] = made.nb[3] = dim * heads * sizeof(float);
  made.data = memory.data();
  return made;
}

pqattn::status append(layer_state& state, const tensor& keys, const tensor& values) {
  tensor appended;
  appended.src[0] = &keys;
  appended.src[1] = &values;
  ggml_op_example::compute(
      {{&layer_state::begin_append, &appended, &state}, {&layer_state::finish_append, &appended, &state}}, 2);
  return state.outcome();
}

TEST_CASE("an append that fails on one head changes none", "[examples]") {
  random_data random(1);
  CAPTURE(random.seed());
  pqattn::cache_config config;
  config.keys.shape = config.values.shape = {dim, 4, 16};
  layer_state state;
  REQUIRE(layer_state::make(config, heads, 1, 2, state));
  std::vector<float> memory = random.normals(200 * heads * dim);
  const tensor good = rows(memory, 200);
  REQUIRE(append(state, good, good));
  REQUIRE(state.tokens() == 200);
  REQUIRE(state.coded_tokens() == 160);

  std::vector<float> bad_memory = random.normals(heads * dim);
  bad_memory[dim + 3] = std::numeric_limits<float>::quiet_NaN();  // of head 1 only
  tensor bad = rows(bad_memory, 1);
  REQUIRE(append(state, bad, bad).code == pqattn::status_code::not_finite);
  REQUIRE(state.tokens() == 200);
  bad_memory[dim + 3] = 0.0f;
  bad.nb[2] = 7;  // not a whole number of elements
  REQUIRE(append(state, bad, bad).code == pqattn::status_code::unsupported);
  bad.nb[2] = dim * heads * sizeof(float);
  REQUIRE(append(state, bad, bad));
  REQUIRE(state.tokens() == 201);
}

TEST_CASE("ggml_op says that all thread counts agree", "[examples]") {
  const auto [code, text] = pqattn_test::run_program("ggml_op", "");
  INFO(text);
  REQUIRE(code == 0);
  REQUIRE(text.find("codes, 8 threads") != std::string::npos);
  REQUIRE(text.find("all the same bits") != std::string::npos);
}

}  // namespace
