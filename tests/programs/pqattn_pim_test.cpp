// SPDX-License-Identifier: MIT
// pqattn-pim as its users meet it: arguments, files, exit codes.
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace {

const std::filesystem::path program = std::filesystem::path(PQATTN_PROGRAM_DIR) / "pqattn-pim";

struct answer {
  int exit_code = -1;
  std::string text;  ///< standard output and standard error
};

answer run(const std::string& arguments) {
  answer a;
  FILE* pipe = popen((program.string() + " " + arguments + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  char part[4096];
  for (std::size_t n = 0; (n = std::fread(part, 1, sizeof part, pipe)) > 0;) {
    a.text.append(part, n);
  }
  const int state = pclose(pipe);
  a.exit_code = WIFEXITED(state) ? WEXITSTATUS(state) : -1;
  return a;
}

/// A file of the given text, removed at the end.
class text_file {
 public:
  explicit text_file(const std::string& text)
      : path_(std::filesystem::temp_directory_path() / ("pqattn_pim_test_" + std::to_string(::getpid()))) {
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~text_file() { std::filesystem::remove(path_); }
  text_file(const text_file&) = delete;
  text_file& operator=(const text_file&) = delete;
  [[nodiscard]] std::string name() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

void need_program() {
  if (!std::filesystem::exists(program)) {
    SKIP("pqattn-pim was not built");
  }
}

}  // namespace

TEST_CASE("pqattn-pim trace: figures of a command list, and wrong lines by number", "[pqattn_pim]") {
  need_program();
  {
    const text_file commands("MAC 0 0 32\nMAC 1 0 32\nSYNC\n");
    const answer a = run("trace --device hbm3_attacc --commands " + commands.name() + " --json --no-refresh");
    REQUIRE(a.exit_code == 0);
    const auto report = nlohmann::json::parse(a.text);
    CHECK(report["cycles"] == 19 + 31 * 6 + 8 + 19 + 19 + 31 * 6 + 1);
    CHECK(report["counters"]["banks"]["mac_columns"] == 64 * 64);
    CHECK(report["counters"]["banks"]["act_count"] == 2 * 64);
  }
  {
    const text_file commands("MAC 0 0 32\n\nMAC 0 zero\n");
    const answer a = run("trace --commands " + commands.name());
    CHECK(a.exit_code == 2);
    CHECK(a.text.find(commands.name() + ":3: MAC has \"ZERO\"") != std::string::npos);
  }
  CHECK(run("trace --commands /no/such/file").exit_code == 2);
  CHECK(run("trace --device nothing --commands /dev/null").exit_code == 2);
  CHECK(run("trace").exit_code == 2);
  CHECK(run("dance").exit_code == 2);
  const answer help = run("trace --help");
  CHECK(help.exit_code == 0);
  for (const char* word : {"ACT bank row", "LUT row n", "WAIT", "PHASE name", "--no-refresh"}) {
    CAPTURE(word);
    CHECK(help.text.find(word) != std::string::npos);
  }
}

TEST_CASE("pqattn-pim check: a malformed file is an error, an unknown workload is not", "[pqattn_pim]") {
  need_program();
  for (const char* text : {"", "{", "[]", "{\"devices\": {}}", "{\"devices\": [], \"cases\": []}", "\xff\xfe"}) {
    const text_file file(text);
    const answer a = run("check " + file.name());
    CAPTURE(text, a.text);
    CHECK(a.exit_code == 2);
    CHECK(a.text.find("pqattn-pim: ") == 0);
  }
  const text_file file(R"({"devices": {}, "cases": [{"id": "x", "device": "d", "workload": {"kind": "stream"}}]})");
  const answer a = run("check " + file.name() + " --json");
  REQUIRE(a.exit_code == 0);
  const auto report = nlohmann::json::parse(a.text);
  CHECK(report["cases"][0]["status"] == "unsupported");
  CHECK(report["cases"][0]["cycles"].is_null());
}

TEST_CASE("pqattn-pim devices: every preset can be printed and read again", "[pqattn_pim]") {
  need_program();
  const answer list = run("devices");
  CHECK(list.exit_code == 0);
  for (const char* name : {"hbm3_attacc", "hbm3_attacc_npc", "hbm2_pim_samsung", "gddr6_aim", "hbm3_6400",
                           "hbm2_dramsim3", "lpddr5_6400", "upmem_ddr4"}) {
    CAPTURE(name);
    CHECK(list.text.find(name) != std::string::npos);
    const answer printed = run(std::string("devices ") + name);
    REQUIRE(printed.exit_code == 0);
    const text_file file(printed.text);
    CHECK(run("devices " + file.name()).text == printed.text);
  }
}
