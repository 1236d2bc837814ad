// SPDX-License-Identifier: MIT
#include <pqattn/cache/batch.hpp>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "cache/sequence_model.hpp"
#include "support/executors.hpp"
#include "support/resident.hpp"

namespace {

using namespace pqattn;
using namespace pqattn_test;
using pqattn_test::random_data;

/// A pool with sequences that share a prefix, and a batch over them.
struct batch_scene {
  sequence_world world;
  std::vector<sequence_type> tokens;
  std::vector<const sequence_type*> contexts;
  std::vector<batch_entry<f32_bank>> entries;
  std::vector<float> queries;
  std::vector<float> mask;
  head_rows masks[2];  ///< of entries 1 and 3: one for all heads, one for each
  std::size_t heads;
  std::size_t steps = 0;

  /// `refreshed`: some sequences have codes of two epochs, and some of the newer alone.
  batch_scene(const edit_shape& shape, std::uint64_t stream, bool refreshed = false,
              const memory_resource& resource = {}, const host_options& options = exact_arithmetic)
      : world(shape, stream, resource, options), heads(shape.heads * shape.group) {
    for (std::size_t i = 0; i < 6; ++i) {
      tokens.emplace_back(world.pool);
    }
    grow(0, 180);
    for (std::size_t i = 1; i < 5; ++i) {
      REQUIRE_OK(tokens[0].fork(tokens[i]));
      tokens[i].truncate(200 - 40 * i);
      if (i == 2 && refreshed && world.pool.trained()) {
        REQUIRE_OK(world.refresh(tokens[i]));
      }
      grow(i, 1 + 37 * i);
    }
    REQUIRE_OK(tokens[3].remove(30, 50));
    // One query token, several, a cascade of two sequences, and an empty context.
    for (const sequence_type& one : tokens) {
      contexts.push_back(&one);
    }
    const std::size_t counts[] = {1, 5, 1, 17, 3, 2};
    for (std::size_t i = 0; i < 6; ++i) {
      batch_entry<f32_bank> entry;
      entry.first_query = steps;
      entry.queries = counts[i];
      entry.first_position = tokens[i].next_position();
      entry.sequences = contexts.data() + i;
      entry.sequence_count = i == 2 ? 2 : 1;
      entries.push_back(entry);
      steps += counts[i] + 1;  // a query token of no entry in between
    }
    queries = world.random.normals(heads * steps * shape.key_channels());
    constexpr std::size_t columns = 60;
    mask = world.random.normals(heads * 17 * columns);
    for (float& bias : mask) {
      bias = world.random.chance(0.3) ? -std::numeric_limits<float>::infinity() : bias;
    }
    for (const std::size_t i : {1U, 3U}) {
      masks[i / 2] = {view_rows(mask.data(), counts[i], columns), i == 1 ? 1 : heads,
                      static_cast<std::ptrdiff_t>(counts[i] * columns)};
      entries[i].bias = &masks[i / 2];
    }
  }

  float skip_mass = attention_params{}.skip_mass;
  skip_statistics* skips = nullptr;

  void grow(std::size_t i, std::size_t count) {
    world.draw(count);
    REQUIRE_OK(tokens[i].append(world.key_rows(), world.value_rows()));
  }

  status run(const batch_entry<f32_bank>* list, std::size_t count, const executor& parts, std::vector<float>& out,
             std::vector<float>& lse) {
    batch_type batch;
    PQATTN_TRY(batch_type::make(world.bank, parts, {}, batch));
    return run(batch, list, count, out, lse);
  }
  status run(batch_type& batch, const batch_entry<f32_bank>* list, std::size_t count, std::vector<float>& out,
             std::vector<float>& lse) {
    out.resize(heads * steps * world.shape.value_dim, 5.0f);
    lse.resize(heads * steps, 5.0f);
    batch_params params;
    params.softcap = 3.0f;
    params.skip_mass = skip_mass;
    params.skips = skips;
    return batch.attend(world.pool, list, count,
                        {view_rows(queries.data(), steps, world.shape.key_channels()), heads,
                         static_cast<std::ptrdiff_t>(steps * world.shape.key_channels())},
                        params,
                        {ref_rows(out.data(), steps, world.shape.value_dim), heads,
                         static_cast<std::ptrdiff_t>(steps * world.shape.value_dim)},
                        lse.data());
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_CASE("a batch equals the loop of its entries, bit for bit, on any number of workers", "[cache]") {
  const bool rounded = GENERATE(false, true);  // in f32 throughout, and as shipped
  std::uint64_t most_skipped = 0;
  for (std::size_t k = 0; k < 2 * std::size(edit_shapes); ++k) {
    const edit_shape& shape = edit_shapes[k / 2];
    batch_scene scene(shape, 51, k % 2 == 1, {}, rounded ? host_options{} : exact_arithmetic);
    CAPTURE(shape.name, rounded, scene.world.pool.epoch_count(), scene.world.random.seed());
    std::vector<float> out;
    std::vector<float> lse;
    for (const auto& entry : scene.entries) {  // one by one, backwards, into the same rows
      REQUIRE_OK(scene.run(&entry, 1, {}, out, lse));
    }
    for (const std::size_t workers : {1U, 2U, 7U}) {
      shuffled_executor shuffled(workers, 5);
      std::vector<float> batch_out;
      std::vector<float> batch_lse;
      REQUIRE_OK(scene.run(scene.entries.data(), scene.entries.size(), shuffled.get(), batch_out, batch_lse));
      CHECK(same_bits(out, batch_out));
      CHECK(same_bits(lse, batch_lse));
      thread_executor threads(workers);
      std::vector<float> thread_out;
      std::vector<float> thread_lse;
      REQUIRE_OK(scene.run(scene.entries.data(), scene.entries.size(), threads.get(), thread_out, thread_lse));
      CHECK(same_bits(out, thread_out));
      CHECK(same_bits(lse, thread_lse));
    }
    // What is left out is counted over all entries and heads.
    scene.skip_mass = 0.3f;
    skip_statistics alone;
    scene.skips = &alone;
    for (const auto& entry : scene.entries) {
      REQUIRE_OK(scene.run(&entry, 1, {}, out, lse));
    }
    skip_statistics together;
    scene.skips = &together;
    thread_executor threads(3);
    std::vector<float> skipping_out;
    std::vector<float> skipping_lse;
    REQUIRE_OK(scene.run(scene.entries.data(), scene.entries.size(), threads.get(), skipping_out, skipping_lse));
    CHECK(together.blocks == alone.blocks);
    CHECK(together.skipped == alone.skipped);
    CHECK(alone.skipped <= alone.blocks);
    most_skipped = std::max(most_skipped, alone.skipped);
    CHECK((k % 2 == 0 || !scene.world.pool.trained() || scene.world.pool.epoch_count() == 2));
    // Rows of no entry were left alone, an empty context gives nothing.
    CHECK(out[1 * shape.value_dim] == 5.0f);
    CHECK(lse[scene.entries[5].first_query] == -std::numeric_limits<float>::infinity());
  }
  CHECK(most_skipped > 0);
}

TEST_CASE("appending on any number of workers holds the same", "[cache]") {
  const std::size_t shape = GENERATE(2U, 15U);  // without and with outliers
  std::vector<float> reference;
  for (const std::size_t workers : {1U, 2U, 7U}) {
    sequence_world world(edit_shapes[shape], 52);
    thread_executor threads(workers);
    sequence_type tokens(world.pool);
    append_options options;
    options.parts = threads.get();
    for (const std::size_t count : {30U, 100U, 1U, 1U, 64U}) {
      world.draw(count);
      REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows(), options));
    }
    std::vector<float> rows(tokens.size() * (world.shape.key_dim + world.shape.value_dim));
    REQUIRE_OK(
        tokens.read(1, 0, ref_rows(rows.data(), tokens.size(), world.shape.key_dim),
                    ref_rows(rows.data() + tokens.size() * world.shape.key_dim, tokens.size(), world.shape.value_dim)));
    if (reference.empty()) {
      reference = rows;
    }
    CHECK(same_bits(reference, rows));
  }
}

TEST_CASE("each allocation of a batch may fail in turn", "[cache]") {
  for (const char* name : {"before RoPE", "values only, GQA of 5", "outliers before RoPE"}) {
    const auto& shape = *std::find_if(std::begin(edit_shapes), std::end(edit_shapes),
                                      [&](const edit_shape& one) { return std::string(one.name) == name; });
    bool succeeded = false;
    std::size_t fail = 0;
    for (; !succeeded; ++fail) {
      REQUIRE(fail < 100);
      counting_resource memory;
      counting_resource scratch;
      {
        batch_scene scene(shape, 57, false, memory.resource());
        CAPTURE(name, fail, scene.world.random.seed());
        shuffled_executor shuffled(2, 5);
        batch_type batch;
        std::vector<float> out;
        std::vector<float> lse;
        const auto serve = [&] {
          if (batch.bytes() == 0) {
            PQATTN_TRY(batch_type::make(scene.world.bank, shuffled.get(), scratch.resource(), batch));
          }
          return scene.run(batch, scene.entries.data(), scene.entries.size(), out, lse);
        };
        // Of the batch's own memory, and of the bank's.
        const std::size_t before = memory.live_bytes;
        scratch.fail_after = fail;
        memory.fail_after = memory.allocations + (fail + 1) / 2;
        const status result = serve();
        succeeded = result.ok();
        scratch.fail_after = memory.fail_after = std::numeric_limits<std::size_t>::max();
        if (!succeeded) {
          CHECK(result.code == status_code::out_of_memory);
          CHECK(result.has_values);
          CHECK(std::all_of(out.begin(), out.end(), [](float x) { return x == 5.0f; }));
          CHECK(std::all_of(lse.begin(), lse.end(), [](float x) { return x == 5.0f; }));
          REQUIRE_OK(serve());
        }
        CHECK(batch.bytes() == scratch.live_bytes + memory.live_bytes - before);
        std::vector<float> want;
        std::vector<float> want_lse;
        REQUIRE_OK(scene.run(scene.entries.data(), scene.entries.size(), {}, want, want_lse));
        CHECK(same_bits(out, want));
        CHECK(same_bits(lse, want_lse));
      }
      for (const counting_resource& one : {std::cref(memory), std::cref(scratch)}) {
        CHECK(one.live_bytes == 0);
        CHECK(one.mistakes == 0);
      }
    }
    CHECK(fail > 4);
  }
}

TEST_CASE("a chunk of several hundred query tokens attends to a coded past and to itself", "[cache]") {
  for (const char* name : {"before RoPE", "after RoPE, f16", "preset of 2 bits", "values only, GQA of 5",
                           "latent keys that are values, tails with RoPE", "outliers before RoPE"}) {
    const auto& shape = *std::find_if(std::begin(edit_shapes), std::end(edit_shapes),
                                      [&](const edit_shape& one) { return std::string(one.name) == name; });
    sequence_world world(shape, 58);
    CAPTURE(name, world.random.seed());
    sequence_type tokens(world.pool);
    model_sequence model;
    // The first chunk finds nothing, the second exact tokens, the others codes.
    for (const std::size_t count : {40U, 300U, 511U}) {
      world.draw(count, world.any_type());
      const std::int64_t first = tokens.next_position();
      world.check_attention({&tokens}, {&model}, first, true, count == 511 ? 200 : 0);
      world.check_attention({&tokens}, {&model}, first, true, 0);
      REQUIRE_OK(world.append_handed(tokens));
      world.append(model, first, tokens);
      world.check(tokens, model);
    }
    CHECK(tokens.coded_tokens() > 700);
  }
}

TEST_CASE("readers of shared prefixes run concurrently", "[cache][threads]") {
  batch_scene scene(edit_shapes[0], 53);
  CAPTURE(scene.world.random.seed());
  std::vector<float> out;
  std::vector<float> lse;
  REQUIRE_OK(scene.run(scene.entries.data(), scene.entries.size(), {}, out, lse));
  const auto read = [&](std::vector<float>& rows) {
    const sequence_type& tokens = scene.tokens[3];
    rows.resize(tokens.size() * (scene.world.shape.key_dim + scene.world.shape.value_dim));
    return tokens.read(
        1, 0, ref_rows(rows.data(), tokens.size(), scene.world.shape.key_dim),
        ref_rows(rows.data() + tokens.size() * scene.world.shape.key_dim, tokens.size(), scene.world.shape.value_dim));
  };
  std::vector<float> rows;
  REQUIRE_OK(read(rows));
  constexpr std::size_t readers = 4;
  std::vector<std::vector<float>> outs(readers);
  std::vector<std::vector<float>> lses(readers);
  std::vector<std::vector<float>> rows_read(readers);
  std::vector<status> outcomes(readers);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < readers; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 3 && outcomes[i]; ++round) {
        outcomes[i] = scene.run(scene.entries.data(), scene.entries.size(), {}, outs[i], lses[i]);
        outcomes[i] = outcomes[i] ? read(rows_read[i]) : outcomes[i];
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (std::size_t i = 0; i < readers; ++i) {
    REQUIRE_OK(outcomes[i]);
    CHECK(same_bits(outs[i], out));
    CHECK(same_bits(lses[i], lse));
    CHECK(same_bits(rows_read[i], rows));
  }
}

/// Drafts that form a tree, verified in one call, against each path of the tree as a sequence of its own.
TEST_CASE("a mask among drafts verifies a tree in one call", "[cache]") {
  for (const char* name : {"before RoPE", "after RoPE, f16", "preset of 2 bits", "values only, GQA of 5"}) {
    const auto& shape = *std::find_if(std::begin(edit_shapes), std::end(edit_shapes),
                                      [&](const edit_shape& one) { return std::string(one.name) == name; });
    sequence_world world(shape, 56);
    CAPTURE(name, world.random.seed());
    constexpr std::size_t drafts = 7;
    constexpr std::size_t parents[drafts] = {0, 0, 0, 1, 1, 2, 4};  // of the first: the sequence's last token
    constexpr std::int32_t depths[drafts] = {0, 1, 1, 2, 2, 2, 3};
    const std::size_t heads = shape.heads * shape.group;
    sequence_type tokens(world.pool);
    world.draw(150);
    REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
    REQUIRE_OK(tokens.remove(20, 30));
    const auto first = static_cast<std::int32_t>(tokens.next_position());
    std::vector<float> mask(drafts * drafts, -std::numeric_limits<float>::infinity());
    for (std::size_t draft = 0; draft < drafts; ++draft) {
      for (std::size_t node = draft;; node = parents[node]) {
        mask[draft * drafts + node] = 0.0f;
        if (node == 0) {
          break;
        }
      }
    }
    std::vector<std::int32_t> positions(drafts);
    std::vector<std::int64_t> wide(drafts);
    for (std::size_t draft = 0; draft < drafts; ++draft) {
      positions[draft] = first + depths[draft];
      wide[draft] = positions[draft];
    }
    world.draw(drafts);
    const std::vector<float> draft_queries = world.random.normals(heads * drafts * shape.key_channels());
    const head_rows keys = world.key_rows();
    const head_rows values = world.value_rows();
    const head_rows mask_rows{view_rows(mask.data(), drafts, drafts), 1, 0};
    batch_type batch;
    REQUIRE_OK(batch_type::make(world.bank, {}, {}, batch));
    batch_params params;
    params.window = 40;
    const sequence_type* context[] = {&tokens};
    const auto attend = [&](batch_entry<f32_bank> entry, std::size_t first_query, std::size_t count,
                            const std::int64_t* at) {
      std::vector<float> out(heads * count * shape.value_dim);
      entry.queries = count;
      entry.sequences = context;
      entry.sequence_count = 1;
      params.positions = at;
      head_rows queries{view_rows(draft_queries.data(), drafts, shape.key_channels()), heads,
                        static_cast<std::ptrdiff_t>(drafts * shape.key_channels())};
      queries.rows = queries.rows.slice(first_query, count);
      REQUIRE_OK(batch.attend(
          world.pool, &entry, 1, queries, params,
          {ref_rows(out.data(), count, shape.value_dim), heads, static_cast<std::ptrdiff_t>(count * shape.value_dim)}));
      return out;
    };
    batch_entry<f32_bank> tree;
    tree.new_keys = &keys;
    tree.new_values = &values;
    tree.new_positions = positions.data();
    tree.bias = &mask_rows;
    const std::vector<float> out = attend(tree, 0, drafts, wide.data());
    for (std::size_t draft = 0; draft < drafts; ++draft) {
      std::vector<std::size_t> path;  // leaf first
      for (std::size_t node = draft;; node = parents[node]) {
        path.push_back(node);
        if (node == 0) {
          break;
        }
      }
      std::vector<float> path_keys;
      std::vector<float> path_values;
      for (std::size_t head = 0; head < shape.heads; ++head) {
        for (auto node = path.rbegin(); node != path.rend(); ++node) {
          const auto key = world.new_keys.begin() + std::ptrdiff_t((head * drafts + *node) * shape.key_channels());
          path_keys.insert(path_keys.end(), key, key + std::ptrdiff_t(shape.key_channels()));
          const auto value = world.new_values.begin() + std::ptrdiff_t((head * drafts + *node) * shape.value_dim);
          path_values.insert(path_values.end(), value, value + std::ptrdiff_t(shape.value_dim));
        }
      }
      const head_rows chunk_keys{view_rows(path_keys.data(), path.size(), shape.key_channels()), shape.heads,
                                 static_cast<std::ptrdiff_t>(path.size() * shape.key_channels())};
      const head_rows chunk_values{view_rows(path_values.data(), path.size(), shape.value_dim), shape.heads,
                                   static_cast<std::ptrdiff_t>(path.size() * shape.value_dim)};
      batch_entry<f32_bank> alone;
      alone.new_keys = &chunk_keys;
      alone.new_values = &chunk_values;
      alone.new_position = first;
      const std::vector<float> want = attend(alone, draft, 1, wide.data() + draft);
      for (std::size_t q = 0; q < heads; ++q) {
        const auto start = out.begin() + std::ptrdiff_t((q * drafts + draft) * shape.value_dim);
        const doubles one(want.begin() + std::ptrdiff_t(q * shape.value_dim),
                          want.begin() + std::ptrdiff_t((q + 1) * shape.value_dim));
        CHECK(max_error(std::vector<float>(start, start + std::ptrdiff_t(shape.value_dim)), one) < 1e-5);
      }
    }
    // Masks that do not fit the batch.
    const auto refused = [&](const head_rows& bias) {
      batch_entry<f32_bank> entry = tree;
      entry.queries = drafts;
      entry.sequences = context;
      entry.sequence_count = 1;
      entry.bias = &bias;
      std::vector<float> left(heads * drafts * shape.value_dim, 5.0f);
      params.positions = wide.data();
      const status refusal = batch.attend(world.pool, &entry, 1,
                                          {view_rows(draft_queries.data(), drafts, shape.key_channels()), heads,
                                           static_cast<std::ptrdiff_t>(drafts * shape.key_channels())},
                                          params,
                                          {ref_rows(left.data(), drafts, shape.value_dim), heads,
                                           static_cast<std::ptrdiff_t>(drafts * shape.value_dim)});
      CHECK(left == std::vector<float>(left.size(), 5.0f));
      return refusal.code;
    };
    const std::vector<float> large(heads * drafts * (tokens.size() + drafts + 1));
    CHECK(refused({view_rows(large.data(), drafts, tokens.size() + drafts + 1), 1, 0}) == status_code::shape_mismatch);
    CHECK(refused({view_rows(large.data(), drafts - 1, 4), 1, 0}) == status_code::shape_mismatch);
    CHECK(refused({view_rows(large.data(), drafts, 4), heads + 1, 0}) == status_code::shape_mismatch);
    CHECK(refused({view_rows<float>(nullptr, drafts, 4), 1, 0}) == status_code::invalid_argument);
  }
}

TEST_CASE("entries that cannot be served are refused", "[cache]") {
  batch_scene scene(edit_shapes[0], 54);
  std::vector<float> out;
  std::vector<float> lse;
  batch_entry<f32_bank> entry = scene.entries[1];
  entry.queries = scene.steps;
  CHECK(scene.run(&entry, 1, {}, out, lse).code == status_code::invalid_argument);
  pool_type stranger;
  REQUIRE_OK(pool_type::make(scene.world.bank, scene.world.config, scene.world.shape.heads, {}, stranger));
  const sequence_type foreign(stranger);
  const sequence_type* context[] = {&foreign};
  entry = scene.entries[1];
  entry.sequences = context;
  CHECK(scene.run(&entry, 1, {}, out, lse).code == status_code::invalid_argument);
  head_rows keys;
  entry = scene.entries[1];
  entry.new_keys = &keys;
  CHECK(scene.run(&entry, 1, {}, out, lse).code == status_code::invalid_argument);
  // One entry that cannot be served keeps the others from being written.
  const float zero = 0.0f;
  const auto broadcast = [&](std::size_t dim) {
    return head_rows{{&zero, dtype::f32, max_segment_slots + 1, dim, 0, 0}, scene.world.shape.heads, 0};
  };
  const head_rows many_keys = broadcast(scene.world.shape.key_dim);
  const head_rows many_values = broadcast(scene.world.shape.value_dim);
  std::vector<batch_entry<f32_bank>> two(scene.entries.begin(), scene.entries.begin() + 2);
  two[1].new_keys = &many_keys;
  two[1].new_values = &many_values;
  out.clear();
  CHECK(scene.run(two.data(), 2, {}, out, lse).code == status_code::invalid_argument);
  const std::vector<float> untouched = out;
  CHECK(std::adjacent_find(untouched.begin(), untouched.end(), std::not_equal_to<>()) == untouched.end());
  for (const std::int64_t far : {std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min()}) {
    entry = scene.entries[1];
    entry.first_position = far;
    CHECK(scene.run(&entry, 1, {}, out, lse).code == status_code::invalid_argument);
  }
  scene.heads = 3;
  CHECK(scene.run(scene.entries.data(), 1, {}, out, lse).code == status_code::shape_mismatch);
}

/// Cells of one storage that belong to several sequences, in any order, as unified caches have them. Codes of cells
/// that belong to nobody are garbage.
TEST_CASE("slot lists over interleaved cells read only their own", "[cache]") {
  random_data random(55);
  CAPTURE(random.seed());
  f32_bank bank;
  const geometry shape{12, 4, 11, 1};
  const std::size_t cells = 640;
  stored_book<f32_bank> book(bank, shape, codebook_storage::f32, random.normals(shape.codebook_values()));
  stored_book<f32_bank> other(bank, shape, codebook_storage::f32, random.normals(shape.codebook_values()));
  bank_block<f32_bank> memory(bank, cells / 64 * bank.code_block_bytes(shape));
  const code_span<std::byte*> storage{shape, memory.get(), nullptr};
  std::vector<std::uint16_t> codes(cells * shape.groups(), 15);  // 15 is no centroid of 11
  std::vector<int> owner(cells);
  for (std::size_t cell = 0; cell < cells; ++cell) {
    owner[cell] = static_cast<int>(random.below(4));  // 3: nobody
    for (std::size_t g = 0; owner[cell] != 3 && g < shape.groups(); ++g) {
      codes[cell * shape.groups() + g] = static_cast<std::uint16_t>(random.below(11));
    }
  }
  REQUIRE_OK(bank.store_codes(storage, {0, cells}, codes.data()));
  const std::vector<float> queries = random.normals(6 * 12);
  const std::vector<std::uint32_t> order = random.permutation<std::uint32_t>(cells);

  struct listed {
    std::vector<std::int64_t> slots;
    std::vector<std::int32_t> slot_positions;
    std::vector<std::uint32_t> pages;
    std::vector<std::uint64_t> live;
    std::vector<std::int32_t> positions;
    std::vector<std::int64_t> query_positions;
    attention_params params;
    segment<std::byte*> tokens;
  };
  std::vector<listed> sequences(3);
  std::vector<ragged_item<std::byte*>> items;
  std::vector<std::unique_ptr<bank_block<f32_bank>>> tables;
  for (int s = 0; s < 3; ++s) {
    listed& one = sequences[static_cast<std::size_t>(s)];
    for (const std::uint32_t cell : order) {
      if (owner[cell] == s) {
        one.slots.push_back(cell);
        one.slot_positions.push_back(static_cast<std::int32_t>(random.below(1000)));
      }
    }
    const std::size_t count = one.slots.size();
    one.pages.resize(count);
    one.live.resize(count);
    one.positions.resize(count * 64);
    const std::size_t blocks = blocks_of_slots(one.slots.data(), one.slot_positions.data(), count, one.pages.data(),
                                               one.live.data(), one.positions.data());
    CHECK(blocks == 10);
    one.query_positions = {400, 700};
    one.params.modifiers.causal = true;
    one.params.modifiers.query_positions = one.query_positions.data();
    token_source<std::byte*> source;
    source.coded = true;
    source.codes = {shape, memory.get(), one.pages.data()};
    source.book = s == 1 ? other.resident : book.resident;  // each names its codebook
    one.tokens.keys = one.tokens.values = source;
    one.tokens.slots = {0, blocks * 64};
    one.tokens.positions = {0, one.positions.data()};
    one.tokens.live = one.live.data();
    tables.push_back(std::make_unique<bank_block<f32_bank>>(bank, attention_table_bytes(bank, shape, 2, {})));
    one.tokens.tables = tables.back()->get();
    items.push_back({static_cast<std::size_t>(2 * s), 2, &one.tokens, 1, &one.params});
  }
  std::vector<float> out(6 * 12);
  std::vector<float> lse(6);
  std::vector<status> outcomes(3);
  std::vector<std::vector<float>> results;
  for (const std::size_t workers : {1U, 2U, 7U}) {
    thread_executor threads(workers);
    std::vector<std::byte> workspace(ragged_workspace_bytes(items.data(), 3, 12, 12, workers));
    REQUIRE_OK(attend_items(bank, view_rows(queries.data(), 6, 12), items.data(), 3, threads.get(), workspace.data(),
                            workspace.size(), ref_rows(out.data(), 6, 12), lse.data(), outcomes.data()));
    results.push_back(out);
    CHECK(same_bits(results[0], out));
  }
  for (std::size_t s = 0; s < 3; ++s) {
    const listed& one = sequences[s];
    const std::vector<float>& centroids = s == 1 ? other.centroids : book.centroids;
    attention_case expected;
    expected.rows = 2;
    expected.key_dim = expected.value_dim = 12;
    expected.scale = 1.0 / std::sqrt(12.0);
    expected.queries.assign(queries.begin() + std::ptrdiff_t(s * 24), queries.begin() + std::ptrdiff_t(s * 24 + 24));
    expected.query_positions = one.query_positions;
    expected.causal = true;
    for (std::size_t i = 0; i < one.slots.size(); ++i) {
      const auto cell = static_cast<std::size_t>(one.slots[i]);
      const std::vector<std::uint16_t> row(codes.begin() + std::ptrdiff_t(cell * 4),
                                           codes.begin() + std::ptrdiff_t(cell * 4 + 4));
      const doubles decoded = decode_rows(shape, centroids, row, 1);
      expected.keys.insert(expected.keys.end(), decoded.begin(), decoded.end());
      expected.values.insert(expected.values.end(), decoded.begin(), decoded.end());
      expected.key_positions.push_back(one.slot_positions[i]);
      ++expected.tokens;
    }
    expected.live.assign(expected.tokens, true);
    const attention_result want = reference_attention(expected);
    const std::vector<float> got(out.begin() + std::ptrdiff_t(s * 24), out.begin() + std::ptrdiff_t(s * 24 + 24));
    CHECK(max_error(got, want.out) < 1e-5);
  }
  // An item outside the batch fails alone, and so does one without parameters or segments.
  std::vector<std::byte> workspace(ragged_workspace_bytes(items.data(), 3, 12, 12, 1));
  const auto fails_alone = [&](auto&& spoil, status_code code) {
    const auto kept = items[1];
    spoil(items[1]);
    out.assign(out.size(), 0.0f);
    CHECK(attend_items(bank, view_rows(queries.data(), 6, 12), items.data(), 3, {}, workspace.data(), workspace.size(),
                       ref_rows(out.data(), 6, 12), lse.data(), outcomes.data())
              .code == code);
    CHECK(outcomes[0].ok());
    CHECK(outcomes[2].ok());
    CHECK(std::memcmp(out.data(), results[0].data(), 24 * sizeof(float)) == 0);
    CHECK(std::count(out.begin() + 24, out.begin() + 48, 0.0f) == 24);
    items[1] = kept;
  };
  fails_alone([](auto& item) { item.rows = 5; }, status_code::shape_mismatch);
  fails_alone([](auto& item) { item.params = nullptr; }, status_code::invalid_argument);
  fails_alone([](auto& item) { item.segments = nullptr; }, status_code::invalid_argument);
}

}  // namespace
