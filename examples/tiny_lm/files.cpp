// SPDX-License-Identifier: MIT
#include "files.hpp"

#include <fstream>
#include <limits>
#include <pqattn/study/npy.hpp>
#include <system_error>
#include <utility>

namespace tiny_lm {
namespace {

outcome size_of_regular_file(const std::filesystem::path& path, std::size_t limit_bytes, std::size_t& size) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return expected_got("cannot read", "a regular file", "none");
  }
  const auto file_bytes = std::filesystem::file_size(path, error);
  if (error) {
    return outcome::failure("cannot ask for the size: " + error.message());
  }
  if (file_bytes > limit_bytes) {
    return expected_got("file size", "at most " + std::to_string(limit_bytes) + " bytes", file_bytes);
  }
  size = static_cast<std::size_t>(file_bytes);
  return {};
}

template <class Buffer>
outcome read_into(const std::filesystem::path& path, std::size_t limit_bytes, Buffer& buffer) {
  std::size_t size = 0;
  TINY_LM_TRY(size_of_regular_file(path, limit_bytes, size).within(path.string()));
  std::ifstream file(path, std::ios::binary);
  buffer.resize(size);
  file.read(reinterpret_cast<char*>(buffer.data()), static_cast<std::streamsize>(size));
  if (!file) {
    return expected_got("short read", size, file.gcount()).within(path.string());
  }
  return {};
}

}  // namespace

outcome read_file(const std::filesystem::path& path, std::size_t limit_bytes, std::vector<std::byte>& bytes) {
  return read_into(path, limit_bytes, bytes);
}

outcome read_text(const std::filesystem::path& path, std::size_t limit_bytes, std::string& text) {
  return read_into(path, limit_bytes, text);
}

outcome write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  if (!file) {
    return outcome::failure(path.string() + ": cannot write");
  }
  return {};
}

outcome parse_token_npy(std::span<const std::byte> bytes, std::vector<token_id>& tokens) {
  pqattn::npy_array_view array;
  TINY_LM_TRY(pqattn::parse_npy(bytes, array));
  if (array.is_floating()) {
    return expected_got("npy element type", "integers", pqattn::name_of(array.type));
  }
  if (array.rank != 1) {
    return expected_got("npy axes", 1, array.rank);
  }
  std::vector<token_id> fresh(array.elements);
  for (std::size_t i = 0; i < fresh.size(); ++i) {
    const std::int64_t id = array.integer(i);
    if (id < 0 || id > std::numeric_limits<token_id>::max()) {
      return expected_got("token id", "0 or more, 31 bits", id);
    }
    fresh[i] = static_cast<token_id>(id);
  }
  tokens = std::move(fresh);
  return {};
}

outcome read_tokens(const std::filesystem::path& path, std::vector<token_id>& tokens) {
  constexpr std::size_t limit_bytes = std::size_t{1} << 26;
  std::vector<std::byte> bytes;
  TINY_LM_TRY(read_file(path, limit_bytes, bytes));
  return parse_token_npy(bytes, tokens).within(path.string());
}

}  // namespace tiny_lm
