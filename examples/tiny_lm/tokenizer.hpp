// SPDX-License-Identifier: MIT
// Byte-level byte-pair encoding. Ids 0..255 are bytes, 256 begins a text, 257 + i is the pair `merges[i]`.
// Text is cut into pieces by  ` ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+`  (over bytes, ASCII white space);
// inside a piece the lowest-ranked adjacent pair is merged first, all its occurrences, until none is left.
#pragma once

#include "files.hpp"
#include "outcome.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace tiny_lm {

/// Length of the first piece of `text` under the cutting expression above; 0 only for an empty text.
[[nodiscard]] std::size_t next_piece(std::string_view text) noexcept;

class tokenizer {
 public:
  static constexpr token_id bos = 256;

  /// Reads {"vocab": n, "bos": 256, "merges": [[left, right], ...]}. Leaves `result` alone on failure.
  static outcome parse(std::string_view json, tokenizer& result);

  /// Ids of `text`, without BOS.
  [[nodiscard]] std::vector<token_id> encode(std::string_view text) const;

  /// Bytes of one id; empty for BOS and for ids outside the vocabulary.
  [[nodiscard]] std::string_view decode(token_id id) const noexcept;

  /// Bytes of many ids. decode(encode(text)) == text for every text.
  [[nodiscard]] std::string decode(std::span<const token_id> ids) const;

  [[nodiscard]] std::size_t vocabulary() const noexcept { return bytes_of_id_.size(); }

 private:
  outcome add_merge(std::int64_t left, std::int64_t right);
  void merge_piece(std::vector<token_id>& piece) const;

  std::vector<std::string> bytes_of_id_;                        // text of every id
  std::unordered_map<std::uint64_t, token_id> merged_by_pair_;  // (left, right) -> id; a lower id is a lower rank
};

}  // namespace tiny_lm
