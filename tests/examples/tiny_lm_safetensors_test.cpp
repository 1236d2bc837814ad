// SPDX-License-Identifier: MIT
#include "examples/tiny_lm/safetensors.hpp"

#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "examples/tiny_lm/files.hpp"

using tiny_lm::parse_safetensors;
using tiny_lm::safetensors;

namespace {

/// A file: header length, header, data.
std::vector<std::byte> make_file(const std::string& header, const std::vector<unsigned char>& data,
                                 std::uint64_t claimed_length) {
  std::vector<std::byte> file(8 + header.size() + data.size());
  std::memcpy(file.data(), &claimed_length, 8);
  std::memcpy(file.data() + 8, header.data(), header.size());
  if (!data.empty()) {
    std::memcpy(file.data() + 8 + header.size(), data.data(), data.size());
  }
  return file;
}

std::vector<std::byte> make_file(const std::string& header, const std::vector<unsigned char>& data) {
  return make_file(header, data, header.size());
}

/// Message of a parse that must fail and leave nothing behind. The bytes are copied to an allocation of their exact
/// size, so that a sanitizer sees any read beyond them.
std::string refusal(const std::vector<std::byte>& file) {
  const std::vector<std::byte> exact(file.begin(), file.end());
  safetensors tensors;
  const tiny_lm::outcome outcome = parse_safetensors(exact, tensors);
  CHECK(tensors.empty());
  return outcome.message();
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

const std::string valid_header =
    R"({"a":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[],"data_offsets":[4,8]},)"
    R"("c":{"dtype":"BF16","shape":[0,3],"data_offsets":[8,8]},"__metadata__":{"format":"pt"}}  )";
// a = 1.0, -2.0 in F16; b = 0.5 in F32
const std::vector<unsigned char> valid_data = {0x00, 0x3c, 0x00, 0xc0, 0x00, 0x00, 0x00, 0x3f};

}  // namespace

TEST_CASE("safetensors: a valid file gives its tensors", "[tiny_lm]") {
  const auto file = make_file(valid_header, valid_data);
  safetensors tensors;
  const auto outcome = parse_safetensors(file, tensors);
  INFO(outcome.message());
  REQUIRE(outcome);
  REQUIRE(tensors.size() == 3);

  const auto& a = tensors.at("a");
  REQUIRE(a.rank == 2);
  CHECK(a.shape()[0] == 2);
  CHECK(a.shape()[1] == 1);
  std::vector<float> values(2);
  REQUIRE(widen(a, values));
  CHECK(values == std::vector<float>{1.0F, -2.0F});

  const auto& b = tensors.at("b");
  CHECK(b.rank == 0);
  values.resize(1);
  REQUIRE(widen(b, values));
  CHECK(values[0] == 0.5F);
  CHECK_FALSE(widen(a, values));  // two elements do not fit one place

  CHECK(tensors.at("c").elements == 0);
}

TEST_CASE("safetensors: an empty header over no data is valid", "[tiny_lm]") {
  safetensors tensors;
  CHECK(parse_safetensors(make_file("{}", {}), tensors));
  CHECK(tensors.empty());
}

TEST_CASE("safetensors: 16-bit floats widen exactly", "[tiny_lm]") {
  // bits, and what IEEE 754 says they are
  const auto widened = [](const char* dtype, std::uint16_t bits) {
    const std::string header = std::string(R"({"x":{"dtype":")") + dtype + R"(","shape":[1],"data_offsets":[0,2]}})";
    const std::vector<unsigned char> data = {static_cast<unsigned char>(bits & 0xff),
                                             static_cast<unsigned char>(bits >> 8)};
    const auto file = make_file(header, data);
    safetensors tensors;
    REQUIRE(parse_safetensors(file, tensors));
    std::vector<float> value(1);
    REQUIRE(widen(tensors.at("x"), value));
    return value[0];
  };
  CHECK(widened("F16", 0x0001) == std::ldexp(1.0F, -24));
  CHECK(widened("F16", 0x03ff) == std::ldexp(1023.0F, -24));
  CHECK(widened("F16", 0x0400) == std::ldexp(1.0F, -14));
  CHECK(widened("F16", 0x7bff) == 65504.0F);
  CHECK(widened("F16", 0xfc00) == -std::numeric_limits<float>::infinity());
  CHECK(std::isnan(widened("F16", 0x7e00)));
  CHECK(std::signbit(widened("F16", 0x8000)));
  CHECK(widened("BF16", 0x3f80) == 1.0F);
  CHECK(widened("BF16", 0xc049) == -3.140625F);
}

TEST_CASE("safetensors: refusals say what is wrong", "[tiny_lm]") {
  struct hostile {
    const char* header;
    std::size_t data_bytes;
    const char* expected;  // part of the message
  };
  const auto file = GENERATE(
      hostile{"", 0, "not JSON"}, hostile{"[]", 0, "an object"}, hostile{"3", 0, "no number here"},
      hostile{"null", 0, "null"}, hostile{"{", 0, "not JSON"}, hostile{"{}x", 0, "not JSON"},
      hostile{"{\"\xff\":1}", 0, "not JSON"}, hostile{R"({"x":1})", 0, "no number here"},
      hostile{R"({"x":"F16"})", 0, "no string here"}, hostile{R"({"x":[]})", 0, "an array"},
      hostile{R"({"x":{}})", 0, "dtype, shape and data_offsets"}, hostile{R"({"":{}})", 0, "without a name"},
      hostile{R"({"x":{"dtype":{}}})", 0, "an object"},
      hostile{R"({"x":{"dtype":"F16","shape":[1],"data_offsets":[0,2],"more":1}})", 2, "another field"},
      hostile{R"({"x":{"dtype":"F16","dtype":"F32","shape":[1],"data_offsets":[0,2]}})", 2, "each field once"},
      hostile{R"({"x":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", 8, "'I64'"},
      hostile{R"({"x":{"dtype":"F16","shape":[-1],"data_offsets":[0,2]}})", 2, "got -1"},
      hostile{R"({"x":{"dtype":"F16","shape":[1.5],"data_offsets":[0,2]}})", 2, "a fraction"},
      hostile{R"({"x":{"dtype":"F16","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,2]}})", 2, "8 dimensions"},
      hostile{R"({"x":{"dtype":"F16","shape":[[1]],"data_offsets":[0,2]}})", 2, "an array"},
      hostile{R"({"x":{"dtype":"F16","shape":[1],"data_offsets":[0]}})", 2, "2 offsets"},
      hostile{R"({"x":{"dtype":"F16","shape":[1],"data_offsets":[0,2,2]}})", 2, "2 offsets"},
      hostile{R"({"x":{"dtype":"F16","shape":[1],"data_offsets":[0,4]}})", 2, "expected at most 2, got 4"},
      hostile{R"({"x":{"dtype":"F16","shape":[1],"data_offsets":[2,0]}})", 2, "begin offset"},
      hostile{R"({"x":{"dtype":"F16","shape":[2],"data_offsets":[0,2]}})", 2, "expected 4, got 2"},
      hostile{R"({"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "overflow"},
      hostile{R"({"x":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,2]}})", 2, "overflow"},
      hostile{R"({"x":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,2]}})", 2, "a fraction"},
      hostile{R"({"x":{"dtype":"F16","shape":[1],"data_offsets":[1,3]}})", 3, "expected 0, got 1"},
      hostile{R"({"x":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}})", 3, "expected 2, got 3"},
      hostile{R"({"x":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"x":{}})", 2, "appears twice"},
      hostile{
          R"({"x":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"y":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}})",
          4, "overlap"},
      hostile{R"({"__metadata__":{"a":1}})", 0, "no number here"}, hostile{R"({"__metadata__":"a"})", 0, "no string"},
      hostile{R"({"__metadata__":{"a":{}}})", 0, "an object"});
  const std::string message = refusal(make_file(file.header, std::vector<unsigned char>(file.data_bytes)));
  INFO("header " << file.header << "\nmessage " << message << "\nexpected " << file.expected);
  CHECK(contains(message, file.expected));
}

TEST_CASE("safetensors: header lengths that lie are refused before anything is allocated", "[tiny_lm]") {
  CHECK(contains(refusal({}), "at least 8"));
  CHECK(contains(refusal(std::vector<std::byte>(7)), "got 7"));
  CHECK(contains(refusal(make_file("{}", {}, 3)), "expected at most 2, got 3"));
  CHECK(contains(refusal(make_file("{}", {}, tiny_lm::max_safetensors_header_bytes + 1)), "at most 4194304"));
  CHECK(contains(refusal(make_file("{}", {}, std::numeric_limits<std::uint64_t>::max())), "18446744073709551615"));
}

TEST_CASE("safetensors: deep nesting and long names stay harmless", "[tiny_lm]") {
  CHECK_FALSE(refusal(make_file(std::string(100000, '['), {})).empty());
  std::string nested;
  for (int i = 0; i < 50000; ++i) {
    nested += R"({"x":)";
  }
  CHECK_FALSE(refusal(make_file(nested, {})).empty());
  const std::string message = refusal(make_file("{\"" + std::string(100000, 'n') + "\":{}}", {}));
  CHECK(message.size() < 400);
  CHECK_FALSE(contains(refusal(make_file("{\"\\u001b[2J\":{}}", {})), "\x1b"));  // no control codes to the terminal
}

TEST_CASE("safetensors: every truncation of a valid file is refused", "[tiny_lm]") {
  const auto file = make_file(valid_header, valid_data);
  for (std::size_t size = 0; size < file.size(); ++size) {
    CHECK_FALSE(refusal({file.begin(), file.begin() + static_cast<std::ptrdiff_t>(size)}).empty());
  }
}

TEST_CASE("safetensors: damaged files never give a tensor outside the file", "[tiny_lm]") {
  constexpr unsigned seed = 20240607;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto file = make_file(valid_header, valid_data);
  const std::string alphabet = "{}[]\",:0123456789eE-.F16B \\u\xff";
  std::size_t accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> damaged = file;
    for (unsigned hits = 1 + random() % 4; hits > 0; --hits) {
      damaged[random() % damaged.size()] = static_cast<std::byte>(alphabet[random() % alphabet.size()]);
    }
    safetensors tensors;
    if (!parse_safetensors(damaged, tensors)) {
      continue;
    }
    ++accepted;
    for (const auto& [name, tensor] : tensors) {
      REQUIRE(tensor.elements <= damaged.size());
      std::vector<float> values(tensor.elements);
      REQUIRE(widen(tensor, values));  // reads every byte of the view
    }
  }
  CHECK(accepted > 0);  // damage in the data itself or in names leaves a valid file
}

TEST_CASE("npy token files: good and hostile", "[tiny_lm]") {
  const auto file = [](const std::string& header, std::size_t data_bytes) {
    std::string text("\x93NUMPY\x01\x00", 8);
    text += static_cast<char>(header.size() & 0xff);
    text += static_cast<char>(header.size() >> 8);
    text += header + std::string(data_bytes, '\1');
    const auto* bytes = reinterpret_cast<const std::byte*>(text.data());
    return std::vector<std::byte>(bytes, bytes + text.size());
  };
  std::vector<tiny_lm::token_id> tokens;
  REQUIRE(tiny_lm::parse_token_npy(file("{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }\n", 8), tokens));
  CHECK(tokens == std::vector<tiny_lm::token_id>{0x01010101, 0x01010101});
  CHECK_FALSE(tiny_lm::parse_token_npy(file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", 8), tokens));
  CHECK_FALSE(
      tiny_lm::parse_token_npy(file("{'descr': '<i4', 'fortran_order': False, 'shape': (2,1), }\n", 8), tokens));
  CHECK_FALSE(tiny_lm::parse_token_npy(file("{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }\n", 8), tokens));
  CHECK_FALSE(tiny_lm::parse_token_npy(file("{'descr': '<i8', 'fortran_order': False, 'shape': (1,), }\n", 8), tokens));
  CHECK_FALSE(tiny_lm::parse_token_npy({}, tokens));
  CHECK(tokens.size() == 2);  // unchanged by the failures
}
