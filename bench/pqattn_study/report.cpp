// SPDX-License-Identifier: MIT
#include "report.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdarg>
#include <cstdio>

namespace pqattn_study {
namespace {

using pqattn::attention_error;

/// printf into a string.
[[gnu::format(printf, 2, 3)]] void append(std::string& text, const char* format, ...) {
  char line[256];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof(line), format, arguments);
  va_end(arguments);
  text += line;
}

const char* name_of(coded_sides sides) {
  return sides == coded_sides::both ? "both" : sides == coded_sides::keys ? "keys" : "values";
}

template <class Figure>
double worst(const study_result& result, Figure figure) {
  double largest = 0.0;
  for (const query_head_result& head : result.heads) {
    largest = std::max(largest, figure(head.error));
  }
  return largest;
}

nlohmann::ordered_json side_json(const side_result& side, const pqattn::geometry& shape) {
  nlohmann::ordered_json json;
  if (shape.dim != 0) {
    json["subvectors"] = shape.subvectors;
    json["bits"] = shape.code_bits();
    json["stages"] = shape.stages;
  }
  const double elements = side.coded_elements == 0 ? 1.0 : static_cast<double>(side.coded_elements);
  json["bits_per_element_codes"] = side.code_bits / elements;
  json["codebook_bytes"] = side.codebook_bits / 8.0;
  json["transform_bytes"] = side.transform_bits / 8.0;
  json["codebook_mse"] = side.mse();
  json["nmse"] = side.error.normalized();
  return json;
}

nlohmann::ordered_json error_json(const attention_error& error) {
  return {{"output_nmse", error.output_nmse()}, {"output_nmse_pooled", error.output_nmse_pooled()},
          {"attention_kl", error.kl()},         {"top1_agreement", error.top_1_agreement()},
          {"logit_rmse", error.logit_rmse()},   {"sink_mass", error.sink_mass()},
          {"coded_mass", error.coded_mass()}};
}

}  // namespace

std::string as_json(const study_result& result, const options& chosen) {
  nlohmann::ordered_json json;
  json["method"] = result.method;
  json.update(error_json(result.total));
  json["worst_head_output_nmse"] = worst(result, [](const attention_error& e) { return e.output_nmse(); });
  json["worst_head_attention_kl"] = worst(result, [](const attention_error& e) { return e.kl(); });
  json["bits_per_element"] = result.bits_per_element();
  json["bits_per_element_codes"] = result.bits_per_element_codes();
  json["codebook_mse"] = result.codebook_mse();
  json["tokens"] = result.tokens;
  json["train_tokens"] = result.train_tokens;
  json["query_rows"] = result.total.rows;
  json["exact_tokens"] = result.exact_tokens;
  json["kv_heads"] = result.kv_heads;
  json["q_heads"] = result.query_heads;
  json["key_dim"] = result.key_dim;
  json["value_dim"] = result.value_dim;
  json["code"] = name_of(chosen.sides);
  json["rope"] = result.rope;
  if (result.rope != "none") {
    json["rope_theta"] = result.rope_theta;
  }
  if (result.key_shape.dim != 0) {
    json["weights"] = result.weights;
    json["codebooks"] = result.codebooks;
    json["iterations"] = result.iterations;
  }
  json["seed"] = chosen.seed;
  json["keys"] = side_json(result.keys, result.key_shape);
  json["values"] = side_json(result.values, result.value_shape);
  json["code_seconds"] = result.code_seconds;
  json["judge_seconds"] = result.judge_seconds;
  json["key_norm_spread"] = result.key_norm_spread;
  json["heads"] = nlohmann::ordered_json::array();
  for (const query_head_result& head : result.heads) {
    nlohmann::ordered_json entry = {{"q_head", json["heads"].size()}, {"kv_head", head.kv_head}};
    entry.update(error_json(head.error));
    json["heads"].push_back(entry);
  }
  return json.dump(2) + "\n";
}

std::string as_table(const study_result& result, const options& chosen) {
  std::string text;
  append(text, "method %s, coding %s, rope %s\n", result.method.c_str(), name_of(chosen.sides), result.rope.c_str());
  append(text, "%zu tokens, %zu KV heads, %zu query heads, d %zu / %zu\n", result.tokens, result.kv_heads,
         result.query_heads, result.key_dim, result.value_dim);
  if (result.key_shape.dim != 0) {
    append(text, "keys %u x %u bits x %u, values %u x %u bits x %u, weights %s, codebooks %s\n",
           result.key_shape.subvectors, result.key_shape.code_bits(), result.key_shape.stages,
           result.value_shape.subvectors, result.value_shape.code_bits(), result.value_shape.stages,
           result.weights.c_str(), result.codebooks.c_str());
  }
  append(text, "trained on %zu tokens, judged on %zu query rows, %zu tokens exact\n\n", result.train_tokens,
         static_cast<std::size_t>(result.total.rows), result.exact_tokens);
  append(text, "bits per element, codes only   %10.4f\n", result.bits_per_element_codes());
  append(text, "bits per element, everything   %10.4f\n", result.bits_per_element());
  append(text, "codebook MSE                   %10.3e   keys %.3e, values %.3e\n\n", result.codebook_mse(),
         result.keys.mse(), result.values.mse());
  append(text, "%-10s %12s %12s %12s %8s %11s %10s %11s\n", "head", "output NMSE", "NMSE pooled", "KL (nats)", "top-1",
         "logit RMSE", "sink mass", "coded mass");
  const auto row = [&](const char* name, const attention_error& error) {
    append(text, "%-10s %12.3e %12.3e %12.3e %8.4f %11.3e %10.4f %11.4f\n", name, error.output_nmse(),
           error.output_nmse_pooled(), error.kl(), error.top_1_agreement(), error.logit_rmse(), error.sink_mass(),
           error.coded_mass());
  };
  for (std::size_t i = 0; i < result.heads.size(); ++i) {
    row((std::to_string(i) + " (kv " + std::to_string(result.heads[i].kv_head) + ")").c_str(), result.heads[i].error);
  }
  row("all", result.total);
  append(text, "\ncoded in %.2f s, judged in %.2f s\n", result.code_seconds, result.judge_seconds);
  return text;
}

std::string as_table(const suggestion& found) {
  std::string text;
  append(text, "%-18s %-22s %8s %12s %14s %14s\n", "", "coded as", "bits", "output NMSE", "a step down", "a step up");
  for (const pqattn::policy_reason& reason : found.reasons) {
    const pqattn::head_policy& rule = found.policy[reason.head];
    const pqattn::side_policy& side = reason.keys ? rule.keys : rule.values;
    char name[64];
    char how[64];
    std::snprintf(name, sizeof(name), "layer %u kv %u %s", rule.layer, rule.kv_head, reason.keys ? "K" : "V");
    if (side.exact) {
      std::snprintf(how, sizeof(how), "exact");
    } else {
      std::snprintf(how, sizeof(how), "%u x %u bits x %u", side.subvectors, side.bits, side.stages);
    }
    append(text, "%-18s %-22s %8.3f %12.3e %14.3e %14.3e\n", name, how, reason.bits, reason.error, reason.error_below,
           reason.error_above);
  }
  append(text,
         "\noutput NMSE: of this side alone, on calibration queries; a step: the next cheaper and dearer choice on\n"
         "this side's convex hull (0: there is none)\n");
  append(text, "code bits per element %.3f, expected output NMSE %.3e; one shape for all heads at these bits %.3e\n",
         found.summary.code_bits, found.summary.expected_error, found.summary.uniform_error);
  return text;
}

}  // namespace pqattn_study
