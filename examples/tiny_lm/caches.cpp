// SPDX-License-Identifier: MIT
#include "caches.hpp"

#include "exact_cache.hpp"

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

}  // namespace

outcome make_cache(std::string_view name, const cache_shape& shape, std::unique_ptr<kv_cache>& cache) {
  std::size_t tokens = 0;
  if (name == "exact") {
    cache = std::make_unique<exact_cache>(shape);
  } else if (parse_suffix(name, "window-", tokens) && tokens > window_sinks) {
    cache = std::make_unique<exact_cache>(shape, window_sinks, tokens - window_sinks);
  } else {
    return expected_got("cache", cache_help(), name);
  }
  return {};
}

std::vector<std::string> demo_caches() {
  return {"exact", "window-512", "window-128"};
}

std::string cache_help() {
  return "exact or window-N (N > 8)";
}

}  // namespace tiny_lm
