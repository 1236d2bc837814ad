// SPDX-License-Identifier: MIT
// Policies as JSON. Opt-in: needs nlohmann_json.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "../cache/policy.hpp"
#include "../config.hpp"
#include "../core/status.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

inline nlohmann::ordered_json side_to_json(const side_policy& side) {
  if (side.exact) {
    return {{"exact", true}};
  }
  const char* storage = side.storage == codebook_storage::f32   ? "f32"
                        : side.storage == codebook_storage::f16 ? "f16"
                                                                : "i8";
  nlohmann::ordered_json json = {
      {"subvectors", side.subvectors}, {"bits", side.bits}, {"stages", side.stages}, {"codebooks", storage}};
  if (side.outlier_share > 0.0f) {
    json["outlier_share"] = side.outlier_share;
  }
  return json;
}

/// A number in [low, high] under `name`; `fallback` where it is absent. False when it is something else.
template <class Number>
bool read_number(const nlohmann::json& json, const char* name, double low, double high, Number& number) {
  const auto entry = json.find(name);
  if (entry == json.end()) {
    return true;
  }
  if (!entry->is_number() || entry->get<double>() < low || entry->get<double>() > high) {
    return false;
  }
  number = entry->get<Number>();
  return true;
}

inline bool side_from_json(const nlohmann::json& json, side_policy& side) {
  if (!json.is_object()) {
    return false;
  }
  const auto exact = json.find("exact");
  if (exact != json.end()) {
    if (!exact->is_boolean()) {
      return false;
    }
    side.exact = exact->get<bool>();
  }
  const auto storage = json.find("codebooks");
  if (storage != json.end()) {
    if (*storage == "f32") {
      side.storage = codebook_storage::f32;
    } else if (*storage == "f16") {
      side.storage = codebook_storage::f16;
    } else if (*storage != "i8") {
      return false;
    }
  }
  return read_number(json, "subvectors", 1, max_dim, side.subvectors) && read_number(json, "bits", 1, 16, side.bits) &&
         read_number(json, "stages", 1, max_stages, side.stages) &&
         read_number(json, "outlier_share", 0, 1, side.outlier_share) && (side.exact || side.subvectors != 0);
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// {"version": 1, "heads": [{"layer", "kv_head", "sinks", "recent", "window_tokens", "keys", "values"}, ...]}; a side
/// is
/// {"exact": true} or {"subvectors", "bits", "stages", "codebooks": "i8", "outlier_share"}.
inline std::string policy_to_json(const head_policy* heads, std::size_t count) {
  nlohmann::ordered_json json = {{"version", 1}, {"heads", nlohmann::ordered_json::array()}};
  for (std::size_t i = 0; i < count; ++i) {
    const head_policy& head = heads[i];
    json["heads"].push_back({{"layer", head.layer},
                             {"kv_head", head.kv_head},
                             {"sinks", head.sinks},
                             {"recent", head.recent},
                             {"window_tokens", head.window_tokens},
                             {"keys", detail::side_to_json(head.keys)},
                             {"values", detail::side_to_json(head.values)}});
  }
  return json.dump(2) + "\n";
}

/// Reads what policy_to_json writes; absent fields keep their defaults. `heads` is left alone on errors: corrupt_data
/// for text that is not such an object, with the index of the first bad head.
inline status policy_from_json(const std::string& text, std::vector<head_policy>& heads) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object() || json.value("version", nlohmann::json()) != 1 || !json.contains("heads") ||
      !json["heads"].is_array()) {
    return failure(status_code::corrupt_data, "policy", "is not a JSON object with version 1 and a list of heads");
  }
  constexpr double most = 4294967295.0;
  std::vector<head_policy> found;
  for (const nlohmann::json& entry : json["heads"]) {
    head_policy head;
    if (!entry.is_object() || !entry.contains("keys") || !entry.contains("values") ||
        !detail::read_number(entry, "layer", 0, most, head.layer) ||
        !detail::read_number(entry, "kv_head", 0, most, head.kv_head) ||
        !detail::read_number(entry, "sinks", 0, most, head.sinks) ||
        !detail::read_number(entry, "recent", 0, most, head.recent) ||
        !detail::read_number(entry, "window_tokens", 0, most, head.window_tokens) ||
        !detail::side_from_json(entry["keys"], head.keys) || !detail::side_from_json(entry["values"], head.values)) {
      return failure(status_code::corrupt_data, "policy", "has a head that cannot be read; good ones before it",
                     json["heads"].size(), found.size());
    }
    found.push_back(head);
  }
  heads.swap(found);
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
