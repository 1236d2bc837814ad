// SPDX-License-Identifier: MIT
#include "pqattn/core/progress.hpp"

#include <catch2/catch_test_macros.hpp>
#include <vector>

TEST_CASE("without a hook, work goes on", "[core]") {
  pqattn::progress_counter progress({}, 2);
  CHECK(progress.step().ok());
  CHECK(progress.step().ok());
}

TEST_CASE("the hook hears every step until it stops the work", "[core]") {
  struct listener {
    std::vector<std::size_t> heard;
    std::size_t total = 0;
  } user;
  pqattn::progress_counter progress({[](void* self, std::size_t done, std::size_t total) {
                                       auto& me = *static_cast<listener*>(self);
                                       me.heard.push_back(done);
                                       me.total = total;
                                       return done < 3;
                                     },
                                     &user},
                                    10);
  CHECK(progress.step().ok());
  CHECK(progress.step().ok());
  CHECK(progress.step().code == pqattn::status_code::cancelled);
  CHECK(progress.step().code == pqattn::status_code::cancelled);
  CHECK(user.heard == std::vector<std::size_t>{1, 2, 3});  // once stopped, it is not asked again
  CHECK(user.total == 10);
}
