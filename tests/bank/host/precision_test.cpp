// SPDX-License-Identifier: MIT
// What the host bank's kernels add to the error of quantization, on real activations.
#include <pqattn/bank/host/host_options.hpp>

#include <catch2/catch_test_macros.hpp>
#include <cmath>
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
using bank_type = host_bank<>;

constexpr std::size_t dim = 64;
constexpr std::size_t trained_tokens = 1536;
constexpr std::size_t query_tokens = 24;

/// Squared difference over squared norm of the full-precision output.
struct error_sums {
  double quantization = 0.0;  ///< codes in f32 arithmetic against full precision
  double plain_books = 0.0;   ///< the same with codebooks in f32
  double kernels = 0.0;       ///< the bank's kernels against f32 arithmetic on the same codes
};

struct coded_side {
  pqattn_test::stored_book<bank_type> book;
  pqattn_test::bank_block<bank_type> memory;
  code_span<std::byte*> codes;

  coded_side(bank_type& bank, const geometry& shape, codebook_storage storage, const std::vector<float>& centroids,
             const rows_view& rows, const rope& rotation)
      : book(bank, shape, storage, centroids, rotation),
        memory(bank, blocks_for(rows.rows) * bank.code_block_bytes(shape)),
        codes{shape, memory.get(), nullptr} {
    REQUIRE_OK(encode(bank, rows, book.resident, codes, {0, rows.rows}));
  }
};

std::vector<float> train(bank_type& bank, const geometry& shape, const rows_view& rows) {
  training_params params;
  params.kmeans.iterations = 8;
  params.storage = codebook_storage::f32;
  std::vector<std::byte> workspace(training_workspace_bytes(bank, shape, rows, params));
  std::vector<float> centroids(shape.codebook_values());
  training_report report;
  REQUIRE_OK(train_codebook(bank, shape, rows, nullptr, params, workspace.data(), workspace.size(), centroids.data(),
                            report));
  return centroids;
}

std::vector<float> attend_codes(const bank_type& bank, const rows_view& queries, const coded_side& keys,
                                const coded_side& values, std::size_t count, const rope& rotation) {
  segment<std::byte*> tokens;
  tokens.keys = {true, keys.codes, keys.book.resident, {}};
  tokens.values = {true, values.codes, values.book.resident, {}};
  tokens.slots = {0, count};
  tokens.rotation = rotation;
  bank_type own = bank;
  pqattn_test::bank_block<bank_type> tables(own, bank.table_bytes(keys.codes.shape, queries.rows, rotation));
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

template <class A, class B>
double squared_distance(const std::vector<A>& a, const std::vector<B>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2.0);
  }
  return sum;
}

TEST_CASE("kernels add less than a tenth of the quantization error on real activations", "[bank]") {
  const auto keys = pqattn_test::shipped_activations("keys");
  const auto unturned = pqattn_test::shipped_activations("keys_prerope");
  const auto values = pqattn_test::shipped_activations("values");
  const auto queries = pqattn_test::shipped_activations("queries");
  if (!keys || !unturned || !values || !queries) {
    SKIP("no activations in " << pqattn_test::test_data_folder());
  }
  std::vector<float> frequencies(dim / 2);
  fill_rope_frequencies(frequencies.data(), dim, 10000.0);
  std::vector<float> tables(rope_floats(dim / 2));
  rope turning;
  REQUIRE_OK(build_rope(frequencies.data(), dim / 2, rope_pairing::half_split, tables.data(), turning));

  bank_type exact(exact_arithmetic);
  const bank_type fast;
  std::vector<std::uint16_t> by_pairs(dim);
  fill_pair_order(turning, dim, by_pairs.data());
  struct coding {
    const char* name;
    bool rotary;
    const std::uint16_t* order;
  };
  for (const coding& coded : {coding{"keys after RoPE, ", false, nullptr}, coding{"keys before RoPE, ", true, nullptr},
                              coding{"keys before RoPE by pairs, ", true, by_pairs.data()}}) {
    for (const std::uint32_t subvectors : {16U, 32U}) {
      const geometry shape{dim, subvectors, 256, 1, coded.order};
      const bool rotary = coded.rotary;
      const rope rotation = rotary ? turning : rope{};
      error_sums errors;
      double norm = 0.0;
      for (std::size_t head = 0; head < keys->heads(); ++head) {
        const rows_view coded_keys = rotary ? unturned->head(head) : keys->head(head);
        const std::vector<float> key_book = train(exact, shape, coded_keys.slice(0, trained_tokens));
        const std::vector<float> value_book = train(exact, shape, values->head(head).slice(0, trained_tokens));
        const coded_side k(exact, shape, codebook_storage::i8, key_book, coded_keys, rotation);
        const coded_side v(exact, shape, codebook_storage::i8, value_book, values->head(head), {});
        const coded_side plain_k(exact, shape, codebook_storage::f32, key_book, coded_keys, rotation);
        const coded_side plain_v(exact, shape, codebook_storage::f32, value_book, values->head(head), {});
        for (std::size_t i = 0; i < query_tokens; ++i) {
          const std::size_t token = trained_tokens + i * (keys->tokens() - trained_tokens) / query_tokens;
          std::vector<float> q(2 * dim);
          for (std::size_t row = 0; row < 2; ++row) {
            load_row(queries->head(2 * head + row), token, q.data() + row * dim);
          }
          const rows_view rows = view_rows(q.data(), 2, dim);
          const std::vector<double> full = attend_rows(rows, keys->head(head), values->head(head), token + 1);
          const std::vector<float> reference = attend_codes(exact, rows, k, v, token + 1, rotation);
          errors.quantization += squared_distance(reference, full);
          errors.plain_books +=
              squared_distance(attend_codes(exact, rows, plain_k, plain_v, token + 1, rotation), full);
          errors.kernels += squared_distance(attend_codes(fast, rows, k, v, token + 1, rotation), reference);
          norm += squared_distance(full, std::vector<float>(full.size(), 0.0f));
        }
      }
      INFO(coded.name << 8 * subvectors / dim << " bits: quantization "
           << errors.quantization / norm << ", with f32 books " << errors.plain_books / norm << ", kernels add "
           << errors.kernels / norm << ", " << 100.0 * errors.kernels / errors.quantization << " %");
      CHECK(errors.kernels < (subvectors == 16 ? 0.01 : 0.1) * errors.quantization);
      CHECK(errors.quantization < 1.1 * errors.plain_books);
    }
  }
}

}  // namespace
