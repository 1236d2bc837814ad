// SPDX-License-Identifier: MIT
// The bytes of the emulated banks, and the packing of codes in them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "../../config.hpp"
#include "../../core/memory.hpp"
#include "../../core/status.hpp"
#include "device.hpp"
#include "placement.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

/// Rows that were handed out, home by home. Inside an allocation the rows of one bank follow one another, so that a
/// byte of a bank is found by one offset; the physical address of each is that of placement.hpp.
class functional_memory {
 public:
  status configure(std::size_t homes, std::size_t rows, std::size_t channels, std::size_t banks,
                   std::size_t row_bytes) {
    rows_ = rows;
    channels_ = channels;
    banks_ = banks;
    row_bytes_ = row_bytes;
    return guarded([&] { homes_ = std::vector<std::vector<extent>>(homes); });
  }

  /// Memory for `rows` rows of every bank of the home, zeroed.
  status add(device_address place, std::size_t rows) {
    auto& home = homes_[place.home - 1];
    PQATTN_TRY(guarded([&] { home.resize(rows_); }));
    extent& at = home[place.row];
    // Codes are read and written four bytes at a time: a few bytes behind the last bank.
    PQATTN_TRY(buffer::make({}, rows * channels_ * banks_ * row_bytes_ + 8, at.memory));
    at.bank_bytes = rows * row_bytes_;
    std::memset(at.memory.data(), 0, at.memory.size());
    return {};
  }
  void remove(device_address place) noexcept { homes_[place.home - 1][place.row] = {}; }

  /// Byte `byte` of the allocation at `place` in a bank of a channel of the home.
  [[nodiscard]] std::byte* at(device_address place, std::int64_t channel, std::int64_t bank,
                              std::int64_t byte) const noexcept {
    const extent& e = homes_[place.home - 1][place.row];
    const std::size_t index = static_cast<std::size_t>(channel) * banks_ + static_cast<std::size_t>(bank);
    return e.memory.data() + index * e.bank_bytes + byte;
  }
  /// The same in a bank of a stripe.
  [[nodiscard]] std::byte* at(const code_placement& p, device_address place, std::int64_t stripe, std::int64_t bank,
                              std::int64_t byte) const noexcept {
    return at(place, stripe / p.stripes_per_channel, stripe % p.stripes_per_channel * p.banks_per_stripe + bank, byte);
  }

 private:
  struct extent {
    buffer memory;
    std::size_t bank_bytes = 0;
  };
  std::vector<std::vector<extent>> homes_;
  std::size_t rows_ = 0, channels_ = 1, banks_ = 1, row_bytes_ = 1;

  template <class Work>
  static status guarded(Work&& work) {
#if PQATTN_HAS_EXCEPTIONS
    try {
#endif
      work();
#if PQATTN_HAS_EXCEPTIONS
    } catch (const std::bad_alloc&) {
      return failure(status_code::out_of_memory, "pim memory", "cannot hold its tables");
    }
#endif
    return {};
  }
};

/// The code of slot `slot` in a plane of 64 codes.
[[nodiscard]] inline std::uint16_t read_code(const std::byte* plane, std::uint32_t slot, std::uint32_t bits) noexcept {
  const std::uint32_t bit = slot * bits;
  std::uint32_t word = 0;
  for (std::uint32_t i = 0; i < 3; ++i) {
    word |= static_cast<std::uint32_t>(plane[bit / 8 + i]) << (8 * i);
  }
  return static_cast<std::uint16_t>(word >> (bit % 8) & ((1u << bits) - 1));
}
inline void write_code(std::byte* plane, std::uint32_t slot, std::uint32_t bits, std::uint16_t code) noexcept {
  const std::uint32_t bit = slot * bits;
  const std::uint32_t mask = ((1u << bits) - 1) << (bit % 8);
  const std::uint32_t word = static_cast<std::uint32_t>(code) << (bit % 8) & mask;
  for (std::uint32_t i = 0; i < 3; ++i) {
    std::byte& target = plane[bit / 8 + i];
    target = (target & static_cast<std::byte>(~mask >> (8 * i))) | static_cast<std::byte>(word >> (8 * i));
  }
}

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
