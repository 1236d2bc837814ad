// SPDX-License-Identifier: MIT
// Whole caches on the emulated bank against the same on the host bank.
#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "pqattn/bank/host/host_bank.hpp"
#include "pqattn/bank/pim/pim_bank.hpp"
#include "pqattn/bank/pim/presets.hpp"
#include "pqattn/cache/head_cache.hpp"
#include "pqattn/cache/layer_cache.hpp"
#include "support/message.hpp"
#include "support/random_data.hpp"
#include "support/reference.hpp"

namespace pim = pqattn::pim;
using random_numbers = pqattn_test::random_data;

namespace {

constexpr std::size_t dim = 32;
constexpr std::size_t tokens = 700;

pqattn::cache_config config_of(const pqattn::rope& rotation) {
  pqattn::cache_config config;
  config.keys.shape = {dim, 8, 64, 1, nullptr};
  config.values.shape = {dim, 8, 64, 1, nullptr};
  config.keys.storage = config.values.storage = pqattn::codebook_storage::f16;
  config.train_tokens = 300;
  config.rotation = rotation;
  return config;
}

struct turning {
  std::vector<float> frequencies = std::vector<float>(dim / 2);
  std::vector<float> memory = std::vector<float>(pqattn::rope_floats(dim / 2));
  pqattn::rope rotation;

  turning() {
    pqattn::fill_rope_frequencies(frequencies.data(), dim, 10000.0);
    REQUIRE_OK(build_rope(frequencies.data(), dim / 2, pqattn::rope_pairing::half_split, memory.data(), rotation));
  }
};

template <class Bank>
void head_outputs(Bank& bank, const pqattn::rope& rotation, std::uint64_t stream, std::vector<float>& out,
                  std::vector<float>& keys_back, std::vector<float>& values_back) {
  random_numbers random(stream);
  const std::vector<float> keys = random.normals(tokens * dim);
  const std::vector<float> values = random.normals(tokens * dim);
  const std::vector<float> queries = random.normals(4 * dim);
  pqattn::head_cache<Bank> cache;
  REQUIRE_OK(pqattn::head_cache<Bank>::make(bank, config_of(rotation), {}, cache));
  for (std::size_t first = 0; first < tokens; first += 350) {
    REQUIRE_OK(cache.append(pqattn::view_rows(keys.data() + first * dim, 350, dim),
                            pqattn::view_rows(values.data() + first * dim, 350, dim)));
  }
  pqattn::attend_scratch<Bank> scratch(bank, {});
  out.assign(4 * dim, 0.0f);
  REQUIRE_OK(cache.attend(pqattn::view_rows(queries.data(), 4, dim), {}, scratch, pqattn::ref_rows(out.data(), 4, dim),
                          nullptr));
  keys_back.assign(tokens * dim, 0.0f);
  values_back.assign(tokens * dim, 0.0f);
  REQUIRE_OK(cache.read(0, pqattn::ref_rows(keys_back.data(), tokens, dim),
                        pqattn::ref_rows(values_back.data(), tokens, dim)));
}

}  // namespace

TEST_CASE("codes of the emulated bank are those of the host bank", "[pim][cache]") {
  random_numbers random(3300);
  INFO("seed " << random.seed());
  const pqattn::geometry shape{128, 32, 256, 1, nullptr};
  const std::vector<float> source = random.normals(shape.codebook_values());
  const std::vector<float> rows = random.normals(600 * shape.dim);
  const auto codes_on = [&](auto& bank) {
    using bank_type = std::remove_reference_t<decltype(bank)>;
    pqattn::resident_codebook<typename bank_type::address> book{shape, pqattn::codebook_storage::f16, {}};
    pqattn::code_span<typename bank_type::address> span{shape, {}, nullptr};
    REQUIRE_OK(bank.reserve(bank.codebook_bytes(shape, book.storage), book.memory));
    REQUIRE_OK(bank.reserve(10 * bank.code_block_bytes(shape), span.memory));
    REQUIRE_OK(bank.store_codebook({shape, source.data()}, book));
    REQUIRE_OK(bank.encode(pqattn::view_rows(rows.data(), 600, shape.dim), book, span, {0, 600}));
    std::vector<std::uint16_t> codes(600 * shape.groups());
    REQUIRE_OK(bank.load_codes(span, {0, 600}, codes.data()));
    bank.release(book.memory, bank.codebook_bytes(shape, book.storage));
    bank.release(span.memory, 10 * bank.code_block_bytes(shape));
    return codes;
  };
  pqattn::host_bank<> host;
  pim::pim_bank<> emulated;
  REQUIRE_OK(emulated.configure(pim::hbm3_attacc()));
  CHECK(codes_on(host) == codes_on(emulated));
}

TEST_CASE("a head cache gives the same on the emulated bank", "[pim][cache]") {
  const turning turn;
  for (const pqattn::rope& rotation : {pqattn::rope{}, turn.rotation}) {
    std::vector<float> expected, keys, values, got, pim_keys, pim_values;
    pqattn::host_bank<> host;
    head_outputs(host, rotation, 3301, expected, keys, values);
    pim::pim_bank<> emulated;
    REQUIRE_OK(emulated.configure(pim::hbm3_attacc()));
    head_outputs(emulated, rotation, 3301, got, pim_keys, pim_values);
    CHECK(pqattn_test::nmse(got, pqattn_test::doubles(expected.begin(), expected.end())) <= 5e-4);
    // Codebooks and codes are the same, so what is decoded is.
    CHECK(pim_values == values);
    CHECK(pqattn_test::nmse(pim_keys, pqattn_test::doubles(keys.begin(), keys.end())) <= 1e-10);
    CHECK(emulated.costs().walked().total(pim::phase::train).channel.cycles > 0);
    CHECK(emulated.costs().walked().total(pim::phase::score).channel.cycles > 0);
    CHECK(emulated.costs().rows().used_bytes() == 0);
    CHECK(emulated.costs().rows().peak_bytes() > 0);
  }
}

TEST_CASE("heads of a layer go to homes of their own and work at the same time", "[pim][cache]") {
  constexpr std::size_t heads = 8;
  random_numbers random(3303);
  const std::vector<float> rows = random.normals(heads * tokens * dim);
  const std::vector<float> queries = random.normals(heads * dim);
  pim::pim_bank<> bank;
  REQUIRE_OK(bank.configure(pim::hbm3_attacc()));
  pqattn::cache_config config = config_of({});
  config.home = 3;
  pqattn::layer_cache<pim::pim_bank<>> cache;
  REQUIRE_OK(pqattn::layer_cache<pim::pim_bank<>>::make(bank, config, heads, {}, {}, cache));
  const pqattn::head_rows all{pqattn::view_rows(rows.data(), tokens, dim), heads,
                              static_cast<std::ptrdiff_t>(tokens * dim)};
  REQUIRE_OK(cache.append(all, all));
  bank.reset();
  std::vector<float> out(heads * dim);
  REQUIRE_OK(cache.attend({pqattn::view_rows(queries.data(), 1, dim), heads, dim}, {},
                          {pqattn::ref_rows(out.data(), 1, dim), heads, dim}));
  const pim::walker& walked = bank.costs().walked();
  for (std::int32_t channel = 0; channel < walked.channel_count(); ++channel) {
    CHECK((walked.channel(channel).finish_cycle() > 0) == (channel >= 3 && channel < 3 + 8));
  }
  CHECK(walked.total().elapsed_cycles * 8 == walked.total().channel.cycles);
}

TEST_CASE("a layer cache gives the same on the emulated bank", "[pim][cache]") {
  random_numbers random(3302);
  const std::vector<float> keys = random.normals(2 * tokens * dim);
  const std::vector<float> values = random.normals(2 * tokens * dim);
  const std::vector<float> queries = random.normals(4 * dim);
  const auto outputs = [&](auto& bank) {
    using bank_type = std::remove_reference_t<decltype(bank)>;
    pqattn::layer_cache<bank_type> cache;
    REQUIRE_OK(pqattn::layer_cache<bank_type>::make(bank, config_of({}), 2, {}, {}, cache));
    const auto heads = [](const std::vector<float>& numbers, std::size_t count, std::size_t rows) {
      return pqattn::head_rows{pqattn::view_rows(numbers.data(), rows, dim), count,
                               static_cast<std::ptrdiff_t>(rows * dim)};
    };
    REQUIRE_OK(cache.append(heads(keys, 2, tokens), heads(values, 2, tokens)));
    std::vector<float> out(4 * dim);
    REQUIRE_OK(
        cache.attend(heads(queries, 4, 1), {},
                     pqattn::head_rows_ref{pqattn::ref_rows(out.data(), 1, dim), 4, static_cast<std::ptrdiff_t>(dim)}));
    return out;
  };
  pqattn::host_bank<> host;
  pim::pim_bank<> emulated;
  pim::bank_options options;
  options.channels_per_home = 16;  // a head over a whole stack
  REQUIRE_OK(emulated.configure(pim::hbm3_attacc(), options));
  const std::vector<float> expected = outputs(host);
  CHECK(pqattn_test::nmse(outputs(emulated), pqattn_test::doubles(expected.begin(), expected.end())) <= 5e-4);
}
