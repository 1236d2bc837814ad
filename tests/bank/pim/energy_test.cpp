// SPDX-License-Identifier: MIT
#include <pqattn/bank/pim/energy.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include "random_devices.hpp"

namespace pim = pqattn::pim;
using Catch::Approx;
using pim::opcode;

TEST_CASE("energy by class is the formula of each class", "[pim][energy]") {
  const pim::device d = pim::hbm3_attacc();
  pim::totals t;
  t.bank.act_count = 3;
  t.bank.cell_bytes = 100;
  t.bank.macs = 7;
  t.channel.group_bytes = 10;
  t.channel.global_bytes = 20;
  t.channel.tsv_bytes = 30;
  t.channel.interposer_bytes = 40;
  t.channel.ref_count = 2;
  const pim::energy_report e = pim::energy_of(d, t, 1000);
  CHECK(e.activate_pj == Approx(3 * 909.0));
  CHECK(e.array_pj == Approx(800 * 0.44));
  CHECK(e.group_pj == Approx(80 * 1.01));
  CHECK(e.global_pj == Approx(160 * 1.23));
  CHECK(e.tsv_pj == Approx(240 * 0.5));
  CHECK(e.interposer_pj == Approx(320 * 0.3));
  CHECK(e.mac_pj == Approx(7 * 0.32));
  CHECK(e.refresh_pj == Approx(2 * 60840.0));
  double sum = 0;
  pim::visit_energy([&](const char*, auto field) { sum += e.*field; });
  CHECK(e.total_pj() == Approx(sum));
  CHECK(pim::link_energy_pj(d, 1000) == Approx(8000 * 1.3));
}

TEST_CASE("an activation is charged whole, however little is read", "[pim][energy]") {
  const pim::device d = pim::hbm3_attacc();
  const auto activation = [&](std::int64_t lookups) {
    pim::walker w;
    REQUIRE(w.configure(d, {.refresh = false}).ok());
    REQUIRE(w.issue({.op = opcode::lut, .row = 1, .count = lookups}).ok());
    return w.energy();
  };
  CHECK(activation(1).activate_pj == Approx(64 * 909.0));
  CHECK(activation(500).activate_pj == activation(1).activate_pj);
  // One look-up slot reads a whole column: 256 bits of every bank.
  CHECK(activation(1).array_pj == Approx(64 * 256 * 0.44));
}

TEST_CASE("standby follows the time some row is open", "[pim][energy]") {
  // Published: four rows of 32 reads are 379 cycles of which 43 have no row open, 130464 pJ in all.
  pim::device d = pim::hbm2_dramsim3();
  d.controller.start = 1;
  d.controller.read_end = 1;
  d.organisation.channels = 1;
  d.capacity_bytes = 0;
  pim::walker w;
  REQUIRE(w.configure(d, {.refresh = false}).ok());
  for (std::int32_t r = 0; r < 4; ++r) {
    REQUIRE(w.issue({.op = opcode::rd, .row = r, .count = 32}).ok());
  }
  CHECK(w.finish_cycle() == 379);
  CHECK(w.total().channel.open_cycles == 379 - 43);
  CHECK(w.energy().standby_pj == Approx(336 * 66.0 + 43 * 48.0));
}

TEST_CASE("energy of the phases is the energy of the whole where no clock is shared", "[pim][energy]") {
  pim_test::random_source random(31);
  pim::device d = pim_test::random_device(random);
  d.energy = pim::detail::hbm_energy();
  pim::walker w;
  REQUIRE(w.configure(d).ok());
  for (int p = 0; p < pim::phase_count; ++p) {
    w.set_phase(static_cast<pim::phase>(p));
    REQUIRE(w.issue({.op = opcode::mac_ab, .row = p, .count = 1}).ok());
    REQUIRE(w.issue({.op = opcode::host_rd, .row = p, .count = 1}).ok());
  }
  double sum = 0;
  for (int p = 0; p < pim::phase_count; ++p) {
    sum += w.energy(static_cast<pim::phase>(p)).total_pj();
  }
  CHECK(sum == Approx(w.energy().total_pj()));
}
