// SPDX-License-Identifier: MIT
// What every fallible function of the library returns: a code, the name of the offending argument, a static
// sentence, and the expected and the actual value. Nothing here allocates, throws or prints.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "../config.hpp"

namespace pqattn {
inline namespace v0 {

/// Kind of failure. `ok` is zero.
enum class status_code : std::uint8_t {
  ok = 0,
  invalid_argument,  ///< a value outside its documented range
  shape_mismatch,    ///< two arguments that must agree in size do not
  unsupported,       ///< valid, but this bank or build cannot do it
  out_of_memory,     ///< an allocator or a bank's memory refused
  capacity,          ///< a fixed-size buffer given by the caller is too small
  not_finite,        ///< NaN or infinity where a finite number is needed
  too_few_samples,   ///< fewer training rows than centroids
  cancelled,         ///< the caller's progress callback asked to stop
  corrupt_data,      ///< a file or buffer that is not what it says it is
  io_error,          ///< a caller's read or write callback, or the file system, failed
};

/// Short stable name of a code, e.g. "shape_mismatch".
[[nodiscard]] constexpr const char* name_of(status_code code) noexcept {
  switch (code) {
    case status_code::ok: return "ok";
    case status_code::invalid_argument: return "invalid_argument";
    case status_code::shape_mismatch: return "shape_mismatch";
    case status_code::unsupported: return "unsupported";
    case status_code::out_of_memory: return "out_of_memory";
    case status_code::capacity: return "capacity";
    case status_code::not_finite: return "not_finite";
    case status_code::too_few_samples: return "too_few_samples";
    case status_code::cancelled: return "cancelled";
    case status_code::corrupt_data: return "corrupt_data";
    case status_code::io_error: return "io_error";
  }
  return "unknown";
}

/// Result of a fallible call. Trivially copyable; `subject` and `problem` point to static strings.
/// Converts to true when the call succeeded.
struct [[nodiscard]] status {
  status_code code = status_code::ok;
  bool has_values = false;   ///< whether `expected` and `got` mean something
  const char* subject = "";  ///< the argument or object at fault, e.g. "keys.cols"
  const char* problem = "";  ///< one sentence fragment, e.g. "must equal geometry.dim"
  double expected = 0.0;     ///< exact for whole numbers up to 2^53
  double got = 0.0;

  [[nodiscard]] constexpr bool ok() const noexcept { return code == status_code::ok; }
  constexpr explicit operator bool() const noexcept { return ok(); }

  /// Writes "subject problem: expected E, got G (code)" into `text` (always terminated when size > 0); for
  /// not_finite the two numbers are a position, "subject problem: row E, column G (code)".
  /// Returns the length the full message needs, without the terminator.
  PQATTN_UNIT_MEMBER std::size_t format(char* text, std::size_t size) const noexcept {
    const int length = ok() ? std::snprintf(text, size, "ok")
                       : has_values
                           ? std::snprintf(text, size,
                                           code == status_code::not_finite ? "%s %s: row %.16g, column %.16g (%s)"
                                                                           : "%s %s: expected %.16g, got %.16g (%s)",
                                           subject, problem, expected, got, name_of(code))
                           : std::snprintf(text, size, "%s %s (%s)", subject, problem, name_of(code));
    return length < 0 ? 0 : static_cast<std::size_t>(length);
  }
};

inline namespace PQATTN_ISA_UNIT {

/// A failure without numbers.
[[nodiscard]] constexpr status failure(status_code code, const char* subject, const char* problem) noexcept {
  return {code, false, subject, problem, 0.0, 0.0};
}

/// A failure that names what was expected and what was given, whole numbers or fractions.
template <class Expected, class Got>
[[nodiscard]] constexpr status failure(status_code code, const char* subject, const char* problem, Expected expected,
                                       Got got) noexcept {
  return {code, true, subject, problem, static_cast<double>(expected), static_cast<double>(got)};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn

/// Returns from the enclosing function when `expression` is a failure.
#define PQATTN_TRY(expression)                                                         \
  do {                                                                                 \
    if (const ::pqattn::status pqattn_try_status = (expression); !pqattn_try_status) { \
      return pqattn_try_status;                                                        \
    }                                                                                  \
  } while (false)
