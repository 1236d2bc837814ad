// SPDX-License-Identifier: MIT
// What sequence::reserve() promises: appends that ask the allocator for nothing, in pools of every shape.
#include <pqattn/cache/sequence.hpp>

#include <catch2/catch_test_macros.hpp>
#include <limits>
#include <string>
#include <vector>

#include "cache/sequence_model.hpp"
#include "support/executors.hpp"

namespace {

using namespace pqattn;
using namespace pqattn_test;
using pqattn_test::random_data;

/// A window and sinks of many pages, which a pool's spare pages do not cover.
constexpr edit_shape long_window{.name = "a window of many pages",
                                 .key_dim = 3,
                                 .value_dim = 2,
                                 .key_subvectors = 1,
                                 .value_subvectors = 1,
                                 .heads = 1,
                                 .sinks = 700,
                                 .recent = 700,
                                 .train_tokens = 1000};

std::vector<edit_shape> all_shapes() {
  std::vector<edit_shape> shapes(std::begin(edit_shapes), std::end(edit_shapes));
  shapes.push_back(long_window);
  return shapes;
}

/// A pool, some of its sequences with their models, and an allocator that can be told to refuse everything.
struct reserve_scene {
  counting_resource memory;
  sequence_world world;
  std::vector<sequence_type> sequences;
  std::vector<model_sequence> models;

  reserve_scene(const edit_shape& shape, std::uint64_t stream, std::size_t count)
      : world(shape, stream, memory.resource()), models(count) {
    for (std::size_t i = 0; i < count; ++i) {
      sequences.emplace_back(world.pool);
    }
  }

  void append(std::size_t i, std::size_t count, const executor& parts = {}) {
    world.draw(count);
    const std::int64_t first = sequences[i].next_position();
    append_options options;
    options.parts = parts;
    REQUIRE_OK(sequences[i].append(world.key_rows(), world.value_rows(), options));
    world.append(models[i], first, sequences[i]);
  }
  /// The same without any memory, unless this append trains.
  void append_reserved(std::size_t i, std::size_t count, const executor& parts = {}) {
    world.draw(count);
    const std::int64_t first = sequences[i].next_position();
    append_options options;
    options.parts = parts;
    memory.fail_after = memory.allocations;
    status outcome = sequences[i].append(world.key_rows(), world.value_rows(), options);
    memory.fail_after = std::numeric_limits<std::size_t>::max();
    if (!outcome && !world.pool.trained()) {
      const std::size_t before = memory.allocations;
      outcome = sequences[i].append(world.key_rows(), world.value_rows(), options);
      CHECK((world.pool.trained() || memory.allocations == before));
    }
    REQUIRE_OK(outcome);
    world.append(models[i], first, sequences[i]);
  }
  void truncate(std::size_t i, std::size_t size) {
    models[i].remove(size, models[i].size() - size);
    sequences[i].truncate(size);
  }
  void remove(std::size_t i, std::size_t first, std::size_t count) {
    models[i].remove(first, count);
    REQUIRE_OK(sequences[i].remove(first, count));
  }
  void clear(std::size_t i) {
    models[i] = {};
    sequences[i].clear();
  }
  void fork(std::size_t i, std::size_t to) {
    REQUIRE_OK(sequences[i].fork(sequences[to]));
    models[to] = models[i];
  }
  void check() {
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      world.check(sequences[i], models[i]);
    }
  }
};

TEST_CASE("appends into reserved room allocate nothing, in pools of every shape", "[cache]") {
  const std::vector<edit_shape> shapes = all_shapes();
  for (std::size_t s = 0; s < shapes.size(); ++s) {
    const edit_shape& shape = shapes[s];
    const bool wide = shape.key_dim > 100;
    for (std::uint64_t stream = 0; stream < (wide ? 1U : 3U); ++stream) {
      reserve_scene scene(shape, 7000 + 100 * s + stream, 4);
      random_data& random = scene.world.random;
      CAPTURE(shape.name, random.seed());
      for (std::size_t round = 0; round < (wide ? 3U : 10U); ++round) {
        CAPTURE(round);
        // Two sequences grow side by side into their reserves; the others are forks that share their pages.
        std::size_t left[2] = {1 + random.below(wide ? 90 : shape.recent > 300 ? 2500 : 300), 1 + random.below(40)};
        for (std::size_t i = 0; i < 2; ++i) {
          if (random.chance(0.4)) {
            scene.fork(i, 2 + i);
          }
        }
        for (std::size_t i = 0; i < 2; ++i) {
          REQUIRE_OK(scene.sequences[i].reserve(left[i]));
        }
        while (left[0] + left[1] > 0) {
          const std::size_t i = left[1] == 0 || (left[0] != 0 && random.chance(0.6)) ? 0 : 1;
          const std::size_t most = random.chance(0.5) ? 4 : left[i];
          const std::size_t count = 1 + random.below(std::min(most, left[i]));
          scene.append_reserved(i, count);
          left[i] -= count;
          sequence_type& grown = scene.sequences[i];
          switch (random.below(10)) {
            case 0: scene.truncate(i, grown.size() - random.below(grown.size() + 1) / 3); break;
            case 1: {  // of coded tokens, of which any may go
              const std::size_t coded = grown.coded_tokens();
              const std::size_t first = random.below(coded + 1);
              scene.remove(i, grown.sinks().tokens() + first, random.below(coded - first + 1) / 2);
              break;
            }
            case 2: scene.clear(2 + i); break;
            default: break;
          }
        }
        scene.check();
        for (std::size_t i = 0; i < 4; ++i) {
          if (random.chance(0.2) || scene.sequences[i].size() > 600 + 5 * shape.recent) {
            scene.clear(i);
          }
        }
      }
      CHECK((scene.world.pool.trained() || !scene.world.config.codes_anything()));
    }
  }
}

TEST_CASE("a reserve lasts over forks whose pages it copies and counts workers", "[cache]") {
  shuffled_executor shuffled(3, 5);
  for (const edit_shape& shape : all_shapes()) {
    reserve_scene scene(shape, 61, 2);
    CAPTURE(shape.name, scene.world.random.seed());
    scene.append(0, shape.sinks + 151);
    scene.fork(0, 1);
    const std::size_t total = 200 + 4 * std::size_t{shape.recent};
    REQUIRE_OK(scene.sequences[0].reserve(total, 3));
    scene.append_reserved(0, 1, shuffled.get());  // copies the last page of each part
    // The window is full of new tokens, then all of them leave while as many enter.
    scene.append_reserved(0, shape.recent + 3, shuffled.get());
    scene.append_reserved(0, 2 * shape.recent + 50, shuffled.get());
    scene.append_reserved(0, total - 54 - 3 * std::size_t{shape.recent}, shuffled.get());
    scene.check();
  }
}

TEST_CASE("a reserve knows of exact tokens that leave once another sequence has trained the pool", "[cache]") {
  reserve_scene scene(long_window, 66, 2);
  CAPTURE(scene.world.random.seed());
  scene.append(1, long_window.sinks + long_window.train_tokens - 1);
  scene.append(0, long_window.sinks + long_window.train_tokens);
  REQUIRE(scene.world.pool.trained());
  REQUIRE(scene.sequences[1].coded_tokens() == 0);
  REQUIRE_OK(scene.sequences[1].reserve(5));
  scene.append_reserved(1, 1);
  CHECK(scene.sequences[1].coded_tokens() == long_window.train_tokens - long_window.recent);
  scene.append_reserved(1, 4);
  scene.check();
}

TEST_CASE("a reserve ends with what it was for, and its memory is given back", "[cache]") {
  for (const edit_shape& shape : all_shapes()) {
    reserve_scene scene(shape, 62, 3);
    CAPTURE(shape.name, scene.world.random.seed());
    const auto exact_bytes = [&] { return scene.world.pool.memory().exact_bytes; };
    scene.append(0, shape.sinks + shape.train_tokens + 200);
    for (std::size_t i = 0; i < 3; ++i) {
      scene.clear(i);
    }
    const std::size_t spare = exact_bytes();  // slabs of exact sides, a few pages and cells
    const pool_type& pool = scene.world.pool;
    const std::size_t cell =
        pool.row_dim(kv_side::keys) + (pool.stores(kv_side::values) ? pool.row_dim(kv_side::values) : 0);
    CHECK(pool.outliers().held_bytes() <= pool.outliers().heads() * 2 * cell * size_of(pool.config().exact_type));
    const auto grows = [&](std::size_t i) {
      REQUIRE_OK(scene.sequences[i].reserve(64 * 20));
      CHECK(exact_bytes() >= spare);
    };
    // Room for coded pages never shrinks: taken once beforehand.
    grows(0);
    grows(1);
    grows(2);
    for (std::size_t i = 0; i < 3; ++i) {
      REQUIRE_OK(scene.sequences[i].reserve(0));
    }
    const std::size_t settled = exact_bytes();
    grows(0);
    scene.append_reserved(0, 64 * 20);
    scene.clear(0);
    CHECK(exact_bytes() <= settled);
    grows(1);
    scene.sequences[1] = sequence_type(scene.world.pool);
    CHECK(exact_bytes() <= settled);
    grows(2);
    REQUIRE_OK(scene.sequences[0].fork(scene.sequences[2]));
    CHECK(exact_bytes() <= settled);
    grows(2);
    {
      const sequence_type moved = std::move(scene.sequences[2]);
      CHECK(exact_bytes() >= settled);
    }
    CHECK(exact_bytes() <= settled);
  }
}

TEST_CASE("each allocation of a reserve may fail in turn", "[cache]") {
  // Before RoPE, values exact, latent, outliers.
  for (const std::size_t s : {0U, 3U, 13U, 16U}) {
    const edit_shape& shape = edit_shapes[s];
    bool succeeded = false;
    for (std::size_t fail = 0; !succeeded; ++fail) {
      REQUIRE(fail < 2000);
      reserve_scene scene(shape, 63, 1);
      CAPTURE(shape.name, fail, scene.world.random.seed());
      scene.append(0, 100);
      scene.memory.fail_after = scene.memory.allocations + fail;
      const status outcome = scene.sequences[0].reserve(150);
      scene.memory.fail_after = std::numeric_limits<std::size_t>::max();
      succeeded = outcome.ok();
      CHECK((succeeded || outcome.code == status_code::out_of_memory));
      scene.check();
      REQUIRE_OK(scene.sequences[0].reserve(150));
      scene.append_reserved(0, 150);
      scene.check();
    }
  }
}

TEST_CASE("reserves for no worker or for too many are refused", "[cache]") {
  reserve_scene scene(edit_shapes[0], 64, 1);
  CHECK(scene.sequences[0].reserve(5, 0).code == status_code::invalid_argument);
  CHECK(scene.sequences[0].reserve(5, max_workers + 1).code == status_code::invalid_argument);
  CHECK(scene.sequences[0].reserve(5, std::numeric_limits<std::size_t>::max()).code == status_code::invalid_argument);
}

}  // namespace
