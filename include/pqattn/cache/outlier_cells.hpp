// SPDX-License-Identifier: MIT
// Exact rows of single tokens in coded pages: what codes serve too badly. A cell belongs to one head of one page, so
// that whatever happens to the page (sharing, copying, giving up) happens to its cells.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "../bank/bank.hpp"
#include "../config.hpp"
#include "../core/memory.hpp"
#include "../core/view.hpp"

namespace pqattn {
inline namespace v0 {

/// When a row of a head is an outlier. Learned with the codebooks and frozen like them, so that the decision looks at
/// nothing but the row itself.
struct outlier_rule {
  float key_error = 0.0f;  ///< mean error of a training row, see side_coder::measure; 0 for a side that is not coded
  float value_error = 0.0f;
  float above = (std::numeric_limits<float>::max)();  ///< score from which a row is one; the default is never

  /// How much a row loses by being coded, relative to the mean training row.
  [[nodiscard]] float score(float keys, float values) const noexcept {
    return (key_error > 0.0f ? keys / key_error : 0.0f) + (value_error > 0.0f ? values / value_error : 0.0f);
  }
};

inline namespace PQATTN_ISA_UNIT {

/// Cells of all heads of a pool. Heads share no memory that is written: one thread per head may add and drop.
/// Move-only; a default-constructed one keeps no cells.
class outlier_cells {
 public:
  outlier_cells() = default;
  /// `value_dim` 0: values are the first channels of the keys.
  outlier_cells(const memory_resource& resource, std::size_t heads, dtype type, std::size_t key_dim,
                std::size_t value_dim) noexcept
      : resource_(resource), heads_(heads), type_(type), key_dim_(key_dim), value_dim_(value_dim) {}
  outlier_cells(outlier_cells&& other) noexcept { swap(other); }
  outlier_cells& operator=(outlier_cells&& other) noexcept {
    outlier_cells taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~outlier_cells() { release(); }

  [[nodiscard]] bool enabled() const noexcept { return heads_ != 0; }
  [[nodiscard]] std::size_t heads() const noexcept { return heads_; }

  /// Records for `pages` pages; on failure nothing changes.
  status reserve_pages(std::size_t pages) {
    if (!enabled() || pages <= pages_) {
      return {};
    }
    buffer made;
    PQATTN_TRY(buffer::make(resource_, heads_ * pages * sizeof(page_record), made));
    auto* records = reinterpret_cast<page_record*>(made.data());
    for (std::size_t head = 0; head < heads_; ++head) {
      for (std::size_t page = 0; page < pages; ++page) {
        records[head * pages + page] = page < pages_ ? record(head, page) : page_record{};
      }
    }
    record_memory_ = std::move(made);
    pages_ = pages;
    return {};
  }

  /// Makes sure that every head has `count` free cells with memory. On failure nothing that can be seen changes.
  status reserve(std::size_t count) {
    if (!enabled() || count == 0) {
      return {};
    }
    std::size_t used = 0;
    for (std::size_t head = 0; counts_ != nullptr && head < heads_; ++head) {
      used = capacity_ - counts_[head].free > used ? capacity_ - counts_[head].free : used;
    }
    if (used + count > capacity_) {
      PQATTN_TRY(grow(used + count > 2 * capacity_ ? used + count : 2 * capacity_));
    }
    for (std::size_t head = 0; head < heads_; ++head) {
      while (counts_[head].held < count) {
        std::byte*& memory = cell(head, free_cell(head, counts_[head].held));
        memory = static_cast<std::byte*>(resource_.allocate(resource_.self, cell_bytes()));
        if (memory == nullptr) {
          return failure(status_code::out_of_memory, "memory_resource", "refused the exact rows of an outlier",
                         cell_bytes(), 0);
        }
        ++counts_[head].held;
      }
    }
    return {};
  }

  /// Gives memory of free cells back; `kept` of each head stay, or a few.
  void trim(std::size_t kept) noexcept {
    for (std::size_t head = 0; counts_ != nullptr && head < heads_; ++head) {
      while (counts_[head].held > (kept > spare_cells ? kept : spare_cells)) {
        free_memory(cell(head, free_cell(head, counts_[head].held - 1)));
        --counts_[head].held;
      }
    }
  }

  /// One bit per slot of a page of a head.
  [[nodiscard]] std::uint64_t mask(std::size_t head, std::size_t page) const noexcept {
    return page < pages_ ? record(head, page).mask : 0;
  }
  /// Most outliers that a head has in a page: cells that a copy of the page needs.
  [[nodiscard]] std::size_t most_in(std::size_t page) const noexcept {
    int most = 0;
    for (std::size_t head = 0; head < heads_; ++head) {
      const int here = std::popcount(mask(head, page));
      most = here > most ? here : most;
    }
    return static_cast<std::size_t>(most);
  }

  /// Exact rows of a slot, (1, d). Pre: its bit is set.
  [[nodiscard]] rows_ref key(std::size_t head, std::size_t page, std::size_t slot) const noexcept {
    return row_at(cell(head, find(head, page, slot)), key_dim_);
  }
  [[nodiscard]] rows_ref value(std::size_t head, std::size_t page, std::size_t slot, std::size_t dim) const noexcept {
    std::byte* memory = cell(head, find(head, page, slot));
    return row_at(memory + (value_dim_ == 0 ? 0 : key_dim_ * size_of(type_)), dim);
  }

  /// Keeps rows of f32 for a slot; `value` is not looked at when values come from the keys. Pre: a free cell is
  /// reserved and the slot has none.
  void add(std::size_t head, std::size_t page, std::size_t slot, const float* key, const float* value) noexcept {
    std::byte* memory = take(head, page, slot);
    store_row(row_at(memory, key_dim_), 0, key);
    if (value_dim_ != 0) {
      store_row(row_at(memory + key_dim_ * size_of(type_), value_dim_), 0, value);
    }
  }
  /// Gives the cells of slots up whose bits are set in `slots`.
  void drop(std::size_t head, std::size_t page, std::uint64_t slots) noexcept {
    if ((mask(head, page) & slots) == 0) {
      return;
    }
    page_record& here = record(head, page);
    std::uint32_t* next = &here.first;
    while (*next != none) {
      link& one = links_[head * capacity_ + *next];
      if ((slots >> one.slot & 1u) == 0) {
        next = &one.next;
        continue;
      }
      const std::uint32_t freed = *next;
      *next = one.next;
      give_back(head, freed);
    }
    here.mask &= ~slots;
  }
  void drop_page(std::size_t page) noexcept {
    for (std::size_t head = 0; head < heads_; ++head) {
      drop(head, page, ~std::uint64_t{0});
    }
  }
  /// Pre: `copy` has no cells, and as many are free as the page has.
  void copy_page(std::size_t page, std::size_t copy) noexcept {
    for (std::size_t head = 0; head < heads_; ++head) {
      for (std::uint64_t left = mask(head, page); left != 0; left &= left - 1) {
        const auto slot = static_cast<std::size_t>(std::countr_zero(left));
        const std::byte* from = cell(head, find(head, page, slot));
        std::memcpy(take(head, copy, slot), from, cell_bytes());
      }
    }
  }

  /// Bytes of cells that hold memory, and of everything else.
  [[nodiscard]] std::size_t held_bytes() const noexcept {
    std::size_t cells = 0;
    for (std::size_t head = 0; counts_ != nullptr && head < heads_; ++head) {
      cells += capacity_ - counts_[head].free + counts_[head].held;
    }
    return cells * cell_bytes();
  }
  [[nodiscard]] std::size_t metadata_bytes() const noexcept { return record_memory_.size() + list_memory_.size(); }

 private:
  static constexpr std::uint32_t none = 0xffffffffu;
  static constexpr std::size_t spare_cells = 2;

  /// Cells of one head and page form a list.
  struct page_record {
    std::uint64_t mask = 0;
    std::uint32_t first = none;
  };
  struct link {
    std::uint32_t next;
    std::uint32_t slot;
  };
  /// Free cells of a head are a stack; the `held` on top have memory.
  struct free_count {
    std::size_t free;
    std::size_t held;
  };

  [[nodiscard]] std::size_t cell_bytes() const noexcept { return (key_dim_ + value_dim_) * size_of(type_); }
  [[nodiscard]] page_record& record(std::size_t head, std::size_t page) const noexcept {
    return reinterpret_cast<page_record*>(record_memory_.data())[head * pages_ + page];
  }
  [[nodiscard]] std::byte*& cell(std::size_t head, std::size_t index) const noexcept {
    return cells_[head * capacity_ + index];
  }
  /// The free cell `depth` below the top.
  [[nodiscard]] std::uint32_t free_cell(std::size_t head, std::size_t depth) const noexcept {
    return free_[head * capacity_ + counts_[head].free - 1 - depth];
  }
  [[nodiscard]] std::size_t find(std::size_t head, std::size_t page, std::size_t slot) const noexcept {
    std::uint32_t index = record(head, page).first;
    while (links_[head * capacity_ + index].slot != slot) {
      index = links_[head * capacity_ + index].next;
    }
    return index;
  }
  [[nodiscard]] rows_ref row_at(std::byte* memory, std::size_t dim) const noexcept {
    return {memory, type_, 1, dim, static_cast<std::ptrdiff_t>(dim), 1};
  }

  std::byte* take(std::size_t head, std::size_t page, std::size_t slot) noexcept {
    const std::uint32_t index = free_cell(head, 0);
    --counts_[head].free;
    --counts_[head].held;
    page_record& here = record(head, page);
    links_[head * capacity_ + index] = {here.first, static_cast<std::uint32_t>(slot)};
    here.first = index;
    here.mask |= std::uint64_t{1} << slot;
    return cell(head, index);
  }
  void give_back(std::size_t head, std::uint32_t index) noexcept {
    free_[head * capacity_ + counts_[head].free] = index;
    ++counts_[head].free;
    ++counts_[head].held;
  }
  void free_memory(std::byte*& memory) noexcept {
    resource_.deallocate(resource_.self, memory, cell_bytes());
    memory = nullptr;
  }

  struct lists {
    free_count* counts;
    std::byte** cells;
    std::uint32_t* free;
    link* links;
    lists(carver& memory, std::size_t heads, std::size_t capacity) noexcept
        : counts(memory.take<free_count>(heads)),
          cells(memory.take<std::byte*>(heads * capacity)),
          free(memory.take<std::uint32_t>(heads * capacity)),
          links(memory.take<link>(heads * capacity)) {}
  };
  status grow(std::size_t capacity) {
    carver counting;
    static_cast<void>(lists(counting, heads_, capacity));
    buffer made;
    PQATTN_TRY(buffer::make(resource_, counting.required(), made));
    carver placed(made.data(), made.size());
    const lists grown(placed, heads_, capacity);
    const std::size_t added = capacity - capacity_;
    for (std::size_t head = 0; head < heads_; ++head) {
      const std::size_t free = counts_ == nullptr ? 0 : counts_[head].free;
      grown.counts[head] = {free + added, counts_ == nullptr ? 0 : counts_[head].held};
      for (std::size_t i = 0; i < capacity; ++i) {
        grown.cells[head * capacity + i] = i < capacity_ ? cell(head, i) : nullptr;
        grown.links[head * capacity + i] = i < capacity_ ? links_[head * capacity_ + i] : link{none, 0};
      }
      for (std::size_t i = 0; i < added; ++i) {  // below those that may have memory
        grown.free[head * capacity + i] = static_cast<std::uint32_t>(capacity - 1 - i);
      }
      for (std::size_t i = 0; i < free; ++i) {
        grown.free[head * capacity + added + i] = free_[head * capacity_ + i];
      }
    }
    list_memory_ = std::move(made);
    counts_ = grown.counts;
    cells_ = grown.cells;
    free_ = grown.free;
    links_ = grown.links;
    capacity_ = capacity;
    return {};
  }

  void release() noexcept {
    for (std::size_t i = 0; i < heads_ * capacity_; ++i) {
      if (cells_[i] != nullptr) {
        free_memory(cells_[i]);
      }
    }
  }
  void swap(outlier_cells& other) noexcept {
    std::swap(resource_, other.resource_);
    std::swap(heads_, other.heads_);
    std::swap(type_, other.type_);
    std::swap(key_dim_, other.key_dim_);
    std::swap(value_dim_, other.value_dim_);
    record_memory_.swap(other.record_memory_);
    std::swap(pages_, other.pages_);
    list_memory_.swap(other.list_memory_);
    std::swap(counts_, other.counts_);
    std::swap(cells_, other.cells_);
    std::swap(free_, other.free_);
    std::swap(links_, other.links_);
    std::swap(capacity_, other.capacity_);
  }

  memory_resource resource_;
  std::size_t heads_ = 0;
  dtype type_ = dtype::f16;
  std::size_t key_dim_ = 0;
  std::size_t value_dim_ = 0;
  buffer record_memory_;  ///< page_record (heads, pages)
  std::size_t pages_ = 0;
  buffer list_memory_;  ///< what the next four point into
  free_count* counts_ = nullptr;
  std::byte** cells_ = nullptr;  ///< (heads, capacity) memory of a cell or null
  std::uint32_t* free_ = nullptr;
  link* links_ = nullptr;
  std::size_t capacity_ = 0;  ///< cells of each head
};

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
