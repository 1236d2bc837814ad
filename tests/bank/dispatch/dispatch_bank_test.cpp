// SPDX-License-Identifier: MIT
#include "pqattn/bank/dispatch/dispatch_bank.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "bank/conformance.hpp"
#include "pqattn/bank/host/host_bank.hpp"
#include "support/memory_resources.hpp"

namespace {

using pqattn::dispatch_bank;

/// An environment variable for the length of a scope.
class environment {
 public:
  environment(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) {
      old_ = old;
      had_ = true;
    }
    setenv(name, value, 1);
  }
  environment(const environment&) = delete;
  environment& operator=(const environment&) = delete;
  ~environment() { had_ ? setenv(name_, old_.c_str(), 1) : unsetenv(name_); }

 private:
  const char* name_;
  std::string old_;
  bool had_ = false;
};

std::size_t levels() {
  std::size_t count = 0;
  while (pqattn::dispatch_arch(count) != nullptr) {
    ++count;
  }
  return count;
}

/// What one bank makes of some rows: codes, scores with tables and after rotation, values.
template <class Bank>
std::vector<float> results_of(Bank& bank, std::vector<std::uint16_t>& codes) {
  using pqattn_test::random_data;
  constexpr std::size_t tokens = 200, rows = 3, dim = 32;
  random_data random(77);
  const pqattn::geometry shape{dim, 8, 256};
  std::vector<float> centroids = random.normals(shape.codebook_values());
  REQUIRE_OK(pqattn::round_codebook(shape, pqattn::codebook_storage::i8, centroids.data()));
  const pqattn_test::stored_book<Bank> book(bank, shape, pqattn::codebook_storage::i8, centroids);
  const pqattn_test::bank_block<Bank> memory(bank, pqattn::blocks_for(tokens) * bank.code_block_bytes(shape));
  const pqattn::code_span<std::byte*> span{shape, memory.get(), nullptr};
  const std::vector<float> data = random.normals(tokens * dim);
  REQUIRE_OK(bank.encode(pqattn::view_rows(data.data(), tokens, dim), book.resident, span, {0, tokens}));
  codes.assign(tokens * shape.groups(), 0);
  REQUIRE_OK(bank.load_codes(span, {0, tokens}, codes.data()));

  const std::vector<float> queries = random.normals(rows * dim);
  pqattn_test::aligned_floats scores(rows * 256);
  std::vector<float> all;
  const pqattn_test::bank_block<Bank> tables(bank, bank.table_bytes(shape, rows, {}));
  REQUIRE_OK(bank.prepare_scores({queries.data(), rows, dim}, book.resident, {}, tables.get()));
  REQUIRE_OK(bank.score(tables.get(), rows, book.resident, {}, {}, span, {0, tokens}, {scores.data(), rows, 256}));
  for (std::size_t row = 0; row < rows; ++row) {
    all.insert(all.end(), scores.data() + row * 256, scores.data() + row * 256 + tokens);
    std::fill(scores.data() + row * 256 + tokens, scores.data() + (row + 1) * 256, 0.0f);
  }
  std::vector<float> maximum(rows, pqattn::masked_score), sum(rows), rescale(rows), out(rows * dim);
  REQUIRE_OK(bank.softmax_part({scores.data(), rows, 256}, tokens, {maximum.data(), sum.data(), rescale.data()}));
  REQUIRE_OK(bank.accumulate_values({scores.data(), rows, 256}, book.resident, span, {0, tokens}, {}, out.data(), dim));
  all.insert(all.end(), out.begin(), out.end());
  return all;
}

}  // namespace

TEST_CASE("every instruction set of the dispatch library keeps the contract", "[bank]") {
  REQUIRE(levels() >= 1);
  std::size_t run = 0;
  for (std::size_t level = 0; level < levels(); ++level) {
    if (pqattn::dispatch_available(level)) {
      DYNAMIC_SECTION(pqattn::dispatch_arch(level)) {
        dispatch_bank bank;
        REQUIRE_OK(dispatch_bank::make(bank, pqattn::dispatch_arch(level)));
        REQUIRE(std::string(bank.arch_name()) == pqattn::dispatch_arch(level));
        pqattn_test::check_bank(bank, pqattn_test::rounding_limits);
      }
      ++run;
    }
  }
  CHECK(run >= 1);
}

TEST_CASE("a dispatched bank answers bit for bit as the header bank of its instruction set", "[bank]") {
  pqattn::host_bank<> header;
  std::vector<std::uint16_t> header_codes;
  const std::vector<float> expected = results_of(header, header_codes);
  bool compared = false;
  for (std::size_t level = 0; level < levels(); ++level) {
    if (pqattn::dispatch_available(level)) {
      dispatch_bank bank;
      REQUIRE_OK(dispatch_bank::make(bank, pqattn::dispatch_arch(level)));
      std::vector<std::uint16_t> codes;
      const std::vector<float> results = results_of(bank, codes);
      CHECK(codes == header_codes);
      if (std::strcmp(bank.arch_name(), header.arch_name()) == 0) {
        CHECK(results == expected);
        compared = true;
      }
    }
  }
  if (!compared) {
    SKIP("no unit of the library has this test's instruction set");
  }
}

TEST_CASE("the instruction set comes from the argument, the environment or the processor", "[bank]") {
  std::size_t best = 0;
  while (pqattn::dispatch_available(best + 1)) {
    ++best;
  }
  dispatch_bank bank;
  CHECK(std::string(bank.arch_name()) == pqattn::dispatch_arch(0));
  {
    const environment none("PQATTN_ARCH", "");
    REQUIRE_OK(dispatch_bank::make(bank));
    CHECK(std::string(bank.arch_name()) == pqattn::dispatch_arch(best));
  }
  const environment least("PQATTN_ARCH", pqattn::dispatch_arch(0));
  REQUIRE_OK(dispatch_bank::make(bank));
  CHECK(std::string(bank.arch_name()) == pqattn::dispatch_arch(0));
  REQUIRE_OK(dispatch_bank::make(bank, pqattn::dispatch_arch(best)));
  CHECK(std::string(bank.arch_name()) == pqattn::dispatch_arch(best));
}

TEST_CASE("an instruction set that cannot be had is an error", "[bank]") {
  dispatch_bank bank;
  REQUIRE_OK(dispatch_bank::make(bank, pqattn::dispatch_arch(0)));
  const pqattn::status unknown = dispatch_bank::make(bank, "itanium");
  CHECK(unknown.code == pqattn::status_code::invalid_argument);
  CHECK(std::string(unknown.subject) == "arch");
  CHECK(unknown.expected == static_cast<double>(levels()));
  {
    const environment wrong("PQATTN_ARCH", "avx3");
    const pqattn::status refused = dispatch_bank::make(bank);
    CHECK(refused.code == pqattn::status_code::invalid_argument);
    CHECK(std::string(refused.subject) == "environment variable PQATTN_ARCH");
  }
  for (std::size_t level = 0; level < levels(); ++level) {
    if (!pqattn::dispatch_available(level)) {
      const pqattn::status missing = dispatch_bank::make(bank, pqattn::dispatch_arch(level));
      CHECK(missing.code == pqattn::status_code::unsupported);
      CHECK(missing.got == static_cast<double>(level));
      CHECK(missing.expected < missing.got);
    }
  }
  CHECK(std::string(bank.arch_name()) == pqattn::dispatch_arch(0));
}

TEST_CASE("a dispatched bank takes its memory from the caller's resource", "[bank]") {
  pqattn_test::counting_resource memory;
  dispatch_bank bank;
  REQUIRE_OK(dispatch_bank::make(bank, nullptr, {}, memory.resource()));
  std::byte* place = nullptr;
  REQUIRE_OK(bank.reserve(1000, place));
  CHECK(memory.live_bytes == 1000);
  bank.release(place, 1000);
  CHECK(memory.live_bytes == 0);
  memory.fail_after = memory.allocations;
  const pqattn::status refused = bank.reserve(77, place);
  CHECK(refused.code == pqattn::status_code::out_of_memory);
}
