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

/// Tokens at which caches go over to codes, when nothing else is said: a quarter of the model's context.
inline constexpr std::size_t default_coding_start = 512;

/// Makes the cache called `name`:
///   "exact", every row in f32; "window-N", the first 8 and the last N - 8 tokens in f32 and the rest dropped;
///   "pqattn-1bit" to "pqattn-4bit", the library's presets at about that many bits of code per element;
///   a method of the accuracy study, with 8 first and 32 last tokens exact: "q8_0", "q4_0", "q4_0_rot", "kivi2",
///   "kivi4", "turbo2", "turbo3", "turbo4", and "pq_plain-B", "pq-B", "pq_best-B" at B = 1 to 4 bits.
/// Names of the library's caches may end in "-pim": on the emulated PIM bank instead of the host's.
/// Everything is exact until `coding_start` tokens are there.
outcome make_cache(std::string_view name, const cache_shape& shape, std::unique_ptr<kv_cache>& cache,
                   std::size_t coding_start = default_coding_start);

/// Names of the accuracy study's methods.
std::vector<std::string> study_methods();

/// Names the demo runs, the exact cache first.
std::vector<std::string> demo_caches();

/// One line for `--help`.
std::string cache_help();

}  // namespace tiny_lm
