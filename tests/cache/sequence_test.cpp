// SPDX-License-Identifier: MIT
#include <pqattn/cache/sequence.hpp>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "bank/archetype_bank.hpp"
#include "cache/sequence_model.hpp"
#include "pqattn/cache/layer_cache.hpp"
#include "pqattn/cache/snapshot.hpp"
#include "support/patience.hpp"

// Everything compiles with the least capable bank, whose addresses are not pointers.
template class pqattn::page_pool<pqattn_test::archetype_bank>;
template class pqattn::sequence<pqattn_test::archetype_bank>;
template class pqattn::batch_attention<pqattn_test::archetype_bank>;
template pqattn::status pqattn::write_sequence<pqattn_test::archetype_bank>(
    const pqattn::sequence<pqattn_test::archetype_bank>&, const pqattn::snapshot_sink&);
template pqattn::status pqattn::load_sequence<pqattn_test::archetype_bank>(
    const pqattn::snapshot_view&, pqattn::sequence<pqattn_test::archetype_bank>&);

namespace {

using namespace pqattn;
using namespace pqattn_test;
using pqattn_test::random_data;

/// Keys and values of all heads of a sequence, as attention sees them.
std::vector<float> read_all(const sequence_world& world, const sequence_type& tokens) {
  std::vector<float> rows;
  for (std::size_t head = 0; head < world.shape.heads; ++head) {
    std::vector<float> keys(tokens.size() * world.shape.key_channels());
    std::vector<float> values(tokens.size() * world.shape.value_dim);
    REQUIRE_OK(tokens.read(head, 0, ref_rows(keys.data(), tokens.size(), world.shape.key_channels()),
                           ref_rows(values.data(), tokens.size(), world.shape.value_dim)));
    rows.insert(rows.end(), keys.begin(), keys.end());
    rows.insert(rows.end(), values.begin(), values.end());
  }
  return rows;
}

/// Appends `count` new tokens to a sequence and its model.
void append(sequence_world& world, sequence_type& tokens, model_sequence& model, std::size_t count) {
  world.draw(count);
  const std::int64_t first = tokens.next_position();
  REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
  world.append(model, first, tokens);
}

/// The shape of this name.
const edit_shape& shape_named(const std::string& name) {
  for (const edit_shape& shape : edit_shapes) {
    if (name == shape.name) {
      return shape;
    }
  }
  FAIL("no shape is called " << name);
  return edit_shapes[0];
}

/// An edit that may fail, on a world whose pool is trained or not.
struct fallible_edit {
  const char* name;
  bool trained;
  std::function<status(sequence_world&, std::vector<sequence_type>&)> run;
  std::function<void(sequence_world&, std::vector<model_sequence>&, const std::vector<sequence_type>&)> expect;
};

bool world_takes_no_queries(const edit_shape& shape) {
  return shape.query_rows == 0 && shape.preset_bits == 0.0;
}

TEST_CASE("each allocation of each edit may fail in turn", "[cache]") {
  const std::size_t beams[] = {1, 1, 0};
  const auto append_both = [](std::size_t count, bool trained) {
    return fallible_edit{
        "append", trained,
        [count](sequence_world& world, std::vector<sequence_type>& tokens) {
          world.draw(count);
          return tokens[0].append(world.key_rows(), world.value_rows());
        },
        [](sequence_world& world, std::vector<model_sequence>& models, const std::vector<sequence_type>& tokens) {
          world.append(models[0], models[0].size() == 0 ? 0 : models[0].all().back()->position + 1, tokens[0]);
        }};
  };
  const std::vector<fallible_edit> edits = {
      append_both(1, true),
      append_both(90, true),
      append_both(30, false),
      append_both(70, false),  // trains
      {"observe", false,
       [](sequence_world& world, std::vector<sequence_type>& tokens) {
         const std::size_t heads = world.shape.heads * world.shape.group;
         const std::vector<float> queries(heads * world.shape.key_channels(), 1.0f);
         return tokens[0].observe({view_rows(queries.data(), 1, world.shape.key_channels()), heads,
                                   static_cast<std::ptrdiff_t>(world.shape.key_channels())},
                                  5);
       },
       [](sequence_world&, std::vector<model_sequence>&, const std::vector<sequence_type>&) {}},
      {"reserve", true, [](sequence_world&, std::vector<sequence_type>& tokens) { return tokens[0].reserve(500); },
       [](sequence_world&, std::vector<model_sequence>&, const std::vector<sequence_type>&) {}},
      {"fork", true, [](sequence_world&, std::vector<sequence_type>& tokens) { return tokens[0].fork(tokens[2]); },
       [](sequence_world&, std::vector<model_sequence>& models, const std::vector<sequence_type>&) {
         models[2] = models[0];
       }},
      {"select", true,
       [&](sequence_world&, std::vector<sequence_type>& tokens) {
         return sequence_type::select(tokens.data(), 3, beams);
       },
       [](sequence_world&, std::vector<model_sequence>& models, const std::vector<sequence_type>&) {
         models[2] = models[0];
         models[0] = models[1];
       }},
      {"refresh", true,
       [](sequence_world& world, std::vector<sequence_type>& tokens) { return world.refresh(tokens[0]); },
       [](sequence_world& world, std::vector<model_sequence>& models, const std::vector<sequence_type>&) {
         CHECK(world.pool.epoch_count() == 2);
         CHECK(models[0].body.back().epoch != world.pool.newest_epoch());
       }},
      {"shift", true, [](sequence_world&, std::vector<sequence_type>& tokens) { return tokens[0].shift(1, 90, 7); },
       [](sequence_world& world, std::vector<model_sequence>& models, const std::vector<sequence_type>&) {
         world.shift(models[0], 1, 90, 7);
       }},
  };
  // Before RoPE, after it, exact values, exact keys; preset, metric after RoPE, latent; outliers of each kind.
  for (const std::size_t s : {0U, 1U, 3U, 4U, 10U, 11U, 13U, 15U, 16U, 17U, 18U, 19U}) {
    for (const fallible_edit& edit : edits) {
      bool succeeded = false;
      std::size_t fail = 0;
      for (; !succeeded; ++fail) {
        REQUIRE(fail < 400);
        counting_resource memory;
        {
          sequence_world world(edit_shapes[s], 31, memory.resource());
          CAPTURE(edit_shapes[s].name, edit.name, edit.trained, fail, world.random.seed());
          std::vector<sequence_type> tokens;
          std::vector<model_sequence> models(3);
          for (std::size_t i = 0; i < 3; ++i) {
            tokens.emplace_back(world.pool);
          }
          if (std::string(edit.name) != "observe") {
            world.observe(tokens[0], 3);
          }
          append(world, tokens[0], models[0], edit.trained ? 100 : 20);
          REQUIRE_OK(tokens[0].fork(tokens[1]));  // every page is shared
          models[1] = models[0];
          if (edit.trained) {
            append(world, tokens[2], models[2], 40);
          }
          memory.fail_after = memory.allocations + fail;
          const status result = edit.run(world, tokens);
          succeeded = result.ok();
          memory.fail_after = std::numeric_limits<std::size_t>::max();
          if (!succeeded) {
            CHECK(result.code == status_code::out_of_memory);
            CHECK(result.has_values);
            CHECK(world.pool.trained() == edit.trained);
            for (std::size_t i = 0; i < 3; ++i) {
              world.check(tokens[i], models[i]);
            }
            REQUIRE_OK(edit.run(world, tokens));  // the failed call may be repeated
          }
          edit.expect(world, models, tokens);
          for (std::size_t i = 0; i < 3; ++i) {
            world.check(tokens[i], models[i]);
          }
        }
        CHECK(memory.live_bytes == 0);
        CHECK(memory.mistakes == 0);
      }
      // A single appended token may find every page and list in place; the others had something to fail on.
      CHECK((fail > 1 || (std::string(edit.name) == "observe" && world_takes_no_queries(edit_shapes[s]))));
    }
  }
}

TEST_CASE("each allocation of a new pool and of loading its codebooks may fail in turn", "[cache]") {
  for (const char* name : {"before RoPE", "preset of 2 bits", "outliers of latent keys with tails"}) {
    sequence_world world(shape_named(name), 52);
    CAPTURE(name, world.random.seed());
    const kv_side sides[] = {kv_side::keys, kv_side::values};
    const std::size_t stored = world.pool.stores(kv_side::values) ? 2 : 1;
    std::vector<std::vector<float>> centroids(stored);
    std::vector<std::vector<float>> transforms(stored);
    for (std::size_t side = 0; side < stored; ++side) {
      centroids[side] = world.random.normals(world.pool.side(sides[side]).shape.codebook_values());
      transforms[side].assign(world.pool.transform_floats(sides[side]), 1.0f);
    }
    std::size_t failures = 0;
    for (std::size_t fail = 0;; ++fail) {
      REQUIRE(fail < 100);
      counting_resource memory;
      {
        f32_bank bank(memory.resource());
        pool_type pool;
        const auto make = [&] {
          return pool_type::make(bank, world.config, world.shape.heads, memory.resource(), pool);
        };
        memory.fail_after = fail;
        status result = make();
        if (!result) {
          CHECK(result.code == status_code::out_of_memory);
          CHECK(memory.live_bytes == 0);
          memory.fail_after = std::numeric_limits<std::size_t>::max();
          REQUIRE_OK(make());
        }
        bool failed = !result.ok();
        for (std::size_t head = 0; head < world.shape.heads; ++head) {
          for (std::size_t side = 0; side < stored; ++side) {
            const auto load = [&] {
              return pool.load_codebook(head, sides[side], centroids[side].data(),
                                        transforms[side].empty() ? nullptr : transforms[side].data());
            };
            CHECK_FALSE(pool.trained());
            result = load();
            if (!result) {
              CHECK(result.code == status_code::out_of_memory);
              CHECK_FALSE(pool.trained());
              CHECK(pool.memory().total_bytes() == memory.live_bytes);
              failed = true;
              memory.fail_after = std::numeric_limits<std::size_t>::max();
              REQUIRE_OK(load());
            }
          }
        }
        CHECK(pool.trained());
        CHECK(pool.memory().total_bytes() == memory.live_bytes);
        failures += failed ? 1 : 0;
        if (!failed) {
          break;
        }
      }
      CHECK(memory.live_bytes == 0);
      CHECK(memory.mistakes == 0);
    }
    CHECK(failures > 2);
  }
}

TEST_CASE("a fork that fails gives back no page of the sequence it copies", "[cache]") {
  for (std::size_t fail = 0;; ++fail) {
    REQUIRE(fail < 50);
    counting_resource memory;
    sequence_world world(edit_shapes[0], 37, memory.resource());
    CAPTURE(fail, world.random.seed());
    sequence_type tokens(world.pool);
    model_sequence model;
    append(world, tokens, model, 100);  // trains; no page is shared
    sequence_type copy(world.pool);
    memory.fail_after = memory.allocations + fail;
    const bool forked = tokens.fork(copy).ok();
    memory.fail_after = std::numeric_limits<std::size_t>::max();
    if (forked) {
      CHECK(fail > 1);
      break;
    }
    // Pages given back by mistake would be taken by the next sequence.
    sequence_type other(world.pool);
    model_sequence others;
    append(world, other, others, 150);
    world.check(tokens, model);
    world.check(other, others);
  }
}

TEST_CASE("a cancelled training and bad arguments leave everything as before", "[cache]") {
  sequence_world world(edit_shapes[0], 32);
  CAPTURE(world.random.seed());
  sequence_type tokens(world.pool);
  model_sequence model;
  append(world, tokens, model, 30);
  world.draw(100);
  append_options options;
  options.progress.report = [](void*, std::size_t done, std::size_t) { return done < 5; };
  CHECK(tokens.append(world.key_rows(), world.value_rows(), options).code == status_code::cancelled);
  CHECK_FALSE(world.pool.trained());
  world.new_values[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK(tokens.append(world.key_rows(), world.value_rows()).code == status_code::not_finite);
  world.draw(2);
  head_rows keys = world.key_rows();
  keys.heads = 1;
  CHECK(tokens.append(keys, world.value_rows()).code == status_code::shape_mismatch);
  const std::int64_t negative[] = {3, -1};
  options = {};
  options.positions = negative;
  CHECK(tokens.append(world.key_rows(), world.value_rows(), options).code == status_code::invalid_argument);
  const std::vector<float> weights(2 * world.shape.heads, -1.0f);
  options = {};
  options.weights = weights.data();
  CHECK(tokens.append(world.key_rows(), world.value_rows(), options).code == status_code::invalid_argument);
  const status far = tokens.remove(20, 11);
  CHECK(far.code == status_code::invalid_argument);
  CHECK(far.expected == 30);
  CHECK(far.got == 31);
  CHECK(tokens.shift(0, 31, 1).code == status_code::invalid_argument);
  CHECK(tokens.shift(0, 30, -1).code == status_code::invalid_argument);
  CHECK(tokens.shift(29, 1, std::numeric_limits<std::int32_t>::max()).code == status_code::invalid_argument);
  const std::size_t stranger = 1;
  CHECK(sequence_type::select(&tokens, 1, &stranger).code == status_code::invalid_argument);
  world.check(tokens, model);
}

TEST_CASE("a training may be cancelled at any report and repeated", "[cache]") {
  for (const char* name : {"before RoPE", "outliers of a preset"}) {
    sequence_world world(shape_named(name), 48);
    CAPTURE(name, world.random.seed());
    sequence_type tokens(world.pool);
    model_sequence model;
    world.observe(tokens, 3);
    append(world, tokens, model, 30);
    const memory_report before = world.pool.memory();
    world.draw(70);
    std::size_t reports = 1;
    for (std::size_t left = 0; left < reports; left += 1 + left / 4) {
      pqattn_test::patience mine{left};
      append_options options;
      options.progress = mine.hook();
      const status result = tokens.append(world.key_rows(), world.value_rows(), options);
      if (result.ok()) {
        break;
      }
      reports = left + 2;
      REQUIRE(result.code == status_code::cancelled);
      CHECK_FALSE(world.pool.trained());
      CHECK(world.pool.memory().codebooks_bytes == before.codebooks_bytes);
      CHECK(world.pool.memory().transforms_bytes == before.transforms_bytes);
      world.check(tokens, model);
    }
    CHECK(reports > 4);
    if (!world.pool.trained()) {
      REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
    }
    world.append(model, 30, tokens);
    CHECK(world.pool.trained());
    world.check(tokens, model);
  }
}

TEST_CASE("executors that cannot run anything are refused", "[cache]") {
  sequence_world world(edit_shapes[0], 49);
  executor idle;
  idle.workers = 0;
  executor lost;
  lost.run = nullptr;
  executor crowded;
  crowded.workers = std::numeric_limits<std::size_t>::max() / 2;
  sequence_type tokens(world.pool);
  model_sequence model;
  append(world, tokens, model, 20);
  world.draw(90);
  for (const executor& parts : {idle, lost, crowded}) {
    batch_type batch;
    CHECK(batch_type::make(world.bank, parts, {}, batch).code == status_code::invalid_argument);
    layer_cache<f32_bank> layer;
    CHECK(layer_cache<f32_bank>::make(world.bank, world.config, 2, parts, {}, layer).code ==
          status_code::invalid_argument);
    append_options options;
    options.parts = parts;
    CHECK(tokens.append(world.key_rows(), world.value_rows(), options).code == status_code::invalid_argument);
    std::byte workspace[64];
    float out[4];
    CHECK(attend_items<f32_bank>(world.bank, view_rows(out, 1, 4), nullptr, 0, parts, workspace, sizeof workspace,
                                 ref_rows(out, 1, 4), nullptr, nullptr)
              .code == status_code::invalid_argument);
  }
  CHECK_FALSE(world.pool.trained());
  world.check(tokens, model);
}

/// Refuses what is too large to be given, and remembers the largest.
struct capped_resource {
  memory_resource given{};
  std::size_t refused = 0;

  memory_resource get() {
    return {[](void* self, std::size_t bytes) -> void* {
              auto& me = *static_cast<capped_resource*>(self);
              if (bytes > std::size_t{1} << 26) {
                me.refused = std::max(me.refused, bytes);
                return nullptr;
              }
              return me.given.allocate(me.given.self, bytes);
            },
            [](void* self, void* memory, std::size_t bytes) {
              auto& me = *static_cast<capped_resource*>(self);
              me.given.deallocate(me.given.self, memory, bytes);
            },
            this};
  }
};

TEST_CASE("sizes near 2^31 tokens are computed in full before memory is asked for", "[cache]") {
  capped_resource memory;
  sequence_world world(shape_named("outliers before RoPE"), 50, memory.get());
  sequence_type tokens(world.pool);
  model_sequence model;
  append(world, tokens, model, 100);
  constexpr std::size_t most = std::numeric_limits<std::int32_t>::max();
  CHECK(tokens.reserve(most).code == status_code::out_of_memory);
  CHECK(memory.refused >= most / 64 * sizeof(std::uint32_t));  // the list of pages
  const status refused = world.pool.reserve_coded(most / 64);
  CHECK(refused.code == status_code::out_of_memory);
  // 33 million pages of codes of one head and side.
  const std::size_t page = world.bank.code_block_bytes(world.config.keys.shape);
  CHECK(memory.refused >= most / 64 * page);
  CHECK(refused.expected >= static_cast<double>(most / 64 * page));
  append(world, tokens, model, 3);
  world.check(tokens, model);
  // Level 0: a segment of 2^31 + 1 tokens needs states for each of its parts.
  segment<std::byte*> tokens_of_segment;
  tokens_of_segment.slots = {0, (std::size_t{1} << 31) + 1};
  const std::size_t parts = (std::size_t{1} << 31) / part_tokens + 1;
  CHECK(attention_workspace_bytes(&tokens_of_segment, 1, 8, 1024, 1024, 1) >= parts * 8 * 1024 * sizeof(float));
}

TEST_CASE("rows that codes serve badly stay exact in a pool, within a budget for each page", "[cache]") {
  for (const char* name : {"outliers before RoPE", "outliers of a preset", "outliers of latent keys with tails"}) {
    sequence_world world(shape_named(name), 51);
    CAPTURE(name, world.random.seed());
    sequence_type tokens(world.pool);
    model_sequence model;
    append(world, tokens, model, 100);
    // Ordinary rows, and every ninth ten times as long.
    world.draw(400);
    for (std::size_t head = 0; head < world.shape.heads; ++head) {
      for (std::size_t i = 0; i < 400; ++i) {
        float* key = world.new_keys.data() + (head * 400 + i) * world.shape.key_channels();
        const float scale = (i % 9 == 0 ? 10.0f : 1.0f) / std::max(1.0f, std::abs(key[0]));
        std::transform(key, key + world.shape.key_channels(), key, [&](float x) { return scale * x; });
      }
    }
    REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
    world.append(model, 100, tokens);
    world.check(tokens, model);
    const std::size_t limit = world.pool.outlier_limit();
    CHECK(limit == 1 + static_cast<std::size_t>(std::ceil(64.0 * double{world.config.outlier_share})));
    for (std::size_t head = 0; head < world.shape.heads; ++head) {
      CHECK(tokens.outlier_tokens(head) >= std::min<std::size_t>(limit, 5) * 4);
      CHECK(tokens.outlier_tokens(head) <= limit * tokens.body().page_count());
    }
    // Cut off, they make room for others; a fork's are its own as soon as it writes.
    sequence_type copy;
    REQUIRE_OK(tokens.fork(copy));
    model_sequence other = model;
    const std::size_t size = tokens.size();
    copy.truncate(size - 60);
    other.remove(size - 60, 60);
    append(world, copy, other, 90);
    world.check(copy, other);
    world.check(tokens, model);
    world.check_attention({&copy}, {&other}, copy.next_position(), false, 0);
    // One token alone is an outlier exactly when it was among others, as long as its page has room.
    sequence_type alone(world.pool);
    model_sequence lonely;
    append(world, alone, lonely, world.shape.sinks);
    append(world, alone, lonely, world.shape.recent + world.config.coding_batch + 50);
    world.check(alone, lonely);
  }
}

TEST_CASE("a pool trains and codes what a layer of the same configuration does", "[cache]") {
  for (const edit_shape* shape :
       {&edit_shapes[0], &shape_named("preset of 2 bits"), &shape_named("metric after RoPE, weights by attention"),
        &shape_named("keys exact, values turned")}) {
    sequence_world world(*shape, 33);
    CAPTURE(shape->name, world.random.seed());
    sequence_type tokens(world.pool);
    layer_cache<f32_bank> layer;
    REQUIRE_OK(layer_cache<f32_bank>::make(world.bank, world.config, world.shape.heads, {}, {}, layer));
    const std::size_t q_heads = shape->heads * shape->group;
    std::size_t held = 0;
    for (const std::size_t count : {3U, 40U, 70U, 1U, 1U, 200U}) {
      world.draw(count);
      const std::vector<float> queries = world.random.normals(q_heads * count * shape->key_dim, 2.0f);
      const head_rows query_rows{view_rows(queries.data(), count, shape->key_dim), q_heads,
                                 static_cast<std::ptrdiff_t>(count * shape->key_dim)};
      REQUIRE_OK(tokens.observe(query_rows, static_cast<std::int64_t>(held)));
      REQUIRE_OK(layer.observe(query_rows, static_cast<std::int64_t>(held)));
      REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
      REQUIRE_OK(layer.append(world.key_rows(), world.value_rows()));
      held += count;
      REQUIRE(layer.size() == tokens.size());
      CHECK(layer.head(0).coded_tokens() == tokens.coded_tokens());
      std::vector<float> mine(held * world.shape.key_dim);
      std::vector<float> theirs(mine.size());
      std::vector<float> my_values(held * world.shape.value_dim);
      std::vector<float> their_values(my_values.size());
      for (std::size_t head = 0; head < world.shape.heads; ++head) {
        REQUIRE_OK(tokens.read(head, 0, ref_rows(mine.data(), held, world.shape.key_dim),
                               ref_rows(my_values.data(), held, world.shape.value_dim)));
        REQUIRE_OK(layer.head(head).read(0, ref_rows(theirs.data(), held, world.shape.key_dim),
                                         ref_rows(their_values.data(), held, world.shape.value_dim)));
        const bool same = mine == theirs && my_values == their_values;
        CHECK(same);
      }
    }
    REQUIRE(world.pool.trained());
    CHECK((world.pool.has_transform(0, kv_side::keys)) == world.config.keys.metric);
    CHECK((world.pool.has_transform(0, kv_side::values)) == world.config.values.rotated);
    CHECK(tokens.queries().is_open() == false);
  }
}

TEST_CASE("one long append holds what many short ones hold", "[cache]") {
  for (const char* name : {"before RoPE", "preset of 2 bits", "latent keys that are values, tails with RoPE"}) {
    sequence_world world(shape_named(name), 34);
    CAPTURE(name, world.random.seed());
    sequence_type first(world.pool);
    world.draw(100);
    REQUIRE_OK(first.append(world.key_rows(), world.value_rows()));  // trains
    sequence_type whole(world.pool);
    sequence_type parts(world.pool);
    world.draw(333);
    const head_rows keys = world.key_rows();
    const head_rows values = world.value_rows();
    REQUIRE_OK(whole.append(keys, values));
    for (std::size_t done = 0; done < 333;) {
      const std::size_t count = std::min<std::size_t>(1 + world.random.below(40), 333 - done);
      const head_rows some_keys{keys.rows.slice(done, count), keys.heads, keys.head_stride};
      const head_rows some_values =
          values.heads == 0 ? values : head_rows{values.rows.slice(done, count), values.heads, values.head_stride};
      REQUIRE_OK(parts.append(some_keys, some_values));
      done += count;
    }
    CHECK(read_all(world, whole) == read_all(world, parts));
    CHECK(whole.coded_tokens() == parts.coded_tokens());
  }
}

TEST_CASE("a fork shares every page until one side writes", "[cache]") {
  sequence_world world(edit_shapes[0], 35);
  CAPTURE(world.random.seed());
  sequence_type tokens(world.pool);
  model_sequence model;
  append(world, tokens, model, 300);
  const std::size_t coded = world.pool.coded_pages().used_pages();
  const std::size_t exact = world.pool.exact_pages().used_pages();
  sequence_type copy;
  REQUIRE_OK(tokens.fork(copy));
  CHECK(world.pool.coded_pages().used_pages() == coded);
  CHECK(world.pool.exact_pages().used_pages() == exact);
  model_sequence other = model;
  append(world, copy, other, 1);
  // The last code page and the window's page are the copy's own now; the prefix is still shared.
  CHECK(world.pool.coded_pages().used_pages() == coded + 1);
  CHECK(world.pool.exact_pages().used_pages() <= exact + 2);
  CHECK(tokens.body().page(0) == copy.body().page(0));
  world.check(tokens, model);
  world.check(copy, other);
  // A shift of keys coded before RoPE rewrites no code.
  REQUIRE_OK(copy.shift(0, copy.size(), 1000));
  CHECK(world.pool.coded_pages().used_pages() == coded + 1);
  CHECK(copy.can_shift() == shift_cost::exact);
  world.shift(other, 0, other.size(), 1000);
  world.check(tokens, model);
  world.check(copy, other);
  copy.clear();
  CHECK(world.pool.coded_pages().used_pages() == coded);
}

TEST_CASE("truncating into coded tokens leaves them coded and the window fills again", "[cache]") {
  sequence_world world(edit_shapes[0], 36);
  CAPTURE(world.random.seed());
  sequence_type tokens(world.pool);
  model_sequence model;
  append(world, tokens, model, 200);
  tokens.truncate(150);
  CHECK(tokens.size() == 150);
  CHECK(tokens.coded_tokens() == 146);
  CHECK(tokens.is_coded(149));
  CHECK(tokens.next_position() == 150);
  world.draw(10);
  REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
  CHECK(tokens.coded_tokens() == 146);
  CHECK_FALSE(tokens.is_coded(150));
  world.draw(1);
  REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
  CHECK(tokens.coded_tokens() == 147);
  CHECK(tokens.position(150) == 150);
  tokens.truncate(0);
  CHECK(tokens.size() == 0);
  CHECK(tokens.next_position() == 0);
}

TEST_CASE("truncate, remove and clear need no memory", "[cache]") {
  counting_resource memory;
  sequence_world world(shape_named("outliers before RoPE"), 53, memory.resource());
  CAPTURE(world.random.seed());
  sequence_type tokens(world.pool);
  model_sequence model;
  append(world, tokens, model, 300);
  sequence_type copy(world.pool);
  REQUIRE_OK(tokens.fork(copy));  // every page is shared
  model_sequence other = model;
  memory.fail_after = memory.allocations;
  REQUIRE_OK(copy.remove(2, 131));
  other.remove(2, 131);
  copy.truncate(100);
  other.remove(100, 69);
  tokens.truncate(299);
  model.remove(299, 1);
  memory.fail_after = std::numeric_limits<std::size_t>::max();
  world.check(copy, other);
  world.check(tokens, model);
  memory.fail_after = memory.allocations;
  copy.clear();
  CHECK(copy.size() == 0);
  memory.fail_after = std::numeric_limits<std::size_t>::max();
  world.check(tokens, model);
}

TEST_CASE("a shift of keys coded after RoPE reports the error it adds", "[cache]") {
  sequence_world world(edit_shapes[1], 37);
  CAPTURE(world.random.seed());
  sequence_type tokens(world.pool);
  model_sequence model;
  append(world, tokens, model, 200);
  CHECK(tokens.can_shift() == shift_cost::recoded);
  const std::vector<float> before = read_all(world, tokens);
  shift_report report;
  REQUIRE_OK(tokens.shift(50, 100, 13, &report));
  CHECK(report.tokens == 100);
  CHECK(report.recoded_keys == 100 * world.shape.heads);
  // The same from outside: keys turned by 13 positions against keys read back.
  const std::vector<float> after = read_all(world, tokens);
  double error = 0.0;
  double energy = 0.0;
  std::size_t at = 0;
  for (std::size_t head = 0; head < world.shape.heads; ++head) {
    for (std::size_t token = 50; token < 150; ++token) {
      const std::size_t row = at + token * world.shape.key_dim;
      std::vector<float> turned(before.begin() + std::ptrdiff_t(row),
                                before.begin() + std::ptrdiff_t(row + world.shape.key_dim));
      rotate_row(world.config.rotation, 13, 1.0f, turned.data());
      for (std::size_t c = 0; c < world.shape.key_dim; ++c) {
        error += std::pow(double(after[row + c]) - double(turned[c]), 2.0);
        energy += std::pow(double(turned[c]), 2.0);
      }
    }
    at += tokens.size() * (world.shape.key_dim + world.shape.value_dim);
  }
  CHECK(report.relative_error() > 0.01);
  CHECK(std::abs(report.relative_error() - error / energy) < 1e-5);
}

TEST_CASE("codebooks are shared by loading them", "[cache]") {
  sequence_world world(edit_shapes[0], 38);
  CAPTURE(world.random.seed());
  sequence_type tokens(world.pool);
  world.draw(150);
  REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
  pool_type other;
  REQUIRE_OK(pool_type::make(world.bank, world.config, world.shape.heads, {}, other));
  for (std::size_t head = 0; head < world.shape.heads; ++head) {
    for (const kv_side which : kv_sides) {
      CHECK_FALSE(other.trained());
      std::vector<float> centroids(world.pool.side(which).shape.codebook_values());
      REQUIRE_OK(world.pool.read_codebook(head, which, centroids.data()));
      REQUIRE_OK(other.load_codebook(head, which, centroids.data()));
    }
  }
  CHECK(other.trained());
  sequence_type twin(other);
  REQUIRE_OK(twin.append(world.key_rows(), world.value_rows()));
  CHECK(read_all(world, tokens) == read_all(world, twin));
  std::vector<float> centroids(world.config.keys.shape.codebook_values(), 1.0f);
  CHECK(other.load_codebook(0, kv_side::keys, centroids.data()).code == status_code::unsupported);
  pool_type fresh;
  REQUIRE_OK(pool_type::make(world.bank, world.config, world.shape.heads, {}, fresh));
  centroids[5] = std::numeric_limits<float>::infinity();
  CHECK(fresh.load_codebook(0, kv_side::keys, centroids.data()).code == status_code::not_finite);
  CHECK(fresh.load_codebook(2, kv_side::keys, centroids.data()).code == status_code::invalid_argument);
  CHECK(fresh.read_codebook(0, kv_side::keys, centroids.data()).code == status_code::invalid_argument);
}

TEST_CASE("importance weights are gathered from the queries of appends", "[cache]") {
  // What the library gathers itself trains what the same weights from outside train.
  for (const std::size_t s : {0U, 3U}) {  // keys that arrive rotated, and not
    sequence_world world(edit_shapes[s], 42);
    CAPTURE(edit_shapes[s].name, world.random.seed());
    const std::size_t q_heads = world.shape.heads * world.shape.group;
    const std::size_t chunks[] = {20, 40, 35};  // the last one trains: 4 sinks, 60 behind them
    const std::size_t total = 95;
    world.draw(total);
    const std::vector<float> queries = world.random.normals(q_heads * total * world.shape.key_dim, 2.0f);
    const auto slice = [](const head_rows& rows, std::size_t first, std::size_t count) {
      return head_rows{rows.rows.slice(first, count), rows.heads, rows.head_stride};
    };
    const head_rows all_queries{view_rows(queries.data(), total, world.shape.key_dim), q_heads,
                                static_cast<std::ptrdiff_t>(total * world.shape.key_dim)};
    sequence_type gathered(world.pool);
    std::size_t done = 0;
    for (const std::size_t count : chunks) {
      const head_rows chunk_queries = slice(all_queries, done, count);
      append_options options;
      options.queries = &chunk_queries;
      REQUIRE_OK(
          gathered.append(slice(world.key_rows(), done, count), slice(world.value_rows(), done, count), options));
      done += count;
    }
    REQUIRE(world.pool.trained());
    // The same masses in double precision: each chunk's last 32 query tokens see what came before them.
    std::vector<double> mass(world.shape.heads * total, 0.0);
    std::vector<float> rotated = world.new_keys;
    for (std::size_t head = 0; head < world.shape.heads && !world.shape.arrives_rotated; ++head) {
      for (std::size_t i = 0; i < total; ++i) {
        rotate_row(world.config.rotation, static_cast<std::int64_t>(i), 1.0f,
                   rotated.data() + (head * total + i) * world.shape.key_dim);
      }
    }
    std::size_t end = 0;
    for (const std::size_t count : chunks) {
      end += count;
      for (std::size_t q = 0; q < q_heads; ++q) {
        const std::size_t head = q / world.shape.group;
        for (std::size_t token = end - std::min<std::size_t>(count, 32); token < end; ++token) {
          std::vector<double> scores(token + 1);
          double sum = 0.0;
          for (std::size_t key = 0; key <= token; ++key) {
            for (std::size_t c = 0; c < world.shape.key_dim; ++c) {
              scores[key] += double(queries[(q * total + token) * world.shape.key_dim + c]) *
                             double(rotated[(head * total + key) * world.shape.key_dim + c]);
            }
            sum += std::exp(scores[key] / std::sqrt(double(world.shape.key_dim)));
          }
          for (std::size_t key = 0; key <= token; ++key) {
            mass[head * total + key] += std::exp(scores[key] / std::sqrt(double(world.shape.key_dim))) / sum;
          }
        }
      }
    }
    pool_type weighted;
    pool_type plain;
    REQUIRE_OK(pool_type::make(world.bank, world.config, world.shape.heads, {}, weighted));
    REQUIRE_OK(pool_type::make(world.bank, world.config, world.shape.heads, {}, plain));
    const std::vector<float> weights(mass.begin(), mass.end());
    append_options options;
    options.weights = weights.data();
    sequence_type given(weighted);
    sequence_type unweighted(plain);
    REQUIRE_OK(given.append(world.key_rows(), world.value_rows(), options));
    REQUIRE_OK(unweighted.append(world.key_rows(), world.value_rows()));
    double difference = 0.0;
    double effect = 0.0;
    for (std::size_t head = 0; head < world.shape.heads; ++head) {
      std::vector<float> a(world.config.keys.shape.codebook_values());
      std::vector<float> b(a.size());
      std::vector<float> c(a.size());
      REQUIRE_OK(world.pool.read_codebook(head, kv_side::keys, a.data()));
      REQUIRE_OK(weighted.read_codebook(head, kv_side::keys, b.data()));
      REQUIRE_OK(plain.read_codebook(head, kv_side::keys, c.data()));
      for (std::size_t i = 0; i < a.size(); ++i) {
        difference = std::max(difference, double(std::abs(a[i] - b[i])));
        effect = std::max(effect, double(std::abs(a[i] - c[i])));
      }
    }
    CHECK(difference < 1e-3);
    CHECK(effect > 0.05);
    // Queries and weights, queries of another size or with an infinity are refused.
    options.queries = &all_queries;
    CHECK(unweighted.append(world.key_rows(), world.value_rows(), options).code == status_code::invalid_argument);
    options.weights = nullptr;
    const head_rows few = slice(all_queries, 0, 3);
    options.queries = &few;
    CHECK(unweighted.append(world.key_rows(), world.value_rows(), options).code == status_code::shape_mismatch);
    std::vector<float> numbers(all_queries.heads * all_queries.rows.rows * all_queries.rows.cols);
    numbers.back() = std::numeric_limits<float>::infinity();
    const head_rows infinite{view_rows(numbers.data(), all_queries.rows.rows, all_queries.rows.cols), all_queries.heads,
                             static_cast<std::ptrdiff_t>(all_queries.rows.rows * all_queries.rows.cols)};
    options.queries = &infinite;
    CHECK(unweighted.append(world.key_rows(), world.value_rows(), options).code == status_code::not_finite);
  }
}

TEST_CASE("an append of queries without tokens adds no importance", "[cache]") {
  const memory_resource dirty{[](void*, std::size_t bytes) {
                                void* memory = memory_resource::allocate_default(nullptr, bytes);
                                return memory == nullptr ? memory : std::memset(memory, 0x7f, bytes);
                              },
                              &memory_resource::deallocate_default, nullptr};
  sequence_world world(edit_shapes[0], 43, dirty);
  CAPTURE(world.random.seed());
  sequence_type tokens(world.pool);
  world.draw(20);
  REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
  world.draw(0);
  const float nothing = 0.0f;
  const head_rows queries{view_rows(&nothing, 0, world.shape.key_dim), world.shape.heads * world.shape.group, 0};
  append_options options;
  options.queries = &queries;
  REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows(), options));
  REQUIRE(tokens.recent().has_weights());
  for (std::size_t slot = 0; slot < tokens.recent().slots(); ++slot) {
    for (std::size_t head = 0; head < world.shape.heads; ++head) {
      REQUIRE(tokens.recent().weights(slot)[head] == 1.0f);
    }
  }
}

TEST_CASE("odd heads serve all settings, from no token on", "[cache]") {
  const edit_shape odd[] = {
      {.name = "one channel in a metric, turned",
       .key_dim = 1,
       .value_dim = 1,
       .key_subvectors = 1,
       .value_subvectors = 1,
       .centroids = 2,
       .rope = false,
       .metric = true,
       .turned_values = true,
       .joint_passes = 1,
       .sweeps = 1,
       .query_rows = 5},
      {.name = "one latent channel, one of tail",
       .key_dim = 1,
       .value_dim = 1,
       .key_subvectors = 1,
       .value_subvectors = 1,
       .centroids = 2,
       .heads = 1,
       .rope = false,
       .key_tail = 1,
       .values_from_keys = true},
      {.name = "1023 latent channels, one of tail",
       .key_dim = 1023,
       .value_dim = 1023,
       .key_subvectors = 37,
       .value_subvectors = 37,
       .centroids = 3,
       .heads = 1,
       .rope = false,
       .key_tail = 1,
       .values_from_keys = true},
      {.name = "two latent channels, a tail of 1022",
       .key_dim = 2,
       .value_dim = 3,
       .key_subvectors = 1,
       .value_subvectors = 3,
       .centroids = 3,
       .heads = 1,
       .exact = dtype::bf16,
       .key_tail = 1022},
      {.name = "201 channels in a metric, 67 turned",
       .key_dim = 201,
       .value_dim = 67,
       .key_subvectors = 13,
       .value_subvectors = 9,
       .centroids = 3,
       .stages = 2,
       .heads = 1,
       .metric = true,
       .turned_values = true,
       .joint_passes = 1,
       .sweeps = 2,
       .coding_batch = 5,
       .query_rows = 9},
  };
  for (const edit_shape& shape : odd) {
    sequence_world world(shape, 45);
    CAPTURE(shape.name, world.random.seed());
    sequence_type tokens(world.pool);
    model_sequence model;
    for (const std::size_t count : {0U, 1U, 0U, 70U, 1U, 9U}) {
      world.observe(tokens, count);
      append(world, tokens, model, count);
      world.check(tokens, model);
      world.check_attention({&tokens}, {&model}, tokens.next_position(), false, 0);
    }
    CHECK(world.pool.trained());
    CHECK((world.pool.has_transform(0, kv_side::keys)) == shape.metric);
    REQUIRE_OK(tokens.shift(1, tokens.size() - 1, 9));
    world.shift(model, 1, model.size() - 1, 9);
    world.check(tokens, model);
    tokens.truncate(1);
    model.remove(1, model.size() - 1);
    world.check(tokens, model);
    tokens.clear();
    world.check_attention({&tokens}, {}, 0, false, 0);
  }
}

TEST_CASE("numbers that no sequence can have are refused before anything is computed from them", "[cache]") {
  sequence_world world(shape_named("metric after RoPE, weights by attention"), 46);
  sequence_type tokens(world.pool);
  model_sequence model;
  append(world, tokens, model, 20);
  constexpr auto most = std::numeric_limits<std::int32_t>::max();
  CHECK(tokens.reserve(std::numeric_limits<std::size_t>::max()).code == status_code::capacity);
  CHECK(tokens.reserve(std::size_t{most} + 1).code == status_code::capacity);
  CHECK(tokens.remove(std::numeric_limits<std::size_t>::max(), 2).code == status_code::invalid_argument);
  CHECK(tokens.remove(2, std::numeric_limits<std::size_t>::max()).code == status_code::invalid_argument);
  CHECK(tokens.shift(0, 20, std::numeric_limits<std::int64_t>::min()).code == status_code::invalid_argument);
  const float row[32] = {};
  const std::size_t heads = world.shape.heads;
  const head_rows query{view_rows(row, 1, world.shape.key_dim), heads, 0};
  for (const std::int64_t position : {std::int64_t{-1}, std::int64_t{most}, std::numeric_limits<std::int64_t>::max()}) {
    CHECK(tokens.observe(query, position).code == status_code::invalid_argument);
  }
  const std::int64_t last = most;
  append_options options;
  options.positions = &last;
  world.draw(1);
  REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows(), options));
  world.append(model, last, tokens);
  CHECK(tokens.append(world.key_rows(), world.value_rows()).code == status_code::invalid_argument);  // no position left
  const std::vector<float> metrics(heads * world.shape.key_dim * world.shape.key_dim,
                                   std::numeric_limits<float>::quiet_NaN());
  options.key_metrics = metrics.data();
  CHECK(tokens.append(world.key_rows(), world.value_rows(), options).code == status_code::not_finite);
  world.check(tokens, model);
}

TEST_CASE("metrics of the keys come with the append that trains", "[cache]") {
  sequence_world world(shape_named("metric after RoPE, weights by attention"), 47);
  CAPTURE(world.random.seed());
  const std::size_t dim = world.shape.key_dim;
  std::vector<float> metrics(world.shape.heads * dim * dim);
  for (std::size_t i = 0; i < world.shape.heads * dim; ++i) {
    metrics[i * dim + i % dim] = 1.0f + static_cast<float>(i);
  }
  append_options options;
  options.key_metrics = metrics.data();
  sequence_type tokens(world.pool);
  world.draw(100);
  REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows(), options));
  for (std::size_t head = 0; head < world.shape.heads; ++head) {
    std::vector<float> full(dim * dim);
    REQUIRE(world.pool.has_transform(head, kv_side::keys));
    unpack_metric(world.pool.metric(head, kv_side::keys), dim, full.data());
    // Kept with a diagonal of mean 1, in binary16, raised by as much as rounding moved.
    const float* given = metrics.data() + head * dim * dim;
    double trace = 0.0;
    for (std::size_t i = 0; i < dim; ++i) {
      trace += static_cast<double>(given[i * dim + i]);
    }
    for (std::size_t i = 0; i < dim * dim; ++i) {
      const double want = static_cast<double>(given[i]) * static_cast<double>(dim) / trace;
      CHECK(std::fabs(static_cast<double>(full[i]) - want) <= 0x1p-9 * want);
    }
  }
}

TEST_CASE("what pages do not serve is refused", "[cache]") {
  f32_bank bank;
  const auto refused = [&](auto&& change) {
    sequence_world world(edit_shapes[0], 43);
    cache_config config = world.config;
    change(config);
    pool_type pool;
    return pool_type::make(bank, config, 1, {}, pool).code == status_code::unsupported;
  };
  CHECK(refused([](cache_config& config) { config.window_tokens = 64; }));
  CHECK(refused([](cache_config& config) { config.refresh_above = 1.5f; }));
  CHECK_FALSE(refused([](cache_config& config) { config.track_errors = true; }));
  CHECK_FALSE(refused([](cache_config&) {}));
  // Tails and values from keys go with some switches only, and not with caches.
  const auto latent = [](cache_config& config) {
    config.values = config.keys;
    config.rotation = {};
    config.key_tail = 4;
    config.values_from_keys = true;
  };
  CHECK_FALSE(refused(latent));
  for (const auto& change :
       {+[](cache_config& config) { config.keys.metric = true; }, +[](cache_config& config) { config.query_rows = 4; },
        +[](cache_config& config) { config.keys.coded = false; }}) {
    CHECK(refused([&](cache_config& config) {
      latent(config);
      change(config);
    }));
  }
  sequence_world world(edit_shapes[0], 43);
  cache_config config = world.config;
  latent(config);
  head_cache<f32_bank> cache;
  CHECK(head_cache<f32_bank>::make(bank, config, {}, cache).code == status_code::unsupported);
  pool_type pool;
  cache_config other = config;
  other.values.shape.subvectors = config.keys.shape.subvectors + 1;
  const status uneven = pool_type::make(bank, other, 1, {}, pool);
  CHECK(uneven.code == status_code::shape_mismatch);
  CHECK(uneven.expected == config.keys.shape.subvectors);
  CHECK(uneven.got == config.keys.shape.subvectors + 1);
  other = config;
  other.key_tail = 1020;
  CHECK(pool_type::make(bank, other, 1, {}, pool).code == status_code::invalid_argument);
  other = config;
  other.rotation = world.config.rotation;  // turns more channels than the tail has
  CHECK(pool_type::make(bank, other, 1, {}, pool).code == status_code::shape_mismatch);
}

TEST_CASE("memory of pool and sequences is accounted for to the byte", "[cache]") {
  for (const edit_shape& shape : edit_shapes) {
    counting_resource memory;
    sequence_world world(shape, 39, memory.resource());
    CAPTURE(shape.name, world.random.seed());
    std::vector<sequence_type> tokens;
    tokens.emplace_back(world.pool);
    tokens.emplace_back(world.pool);
    const auto accounted = [&] {
      std::size_t bytes = world.pool.memory().total_bytes();
      for (const sequence_type& one : tokens) {
        bytes += one.metadata_bytes();
      }
      return bytes;
    };
    CHECK(accounted() == memory.live_bytes);
    for (const std::size_t count : {1U, 30U, 200U, 300U}) {
      world.draw(count);
      world.observe(tokens[0], 2);
      CHECK(accounted() == memory.live_bytes);
      REQUIRE_OK(tokens[0].append(world.key_rows(), world.value_rows()));
      CHECK(accounted() == memory.live_bytes);
      REQUIRE_OK(tokens[0].fork(tokens[1]));
      CHECK(accounted() == memory.live_bytes);
      const bool full = world.pool.epoch_count() == world.config.most_epochs;
      const status refreshed = world.refresh(tokens[0]);
      CHECK(refreshed.code == (!world.pool.trained() ? status_code::unsupported
                               : full                ? status_code::capacity
                                                     : status_code::ok));
      CHECK(accounted() == memory.live_bytes);
    }
    REQUIRE_OK(tokens[0].fork(tokens[1]));
    CHECK(accounted() == memory.live_bytes);
    tokens[1].truncate(77);
    world.draw(5);
    REQUIRE_OK(tokens[1].append(world.key_rows(), world.value_rows()));
    tokens[0].clear();
    CHECK(accounted() == memory.live_bytes);
  }
}

TEST_CASE("a long prompt is coded from the caller's rows and never stored exact", "[cache]") {
  for (const char* name : {"before RoPE", "outliers before RoPE", "outliers of a preset"}) {
    counting_resource memory;
    sequence_world world(shape_named(name), 44, memory.resource());
    CAPTURE(name, world.random.seed());
    cache_config config = world.config;
    config.max_training_tokens = 128;
    config.exact_type = dtype::f16;
    config.outlier_share = std::min(config.outlier_share, 0.01f);
    pool_type pool;
    REQUIRE_OK(pool_type::make(world.bank, config, world.shape.heads, memory.resource(), pool));
    world.draw(8000);
    sequence_type tokens(pool);
    REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
    CHECK(pool.training(0, kv_side::keys).samples == 128);
    const std::size_t exact_bytes = 8000 * world.shape.heads * (world.shape.key_dim + world.shape.value_dim) * 2;
    // Besides codes up to two outliers a page, which the heavy tail of these rows makes use of.
    const std::size_t bound = exact_bytes / (config.outlier_share > 0.0f ? 3 : 4);
    CHECK(memory.peak_bytes < bound);
    CHECK(pool.memory().total_bytes() + tokens.metadata_bytes() < bound);
  }
}

TEST_CASE("going over to codes gives exact pages back", "[cache]") {
  counting_resource memory;
  sequence_world world(edit_shapes[0], 40, memory.resource());
  sequence_type tokens(world.pool);
  for (std::size_t i = 0; i < 600; ++i) {
    world.draw(1);
    REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
  }
  CHECK(tokens.coded_tokens() == 600 - 14);
  CHECK(world.pool.exact_pages().used_pages() <= 3);
}

TEST_CASE("decode steps in reserved room, attention included, are free of allocations", "[cache]") {
  const edit_shape& shape = GENERATE(edit_shapes[0], shape_named("outliers before RoPE"));
  counting_resource memory;
  sequence_world world(shape, 41, memory.resource());
  CAPTURE(shape.name, world.random.seed());
  sequence_type tokens(world.pool);
  world.draw(100);
  REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
  REQUIRE_OK(tokens.reserve(300));
  batch_type batch;
  REQUIRE_OK(batch_type::make(world.bank, {}, memory.resource(), batch));
  const std::size_t heads = world.shape.heads * world.shape.group;
  const std::vector<float> queries = world.random.normals(heads * world.shape.key_dim);
  std::vector<float> out(heads * world.shape.value_dim);
  const sequence_type* context[] = {&tokens};
  batch_entry<f32_bank> entry;
  entry.queries = 1;
  entry.sequences = context;
  entry.sequence_count = 1;
  const auto attend = [&] {
    entry.first_position = tokens.next_position() - 1;
    REQUIRE_OK(batch.attend(world.pool, &entry, 1,
                            {view_rows(queries.data(), 1, world.shape.key_dim), heads, world.shape.key_dim}, {},
                            {ref_rows(out.data(), 1, world.shape.value_dim), heads, world.shape.value_dim}));
  };
  std::size_t before = 0;
  for (std::size_t i = 0; i < 300; ++i) {
    world.draw(1);
    REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
    attend();
    if (i == 70) {  // the window has wandered over a page: scratch has its final size
      before = memory.allocations;
    }
  }
  CHECK(memory.allocations == before);
}

}  // namespace
