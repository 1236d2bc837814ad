// SPDX-License-Identifier: MIT
// What the engine's fallible functions return: success, or one line that says where, what was expected, what was found.
// The library's own `pqattn::status` holds only static strings; an engine that reads files has names to tell, so it
// wraps the status in a string of its own. This is the whole of the translation.
#pragma once

#include <pqattn/core/status.hpp>

#include <array>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace tiny_lm {

/// Success, or a message for a person. Converts to true when the call succeeded.
class [[nodiscard]] outcome {
 public:
  outcome() = default;

  /// A failure (or success) of the library, in words. Implicit so that library calls fit TINY_LM_TRY.
  outcome(const pqattn::status& status) {
    if (status) {
      return;
    }
    std::array<char, 256> text{};
    status.format(text.data(), text.size());
    message_ = text.data();
  }

  static outcome failure(std::string message) {
    outcome result;
    result.message_ = std::move(message);
    return result;
  }

  [[nodiscard]] bool ok() const noexcept { return message_.empty(); }
  explicit operator bool() const noexcept { return ok(); }
  [[nodiscard]] const std::string& message() const noexcept { return message_; }

  /// The same outcome with the place it happened put in front: "place: message".
  [[nodiscard]] outcome within(std::string_view place) const {
    return ok() ? *this : failure(std::string(place) + ": " + message_);
  }

 private:
  std::string message_;  // empty when the call succeeded
};

/// Text of a number or of words, for messages.
template <class Value>
std::string in_words(const Value& value) {
  if constexpr (std::is_convertible_v<const Value&, std::string_view>) {
    return std::string(std::string_view(value));
  } else {
    return std::to_string(value);
  }
}

/// "problem: expected E, got G".
template <class Expected, class Got>
outcome expected_got(std::string_view problem, const Expected& expected, const Got& got) {
  return outcome::failure(std::string(problem) + ": expected " + in_words(expected) + ", got " + in_words(got));
}

}  // namespace tiny_lm

/// Returns from the enclosing function when `expression` is a failure.
#define TINY_LM_TRY(expression)                                                \
  do {                                                                         \
    if (::tiny_lm::outcome tiny_lm_outcome = (expression); !tiny_lm_outcome) { \
      return tiny_lm_outcome;                                                  \
    }                                                                          \
  } while (false)
