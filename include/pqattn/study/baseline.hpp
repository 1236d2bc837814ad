// SPDX-License-Identifier: MIT
// The cache formats that product quantization is compared with, under one name each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "../config.hpp"
#include "../core/status.hpp"
#include "asymmetric_groups.hpp"
#include "block_formats.hpp"
#include "gaussian_codes.hpp"
#include "rotation.hpp"

namespace pqattn {
inline namespace v0 {
inline namespace PQATTN_ISA_UNIT {

/// Cache formats without codebooks of their own.
enum class baseline_format : std::uint8_t {
  exact,     ///< rows as they are, counted as f16
  q8_0,      ///< ggml, 8.5 bits
  q4_0,      ///< ggml, 4.5 bits
  q4_0_rot,  ///< q4_0 after a Hadamard rotation of the row
  kivi2,     ///< KIVI, 2 bits + 1 for scales and minima
  kivi4,     ///< KIVI, 4 bits + 1
  turbo2,    ///< TurboQuant-style, 2 bits + 16 per row
  turbo3,
  turbo4,
};

/// Keys and values are coded differently by some formats.
enum class cache_side : std::uint8_t { keys, values };

struct baseline_name {
  baseline_format format;
  const char* name;
};

/// Every baseline and its stable name.
inline constexpr baseline_name baseline_names[] = {
    {baseline_format::exact, "exact"},       {baseline_format::q8_0, "q8_0"},     {baseline_format::q4_0, "q4_0"},
    {baseline_format::q4_0_rot, "q4_0_rot"}, {baseline_format::kivi2, "kivi2"},   {baseline_format::kivi4, "kivi4"},
    {baseline_format::turbo2, "turbo2"},     {baseline_format::turbo3, "turbo3"}, {baseline_format::turbo4, "turbo4"}};

[[nodiscard]] constexpr const char* name_of(baseline_format format) noexcept {
  for (const baseline_name& entry : baseline_names) {
    if (entry.format == format) {
      return entry.name;
    }
  }
  return "unknown";
}

/// Finds the format called `name`; false when there is none.
[[nodiscard]] constexpr bool find_baseline(std::string_view name, baseline_format& format) noexcept {
  for (const baseline_name& entry : baseline_names) {
    if (name == entry.name) {
      format = entry.format;
      return true;
    }
  }
  return false;
}

/// Replaces dense rows (count, dim), consecutive tokens of one head, by what the format reads back, and adds the bits
/// it stores for them (scales, minima and norms included) to `spent`. `seed` selects TurboQuant's rotation.
[[nodiscard]] inline status code_as_baseline(baseline_format format, cache_side side, float* rows, std::size_t count,
                                             std::size_t dim, std::uint64_t seed, std::size_t& spent) {
  const auto kivi = [&](std::size_t bits) {
    return side == cache_side::keys ? code_kivi_keys(rows, count, dim, bits) : code_kivi_values(rows, count, dim, bits);
  };
  std::size_t bits = 0;
  switch (format) {
    case baseline_format::exact: bits = 16 * count * dim; break;
    case baseline_format::q8_0: bits = code_q8_0(rows, count, dim); break;
    case baseline_format::q4_0: bits = code_q4_0(rows, count, dim); break;
    case baseline_format::q4_0_rot:
      rotate_hadamard(rows, count, dim);
      bits = code_q4_0(rows, count, dim);
      rotate_hadamard(rows, count, dim);
      break;
    case baseline_format::kivi2: bits = kivi(2); break;
    case baseline_format::kivi4: bits = kivi(4); break;
    case baseline_format::turbo2: PQATTN_TRY(code_turbo(rows, count, dim, 2, seed, bits)); break;
    case baseline_format::turbo3: PQATTN_TRY(code_turbo(rows, count, dim, 3, seed, bits)); break;
    case baseline_format::turbo4: PQATTN_TRY(code_turbo(rows, count, dim, 4, seed, bits)); break;
  }
  spent += bits;
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
