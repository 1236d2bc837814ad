// SPDX-License-Identifier: MIT
// Reader of the safetensors format: 8 bytes of little-endian header length, a JSON header
//   {"name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {"key": "text"}}
// and the tensors' bytes, which must cover the rest of the file without gap or overlap.
// Every file is treated as hostile: nothing in it is believed before it is checked.
#pragma once

#include "outcome.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>

namespace tiny_lm {

/// Element types this reader understands; files with any other are refused.
enum class tensor_dtype : std::uint8_t { f16, bf16, f32 };

[[nodiscard]] constexpr std::size_t bytes_of(tensor_dtype dtype) noexcept {
  return dtype == tensor_dtype::f32 ? 4 : 2;
}

/// One tensor: row-major, little-endian, `data` of any alignment inside the caller's bytes.
struct tensor_view {
  static constexpr std::size_t max_rank = 8;

  tensor_dtype dtype = tensor_dtype::f32;
  std::size_t rank = 0;
  std::array<std::size_t, max_rank> extents{};
  std::size_t elements = 1;
  std::span<const std::byte> data;

  [[nodiscard]] std::span<const std::size_t> shape() const noexcept { return {extents.data(), rank}; }
};

/// The tensors of a file by name. Views into the bytes given to `parse_safetensors`, which must outlive it.
using safetensors = std::map<std::string, tensor_view, std::less<>>;

/// Longest JSON header accepted; tens of thousands of tensors fit.
inline constexpr std::size_t max_safetensors_header_bytes = std::size_t{1} << 22;

/// Reads the header and checks it against `bytes`. On failure `tensors` is empty and the message names the tensor.
/// Memory: proportional to the header, never to what the header claims. Does not throw on any input.
outcome parse_safetensors(std::span<const std::byte> bytes, safetensors& tensors);

/// Widens a tensor to f32, exactly. Pre: values.size() == tensor.elements.
outcome widen(const tensor_view& tensor, std::span<float> values);

}  // namespace tiny_lm
