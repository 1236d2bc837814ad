// SPDX-License-Identifier: MIT
#include "pqattn/attend/attend.hpp"

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <string>
#include <vector>

#include "attend/attention_scene.hpp"
#include "bank/archetype_bank.hpp"
#include "bank/scalar_bank.hpp"
#include "pqattn/bank/host/host_bank.hpp"
#include "support/count_allocations.hpp"
#include "support/executors.hpp"

using pqattn::attention_params;
using pqattn::dtype;
using pqattn::status_code;
using pqattn_test::archetype_bank;
using pqattn_test::attention_scene;
using pqattn_test::doubles;
using pqattn_test::scalar_bank;
using pqattn_test::scene_plan;
using pqattn_test::segment_plan;
using pqattn_test::strided_matrix;

/// The host bank in f32 throughout; what it rounds by default has a test of its own.
struct host_bank : pqattn::host_bank<> {
  host_bank() noexcept : pqattn::host_bank<>(pqattn::exact_arithmetic) {}
};
static_assert(pqattn::bank_policy<host_bank>);

// Every function template compiles with the least capable bank.
template std::size_t pqattn::attention_table_bytes<archetype_bank>(archetype_bank&, const pqattn::geometry&,
                                                                   std::size_t, const pqattn::rope&) noexcept;
template pqattn::status pqattn::attend<archetype_bank>(archetype_bank&, const pqattn::rows_view&,
                                                       const pqattn::segment<archetype_bank::address>*, std::size_t,
                                                       const attention_params&, void*, std::size_t,
                                                       const pqattn::rows_ref&, float*);

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// f32 arithmetic on scores of a few units: scores are off by about 1e-6, outputs by as much of max |v|. Values are
/// about 1, and many of them may cancel to an output near 0, whose own size the error cannot follow: below a tenth it
/// is judged against a tenth.
void check_close(const std::vector<float>& out, const std::vector<float>& lse,
                 const pqattn_test::attention_result& expected, double tolerance = 1e-5) {
  double error = 0.0;
  double energy = 0.0;
  for (std::size_t i = 0; i < expected.out.size(); ++i) {
    const double difference = static_cast<double>(out[i]) - expected.out[i];
    error += difference * difference;
    energy += expected.out[i] * expected.out[i];
  }
  CHECK(error <= tolerance * tolerance * std::max(energy, 0.01 * static_cast<double>(expected.out.size())));
  CHECK(pqattn_test::max_error(out, expected.out) <=
        tolerance * (1e-3 + pqattn_test::largest_magnitude(expected.out)) * 4.0);
  bool lse_right = lse.size() == expected.lse.size();
  for (std::size_t row = 0; row < lse.size(); ++row) {
    const double got = static_cast<double>(lse[row]);
    const double want = expected.lse[row];
    const bool right = want == -infinity ? got == want : std::abs(got - want) <= tolerance * (1.0 + std::abs(want));
    INFO("row " << row << ": lse " << got << ", expected " << want);
    CHECK(right);
    lse_right = lse_right && right;
  }
  CHECK(lse_right);
}

/// Segment plans of every kind, sizes drawn around block, tile and part boundaries.
std::vector<segment_plan> random_plans(pqattn_test::random_data& random, std::size_t segments) {
  const std::size_t sizes[] = {1, 3, 63, 64, 65, 130, 200};
  const dtype types[] = {dtype::f32, dtype::f16, dtype::bf16};
  const pqattn_test::matrix_layout layouts[] = {pqattn_test::dense_layout, pqattn_test::padded_layout,
                                                pqattn_test::awkward_layout, pqattn_test::reversed_layout};
  std::vector<segment_plan> plans;
  for (std::size_t i = 0; i < segments; ++i) {
    segment_plan plan;
    plan.count = sizes[random.below(7)];
    plan.first = random.chance(0.5) ? 0 : random.below(150);
    plan.storage = plan.first + plan.count + random.below(80);
    plan.coded_keys = random.chance(0.6);
    plan.coded_values = random.chance(0.6);
    plan.before_rope = random.chance(0.5);
    plan.type = types[random.below(3)];
    plan.layout = layouts[random.below(4)];
    plan.base = static_cast<std::int64_t>(random.below(1000));
    plan.scattered = random.chance(0.3);
    plan.paged = random.chance(0.5);
    plan.live_share = random.chance(0.3) ? 0.7 : 1.0;
    plans.push_back(plan);
  }
  return plans;
}

scene_plan random_scene(pqattn_test::random_data& random) {
  scene_plan plan;
  const std::size_t rows[] = {1, 2, 3, 4, 5, 8, 12};
  const std::uint32_t dims[] = {2, 7, 16, 24, 40, 64};
  plan.rows = rows[random.below(7)];
  plan.key_dim = dims[random.below(6)];
  plan.value_dim = dims[random.below(6)];
  plan.key_subvectors = static_cast<std::uint32_t>(1 + random.below(plan.key_dim));
  plan.value_subvectors = static_cast<std::uint32_t>(1 + random.below(plan.value_dim));
  plan.stages = static_cast<std::uint32_t>(1 + random.below(2));
  plan.storage = static_cast<pqattn::codebook_storage>(random.below(3));
  plan.pairing = random.chance(0.5) ? pqattn::rope_pairing::half_split : pqattn::rope_pairing::interleaved;
  return plan;
}

std::string text_of(const std::vector<segment_plan>& plans) {
  std::string text;
  for (const segment_plan& plan : plans) {
    text += plan.text() + "; ";
  }
  return text;
}

}  // namespace

TEMPLATE_TEST_CASE("attention agrees with double precision on mixed segments", "[attend]", host_bank, scalar_bank) {
  TestType bank;
  for (std::uint64_t stream = 0; stream < 60; ++stream) {
    pqattn_test::random_data random(1000 + stream);
    const std::vector<segment_plan> plans = random_plans(random, 1 + random.below(4));
    const scene_plan plan = random_scene(random);
    INFO(text_of(plans) << "rows " << plan.rows << " d_k " << plan.key_dim << " d_v " << plan.value_dim << ", seed "
                        << random.seed());
    attention_scene<TestType> scene(bank, plan, plans, 2000 + stream);
    attention_params params;
    if (random.chance(0.5)) {
      params.scale = 0.1f;  // scores of a few units at the widest keys, as check_close takes them to be
      scene.expected.scale = static_cast<double>(params.scale);
    }
    params.method = static_cast<pqattn::value_method>(random.below(3));
    std::vector<float> out;
    std::vector<float> lse;
    REQUIRE_OK(scene.run(params, out, lse));
    check_close(out, lse, pqattn_test::reference_attention(scene.expected));
    std::vector<float> again;
    REQUIRE_OK(scene.run(params, again, lse));
    CHECK(std::memcmp(out.data(), again.data(), out.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("attention on codes equals attention on decoded rows", "[attend]") {
  host_bank bank;
  std::uint64_t stream = 100;
  for (const bool before_rope : {false, true}) {
    for (const auto method : {pqattn::value_method::reconstruct, pqattn::value_method::histogram}) {
      for (const auto storage :
           {pqattn::codebook_storage::f32, pqattn::codebook_storage::f16, pqattn::codebook_storage::i8}) {
        segment_plan tokens;
        tokens.storage = tokens.count = 1500;
        tokens.before_rope = before_rope;
        tokens.base = 1000;
        scene_plan plan;
        plan.rows = 4;
        plan.key_dim = plan.value_dim = 64;
        plan.key_subvectors = plan.value_subvectors = 16;
        plan.key_centroids = plan.value_centroids = 256;
        plan.storage = storage;
        attention_scene<host_bank> scene(bank, plan, {tokens}, stream++);
        attention_scene<host_bank> exact = scene.decoded();
        CAPTURE(scene.random.seed(), before_rope, static_cast<int>(method), static_cast<int>(storage));
        attention_params params;
        params.method = method;
        std::vector<float> out;
        std::vector<float> lse;
        std::vector<float> exact_out;
        std::vector<float> exact_lse;
        REQUIRE_OK(scene.run(params, out, lse));
        REQUIRE_OK(exact.run(params, exact_out, exact_lse));
        // 1e-5 relative, in f32: of each row's norm and of the lse.
        for (std::size_t row = 0; row < plan.rows; ++row) {
          double error = 0.0;
          double energy = 0.0;
          for (std::size_t c = 0; c < 64; ++c) {
            const double want = static_cast<double>(exact_out[row * 64 + c]);
            error += std::pow(static_cast<double>(out[row * 64 + c]) - want, 2.0);
            energy += want * want;
          }
          CHECK(std::sqrt(error) <= 1e-5 * std::sqrt(energy));
          CHECK(std::abs(static_cast<double>(lse[row] - exact_lse[row])) <=
                1e-5 * std::abs(static_cast<double>(exact_lse[row])));
        }
      }
    }
  }
}

TEST_CASE("rounded scores and probabilities stay within the contract's error", "[attend]") {
  std::uint64_t stream = 200;
  for (const auto precision : {pqattn::score_precision::bytes, pqattn::score_precision::words}) {
    for (const bool before_rope : {false, true}) {
      for (const std::uint32_t stages : {1U, 2U}) {
        pqattn::host_bank<> bank(pqattn::host_options{precision, true});
        segment_plan tokens;
        tokens.storage = tokens.count = 1500;
        tokens.before_rope = before_rope;
        scene_plan plan;
        plan.rows = 6;
        plan.key_dim = plan.value_dim = 64;
        plan.key_subvectors = plan.value_subvectors = 16;
        plan.key_centroids = plan.value_centroids = 256;
        plan.stages = stages;
        plan.storage = pqattn::codebook_storage::i8;
        attention_scene<pqattn::host_bank<>> scene(bank, plan, {tokens}, stream++);
        CAPTURE(scene.random.seed(), before_rope, stages, static_cast<int>(precision));
        std::vector<float> out;
        std::vector<float> lse;
        REQUIRE_OK(scene.run({}, out, lse));
        const pqattn_test::attention_result expected = pqattn_test::reference_attention(scene.expected);
        CHECK(pqattn_test::nmse(out, expected.out) <= 5e-4);
        for (std::size_t row = 0; row < plan.rows; ++row) {
          CHECK(std::abs(static_cast<double>(lse[row]) - expected.lse[row]) <= 2e-2);
        }
      }
    }
  }
}

/// Gives the segments columns of a mask: by slot when there is one segment, in a row, in any order, or none. Returns
/// the column of every slot of every segment in turn.
template <class Scene>
std::vector<std::int64_t> draw_columns(pqattn_test::random_data& random, const std::vector<segment_plan>& plans,
                                       Scene& scene, std::deque<std::vector<std::int32_t>>& lists) {
  std::vector<std::int64_t> columns;
  std::int64_t next = static_cast<std::int64_t>(random.below(70));
  for (std::size_t i = 0; i < plans.size(); ++i) {
    pqattn::slot_columns& map = scene.segments[i].columns;
    if (plans.size() > 1 && random.chance(0.2)) {
      map.base = -static_cast<std::int64_t>(plans[i].storage);
    } else if (plans.size() > 1 && random.chance(0.5)) {
      map.base = next;
      next += static_cast<std::int64_t>(plans[i].storage);
    } else if (plans.size() > 1) {
      lists.push_back(random.permutation<std::int32_t>(plans[i].storage));
      for (std::int32_t& column : lists.back()) {
        column = random.chance(0.1) ? -1000000 : column;  // no column
      }
      map = {next, lists.back().data()};
      next += static_cast<std::int64_t>(plans[i].storage);
    }
    for (std::size_t slot = plans[i].first; slot < plans[i].first + plans[i].count; ++slot) {
      columns.push_back(map.at(slot));
    }
  }
  return columns;
}

TEMPLATE_TEST_CASE("modifiers act in the documented order", "[attend]", host_bank, scalar_bank) {
  TestType bank;
  for (std::uint64_t stream = 0; stream < 48; ++stream) {
    pqattn_test::random_data random(3000 + stream);
    const bool biased = stream % 2 == 0;
    std::deque<std::vector<std::int32_t>> lists;
    std::vector<segment_plan> plans = random_plans(random, stream % 6 == 0 ? 1 : 3);
    scene_plan plan = random_scene(random);
    attention_scene<TestType> scene(bank, plan, plans, 4000 + stream);
    INFO(text_of(plans) << "rows " << plan.rows << ", seed " << random.seed());
    auto& expected = scene.expected;
    attention_params params;
    std::vector<std::int64_t> query_positions(plan.rows);
    for (auto& position : query_positions) {
      position = static_cast<std::int64_t>(random.below(1100));
    }
    params.modifiers.query_positions = query_positions.data();
    expected.query_positions = query_positions;

    std::vector<float> slopes(plan.rows);
    std::vector<float> sinks(plan.rows);
    for (std::size_t row = 0; row < plan.rows; ++row) {
      slopes[row] = 2e-4f * random.normal();  // positions reach 100000
      sinks[row] = 3.0f * random.normal();
    }
    if (random.chance(0.5)) {
      params.modifiers.alibi_slopes = slopes.data();
      expected.alibi_slopes = pqattn_test::to_doubles(slopes);
    }
    if (random.chance(0.5)) {
      params.modifiers.softcap = 2.5f;
      expected.softcap = 2.5;
    }
    params.modifiers.causal = expected.causal = random.chance(0.5);
    params.modifiers.window = expected.window = random.chance(0.5) ? 500 : 0;
    if (random.chance(0.5)) {
      params.sink_logits = sinks.data();
      expected.sink_logits = pqattn_test::to_doubles(sinks);
    }
    const std::vector<std::int64_t> columns = draw_columns(random, plans, scene, lists);
    const auto last = std::max_element(columns.begin(), columns.end());
    strided_matrix bias(plan.rows, last == columns.end() || *last < 0 ? 1 : static_cast<std::size_t>(*last) + 1,
                        stream % 4 == 0 ? dtype::f16 : dtype::f32, pqattn_test::awkward_layout);
    if (biased) {
      // Columns that no slot names stay NaN.
      for (std::size_t row = 0; row < plan.rows; ++row) {
        for (const std::int64_t column : columns) {
          double value = 0.0;
          if (column >= 0) {
            const auto c = static_cast<std::size_t>(column);
            bias.set(row, c, random.chance(0.2) ? -std::numeric_limits<float>::infinity() : random.normal());
            value = static_cast<double>(bias.get(row, c));
          }
          expected.bias.push_back(value);
        }
      }
      params.modifiers.bias = bias.view();
    }
    if (biased && plans.size() > 1) {
      params.skip_mass = 0.0f;  // a mask over several segments makes whole blocks light enough to be left out
    }
    std::vector<float> out;
    std::vector<float> lse;
    REQUIRE_OK(scene.run(params, out, lse));
    check_close(out, lse, pqattn_test::reference_attention(expected), 2e-5);
  }
}

TEMPLATE_TEST_CASE("a row without a token gives 0 and -infinity, or its sink", "[attend]", host_bank, scalar_bank) {
  TestType bank;
  for (const bool coded : {false, true}) {
    segment_plan tokens;
    tokens.coded_keys = tokens.coded_values = coded;
    tokens.base = 100;
    scene_plan plan;
    plan.rows = 2;
    attention_scene<TestType> scene(bank, plan, {tokens, tokens}, 7);
    const std::int64_t positions[] = {99, 150};  // row 0 sees nothing
    attention_params params;
    params.modifiers.causal = true;
    params.modifiers.query_positions = positions;
    std::vector<float> out;
    std::vector<float> lse;
    REQUIRE_OK(scene.run(params, out, lse));
    CHECK(std::all_of(out.begin(), out.begin() + 24, [](float x) { return x == 0.0f; }));
    CHECK(lse[0] == -std::numeric_limits<float>::infinity());
    CHECK(std::isfinite(lse[1]));
    CHECK(std::any_of(out.begin() + 24, out.end(), [](float x) { return x != 0.0f; }));

    const float sinks[] = {1.5f, -std::numeric_limits<float>::infinity()};
    params.sink_logits = sinks;
    std::vector<float> with_sink;
    std::vector<float> sink_lse;
    REQUIRE_OK(scene.run(params, with_sink, sink_lse));
    CHECK(sink_lse[0] == 1.5f);
    CHECK(sink_lse[1] == lse[1]);
    CHECK(with_sink == out);

    // Everything dead, and -infinity as a sink of a row without tokens.
    const std::int64_t before[] = {0, 0};
    params.modifiers.query_positions = before;
    REQUIRE_OK(scene.run(params, with_sink, sink_lse));
    CHECK(sink_lse[1] == -std::numeric_limits<float>::infinity());
    CHECK(std::all_of(with_sink.begin(), with_sink.end(), [](float x) { return x == 0.0f; }));

    // No segments at all.
    scene.segments.clear();
    REQUIRE_OK(scene.run(params, out, lse));
    CHECK(lse[0] == 1.5f);
    CHECK(lse[1] == -std::numeric_limits<float>::infinity());
    CHECK(std::all_of(out.begin(), out.end(), [](float x) { return x == 0.0f; }));
  }
  // A segment of no slots is nothing, with or without memory.
  segment_plan empty;
  empty.count = 0;
  attention_scene<TestType> scene(bank, {}, {empty, segment_plan{}, empty}, 8);
  std::vector<float> out;
  std::vector<float> lse;
  REQUIRE_OK(scene.run({}, out, lse));
  check_close(out, lse, pqattn_test::reference_attention(scene.expected));
}

TEST_CASE("huge logits pick their token", "[attend]") {
  host_bank bank;
  for (const float scale : {1e4f, 1e10f, 1e20f, 1e28f, -1e28f}) {
    for (const bool coded : {false, true}) {
      segment_plan tokens;
      tokens.count = 5000;  // two parts, so merging is part of it
      tokens.storage = 5000;
      tokens.coded_keys = tokens.coded_values = coded;
      scene_plan plan;
      plan.key_subvectors = 16;
      plan.key_centroids = 256;
      attention_scene<host_bank> scene(bank, plan, {tokens}, 9);
      CAPTURE(scale, coded, scene.random.seed());
      attention_params params;
      params.scale = scale;
      scene.expected.scale = static_cast<double>(scale);
      std::vector<float> out;
      std::vector<float> lse;
      REQUIRE_OK(scene.run(params, out, lse));
      for (std::size_t row = 0; row < plan.rows; ++row) {
        // Tokens whose scores differ by less than rounding share the row: every output lies between their values.
        double best = -infinity;
        for (std::size_t token = 0; token < 5000; ++token) {
          best = std::max(best, pqattn_test::reference_score(scene.expected, row, token));
        }
        const double slack = 60.0 + 1e-5 * std::abs(best);
        for (std::size_t c = 0; c < plan.value_dim; ++c) {
          double low = infinity;
          double high = -infinity;
          for (std::size_t token = 0; token < 5000; ++token) {
            if (pqattn_test::reference_score(scene.expected, row, token) >= best - slack) {
              low = std::min(low, scene.expected.values[token * plan.value_dim + c]);
              high = std::max(high, scene.expected.values[token * plan.value_dim + c]);
            }
          }
          const double got = static_cast<double>(out[row * plan.value_dim + c]);
          REQUIRE(got >= low - 1e-5);
          REQUIRE(got <= high + 1e-5);
        }
        CHECK(std::abs(static_cast<double>(lse[row]) - best) <= 10.0 + 1e-5 * std::abs(best));
      }
    }
  }
}

TEST_CASE("any executor gives the same bits", "[attend]") {
  host_bank bank;
  segment_plan coded;
  coded.storage = coded.count = 10000;
  coded.before_rope = true;
  segment_plan mixed;
  mixed.storage = 9000;
  mixed.first = 70;
  mixed.count = 8500;
  mixed.coded_values = false;
  mixed.type = dtype::f16;
  segment_plan exact;
  exact.storage = exact.count = 4097;
  exact.coded_keys = exact.coded_values = false;
  scene_plan plan;
  plan.rows = 5;
  attention_scene<host_bank> scene(bank, plan, {coded, mixed, exact}, 10);
  CAPTURE(scene.random.seed());
  std::vector<float> out;
  std::vector<float> lse;
  attention_params params;
  params.skip_mass = 0.01f;
  REQUIRE_OK(scene.run(params, out, lse));
  for (const std::size_t workers : {1U, 2U, 7U}) {
    pqattn_test::shuffled_executor shuffled(workers, scene.random.seed());
    pqattn_test::thread_executor threads(workers);
    for (const pqattn::executor& runner : {shuffled.get(), threads.get()}) {
      params.parts = runner;
      std::vector<float> other;
      std::vector<float> other_lse;
      REQUIRE_OK(scene.run(params, other, other_lse));
      CHECK(std::memcmp(out.data(), other.data(), out.size() * sizeof(float)) == 0);
      CHECK(std::memcmp(lse.data(), other_lse.data(), lse.size() * sizeof(float)) == 0);
    }
    CHECK(shuffled.parts_run == 3 + 3 + 2);
  }
  params.parts = {};
  params.skip_mass = 0.0f;
  REQUIRE_OK(scene.run(params, out, lse));
  check_close(out, lse, pqattn_test::reference_attention(scene.expected));
}

TEST_CASE("a bank that is not concurrent never meets the executor", "[attend]") {
  scalar_bank bank;
  segment_plan tokens;
  tokens.storage = tokens.count = 5000;
  attention_scene<scalar_bank> scene(bank, {}, {tokens}, 11);
  pqattn_test::shuffled_executor shuffled(3, 1);
  attention_params params;
  params.parts = shuffled.get();
  std::vector<float> out;
  std::vector<float> lse;
  REQUIRE_OK(scene.run(params, out, lse));
  CHECK(shuffled.parts_run == 0);
  check_close(out, lse, pqattn_test::reference_attention(scene.expected));
}

TEST_CASE("queries and outputs of every dtype and stride", "[attend]") {
  host_bank bank;
  segment_plan tokens;
  tokens.coded_values = false;
  scene_plan plan;
  plan.rows = 6;
  attention_scene<host_bank> scene(bank, plan, {tokens}, 12);
  CAPTURE(scene.random.seed());
  for (const dtype query_type : {dtype::f32, dtype::f16, dtype::bf16}) {
    for (const dtype out_type : {dtype::f32, dtype::f16, dtype::bf16}) {
      for (const auto& layout :
           {pqattn_test::padded_layout, pqattn_test::awkward_layout, pqattn_test::reversed_layout}) {
        CAPTURE(name_of(query_type), name_of(out_type), layout.col_stride);
        const strided_matrix queries(scene.queries, plan.rows, plan.key_dim, query_type, layout);
        scene.expected.queries = pqattn_test::to_doubles(queries.values());
        strided_matrix out(plan.rows, plan.value_dim, out_type, layout);
        REQUIRE_OK(scene.run({}, queries.view(), out.ref(), nullptr));
        const double tolerance = out_type == dtype::f32 ? 1e-5 : out_type == dtype::f16 ? 1e-3 : 8e-3;
        const doubles expected = pqattn_test::reference_attention(scene.expected).out;
        CHECK(pqattn_test::max_error(out.values(), expected) <= tolerance * pqattn_test::largest_magnitude(expected));
        CHECK(out.padding_is_intact());
      }
    }
  }
}

TEST_CASE("segments may be split anywhere", "[attend]") {
  // The same tokens as one segment and as three: only rounding differs.
  host_bank bank;
  segment_plan tokens;
  tokens.storage = tokens.count = 500;
  tokens.before_rope = true;
  attention_scene<host_bank> scene(bank, {}, {tokens}, 13);
  CAPTURE(scene.random.seed());
  const pqattn_test::attention_result expected = pqattn_test::reference_attention(scene.expected);
  const auto whole = scene.segments[0];
  std::vector<float> out;
  std::vector<float> lse;
  for (const std::size_t cut : {1U, 63U, 64U, 65U, 300U, 499U}) {
    CAPTURE(cut);
    scene.segments.assign(2, whole);
    scene.segments[0].slots = {0, cut};
    scene.segments[1].slots = {cut, 500 - cut};
    REQUIRE_OK(scene.run({}, out, lse));
    check_close(out, lse, expected);
  }
}

TEST_CASE("values coded in a rotation are turned back", "[attend]") {
  host_bank bank;
  segment_plan exact;
  exact.coded_keys = exact.coded_values = false;
  segment_plan coded;
  coded.storage = 9000;
  coded.first = 70;
  coded.count = 8900;
  scene_plan plan;
  // Segments 1 and 2 share a rotation, 4 has another; the first segment may be turned too.
  for (const std::size_t turned_first : {0U, 1U}) {
    attention_scene<host_bank> scene(bank, plan, {exact, coded, coded, exact, coded, segment_plan{}}, 15);
    CAPTURE(scene.random.seed(), turned_first);
    const std::size_t dim = plan.value_dim;
    const std::vector<float> means = scene.random.normals(2 * dim);
    const std::vector<float> bases = scene.random.normals(2 * dim * dim, 0.3f);
    std::size_t token = 0;
    for (std::size_t i = 0; i < scene.segments.size(); ++i) {
      const std::size_t end = token + scene.segments[i].slots.count;
      const bool turned = i == 1 || i == 2 || i == 4 || i < turned_first;
      const std::size_t which = i == 4 ? 1 : 0;
      const float* mean = means.data() + which * dim;
      const float* basis = bases.data() + which * dim * dim;
      if (turned) {
        scene.segments[i].turned_values = {plan.value_dim, mean, basis};
      }
      for (; token < end; ++token) {
        double* value = scene.expected.values.data() + token * dim;
        const doubles before(value, value + dim);
        for (std::size_t c = 0; turned && c < dim; ++c) {
          value[c] = static_cast<double>(mean[c]);
          for (std::size_t p = 0; p < dim; ++p) {
            value[c] += static_cast<double>(basis[p * dim + c]) * before[p];
          }
        }
      }
    }
    const std::vector<float> logits = scene.random.normals(plan.rows, 1.0f, 8.0f);
    attention_params params;
    params.sink_logits = logits.data();
    scene.expected.sink_logits = pqattn_test::to_doubles(logits);
    std::vector<float> out;
    std::vector<float> lse;
    REQUIRE_OK(scene.run(params, out, lse));
    check_close(out, lse, pqattn_test::reference_attention(scene.expected));
    scene.segments[1].turned_values.dim = 5;
    CHECK(scene.run(params, out, lse).code == pqattn::status_code::shape_mismatch);
  }
}

TEST_CASE("attention allocates nothing", "[attend]") {
  host_bank bank;
  segment_plan coded;
  coded.storage = coded.count = 5000;
  coded.before_rope = true;
  segment_plan exact;
  exact.coded_keys = exact.coded_values = false;
  exact.type = dtype::f16;
  scene_plan plan;
  attention_scene<host_bank> scene(bank, plan, {coded, exact, segment_plan{}}, 14);
  const auto& segments = scene.segments;
  attention_params params;
  params.modifiers.softcap = 5.0f;
  params.skip_mass = 0.001f;
  std::vector<std::byte> workspace(
      pqattn::attention_workspace_bytes(segments.data(), segments.size(), plan.rows, plan.key_dim, plan.value_dim, 1));
  std::vector<float> out(plan.rows * plan.value_dim);
  pqattn::status outcome;
  const std::size_t allocations = pqattn_test::allocations_of([&] {
    outcome = attend(bank, pqattn::view_rows(scene.queries.data(), plan.rows, plan.key_dim), segments.data(),
                     segments.size(), params, workspace.data(), workspace.size(),
                     pqattn::ref_rows(out.data(), plan.rows, plan.value_dim), nullptr);
  });
  REQUIRE_OK(outcome);
  CHECK(allocations == 0);
  CHECK(pqattn_test::allocations_of([] { ::operator delete(::operator new(16)); }) == 1);
}

TEST_CASE("any workspace of the stated size will do, and no byte more is used", "[attend]") {
  host_bank bank;
  scene_plan plan;
  attention_scene<host_bank> scene(bank, plan, {segment_plan{}}, 15);
  const pqattn_test::attention_result expected = pqattn_test::reference_attention(scene.expected);
  for (const std::size_t workers : {1U, 3U}) {
    pqattn_test::shuffled_executor shuffled(workers, 5);
    attention_params params;
    params.parts = shuffled.get();
    const std::size_t bytes =
        pqattn::attention_workspace_bytes(scene.segments.data(), 1, plan.rows, plan.key_dim, plan.value_dim, workers);
    for (const std::size_t offset : {0U, 1U, 17U, 63U}) {
      std::vector<std::byte> memory(bytes + offset + 64, std::byte{0x77});
      std::vector<float> out(plan.rows * plan.value_dim);
      std::vector<float> lse(plan.rows);
      REQUIRE_OK(attend(bank, pqattn::view_rows(scene.queries.data(), plan.rows, plan.key_dim), scene.segments.data(),
                        1, params, memory.data() + offset, bytes,
                        pqattn::ref_rows(out.data(), plan.rows, plan.value_dim), lse.data()));
      check_close(out, lse, expected);
      CHECK(std::all_of(memory.end() - 64, memory.end(), [](std::byte b) { return b == std::byte{0x77}; }));
      CHECK(std::all_of(memory.begin(), memory.begin() + static_cast<std::ptrdiff_t>(offset),
                        [](std::byte b) { return b == std::byte{0x77}; }));
    }
  }
}

TEST_CASE("skipped mass stays within its bound", "[attend]") {
  host_bank bank;
  segment_plan tokens;
  tokens.storage = tokens.count = 9000;
  scene_plan plan;
  plan.rows = 1;           // a block is skipped where every row agrees
  plan.value_mean = 4.0f;  // so that whatever is missing shows
  // Peaked scores, where single blocks are negligible, and flat ones, where only all of them together are not.
  plan.key_scale = GENERATE(6.0f, 0.1f);
  attention_scene<host_bank> scene(bank, plan, {tokens}, 16);
  CAPTURE(scene.random.seed(), plan.key_scale);
  std::vector<float> exact;
  std::vector<float> exact_lse;
  attention_params params;
  pqattn::skip_statistics skips;
  params.skips = &skips;
  params.skip_mass = 0.0f;
  REQUIRE_OK(scene.run(params, exact, exact_lse));
  CHECK(skips.blocks == pqattn::blocks_for(9000));
  CHECK(skips.skipped == 0);
  const double largest = pqattn_test::largest_magnitude(scene.expected.values);
  std::uint64_t skipped_before = 0;
  for (const float skip : {1e-6f, 5e-5f, 1e-3f, 0.05f, 0.5f}) {
    CAPTURE(skip);
    params.skip_mass = skip;
    skips = {};
    std::vector<float> out;
    std::vector<float> lse;
    REQUIRE_OK(scene.run(params, out, lse));
    CHECK(lse == exact_lse);  // the softmax sees every token
    CHECK(skips.skipped >= skipped_before);
    CHECK(skips.skipped < skips.blocks);
    skipped_before = skips.skipped;
    const double error = pqattn_test::max_error(out, pqattn_test::to_doubles(exact));
    CHECK(error <= 2.0 * static_cast<double>(skip) * largest + 1e-5);
    if (skip == 0.5f && plan.key_scale > 1.0f) {
      CHECK(error > 0.0);  // something was skipped, or this case shows nothing
      CHECK(skips.skipped > 0);
    }
  }
}

TEST_CASE("what exact segments hold lets coded blocks be skipped, wherever they stand", "[attend]") {
  host_bank bank;
  segment_plan coded;
  coded.storage = coded.count = 6000;
  segment_plan exact;
  exact.coded_keys = exact.coded_values = false;
  scene_plan plan;
  plan.rows = 1;
  plan.key_scale = 0.5f;
  plan.value_mean = 4.0f;
  attention_scene<host_bank> scene(bank, plan, {coded, exact}, 21);
  CAPTURE(scene.random.seed());
  // One exact key points along the query: nearly all mass is there.
  for (std::size_t c = 0; c < plan.key_dim; ++c) {
    scene.set_exact_key(10, 6010, c, 20.0f * scene.queries[c]);
  }
  attention_params params;
  pqattn::skip_statistics skips;
  params.skips = &skips;
  std::vector<float> out;
  std::vector<float> lse;
  REQUIRE_OK(scene.run(params, out, lse));
  CHECK(skips.blocks == pqattn::blocks_for(6000));
  CHECK(skips.skipped == skips.blocks);
  const pqattn_test::attention_result expected = pqattn_test::reference_attention(scene.expected);
  const double largest = pqattn_test::largest_magnitude(scene.expected.values);
  CHECK(pqattn_test::max_error(out, expected.out) <= 1e-4 * largest);
}

TEST_CASE("what does not fit together is refused and the output left alone", "[attend]") {
  host_bank bank;
  scene_plan plan;
  segment_plan exact_plan;
  exact_plan.coded_keys = exact_plan.coded_values = false;
  attention_scene<host_bank> scene(bank, plan, {segment_plan{}, exact_plan}, 17);
  const auto good = scene.segments;
  std::vector<float> out(plan.rows * plan.value_dim, 42.0f);
  std::vector<float> lse(plan.rows, 43.0f);
  std::vector<std::byte> workspace(
      pqattn::attention_workspace_bytes(good.data(), 2, plan.rows, plan.key_dim, plan.value_dim, 1) + 4096);
  pqattn::rows_view queries = pqattn::view_rows(scene.queries.data(), plan.rows, plan.key_dim);
  pqattn::rows_ref target = pqattn::ref_rows(out.data(), plan.rows, plan.value_dim);
  attention_params params;
  std::size_t count = 2;
  std::size_t bytes = workspace.size();
  auto segments = good;
  const auto refusal = [&] {
    const pqattn::status result =
        attend(bank, queries, segments.data(), count, params, workspace.data(), bytes, target, lse.data());
    CHECK(std::all_of(out.begin(), out.end(), [](float x) { return x == 42.0f; }));
    CHECK(std::all_of(lse.begin(), lse.end(), [](float x) { return x == 43.0f; }));
    segments = good;
    params = {};
    count = 2;
    bytes = workspace.size();
    queries = pqattn::view_rows(scene.queries.data(), plan.rows, plan.key_dim);
    target = pqattn::ref_rows(out.data(), plan.rows, plan.value_dim);
    return result.code;
  };

  bytes = workspace.size() - 4096 - 128;
  CHECK(refusal() == status_code::capacity);
  bytes = 0;
  CHECK(refusal() == status_code::capacity);
  CHECK(attend(bank, queries, segments.data(), count, params, nullptr, bytes, target, lse.data()).code ==
        status_code::capacity);
  params.parts.workers = 0;
  CHECK(refusal() == status_code::invalid_argument);
  queries.data = nullptr;
  CHECK(refusal() == status_code::invalid_argument);
  target.data = nullptr;
  CHECK(refusal() == status_code::invalid_argument);
  target.rows = plan.rows - 1;
  CHECK(refusal() == status_code::shape_mismatch);
  target.cols = plan.value_dim - 1;
  CHECK(refusal() == status_code::shape_mismatch);
  target.cols = 0;
  CHECK(refusal() == status_code::invalid_argument);
  target.cols = 1025;
  CHECK(refusal() == status_code::invalid_argument);
  queries.cols = plan.key_dim - 1;
  CHECK(refusal() == status_code::shape_mismatch);
  queries.cols = 0;
  CHECK(refusal() == status_code::invalid_argument);

  segments[0].keys.codes.memory = nullptr;
  CHECK(refusal() == status_code::invalid_argument);
  segments[0].keys.book.memory = nullptr;
  CHECK(refusal() == status_code::invalid_argument);
  segments[0].values.codes.memory = nullptr;
  CHECK(refusal() == status_code::invalid_argument);
  segments[0].values.book.memory = nullptr;
  CHECK(refusal() == status_code::invalid_argument);
  segments[0].tables = nullptr;
  CHECK(refusal() == status_code::invalid_argument);
  segments[0].keys.codes.shape.centroids = 7;
  CHECK(refusal() == status_code::shape_mismatch);
  segments[0].values.codes.shape.subvectors = 3;
  CHECK(refusal() == status_code::shape_mismatch);
  segments[0].keys.book.shape.subvectors = 0;
  CHECK(refusal() == status_code::invalid_argument);
  segments[0].values.book.shape.centroids = 1;
  CHECK(refusal() == status_code::invalid_argument);
  segments[0].rotation.pairs = 4;  // never built
  CHECK(refusal() == status_code::invalid_argument);
  segments[1].slots.count = 101;
  CHECK(refusal() == status_code::shape_mismatch);
  segments[1].slots = {100, 1};
  CHECK(refusal() == status_code::shape_mismatch);
  segments[1].slots = {std::numeric_limits<std::size_t>::max() - 10, 50};  // wraps around
  CHECK_FALSE(refusal() == status_code::ok);
  segments[1].keys.rows.data = nullptr;
  CHECK(refusal() == status_code::invalid_argument);
  segments[1].values.rows.data = nullptr;
  CHECK(refusal() == status_code::invalid_argument);
  segments[1].values.rows.rows = 99;
  CHECK(refusal() == status_code::shape_mismatch);
  segments[1].keys.rows.cols = plan.key_dim + 1;
  CHECK(refusal() == status_code::shape_mismatch);

  // Positions and columns whose differences would overflow.
  for (const std::int64_t far : {std::numeric_limits<std::int64_t>::max(), -(std::int64_t{1} << 61) - 1}) {
    segments[0].positions.base = far;
    CHECK(refusal() == status_code::invalid_argument);
    segments[0].columns.base = far;
    CHECK(refusal() == status_code::invalid_argument);
    const std::vector<std::int64_t> positions(plan.rows, far);
    params.modifiers.query_positions = positions.data();
    CHECK(refusal() == status_code::invalid_argument);
  }
  // Lists are not read while a number beside them is wrong.
  const auto* nowhere = reinterpret_cast<const std::uint32_t*>(std::uintptr_t{64});
  segments[0].key_tail = pqattn::view_rows(scene.queries.data(), 64, 1);
  segments[0].tail_pages = nowhere;
  segments[0].values.rows = {};
  segments[0].values.coded = false;
  CHECK(refusal() == status_code::shape_mismatch);
  params.modifiers.query_positions = reinterpret_cast<const std::int64_t*>(nowhere);
  bytes = 0;
  CHECK(refusal() == status_code::capacity);

  params.modifiers.causal = true;
  CHECK(refusal() == status_code::invalid_argument);
  params.modifiers.window = -1;
  const std::int64_t positions[] = {0, 0, 0};
  params.modifiers.query_positions = positions;
  CHECK(refusal() == status_code::invalid_argument);
  const std::vector<float> bias(plan.rows * 100);
  const pqattn::rows_view whole_bias = pqattn::view_rows(bias.data(), plan.rows, 100);
  params.modifiers.bias = whole_bias;
  CHECK(refusal() == status_code::invalid_argument);  // two segments that do not say which columns are theirs
  params.modifiers.bias = whole_bias;
  segments[0].columns.base = 0;
  segments[1].columns.base = 1;
  CHECK(refusal() == status_code::shape_mismatch);  // the last slot of the second lies behind the last column
  std::vector<std::int32_t> listed(100, -1);
  listed[99] = 100;
  params.modifiers.bias = whole_bias;
  segments[0].columns.base = 0;
  segments[1].columns = {0, listed.data()};
  CHECK(refusal() == status_code::shape_mismatch);
  params.modifiers.bias = pqattn::view_rows(bias.data(), plan.rows, 99);
  count = 1;
  CHECK(refusal() == status_code::shape_mismatch);
  params.modifiers.bias = pqattn::view_rows(bias.data(), plan.rows - 1, 100);
  count = 1;
  CHECK(refusal() == status_code::shape_mismatch);

  CHECK(attend(bank, queries, segments.data(), count, params, workspace.data(), bytes, target, lse.data()).ok());
}

TEST_CASE("a failing bank's status comes through and the output is left alone", "[attend]") {
  struct failing_bank : host_bank {
    int programs_left = 0;
    pqattn::status softmax_part(const pqattn::score_tile& tile, std::size_t count,
                                const pqattn::softmax_state& state) noexcept {
      return programs_left-- > 0 ? host_bank::softmax_part(tile, count, state)
                                 : failure(status_code::io_error, "bank", "is gone");
    }
  };
  failing_bank bank;
  scene_plan plan;
  plan.rows = 9;
  segment_plan tokens;
  tokens.storage = tokens.count = 6000;  // six tiles of 1024
  static_assert(pqattn::attention_tile_tokens(9) == 1024);
  attention_scene<failing_bank> scene(bank, plan, {tokens}, 18);
  std::vector<float> out(plan.rows * plan.value_dim, 42.0f);
  for (int programs = 0; programs <= 6; ++programs) {
    bank.programs_left = programs;
    const pqattn::status result = scene.run({}, pqattn::view_rows(scene.queries.data(), plan.rows, plan.key_dim),
                                            pqattn::ref_rows(out.data(), plan.rows, plan.value_dim), nullptr);
    CAPTURE(programs);
    CHECK(result.code == (programs == 6 ? status_code::ok : status_code::io_error));
    CHECK((out[0] == 42.0f) == (programs != 6));
  }
}
