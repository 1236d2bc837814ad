// SPDX-License-Identifier: MIT
// Runs a program of this build the way its users do; the test skips where programs are not built.
#pragma once

#include <sys/wait.h>

#include <catch2/catch_test_macros.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

namespace pqattn_test {

/// Exit code (-1 when it did not exit) and everything printed, errors included.
struct program_outcome {
  int code = -1;
  std::string text;
};

/// Where a program of this build is; the test skips where it is not built.
inline std::string program_path(const std::string& name) {
  const char* folder = std::getenv("PQATTN_PROGRAM_DIR");
#ifdef PQATTN_PROGRAM_DIR
  folder = folder != nullptr ? folder : PQATTN_PROGRAM_DIR;
#endif
  const std::string path = std::string(folder == nullptr ? "" : folder) + "/" + name;
  if (!std::filesystem::exists(path)) {
    SKIP(name << " has not been built");
  }
  return path;
}

/// `arguments` is a piece of a shell command line.
inline program_outcome run_program(const std::string& name, const std::string& arguments) {
  const std::string path = program_path(name);
  program_outcome outcome;
  FILE* output = popen(("\"" + path + "\" " + arguments + " 2>&1").c_str(), "r");
  REQUIRE(output != nullptr);
  char buffer[512];
  for (std::size_t count = 0; (count = std::fread(buffer, 1, sizeof buffer, output)) != 0;) {
    outcome.text.append(buffer, count);
  }
  const int status = pclose(output);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return outcome;
}

}  // namespace pqattn_test
