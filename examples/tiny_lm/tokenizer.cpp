// SPDX-License-Identifier: MIT
#include "tokenizer.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <limits>
#include <utility>

namespace tiny_lm {
namespace {

constexpr std::size_t first_merge = 257;
constexpr std::size_t max_vocabulary = std::size_t{1} << 20;
// A token's text is the concatenation of two earlier ones, so its length could double with each merge of a hostile
// file; no honest token comes near this.
constexpr std::size_t max_token_bytes = 256;

constexpr bool is_space(char letter) {
  return letter == ' ' || (letter >= '\t' && letter <= '\r');
}
constexpr bool is_digit(char letter) {
  return letter >= '0' && letter <= '9';
}
constexpr bool is_letter(char letter) {
  return (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z');
}
constexpr bool is_other(char letter) {
  return !is_space(letter) && !is_digit(letter) && !is_letter(letter);
}

template <class Predicate>
std::size_t run_length(std::string_view text, Predicate belongs) {
  return static_cast<std::size_t>(std::find_if_not(text.begin(), text.end(), belongs) - text.begin());
}

constexpr std::uint64_t pair_key(token_id left, token_id right) {
  return (static_cast<std::uint64_t>(left) << 32U) | static_cast<std::uint32_t>(right);
}

/// Replaces every (left, right) in `ids` by `merged`, from the left.
void replace_pair(std::vector<token_id>& ids, token_id left, token_id right, token_id merged) {
  std::size_t write = 0;
  for (std::size_t read = 0; read < ids.size(); ++write) {
    const bool here = read + 1 < ids.size() && ids[read] == left && ids[read + 1] == right;
    ids[write] = here ? merged : ids[read];
    read += here ? 2 : 1;
  }
  ids.resize(write);
}

outcome check_header(const nlohmann::json& root, std::size_t merges) {
  const auto vocabulary = root.find("vocab");
  if (vocabulary == root.end() || !vocabulary->is_number_unsigned()) {
    return expected_got("tokenizer vocab", "a number", "none");
  }
  const auto claimed = vocabulary->get<std::uint64_t>();
  if (claimed > max_vocabulary) {
    return expected_got("tokenizer vocab", "at most " + std::to_string(max_vocabulary), claimed);
  }
  if (claimed != first_merge + merges) {
    return expected_got("tokenizer vocab", first_merge + merges, claimed);
  }
  const auto begin = root.find("bos");
  if (begin == root.end() || *begin != tokenizer::bos) {
    return expected_got("tokenizer bos", tokenizer::bos, "another");
  }
  return {};
}

bool is_pair_of_ids(const nlohmann::json& pair) {
  const auto is_id = [](const nlohmann::json& id) {
    return id.is_number_unsigned() && id.get<std::uint64_t>() < max_vocabulary;
  };
  return pair.is_array() && pair.size() == 2 && is_id(pair[0]) && is_id(pair[1]);
}

}  // namespace

std::size_t next_piece(std::string_view text) noexcept {
  if (text.empty()) {
    return 0;
  }
  // The first three alternatives may take one leading space along.
  const std::size_t lead = text.size() > 1 && text[0] == ' ' ? 1 : 0;
  const std::string_view word = text.substr(lead);
  if (is_letter(word[0])) {
    return lead + run_length(word, is_letter);
  }
  if (is_digit(word[0])) {
    return lead + 1;
  }
  if (is_other(word[0])) {
    return lead + run_length(word, is_other);
  }
  // White space that something follows leaves its last character, which may be the space that leads the next word.
  const std::size_t spaces = run_length(text, is_space);
  return spaces == text.size() || spaces == 1 ? spaces : spaces - 1;
}

outcome tokenizer::parse(std::string_view json, tokenizer& result) {
  const auto root = nlohmann::json::parse(json.begin(), json.end(), nullptr, false);
  if (!root.is_object()) {
    return expected_got("tokenizer", "a JSON object", "something else");
  }
  const auto merges = root.find("merges");
  if (merges == root.end() || !merges->is_array()) {
    return expected_got("tokenizer merges", "an array", "none");
  }
  TINY_LM_TRY(check_header(root, merges->size()));

  tokenizer fresh;
  fresh.bytes_of_id_.reserve(first_merge + merges->size());
  for (int byte = 0; byte < 256; ++byte) {
    fresh.bytes_of_id_.emplace_back(1, static_cast<char>(byte));
  }
  fresh.bytes_of_id_.emplace_back();  // BOS has no text
  for (const auto& pair : *merges) {
    if (!is_pair_of_ids(pair)) {
      return expected_got("tokenizer merge", "a pair of ids", "something else");
    }
    TINY_LM_TRY(fresh.add_merge(pair[0].get<std::int64_t>(), pair[1].get<std::int64_t>()));
  }
  result = std::move(fresh);
  return {};
}

outcome tokenizer::add_merge(std::int64_t left, std::int64_t right) {
  const auto id = static_cast<token_id>(bytes_of_id_.size());
  for (const std::int64_t part : {left, right}) {
    if (part >= id || part == bos) {
      return expected_got("tokenizer merge", "ids of earlier tokens", part);
    }
  }
  std::string text = bytes_of_id_[static_cast<std::size_t>(left)] + bytes_of_id_[static_cast<std::size_t>(right)];
  if (text.size() > max_token_bytes) {
    return expected_got("token bytes", "at most 256", text.size());
  }
  const auto key = pair_key(static_cast<token_id>(left), static_cast<token_id>(right));
  if (!merged_by_pair_.emplace(key, id).second) {
    return expected_got("tokenizer merge", "each pair once", "a second");
  }
  bytes_of_id_.push_back(std::move(text));
  return {};
}

void tokenizer::merge_piece(std::vector<token_id>& piece) const {
  constexpr token_id none = std::numeric_limits<token_id>::max();
  while (piece.size() > 1) {
    token_id best = none;
    std::size_t place = 0;
    for (std::size_t i = 0; i + 1 < piece.size(); ++i) {
      const auto found = merged_by_pair_.find(pair_key(piece[i], piece[i + 1]));
      if (found == merged_by_pair_.end() || found->second >= best) {
        continue;
      }
      best = found->second;
      place = i;
    }
    if (best == none) {
      return;
    }
    replace_pair(piece, piece[place], piece[place + 1], best);
  }
}

std::vector<token_id> tokenizer::encode(std::string_view text) const {
  std::vector<token_id> ids;
  std::vector<token_id> piece;
  while (!text.empty()) {
    const std::size_t length = next_piece(text);
    piece.clear();
    for (const char letter : text.substr(0, length)) {
      piece.push_back(static_cast<unsigned char>(letter));
    }
    merge_piece(piece);
    ids.insert(ids.end(), piece.begin(), piece.end());
    text.remove_prefix(length);
  }
  return ids;
}

std::string_view tokenizer::decode(token_id id) const noexcept {
  if (id < 0 || static_cast<std::size_t>(id) >= bytes_of_id_.size()) {
    return {};
  }
  return bytes_of_id_[static_cast<std::size_t>(id)];
}

std::string tokenizer::decode(std::span<const token_id> ids) const {
  std::string text;
  for (const token_id id : ids) {
    text += decode(id);
  }
  return text;
}

}  // namespace tiny_lm
