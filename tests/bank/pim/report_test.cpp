// SPDX-License-Identifier: MIT
#include "pqattn/bank/pim/report.hpp"

#include <catch2/catch_test_macros.hpp>
#include <string>

#include "pqattn/bank/pim/presets.hpp"
#include "pqattn/bank/pim/report_json.hpp"
#include "support/message.hpp"

namespace pim = pqattn::pim;

TEST_CASE("reports say what the counters say", "[pim][report]") {
  pim::bank_options options;
  int events = 0;
  options.walk.trace = [](void* user, const pim::trace_record&) { ++*static_cast<int*>(user); };
  options.walk.trace_user = &events;
  pim::bank_programs<> programs;
  REQUIRE_OK(programs.configure(pim::hbm3_attacc(), options));
  pqattn::resident_codebook<pim::device_address> book{{128, 32, 512, 1, nullptr}, pqattn::codebook_storage::f16, {}};
  REQUIRE_OK(programs.reserve(programs.codebook_bytes(book.shape, book.storage), book.memory));
  REQUIRE_OK(programs.store_codebook(book));
  CHECK(events > 0);

  const std::int64_t cycles = programs.walked().finish_cycle();
  const auto json = pim::report_to_json(programs);
  CHECK(json["counters"]["elapsed_cycles"] == cycles);
  CHECK(json["phases"]["transfer"]["wr_columns"] == programs.walked().total().bank.wr_columns);
  CHECK(json["host"]["to_device_bytes"] == 128 * 512 * 2);
  CHECK(json["memory"]["used_bytes"] == 4 * 65536);

  std::string csv;
  pim::write_csv(
      programs, [&](const char* line) { csv += line + std::string("\n"); }, true);
  CHECK(csv.find("device,all,elapsed_cycles," + std::to_string(cycles) + "\n") != std::string::npos);
  CHECK(csv.find("bank 0.63,transfer,wr_columns,128\n") != std::string::npos);
  std::string text;
  pim::write_text(programs, [&](const char* line) { text += line + std::string("\n"); });
  CHECK(text.find("mapping subvector_per_bank: " + std::to_string(cycles) + " cycles") != std::string::npos);
  CHECK(text.find("262144 bytes in use") != std::string::npos);
}
