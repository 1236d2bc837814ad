// SPDX-License-Identifier: MIT
// `pqattn-pim check`: every case of a reference file against the model.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <pqattn/bank/pim/energy.hpp>

#include "attacc.hpp"
#include "json_fields.hpp"
#include "reference_device.hpp"
#include "workloads.hpp"

namespace pqattn_pim {

/// One case after it was run.
struct checked_case {
  std::string id;
  std::string kind;
  simulator source = simulator::unknown;
  bool refresh = false;
  std::optional<std::int64_t> expected_cycles;
  std::optional<std::int64_t> cycles;
  std::optional<double> error_pct;
  std::optional<double> tolerance_pct;
  std::string status;  ///< "ok" (modelled) or "unsupported"
  std::string reason;
  std::optional<std::int64_t> expected_act, act;
  std::optional<double> expected_event_pj, event_pj;  ///< activations, columns, refreshes
  std::optional<double> expected_total_pj, total_pj;  ///< with standby
};

namespace detail {

[[nodiscard]] inline std::optional<double> percent(std::optional<double> expected, std::optional<double> got) {
  if (!expected || !got || *expected == 0) {
    return std::nullopt;
  }
  return (*got - *expected) / *expected * 100.0;
}

/// Keep a run short enough to wait for; queues are simulated clock by clock. Patterns of one bank that repeat without
/// refresh may be of any size.
constexpr std::int64_t most_repeats = std::int64_t{1} << 40;
constexpr std::int64_t most_accesses = std::int64_t{1} << 26;
constexpr std::int64_t most_walked = std::int64_t{1} << 24;
constexpr std::int64_t most_queued = std::int64_t{1} << 21;
constexpr std::int64_t most_tokens = std::int64_t{1} << 21;

/// Numbers of a kind such as "mac64x16rows" or "attn_score_L2048_d128": the pattern holds %d for each.
[[nodiscard]] inline bool match(const std::string& kind, const char* pattern, std::array<std::int64_t, 2>& values) {
  std::size_t at = 0;
  std::size_t found = 0;
  for (const char* p = pattern; *p != '\0'; ++p) {
    if (*p != '%') {
      if (at >= kind.size() || kind[at] != *p) {
        return false;
      }
      ++at;
      continue;
    }
    const std::size_t begin = at;
    std::int64_t value = 0;
    while (at < kind.size() && kind[at] >= '0' && kind[at] <= '9' && at - begin < 12) {
      value = value * 10 + (kind[at++] - '0');
    }
    if (at == begin || found == values.size()) {
      return false;
    }
    values[found++] = value;
  }
  return at == kind.size();
}

/// A shape read from the workload; every value at least 1 and not absurd.
struct shape {
  const json& workload;
  bool good = true;

  [[nodiscard]] std::int64_t value(std::initializer_list<const char*> names,
                                   std::optional<std::int64_t> otherwise = std::nullopt,
                                   std::int64_t most = most_accesses) {
    const auto found = integer(workload, names);
    const std::int64_t n = found ? *found : otherwise.value_or(0);
    good = good && n >= 1 && n <= most;
    return n;
  }
  /// How often a pattern of one bank repeats.
  [[nodiscard]] std::int64_t repeats(std::initializer_list<const char*> names, bool refresh) {
    return value(names, std::nullopt, refresh ? most_walked : most_repeats);
  }
  [[nodiscard]] bool fits(std::int64_t a, std::int64_t b) {
    good = good && a <= most_accesses / b;
    return good;
  }
};

[[nodiscard]] inline outcome run_aim(const reference_device& d, const std::string& kind, const json& workload) {
  std::array<std::int64_t, 2> n{1, 1};
  const auto small = [&] { return n[0] >= 1 && n[1] >= 1 && n[0] <= most_accesses / n[1]; };
  const outcome large = outcome::unsupported("a size out of range");
  const auto named = [&](const char* first, const char* second) {
    // Sizes may also be given as members.
    n[0] = integer(workload, {first}).value_or(n[0]);
    n[1] = integer(workload, {second}).value_or(n[1]);
  };
  const std::int64_t columns = d.description.organisation.columns_per_row();
  if (match(kind, "mac%x%rows", n)) {
    return small() && n[0] <= columns ? run_aim_mac(d, n[1], n[0]) : large;
  }
  if (match(kind, "macconflict%", n)) {
    return small() ? run_aim_mac(d, n[0], 1) : large;
  }
  if (match(kind, "mac%", n)) {
    n[1] = 1;
    return small() && n[0] <= columns ? run_aim_mac(d, 1, n[0]) : large;
  }
  if (match(kind, "wrgb%", n)) {
    return small() ? run_aim_buffer(d, n[0]) : large;
  }
  if (match(kind, "gemv_%x%", n) || kind == "gemv") {
    named("out_dim", "in_dim");
    return small() ? run_aim_gemv(d, n[0], n[1]) : large;
  }
  if (match(kind, "attn_score_L%_d%", n) || kind == "attn_score") {
    named("L", "d");
    return small() ? run_aim_scores(d, n[0], n[1]) : large;
  }
  if (match(kind, "attn_context_L%_d%", n) || match(kind, "attn_value_L%_d%", n)) {
    named("L", "d");
    return small() ? run_aim_gemv(d, n[1], n[0]) : large;  // values lie as a d x L matrix
  }
  return outcome::unsupported("workload \"" + kind + "\" is not modelled");
}

[[nodiscard]] inline outcome run_workload(const reference_device& d, const std::string& kind, const json& workload,
                                          bool refresh) {
  if (d.kind == simulator::aim) {
    return run_aim(d, kind, workload);
  }
  shape s{workload};
  const outcome bad = outcome::unsupported("the workload's sizes are missing or out of range");
  if (kind == "dense_attention") {
    attention_case c;
    c.level = text(member(workload, "pim_level"));
    c.heads = s.value({"heads_per_stack", "heads"});
    c.tokens = s.value({"L", "tokens"});
    c.head_dim = s.value({"d_head"}, 128);
    c.bytes_per_element = s.value({"bytes_per_element"}, 2);
    c.power_limited = flag(member(workload, "power_limited"), true);
    c.refresh = refresh;
    if (d.kind != simulator::attacc) {
      return outcome::unsupported("dense attention is modelled for AttAcc only");
    }
    // Above the banks every column is a command of its own.
    const std::int64_t commands = c.level == "bank" ? 1 : 32;
    return s.good && c.tokens <= most_tokens && c.head_dim <= 1024 && s.fits(c.heads, c.tokens * commands)
               ? run_attention(d, c)
               : bad;
  }
  if (d.kind == simulator::attacc) {
    return outcome::unsupported("workload \"" + kind + "\" is not modelled on this device");
  }
  if (kind == "stream" || kind == "streamw") {
    const std::int64_t rows = s.repeats({"rows"}, refresh);
    const std::int64_t cols = s.value({"cols"});
    return s.good ? run_stream(d, rows, cols, kind == "streamw", refresh) : bad;
  }
  if (kind == "conflict" || kind == "conflictw") {
    const std::int64_t n = s.repeats({"n"}, refresh);
    return s.good ? run_accesses(d, n, n, false, kind == "conflictw", refresh) : bad;
  }
  if (kind == "randcol" || kind == "dephit") {
    const std::int64_t n = s.repeats({"n"}, refresh);
    return s.good ? run_accesses(d, n, 1, kind == "dephit", false, refresh) : bad;
  }
  if (kind == "pingpong") {
    const std::int64_t n = s.repeats({"n"}, refresh);
    return s.good ? run_accesses(d, n, 2, true, false, refresh) : bad;
  }
  if (kind == "allbank") {
    const std::int64_t rows = s.value({"rows"});
    const std::int64_t cols = s.value({"cols"});
    return s.good && s.fits(rows, cols) &&
                   rows * cols <= most_queued / d.description.organisation.banks_per_command_channel()
               ? run_all_banks(d, rows, cols, refresh)
               : bad;
  }
  const bool tree = kind == "gemv_tree" || kind == "gemvtree";
  if ((kind == "gemv" || tree) && d.kind == simulator::pimsimulator) {
    const std::int64_t outputs = s.value({"out_dim"});
    const std::int64_t inputs = s.value({"in_dim"});
    return s.good && s.fits(outputs, inputs) ? run_samsung_gemv(d, outputs, inputs, tree, refresh) : bad;
  }
  return outcome::unsupported("workload \"" + kind + "\" is not modelled");
}

inline void compare_energy(const reference_device& d, const outcome& result, const json& expected, checked_case& c) {
  const json* table = member(expected, "energy_pJ_as_printed");
  if (table == nullptr || !d.has_event_energy || (result.counted.bank.wr_columns > 0 && !d.has_write_energy)) {
    return;
  }
  const pim::energy_report e = pim::energy_of(d.description, result.counted, result.cycles);
  c.event_pj = e.activate_pj + e.array_pj + e.refresh_pj;
  const auto part = [&](const char* name) { return number(member(*table, name)).value_or(0.0); };
  c.expected_event_pj = part("act") + part("read") + part("write") + part("refresh");
  if (d.has_standby_energy) {
    c.total_pj = *c.event_pj + e.standby_pj + d.idle_rank_pj_per_cycle * static_cast<double>(result.cycles);
    c.expected_total_pj = number(member(*table, "total_with_standby"));
  }
}

inline void compare(const reference_device& d, const outcome& result, const json& expected, checked_case& c) {
  c.expected_cycles = integer(member(expected, "cycles"));
  if (!result.supported) {
    c.status = "unsupported";
    c.reason = result.reason;
    return;
  }
  c.status = "ok";
  c.cycles = result.cycles;
  if (c.expected_cycles) {
    c.error_pct = percent(static_cast<double>(*c.expected_cycles), static_cast<double>(result.cycles));
  }
  if (const json* commands = member(expected, "commands"); commands != nullptr && d.kind != simulator::attacc) {
    c.expected_act = integer(*commands, {"ACT", "ACT1", "ACT16"});
    const std::int64_t banks = d.description.organisation.banks_per_command_channel();
    c.act = d.kind == simulator::aim ? result.counted.bank.act_count / banks : result.counted.bank.act_count;
  }
  compare_energy(d, result, expected, c);
}

}  // namespace detail

/// Runs one entry of "cases".
[[nodiscard]] inline checked_case check_case(const std::map<std::string, reference_device>& devices,
                                             const json& entry) {
  checked_case c;
  c.id = text(member(entry, "id"));
  const std::string device_id = text(member(entry, "device"));
  const json none = json::object();
  const json* workload = member(entry, "workload");
  const json* expected = member(entry, "expected");
  c.kind = workload != nullptr ? text(member(*workload, "kind")) : "";
  c.tolerance_pct = number(member(entry, "suggested_tolerance_pct"));
  outcome result = outcome::unsupported("");
  const auto device = devices.find(device_id);
  reference_device unknown;
  if (workload == nullptr || c.kind.empty()) {
    result.reason = "the case has no workload kind";
  } else if (device == devices.end()) {
    result.reason = "device \"" + device_id + "\" is not in the file";
  } else if (!device->second.problem.empty()) {
    result.reason = "device \"" + device_id + "\" " + device->second.problem;
  } else {
    c.refresh = flag(member(*workload, "refresh"), true);
    result = detail::run_workload(device->second, c.kind, *workload, c.refresh);
  }
  const reference_device& used = device == devices.end() ? unknown : device->second;
  c.source = used.kind;
  detail::compare(used, result, expected != nullptr ? *expected : none, c);
  return c;
}

/// Runs every case of a document. `problem` is set when it is not a reference file.
[[nodiscard]] inline std::vector<checked_case> check_document(const json& document, std::string& problem) {
  std::vector<checked_case> checked;
  const json* devices = member(document, "devices");
  const json* cases = member(document, "cases");
  if (devices == nullptr || !devices->is_object() || cases == nullptr || !cases->is_array()) {
    problem = "a reference file is an object with \"devices\" (an object) and \"cases\" (an array)";
    return checked;
  }
  std::map<std::string, reference_device> known;
  for (const auto& [id, entry] : devices->items()) {
    known.emplace(id, read_reference_device(id, entry));
  }
  checked.reserve(cases->size());
  for (const json& entry : *cases) {
    checked.push_back(check_case(known, entry));
  }
  return checked;
}

// --- reports ------------------------------------------------------------------------------------------------------

/// Errors of one simulator and kind.
struct error_summary {
  std::string source, kind;
  bool refresh = false;
  std::int64_t cases = 0, unsupported = 0;
  double mean_error_pct = 0, worst_error_pct = 0;
  std::optional<double> worst_energy_pct;
};

[[nodiscard]] inline std::vector<error_summary> summarise(const std::vector<checked_case>& checked) {
  std::map<std::string, error_summary> by_kind;
  for (const checked_case& c : checked) {
    // Sizes are part of some kinds' names: "mac64x16rows" is a mac.
    std::string kind = c.kind;
    kind.erase(std::remove_if(kind.begin(), kind.end(), [](unsigned char ch) { return std::isdigit(ch) != 0; }),
               kind.end());
    error_summary& s = by_kind[std::string(name_of(c.source)) + "|" + kind + (c.refresh ? "|r" : "|n")];
    s.source = name_of(c.source);
    s.kind = kind;
    s.refresh = c.refresh;
    ++s.cases;
    if (!c.error_pct) {
      s.unsupported += c.status == "unsupported" ? 1 : 0;
      continue;
    }
    s.mean_error_pct += std::fabs(*c.error_pct);
    s.worst_error_pct = std::fabs(*c.error_pct) > std::fabs(s.worst_error_pct) ? *c.error_pct : s.worst_error_pct;
    for (const auto& energy :
         {detail::percent(c.expected_event_pj, c.event_pj), detail::percent(c.expected_total_pj, c.total_pj)}) {
      if (energy && std::fabs(*energy) >= std::fabs(s.worst_energy_pct.value_or(0.0))) {
        s.worst_energy_pct = energy;
      }
    }
  }
  std::vector<error_summary> list;
  for (auto& [key, s] : by_kind) {
    const std::int64_t measured = s.cases - s.unsupported;
    s.mean_error_pct = measured > 0 ? s.mean_error_pct / static_cast<double>(measured) : 0.0;
    list.push_back(s);
  }
  return list;
}

namespace detail {
template <class Value>
[[nodiscard]] nlohmann::ordered_json or_null(const std::optional<Value>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}
}  // namespace detail

[[nodiscard]] inline nlohmann::ordered_json to_json(const std::vector<checked_case>& checked) {
  nlohmann::ordered_json report;
  report["cases"] = nlohmann::ordered_json::array();
  for (const checked_case& c : checked) {
    nlohmann::ordered_json entry;
    entry["id"] = c.id;
    entry["expected_cycles"] = detail::or_null(c.expected_cycles);
    entry["cycles"] = detail::or_null(c.cycles);
    entry["error_pct"] = detail::or_null(c.error_pct);
    entry["status"] = c.status;
    entry["simulator"] = name_of(c.source);
    entry["kind"] = c.kind;
    entry["refresh"] = c.refresh;
    if (!c.reason.empty()) {
      entry["reason"] = c.reason;
    }
    if (c.event_pj) {
      entry["expected_event_energy_pj"] = detail::or_null(c.expected_event_pj);
      entry["event_energy_pj"] = *c.event_pj;
      entry["event_energy_error_pct"] = detail::or_null(detail::percent(c.expected_event_pj, c.event_pj));
    }
    if (c.total_pj) {
      entry["expected_total_energy_pj"] = detail::or_null(c.expected_total_pj);
      entry["total_energy_pj"] = *c.total_pj;
      entry["total_energy_error_pct"] = detail::or_null(detail::percent(c.expected_total_pj, c.total_pj));
    }
    report["cases"].push_back(entry);
  }
  report["summary"] = nlohmann::ordered_json::array();
  for (const error_summary& s : summarise(checked)) {
    report["summary"].push_back({{"simulator", s.source},
                                 {"kind", s.kind},
                                 {"refresh", s.refresh},
                                 {"cases", s.cases},
                                 {"unsupported", s.unsupported},
                                 {"mean_error_pct", s.mean_error_pct},
                                 {"worst_error_pct", s.worst_error_pct},
                                 {"worst_energy_error_pct", detail::or_null(s.worst_energy_pct)}});
  }
  return report;
}

namespace detail {
[[nodiscard]] inline std::string signed_percent(const std::optional<double>& value) {
  if (!value) {
    return "-";
  }
  char text[32];
  std::snprintf(text, sizeof text, "%+.2f", *value == 0 ? 0.0 : *value);
  return text;
}
[[nodiscard]] inline std::string count_or_dash(const std::optional<std::int64_t>& value) {
  return value ? std::to_string(*value) : "-";
}
}  // namespace detail

/// The text report, a Markdown table.
[[nodiscard]] inline std::string summary_text(const std::vector<checked_case>& checked) {
  std::string text =
      "| simulator | kind | refresh | cases | unsupported | mean error % | worst error % | worst energy error % |\n"
      "|---|---|---|---|---|---|---|---|\n";
  for (const error_summary& s : summarise(checked)) {
    const bool measured = s.cases > s.unsupported;
    const auto number = [&](double v) { return measured ? detail::signed_percent(v) : std::string("-"); };
    text += "| " + s.source + " | " + s.kind + " | " + (s.refresh ? "on" : "off") + " | " + std::to_string(s.cases) +
            " | " + std::to_string(s.unsupported) + " | " + number(s.mean_error_pct).substr(measured ? 1 : 0) + " | " +
            number(s.worst_error_pct) + " | " + detail::signed_percent(s.worst_energy_pct) + " |\n";
  }
  return text;
}

[[nodiscard]] inline std::string report_text(const std::vector<checked_case>& checked) {
  std::string text;
  char line[512];
  std::snprintf(line, sizeof line, "%-46s %12s %12s %8s %9s %9s  %s\n", "case", "expected", "got", "error%",
                "event-pJ%", "total-pJ%", "status");
  text += line;
  for (const checked_case& c : checked) {
    std::snprintf(line, sizeof line, "%-46.100s %12s %12s %8s %9s %9s  %s", c.id.c_str(),
                  detail::count_or_dash(c.expected_cycles).c_str(), detail::count_or_dash(c.cycles).c_str(),
                  detail::signed_percent(c.error_pct).c_str(),
                  detail::signed_percent(detail::percent(c.expected_event_pj, c.event_pj)).c_str(),
                  detail::signed_percent(detail::percent(c.expected_total_pj, c.total_pj)).c_str(), c.status.c_str());
    text += line;
    if (!c.reason.empty()) {
      text += ": " + c.reason;
    }
    if (c.expected_act && c.act && *c.expected_act != *c.act) {
      text += "  (ACT " + std::to_string(*c.act) + ", expected " + std::to_string(*c.expected_act) + ")";
    }
    text += "\n";
  }
  return text + "\n" + summary_text(checked);
}

}  // namespace pqattn_pim
