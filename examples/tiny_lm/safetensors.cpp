// SPDX-License-Identifier: MIT
#include "safetensors.hpp"

#include <nlohmann/json.hpp>
#include <pqattn/core/half.hpp>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace tiny_lm {
namespace {

static_assert(std::endian::native == std::endian::little, "the reader copies little-endian numbers as they lie");

constexpr std::size_t length_bytes = 8;

/// A name from the file made fit for a message: printable and short.
std::string for_message(std::string_view name) {
  constexpr std::size_t longest = 64;
  std::string text = "'";
  for (const char letter : name.substr(0, longest)) {
    text += letter >= ' ' && letter < '\x7f' ? letter : '?';
  }
  return text + (name.size() > longest ? "...'" : "'");
}

/// A tensor as the header describes it, not yet believed.
struct claimed_tensor {
  bool has_dtype = false;
  bool has_shape = false;
  bool has_offsets = false;
  std::size_t offsets_read = 0;
  std::array<std::uint64_t, 2> offsets{};
  tensor_view view;
};

/// Walks the header event by event and stops at the first thing that does not belong there, so a hostile header costs
/// no more memory than its own size. The functions are those nlohmann's SAX interface asks for; false stops it.
class header_reader {
 public:
  explicit header_reader(std::map<std::string, claimed_tensor, std::less<>>& claims) : claims_(claims) {}

  [[nodiscard]] const outcome& result() const noexcept { return result_; }

  bool start_object(std::size_t) {
    if (place_ == place::before) {
      return go(place::top);
    }
    if (place_ == place::top && !key_.empty()) {
      return go(key_ == "__metadata__" ? place::metadata : place::tensor);
    }
    return refuse("a value", "an object");
  }

  bool key(std::string& name) {
    key_ = std::move(name);
    if (place_ == place::tensor) {
      return known_field();
    }
    if (place_ != place::top) {
      return true;
    }
    if (key_.empty()) {
      return stop(outcome::failure("header: a tensor without a name"));
    }
    if (key_ == "__metadata__") {
      return true;
    }
    const auto [position, is_new] = claims_.try_emplace(key_);
    if (!is_new) {
      return stop(outcome::failure("header: tensor " + for_message(key_) + " appears twice"));
    }
    name_ = key_;
    claim_ = &position->second;
    return true;
  }

  bool end_object() {
    if (place_ == place::top) {
      return go(place::after);
    }
    if (place_ == place::tensor && !(claim_->has_dtype && claim_->has_shape && claim_->has_offsets)) {
      return refuse("dtype, shape and data_offsets", "fewer fields");
    }
    return go(place::top);
  }

  bool start_array(std::size_t) {
    if (place_ == place::tensor && key_ == "shape") {
      return go(place::shape);
    }
    if (place_ == place::tensor && key_ == "data_offsets") {
      return go(place::offsets);
    }
    return refuse(place_ == place::before ? "an object" : "no array here", "an array");
  }

  bool end_array() {
    if (place_ == place::offsets && claim_->offsets_read != 2) {
      return refuse("2 offsets", claim_->offsets_read);
    }
    return go(place::tensor);
  }

  bool string(std::string& text) {
    if (place_ == place::metadata) {
      return true;
    }
    if (place_ != place::tensor || key_ != "dtype") {
      return refuse("no string here", "a string");
    }
    return read_dtype(text);
  }

  bool number_unsigned(std::uint64_t number) {
    if (place_ == place::shape) {
      return add_extent(number);
    }
    if (place_ == place::offsets) {
      return add_offset(number);
    }
    return refuse("no number here", number);
  }

  bool number_integer(std::int64_t number) { return refuse("a number of 0 or more", number); }
  bool number_float(double, const std::string&) { return refuse("a whole number", "a fraction"); }
  bool null() { return refuse("a value", "null"); }
  bool boolean(bool) { return refuse("a value", "a boolean"); }
  bool binary(nlohmann::json::binary_t&) { return refuse("a value", "binary data"); }

  template <class Error>
  bool parse_error(std::size_t position, const std::string&, const Error&) {
    return stop(outcome::failure("header: not JSON at byte " + std::to_string(position)));
  }

 private:
  enum class place : std::uint8_t { before, top, tensor, shape, offsets, metadata, after };

  bool go(place next) {
    place_ = next;
    return true;
  }

  bool stop(outcome result) {
    result_ = std::move(result);
    return false;
  }

  template <class Expected, class Got>
  bool refuse(const Expected& expected, const Got& got) {
    const std::string where = claim_ == nullptr ? "header" : "tensor " + for_message(name_);
    return stop(expected_got(where + " at key " + for_message(key_), expected, got));
  }

  /// Each field once, and no field this reader does not know: what is not understood is not skipped.
  bool known_field() {
    bool* seen = key_ == "dtype"          ? &claim_->has_dtype
                 : key_ == "shape"        ? &claim_->has_shape
                 : key_ == "data_offsets" ? &claim_->has_offsets
                                          : nullptr;
    if (seen == nullptr) {
      return refuse("dtype, shape or data_offsets", "another field");
    }
    if (*seen) {
      return refuse("each field once", "a second one");
    }
    *seen = true;
    return true;
  }

  bool read_dtype(std::string_view text) {
    if (text == "F16") {
      claim_->view.dtype = tensor_dtype::f16;
    } else if (text == "BF16") {
      claim_->view.dtype = tensor_dtype::bf16;
    } else if (text == "F32") {
      claim_->view.dtype = tensor_dtype::f32;
    } else {
      return refuse("F16, BF16 or F32", for_message(text));
    }
    return true;
  }

  bool add_extent(std::uint64_t extent) {
    tensor_view& view = claim_->view;
    if (view.rank == tensor_view::max_rank) {
      return refuse("at most 8 dimensions", "more");
    }
    if (extent > std::numeric_limits<std::size_t>::max()) {
      return refuse("an extent that fits memory", extent);
    }
    view.extents[view.rank++] = static_cast<std::size_t>(extent);
    return true;
  }

  bool add_offset(std::uint64_t offset) {
    if (claim_->offsets_read == 2) {
      return refuse("2 offsets", "more");
    }
    claim_->offsets[claim_->offsets_read++] = offset;
    return true;
  }

  std::map<std::string, claimed_tensor, std::less<>>& claims_;
  outcome result_;
  place place_ = place::before;
  std::string key_;                  // last key seen, at any depth
  std::string name_;                 // tensor being read
  claimed_tensor* claim_ = nullptr;  // its entry
};

/// The header's length against the file and against our own limit.
outcome read_header_length(std::span<const std::byte> bytes, std::size_t& header_bytes) {
  if (bytes.size() < length_bytes) {
    return expected_got("file bytes", "at least 8", bytes.size());
  }
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), length_bytes);
  if (length > max_safetensors_header_bytes) {
    return expected_got("header bytes", "at most " + std::to_string(max_safetensors_header_bytes), length);
  }
  if (length > bytes.size() - length_bytes) {
    return expected_got("header bytes", "at most " + std::to_string(bytes.size() - length_bytes), length);
  }
  header_bytes = static_cast<std::size_t>(length);
  return {};
}

outcome count_elements(tensor_view& view) {
  std::size_t elements = 1;
  for (const std::size_t extent : view.shape()) {
    if (extent != 0 && elements > std::numeric_limits<std::size_t>::max() / sizeof(float) / extent) {
      return expected_got("number of elements", "one that fits memory", "an overflow");
    }
    elements *= extent;
  }
  view.elements = elements;
  return {};
}

outcome check_claim(claimed_tensor& claim, std::span<const std::byte> data) {
  const auto [begin, end] = claim.offsets;
  if (end > data.size()) {
    return expected_got("end offset", "at most " + std::to_string(data.size()), end);
  }
  if (begin > end) {
    return expected_got("begin offset", "at most " + std::to_string(end), begin);
  }
  TINY_LM_TRY(count_elements(claim.view));
  const std::size_t expected_bytes = claim.view.elements * bytes_of(claim.view.dtype);
  if (expected_bytes != end - begin) {
    return expected_got("bytes of dtype and shape", expected_bytes, end - begin);
  }
  claim.view.data = data.subspan(static_cast<std::size_t>(begin), expected_bytes);
  return {};
}

/// The tensors lie one behind the other and fill the data: no gap to hide anything in, no shared bytes.
outcome check_cover(const std::map<std::string, claimed_tensor, std::less<>>& claims, std::size_t data_bytes) {
  std::vector<std::array<std::uint64_t, 2>> pieces;
  for (const auto& [name, claim] : claims) {
    pieces.push_back(claim.offsets);
  }
  std::sort(pieces.begin(), pieces.end());
  std::uint64_t covered = 0;
  for (const auto& [begin, end] : pieces) {
    if (begin != covered) {
      return expected_got("gap or overlap in the data, next begin offset", covered, begin);
    }
    covered = end;
  }
  if (covered != data_bytes) {
    return expected_got("bytes behind the last tensor", covered, data_bytes);
  }
  return {};
}

float load(tensor_dtype dtype, const std::byte* place) {
  if (dtype == tensor_dtype::f32) {
    float value = 0.0F;
    std::memcpy(&value, place, sizeof(value));
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, place, sizeof(bits));
  return dtype == tensor_dtype::bf16 ? pqattn::to_float(pqattn::bfloat16{bits}) : pqattn::to_float(pqattn::half{bits});
}

}  // namespace

outcome parse_safetensors(std::span<const std::byte> bytes, safetensors& tensors) {
  tensors.clear();
  std::size_t header_bytes = 0;
  TINY_LM_TRY(read_header_length(bytes, header_bytes));
  const auto header = bytes.subspan(length_bytes, header_bytes);
  const auto data = bytes.subspan(length_bytes + header_bytes);

  std::map<std::string, claimed_tensor, std::less<>> claims;
  header_reader reader(claims);
  const auto* text = reinterpret_cast<const char*>(header.data());
  const bool complete = nlohmann::json::sax_parse(text, text + header.size(), &reader);
  TINY_LM_TRY(reader.result());
  if (!complete) {
    return outcome::failure("header: not JSON");
  }

  for (auto& [name, claim] : claims) {
    TINY_LM_TRY(check_claim(claim, data).within("tensor " + for_message(name)));
  }
  TINY_LM_TRY(check_cover(claims, data.size()));
  for (auto& [name, claim] : claims) {
    tensors.emplace(name, claim.view);
  }
  return {};
}

outcome widen(const tensor_view& tensor, std::span<float> values) {
  if (values.size() != tensor.elements) {
    return expected_got("values to widen", tensor.elements, values.size());
  }
  const std::size_t stride = bytes_of(tensor.dtype);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = load(tensor.dtype, tensor.data.data() + i * stride);
  }
  return {};
}

}  // namespace tiny_lm
