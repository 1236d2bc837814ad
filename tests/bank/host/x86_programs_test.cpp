// SPDX-License-Identifier: MIT
// What the host bank answers with its kernels against what it answers in f32, on codebooks stored as bytes.
#include <pqattn/bank/host/x86_programs.hpp>

#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "pqattn/attend/attend.hpp"
#include "pqattn/bank/host/host_bank.hpp"
#include "pqattn/train/channel_order.hpp"
#include "support/memory_resources.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"
#include "support/resident.hpp"

namespace {

using namespace pqattn;
using pqattn_test::random_data;

struct case_shape {
  geometry shape;
  std::size_t rows;
  std::size_t tokens;
  std::uint32_t pairs;
  rope_pairing pairing;
  bool scattered;
};

double relative_error(const std::vector<float>& got, const std::vector<float>& expected) {
  double error = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - static_cast<double>(expected[i]);
    error += difference * difference;
    norm += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  return error / norm;
}

/// The host bank without what it says it fetches ahead.
struct bank_without_hints : host_bank<> {
  using host_bank<>::host_bank;
  status prepare_scores(const query_rows& queries, const resident_codebook<address>& book, const rope& rotation,
                        address tables) const noexcept {
    return host_bank<>::prepare_scores(queries, book, rotation, tables);
  }
  status score(address tables, std::size_t rows, const resident_codebook<address>& book, const rope& rotation,
               const slot_positions& positions, const code_span<address>& codes, slot_range slots,
               const score_tile& tile) const noexcept {
    return host_bank<>::score(tables, rows, book, rotation, positions, codes, slots, tile);
  }
  status accumulate_values(const score_tile& tile, const resident_codebook<address>& book,
                           const code_span<address>& codes, slot_range slots, const value_options& options, float* out,
                           std::size_t stride) const noexcept {
    return host_bank<>::accumulate_values(tile, book, codes, slots, options, out, stride);
  }
};
static_assert(bank_policy<bank_without_hints> && !bank_reads_ahead<bank_without_hints>);

/// One KV head's codes and codebooks, the same for every bank.
struct coded_head {
  const case_shape& in;
  std::vector<float> tables;
  rope rotation;
  std::vector<float> key_centroids;
  std::vector<float> value_centroids;
  std::vector<std::uint16_t> codes;
  std::vector<std::int32_t> positions;
  std::vector<float> queries;

  coded_head(random_data& random, const case_shape& shape) : in(shape) {
    std::vector<float> frequencies(in.pairs);
    fill_rope_frequencies(frequencies.data(), 2 * in.pairs, 10000.0);
    tables.resize(rope_floats(in.pairs));
    REQUIRE_OK(build_rope(frequencies.data(), in.pairs, in.pairing, tables.data(), rotation));
    key_centroids = random.normals(in.shape.codebook_values(), 1.0f, 0.5f);
    value_centroids = random.normals(in.shape.codebook_values(), 1.0f, -0.3f);
    codes = random.codes(in.tokens * in.shape.groups(), in.shape.centroids);
    queries = random.normals(in.rows * in.shape.dim, 0.7f);
    for (std::size_t t = 0; t < in.tokens; ++t) {
      positions.push_back(static_cast<std::int32_t>(in.scattered ? 3 * t + t % 2 : 100000 + t));
    }
  }

  /// `turning`: key codebooks stored for their rotation. `pages`: of the code blocks, if they are not in order.
  template <class Bank>
  std::vector<float> attend_on(Bank& bank, pqattn_test::counting_resource& memory, bool turning,
                               const std::vector<std::uint32_t>& pages = {}) const {
    const auto place = [&](const std::vector<float>& centroids, const rope& turned) {
      resident_codebook<std::byte*> book{in.shape, codebook_storage::i8, nullptr, turned};
      REQUIRE_OK(bank.reserve(bank.codebook_bytes(in.shape, book.storage), book.memory));
      REQUIRE_OK(bank.store_codebook({in.shape, centroids.data()}, book));
      return book;
    };
    segment<std::byte*> tokens;
    tokens.keys.coded = tokens.values.coded = true;
    tokens.keys.book = place(key_centroids, turning ? rotation : rope{});
    tokens.values.book = place(value_centroids, {});
    code_span<std::byte*> span{in.shape, nullptr, pages.empty() ? nullptr : pages.data()};
    const std::size_t code_bytes = blocks_for(in.tokens) * bank.code_block_bytes(in.shape);
    REQUIRE_OK(bank.reserve(code_bytes, span.memory));
    std::memset(span.memory, 0xee, code_bytes);
    REQUIRE_OK(bank.store_codes(span, {0, in.tokens}, codes.data()));
    tokens.keys.codes = tokens.values.codes = span;
    tokens.slots = {0, in.tokens};
    tokens.positions = {0, positions.data()};
    tokens.rotation = rotation;
    const std::size_t table_bytes = bank.table_bytes(in.shape, in.rows, rotation);
    REQUIRE_OK(bank.reserve(table_bytes, tokens.tables));
    std::vector<std::byte> workspace(attention_workspace_bytes(&tokens, 1, in.rows, in.shape.dim, in.shape.dim, 1));
    std::vector<float> out(in.rows * in.shape.dim);
    std::vector<float> lse(in.rows);
    const std::size_t before = memory.allocations;
    REQUIRE_OK(attend(bank, view_rows(queries.data(), in.rows, in.shape.dim), &tokens, 1, {}, workspace.data(),
                      workspace.size(), ref_rows(out.data(), in.rows, in.shape.dim), lse.data()));
    CHECK(memory.allocations == before);
    bank.release(tokens.tables, table_bytes);
    bank.release(span.memory, code_bytes);
    bank.release(tokens.keys.book.memory, bank.codebook_bytes(in.shape, codebook_storage::i8));
    bank.release(tokens.values.book.memory, bank.codebook_bytes(in.shape, codebook_storage::i8));
    out.insert(out.end(), lse.begin(), lse.end());
    return out;
  }
};

#if PQATTN_X86_AVX2
TEST_CASE("scratch of the fast programs fits their stack at every size they are for", "[bank]") {
  using programs = detail::x86_programs<isa::native>;
  for (const std::uint32_t dim : {64u, 80u, 96u, 128u, 192u, 256u, 576u, 1024u}) {
    for (const std::uint32_t stages : {1u, 2u, 8u}) {
      const geometry shape{dim, dim / 4, 256, stages, nullptr};
      CAPTURE(dim, stages);
      CHECK(x86::value_scratch_bytes<x86::native>(shape, 1) <= programs::stack_bytes);
      if (dim > 256) {
        continue;
      }
      std::vector<float> frequencies(dim / 2);
      fill_rope_frequencies(frequencies.data(), dim, 10000.0);
      std::vector<float> angles(rope_floats(dim / 2));
      rope rotation;
      REQUIRE_OK(build_rope(frequencies.data(), dim / 2, rope_pairing::half_split, angles.data(), rotation));
      for (const auto precision : {score_precision::bytes, score_precision::words}) {
        CHECK(programs::serves_scores(shape, codebook_storage::i8, rotation, precision));
      }
    }
  }
}
#endif

#if PQATTN_X86_AVX512VBMI
TEST_CASE("few rows of coarse codes by pairs are scored by phases, where these are fine enough", "[bank]") {
  using programs = detail::x86_programs<isa::native>;
  constexpr std::uint32_t dim = 64;
  constexpr std::size_t tokens = 640;
  random_data random(54);
  CAPTURE(random.seed());
  std::vector<float> frequencies(dim / 2);
  fill_rope_frequencies(frequencies.data(), dim, 10000.0);
  std::vector<float> angles(rope_floats(dim / 2));
  rope rotation;
  REQUIRE_OK(build_rope(frequencies.data(), dim / 2, rope_pairing::half_split, angles.data(), rotation));
  std::vector<std::uint16_t> order(dim);
  fill_pair_order(rotation, dim, order.data());

  // Sizes are asked for before shapes are checked, and read no further than they may.
  std::vector<std::uint16_t> broken = order;
  broken[5] = 5000;
  CHECK(host_bank<>().table_bytes({dim, 16, 256, 1, broken.data()}, 1, rotation) != 0);
  CHECK(host_bank<>().table_bytes({2000, 16, 256, 1, nullptr}, 1, rotation) != 0);

  struct scene {
    std::uint32_t subvectors;
    bool by_pairs;
    score_precision precision;
    std::size_t rows;
    float query;  ///< standard deviation of a query's numbers
    bool phases;
  };
  const std::size_t most = x86::rotary_phases::most_rows;
  const scene scenes[] = {
      {16, true, score_precision::bytes, 1, 0.1f, true},         {16, true, score_precision::bytes, most, 0.5f, true},
      {16, true, score_precision::bytes, most + 1, 0.5f, false}, {16, true, score_precision::bytes, 2, 40.0f, false},
      {16, true, score_precision::words, 2, 0.5f, false},        {16, false, score_precision::bytes, 2, 0.5f, false},
      {32, true, score_precision::bytes, 2, 0.5f, true},         {32, true, score_precision::bytes, 2, 40.0f, false}};
  for (const scene& in : scenes) {
    CAPTURE(in.subvectors, in.by_pairs, in.rows, in.query);
    const geometry shape{dim, in.subvectors, 256, 1, in.by_pairs ? order.data() : nullptr};
    const std::vector<float> centroids = random.normals(shape.codebook_values());
    const std::vector<std::uint16_t> stored = random.codes(tokens * shape.groups(), 256);
    const std::vector<float> queries = random.normals(in.rows * dim, in.query);
    std::vector<float> scores[2];
    bool by_phase = false;
    for (const bool rounded : {false, true}) {
      host_bank<> bank(rounded ? host_options{in.precision, true} : exact_arithmetic);
      const resident_codebook<std::byte*> like{shape, codebook_storage::i8, nullptr, rotation};
      pqattn_test::bank_block<host_bank<>> book_memory(bank, bank.codebook_bytes(shape, like.storage));
      const resident_codebook<std::byte*> book{shape, like.storage, book_memory.get(), rotation};
      REQUIRE_OK(bank.store_codebook({shape, centroids.data()}, book));
      pqattn_test::bank_block<host_bank<>> blocks(bank, blocks_for(tokens) * bank.code_block_bytes(shape));
      const code_span<std::byte*> codes{shape, blocks.get(), nullptr};
      REQUIRE_OK(bank.store_codes(codes, {0, tokens}, stored.data()));
      pqattn_test::bank_block<host_bank<>> tables(bank, bank.table_bytes(shape, in.rows, rotation));
      REQUIRE_OK(bank.prepare_scores({queries.data(), in.rows, dim}, book, rotation, tables.get()));
      by_phase = *tables.get() == std::byte{1};
      pqattn_test::bank_block<host_bank<>> tile(bank, in.rows * tokens * sizeof(float));
      auto* const first = reinterpret_cast<float*>(tile.get());
      REQUIRE_OK(bank.score(tables.get(), in.rows, book, rotation, {123456, nullptr}, codes, {0, tokens},
                            {first, in.rows, tokens}));
      scores[rounded].assign(first, first + in.rows * tokens);
    }
    CHECK(by_phase == in.phases);
    double squares = 0.0;
    double spread = 0.0;
    for (std::size_t i = 0; i < scores[0].size(); ++i) {
      squares += std::pow(static_cast<double>(scores[1][i]) - static_cast<double>(scores[0][i]), 2.0);
      spread += std::pow(static_cast<double>(scores[0][i]), 2.0);
    }
    const auto count = static_cast<double>(scores[0].size());
    CHECK(squares < (in.precision == score_precision::bytes ? 5e-4 : 1e-5) * spread);
    if (in.phases) {
      CHECK(squares / count < static_cast<double>(programs::most_phase_noise));
    }
  }
}
#endif

TEST_CASE("what the host bank fetches ahead changes no bit", "[bank]") {
  random_data random(53);
  CAPTURE(random.seed());
  const case_shape cases[] = {{{64, 16, 256}, 1, 9000, 0, {}, false},
                              {{64, 16, 256}, 4, 8193, 32, rope_pairing::half_split, false},
                              {{33, 7, 60}, 9, 3000, 0, {}, false},
                              {{96, 48, 16, 2}, 45, 1100, 48, rope_pairing::half_split, true},
                              {{40, 10, 4096}, 2, 300, 20, rope_pairing::half_split, false}};
  for (const case_shape& in : cases) {
    CAPTURE(in.shape.dim, in.shape.subvectors, in.rows, in.tokens, in.pairs);
    const coded_head head(random, in);
    pqattn_test::counting_resource memory;
    const host_bank<> bank(memory.resource());
    const bank_without_hints without(memory.resource());
    CHECK(head.attend_on(bank, memory, true) == head.attend_on(without, memory, true));
    const auto pages = random.permutation<std::uint32_t>(blocks_for(in.tokens));
    CHECK(head.attend_on(bank, memory, true, pages) == head.attend_on(without, memory, true, pages));
    CHECK(memory.mistakes == 0);
  }
}

TEST_CASE("the default host bank answers as the exact one does, to rounding", "[bank]") {
  random_data random(51);
  CAPTURE(random.seed(), detail::x86_programs<isa::native>::available);
  const case_shape cases[] = {
      {{64, 16, 256}, 1, 1000, 0, {}, false},
      {{64, 16, 256}, 4, 5000, 32, rope_pairing::half_split, false},
      {{128, 32, 256}, 8, 700, 64, rope_pairing::interleaved, false},
      {{80, 20, 16}, 17, 300, 30, rope_pairing::half_split, false},
      {{96, 48, 16, 2}, 3, 130, 48, rope_pairing::half_split, true},
      {{33, 7, 60}, 9, 65, 16, rope_pairing::half_split, false},
      {{576, 72, 256}, 5, 90, 32, rope_pairing::interleaved, false},
      {{128, 32, 256}, 1, 9000, 64, rope_pairing::interleaved, false},
      {{64, 8, 512}, 2, 500, 32, rope_pairing::interleaved, true},
      {{72, 9, 40}, 2, 130, 10, rope_pairing::interleaved, true},
      {{1024, 128, 64}, 12, 70, 512, rope_pairing::half_split, false},
      {{40, 10, 512}, 2, 300, 20, rope_pairing::half_split, false},
      {{40, 10, 4096}, 2, 300, 20, rope_pairing::half_split, false},
      {{128, 32, 256}, 45, 200, 64, rope_pairing::half_split, false},
      // A last pass of few rows takes larger batches, and more scratch, than the pass of sixteen before.
      {{208, 52, 256}, 24, 130, 104, rope_pairing::half_split, true},
      {{512, 128, 256}, 24, 70, 64, rope_pairing::half_split, true},
  };
  for (const case_shape& in : cases) {
    CAPTURE(in.shape.dim, in.shape.subvectors, in.shape.centroids, in.shape.stages, in.rows, in.tokens, in.pairs);
    const coded_head head(random, in);
    pqattn_test::counting_resource memory;
    const host_bank<> exact(memory.resource(), exact_arithmetic);
    const host_bank<> rounded(memory.resource());
    const host_bank<> words(memory.resource(), {score_precision::words, true});
    for (const bool turning : {false, true}) {
      const std::vector<float> reference = head.attend_on(exact, memory, turning);
      CHECK(relative_error(head.attend_on(rounded, memory, turning), reference) < 5e-4);
      CHECK(relative_error(head.attend_on(words, memory, turning), reference) < 5e-4);
    }
    CHECK(memory.mistakes == 0);
  }
}

TEST_CASE("the search for the nearest centroid is the portable one, near ties aside", "[bank]") {
  random_data random(52);
  CAPTURE(random.seed());
  for (const codebook_storage storage : {codebook_storage::f32, codebook_storage::f16, codebook_storage::i8}) {
    for (const geometry& shape : {geometry{16, 4, 256}, geometry{15, 4, 33}, geometry{64, 2, 300}}) {
      const host_bank<> bank;
      std::vector<float> centroids = random.normals(shape.codebook_values());
      resident_codebook<std::byte*> book{shape, storage, nullptr};
      REQUIRE_OK(bank.reserve(bank.codebook_bytes(shape, storage), book.memory));
      REQUIRE_OK(bank.store_codebook({shape, centroids.data()}, book));
      const detail::host_codebook planes{book};
      for (int trial = 0; trial < 200; ++trial) {
        const std::vector<float> row = random.normals(shape.dim);
        std::uint16_t all[4] = {};
        if constexpr (detail::x86_programs<isa::native>::available) {
          group_walk walk(shape);
          detail::x86_programs<isa::native>::nearest<1>(planes, walk, row.data(), 0, all, 0);
        }
        for (std::uint32_t group = 0; group < shape.groups(); ++group) {
          const float* x = row.data() + shape.first_channel(group);
          const std::uint32_t portable = detail::nearest_centroid<isa::native>(planes, group, x);
          const std::uint32_t chosen = detail::x86_programs<isa::native>::available ? all[group] : portable;
          // The kernels round x - entry in another place: another centroid may win only as a near tie.
          if (chosen != portable) {
            const auto distance = [&](std::uint32_t k) {
              double sum = 0.0;
              for (std::uint32_t c = 0; c < shape.width(group); ++c) {
                const double d =
                    static_cast<double>(x[c]) - static_cast<double>(planes.entry(planes.plane_of(group, c), k));
                sum += d * d;
              }
              return sum;
            };
            CHECK(std::abs(distance(chosen) - distance(portable)) < 1e-5 * distance(portable));
          }
        }
      }
      bank.release(book.memory, bank.codebook_bytes(shape, storage));
    }
  }
}

}  // namespace

TEST_CASE("keys before RoPE have their kernels for heads of up to 256 channels", "[bank]") {
  using programs = pqattn::detail::x86_programs<pqattn::isa::native>;
  if constexpr (!programs::available) {
    SKIP("no kernels for this instruction set");
  } else {
    for (const std::uint32_t dim : {32u, 64u, 96u, 128u, 160u, 192u, 256u}) {
      const geometry shape{dim, dim / 4, 256, 1, nullptr};
      std::vector<float> frequencies(dim / 2);
      std::vector<float> memory(rope_floats(dim / 2));
      rope rotation;
      fill_rope_frequencies(frequencies.data(), dim, 10000.0);
      REQUIRE_OK(build_rope(frequencies.data(), dim / 2, rope_pairing::half_split, memory.data(), rotation));
      for (const score_precision precision : {score_precision::bytes, score_precision::words}) {
        CAPTURE(dim, precision);
        CHECK(programs::serves_scores(shape, codebook_storage::i8, rotation, precision));
        const std::size_t rows = programs::with_rotary_kernel(
            shape, precision, [&]<class Kernel>() { return programs::rotary_rows<Kernel>(shape, rotation, 8); });
        // Scratch on the stack bounds what is decoded once for all rows: several passes at 192 channels would cost more
        // than the other precision.
        CHECK(rows >= (dim <= 192 ? 8u : 1u));
      }
    }
  }
}
