// SPDX-License-Identifier: MIT
#include "progress.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace tiny_lm {

progress_bar::progress_bar(std::string label, std::size_t total)
    : label_(std::move(label)), total_(std::max<std::size_t>(total, 1)), visible_(::isatty(STDERR_FILENO) != 0) {}

progress_bar::~progress_bar() {
  if (visible_) {
    std::fprintf(stderr, "\r\x1b[K");  // the table that follows says it all
  }
}

void progress_bar::update(std::size_t done, double mean_loss) {
  constexpr std::size_t width = 32;
  const std::size_t permille = 1000 * std::min(done, total_) / total_;
  if (!visible_ || permille == drawn_) {
    return;
  }
  drawn_ = permille;
  std::string bar(width * permille / 1000, '#');
  bar.resize(width, '.');
  std::fprintf(stderr, "\r%-20s [%s] %4zu/%zu tokens, loss %.4f", label_.c_str(), bar.c_str(), done, total_, mean_loss);
  std::fflush(stderr);
}

}  // namespace tiny_lm
