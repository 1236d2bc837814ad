// SPDX-License-Identifier: MIT
// Counters as JSON. Opt-in: needs nlohmann/json, and is not in the umbrella header.
#pragma once

#include <cstdint>

#include <nlohmann/json.hpp>

#include "report.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

/// Members: device, mapping, emulated_ns, counters (totals), phases, host, energy (with total_pj), bank_imbalance,
/// memory.
template <class Mapping>
[[nodiscard]] nlohmann::ordered_json report_to_json(const bank_programs<Mapping>& costs) {
  using json = nlohmann::ordered_json;
  const walker& w = costs.walked();
  const auto put = [](json& target) {
    return [&target](const char* name, std::int64_t value) { target[name] = value; };
  };
  json report;
  report["device"] = costs.description().name;
  report["mapping"] = Mapping::name;
  report["clock_ps"] = costs.description().timing.tck_ps;
  report["emulated_ns"] = costs.emulated_ns();
  detail::visit_totals(w.total(), put(report["counters"]));
  for (int p = 0; p < phase_count; ++p) {
    const auto which = static_cast<phase>(p);
    detail::visit_totals(w.total(which), put(report["phases"][name_of(which)]));
  }
  detail::visit_host(costs.host(), put(report["host"]));
  const energy_report e = w.energy();
  visit_energy([&](const char* name, auto field) { report["energy"][name] = e.*field; });
  report["energy"]["total_pj"] = e.total_pj();
  const imbalance even = w.bank_imbalance();
  report["bank_imbalance"] = {{"max_busy_cycles", even.max_busy_cycles},
                              {"mean_busy_cycles", even.mean_busy_cycles},
                              {"max_over_mean", even.max_over_mean}};
  report["memory"] = {{"used_bytes", costs.rows().used_bytes()}, {"peak_bytes", costs.rows().peak_bytes()}};
  return report;
}

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
