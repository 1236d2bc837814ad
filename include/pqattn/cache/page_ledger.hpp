// SPDX-License-Identifier: MIT
// Who uses which page: reference counts and a free list. Knows nothing about memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "../config.hpp"
#include "../core/growable.hpp"

namespace pqattn {
inline namespace v0 {

inline namespace PQATTN_ISA_UNIT {

/// Numbered pages, each used by any number of sequences. Move-only.
class page_ledger {
 public:
  page_ledger() = default;
  explicit page_ledger(const memory_resource& resource) noexcept : users_(resource), free_(resource) {}

  /// Adds free pages until there are `pages` of them in all; on failure nothing changes.
  status grow(std::size_t pages) {
    PQATTN_TRY(users_.reserve(pages));
    PQATTN_TRY(free_.reserve(pages));
    const std::size_t old = users_.size();
    const std::size_t held = free_.size();
    for (std::size_t page = old; page < pages; ++page) {
      static_cast<void>(users_.push_back(0));
      static_cast<void>(free_.push_back(0));
    }
    // Pages that were there are taken before new ones, low numbers of these first.
    std::copy_backward(free_.data(), free_.data() + held, free_.data() + free_.size());
    for (std::size_t i = 0; i < pages - old; ++i) {
      free_[i] = static_cast<std::uint32_t>(pages - 1 - i);
    }
    return {};
  }

  /// Takes a free page for one user. Pre: free_pages() > 0.
  [[nodiscard]] std::uint32_t take() noexcept {
    const std::uint32_t page = next_free(0);
    free_.truncate(free_.size() - 1);
    users_[page] = 1;
    return page;
  }
  /// The page that the call after `ahead` more calls of take() would give. Pre: ahead < free_pages().
  [[nodiscard]] std::uint32_t next_free(std::size_t ahead) const noexcept { return free_[free_.size() - 1 - ahead]; }

  void share(std::uint32_t page) noexcept { ++users_[page]; }
  /// One user less; true when it was the last.
  bool drop(std::uint32_t page) noexcept {
    if (--users_[page] != 0) {
      return false;
    }
    static_cast<void>(free_.push_back(page));  // grow() made room for every page
    return true;
  }

  [[nodiscard]] std::uint32_t users(std::uint32_t page) const noexcept { return users_[page]; }
  [[nodiscard]] bool shared(std::uint32_t page) const noexcept { return users_[page] > 1; }
  [[nodiscard]] std::size_t pages() const noexcept { return users_.size(); }
  [[nodiscard]] std::size_t free_pages() const noexcept { return free_.size(); }
  [[nodiscard]] std::size_t used_pages() const noexcept { return pages() - free_pages(); }
  [[nodiscard]] std::size_t bytes() const noexcept { return users_.bytes() + free_.bytes(); }

 private:
  growable<std::uint32_t> users_;
  growable<std::uint32_t> free_;  ///< a stack: the page used last is taken first
};

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
