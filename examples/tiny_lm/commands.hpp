// SPDX-License-Identifier: MIT
// The three things the program does, apart from reading its command line.
#pragma once

#include "engine.hpp"
#include "evaluate.hpp"
#include "outcome.hpp"

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

namespace tiny_lm {

struct demo_options {
  std::filesystem::path data;
  std::filesystem::path output;
  int context = 0;
  std::vector<std::string> caches;  ///< after the exact one, which always runs first
  std::size_t sample_tokens = 0;    ///< each cache goes on with the first half of the context by this many tokens
};

struct generate_options {
  std::filesystem::path data;
  std::string prompt;
  std::string cache = "exact";
  std::size_t tokens = 64;
  sampling choice;
};

struct evaluate_options {
  std::filesystem::path data;
  std::filesystem::path tokens;  ///< a .npy file of ids; empty takes `text` or the built-in context
  std::filesystem::path text;    ///< a text file, cut at the model's context
  int context = 0;
  std::size_t length = 0;  ///< tokens of a run; 0, or more than there are: the model's context
  std::string cache = "exact";
  std::vector<std::string> methods;  ///< a table of these instead, "all" for every method of the accuracy study
  std::size_t excerpts = 4;          ///< of the text, for the table
  std::size_t coding_start = 0;      ///< 0: 512 for one cache, three quarters of the length for the table
  std::filesystem::path json;        ///< where the table goes besides
  target_range targets{0, 0};        ///< 0, 0: all
};

/// Runs every cache over one context, prints the table, writes the report.
outcome run_demo(const demo_options& options);

/// Prints the prompt and what the model goes on with.
outcome run_generate(const generate_options& options);

/// Prints loss, KL and top-1 agreement of one cache over one text, or of several methods over several excerpts.
outcome run_evaluate(const evaluate_options& options);

}  // namespace tiny_lm
