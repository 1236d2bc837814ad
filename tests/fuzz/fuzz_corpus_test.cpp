// SPDX-License-Identifier: MIT
// Replays the corpus of every fuzz target, each file also cut short and with single bytes changed.
#include "fuzz/targets.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>

#include "support/random_data.hpp"

namespace {

using pqattn_fuzz::bytes_view;

std::vector<char> contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Runs on an allocation of exactly this size, so that AddressSanitizer sees an over-read of one byte.
void run(const pqattn_fuzz::target& target, const std::vector<char>& bytes) {
  const std::vector<char> exact(bytes);
  target.run({reinterpret_cast<const std::byte*>(exact.data()), exact.size()});
}

TEST_CASE("every parser survives its corpus, cut short and altered", "[fuzz]") {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  for (const pqattn_fuzz::target& target : pqattn_fuzz::targets) {
    const std::filesystem::path folder = std::filesystem::path(PQATTN_SOURCE_DIR) / "tests/fuzz/corpus" / target.name;
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    INFO(target.name);
    CHECK(files.size() >= 3);
    run(target, {});
    for (const auto& path : files) {
      const std::vector<char> whole = contents(path);
      run(target, whole);
      for (std::size_t i = 0; i < 40 && !whole.empty(); ++i) {
        std::vector<char> altered(whole.begin(),
                                  whole.begin() + static_cast<std::ptrdiff_t>(random.below(whole.size())));
        run(target, altered);
        altered = whole;
        for (std::size_t k = 0; k <= i % 3; ++k) {
          altered[random.below(altered.size())] = static_cast<char>(random.below(256));
        }
        run(target, altered);
      }
    }
  }
}

const char* const scene_names[] = {"", "turned_", "latent_", "outliers_", "epochs_"};

TEST_CASE("sequences of the corpus load into the pools they are for", "[fuzz]") {
  using namespace pqattn;
  for (std::size_t k = 0; k < std::size(scene_names); ++k) {
    const std::string name = std::string(scene_names[k]) + "coded.bin";
    CAPTURE(name);
    const std::vector<char> file =
        contents(std::filesystem::path(PQATTN_SOURCE_DIR) / "tests/fuzz/corpus/snapshot" / name);
    snapshot_view view;
    REQUIRE(snapshot_view::open(std::as_bytes(std::span(file)), view).ok());
    CHECK(view.version() == snapshot_version);
    pqattn_fuzz::snapshot_scene scene(true, pqattn_fuzz::snapshot_kinds[k]);
    const bool refreshed = pqattn_fuzz::snapshot_kinds[k] == pqattn_fuzz::snapshot_scene::kind::epochs;
    if (refreshed) {
      scene.refresh();
    }
    pqattn_fuzz::snapshot_scene::sequence_type tokens(scene.pool);
    CHECK(load_sequence(view, tokens).ok());
    CHECK(tokens.coded_tokens() > 64);
    CHECK((!refreshed || scene.pool.epoch_pages(scene.pool.epoch_in_order(0)) == 2));
    CHECK((!refreshed || scene.pool.epoch_pages(scene.pool.newest_epoch()) == 2));
  }
}

/// Not run by the suite: writes the snapshots of the corpus anew, after a change of the format.
TEST_CASE("snapshots of the corpus are written", "[.corpus]") {
  using namespace pqattn;
  const auto file_of = [](const std::string& name) {
    return std::ofstream(std::filesystem::path(PQATTN_SOURCE_DIR) / "tests/fuzz/corpus/snapshot" / name,
                         std::ios::binary);
  };
  const auto into = [](std::ofstream& file) {
    return snapshot_sink{[](void* user, const void* data, std::size_t bytes) {
                           return static_cast<std::ofstream*>(user)
                               ->write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes))
                               .good();
                         },
                         &file};
  };
  const auto into_memory = [](std::vector<std::byte>& bytes) {
    return snapshot_sink{[](void* user, const void* data, std::size_t size) {
                           const auto* from = static_cast<const std::byte*>(data);
                           auto& mine = *static_cast<std::vector<std::byte>*>(user);
                           mine.insert(mine.end(), from, from + size);
                           return true;
                         },
                         &bytes};
  };
  for (std::size_t k = 0; k < std::size(scene_names); ++k) {
    for (const bool trained : {false, true}) {
      pqattn_fuzz::snapshot_scene scene(trained, pqattn_fuzz::snapshot_kinds[k]);
      pqattn_fuzz::snapshot_scene::sequence_type tokens(scene.pool);
      const std::size_t count = trained ? 71 : 7;
      std::vector<float> rows(count * 6);
      for (std::size_t i = 0; i < rows.size(); ++i) {
        rows[i] = 0.5f * static_cast<float>(i * 5 % 11);
      }
      REQUIRE(tokens.observe({view_rows(rows.data(), 3, scene.key_dim()), 1, 0}, 0).ok());
      REQUIRE(scene.append(tokens, rows.data(), count).ok());
      REQUIRE(tokens.remove(4, 2).ok());
      std::ofstream file = file_of(std::string(scene_names[k]) + (trained ? "coded.bin" : "exact.bin"));
      if (trained && pqattn_fuzz::snapshot_kinds[k] == pqattn_fuzz::snapshot_scene::kind::epochs) {
        scene.refresh();
        REQUIRE(scene.append(tokens, rows.data(), count).ok());
        std::vector<std::byte> bytes;
        REQUIRE(write_sequence(tokens, into_memory(bytes)).ok());
        const auto named = pqattn_test::find_section(bytes, detail::section_type::epochs, 0);
        REQUIRE(named.bytes == sizeof scene.epoch_names);
        std::memcpy(bytes.data() + named.offset, scene.epoch_names, sizeof scene.epoch_names);
        pqattn_test::repair_snapshot(bytes);
        file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
      } else {
        REQUIRE(write_sequence(tokens, into(file)).ok());
      }
      if (trained) {
        std::ofstream books = file_of(std::string(scene_names[k]) + "codebooks.bin");
        REQUIRE(write_codebooks(scene.pool, into(books)).ok());
      }
      tokens.clear();
      std::ofstream nothing = file_of(std::string(scene_names[k]) + (trained ? "empty.bin" : "empty_exact.bin"));
      REQUIRE(write_sequence(tokens, into(nothing)).ok());
    }
  }
}

}  // namespace
