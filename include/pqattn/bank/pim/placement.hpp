// SPDX-License-Identifier: MIT
// Where codes, codebooks, tables and points lie in the emulated banks: the mapping policies, the cut of a code block
// over banks, and the allocation of rows.
//
// The map. A KV head lives in a home: `channels_per_home` consecutive command channels. Memory of a home is handed out
// in slabs: the same row of every bank of the home. Rows below `codebook_rows` are the codebook region (codebooks and
// tables), the rest is the code region (codes, and the points that training keeps there: the prefill buffer, whose
// rows codes take over once training has given them back). A size in whole slabs asks for the codebook region, any
// other for the code region; a region that is full borrows from the other. Physical byte address of (channel, bank,
// row, byte): ((channel * rows_per_bank + row) * row_bytes / column_bytes + byte / column_bytes) * banks * column_bytes
// + bank * column_bytes + byte % column_bytes: low bits select the bank.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "../../config.hpp"
#include "../../core/status.hpp"
#include "../bank.hpp"
#include "closed_forms.hpp"
#include "device.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

/// AQPIM: one sub-vector to one bank. Banks that are left over take further stripes of tokens, with copies of
/// codebooks and tables; when there are more code groups than banks, several share a bank.
struct subvector_per_bank {
  static constexpr const char* name = "subvector_per_bank";
  [[nodiscard]] static constexpr std::int64_t groups_per_bank(std::int64_t groups, std::int64_t banks) noexcept {
    return ceil_div(groups, banks);
  }
};

/// Tokens are striped over all banks; each bank holds every sub-vector of its tokens and a copy of all tables.
struct token_striped {
  static constexpr const char* name = "token_striped";
  [[nodiscard]] static constexpr std::int64_t groups_per_bank(std::int64_t groups, std::int64_t) noexcept {
    return groups;
  }
};

/// How the codes of one geometry lie in a home. Block b of a pool lies in stripe b % stripes() at place b / stripes();
/// stripes go channel by channel. Inside a bank, a block is a plane of 64 packed
/// codes for each of its groups.
struct code_placement {
  std::int64_t channels = 1;         ///< of the home
  std::int64_t banks = 1;            ///< of a command channel
  std::int64_t groups = 1;           ///< codes per token
  std::int64_t groups_per_bank = 1;  ///< in one bank
  std::int64_t banks_per_stripe = 1;
  std::int64_t stripes_per_channel = 1;
  std::int64_t plane_bytes = 8;  ///< 64 codes of one group
  std::int64_t blocks_per_row = 1;
  std::int64_t rows_per_block = 1;  ///< above 1 only when a block is larger than a row
  std::int64_t row_bytes = 1024;

  [[nodiscard]] constexpr std::int64_t stripes() const noexcept { return channels * stripes_per_channel; }
  [[nodiscard]] constexpr std::int64_t stripe_of(std::int64_t block) const noexcept { return block % stripes(); }
  /// Row of a block, counted from the pool's first.
  [[nodiscard]] constexpr std::int64_t row_of(std::int64_t block) const noexcept {
    return block / stripes() / blocks_per_row * rows_per_block;
  }
  /// Byte of a block's plane of the f-th group of its bank, counted from the pool's first row. Planes of one group
  /// follow one another.
  [[nodiscard]] constexpr std::int64_t byte_of(std::int64_t block, std::int64_t f) const noexcept {
    return row_of(block) * row_bytes + (f * blocks_per_row + block / stripes() % blocks_per_row) * plane_bytes;
  }
  /// What a block takes of a pool. Odd, so that a pool is never in whole slabs by accident (see above).
  [[nodiscard]] constexpr std::int64_t block_bytes() const noexcept {
    const std::int64_t slab = channels * banks * row_bytes;
    // A block larger than a row: rounding up to slabs must not be shared with the next stripe's.
    return (rows_per_block > 1 ? slab * rows_per_block : ceil_div(slab, stripes() * blocks_per_row)) | 1;
  }
};

/// The placement of codes of `groups` groups, `code_bits` each.
template <class Mapping>
[[nodiscard]] constexpr code_placement place_codes(const device& d, std::int64_t channels, std::int64_t groups,
                                                   std::int64_t code_bits) noexcept {
  code_placement p;
  p.channels = channels;
  p.banks = d.organisation.banks_per_command_channel();
  p.groups = groups;
  p.groups_per_bank =
      std::clamp<std::int64_t>(Mapping::groups_per_bank(groups, p.banks), ceil_div(groups, p.banks), groups);
  p.banks_per_stripe = ceil_div(groups, p.groups_per_bank);
  p.stripes_per_channel = p.banks / p.banks_per_stripe;
  p.plane_bytes = 8 * code_bits;
  p.row_bytes = d.organisation.row_bytes;
  p.blocks_per_row = (std::max<std::int64_t>)(1, p.row_bytes / (p.groups_per_bank * p.plane_bytes));
  p.rows_per_block = ceil_div(p.groups_per_bank * p.plane_bytes, p.row_bytes);
  return p;
}

/// A place in a device's memory: a home and the first of some rows.
struct device_address {
  std::uint32_t home = 0;  ///< counted from 1; 0 = no memory
  std::uint32_t row = 0;

  friend constexpr bool operator==(const device_address&, const device_address&) noexcept = default;
};

/// Hands out rows of homes. Rows at and above `device_rows()` exist only where overflow to the host is allowed.
class row_allocator {
 public:
  /// `host_rows`: further rows per home that stand for host memory.
  status configure(std::size_t homes, std::size_t device_rows, std::size_t codebook_rows, std::size_t host_rows,
                   std::size_t slab_bytes) {
    device_rows_ = device_rows;
    codebook_rows_ = (std::min)(codebook_rows, device_rows);
    rows_ = device_rows + host_rows;
    slab_bytes_ = slab_bytes;
#if PQATTN_HAS_EXCEPTIONS
    try {
#endif
      taken_.assign(homes * rows_, 0);
#if PQATTN_HAS_EXCEPTIONS
    } catch (const std::bad_alloc&) {
      return failure(status_code::out_of_memory, "pim rows", "cannot hold the row map");
    }
#endif
    used_rows_ = peak_rows_ = 0;
    return {};
  }

  [[nodiscard]] std::size_t rows_for(std::size_t bytes) const noexcept {
    return (std::max<std::size_t>)(1, (bytes + slab_bytes_ - 1) / slab_bytes_);
  }
  /// First fit in the region that the size asks for, then in the other. capacity when nothing fits.
  status reserve(std::uint32_t home, std::size_t bytes, device_address& place) noexcept {
    const std::size_t rows = rows_for(bytes);
    const bool book = bytes != 0 && bytes % slab_bytes_ == 0;
    std::size_t row = find(home, rows, book ? 0 : codebook_rows_, book ? codebook_rows_ : device_rows_);
    row = row == none ? find(home, rows, 0, device_rows_) : row;
    row = row == none ? find(home, rows, device_rows_, rows_) : row;
    if (row == none) {
      return failure(status_code::capacity, "pim home", "has no run of free rows that long; rows in all and rows asked",
                     device_rows_, rows);
    }
    mark(home, row, rows, 1);
    used_rows_ += rows;
    peak_rows_ = (std::max)(peak_rows_, used_rows_);
    place = {home + 1, static_cast<std::uint32_t>(row)};
    return {};
  }
  void release(device_address place, std::size_t bytes) noexcept {
    if (place.home != 0) {
      mark(place.home - 1, place.row, rows_for(bytes), 0);
      used_rows_ -= rows_for(bytes);
    }
  }

  [[nodiscard]] bool on_host(device_address place) const noexcept {
    return place.row >= device_rows_;
  }
  [[nodiscard]] std::size_t device_rows() const noexcept {
    return device_rows_;
  }
  [[nodiscard]] std::size_t rows() const noexcept {
    return rows_;
  }
  [[nodiscard]] std::size_t slab_bytes() const noexcept {
    return slab_bytes_;
  }
  [[nodiscard]] std::size_t used_bytes() const noexcept {
    return used_rows_ * slab_bytes_;
  }
  [[nodiscard]] std::size_t peak_bytes() const noexcept {
    return peak_rows_ * slab_bytes_;
  }

 private:
  static constexpr std::size_t none = static_cast<std::size_t>(-1);
  std::vector<std::uint8_t> taken_;
  std::size_t device_rows_ = 0, codebook_rows_ = 0, rows_ = 0, slab_bytes_ = 1, used_rows_ = 0, peak_rows_ = 0;

  [[nodiscard]] std::size_t find(std::uint32_t home, std::size_t rows, std::size_t first,
                                 std::size_t end) const noexcept {
    const std::uint8_t* map = taken_.data() + home * rows_;
    std::size_t run = 0;
    for (std::size_t row = first; row < end; ++row) {
      run = map[row] != 0 ? 0 : run + 1;
      if (run == rows) {
        return row + 1 - rows;
      }
    }
    return none;
  }
  void mark(std::uint32_t home, std::size_t row, std::size_t rows, std::uint8_t value) noexcept {
    std::fill_n(taken_.begin() + static_cast<std::ptrdiff_t>(home * rows_ + row), rows, value);
  }
};

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
