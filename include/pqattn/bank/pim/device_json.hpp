// SPDX-License-Identifier: MIT
// A device from and to JSON. Opt-in: needs nlohmann/json, and is not part of the umbrella header.
//
// The document is an object with one member per section of `device` ("organisation", "timing", "pim", "energy",
// "link", "controller", "core"), "name" and "capacity_bytes". With "base": "<preset>" the preset supplies what is not
// given; without it every field must be there. Unknown members, wrong types, fractions where integers are due, numbers
// out of range and inconsistent devices are refused; the target is untouched then. Nothing is thrown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <nlohmann/json.hpp>

#include "device.hpp"
#include "presets.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

namespace detail {

using json = nlohmann::json;

/// "section.field" cut at the dot; the section is empty for a top-level field.
struct field_path {
  std::string section;
  std::string field;

  explicit field_path(std::string_view path) {
    const std::size_t dot = path.find('.');
    section = dot == std::string_view::npos ? std::string{} : std::string{path.substr(0, dot)};
    field = std::string{dot == std::string_view::npos ? path : path.substr(dot + 1)};
  }
  /// The member of `document` that the path names, or null.
  [[nodiscard]] const json* find(const json& document) const {
    const json* object = &document;
    if (!section.empty()) {
      const auto member = document.find(section);
      if (member == document.end() || !member->is_object()) {
        return nullptr;
      }
      object = &*member;
    }
    const auto value = object->find(field);
    return value == object->end() ? nullptr : &*value;
  }
};

/// Reads one number or flag after another into a device; keeps the first complaint.
struct json_reader {
  const json& document;
  bool all_required;
  status result;
  std::string message;

  void complain(const char* path, const std::string& problem) {
    result = failure(status_code::corrupt_data, path, "is wrong in the JSON device");
    message = std::string(path) + " " + problem;
  }
  [[nodiscard]] const json* value_of(const char* path) {
    if (!result.ok()) {
      return nullptr;
    }
    const json* value = field_path(path).find(document);
    if (value == nullptr && all_required) {
      complain(path, "is missing (give it, or name a preset as \"base\")");
    }
    return value;
  }
  void operator()(const char* path, bool& flag) {
    if (const json* value = value_of(path)) {
      if (!value->is_boolean()) {
        complain(path, "must be true or false");
        return;
      }
      flag = value->get<bool>();
    }
  }
  template <class Number, class Lowest, class Highest>
  void operator()(const char* path, Number& number, Lowest lowest, Highest highest) {
    const json* value = value_of(path);
    if (value == nullptr) {
      return;
    }
    if constexpr (std::is_floating_point_v<Number>) {
      if (!value->is_number() || !(value->get<double>() >= lowest && value->get<double>() <= highest)) {
        complain(path, "must be a number from 0 to " + std::to_string(highest));
        return;
      }
      number = value->get<double>();
    } else {
      const auto low = static_cast<std::int64_t>(lowest);
      const auto high = static_cast<std::int64_t>(highest);
      const bool fits = value->is_number_unsigned() ? value->get<std::uint64_t>() <= static_cast<std::uint64_t>(high) &&
                                                          static_cast<std::int64_t>(value->get<std::uint64_t>()) >= low
                                                    : value->is_number_integer() && value->get<std::int64_t>() >= low &&
                                                          value->get<std::int64_t>() <= high;
      if (!fits) {
        complain(path, "must be an integer from " + std::to_string(low) + " to " + std::to_string(high));
        return;
      }
      number = static_cast<Number>(value->get<std::int64_t>());
    }
  }
};

/// Whether a device has a field of that path.
[[nodiscard]] inline bool is_field(std::string_view section, std::string_view field) {
  bool found = false;
  device any;
  visit_fields(any, [&](const char* path, auto&&...) {
    const field_path known(path);
    found = found || (known.section == section && (field.empty() || known.field == field));
  });
  return found;
}

/// The path of the first member that no device has.
[[nodiscard]] inline std::optional<std::string> unknown_member(const json& document) {
  for (const auto& [key, value] : document.items()) {
    if (key == "name" || key == "base" || (is_field("", key) && !value.is_object())) {
      continue;
    }
    if (!is_field(key, "") || key.empty() || !value.is_object()) {
      return key;
    }
    for (const auto& [field, unused] : value.items()) {
      static_cast<void>(unused);
      if (field.empty() || !is_field(key, field)) {
        return key + "." + field;
      }
    }
  }
  return std::nullopt;
}

[[nodiscard]] inline std::string sentence(const status& s) {
  char text[256];
  s.format(text, sizeof text);
  return text;
}

}  // namespace detail

/// Reads a device from a parsed document. On failure `message` is a sentence with the member's path.
[[nodiscard]] inline status device_from_json(const nlohmann::json& document, device& target, std::string& message) {
  const auto wrong = [&](const char* subject, std::string text) {
    message = std::move(text);
    return failure(status_code::corrupt_data, subject, "is wrong in the JSON device");
  };
  if (!document.is_object()) {
    return wrong("device", "a device must be a JSON object");
  }
  if (const auto unknown = detail::unknown_member(document)) {
    return wrong("device", "\"" + *unknown + "\" is not a member of a device");
  }
  device read;
  const auto base = document.find("base");
  if (base != document.end()) {
    if (!base->is_string() || !find_preset(base->get_ref<const std::string&>(), read)) {
      return wrong("base", "\"base\" must be the name of a preset");
    }
  }
  const auto name = document.find("name");
  if (name != document.end()) {
    if (!name->is_string() || name->get_ref<const std::string&>().size() >= device_name_bytes) {
      return wrong("name", "\"name\" must be a string of at most " + std::to_string(device_name_bytes - 1) + " bytes");
    }
    set_name(read, name->get_ref<const std::string&>().c_str());
  } else if (base == document.end()) {
    return wrong("name", "\"name\" is missing");
  }
  detail::json_reader reader{document, base == document.end(), {}, {}};
  visit_fields(read, reader);
  if (!reader.result.ok()) {
    message = reader.message;
    return reader.result;
  }
  if (const status valid = validate(read); !valid) {
    message = detail::sentence(valid);
    return valid;
  }
  target = read;
  message.clear();
  return {};
}

/// The same from text.
[[nodiscard]] inline status device_from_json_text(std::string_view text, device& target, std::string& message) {
  const nlohmann::json document = nlohmann::json::parse(text.begin(), text.end(), nullptr, false);
  if (document.is_discarded()) {
    message = "not a JSON document (cut off, or a syntax error)";
    return failure(status_code::corrupt_data, "device", "is not JSON");
  }
  return device_from_json(document, target, message);
}

/// Every field of a device; reading it back gives the same device.
[[nodiscard]] inline nlohmann::ordered_json device_to_json(const device& d) {
  nlohmann::ordered_json document;
  document["name"] = d.name;
  visit_fields(d, [&](const char* path, const auto& value, auto...) {
    const detail::field_path known(path);
    auto& object = known.section.empty() ? document : document[known.section];
    if constexpr (std::is_enum_v<std::remove_cvref_t<decltype(value)>>) {
      object[known.field] = static_cast<int>(value);
    } else {
      object[known.field] = value;
    }
  });
  return document;
}

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
