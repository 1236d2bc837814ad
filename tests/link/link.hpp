// SPDX-License-Identifier: MIT
// Addresses which must be the same in every translation unit of one program.
#pragma once

#include "pqattn/core/status.hpp"

struct symbols {
  const char* (*name_of)(pqattn::status_code) noexcept;
  std::size_t (pqattn::status::*format)(char*, std::size_t) const noexcept;
};

inline symbols here() {
  return {&pqattn::name_of, &pqattn::status::format};
}

symbols symbols_of_first();
symbols symbols_of_second();
