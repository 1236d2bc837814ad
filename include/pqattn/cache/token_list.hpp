// SPDX-License-Identifier: MIT
// Which tokens one part of a sequence holds: pages of 64 slots, the position of every slot, and a bit for every slot
// that says whether its token is still there. Removing a token clears its bit; no page is ever written for it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "../bank/bank.hpp"
#include "../config.hpp"
#include "../core/growable.hpp"

namespace pqattn {
inline namespace v0 {

inline namespace PQATTN_ISA_UNIT {

/// Pages in order, with what is known about their slots. Move-only; the pages' reference counts are the owner's affair:
/// whatever gives pages up passes each to a callable.
class token_list {
 public:
  token_list() = default;
  /// `weight_width`: floats kept per slot besides (importance weights of each head), 0 for none.
  explicit token_list(const memory_resource& resource, std::size_t weight_width = 0) noexcept
      : pages_(resource), live_(resource), positions_(resource), weights_(resource), weight_width_(weight_width) {}

  [[nodiscard]] std::size_t tokens() const noexcept { return tokens_; }
  /// Slots in use from the first page on, the dead ones among them included.
  [[nodiscard]] std::size_t slots() const noexcept { return slots_; }
  [[nodiscard]] std::size_t page_count() const noexcept { return pages_.size(); }
  /// Pages that there is room for.
  [[nodiscard]] std::size_t page_capacity() const noexcept { return pages_.capacity(); }
  [[nodiscard]] std::uint32_t page(std::size_t index) const noexcept { return pages_[index]; }
  [[nodiscard]] const std::uint32_t* pages() const noexcept { return pages_.data(); }
  void replace_page(std::size_t index, std::uint32_t page) noexcept { pages_[index] = page; }
  [[nodiscard]] bool is_live(std::size_t slot) const noexcept { return (live_[slot / 64] >> (slot % 64) & 1u) != 0; }
  /// One bit per slot.
  [[nodiscard]] const std::uint64_t* live() const noexcept { return live_.data(); }
  [[nodiscard]] const std::int32_t* positions() const noexcept { return positions_.data(); }
  [[nodiscard]] std::int64_t position(std::size_t slot) const noexcept { return positions_[slot]; }
  void set_position(std::size_t slot, std::int64_t position) noexcept {
    positions_[slot] = static_cast<std::int32_t>(position);
  }
  [[nodiscard]] float* weights(std::size_t slot) const noexcept { return weights_.data() + slot * weight_width_; }
  [[nodiscard]] bool has_weights() const noexcept { return weight_width_ != 0; }
  [[nodiscard]] std::size_t bytes() const noexcept {
    return pages_.bytes() + live_.bytes() + positions_.bytes() + weights_.bytes();
  }

  /// Pages that `count` more slots need.
  [[nodiscard]] std::size_t pages_for(std::size_t count) const noexcept {
    return blocks_for(slots_ + count) - pages_.size();
  }
  /// Slots that the last page has left.
  [[nodiscard]] std::size_t slots_left() const noexcept { return pages_.size() * block_tokens - slots_; }
  /// Leaves them without tokens: the next slot lies in a new page. Pre: a token follows before anything else.
  void skip_slots_left() noexcept { slots_ += slots_left(); }
  /// Whether the next slot lies in a page that already holds slots.
  [[nodiscard]] bool ends_inside_page() const noexcept { return slots_ % block_tokens != 0; }

  /// Makes room for `count` more slots; on failure nothing that can be seen changes.
  status reserve(std::size_t count) {
    const std::size_t pages = blocks_for(slots_ + count);
    PQATTN_TRY(pages_.reserve(pages));
    PQATTN_TRY(live_.reserve(pages));
    PQATTN_TRY(positions_.reserve(pages * block_tokens));
    return weights_.reserve(pages * block_tokens * weight_width_);
  }

  /// One more page at the end. Pre: reserve().
  void push_page(std::uint32_t page) noexcept {
    static_cast<void>(pages_.push_back(page));
    static_cast<void>(live_.push_back(0));
    for (std::size_t i = 0; i < block_tokens; ++i) {
      static_cast<void>(positions_.push_back(0));  // bank programs read the positions of whole blocks
    }
    for (std::size_t i = 0; i < block_tokens * weight_width_; ++i) {
      static_cast<void>(weights_.push_back(1.0f));
    }
  }
  /// One more token in the next slot, which it returns. Pre: the slot's page exists.
  std::size_t push(std::int64_t position) noexcept {
    const std::size_t slot = slots_++;
    live_[slot / 64] |= std::uint64_t{1} << (slot % 64);
    set_position(slot, position);
    ++tokens_;
    return slot;
  }

  /// Next live slot at or after `slot`; slots() when there is none.
  [[nodiscard]] std::size_t next_live(std::size_t slot) const noexcept {
    while (slot < slots_) {
      const std::uint64_t word = live_[slot / 64] >> (slot % 64);
      if (word != 0) {
        return slot + static_cast<std::size_t>(std::countr_zero(word));
      }
      slot = (slot / 64 + 1) * 64;
    }
    return slots_;
  }
  /// Slot of the token with this index, counted over live slots. Pre: index < tokens(). O(pages).
  [[nodiscard]] std::size_t slot_of(std::size_t index) const noexcept {
    std::size_t block = 0;
    for (std::size_t count = live_in(block); index >= count; count = live_in(++block)) {
      index -= count;
    }
    std::uint64_t word = live_[block];
    for (; index > 0; --index) {
      word &= word - 1;
    }
    return block * 64 + static_cast<std::size_t>(std::countr_zero(word));
  }
  /// Slot of the last token. Pre: tokens() > 0. O(1): the last page always holds it.
  [[nodiscard]] std::size_t last_slot() const noexcept { return slots_ - 1; }

  /// Removes tokens [first, first + count) by index. Whole dead pages go to `give_up`. O(pages).
  template <class GiveUp>
  void remove(std::size_t first, std::size_t count, GiveUp&& give_up) noexcept {
    if (count == 0) {
      return;
    }
    std::size_t slot = slot_of(first);
    for (std::size_t i = 0; i < count; ++i, slot = next_live(slot + 1)) {
      live_[slot / 64] &= ~(std::uint64_t{1} << (slot % 64));
    }
    tokens_ -= count;
    drop_dead_pages(give_up);
  }

  /// Removes the last `count` tokens. O(count / 64 + 1).
  template <class GiveUp>
  void drop_back(std::size_t count, GiveUp&& give_up) noexcept {
    tokens_ -= count;
    while (count > 0) {
      const std::size_t last = pages_.size() - 1;
      std::uint64_t& word = live_[last];
      const auto here = static_cast<std::size_t>(std::popcount(word));
      if (here > count) {
        for (; count > 0; --count) {
          word &= ~(std::uint64_t{1} << (63 - std::countl_zero(word)));
        }
      } else {
        count -= here;
        word = 0;
      }
      trim_back(give_up);
    }
  }

  /// Gives every page up.
  template <class GiveUp>
  void clear(GiveUp&& give_up) noexcept {
    for (std::size_t i = 0; i < pages_.size(); ++i) {
      give_up(pages_[i]);
    }
    resize_pages(0);
    slots_ = tokens_ = 0;
  }

  /// Enters slots [0, slots) of pages that are there: is_live(slot), position(slot). Pre: no tokens; every page has
  /// one.
  template <class IsLive, class Position>
  void restore(std::size_t slots, IsLive&& is_live, Position&& position) noexcept {
    for (std::size_t slot = 0; slot < slots; ++slot) {
      if (is_live(slot)) {
        live_[slot / 64] |= std::uint64_t{1} << (slot % 64);
        set_position(slot, position(slot));
        ++tokens_;
      }
    }
    slots_ = slots;
  }

  /// Forgets the weights, which training has used.
  void drop_weights() noexcept {
    weights_.reset();
    weight_width_ = 0;
  }

  /// A copy that names the same pages. On failure `copy` is unchanged.
  status duplicate(const memory_resource& resource, token_list& copy) const {
    token_list made(resource, weight_width_);
    PQATTN_TRY(made.reserve(slots_));
    for (std::size_t i = 0; i < pages_.size(); ++i) {
      made.push_page(pages_[i]);
    }
    if (!(pages_.size() == 0)) {
      std::memcpy(made.live_.data(), live_.data(), live_.size() * sizeof(std::uint64_t));
      std::memcpy(made.positions_.data(), positions_.data(), positions_.size() * sizeof(std::int32_t));
    }
    if (weights_.size() != 0) {
      std::memcpy(made.weights_.data(), weights_.data(), weights_.size() * sizeof(float));
    }
    made.slots_ = slots_;
    made.tokens_ = tokens_;
    copy = std::move(made);
    return {};
  }

 private:
  [[nodiscard]] std::size_t live_in(std::size_t block) const noexcept {
    return static_cast<std::size_t>(std::popcount(live_[block]));
  }

  void resize_pages(std::size_t count) noexcept {
    pages_.truncate(count);
    live_.truncate(count);
    positions_.truncate(count * block_tokens);
    weights_.truncate(count * block_tokens * weight_width_);
  }

  /// Lets go of dead pages and slots behind the last token, so that they are used again.
  template <class GiveUp>
  void trim_back(GiveUp&& give_up) noexcept {
    std::size_t count = pages_.size();
    for (; count > 0 && live_[count - 1] == 0; --count) {
      give_up(pages_[count - 1]);
    }
    resize_pages(count);
    slots_ = count == 0 ? 0 : count * 64 - static_cast<std::size_t>(std::countl_zero(live_[count - 1]));
  }

  template <class GiveUp>
  void drop_dead_pages(GiveUp&& give_up) noexcept {
    trim_back(give_up);
    std::size_t kept = 0;
    for (std::size_t i = 0; i < pages_.size(); ++i) {
      if (live_[i] == 0) {
        give_up(pages_[i]);
        continue;
      }
      if (kept != i) {
        pages_[kept] = pages_[i];
        live_[kept] = live_[i];
        std::memcpy(positions_.data() + kept * 64, positions_.data() + i * 64, 64 * sizeof(std::int32_t));
        if (weight_width_ != 0) {
          std::memcpy(weights(kept * 64), weights(i * 64), 64 * weight_width_ * sizeof(float));
        }
      }
      ++kept;
    }
    slots_ -= (pages_.size() - kept) * block_tokens;
    resize_pages(kept);
  }

  growable<std::uint32_t> pages_;
  growable<std::uint64_t> live_;
  growable<std::int32_t> positions_;
  growable<float> weights_;
  std::size_t weight_width_ = 0;
  std::size_t slots_ = 0;
  std::size_t tokens_ = 0;
};

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
