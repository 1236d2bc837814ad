// SPDX-License-Identifier: MIT
// Attention calls made up for tests: segments of coded and exact tokens in a bank, and the same tokens in double
// precision. What must not be read (exact rows outside the slots or not live, slots behind the last) holds garbage.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "pqattn/attend/attend.hpp"
#include "support/random_data.hpp"
#include "support/reference.hpp"
#include "support/resident.hpp"
#include "support/strided_matrix.hpp"

namespace pqattn_test {

/// One segment to make up.
struct segment_plan {
  std::size_t storage = 100;  ///< slots that exist
  std::size_t first = 0;
  std::size_t count = 100;
  bool coded_keys = true;
  bool coded_values = true;
  bool before_rope = false;  ///< keys coded before RoPE
  pqattn::dtype type = pqattn::dtype::f32;
  matrix_layout layout;
  std::int64_t base = 0;
  bool scattered = false;
  bool paged = false;
  double live_share = 1.0;

  [[nodiscard]] std::string text() const {
    return "[" + std::to_string(first) + ", +" + std::to_string(count) + ") of " + std::to_string(storage) +
           (coded_keys ? " keys coded" : " keys exact") + (before_rope ? " before rope" : "") +
           (coded_values ? " values coded" : " values exact") + " base " + std::to_string(base) +
           (scattered ? " scattered" : "") + (paged ? " paged" : "") + " live " + std::to_string(live_share);
  }
};

/// Sizes of a call.
struct scene_plan {
  std::size_t rows = 3;
  std::uint32_t key_dim = 16;
  std::uint32_t value_dim = 24;
  pqattn::codebook_storage storage = pqattn::codebook_storage::f32;
  std::uint32_t key_subvectors = 5;
  std::uint32_t key_centroids = 30;
  std::uint32_t value_subvectors = 7;
  std::uint32_t value_centroids = 17;
  std::uint32_t stages = 1;
  pqattn::rope_pairing pairing = pqattn::rope_pairing::half_split;
  float key_scale = 1.0f;
  float value_mean = 0.0f;
};

template <class Bank>
class attention_scene {
 public:
  using address = typename Bank::address;

  attention_scene(Bank& bank, const scene_plan& plan, const std::vector<segment_plan>& plans, std::uint64_t stream)
      : random(stream), bank_(bank), plan_(plan) {
    pqattn::fill_rope_frequencies(frequencies_, plan.key_dim, 10000.0);
    rope_memory_.resize(pqattn::rope_floats(plan.key_dim / 2));
    REQUIRE_OK(build_rope(frequencies_, plan.key_dim / 2, plan.pairing, rope_memory_.data(), rotation_));
    const pqattn::geometry key_shape{plan.key_dim, plan.key_subvectors, plan.key_centroids, plan.stages};
    const pqattn::geometry value_shape{plan.value_dim, plan.value_subvectors, plan.value_centroids, plan.stages};
    key_book_ = std::make_unique<stored_book<Bank>>(bank, key_shape, plan.storage,
                                                    random.normals(key_shape.codebook_values(), plan.key_scale));
    value_book_ = std::make_unique<stored_book<Bank>>(
        bank, value_shape, plan.storage, random.normals(value_shape.codebook_values(), 1.0f, plan.value_mean));
    queries = random.normals(plan.rows * plan.key_dim);
    expected.rows = plan.rows;
    expected.key_dim = plan.key_dim;
    expected.value_dim = plan.value_dim;
    expected.queries = to_doubles(queries);
    expected.scale = 1.0 / std::sqrt(static_cast<double>(plan.key_dim));
    for (const segment_plan& one : plans) {
      add(one);
    }
  }

  /// Runs the call into dense f32 rows.
  pqattn::status run(const pqattn::attention_params& params, std::vector<float>& out, std::vector<float>& lse) {
    out.assign(plan_.rows * plan_.value_dim, std::numeric_limits<float>::quiet_NaN());
    lse.assign(plan_.rows, std::numeric_limits<float>::quiet_NaN());
    return run(params, pqattn::view_rows(queries.data(), plan_.rows, plan_.key_dim),
               pqattn::ref_rows(out.data(), plan_.rows, plan_.value_dim), lse.data());
  }
  pqattn::status run(const pqattn::attention_params& params, const pqattn::rows_view& query_view,
                     const pqattn::rows_ref& out, float* lse) {
    workspace_.resize(pqattn::attention_workspace_bytes(segments.data(), segments.size(), plan_.rows, plan_.key_dim,
                                                        plan_.value_dim, params.parts.workers));
    return attend(bank_, query_view, segments.data(), segments.size(), params, workspace_.data(), workspace_.size(),
                  out, lse);
  }

  /// The same segments with everything decoded to exact f32 rows, keys rotated.
  attention_scene decoded() const {
    attention_scene copy(bank_, plan_, {}, 0);
    copy.queries = queries;
    copy.expected = expected;
    const std::size_t tokens = expected.tokens;
    copy.exact_.push_back(std::make_unique<strided_matrix>(
        std::vector<float>(expected.keys.begin(), expected.keys.end()), tokens, plan_.key_dim));
    copy.exact_.push_back(std::make_unique<strided_matrix>(
        std::vector<float>(expected.values.begin(), expected.values.end()), tokens, plan_.value_dim));
    pqattn::segment<address> one;
    one.keys.rows = copy.exact_[0]->view();
    one.values.rows = copy.exact_[1]->view();
    one.slots = {0, tokens};
    copy.segments.push_back(one);
    return copy;
  }

  /// Changes one exact key, slot `slot` of the first segment with exact keys; `token` is its number among all tokens.
  void set_exact_key(std::size_t slot, std::size_t token, std::size_t channel, float value) {
    exact_.front()->set(slot, channel, value);
    expected.keys[token * plan_.key_dim + channel] = static_cast<double>(value);
  }

  random_data random;
  std::vector<float> queries;  ///< (rows, key_dim)
  std::vector<pqattn::segment<address>> segments;
  attention_case expected;  ///< the same call in double precision: tokens of the slots of all segments

 private:
  void add(const segment_plan& plan) {
    pqattn::segment<address> made;
    made.slots = {plan.first, plan.count};
    made.positions = positions(plan);
    const std::size_t words = plan.storage / 64 + 1;
    live_.emplace_back(words, 0);
    for (std::size_t slot = 0; slot < plan.storage; ++slot) {
      if (random.chance(plan.live_share)) {
        live_.back()[slot / 64] |= std::uint64_t{1} << (slot % 64);
      }
    }
    made.live = plan.live_share < 1.0 ? live_.back().data() : nullptr;

    doubles keys = tokens_of(plan, plan.coded_keys, *key_book_, made.keys);
    const doubles values = tokens_of(plan, plan.coded_values, *value_book_, made.values);
    if (plan.coded_keys) {
      if (plan.before_rope) {
        made.rotation = rotation_;
        for (std::size_t slot = 0; slot < plan.storage; ++slot) {
          rotate(frequencies_, plan_.key_dim / 2, plan_.pairing, made.positions.at(slot), 1.0,
                 keys.data() + slot * plan_.key_dim);
        }
      }
      tables_.push_back(std::make_unique<bank_block<Bank>>(
          bank_, pqattn::attention_table_bytes(bank_, key_book_->resident.shape, plan_.rows, made.rotation)));
      made.tables = tables_.back()->get();
    }
    for (std::size_t slot = plan.first; slot < plan.first + plan.count; ++slot) {
      expected.keys.insert(expected.keys.end(), keys.data() + slot * plan_.key_dim,
                           keys.data() + (slot + 1) * plan_.key_dim);
      expected.values.insert(expected.values.end(), values.data() + slot * plan_.value_dim,
                             values.data() + (slot + 1) * plan_.value_dim);
      expected.key_positions.push_back(made.positions.at(slot));
      expected.live.push_back(is_live(plan, slot));
    }
    expected.tokens += plan.count;
    segments.push_back(made);
  }

  [[nodiscard]] bool is_live(const segment_plan& plan, std::size_t slot) const {
    return plan.live_share >= 1.0 || (live_.back()[slot / 64] >> (slot % 64) & 1u) != 0;
  }

  pqattn::slot_positions positions(const segment_plan& plan) {
    if (!plan.scattered) {
      return {plan.base, nullptr};
    }
    lists_.emplace_back(plan.storage + 64);
    for (std::size_t slot = 0; slot < lists_.back().size(); ++slot) {
      lists_.back()[slot] = slot == 0 || random.chance(0.2) ? static_cast<std::int32_t>(random.below(100000))
                                                            : lists_.back()[slot - 1] + 1;
    }
    return {0, lists_.back().data()};
  }

  /// Makes up the keys or the values of a segment; returns the numbers of all its slots.
  doubles tokens_of(const segment_plan& plan, bool coded, const stored_book<Bank>& book,
                    pqattn::token_source<address>& source) {
    source.coded = coded;
    const std::size_t dim = book.resident.shape.dim;
    if (!coded) {
      exact_.push_back(std::make_unique<strided_matrix>(random.normals(plan.storage * dim), plan.storage, dim,
                                                        plan.type, plan.layout));
      doubles numbers = to_doubles(exact_.back()->values());
      for (std::size_t slot = 0; slot < plan.storage; ++slot) {
        const bool used = slot >= plan.first && slot < plan.first + plan.count && is_live(plan, slot);
        for (std::size_t c = 0; !used && c < dim; ++c) {
          exact_.back()->set(slot, c, std::numeric_limits<float>::quiet_NaN());
        }
      }
      source.rows = exact_.back()->view();
      return numbers;
    }
    const pqattn::geometry& shape = book.resident.shape;
    const std::size_t blocks = pqattn::blocks_for(plan.storage);
    const std::size_t pool = blocks + (plan.paged ? 2 : 0);
    blocks_.push_back(std::make_unique<bank_block<Bank>>(bank_, pool * bank_.code_block_bytes(shape)));
    if (plan.paged) {
      pages_.push_back(random.permutation<std::uint32_t>(pool));
    }
    source.book = book.resident;
    source.codes = {shape, blocks_.back()->get(), plan.paged ? pages_.back().data() : nullptr};
    // Slots behind the storage hold the highest code there is.
    std::vector<std::uint16_t> codes(blocks * pqattn::block_tokens * shape.groups(),
                                     static_cast<std::uint16_t>(shape.code_limit() - 1));
    const std::vector<std::uint16_t> drawn = random.codes(plan.storage * shape.groups(), shape.centroids);
    std::copy(drawn.begin(), drawn.end(), codes.begin());
    REQUIRE_OK(bank_.store_codes(source.codes, {0, blocks * pqattn::block_tokens}, codes.data()));
    return decode_rows(shape, book.centroids, drawn, plan.storage);
  }

  Bank& bank_;
  scene_plan plan_;
  float frequencies_[pqattn::max_dim / 2] = {};
  std::vector<float> rope_memory_;
  pqattn::rope rotation_;
  std::unique_ptr<stored_book<Bank>> key_book_;
  std::unique_ptr<stored_book<Bank>> value_book_;
  std::vector<std::unique_ptr<bank_block<Bank>>> blocks_;
  std::vector<std::unique_ptr<bank_block<Bank>>> tables_;
  std::vector<std::unique_ptr<strided_matrix>> exact_;
  std::vector<std::vector<std::uint32_t>> pages_;
  std::vector<std::vector<std::int32_t>> lists_;
  std::vector<std::vector<std::uint64_t>> live_;
  std::vector<std::byte> workspace_;
};

}  // namespace pqattn_test
