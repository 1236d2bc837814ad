// SPDX-License-Identifier: MIT
#include "comparison.hpp"

#include "caches.hpp"
#include "files.hpp"
#include "progress.hpp"

#include <nlohmann/json.hpp>

#include <array>
#include <cmath>
#include <cstdio>
#include <memory>

namespace tiny_lm {
namespace {

constexpr std::size_t sinks = 8;

/// Sums of one method over excerpts.
struct method_sums {
  std::vector<double> loss;
  double kl = 0.0;
  double top1 = 0.0;
  double code_bits = 0.0;
  double bytes = 0.0;
  double seconds = 0.0;

  void add(const evaluation& run, target_range range) {
    loss.push_back(mean_over(run.loss, range));
    kl += mean_over(run.divergence, range);
    top1 += mean_over(run.top1_agrees, range);
    code_bits += run.memory.code_bits;
    bytes += static_cast<double>(run.memory.bytes);
    seconds += run.seconds;
  }
};

double mean(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double value : values) {
    sum += value;
  }
  return sum / static_cast<double>(values.size());
}

/// Half a 95 % interval of the mean, by the normal approximation.
double interval(const std::vector<double>& values) {
  if (values.size() < 2) {
    return 0.0;
  }
  const double center = mean(values);
  double squares = 0.0;
  for (const double value : values) {
    squares += (value - center) * (value - center);
  }
  const auto count = static_cast<double>(values.size());
  return 1.96 * std::sqrt(squares / (count - 1.0) / count);
}

method_result result_of(const std::string& name, const method_sums& sums, const method_sums& exact, double elements) {
  const auto count = static_cast<double>(sums.loss.size());
  std::vector<double> changes;
  for (std::size_t i = 0; i < sums.loss.size(); ++i) {
    changes.push_back((sums.loss[i] - exact.loss[i]) / mean(exact.loss));
  }
  method_result result;
  result.name = name;
  result.loss = mean(sums.loss);
  result.loss_change = mean(changes);
  result.change_interval = interval(changes);
  result.kl = sums.kl / count;
  result.top1_agreement = sums.top1 / count;
  result.code_bits = sums.code_bits / count;
  result.all_bits = 8.0 * sums.bytes / count / elements;
  result.cache_bytes = static_cast<std::size_t>(sums.bytes / count);
  result.seconds = sums.seconds / count;
  return result;
}

template <class... Values>
std::string print(const char* pattern, Values... values) {
  std::array<char, 512> line{};
  std::snprintf(line.data(), line.size(), pattern, values...);
  return line.data();
}

}  // namespace

outcome comparison::run(const std::string& name, evaluation& result) {
  std::unique_ptr<kv_cache> cache;
  TINY_LM_TRY(make_cache(name, loaded_.weights.config.shape(tokens_.size()), cache, coding_start_));
  progress_bar bar(name, tokens_.size());
  const auto progress = [&](std::size_t done, double mean_loss) { bar.update(done, mean_loss); };
  const bool is_reference = reference_.size() == 0;
  return is_reference ? evaluate_reference(loaded_.weights, *cache, tokens_, progress, reference_, result)
                      : evaluate_against(reference_, loaded_.weights, *cache, tokens_, progress, result);
}

outcome compare_methods(const engine& loaded, const std::vector<std::vector<token_id>>& excerpts,
                        const std::vector<std::string>& methods, std::size_t coding_start, method_table& table) {
  table = {};
  table.excerpts = excerpts.size();
  table.tokens = excerpts.front().size();
  table.coding_start = coding_start;
  table.targets = {coding_start + sinks, table.tokens - 1};
  if (table.targets.first > table.targets.last) {
    return expected_got("tokens", "more than " + std::to_string(coding_start + sinks + 1), table.tokens);
  }
  std::vector<method_sums> sums(methods.size());
  for (const std::vector<token_id>& tokens : excerpts) {
    comparison runs(loaded, tokens, coding_start);
    for (std::size_t i = 0; i < methods.size(); ++i) {
      evaluation run;
      TINY_LM_TRY(runs.run(methods[i], run).within(methods[i]));
      sums[i].add(run, table.targets);
    }
  }
  const auto elements = static_cast<double>(loaded.weights.config.shape(table.tokens).elements(table.tokens));
  for (std::size_t i = 0; i < methods.size(); ++i) {
    table.methods.push_back(result_of(methods[i], sums[i], sums.front(), elements));
  }
  return {};
}

std::string format_methods(const method_table& table) {
  std::string text = print("%-14s %9s %9s %10s | %7s %18s %9s %7s | %6s\n", "method", "code bits", "all bits", "KiB",
                           "loss", "change, %", "KL", "top-1", "s");
  for (const method_result& row : table.methods) {
    text +=
        print("%-14s %9.3f %9.3f %10.1f | %7.4f %+9.3f +- %5.3f %9.6f %6.2f%% | %6.2f\n", row.name.c_str(),
              row.code_bits, row.all_bits, static_cast<double>(row.cache_bytes) / 1024.0, row.loss,
              100.0 * row.loss_change, 100.0 * row.change_interval, row.kl, 100.0 * row.top1_agreement, row.seconds);
  }
  text += print(
      "\n%zu excerpts of %zu tokens; exact until %zu tokens behind the first 8, judged on targets %zu to %zu. Change "
      "of\n"
      "loss against exact with half a 95 %% interval over excerpts; KL(exact || method) in nats per token. The model "
      "is\n"
      "small and undertrained: these are not the results of a production model.\n",
      table.excerpts, table.tokens, table.coding_start, table.targets.first, table.targets.last);
  return text;
}

outcome write_methods(const method_table& table, const std::filesystem::path& file) {
  nlohmann::ordered_json root;
  root["model"] = "tiny_lm, 2.9 M parameters, small and undertrained: not the results of a production model";
  root["excerpts"] = table.excerpts;
  root["tokens"] = table.tokens;
  root["coding_start"] = table.coding_start;
  root["targets"] = {table.targets.first, table.targets.last};
  root["methods"] = nlohmann::ordered_json::array();
  for (const method_result& row : table.methods) {
    root["methods"].push_back({{"name", row.name},
                               {"loss", row.loss},
                               {"loss_change", row.loss_change},
                               {"loss_change_interval", row.change_interval},
                               {"kl", row.kl},
                               {"top1_agreement", row.top1_agreement},
                               {"code_bits_per_element", row.code_bits},
                               {"bits_per_element", row.all_bits},
                               {"cache_bytes", row.cache_bytes},
                               {"seconds", row.seconds}});
  }
  return write_text(file, root.dump(2) + "\n");
}

}  // namespace tiny_lm
