// SPDX-License-Identifier: MIT
// What the host bank's kernels add to the error of quantization, on real activations.
#include <pqattn/bank/host/host_options.hpp>

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "pqattn/attend/attend.hpp"
#include "pqattn/bank/host/host_bank.hpp"
#include "pqattn/encode/encode.hpp"
#include "pqattn/train/channel_order.hpp"
#include "pqattn/train/codebook_trainer.hpp"
#include "support/message.hpp"
#include "support/resident.hpp"
#include "support/shared_data.hpp"

namespace {

using namespace pqattn;
using native_bank = host_bank<>;

constexpr std::size_t dim = 64;
constexpr std::size_t trained_tokens = 1536;
constexpr std::size_t query_tokens = 24;
constexpr std::size_t group = 2;      ///< query heads of a KV head
constexpr std::size_t most_rows = 4;  ///< both at two tokens

/// Squared differences, and the squared norm of the full-precision output.
struct error_sums {
  double norm = 0.0;
  double quantization = 0.0;  ///< codes in f32 arithmetic against full precision
  double plain_books = 0.0;   ///< the same with codebooks in f32
  double kernels = 0.0;       ///< a bank's kernels against f32 arithmetic on the same codes
};

/// Keys or values of a head with their codes, in no bank's layout: all banks get the same ones.
struct coded_rows {
  geometry shape;
  codebook_storage storage;
  rope rotation;
  std::vector<float> centroids;
  std::vector<std::uint16_t> codes;

  [[nodiscard]] std::size_t tokens() const { return codes.size() / shape.groups(); }
};

/// The same in a bank.
template <class Bank>
struct coded_side {
  pqattn_test::stored_book<Bank> book;
  pqattn_test::bank_block<Bank> memory;
  code_span<std::byte*> codes;

  coded_side(Bank& bank, const coded_rows& rows)
      : book(bank, rows.shape, rows.storage, rows.centroids, rows.rotation),
        memory(bank, blocks_for(rows.tokens()) * bank.code_block_bytes(rows.shape)),
        codes{rows.shape, memory.get(), nullptr} {
    REQUIRE_OK(bank.store_codes(codes, {0, rows.tokens()}, rows.codes.data()));
  }
};

struct coded_head {
  coded_rows keys;
  coded_rows values;
};

/// Query rows of one KV head, token after token, and what attention over the first `count` keys gives.
struct query_call {
  std::vector<float> queries;
  std::size_t count = 0;
  std::vector<double> full;      ///< in double precision on the rows themselves
  std::vector<float> reference;  ///< in f32 on the codes
};

std::vector<float> train(native_bank& bank, const geometry& shape, const rows_view& rows) {
  training_params params;
  params.kmeans.iterations = 8;
  params.storage = codebook_storage::f32;
  std::vector<std::byte> workspace(training_workspace_bytes(bank, shape, rows, params));
  std::vector<float> centroids(shape.codebook_values());
  training_report report;
  REQUIRE_OK(
      train_codebook(bank, shape, rows, nullptr, params, workspace.data(), workspace.size(), centroids.data(), report));
  return centroids;
}

coded_rows code(native_bank& bank, const geometry& shape, codebook_storage storage, const std::vector<float>& centroids,
                const rows_view& rows, const rope& rotation) {
  coded_rows coded{shape, storage, rotation, centroids, std::vector<std::uint16_t>(rows.rows * shape.groups())};
  const coded_side<native_bank> side(bank, coded);
  REQUIRE_OK(encode(bank, rows, side.book.resident, side.codes, {0, rows.rows}));
  REQUIRE_OK(bank.load_codes(side.codes, {0, rows.rows}, coded.codes.data()));
  return coded;
}

template <class Bank>
std::vector<float> attend_codes(Bank& bank, const rows_view& queries, const coded_side<Bank>& keys,
                                const coded_side<Bank>& values, std::size_t count) {
  segment<std::byte*> tokens;
  tokens.keys = {true, keys.codes, keys.book.resident, {}};
  tokens.values = {true, values.codes, values.book.resident, {}};
  tokens.slots = {0, count};
  tokens.rotation = keys.book.resident.rotation;
  const pqattn_test::bank_block<Bank> tables(bank, bank.table_bytes(keys.codes.shape, queries.rows, tokens.rotation));
  tokens.tables = tables.get();
  std::vector<std::byte> workspace(attention_workspace_bytes(&tokens, 1, queries.rows, dim, dim, 1));
  std::vector<float> out(queries.rows * dim);
  REQUIRE_OK(attend(bank, queries, &tokens, 1, {}, workspace.data(), workspace.size(),
                    ref_rows(out.data(), queries.rows, dim), nullptr));
  return out;
}

std::vector<double> attend_rows(const rows_view& queries, const rows_view& keys, const rows_view& values,
                                std::size_t count) {
  std::vector<double> out(queries.rows * dim, 0.0);
  float q[dim];
  float x[dim];
  for (std::size_t row = 0; row < queries.rows; ++row) {
    load_row(queries, row, q);
    double total = 0.0;
    for (std::size_t t = 0; t < count; ++t) {
      load_row(keys, t, x);
      double score = 0.0;
      for (std::size_t c = 0; c < dim; ++c) {
        score += static_cast<double>(q[c]) * static_cast<double>(x[c]);
      }
      const double weight = std::exp(score / 8.0);
      total += weight;
      load_row(values, t, x);
      for (std::size_t c = 0; c < dim; ++c) {
        out[row * dim + c] += weight * static_cast<double>(x[c]);
      }
    }
    for (std::size_t c = 0; c < dim; ++c) {
      out[row * dim + c] /= total;
    }
  }
  return out;
}

/// Of the first `rows` rows.
template <class A, class B>
double squared_distance(const std::vector<A>& a, const std::vector<B>& b, std::size_t rows) {
  double sum = 0.0;
  for (std::size_t i = 0; i < rows * dim; ++i) {
    sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2.0);
  }
  return sum;
}

/// The shipped activations of a layer.
struct activations {
  pqattn_test::activation_file keys;
  pqattn_test::activation_file unturned;
  pqattn_test::activation_file values;
  pqattn_test::activation_file queries;

  /// Query rows of a KV head at two tokens each, with what they give in full precision.
  [[nodiscard]] std::vector<query_call> calls(std::size_t head) const {
    std::vector<query_call> made(query_tokens);
    for (std::size_t i = 0; i < query_tokens; ++i) {
      const std::size_t token = trained_tokens + i * (keys.tokens() - 1 - trained_tokens) / query_tokens;
      query_call& call = made[i];
      call.count = token + 1;  // the second token sees what the first one does
      call.queries.resize(most_rows * dim);
      for (std::size_t row = 0; row < most_rows; ++row) {
        load_row(queries.head(group * head + row % group), token + row / group, call.queries.data() + row * dim);
      }
      call.full =
          attend_rows(view_rows(call.queries.data(), most_rows, dim), keys.head(head), values.head(head), call.count);
    }
    return made;
  }
};

/// How keys and values are coded.
struct coding {
  const char* name;
  rope rotation;               ///< of keys coded before RoPE
  const std::uint16_t* order;  ///< of the keys' and values' channels, or null
  std::uint32_t subvectors;
  std::uint32_t centroids;

  [[nodiscard]] geometry shape() const { return {dim, subvectors, centroids, 1, order}; }
  [[nodiscard]] std::size_t bits() const { return shape().row_bits() / dim; }
};

/// Trains and codes a head, and completes the calls with what its codes give in f32. Sums are those of all rows.
coded_head code_head(const activations& from, std::size_t head, const coding& coded, std::vector<query_call>& calls,
                     error_sums& sums) {
  native_bank exact(exact_arithmetic);
  const rows_view keys = coded.rotation.enabled() ? from.unturned.head(head) : from.keys.head(head);
  const rows_view values = from.values.head(head);
  const geometry shape = coded.shape();
  const std::vector<float> key_book = train(exact, shape, keys.slice(0, trained_tokens));
  const std::vector<float> value_book = train(exact, shape, values.slice(0, trained_tokens));
  coded_head made{code(exact, shape, codebook_storage::i8, key_book, keys, coded.rotation),
                  code(exact, shape, codebook_storage::i8, value_book, values, {})};
  const coded_side<native_bank> k(exact, made.keys);
  const coded_side<native_bank> v(exact, made.values);
  const coded_side<native_bank> plain_k(exact,
                                        code(exact, shape, codebook_storage::f32, key_book, keys, coded.rotation));
  const coded_side<native_bank> plain_v(exact, code(exact, shape, codebook_storage::f32, value_book, values, {}));
  for (query_call& call : calls) {
    const rows_view rows = view_rows(call.queries.data(), most_rows, dim);
    call.reference = attend_codes(exact, rows, k, v, call.count);
    const std::vector<float> plain = attend_codes(exact, rows, plain_k, plain_v, call.count);
    sums.quantization += squared_distance(call.reference, call.full, most_rows);
    sums.plain_books += squared_distance(plain, call.full, most_rows);
  }
  return made;
}

/// The kernels of one bank with the first `rows` rows of each call.
template <class Bank>
struct kernel_errors {
  std::size_t rows;
  error_sums sums{};

  void add(const coded_head& head, const std::vector<query_call>& calls) {
    Bank bank;
    const coded_side<Bank> keys(bank, head.keys);
    const coded_side<Bank> values(bank, head.values);
    for (const query_call& call : calls) {
      const std::vector<float> out =
          attend_codes(bank, view_rows(call.queries.data(), rows, dim), keys, values, call.count);
      sums.kernels += squared_distance(out, call.reference, rows);
      sums.quantization += squared_distance(call.reference, call.full, rows);
      sums.norm += squared_distance(call.full, std::vector<float>(call.full.size(), 0.0f), rows);
    }
  }

  /// Codes of 4 bits a channel leave less of an error to compare with.
  void check(const coding& coded) const {
    INFO(coded.name << ", " << coded.subvectors << " sub-vectors, " << coded.centroids << " centroids, " << rows
                    << " rows, " << Bank().arch_name() << ": quantization " << sums.quantization / sums.norm
                    << ", kernels add " << sums.kernels / sums.norm << ", " << 100.0 * sums.kernels / sums.quantization
                    << " %");
    CHECK(sums.kernels < (coded.bits() <= 2 ? 0.01 : 0.1) * sums.quantization);
  }
};

/// A bank's kernels with the rows of one token and of two.
template <class Bank>
struct bank_errors {
  kernel_errors<Bank> one{group};
  kernel_errors<Bank> two{most_rows};

  void add(const coded_head& head, const std::vector<query_call>& calls) {
    one.add(head, calls);
    two.add(head, calls);
  }
  void check(const coding& coded) const {
    one.check(coded);
    two.check(coded);
  }
};

#if XSIMD_WITH_AVX2 && XSIMD_WITH_FMA3_AVX2
using avx2_bank = host_bank<isa::avx2>;
#else
using avx2_bank = native_bank;
#endif

void check_coding(const activations& from, std::vector<std::vector<query_call>>& calls, const coding& coded) {
  error_sums sums;
  bank_errors<native_bank> native;
  bank_errors<avx2_bank> avx2;
  for (std::size_t head = 0; head < from.keys.heads(); ++head) {
    const coded_head made = code_head(from, head, coded, calls[head], sums);
    native.add(made, calls[head]);
    if constexpr (!std::is_same_v<avx2_bank, native_bank>) {
      avx2.add(made, calls[head]);
    }
  }
  CAPTURE(coded.name, coded.subvectors, coded.centroids);
  CHECK(sums.quantization < 1.1 * sums.plain_books);
  native.check(coded);
  if constexpr (!std::is_same_v<avx2_bank, native_bank>) {
    avx2.check(coded);
  }
}

TEST_CASE("kernels add less than a tenth of the quantization error on real activations", "[bank]") {
  auto keys = pqattn_test::shipped_activations("keys");
  auto unturned = pqattn_test::shipped_activations("keys_prerope");
  auto values = pqattn_test::shipped_activations("values");
  auto queries = pqattn_test::shipped_activations("queries");
  if (!keys || !unturned || !values || !queries) {
    SKIP("no activations in " << pqattn_test::test_data_folder());
  }
  const activations from{std::move(*keys), std::move(*unturned), std::move(*values), std::move(*queries)};
  std::vector<float> frequencies(dim / 2);
  fill_rope_frequencies(frequencies.data(), dim, 10000.0);
  std::vector<float> tables(rope_floats(dim / 2));
  rope turning;
  REQUIRE_OK(build_rope(frequencies.data(), dim / 2, rope_pairing::half_split, tables.data(), turning));
  std::vector<std::uint16_t> by_pairs(dim);
  fill_pair_order(turning, dim, by_pairs.data());

  std::vector<std::vector<query_call>> calls;
  for (std::size_t head = 0; head < from.keys.heads(); ++head) {
    calls.push_back(from.calls(head));
  }
  for (const auto& [subvectors, centroids] : {std::pair{16u, 256u}, std::pair{32u, 256u}, std::pair{32u, 16u}}) {
    check_coding(from, calls, {"keys after RoPE", {}, nullptr, subvectors, centroids});
    check_coding(from, calls, {"keys before RoPE", turning, nullptr, subvectors, centroids});
    check_coding(from, calls, {"keys before RoPE by pairs", turning, by_pairs.data(), subvectors, centroids});
  }
}

}  // namespace
