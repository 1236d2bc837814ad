// SPDX-License-Identifier: MIT
// What every parser must survive: one function per parser that takes any bytes. A finding is a crash, a sanitizer
// report, an over-long run, or a broken promise (the abort() in `promise`). scripts/fuzz runs one function under
// libFuzzer; fuzz_corpus_test.cpp replays the corpus with all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "bench/pqattn_pim/command_text.hpp"
#include "examples/llama2c/checkpoint.hpp"
#include "examples/tiny_lm/model_config.hpp"
#include "examples/tiny_lm/safetensors.hpp"
#include "examples/tiny_lm/tokenizer.hpp"
#include "pqattn/bank/host/host_bank.hpp"
#include "pqattn/bank/pim/device_json.hpp"
#include "pqattn/bank/pim/presets.hpp"
#include "pqattn/cache/snapshot.hpp"
#include "pqattn/study/npy.hpp"
#include "pqattn/study/policy_json.hpp"
#include "support/repair_snapshot.hpp"

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
  return size == 0 || (first >= outer.data() && size <= outer.size() && first <= outer.data() + (outer.size() - size));
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

/// Policy JSON: an accepted policy is written as text that reads back as the same text.
inline void policy_json(bytes_view bytes) {
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::vector<pqattn::head_policy> policy(1);
  if (!pqattn::policy_from_json(text, policy)) {
    promise(policy.size() == 1, "a refused policy changes nothing");
    return;
  }
  const std::string written = pqattn::policy_to_json(policy.data(), policy.size());
  std::vector<pqattn::head_policy> again;
  promise(pqattn::policy_from_json(written, again).ok(), "a written policy reads back");
  promise(pqattn::policy_to_json(again.data(), again.size()) == written, "a written policy reads back as itself");
}

/// config.json of a model: an accepted one has sizes that fit each other.
inline void model_config(bytes_view bytes) {
  tiny_lm::model_config config;
  const tiny_lm::outcome result =
      tiny_lm::parse_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, config);
  promise(result.ok() == (config.layers != 0), "a refused configuration changes nothing, an accepted one has layers");
  promise(result.ok() ? config.kv_heads != 0 && config.query_heads % config.kv_heads == 0 && config.head_dim % 2 == 0
                      : !result.message().empty(),
          "a refused configuration gives a reason");
}

/// tokenizer.json: an accepted one gives back every text.
inline void tokenizer(bytes_view bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  tiny_lm::tokenizer words;
  const tiny_lm::outcome result = tiny_lm::tokenizer::parse(text, words);
  if (!result.ok()) {
    promise(words.vocabulary() == 0 && !result.message().empty(), "a refused tokenizer gives a reason");
    return;
  }
  promise(words.decode(words.encode(text)) == text, "decoding undoes encoding");
}

/// llama2.c checkpoint: an accepted one has weights for its header and is written as the bytes it came from.
inline void checkpoint(bytes_view bytes) {
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::istringstream file(text);
  llama2c::checkpoint model;
  std::string problem;
  if (!llama2c::checkpoint::read(file, text.size(), model, problem)) {
    promise(model.shape().dim == 0 && !problem.empty(), "a refused checkpoint gives a reason and changes nothing");
    return;
  }
  std::ostringstream written;
  model.write(written);
  promise(written.str() == text, "an accepted checkpoint is written as it was read");
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

/// A pool as small as can be, with codebooks that are the same every time: what snapshots of the corpus fit.
struct snapshot_scene {
  using bank_type = pqattn::host_bank<>;
  using pool_type = pqattn::page_pool<bank_type>;
  using sequence_type = pqattn::sequence<bank_type>;
  enum class kind { plain, turned, latent, outliers, epochs };

  bank_type bank;
  pool_type pool;

  explicit snapshot_scene(bool with_books, kind which = kind::plain) {
    pqattn::cache_config config;
    config.keys.shape = {4, 2, 3, 1};
    config.values = {true, {3, 1, 5, 1}, pqattn::codebook_storage::f16};
    config.sinks = 2;
    config.recent = 2;
    config.train_tokens = 8;
    if (which == kind::turned) {
      config.keys.metric = true;
      config.values.rotated = true;
      config.query_rows = 4;
    } else if (which == kind::latent) {
      config.values = config.keys;
      config.values_from_keys = true;
      config.key_tail = 2;
    } else if (which == kind::outliers || which == kind::epochs) {
      config.outlier_share = 0.1f;
    }
    promise(pool_type::make(bank, config, 1, {}, pool).ok(), "the pool is made");
    for (const pqattn::kv_side side : pqattn::kv_sides) {
      std::vector<float> centroids(pool.side(side).shape.codebook_values());
      for (std::size_t i = 0; i < centroids.size(); ++i) {
        centroids[i] = 0.25f * static_cast<float>(i * 7 % 13);
      }
      std::vector<float> transform(pool.transform_floats(side));
      for (std::size_t i = 0; i < transform.size(); ++i) {
        transform[i] = 0.5f * static_cast<float>(i * 3 % 5) + 1.0f;
      }
      promise(!with_books || !pool.stores(side) ||
                  pool.load_codebook(0, side, centroids.data(), transform.empty() ? nullptr : transform.data()).ok(),
              "codebooks load");
    }
    pool.set_rule(0, {1.0f, 1.0f, 2.0f});
  }
  /// One more epoch of codebooks beside the first, by names that do not depend on how they were trained.
  void refresh() {
    float rows[12 * 6];
    for (std::size_t i = 0; i < std::size(rows); ++i) {
      rows[i] = 0.25f * static_cast<float>(i * 5 % 17);
    }
    sequence_type tokens(pool);
    promise(pool.hold_epoch(0).ok() && tokens
                                           .refresh({pqattn::view_rows(rows, 12, key_dim()), 1, 0},
                                                    {pqattn::view_rows(rows, 12, value_dim()), 1, 0})
                                           .ok(),
            "codebooks are refreshed");
    for (std::size_t i = 0; i < std::size(epoch_names); ++i) {
      pool.set_loaded_as(pool.epoch_in_order(i), epoch_names[i]);
    }
  }
  static constexpr std::uint64_t epoch_names[] = {1, 2};

  [[nodiscard]] std::size_t key_dim() const { return pool.row_dim(pqattn::kv_side::keys); }
  [[nodiscard]] std::size_t value_dim() const { return pool.row_dim(pqattn::kv_side::values); }
  /// Appends rows of numbers; `numbers` has count * 6 of them.
  pqattn::status append(sequence_type& tokens, const float* numbers, std::size_t count) const {
    const pqattn::head_rows keys{pqattn::view_rows(numbers, count, key_dim()), 1, 0};
    const pqattn::head_rows values{pqattn::view_rows(numbers, count, value_dim()), 1, 0};
    return tokens.append(keys, pool.stores(pqattn::kv_side::values) ? values : pqattn::head_rows{});
  }
};
inline constexpr snapshot_scene::kind snapshot_kinds[] = {snapshot_scene::kind::plain, snapshot_scene::kind::turned,
                                                          snapshot_scene::kind::latent, snapshot_scene::kind::outliers,
                                                          snapshot_scene::kind::epochs};

/// One snapshot for pools of one kind.
inline void snapshot_for(bytes_view input, snapshot_scene::kind kind) {
  using namespace pqattn;
  snapshot_view view;
  if (!snapshot_view::open(input, view)) {
    return;
  }
  snapshot_scene fresh(false, kind);
  const bool loaded = load_codebooks(view, fresh.pool).ok();
  promise(loaded == fresh.pool.trained(), "codebooks load whole or not at all");
  snapshot_scene scene(true, kind);
  if (kind == snapshot_scene::kind::epochs) {
    scene.refresh();
  }
  const std::size_t key_dim = scene.key_dim();
  const std::size_t value_dim = scene.value_dim();
  snapshot_scene::sequence_type tokens(scene.pool);
  if (!load_sequence(view, tokens)) {
    promise(tokens.size() == 0, "a refused sequence changes nothing");
    promise(scene.pool.coded_pages().used_pages() == 0 && scene.pool.exact_pages().used_pages() == 0,
            "a refused sequence keeps no page");
  } else {
    std::vector<float> keys(tokens.size() * key_dim);
    std::vector<float> values(tokens.size() * value_dim);
    promise(tokens
                .read(0, 0, ref_rows(keys.data(), tokens.size(), key_dim),
                      ref_rows(values.data(), tokens.size(), value_dim))
                .ok(),
            "a loaded sequence can be read");
    const snapshot_sink nowhere{[](void*, const void*, std::size_t) { return true; }, nullptr};
    promise(write_sequence(tokens, nowhere).ok(), "a loaded sequence can be written");
    if (tokens.next_position() < (std::int64_t{1} << 31) - 2) {
      const float row[6] = {};
      promise(scene.append(tokens, row, 1).ok(), "a loaded sequence can grow");
    }
    tokens.truncate(tokens.size() / 2);
  }
  // In place, from memory as aligned as a mapped file's.
  buffer aligned;
  promise(buffer::make({}, input.size(), aligned).ok(), "memory for a copy");
  std::memcpy(aligned.data(), input.data(), input.size());
  promise(snapshot_view::open({aligned.data(), input.size()}, view).ok(), "a copy opens, too");
  segment<std::byte*> segments[6];
  std::size_t count = 0;
  buffer tables;
  promise(buffer::make({}, 64 + attention_table_bytes(scene.bank, scene.pool.config().keys.shape, 1, {}), tables).ok(),
          "memory for tables");
  if (snapshot_segments(view, scene.pool, 0, tables.data(), segments, count)) {
    const float query[6] = {1.0f, -1.0f, 0.5f, 2.0f, -0.5f, 1.5f};
    float out[4];
    std::vector<std::byte> workspace(attention_workspace_bytes(segments, count, 1, key_dim, value_dim, 1));
    promise(attend(scene.bank, view_rows(query, 1, key_dim), segments, count, {}, workspace.data(), workspace.size(),
                   ref_rows(out, 1, value_dim), nullptr)
                .ok(),
            "segments in place can be attended to");
  }
}

/// Snapshots: a refused one changes nothing, an accepted one can be read, edited, attended to in place and written
/// again.
inline void snapshot(bytes_view bytes) {
  std::vector<std::byte> repaired(bytes.begin(), bytes.end());
  pqattn_test::repair_snapshot(repaired);
  for (const snapshot_scene::kind kind : snapshot_kinds) {
    snapshot_for(bytes, kind);
    snapshot_for(repaired, kind);
  }
}

struct target {
  const char* name;
  void (*run)(bytes_view bytes);
};
inline constexpr target targets[] = {
    {"npy", &npy},
    {"safetensors", &safetensors},
    {"device_json", &device_json},
    {"policy_json", &policy_json},
    {"model_config", &model_config},
    {"tokenizer", &tokenizer},
    {"checkpoint", &checkpoint},
    {"command_text", &command_text},
    {"snapshot", &snapshot},
};

}  // namespace pqattn_fuzz
