// SPDX-License-Identifier: MIT
// What one translation unit does with the library; isa_unit.cpp defines it once per set of compiler flags.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

/// One KV head.
struct unit_task {
  static constexpr std::size_t tokens = 600, dim = 16, rows = 2;
  static constexpr std::uint32_t subvectors = 4, centroids = 32;
  std::vector<float> keys;     ///< (tokens, dim)
  std::vector<float> values;   ///< (tokens, dim)
  std::vector<float> queries;  ///< (rows, dim)
};

/// What a unit made of it, all vectors sized by the caller.
struct unit_result {
  const char* arch = "";
  const char* failure = nullptr;      ///< the library's own words, null when all calls succeeded
  std::vector<float> centroids;       ///< of the keys
  std::vector<std::uint16_t> codes;   ///< (tokens, groups) of the keys
  std::vector<float> decoded_keys;    ///< (tokens, dim)
  std::vector<float> decoded_values;  ///< (tokens, dim)
  std::vector<float> out;             ///< (rows, dim), attention over the codes
  std::vector<float> cached_out;      ///< (rows, dim), the same tokens through head_cache
  std::vector<float> saved_rows;      ///< (2, tokens, dim), of a sequence: keys and values
  std::vector<float> loaded_rows;     ///< the same, saved and loaded
  char message[160] = "";             ///< of a refused policy
};

void run_baseline(const unit_task& task, unit_result& result);
void run_avx2(const unit_task& task, unit_result& result);
void run_native(const unit_task& task, unit_result& result);
