// SPDX-License-Identifier: MIT
#include "pqattn/bank/pim/core_walker.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>

#include "pqattn/bank/pim/presets.hpp"
#include "random_devices.hpp"
#include "support/message.hpp"

namespace pim = pqattn::pim;

namespace {

pim::core_counters run(const pim::device& d, std::int64_t tasklets, const pim::core_work& work) {
  pim::core_walker core;
  REQUIRE_OK(core.configure(d, tasklets));
  core.run(work);
  return core.counted();
}

}  // namespace

TEST_CASE("one thread does one thing after the other", "[pim][core]") {
  const pim::device d = pim::upmem_ddr4();
  const pim::core_work work{7, 1024, 300, 64};
  const std::int64_t in = pim::dma_cycles(d.core, 1024, false);
  const std::int64_t out = pim::dma_cycles(d.core, 64, true);
  const pim::core_counters c = run(d, 1, work);
  CHECK(c.cycles == 7 * (in + 300 * d.core.issue_distance + out));
  CHECK(c.instructions == 7 * 300);
  CHECK(c.dma_bytes == 7 * (1024 + 64));
  CHECK(c.dma_transfers == 14);
  CHECK(c.dma_cycles == 7 * (in + out));
}

TEST_CASE("computing alone is the closed form of the issue rule", "[pim][core]") {
  const pim::device d = pim::upmem_ddr4();
  for (const std::int64_t tasklets : {1, 2, 10, 11, 12, 24}) {
    const pim::core_counters c = run(d, tasklets, {tasklets, 0, 1000, 0});
    CHECK(c.cycles == pim::core_cycles(d.core, 1000 * tasklets, tasklets));
  }
}

TEST_CASE("moving alone is the engine's time, however many threads wait", "[pim][core]") {
  const pim::device d = pim::upmem_ddr4();
  for (const std::int64_t tasklets : {1, 5, 24}) {
    CHECK(run(d, tasklets, {50, 2048, 0, 0}).cycles == 50 * pim::dma_cycles(d.core, 2048, false));
  }
}

TEST_CASE("threads hide transfers, never below either resource", "[pim][core]") {
  pim_test::random_source random(11);
  const pim::device d = pim::upmem_ddr4();
  for (int i = 0; i < 200; ++i) {
    const pim::core_work work{random.from(1, 60), random.from(0, 4096), random.from(0, 3000), random.from(0, 512)};
    const std::int64_t tasklets = random.from(1, 24);
    const pim::core_counters many = run(d, tasklets, work);
    const pim::core_counters one = run(d, 1, work);
    CHECK(many.instructions == one.instructions);
    CHECK(many.dma_cycles == one.dma_cycles);
    CHECK(many.cycles <= one.cycles);
    CHECK(many.cycles >= many.dma_cycles);
    CHECK(many.cycles >= many.instructions);
    const std::int64_t rounds = pim::ceil_div(work.chunks, tasklets);
    CHECK(many.cycles >= rounds * work.instructions * d.core.issue_distance);
  }
}

TEST_CASE("devices without cores are refused", "[pim][core]") {
  pim::core_walker core;
  CHECK(core.configure(pim::hbm3_attacc(), 16).code == pqattn::status_code::unsupported);
}
