// SPDX-License-Identifier: MIT
// Devices with public figures. Each number names where it comes from:
//   [A]  AttAcc simulator (scale-snu/attacc_simulator, MIT), its HBM3-PIM model and energy table
//   [S]  SAITPublic/PIMSimulator, HBM2 configuration (figures only)
//   [M]  arkhadem/aim_simulator (MIT), GDDR6 AiM timing
//   [R]  CMU-SAFARI/ramulator2 2.1 (MIT)
//   [D]  umd-memsys/DRAMsim3 (MIT), configuration files
//   [U]  VIA-Research/uPIMulator and the UPMEM documentation
//   [F]  O'Connor et al., Fine-Grained DRAM, MICRO 2017, as quoted by [A]
//   [P]  AQPIM, arXiv 2604.18137
//   [=]  derived from the fields above it
//   [?]  an assumption of ours, stated
#pragma once

#include <string_view>

#include "device.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

namespace detail {

/// HBM energies shared by the HBM presets.
[[nodiscard]] constexpr energy_costs hbm_energy() noexcept {
  energy_costs e;
  e.act_pj = 909.0;               // [F] ACT + PRE of a 1 KB row
  e.cell_pj_per_bit = 0.44;       // [A] citing [F]
  e.group_pj_per_bit = 1.01;      // [A]
  e.global_pj_per_bit = 1.23;     // [A]
  e.tsv_pj_per_bit = 0.5;         // [A]
  e.interposer_pj_per_bit = 0.3;  // [A]
  e.mac_pj = 0.32;                // [A] per fp16 multiply-add
  e.buffer_pj_per_byte = 0.0034;  // [A] (implausibly low; kept as published)
  e.refresh_pj = 60840.0;         // [D] REF of HBM2 x128, 8 Gb; no HBM3 figure is public
  return e;
}

/// Fills the write and turn-around distances from JEDEC's tWR, tWTR and the latencies.
constexpr void derive_turnarounds(timing& t, std::int32_t wr, std::int32_t wtr_s, std::int32_t wtr_l,
                                  std::int32_t turn) noexcept {
  t.write_to_pre = t.cwl + t.bl + wr;            // [=] JEDEC
  t.write_to_read_s = t.cwl + t.bl + wtr_s;      // [=]
  t.write_to_read_l = t.cwl + t.bl + wtr_l;      // [=]
  t.read_to_write = t.cl + t.bl + turn - t.cwl;  // [=]
  t.rp_ab = t.rp_ab > 0 ? t.rp_ab : t.rp;
  t.pre_to_ref = t.rp_ab;
}

}  // namespace detail

/// AttAcc, bank level, HBM3 at 5.2 Gb/s with the power limit on all-bank MACs: the default, and the baseline of AQPIM.
[[nodiscard]] constexpr device hbm3_attacc() noexcept {
  device d;
  set_name(d, "hbm3_attacc");
  auto& o = d.organisation;
  o.stacks = 4;                        // [P] four of five stacks are PIM
  o.channels = 16;                     // [A]
  o.pseudo_channels = 2;               // [A]
  o.pseudo_channels_share_bus = true;  // [A] one MACAB drives 2 pCH x 2 ranks x 16 banks
  o.ranks = 2;                         // [A] HBM3_8Gb_2R
  o.bank_groups = 4;                   // [A]
  o.banks_per_group = 4;               // [A]
  o.rows_per_bank = 1 << 14;           // [A]
  o.row_bytes = 1024;                  // [A]
  o.column_bytes = 32;                 // [A]
  auto& t = d.timing;
  t.tck_ps = 769;                                    // [A] 1.3 GHz
  t.cl = 19;                                         // [A]
  t.cwl = 6;                                         // [A]
  t.bl = 2;                                          // [A]
  t.rcd_rd = t.rcd_wr = t.rcd_mac = 19;              // [A]
  t.rp = t.rp_ab = 19;                               // [A]
  t.ras = 45;                                        // [A]
  t.rc = 63;                                         // [A]
  t.ccd_s = 2;                                       // [A]
  t.ccd_l = 4;                                       // [A]
  t.mac = 6;                                         // [A] nCCDAB, power limited
  t.lut = 6;                                         // [?] a look-up slot draws what a MAC column draws
  t.rrd_s = 2;                                       // [A]
  t.rrd_l = 4;                                       // [A]
  t.faw = 39;                                        // [A]; all-bank ACT is one slot there
  t.rtp = 8;                                         // [A] nRTPL
  detail::derive_turnarounds(t, 21, 8, 11, 2);       // [A] nWR, nWTRS, nWTRL
  t.refi = 5070;                                     // [A]
  t.rfc = 456;                                       // [A]
  t.pre_to_ref = 1;                                  // [A] its model lets REF follow PREA without nRP
  d.controller.refresh = refresh_policy::until_pre;  // [A] MACs go on as second command while PREA is not ready
  auto& p = d.pim;
  p.present = true;
  p.banks_per_unit = 1;          // [A] bank level
  p.lanes = 16;                  // [A]
  p.macs_per_column = 16;        // [A]
  p.register_file_bytes = 512;   // [?]
  p.global_buffer_bytes = 4096;  // [?] the GEMV buffer's size is not in the model
  p.lookups_per_slot = 1;        // [P] is silent; 1 is what a column decoder can do
  p.activate_banks = 0;          // [A]
  p.moves_overlap_macs = true;   // [A]
  p.buffer_interval = 2;         // [A] nCCDS: neighbouring moves go to different bank groups
  p.softmax_per_cycle = 16;      // [A] 16 cycles for 256 elements
  d.energy = detail::hbm_energy();
  d.link.bytes_per_second = 256'000'000'000;  // [A] DGX CPU interface, per direction
  d.link.pj_per_bit = 1.3;                    // [A] NVLink class
  d.capacity_bytes = o.total_bytes();         // [=] 64 GiB
  return d;
}

/// The same without the power limit.
[[nodiscard]] constexpr device hbm3_attacc_npc() noexcept {
  device d = hbm3_attacc();
  set_name(d, "hbm3_attacc_npc");
  d.timing.mac = 4;  // [A] nCCDAB of the NPC presets
  d.timing.lut = 4;  // [?] as above
  return d;
}

/// Samsung HBM2-PIM (Aquabolt-XL): one unit per two banks.
[[nodiscard]] constexpr device hbm2_pim_samsung() noexcept {
  device d;
  set_name(d, "hbm2_pim_samsung");
  auto& o = d.organisation;
  o.stacks = 4;               // [S] 64 pseudo-channels in its view
  o.channels = 16;            // [S] one pseudo-channel each
  o.bank_groups = 4;          // [S]
  o.banks_per_group = 4;      // [S]
  o.rows_per_bank = 1 << 14;  // [S]
  o.row_bytes = 1024;         // [S]
  o.column_bytes = 32;        // [S]
  auto& t = d.timing;
  t.tck_ps = 1000;                                   // [S]
  t.cl = 20;                                         // [S] RL
  t.cwl = 8;                                         // [S] WL
  t.bl = 2;                                          // [S]
  t.rcd_rd = 14;                                     // [S]
  t.rcd_wr = 10;                                     // [S]
  t.rcd_mac = 14;                                    // [S] MAC is triggered by a read
  t.rp = t.rp_ab = 14;                               // [S]
  t.ras = 33;                                        // [S]
  t.rc = 47;                                         // [S]
  t.ccd_s = 2;                                       // [S]
  t.ccd_l = 4;                                       // [S]
  t.mac = 4;                                         // [S]
  t.lut = 4;                                         // [?] no look-up exists there; one column each
  t.rrd_s = 4;                                       // [S]
  t.rrd_l = 6;                                       // [S]
  t.rtp = 3;                                         // [S] BL/2 + max(tRTPL, tCCDL) - tCCDL
  t.write_to_pre = 26;                               // [S]
  t.read_to_write = 15;                              // [S]
  t.write_to_read_s = t.write_to_read_l = 19;        // [S]
  t.refi = 3900;                                     // [S]
  t.rfc = 350;                                       // [S]
  t.pre_to_ref = 1;                                  // [S] REF follows the last PRE at once
  d.controller.refresh = refresh_policy::until_pre;  // [S]
  d.controller.closes_idle_rows = true;              // [S]
  auto& p = d.pim;
  p.present = true;
  p.banks_per_unit = 2;         // [S]
  p.lanes = 16;                 // [S]
  p.macs_per_column = 16;       // [S]
  p.register_file_bytes = 512;  // [S] GRF_A and GRF_B, 8 x 256 bit each
  p.buffer_interval = 4;        // [S] GRF writes are column writes
  p.softmax_per_cycle = 16;     // [?] it has no softmax unit
  d.energy = detail::hbm_energy();
  d.link.bytes_per_second = 64'000'000'000;  // [A] PCIe 5 x16, per direction
  d.link.pj_per_bit = 1.3;                   // [A]
  d.capacity_bytes = o.total_bytes();
  return d;
}

/// SK hynix GDDR6-AiM: one unit per bank, 2 KB global buffer, register and MAC modes.
[[nodiscard]] constexpr device gddr6_aim() noexcept {
  device d;
  set_name(d, "gddr6_aim");
  auto& o = d.organisation;
  o.channels = 32;            // [M] the CENT device
  o.bank_groups = 4;          // [M]
  o.banks_per_group = 4;      // [M]
  o.rows_per_bank = 1 << 14;  // [M]
  o.row_bytes = 2048;         // [M]
  o.column_bytes = 32;        // [M]
  auto& t = d.timing;
  t.tck_ps = 500;                               // [M] its comment; the tool prints 1 ns
  t.cl = 50;                                    // [M]
  t.cwl = 6;                                    // [M]
  t.bl = 2;                                     // [M]
  t.rcd_rd = 36;                                // [M]
  t.rcd_wr = 28;                                // [M]
  t.rcd_mac = 56;                               // [M] nRCDRDMAC
  t.rp = t.rp_ab = 32;                          // [M]
  t.ras = 54;                                   // [M]
  t.rc = 89;                                    // [M]
  t.ccd_s = t.ccd_l = 2;                        // [M]
  t.mac = 2;                                    // [M] nCCDL
  t.lut = 2;                                    // [?]
  t.rrd_s = 5;                                  // [M]
  t.rrd_l = 6;                                  // [M]
  t.rtp = 12;                                   // [M]
  detail::derive_turnarounds(t, 33, 9, 11, 4);  // [M] nWR, nWTRS, nWTRL; 3 + nWPRE
  auto& p = d.pim;                              // refi stays 0: [M] never refreshes and does not enforce tFAW
  p.present = true;
  p.lanes = 16;                              // [M]
  p.macs_per_column = 16;                    // [M]
  p.register_file_bytes = 32;                // [M] an accumulator per bank
  p.global_buffer_bytes = 2048;              // [M]
  p.mode_switch = 32;                        // [M] nMODCH
  p.buffer_interval = 2;                     // [M] nBL
  p.buffer_out_to_in = 5;                    // [M] nCLREG + nBL + 3 - nCWLREG + nWPRE
  p.buffer_in_to_out = 14;                   // [M] nCWLREG + nBL + nWTRL
  p.buffer_latency = 3;                      // [M] nCWLGB + nBL
  d.controller.rows_in_order = true;         // [M] in-order controller
  d.energy.act_pj = 1085.0;                  // [D] GDDR6 x16, one chip, 2 KB row
  d.energy.cell_pj_per_bit = 0.44;           // [A], an HBM figure
  d.energy.group_pj_per_bit = 1.01;          // [A], an HBM figure
  d.energy.global_pj_per_bit = 1.23;         // [A], an HBM figure
  d.energy.interposer_pj_per_bit = 5.5;      // [?] GDDR6 pins
  d.energy.mac_pj = 0.5;                     // PIMeval's AiM figure
  d.energy.buffer_pj_per_byte = 0.0034;      // [A]
  d.energy.refresh_pj = 38000.0;             // [D]
  d.link.bytes_per_second = 64'000'000'000;  // [A] PCIe 5 x16
  d.link.pj_per_bit = 1.3;                   // [A]
  d.capacity_bytes = o.total_bytes();
  return d;
}

/// Plain HBM3 at 6.4 Gb/s as Ramulator 2.1 describes it, in its half-clock ticks; PIM units assumed as in AttAcc.
[[nodiscard]] constexpr device hbm3_6400() noexcept {
  device d;
  set_name(d, "hbm3_6400");
  auto& o = d.organisation;
  o.channels = 16;                                      // [R]
  o.pseudo_channels = 2;                                // [R]
  o.bank_groups = 4;                                    // [R]
  o.banks_per_group = 4;                                // [R]
  o.rows_per_bank = 1 << 13;                            // [R] 4 Gb
  o.row_bytes = 1024;                                   // [R]
  o.column_bytes = 32;                                  // [R]
  auto& t = d.timing;                                   // all in half clocks
  t.tck_ps = 312;                                       // [R] 0.3125 ns, cut to whole picoseconds
  t.cl = 40;                                            // [R]
  t.cwl = 20;                                           // [R]
  t.bl = 4;                                             // [R]
  t.rcd_rd = t.rcd_mac = 62;                            // [R]
  t.rcd_wr = 30;                                        // [R]
  t.act_extra = 2;                                      // [R] ACT lasts three half clocks
  t.rp = t.rp_ab = 52;                                  // [R]
  t.ras = 90;                                           // [R]
  t.rc = 144;                                           // [R]
  t.ccd_s = 4;                                          // [R]
  t.ccd_l = 8;                                          // [R]
  t.mac = 8;                                            // [?] nCCDL, no power limit known
  t.lut = 8;                                            // [?]
  t.rrd_s = 8;                                          // [R]
  t.rrd_l = 10;                                         // [R]
  t.faw = 48;                                           // [R]
  t.rtp = 18;                                           // [R]
  detail::derive_turnarounds(t, 66, 14, 20, 0);         // [R] nWR, nWTRS, nWTRL
  t.read_to_write = 40;                                 // [R] nRTW
  t.refi = 12480;                                       // [R]
  t.rfc = 832;                                          // [R]
  d.controller.alignment = 2;                           // [R] column commands leave on rising edges
  d.controller.refresh = refresh_policy::first_column;  // [R]
  auto& p = d.pim;
  p.present = true;                  // [?] the units of AttAcc on this memory
  p.lanes = p.macs_per_column = 16;  // [?]
  p.register_file_bytes = 512;       // [?]
  p.global_buffer_bytes = 4096;      // [?]
  p.moves_overlap_macs = true;       // [?]
  p.buffer_interval = 8;             // [?] nCCDL
  d.energy = detail::hbm_energy();
  d.link.bytes_per_second = 256'000'000'000;  // [A]
  d.link.pj_per_bit = 1.3;                    // [A]
  d.capacity_bytes = o.total_bytes();
  return d;
}

/// HBM2 with 128-bit channels as DRAMsim3 describes it; energies per event are that tool's. PIM units assumed.
[[nodiscard]] constexpr device hbm2_dramsim3() noexcept {
  device d;
  set_name(d, "hbm2_dramsim3");
  auto& o = d.organisation;
  o.channels = 8;           // [D]
  o.bank_groups = 4;        // [D]
  o.banks_per_group = 4;    // [D]
  o.rows_per_bank = 32768;  // [D]
  o.row_bytes = 2048;       // [D]
  o.column_bytes = 64;      // [D]
  auto& t = d.timing;
  t.tck_ps = 1000;                             // [D]
  t.cl = 14;                                   // [D]
  t.cwl = 4;                                   // [D]
  t.bl = 2;                                    // [D]
  t.rcd_rd = t.rcd_wr = t.rcd_mac = 14;        // [D]
  t.rp = t.rp_ab = 14;                         // [D]
  t.ras = 34;                                  // [D]
  t.rc = 48;                                   // [D]
  t.ccd_s = t.ccd_l = 2;                       // [D] burst length rules
  t.mac = 2;                                   // [?]
  t.lut = 2;                                   // [?]
  t.rrd_s = 4;                                 // [D]
  t.rrd_l = 6;                                 // [D]
  t.faw = 30;                                  // [D]
  t.rtp = 5;                                   // [D] the tool's default; its file's value is not read
  detail::derive_turnarounds(t, 16, 6, 8, 2);  // [D] tWR, tWTR_S, tWTR_L
  t.refi = 3900;                               // [D]
  t.rfc = 260;                                 // [D]
  auto& p = d.pim;
  p.present = true;                  // [?]
  p.lanes = p.macs_per_column = 32;  // [?] 64-byte columns of fp16
  p.moves_overlap_macs = true;       // [?]
  p.buffer_interval = 2;             // [?]
  auto& e = d.energy;
  e.act_pj = 828.0;                          // [D] 2 KB row
  e.read_column_pj = 804.0;                  // [D] 64 bytes
  e.write_column_pj = 1068.0;                // [D]
  e.mac_pj = 0.32;                           // [A]
  e.refresh_pj = 60840.0;                    // [D]
  e.active_standby_pj_per_cycle = 66.0;      // [D]
  e.precharge_standby_pj_per_cycle = 48.0;   // [D]
  d.link.bytes_per_second = 64'000'000'000;  // [A]
  d.link.pj_per_bit = 1.3;                   // [A]
  d.capacity_bytes = o.total_bytes();
  return d;
}

/// Plain LPDDR5-6400 x16. No public PIM data: the units, their timing and the energies are assumptions.
[[nodiscard]] constexpr device lpddr5_6400() noexcept {
  device d;
  set_name(d, "lpddr5_6400 (no public PIM data)");
  auto& o = d.organisation;
  o.channels = 4;             // [?] a 64-bit package
  o.bank_groups = 4;          // [R]
  o.banks_per_group = 4;      // [R]
  o.rows_per_bank = 1 << 15;  // [R] 8 Gb x16
  o.row_bytes = 2048;         // [R]
  o.column_bytes = 32;        // [R]
  auto& t = d.timing;
  t.tck_ps = 1250;                                      // [R]
  t.cl = 17;                                            // [R]
  t.cwl = 9;                                            // [R]
  t.bl = 2;                                             // [R] nBL_min
  t.rcd_rd = t.rcd_wr = t.rcd_mac = 15;                 // [R]
  t.act_extra = 1;                                      // [R] ACT1 and ACT2
  t.rp = 15;                                            // [R]
  t.rp_ab = 17;                                         // [R]
  t.ras = 34;                                           // [R]
  t.rc = 49;                                            // [R]
  t.ccd_s = 2;                                          // [R]
  t.ccd_l = 4;                                          // [R]
  t.mac = 4;                                            // [?]
  t.lut = 4;                                            // [?]
  t.rrd_s = t.rrd_l = 4;                                // [R]
  t.faw = 16;                                           // [R]
  t.rtp = 8;                                            // [R]
  detail::derive_turnarounds(t, 28, 5, 10, 2);          // [R] nWR, tWTR
  t.refi = 3125;                                        // [R]
  t.rfc = 168;                                          // [R]
  d.controller.refresh = refresh_policy::first_column;  // [R]
  auto& p = d.pim;
  p.present = true;                  // [?]
  p.lanes = p.macs_per_column = 16;  // [?]
  p.moves_overlap_macs = true;       // [?]
  p.buffer_interval = 4;             // [?]
  auto& e = d.energy;
  e.act_pj = 1085.0;                         // [?] the GDDR6 figure of [D], same row size
  e.cell_pj_per_bit = 0.44;                  // [?] HBM figure
  e.group_pj_per_bit = 1.01;                 // [?]
  e.global_pj_per_bit = 1.23;                // [?]
  e.interposer_pj_per_bit = 4.0;             // [?] LPDDR pins
  e.mac_pj = 0.32;                           // [A]
  e.refresh_pj = 38000.0;                    // [?]
  d.link.bytes_per_second = 32'000'000'000;  // [?]
  d.link.pj_per_bit = 1.3;                   // [?]
  d.capacity_bytes = o.total_bytes();
  return d;
}

/// UPMEM DDR4 modules: a processor core per bank. The timing section is the MRAM as its core's DMA sees it.
[[nodiscard]] constexpr device upmem_ddr4() noexcept {
  device d;
  set_name(d, "upmem_ddr4");
  auto& o = d.organisation;
  o.stacks = 20;    // [U] modules of a full server
  o.channels = 16;  // [U] chips per module: the independent units
  o.bank_groups = 1;
  o.banks_per_group = 8;    // [U] DPUs per chip
  o.rows_per_bank = 65536;  // [=] 64 MB
  o.row_bytes = 1024;       // [U]
  o.column_bytes = 8;       // [U]
  auto& t = d.timing;
  t.tck_ps = 417;                        // [U] 2.4 GHz
  t.cl = 32;                             // [U]
  t.bl = 8;                              // [U]
  t.rcd_rd = t.rcd_wr = t.rcd_mac = 32;  // [U]
  t.rp = t.rp_ab = 32;                   // [U]
  t.ras = 78;                            // [U]
  t.rc = 110;                            // [=]
  t.ccd_s = t.ccd_l = 32;                // [U] one 8-byte beat per tCL
  t.mac = t.lut = 32;                    // [=]
  t.pre_to_ref = 32;
  auto& k = d.core;
  k.present = true;
  k.clock_khz = 350'000;                    // [U]
  k.tasklets = 24;                          // [U]
  k.issue_distance = 11;                    // [U] 14-stage pipeline, revolver of 11
  k.working_bytes = 65536;                  // [U]
  k.dma_setup_read = 77;                    // PrIM's measured fit, from memory: unverified
  k.dma_setup_write = 61;                   // the same
  k.dma_cycles_per_kib = 597;               // [U] 0.583 cycles per byte
  k.dma_granule_bytes = 8;                  // [U]
  k.dma_max_bytes = 2048;                   // [U]
  d.link.bytes_per_second = 6'680'000'000;  // [?] host to MRAM, order of magnitude of published measurements
  d.capacity_bytes = o.total_bytes();
  return d;
}

/// One preset by its name.
struct named_preset {
  const char* name;
  device (*make)() noexcept;
};
inline constexpr named_preset presets[] = {
    {"hbm3_attacc", &hbm3_attacc},
    {"hbm3_attacc_npc", &hbm3_attacc_npc},
    {"hbm2_pim_samsung", &hbm2_pim_samsung},
    {"gddr6_aim", &gddr6_aim},
    {"hbm3_6400", &hbm3_6400},
    {"hbm2_dramsim3", &hbm2_dramsim3},
    {"lpddr5_6400", &lpddr5_6400},
    {"upmem_ddr4", &upmem_ddr4},
};

/// The preset of that name, or unsupported.
[[nodiscard]] constexpr status find_preset(std::string_view name, device& found) noexcept {
  for (const named_preset& preset : presets) {
    if (name == preset.name) {
      found = preset.make();
      return {};
    }
  }
  return failure(status_code::unsupported, "device", "is not a preset");
}

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
