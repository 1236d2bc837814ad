// SPDX-License-Identifier: MIT
#include "bench/pqattn_pim/check.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <catch2/catch_test_macros.hpp>

#include "random_devices.hpp"

namespace pim = pqattn::pim;

#ifndef PQATTN_SHARED_DIR
#define PQATTN_SHARED_DIR ""
#endif

namespace {

using pqattn_pim::json;

/// The reference file's text, empty when there is none.
std::string reference_text() {
  const char* from_environment = std::getenv("PQATTN_SHARED_DIR");
  const std::string folder = from_environment != nullptr ? from_environment : PQATTN_SHARED_DIR;
  std::ifstream file(folder + "/data/pim/reference.json", std::ios::binary);
  return folder.empty() || !file ? "" : std::string(std::istreambuf_iterator<char>(file), {});
}

/// Largest error in percent that a kind of case may have.
double allowed(const pqattn_pim::checked_case& c) {
  if (c.source == pqattn_pim::simulator::attacc) {
    return 4.0;
  }
  if (c.source == pqattn_pim::simulator::aim) {
    return 2.0;
  }
  if (c.kind == "allbank") {
    return 5.0;
  }
  return c.refresh || c.kind == "gemv" ? 1.5 : 0.0;
}

}  // namespace

TEST_CASE("simulators' figures are met", "[pim][check]") {
  const std::string text = reference_text();
  if (text.empty()) {
    SKIP("no reference figures: set PQATTN_SHARED_DIR to a folder with data/pim/reference.json");
  }
  std::string problem;
  const auto checked = pqattn_pim::check_document(json::parse(text, nullptr, false), problem);
  REQUIRE(problem.empty());
  REQUIRE(checked.size() > 30);
  for (const auto& c : checked) {
    CAPTURE(c.id, c.reason);
    CHECK(c.status == "ok");
    REQUIRE(c.error_pct);
    CHECK(std::fabs(*c.error_pct) <= allowed(c));
    if (const auto energy = pqattn_pim::detail::percent(c.expected_event_pj, c.event_pj)) {
      CHECK(std::fabs(*energy) <= 10.0);
    }
    if (const auto energy = pqattn_pim::detail::percent(c.expected_total_pj, c.total_pj)) {
      CHECK(std::fabs(*energy) <= 10.0);
    }
  }
  const auto report = pqattn_pim::to_json(checked);
  CHECK(report["cases"].size() == checked.size());
  for (const char* key : {"id", "expected_cycles", "cycles", "error_pct", "status"}) {
    CHECK(report["cases"][0].contains(key));
  }
}

TEST_CASE("expected figures do not enter the model", "[pim][check]") {
  const std::string text = reference_text();
  if (text.empty()) {
    SKIP("no reference figures: set PQATTN_SHARED_DIR to a folder with data/pim/reference.json");
  }
  json document = json::parse(text, nullptr, false);
  std::string problem;
  const auto before = pqattn_pim::check_document(document, problem);
  for (auto& entry : document["cases"]) {
    entry["expected"] = {{"cycles", 1}};
    entry["suggested_tolerance_pct"] = nullptr;
    entry["id"] = "x";
  }
  for (auto& device : document["devices"]) {
    device.erase("cycles_formula");
    device.erase("gemv_pass");
    device.erase("controller");
    device.erase("pim");
  }
  const auto after = pqattn_pim::check_document(document, problem);
  REQUIRE(before.size() == after.size());
  for (std::size_t i = 0; i < before.size(); ++i) {
    CAPTURE(before[i].id);
    CHECK(before[i].cycles == after[i].cycles);
  }
}

TEST_CASE("a device not seen before is taken from the file", "[pim][check]") {
  // Another speed grade under the names of Ramulator 2: the result follows from the timing by the closed form.
  const json document = json::parse(R"json({
    "devices": {"other": {
      "simulator": "CMU-SAFARI/ramulator2 (2.1)", "config": "HBM2_2400Mbps, HBM12 controller", "tick_ns": 0.833,
      "banks": 16, "bank_groups": 4, "row_bytes": 1024, "burst_bytes": 32, "bursts_per_row": 32,
      "timing_ticks": {"nBL": 2, "nCL": 17, "nRCDRD": 17, "nRCDWR": 14, "nRP": 17, "nRAS": 40, "nRC": 57, "nWR": 19,
                       "nRTPL": 6, "nCWL": 6, "nCCDS": 2, "nCCDL": 4, "nRRDS": 5, "nRRDL": 5, "nFAW": 19, "nWTRS": 8,
                       "nWTRL": 10, "nREFI": 4682, "nRFC": 421}}},
    "cases": [{"id": "a", "device": "other",
               "workload": {"kind": "stream", "refresh": false, "rows": 10, "cols": 32}},
              {"id": "b", "device": "other", "workload": {"kind": "conflict", "refresh": false, "n": 100}},
              {"id": "c", "device": "other", "workload": {"kind": "tensor", "n": 100}},
              {"id": "d", "device": "missing", "workload": {"kind": "stream", "rows": 1, "cols": 1}}]})json");
  std::string problem;
  const auto checked = pqattn_pim::check_document(document, problem);
  REQUIRE(checked.size() == 4);
  CHECK(checked[0].cycles == 2 + 17 + 31 * 4 + 17 + 2 + 9 * (31 * 4 + 6 + 17 + 17));
  CHECK(checked[1].cycles == 2 + 17 + 17 + 2 + 99 * 57);
  CHECK_FALSE(checked[0].error_pct);
  CHECK(checked[2].status == "unsupported");
  CHECK(checked[3].status == "unsupported");
  CHECK(pqattn_pim::report_text(checked).find("unsupported") != std::string::npos);
}

TEST_CASE("variants of every kind on every kind of device follow the closed forms", "[pim][check]") {
  pim_test::random_source random(41);
  const char* simulators[] = {"umd-memsys/DRAMsim3", "CMU-SAFARI/ramulator2 (2.1)", "SAITPublic/PIMSimulator"};
  int large = 0;
  for (int i = 0; i < 300; ++i) {
    json device = {{"simulator", simulators[random.from(0, 2)]},
                   {"config", "x"},
                   {"tick_ns", 1.0},
                   {"banks", 16},
                   {"bank_groups", 4},
                   {"row_bytes", 2048},
                   {"burst_bytes", 32},
                   {"bursts_per_row", 64}};
    const auto pick = [&](std::int64_t lowest, std::int64_t highest) { return random.from(lowest, highest); };
    device["timing_ticks"] = {{"nBL", pick(1, 4)},     {"nCL", pick(1, 60)},    {"nRCDRD", pick(1, 60)},
                              {"nRCDWR", pick(1, 60)}, {"nRP", pick(1, 60)},    {"nRAS", pick(1, 90)},
                              {"nRC", pick(1, 150)},   {"nRTP", pick(1, 20)},   {"nCWL", pick(1, 20)},
                              {"nCCDL", pick(1, 8)},   {"nWR", pick(1, 40)},    {"nWTRL", pick(1, 12)},
                              {"nREFI", 6000},         {"nRFC", pick(100, 500)}};
    // From a single access to sizes that nobody waits for.
    const std::int64_t sizes[] = {1, 2, pick(3, 500), pick(4000, 5000), pick(1, 1'000'000'000)};
    const std::int64_t rows = sizes[random.from(0, 4)];
    const std::int64_t cols = pick(1, 64);
    large += rows > 1'000'000 ? 1 : 0;
    const json document = {
        {"devices", {{"d", device}}},
        {"cases",
         {{{"id", "stream"},
           {"device", "d"},
           {"workload", {{"kind", "stream"}, {"refresh", false}, {"rows", rows}, {"cols", cols}}}},
          {{"id", "conflict"}, {"device", "d"}, {"workload", {{"kind", "conflict"}, {"refresh", false}, {"n", rows}}}},
          {{"id", "randcol"}, {"device", "d"}, {"workload", {{"kind", "randcol"}, {"refresh", false}, {"n", rows}}}},
          {{"id", "dephit"}, {"device", "d"}, {"workload", {{"kind", "dephit"}, {"refresh", false}, {"n", rows}}}},
          {{"id", "pingpong"}, {"device", "d"}, {"workload", {{"kind", "pingpong"}, {"refresh", false}, {"n", rows}}}},
          {{"id", "eltwise"}, {"device", "d"}, {"workload", {{"kind", "eltwise_add"}, {"n", rows}}}}}}};
    std::string problem;
    const auto checked = pqattn_pim::check_document(document, problem);
    REQUIRE(problem.empty());
    REQUIRE(checked.size() == 6);
    const pim::device d = pqattn_pim::read_reference_device("d", device).description;
    const pim::timing& t = d.timing;
    INFO(device.dump() << " rows " << rows << " cols " << cols);
    CHECK(checked[0].cycles == pim::stream_read_cycles(d, rows, cols));
    CHECK(checked[1].cycles == pim::conflict_read_cycles(d, rows));
    CHECK(checked[2].cycles == pim::stream_read_cycles(d, 1, rows));
    const std::int64_t first = d.controller.start + t.rcd_rd + t.cl + t.bl + d.controller.read_end;
    const std::int64_t hit = std::max<std::int64_t>(t.ccd_l, t.cl + t.bl + d.controller.dependent_gap);
    if (!d.controller.closes_idle_rows) {
      CHECK(checked[3].cycles == first + (rows - 1) * hit);
    }
    CHECK(checked[4].cycles >= checked[1].cycles);
    CHECK(checked[5].status == "unsupported");
  }
  CHECK(large > 20);
}

TEST_CASE("sizes that cannot be served are said to be unsupported, and quickly", "[pim][check]") {
  const std::string text = reference_text();
  if (text.empty()) {
    SKIP("no reference figures: set PQATTN_SHARED_DIR to a folder with data/pim/reference.json");
  }
  json document = json::parse(text, nullptr, false);
  for (auto& entry : document["cases"]) {
    json& workload = entry["workload"];
    for (const char* key : {"rows", "cols", "n", "out_dim", "in_dim", "L", "d", "heads_per_stack"}) {
      if (workload.contains(key)) {
        workload[key] = 1'000'000'000;
      }
    }
    const std::string kind = workload["kind"];
    if (kind.find_first_of("0123456789") != std::string::npos) {
      workload["kind"] = kind.substr(0, kind.find_first_of("0123456789")) + "1000000000";
    }
  }
  const auto start = std::chrono::steady_clock::now();
  std::string problem;
  for (const auto& c : pqattn_pim::check_document(document, problem)) {
    CAPTURE(c.id);
    CHECK((c.status == "unsupported" ? !c.reason.empty() : c.cycles.value_or(0) > 1'000'000'000));
  }
  CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < 60.0);
}

TEST_CASE("AttAcc's attention at long contexts stays near its closed form", "[pim][check]") {
  const std::string text = reference_text();
  if (text.empty()) {
    SKIP("no reference figures: set PQATTN_SHARED_DIR to a folder with data/pim/reference.json");
  }
  json document = json::parse(text, nullptr, false);
  const json devices = document["devices"];
  for (const std::int64_t tokens : {2048, 65536, 1 << 20}) {
    const json workload = {
        {"kind", "dense_attention"}, {"pim_level", "bank"}, {"heads_per_stack", 32}, {"L", tokens}, {"d_head", 128},
        {"power_limited", true},     {"refresh", false}};
    const json only = {{"id", "x"}, {"device", "attacc_hbm3"}, {"workload", workload}};
    const json one = {{"devices", devices}, {"cases", json::array({only})}};
    std::string problem;
    const auto checked = pqattn_pim::check_document(one, problem);
    REQUIRE(checked.size() == 1);
    const std::int64_t macs = 4 * ((tokens + 15) / 16);
    const std::int64_t rows = macs / 32;
    const std::int64_t expected = 2 * (macs * 6 + rows * (8 + 19 + 19 - 6));  // 32 heads on 16 channels
    CAPTURE(tokens, checked[0].reason);
    REQUIRE(checked[0].cycles);
    // Barriers and moves that the formula does not have cost little, and nothing at short contexts.
    CHECK(std::abs(*checked[0].cycles - expected) <= (tokens <= 2048 ? 4 : expected / 25));
  }
}

TEST_CASE("no document makes the check fail otherwise than by a word", "[pim][check]") {
  std::string problem;
  for (const char* text :
       {"null", "[]", "{}", "3", "{\"devices\": [], \"cases\": {}}", "{\"devices\": {}, \"cases\": 1}"}) {
    problem.clear();
    CHECK(pqattn_pim::check_document(json::parse(text), problem).empty());
    CHECK_FALSE(problem.empty());
  }
  const std::string text = reference_text();
  if (text.empty()) {
    SKIP("no reference figures to damage: set PQATTN_SHARED_DIR");
  }
  // Values of every kind in every place that is read.
  const json values[] = {nullptr, true, "text", -5, 0, 1e300, 1099511627776, json::array(), json::object(), 2.5};
  pim_test::random_source random(99);
  const json whole = json::parse(text);
  const std::string keys[] = {
      "kind",      "rows",   "cols", "n", "out_dim", "in_dim", "L", "heads_per_stack", "d_head", "bytes_per_element",
      "pim_level", "refresh"};
  for (int i = 0; i < 400; ++i) {
    json damaged = whole;
    json& cases = damaged["cases"];
    const auto index = static_cast<std::size_t>(random.from(0, std::ssize(cases) - 1));
    const json only = cases[index];
    cases = json::array({only});
    cases[0]["workload"][keys[random.from(0, std::ssize(keys) - 1)]] = values[random.from(0, std::ssize(values) - 1)];
    for (auto& device : damaged["devices"]) {
      for (const char* table : {"timing_cycles", "timing_ticks"}) {
        if (device.contains(table) && random.from(0, 3) == 0) {
          auto entry = device[table].begin();
          std::advance(entry, random.from(0, std::ssize(device[table]) - 1));
          *entry = values[random.from(0, std::ssize(values) - 1)];
        }
      }
    }
    problem.clear();
    const auto checked = pqattn_pim::check_document(damaged, problem);
    REQUIRE(checked.size() == 1);
    CHECK((checked[0].status == "ok" || checked[0].status == "unsupported"));
    if (checked[0].status == "unsupported") {
      CHECK_FALSE(checked[0].reason.empty());
    }
  }
}
