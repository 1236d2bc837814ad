// SPDX-License-Identifier: MIT
// A progress bar on stderr; silent where stderr is not a terminal, so logs stay readable.
#pragma once

#include <cstddef>
#include <string>

namespace tiny_lm {

class progress_bar {
 public:
  progress_bar(std::string label, std::size_t total);
  ~progress_bar();
  progress_bar(const progress_bar&) = delete;
  progress_bar& operator=(const progress_bar&) = delete;

  /// Redraws when the bar has moved.
  void update(std::size_t done, double mean_loss);

 private:
  std::string label_;
  std::size_t total_;
  std::size_t drawn_ = 0;  // permille
  bool visible_;
};

}  // namespace tiny_lm
