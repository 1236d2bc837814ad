// SPDX-License-Identifier: MIT
#include "pqattn/study/npy_file.hpp"

#include <catch2/catch_test_macros.hpp>

#include <filesystem>
#include <fstream>
#include <string>

#include "support/message.hpp"
#include "support/shared_data.hpp"

using pqattn::load_npy;
using pqattn::npy_file;
using pqattn::status_code;

namespace {

class temporary_file {
 public:
  explicit temporary_file(const std::string& bytes)
      : path_(std::filesystem::temp_directory_path() /
              ("pqattn_npy_file_test_" + std::to_string(reinterpret_cast<std::uintptr_t>(this)) + ".npy")) {
    std::ofstream(path_, std::ios::binary) << bytes;
  }
  temporary_file(const temporary_file&) = delete;
  temporary_file& operator=(const temporary_file&) = delete;
  ~temporary_file() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  [[nodiscard]] std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

/// `count` float16 zeros with a header of exactly 128 bytes.
std::string zeros(std::size_t count) {
  std::string header = "{'descr': '<f2', 'fortran_order': False, 'shape': (" + std::to_string(count) + ",), }";
  header.resize(118, ' ');
  return std::string("\x93NUMPY\x01\x00\x76\x00", 10) + header + std::string(2 * count, '\0');
}

}  // namespace

TEST_CASE("npy files of all sizes around the read buffer", "[study][npy]") {
  for (const std::size_t count : {0u, 1u, 32700u, 32703u, 32704u, 32705u, 70000u, 200001u}) {
    CAPTURE(count);
    const temporary_file file(zeros(count));
    npy_file loaded;
    REQUIRE_OK(load_npy(file.path().c_str(), loaded));
    CHECK(loaded.array.elements == count);
    CHECK(find_not_finite(loaded.array) == count);
  }
}

TEST_CASE("npy files that cannot be loaded", "[study][npy]") {
  npy_file loaded;
  CHECK(load_npy("/nonexistent/keys.npy", loaded).code == status_code::io_error);
  CHECK(load_npy(std::filesystem::temp_directory_path().string().c_str(), loaded).code == status_code::io_error);
  const temporary_file file(zeros(100000));
  CHECK(load_npy(file.path().c_str(), loaded, 100000).code == status_code::out_of_memory);
  const temporary_file empty("");
  CHECK(load_npy(empty.path().c_str(), loaded).code == status_code::corrupt_data);
  pqattn::memory_resource refusing;
  refusing.allocate = [](void*, std::size_t) -> void* { return nullptr; };
  CHECK(load_npy(file.path().c_str(), loaded, 1u << 30, refusing).code == status_code::out_of_memory);
  CHECK(loaded.array.data == nullptr);
  CHECK(loaded.bytes.size() == 0);
}

TEST_CASE("the array still points into its bytes after a move", "[study][npy]") {
  const temporary_file file(zeros(1000));
  npy_file loaded;
  REQUIRE_OK(load_npy(file.path().c_str(), loaded));
  const npy_file moved = std::move(loaded);
  CHECK(moved.array.data == moved.bytes.data() + 128);
}

TEST_CASE("activations that numpy wrote", "[study][npy]") {
  const auto path = pqattn_test::test_data_folder() / "tiny_lm" / "context0" / "layer1" / "keys.npy";
  npy_file loaded;
  REQUIRE_OK(load_npy(path.c_str(), loaded));
  CHECK(loaded.array.rank == 3);
  CHECK(loaded.array.shape[2] == 64);
  CHECK(find_not_finite(loaded.array) == loaded.array.elements);
}
