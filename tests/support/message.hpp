// SPDX-License-Identifier: MIT
// A status as text, for INFO and comparisons.
#pragma once

#include <string>

#include "pqattn/core/status.hpp"

namespace pqattn_test {

inline std::string message_of(const pqattn::status& result) {
  char text[256];
  result.format(text, sizeof text);
  return text;
}

}  // namespace pqattn_test

/// Requires success and prints the status otherwise.
#define REQUIRE_OK(expression)                               \
  do {                                                       \
    const ::pqattn::status require_ok_status = (expression); \
    INFO(::pqattn_test::message_of(require_ok_status));      \
    REQUIRE(require_ok_status.ok());                         \
  } while (false)
