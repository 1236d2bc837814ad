// SPDX-License-Identifier: MIT
#include "examples/tiny_lm/tokenizer.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <filesystem>
#include <random>
#include <regex>
#include <string>
#include <vector>

#include "examples/tiny_lm/files.hpp"

using tiny_lm::token_id;
using tiny_lm::tokenizer;

namespace {

const std::filesystem::path data = std::filesystem::path(PQATTN_SOURCE_DIR) / "examples/tiny_lm/data";

tokenizer load() {
  std::string text;
  REQUIRE(tiny_lm::read_text(data / "tokenizer.json", std::size_t{1} << 20, text));
  tokenizer words;
  const auto outcome = tokenizer::parse(text, words);
  INFO(outcome.message());
  REQUIRE(outcome);
  return words;
}

std::vector<std::string> pieces(std::string_view text) {
  std::vector<std::string> result;
  while (!text.empty()) {
    const std::size_t length = tiny_lm::next_piece(text);
    REQUIRE(length >= 1);
    REQUIRE(length <= text.size());
    result.emplace_back(text.substr(0, length));
    text.remove_prefix(length);
  }
  return result;
}

std::vector<std::string> pieces_by_regex(const std::string& text) {
  // [ \t-\r] is \s of the "C" locale; spelled out because std::regex has it depend on the locale.
  static const std::regex cut("( ?[A-Za-z]+)|( ?[0-9])|( ?[^ \t-\rA-Za-z0-9]+)|([ \t-\r]+(?![^ \t-\r]))|([ \t-\r]+)");
  std::vector<std::string> result;
  for (std::sregex_iterator match(text.begin(), text.end(), cut); match != std::sregex_iterator(); ++match) {
    result.push_back(match->str());
  }
  return result;
}

std::string random_text(std::mt19937& random, std::size_t length) {
  static const std::string letters = "abZ09  \n\t.,'-\xe2\x80\x99";
  std::string text;
  for (std::size_t i = 0; i < length; ++i) {
    text += letters[random() % letters.size()];
  }
  return text;
}

}  // namespace

TEST_CASE("tokenizer: pieces of a text", "[tiny_lm]") {
  using list = std::vector<std::string>;
  CHECK(tiny_lm::next_piece("") == 0);
  CHECK(pieces(" ") == list{" "});
  CHECK(pieces("It is 1813, sir.") == list{"It", " is", " 1", "8", "1", "3", ",", " sir", "."});
  CHECK(pieces("a  b") == list{"a", " ", " b"});
  CHECK(pieces("a\n\nb") == list{"a", "\n", "\n", "b"});
  CHECK(pieces("a \n") == list{"a", " \n"});
  CHECK(pieces("\n \"x\"") == list{"\n", " \"", "x", "\""});
}

TEST_CASE("tokenizer: pieces are those of the regular expression", "[tiny_lm]") {
  constexpr unsigned seed = 7;
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 500; ++round) {
    const std::string text = random_text(random, random() % 40);
    CAPTURE(text);
    CHECK(pieces(text) == pieces_by_regex(text));
  }
}

TEST_CASE("tokenizer: known ids", "[tiny_lm]") {
  const tokenizer words = load();
  CHECK(words.vocabulary() == 2048);
  CHECK(words.decode(257) == " t");
  CHECK(words.decode(tokenizer::bos).empty());
  CHECK(words.decode(-1).empty());
  CHECK(words.decode(2048).empty());
  CHECK(words.encode("").empty());
  const std::vector<token_id> phrase = {405, 261, 288, 104, 114, 819, 278, 261, 271,
                                        284, 339, 279, 261, 271, 284, 339, 44};
  CHECK(words.decode(phrase) == " by the phrase of the moral and the moral,");
  CHECK(words.encode(" by the phrase of the moral and the moral,") == phrase);
}

TEST_CASE("tokenizer: decode undoes encode, for any bytes", "[tiny_lm]") {
  const tokenizer words = load();
  constexpr unsigned seed = 11;
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 200; ++round) {
    std::string text = random_text(random, random() % 60);
    for (std::size_t i = 0; i < text.size(); i += 5) {
      text[i] = static_cast<char>(random() & 0xff);
    }
    CHECK(words.decode(words.encode(text)) == text);
  }
}

TEST_CASE("tokenizer: lowest rank first, all occurrences, overlaps from the left", "[tiny_lm]") {
  tokenizer words;
  // 257 = "ab", 258 = "bc", 259 = "aa", 260 = "abbc"
  REQUIRE(tokenizer::parse(R"({"vocab":261,"bos":256,"merges":[[97,98],[98,99],[97,97],[257,258]]})", words));
  CHECK(words.encode("abc") == std::vector<token_id>{257, 99});
  CHECK(words.encode("aaa") == std::vector<token_id>{259, 97});
  CHECK(words.encode("abbcabbc") == std::vector<token_id>{260, 260});
}

TEST_CASE("tokenizer: a whole book", "[tiny_lm]") {
  const std::filesystem::path book = std::filesystem::path(PQATTN_SHARED_DIR) / "data/text/pride_and_prejudice.txt";
  if (std::string(PQATTN_SHARED_DIR).empty() || !std::filesystem::exists(book)) {
    SKIP("the book is not here: " << book);
  }
  std::string text;
  REQUIRE(tiny_lm::read_text(book, std::size_t{1} << 24, text));
  const tokenizer words = load();
  const std::vector<token_id> ids = words.encode(text);
  CHECK(ids.size() == 207271);
  const std::vector<token_id> beginning = {35, 460, 273, 303, 58, 499, 114, 504, 279, 499, 265, 106};
  CHECK(std::vector<token_id>(ids.begin(), ids.begin() + 12) == beginning);
  CHECK(words.decode(ids) == text);

  for (const auto& [name, offset] : {std::pair{"context0_tokens.npy", 3999}, {"context1_tokens.npy", 109999}}) {
    std::vector<token_id> context;
    REQUIRE(tiny_lm::read_tokens(data / name, context));
    REQUIRE(context.size() == 2048);
    CHECK(context[0] == tokenizer::bos);
    CHECK(std::equal(context.begin() + 1, context.end(), ids.begin() + offset));
  }
}

TEST_CASE("tokenizer: hostile files are refused", "[tiny_lm]") {
  const std::string json =
      GENERATE("", "[]", "{", "{}", R"({"vocab":257,"bos":256})", R"({"vocab":257,"bos":256,"merges":3})",
               R"({"vocab":258,"bos":256,"merges":[]})", R"({"vocab":-1,"bos":256,"merges":[]})",
               R"({"vocab":257,"bos":0,"merges":[]})", R"({"vocab":257,"merges":[]})",
               R"({"vocab":258,"bos":256,"merges":[[1]]})", R"({"vocab":258,"bos":256,"merges":[[1,2,3]]})",
               R"({"vocab":258,"bos":256,"merges":[[1,"a"]]})", R"({"vocab":258,"bos":256,"merges":[[1,-1]]})",
               R"({"vocab":258,"bos":256,"merges":[[1,257]]})", R"({"vocab":258,"bos":256,"merges":[[256,1]]})",
               R"({"vocab":258,"bos":256,"merges":[[1,18446744073709551615]]})",
               R"({"vocab":259,"bos":256,"merges":[[1,2],[1,2]]})");
  CAPTURE(json);
  tokenizer words;
  const auto outcome = tokenizer::parse(json, words);
  CHECK_FALSE(outcome);
  CHECK(words.vocabulary() == 0);
}

TEST_CASE("tokenizer: merges that double a token's length are stopped", "[tiny_lm]") {
  std::string merges = "[97,97]";
  for (int id = 257; id < 257 + 60; ++id) {
    merges += ",[" + std::to_string(id) + "," + std::to_string(id) + "]";
  }
  tokenizer words;
  CHECK_FALSE(tokenizer::parse(R"({"vocab":318,"bos":256,"merges":[)" + merges + "]}", words));
}
