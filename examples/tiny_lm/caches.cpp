// SPDX-License-Identifier: MIT
#include "caches.hpp"

#include "exact_cache.hpp"
#include "pqattn_cache.hpp"

#include <array>
#include <charconv>

namespace tiny_lm {
namespace {

constexpr std::size_t window_sinks = 8;

/// The number behind `prefix`, if the name is just that.
bool parse_suffix(std::string_view name, std::string_view prefix, std::size_t& number) {
  if (!name.starts_with(prefix)) {
    return false;
  }
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, number);
  return error == std::errc{} && stop == end;
}

struct named_setting {
  std::string_view name;
  pqattn_setting setting;
};

/// Bits of code per element at head size 64, keys and values alike.
constexpr std::array<named_setting, 4> settings{{
    {"pqattn-1bit", {8, 256, 1, 512}},
    {"pqattn-2bit", {16, 256, 1, 512}},
    {"pqattn-3bit", {32, 64, 1, 512}},
    {"pqattn-4bit", {32, 256, 1, 512}},
}};

constexpr std::string_view pim_suffix = "-pim";

const named_setting* find_setting(std::string_view name) {
  for (const named_setting& entry : settings) {
    if (entry.name == name) {
      return &entry;
    }
  }
  return nullptr;
}

}  // namespace

outcome make_cache(std::string_view name, const cache_shape& shape, std::unique_ptr<kv_cache>& cache) {
  std::size_t tokens = 0;
  const bool on_pim = name.ends_with(pim_suffix);
  const std::string_view coding = on_pim ? name.substr(0, name.size() - pim_suffix.size()) : name;
  if (name == "exact") {
    cache = std::make_unique<exact_cache>(shape);
  } else if (parse_suffix(name, "window-", tokens) && tokens > window_sinks) {
    cache = std::make_unique<exact_cache>(shape, window_sinks, tokens - window_sinks);
  } else if (const named_setting* entry = find_setting(coding)) {
    return make_pqattn_cache(shape, entry->setting, on_pim ? bank_kind::pim : bank_kind::host, cache);
  } else {
    return expected_got("cache", cache_help(), name);
  }
  return {};
}

std::vector<std::string> demo_caches() {
  std::vector<std::string> names = {"exact"};
  for (const named_setting& entry : settings) {
    names.emplace_back(entry.name);
  }
  names.emplace_back("window-512");
  return names;
}

std::string cache_help() {
  std::string help = "exact";
  for (const named_setting& entry : settings) {
    help += ", " + std::string(entry.name);
  }
  return help + " (each also with -pim: on the emulated PIM bank) or window-N (N > 8)";
}

}  // namespace tiny_lm
