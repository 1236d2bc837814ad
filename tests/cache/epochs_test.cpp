// SPDX-License-Identifier: MIT
// Epochs of a pool's codebooks: what a refresh keeps, what it costs, what it gains. The random edits refresh, too.
#include <pqattn/cache/sequence.hpp>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "cache/sequence_model.hpp"
#include "pqattn/cache/layer_cache.hpp"
#include "support/patience.hpp"

namespace {

using namespace pqattn;
using namespace pqattn_test;

const edit_shape& shape_named(const std::string& name) {
  return *std::find_if(std::begin(edit_shapes), std::end(edit_shapes),
                       [&](const edit_shape& shape) { return name == shape.name; });
}

void append(sequence_world& world, sequence_type& tokens, model_sequence& model, std::size_t count) {
  world.draw(count);
  const std::int64_t first = tokens.next_position();
  REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
  world.append(model, first, tokens);
}

/// Memory whose every number is NaN: slots that a refresh leaves empty are never written.
memory_resource dirty_memory() {
  return {[](void*, std::size_t bytes) {
            void* memory = memory_resource::allocate_default(nullptr, bytes);
            return memory == nullptr ? memory : std::memset(memory, 0xff, bytes);
          },
          &memory_resource::deallocate_default, nullptr};
}

/// Codes of one side of a head, token after token of the body.
std::vector<std::uint16_t> codes_of(const sequence_world& world, const sequence_type& tokens, std::size_t head,
                                    kv_side which) {
  std::vector<std::uint16_t> codes;
  const token_list& body = tokens.body();
  const std::size_t groups = world.pool.side(which).shape.groups();
  for (std::size_t slot = body.next_live(0); slot < body.slots(); slot = body.next_live(slot + 1)) {
    codes.resize(codes.size() + groups);
    REQUIRE_OK(world.bank.load_codes(world.pool.codes(head, which, body.pages()), {slot, 1},
                                     codes.data() + codes.size() - groups));
  }
  return codes;
}
/// Keys and values of a head as attention sees them.
std::vector<float> rows_of(const sequence_world& world, const sequence_type& tokens, std::size_t head,
                           std::size_t count) {
  const std::size_t keys = count * world.shape.key_channels();
  std::vector<float> rows(keys + count * world.shape.value_dim);
  REQUIRE_OK(tokens.read(head, 0, ref_rows(rows.data(), count, world.shape.key_channels()),
                         ref_rows(rows.data() + keys, count, world.shape.value_dim)));
  return rows;
}

TEST_CASE("a refresh changes no code and no bit of what is there, only what comes", "[cache]") {
  for (const edit_shape& shape : edit_shapes) {
    if (!shape.keys_coded && !shape.values_coded) {
      continue;
    }
    sequence_world world(shape, 81, dirty_memory());
    CAPTURE(shape.name, world.random.seed());
    sequence_type tokens(world.pool);
    model_sequence model;
    world.observe(tokens, 4);
    append(world, tokens, model, shape.sinks + shape.train_tokens + 75);
    const std::size_t coded = tokens.coded_tokens();
    const std::size_t segments = tokens.segment_count();
    std::vector<float> transform(world.pool.transform_floats(kv_side::keys));
    if (world.pool.has_transform(0, kv_side::keys)) {
      world.pool.read_transform(0, kv_side::keys, transform.data());
    }
    std::vector<std::vector<std::uint16_t>> codes;
    std::vector<std::vector<float>> rows;
    const auto collect = [&] {
      codes.clear();
      rows.clear();
      for (std::size_t head = 0; head < shape.heads; ++head) {
        rows.push_back(rows_of(world, tokens, head, shape.sinks + coded));
        for (const kv_side which : kv_sides) {
          if (world.pool.stores(which) && world.pool.side(which).coded) {
            codes.push_back(codes_of(world, tokens, head, which));
            codes.back().resize(coded * world.pool.side(which).shape.groups());
          }
        }
      }
    };
    collect();
    const auto codes_before = codes;
    const auto rows_before = rows;
    REQUIRE_OK(world.refresh(tokens));
    CHECK(world.pool.epoch_count() == 2);
    CHECK(tokens.segment_count() == segments);
    world.check(tokens, model);
    append(world, tokens, model, 100);
    CHECK(tokens.coded_tokens() > coded);
    // A page has codes of one epoch, so that the body is two segments now.
    const bool paged = !shape.keys_coded || !shape.values_coded;
    CHECK((paged || tokens.segment_count() - tokens.recent().page_count() - tokens.sinks().page_count() ==
                        2U + (shape.outlier_share > 0.0f ? 1 : 0)));
    collect();
    const bool same = codes == codes_before && rows == rows_before;
    CHECK(same);
    world.check(tokens, model);
    world.check_attention({&tokens}, {&model}, tokens.next_position(), false, 0);
    world.check_attention({&tokens}, {&model}, tokens.next_position() - 120, false, 40);
    // The new codebooks are others, the transforms are not.
    const kv_side side = shape.keys_coded ? kv_side::keys : kv_side::values;
    std::vector<float> before(world.pool.side(side).shape.codebook_values());
    std::vector<float> after(before.size());
    REQUIRE_OK(world.pool.read_codebook(0, side, world.pool.epoch_in_order(0), before.data()));
    REQUIRE_OK(world.pool.read_codebook(0, side, after.data()));
    CHECK(before != after);
    if (world.pool.has_transform(0, kv_side::keys)) {
      std::vector<float> kept(transform.size());
      world.pool.read_transform(0, kv_side::keys, kept.data());
      CHECK(kept == transform);
    }
  }
}

TEST_CASE("epochs without pages are given back, beyond the limit a refresh is refused", "[cache]") {
  counting_resource memory;
  sequence_world world(edit_shapes[0], 82, memory.resource());
  CAPTURE(world.random.seed());
  world.config.most_epochs = 2;
  pool_type& pool = world.pool;
  REQUIRE_OK(pool_type::make(world.bank, world.config, world.shape.heads, memory.resource(), pool));
  sequence_type first(pool);
  sequence_type second(pool);
  sequence_type third(pool);
  CHECK(pool.epoch_count() == 0);
  CHECK(world.refresh(first).code == status_code::unsupported);
  model_sequence models[3];
  append(world, first, models[0], 120);
  const std::size_t one_epoch = pool.memory().codebooks_bytes;
  CHECK(one_epoch != 0);
  CHECK(pool.epoch_count() == 1);
  REQUIRE_OK(world.refresh(first));
  CHECK(pool.memory().codebooks_bytes == 2 * one_epoch);
  // The newest has no page yet: another takes its place.
  REQUIRE_OK(world.refresh(first));
  CHECK(pool.epoch_id(pool.newest_epoch()) == 2);
  CHECK(pool.epoch_count() == 2);
  CHECK(pool.memory().codebooks_bytes == 2 * one_epoch);
  append(world, second, models[1], 40);
  const status refused = world.refresh(second);
  CHECK(refused.code == status_code::capacity);
  CHECK(refused.expected == 2);
  CHECK(refused.got == 3);
  CHECK(pool.epoch_id(pool.newest_epoch()) == 2);
  // Pages shared by a fork count once, and the last user gives the epoch back.
  REQUIRE_OK(first.fork(third));
  first.clear();
  models[2] = models[0];
  CHECK(pool.epoch_count() == 2);
  world.check(third, models[2]);
  third.clear();
  CHECK(pool.epoch_count() == 1);
  CHECK(pool.memory().codebooks_bytes == one_epoch);
  world.check(second, models[1]);
  REQUIRE_OK(world.refresh(second));
  append(world, second, models[1], 70);
  world.check(second, models[1]);
  // An epoch that is held stays without a page.
  CHECK(pool.hold_epoch(0).code == status_code::invalid_argument);
  REQUIRE_OK(pool.hold_epoch(2));
  REQUIRE_OK(second.remove(0, second.size() - 10));
  models[1].remove(0, models[1].size() - 10);
  CHECK(pool.epoch_pages(pool.epoch_in_order(0)) == 0);
  CHECK(pool.epoch_count() == 2);
  CHECK(pool.epoch_pages(pool.newest_epoch()) == 0);
  REQUIRE_OK(world.refresh(second));  // the newest is not in the way, the held one is allowed
  REQUIRE_OK(pool.release_epoch(2));
  CHECK(pool.epoch_count() == 1);
  CHECK(pool.release_epoch(2).code == status_code::invalid_argument);
  CHECK(pool.release_epoch(pool.epoch_id(pool.newest_epoch())).code == status_code::invalid_argument);
  CHECK(pool.memory().codebooks_bytes == one_epoch);
  world.check(second, models[1]);
  const std::size_t accounted =
      pool.memory().total_bytes() + first.metadata_bytes() + second.metadata_bytes() + third.metadata_bytes();
  CHECK(accounted == memory.live_bytes);
  for (const std::uint32_t most : {0U, 65U}) {
    world.config.most_epochs = most;
    CHECK(pool_type::make(world.bank, world.config, 1, {}, pool).code == status_code::invalid_argument);
  }
}

TEST_CASE("a refresh that is cancelled or given bad rows leaves everything as before", "[cache]") {
  for (const char* name : {"before RoPE", "outliers of a preset", "latent keys that are values, tails with RoPE"}) {
    sequence_world world(shape_named(name), 83);
    CAPTURE(name, world.random.seed());
    sequence_type tokens(world.pool);
    model_sequence model;
    append(world, tokens, model, 130);
    const memory_report before = world.pool.memory();
    const auto unchanged = [&] {
      CHECK(world.pool.epoch_count() == 1);
      CHECK(world.pool.epoch_id(world.pool.newest_epoch()) == 0);
      CHECK(world.pool.memory().codebooks_bytes == before.codebooks_bytes);
      CHECK(world.pool.memory().transforms_bytes == before.transforms_bytes);
      world.check(tokens, model);
    };
    world.draw(40);
    std::size_t cancelled = 0;
    for (std::size_t left = 0;; left += 1 + left / 2) {
      pqattn_test::patience mine{left};
      append_options options;
      options.progress = mine.hook();
      const status result = tokens.refresh(world.key_rows(), world.value_rows(), options);
      if (result.ok()) {
        break;
      }
      ++cancelled;
      REQUIRE(result.code == status_code::cancelled);
      unchanged();
    }
    CHECK(cancelled > 2);
    CHECK(world.pool.epoch_count() == 2);
    append(world, tokens, model, 90);
    world.check(tokens, model);
  }
  sequence_world world(edit_shapes[0], 84);
  sequence_type tokens(world.pool);
  model_sequence model;
  append(world, tokens, model, 130);
  // The recent window's 10 rows are enough for 8 centroids; without a window the caller's must be.
  world.draw(0);
  sequence_type empty(world.pool);
  const status few = empty.refresh(world.key_rows(), world.value_rows());
  CHECK(few.code == status_code::too_few_samples);
  CHECK(few.expected == 8);
  CHECK(few.got == 0);
  world.draw(30);
  append_options options;
  const head_rows keys = world.key_rows();
  options.queries = &keys;
  CHECK(tokens.refresh(keys, world.value_rows(), options).code == status_code::unsupported);
  options = {};
  const std::vector<float> weights(30 * world.shape.heads, -1.0f);
  options.weights = weights.data();
  CHECK(tokens.refresh(keys, world.value_rows(), options).code == status_code::invalid_argument);
  world.new_keys[5] = std::numeric_limits<float>::infinity();
  CHECK(tokens.refresh(world.key_rows(), world.value_rows()).code == status_code::not_finite);
  CHECK(tokens.refresh({}, {}).code == status_code::shape_mismatch);
  CHECK(world.pool.epoch_count() == 1);
  world.check(tokens, model);
  world.draw(0);
  REQUIRE_OK(tokens.refresh(world.key_rows(), world.value_rows()));
  append(world, tokens, model, 30);
  world.check(tokens, model);
}

/// Rows of a few directions: of each kind others.
void draw_kind(sequence_world& world, std::size_t count, std::size_t kind) {
  world.draw(count);
  for (auto* rows : {&world.new_keys, &world.new_values}) {
    const std::size_t dim = rows == &world.new_keys ? world.shape.key_channels() : world.shape.value_dim;
    for (std::size_t i = 0; i < rows->size(); ++i) {
      const std::size_t channel = i % dim;
      (*rows)[i] = (*rows)[i] * (channel % 2 == kind ? 1.0f : 0.1f) + (channel % 3 == kind ? 2.0f : 0.0f);
    }
  }
}

/// Mean squared error of the coded ones of the last `count` tokens' values, which hold no position.
double value_error(const sequence_world& world, const sequence_type& tokens, const std::vector<float>& exact,
                   std::size_t count) {
  const std::size_t dim = world.shape.value_dim;
  std::vector<float> keys(count * world.shape.key_channels());
  std::vector<float> values(count * dim);
  const std::size_t coded = count - tokens.recent().tokens();
  double sum = 0.0;
  for (std::size_t head = 0; head < world.shape.heads; ++head) {
    REQUIRE_OK(tokens.read(head, tokens.size() - count, ref_rows(keys.data(), count, world.shape.key_channels()),
                           ref_rows(values.data(), count, dim)));
    for (std::size_t i = 0; i < coded * dim; ++i) {
      const double error = double{values[i]} - double{exact[head * count * dim + i]};
      sum += error * error;
    }
  }
  return sum / static_cast<double>(coded * dim * world.shape.heads);
}

TEST_CASE("drift rises with activations that drift, and a refresh lowers the error", "[cache]") {
  for (const bool keys_too : {true, false}) {
    edit_shape shape = edit_shapes[0];
    shape.rope = false;
    shape.track_errors = true;
    shape.keys_coded = keys_too;
    shape.train_tokens = 200;
    sequence_world world(shape, 85);
    CAPTURE(keys_too, world.random.seed());
    pool_type& pool = world.pool;
    sequence_type tokens(pool);
    layer_cache<f32_bank> layer;
    REQUIRE_OK(layer_cache<f32_bank>::make(world.bank, world.config, shape.heads, {}, {}, layer));
    CHECK(pool.drift().rows == 0);
    CHECK(pool.drift().largest() == 1.0f);
    const auto grow = [&](std::size_t count, std::size_t kind) {
      draw_kind(world, count, kind);
      REQUIRE_OK(tokens.append(world.key_rows(), world.value_rows()));
    };
    for (const std::size_t count : {210U, 60U, 150U}) {
      grow(count, 0);
      REQUIRE_OK(layer.append(world.key_rows(), world.value_rows()));
    }
    // A cache means the same by drift.
    for (std::size_t head = 0; head < shape.heads; ++head) {
      CHECK(pool.drift(head).rows == layer.head(head).drift().rows);
      CHECK(pool.drift(head).key_ratio == layer.head(head).drift().key_ratio);
      CHECK(pool.drift(head).value_ratio == layer.head(head).drift().value_ratio);
    }
    const drift_report steady = pool.drift();
    CHECK(steady.rows == tokens.coded_tokens());
    CHECK(steady.value_ratio > 0.8f);
    CHECK(steady.value_ratio < 1.4f);
    CHECK((keys_too ? steady.key_ratio > 0.8f && steady.key_ratio < 1.4f : steady.key_ratio == 1.0f));
    grow(300, 1);
    const double drifted_error = value_error(world, tokens, world.new_values, 300);
    const drift_report drifted = pool.drift();
    CHECK(drifted.value_ratio > 2.0f * steady.value_ratio);
    CHECK((!keys_too || drifted.key_ratio > 2.0f * steady.key_ratio));
    draw_kind(world, 300, 1);
    REQUIRE_OK(tokens.refresh(world.key_rows(), world.value_rows()));
    CHECK(pool.drift().rows == 0);
    grow(300, 1);
    const double refreshed_error = value_error(world, tokens, world.new_values, 300);
    CHECK(refreshed_error < 0.5 * drifted_error);
    CHECK(pool.drift().value_ratio < 1.4f);
    CHECK((!keys_too || pool.drift().key_ratio < 1.4f));
    // A refresh as the same training would be: it starts warm, and sees as many rows.
    CHECK(pool.training(0, kv_side::values).samples >= 300);
  }
}

TEST_CASE("without measuring there is no drift to see", "[cache]") {
  sequence_world world(edit_shapes[0], 86);
  sequence_type tokens(world.pool);
  model_sequence model;
  append(world, tokens, model, 200);
  CHECK(world.pool.drift().rows == 0);
  CHECK(world.pool.drift().largest() == 1.0f);
}

}  // namespace
