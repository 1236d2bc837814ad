// SPDX-License-Identifier: MIT
// A .npy file in memory, for programs: file in, owning buffer and view out. Apart from npy.hpp because it opens files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <span>
#include <utility>

#include "../config.hpp"
#include "../core/memory.hpp"
#include "../core/status.hpp"
#include "npy.hpp"

namespace pqattn {
inline namespace v0 {
inline namespace PQATTN_ISA_UNIT {

/// The bytes of one .npy file and the array in them.
struct npy_file {
  buffer bytes;
  npy_array_view array;
};

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Closes on every path out of read_file.
class file_handle {
 public:
  explicit file_handle(const char* path) noexcept : file_(std::fopen(path, "rb")) {}
  file_handle(const file_handle&) = delete;
  file_handle& operator=(const file_handle&) = delete;
  ~file_handle() {
    if (file_ != nullptr) {
      std::fclose(file_);
    }
  }
  [[nodiscard]] std::FILE* get() const noexcept { return file_; }

 private:
  std::FILE* file_;
};

/// Reads to the end of the file in growing steps. The file's stated size is never believed (pipes and /proc have none,
/// a directory's is nonsense), so memory grows only with bytes that really came.
[[nodiscard]] inline status read_stream(std::FILE* file, std::size_t limit, const memory_resource& resource,
                                        buffer& bytes, std::size_t& size) {
  size = 0;
  PQATTN_TRY(buffer::make(resource, std::size_t{1} << 16, bytes));
  for (;;) {
    size += std::fread(bytes.data() + size, 1, bytes.size() - size, file);
    if (std::ferror(file) != 0) {
      return failure(status_code::io_error, "file", "cannot be read");
    }
    if (size > limit) {
      return failure(status_code::out_of_memory, "file", "is larger than the limit in bytes", limit, size);
    }
    if (size < bytes.size()) {
      return {};
    }
    if (bytes.size() > (std::numeric_limits<std::size_t>::max)() / 4) {
      return failure(status_code::out_of_memory, "file", "is larger than the address space");
    }
    buffer larger;
    PQATTN_TRY(buffer::make(resource, 2 * bytes.size(), larger));
    std::memcpy(larger.data(), bytes.data(), size);
    bytes = std::move(larger);
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Reads and parses the file at `path`. Fails with io_error when it cannot be opened or read, out_of_memory when it has
/// more than `limit_bytes` bytes or the resource refuses, and as parse_npy does. `loaded` is unchanged on failure.
[[nodiscard]] inline status load_npy(const char* path, npy_file& loaded,
                                     std::size_t limit_bytes = (std::numeric_limits<std::size_t>::max)() / 4,
                                     const memory_resource& resource = {}) {
  const detail::file_handle file(path);
  if (file.get() == nullptr) {
    return failure(status_code::io_error, "file", "cannot be opened");
  }
  npy_file read;
  std::size_t size = 0;
  PQATTN_TRY(detail::read_stream(file.get(), limit_bytes, resource, read.bytes, size));
  PQATTN_TRY(parse_npy(std::span<const std::byte>(read.bytes.data(), size), read.array));
  loaded = std::move(read);
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
