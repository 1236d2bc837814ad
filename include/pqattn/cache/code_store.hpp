// SPDX-License-Identifier: MIT
// The coded body of one side of a KV head: a codebook and chunks of code blocks in the bank's memory.
#pragma once

#include <cstddef>
#include <utility>

#include "../bank/bank.hpp"
#include "../core/growable.hpp"
#include "cache_config.hpp"

namespace pqattn {
inline namespace v0 {

/// Slots of the next chunk of a store that has room for `capacity`: an eighth more, at least 256, in whole blocks. A
/// long context wastes at most a ninth, never moves a code, and 16 M tokens take about 90 chunks.
[[nodiscard]] constexpr std::size_t next_chunk_slots(std::size_t capacity) noexcept {
  const std::size_t eighth = capacity / 8 / block_tokens * block_tokens;
  return eighth < 256 ? 256 : eighth;
}

/// Most chunks a store can have: enough for more tokens than memory can hold.
inline constexpr std::size_t max_chunks = 160;

/// One piece of bank memory with codes of slots [first, first + slots) of the body.
template <class Address>
struct code_chunk {
  Address memory{};
  std::size_t first = 0;
  std::size_t slots = 0;
};

/// Codes and codebook of one side. Move-only; gives its bank memory back.
template <class Bank>
class code_store {
 public:
  using address = typename Bank::address;

  code_store() = default;
  code_store(Bank& bank, const memory_resource& resource, const side_config& side) noexcept
      : bank_(&bank), side_(side), chunks_(resource) {}
  code_store(code_store&& other) noexcept { swap(other); }
  code_store& operator=(code_store&& other) noexcept {
    code_store taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~code_store() { release(); }

  /// Moves a trained codebook into the bank. On failure nothing changes.
  status set_codebook(const codebook_view& book) {
    resident_codebook<address> placed{side_.shape, side_.storage, {}};
    const std::size_t bytes = bank_->codebook_bytes(side_.shape, side_.storage);
    PQATTN_TRY(bank_->reserve(bytes, placed.memory));
    if (const status stored = bank_->store_codebook(book, placed); !stored) {
      bank_->release(placed.memory, bytes);
      return stored;
    }
    release_codebook();
    book_ = placed;
    return {};
  }
  void release_codebook() noexcept {
    if (has_codebook()) {
      bank_->release(book_.memory, codebook_bytes());
      book_ = {};
    }
  }

  /// Makes room for `slots` slots. On failure the store still holds what it held, perhaps with more room.
  status reserve(std::size_t slots) {
    while (capacity() < slots) {
      if (chunks_.size() == max_chunks) {
        return failure(status_code::capacity, "code store", "has its most chunks", max_chunks, chunks_.size());
      }
      code_chunk<address> chunk{{}, capacity(), next_chunk_slots(capacity())};
      PQATTN_TRY(chunks_.reserve(chunks_.size() + 1));
      PQATTN_TRY(bank_->reserve(chunk_bytes(chunk), chunk.memory));
      PQATTN_TRY(chunks_.push_back(chunk));
    }
    return {};
  }

  [[nodiscard]] bool has_codebook() const noexcept { return book_.memory != address{}; }
  [[nodiscard]] const resident_codebook<address>& book() const noexcept { return book_; }
  [[nodiscard]] std::size_t chunk_count() const noexcept { return chunks_.size(); }
  [[nodiscard]] const code_chunk<address>& chunk(std::size_t index) const noexcept { return chunks_[index]; }
  [[nodiscard]] code_span<address> span(std::size_t index) const noexcept {
    return {side_.shape, chunks_[index].memory, nullptr};
  }
  [[nodiscard]] std::size_t capacity() const noexcept {
    return chunks_.size() == 0 ? 0 : chunks_[chunks_.size() - 1].first + chunks_[chunks_.size() - 1].slots;
  }
  [[nodiscard]] std::size_t codebook_bytes() const noexcept {
    return has_codebook() ? bank_->codebook_bytes(side_.shape, side_.storage) : 0;
  }
  [[nodiscard]] std::size_t codes_bytes() const noexcept {
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < chunks_.size(); ++i) {
      bytes += chunk_bytes(chunks_[i]);
    }
    return bytes;
  }
  [[nodiscard]] std::size_t metadata_bytes() const noexcept { return chunks_.bytes(); }

  /// Codes consecutive rows into slots [first, first + rows.rows). Pre: reserved; rows checked.
  status encode(const rows_view& rows, std::size_t first) const noexcept {
    std::size_t done = 0;
    for (std::size_t i = 0; i < chunks_.size() && done < rows.rows; ++i) {
      const code_chunk<address>& chunk = chunks_[i];
      const std::size_t chunk_end = chunk.first + chunk.slots;
      if (first + done < chunk_end) {
        const std::size_t left = rows.rows - done;
        const std::size_t room = chunk_end - (first + done);
        const std::size_t count = left < room ? left : room;
        PQATTN_TRY(bank_->encode(rows.slice(done, count), book_, span(i), {first + done - chunk.first, count}));
        done += count;
      }
    }
    return {};
  }

  /// Decodes slot `slot` into `row` (f32, dim floats).
  status decode(std::size_t slot, float* row) const noexcept {
    std::size_t i = 0;
    while (slot >= chunks_[i].first + chunks_[i].slots) {
      ++i;
    }
    return bank_->decode(book_, span(i), {slot - chunks_[i].first, 1}, ref_rows(row, 1, side_.shape.dim));
  }

 private:
  [[nodiscard]] std::size_t chunk_bytes(const code_chunk<address>& chunk) const noexcept {
    return chunk.slots / block_tokens * bank_->code_block_bytes(side_.shape);
  }
  void release() noexcept {
    release_codebook();
    for (std::size_t i = 0; i < chunks_.size(); ++i) {
      bank_->release(chunks_[i].memory, chunk_bytes(chunks_[i]));
    }
    chunks_.reset();
  }
  void swap(code_store& other) noexcept {
    std::swap(bank_, other.bank_);
    std::swap(side_, other.side_);
    std::swap(book_, other.book_);
    std::swap(chunks_, other.chunks_);
  }

  Bank* bank_ = nullptr;
  side_config side_;
  resident_codebook<address> book_;
  growable<code_chunk<address>> chunks_;
};

}  // namespace v0
}  // namespace pqattn
