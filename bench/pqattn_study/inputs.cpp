// SPDX-License-Identifier: MIT
#include "inputs.hpp"

#include <pqattn/quant/geometry.hpp>

namespace pqattn_study {
namespace {

std::string shape_text(const pqattn::npy_array_view& array) {
  std::string text = "(";
  for (std::size_t axis = 0; axis < array.rank; ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(array.shape[axis]);
  }
  return text + ")";
}

void check_finite(const pqattn::npy_array_view& array, const std::string& path) {
  const std::size_t bad = pqattn::find_not_finite(array);
  if (bad == array.elements) {
    return;
  }
  std::size_t at[pqattn::max_npy_rank] = {};
  array.unravel(bad, at);
  const float value = array.real(bad);
  throw study_error(path + ": element (" + std::to_string(at[0]) + ", " + std::to_string(at[1]) + ", " +
                    std::to_string(at[2]) + ") is " + (value != value ? "NaN" : "infinite"));
}

void require_equal(const std::string& path, const char* what, std::size_t got, std::size_t expected) {
  if (got != expected) {
    throw study_error(path + ": has " + std::to_string(got) + " " + what + ", the keys have " +
                      std::to_string(expected));
  }
}

}  // namespace

void require(const pqattn::status& result, const std::string& context) {
  if (!result) {
    char text[256];
    result.format(text, sizeof(text));
    throw study_error(context + ": " + text);
  }
}

pqattn::npy_file load_heads(const std::string& path, const char* axes) {
  pqattn::npy_file file;
  require(pqattn::load_npy(path.c_str(), file), path);
  const pqattn::npy_array_view& array = file.array;
  if (!array.is_floating()) {
    throw study_error(path + ": elements are " + name_of(array.type) + ", float16 or float32 are needed");
  }
  if (array.rank != 3) {
    throw study_error(path + ": has " + std::to_string(array.rank) + " axes, 3 are needed: " + axes);
  }
  if (array.elements == 0) {
    throw study_error(path + ": is empty, its shape is " + shape_text(array));
  }
  if (array.shape[2] > pqattn::max_dim) {
    throw study_error(path + ": rows have " + std::to_string(array.shape[2]) + " channels, at most " +
                      std::to_string(pqattn::max_dim) + " are supported");
  }
  check_finite(array, path);
  return file;
}

inputs load_inputs(const std::string& keys, const std::string& values, const std::string& queries) {
  inputs loaded;
  loaded.keys_file = load_heads(keys, "(kv_heads, tokens, d)");
  loaded.values_file = load_heads(values, "(kv_heads, tokens, d)");
  loaded.queries_file = load_heads(queries, "(q_heads, tokens, d)");
  const auto& key_shape = loaded.keys_file.array.shape;
  const auto& value_shape = loaded.values_file.array.shape;
  const auto& query_shape = loaded.queries_file.array.shape;
  require_equal(values, "KV heads", value_shape[0], key_shape[0]);
  require_equal(values, "tokens", value_shape[1], key_shape[1]);
  require_equal(queries, "tokens", query_shape[1], key_shape[1]);
  require_equal(queries, "channels", query_shape[2], key_shape[2]);
  if (query_shape[0] % key_shape[0] != 0) {
    throw study_error(queries + ": has " + std::to_string(query_shape[0]) +
                      " query heads, not a multiple of the keys' " + std::to_string(key_shape[0]) + " KV heads");
  }
  loaded.kv_heads = key_shape[0];
  loaded.query_heads = query_shape[0];
  loaded.tokens = key_shape[1];
  loaded.key_dim = key_shape[2];
  loaded.value_dim = value_shape[2];
  return loaded;
}

}  // namespace pqattn_study
