// SPDX-License-Identifier: MIT
// Reports of `pqattn-pim trace`: cycles, counters by phase, energy by class.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include <nlohmann/json.hpp>

#include <pqattn/bank/pim/counters.hpp>
#include <pqattn/bank/pim/energy.hpp>
#include <pqattn/bank/pim/walker.hpp>

namespace pqattn_pim {

namespace pim = pqattn::pim;

[[nodiscard]] inline nlohmann::ordered_json to_json(const pim::totals& t) {
  nlohmann::ordered_json object;
  object["elapsed_cycles"] = t.elapsed_cycles;
  pim::visit_bank_counters([&](const char* name, auto field) { object["banks"][name] = t.bank.*field; });
  pim::visit_channel_counters([&](const char* name, auto field) { object["channels"][name] = t.channel.*field; });
  return object;
}

[[nodiscard]] inline nlohmann::ordered_json to_json(const pim::energy_report& e) {
  nlohmann::ordered_json object;
  pim::visit_energy([&](const char* name, auto field) { object[name] = e.*field; });
  object["total_pj"] = e.total_pj();
  return object;
}

[[nodiscard]] inline nlohmann::ordered_json trace_json(const pim::walker& w, bool refresh) {
  nlohmann::ordered_json report;
  report["device"] = w.description().name;
  report["refresh"] = refresh;
  report["clock_ps"] = w.description().timing.tck_ps;
  report["cycles"] = w.finish_cycle();
  report["emulated_ns"] = w.nanoseconds(w.finish_cycle());
  report["counters"] = to_json(w.total());
  report["energy"] = to_json(w.energy());
  const pim::imbalance even = w.bank_imbalance();
  report["bank_imbalance"] = {{"max_busy_cycles", even.max_busy_cycles},
                              {"mean_busy_cycles", even.mean_busy_cycles},
                              {"max_over_mean", even.max_over_mean}};
  for (int p = 0; p < pim::phase_count; ++p) {
    const auto which = static_cast<pim::phase>(p);
    report["phases"][pim::name_of(which)] = to_json(w.total(which));
  }
  return report;
}

[[nodiscard]] inline std::string trace_text(const pim::walker& w, bool refresh) {
  std::string text;
  char line[256];
  const auto add = [&](const char* name, std::int64_t value) {
    if (value != 0) {
      std::snprintf(line, sizeof line, "  %-22s %16lld\n", name, static_cast<long long>(value));
      text += line;
    }
  };
  std::snprintf(line, sizeof line, "device %s, refresh %s\ncycles %lld (%.3f us emulated, %d ps a cycle)\n",
                w.description().name, refresh ? "on" : "off", static_cast<long long>(w.finish_cycle()),
                w.nanoseconds(w.finish_cycle()) * 1e-3, w.description().timing.tck_ps);
  text += line;
  const pim::totals t = w.total();
  text += "events in banks, all banks together\n";
  pim::visit_bank_counters([&](const char* name, auto field) { add(name, t.bank.*field); });
  text += "events of channels, all channels together\n";
  pim::visit_channel_counters([&](const char* name, auto field) { add(name, t.channel.*field); });
  text += "cycles by phase, all channels together\n";
  for (int p = 0; p < pim::phase_count; ++p) {
    add(pim::name_of(static_cast<pim::phase>(p)), w.total(static_cast<pim::phase>(p)).channel.cycles);
  }
  const pim::energy_report e = w.energy();
  text += "energy, picojoules (uncertain by half: compare, do not quote)\n";
  const auto energy = [&](const char* name, double pj) {
    if (pj != 0) {
      std::snprintf(line, sizeof line, "  %-22s %16.1f\n", name, pj);
      text += line;
    }
  };
  pim::visit_energy([&](const char* name, auto field) { energy(name, e.*field); });
  energy("total_pj", e.total_pj());
  std::snprintf(line, sizeof line, "bank imbalance, max / mean of busy cycles: %.3f\n",
                w.bank_imbalance().max_over_mean);
  return text + line;
}

/// One event of the command bus, for a listing.
[[nodiscard]] inline std::string event_text(const pim::trace_record& r) {
  const char* banks[] = {"all", "even", "odd", "s"};
  const std::string share = r.set == pim::bank_set::share ? std::to_string(r.bank) : "";
  const std::string where = r.is_set ? banks[static_cast<int>(r.set)] + share : std::to_string(r.bank);
  char line[160];
  std::snprintf(line, sizeof line, "%lld ch%d %s bank=%s row=%d col=%d n=%lld every=%lld\n",
                static_cast<long long>(r.cycle), r.channel, pim::name_of(r.op), where.c_str(), r.row, r.column,
                static_cast<long long>(r.count), static_cast<long long>(r.interval));
  return line;
}

}  // namespace pqattn_pim
