// SPDX-License-Identifier: MIT
// Real activations. A small set is part of the source tree (tests/data); larger ones lie in the folder that
// PQATTN_SHARED_DIR names, as macro or environment variable, and tests that need them skip where there is none.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include "pqattn/study/npy_file.hpp"

namespace pqattn_test {

/// The folder of large optional inputs, empty when there is none.
inline std::filesystem::path shared_folder() {
  if (const char* folder = std::getenv("PQATTN_SHARED_DIR"); folder != nullptr && *folder != '\0') {
    return folder;
  }
#ifdef PQATTN_SHARED_DIR
  return PQATTN_SHARED_DIR;
#else
  return {};
#endif
}

/// The source tree's tests/data.
inline std::filesystem::path test_data_folder() {
  if (const char* folder = std::getenv("PQATTN_SOURCE_DIR"); folder != nullptr && *folder != '\0') {
    return std::filesystem::path(folder) / "tests" / "data";
  }
#ifdef PQATTN_SOURCE_DIR
  return std::filesystem::path(PQATTN_SOURCE_DIR) / "tests" / "data";
#else
  return std::filesystem::path("tests") / "data";
#endif
}

/// Activations of one layer: matrix h of a file is one head, (tokens, d).
class activation_file {
 public:
  /// Nothing when the file does not exist or is not a floating array of rank 3.
  static std::optional<activation_file> open(const std::filesystem::path& path) {
    activation_file file;
    if (!pqattn::load_npy(path.c_str(), file.file_) || file.file_.array.rank != 3 || !file.file_.array.is_floating()) {
      return std::nullopt;
    }
    return file;
  }

  [[nodiscard]] std::size_t heads() const { return file_.array.shape[0]; }
  [[nodiscard]] std::size_t tokens() const { return file_.array.shape[1]; }
  [[nodiscard]] std::size_t dim() const { return file_.array.shape[2]; }
  [[nodiscard]] pqattn::rows_view head(std::size_t index) const { return file_.array.matrix(index); }

 private:
  pqattn::npy_file file_;
};

/// One of the shipped files: "keys", "keys_prerope", "values", "queries", "queries_prerope".
inline std::optional<activation_file> shipped_activations(const std::string& name) {
  return activation_file::open(test_data_folder() / "tiny_lm" / "context0" / "layer1" / (name + ".npy"));
}

}  // namespace pqattn_test
