// SPDX-License-Identifier: MIT
// Memory of a bank that is given back, and the usual things to put there.
#pragma once

#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "pqattn/bank/bank.hpp"
#include "support/message.hpp"

namespace pqattn_test {

/// A block of bank memory.
template <class Bank>
class bank_block {
 public:
  bank_block(Bank& bank, std::size_t bytes) : bank_(&bank), bytes_(bytes) { REQUIRE_OK(bank.reserve(bytes, place_)); }
  bank_block(bank_block&& other) noexcept
      : bank_(std::exchange(other.bank_, nullptr)), bytes_(other.bytes_), place_(other.place_) {}
  bank_block& operator=(bank_block&&) = delete;
  ~bank_block() {
    if (bank_ != nullptr) {
      bank_->release(place_, bytes_);
    }
  }
  [[nodiscard]] typename Bank::address get() const { return place_; }

 private:
  Bank* bank_;
  std::size_t bytes_;
  typename Bank::address place_{};
};

/// A codebook stored in a bank, with the numbers as the bank's programs use them.
template <class Bank>
struct stored_book {
  bank_block<Bank> memory;
  pqattn::resident_codebook<typename Bank::address> resident;
  std::vector<float> centroids;

  stored_book(Bank& bank, const pqattn::geometry& shape, pqattn::codebook_storage storage,
              const std::vector<float>& source, const pqattn::rope& rotation = {})
      : memory(bank, bank.codebook_bytes(shape, storage)),
        resident{shape, storage, memory.get(), rotation},
        centroids(shape.codebook_values()) {
    REQUIRE(source.size() == shape.codebook_values());
    REQUIRE_OK(bank.store_codebook({shape, source.data()}, resident));
    REQUIRE_OK(bank.load_codebook(resident, centroids.data()));
  }
};

}  // namespace pqattn_test
