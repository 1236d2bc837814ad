// SPDX-License-Identifier: MIT
// Memory that one worker needs to attend to caches.
#pragma once

#include <cstddef>
#include <utility>

#include "../bank/bank.hpp"
#include "../core/memory.hpp"

namespace pqattn {
inline namespace v0 {

/// Workspace in host memory and table memory in the bank. Grows to the largest call it has served and is then reused
/// without allocating; serves any number of caches of the same bank, one call at a time. Move-only.
template <class Bank>
class attend_scratch {
 public:
  using address = typename Bank::address;

  attend_scratch() = default;
  attend_scratch(Bank& bank, const memory_resource& resource) noexcept : bank_(&bank), resource_(resource) {}
  attend_scratch(attend_scratch&& other) noexcept { swap(other); }
  attend_scratch& operator=(attend_scratch&& other) noexcept {
    attend_scratch taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~attend_scratch() { release_tables(); }

  /// Makes both at least this large; on failure what was there stays usable.
  status reserve(std::size_t workspace_bytes, std::size_t table_bytes) {
    if (workspace_bytes > workspace_.size()) {
      PQATTN_TRY(buffer::make(resource_, workspace_bytes, workspace_));
    }
    if (table_bytes > table_bytes_) {
      address grown{};
      PQATTN_TRY(bank_->reserve(table_bytes, grown));
      release_tables();
      tables_ = grown;
      table_bytes_ = table_bytes;
    }
    return {};
  }

  [[nodiscard]] void* workspace() const noexcept { return workspace_.data(); }
  [[nodiscard]] std::size_t workspace_bytes() const noexcept { return workspace_.size(); }
  [[nodiscard]] address tables() const noexcept { return tables_; }
  /// Host and bank memory held.
  [[nodiscard]] std::size_t bytes() const noexcept { return workspace_.size() + table_bytes_; }

 private:
  void release_tables() noexcept {
    if (tables_ != address{}) {
      bank_->release(tables_, table_bytes_);
    }
  }
  void swap(attend_scratch& other) noexcept {
    std::swap(bank_, other.bank_);
    std::swap(resource_, other.resource_);
    std::swap(tables_, other.tables_);
    std::swap(table_bytes_, other.table_bytes_);
    workspace_.swap(other.workspace_);
  }

  Bank* bank_ = nullptr;
  memory_resource resource_;
  buffer workspace_;
  address tables_{};
  std::size_t table_bytes_ = 0;
};

}  // namespace v0
}  // namespace pqattn
