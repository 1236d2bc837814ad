// SPDX-License-Identifier: MIT
// Reader of NumPy's .npy format (versions 1, 2 and 3) from bytes in memory: no allocation, no copy, nothing trusted.
// Source of the format: numpy.lib.format (NEP 1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

#include "../config.hpp"
#include "../core/half.hpp"
#include "../core/status.hpp"
#include "../core/view.hpp"

namespace pqattn {
inline namespace v0 {
inline namespace PQATTN_ISA_UNIT {

/// Element types the reader accepts, all little endian: '<f2', '<f4', '<i4', '<i8', '<u2'.
enum class npy_type : std::uint8_t { f16, f32, i32, i64, u16 };

[[nodiscard]] constexpr std::size_t size_of(npy_type type) noexcept {
  return type == npy_type::f16 || type == npy_type::u16 ? 2 : type == npy_type::i64 ? 8 : 4;
}

[[nodiscard]] constexpr const char* name_of(npy_type type) noexcept {
  switch (type) {
    case npy_type::f16: return "float16";
    case npy_type::f32: return "float32";
    case npy_type::i32: return "int32";
    case npy_type::i64: return "int64";
    case npy_type::u16: return "uint16";
  }
  return "unknown";
}

/// Most axes an array may have.
inline constexpr std::size_t max_npy_rank = 8;
/// Longest header text accepted; numpy's own reader stops at 10 000 bytes.
inline constexpr std::size_t max_npy_header_bytes = 65536;

/// A C-order array that lies in the parsed bytes. Does not own its memory; `data` may have any alignment.
struct npy_array_view {
  const std::byte* data = nullptr;
  npy_type type = npy_type::f32;
  std::size_t rank = 0;
  std::size_t shape[max_npy_rank] = {};
  std::size_t elements = 0;  ///< product of the shape; 1 for rank 0

  [[nodiscard]] constexpr bool is_floating() const noexcept { return type == npy_type::f16 || type == npy_type::f32; }

  /// Element `index` in C order of a floating array, widened.
  [[nodiscard]] float real(std::size_t index) const noexcept {
    if (type == npy_type::f16) {
      half element;
      std::memcpy(&element.bits, data + 2 * index, 2);
      return to_float(element);
    }
    float element;
    std::memcpy(&element, data + 4 * index, 4);
    return element;
  }

  /// Element `index` in C order of an integer array, widened.
  [[nodiscard]] std::int64_t integer(std::size_t index) const noexcept {
    std::int64_t element = 0;
    std::memcpy(&element, data + index * size_of(type), size_of(type));  // little-endian hosts only
    return type == npy_type::i32 ? static_cast<std::int32_t>(element) : element;
  }

  /// Matrix `index` of a floating array of rank 3, or the whole of one of rank 2.
  /// Pre: is_floating(), rank 2 or 3, index < shape[0] when rank is 3.
  [[nodiscard]] rows_view matrix(std::size_t index = 0) const noexcept {
    const std::size_t rows = shape[rank - 2];
    const std::size_t cols = shape[rank - 1];
    const dtype element = type == npy_type::f16 ? dtype::f16 : dtype::f32;
    return {data + index * rows * cols * size_of(element), element, rows, cols, static_cast<std::ptrdiff_t>(cols), 1};
  }

  /// Splits a C-order element index into one index per axis; `indices` holds `rank` numbers.
  void unravel(std::size_t index, std::size_t* indices) const noexcept {
    for (std::size_t axis = rank; axis-- > 0;) {
      indices[axis] = index % shape[axis];
      index /= shape[axis];
    }
  }
};

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Cursor over the header text, a Python dictionary literal.
class npy_header_scanner {
 public:
  npy_header_scanner(const char* text, std::size_t size) noexcept : next_(text), end_(text + size) {}

  void skip_space() noexcept {
    while (next_ != end_ && (*next_ == ' ' || *next_ == '\n' || *next_ == '\t' || *next_ == '\r')) {
      ++next_;
    }
  }
  [[nodiscard]] bool at_end() noexcept {
    skip_space();
    return next_ == end_;
  }
  /// Consumes `symbol` when it is what follows.
  [[nodiscard]] bool accept(char symbol) noexcept {
    skip_space();
    if (next_ == end_ || *next_ != symbol) {
      return false;
    }
    ++next_;
    return true;
  }
  /// Consumes the whole word when it is what follows.
  [[nodiscard]] bool accept_word(const char* word) noexcept {
    skip_space();
    const std::size_t length = std::strlen(word);
    if (static_cast<std::size_t>(end_ - next_) < length || std::memcmp(next_, word, length) != 0) {
      return false;
    }
    next_ += length;
    return true;
  }
  /// A quoted string without escapes; `text` points into the header.
  [[nodiscard]] bool quoted(const char*& text, std::size_t& length) noexcept {
    skip_space();
    if (next_ == end_ || (*next_ != '\'' && *next_ != '"')) {
      return false;
    }
    const char quote = *next_++;
    text = next_;
    while (next_ != end_ && *next_ != quote) {
      ++next_;
    }
    if (next_ == end_) {
      return false;
    }
    length = static_cast<std::size_t>(next_++ - text);
    return true;
  }
  /// A decimal number that fits std::size_t. Python 2 wrote long integers with an L behind them.
  [[nodiscard]] bool number(std::size_t& value) noexcept {
    skip_space();
    const char* first = next_;
    value = 0;
    for (; next_ != end_ && *next_ >= '0' && *next_ <= '9'; ++next_) {
      const auto digit = static_cast<std::size_t>(*next_ - '0');
      if (value > ((std::numeric_limits<std::size_t>::max)() - digit) / 10) {
        return false;
      }
      value = value * 10 + digit;
    }
    const bool found = next_ != first;
    if (found && next_ != end_ && *next_ == 'L') {
      ++next_;
    }
    return found;
  }

 private:
  const char* next_;
  const char* end_;
};

[[nodiscard]] inline status parse_npy_type(const char* text, std::size_t length, npy_type& type) noexcept {
  struct known {
    const char* name;
    npy_type type;
  };
  static constexpr known table[] = {{"<f2", npy_type::f16},
                                    {"<f4", npy_type::f32},
                                    {"<i4", npy_type::i32},
                                    {"<i8", npy_type::i64},
                                    {"<u2", npy_type::u16}};
  for (const known& entry : table) {
    if (length == 3 && std::memcmp(text, entry.name, 3) == 0) {
      type = entry.type;
      return {};
    }
  }
  return failure(status_code::unsupported, "npy element type", "must be one of <f2 <f4 <i4 <i8 <u2");
}

[[nodiscard]] inline status parse_npy_shape(npy_header_scanner& scanner, npy_array_view& array) noexcept {
  constexpr const char* subject = "npy shape";
  if (!scanner.accept('(')) {
    return failure(status_code::corrupt_data, subject, "is not a tuple");
  }
  array.rank = 0;
  while (!scanner.accept(')')) {
    std::size_t extent = 0;
    if (!scanner.number(extent)) {
      return failure(status_code::corrupt_data, subject, "has an entry that is not a representable extent");
    }
    if (array.rank == max_npy_rank) {
      return failure(status_code::unsupported, subject, "has more than 8 axes");
    }
    array.shape[array.rank++] = extent;
    if (!scanner.accept(',')) {
      // "(5)" is the number 5 in Python, not a tuple; numpy never writes it.
      if (array.rank < 2 || !scanner.accept(')')) {
        return failure(status_code::corrupt_data, subject, "is not a tuple");
      }
      break;
    }
  }
  return {};
}

/// Product of the shape; refuses what does not fit the address space, whatever the order of the extents.
[[nodiscard]] inline status count_npy_elements(npy_array_view& array) noexcept {
  constexpr std::size_t limit = static_cast<std::size_t>((std::numeric_limits<std::ptrdiff_t>::max)()) / 8;
  std::size_t elements = 1;
  for (std::size_t axis = 0; axis < array.rank; ++axis) {
    if (array.shape[axis] == 0) {
      array.elements = 0;
      return {};
    }
    if (array.shape[axis] > limit / elements) {
      return failure(status_code::corrupt_data, "npy shape", "has more elements than memory can hold");
    }
    elements *= array.shape[axis];
  }
  array.elements = elements;
  return {};
}

[[nodiscard]] inline status parse_npy_header(const char* text, std::size_t size, npy_array_view& array) noexcept {
  constexpr const char* subject = "npy header";
  npy_header_scanner scanner(text, size);
  bool seen_type = false;
  bool seen_order = false;
  bool seen_shape = false;
  if (!scanner.accept('{')) {
    return failure(status_code::corrupt_data, subject, "is not a dictionary");
  }
  while (!scanner.accept('}')) {
    const char* key = nullptr;
    std::size_t length = 0;
    if (!scanner.quoted(key, length) || !scanner.accept(':')) {
      return failure(status_code::corrupt_data, subject, "is not a dictionary");
    }
    const auto key_is = [&](const char* name) {
      return length == std::strlen(name) && std::memcmp(key, name, length) == 0;
    };
    if (key_is("descr") && !seen_type) {
      seen_type = true;
      const char* type = nullptr;
      if (!scanner.quoted(type, length)) {
        return failure(status_code::unsupported, "npy element type", "is a structure, not one number");
      }
      PQATTN_TRY(parse_npy_type(type, length, array.type));
    } else if (key_is("fortran_order") && !seen_order) {
      seen_order = true;
      if (scanner.accept_word("True")) {
        return failure(status_code::unsupported, "npy array", "is in Fortran order; C order is needed");
      }
      if (!scanner.accept_word("False")) {
        return failure(status_code::corrupt_data, "npy fortran_order", "is neither True nor False");
      }
    } else if (key_is("shape") && !seen_shape) {
      seen_shape = true;
      PQATTN_TRY(parse_npy_shape(scanner, array));
    } else {
      return failure(status_code::corrupt_data, subject, "has an unknown or repeated key");
    }
    if (!scanner.accept(',')) {
      if (!scanner.accept('}')) {
        return failure(status_code::corrupt_data, subject, "is not a dictionary");
      }
      break;
    }
  }
  if (!scanner.at_end()) {
    return failure(status_code::corrupt_data, subject, "has text after the dictionary");
  }
  if (!seen_type || !seen_order || !seen_shape) {
    return failure(status_code::corrupt_data, subject, "lacks descr, fortran_order or shape");
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Parses one whole .npy file. On success `array` points into `bytes`; on failure it is unchanged.
/// corrupt_data: not a .npy file, truncated, bytes left over, a shape that overflows. unsupported: another element
/// type, Fortran order, more than 8 axes, a header over 64 KiB. O(header); the elements are not read.
[[nodiscard]] inline status parse_npy(std::span<const std::byte> bytes, npy_array_view& array) noexcept {
  constexpr const char* subject = "npy file";
  static constexpr unsigned char magic[6] = {0x93, 'N', 'U', 'M', 'P', 'Y'};
  const auto byte_at = [&](std::size_t index) { return static_cast<std::size_t>(bytes[index]); };
  if (bytes.size() < sizeof(magic) || std::memcmp(bytes.data(), magic, sizeof(magic)) != 0) {
    return failure(status_code::corrupt_data, subject, "does not start with the .npy signature");
  }
  if (bytes.size() < 8) {
    return failure(status_code::corrupt_data, subject, "is truncated in its version", 8, bytes.size());
  }
  const std::size_t version = byte_at(6);
  if (version < 1 || version > 3) {
    return failure(status_code::unsupported, subject, "has an unknown format version; known are 1 to 3", 3, version);
  }
  const std::size_t length_bytes = version == 1 ? 2 : 4;
  const std::size_t header_at = 8 + length_bytes;
  if (bytes.size() < header_at) {
    return failure(status_code::corrupt_data, subject, "is truncated in its header length", header_at, bytes.size());
  }
  std::size_t header_bytes = 0;
  for (std::size_t i = 0; i < length_bytes; ++i) {
    header_bytes |= byte_at(8 + i) << (8 * i);
  }
  if (header_bytes > max_npy_header_bytes) {
    return failure(status_code::unsupported, "npy header", "is longer than any array needs", max_npy_header_bytes,
                   header_bytes);
  }
  if (header_bytes > bytes.size() - header_at) {
    return failure(status_code::corrupt_data, subject, "is truncated in its header", header_at + header_bytes,
                   bytes.size());
  }
  npy_array_view parsed;
  PQATTN_TRY(detail::parse_npy_header(reinterpret_cast<const char*>(bytes.data()) + header_at, header_bytes, parsed));
  PQATTN_TRY(detail::count_npy_elements(parsed));
  const std::size_t available = bytes.size() - header_at - header_bytes;
  const std::size_t needed = parsed.elements * size_of(parsed.type);
  if (available < needed) {
    return failure(status_code::corrupt_data, subject, "is truncated: bytes of elements", needed, available);
  }
  if (available > needed) {
    return failure(status_code::corrupt_data, subject, "has bytes after its last element", needed, available);
  }
  parsed.data = bytes.data() + header_at + header_bytes;
  array = parsed;
  return {};
}

/// Index in C order of the first element that is NaN or infinite, or `elements` when all are finite.
/// Integer arrays are finite. O(elements).
[[nodiscard]] inline std::size_t find_not_finite(const npy_array_view& array) noexcept {
  std::size_t index = array.is_floating() ? 0 : array.elements;
  while (index < array.elements && is_finite(array.real(index))) {
    ++index;
  }
  return index;
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
