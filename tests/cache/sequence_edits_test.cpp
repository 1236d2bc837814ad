// SPDX-License-Identifier: MIT
// Random edits of several sequences of one pool, compared with the model after every step. PQATTN_EDIT_STEPS sets the
// number of steps in all (default 2000): PQATTN_EDIT_STEPS=20000 scripts/test -- -R cache.sequence_edits
#include <pqattn/cache/sequence.hpp>

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "cache/sequence_model.hpp"

namespace {

using namespace pqattn;
using namespace pqattn_test;
using pqattn_test::random_data;

constexpr std::size_t sequences_alive = 4;
constexpr std::size_t longest = 260;

std::size_t steps_in_all() {
  const char* given = std::getenv("PQATTN_EDIT_STEPS");
  return given == nullptr ? 2000 : std::strtoull(given, nullptr, 10);
}

/// Sequences and their models, side by side.
class edited_pool {
 public:
  edited_pool(const edit_shape& shape, std::uint64_t stream) : world(shape, stream) {
    for (std::size_t i = 0; i < sequences_alive; ++i) {
      sequences.emplace_back(world.pool);
    }
    models.resize(sequences_alive);
  }

  void step() {
    random_data& random = world.random;
    const std::size_t i = random.below(sequences_alive);
    sequence_type& tokens = sequences[i];
    model_sequence& model = models[i];
    switch (random.below(13)) {
      case 0:
      case 1: append(i, 1 + random.below(3)); break;
      case 2: append(i, 1 + random.below(100)); break;
      case 3: prefill(i, 1 + random.below(40)); break;
      case 4: truncate(i, tokens.size() - random.below(tokens.size() + 1) / (1 + random.below(8))); break;
      case 5: {  // speculative decoding: drafts, of which a prefix is accepted
        const std::size_t before = tokens.size();
        append(i, 1 + random.below(6));
        truncate(i, before + random.below(tokens.size() - before + 1));
        break;
      }
      case 6: {
        const std::size_t first = random.below(tokens.size() + 1);
        const std::size_t count = random.below(tokens.size() - first + 1) / (1 + random.below(6));
        last = "remove " + std::to_string(first) + "+" + std::to_string(count);
        REQUIRE_OK(tokens.remove(first, count));
        model.remove(first, count);
        break;
      }
      case 7: {
        const std::size_t to = random.below(sequences_alive);
        last = "fork to " + std::to_string(to);
        REQUIRE_OK(tokens.fork(sequences[to]));
        models[to] = models[i];
        break;
      }
      case 8: shift(i); break;
      case 9: {
        std::vector<std::size_t> parents(sequences_alive);
        for (std::size_t& parent : parents) {
          parent = random.below(sequences_alive);
        }
        last = "select";
        REQUIRE_OK(sequence_type::select(sequences.data(), sequences_alive, parents.data()));
        const std::vector<model_sequence> old = models;
        for (std::size_t k = 0; k < sequences_alive; ++k) {
          models[k] = old[parents[k]];
        }
        break;
      }
      case 10:
        if (random.chance(0.15)) {
          last = "clear";
          tokens.clear();
          model = {};
        }
        break;
      case 11: refresh(i); break;
      default: {  // a context made of two sequences
        const std::size_t other = random.below(sequences_alive);
        last = "cascade";
        if (other != i) {
          world.check_attention({&tokens, &sequences[other]}, {&model, &models[other]},
                                std::max(tokens.next_position(), sequences[other].next_position()), false, 0);
        }
        break;
      }
    }
    world.check(tokens, model);
    world.check_attention({&tokens}, {&model}, tokens.next_position() - static_cast<std::int64_t>(random.below(3)),
                          false, random.chance(0.2) ? 17 : 0);
  }

  /// A prompt that certainly trains, whatever the steps before were.
  void train() {
    sequences[0].clear();
    models[0] = {};
    append(0, world.shape.sinks + world.shape.train_tokens);
  }

  void check_all() {
    for (std::size_t i = 0; i < sequences_alive; ++i) {
      world.check(sequences[i], models[i]);
    }
  }

  sequence_world world;
  std::vector<sequence_type> sequences;
  std::vector<model_sequence> models;
  std::string last;
  std::size_t refreshes = 0;

 private:
  void append(std::size_t i, std::size_t count) {
    if (sequences[i].size() + count > longest) {
      truncate(i, sequences[i].size() / 3);
    }
    last = "append " + std::to_string(count);
    world.draw(count, world.any_type());
    // Positions now and then leave a gap.
    std::vector<std::int64_t> positions;
    std::int64_t first = sequences[i].next_position();
    if (world.random.chance(0.2)) {
      first += static_cast<std::int64_t>(world.random.below(50));
    }
    for (std::size_t k = 0; k < count; ++k) {
      positions.push_back(first + static_cast<std::int64_t>(k));
    }
    append_options options;
    options.positions = world.random.chance(0.5) || first != sequences[i].next_position() ? positions.data() : nullptr;
    if (world.random.chance(0.5)) {
      world.observe(sequences[i], std::min<std::size_t>(count, 4));
    }
    REQUIRE_OK(world.append_handed(sequences[i], options));
    world.append(models[i], first, sequences[i]);
  }
  void prefill(std::size_t i, std::size_t count) {
    if (sequences[i].size() + count > longest) {
      truncate(i, sequences[i].size() / 2);
    }
    last = "prefill " + std::to_string(count);
    world.draw(count, world.any_type());
    const std::int64_t first = sequences[i].next_position();
    world.check_attention({&sequences[i]}, {&models[i]}, first, true, 0);
    REQUIRE_OK(world.append_handed(sequences[i]));
    world.append(models[i], first, sequences[i]);
  }
  /// New codebooks from rows that no sequence keeps. Only what holds a page of an epoch keeps it.
  void refresh(std::size_t i) {
    pool_type& pool = world.pool;
    std::set<std::size_t> old;
    for (const model_sequence& model : models) {
      for (const model_token& token : model.body) {
        old.insert(token.epoch);
      }
    }
    const std::uint64_t id = pool.epoch_id(pool.newest_epoch());
    const status refreshed = world.refresh(sequences[i]);
    last = "refresh to " + std::to_string(id + 1) + ": " + message_of(refreshed);
    if (!pool.trained()) {
      CHECK(refreshed.code == status_code::unsupported);
    } else if (old.size() >= world.config.most_epochs) {
      CHECK(refreshed.code == status_code::capacity);
      CHECK(pool.epoch_id(pool.newest_epoch()) == id);
    } else {
      REQUIRE_OK(refreshed);
      CHECK(pool.epoch_id(pool.newest_epoch()) == id + 1);
      CHECK(pool.epoch_count() == old.size() + 1);
      ++refreshes;
    }
  }
  void truncate(std::size_t i, std::size_t size) {
    last = "truncate to " + std::to_string(size);
    const std::size_t held = models[i].size();
    sequences[i].truncate(size);
    models[i].remove(size, held - std::min(size, held));
  }
  void shift(std::size_t i) {
    random_data& random = world.random;
    sequence_type& tokens = sequences[i];
    const std::size_t first = random.below(tokens.size() + 1);
    const std::size_t count = random.below(tokens.size() - first + 1);
    std::int64_t lowest = std::numeric_limits<std::int32_t>::max();
    for (std::size_t k = first; k < first + count; ++k) {
      lowest = std::min(lowest, tokens.position(k));
    }
    const std::int64_t down = std::min<std::int64_t>(count == 0 ? 0 : lowest, 40);
    const std::int64_t delta = static_cast<std::int64_t>(random.below(60)) - down;
    last = "shift " + std::to_string(first) + "+" + std::to_string(count) + " by " + std::to_string(delta);
    shift_report report;
    REQUIRE_OK(tokens.shift(first, count, delta, &report));
    CHECK(report.tokens == count);
    CHECK((report.recoded_keys == 0 || tokens.can_shift() == shift_cost::recoded));
    world.shift(models[i], first, count, delta);
  }
};

TEST_CASE("after any edits a sequence holds what its model holds", "[cache][edits]") {
  const std::size_t shapes = std::size(edit_shapes);
  for (std::size_t s = 0; s < shapes; ++s) {
    // The wide shape is slow: a fiftieth of the steps are its.
    const bool wide = edit_shapes[s].key_dim > 100;
    const std::size_t steps = wide ? steps_in_all() / 50 : steps_in_all() * 98 / 100 / (shapes - 1);
    const std::size_t rounds = steps / 400 + 1;
    for (std::size_t round = 0; round < rounds; ++round) {
      edited_pool edited(edit_shapes[s], 100 * s + round);
      std::size_t step = 0;
      CAPTURE(edit_shapes[s].name, edited.world.random.seed());
      for (; step < steps / rounds + (round < steps % rounds ? 1 : 0); ++step) {
        if (step == 40 && !edited.world.pool.trained()) {
          edited.train();
        }
        INFO("step " << step << ", after " << edited.last);
        edited.step();
        if (step % 16 == 0) {
          edited.check_all();
        }
      }
      edited.check_all();
      CHECK((step <= 40 || edited.world.pool.trained() == edited.world.config.codes_anything()));
      // Whatever the edits were, no page is lost.
      for (sequence_type& tokens : edited.sequences) {
        tokens.clear();
      }
      CHECK(edited.world.pool.coded_pages().used_pages() == 0);
      CHECK(edited.world.pool.exact_pages().used_pages() == 0);
      // And of the epochs only the newest is left.
      CHECK(edited.world.pool.epoch_count() == (edited.world.pool.trained() ? 1U : 0U));
      CHECK((step < 90 || edited.refreshes != 0 || !edited.world.pool.trained()));
      for (std::size_t page = 0; page < edited.world.pool.coded_pages().pages(); ++page) {
        CHECK(edited.world.pool.outliers().most_in(page) == 0);
      }
    }
  }
}

}  // namespace
