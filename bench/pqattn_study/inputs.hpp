// SPDX-License-Identifier: MIT
// The activations of one attention layer, read from files and checked.
#pragma once

#include <pqattn/core/view.hpp>
#include <pqattn/study/npy_file.hpp>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace pqattn_study {

/// Something the user can mend; the message is one line.
class study_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws study_error("context: what the status says") when `result` is a failure.
void require(const pqattn::status& result, const std::string& context);

struct inputs {
  pqattn::npy_file keys_file;
  pqattn::npy_file values_file;
  pqattn::npy_file queries_file;
  std::size_t kv_heads = 0;
  std::size_t query_heads = 0;
  std::size_t tokens = 0;
  std::size_t key_dim = 0;
  std::size_t value_dim = 0;

  [[nodiscard]] pqattn::rows_view keys(std::size_t kv_head) const { return keys_file.array.matrix(kv_head); }
  [[nodiscard]] pqattn::rows_view values(std::size_t kv_head) const { return values_file.array.matrix(kv_head); }
  [[nodiscard]] pqattn::rows_view queries(std::size_t head) const { return queries_file.array.matrix(head); }
  /// Query heads that read one KV head.
  [[nodiscard]] std::size_t group() const noexcept { return query_heads / kv_heads; }
};

/// A non-empty, finite floating array of rank 3 whose rows are not wider than the library takes; `axes` names them in
/// messages. Throws study_error naming the file.
[[nodiscard]] pqattn::npy_file load_heads(const std::string& path, const char* axes);

/// Loads and checks all three files. Throws study_error naming the file.
[[nodiscard]] inputs load_inputs(const std::string& keys, const std::string& values, const std::string& queries);

}  // namespace pqattn_study
