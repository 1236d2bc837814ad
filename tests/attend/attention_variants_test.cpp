// SPDX-License-Identifier: MIT
// Variants of attention that models use and the other tests do not reach: latent attention (MLA), every head size, keys
// or values alone coded, shared prefixes by merging, and the attention that tokens receive.
#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "attend/attention_scene.hpp"
#include "bank/archetype_bank.hpp"
#include "bank/scalar_bank.hpp"
#include "pqattn/attend/attend.hpp"
#include "pqattn/attend/attention_mass.hpp"
#include "pqattn/bank/host/host_bank.hpp"

namespace variants {

struct f32_host_bank : pqattn::host_bank<> {
  f32_host_bank() noexcept : pqattn::host_bank<>(pqattn::exact_arithmetic) {}
};

}  // namespace variants

template pqattn::status pqattn::attention_mass<pqattn_test::archetype_bank>(
    pqattn_test::archetype_bank&, const pqattn::rows_view&,
    const pqattn::segment<pqattn_test::archetype_bank::address>*, std::size_t, const pqattn::attention_params&, void*,
    std::size_t, float* const*);

namespace {

using namespace pqattn;
using namespace pqattn_test;
using pqattn_test::random_data;
using variants::f32_host_bank;

/// One latent layer: latents coded once, used as keys and values; `tail` exact rotated channels behind the keys.
template <class Bank>
void check_latent_attention(Bank& bank, std::uint32_t latent, std::uint32_t tail, std::size_t tokens, std::size_t rows,
                            codebook_storage storage, double tolerance, std::uint64_t stream) {
  random_data random(stream);
  CAPTURE(latent, tail, tokens, rows, random.seed());
  const geometry shape{latent, std::max(1U, latent / 4), 16, 1};
  stored_book<Bank> book(bank, shape, storage, random.normals(shape.codebook_values()));
  const std::size_t blocks = blocks_for(tokens);
  bank_block<Bank> memory(bank, (blocks + 3) * bank.code_block_bytes(shape));
  const std::vector<std::uint32_t> pages = random.permutation<std::uint32_t>(blocks + 3);
  const code_span<typename Bank::address> span{shape, memory.get(), pages.data()};
  const std::vector<std::uint16_t> codes = random.codes(tokens * shape.groups(), shape.centroids);
  REQUIRE_OK(bank.store_codes(span, {0, tokens}, codes.data()));
  strided_matrix tails(random.normals(tokens * tail), tokens, tail, dtype::f32, padded_layout);
  const std::vector<float> queries = random.normals(rows * (latent + tail));
  std::vector<std::uint64_t> live(blocks, ~std::uint64_t{0});

  attention_case expected;
  expected.rows = rows;
  expected.tokens = tokens;
  expected.key_dim = latent + tail;
  expected.value_dim = latent;
  expected.queries = to_doubles(queries);
  expected.scale = 0.11;
  expected.values = decode_rows(shape, book.centroids, codes, tokens);
  expected.live.assign(tokens, true);
  for (std::size_t token = 0; token < tokens; ++token) {
    if (random.chance(0.1)) {
      live[token / 64] &= ~(std::uint64_t{1} << (token % 64));
      expected.live[token] = false;
      tails.set(token, 0, std::numeric_limits<float>::quiet_NaN());
    }
    const auto row = expected.values.begin() + std::ptrdiff_t(token * latent);
    expected.keys.insert(expected.keys.end(), row, row + latent);
    for (std::size_t c = 0; c < tail; ++c) {
      expected.keys.push_back(expected.live[token] ? static_cast<double>(tails.get(token, c)) : 0.0);
    }
    expected.key_positions.push_back(static_cast<std::int64_t>(token));
  }
  std::vector<std::int64_t> positions(rows);
  for (std::int64_t& position : positions) {
    position = static_cast<std::int64_t>(tokens / 2 + random.below(tokens));
  }
  expected.query_positions = positions;
  expected.causal = true;

  bank_block<Bank> tables(bank, attention_table_bytes(bank, shape, rows, {}));
  segment<typename Bank::address> one;
  one.keys.coded = one.values.coded = true;
  one.keys.codes = one.values.codes = span;  // one array of codes, one codebook, two uses
  one.keys.book = one.values.book = book.resident;
  one.key_tail = tails.view();
  one.slots = {0, tokens};
  one.live = live.data();
  one.tables = tables.get();
  attention_params params;
  params.scale = 0.11f;
  params.modifiers.causal = true;
  params.modifiers.query_positions = positions.data();
  std::vector<std::byte> workspace(attention_workspace_bytes(&one, 1, rows, latent + tail, latent, 1));
  std::vector<float> out(rows * latent);
  const auto run = [&] {
    return attend(bank, view_rows(queries.data(), rows, latent + tail), &one, 1, params, workspace.data(),
                  workspace.size(), ref_rows(out.data(), rows, latent), nullptr);
  };
  REQUIRE_OK(run());
  CHECK(nmse(out, reference_attention(expected).out) <= tolerance);

  const auto refused = [&] {
    const status result = run();
    CHECK_FALSE(result.ok());
    return result.code;
  };
  const segment<typename Bank::address> good = one;
  one.key_tail.rows = tokens - 1;
  CHECK(refused() == status_code::shape_mismatch);
  one = good;
  one.key_tail.cols = tail + 1;
  CHECK(refused() == status_code::shape_mismatch);
  one.key_tail.cols = latent + tail;
  CHECK(refused() == status_code::shape_mismatch);
  one = good;
  one.key_tail.data = nullptr;
  CHECK(refused() == status_code::invalid_argument);
  one = good;
  one.keys.coded = false;
  one.keys.rows = tails.view();
  CHECK(refused() == status_code::unsupported);
}

TEMPLATE_TEST_CASE("latent attention: coded latents are keys and values, the part with positions is exact", "[attend]",
                   f32_host_bank, scalar_bank) {
  TestType bank;
  check_latent_attention(bank, 12, 4, 100, 3, codebook_storage::f32, 1e-9, 1);
  check_latent_attention(bank, 33, 7, 1500, 16, codebook_storage::f16, 1e-9, 2);
  check_latent_attention(bank, 1, 1, 65, 1, codebook_storage::f32, 1e-9, 3);
}

TEST_CASE("latent attention at the size of DeepSeek models", "[attend]") {
  pqattn::host_bank<> bank;  // rounded, as shipped
  check_latent_attention(bank, 512, 64, 700, 16, codebook_storage::i8, 5e-4, 4);
}

TEST_CASE("every head size, keys and values of different sizes, either side exact", "[attend]") {
  f32_host_bank bank;
  std::uint64_t stream = 300;
  std::vector<std::uint32_t> sizes;
  for (std::uint32_t d = 1; d <= 33; ++d) {
    sizes.push_back(d);
  }
  for (const std::uint32_t d :
       {48U, 56U, 63U, 64U, 65U, 72U, 80U, 96U, 112U, 127U, 128U, 160U, 192U, 255U, 256U, 511U, 576U, 1023U, 1024U}) {
    sizes.push_back(d);
  }
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    scene_plan plan;
    plan.rows = 1 + i % 9;  // GQA of any ratio: rows of one KV head
    plan.key_dim = sizes[i];
    plan.value_dim = sizes[sizes.size() - 1 - i];
    plan.key_subvectors = std::max(1U, plan.key_dim / 3);
    plan.value_subvectors = std::max(1U, plan.value_dim / 5);
    segment_plan tokens;
    tokens.storage = tokens.count = 70;
    tokens.coded_keys = i % 3 != 0;
    tokens.coded_values = i % 3 != 1;
    tokens.before_rope = plan.key_dim > 1;
    attention_scene<f32_host_bank> scene(bank, plan, {tokens}, stream++);
    CAPTURE(plan.key_dim, plan.value_dim, plan.rows, scene.random.seed());
    std::vector<float> out;
    std::vector<float> lse;
    REQUIRE_OK(scene.run({}, out, lse));
    CHECK(nmse(out, reference_attention(scene.expected).out) <= 1e-9);
  }
}

TEST_CASE("a shared prefix is attended once for all its users and merged", "[attend]") {
  f32_host_bank bank;
  scene_plan plan;
  plan.rows = 6;  // two users with three rows each
  segment_plan prefix;
  prefix.storage = prefix.count = 300;
  attention_scene<f32_host_bank> shared(bank, plan, {prefix}, 400);
  std::vector<float> out;
  std::vector<float> lse;
  REQUIRE_OK(shared.run({}, out, lse));
  const std::size_t dim = plan.value_dim;
  for (std::size_t user = 0; user < 2; ++user) {
    scene_plan own_plan = plan;
    own_plan.rows = 3;
    segment_plan own;
    own.storage = own.count = 40;
    own.coded_keys = false;
    attention_scene<f32_host_bank> rest(bank, own_plan, {own}, 401 + user);
    CAPTURE(shared.random.seed(), rest.random.seed());
    std::copy_n(shared.queries.begin() + std::ptrdiff_t(user * 3 * plan.key_dim), 3 * plan.key_dim,
                rest.queries.begin());
    std::vector<float> own_out;
    std::vector<float> own_lse;
    REQUIRE_OK(rest.run({}, own_out, own_lse));
    merge({out.data() + user * 3 * dim, dim, lse.data() + user * 3, 3, dim},
          {own_out.data(), dim, own_lse.data(), 3, dim});
    attention_case both = shared.expected;
    both.rows = 3;
    both.queries = to_doubles(rest.queries);
    both.keys.insert(both.keys.end(), rest.expected.keys.begin(), rest.expected.keys.end());
    both.values.insert(both.values.end(), rest.expected.values.begin(), rest.expected.values.end());
    both.live.insert(both.live.end(), rest.expected.live.begin(), rest.expected.live.end());
    both.key_positions.insert(both.key_positions.end(), rest.expected.key_positions.begin(),
                              rest.expected.key_positions.end());
    both.tokens += rest.expected.tokens;
    const std::vector<float> merged(out.begin() + std::ptrdiff_t(user * 3 * dim),
                                    out.begin() + std::ptrdiff_t((user + 1) * 3 * dim));
    CHECK(nmse(merged, reference_attention(both).out) <= 1e-9);
  }
}

TEMPLATE_TEST_CASE("attention mass is the sum of probabilities a token receives", "[attend]", f32_host_bank,
                   scalar_bank) {
  TestType bank;
  for (std::uint64_t stream = 500; stream < 512; ++stream) {
    random_data random(stream);
    std::vector<segment_plan> plans(3);
    plans[0].coded_keys = false;
    plans[1].storage = plans[1].count = 1100;
    plans[1].before_rope = stream % 2 == 0;
    plans[1].live_share = 0.8;
    plans[1].paged = true;
    plans[2].coded_keys = stream % 3 == 0;
    plans[2].first = 17;
    plans[2].count = 60;
    plans[2].base = 1200;
    scene_plan plan;
    plan.rows = 4;
    attention_scene<TestType> scene(bank, plan, plans, stream);
    CAPTURE(random.seed());
    attention_params params;
    const std::vector<std::int64_t> positions = {50, 600, 1230, 5000};
    const std::vector<float> sinks = random.normals(4);
    params.modifiers.causal = scene.expected.causal = true;
    params.modifiers.query_positions = positions.data();
    scene.expected.query_positions = positions;
    params.modifiers.softcap = 4.0f;
    scene.expected.softcap = 4.0;
    params.sink_logits = sinks.data();
    scene.expected.sink_logits = to_doubles(sinks);
    std::vector<std::vector<float>> mass;
    std::vector<float*> targets;
    for (const segment_plan& one : plans) {
      mass.emplace_back(one.storage, 0.25f);  // what was there stays
      targets.push_back(mass.back().data());
    }
    std::vector<std::byte> workspace(
        mass_workspace_bytes(scene.segments.data(), scene.segments.size(), plan.rows, plan.key_dim));
    REQUIRE_OK(attention_mass(bank, view_rows(scene.queries.data(), plan.rows, plan.key_dim), scene.segments.data(),
                              scene.segments.size(), params, workspace.data(), workspace.size(), targets.data()));
    const attention_result totals = reference_attention(scene.expected);
    std::size_t token = 0;
    double worst = 0.0;
    for (std::size_t i = 0; i < plans.size(); ++i) {
      for (std::size_t slot = 0; slot < plans[i].storage; ++slot) {
        double want = 0.25;
        if (slot >= plans[i].first && slot < plans[i].first + plans[i].count) {
          for (std::size_t row = 0; row < plan.rows; ++row) {
            want += std::exp(reference_score(scene.expected, row, token) - totals.lse[row]);
          }
          ++token;
        }
        worst = std::max(worst, std::abs(static_cast<double>(mass[i][slot]) - want));
      }
    }
    CHECK(worst < 2e-5);
    CHECK(attention_mass(bank, view_rows(scene.queries.data(), plan.rows, plan.key_dim), scene.segments.data(),
                         scene.segments.size(), params, workspace.data(), 64, targets.data())
              .code == status_code::capacity);
  }
}

}  // namespace
