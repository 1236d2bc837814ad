// SPDX-License-Identifier: MIT
// A study's result as text.
#pragma once

#include <string>

#include "options.hpp"
#include "study.hpp"

namespace pqattn_study {

/// A table for people.
[[nodiscard]] std::string as_table(const study_result& result, const options& chosen);
/// Why a policy says what it says.
[[nodiscard]] std::string as_table(const suggestion& found);
/// One JSON object, pretty-printed.
[[nodiscard]] std::string as_json(const study_result& result, const options& chosen);

}  // namespace pqattn_study
