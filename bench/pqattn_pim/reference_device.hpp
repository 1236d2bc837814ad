// SPDX-License-Identifier: MIT
// A device of a reference file as one of ours. The file gives the timing table of a simulator's configuration; what
// the simulator adds by itself (first command, latency after the last data, what a due refresh lets pass, how far its
// queue looks ahead) belongs to the kind of simulator and is written here, with nothing taken from expected figures.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <optional>
#include <string>

#include <pqattn/bank/pim/device.hpp>

#include "json_fields.hpp"

namespace pqattn_pim {

namespace pim = pqattn::pim;

/// Families of simulators whose behaviour is known.
enum class simulator : std::uint8_t { unknown, pimsimulator, dramsim3, ramulator2, aim, attacc };

[[nodiscard]] inline const char* name_of(simulator kind) {
  switch (kind) {
    case simulator::pimsimulator: return "PIMSimulator";
    case simulator::dramsim3: return "DRAMsim3";
    case simulator::ramulator2: return "Ramulator 2.1";
    case simulator::aim: return "aim_simulator";
    case simulator::attacc: return "AttAcc";
    case simulator::unknown: break;
  }
  return "unknown";
}

/// How a simulator's controller picks among queued host requests.
struct queue_model {
  std::int64_t window = 32;         ///< requests it chooses from
  std::int64_t arrivals = 1 << 20;  ///< requests that may enter per cycle
  bool one_command_per_cycle = false;
};

/// A device and what only the comparison needs.
struct reference_device {
  pim::device description;
  simulator kind = simulator::unknown;
  queue_model queue;
  std::optional<std::int64_t> mac_power_limited;
  std::optional<std::int64_t> mac_unlimited;
  bool has_event_energy = false;
  bool has_write_energy = false;
  bool has_standby_energy = false;
  double idle_rank_pj_per_cycle = 0;  ///< ranks that the case never touches
  std::string problem;                ///< why the device cannot be used; empty if it can
};

namespace detail {

[[nodiscard]] inline std::string lower(std::string s) {
  std::transform(s.begin(), s.end(), s.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return s;
}
[[nodiscard]] inline bool has(const std::string& s, const char* part) {
  return s.find(part) != std::string::npos;
}

[[nodiscard]] inline simulator simulator_of(const std::string& name) {
  const std::string s = lower(name);
  if (has(s, "attacc")) {
    return simulator::attacc;  // before Ramulator, on which it is built
  }
  if (has(s, "aim_simulator") || has(s, "aim simulator")) {
    return simulator::aim;
  }
  if (has(s, "pimsimulator")) {
    return simulator::pimsimulator;
  }
  if (has(s, "dramsim3")) {
    return simulator::dramsim3;
  }
  return has(s, "ramulator") ? simulator::ramulator2 : simulator::unknown;
}

/// "(2 ranks, ...)" in a configuration's description; 1 when it says nothing.
[[nodiscard]] inline std::int64_t ranks_of(const std::string& config) {
  const std::size_t at = config.find(" ranks");
  if (at == std::string::npos || at == 0) {
    return 1;
  }
  const char digit = config[at - 1];
  return digit >= '1' && digit <= '9' ? digit - '0' : 1;
}

/// Looks timing values up under the names the simulators use; remembers what is missing.
class timing_table {
 public:
  explicit timing_table(const json& device) {
    for (const char* key : {"timing_cycles", "timing_ticks", "timing"}) {
      if (const json* found = member(device, key); found != nullptr && found->is_object()) {
        table_ = found;
        return;
      }
    }
    problem_ = "has no timing table";
  }
  [[nodiscard]] std::optional<std::int32_t> find(std::initializer_list<const char*> names) {
    if (table_ == nullptr) {
      return std::nullopt;
    }
    const auto value = integer(*table_, names);
    if (!value) {
      return std::nullopt;
    }
    if (*value < 0 || *value > 100'000'000) {
      problem_ = std::string("timing value ") + *names.begin() + " is out of range";
      return std::nullopt;
    }
    return static_cast<std::int32_t>(*value);
  }
  [[nodiscard]] std::int32_t need(std::initializer_list<const char*> names) {
    const auto value = find(names);
    if (!value && problem_.empty()) {
      problem_ = std::string("timing value ") + *names.begin() + " is missing";
    }
    return value.value_or(0);
  }
  [[nodiscard]] std::int32_t get(std::initializer_list<const char*> names, std::int32_t otherwise) {
    return find(names).value_or(otherwise);
  }
  [[nodiscard]] const std::string& problem() const { return problem_; }

 private:
  const json* table_ = nullptr;
  std::string problem_;
};

inline void read_timing(timing_table& table, pim::timing& t) {
  t.cl = table.need({"nCL", "CL", "RL", "tCL"});
  t.cwl = table.get({"nCWL", "CWL", "WL", "tCWL"}, t.cl);
  t.bl = std::max(1, table.need({"nBL", "nBL_min", "BL_cycles", "burst_cycles", "tBL"}));
  t.rcd_rd = table.need({"nRCDRD", "tRCDRD", "nRCD", "tRCD"});
  t.rcd_wr = table.get({"nRCDWR", "tRCDWR", "nRCD", "tRCD"}, t.rcd_rd);
  t.rcd_mac = table.get({"nRCDRDMAC"}, t.rcd_rd);
  t.rp = table.need({"nRP", "tRP"});
  t.rp_ab = table.get({"nRPab", "tRPab"}, t.rp);
  t.ras = table.need({"nRAS", "tRAS"});
  t.rc = table.get({"nRC", "tRC"}, t.ras + t.rp);
  t.ccd_s = std::max(t.bl, table.get({"nCCDS", "tCCD_S_eff", "tCCD_S", "tCCDS", "tCCD"}, t.bl));
  t.ccd_l = std::max(t.ccd_s, table.get({"nCCDL", "tCCD_L_eff", "tCCD_L", "tCCDL"}, t.ccd_s));
  t.mac = t.lut = t.ccd_l;
  t.rrd_s = table.get({"nRRDS", "tRRD_S", "tRRDS", "nRRD", "tRRD"}, 0);
  t.rrd_l = table.get({"nRRDL", "tRRD_L", "tRRDL"}, t.rrd_s);
  t.faw = table.get({"nFAW", "tFAW"}, 0);  // a value under another name is one that the tool does not enforce
  t.rtp = table.get({"read_to_precharge", "tRTP_used", "nRTP", "tRTP", "nRTPL", "nRTPS", "tRTPL"}, 0);
  const std::int32_t wr = table.get({"nWR", "tWR"}, 0);
  t.write_to_pre = table.get({"write_to_precharge"}, t.cwl + t.bl + wr);
  const std::int32_t wtr_l = table.get({"nWTRL", "tWTR_L", "tWTRL", "nWTR", "tWTR"}, 0);
  const std::int32_t wtr_s = table.get({"nWTRS", "tWTR_S", "tWTRS"}, wtr_l);
  t.write_to_read_l = table.get({"write_to_read"}, t.cwl + t.bl + wtr_l);
  t.write_to_read_s = table.get({"write_to_read"}, t.cwl + t.bl + wtr_s);
  t.read_to_write = table.get({"read_to_write", "nRTW", "tRTW"}, std::max(0, t.cl + t.bl + 2 - t.cwl));
  t.refi = table.get({"nREFI", "tREFI"}, 0);
  t.rfc = table.get({"nRFC", "nRFCab", "tRFC", "tRFCab"}, 0);
  t.pre_to_ref = t.rp_ab;
}

/// What each simulator's controller adds.
inline void read_controller(timing_table& table, const std::string& config, reference_device& d) {
  pim::controller& c = d.description.controller;
  pim::timing& t = d.description.timing;
  switch (d.kind) {
    case simulator::pimsimulator:
      c.start = 2;  // a request moves through two queues first
      c.read_end = 1;
      c.dependent_gap = 3;  // the return, and the two queues again
      c.closes_idle_rows = true;
      t.pre_to_ref = 1;  // REF follows the last PRE at once
      c.refresh = pim::refresh_policy::until_pre;
      d.queue = {64, 1, true};
      break;
    case simulator::dramsim3:
      c.start = 1;
      c.read_end = 1;
      c.dependent_gap = 2;
      c.first_refresh = static_cast<std::int32_t>(t.refi / ranks_of(config));  // ranks take turns
      d.queue = {32 + 8 * 16, 1, !has(lower(config), "hbm")};                  // 32 transactions, 8 commands per bank
      break;
    case simulator::ramulator2: {
      c.start = 1;
      c.dependent_gap = 1;
      c.refresh = pim::refresh_policy::first_column;
      const std::string standard = lower(config);
      if (const auto act = table.find({"ACT_command_ticks"})) {  // HBM3, HBM4: half clocks
        t.act_extra = std::max(0, *act - 1);
        c.alignment = std::max(1, table.get({"column_command_ticks"}, 2));
      } else if (has(standard, "hbm")) {
        c.start = 2;
      } else if (has(standard, "lpddr")) {
        t.act_extra = 1;  // ACT1, then ACT2
      }
      d.queue = {32, 1 << 20, false};
      break;
    }
    case simulator::aim:
    case simulator::attacc:
    case simulator::unknown: break;
  }
}

inline void read_pim(timing_table& table, reference_device& d) {
  pim::device& description = d.description;
  pim::timing& t = description.timing;
  pim::pim_units& p = description.pim;
  pim::controller& c = description.controller;
  if (d.kind == simulator::aim) {
    p.present = true;
    p.lanes = p.macs_per_column = 16;
    p.mode_switch = table.get({"nMODCH"}, 0);
    p.buffer_interval = t.bl;
    p.buffer_out_to_in = t.bl + 3;  // register read latency 0, write latency 1, turn-around 1
    p.buffer_in_to_out = 1 + t.bl + table.get({"nWTRL"}, 0);
    p.buffer_latency = t.bl + 1;
    p.mac_latency = 1;
    t.mac = t.ccd_l;
    t.faw = 0;   // not enforced
    t.refi = 0;  // never refreshes
    c.start = 1;
    c.read_end = c.pim_end = 1;
    c.rows_in_order = true;
  } else if (d.kind == simulator::attacc) {
    p.present = true;
    p.lanes = p.macs_per_column = 16;
    p.moves_overlap_macs = true;
    p.buffer_interval = t.bl;  // neighbours in the queue go to different bank groups
    p.mac_latency = 0;
    t.pre_to_ref = 1;  // its model does not hold REF back after PREA
    c.start = 1;
    c.refresh = pim::refresh_policy::until_pre;
    d.mac_power_limited = table.find({"nCCDAB_power_limited", "nCCDAB"});
    d.mac_unlimited = table.find({"nCCDAB_unlimited"});
  } else if (d.kind == simulator::pimsimulator) {
    p.present = true;
    p.banks_per_unit = 2;
    p.lanes = p.macs_per_column = 16;
  }
}

/// Public figures of DRAMsim3's own configuration files (VDD x IDD3N x chips, VDD x IDD2N x chips), for devices whose
/// entry leaves the standby power out.
struct published_standby {
  const char* config;
  double active_pj_per_cycle;
  double precharge_pj_per_cycle;
};
inline constexpr published_standby standby_table[] = {
    {"DDR4_8Gb_x8_2400", 1.2 * 43 * 8, 1.2 * 34 * 8},
    {"HBM2_8Gb_x128", 1.2 * 55, 1.2 * 40},
};

inline void read_energy(const json& device, const std::string& config, reference_device& d) {
  const json* table = nullptr;
  for (const auto& [key, value] : device.items()) {
    if (key.rfind("energy_pJ_per_event", 0) == 0 && value.is_object()) {
      table = &value;
    }
  }
  if (table == nullptr) {
    return;
  }
  pim::energy_costs& e = d.description.energy;
  bool act = false;
  bool read = false;
  for (const auto& [key, value] : table->items()) {
    const auto pj = number(&value);
    if (!pj || *pj < 0 || *pj > 1e9) {
      continue;
    }
    if (key == "ACT") {
      e.act_pj = *pj;
      act = true;
    } else if (key.rfind("RD", 0) == 0) {
      e.read_column_pj = *pj;
      read = true;
    } else if (key.rfind("WR", 0) == 0) {
      e.write_column_pj = *pj;
      d.has_write_energy = true;
    } else if (key == "REF") {
      e.refresh_pj = *pj;
    } else if (key == "active_standby_per_cycle") {
      e.active_standby_pj_per_cycle = *pj;
      d.has_standby_energy = true;
    } else if (key == "precharge_standby_per_cycle") {
      e.precharge_standby_pj_per_cycle = *pj;
    }
  }
  d.has_event_energy = act && read;
  for (const published_standby& known : standby_table) {
    if (!d.has_standby_energy && has(config, known.config)) {
      e.active_standby_pj_per_cycle = known.active_pj_per_cycle;
      e.precharge_standby_pj_per_cycle = known.precharge_pj_per_cycle;
      d.has_standby_energy = true;
    }
  }
  d.idle_rank_pj_per_cycle = static_cast<double>(ranks_of(config) - 1) * e.precharge_standby_pj_per_cycle;
}

inline void read_organisation(const json& device, reference_device& d) {
  pim::organisation& o = d.description.organisation;
  const auto clamp = [](std::optional<std::int64_t> value, std::int64_t otherwise, std::int64_t highest) {
    return static_cast<std::int32_t>(std::clamp<std::int64_t>(value.value_or(otherwise), 1, highest));
  };
  o.rows_per_bank = 1 << 24;
  o.column_bytes = clamp(integer(device, {"burst_bytes"}), 32, 4096);
  const auto per_row = integer(device, {"bursts_per_row"});
  const auto row_bytes = integer(device, {"row_bytes"});
  const std::int64_t columns =
      std::clamp<std::int64_t>(per_row.value_or(row_bytes.value_or(1024) / o.column_bytes), 1, 4096);
  o.row_bytes = static_cast<std::int32_t>(columns * o.column_bytes);
  if (d.kind == simulator::attacc) {
    const std::int32_t per_channel = clamp(integer(device, {"banks_per_channel"}), 64, 1024);
    o.channels = std::max(1, clamp(integer(device, {"banks_per_stack"}), 1024, 65536) / per_channel);
    o.pseudo_channels = per_channel % 32 == 0 ? 2 : 1;
    o.pseudo_channels_share_bus = true;
    o.ranks = std::max(1, per_channel / (o.pseudo_channels * 16));
    o.bank_groups = o.banks_per_group = 4;
    return;
  }
  const std::int32_t banks = clamp(integer(device, {"banks"}), 16, 1024);
  o.bank_groups = clamp(integer(device, {"bank_groups"}), 1, banks);
  o.banks_per_group = std::max(1, banks / o.bank_groups);
}

}  // namespace detail

/// Reads one entry of a reference file's "devices".
[[nodiscard]] inline reference_device read_reference_device(const std::string& id, const json& entry) {
  reference_device d;
  if (!entry.is_object()) {
    d.problem = "is not an object";
    return d;
  }
  d.kind = detail::simulator_of(text(member(entry, "simulator")));
  if (d.kind == simulator::unknown) {
    d.problem = "is of a simulator whose controller is not known";
    return d;
  }
  pim::set_name(d.description, id.c_str());
  // Where the configuration is not named, its identifier often says which standard it is.
  const std::string config = text(member(entry, "config")) + " " + text(member(entry, "standard")) + " " + id;
  if (const auto ns = number(member(entry, "tCK_ns") != nullptr ? member(entry, "tCK_ns") : member(entry, "tick_ns"))) {
    d.description.timing.tck_ps = static_cast<std::int32_t>(std::clamp(*ns * 1000.0 + 0.5, 1.0, 1e6));
  }
  detail::timing_table table(entry);
  detail::read_timing(table, d.description.timing);
  detail::read_controller(table, config, d);
  detail::read_pim(table, d);
  detail::read_organisation(entry, d);
  detail::read_energy(entry, config, d);
  d.problem = table.problem();
  if (d.problem.empty()) {
    if (const pqattn::status valid = pim::validate(d.description); !valid) {
      char sentence[256];
      valid.format(sentence, sizeof sentence);
      d.problem = sentence;
    }
  }
  return d;
}

}  // namespace pqattn_pim
