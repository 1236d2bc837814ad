// SPDX-License-Identifier: MIT
#include <pqattn/bank/pim/walker.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include <catch2/catch_test_macros.hpp>

#include "bench/pqattn_pim/barrier_queue.hpp"
#include "bench/pqattn_pim/host_queue.hpp"
#include "random_devices.hpp"

namespace pim = pqattn::pim;
using pim::opcode;

namespace {

/// A random command that the device accepts.
pim::command random_command(pim_test::random_source& random, const pim::device& d) {
  constexpr opcode kinds[] = {
      opcode::act,   opcode::pre,    opcode::rd,    opcode::wr,     opcode::mac_ab, opcode::lut,     opcode::wrgb,
      opcode::mv_in, opcode::mv_out, opcode::sfm,   opcode::act_ab, opcode::pre_ab, opcode::host_rd, opcode::host_wr,
      opcode::wait,  opcode::sync,   opcode::fence, opcode::ref,    opcode::mode,   opcode::ld_ab,   opcode::st_ab};
  const pim::organisation& o = d.organisation;
  pim::command c;
  c.op = kinds[random.from(0, std::ssize(kinds) - 1)];
  c.channel = random.small(0, o.command_channels() - 1);
  c.set = static_cast<pim::bank_set>(random.from(0, 3));
  c.bank = random.small(0, (c.set == pim::bank_set::share ? d.pim.banks_per_unit : o.banks_per_command_channel()) - 1);
  c.row = random.small(0, 3);
  c.column = random.small(0, o.columns_per_row() - 1);
  c.count = random.from(1, o.columns_per_row() - c.column);
  return c;
}

void serve(pim::walker& w, const pim::command& c) {
  const pqattn::status s = w.issue(c);
  REQUIRE(s.ok());
}

/// Everything that a run can be told by.
void check_equal(const pim::walker& a, const pim::walker& b) {
  CHECK(a.finish_cycle() == b.finish_cycle());
  CHECK(a.total() == b.total());
  for (int p = 0; p < pim::phase_count; ++p) {
    CHECK(a.total(static_cast<pim::phase>(p)) == b.total(static_cast<pim::phase>(p)));
  }
  for (std::int32_t k = 0; k < a.channel_count(); ++k) {
    for (std::int32_t bank = 0; bank < a.channel(k).bank_count(); ++bank) {
      CHECK(a.channel(k).bank(bank) == b.channel(k).bank(bank));
    }
  }
}

}  // namespace

TEST_CASE("a run of columns costs what its columns cost one by one", "[pim][walker]") {
  pim_test::random_source random(1);
  for (int i = 0; i < 60; ++i) {
    pim::device d = pim_test::random_device(random);
    d.controller.refresh = static_cast<pim::refresh_policy>(random.from(0, 2));
    d.controller.alignment = random.small(1, 3);
    d.pim.lookups_per_slot = 1;
    pim::walker runs;
    pim::walker single;
    REQUIRE(runs.configure(d).ok());
    REQUIRE(single.configure(d).ok());
    CAPTURE(i);
    for (int k = 0; k < 80; ++k) {
      pim::command c = random_command(random, d);
      if (c.op == opcode::sfm) {
        continue;  // its count is not a number of columns
      }
      serve(runs, c);
      const bool splits = c.op == opcode::rd || c.op == opcode::wr || c.op == opcode::host_rd ||
                          c.op == opcode::host_wr || c.op == opcode::mac_ab || c.op == opcode::lut ||
                          c.op == opcode::wrgb || c.op == opcode::mv_in || c.op == opcode::mv_out ||
                          c.op == opcode::ld_ab || c.op == opcode::st_ab;
      const std::int64_t count = splits ? c.count : 1;
      c.count = splits ? 1 : c.count;
      for (std::int64_t n = 0; n < count; ++n) {
        serve(single, c);
        if (c.op != opcode::lut && splits) {
          c.column = std::min(c.column + 1, d.organisation.columns_per_row() - 1);
        }
      }
    }
    check_equal(runs, single);
  }
}

TEST_CASE("the parts add up to the total", "[pim][walker]") {
  pim_test::random_source random(2);
  for (int i = 0; i < 40; ++i) {
    pim::device d = pim_test::random_device(random);
    d.organisation.channels = random.small(1, 3);
    pim::walker w;
    REQUIRE(w.configure(d).ok());
    for (int k = 0; k < 120; ++k) {
      if (random.from(0, 9) == 0) {
        w.set_phase(static_cast<pim::phase>(random.from(0, pim::phase_count - 1)));
      }
      serve(w, random_command(random, d));
    }
    const pim::totals all = w.total();
    pim::bank_counters by_bank;
    pim::totals by_phase;
    std::int64_t longest = 0;
    for (std::int32_t channel = 0; channel < w.channel_count(); ++channel) {
      std::int64_t cycles = 0;
      for (std::int32_t bank = 0; bank < w.channel(channel).bank_count(); ++bank) {
        by_bank += w.channel(channel).bank(bank);
      }
      for (int p = 0; p < pim::phase_count; ++p) {
        cycles += w.channel(channel).channel(static_cast<pim::phase>(p)).cycles;
      }
      CHECK(cycles == w.channel(channel).finish_cycle());
      longest = std::max(longest, w.channel(channel).finish_cycle());
    }
    for (int p = 0; p < pim::phase_count; ++p) {
      const pim::totals part = w.total(static_cast<pim::phase>(p));
      by_phase.bank += part.bank;
      by_phase.channel += part.channel;
    }
    CAPTURE(i);
    CHECK(by_bank == all.bank);
    CHECK(by_phase.bank == all.bank);
    CHECK(by_phase.channel == all.channel);
    CHECK(w.finish_cycle() == longest);
    CHECK(all.elapsed_cycles == longest);
    CHECK(all.bank.cell_bytes == d.organisation.column_bytes * (all.bank.rd_columns + all.bank.wr_columns +
                                                                all.bank.mac_columns + all.bank.lut_slots));
    CHECK(all.bank.macs == all.bank.mac_columns * d.pim.macs_per_column);
    CHECK(all.bank.pre_count <= all.bank.act_count);
    CHECK(all.channel.open_cycles <= all.channel.cycles);
    CHECK(all.channel.open_cycles >= 0);
  }
}

TEST_CASE("reset leaves nothing behind", "[pim][walker]") {
  pim_test::random_source random(3);
  for (int i = 0; i < 20; ++i) {
    const pim::device d = pim_test::random_device(random);
    pim::walker used;
    pim::walker fresh;
    REQUIRE(used.configure(d).ok());
    REQUIRE(fresh.configure(d).ok());
    used.set_phase(pim::phase::score);
    for (int k = 0; k < 60; ++k) {
      serve(used, random_command(random, d));
    }
    used.reset();
    CHECK(used.finish_cycle() == 0);
    CHECK(used.total() == pim::totals{});
    check_equal(used, fresh);
    for (int k = 0; k < 60; ++k) {
      const pim::command c = random_command(random, d);
      serve(used, c);
      serve(fresh, c);
    }
    check_equal(used, fresh);
  }
}

TEST_CASE("banks that are alike cost what banks kept apart cost", "[pim][walker]") {
  pim_test::random_source random(4);
  for (int i = 0; i < 60; ++i) {
    pim::device d = pim_test::random_device(random);
    d.controller.refresh = static_cast<pim::refresh_policy>(random.from(0, 2));
    pim::walker alike;
    pim::walker apart;
    REQUIRE(alike.configure(d).ok());
    REQUIRE(apart.configure(d).ok());
    serve(apart, {.op = opcode::pre, .bank = 0});  // closes nothing, but speaks of one bank
    CAPTURE(i);
    for (int k = 0; k < 150; ++k) {
      pim::command c = random_command(random, d);
      if (c.op == opcode::act || c.op == opcode::pre || c.op == opcode::rd || c.op == opcode::wr ||
          c.op == opcode::host_rd || c.op == opcode::host_wr) {
        continue;
      }
      c.set = pim::bank_set::all;
      serve(alike, c);
      serve(apart, c);
    }
    for (int k = 0; k < 50; ++k) {  // and from here on banks differ in both
      const pim::command c = random_command(random, d);
      serve(alike, c);
      serve(apart, c);
    }
    check_equal(alike, apart);
  }
}

TEST_CASE("an all-bank command is one bus event and one event in each bank", "[pim][walker]") {
  pim::device d = pim::hbm3_attacc();
  pim::walker w;
  REQUIRE(w.configure(d).ok());
  serve(w, {.op = opcode::mac_ab, .row = 1, .count = 32});
  pim::totals t = w.total();
  CHECK(t.bank.act_count == 64);
  CHECK(t.bank.mac_columns == 64 * 32);
  CHECK(t.bank.macs == 1024 * 32);
  CHECK(t.channel.row_commands == 1);
  CHECK(t.channel.column_commands == 32);
  serve(w, {.op = opcode::mac_ab, .set = pim::bank_set::odd, .row = 1, .count = 2});
  t = w.total();
  CHECK(w.channel(0).bank(1).mac_columns == 34);
  CHECK(w.channel(0).bank(2).mac_columns == 32);
  CHECK(w.channel(1).bank(1).mac_columns == 0);
}

TEST_CASE("look-ups take slots by their number per slot", "[pim][walker]") {
  pim::device d = pim::hbm3_attacc();
  for (const std::int32_t g : {1, 2, 5, 16}) {
    d.pim.lookups_per_slot = g;
    pim::walker w;
    REQUIRE(w.configure(d, {.refresh = false}).ok());
    serve(w, {.op = opcode::lut, .row = 2, .count = 33});
    CHECK(w.total().bank.lut_slots == 64 * ((33 + g - 1) / g));
    CHECK(w.total().bank.lut_lookups == 64 * 33);
    // A slot reads its whole column, whatever part of it is used.
    CHECK(w.total().bank.cell_bytes == 32 * w.total().bank.lut_slots);
  }
}

TEST_CASE("transfers run beside MACs where the device says so", "[pim][walker]") {
  for (const bool overlap : {true, false}) {
    pim::device d = pim::hbm3_attacc();
    d.pim.moves_overlap_macs = overlap;
    pim::walker w;
    REQUIRE(w.configure(d, {.refresh = false}).ok());
    serve(w, {.op = opcode::mac_ab, .row = 0, .count = 32});
    const std::int64_t macs_done = w.finish_cycle();
    serve(w, {.op = opcode::mv_out, .count = 8});
    CHECK((w.finish_cycle() == macs_done) == overlap);
  }
}

TEST_CASE("groups of activations take the window each", "[pim][walker]") {
  pim::device d = pim::hbm3_attacc();
  d.pim.activate_banks = 4;
  pim::walker w;
  REQUIRE(w.configure(d, {.refresh = false}).ok());
  serve(w, {.op = opcode::mac_ab, .row = 0});
  CHECK(w.finish_cycle() == 15 * d.timing.faw + d.timing.rcd_mac + d.pim.mac_latency);
  CHECK(w.total().channel.row_commands == 16);
}

TEST_CASE("a device with modes switches when the kind of work changes", "[pim][walker]") {
  pim::walker w;
  REQUIRE(w.configure(pim::gddr6_aim()).ok());
  serve(w, {.op = opcode::wrgb, .count = 8});
  CHECK(w.total().channel.mode_switches == 1);
  serve(w, {.op = opcode::mv_in});
  CHECK(w.total().channel.mode_switches == 1);
  serve(w, {.op = opcode::mac_ab, .count = 8});
  CHECK(w.total().channel.mode_switches == 2);
  serve(w, {.op = opcode::mv_out});
  CHECK(w.total().channel.mode_switches == 3);
}

TEST_CASE("commands outside the device change nothing", "[pim][walker]") {
  pim::walker w;
  REQUIRE(w.configure(pim::hbm3_attacc()).ok());
  serve(w, {.op = opcode::rd, .bank = 3, .row = 1});
  const pim::totals before = w.total();
  const auto refused = [&](const pim::command& c) { return !w.issue(c).ok(); };
  CHECK(refused({.op = opcode::rd, .channel = 64}));
  CHECK(refused({.op = opcode::rd, .channel = -1}));
  CHECK(refused({.op = opcode::rd, .bank = 64}));
  CHECK(refused({.op = opcode::rd, .bank = -1}));
  CHECK(refused({.op = opcode::rd, .row = 1 << 14}));
  CHECK(refused({.op = opcode::rd, .row = -1}));
  CHECK(refused({.op = opcode::rd, .column = 32}));
  CHECK(refused({.op = opcode::mac_ab, .column = 30, .count = 3}));
  CHECK(refused({.op = opcode::mac_ab, .count = -1}));
  CHECK(refused({.op = opcode::lut, .count = std::int64_t{1} << 60}));
  CHECK(w.total() == before);
  pim::walker no_pim;
  REQUIRE(no_pim.configure(pim::upmem_ddr4()).ok());
  CHECK(no_pim.issue({.op = opcode::mac_ab}).code == pqattn::status_code::unsupported);
  pim::device broken = pim::hbm3_attacc();
  broken.timing.ras = -5;
  CHECK_FALSE(no_pim.configure(broken).ok());
}

TEST_CASE("a long run of columns cannot put refreshes off for ever", "[pim][walker]") {
  const pim::device d = pim::hbm3_attacc();  // its columns come faster than a row may be closed behind them
  pim::walker run, single;
  REQUIRE(run.configure(d).ok());
  REQUIRE(single.configure(d).ok());
  constexpr std::int64_t count = 40'000;
  serve(run, {.op = opcode::lut, .row = 1, .count = count});
  for (std::int64_t i = 0; i < count; ++i) {
    serve(single, {.op = opcode::lut, .row = 1, .count = 1});
  }
  check_equal(run, single);
  CHECK(run.total().channel.ref_count >= run.finish_cycle() / d.timing.refi - 9);
  // Large runs take no time of their own.
  serve(run, {.op = opcode::lut, .row = 1, .count = std::int64_t{1} << 31});
  CHECK(run.total().channel.ref_count >= run.finish_cycle() / d.timing.refi - 9);
}

TEST_CASE("a unit shared by several banks is in as many commands as it has banks", "[pim][walker]") {
  pim::device d = pim::hbm3_attacc();
  d.timing.refi = 0;
  d.pim.banks_per_unit = 4;
  pim::walker shared;
  REQUIRE(shared.configure(d).ok());
  for (std::int32_t share = 0; share < 4; ++share) {
    serve(shared, {.op = opcode::mac_ab, .set = pim::bank_set::share, .bank = share, .row = 1, .count = 32});
  }
  for (std::int32_t bank = 0; bank < 64; ++bank) {
    CHECK(shared.channel(0).bank(bank).mac_columns == 32);
    CHECK(shared.channel(0).bank(bank).act_count == 1);
  }
  CHECK(shared.total().channel.column_commands == 4 * 32);
  // The rows open while earlier shares work, the columns come one after the other.
  pim::walker alone;
  REQUIRE(alone.configure(d).ok());
  serve(alone, {.op = opcode::mac_ab, .row = 1, .count = 32});
  CHECK(shared.finish_cycle() == alone.finish_cycle() + 3 * 32 * d.timing.mac);
  CHECK_FALSE(shared.issue({.op = opcode::mac_ab, .set = pim::bank_set::share, .bank = 4, .row = 1}).ok());
}

TEST_CASE("columns into and out of the units' registers stay in the banks", "[pim][walker]") {
  pim::device d = pim::hbm3_attacc();
  d.timing.refi = 0;
  pim::walker w;
  REQUIRE(w.configure(d).ok());
  serve(w, {.op = opcode::ld_ab, .row = 3, .count = 8});
  serve(w, {.op = opcode::st_ab, .row = 4, .column = 2, .count = 5});
  const pim::totals t = w.total();
  CHECK(t.bank.rd_columns == 64 * 8);
  CHECK(t.bank.wr_columns == 64 * 5);
  CHECK(t.bank.cell_bytes == 64 * 13 * 32);
  CHECK(t.channel.global_bytes == 0);
  CHECK(t.channel.data_cycles == 0);
  CHECK(t.channel.column_commands == 13);
  CHECK(t.bank.act_count == 2 * 64);
  const auto& m = d.timing;
  CHECK(w.finish_cycle() == d.controller.start + m.rcd_mac + 7 * m.mac + m.rtp + m.rp_ab + m.rcd_wr + 4 * m.mac +
                                m.cwl + m.bl + d.controller.pim_end);
}

TEST_CASE("a move carries a column of every pseudo-channel behind one command bus", "[pim][walker]") {
  pim::walker w;
  REQUIRE(w.configure(pim::hbm3_attacc()).ok());
  serve(w, {.op = opcode::mv_out, .count = 3});
  serve(w, {.op = opcode::wrgb, .count = 3});
  CHECK(w.total().channel.buffer_read_bytes == 3 * 64);
  CHECK(w.total().channel.buffer_write_bytes == 3 * 32);  // the same data to all
}

TEST_CASE("the trace hook sees what the counters count", "[pim][walker]") {
  struct seen {
    std::int64_t columns = 0, rows = 0;
  } events;
  pim::walk_options options;
  options.trace = [](void* user, const pim::trace_record& r) {
    auto& e = *static_cast<seen*>(user);
    switch (r.op) {
      case opcode::act:
      case opcode::act_ab:
      case opcode::pre:
      case opcode::pre_ab:
      case opcode::ref: ++e.rows; break;
      case opcode::rd:
      case opcode::wr:
      case opcode::host_rd:
      case opcode::host_wr:
      case opcode::mac_ab:
      case opcode::lut:
      case opcode::wrgb:
      case opcode::ld_ab:
      case opcode::st_ab:
      case opcode::mv_in:
      case opcode::mv_out: e.columns += r.count; break;
      default: break;
    }
  };
  options.trace_user = &events;
  pim_test::random_source random(5);
  const pim::device d = pim_test::random_device(random);
  pim::walker w;
  REQUIRE(w.configure(d, options).ok());
  for (int k = 0; k < 300; ++k) {
    serve(w, random_command(random, d));
  }
  CHECK(w.total().channel.ref_count > 0);
  CHECK(events.columns == w.total().channel.column_commands);
  CHECK(events.rows == w.total().channel.row_commands);
}

TEST_CASE("a controller that is simulated cycle by cycle agrees, with refresh too", "[pim][walker]") {
  // Two independent implementations of one set of rules: event by event here, clock by clock there.
  pim_test::random_source random(8);
  for (int i = 0; i < 120; ++i) {
    pqattn_pim::reference_device reference;
    reference.description = pim_test::random_device(random);
    reference.queue = {32, 1 << 20, false};
    pim::device& d = reference.description;
    d.controller.refresh = random.from(0, 1) == 0 ? pim::refresh_policy::block : pim::refresh_policy::first_column;
    d.controller.alignment = 1;
    d.timing.ccd_s = d.timing.ccd_l;
    // One row command a cycle there: what takes no time here takes a cycle there.
    d.timing.rp = d.timing.rp_ab = d.timing.pre_to_ref = std::max(1, d.timing.rp);
    d.timing.rcd_rd = std::max(1, d.timing.rcd_rd);
    d.timing.rtp = std::max(1, d.timing.rtp);
    const std::int64_t columns = random.from(1, d.organisation.columns_per_row());
    const std::int64_t rows = random.from(1, 200);
    pim::walker w;
    REQUIRE(w.configure(d).ok());
    for (std::int64_t r = 0; r < rows; ++r) {
      serve(w, {.op = opcode::rd, .row = static_cast<std::int32_t>(r), .count = columns});
    }
    const auto expected = pqattn_pim::host_queue(reference, true).run(rows * columns, [&](std::int64_t k) {
      return pqattn_pim::host_read{0, static_cast<std::int32_t>(k / columns)};
    });
    CAPTURE(i, rows, columns);
    CHECK(w.finish_cycle() == expected.cycles);
    CHECK(w.total().bank.act_count == expected.act_count);
    CHECK(w.total().channel.ref_count == expected.ref_count);
  }
}

TEST_CASE("the queue with barriers agrees on reads and writes of one bank", "[pim][walker]") {
  pim_test::random_source random(9);
  for (int i = 0; i < 60; ++i) {
    pim::device d = pim::hbm2_pim_samsung();
    d.controller.start = 2;
    d.controller.read_end = 1;
    d.timing.rtp = random.small(1, 3);
    d.timing.write_to_pre = random.small(20, 40);
    d.timing.refi = random.small(1500, 5000);
    const bool write = random.from(0, 1) == 1;
    const std::int64_t columns = random.from(1, 32);
    const std::int64_t rows = random.from(1, 200);
    // While rows of writes wait for their recovery the queue may serve other columns first; off for those.
    const bool refresh = !write;
    pim::walker w;
    REQUIRE(w.configure(d, {.refresh = refresh}).ok());
    for (std::int64_t r = 0; r < rows; ++r) {
      serve(w, {.op = write ? opcode::wr : opcode::rd, .row = static_cast<std::int32_t>(r), .count = columns});
    }
    const auto expected = pqattn_pim::barrier_queue(d, refresh).run(rows * columns, [&](std::int64_t k) {
      return pqattn_pim::queued_request{write, 0, static_cast<std::int32_t>(k / columns),
                                        static_cast<std::int32_t>(k % columns), false};
    });
    CAPTURE(i, rows, columns, write);
    CHECK(w.finish_cycle() == expected.cycles);
    CHECK(w.total().channel.ref_count == expected.ref_count);
  }
}
