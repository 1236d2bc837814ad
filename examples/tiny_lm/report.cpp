// SPDX-License-Identifier: MIT
#include "report.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstdio>
#include <system_error>

namespace tiny_lm {
namespace {

constexpr double exact_bits = 16.0;        // what an element of an uncompressed cache costs in today's engines
constexpr std::size_t block_targets = 64;  // loss by position is averaged over blocks: single tokens are noise

template <class... Values>
std::string print(const char* pattern, Values... values) {
  std::array<char, 512> line{};
  std::snprintf(line.data(), line.size(), pattern, values...);
  return line.data();
}

nlohmann::ordered_json range_json(target_range range) {
  return {range.first, range.last};
}

nlohmann::ordered_json setting_json(const setting_summary& summary, const std::string& sample) {
  nlohmann::ordered_json json = {
      {"name", summary.name},
      {"loss", summary.loss},
      {"kl", summary.kl},
      {"top1_agreement", summary.top1_agreement},
      {"late_loss", summary.late_loss},
      {"late_kl", summary.late_kl},
      {"late_top1_agreement", summary.late_top1_agreement},
      {"bits_per_element", summary.bits_per_element},
      {"cache_bytes", summary.cache_bytes},
      {"exact_cache_bytes", summary.exact_cache_bytes},
      {"seconds", summary.seconds},
  };
  if (!sample.empty()) {
    json["sample"] = sample;
  }
  return json;
}

/// Samples may end inside a UTF-8 character; such bytes are replaced.
std::string to_json_text(const demo_report& report) {
  nlohmann::ordered_json root;
  root["model"] = "tiny_lm, 2.9 M parameters, small and undertrained: not the results of a production model";
  root["context"] = report.context;
  root["tokens"] = report.tokens;
  root["targets"] = range_json(report.settings.front().run.all_targets());
  root["late_targets"] = range_json(report.late);
  root["exact_loss"] = summarize(report, report.settings.front()).loss;
  root["exact_bits_per_element"] = exact_bits;
  root["settings"] = nlohmann::ordered_json::array();
  for (const setting_result& setting : report.settings) {
    root["settings"].push_back(setting_json(summarize(report, setting), setting.sample));
  }
  return root.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string settings_columns(const demo_report& report) {
  std::string text = "# name bits_per_element loss kl top1_agreement late_loss late_kl late_top1_agreement\n";
  for (const setting_result& setting : report.settings) {
    const setting_summary row = summarize(report, setting);
    text += print("%s %.6g %.6g %.6g %.6g %.6g %.6g %.6g\n", row.name.c_str(), row.bits_per_element, row.loss, row.kl,
                  row.top1_agreement, row.late_loss, row.late_kl, row.late_top1_agreement);
  }
  return text;
}

std::string position_columns(const demo_report& report) {
  std::string text = "target";
  for (const setting_result& setting : report.settings) {
    text += " " + setting.name;
  }
  text += "\n";
  for (std::size_t first = 1; first < report.tokens; first += block_targets) {
    const target_range block{first, std::min(first + block_targets, report.tokens) - 1};
    text += std::to_string(block.last);
    for (const setting_result& setting : report.settings) {
      text += print(" %.5f", mean_over(setting.run.loss, block));
    }
    text += "\n";
  }
  return text;
}

}  // namespace

setting_summary summarize(const demo_report& report, const setting_result& setting) {
  const evaluation& run = setting.run;
  const target_range all = run.all_targets();
  const auto elements = static_cast<double>(report.elements);
  setting_summary summary;
  summary.name = setting.name;
  summary.loss = mean_over(run.loss, all);
  summary.kl = mean_over(run.divergence, all);
  summary.top1_agreement = mean_over(run.top1_agrees, all);
  summary.late_loss = mean_over(run.loss, report.late);
  summary.late_kl = mean_over(run.divergence, report.late);
  summary.late_top1_agreement = mean_over(run.top1_agrees, report.late);
  summary.cache_bytes = run.memory.bytes;
  summary.bits_per_element = 8.0 * static_cast<double>(run.memory.bytes) / elements;
  summary.exact_cache_bytes = static_cast<std::size_t>(elements * exact_bits / 8.0);
  summary.seconds = run.seconds;
  return summary;
}

std::string format_table(const demo_report& report) {
  std::string text = print("%-20s %9s %9s %8s | %7s %8s %6s | %7s %8s %6s | %6s\n", "cache", "bits/elem", "KiB",
                           "of f16", "loss", "KL", "top-1", "loss", "KL", "top-1", "s");
  for (const setting_result& setting : report.settings) {
    const setting_summary row = summarize(report, setting);
    text += print("%-20s %9.3f %9.1f %7.1f%% | %7.4f %8.5f %5.1f%% | %7.4f %8.5f %5.1f%% | %6.2f\n", row.name.c_str(),
                  row.bits_per_element, static_cast<double>(row.cache_bytes) / 1024.0,
                  100.0 * row.bits_per_element / exact_bits, row.loss, row.kl, 100.0 * row.top1_agreement,
                  row.late_loss, row.late_kl, 100.0 * row.late_top1_agreement, row.seconds);
  }
  const target_range all = report.settings.front().run.all_targets();
  text += print(
      "\nContext %d, %zu tokens. First group: targets %zu to %zu; second: %zu to %zu. Loss and KL in nats per\n"
      "token, KL(exact || cache); bits per element with everything the cache holds. The model is small and\n"
      "undertrained: these are not the results of a production model.\n",
      report.context, report.tokens, all.first, all.last, report.late.first, report.late.last);
  return text;
}

outcome write_report(const demo_report& report, const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    return outcome::failure(folder.string() + ": cannot make the folder: " + error.message());
  }
  TINY_LM_TRY(write_text(folder / "summary.json", to_json_text(report)));
  TINY_LM_TRY(write_text(folder / "settings.dat", settings_columns(report)));
  return write_text(folder / "loss_by_position.dat", position_columns(report));
}

}  // namespace tiny_lm
