// SPDX-License-Identifier: MIT
#include <pqattn/bank/pim/device.hpp>

#include <limits>
#include <set>
#include <string>

#include <catch2/catch_test_macros.hpp>

#include <pqattn/bank/pim/presets.hpp>

namespace pim = pqattn::pim;

static_assert(std::is_trivially_copyable_v<pim::device>);
static_assert(pim::validate(pim::hbm3_attacc()).ok());

TEST_CASE("every preset is valid, bears a name and fits its organisation", "[pim][device]") {
  std::set<std::string> names;
  for (const pim::named_preset& preset : pim::presets) {
    const pim::device d = preset.make();
    CAPTURE(preset.name);
    CHECK(pim::validate(d).ok());
    CHECK(names.insert(d.name).second);
    CHECK(std::string(d.name).rfind(preset.name, 0) == 0);
    CHECK(d.capacity_bytes > 0);
    CHECK(d.capacity_bytes <= d.organisation.total_bytes());
    pim::device found;
    CHECK(pim::find_preset(preset.name, found).ok());
    CHECK(d.timing.rc >= d.timing.ras);
  }
  CHECK(names.size() == 8);
  pim::device untouched = pim::gddr6_aim();
  CHECK_FALSE(pim::find_preset("hbm9", untouched).ok());
  CHECK(std::string(untouched.name) == "gddr6_aim");
}

TEST_CASE("preset figures that other figures rest on", "[pim][device]") {
  CHECK(pim::hbm3_attacc().peak_macs_per_command() == 1024);      // 64 banks x 16 lanes
  CHECK(pim::hbm2_pim_samsung().peak_macs_per_command() == 128);  // 8 units x 16 lanes
  CHECK(pim::gddr6_aim().peak_macs_per_command() == 256);         // 16 banks x 16 lanes
  CHECK(pim::hbm3_attacc().capacity_bytes == std::int64_t{64} << 30);
}

TEST_CASE("validation names the field that is wrong", "[pim][device]") {
  const auto subject_of = [](auto change) {
    pim::device d = pim::hbm3_attacc();
    change(d);
    const pqattn::status s = pim::validate(d);
    CHECK_FALSE(s.ok());
    return std::string(s.subject);
  };
  CHECK(subject_of([](pim::device& d) { d.timing.cl = -1; }) == "timing.cl");
  CHECK(subject_of([](pim::device& d) { d.timing.rp = 2'000'000; }) == "timing.rp");
  CHECK(subject_of([](pim::device& d) { d.organisation.column_bytes = 48; }) == "organisation.row_bytes");
  CHECK(subject_of([](pim::device& d) { d.organisation.ranks = 0; }) == "organisation.ranks");
  CHECK(subject_of([](pim::device& d) { d.timing.ccd_l = 1; }) == "timing.ccd_l");
  CHECK(subject_of([](pim::device& d) { d.timing.refi = 400; }) == "timing.refi");
  CHECK(subject_of([](pim::device& d) { d.timing.rfc = 0; }) == "timing.rfc");
  CHECK(subject_of([](pim::device& d) { d.capacity_bytes += 1; }) == "capacity_bytes");
  CHECK(subject_of([](pim::device& d) { d.energy.mac_pj = -0.1; }) == "energy.mac_pj");
  CHECK(subject_of([](pim::device& d) { d.energy.act_pj = std::numeric_limits<double>::quiet_NaN(); }) ==
        "energy.act_pj");
  CHECK(subject_of([](pim::device& d) { d.energy.act_pj = std::numeric_limits<double>::infinity(); }) ==
        "energy.act_pj");
  CHECK(subject_of([](pim::device& d) { d.pim.banks_per_unit = 3; }) == "pim.banks_per_unit");
  CHECK(subject_of([](pim::device& d) { d.pim.macs_per_column = 0; }) == "pim.macs_per_column");
  CHECK(subject_of([](pim::device& d) {
          d.organisation.stacks = 64;
          d.organisation.channels = 256;
          d.organisation.pseudo_channels = 8;
        }) == "organisation.channels");
  CHECK(subject_of([](pim::device& d) { d.controller.refresh = static_cast<pim::refresh_policy>(7); }) ==
        "controller.refresh");
}

TEST_CASE("a name that is too long is cut", "[pim][device]") {
  pim::device d;
  pim::set_name(d, std::string(100, 'x').c_str());
  CHECK(std::string(d.name) == std::string(pim::device_name_bytes - 1, 'x'));
}
