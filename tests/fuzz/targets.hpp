// SPDX-License-Identifier: MIT
// What every parser must survive: one function per parser that takes any bytes. A finding is a crash, a sanitizer
// report, an over-long run, or a broken promise (the abort() in `promise`). scripts/fuzz runs one function under
// libFuzzer; fuzz_corpus_test.cpp replays the corpus with all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bench/pqattn_pim/command_text.hpp"
#include "examples/tiny_lm/safetensors.hpp"
#include "pqattn/bank/pim/device_json.hpp"
#include "pqattn/bank/pim/presets.hpp"
#include "pqattn/study/npy.hpp"

namespace pqattn_fuzz {

using bytes_view = std::span<const std::byte>;

/// A property that holds for every input.
inline void promise(bool kept, const char* sentence) {
  if (!kept) {
    std::fprintf(stderr, "broken promise: %s\n", sentence);
    std::abort();
  }
}

inline bool inside(bytes_view outer, const void* data, std::size_t size) {
  const auto* first = static_cast<const std::byte*>(data);
  return size == 0 ||
         (first >= outer.data() && size <= outer.size() && first <= outer.data() + (outer.size() - size));
}

/// .npy: an accepted array lies in the bytes, and every element can be read.
inline void npy(bytes_view bytes) {
  pqattn::npy_array_view array;
  if (!pqattn::parse_npy(bytes, array)) {
    promise(array.data == nullptr, "a refused file leaves the view alone");
    return;
  }
  promise(inside(bytes, array.data, array.elements * size_of(array.type)), "the elements lie in the file");
  static_cast<void>(pqattn::find_not_finite(array));
  volatile double sum = 0.0;
  for (std::size_t i = 0; i < array.elements; ++i) {
    sum = sum + (array.is_floating() ? static_cast<double>(array.real(i)) : static_cast<double>(array.integer(i)));
  }
}

/// safetensors: an accepted tensor lies in the bytes and can be widened.
inline void safetensors(bytes_view bytes) {
  tiny_lm::safetensors tensors;
  const tiny_lm::outcome result = tiny_lm::parse_safetensors(bytes, tensors);
  promise(result.ok() || (tensors.empty() && !result.message().empty()), "a refused file gives a reason and no tensor");
  for (const auto& [name, tensor] : tensors) {
    promise(inside(bytes, tensor.data.data(), tensor.data.size()), "the tensor lies in the file");
    std::vector<float> values(tensor.elements);
    promise(tiny_lm::widen(tensor, values).ok(), "an accepted tensor widens");
  }
}

/// Device JSON: an accepted device is valid and reads back as itself.
inline void device_json(bytes_view bytes) {
  namespace pim = pqattn::pim;
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  pim::device device;
  std::string message;
  if (!pim::device_from_json_text(text, device, message)) {
    promise(!message.empty(), "a refused device gives a reason");
    return;
  }
  promise(pim::validate(device).ok(), "an accepted device is valid");
  const nlohmann::ordered_json document = pim::device_to_json(device);
  std::string written;
  try {
    written = document.dump();
  } catch (const nlohmann::json::exception&) {
    return;  // a name that is not UTF-8 was cut in the middle of a letter
  }
  pim::device again;
  promise(pim::device_from_json_text(written, again, message).ok(), "a written device reads back");
  promise(pim::device_to_json(again) == document, "a written device reads back as itself");
}

/// Command text of `pqattn-pim trace`.
inline void command_text(bytes_view bytes) {
  namespace pim = pqattn::pim;
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  pim::walker walker;
  promise(walker.configure(pim::gddr6_aim()).ok(), "the preset is valid");
  if (const auto error = pqattn_pim::command_reader(walker).serve_all(text)) {
    promise(error->line >= 1 && !error->message.empty(), "a refused line is named with a reason");
  }
  static_cast<void>(walker.finish_cycle());
}

struct target {
  const char* name;
  void (*run)(bytes_view bytes);
};
inline constexpr target targets[] = {
    {"npy", &npy},
    {"safetensors", &safetensors},
    {"device_json", &device_json},
    {"command_text", &command_text},
};

}  // namespace pqattn_fuzz
