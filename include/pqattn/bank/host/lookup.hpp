// SPDX-License-Identifier: MIT
// Looking codes up: 64 codes of one group against the f32 numbers of a table or of a codebook's planes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "code_block.hpp"
#include "isa.hpp"
#include "resident.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// table[codes[i]] for one register of codes.
template <class Isa>
[[nodiscard]] float_batch<Isa> look_up(const float* table, const std::int32_t* codes) noexcept {
  return float_batch<Isa>::gather(table, index_batch<Isa>::load_aligned(codes));
}

/// f32 planes of up to `channels` channels of one group, expanded once and then looked up for many blocks.
/// Codebooks of more than 1024 centroids do not fit the scratch and are read entry by entry.
template <class Isa>
class group_planes {
 public:
  static constexpr std::uint32_t channels = 4;

  /// Selects channels [first, first + count) of a group; count <= channels.
  void select(const host_codebook& book, std::uint32_t group, std::uint32_t first, std::uint32_t count) noexcept {
    book_ = &book;
    const std::size_t entries = plane_entries(book.book.shape);
    for (std::uint32_t c = 0; c < count; ++c) {
      index_[c] = book.plane_of(group, first + c);
      if (book.book.storage == codebook_storage::f32) {
        plane_[c] = reinterpret_cast<const float*>(book.plane(index_[c]));
      } else if (entries <= max_entries) {
        book.expand<Isa>(index_[c], 0, entries, expanded_[c]);
        plane_[c] = expanded_[c];
      } else {
        plane_[c] = nullptr;
      }
    }
  }

  [[nodiscard]] float_batch<Isa> look_up_channel(std::uint32_t channel, const std::int32_t* codes) const noexcept {
    if (plane_[channel] != nullptr) {
      return look_up<Isa>(plane_[channel], codes);
    }
    alignas(64) float entries[float_batch<Isa>::size];
    for (std::size_t i = 0; i < float_batch<Isa>::size; ++i) {
      entries[i] = book_->entry(index_[channel], static_cast<std::size_t>(codes[i]));
    }
    return float_batch<Isa>::load_aligned(entries);
  }

 private:
  static constexpr std::size_t max_entries = 1024;
  const host_codebook* book_ = nullptr;
  std::size_t index_[channels] = {};
  const float* plane_[channels] = {};
  alignas(64) float expanded_[channels][max_entries];
};

/// Address of a group's codes in a block.
[[nodiscard]] inline std::byte* group_codes(const code_span<std::byte*>& codes, std::size_t block,
                                            std::uint32_t group) noexcept {
  return codes.memory + codes.page(block) * host_block_bytes(codes.shape) +
         group * group_bytes(codes.shape.code_bits());
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
