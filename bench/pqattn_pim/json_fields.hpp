// SPDX-License-Identifier: MIT
// Reading numbers out of JSON documents that may be anything: nothing here throws on a wrong type.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

namespace pqattn_pim {

using json = nlohmann::json;

/// The member of an object, or null (also when `object` is no object).
[[nodiscard]] inline const json* member(const json& object, const char* key) {
  if (!object.is_object()) {
    return nullptr;
  }
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &*found;
}

/// An integer of at most 2^40 in size; whole floating-point numbers count.
[[nodiscard]] inline std::optional<std::int64_t> integer(const json* value) {
  constexpr double limit = 1099511627776.0;
  if (value == nullptr || !value->is_number()) {
    return std::nullopt;
  }
  const double number = value->get<double>();
  if (!(std::fabs(number) <= limit) || number != std::floor(number)) {
    return std::nullopt;
  }
  return static_cast<std::int64_t>(number);
}

/// The first of several names that is there.
[[nodiscard]] inline std::optional<std::int64_t> integer(const json& object, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (const auto value = integer(member(object, name))) {
      return value;
    }
  }
  return std::nullopt;
}

[[nodiscard]] inline std::optional<double> number(const json* value) {
  if (value == nullptr || !value->is_number()) {
    return std::nullopt;
  }
  const double result = value->get<double>();
  return std::isfinite(result) ? std::optional<double>(result) : std::nullopt;
}

[[nodiscard]] inline std::string text(const json* value) {
  return value != nullptr && value->is_string() ? value->get<std::string>() : std::string{};
}

[[nodiscard]] inline bool flag(const json* value, bool otherwise) {
  return value != nullptr && value->is_boolean() ? value->get<bool>() : otherwise;
}

}  // namespace pqattn_pim
