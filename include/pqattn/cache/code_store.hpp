// SPDX-License-Identifier: MIT
// The coded body of one side of a KV head: codebooks, one per epoch, and chunks of code blocks in the bank's memory.
#pragma once

#include <cstddef>
#include <cstdint>
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

/// Codes and codebooks of one side. All codebooks have one geometry, so that a block's layout does not depend on its
/// epoch. Move-only; gives its bank memory back.
template <class Bank>
class code_store {
 public:
  using address = typename Bank::address;

  code_store() = default;
  /// `rotation`: enabled for keys coded before RoPE.
  code_store(Bank& bank, const memory_resource& resource, const side_config& side, const rope& rotation = {}) noexcept
      : bank_(&bank), side_(side), rotation_(rotation), books_(resource), chunks_(resource) {}
  code_store(code_store&& other) noexcept { swap(other); }
  code_store& operator=(code_store&& other) noexcept {
    code_store taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~code_store() { release(); }

  /// Moves the codebook of the next epoch into the bank. On failure nothing changes.
  status add_codebook(const codebook_view& book) {
    resident_codebook<address> placed{side_.shape, side_.storage, {}, rotation_};
    PQATTN_TRY(books_.reserve(books_.size() + 1));
    PQATTN_TRY(bank_->reserve(book_bytes(), placed.memory));
    if (const status stored = bank_->store_codebook(book, placed); !stored) {
      bank_->release(placed.memory, book_bytes());
      return stored;
    }
    return books_.push_back(placed.memory);
  }
  /// Keeps the first `count` codebooks.
  void drop_codebooks(std::size_t count) noexcept {
    while (books_.size() > count) {
      bank_->release(books_[books_.size() - 1], book_bytes());
      books_.truncate(books_.size() - 1);
    }
    if (count == 0) {
      books_.reset();
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

  [[nodiscard]] std::size_t codebook_count() const noexcept { return books_.size(); }
  [[nodiscard]] resident_codebook<address> book(std::size_t epoch) const noexcept {
    return {side_.shape, side_.storage, books_[epoch], rotation_};
  }
  [[nodiscard]] std::size_t chunk_count() const noexcept { return chunks_.size(); }
  [[nodiscard]] const code_chunk<address>& chunk(std::size_t index) const noexcept { return chunks_[index]; }
  [[nodiscard]] code_span<address> span(std::size_t index) const noexcept {
    return {side_.shape, chunks_[index].memory, nullptr};
  }
  [[nodiscard]] std::size_t capacity() const noexcept {
    return chunks_.size() == 0 ? 0 : chunks_[chunks_.size() - 1].first + chunks_[chunks_.size() - 1].slots;
  }
  [[nodiscard]] std::size_t codebook_bytes() const noexcept { return books_.size() * book_bytes(); }
  [[nodiscard]] std::size_t codes_bytes() const noexcept {
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < chunks_.size(); ++i) {
      bytes += chunk_bytes(chunks_[i]);
    }
    return bytes;
  }
  [[nodiscard]] std::size_t metadata_bytes() const noexcept { return chunks_.bytes() + books_.bytes(); }

  /// Codes consecutive rows into slots [first, first + rows.rows) with an epoch's codebook. Pre: reserved; rows
  /// checked.
  status encode(std::size_t epoch, const rows_view& rows, std::size_t first) const noexcept {
    return for_chunks(first, rows.rows, [&](const code_span<address>& codes, slot_range slots, std::size_t done) {
      return bank_->encode(rows.slice(done, slots.count), book(epoch), codes, slots);
    });
  }
  /// Stores `count` rows of codes, groups() each. Pre: reserved.
  status store(const std::uint16_t* codes, std::size_t first, std::size_t count) const noexcept {
    return for_chunks(first, count, [&](const code_span<address>& span, slot_range slots, std::size_t done) {
      return bank_->store_codes(span, slots, codes + done * side_.shape.groups());
    });
  }
  /// Decodes slots [first, first + rows.rows) of one epoch.
  status decode(std::size_t epoch, std::size_t first, const rows_ref& rows) const noexcept {
    return for_chunks(first, rows.rows, [&](const code_span<address>& codes, slot_range slots, std::size_t done) {
      return bank_->decode(book(epoch), codes, slots, rows.slice(done, slots.count));
    });
  }
  /// The centroids of an epoch as the bank's programs use them (codebook_values() floats).
  status load_codebook(std::size_t epoch, float* centroids) const noexcept {
    return bank_->load_codebook(book(epoch), centroids);
  }

 private:
  /// Calls work(span of a chunk, slots within it, rows done before) for every chunk that holds some of the slots.
  template <class Work>
  status for_chunks(std::size_t first, std::size_t count, const Work& work) const noexcept {
    std::size_t done = 0;
    for (std::size_t i = 0; i < chunks_.size() && done < count; ++i) {
      const code_chunk<address>& chunk = chunks_[i];
      const std::size_t chunk_end = chunk.first + chunk.slots;
      if (first + done < chunk_end) {
        const std::size_t left = count - done;
        const std::size_t room = chunk_end - (first + done);
        const slot_range slots{first + done - chunk.first, left < room ? left : room};
        PQATTN_TRY(work(span(i), slots, done));
        done += slots.count;
      }
    }
    return {};
  }
  [[nodiscard]] std::size_t book_bytes() const noexcept { return bank_->codebook_bytes(side_.shape, side_.storage); }
  [[nodiscard]] std::size_t chunk_bytes(const code_chunk<address>& chunk) const noexcept {
    return chunk.slots / block_tokens * bank_->code_block_bytes(side_.shape);
  }
  void release() noexcept {
    drop_codebooks(0);
    for (std::size_t i = 0; i < chunks_.size(); ++i) {
      bank_->release(chunks_[i].memory, chunk_bytes(chunks_[i]));
    }
    chunks_.reset();
  }
  void swap(code_store& other) noexcept {
    std::swap(bank_, other.bank_);
    std::swap(side_, other.side_);
    std::swap(rotation_, other.rotation_);
    std::swap(books_, other.books_);
    std::swap(chunks_, other.chunks_);
  }

  Bank* bank_ = nullptr;
  side_config side_;
  rope rotation_;
  growable<address> books_;  ///< by epoch
  growable<code_chunk<address>> chunks_;
};

}  // namespace v0
}  // namespace pqattn
