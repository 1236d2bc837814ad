// SPDX-License-Identifier: MIT
// Counters as CSV and as text. Nothing is printed: each line goes to the caller's sink(const char*), without a newline.
// Emulated time carries the prefix emulated_; host_wall_ns is the time that emulating took on this machine. JSON:
// report_json.hpp.
#pragma once

#include <cstdint>
#include <cstdio>

#include "programs.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

namespace detail {

/// visit(name, integer) for every counter of `t`, with `prefix` put before by the caller.
template <class Visitor>
void visit_totals(const totals& t, Visitor&& visit) {
  visit("elapsed_cycles", t.elapsed_cycles);
  visit_bank_counters([&](const char* name, auto field) { visit(name, t.bank.*field); });
  visit_channel_counters([&](const char* name, auto field) { visit(name, t.channel.*field); });
}

template <class Visitor>
void visit_host(const host_counters& h, Visitor&& visit) {
  visit("to_device_bytes", h.to_device_bytes);
  visit("from_device_bytes", h.from_device_bytes);
  visit("overflow_bytes", h.overflow_bytes);
  visit("exact_macs", h.exact_macs);
  visit("exact_bytes", h.exact_bytes);
  visit("softmax_elements", h.softmax_elements);
}

}  // namespace detail

/// Lines "scope,phase,counter,value": scope is device, work, channel <i>, bank <i>.<j> or host, phase a phase or all.
/// `per_bank` adds channels and banks; only what is not 0 is listed there.
template <class Mapping, class Sink>
void write_csv(const bank_programs<Mapping>& costs, Sink&& sink, bool per_bank = false) {
  char line[160];
  const auto put = [&](const char* scope, const char* in, const char* name, std::int64_t value) {
    std::snprintf(line, sizeof line, "%s,%s,%s,%lld", scope, in, name, static_cast<long long>(value));
    sink(static_cast<const char*>(line));
  };
  const walker& w = costs.walked();
  sink("scope,phase,counter,value");
  detail::visit_totals(w.total(), [&](const char* n, std::int64_t v) { put("device", "all", n, v); });
  for (int p = 0; p < phase_count; ++p) {
    const auto which = static_cast<phase>(p);
    detail::visit_totals(w.total(which), [&](const char* n, std::int64_t v) { put("device", name_of(which), n, v); });
  }
  const auto derived = [&](const char* in, double ns, const energy_report& energy) {
    put("device", in, "emulated_ns", static_cast<std::int64_t>(ns));
    put("device", in, "energy_pj", static_cast<std::int64_t>(energy.total_pj()));
  };
  derived("all", costs.emulated_ns(), w.energy());
  visit_work_counters([&](const char* n, auto field) { put("work", "all", n, costs.work().*field); });
  for (int p = 0; p < phase_count; ++p) {
    const auto which = static_cast<phase>(p);
    derived(name_of(which), w.nanoseconds(w.total(which).elapsed_cycles), w.energy(which));
    visit_work_counters([&](const char* n, auto field) { put("work", name_of(which), n, costs.work(which).*field); });
  }
  detail::visit_host(costs.host(), [&](const char* n, std::int64_t v) { put("host", "all", n, v); });
  put("host", "all", "host_wall_ns", costs.host_wall_ns());
  put("device", "all", "capacity_bytes", costs.description().capacity_bytes);
  put("device", "all", "used_bytes", static_cast<std::int64_t>(costs.rows().used_bytes()));
  put("device", "all", "peak_bytes", static_cast<std::int64_t>(costs.rows().peak_bytes()));
  char scope[48];
  for (std::int32_t c = 0; per_bank && c < w.channel_count(); ++c) {
    for (int p = 0; p < phase_count; ++p) {
      const auto which = static_cast<phase>(p);
      const auto put_some = [&](const char* n, std::int64_t v) { v != 0 ? put(scope, name_of(which), n, v) : void(); };
      std::snprintf(scope, sizeof scope, "channel %d", c);
      const channel_counters of_channel = w.channel(c).channel(which);
      visit_channel_counters([&](const char* n, auto field) { put_some(n, of_channel.*field); });
      for (std::int32_t b = 0; b < w.channel(c).bank_count(); ++b) {
        std::snprintf(scope, sizeof scope, "bank %d.%d", c, b);
        const bank_counters of_bank = w.channel(c).bank(b, which);
        visit_bank_counters([&](const char* n, auto field) { put_some(n, of_bank.*field); });
      }
    }
  }
}

/// A report for people: time, phases, counters, energy, imbalance, occupancy.
template <class Mapping, class Sink>
void write_text(const bank_programs<Mapping>& costs, Sink&& sink) {
  char line[200];
  const auto put = [&](const char* name, std::int64_t value) {
    if (value != 0) {
      std::snprintf(line, sizeof line, "  %-22s %18lld", name, static_cast<long long>(value));
      sink(static_cast<const char*>(line));
    }
  };
  const walker& w = costs.walked();
  std::snprintf(line, sizeof line, "device %s, mapping %s: %lld cycles of %d ps, %.3f us emulated",
                costs.description().name, Mapping::name, static_cast<long long>(w.finish_cycle()),
                costs.description().timing.tck_ps, costs.emulated_ns() * 1e-3);
  sink(static_cast<const char*>(line));
  sink("cycles by phase, all channels together");
  for (int p = 0; p < phase_count; ++p) {
    put(name_of(static_cast<phase>(p)), w.total(static_cast<phase>(p)).channel.cycles);
  }
  sink("events, all banks and channels together");
  detail::visit_totals(w.total(), put);
  sink("work asked for");
  visit_work_counters([&](const char* name, auto field) { put(name, costs.work().*field); });
  sink("host");
  detail::visit_host(costs.host(), put);
  put("host_wall_ns", costs.host_wall_ns());
  sink("energy, picojoules (uncertain by half: compare, do not quote)");
  const energy_report e = w.energy();
  visit_energy([&](const char* name, auto field) { put(name, static_cast<std::int64_t>(e.*field)); });
  put("total_pj", static_cast<std::int64_t>(e.total_pj()));
  std::snprintf(line, sizeof line, "bank imbalance, max / mean of busy cycles: %.3f", w.bank_imbalance().max_over_mean);
  sink(static_cast<const char*>(line));
  std::snprintf(line, sizeof line, "memory: %zu bytes in use, %zu at most, of %lld", costs.rows().used_bytes(),
                costs.rows().peak_bytes(), static_cast<long long>(costs.description().capacity_bytes));
  sink(static_cast<const char*>(line));
}

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
