// SPDX-License-Identifier: MIT
// Tokens of the coded body that are kept exact besides, because coding them costs too much.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../bank/bank.hpp"
#include "../config.hpp"
#include "../core/growable.hpp"
#include "../core/memory.hpp"
#include "cache_config.hpp"
#include "exact_rows.hpp"

namespace pqattn {
inline namespace v0 {

inline namespace PQATTN_ISA_UNIT {

/// Exact keys and values of outliers in the order of their tokens, and one bit per slot of the body that says whether
/// its codes count. At most `share` of the body is kept, at every length.
class outlier_rows {
 public:
  outlier_rows() = default;
  outlier_rows(const memory_resource& resource, dtype type, std::size_t key_dim, std::size_t value_dim,
               float share) noexcept
      : share_(share),
        keys_(resource, type, key_dim),
        values_(resource, type, value_dim),
        positions_(resource),
        live_(resource) {}

  /// Makes room for what a body of `slots` slots can hold. On failure nothing that can be seen changes.
  status reserve(std::size_t slots) {
    if (!(share_ > 0.0f)) {
      return {};
    }
    PQATTN_TRY(keys_.grow(limit(slots)));
    PQATTN_TRY(values_.grow(limit(slots)));
    PQATTN_TRY(positions_.reserve(limit(slots)));
    return live_.reserve(blocks_for(slots));
  }

  /// The body has one slot more, whose codes count. Pre (also of add()): reserve().
  void add_slot() noexcept {
    if (slots_ % block_tokens == 0) {
      static_cast<void>(live_.push_back(~std::uint64_t{0}));
    }
    ++slots_;
  }
  /// Outliers there is memory for.
  [[nodiscard]] std::size_t room() const noexcept { return positions_.capacity(); }
  [[nodiscard]] bool has_room() const noexcept { return positions_.size() < limit(slots_); }
  /// Keeps rows of f32 in exact form for the token of a slot.
  void add(std::size_t token, std::size_t slot, const float* key, const float* value) noexcept {
    keys_.push_back(key);
    values_.push_back(value);
    static_cast<void>(positions_.push_back(static_cast<std::int32_t>(token)));
    live_[slot / block_tokens] &= ~(std::uint64_t{1} << (slot % block_tokens));
  }

  [[nodiscard]] std::size_t size() const noexcept { return positions_.size(); }
  /// Index of a token; size() when it is none.
  [[nodiscard]] std::size_t find(std::size_t token) const noexcept {
    const std::int32_t* end = positions_.data() + positions_.size();
    const std::int32_t* found =
        std::lower_bound(static_cast<const std::int32_t*>(positions_.data()), end, static_cast<std::int32_t>(token));
    return found != end && static_cast<std::size_t>(*found) == token
               ? static_cast<std::size_t>(found - positions_.data())
               : size();
  }
  [[nodiscard]] rows_view keys() const noexcept { return keys_.view(); }
  [[nodiscard]] rows_view values() const noexcept { return values_.view(); }
  [[nodiscard]] const std::int32_t* positions() const noexcept { return positions_.data(); }
  /// Bits of the slots from `first` on, a multiple of block_tokens; null when all count.
  [[nodiscard]] const std::uint64_t* live(std::size_t first) const noexcept {
    return size() == 0 ? nullptr : live_.data() + first / block_tokens;
  }

  void add_to(memory_report& report) const noexcept {
    report.exact_bytes += keys_.bytes() + values_.bytes();
    report.metadata_bytes += positions_.bytes() + live_.bytes();
  }

 private:
  [[nodiscard]] std::size_t limit(std::size_t slots) const noexcept {
    return static_cast<std::size_t>(static_cast<double>(share_) * static_cast<double>(slots));
  }

  float share_ = 0.0f;
  std::size_t slots_ = 0;
  exact_rows keys_;
  exact_rows values_;
  growable<std::int32_t> positions_;
  growable<std::uint64_t> live_;
};

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
