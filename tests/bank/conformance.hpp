// SPDX-License-Identifier: MIT
// The contract of bank/bank.hpp, rules 1 to 7, as one suite that runs on any bank:
//
//   TEST_CASE("my bank keeps the contract", "[bank]") {
//     my_bank bank;
//     pqattn_test::check_bank(bank, pqattn_test::bank_limits{});
//   }
//
// Inputs, codes and outputs cross the bank's own programs only, so nothing is assumed about addresses or layouts.
#pragma once

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "bank/bank_cases.hpp"
#include "pqattn/bank/bank.hpp"
#include "pqattn/encode/encode.hpp"
#include "pqattn/quant/code_rows.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"
#include "support/reference.hpp"
#include "support/resident.hpp"
#include "support/strided_matrix.hpp"

namespace pqattn_test {

/// What a bank promises beyond the contract.
struct bank_limits {
  double nmse = 5e-4;  ///< rule 2
  /// Largest error of one score, as a share of |q| |k|; of one output, as a share of (sum of p) * max |v|.
  double relative = std::numeric_limits<double>::infinity();
  bool programs_allocate = false;  ///< a bank for tests only may break rule 5
  /// Over codebooks stored as bytes the bank rounds scores and probabilities: those keep the contract and no more.
  bool rounds_bytes = false;

  [[nodiscard]] constexpr bank_limits of(pqattn::codebook_storage storage) const {
    return rounds_bytes && storage == pqattn::codebook_storage::i8
               ? bank_limits{5e-4, std::numeric_limits<double>::infinity(), programs_allocate, true}
               : *this;
  }
};

/// Banks that compute in f32 throughout. Sums of at most 1024 products in any order, angles composed of four table
/// entries: a few dozen roundings of 6e-8, most of which cancel.
inline constexpr bank_limits f32_limits{1e-11, 4e-6, false, false};
inline constexpr bank_limits rounding_limits{1e-11, 4e-6, false, true};

/// Floats aligned to 64 bytes, as tiles must be; starts as NaN.
class aligned_floats {
 public:
  explicit aligned_floats(std::size_t count)
      : memory_(count + 16, std::numeric_limits<float>::quiet_NaN()), count_(count) {}
  [[nodiscard]] float* data() {
    const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(memory_.data()) % 64;
    return memory_.data() + (misaligned == 0 ? 0 : (64 - misaligned) / sizeof(float));
  }
  [[nodiscard]] std::size_t size() const { return count_; }

 private:
  std::vector<float> memory_;
  std::size_t count_;
};

inline bool same_bits(const float* a, const float* b, std::size_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}

/// The numbers of one case that no bank is needed for.
struct case_data {
  explicit case_data(const bank_case& which, std::uint64_t stream) : random(stream), test(which) {
    shape = {which.dim, which.subvectors, which.centroids, which.stages, nullptr};
    if (which.ordered) {
      order = random.permutation<std::uint16_t>(which.dim);
      shape.channel_order = order.data();
    }
    REQUIRE_OK(check_geometry(shape));
    source = random.normals(shape.codebook_values());
    // Repeated centroids: ties must go to the lower index.
    for (std::uint32_t group = 0; group < shape.groups(); ++group) {
      float* centroids = source.data() + shape.codebook_offset(group);
      const std::size_t width = shape.width(group);
      std::copy_n(centroids + width * (shape.centroids / 3), width, centroids + width * (shape.centroids - 1));
      if (shape.stages > 1) {
        for (std::size_t i = 0; i < width * shape.centroids; ++i) {
          centroids[i] /= static_cast<float>(1 + group / shape.subvectors);
        }
      }
    }
    blocks = pqattn::blocks_for(which.tokens);
    pool_blocks = blocks + (which.paged ? 3 : 1);
    if (which.paged) {
      pages = random.permutation<std::uint32_t>(pool_blocks);
    }
    if (which.rotation != rope_kind::none) {
      pairs = which.rotation == rope_kind::partial ? which.dim / 4 : which.dim / 2;
      frequencies.resize(pairs);
      pqattn::fill_rope_frequencies(frequencies.data(), 2 * pairs, 10000.0);
      rope_memory.resize(pqattn::rope_floats(pairs));
      REQUIRE_OK(build_rope(frequencies.data(), pairs,
                            which.rotation == rope_kind::interleaved ? pqattn::rope_pairing::interleaved
                                                                     : pqattn::rope_pairing::half_split,
                            rope_memory.data(), rotation));
    }
    positions.base = which.base;
    if (which.scattered) {
      for (std::size_t slot = 0; slot < blocks * pqattn::block_tokens; ++slot) {
        // Runs of consecutive positions between jumps, as after an eviction.
        const bool jump = slot == 0 || random.chance(0.1);
        list.push_back(jump ? static_cast<std::int32_t>(random.below(20000000)) : list.back() + 1);
      }
      positions.list = list.data();
    }
  }

  /// Pages of the code span; the slots behind `tokens` and the blocks outside the page table hold garbage.
  [[nodiscard]] const std::uint32_t* page_table() const { return pages.empty() ? nullptr : pages.data(); }

  random_data random;
  bank_case test;
  pqattn::geometry shape;
  std::vector<std::uint16_t> order;
  std::vector<float> source;  ///< the codebook before rounding
  std::size_t blocks = 0;
  std::size_t pool_blocks = 0;
  std::vector<std::uint32_t> pages;
  std::uint32_t pairs = 0;
  std::vector<float> frequencies;
  std::vector<float> rope_memory;
  pqattn::rope rotation;
  std::vector<std::int32_t> list;
  pqattn::slot_positions positions;
};

/// One case on one bank.
template <class Bank>
class bank_case_run {
 public:
  using address = typename Bank::address;

  bank_case_run(Bank& bank, const bank_limits& limits, const bank_case& which, std::uint64_t stream)
      : bank_(bank),
        limits_(limits.of(which.storage)),
        data_(which, stream),
        book_(bank, data_.shape, which.storage, data_.source),
        code_memory_(bank, data_.pool_blocks * bank.code_block_bytes(data_.shape)),
        codes_{data_.shape, code_memory_.get(), data_.page_table()} {
    fill_pool_with_garbage();
  }

  void check_all() {
    INFO(data_.test.text() << ", seed " << data_.random.seed());
    check_codebook();
    check_code_round_trip();
    check_code_rows();
    check_encode();
    check_decode();
    check_scores();
    check_values();
    check_pool_outside();
  }

 private:
  using slot_range = pqattn::slot_range;

  [[nodiscard]] std::size_t groups() const { return data_.shape.groups(); }

  /// Runs one program; it must succeed and, unless the bank says otherwise, allocate nothing.
  template <class Program>
  void run(Program&& program) {
    pqattn::status outcome;
    const std::size_t allocations = allocations_of([&] { outcome = program(); });
    REQUIRE_OK(outcome);
    if (!limits_.programs_allocate) {
      REQUIRE(allocations == 0);
    }
  }

  /// Codes that encode() could never have made (K and above) everywhere, through the physical blocks.
  void fill_pool_with_garbage() {
    const std::size_t slots = data_.pool_blocks * pqattn::block_tokens;
    garbage_ = data_.random.codes(slots * groups(), data_.shape.code_limit());
    run([&] { return bank_.store_codes({data_.shape, code_memory_.get(), nullptr}, {0, slots}, garbage_.data()); });
  }

  std::vector<std::uint16_t> load(slot_range slots) {
    std::vector<std::uint16_t> codes(slots.count * groups());
    run([&] { return bank_.load_codes(codes_, slots, codes.data()); });
    return codes;
  }

  void check_codebook() {
    std::vector<float> rounded = data_.source;
    REQUIRE_OK(round_codebook(data_.shape, data_.test.storage, rounded.data()));
    CHECK(book_.centroids == rounded);
  }

  /// Physical blocks outside the page table are as garbage as before, whatever ran.
  void check_pool_outside() {
    std::vector<std::uint16_t> now(data_.pool_blocks * pqattn::block_tokens * groups());
    run([&] {
      return bank_.load_codes({data_.shape, code_memory_.get(), nullptr}, {0, data_.pool_blocks * pqattn::block_tokens},
                              now.data());
    });
    const std::size_t block = pqattn::block_tokens * groups();
    for (std::size_t physical = 0; physical < data_.pool_blocks; ++physical) {
      bool used = false;
      for (std::size_t logical = 0; logical < data_.blocks; ++logical) {
        used = used || codes_.page(logical) == physical;
      }
      if (!used) {
        INFO("physical block " << physical);
        CHECK(std::equal(now.begin() + static_cast<std::ptrdiff_t>(physical * block),
                         now.begin() + static_cast<std::ptrdiff_t>((physical + 1) * block),
                         garbage_.begin() + static_cast<std::ptrdiff_t>(physical * block)));
      }
    }
  }

  /// Writing a range changes that range and nothing else, in any order of writes.
  void check_code_round_trip() {
    const std::size_t slots = data_.blocks * pqattn::block_tokens;
    std::vector<std::uint16_t> expected = load({0, slots});
    for (int i = 0; i < 12; ++i) {
      const std::size_t first = data_.random.below(slots);
      const std::size_t count = 1 + data_.random.below(std::min<std::size_t>(slots - first, i % 2 == 0 ? 3 : slots));
      const std::vector<std::uint16_t> written = data_.random.codes(count * groups(), data_.shape.code_limit());
      run([&] { return bank_.store_codes(codes_, {first, count}, written.data()); });
      std::copy(written.begin(), written.end(), expected.begin() + static_cast<std::ptrdiff_t>(first * groups()));
      REQUIRE(load({first, count}) == written);
    }
    CHECK(load({0, slots}) == expected);
  }

  /// Canonical code rows, token after token, are had by a repack of any slots, and bring the same codes back.
  void check_code_rows() {
    const std::size_t slots = data_.blocks * pqattn::block_tokens;
    const std::vector<std::uint16_t> before = load({0, slots});
    const std::size_t first = data_.random.below(slots);
    const slot_range range{first, 1 + data_.random.below(slots - first)};
    const std::vector<std::uint16_t> coded = data_.random.codes(range.count * groups(), data_.shape.centroids);
    run([&] { return bank_.store_codes(codes_, range, coded.data()); });
    std::vector<std::uint8_t> rows(range.count * data_.shape.row_bytes());
    std::vector<std::uint16_t> scratch(code_rows_scratch(data_.shape, range.count));
    run([&] { return load_code_rows(bank_, codes_, range, rows.data(), rows.size(), scratch.data(), scratch.size()); });
    std::vector<std::uint16_t> unpacked(coded.size());
    for (std::size_t i = 0; i < range.count; ++i) {
      pqattn::unpack_code_row(rows.data() + i * data_.shape.row_bytes(), data_.shape.groups(), data_.shape.code_bits(),
                              unpacked.data() + i * groups());
    }
    CHECK(unpacked == coded);
    run([&] { return bank_.store_codes(codes_, {0, slots}, before.data()); });
    run([&] {
      return store_code_rows(bank_, rows.data(), rows.size(), codes_, range, scratch.data(), scratch.size());
    });
    std::vector<std::uint16_t> expected = before;
    std::copy(coded.begin(), coded.end(), expected.begin() + static_cast<std::ptrdiff_t>(first * groups()));
    CHECK(load({0, slots}) == expected);
  }

  /// Rows near centroids, exactly on centroids, and anywhere.
  std::vector<float> rows_to_encode(std::size_t count) {
    std::vector<float> rows = data_.random.normals(count * data_.shape.dim);
    const std::vector<std::uint16_t> codes = data_.random.codes(count * groups(), data_.shape.centroids);
    const doubles on_centroids = decode_rows(data_.shape, book_.centroids, codes, count);
    for (std::size_t row = 0; row < count; row += 3) {
      for (std::size_t c = 0; c < data_.shape.dim; ++c) {
        rows[row * data_.shape.dim + c] = static_cast<float>(on_centroids[row * data_.shape.dim + c]);
      }
    }
    return rows;
  }

  /// Rule 1, and rule 4 for neighbours.
  void check_encode() {
    const std::size_t slots = data_.blocks * pqattn::block_tokens;
    const std::size_t count = std::min<std::size_t>(data_.test.tokens, data_.shape.centroids > 1024 ? 20 : 150);
    const std::size_t first = data_.random.below(slots - count + 1);
    const pqattn::dtype types[] = {pqattn::dtype::f32, pqattn::dtype::f16, pqattn::dtype::bf16};
    const matrix_layout layouts[] = {dense_layout, padded_layout, awkward_layout, reversed_layout};
    const strided_matrix rows(rows_to_encode(count), count, data_.shape.dim, types[data_.random.below(3)],
                              layouts[data_.random.below(4)]);
    std::vector<std::uint16_t> expected = load({0, slots});
    run([&] { return bank_.encode(rows.view(), book_.resident, codes_, {first, count}); });
    const std::vector<std::uint16_t> coded = load({first, count});
    std::copy(coded.begin(), coded.end(), expected.begin() + static_cast<std::ptrdiff_t>(first * groups()));
    CHECK(load({0, slots}) == expected);
    const std::vector<float> values = rows.values();
    for (std::size_t i = 0; i < count; ++i) {
      check_row_codes(values.data() + i * data_.shape.dim, coded.data() + i * groups());
    }
    // One row at a time gives the same codes.
    for (std::size_t i = 0; i < count; i += 7) {
      run([&] { return bank_.encode(rows.view().slice(i, 1), book_.resident, codes_, {first + i, 1}); });
    }
    CHECK(load({0, slots}) == expected);
  }

  void check_row_codes(const float* row, const std::uint16_t* codes) {
    const pqattn::geometry& shape = data_.shape;
    for (std::uint32_t run = 0; run < shape.subvectors; ++run) {
      const std::uint32_t width = shape.width(run);
      doubles rest(width);
      double magnitude = 0.0;
      for (std::uint32_t c = 0; c < width; ++c) {
        rest[c] = static_cast<double>(row[shape.channel(shape.first_channel(run) + c)]);
        magnitude = std::max(magnitude, std::abs(rest[c]));
      }
      for (std::uint32_t stage = 0; stage < shape.stages; ++stage) {
        const std::uint32_t group = stage * shape.subvectors + run;
        const float* centroids = book_.centroids.data() + shape.codebook_offset(group);
        INFO("group " << group << ", code " << codes[group]);
        REQUIRE(codes[group] < shape.centroids);
        if (!code_is_nearest(codes[group], rest.data(), centroids, shape.centroids, width, magnitude)) {
          const nearest_result best = nearest_centroid(rest.data(), centroids, shape.centroids, width);
          INFO("distance " << squared_distance(rest.data(), centroids + std::size_t{codes[group]} * width, width)
                           << ", best " << best.distance << " at " << best.index);
          REQUIRE(false);
        }
        for (std::uint32_t c = 0; c < width; ++c) {
          rest[c] -= static_cast<double>(centroids[std::size_t{codes[group]} * width + c]);
          magnitude = std::max(magnitude, std::abs(rest[c]));
        }
      }
    }
  }

  /// Codes below K in the live slots; what lies behind them stays garbage.
  std::vector<std::uint16_t> store_live_codes() {
    std::vector<std::uint16_t> codes = data_.random.codes(data_.test.tokens * groups(), data_.shape.centroids);
    run([&] { return bank_.store_codes(codes_, {0, data_.test.tokens}, codes.data()); });
    const std::size_t behind = data_.blocks * pqattn::block_tokens - data_.test.tokens;
    if (behind != 0) {
      const std::vector<std::uint16_t> garbage(behind * groups(),
                                               static_cast<std::uint16_t>(data_.shape.code_limit() - 1));
      run([&] { return bank_.store_codes(codes_, {data_.test.tokens, behind}, garbage.data()); });
    }
    return codes;
  }

  void check_decode() {
    const std::vector<std::uint16_t> codes = store_live_codes();
    const std::size_t first = data_.test.tokens / 3;
    const std::size_t count = data_.test.tokens - first;
    const doubles all = decode_rows(data_.shape, book_.centroids, codes, data_.test.tokens);
    const doubles expected(all.begin() + static_cast<std::ptrdiff_t>(first * data_.shape.dim), all.end());
    strided_matrix decoded(count, data_.shape.dim, pqattn::dtype::f32, awkward_layout);
    run([&] { return bank_.decode(book_.resident, codes_, {first, count}, decoded.ref()); });
    CHECK(max_error(decoded.values(), expected) <=
          4e-7 * static_cast<double>(data_.shape.stages) * (1.0 + largest_magnitude(expected)));
    CHECK(decoded.padding_is_intact());
    strided_matrix narrow(count, data_.shape.dim, pqattn::dtype::bf16, padded_layout);
    run([&] { return bank_.decode(book_.resident, codes_, {first, count}, narrow.ref()); });
    CHECK(max_error(narrow.values(), expected) <= 0.004 * (1.0 + largest_magnitude(expected)));
    CHECK(narrow.padding_is_intact());
  }

  /// Rule 2 for scores, rule 3 for cuts at blocks.
  void check_scores() {
    const std::vector<std::uint16_t> codes = store_live_codes();
    const std::size_t dim = data_.shape.dim;
    const std::size_t rows = data_.test.rows;
    const std::size_t tokens = data_.test.tokens;
    const std::size_t query_stride = dim + 3;
    const std::vector<float> queries = data_.random.normals(rows * query_stride);
    const pqattn::query_rows view{queries.data(), rows, query_stride};
    doubles keys = decode_rows(data_.shape, book_.centroids, codes, tokens);
    for (std::size_t slot = 0; slot < tokens; ++slot) {
      rotate(data_.frequencies.data(), data_.pairs, data_.rotation.pairing, data_.positions.at(slot), 1.0,
             keys.data() + slot * dim);
    }
    for (std::size_t most = 1; most < 40; ++most) {
      CHECK(bank_.table_bytes(data_.shape, most, data_.rotation) <=
            bank_.table_bytes(data_.shape, most + 1, data_.rotation));
    }
    bank_block<Bank> tables(bank_, bank_.table_bytes(data_.shape, rows, data_.rotation));
    run([&] { return bank_.prepare_scores(view, book_.resident, data_.rotation, tables.get()); });

    const std::size_t stride = (data_.blocks + 1) * pqattn::block_tokens;
    aligned_floats tile_memory(rows * stride);
    const pqattn::score_tile tile{tile_memory.data(), rows, stride};
    const auto score = [&](slot_range slots, const pqattn::score_tile& target) {
      run([&] {
        return bank_.score(tables.get(), rows, book_.resident, data_.rotation, data_.positions, codes_, slots, target);
      });
    };
    score({0, tokens}, tile);
    check_against(view, keys, tile);
    for (std::size_t row = 0; row < rows; ++row) {
      INFO("row " << row << ": behind the last block");
      CHECK(std::isnan(tile.row(row)[data_.blocks * pqattn::block_tokens]));
    }

    // Block by block, the last one with its own number of slots: the same bits.
    aligned_floats part_memory(rows * pqattn::block_tokens);
    const pqattn::score_tile part{part_memory.data(), rows, pqattn::block_tokens};
    bool same = true;
    for (std::size_t first = 0; first < tokens; first += pqattn::block_tokens) {
      const std::size_t count = std::min(pqattn::block_tokens, tokens - first);
      score({first, count}, part);
      for (std::size_t row = 0; row < rows; ++row) {
        same = same && same_bits(part.row(row), tile.row(row) + first, count);
      }
    }
    CHECK(same);
  }

  void check_against(const pqattn::query_rows& queries, const doubles& keys, const pqattn::score_tile& tile) {
    const std::size_t dim = data_.shape.dim;
    const std::size_t tokens = data_.test.tokens;
    doubles expected(queries.rows * tokens);
    std::vector<float> got(queries.rows * tokens);
    double worst = 0.0;
    for (std::size_t row = 0; row < queries.rows; ++row) {
      const doubles q(queries.row(row), queries.row(row) + dim);
      for (std::size_t slot = 0; slot < tokens; ++slot) {
        double sum = 0.0;
        for (std::size_t c = 0; c < dim; ++c) {
          sum += q[c] * keys[slot * dim + c];
        }
        expected[row * tokens + slot] = sum;
        got[row * tokens + slot] = tile.row(row)[slot];
        const double scale = norm(q.data(), dim) * norm(keys.data() + slot * dim, dim) + 1e-30;
        worst = std::max(worst, std::abs(static_cast<double>(tile.row(row)[slot]) - sum) / scale);
      }
    }
    CHECK(nmse(got, expected) <= limits_.nmse);
    CHECK(worst <= limits_.relative);
  }

  /// Rule 2 for values: both methods, accumulation onto what is there, skipped blocks.
  void check_values() {
    const std::vector<std::uint16_t> codes = store_live_codes();
    const std::size_t dim = data_.shape.dim;
    const std::size_t rows = data_.test.rows;
    const std::size_t tokens = data_.test.tokens;
    const std::size_t stride = (data_.blocks + 1) * pqattn::block_tokens;
    aligned_floats memory(rows * stride);
    const pqattn::score_tile tile{memory.data(), rows, stride};
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t slot = 0; slot < data_.blocks * pqattn::block_tokens; ++slot) {
        const bool light = slot / pqattn::block_tokens % 2 == 1;  // every other block weighs next to nothing
        const float p = static_cast<float>(data_.random.uniform()) * (light ? 1e-6f : 1.0f);
        tile.row(row)[slot] = slot < tokens && !data_.random.chance(0.2) ? p : 0.0f;
      }
    }
    const doubles values = decode_rows(data_.shape, book_.centroids, codes, tokens);
    const std::vector<float> before = data_.random.normals(rows * (dim + 2));
    doubles expected(rows * dim);
    doubles mass(rows, 0.0);
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t c = 0; c < dim; ++c) {
        expected[row * dim + c] = static_cast<double>(before[row * (dim + 2) + c]);
      }
      for (std::size_t slot = 0; slot < tokens; ++slot) {
        const double p = static_cast<double>(tile.row(row)[slot]);
        mass[row] += p;
        for (std::size_t c = 0; c < dim; ++c) {
          expected[row * dim + c] += p * values[slot * dim + c];
        }
      }
    }
    const double largest = largest_magnitude(values);
    const double heaviest = *std::max_element(mass.begin(), mass.end());
    const auto accumulate = [&](const pqattn::value_options& options) {
      std::vector<float> out = before;
      run([&] {
        return bank_.accumulate_values(tile, book_.resident, codes_, {0, tokens}, options, out.data(), dim + 2);
      });
      return out;
    };
    const auto check = [&](const std::vector<float>& out, double extra) {
      std::vector<float> inner;
      bool outside = true;
      for (std::size_t row = 0; row < rows; ++row) {
        inner.insert(inner.end(), out.data() + row * (dim + 2), out.data() + row * (dim + 2) + dim);
        outside = outside && same_bits(out.data() + row * (dim + 2) + dim, before.data() + row * (dim + 2) + dim, 2);
      }
      CHECK(nmse(inner, expected) <= limits_.nmse + extra);
      CHECK(max_error(inner, expected) <= limits_.relative * (1.0 + heaviest * largest) + extra * largest);
      CHECK(outside);
    };
    for (const auto method :
         {pqattn::value_method::automatic, pqattn::value_method::reconstruct, pqattn::value_method::histogram}) {
      INFO("value method " << static_cast<int>(method));
      const std::vector<float> out = accumulate({method, nullptr});
      check(out, 0.0);
      CHECK(same_bits(accumulate({method, nullptr}).data(), out.data(), out.size()));
      const std::vector<float> nothing(rows, 0.0f);
      check(accumulate({method, nothing.data()}), 0.0);
      const std::vector<float> light(rows, 1e-4f);
      check(accumulate({method, light.data()}), 1e-4);
    }
  }

  Bank& bank_;
  bank_limits limits_;
  case_data data_;
  stored_book<Bank> book_;
  bank_block<Bank> code_memory_;
  pqattn::code_span<address> codes_;
  std::vector<std::uint16_t> garbage_;
};

/// Nearest centroids of points and weighted sums.
template <class Bank>
void check_training_programs(Bank& bank) {
  struct training_case {
    std::size_t count;
    std::uint32_t width;
    std::uint32_t centroids;
  };
  constexpr training_case cases[] = {{1, 1, 1},   {2, 3, 2},    {15, 2, 3},    {16, 7, 16},   {17, 4, 17},
                                     {63, 1, 9},  {64, 8, 64},  {65, 4, 300},  {130, 33, 50}, {257, 4, 256},
                                     {999, 3, 5}, {40, 128, 7}, {70, 2, 65536}};
  std::uint64_t stream = 500;
  for (const training_case& test : cases) {
    random_data random(stream++);
    INFO(test.count << " points of " << test.width << ", K=" << test.centroids << ", seed " << random.seed());
    const std::size_t width = test.width;
    std::vector<float> points = random.normals(test.count * width, 2.0f, 5.0f);
    std::vector<float> centroids = random.normals(test.centroids * width, 2.0f, 5.0f);
    std::copy_n(centroids.begin(), width, centroids.end() - static_cast<std::ptrdiff_t>(width));
    for (std::size_t i = 0; i < test.count; i += 4) {  // exactly on a centroid
      std::copy_n(centroids.data() + random.below(test.centroids) * width, width, points.data() + i * width);
    }
    bank_block<Bank> resident(bank, bank.point_bytes(test.count, test.width));
    REQUIRE_OK(bank.store_points(points.data(), test.count, test.width, resident.get()));
    std::vector<std::uint16_t> codes(test.count + 1, 0xabcd);
    std::vector<float> distances(test.count + 1, -7.0f);
    REQUIRE_OK(bank.assign(resident.get(), test.count, test.width, centroids.data(), test.centroids, codes.data(),
                           distances.data()));
    CHECK(codes.back() == 0xabcd);
    CHECK(distances.back() == -7.0f);
    bool nearest = true;
    double worst = 0.0;
    for (std::size_t i = 0; i < test.count; ++i) {
      const float* point = points.data() + i * width;
      REQUIRE(codes[i] < test.centroids);
      nearest = nearest && code_is_nearest(codes[i], point, centroids.data(), test.centroids, width, 0.0);
      const double distance = squared_distance(point, centroids.data() + codes[i] * width, width);
      worst = std::max(worst, std::abs(static_cast<double>(distances[i]) - distance) / (distance + 1e-12));
    }
    CHECK(nearest);
    CHECK(worst <= 1e-6 * static_cast<double>(width + 4));

    std::vector<float> weights(test.count);
    for (float& weight : weights) {
      weight = random.chance(0.2) ? 0.0f : static_cast<float>(random.uniform(0.0, 10.0));
    }
    for (const float* used : {static_cast<const float*>(nullptr), static_cast<const float*>(weights.data())}) {
      doubles sums(test.centroids * width, 1e300);  // whatever was there is overwritten
      doubles mass(test.centroids, 1e300);
      REQUIRE_OK(bank.centroid_sums(resident.get(), test.count, test.width, used, codes.data(), test.centroids,
                                    sums.data(), mass.data()));
      doubles expected_sums(test.centroids * width, 0.0);
      doubles expected_mass(test.centroids, 0.0);
      for (std::size_t i = 0; i < test.count; ++i) {
        const double weight = used == nullptr ? 1.0 : static_cast<double>(used[i]);
        expected_mass[codes[i]] += weight;
        for (std::size_t c = 0; c < width; ++c) {
          expected_sums[codes[i] * width + c] += weight * static_cast<double>(points[i * width + c]);
        }
      }
      CHECK(max_error(mass, expected_mass) <= 1e-6 * (1.0 + largest_magnitude(expected_mass)));
      CHECK(max_error(sums, expected_sums) <= 1e-6 * (1.0 + largest_magnitude(expected_sums)));
    }
  }
}

/// Distances and codes of points and codes of rows agree, as training and encoding must.
template <class Bank>
void check_assign_agrees_with_encode(Bank& bank) {
  random_data random(700);
  INFO("seed " << random.seed());
  const pqattn::geometry shape{5, 1, 100};
  const std::vector<float> source = random.normals(shape.codebook_values());
  const std::vector<float> rows = random.normals(200 * shape.dim);
  stored_book<Bank> book(bank, shape, pqattn::codebook_storage::f32, source);
  bank_block<Bank> points(bank, bank.point_bytes(200, shape.dim));
  bank_block<Bank> blocks(bank, 4 * bank.code_block_bytes(shape));
  const pqattn::code_span<typename Bank::address> span{shape, blocks.get(), nullptr};
  std::vector<std::uint16_t> assigned(200);
  std::vector<std::uint16_t> encoded(200);
  std::vector<float> distances(200);
  REQUIRE_OK(bank.store_points(rows.data(), 200, shape.dim, points.get()));
  REQUIRE_OK(bank.assign(points.get(), 200, shape.dim, source.data(), 100, assigned.data(), distances.data()));
  REQUIRE_OK(bank.encode(pqattn::view_rows(rows.data(), 200, shape.dim), book.resident, span, {0, 200}));
  REQUIRE_OK(bank.load_codes(span, {0, 200}, encoded.data()));
  CHECK(assigned == encoded);
}

/// Three tiles of scores against running statistics kept in double.
template <class Bank>
void check_softmax_program(Bank& bank) {
  random_data random(800);
  INFO("seed " << random.seed());
  constexpr std::size_t stride = 17 * pqattn::block_tokens;
  constexpr std::size_t rows = 7;
  aligned_floats memory(rows * stride);
  const pqattn::score_tile tile{memory.data(), rows, stride};
  // Row 0: ordinary. 1: all masked. 2: masked at first. 3: masked at last. 4: huge. 5: one huge, rest tiny.
  // 6: below any real score, yet not masked.
  std::vector<float> maximum(rows, pqattn::masked_score);
  std::vector<float> sum(rows, 0.0f);
  std::vector<float> rescale(rows, std::numeric_limits<float>::quiet_NaN());
  doubles true_maximum(rows, -std::numeric_limits<double>::infinity());
  doubles true_sum(rows, 0.0);
  const std::size_t counts[] = {65, 1, 1000, 64, 130};
  for (std::size_t pass = 0; pass < 5; ++pass) {
    const std::size_t count = counts[pass];
    CAPTURE(pass, count);
    std::vector<doubles> scores(rows, doubles(count));
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t i = 0; i < count; ++i) {
        float score = 4.0f * random.normal();
        const bool masked = row == 1 || (row == 2 && pass < 2) || (row == 3 && pass > 1) ||
                            (row == 0 && pass != 0 && random.chance(0.3));
        score = row == 4 ? 30000.0f * random.normal() : row == 5 ? (i == 3 ? 1e6f : -1e6f) : score;
        score = row == 6 ? -4.0e29f : score;
        tile.row(row)[i] = masked ? pqattn::masked_score : score;
        scores[row][i] = masked ? -std::numeric_limits<double>::infinity() : static_cast<double>(score);
      }
      std::fill(tile.row(row) + count, tile.row(row) + stride, std::numeric_limits<float>::quiet_NaN());
    }
    const std::vector<float> old_sum = sum;
    const doubles old_maximum = true_maximum;
    REQUIRE_OK(bank.softmax_part(tile, count, {maximum.data(), sum.data(), rescale.data()}));
    for (std::size_t row = 0; row < rows; ++row) {
      CAPTURE(row);
      for (const double score : scores[row]) {
        true_maximum[row] = std::max(true_maximum[row], score);
      }
      const bool any = std::isfinite(true_maximum[row]);
      double worst = 0.0;
      double tile_sum = 0.0;
      for (std::size_t i = 0; i < count; ++i) {
        const double p = any ? std::exp(scores[row][i] - true_maximum[row]) : 0.0;
        tile_sum += p;
        const double got = static_cast<double>(tile.row(row)[i]);
        const double gap = any && p > 0.0 ? true_maximum[row] - scores[row][i] : 0.0;
        // The difference of two scores is rounded once, exp by a few units. Below 1e-37 a result may be flushed.
        const double allowed = p * (1e-6 + 1e-7 * gap) + 2e-37;
        worst = std::max(worst, std::isfinite(got) ? std::abs(got - p) / allowed : 1e9);
      }
      CHECK(worst <= 1.0);
      const std::size_t padded = pqattn::blocks_for(count) * pqattn::block_tokens;
      CHECK(std::all_of(tile.row(row) + count, tile.row(row) + padded, [](float p) { return p == 0.0f; }));
      if (padded < stride) {
        CHECK(std::isnan(tile.row(row)[padded]));
      }
      const double factor = std::isfinite(old_maximum[row]) ? std::exp(old_maximum[row] - true_maximum[row]) : 1.0;
      true_sum[row] = true_sum[row] * factor + tile_sum;
      CHECK(std::isfinite(rescale[row]));
      if (old_sum[row] > 0.0f) {
        CHECK(std::abs(static_cast<double>(rescale[row]) - factor) <= 1e-5 * factor + 2e-37);
      }
      if (any) {
        CHECK(static_cast<double>(maximum[row]) == true_maximum[row]);
        CHECK(std::abs(static_cast<double>(sum[row]) - true_sum[row]) <= 1e-5 * true_sum[row]);
      } else {
        CHECK(sum[row] == 0.0f);
        CHECK(maximum[row] == pqattn::masked_score);
      }
    }
  }
}

/// Exact rows of every dtype and stride.
template <class Bank>
void check_exact_programs(Bank& bank, const bank_limits& limits) {
  std::uint64_t stream = 900;
  for (const std::size_t dim : {1U, 3U, 7U, 16U, 31U, 64U, 80U, 129U, 1024U}) {
    for (const auto type : {pqattn::dtype::f32, pqattn::dtype::f16, pqattn::dtype::bf16}) {
      const matrix_layout layouts[] = {dense_layout, padded_layout, awkward_layout, reversed_layout};
      random_data random(stream++);
      const matrix_layout layout = layouts[stream % 4];
      const std::size_t tokens = 1 + random.below(70);
      const std::size_t rows = 1 + random.below(9);
      INFO("d=" << dim << " " << name_of(type) << " tokens=" << tokens << " rows=" << rows << ", seed "
                << random.seed());
      const strided_matrix tokens_in(random.normals(tokens * dim), tokens, dim, type, layout);
      const doubles exact = to_doubles(tokens_in.values());
      const std::vector<float> queries = random.normals(rows * (dim + 1));
      const std::size_t stride = tokens + 5;  // exact programs ask for neither alignment nor whole blocks
      std::vector<float> memory(rows * stride + 1, std::numeric_limits<float>::quiet_NaN());
      const pqattn::score_tile tile{memory.data() + 1, rows, stride};
      REQUIRE_OK(bank.score_rows({queries.data(), rows, dim + 1}, tokens_in.view(), tile));
      doubles expected(rows * tokens, 0.0);
      std::vector<float> got;
      double worst = 0.0;
      for (std::size_t row = 0; row < rows; ++row) {
        const doubles q(queries.data() + row * (dim + 1), queries.data() + row * (dim + 1) + dim);
        for (std::size_t token = 0; token < tokens; ++token) {
          double& sum = expected[row * tokens + token];
          for (std::size_t c = 0; c < dim; ++c) {
            sum += q[c] * exact[token * dim + c];
          }
          got.push_back(tile.row(row)[token]);
          worst = std::max(worst, std::abs(static_cast<double>(got.back()) - sum) /
                                      (norm(q.data(), dim) * norm(exact.data() + token * dim, dim)));
        }
        CHECK(std::isnan(tile.row(row)[tokens]));
      }
      CHECK(nmse(got, expected) <= limits.nmse);
      CHECK(worst <= limits.relative);

      // Probability 0 excludes a row whatever it holds.
      strided_matrix values(random.normals(tokens * dim), tokens, dim, type, layout);
      const doubles clean = to_doubles(values.values());
      const std::size_t excluded = random.below(tokens);
      for (std::size_t c = 0; c < dim; ++c) {
        values.set(excluded, c, std::numeric_limits<float>::quiet_NaN());
      }
      std::vector<float> out = random.normals(rows * (dim + 1));
      doubles sums(rows * (dim + 1));
      double heaviest = 1.0;
      for (std::size_t row = 0; row < rows; ++row) {
        double mass = 0.0;
        for (std::size_t c = 0; c <= dim; ++c) {
          sums[row * (dim + 1) + c] = static_cast<double>(out[row * (dim + 1) + c]);
        }
        for (std::size_t token = 0; token < tokens; ++token) {
          tile.row(row)[token] = token == excluded ? 0.0f : static_cast<float>(random.uniform());
          const double p = static_cast<double>(tile.row(row)[token]);
          mass += p;
          for (std::size_t c = 0; c < dim; ++c) {
            sums[row * (dim + 1) + c] += p * clean[token * dim + c];
          }
        }
        heaviest = std::max(heaviest, mass);
      }
      REQUIRE_OK(bank.accumulate_rows(tile, values.view(), out.data(), dim + 1));
      CHECK(nmse(out, sums) <= limits.nmse);
      CHECK(max_error(out, sums) <= limits.relative * (1.0 + heaviest * largest_magnitude(clean)));
    }
  }
}

/// Rule 7: a codebook that cannot be stored leaves the one that is there.
template <class Bank>
void check_failed_store(Bank& bank) {
  const pqattn::geometry shape{4, 2, 3};
  std::vector<float> numbers(shape.codebook_values());
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = static_cast<float>(i);
  }
  stored_book<Bank> book(bank, shape, pqattn::codebook_storage::f16, numbers);
  std::vector<float> bad(numbers.size(), -1.0f);
  bad[7] = 65520.0f;  // the first number that rounds to infinity
  const pqattn::status refused = bank.store_codebook({shape, bad.data()}, book.resident);
  CHECK(refused.code == pqattn::status_code::unsupported);
  CHECK(refused.got == 7);
  std::vector<float> loaded(numbers.size());
  REQUIRE_OK(bank.load_codebook(book.resident, loaded.data()));
  CHECK(loaded == numbers);
  bad[7] = 65519.0f;
  CHECK(bank.store_codebook({shape, bad.data()}, book.resident).ok());
}

/// Rule 6: encoding and scoring on threads, each into memory of its own.
template <class Bank>
void check_concurrency(Bank& bank) {
  random_data random(1000);
  INFO("seed " << random.seed());
  constexpr std::size_t workers = 4;
  constexpr std::size_t tokens = 128;
  const pqattn::geometry shape{32, 8, 64};
  stored_book<Bank> book(bank, shape, pqattn::codebook_storage::f16, random.normals(shape.codebook_values()));
  bank_block<Bank> pool(bank, pqattn::blocks_for(tokens) * workers * bank.code_block_bytes(shape));
  const pqattn::code_span<typename Bank::address> codes{shape, pool.get(), nullptr};
  const std::vector<float> rows = random.normals(tokens * workers * shape.dim);
  const std::vector<float> query = random.normals(shape.dim);
  const pqattn::rows_view view = pqattn::view_rows(rows.data(), tokens * workers, shape.dim);
  bank_block<Bank> tables(bank, bank.table_bytes(shape, 1, {}));
  REQUIRE_OK(bank.prepare_scores({query.data(), 1, shape.dim}, book.resident, {}, tables.get()));
  const auto work = [&](std::size_t worker, float* scores) {
    const pqattn::slot_range slots{worker * tokens, tokens};
    pqattn::status done = bank.encode(view.slice(slots.first, tokens), book.resident, codes, slots);
    if (done) {
      done = bank.score(tables.get(), 1, book.resident, {}, {}, codes, slots, {scores, 1, tokens});
    }
    return done;
  };
  aligned_floats serial(workers * tokens);
  aligned_floats parallel(workers * tokens);
  for (std::size_t worker = 0; worker < workers; ++worker) {
    REQUIRE_OK(work(worker, serial.data() + worker * tokens));
  }
  const std::vector<std::uint16_t> garbage = random.codes(workers * tokens * shape.groups(), shape.centroids);
  REQUIRE_OK(bank.store_codes(codes, {0, workers * tokens}, garbage.data()));
  std::vector<pqattn::status> outcomes(workers);
  std::vector<std::thread> threads;
  for (std::size_t worker = 0; worker < workers; ++worker) {
    threads.emplace_back([&, worker] { outcomes[worker] = work(worker, parallel.data() + worker * tokens); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const pqattn::status& outcome : outcomes) {
    CHECK(outcome.ok());
  }
  CHECK(same_bits(serial.data(), parallel.data(), workers * tokens));
}

/// The whole suite. One SECTION per group of rules.
template <pqattn::bank_policy Bank>
void check_bank(Bank& bank, const bank_limits& limits) {
  INFO("bank " << static_cast<const char*>(bank.name()) << " on " << static_cast<const char*>(bank.arch_name()));
  SECTION("codes, scores and values of every shape") {
    // A counter that nobody feeds would make the check of rule 5 vacuous.
    REQUIRE(allocations_of([] { ::operator delete(::operator new(16)); }) == 1);
    std::uint64_t stream = 100;
    for (const bank_case& test : bank_cases) {
      bank_case_run<Bank>(bank, limits, test, stream++).check_all();
    }
  }
  SECTION("training programs") {
    check_training_programs(bank);
    check_assign_agrees_with_encode(bank);
  }
  SECTION("softmax") {
    check_softmax_program(bank);
  }
  SECTION("exact rows") {
    check_exact_programs(bank, limits);
  }
  SECTION("failed calls change nothing") {
    check_failed_store(bank);
  }
  if constexpr (Bank::concurrent) {
    SECTION("concurrent calls") {
      check_concurrency(bank);
    }
  }
}

}  // namespace pqattn_test
