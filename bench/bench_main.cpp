// SPDX-License-Identifier: MIT
// pqattn_bench: every Google Benchmark family of this folder, or, with --summary=<folder> [--minutes=<m>] [--quick],
// the set that backs the README, reduced to summary.json.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "support/memory.hpp"
#include "support/summary.hpp"

int main(int argc, char** argv) {
  std::string folder;
  double minutes = 4.0;
  int kept = 1;
  char least_time[] = "--benchmark_min_time=0.08";
  char least_time_quick[] = "--benchmark_min_time=0.001";
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--summary=", 10) == 0) {
      folder = argv[i] + 10;
    } else if (std::strncmp(argv[i], "--minutes=", 10) == 0) {
      minutes = std::atof(argv[i] + 10);
    } else if (std::strcmp(argv[i], "--quick") == 0) {
      bench::settings::current().quick = true;
    } else {
      argv[kept++] = argv[i];
    }
  }
  std::vector<char*> arguments(argv, argv + kept);
  if (!folder.empty()) {
    arguments.push_back(bench::settings::current().quick ? least_time_quick : least_time);
  }
  int count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) {
    return 2;
  }
  if (!folder.empty()) {
    return bench::write_summary(folder, minutes);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
