// SPDX-License-Identifier: MIT
// Snapshots to and from C files. Apart from snapshot.hpp because it opens nothing but reads and writes streams.
#pragma once

#include <cstddef>
#include <cstdio>

#include "snapshot.hpp"

namespace pqattn {
inline namespace v0 {

/// Writes to an open file. The caller closes it, and looks at what closing says.
[[nodiscard]] inline snapshot_sink file_sink(std::FILE* file) noexcept {
  return {[](void* user, const void* data, std::size_t bytes) {
            return std::fwrite(data, 1, bytes, static_cast<std::FILE*>(user)) == bytes;
          },
          file};
}

/// Reads from an open file, to its end.
[[nodiscard]] inline snapshot_source file_source(std::FILE* file) noexcept {
  return {[](void* user, void* data, std::size_t bytes, bool* failed) {
            auto* stream = static_cast<std::FILE*>(user);
            const std::size_t count = std::fread(data, 1, bytes, stream);
            *failed = std::ferror(stream) != 0;
            return count;
          },
          file};
}

}  // namespace v0
}  // namespace pqattn
