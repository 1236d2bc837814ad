// SPDX-License-Identifier: MIT
// Command line of pqattn-study.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace pqattn_study {

/// What is coded; the other side stays exact.
enum class coded_sides { keys, values, both };

struct options {
  std::string keys;
  std::string values;
  std::string queries;
  std::optional<std::size_t> kv_heads;
  std::optional<std::size_t> subvectors;
  std::size_t bits = 8;
  std::optional<std::size_t> value_subvectors;
  std::optional<std::size_t> value_bits;
  std::optional<std::size_t> stages;
  std::optional<std::size_t> value_stages;
  std::string method = "pq";
  std::optional<double> target_bits;
  std::optional<double> target_all_bits;
  std::optional<std::size_t> train_tokens;
  std::size_t sinks = 8;
  std::size_t recent = 32;
  std::optional<std::string> weights;     ///< "attention" or "none"; the default depends on the method
  std::optional<double> weight_exponent;  ///< the defaults depend on the method
  std::optional<double> weight_floor;
  std::optional<std::string> rope;  ///< the default depends on the method
  double rope_theta = 10000.0;
  std::uint64_t seed = 1;
  std::optional<std::size_t> iterations;
  std::optional<std::string> codebooks;  ///< "f32", "f16" or "i8"; the default depends on the method
  std::size_t windows = 1;
  std::string calibration_keys;
  std::string calibration_values;
  std::optional<std::string> metric;  ///< "sampled", "exact" or "none"; the default is the preset's
  std::size_t metric_rows = 256;
  bool block_metric = false;
  std::size_t restarts = 1;
  std::size_t refine = 0;  ///< Lloyd iterations by which each head refines a shared codebook
  std::size_t scale_bits = 0;
  std::string value_basis = "i8";
  std::size_t joint_passes = 4;
  std::size_t sweeps = 2;
  std::size_t beam = 4;
  bool smooth = true;
  std::optional<double> outlier_share;        ///< the default is the preset's
  std::optional<std::string> value_rotation;  ///< "pca" or "none"; the default is the preset's
  std::string channel_order = "pairs";
  coded_sides sides = coded_sides::both;
  std::string policy;     ///< JSON file to follow
  std::string suggest;    ///< JSON file to write
  std::size_t layer = 0;  ///< what the policy calls this layer
  std::optional<double> target_error;
  bool core_speed = false;
  bool json = false;

  [[nodiscard]] bool codes_keys() const noexcept { return sides != coded_sides::values; }
  [[nodiscard]] bool codes_values() const noexcept { return sides != coded_sides::keys; }
};

/// Names --method accepts.
[[nodiscard]] std::vector<std::string> method_names();

/// What the command line asks for: run a study, or end now with this exit code (--help, --version, wrong usage; the
/// text has been printed).
struct parsed_options {
  options chosen;
  bool run = false;
  int exit_code = 0;
};

[[nodiscard]] parsed_options parse_options(int argc, const char* const* argv);

}  // namespace pqattn_study
