// SPDX-License-Identifier: MIT
// Which slots of which code blocks a kernel reads.
#pragma once

#include "lookup.hpp"

#if PQATTN_X86_AVX2

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

/// Slots [first, first + count) of a pool of code blocks; logical block b is physical block pages[b], or b.
struct slot_run {
  const std::uint8_t* memory = nullptr;
  const std::uint32_t* pages = nullptr;
  std::size_t block_bytes = 0;
  std::size_t first = 0;
  std::size_t count = 0;

  [[nodiscard]] std::size_t first_block() const noexcept { return first / slots; }
  /// One past the last block; equals first_block() when there are no slots.
  [[nodiscard]] std::size_t end_block() const noexcept {
    return count == 0 ? first_block() : (first + count + slots - 1) / slots;
  }
  [[nodiscard]] const std::uint8_t* block(std::size_t index) const noexcept {
    return memory + (pages == nullptr ? index : pages[index]) * block_bytes;
  }
  /// The part of the run that lies in blocks [begin, end).
  [[nodiscard]] slot_run part(std::size_t begin, std::size_t end) const noexcept {
    const std::size_t from = begin * slots < first ? first : begin * slots;
    const std::size_t to = end * slots < first + count ? end * slots : first + count;
    return {memory, pages, block_bytes, from, to - from};
  }
  /// Slots of block `index` that belong to the run: [begin, end), 0 to 64.
  [[nodiscard]] std::ptrdiff_t begin_in(std::size_t index) const noexcept {
    return index * slots < first ? static_cast<std::ptrdiff_t>(first - index * slots) : 0;
  }
  [[nodiscard]] std::ptrdiff_t end_in(std::size_t index) const noexcept {
    const std::size_t left = first + count - index * slots;
    return static_cast<std::ptrdiff_t>(left < slots ? left : slots);
  }
  /// Offset in a row of scores of the block's slot 0 (may be negative: slot `first` has offset 0).
  [[nodiscard]] std::ptrdiff_t offset_of(std::size_t index) const noexcept {
    return static_cast<std::ptrdiff_t>(index * slots) - static_cast<std::ptrdiff_t>(first);
  }
};

/// Fetches the cache lines of [at, at + bytes) into the first-level cache; the range may end beyond what exists. For
/// what the second level holds already.
PQATTN_ALWAYS_INLINE void fetch_lines(const std::uint8_t* at, std::size_t bytes) noexcept {
  for (std::size_t line = 0; line < bytes; line += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(at + line), _MM_HINT_T0);
  }
}

/// The same into the second-level cache, for what may lie in memory: on Zen 4 the first level has too few places for
/// lines that are under way, and loads wait for one meanwhile.
PQATTN_ALWAYS_INLINE void fetch_from_memory(const std::uint8_t* at, std::size_t bytes) noexcept {
  for (std::size_t line = 0; line < bytes; line += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(at + line), _MM_HINT_T1);
  }
}

/// Memory that is read next, blocks after an optional range of bytes: fetched in equal shares while a kernel computes,
/// so that memory is busy all the time and not only in kernels that wait for it. In the order of addresses, so that the
/// processor's own prefetchers run ahead.
class fetch_queue {
 public:
  fetch_queue() = default;
  fetch_queue(const std::uint8_t* bytes, std::size_t count, const slot_run& run) noexcept
      : at_(bytes),
        left_(bytes == nullptr ? 0 : (count + 63) / 64),
        run_(run),
        block_(run.first_block()),
        lines_(left_ + lines_of_run()) {}
  /// Listed blocks; the list must stay.
  fetch_queue(const std::uint8_t* const* blocks, std::size_t count, std::size_t block_bytes) noexcept
      : run_{nullptr, nullptr, block_bytes, 0, 0}, list_(blocks), lines_(count * lines_of_block()) {}

  /// Cuts what is left into this many shares.
  void share_among(std::size_t steps) noexcept { share_ = steps == 0 ? 0 : (lines_ + steps - 1) / steps; }

  void fetch_share() noexcept {
    add_share();
    fetch_due();
  }

  /// Makes one more share due.
  void add_share() noexcept {
    const std::size_t rest = lines_ - due_;
    due_ += share_ < rest ? share_ : rest;
  }
  [[nodiscard]] std::size_t due() const noexcept { return due_; }
  /// Lines from the next one on that lie side by side, due or not.
  [[nodiscard]] std::size_t side_by_side() noexcept { return lines_here(); }
  /// Gives `count` lines side by side to the caller to fetch when as many are due, or null. Fetches those that do not
  /// lie side by side, and what more than twice as many are due.
  [[nodiscard]] const std::uint8_t* take(std::size_t count) noexcept {
    fetch(due_ > 2 * count ? due_ - 2 * count : 0);
    if (due_ < count) {
      return nullptr;
    }
    if (lines_here() < count) {
      fetch(count);
      return nullptr;
    }
    const std::uint8_t* taken = at_;
    skip(count);
    return taken;
  }
  void fetch_due() noexcept { fetch(due_); }

 private:
  [[nodiscard]] std::size_t lines_of_block() const noexcept { return (run_.block_bytes + 63) / 64; }
  /// Blocks without pages are one range, counted from its start: one that begins within a line may lose its last.
  [[nodiscard]] std::size_t lines_of_run() const noexcept {
    const std::size_t blocks = run_.end_block() - run_.first_block();
    return run_.pages == nullptr ? (blocks * run_.block_bytes + 63) / 64 : blocks * lines_of_block();
  }
  /// Lines from at_ on, which moves to the next block when there are none; blocks without pages are one.
  std::size_t lines_here() noexcept {
    if (left_ == 0 && lines_ != 0) {
      at_ = list_ == nullptr ? run_.block(block_) : list_[block_];
      left_ = list_ == nullptr && run_.pages == nullptr ? lines_ : lines_of_block();
      ++block_;
    }
    return left_;
  }
  void skip(std::size_t count) noexcept {
    at_ += 64 * count;
    left_ -= count;
    lines_ -= count;
    due_ -= count;
  }
  void fetch(std::size_t count) noexcept {
    while (count != 0) {
      const std::size_t here = lines_here();
      const std::size_t together = here < count ? here : count;
      fetch_from_memory(at_, 64 * together);
      skip(together);
      count -= together;
    }
  }

  const std::uint8_t* at_ = nullptr;
  std::size_t left_ = 0;  ///< lines from at_ on
  slot_run run_;
  const std::uint8_t* const* list_ = nullptr;  ///< blocks instead of a run of them
  std::size_t block_ = 0;                      ///< that comes after them
  std::size_t lines_ = 0;                      ///< of everything
  std::size_t share_ = 0;
  std::size_t due_ = 0;
};

/// Adds to registers of f32 what store_slots would overwrite.
template <class Isa, std::size_t Count>
PQATTN_ALWAYS_INLINE void add_slots(const float* row, std::ptrdiff_t offset, std::ptrdiff_t slot, std::ptrdiff_t begin,
                                    std::ptrdiff_t end, typename Isa::floats (&values)[Count]) noexcept {
  constexpr auto lanes = static_cast<std::ptrdiff_t>(Isa::lanes);
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Count; ++i, slot += lanes) {
    values[i] = Isa::addf(values[i], Isa::loadf_range(row + (offset + slot), begin - slot, end - slot));
  }
}

/// Stores registers of f32 that begin with slot `slot` of a block whose slot 0 belongs at row + offset; only slots
/// [begin, end) are written.
template <class Isa, std::size_t Count>
PQATTN_ALWAYS_INLINE void store_slots(float* row, std::ptrdiff_t offset, std::ptrdiff_t slot, std::ptrdiff_t begin,
                                      std::ptrdiff_t end, const typename Isa::floats (&values)[Count]) noexcept {
  constexpr auto lanes = static_cast<std::ptrdiff_t>(Isa::lanes);
  const bool whole = begin == 0 && end == static_cast<std::ptrdiff_t>(slots);
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Count; ++i, slot += lanes) {
    if (whole) {
      Isa::storef(row + offset + slot, values[i]);
    } else {
      Isa::storef_range(row + (offset + slot), begin - slot, end - slot, values[i]);
    }
  }
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
