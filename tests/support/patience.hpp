// SPDX-License-Identifier: MIT
// A progress callback that cancels after so many reports.
#pragma once

#include <cstddef>

#include "pqattn/core/progress.hpp"

namespace pqattn_test {

/// Lives as long as the call whose hook() it is.
struct patience {
  std::size_t left;  ///< reports that go on
  std::size_t reports = 0;

  [[nodiscard]] pqattn::progress_hook hook() {
    return {[](void* user, std::size_t, std::size_t) {
              auto& me = *static_cast<patience*>(user);
              return me.reports++ < me.left;
            },
            this};
  }
};

}  // namespace pqattn_test
