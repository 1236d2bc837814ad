// SPDX-License-Identifier: MIT
// The caches a user can ask for by name. A new cache is one line here and one file of its own.
#pragma once

#include "kv_cache.hpp"
#include "outcome.hpp"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace tiny_lm {

/// Makes the cache called `name`: "exact"; "pqattn-1bit" to "pqattn-4bit", the library at that many bits of code per
/// element, with "-pim" behind it on the emulated PIM bank instead of the host's; or "window-N", the first 8 and the last N - 8 tokens in f32 and the rest dropped.
outcome make_cache(std::string_view name, const cache_shape& shape, std::unique_ptr<kv_cache>& cache);

/// Names the demo runs, the exact cache first.
std::vector<std::string> demo_caches();

/// One line for `--help`.
std::string cache_help();

}  // namespace tiny_lm
