// SPDX-License-Identifier: MIT
#include "caches.hpp"

#include "baseline_cache.hpp"
#include "exact_cache.hpp"
#include "pqattn_cache.hpp"

#include <pqattn/study/baseline.hpp>

#include <array>
#include <charconv>

namespace tiny_lm {
namespace {

constexpr std::size_t window_sinks = 8;

/// The number behind `prefix`, if the name is just that and `suffix`.
bool parse_number(std::string_view name, std::string_view prefix, std::string_view suffix, std::size_t& number) {
  if (!name.starts_with(prefix) || !name.ends_with(suffix) || name.size() <= prefix.size() + suffix.size()) {
    return false;
  }
  const char* end = name.data() + name.size() - suffix.size();
  const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, number);
  return error == std::errc{} && stop == end;
}

struct named_coding {
  std::string_view prefix;
  std::string_view suffix;
  pqattn_coding coding;
};

constexpr std::array<named_coding, 4> codings{{
    {"pqattn-", "bit", pqattn_coding::preset},
    {"pq_plain-", "", pqattn_coding::plain},
    {"pq-", "", pqattn_coding::weighted},
    {"pq_best-", "", pqattn_coding::best},
}};
constexpr std::size_t most_bits = 4;
constexpr std::string_view pim_suffix = "-pim";

bool find_setting(std::string_view name, pqattn_setting& setting) {
  for (const named_coding& entry : codings) {
    if (parse_number(name, entry.prefix, entry.suffix, setting.bits) && setting.bits >= 1 &&
        setting.bits <= most_bits) {
      setting.coding = entry.coding;
      return true;
    }
  }
  return false;
}

std::string name_of(const named_coding& entry, std::size_t bits) {
  return std::string(entry.prefix) + std::to_string(bits) + std::string(entry.suffix);
}

}  // namespace

outcome make_cache(std::string_view name, const cache_shape& shape, std::unique_ptr<kv_cache>& cache,
                   std::size_t coding_start) {
  std::size_t tokens = 0;
  const bool on_pim = name.ends_with(pim_suffix);
  const std::string_view coding = on_pim ? name.substr(0, name.size() - pim_suffix.size()) : name;
  pqattn_setting setting;
  setting.train_tokens = coding_start;
  pqattn::baseline_format format{};
  if (name == "exact") {
    cache = std::make_unique<exact_cache>(shape);
  } else if (parse_number(name, "window-", "", tokens) && tokens > window_sinks) {
    cache = std::make_unique<exact_cache>(shape, window_sinks, tokens - window_sinks);
  } else if (find_setting(coding, setting)) {
    return make_pqattn_cache(shape, setting, on_pim ? bank_kind::pim : bank_kind::host, cache);
  } else if (pqattn::find_baseline(name, format)) {
    cache = std::make_unique<baseline_cache>(shape, format, coding_start);
  } else {
    return expected_got("cache", cache_help(), name);
  }
  return {};
}

std::vector<std::string> study_methods() {
  std::vector<std::string> names;
  for (const pqattn::baseline_name& entry : pqattn::baseline_names) {
    names.emplace_back(entry.name);
  }
  for (std::size_t i = 1; i < codings.size(); ++i) {
    for (std::size_t bits = 1; bits <= most_bits; ++bits) {
      names.push_back(name_of(codings[i], bits));
    }
  }
  return names;
}

std::vector<std::string> demo_caches() {
  std::vector<std::string> names = {"exact"};
  for (std::size_t bits = 1; bits <= most_bits; ++bits) {
    names.push_back(name_of(codings[0], bits));
  }
  names.emplace_back("window-512");
  return names;
}

std::string cache_help() {
  return "exact, window-N (N > 8), pqattn-Bbit, pq_best-B, pq-B, pq_plain-B (B = 1 to 4; each also with -pim: on the "
         "emulated PIM bank), q8_0, q4_0, q4_0_rot, kivi2, "
         "kivi4, turbo2, turbo3 or turbo4";
}

}  // namespace tiny_lm
