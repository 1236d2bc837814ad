// SPDX-License-Identifier: MIT
#include "pqattn/study/suggest_policy.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "pqattn/bank/host/host_bank.hpp"
#include "pqattn/study/policy_json.hpp"
#include "support/random_data.hpp"
#include "support/shared_data.hpp"

using pqattn::head_policy;
using pqattn::policy_reason;
using pqattn::rate_curve;
using host_bank = pqattn::host_bank<>;

namespace {

rate_curve curve_of(const std::vector<std::pair<double, double>>& points) {
  rate_curve curve;
  for (const auto& [bits, error] : points) {
    curve.choices[curve.count++] = {{}, bits, error};
  }
  find_hull(curve);
  return curve;
}

/// Two KV heads of 16 channels: head 0's values and head 1's keys are spread over all channels, the other sides lie
/// near a plane and need few bits. Two query heads each. The first 400 tokens calibrate, the rest are held.
struct layer {
  explicit layer(pqattn_test::random_data& random) {
    for (std::size_t head = 0; head < 2; ++head) {
      keys.push_back(rows(random, head == 1 ? 16 : 2, 1.0f));
      values.push_back(rows(random, head == 0 ? 16 : 2, 1.0f));
      for (std::size_t i = 0; i < 2; ++i) {
        queries.push_back(rows(random, 16, 1.5f));
      }
    }
    for (std::size_t head = 0; head < 2; ++head) {
      for (std::size_t i = 0; i < 2; ++i) {
        query_views.push_back(calibration(queries[2 * head + i]));
      }
    }
    for (std::uint32_t head = 0; head < 2; ++head) {
      heads.push_back({3, head, calibration(keys[head]), calibration(values[head]), query_views.data() + 2 * head, 2});
    }
  }
  static pqattn::rows_view view(const std::vector<float>& data) { return pqattn::view_rows(data.data(), tokens, 16); }
  static pqattn::rows_view calibration(const std::vector<float>& data) { return view(data).slice(0, 400); }
  static std::vector<float> rows(pqattn_test::random_data& random, std::size_t rank, float scale) {
    const std::vector<float> basis = random.normals(rank * 16, 1.0f / std::sqrt(static_cast<float>(rank)));
    const std::vector<float> mix = random.normals(tokens * rank, scale);
    std::vector<float> result = random.normals(tokens * 16, 0.02f);
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t r = 0; r < rank; ++r) {
        for (std::size_t c = 0; c < 16; ++c) {
          result[t * 16 + c] += mix[t * rank + r] * basis[r * 16 + c];
        }
      }
    }
    return result;
  }
  static constexpr std::size_t tokens = 700;
  std::vector<std::vector<float>> keys, values, queries;
  std::vector<pqattn::rows_view> query_views;
  std::vector<pqattn::calibration_head> heads;
};

struct suggested {
  suggested(const layer& made, const pqattn::suggest_params& params) : policy(2), reasons(4) {
    host_bank bank;
    outcome = suggest_policy(bank, made.heads.data(), 2, params, policy.data(), reasons.data(), summary);
  }
  pqattn::status outcome;
  std::vector<head_policy> policy;
  std::vector<policy_reason> reasons;
  pqattn::policy_summary summary;
};

/// Mean output NMSE on held queries with both sides of each head coded by its policy.
double held_error(const layer& made, const std::vector<head_policy>& policy) {
  host_bank bank;
  double sum = 0.0;
  for (std::size_t head = 0; head < 2; ++head) {
    std::vector<float> keys = made.keys[head];
    std::vector<float> values = made.values[head];
    const pqattn::pq_ranges ranges{8, 400, 8, 668};
    std::vector<float> metric(16 * 16);
    REQUIRE(pqattn::spread_query_metric(made.query_views.data() + 2 * head, 2, layer::calibration(made.keys[head]), {},
                                        {}, 40, 256, 0.05f, metric.data())
                .ok());
    pqattn::pq_cost cost;
    for (const bool key_side : {true, false}) {
      const pqattn::side_policy& side = key_side ? policy[head].keys : policy[head].values;
      if (!side.exact) {
        pqattn::pq_recipe recipe;
        recipe.shape = side.shape(16);
        recipe.rotate = !key_side;
        recipe.outlier_share = static_cast<double>(side.outlier_share);
        recipe.metric = key_side ? metric.data() : nullptr;
        REQUIRE(reconstruct_rows(bank, recipe, ranges, nullptr, (key_side ? keys : values).data(), cost).ok());
      }
    }
    const pqattn::reconstructed_head judged{layer::view(made.keys[head]), layer::view(made.values[head]),
                                            layer::view(keys), layer::view(values)};
    for (std::size_t i = 0; i < 2; ++i) {
      pqattn::attention_error error;
      REQUIRE(add_attention_error(judged, layer::view(made.queries[2 * head + i]), {8, 32, 400}, 0.25, error).ok());
      sum += error.output_nmse() / 4.0;
    }
  }
  return sum;
}

}  // namespace

TEST_CASE("the hull leaves out what a mixture beats", "[study][policy]") {
  const rate_curve curve = curve_of({{4, 1}, {1, 10}, {2, 9.5}, {3, 2}, {8, 1.5}, {6, 0.5}});
  const std::vector<std::size_t> hull(curve.hull, curve.hull + curve.hull_count);
  CHECK(hull == std::vector<std::size_t>{1, 3, 0, 5});
  CHECK(curve_of({{5, 2}}).hull_count == 1);
}

TEST_CASE("bits go where they gain most", "[study][policy]") {
  const rate_curve curves[] = {curve_of({{1, 100}, {2, 10}, {3, 1}}), curve_of({{1, 3}, {2, 2}, {3, 1.5}})};
  std::size_t steps[2] = {};
  allocate_bits(curves, 2, 4.0, -1.0, steps);
  CHECK((steps[0] == 2 && steps[1] == 0));
  allocate_bits(curves, 2, 5.0, -1.0, steps);
  CHECK((steps[0] == 2 && steps[1] == 1));
  allocate_bits(curves, 2, std::numeric_limits<double>::infinity(), 13.0, steps);
  CHECK((steps[0] == 1 && steps[1] == 0));
  allocate_bits(curves, 2, 1.0, -1.0, steps);  // nothing fits: the cheapest
  CHECK((steps[0] == 0 && steps[1] == 0));
}

TEST_CASE("a suggested policy beats one shape for all at equal bits, also on held tokens", "[study][policy]") {
  pqattn_test::random_data random(31);
  CAPTURE(random.seed());
  const layer made(random);
  pqattn::suggest_params params;
  params.target_bits = 3.0;
  params.allow_exact = false;
  const suggested found(made, params);
  REQUIRE(found.outcome.ok());
  CHECK(found.summary.code_bits <= 3.03);
  CHECK(found.summary.expected_error <= found.summary.uniform_error);
  // The sides that fill all channels got more bits than the flat ones.
  CHECK(found.reasons[2].bits > found.reasons[0].bits);
  CHECK(found.reasons[1].bits > found.reasons[3].bits);
  for (const policy_reason& reason : found.reasons) {
    CHECK((reason.error_below == 0.0 || reason.error_below > reason.error));
    CHECK(reason.error_above < reason.error);
  }
  CHECK(found.policy[1].layer == 3);
  CHECK(found.policy[1].kv_head == 1);

  std::vector<std::byte> workspace(pqattn::preset_workspace_bytes());
  pqattn::pq_preset preset;
  REQUIRE(choose_preset(16, 16, 3.0, 292, workspace.data(), workspace.size(), preset).ok());
  std::vector<head_policy> uniform(2);
  for (head_policy& head : uniform) {
    const auto storage = pqattn::codebook_storage::i8;
    head.keys = {false,   preset.keys.subvectors, preset.keys.code_bits(), preset.keys.stages,
                 storage, preset.outlier_share};
    head.values = {false,   preset.values.subvectors, preset.values.code_bits(), preset.values.stages,
                   storage, preset.outlier_share};
  }
  const double suggested_error = held_error(made, found.policy);
  const double uniform_error = held_error(made, uniform);
  CAPTURE(suggested_error, uniform_error);
  CHECK(suggested_error <= uniform_error);
}

TEST_CASE("a target of error is met with few bits", "[study][policy]") {
  pqattn_test::random_data random(32);
  CAPTURE(random.seed());
  const layer made(random);
  pqattn::suggest_params params;
  params.target_error = 0.02;
  const suggested loose(made, params);
  REQUIRE(loose.outcome.ok());
  CHECK(loose.summary.expected_error <= 0.02);
  params.target_error = 1.0e-9;
  const suggested tight(made, params);
  REQUIRE(tight.outcome.ok());
  CHECK(tight.summary.code_bits > loose.summary.code_bits);
  CHECK(tight.policy[0].keys.exact);
}

TEST_CASE("suggest_policy refuses what it cannot use", "[study][policy]") {
  pqattn_test::random_data random(33);
  const layer made(random);
  pqattn::suggest_params params;
  CHECK(suggested(made, params).outcome.code == pqattn::status_code::invalid_argument);
  params.target_bits = 2.0;
  params.target_error = 0.1;
  CHECK(suggested(made, params).outcome.code == pqattn::status_code::invalid_argument);
  params.target_error = 0.0;
  layer without(random);
  without.heads[1].query_heads = 0;
  const suggested none(without, params);
  CHECK(none.outcome.code == pqattn::status_code::invalid_argument);
  CHECK(none.outcome.got == 1);
}

TEST_CASE("a policy survives JSON, and bad JSON is refused", "[study][policy]") {
  std::vector<head_policy> policy(2);
  policy[0] = {1, 0, 4, 16, 512, {false, 8, 6, 3, pqattn::codebook_storage::f16, 0.25f}, {}};
  policy[0].values.exact = true;
  policy[1] = {1, 1, 8, 32, 0, {false, 4, 8, 2}, {false, 16, 8, 1, pqattn::codebook_storage::f32}};
  const std::string text = pqattn::policy_to_json(policy.data(), 2);
  std::vector<head_policy> read;
  REQUIRE(pqattn::policy_from_json(text, read).ok());
  CHECK(read == policy);
  const std::vector<head_policy> before = read;
  for (const char* bad :
       {"", "[]", "{\"version\": 2, \"heads\": []}", "{\"version\": 1}", "{\"version\": 1, \"heads\": [1]}",
        "{\"version\": 1, \"heads\": [{\"keys\": {\"exact\": true}}]}",
        "{\"version\": 1, \"heads\": [{\"keys\": {\"exact\": 3}, \"values\": {\"exact\": true}}]}",
        "{\"version\": 1, \"heads\": [{\"keys\": {\"bits\": 8}, \"values\": {\"exact\": true}}]}",
        "{\"version\": 1, \"heads\": [{\"layer\": -1, \"keys\": {\"exact\": true}, \"values\": {\"exact\": true}}]}",
        "{\"version\": 1, \"heads\": [{\"keys\": {\"subvectors\": 9, \"bits\": 17}, \"values\": {\"exact\": "
        "true}}]}"}) {
    CAPTURE(bad);
    CHECK(pqattn::policy_from_json(bad, read).code == pqattn::status_code::corrupt_data);
    CHECK(read == before);
  }
}

namespace {

/// The head of a real layer with its rotation, for suggestions.
struct real_head {
  explicit real_head(const std::filesystem::path& folder)
      : keys(pqattn_test::activation_file::open(folder / "keys.npy")),
        values(pqattn_test::activation_file::open(folder / "values.npy")),
        queries(pqattn_test::activation_file::open(folder / "queries.npy")) {}
  [[nodiscard]] bool found() const { return keys && values && queries; }
  std::optional<pqattn_test::activation_file> keys, values, queries;
};

}  // namespace

TEST_CASE("suggestions for real layers are no worse than the preset everywhere", "[study][policy]") {
  std::vector<std::filesystem::path> folders = {pqattn_test::test_data_folder() / "tiny_lm" / "context0" / "layer1"};
  if (const auto shared = pqattn_test::shared_folder(); !shared.empty()) {
    folders.push_back(shared / "data" / "kv" / "tiny_lm" / "context1" / "layer2");
  } else {
    WARN("PQATTN_SHARED_DIR is not set: one layer only");
  }
  for (const auto& folder : folders) {
    const real_head layer(folder);
    if (!layer.found()) {
      WARN("no activations in " << folder.string());
      continue;
    }
    CAPTURE(folder.string());
    const auto dim = static_cast<std::uint32_t>(layer.keys->dim());
    std::vector<float> frequencies(dim / 2);
    std::vector<float> angles(pqattn::rope_floats(dim / 2));
    pqattn::fill_rope_frequencies(frequencies.data(), dim, 1.0e4);
    pqattn::suggest_params params;
    REQUIRE(
        build_rope(frequencies.data(), dim / 2, pqattn::rope_pairing::half_split, angles.data(), params.rotation).ok());
    params.target_bits = 2.0;
    const std::size_t tokens = std::min<std::size_t>(layer.keys->tokens(), 1024);
    const std::size_t group = layer.queries->heads() / layer.keys->heads();
    std::vector<pqattn::rows_view> queries;
    for (std::size_t i = 0; i < group; ++i) {
      queries.push_back(layer.queries->head(i).slice(0, tokens));
    }
    const pqattn::calibration_head head{
        0, 0, layer.keys->head(0).slice(0, tokens), layer.values->head(0).slice(0, tokens), queries.data(), group};
    host_bank bank;
    std::vector<head_policy> policy(1);
    std::vector<policy_reason> reasons(2);
    pqattn::policy_summary summary;
    REQUIRE(suggest_policy(bank, &head, 1, params, policy.data(), reasons.data(), summary).ok());
    CAPTURE(summary.code_bits, summary.expected_error, summary.uniform_error);
    CHECK(summary.code_bits <= 2.0 + 1e-6);
    CHECK(summary.expected_error <= summary.uniform_error);
    CHECK(summary.expected_error > 0.0);
  }
}
