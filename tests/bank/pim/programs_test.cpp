// SPDX-License-Identifier: MIT
// The analysis without data against the functional bank, and what one may expect of either.
#include "pqattn/bank/pim/programs.hpp"

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <memory>
#include <vector>

#include "pqattn/bank/pim/pim_bank.hpp"
#include "pqattn/bank/pim/presets.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"
#include "support/reference.hpp"

namespace pim = pqattn::pim;
using random_numbers = pqattn_test::random_data;

namespace {

struct shapes {
  pqattn::geometry shape;
  pqattn::codebook_storage storage = pqattn::codebook_storage::f16;
  std::size_t tokens = 0;
  std::size_t rows = 1;
  pqattn::rope rotation;
  pqattn::value_method method = pqattn::value_method::automatic;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Memory of one sequence, the same addresses in both modes.
template <class Bank>
struct places {
  pqattn::resident_codebook<pim::device_address> book;
  pqattn::code_span<pim::device_address> codes;
  pim::device_address tables, points;

  void take(Bank& bank, const shapes& s) {
    book = {s.shape, s.storage, {}};
    codes = {s.shape, {}, nullptr};
    REQUIRE_OK(bank.reserve(bank.codebook_bytes(s.shape, s.storage), book.memory));
    REQUIRE_OK(bank.reserve(bank.table_bytes(s.shape, s.rows, s.rotation), tables));
    REQUIRE_OK(bank.reserve(bank.point_bytes(s.tokens, s.shape.max_width()), points));
    REQUIRE_OK(bank.reserve(pqattn::blocks_for(s.tokens) * bank.code_block_bytes(s.shape), codes.memory));
  }
};

/// Everything a bank does, with data.
template <class Mapping>
void run_functional(pim::pim_bank<Mapping>& bank, const shapes& s, random_numbers& random) {
  places<pim::pim_bank<Mapping>> at;
  at.take(bank, s);
  const std::size_t padded = pqattn::blocks_for(s.tokens) * pqattn::block_tokens;
  const std::vector<float> source = random.normals(s.shape.codebook_values());
  const std::vector<float> rows = random.normals(s.tokens * s.shape.dim);
  const std::vector<float> queries = random.normals(s.rows * s.shape.dim);
  std::vector<std::uint16_t> codes(s.tokens * s.shape.groups());
  std::vector<float> floats(std::max({source.size(), s.tokens, s.rows * s.shape.dim}));
  const std::uint32_t width = s.shape.max_width();
  std::vector<double> sums(std::size_t{s.shape.centroids} * width);
  std::vector<double> mass(s.shape.centroids);
  REQUIRE_OK(bank.store_points(rows.data(), s.tokens, width, at.points));
  REQUIRE_OK(bank.assign(at.points, s.tokens, width, source.data(), s.shape.centroids, codes.data(), floats.data()));
  REQUIRE_OK(bank.centroid_sums(at.points, s.tokens, width, nullptr, codes.data(), s.shape.centroids, sums.data(),
                                mass.data()));
  REQUIRE_OK(bank.store_codebook({s.shape, source.data()}, at.book));
  REQUIRE_OK(bank.load_codebook(at.book, floats.data()));
  REQUIRE_OK(bank.encode(pqattn::view_rows(rows.data(), s.tokens, s.shape.dim), at.book, at.codes, {0, s.tokens}));
  REQUIRE_OK(bank.load_codes(at.codes, {0, s.tokens}, codes.data()));
  REQUIRE_OK(bank.store_codes(at.codes, {0, s.tokens}, codes.data()));
  std::vector<float> decoded(s.tokens * s.shape.dim);
  REQUIRE_OK(bank.decode(at.book, at.codes, {0, s.tokens}, pqattn::ref_rows(decoded.data(), s.tokens, s.shape.dim)));
  std::vector<float> memory(s.rows * padded);
  const pqattn::score_tile tile{memory.data(), s.rows, padded};
  std::vector<float> maximum(s.rows, pqattn::masked_score), sum(s.rows, 0.0f), rescale(s.rows);
  std::vector<float> out(s.rows * s.shape.dim);
  REQUIRE_OK(bank.prepare_scores({queries.data(), s.rows, s.shape.dim}, at.book, s.rotation, at.tables));
  REQUIRE_OK(bank.score(at.tables, s.rows, at.book, s.rotation, {}, at.codes, {0, s.tokens}, tile));
  REQUIRE_OK(bank.softmax_part(tile, s.tokens, {maximum.data(), sum.data(), rescale.data()}));
  REQUIRE_OK(
      bank.accumulate_values(tile, at.book, at.codes, {0, s.tokens}, {s.method, nullptr}, out.data(), s.shape.dim));
  const pqattn::rows_view exact = pqattn::view_rows(rows.data(), 1, s.shape.dim);
  REQUIRE_OK(bank.score_rows({queries.data(), s.rows, s.shape.dim}, exact, tile));
  REQUIRE_OK(
      bank.softmax_part({tile.data, s.rows, pqattn::block_tokens}, 1, {maximum.data(), sum.data(), rescale.data()}));
  REQUIRE_OK(bank.accumulate_rows(tile, exact, out.data(), s.shape.dim));
}

/// The same from shapes.
template <class Mapping>
void run_analysis(pim::bank_programs<Mapping>& programs, const shapes& s) {
  places<pim::bank_programs<Mapping>> at;
  at.take(programs, s);
  const std::uint32_t width = s.shape.max_width();
  REQUIRE_OK(programs.store_points(s.tokens, width, at.points));
  REQUIRE_OK(programs.assign(at.points, s.tokens, width, s.shape.centroids));
  REQUIRE_OK(programs.centroid_sums(at.points, s.tokens, width, s.shape.centroids));
  REQUIRE_OK(programs.store_codebook(at.book));
  REQUIRE_OK(programs.load_codebook(at.book));
  REQUIRE_OK(programs.encode(at.book, at.codes, {0, s.tokens}));
  REQUIRE_OK(programs.load_codes(at.codes, {0, s.tokens}));
  REQUIRE_OK(programs.store_codes(at.codes, {0, s.tokens}));
  REQUIRE_OK(programs.decode(at.book, at.codes, {0, s.tokens}));
  REQUIRE_OK(programs.prepare_scores(at.book, s.rows, s.rotation, at.tables));
  REQUIRE_OK(programs.score(at.book, s.rows, at.tables, s.rotation, {}, at.codes, {0, s.tokens}));
  REQUIRE_OK(programs.softmax_part(s.rows, s.tokens));
  REQUIRE_OK(programs.accumulate_values(at.book, s.rows, s.method, at.codes, {0, s.tokens}));
  programs.exact_rows(s.rows, 1, s.shape.dim, 4, true);
  REQUIRE_OK(programs.softmax_part(s.rows, 1));
  programs.exact_rows(s.rows, 1, s.shape.dim, 4, false);
}

/// Every counter of a bank, but its memory, is that of one that never ran.
template <class Mapping>
void check_like_new(const pim::bank_programs<Mapping>& used, const pim::device& d, const pim::bank_options& options) {
  pim::bank_programs<Mapping> fresh;
  REQUIRE_OK(fresh.configure(d, options));
  CHECK(used.host() == fresh.host());
  CHECK(used.host_wall_ns() == fresh.host_wall_ns());
  CHECK(used.emulated_ns() == fresh.emulated_ns());
  for (int p = 0; p < pim::phase_count; ++p) {
    const auto which = static_cast<pim::phase>(p);
    CHECK(used.walked().total(which) == fresh.walked().total(which));
    CHECK(used.walked().energy(which).total_pj() == fresh.walked().energy(which).total_pj());
    CHECK(used.work(which) == fresh.work(which));
  }
  for (std::int32_t c = 0; c < used.walked().channel_count(); ++c) {
    bool same = true;
    for (std::int32_t b = 0; b < used.walked().channel(c).bank_count(); ++b) {
      same = same && used.walked().channel(c).bank(b) == fresh.walked().channel(c).bank(b);
    }
    CHECK(same);
    CHECK(used.walked().channel(c).finish_cycle() == 0);
  }
}

template <class Mapping>
void check_modes_agree(std::uint64_t first_stream) {
  for (std::uint64_t i = 0; i < 40; ++i) {
    random_numbers random(first_stream + i);
    shapes s;
    const auto dim = static_cast<std::uint32_t>(2 + 2 * random.below(80));
    s.shape = {dim, static_cast<std::uint32_t>(1 + random.below(dim)),
               static_cast<std::uint32_t>(2 + random.below(700)), static_cast<std::uint32_t>(1 + random.below(2)),
               nullptr};
    s.storage = static_cast<pqattn::codebook_storage>(random.below(3));
    s.tokens = 1 + random.below(700);
    const bool windows = i % 8 == 7;  // more than one page of centroids, more than one window of tokens
    if (windows) {
      s.shape = {16, 4, static_cast<std::uint32_t>(600 + random.below(500)), 1, nullptr};
      s.tokens = 4096 + random.below(700);
    }
    s.rows = 1 + random.below(8);
    s.method = static_cast<pqattn::value_method>(random.below(3));
    const std::uint32_t pairs = s.shape.dim / 2;
    std::vector<float> frequencies(pairs);
    std::vector<float> rope_memory(pqattn::rope_floats(pairs));
    if (random.chance(0.5)) {
      pqattn::fill_rope_frequencies(frequencies.data(), s.shape.dim, 10000.0);
      REQUIRE_OK(build_rope(frequencies.data(), pairs,
                            random.chance(0.5) ? pqattn::rope_pairing::interleaved : pqattn::rope_pairing::half_split,
                            rope_memory.data(), s.rotation));
    }
    pim::bank_options options;
    options.channels_per_home = static_cast<std::int32_t>(1 + random.below(4));
    options.entries = random.chance(0.5) ? pim::entry_format::f16 : pim::entry_format::f32;
    options.share_lookups = random.chance(0.5);
    options.values = random.chance(0.5) ? pqattn::value_method::histogram : pqattn::value_method::reconstruct;
    options.banks_added = static_cast<std::int32_t>(random.below(20));
    options.update_slots = static_cast<std::int32_t>(1 + random.below(3));
    options.argmin_in_banks = random.chance(0.5);
    options.addressing = i % 8 == 3 ? pim::lookup_addressing::by_command : pim::lookup_addressing::in_row;
    options.window_tokens = windows ? 4096 : 0;
    options.overflow_to_host = random.chance(0.2);
    options.walk.refresh = random.chance(0.7);
    pim::device d = pim::presets[random.below(7)].make();
    d.pim.lookups_per_slot = static_cast<std::int32_t>(1 + random.below(16));
    d.pim.banks_per_unit = 1 << random.below(4);
    INFO(d.name << " d=" << s.shape.dim << " m=" << s.shape.subvectors << " K=" << s.shape.centroids
                << " tokens=" << s.tokens << " rows=" << s.rows << ", seed " << random.seed());
    pim::pim_bank<Mapping> bank;
    pim::bank_programs<Mapping> programs;
    REQUIRE_OK(bank.configure(d, options));
    REQUIRE_OK(programs.configure(d, options));
    run_functional(bank, s, random);
    run_analysis(programs, s);
    CHECK(bank.costs().walked().finish_cycle() > 0);
    CHECK(bank.costs().walked().finish_cycle() == programs.walked().finish_cycle());
    CHECK(bank.costs().host() == programs.host());
    CHECK(bank.costs().emulated_ns() == programs.emulated_ns());
    CHECK(bank.costs().host_wall_ns() > 0);
    CHECK(programs.host_wall_ns() == 0);
    for (int p = 0; p < pim::phase_count; ++p) {
      const auto which = static_cast<pim::phase>(p);
      CHECK(bank.costs().walked().total(which) == programs.walked().total(which));
      CHECK(bank.costs().work(which) == programs.work(which));
    }
    bank.reset();
    check_like_new(bank.costs(), d, options);
  }
}

/// One decode step of one layer and head, from shapes.
template <class Mapping>
void decode_step(pim::bank_programs<Mapping>& programs, const places<pim::bank_programs<Mapping>>& at,
                 const shapes& s) {
  REQUIRE_OK(programs.prepare_scores(at.book, s.rows, s.rotation, at.tables));
  constexpr std::size_t tile = pqattn::max_tile_blocks * pqattn::block_tokens;
  for (std::size_t first = 0; first < s.tokens; first += tile) {
    const pqattn::slot_range slots{first, std::min(tile, s.tokens - first)};
    REQUIRE_OK(programs.score(at.book, s.rows, at.tables, s.rotation, {}, at.codes, slots));
    REQUIRE_OK(programs.softmax_part(s.rows, slots.count));
    REQUIRE_OK(programs.accumulate_values(at.book, s.rows, s.method, at.codes, slots));
  }
}

}  // namespace

TEST_CASE("analysis gives the counters and cycles of the functional mode", "[pim][programs]") {
  check_modes_agree<pim::subvector_per_bank>(3000);
}

TEST_CASE("analysis gives the counters and cycles of the functional mode, tokens striped", "[pim][programs]") {
  check_modes_agree<pim::token_striped>(3100);
}

TEST_CASE("a million tokens in 32 layers are analysed in about a second", "[pim][programs]") {
  pim::bank_programs<> programs;
  REQUIRE_OK(programs.configure(pim::hbm3_attacc(), {}));
  shapes s;
  s.shape = {128, 32, 512, 1, nullptr};
  s.tokens = std::size_t{1} << 20;
  places<pim::bank_programs<>> at;
  at.take(programs, s);
  const auto start = std::chrono::steady_clock::now();
  for (int layer = 0; layer < 32; ++layer) {
    decode_step(programs, at, s);
  }
  const double seconds = seconds_since(start);
  WARN("analysis of 1 Mi tokens x 32 layers, one KV head: " << seconds << " s");
  CHECK(seconds < 20.0);  // unoptimised, sanitized and shared machines too; the figure itself is printed
  // Every token of a stripe is looked up once for K and once for V in each of the 64 banks.
  CHECK(programs.walked().total(pim::phase::score).bank.lut_lookups == std::int64_t{32} * 64 * (1 << 19));
}

TEST_CASE("layers and heads that repeat need one walk each: a million tokens, 32 layers, 8 heads", "[pim][programs]") {
  // Heads in channels of their own do the same work, and so do layers one after the other: one head is walked.
  const auto start = std::chrono::steady_clock::now();
  pim::bank_programs<> one;
  REQUIRE_OK(one.configure(pim::hbm3_attacc(), {}));
  shapes s;
  s.shape = {128, 32, 512, 1, nullptr};
  s.tokens = std::size_t{1} << 20;
  places<pim::bank_programs<>> at;
  at.take(one, s);
  decode_step(one, at, s);
  const pim::totals head = one.walked().total();
  const std::int64_t cycles = 32 * head.elapsed_cycles;
  const std::int64_t lookups = 32 * 8 * head.bank.lut_lookups;
  const double seconds = seconds_since(start);
  WARN("1 Mi tokens x 32 layers x 8 KV heads: " << seconds << " s, " << cycles << " cycles, " << lookups
                                                << " look-ups");
  CHECK(seconds < 10.0);
  // Eight heads side by side, walked: no cycle more than one, eight times its events.
  pim::bank_programs<> eight;
  REQUIRE_OK(eight.configure(pim::hbm3_attacc(), {}));
  for (std::uint32_t home = 0; home < 8; ++home) {
    eight.select_home(home);
    places<pim::bank_programs<>> place;
    place.take(eight, s);
    decode_step(eight, place, s);
  }
  CHECK(eight.walked().total().elapsed_cycles == head.elapsed_cycles);
  CHECK(eight.walked().total().bank == pim::times(head.bank, 8));
}

TEST_CASE("a decode step of 32K tokens and 8 KV heads is emulated in seconds", "[pim][programs]") {
  random_numbers random(3200);
  pim::pim_bank<> bank;
  REQUIRE_OK(bank.configure(pim::hbm3_attacc()));
  shapes s;
  s.shape = {128, 32, 512, 1, nullptr};
  s.tokens = 32768;
  s.rows = 4;
  const std::vector<float> source = random.normals(s.shape.codebook_values());
  const std::vector<float> queries = random.normals(s.rows * s.shape.dim);
  const std::vector<std::uint16_t> codes = random.codes(s.tokens * s.shape.groups(), s.shape.centroids);
  std::vector<places<pim::pim_bank<>>> heads(8);
  for (std::uint32_t head = 0; head < 8; ++head) {
    bank.select_home(head);
    heads[head].take(bank, s);
    REQUIRE_OK(bank.store_codebook({s.shape, source.data()}, heads[head].book));
    REQUIRE_OK(bank.store_codes(heads[head].codes, {0, s.tokens}, codes.data()));
  }
  bank.reset();
  std::vector<float> memory(s.rows * 4096);
  const pqattn::score_tile tile{memory.data(), s.rows, 4096};
  std::vector<float> out(s.rows * s.shape.dim);
  const auto start = std::chrono::steady_clock::now();
  for (const auto& at : heads) {
    std::vector<float> maximum(s.rows, pqattn::masked_score), sum(s.rows, 0.0f), rescale(s.rows);
    REQUIRE_OK(bank.prepare_scores({queries.data(), s.rows, s.shape.dim}, at.book, {}, at.tables));
    for (std::size_t first = 0; first < s.tokens; first += 4096) {
      REQUIRE_OK(bank.score(at.tables, s.rows, at.book, {}, {}, at.codes, {first, 4096}, tile));
      REQUIRE_OK(bank.softmax_part(tile, 4096, {maximum.data(), sum.data(), rescale.data()}));
      REQUIRE_OK(bank.accumulate_values(tile, at.book, at.codes, {first, 4096}, {}, out.data(), s.shape.dim));
    }
  }
  const double seconds = seconds_since(start);
  WARN("functional decode step, 32768 tokens, 8 KV heads of 4 query rows: " << seconds << " s");
  CHECK(seconds < 100.0);
  // Heads lie in channels of their own and work at the same time.
  const pim::totals all = bank.costs().walked().total();
  CHECK(all.elapsed_cycles * 8 == all.channel.cycles);
}

TEST_CASE("capacity is enforced, or what does not fit crosses the link", "[pim][programs]") {
  pim::device d = pim::hbm3_attacc();
  d.capacity_bytes = std::int64_t{64} * 64 * 1024 * 9;  // nine rows of every bank, one of them not for data
  pim::pim_bank<> bank;
  REQUIRE_OK(bank.configure(d));
  pim::device_address first, second;
  REQUIRE_OK(bank.reserve(7 * 65536 - 1, first));
  CHECK(bank.reserve(2 * 65536 - 1, second).code == pqattn::status_code::capacity);
  CHECK(second == pim::device_address{});
  bank.release(first, 7 * 65536 - 1);
  REQUIRE_OK(bank.reserve(8 * 65536, second));
  bank.release(second, 8 * 65536);
  CHECK(bank.costs().rows().used_bytes() == 0);

  pim::bank_options options;
  options.overflow_to_host = true;
  {
    // On the host's side of the link codes are the same, and each use of them is counted.
    random_numbers random(3250);
    INFO("seed " << random.seed());
    const pqattn::geometry shape{64, 16, 256, 1, nullptr};
    const std::vector<float> book = random.normals(shape.codebook_values());
    const std::vector<float> rows = random.normals(20000 * shape.dim);
    const auto codes_on = [&](const pim::device& described, std::int64_t& fetched) {
      pim::pim_bank<> some;
      REQUIRE_OK(some.configure(described, options));
      shapes s;
      s.shape = shape;
      s.tokens = 20000;
      places<pim::pim_bank<>> at;
      at.take(some, s);
      REQUIRE_OK(some.store_codebook({shape, book.data()}, at.book));
      REQUIRE_OK(some.encode(pqattn::view_rows(rows.data(), 20000, shape.dim), at.book, at.codes, {0, 20000}));
      std::vector<std::uint16_t> codes(20000 * shape.groups());
      REQUIRE_OK(some.load_codes(at.codes, {0, 20000}, codes.data()));
      fetched = some.costs().host().overflow_bytes;
      return codes;
    };
    std::int64_t little = 0, large = 0;
    const bool same = codes_on(d, little) == codes_on(pim::hbm3_attacc(), large);
    CHECK(same);
    CHECK(little >= 20000 * 16);
    CHECK(large == 0);
  }
  pim::bank_programs<> programs;
  REQUIRE_OK(programs.configure(d, options));
  shapes s;
  s.shape = {128, 32, 512, 1, nullptr};
  s.tokens = 30000;
  places<pim::bank_programs<>> at;
  at.take(programs, s);
  decode_step(programs, at, s);
  CHECK(programs.host().overflow_bytes >= 2 * 30000 * 36);  // codes for K and for V
  CHECK(programs.emulated_ns() > programs.walked().nanoseconds(programs.walked().finish_cycle()));
}

TEST_CASE("what the options change is seen in the counters", "[pim][programs]") {
  const auto cycles_of = [](pim::bank_options options, std::int32_t g, std::size_t rows, bool turned) {
    pim::device d = pim::hbm3_attacc();
    d.pim.lookups_per_slot = g;
    pim::bank_programs<> programs;
    REQUIRE_OK(programs.configure(d, options));
    shapes s;
    s.shape = {128, 32, 512, 1, nullptr};
    s.tokens = 8192;
    s.rows = rows;
    std::vector<float> frequencies(64), memory(pqattn::rope_floats(64));
    pqattn::fill_rope_frequencies(frequencies.data(), 128, 10000.0);
    if (turned) {
      REQUIRE_OK(build_rope(frequencies.data(), 64, pqattn::rope_pairing::interleaved, memory.data(), s.rotation));
    }
    places<pim::bank_programs<>> at;
    at.take(programs, s);
    decode_step(programs, at, s);
    return programs.walked().finish_cycle();
  };
  CHECK(cycles_of({}, 1, 1, false) > 2 * cycles_of({}, 4, 1, false));
  pim::bank_options shared;
  shared.share_lookups = true;
  CHECK(cycles_of({}, 1, 4, false) > 2 * cycles_of(shared, 1, 4, false));
  CHECK(cycles_of({}, 4, 1, true) > cycles_of({}, 4, 1, false));
}

TEST_CASE("each part of AQPIM's placement is seen in the counters", "[pim][programs]") {
  constexpr std::size_t tokens = 8192;
  const auto run = [](auto mapping, pim::bank_options options, std::uint32_t centroids) {
    pim::device d = pim::hbm3_attacc();
    d.timing.refi = 0;  // refreshes open rows, too
    auto programs = std::make_unique<pim::bank_programs<decltype(mapping)>>();
    REQUIRE_OK(programs->configure(d, options));
    shapes s;
    s.shape = {128, 32, centroids, 1, nullptr};
    s.tokens = tokens;
    places<pim::bank_programs<decltype(mapping)>> at;
    at.take(*programs, s);
    decode_step(*programs, at, s);
    REQUIRE_OK(programs->encode(at.book, at.codes, {0, tokens}));
    return programs;
  };
  const auto score = [](const auto& programs) { return programs->walked().total(pim::phase::score); };
  const auto plain = run(pim::subvector_per_bank{}, {}, 512);

  SECTION("one sub-vector to one bank: two stripes of 32 banks, each with half of the tokens") {
    CHECK(score(plain).bank.lut_lookups == std::int64_t{tokens / 2 * 64});
    CHECK(plain->work(pim::phase::score).lookups == std::int64_t{tokens * 32});
    CHECK(plain->walked().bank_imbalance().max_over_mean == 64.0);  // one of 64 channels, its banks alike
  }
  SECTION("tokens striped: the same look-ups, but every bank has every table and changes rows among them") {
    const auto striped = run(pim::token_striped{}, {}, 512);
    CHECK(score(striped).bank.lut_lookups == score(plain).bank.lut_lookups);
    CHECK(score(striped).bank.act_count > 5 * score(plain).bank.act_count);
    CHECK(striped->work(pim::phase::table_build).table_bytes == 32 * plain->work(pim::phase::table_build).table_bytes);
  }
  SECTION("page-aware windows: a table of two rows is looked up in one row of it per window") {
    pim::bank_options windows;
    windows.window_tokens = 4096;
    const auto two_rows = run(pim::subvector_per_bank{}, {}, 1024);
    const auto paged = run(pim::subvector_per_bank{}, windows, 1024);
    CHECK(score(paged).bank.lut_lookups == score(two_rows).bank.lut_lookups);
    // Of the three rows that a chunk of codes opened (codes, two of the table) one less.
    CHECK(3 * score(paged).bank.act_count <= 2 * score(two_rows).bank.act_count + 3 * 64);
    CHECK(score(paged).elapsed_cycles < score(two_rows).elapsed_cycles);
    CHECK(2 * paged->work(pim::phase::encode).distance_evaluations ==
          two_rows->work(pim::phase::encode).distance_evaluations);
    CHECK(paged->walked().total(pim::phase::encode).bank.mac_columns * 2 ==
          two_rows->walked().total(pim::phase::encode).bank.mac_columns);
  }
  SECTION("intra-row indirection: without it every look-up of every bank is a command, and columns cross the die") {
    pim::bank_options commands;
    commands.addressing = pim::lookup_addressing::by_command;
    const auto addressed = run(pim::subvector_per_bank{}, commands, 512);
    CHECK(score(plain).bank.lut_lookups > 0);
    CHECK(score(addressed).bank.lut_lookups == 0);
    CHECK(score(addressed).bank.rd_columns - score(plain).bank.rd_columns == score(plain).bank.lut_lookups);
    CHECK(score(plain).channel.column_commands < score(addressed).channel.column_commands / 16);
    CHECK(score(plain).channel.tsv_bytes < score(addressed).channel.tsv_bytes / 16);
    CHECK(score(plain).elapsed_cycles < score(addressed).elapsed_cycles / 4);
  }
  SECTION("BankPE and BufferPE: distances cross the die to be compared, unless the banks compare") {
    pim::bank_options compare;
    compare.argmin_in_banks = true;
    const auto inside = run(pim::subvector_per_bank{}, compare, 512);
    const auto encode = [](const auto& programs) { return programs->walked().total(pim::phase::encode).channel; };
    CHECK(encode(plain).buffer_read_bytes == std::int64_t{tokens * 32 * 512 * 2});
    CHECK(encode(inside).buffer_read_bytes == std::int64_t{tokens * 32 * 2});
    CHECK(encode(plain).softmax_elements > 0);
    CHECK(encode(inside).softmax_elements == 0);
  }
}

TEST_CASE("codes of a window lie in its page", "[pim][programs]") {
  random_numbers random(3300);
  INFO("seed " << random.seed());
  pim::pim_bank<> bank;
  pim::bank_options options;
  options.window_tokens = 4096;
  REQUIRE_OK(bank.configure(pim::hbm3_attacc(), options));
  constexpr std::size_t tokens = 3 * 4096 + 100;
  const pqattn::geometry shape{4, 2, 800, 1, nullptr};
  shapes s;
  s.shape = shape;
  s.tokens = tokens;
  places<pim::pim_bank<>> at;
  at.take(bank, s);
  const std::vector<float> book = random.normals(shape.codebook_values());
  const std::vector<float> rows = random.normals(tokens * shape.dim);
  REQUIRE_OK(bank.store_codebook({shape, book.data()}, at.book));
  REQUIRE_OK(bank.encode(pqattn::view_rows(rows.data(), tokens, shape.dim), at.book, at.codes, {0, tokens}));
  std::vector<std::uint16_t> codes(tokens * 2);
  REQUIRE_OK(bank.load_codes(at.codes, {0, tokens}, codes.data()));
  bool inside = true;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    inside = inside && (codes[i] >= 512) == (i / 2 / 4096 % 2 == 1);  // pages of 512 and of 288 centroids
  }
  CHECK(inside);
}

TEST_CASE("sums of 16 bits are those of units that round every addition", "[pim][programs]") {
  random_numbers random(3310);
  INFO("seed " << random.seed());
  constexpr std::size_t tokens = 130;
  const pqattn::geometry shape{24, 6, 32, 1, nullptr};
  shapes s;
  s.shape = shape;
  s.tokens = tokens;
  const std::vector<float> book = random.normals(shape.codebook_values());
  const std::vector<float> query = random.normals(shape.dim);
  const std::vector<std::uint16_t> codes = random.codes(tokens * shape.groups(), shape.centroids);
  const auto half = [](float x) { return pqattn::to_float(pqattn::to_half(x)); };
  const auto scores_on = [&](pim::entry_format sums) {
    pim::pim_bank<> bank;
    pim::bank_options options;
    options.sums = sums;
    REQUIRE_OK(bank.configure(pim::hbm3_attacc(), options));
    places<pim::pim_bank<>> at;
    at.take(bank, s);
    REQUIRE_OK(bank.store_codebook({shape, book.data()}, at.book));
    REQUIRE_OK(bank.store_codes(at.codes, {0, tokens}, codes.data()));
    std::vector<float> tile(192);
    REQUIRE_OK(bank.prepare_scores({query.data(), 1, shape.dim}, at.book, {}, at.tables));
    REQUIRE_OK(bank.score(at.tables, 1, at.book, {}, {}, at.codes, {0, tokens}, {tile.data(), 1, 192}));
    tile.resize(tokens);
    return tile;
  };
  std::vector<float> expected(tokens);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::uint32_t g = 0; g < shape.groups(); ++g) {
      float entry = 0.0f;
      for (std::uint32_t c = 0; c < 4; ++c) {
        const float centroid = half(book[shape.codebook_offset(g) + codes[t * 6 + g] * 4u + c]);
        entry = half(entry + half(query[g * 4 + c]) * centroid);
      }
      expected[t] = half(expected[t] + entry);
    }
  }
  CHECK(scores_on(pim::entry_format::f16) == expected);
  const std::vector<float> wide = scores_on(pim::entry_format::f32);
  CHECK(wide != expected);
  CHECK(pqattn_test::nmse(expected, pqattn_test::doubles(wide.begin(), wide.end())) < 1e-5);
}

TEST_CASE("work counters follow from shapes", "[pim][programs]") {
  pim::bank_programs<> programs;
  REQUIRE_OK(programs.configure(pim::hbm3_attacc(), {}));
  shapes s;
  s.shape = {128, 32, 512, 1, nullptr};
  s.tokens = 1000;
  s.rows = 3;
  places<pim::bank_programs<>> at;
  at.take(programs, s);
  decode_step(programs, at, s);
  REQUIRE_OK(programs.encode(at.book, at.codes, {0, 1000}));
  REQUIRE_OK(programs.assign(at.points, 1000, 4, 512));
  REQUIRE_OK(programs.centroid_sums(at.points, 1000, 4, 512));
  const pim::work_counters score = programs.work(pim::phase::score);
  CHECK(score.code_bytes == 1000 * 32 * 9 / 8);
  CHECK(score.lookups == 3 * 1000 * 32);
  CHECK(score.adds == 3 * 1000 * 32);
  CHECK(programs.work(pim::phase::table_build).table_bytes == 3 * 32 * 512 * 2 * 2 * 1);  // two stripes
  CHECK(programs.work(pim::phase::table_build).multiply_adds == 3 * 128 * 512 * 2);
  CHECK(programs.work(pim::phase::softmax).exp_evaluations == 3 * 1000);
  CHECK(programs.work(pim::phase::value).multiply_adds == 3 * 1000 * 128);
  CHECK(programs.work(pim::phase::merge).partial_state_bytes == 3 * 128 * 2 * 2);
  CHECK(programs.work(pim::phase::encode).distance_evaluations == 1000 * 32 * 512);
  CHECK(programs.work(pim::phase::train).distance_evaluations == 1000 * 512);
  CHECK(programs.work(pim::phase::train).kmeans_updates == 1);
  CHECK(programs.work().lookups == 2 * score.lookups);
}

TEST_CASE("devices and options that cannot serve are refused", "[pim][programs]") {
  pim::pim_bank<> bank;
  pim::device_address place;
  CHECK(bank.reserve(1, place).code == pqattn::status_code::invalid_argument);
  CHECK(bank.configure(pim::upmem_ddr4()).code == pqattn::status_code::unsupported);
  pim::bank_options options;
  options.channels_per_home = 65;
  CHECK(bank.configure(pim::hbm3_attacc(), options).code == pqattn::status_code::invalid_argument);
  options.channels_per_home = 1;
  options.window_tokens = 100;
  CHECK(bank.configure(pim::hbm3_attacc(), options).code == pqattn::status_code::invalid_argument);
  pim::device small = pim::hbm3_attacc();
  small.capacity_bytes = 1;
  CHECK(bank.configure(small).code == pqattn::status_code::capacity);
}
