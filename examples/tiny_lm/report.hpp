// SPDX-License-Identifier: MIT
// What the demo shows and writes: a table, summary.json, and columns of numbers for the plots.
#pragma once

#include "evaluate.hpp"
#include "outcome.hpp"

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace tiny_lm {

/// One cache's run.
struct setting_result {
  std::string name;
  evaluation run;
  std::string sample;  ///< the text it goes on with, empty if none was asked for
};

/// Everything the demo measured. settings[0] is the exact cache.
struct demo_report {
  int context = 0;
  std::size_t tokens = 0;
  std::size_t elements = 0;  ///< numbers of K and V that the tokens put into a cache
  target_range late;         ///< the last quarter, after every cache has gone over to codes
  std::vector<setting_result> settings;
};

/// Cost and effect of one setting over all targets and over the late ones.
struct setting_summary {
  std::string name;
  double loss = 0.0;            ///< nats per token
  double kl = 0.0;              ///< KL(exact || setting), nats per token
  double top1_agreement = 0.0;  ///< share of targets
  double late_loss = 0.0;
  double late_kl = 0.0;
  double late_top1_agreement = 0.0;
  double bits_per_element = 0.0;  ///< everything the cache holds, over the numbers it stands for
  std::size_t cache_bytes = 0;
  std::size_t exact_cache_bytes = 0;  ///< the same numbers at 16 bits, what engines keep today
  double seconds = 0.0;
};

[[nodiscard]] setting_summary summarize(const demo_report& report, const setting_result& setting);

/// The table, with what its columns mean.
[[nodiscard]] std::string format_table(const demo_report& report);

/// summary.json, settings.dat (one line per setting) and loss_by_position.dat (one column per setting) into `folder`,
/// which is made if need be.
outcome write_report(const demo_report& report, const std::filesystem::path& folder);

}  // namespace tiny_lm
