// SPDX-License-Identifier: MIT
#include "pqattn/study/npy.hpp"

#include <catch2/catch_test_macros.hpp>

#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "support/message.hpp"
#include "support/random_data.hpp"

using pqattn::npy_array_view;
using pqattn::npy_type;
using pqattn::parse_npy;
using pqattn::status;
using pqattn::status_code;

namespace {

/// A file as numpy writes it: header padded with spaces to a multiple of 64, newline last.
std::string npy_bytes(const std::string& header, const std::string& elements, int version = 1) {
  std::string text = header;
  const std::size_t prefix = version == 1 ? 10 : 12;
  while ((prefix + text.size() + 1) % 64 != 0) {
    text += ' ';
  }
  text += '\n';
  std::string file("\x93NUMPY", 6);
  file += static_cast<char>(version);
  file += '\0';
  for (std::size_t i = 0; i < prefix - 8; ++i) {
    file += static_cast<char>((text.size() >> (8 * i)) & 0xff);
  }
  return file + text + elements;
}

std::string header(const std::string& type, const std::string& shape, const char* fortran = "False") {
  return "{'descr': '" + type + "', 'fortran_order': " + fortran + ", 'shape': " + shape + ", }";
}

/// Parses from a heap block of exactly the file's size, so that a sanitizer sees any read past its end.
struct parsed {
  std::unique_ptr<std::byte[]> memory;
  npy_array_view array;
  status outcome;
};

parsed parse(const std::string& file) {
  parsed result;
  result.memory = std::make_unique<std::byte[]>(file.size());
  std::memcpy(result.memory.get(), file.data(), file.size());
  result.outcome = parse_npy({result.memory.get(), file.size()}, result.array);
  return result;
}

void require_refused(const std::string& file, status_code code, const std::string& words) {
  const parsed result = parse(file);
  const std::string message = pqattn_test::message_of(result.outcome);
  INFO(message);
  CHECK(result.outcome.code == code);
  CHECK(message.find(words) != std::string::npos);
  CHECK(result.array.data == nullptr);  // unchanged
}

template <class T>
std::string raw(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

}  // namespace

TEST_CASE("npy arrays of every accepted type", "[study][npy]") {
  const parsed floats = parse(npy_bytes(header("<f4", "(2, 3)"), raw<float>({1, 2, 3, 4, 5, -6.5f})));
  REQUIRE_OK(floats.outcome);
  CHECK(floats.array.rank == 2);
  CHECK(floats.array.shape[0] == 2);
  CHECK(floats.array.shape[1] == 3);
  CHECK(floats.array.elements == 6);
  CHECK(floats.array.real(5) == -6.5f);

  const parsed halves = parse(npy_bytes(header("<f2", "(2, 1, 2)"), raw<std::uint16_t>({0x3c00, 0xc000, 1, 0x7bff})));
  REQUIRE_OK(halves.outcome);
  CHECK(halves.array.real(0) == 1.0f);
  CHECK(halves.array.real(1) == -2.0f);
  CHECK(halves.array.real(2) == 0x1.0p-24f);
  CHECK(halves.array.real(3) == 65504.0f);
  const pqattn::rows_view second = halves.array.matrix(1);
  CHECK(second.rows == 1);
  CHECK(second.cols == 2);
  float row[2] = {};
  load_row(second, 0, row);
  CHECK(row[1] == 65504.0f);

  const parsed ints = parse(npy_bytes(header("<i4", "(3,)"), raw<std::int32_t>({-1, 7, 2000000000})));
  REQUIRE_OK(ints.outcome);
  CHECK(ints.array.integer(0) == -1);
  CHECK(ints.array.integer(2) == 2000000000);

  const parsed longs = parse(npy_bytes(header("<i8", "(2,)"), raw<std::int64_t>({-5, std::int64_t{1} << 40})));
  REQUIRE_OK(longs.outcome);
  CHECK(longs.array.integer(0) == -5);
  CHECK(longs.array.integer(1) == std::int64_t{1} << 40);

  const parsed shorts = parse(npy_bytes(header("<u2", "(2,)"), raw<std::uint16_t>({65535, 3})));
  REQUIRE_OK(shorts.outcome);
  CHECK(shorts.array.integer(0) == 65535);
  CHECK_FALSE(shorts.array.is_floating());
}

TEST_CASE("npy header variants that are still valid", "[study][npy]") {
  const std::string one = raw<float>({1.5f});
  for (int version = 1; version <= 3; ++version) {
    CAPTURE(version);
    REQUIRE_OK(parse(npy_bytes(header("<f4", "(1,)"), one, version)).outcome);
  }
  REQUIRE_OK(parse(npy_bytes(R"({"shape":(1,),"fortran_order":False,"descr":"<f4"})", one)).outcome);
  REQUIRE_OK(parse(npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (1L,)}", one)).outcome);
  const parsed scalar = parse(npy_bytes(header("<f4", "()"), one));
  REQUIRE_OK(scalar.outcome);
  CHECK(scalar.array.rank == 0);
  CHECK(scalar.array.elements == 1);
  const parsed empty = parse(npy_bytes(header("<f4", "(3, 0, 18446744073709551615)"), ""));
  REQUIRE_OK(empty.outcome);
  CHECK(empty.array.elements == 0);
}

TEST_CASE("npy files that are refused", "[study][npy]") {
  const std::string one = raw<float>({1.5f});
  const auto corrupt = status_code::corrupt_data;
  const auto unsupported = status_code::unsupported;
  require_refused("", corrupt, "signature");
  require_refused("PK\x03\x04 not a numpy file at all", corrupt, "signature");
  require_refused(std::string("\x93NUMPY", 6), corrupt, "version");
  require_refused(std::string("\x93NUMPY\x01\x00", 8), corrupt, "header length");
  require_refused(std::string("\x93NUMPY\x09\x00\x10\x00", 10), unsupported, "format version");
  require_refused(npy_bytes(header("<f8", "(1,)"), raw<double>({1.0})), unsupported, "element type");
  require_refused(npy_bytes(header(">f4", "(1,)"), one), unsupported, "element type");
  require_refused(npy_bytes(header("|O", "(1,)"), one), unsupported, "element type");
  require_refused(npy_bytes("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", one), unsupported,
                  "structure");
  require_refused(npy_bytes(header("<f4", "(1,)", "True"), one), unsupported, "Fortran");
  require_refused(npy_bytes(header("<f4", "(1,)", "None"), one), corrupt, "fortran_order");
  require_refused(npy_bytes(header("<f4", "(1)"), one), corrupt, "tuple");
  require_refused(npy_bytes(header("<f4", "(-1,)"), one), corrupt, "extent");
  require_refused(npy_bytes(header("<f4", "(1.0,)"), one), corrupt, "tuple");
  require_refused(npy_bytes(header("<f4", "(18446744073709551616,)"), one), corrupt, "extent");
  require_refused(npy_bytes(header("<f4", "(1,1,1,1,1,1,1,1,1)"), one), unsupported, "8 axes");
  require_refused(npy_bytes(header("<f4", "(4294967296, 4294967296)"), one), corrupt, "memory");
  require_refused(npy_bytes(header("<f4", "(4611686018427387905, 4)"), one), corrupt, "memory");
  require_refused(npy_bytes(header("<f4", "(2,)"), one), corrupt, "truncated");
  require_refused(npy_bytes(header("<f4", "(1,)"), one + "x"), corrupt, "after its last element");
  require_refused(npy_bytes("{'descr': '<f4', 'fortran_order': False}", one), corrupt, "lacks");
  require_refused(npy_bytes("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", one), corrupt,
                  "repeated");
  require_refused(npy_bytes(header("<f4", "(1,)") + "{}", one), corrupt, "after the dictionary");
  require_refused(npy_bytes("['descr']", one), corrupt, "dictionary");

  std::string huge = npy_bytes(header("<f4", "(1,)"), one, 2);
  std::memcpy(huge.data() + 8, "\xff\xff\xff\xff", 4);
  require_refused(huge, unsupported, "longer than any array needs");
  std::string long_header = npy_bytes(header("<f4", "(1,)"), one, 2);
  std::memcpy(long_header.data() + 8, "\x00\x10\x00\x00", 4);
  require_refused(long_header, corrupt, "truncated in its header");
}

TEST_CASE("a failed npy parse leaves the view alone", "[study][npy]") {
  npy_array_view array;
  array.rank = 5;
  REQUIRE_FALSE(parse_npy({}, array));
  CHECK(array.rank == 5);
}

TEST_CASE("every truncation of an npy file is refused", "[study][npy]") {
  const std::string file = npy_bytes(header("<f2", "(2, 3, 4)"), std::string(48, '\0'), 2);
  for (std::size_t size = 0; size < file.size(); ++size) {
    CAPTURE(size);
    CHECK_FALSE(parse(file.substr(0, size)).outcome);
  }
  CHECK(parse(file).outcome.ok());
}

TEST_CASE("the first NaN or infinity of an npy array is found", "[study][npy]") {
  std::vector<float> values(24, 1.0f);
  const auto file = [&] { return npy_bytes(header("<f4", "(2, 3, 4)"), raw(values)); };
  parsed array = parse(file());
  CHECK(find_not_finite(array.array) == 24);
  values[23] = -std::numeric_limits<float>::infinity();
  array = parse(file());
  CHECK(find_not_finite(array.array) == 23);
  values[17] = std::numeric_limits<float>::quiet_NaN();
  array = parse(file());
  const std::size_t bad = find_not_finite(array.array);
  CHECK(bad == 17);
  std::size_t at[3] = {};
  array.array.unravel(bad, at);
  CHECK(at[0] == 1);
  CHECK(at[1] == 1);
  CHECK(at[2] == 1);
  const parsed halves = parse(npy_bytes(header("<f2", "(3,)"), raw<std::uint16_t>({0x7bff, 0x7c00, 0x7e00})));
  CHECK(find_not_finite(halves.array) == 1);
}

TEST_CASE("mutated npy files never reach outside their bytes", "[study][npy]") {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  const std::string seeds[] = {npy_bytes(header("<f2", "(2, 3, 4)"), std::string(48, '\1')),
                               npy_bytes(header("<f4", "(6,)"), std::string(24, '\2'), 2),
                               npy_bytes(header("<i8", "(3, 1)"), std::string(24, '\3'), 3)};
  const std::string alphabet = "0123456789(),:'\"{}<>fiuLTrue= \n\xff";
  std::size_t accepted = 0;
  for (int round = 0; round < 30000; ++round) {
    std::string file = seeds[random.below(3)];
    for (std::size_t edits = 1 + random.below(6); edits > 0 && !file.empty(); --edits) {
      const std::size_t at = random.below(random.chance(0.8) ? std::min<std::size_t>(file.size(), 80) : file.size());
      switch (random.below(4)) {
        case 0: file[at] = static_cast<char>(random.below(256)); break;
        case 1: file[at] = alphabet[random.below(alphabet.size())]; break;
        case 2: file.erase(at, 1 + random.below(3)); break;
        default: file.insert(at, 1, alphabet[random.below(alphabet.size())]); break;
      }
    }
    const parsed result = parse(file);
    if (result.outcome) {
      ++accepted;
      const npy_array_view& array = result.array;
      REQUIRE(array.rank <= pqattn::max_npy_rank);
      REQUIRE(array.data + array.elements * size_of(array.type) == result.memory.get() + file.size());
      float sum = 0.0f;
      for (std::size_t i = 0; i < array.elements; ++i) {
        sum += array.is_floating() ? array.real(i) : static_cast<float>(array.integer(i));
      }
      static_cast<void>(sum);
      static_cast<void>(find_not_finite(array));
    } else {
      REQUIRE(pqattn_test::message_of(result.outcome).size() > 10);
    }
  }
  CHECK(accepted > 0);  // edits of spaces and elements leave a valid file
  CHECK(accepted < 30000);
}
