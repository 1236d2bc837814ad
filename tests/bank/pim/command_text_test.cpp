// SPDX-License-Identifier: MIT
#include "bench/pqattn_pim/command_text.hpp"

#include <string>

#include <catch2/catch_test_macros.hpp>

#include "bench/pqattn_pim/trace_report.hpp"
#include "random_devices.hpp"

namespace pim = pqattn::pim;

namespace {

std::string refusal(const std::string& text) {
  pim::walker w;
  REQUIRE(w.configure(pim::hbm3_attacc()).ok());
  const auto error = pqattn_pim::command_reader(w).serve_all(text);
  return error ? std::to_string(error->line) + ": " + error->message : "";
}

}  // namespace

TEST_CASE("every command of the format is read", "[pim][trace]") {
  pim::walker w;
  REQUIRE(w.configure(pim::hbm3_attacc(), {.refresh = false}).ok());
  const std::string text =
      "# a comment\n\n"
      "  phase broadcast\nWRGB 8   # eight columns\nPHASE score\n"
      "ACT 3 1\nPRE 3\nact_ab 5\nPRE_AB\nACT_AB 6 even\nPRE_AB even\n"
      "RD 0 1 2\nRD 0 1 2 3\nWR 0 1 2 3\nHOST_RD 1 1 1\nHOST_WR 1 1 1 2\r\n"
      "MAC 7 0\nMAC 7 0 32\nMAC 7 1 odd\nMAC 7 0 4 all\nLUT 9 100\nLUT 9 100 even\n"
      "MV_OUT 4\nMV_IN\nSFM 128\nREF\nMODE\nWAIT\nFENCE\nCHANNEL 63\nMAC 1 0\nSYNC";
  const auto error = pqattn_pim::command_reader(w).serve_all(text);
  CAPTURE(error ? error->message : "");
  REQUIRE_FALSE(error);
  const pim::totals t = w.total();
  CHECK(t.bank.rd_columns == 5);
  CHECK(t.bank.wr_columns == 5);
  CHECK(t.bank.mac_columns == 64 * (1 + 32 + 4) + 32 * 1 + 64);
  CHECK(t.bank.lut_lookups == 64 * 100 + 32 * 100);
  CHECK(t.channel.softmax_elements == 128);
  CHECK(t.channel.ref_count == 1);
  CHECK(t.channel.host_syncs == 1);
  CHECK(w.channel(63).bank(0).mac_columns == 1);
  CHECK(w.total(pim::phase::broadcast).channel.buffer_write_bytes == 8 * 32);
  CHECK(w.total(pim::phase::transfer) == pim::totals{});
}

TEST_CASE("rows open and close by themselves", "[pim][trace]") {
  const auto cycles = [](const char* text) {
    pim::walker w;
    REQUIRE(w.configure(pim::hbm3_attacc(), {.refresh = false}).ok());
    REQUIRE_FALSE(pqattn_pim::command_reader(w).serve_all(text));
    return w.finish_cycle();
  };
  CHECK(cycles("RD 2 1 0\nRD 2 4 0") == cycles("ACT 2 1\nRD 2 1 0\nPRE 2\nACT 2 4\nRD 2 4 0"));
  CHECK(cycles("MAC 1 0 8\nMAC 2 0 8") == cycles("ACT_AB 1\nMAC 1 0 8\nPRE_AB\nACT_AB 2\nMAC 2 0 8"));
  CHECK(cycles("RD 2 1 0\nWAIT\nRD 2 1 1") > cycles("RD 2 1 0\nRD 2 1 1"));
}

TEST_CASE("a wrong line is named", "[pim][trace]") {
  CHECK(refusal("RD 0 0 0\nJUMP 3") == "2: \"JUMP\" is not a command");
  CHECK(refusal("RD 0 0") == "1: RD wants a column");
  CHECK(refusal("RD") == "1: RD wants a bank");
  CHECK(refusal("RD 0 0 0 1 1") == "1: RD has more words than it takes");
  CHECK(refusal("RD 0 0 0 1 1 1 1 1 1 1 1 1 1") == "1: RD has more words than it takes");
  CHECK(refusal("LUT 3") == "1: LUT wants a count");
  CHECK(refusal("RD x 0 0") == "1: RD has \"X\" where a number is due");
  CHECK(refusal("RD -1 0 0") == "1: RD has \"-1\" where a number is due");
  CHECK(refusal("MAC 0 0 4 some") == "1: MAC has \"SOME\" where all, even, odd or S0, S1 ... is due");
  CHECK(refusal("MAC 0 0 4 S") == "1: MAC has \"S\" where all, even, odd or S0, S1 ... is due");
  CHECK(refusal("MAC 0 0 4 s1").find("command.bank") != std::string::npos);  // units of one bank each
  CHECK(refusal("MAC 0 0 4 s0").empty());
  CHECK(refusal("RD 99999999999 0 0") == "1: RD has a number that is too large");
  CHECK(refusal("RD 9999999999999999999999 0 0").find("number is due") != std::string::npos);
  CHECK(refusal("RD 64 0 0").find("command.bank") != std::string::npos);
  CHECK(refusal("MAC 0 31 2").find("command.count") != std::string::npos);
  CHECK(refusal("CHANNEL 64").find("below 64") != std::string::npos);
  CHECK(refusal("PHASE dinner").find("PHASE wants one of") != std::string::npos);
}

TEST_CASE("random bytes and random words never do harm", "[pim][trace]") {
  pim_test::random_source random(77);
  pim::walker w;
  REQUIRE(w.configure(pim::gddr6_aim()).ok());
  for (int i = 0; i < 3000; ++i) {
    std::string text;
    for (std::int64_t k = random.from(0, 200); k > 0; --k) {
      text += static_cast<char>(random.from(0, 255));
    }
    static_cast<void>(pqattn_pim::command_reader(w).serve_all(text));
  }
  const char* words[] = {"ACT",  "PRE",        "RD",    "WR",    "MAC",     "LUT",  "WRGB", "MV_IN", "SFM", "REF",
                         "WAIT", "0",          "1",     "15",    "63",      "all",  "odd",  "even",  "-3",  "#",
                         "\n",   "4294967296", "PHASE", "score", "CHANNEL", "MODE", "SYNC", "FENCE"};
  std::int64_t served = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text;
    for (std::int64_t k = random.from(1, 12); k > 0; --k) {
      text += std::string(words[random.from(0, std::ssize(words) - 1)]) + " ";
    }
    served += pqattn_pim::command_reader(w).serve_all(text) ? 0 : 1;
  }
  CHECK(served > 0);
  CHECK(w.finish_cycle() > 0);
  CHECK(w.total().channel.cycles >= w.finish_cycle());
}

TEST_CASE("reports hold the figures of the walker", "[pim][trace]") {
  pim::walker w;
  REQUIRE(w.configure(pim::hbm3_attacc()).ok());
  REQUIRE_FALSE(pqattn_pim::command_reader(w).serve_all("PHASE score\nMAC 1 0 32\nPHASE value\nMAC 2 0 32\n"));
  const auto report = pqattn_pim::trace_json(w, true);
  CHECK(report["cycles"] == w.finish_cycle());
  CHECK(report["counters"]["banks"]["mac_columns"] == 64 * 64);
  CHECK(report["phases"]["score"]["banks"]["mac_columns"] == 64 * 32);
  CHECK(report["energy"]["total_pj"] == w.energy().total_pj());
  const std::string text = pqattn_pim::trace_text(w, true);
  CHECK(text.find("cycles " + std::to_string(w.finish_cycle())) != std::string::npos);
  CHECK(text.find("mac_columns") != std::string::npos);
}
