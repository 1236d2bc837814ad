// SPDX-License-Identifier: MIT
#include <pqattn/cache/snapshot.hpp>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cache/sequence_model.hpp"
#include "pqattn/cache/snapshot_file.hpp"
#include "support/repair_snapshot.hpp"
#include "support/resident.hpp"

#if defined(__unix__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

using namespace pqattn;
using namespace pqattn_test;
using pqattn_test::random_data;

/// Bytes that a snapshot was written to, and how many more it may take.
struct byte_sink {
  std::vector<std::byte> bytes;
  std::size_t room = std::numeric_limits<std::size_t>::max();

  snapshot_sink get() {
    return {[](void* user, const void* data, std::size_t size) {
              auto& me = *static_cast<byte_sink*>(user);
              if (size > me.room) {
                return false;
              }
              me.room -= size;
              const auto* from = static_cast<const std::byte*>(data);
              me.bytes.insert(me.bytes.end(), from, from + size);
              return true;
            },
            this};
  }
};

/// A sequence with holes, forks of its pages, shifted positions; trained when the shape codes anything and `trained`,
/// and coded in two epochs when `refreshed`.
struct snapshot_scene {
  sequence_world world;
  sequence_type tokens;
  sequence_type other;
  model_sequence model;

  snapshot_scene(const edit_shape& shape, bool trained, std::uint64_t stream, const memory_resource& resource = {},
                 bool refreshed = false)
      : world(shape, stream, resource), tokens(world.pool), other(world.pool) {
    world.observe(tokens, 3);
    append(trained ? shape.train_tokens + shape.sinks + 90 : 13);
    if (refreshed && world.pool.trained()) {
      REQUIRE_OK(world.refresh(tokens));
      append(80);
      REQUIRE(world.pool.epoch_count() == 2);
    }
    REQUIRE_OK(tokens.fork(other));
    const std::size_t removed = model.size() / 4;
    REQUIRE_OK(tokens.remove(3, removed));
    model.remove(3, removed);
    append(5);
    REQUIRE_OK(tokens.shift(2, 6, 11));
    world.shift(model, 2, 6, 11);
  }
  void append(std::size_t count) {
    world.draw(count);
    const std::int64_t first = tokens.next_position();
    REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
    world.append(model, first, tokens);
  }
};

std::vector<std::byte> bytes_of(const sequence_type& tokens) {
  byte_sink sink;
  REQUIRE_OK(write_sequence(tokens, sink.get()));
  return sink.bytes;
}
std::vector<std::byte> bytes_of(const pool_type& pool) {
  byte_sink sink;
  REQUIRE_OK(write_codebooks(pool, sink.get()));
  return sink.bytes;
}

TEST_CASE("what is written loads as it was, codebooks apart from tokens", "[cache]") {
  for (const edit_shape& shape : edit_shapes) {
    for (const std::size_t trainings : {0U, 1U, 2U}) {
      snapshot_scene scene(shape, trainings != 0, 61, {}, trainings == 2);
      CAPTURE(shape.name, trainings, scene.world.random.seed());
      pool_type fresh;
      REQUIRE_OK(pool_type::make(scene.world.bank, scene.world.config, shape.heads, {}, fresh));
      snapshot_view view;
      const std::vector<std::byte> saved = bytes_of(scene.tokens);
      CHECK(saved.size() % 64 == 0);
      if (scene.world.pool.trained()) {
        // Codes without their codebooks mean nothing.
        sequence_type early(fresh);
        REQUIRE_OK(snapshot_view::open(saved, view));
        CHECK(load_sequence(view, early).code == status_code::shape_mismatch);
        const std::vector<std::byte> books = bytes_of(scene.world.pool);
        REQUIRE_OK(snapshot_view::open(books, view));
        CHECK(view.kind() == snapshot_kind::codebooks);
        REQUIRE_OK(load_codebooks(view, fresh));
        CHECK(fresh.trained());
        CHECK(fresh.epoch_count() == trainings);
        const bool same_books = bytes_of(fresh) == books;
        CHECK(same_books);
      } else {
        byte_sink sink;
        CHECK(write_codebooks(scene.world.pool, sink.get()).code == status_code::unsupported);
      }
      sequence_type loaded(fresh);
      REQUIRE_OK(snapshot_view::open(saved, view));
      CHECK(view.kind() == snapshot_kind::sequence);
      REQUIRE_OK(load_sequence(view, loaded));
      scene.world.check(loaded, scene.model);
      const bool same_bytes = bytes_of(loaded) == saved;
      CHECK(same_bytes);
      // Into the pool it came from, over a sequence that holds something; pages of the old tokens go back.
      REQUIRE_OK(load_sequence(view, scene.other));
      scene.world.check(scene.other, scene.model);
      scene.world.check(scene.tokens, scene.model);
    }
  }
}

TEST_CASE("codebooks load to the same bits, however far their centroids lie from 0", "[cache]") {
  edit_shape shape = edit_shapes[0];
  for (const bool with_rope : {false, true}) {
    shape.rope = with_rope;
    for (std::uint64_t round = 0; round < 40; ++round) {
      sequence_world world(shape, 1000 + round);
      CAPTURE(with_rope, round, world.random.seed());
      for (std::size_t head = 0; head < shape.heads; ++head) {
        for (const kv_side side : kv_sides) {
          std::vector<float> centroids = world.random.normals(world.pool.side(side).shape.codebook_values(), 0.01f);
          for (float& number : centroids) {
            number += 3.0f;
          }
          REQUIRE_OK(world.pool.load_codebook(head, side, centroids.data()));
        }
      }
      const std::vector<std::byte> books = bytes_of(world.pool);
      snapshot_view view;
      REQUIRE_OK(snapshot_view::open(books, view));
      pool_type fresh;
      REQUIRE_OK(pool_type::make(world.bank, world.config, shape.heads, {}, fresh));
      REQUIRE_OK(load_codebooks(view, fresh));
      const bool same_books = bytes_of(fresh) == books;
      CHECK(same_books);
    }
  }
}

TEST_CASE("codebooks do not load over some given one by one, whose rules stay", "[cache]") {
  edit_shape shape = edit_shapes[0];
  shape.outlier_share = 0.1f;
  const snapshot_scene scene(shape, true, 2001);
  CAPTURE(scene.world.random.seed());
  const std::vector<std::byte> books = bytes_of(scene.world.pool);
  snapshot_view view;
  REQUIRE_OK(snapshot_view::open(books, view));
  pool_type fresh;
  f32_bank bank;
  REQUIRE_OK(pool_type::make(bank, scene.world.config, shape.heads, {}, fresh));
  std::vector<float> centroids(fresh.side(kv_side::keys).shape.codebook_values());
  REQUIRE_OK(scene.world.pool.read_codebook(0, kv_side::keys, centroids.data()));
  for (std::size_t head = 0; head < shape.heads; ++head) {
    fresh.set_rule(head, {1.0f, 2.0f, 3.0f});
  }
  const std::size_t last = shape.heads - 1;
  REQUIRE_OK(fresh.load_codebook(last, kv_side::keys, centroids.data()));
  CHECK(load_codebooks(view, fresh).code == status_code::unsupported);
  CHECK(fresh.rule(last).key_error == 1.0f);
  CHECK(fresh.rule(last).value_error == 2.0f);
  CHECK(fresh.rule(last).above == 3.0f);
  std::vector<float> kept(centroids.size());
  REQUIRE_OK(fresh.read_codebook(last, kv_side::keys, kept.data()));
  CHECK(kept == centroids);
  CHECK(!fresh.read_codebook(last, kv_side::values, centroids.data()));
  CHECK(!fresh.read_codebook(0, kv_side::keys, centroids.data()));
}

TEST_CASE("a snapshot at any address is used in place by the host bank", "[cache]") {
  for (std::size_t k = 0; k < 2 * std::size(edit_shapes); ++k) {
    const edit_shape& shape = edit_shapes[k / 2];
    snapshot_scene scene(shape, true, 62, {}, k % 2 == 1);
    CAPTURE(shape.name, scene.world.pool.epoch_count(), scene.world.random.seed());
    const std::vector<std::byte> saved = bytes_of(scene.tokens);
    buffer aligned;
    REQUIRE_OK(buffer::make({}, saved.size(), aligned));
    std::memcpy(aligned.data(), saved.data(), saved.size());
    snapshot_view view;
    REQUIRE_OK(snapshot_view::open({aligned.data(), saved.size()}, view));
    const std::vector<float> queries = scene.world.random.normals(3 * shape.key_channels());
    bank_block<f32_bank> tables(scene.world.bank,
                                64 + attention_table_bytes(scene.world.bank, scene.world.config.keys.shape, 3,
                                                           scene.world.pool.code_rotation()));
    const auto attend_to = [&](const std::vector<segment<std::byte*>>& segments) {
      std::vector<std::byte> workspace(
          attention_workspace_bytes(segments.data(), segments.size(), 3, shape.key_channels(), shape.value_dim, 1));
      std::vector<float> out(3 * shape.value_dim);
      REQUIRE_OK(attend(scene.world.bank, view_rows(queries.data(), 3, shape.key_channels()), segments.data(),
                        segments.size(), {}, workspace.data(), workspace.size(),
                        ref_rows(out.data(), 3, shape.value_dim), nullptr));
      return out;
    };
    for (std::size_t head = 0; head < shape.heads; ++head) {
      std::vector<segment<std::byte*>> mapped(3 + std::max<std::size_t>(scene.world.pool.epoch_count(), 1));
      std::size_t count = 0;
      REQUIRE_OK(snapshot_segments(view, scene.world.pool, head, tables.get(), mapped, count));
      mapped.resize(count);
      std::vector<segment<std::byte*>> fewer(count - 1);
      const status refused = snapshot_segments(view, scene.world.pool, head, tables.get(), fewer, count);
      CHECK(refused.code == status_code::capacity);
      CHECK(refused.got == static_cast<double>(fewer.size()));
      for (const auto& one : mapped) {
        const void* codes = one.keys.coded ? one.keys.codes.memory : one.keys.rows.data;
        CHECK((codes >= aligned.data() && codes < aligned.data() + saved.size()));
      }
      std::vector<segment<std::byte*>> held(scene.tokens.segment_count());
      std::vector<std::byte> gathered(scene.tokens.gathered_bytes());
      held.resize(scene.tokens.collect_segments(head, tables.get(), held.data(), gathered.data()));
      const std::vector<float> got = attend_to(mapped);
      const std::vector<float> want = attend_to(held);
      CHECK(max_error(got, to_doubles(want)) < 2e-5);
    }
    std::vector<segment<std::byte*>> none(5);
    std::size_t count = 0;
    CHECK(snapshot_segments(view, scene.world.pool, shape.heads, tables.get(), none, count).code ==
          status_code::invalid_argument);
    // Loading asks for no alignment, using in place does.
    buffer crooked;
    REQUIRE_OK(buffer::make({}, saved.size() + 1, crooked));
    std::memcpy(crooked.data() + 1, saved.data(), saved.size());
    REQUIRE_OK(snapshot_view::open({crooked.data() + 1, saved.size()}, view));
    REQUIRE_OK(load_sequence(view, scene.other));
    scene.world.check(scene.other, scene.model);
    CHECK(snapshot_segments(view, scene.world.pool, 0, tables.get(), none, count).code ==
          status_code::invalid_argument);
  }
}

TEST_CASE("files are written, read and mapped", "[cache]") {
  snapshot_scene scene(edit_shapes[0], true, 63);
  CAPTURE(scene.world.random.seed());
  std::FILE* file = std::tmpfile();
  REQUIRE(file != nullptr);
  REQUIRE_OK(write_sequence(scene.tokens, file_sink(file)));
  REQUIRE(std::fflush(file) == 0);
  std::rewind(file);
  buffer bytes;
  std::size_t size = 0;
  REQUIRE_OK(read_snapshot(file_source(file), std::size_t{1} << 20, {}, bytes, size));
  snapshot_view view;
  REQUIRE_OK(snapshot_view::open({bytes.data(), size}, view));
  REQUIRE_OK(load_sequence(view, scene.other));
  scene.world.check(scene.other, scene.model);
  std::rewind(file);
  CHECK(read_snapshot(file_source(file), size - 1, {}, bytes, size).code == status_code::out_of_memory);
#if defined(__unix__)
  void* mapped = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fileno(file), 0);
  REQUIRE(mapped != MAP_FAILED);
  REQUIRE_OK(snapshot_view::open({static_cast<const std::byte*>(mapped), size}, view));
  bank_block<f32_bank> tables(scene.world.bank, attention_table_bytes(scene.world.bank, scene.world.config.keys.shape,
                                                                      1, scene.world.pool.code_rotation()));
  segment<std::byte*> segments[4];
  std::size_t count = 0;
  REQUIRE_OK(snapshot_segments(view, scene.world.pool, 0, tables.get(), segments, count));
  const std::vector<float> query = scene.world.random.normals(scene.world.shape.key_dim);
  std::vector<std::byte> workspace(
      attention_workspace_bytes(segments, count, 1, scene.world.shape.key_dim, scene.world.shape.value_dim, 1));
  std::vector<float> out(scene.world.shape.value_dim);
  REQUIRE_OK(attend(scene.world.bank, view_rows(query.data(), 1, scene.world.shape.key_dim), segments, count, {},
                    workspace.data(), workspace.size(), ref_rows(out.data(), 1, scene.world.shape.value_dim), nullptr));
  CHECK(std::isfinite(out[0]));
  ::munmap(mapped, size);
#endif
  std::fclose(file);
}

/// Bytes that come a few at a time, until reading breaks.
struct slow_source {
  const std::vector<std::byte>& bytes;
  std::size_t step = 1;
  std::size_t breaks_after = std::numeric_limits<std::size_t>::max();
  std::size_t at = 0;
  std::size_t calls = 0;

  snapshot_source get() {
    return {[](void* user, void* data, std::size_t room, bool* failed) {
              auto& me = *static_cast<slow_source*>(user);
              *failed = me.calls++ == me.breaks_after;
              const std::size_t count = *failed ? 0 : std::min({me.step, room, me.bytes.size() - me.at});
              std::memcpy(data, me.bytes.data() + me.at, count);
              me.at += count;
              return count;
            },
            this};
  }
};

TEST_CASE("a reader may give one byte at a time, and break at any of them", "[cache]") {
  snapshot_scene scene(edit_shapes[2], true, 64);
  CAPTURE(scene.world.random.seed());
  const std::vector<std::byte> saved = bytes_of(scene.tokens);
  counting_resource memory;
  for (const std::size_t step : {std::size_t{1}, std::size_t{7}, saved.size()}) {
    slow_source source{saved, step};
    buffer bytes;
    std::size_t size = 0;
    REQUIRE_OK(read_snapshot(source.get(), std::size_t{1} << 20, memory.resource(), bytes, size));
    REQUIRE(size == saved.size());
    CHECK(std::memcmp(bytes.data(), saved.data(), size) == 0);
  }
  for (std::size_t calls = 0; calls <= saved.size(); calls += 1 + calls / 8) {
    slow_source source{saved, 1, calls};
    buffer bytes;
    std::size_t size = 77;
    CHECK(read_snapshot(source.get(), std::size_t{1} << 20, memory.resource(), bytes, size).code ==
          status_code::io_error);
    CHECK((bytes.size() == 0 && size == 77));
  }
  // A reader that claims more than there was room for.
  buffer bytes;
  std::size_t size = 0;
  const snapshot_source liar{[](void*, void*, std::size_t room, bool*) { return room + 1; }, nullptr};
  CHECK(read_snapshot(liar, std::size_t{1} << 20, memory.resource(), bytes, size).code == status_code::io_error);
  CHECK(memory.live_bytes == 0);
}

TEST_CASE("a damaged snapshot is refused and changes nothing", "[cache]") {
  snapshot_scene scene(edit_shapes[2], true, 64);
  CAPTURE(scene.world.random.seed());
  const std::vector<std::byte> saved = bytes_of(scene.tokens);
  const std::vector<std::byte> books = bytes_of(scene.world.pool);
  for (const std::vector<std::byte>& whole : {saved, books}) {
    snapshot_view view;
    for (std::size_t i = 0; i < 600; ++i) {
      std::vector<std::byte> damaged = whole;
      const std::size_t at = i < 200 ? i : scene.world.random.below(whole.size());
      damaged[at] ^= std::byte{static_cast<unsigned char>(1 + scene.world.random.below(255))};
      // Padding between sections is not covered by a checksum and means nothing.
      const status opened = snapshot_view::open(damaged, view);
      if (opened) {
        sequence_type loaded(scene.world.pool);
        CHECK(at >= 48);
        if (view.kind() == snapshot_kind::sequence) {
          REQUIRE_OK(load_sequence(view, loaded));
          scene.world.check(loaded, scene.model);
        }
      } else {
        CHECK((opened.code == status_code::corrupt_data || opened.code == status_code::unsupported));
      }
      const std::vector<std::byte> cut(whole.begin(),
                                       whole.begin() + std::ptrdiff_t(scene.world.random.below(whole.size())));
      CHECK(snapshot_view::open(cut, view).code == status_code::corrupt_data);
    }
    std::vector<std::byte> longer = whole;
    longer.push_back(std::byte{0});
    CHECK(snapshot_view::open(longer, view).code == status_code::corrupt_data);
  }
}

std::vector<std::byte> file_bytes(const std::string& name, const std::string& version = "v1") {
  std::ifstream file(std::string(PQATTN_SOURCE_DIR) + "/tests/cache/snapshot_" + version + "/" + name,
                     std::ios::binary);
  const std::vector<char> text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

/// What the files of older versions were written with, before what their names say.
cache_config config_of_files() {
  cache_config config;
  config.keys.shape = {4, 2, 3, 1};
  config.values = {true, {3, 1, 5, 1}, codebook_storage::f16};
  config.sinks = 2;
  config.recent = 2;
  config.train_tokens = 8;
  return config;
}

TEST_CASE("snapshots of version 1 load, newer ones than this are refused by version", "[cache]") {
  cache_config config = config_of_files();
  host_bank<> bank;
  page_pool<host_bank<>> pool;
  REQUIRE_OK(page_pool<host_bank<>>::make(bank, config, 1, {}, pool));
  snapshot_view view;
  for (const char* name : {"exact.bin", "codebooks.bin", "coded.bin"}) {
    CAPTURE(name);
    const std::vector<std::byte> bytes = file_bytes(name);
    REQUIRE_OK(snapshot_view::open(bytes, view));
    CHECK(view.version() == 1);
    if (view.kind() == snapshot_kind::codebooks) {
      REQUIRE_OK(load_codebooks(view, pool));
      continue;
    }
    sequence<host_bank<>> tokens(pool);
    REQUIRE_OK(load_sequence(view, tokens));
    CHECK(tokens.size() == (pool.trained() ? 69 : 5));
    CHECK(tokens.coded_tokens() == (pool.trained() ? 65 : 0));
    CHECK(tokens.position(4) == 6);  // tokens 4 and 5 had been removed
    // A pool of a configuration that version 1 does not know refuses it.
    cache_config turned = config;
    turned.values.rotated = true;
    page_pool<host_bank<>> other;
    REQUIRE_OK(page_pool<host_bank<>>::make(bank, turned, 1, {}, other));
    sequence<host_bank<>> none(other);
    CHECK(load_sequence(view, none).code == status_code::shape_mismatch);
  }
  std::vector<std::byte> newer = file_bytes("exact.bin");
  const std::uint32_t version = snapshot_version + 1;
  std::memcpy(newer.data() + 8, &version, sizeof version);
  const status refused = snapshot_view::open(newer, view);
  CHECK(refused.code == status_code::unsupported);
  CHECK(refused.expected == snapshot_version);
  CHECK(refused.got == version);
}

TEST_CASE("snapshots of version 2 load, into pools that keep outliers, too", "[cache]") {
  for (const bool latent : {false, true}) {
    for (const bool outliers : {false, true}) {
      CAPTURE(latent, outliers);
      cache_config config = config_of_files();
      config.outlier_share = outliers ? 0.1f : 0.0f;
      if (latent) {
        config.values = config.keys;
        config.key_tail = 2;
        config.values_from_keys = true;
      } else {
        config.keys.metric = true;
        config.values.rotated = true;
        config.query_rows = 4;
      }
      host_bank<> bank;
      page_pool<host_bank<>> pool;
      REQUIRE_OK(page_pool<host_bank<>>::make(bank, config, 1, {}, pool));
      snapshot_view view;
      const std::string prefix = latent ? "latent_" : "";
      if (!latent) {
        const std::vector<std::byte> bytes = file_bytes("exact.bin", "v2");
        REQUIRE_OK(snapshot_view::open(bytes, view));
        sequence<host_bank<>> tokens(pool);
        REQUIRE_OK(load_sequence(view, tokens));
        CHECK(tokens.size() == 5);
        CHECK(tokens.queries().is_open());
      }
      const std::vector<std::byte> books = file_bytes(prefix + "codebooks.bin", "v2");
      REQUIRE_OK(snapshot_view::open(books, view));
      CHECK(view.version() == 2);
      REQUIRE_OK(load_codebooks(view, pool));
      CHECK((pool.has_transform(0, kv_side::keys)) == !latent);
      const std::vector<std::byte> coded = file_bytes(prefix + "coded.bin", "v2");
      REQUIRE_OK(snapshot_view::open(coded, view));
      sequence<host_bank<>> tokens(pool);
      REQUIRE_OK(load_sequence(view, tokens));
      CHECK(tokens.size() == 71);
      CHECK(tokens.coded_tokens() == 67);
      CHECK(tokens.position(4) == 6);  // tokens 4 and 5 had been removed
      CHECK(tokens.outlier_tokens(0) == 0);
    }
  }
}

TEST_CASE("snapshots of version 3 load as the only epoch", "[cache]") {
  for (const std::string prefix : {"", "turned_", "latent_", "outliers_"}) {
    CAPTURE(prefix);
    cache_config config = config_of_files();
    if (prefix == "latent_") {
      config.values = config.keys;
      config.key_tail = 2;
      config.values_from_keys = true;
    } else if (prefix == "turned_") {
      config.keys.metric = true;
      config.values.rotated = true;
      config.query_rows = 4;
    } else if (prefix == "outliers_") {
      config.outlier_share = 0.1f;
    }
    host_bank<> bank;
    page_pool<host_bank<>> pool;
    REQUIRE_OK(page_pool<host_bank<>>::make(bank, config, 1, {}, pool));
    snapshot_view view;
    const std::vector<std::byte> books = file_bytes(prefix + "codebooks.bin", "v3");
    const std::vector<std::byte> coded = file_bytes(prefix + "coded.bin", "v3");
    REQUIRE_OK(snapshot_view::open(books, view));
    CHECK(view.version() == 3);
    REQUIRE_OK(load_codebooks(view, pool));
    CHECK(pool.epoch_count() == 1);
    CHECK((pool.rule(0).above == 2.0f) == (prefix == "outliers_"));
    sequence<host_bank<>> tokens(pool);
    REQUIRE_OK(snapshot_view::open(coded, view));
    CHECK(view.version() == 3);
    REQUIRE_OK(load_sequence(view, tokens));
    CHECK(tokens.size() == 69);
    CHECK(tokens.coded_tokens() == 65);
    CHECK(tokens.position(4) == 6);  // tokens 4 and 5 had been removed
    CHECK((tokens.outlier_tokens(0) != 0) == (prefix == "outliers_"));
  }
}

/// Overwrites bytes of a section and makes the checksums fit again.
template <class Number>
std::vector<std::byte> forged(std::vector<std::byte> bytes, pqattn::detail::section_type type, std::uint32_t index,
                              std::size_t at, Number number) {
  const pqattn::detail::section_entry entry = find_section(bytes, type, index);
  REQUIRE(at + sizeof number <= entry.bytes);
  std::memcpy(bytes.data() + entry.offset + at, &number, sizeof number);
  repair_snapshot(bytes);
  return bytes;
}

TEST_CASE("sections that overlap or are out of order are refused", "[cache]") {
  using pqattn::detail::section_entry;
  snapshot_scene scene(edit_shapes[0], true, 65);
  CAPTURE(scene.world.random.seed());
  for (const std::vector<std::byte>& whole : {bytes_of(scene.tokens), bytes_of(scene.world.pool)}) {
    pqattn::detail::snapshot_header header;
    std::memcpy(&header, whole.data(), sizeof header);
    const auto entry_of = [&](std::size_t i) { return sizeof header + i * sizeof(section_entry); };
    for (std::uint32_t i = 0; i < header.sections; ++i) {
      const auto moved = [&](auto&& change) {
        std::vector<std::byte> bytes = whole;
        section_entry entry;
        std::memcpy(&entry, bytes.data() + entry_of(i), sizeof entry);
        change(bytes, entry);
        std::memcpy(bytes.data() + entry_of(i), &entry, sizeof entry);
        repair_snapshot(bytes);
        snapshot_view view;
        return snapshot_view::open(bytes, view).code;
      };
      CAPTURE(i, header.sections);
      CHECK(moved([](auto&, section_entry&) {}) == status_code::ok);
      CHECK(moved([](auto&, section_entry& entry) { entry.offset = 0; }) == status_code::corrupt_data);
      if (i + 1 < header.sections) {  // reaches into the next one; or is the next one
        section_entry next;
        std::memcpy(&next, whole.data() + entry_of(i + 1), sizeof next);
        CHECK(moved([&](auto&, section_entry& entry) { entry.bytes = next.offset + 1 - entry.offset; }) ==
              status_code::corrupt_data);
        if (next.bytes != 0) {
          CHECK(moved([&](auto&, section_entry& entry) {
                  entry.offset = next.offset;
                  entry.bytes = next.bytes;
                }) == status_code::corrupt_data);
        }
      }
    }
  }
}

TEST_CASE("forged numbers behind right checksums are refused and change nothing", "[cache]") {
  using pqattn::detail::section_type;
  const float infinite = std::numeric_limits<float>::infinity();
  const auto opened = [](const std::vector<std::byte>& bytes) {
    snapshot_view view;
    REQUIRE_OK(snapshot_view::open(bytes, view));
    return view;
  };
  // Metric and rotation, of the preset; a refused load takes none.
  {
    snapshot_scene scene(edit_shapes[10], true, 69);
    CAPTURE(edit_shapes[10].name, scene.world.random.seed());
    const std::vector<std::byte> books = bytes_of(scene.world.pool);
    for (const std::uint32_t index : {0U, 4U}) {  // keys and values of head 0
      const std::vector<std::byte> bad = forged(books, section_type::transform, index, 12, infinite);
      pool_type fresh;
      REQUIRE_OK(pool_type::make(scene.world.bank, scene.world.config, scene.world.shape.heads, {}, fresh));
      CHECK(load_codebooks(opened(bad), fresh).code == status_code::not_finite);
      CHECK_FALSE(fresh.trained());
      CHECK(!fresh.has_transform(0, kv_side::keys));
      CHECK(fresh.memory().codebooks_bytes + fresh.memory().transforms_bytes == 0);
      // Another rotation makes other codebooks: tokens coded in the first do not load.
      const std::vector<std::byte> turned = forged(books, section_type::transform, index, 12, 0.25f);
      REQUIRE_OK(load_codebooks(opened(turned), fresh));
      sequence_type tokens(fresh);
      CHECK(load_sequence(opened(bytes_of(scene.tokens)), tokens).code == status_code::shape_mismatch);
    }
  }
  // Tails of latent keys.
  {
    snapshot_scene scene(edit_shapes[13], true, 70);
    CAPTURE(edit_shapes[13].name, scene.world.random.seed());
    const std::vector<std::byte> saved = bytes_of(scene.tokens);
    const std::uint32_t index = 1;  // body, keys, head 0
    sequence_type tokens(scene.world.pool);
    const std::size_t used = scene.world.pool.coded_pages().used_pages();
    CHECK(load_sequence(opened(forged(saved, section_type::tails, index, 8, infinite)), tokens).code ==
          status_code::not_finite);
    CHECK(tokens.size() == 0);
    CHECK(scene.world.pool.coded_pages().used_pages() == used);
  }
  // Outliers: slots without a token, rows that are not finite, rules.
  {
    snapshot_scene scene(edit_shapes[15], true, 73);
    CAPTURE(edit_shapes[15].name, scene.world.random.seed());
    REQUIRE(scene.tokens.outlier_tokens(0) > 1);
    const std::vector<std::byte> saved = bytes_of(scene.tokens);
    const std::vector<std::byte> books = bytes_of(scene.world.pool);
    const memory_report before = scene.world.pool.memory();
    const auto refused = [&](section_type type, std::uint32_t index, std::size_t at, auto number) {
      sequence_type tokens(scene.world.pool);
      const status loaded = load_sequence(opened(forged(saved, type, index, at, number)), tokens);
      CHECK(tokens.size() == 0);
      return loaded.code;
    };
    CHECK(refused(section_type::code_live, 0, 0, ~std::uint64_t{0}) == status_code::corrupt_data);
    CHECK(refused(section_type::code_live, 1, 0, std::uint64_t{0}) ==
          status_code::shape_mismatch);  // a page full of them
    // Not as many in a page as there are rows.
    const token_list& body = scene.tokens.body();
    const std::uint64_t mine = scene.world.pool.outliers().mask(1, body.page(1)) & body.live()[1];
    const std::uint64_t others = mine != 0 ? mine & (mine - 1) : body.live()[1] & (0 - body.live()[1]);
    CHECK(refused(section_type::code_live, 1, 8, body.live()[1] & ~others) == status_code::corrupt_data);
    CHECK(refused(section_type::outlier_rows, 1, 4, infinite) == status_code::not_finite);
    CHECK(refused(section_type::outlier_rows, 1 + 4, 4, infinite) == status_code::not_finite);
    CHECK(scene.world.pool.memory().codes_bytes >= before.codes_bytes);
    for (std::uint32_t page = 0; page < scene.world.pool.coded_pages().pages(); ++page) {
      CHECK((scene.world.pool.coded_pages().users(page) != 0 || scene.world.pool.outliers().most_in(page) == 0));
    }
    scene.world.check(scene.tokens, scene.model);
    pool_type fresh;
    REQUIRE_OK(pool_type::make(scene.world.bank, scene.world.config, scene.world.shape.heads, {}, fresh));
    CHECK(load_codebooks(opened(forged(books, section_type::rule, 0, 8, infinite)), fresh).code ==
          status_code::corrupt_data);
    CHECK(load_codebooks(opened(forged(books, section_type::rule, 1, 0, -1.0f)), fresh).code ==
          status_code::corrupt_data);
    CHECK_FALSE(fresh.trained());
    REQUIRE_OK(load_codebooks(opened(books), fresh));
    CHECK(fresh.rule(1).above == scene.world.pool.rule(1).above);
    // A pool without outliers takes the codebooks, but not coded tokens, which may have some.
    cache_config plain = scene.world.config;
    plain.outlier_share = 0.0f;
    pool_type other;
    REQUIRE_OK(pool_type::make(scene.world.bank, plain, scene.world.shape.heads, {}, other));
    sequence_type tokens(other);
    REQUIRE_OK(load_codebooks(opened(books), other));
    CHECK(load_sequence(opened(saved), tokens).code == status_code::shape_mismatch);
  }
  // Epochs: pages that name none, codebooks by other names, more of them than the pool may have.
  {
    edit_shape shape = edit_shapes[0];
    shape.storage = codebook_storage::f32;
    snapshot_scene scene(shape, true, 74, {}, true);
    const std::vector<std::byte> saved = bytes_of(scene.tokens);
    const std::vector<std::byte> books = bytes_of(scene.world.pool);
    const std::size_t used = scene.world.pool.coded_pages().used_pages();
    const auto refused = [&](section_type type, std::size_t at, auto number) {
      sequence_type tokens(scene.world.pool);
      const status loaded = load_sequence(opened(forged(saved, type, 0, at, number)), tokens);
      CHECK(tokens.size() == 0);
      CHECK(scene.world.pool.coded_pages().used_pages() == used);
      CHECK(scene.world.pool.epoch_count() == 2);
      return loaded.code;
    };
    CHECK(refused(section_type::page_epochs, 0, std::uint32_t{2}) == status_code::corrupt_data);
    CHECK(refused(section_type::page_epochs, 4, ~std::uint32_t{0}) == status_code::corrupt_data);
    CHECK(refused(section_type::epochs, 0, std::uint64_t{0}) == status_code::shape_mismatch);
    CHECK(refused(section_type::epochs, 8, std::uint64_t{7}) == status_code::shape_mismatch);
    cache_config one = scene.world.config;
    one.most_epochs = 1;
    pool_type small;
    REQUIRE_OK(pool_type::make(scene.world.bank, one, scene.world.shape.heads, {}, small));
    const status many = load_codebooks(opened(books), small);
    CHECK(many.code == status_code::capacity);
    CHECK(many.expected == 1);
    CHECK(many.got == 2);
    const std::uint32_t later = pqattn::detail::section_index(0, kv_side::values, 1, 1);
    pool_type fresh;
    REQUIRE_OK(pool_type::make(scene.world.bank, scene.world.config, scene.world.shape.heads, {}, fresh));
    CHECK(load_codebooks(opened(forged(books, section_type::book, later, 0, infinite)), fresh).code ==
          status_code::not_finite);
    CHECK((!fresh.trained() && fresh.epoch_count() == 0 && fresh.memory().codebooks_bytes == 0));
    // Loaded epochs stay until they are let go, tokens or not.
    REQUIRE_OK(load_codebooks(opened(books), fresh));
    sequence_type tokens(fresh);
    for (int round = 0; round < 2; ++round) {
      REQUIRE_OK(load_sequence(opened(saved), tokens));
      scene.world.check(tokens, scene.model);
      tokens.clear();
      CHECK(fresh.epoch_count() == 2);
    }
    REQUIRE_OK(fresh.release_epoch(0));
    CHECK(fresh.epoch_count() == 1);
    CHECK(load_sequence(opened(saved), tokens).code == status_code::shape_mismatch);
    CHECK(tokens.size() == 0);
    // A pool of one epoch names it as version 3 did.
    REQUIRE_OK(fresh.hold_epoch(1));
    const std::vector<std::byte> newest = bytes_of(fresh);
    CHECK(find_section(newest, section_type::epochs, 0).bytes == 8);
  }
  // Queries kept for training.
  {
    snapshot_scene scene(edit_shapes[11], false, 71);
    CAPTURE(edit_shapes[11].name, scene.world.random.seed());
    const std::vector<std::byte> saved = bytes_of(scene.tokens);
    const auto refused = [&](std::size_t at, auto number) {
      sequence_type tokens(scene.world.pool);
      const status loaded = load_sequence(opened(forged(saved, section_type::queries, 1, at, number)), tokens);
      CHECK(loaded.code == status_code::corrupt_data);
      CHECK(tokens.size() == 0);
      CHECK_FALSE(tokens.queries().is_open());
    };
    refused(0, std::int64_t{0});  // stride
    refused(0, std::int64_t{3});
    refused(0, std::int64_t{-1});
    refused(8, std::int64_t{-1});                                                // a position
    refused(find_section(saved, section_type::queries, 1).bytes - 4, infinite);  // a number of a row
    // More rows than the pool keeps.
    sequence_world poor(edit_shapes[11], 72);
    poor.config.query_rows = 1;
    pool_type small_pool;
    REQUIRE_OK(pool_type::make(poor.bank, poor.config, poor.shape.heads, {}, small_pool));
    sequence_type tokens(small_pool);
    CHECK(load_sequence(opened(saved), tokens).code == status_code::corrupt_data);
    // The restored queries teach what the first ones would have.
    pool_type twin_pool;
    REQUIRE_OK(pool_type::make(scene.world.bank, scene.world.config, scene.world.shape.heads, {}, twin_pool));
    sequence_type twin(twin_pool);
    REQUIRE_OK(load_sequence(opened(saved), twin));
    scene.world.draw(120);
    REQUIRE_OK(scene.tokens.append(scene.world.key_rows(), scene.world.value_rows()));
    REQUIRE_OK(twin.append(scene.world.key_rows(), scene.world.value_rows()));
    REQUIRE(scene.world.pool.has_transform(0, kv_side::keys));
    const bool same_books = bytes_of(scene.world.pool) == bytes_of(twin_pool);
    CHECK(same_books);
  }
}

TEST_CASE("a snapshot of more sections than can be read is not written", "[cache]") {
  std::size_t written = 0;
  const snapshot_sink sink{[](void* user, const void*, std::size_t bytes) {
                             *static_cast<std::size_t*>(user) += bytes;
                             return true;
                           },
                           &written};
  for (const std::uint32_t sections : {detail::most_sections, detail::most_sections + 1}) {
    written = 0;
    detail::snapshot_writer writer(sink, {});
    const status result = writer.write(snapshot_kind::codebooks, [&](auto&& section) {
      for (std::uint32_t i = 0; i < sections; ++i) {
        section(detail::section_type::config, i, 0, [](auto&&) {});
      }
    });
    CHECK(result.ok() == (sections == detail::most_sections));
    CHECK((written == 0) == !result.ok());
    CHECK((result.ok() || result.code == status_code::capacity));
  }
}

TEST_CASE("a snapshot of another configuration is refused by name", "[cache]") {
  snapshot_scene scene(edit_shapes[0], true, 65);
  const std::vector<std::byte> saved = bytes_of(scene.tokens);
  const std::vector<std::byte> books = bytes_of(scene.world.pool);
  snapshot_view view;
  const auto refused = [&](auto&& change, double expected, double got) {
    edit_shape shape = edit_shapes[0];
    change(shape);
    sequence_world other(shape, 66);
    for (const std::vector<std::byte>& bytes : {saved, books}) {
      REQUIRE_OK(snapshot_view::open(bytes, view));
      sequence_type tokens(other.pool);
      const status result =
          view.kind() == snapshot_kind::sequence ? load_sequence(view, tokens) : load_codebooks(view, other.pool);
      CHECK(result.code == status_code::shape_mismatch);
      CHECK(result.expected == expected);
      CHECK(result.got == got);
      CHECK_FALSE(other.pool.trained());
    }
  };
  refused([](edit_shape& shape) { shape.key_dim = 32; }, 32, 16);
  refused([](edit_shape& shape) { shape.value_subvectors = 5; }, 5, 6);
  refused([](edit_shape& shape) { shape.centroids = 9; }, 9, 8);
  refused([](edit_shape& shape) { shape.heads = 3; }, 3, 2);
  refused([](edit_shape& shape) { shape.rope = false; }, 0, 8);
  refused([](edit_shape& shape) { shape.after_rope = true; }, 1, 0);
  refused([](edit_shape& shape) { shape.exact = dtype::f16; }, 1, 0);
  refused([](edit_shape& shape) { shape.values_coded = false; }, 0, 1);
  refused([](edit_shape& shape) { shape.metric = true; }, 1, 0);
  refused([](edit_shape& shape) { shape.turned_values = true; }, 1, 0);
  // Other codebooks of the same configuration.
  sequence_world twin(edit_shapes[0], 67);
  sequence_type tokens(twin.pool);
  twin.draw(100);
  REQUIRE_OK(tokens.append(twin.key_rows(), twin.value_rows()));
  REQUIRE_OK(snapshot_view::open(saved, view));
  CHECK(load_sequence(view, tokens).code == status_code::shape_mismatch);
  CHECK(tokens.size() == 100);
  REQUIRE_OK(snapshot_view::open(books, view));
  CHECK(load_codebooks(view, twin.pool).code == status_code::unsupported);
  CHECK(load_sequence(view, tokens).code == status_code::corrupt_data);
}

TEST_CASE("each allocation and each callback of a snapshot may fail in turn", "[cache]") {
  counting_resource memory;
  {
    snapshot_scene scene(edit_shapes[1], true, 68, memory.resource(), true);
    CAPTURE(scene.world.random.seed());
    const std::vector<std::byte> saved = bytes_of(scene.tokens);
    const std::vector<std::byte> books = bytes_of(scene.world.pool);
    for (std::size_t room = 0; room < saved.size(); room += 61) {
      byte_sink sink;
      sink.room = room;
      CHECK(write_sequence(scene.tokens, sink.get()).code == status_code::io_error);
    }
    snapshot_view view;
    REQUIRE_OK(snapshot_view::open(saved, view));
    bool succeeded = false;
    for (std::size_t fail = 0; !succeeded; ++fail) {
      REQUIRE(fail < 200);
      // A pool of its own, so that pages have to be allocated.
      pool_type fresh;
      REQUIRE_OK(
          pool_type::make(scene.world.bank, scene.world.config, scene.world.shape.heads, memory.resource(), fresh));
      snapshot_view book_view;
      REQUIRE_OK(snapshot_view::open(books, book_view));
      sequence_type loaded(fresh);
      memory.fail_after = memory.allocations + fail;
      status result = load_codebooks(book_view, fresh);
      const bool has_books = result.ok();
      if (has_books) {
        result = load_sequence(view, loaded);
      }
      memory.fail_after = std::numeric_limits<std::size_t>::max();
      succeeded = result.ok();
      if (!succeeded) {
        CHECK(result.code == status_code::out_of_memory);
        CHECK(fresh.trained() == has_books);
        CHECK(fresh.epoch_count() == (has_books ? 2U : 0U));
        CHECK(loaded.size() == 0);
        CHECK(fresh.exact_pages().used_pages() == 0);
        if (!has_books) {
          REQUIRE_OK(load_codebooks(book_view, fresh));
        }
        REQUIRE_OK(load_sequence(view, loaded));
      }
      scene.world.check(loaded, scene.model);
    }
    for (std::size_t fail = 0; fail < 3; ++fail) {
      byte_sink sink;
      memory.fail_after = memory.allocations + fail;
      CHECK(write_sequence(scene.tokens, sink.get()).code == status_code::out_of_memory);
      memory.fail_after = std::numeric_limits<std::size_t>::max();
    }
  }
  CHECK(memory.live_bytes == 0);
  CHECK(memory.mistakes == 0);
}

}  // namespace
