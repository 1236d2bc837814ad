// SPDX-License-Identifier: MIT
#include <pqattn/cache/cache_config.hpp>

#include <catch2/catch_test_macros.hpp>
#include <limits>

namespace {

using namespace pqattn;

cache_config valid() {
  cache_config config;
  config.keys.shape = {64, 16, 256};
  config.values.shape = {64, 32, 16};
  return config;
}

TEST_CASE("defaults are the paper's windows and a training point of four tokens per centroid", "[cache]") {
  const cache_config config = valid();
  CHECK(check_config(config));
  CHECK(config.sinks == 8);
  CHECK(config.recent == 32);
  CHECK(config.training_start() == 4 * 256 + 32);
  cache_config values_only = config;
  values_only.keys.coded = false;
  CHECK(values_only.training_start() == 4 * 16 + 32);
}

TEST_CASE("keys are coded before RoPE only when there is a rotation, codes and no wish for the contrary", "[cache]") {
  cache_config config = valid();
  CHECK_FALSE(config.rotates_codes());
  config.rotation.pairs = 32;
  CHECK(config.rotates_codes());
  config.code_keys_after_rope = true;
  CHECK_FALSE(config.rotates_codes());
  config.code_keys_after_rope = false;
  config.keys.coded = false;
  CHECK_FALSE(config.rotates_codes());
}

TEST_CASE("a configuration that cannot work says which field is at fault", "[cache]") {
  cache_config config = valid();
  config.weight_exponent = std::numeric_limits<float>::quiet_NaN();
  CHECK(check_config(config).code == status_code::invalid_argument);
  config = valid();
  config.weight_floor = -1.0f;
  CHECK(check_config(config).code == status_code::invalid_argument);
  config = valid();
  config.train_tokens = 255;
  CHECK(check_config(config).code == status_code::too_few_samples);
  config = valid();
  config.max_training_tokens = 1000;
  CHECK(check_config(config).code == status_code::invalid_argument);
  config = valid();
  config.rotation.pairs = 33;
  CHECK_FALSE(check_config(config).ok());
}

TEST_CASE("memory reports add up", "[cache]") {
  memory_report a{100, 20, 7, 30, 4, 5, 10, 640};
  CHECK(a.total_bytes() == 166);
  CHECK(a.bits_per_element() == 8.0 * 161.0 / 640.0);
  const memory_report b{1, 2, 6, 3, 4, 5, 12, 60};
  a += b;
  CHECK(a.total_bytes() == 187);
  CHECK(a.tokens == 12);
  CHECK(a.elements == 700);
  CHECK(memory_report{}.bits_per_element() == 0.0);
}

}  // namespace
