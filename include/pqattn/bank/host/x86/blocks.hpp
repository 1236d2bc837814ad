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

/// Fetches the cache lines of [at, at + bytes) early; the range may end beyond what exists.
template <auto Hint>  // _mm_hint of GCC, int of Clang
PQATTN_ALWAYS_INLINE void fetch_lines(const std::uint8_t* at, std::size_t bytes) noexcept {
  for (std::size_t line = 0; line < bytes; line += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(at + line), Hint);
  }
}

/// Memory that is read next, a run of blocks after an optional range of bytes: fetched into the second-level cache in equal
/// shares while a kernel computes, so that memory is busy all the time and not only in kernels that wait for it.
class fetch_queue {
 public:
  fetch_queue() = default;
  fetch_queue(const std::uint8_t* bytes, std::size_t count, const slot_run& run) noexcept
      : at_(bytes), left_(bytes == nullptr ? 0 : (count + 63) / 64), run_(run), block_(run.first_block()),
        lines_(left_ + (run.end_block() - run.first_block()) * lines_of_block()) {}

  /// Cuts what is left into this many shares.
  void share_among(std::size_t steps) noexcept { share_ = steps == 0 ? 0 : (lines_ + steps - 1) / steps; }

  void fetch_share() noexcept {
    const std::size_t count = share_ < lines_ ? share_ : lines_;
    lines_ -= count;
    for (std::size_t i = 0; i < count; ++i, --left_, at_ += 64) {
      if (left_ == 0) {
        at_ = run_.block(block_++);
        left_ = lines_of_block();
      }
      _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T1);
    }
  }

 private:
  [[nodiscard]] std::size_t lines_of_block() const noexcept { return (run_.block_bytes + 63) / 64; }

  const std::uint8_t* at_ = nullptr;
  std::size_t left_ = 0;  ///< lines from at_ on
  slot_run run_;
  std::size_t block_ = 0;  ///< that comes after them
  std::size_t lines_ = 0;  ///< of everything
  std::size_t share_ = 0;
};

/// Stores registers of f32 that begin with slot `slot` of a block whose slot 0 belongs at row + offset; only slots
/// [begin, end) are written.
template <class Isa, std::size_t Count>
PQATTN_ALWAYS_INLINE void store_slots(float* row, std::ptrdiff_t offset, std::ptrdiff_t slot, std::ptrdiff_t begin,
                                      std::ptrdiff_t end, const typename Isa::floats (&values)[Count]) noexcept {
  constexpr auto lanes = static_cast<std::ptrdiff_t>(Isa::lanes);
  PQATTN_X86_UNROLL
  for (std::size_t i = 0; i < Count; ++i, slot += lanes) {
    if (slot >= begin && slot + lanes <= end) {
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
