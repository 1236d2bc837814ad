// SPDX-License-Identifier: MIT
#include "bench/pqattn_pim/check.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <catch2/catch_test_macros.hpp>

#include "random_devices.hpp"

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
