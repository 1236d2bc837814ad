// SPDX-License-Identifier: MIT
// Counters as JSON. Opt-in: needs nlohmann/json, and is not in the umbrella header.
#pragma once

#include <cstdint>

#include <nlohmann/json.hpp>

#include "report.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

/// Members: device, mapping, emulated_ns, counters (totals), work, phases (each with its work, emulated_ns and
/// energy_pj), host, energy (with total_pj), bank_imbalance, memory; with `per_bank` also channels, each with its
/// counters and those of its banks.
template <class Mapping>
[[nodiscard]] nlohmann::ordered_json report_to_json(const bank_programs<Mapping>& costs, bool per_bank = false) {
  using json = nlohmann::ordered_json;
  const walker& w = costs.walked();
  const auto put = [](json& target) {
    return [&target](const char* name, std::int64_t value) { target[name] = value; };
  };
  const auto put_work = [](json& target, const work_counters& work) {
    visit_work_counters([&](const char* name, auto field) { target[name] = work.*field; });
  };
  json report;
  report["device"] = costs.description().name;
  report["mapping"] = Mapping::name;
  report["clock_ps"] = costs.description().timing.tck_ps;
  report["emulated_ns"] = costs.emulated_ns();
  detail::visit_totals(w.total(), put(report["counters"]));
  for (int p = 0; p < phase_count; ++p) {
    const auto which = static_cast<phase>(p);
    json& of_phase = report["phases"][name_of(which)];
    detail::visit_totals(w.total(which), put(of_phase));
    put_work(of_phase["work"], costs.work(which));
    of_phase["emulated_ns"] = w.nanoseconds(w.total(which).elapsed_cycles);
    of_phase["energy_pj"] = w.energy(which).total_pj();
  }
  put_work(report["work"], costs.work());
  detail::visit_host(costs.host(), put(report["host"]));
  report["host"]["host_wall_ns"] = costs.host_wall_ns();
  const energy_report e = w.energy();
  visit_energy([&](const char* name, auto field) { report["energy"][name] = e.*field; });
  report["energy"]["total_pj"] = e.total_pj();
  const imbalance even = w.bank_imbalance();
  report["bank_imbalance"] = {{"max_busy_cycles", even.max_busy_cycles},
                              {"mean_busy_cycles", even.mean_busy_cycles},
                              {"max_over_mean", even.max_over_mean}};
  report["memory"] = {{"used_bytes", costs.rows().used_bytes()},
                      {"peak_bytes", costs.rows().peak_bytes()},
                      {"capacity_bytes", costs.description().capacity_bytes}};
  for (std::int32_t c = 0; per_bank && c < w.channel_count(); ++c) {
    json& channel = report["channels"].emplace_back();
    const totals all = w.channel(c).total();
    visit_channel_counters([&](const char* name, auto field) { channel[name] = all.channel.*field; });
    for (std::int32_t b = 0; b < w.channel(c).bank_count(); ++b) {
      const bank_counters counted = w.channel(c).bank(b);
      json& bank = channel["banks"].emplace_back();
      visit_bank_counters([&](const char* name, auto field) { bank[name] = counted.*field; });
    }
  }
  return report;
}

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
