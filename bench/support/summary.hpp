// SPDX-License-Identifier: MIT
// The set of benches that backs the README, run in rounds: every round runs each bench once, those that are compared
// one after the other, so that whatever else the machine does hits both sides alike. Figures are medians over the
// rounds, ratios medians of the ratios of each round.
#pragma once

#include <string>

namespace bench {

/// Runs the set for about `minutes`, at least three rounds, and writes into `folder`: summary.json (the figures),
/// raw.json (every run, Google Benchmark's format), medians.csv, by_length.dat (for the plot) and table.md. Prints
/// progress to stderr and the table to stdout. Returns the exit status: not 0 when a figure of the set could not be
/// measured.
int write_summary(const std::string& folder, double minutes);

}  // namespace bench
