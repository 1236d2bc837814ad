// SPDX-License-Identifier: MIT
// The reference cache against a double-precision loop, and the figures that judge other caches.
#include "examples/tiny_lm/exact_cache.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

#include "examples/tiny_lm/caches.hpp"
#include "examples/tiny_lm/comparison.hpp"
#include "examples/tiny_lm/engine.hpp"
#include "examples/tiny_lm/evaluate.hpp"
#include "examples/tiny_lm/report.hpp"

using Catch::Matchers::WithinAbs;
using tiny_lm::token_id;

namespace {

const std::filesystem::path data = std::filesystem::path(PQATTN_SOURCE_DIR) / "examples/tiny_lm/data";

std::vector<float> random_rows(std::mt19937& random, std::size_t size) {
  std::normal_distribution<float> normal;
  std::vector<float> rows(size);
  std::generate(rows.begin(), rows.end(), [&] { return normal(random); });
  return rows;
}

struct position_rows {
  std::vector<float> keys;
  std::vector<float> values;
};

/// Attention of one query head by the definition, over the positions in `visible`.
std::vector<double> attend_by_definition(const tiny_lm::cache_shape& shape, const std::vector<position_rows>& rows,
                                         const std::vector<std::size_t>& visible, std::span<const float> queries,
                                         std::size_t query_head) {
  const std::size_t dim = shape.head_dim;
  const std::size_t kv_head = query_head * shape.kv_heads / shape.query_heads;
  std::vector<double> out(dim, 0.0);
  double total = 0.0;
  for (const std::size_t position : visible) {
    double score = 0.0;
    for (std::size_t i = 0; i < dim; ++i) {
      score += double{queries[query_head * dim + i]} * double{rows[position].keys[kv_head * dim + i]};
    }
    const double weight = std::exp(score / std::sqrt(static_cast<double>(dim)));
    total += weight;
    for (std::size_t i = 0; i < dim; ++i) {
      out[i] += weight * double{rows[position].values[kv_head * dim + i]};
    }
  }
  for (double& value : out) {
    value /= total;
  }
  return out;
}

/// Positions a window of `sinks` first and `recent` last tokens still shows at `position`.
std::vector<std::size_t> visible_positions(std::size_t position, std::size_t sinks, std::size_t recent) {
  std::vector<std::size_t> visible;
  for (std::size_t i = 0; i <= position; ++i) {
    if (i < sinks || i + recent > position) {
      visible.push_back(i);
    }
  }
  return visible;
}

/// Keeps nothing of the past: every position sees itself alone.
class forgetful_cache final : public tiny_lm::kv_cache {
 public:
  explicit forgetful_cache(const tiny_lm::cache_shape& shape) : shape_(shape) {}
  pqattn::status append(std::size_t, std::size_t, std::span<const float>, std::span<const float> values) override {
    values_.assign(values.begin(), values.end());
    return {};
  }
  pqattn::status attend(std::size_t, std::size_t, std::span<const float>, std::span<float> out) override {
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = values_[i / shape_.head_dim / shape_.group() * shape_.head_dim + i % shape_.head_dim];
    }
    return {};
  }
  void reset() override {}
  tiny_lm::cache_memory memory() const override { return {values_.size() * sizeof(float), 1}; }

 private:
  tiny_lm::cache_shape shape_;
  std::vector<float> values_;
};

}  // namespace

TEST_CASE("exact cache: attention by the definition, whole and windowed", "[tiny_lm]") {
  struct window {
    std::size_t sinks;
    std::size_t recent;
  };
  const auto kept = GENERATE(window{0, 41}, window{3, 10}, window{0, 1}, window{5, 1});
  constexpr unsigned seed = 3;
  CAPTURE(seed, kept.sinks, kept.recent);
  const tiny_lm::cache_shape shape{2, 6, 3, 7, 41, 10000.0};
  tiny_lm::exact_cache cache(shape, kept.sinks, kept.recent);
  std::mt19937 random(seed);
  std::vector<std::vector<position_rows>> rows(shape.layers);
  std::vector<float> out(shape.query_width());
  for (std::size_t position = 0; position < shape.max_tokens; ++position) {
    const auto visible = visible_positions(position, kept.sinks, kept.recent);
    for (std::size_t layer = 0; layer < shape.layers; ++layer) {
      rows[layer].push_back({random_rows(random, shape.kv_width()), random_rows(random, shape.kv_width())});
      REQUIRE(cache.append(layer, position, rows[layer].back().keys, rows[layer].back().values).ok());
      const auto queries = random_rows(random, shape.query_width());
      REQUIRE(cache.attend(layer, position, queries, out).ok());
      for (std::size_t head = 0; head < shape.query_heads; ++head) {
        const auto expected = attend_by_definition(shape, rows[layer], visible, queries, head);
        for (std::size_t i = 0; i < shape.head_dim; ++i) {
          REQUIRE_THAT(double{out[head * shape.head_dim + i]}, WithinAbs(expected[i], 2e-6));
        }
      }
    }
  }
  const std::size_t slots = std::min(kept.sinks + kept.recent, shape.max_tokens);
  CHECK(cache.memory().bytes == slots * 2 * shape.layers * shape.kv_width() * sizeof(float));
  CHECK(cache.memory().tokens == shape.max_tokens);
}

TEST_CASE("exact cache: misuse is a status", "[tiny_lm]") {
  const tiny_lm::cache_shape shape{1, 2, 1, 4, 3, 10000.0};
  tiny_lm::exact_cache cache(shape);
  const std::vector<float> kv(4);
  const std::vector<float> queries(8);
  std::vector<float> out(8);
  CHECK(cache.append(1, 0, kv, kv).code == pqattn::status_code::invalid_argument);
  CHECK(cache.append(0, 3, kv, kv).code == pqattn::status_code::capacity);
  CHECK(cache.append(0, 1, kv, kv).code == pqattn::status_code::invalid_argument);
  CHECK(cache.append(0, 0, queries, kv).code == pqattn::status_code::shape_mismatch);
  CHECK_FALSE(cache.attend(0, 0, queries, out).ok());
  REQUIRE(cache.append(0, 0, kv, kv).ok());
  CHECK(cache.attend(0, 0, kv, out).code == pqattn::status_code::shape_mismatch);
  CHECK(cache.attend(0, 0, queries, out).ok());
  cache.reset();
  CHECK_FALSE(cache.attend(0, 0, queries, out).ok());
}

TEST_CASE("caches by name", "[tiny_lm]") {
  const tiny_lm::cache_shape shape{1, 2, 1, 64, 300, 10000.0};
  std::unique_ptr<tiny_lm::kv_cache> cache;
  for (const std::string& name : tiny_lm::demo_caches()) {
    CAPTURE(name);
    CHECK(tiny_lm::make_cache(name, shape, cache));
    CHECK(cache != nullptr);
  }
  CHECK(tiny_lm::demo_caches().front() == "exact");
  for (const char* name :
       {"", "exac", "exact ", "window", "window-", "window-8", "window-x", "window-10x", "window--9"}) {
    CAPTURE(name);
    CHECK_FALSE(tiny_lm::make_cache(name, shape, cache));
  }
}

TEST_CASE("every method of the study has a cache", "[tiny_lm]") {
  const tiny_lm::cache_shape shape{1, 2, 1, 64, 300, 10000.0};
  const std::vector<std::string> methods = tiny_lm::study_methods();
  CHECK(methods.size() == 9 + 3 * 4);
  for (const std::string& name : methods) {
    CAPTURE(name);
    std::unique_ptr<tiny_lm::kv_cache> cache;
    CHECK(tiny_lm::make_cache(name, shape, cache));
    CHECK(cache != nullptr);
  }
  std::unique_ptr<tiny_lm::kv_cache> cache;
  for (const char* name : {"pq_best-0", "pq_best-5", "pq_best-", "pq_best", "pqattn-2", "pqattn-bit", "q4_0-pim"}) {
    CAPTURE(name);
    CHECK_FALSE(tiny_lm::make_cache(name, shape, cache));
  }
}

TEST_CASE("formats behind the door: bits as they count, exact until coding starts", "[tiny_lm]") {
  const tiny_lm::cache_shape shape{2, 4, 2, 64, 200, 10000.0};
  struct expectation {
    const char* name;
    double bits;
    std::size_t batch;
    double largest_error;
  };
  for (const expectation expected : {expectation{"exact", 0.0, 1, 1e-5},
                                     {"q8_0", 8.5, 1, 0.02},
                                     {"q4_0", 4.5, 1, 0.5},
                                     {"kivi4", 5.0, 32, 0.5},
                                     {"turbo4", 4.25, 1, 0.5}}) {
    CAPTURE(expected.name);
    constexpr std::size_t start = 60;
    std::unique_ptr<tiny_lm::kv_cache> cache;
    REQUIRE(tiny_lm::make_cache(expected.name, shape, cache, start));
    tiny_lm::exact_cache exact(shape);
    constexpr unsigned seed = 5;
    CAPTURE(seed);
    std::mt19937 random(seed);
    std::vector<float> out(shape.query_width());
    std::vector<float> reference(shape.query_width());
    float largest = 0.0F;
    for (std::size_t position = 0; position < 150; ++position) {
      for (std::size_t layer = 0; layer < shape.layers; ++layer) {
        const auto keys = random_rows(random, shape.kv_width());
        const auto values = random_rows(random, shape.kv_width());
        const auto queries = random_rows(random, shape.query_width());
        REQUIRE(cache->append(layer, position, keys, values).ok());
        REQUIRE(exact.append(layer, position, keys, values).ok());
        REQUIRE(cache->attend(layer, position, queries, out).ok());
        REQUIRE(exact.attend(layer, position, queries, reference).ok());
        for (std::size_t i = 0; i < out.size(); ++i) {
          const float error = std::abs(out[i] - reference[i]);
          REQUIRE((position + 1 >= 8 + start || error == 0.0F));
          largest = std::max(largest, error);
        }
      }
    }
    CHECK(largest < static_cast<float>(expected.largest_error));
    CHECK((largest > 0.0F) == (expected.bits > 0.0));
    const tiny_lm::cache_memory memory = cache->memory();
    CHECK_THAT(memory.code_bits, WithinAbs(expected.bits, 1e-9));
    if (expected.bits > 0.0) {
      const std::size_t coded = (150 - 40) / expected.batch * expected.batch;
      CHECK(memory.bytes == static_cast<std::size_t>(expected.bits * double(shape.elements(coded)) / 8.0) +
                                2 * shape.elements(150 - coded));
    }
    cache->reset();
    CHECK(cache->memory().tokens == 0);
  }
}

TEST_CASE("methods are compared over excerpts", "[tiny_lm]") {
  tiny_lm::engine loaded;
  REQUIRE(load_engine(data, loaded));
  std::vector<std::vector<token_id>> excerpts(2);
  for (int context = 0; context < 2; ++context) {
    REQUIRE(tiny_lm::load_context(data, context, excerpts[static_cast<std::size_t>(context)]));
    excerpts[static_cast<std::size_t>(context)].resize(120);
  }
  tiny_lm::method_table table;
  REQUIRE(compare_methods(loaded, excerpts, {"exact", "q8_0", "turbo2"}, 60, table));
  REQUIRE(table.methods.size() == 3);
  CHECK(table.excerpts == 2);
  CHECK(table.targets.first == 68);
  CHECK(table.targets.last == 119);
  CHECK(table.methods[0].kl == 0.0);
  CHECK(table.methods[0].loss_change == 0.0);
  CHECK(table.methods[1].kl > 0.0);
  CHECK(table.methods[2].kl > 10.0 * table.methods[1].kl);
  CHECK_THAT(table.methods[1].loss, WithinAbs(table.methods[0].loss * (1.0 + table.methods[1].loss_change), 1e-9));
  CHECK(format_methods(table).find("turbo2") != std::string::npos);
  const auto file = std::filesystem::temp_directory_path() / "pqattn_tiny_lm_methods_test.json";
  REQUIRE(write_methods(table, file));
  std::ifstream written(file);
  const auto json = nlohmann::json::parse(written, nullptr, false);
  REQUIRE(json.is_object());
  CHECK(json["methods"][2]["name"] == "turbo2");
  CHECK(json["methods"][2]["code_bits_per_element"] == 2.25);
  std::filesystem::remove(file);
  CHECK_FALSE(compare_methods(loaded, excerpts, {"exact"}, 112, table));
}

TEST_CASE("evaluation: loss, KL and agreement by the definition", "[tiny_lm]") {
  tiny_lm::engine loaded;
  REQUIRE(load_engine(data, loaded));
  std::vector<token_id> tokens;
  REQUIRE(tiny_lm::load_context(data, 0, tokens));
  tokens.resize(60);
  const auto shape = loaded.weights.config.shape(tokens.size());

  tiny_lm::exact_cache exact(shape);
  tiny_lm::log_probabilities distributions;
  tiny_lm::evaluation reference;
  std::size_t told = 0;
  const auto progress = [&](std::size_t done, double) { told = done; };
  REQUIRE(evaluate_reference(loaded.weights, exact, tokens, progress, distributions, reference));
  CHECK(told == tokens.size());

  tiny_lm::evaluation same;
  tiny_lm::exact_cache again(shape);
  REQUIRE(evaluate_against(distributions, loaded.weights, again, tokens, {}, same));
  CHECK(same.loss == reference.loss);
  CHECK(tiny_lm::mean_over(same.divergence, same.all_targets()) == 0.0);
  CHECK(tiny_lm::mean_over(same.top1_agrees, same.all_targets()) == 1.0);

  tiny_lm::evaluation judged;
  forgetful_cache forgetful(shape);
  REQUIRE(evaluate_against(distributions, loaded.weights, forgetful, tokens, {}, judged));
  CHECK(judged.divergence[1] < 1e-5);  // the first token sees itself alone anyway
  CHECK(tiny_lm::mean_over(judged.divergence, {2, 59}) > 0.01);

  // The same from the logits, in double.
  const auto log_softmax = [](std::span<const float> logits) {
    double sum = 0.0;
    for (const float logit : logits) {
      sum += std::exp(double{logit});
    }
    std::vector<double> result;
    for (const float logit : logits) {
      result.push_back(double{logit} - std::log(sum));
    }
    return result;
  };
  exact.reset();
  tiny_lm::decoder exact_decode(loaded.weights, exact);
  tiny_lm::decoder judged_decode(loaded.weights, forgetful);
  for (std::size_t target = 1; target < tokens.size(); ++target) {
    REQUIRE(exact_decode.step(tokens[target - 1]));
    REQUIRE(judged_decode.step(tokens[target - 1]));
    const auto p = log_softmax(exact_decode.logits());
    const auto q = log_softmax(judged_decode.logits());
    double kl = 0.0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      kl += std::exp(p[i]) * (p[i] - q[i]);
    }
    const auto truth = static_cast<std::size_t>(tokens[target]);
    CHECK_THAT(reference.loss[target], WithinAbs(-p[truth], 1e-5));
    CHECK_THAT(judged.loss[target], WithinAbs(-q[truth], 1e-5));
    CHECK_THAT(judged.divergence[target], WithinAbs(kl, 1e-5));
    const bool agrees =
        std::max_element(p.begin(), p.end()) - p.begin() == std::max_element(q.begin(), q.end()) - q.begin();
    CHECK((judged.top1_agrees[target] == 1.0) == agrees);
  }
}

TEST_CASE("evaluation: bad token lists are refused", "[tiny_lm]") {
  tiny_lm::engine loaded;
  REQUIRE(load_engine(data, loaded));
  tiny_lm::exact_cache cache(loaded.weights.config.shape(8));
  tiny_lm::log_probabilities distributions;
  tiny_lm::evaluation run;
  CHECK_FALSE(evaluate_reference(loaded.weights, cache, {}, {}, distributions, run));
  CHECK_FALSE(evaluate_reference(loaded.weights, cache, std::vector<token_id>{256}, {}, distributions, run));
  CHECK_FALSE(evaluate_reference(loaded.weights, cache, std::vector<token_id>{256, 2048}, {}, distributions, run));
  CHECK_FALSE(evaluate_reference(loaded.weights, cache, std::vector<token_id>(9, 35), {}, distributions, run));
  REQUIRE(evaluate_reference(loaded.weights, cache, std::vector<token_id>{256, 35, 40}, {}, distributions, run));
  CHECK_FALSE(evaluate_against(distributions, loaded.weights, cache, std::vector<token_id>{256, 35}, {}, run));
}

TEST_CASE("report: summary.json and the columns", "[tiny_lm]") {
  tiny_lm::demo_report report;
  report.tokens = 8;
  report.elements = 1000;
  report.late = {6, 7};
  tiny_lm::evaluation run;
  run.loss = {0, 1, 2, 3, 4, 5, 6, 7};
  run.divergence = std::vector<double>(8, 0.5);
  run.top1_agrees = {1, 1, 1, 1, 0, 0, 0, 1};
  run.memory = {250, 8};
  report.settings = {{"exact", run, ""}, {"other", run, "cut \xe2\x80"}};

  const auto folder = std::filesystem::temp_directory_path() / "pqattn_tiny_lm_report_test";
  std::filesystem::remove_all(folder);
  REQUIRE(write_report(report, folder));
  std::ifstream file(folder / "summary.json");
  const auto json = nlohmann::json::parse(file, nullptr, false);
  REQUIRE(json.is_object());
  CHECK(json["exact_loss"] == 4.0);
  REQUIRE(json["settings"].size() == 2);
  const auto& other = json["settings"][1];
  CHECK(other["name"] == "other");
  CHECK(other["loss"] == 4.0);
  CHECK(other["kl"] == 0.5);
  CHECK(other["late_loss"] == 6.5);
  CHECK(other["late_top1_agreement"] == 0.5);
  CHECK(other["cache_bytes"] == 250);
  CHECK(other["bits_per_element"] == 2.0);
  CHECK(other["exact_cache_bytes"] == 2000);
  CHECK(std::filesystem::exists(folder / "settings.dat"));
  CHECK(std::filesystem::exists(folder / "loss_by_position.dat"));
  CHECK(format_table(report).find("other") != std::string::npos);
  std::filesystem::remove_all(folder);
  CHECK_FALSE(write_report(report, std::filesystem::path("/dev/null/folder")));
}
