// SPDX-License-Identifier: MIT
#include "pqattn/core/status.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cstring>
#include <set>
#include <string>
#include <type_traits>

#include "pqattn/config.hpp"
#include "pqattn/version.hpp"

using pqattn::failure;
using pqattn::status;
using pqattn::status_code;

static_assert(std::is_trivially_copyable_v<status>);
static_assert(std::is_nothrow_default_constructible_v<status>);
static_assert(!std::is_convertible_v<status, bool>, "a status must not turn into a number by accident");
static_assert(status{}.ok());
static_assert(PQATTN_VERSION == 10000 * PQATTN_VERSION_MAJOR + 100 * PQATTN_VERSION_MINOR + PQATTN_VERSION_PATCH);
static_assert(PQATTN_HAS_EXCEPTIONS == 1, "the tests are compiled with exceptions");

namespace {

std::string message_of(const status& result) {
  char text[200];
  const std::size_t length = result.format(text, sizeof text);
  REQUIRE(length == std::strlen(text));
  return text;
}

int calls_after_failure = 0;

status forwards(const status& inner) {
  PQATTN_TRY(inner);
  ++calls_after_failure;
  return {};
}

}  // namespace

TEST_CASE("a default status is a success", "[core]") {
  const status result;
  CHECK(result.ok());
  CHECK(static_cast<bool>(result));
  CHECK(message_of(result) == "ok");
}

TEST_CASE("a failure says what, expected and got", "[core]") {
  CHECK(message_of(failure(status_code::io_error, "keys.npy", "is truncated")) == "keys.npy is truncated (io_error)");
  CHECK(message_of(failure(status_code::shape_mismatch, "keys.cols", "must equal geometry.dim", 128U, -3)) ==
        "keys.cols must equal geometry.dim: expected 128, got -3 (shape_mismatch)");
  CHECK(message_of(failure(status_code::invalid_argument, "share", "must be 0 to 0.5", 0.5, 0.75f)) ==
        "share must be 0 to 0.5: expected 0.5, got 0.75 (invalid_argument)");
  CHECK(message_of(failure(status_code::capacity, "bytes", "are too many", std::size_t{1} << 50,
                           (std::uint64_t{1} << 53) - 1)) ==
        "bytes are too many: expected 1125899906842624, got 9007199254740991 (capacity)");
  CHECK_FALSE(failure(status_code::cancelled, "train", "stopped").ok());
}

TEST_CASE("format reports the full length and always terminates", "[core]") {
  const status result = failure(status_code::capacity, "out", "is too small", 10, 7);
  const std::string full = message_of(result);
  for (std::size_t size = 1; size <= full.size() + 1; ++size) {
    std::string text(size + 1, '#');
    CHECK(result.format(text.data(), size) == full.size());
    CHECK(std::string(text.c_str()) == full.substr(0, size - 1));
    CHECK(text[size] == '#');
  }
  CHECK(result.format(nullptr, 0) == full.size());
}

TEST_CASE("every code has its own name", "[core]") {
  std::set<std::string> names;
  const int last = static_cast<int>(status_code::io_error);
  for (int code = 0; code <= last; ++code) {
    names.insert(name_of(static_cast<status_code>(code)));
  }
  CHECK(names.size() == static_cast<std::size_t>(last) + 1);
  CHECK(names.count("unknown") == 0);
  CHECK(std::string(name_of(static_cast<status_code>(last + 1))) == "unknown");
}

TEST_CASE("PQATTN_TRY forwards a failure unchanged and passes a success", "[core]") {
  calls_after_failure = 0;
  const status result = forwards(failure(status_code::capacity, "out", "is too small", 10, 7));
  CHECK(calls_after_failure == 0);
  CHECK(result.code == status_code::capacity);
  CHECK(result.expected == 10);
  CHECK(result.got == 7);
  CHECK(forwards({}).ok());
  CHECK(calls_after_failure == 1);
}
