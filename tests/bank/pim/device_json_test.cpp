// SPDX-License-Identifier: MIT
#include <pqattn/bank/pim/device_json.hpp>

#include <cstring>
#include <string>

#include <catch2/catch_test_macros.hpp>

#include "random_devices.hpp"

namespace pim = pqattn::pim;

namespace {

/// The sentence with which a text is refused; the target stays as it was.
std::string refusal(const std::string& text) {
  pim::device d = pim::gddr6_aim();
  const std::string before = pim::device_to_json(d).dump();
  std::string message;
  const pqattn::status s = pim::device_from_json_text(text, d, message);
  CHECK_FALSE(s.ok());
  CHECK_FALSE(message.empty());
  CHECK(pim::device_to_json(d).dump() == before);
  return message;
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

std::string with(const char* section, const char* member) {
  return std::string("{\"base\": \"hbm3_attacc\", \"") + section + "\": {" + member + "}}";
}

}  // namespace

TEST_CASE("a device survives the way through JSON", "[pim][json]") {
  for (const pim::named_preset& preset : pim::presets) {
    const pim::device d = preset.make();
    pim::device back;
    std::string message = "something";
    const pqattn::status read = pim::device_from_json_text(pim::device_to_json(d).dump(), back, message);
    CAPTURE(preset.name, message);
    REQUIRE(read.ok());
    CHECK(message.empty());
    CHECK(pim::device_to_json(back) == pim::device_to_json(d));
  }
  pim_test::random_source random(7);
  for (int i = 0; i < 50; ++i) {
    const pim::device d = pim_test::random_device(random);
    pim::device back;
    std::string message;
    REQUIRE(pim::device_from_json_text(pim::device_to_json(d).dump(), back, message).ok());
    CHECK(pim::device_to_json(back) == pim::device_to_json(d));
  }
}

TEST_CASE("a base supplies what is not given", "[pim][json]") {
  pim::device d;
  std::string message;
  REQUIRE(pim::device_from_json_text(with("timing", "\"mac\": 5"), d, message).ok());
  CHECK(d.timing.mac == 5);
  CHECK(d.timing.cl == 19);
}

TEST_CASE("JSON that is no device is refused with the place", "[pim][json]") {
  CHECK(contains(refusal(""), "not a JSON"));
  CHECK(contains(refusal("{"), "not a JSON"));
  CHECK(contains(refusal("[1]"), "object"));
  CHECK(contains(refusal("null"), "object"));
  CHECK(contains(refusal("{\"base\": 3}"), "base"));
  CHECK(contains(refusal("{\"base\": \"hbm9\"}"), "preset"));
  CHECK(contains(refusal("{\"name\": \"x\"}"), "organisation.stacks is missing"));
  CHECK(contains(refusal("{}"), "name"));
  CHECK(contains(refusal("{\"name\": 5}"), "name"));
  CHECK(contains(refusal("{\"name\": \"" + std::string(500, 'n') + "\"}"), "at most"));
  CHECK(contains(refusal(with("timing", "\"clock\": 1")), "timing.clock"));
  CHECK(contains(refusal("{\"base\": \"hbm3_attacc\", \"timings\": {}}"), "timings"));
  CHECK(contains(refusal("{\"base\": \"hbm3_attacc\", \"\": {}}"), "not a member"));
  CHECK(contains(refusal("{\"base\": \"hbm3_attacc\", \"timing\": 3}"), "timing"));
  CHECK(contains(refusal("{\"base\": \"hbm3_attacc\", \"timing\": []}"), "timing"));
  CHECK(contains(refusal("{\"base\": \"hbm3_attacc\", \"capacity_bytes\": {}}"), "capacity_bytes"));
  CHECK(contains(refusal(with("timing", "\"cl\": -1")), "timing.cl"));
  CHECK(contains(refusal(with("timing", "\"cl\": 1.5")), "timing.cl"));
  CHECK(contains(refusal(with("timing", "\"cl\": \"19\"")), "timing.cl"));
  CHECK(contains(refusal(with("timing", "\"cl\": null")), "timing.cl"));
  CHECK(contains(refusal(with("timing", "\"cl\": 1e300")), "timing.cl"));
  CHECK(contains(refusal(with("timing", "\"cl\": 4294967296")), "timing.cl"));
  CHECK(contains(refusal(with("timing", "\"cl\": 18446744073709551615")), "timing.cl"));
  CHECK(contains(refusal(with("timing", "\"cl\": 99999999999999999999999")), "timing.cl"));
  CHECK(contains(refusal(with("pim", "\"present\": 1")), "pim.present"));
  CHECK(contains(refusal(with("energy", "\"act_pj\": -3")), "energy.act_pj"));
  CHECK(contains(refusal(with("energy", "\"act_pj\": 1e400")), ""));
  CHECK(contains(refusal(with("controller", "\"refresh\": 9")), "controller.refresh"));
  CHECK(contains(refusal(with("organisation", "\"row_bytes\": 1000")), "row_bytes"));
}

TEST_CASE("no cut or corrupted document crashes the reader", "[pim][json]") {
  const std::string whole = pim::device_to_json(pim::hbm3_attacc()).dump();
  pim::device d;
  std::string message;
  for (std::size_t length = 0; length < whole.size(); length += 7) {
    CHECK_FALSE(pim::device_from_json_text(whole.substr(0, length), d, message).ok());
  }
  pim_test::random_source random(11);
  std::int64_t accepted = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bad = whole;
    for (std::int64_t k = random.from(1, 4); k > 0; --k) {
      bad[static_cast<std::size_t>(random.from(0, std::ssize(bad) - 1))] = static_cast<char>(random.from(0, 255));
    }
    accepted += pim::device_from_json_text(bad, d, message).ok() ? 1 : 0;
  }
  CHECK(accepted < 2000);  // some digits may change into other digits, most damage is seen
  CHECK(pim::validate(d).ok());
}
