// SPDX-License-Identifier: MIT
// What coding a KV cache does to attention: exact against reconstructed keys and values, judged query by query.
#pragma once

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../core/memory.hpp"
#include "../core/status.hpp"
#include "../core/view.hpp"
#include "metrics.hpp"

namespace pqattn {
inline namespace v0 {
inline namespace PQATTN_ISA_UNIT {

/// Which tokens a cache keeps exact, and which queries are judged.
struct attention_window {
  std::size_t sinks = 8;        ///< tokens [0, sinks) are exact
  std::size_t recent = 32;      ///< for a query at position t, tokens (t - recent, t] are exact
  std::size_t first_query = 0;  ///< queries at positions [first_query, tokens) are judged
};

/// Sums over query rows; parts (heads, layers) are added up before a figure is read.
struct attention_error {
  squared_error output;            ///< attention outputs
  double row_nmse_sum = 0.0;       ///< of each query row's own |o - o'|^2 / |o|^2
  double kl_sum = 0.0;             ///< of KL(exact row || approximate row)
  double squared_logits = 0.0;     ///< squared score differences over coded tokens, scale included
  double sink_mass_sum = 0.0;      ///< exact attention mass on the sinks
  double coded_mass_sum = 0.0;     ///< exact attention mass on coded tokens
  std::uint64_t rows = 0;          ///< query rows judged
  std::uint64_t agreeing = 0;      ///< rows whose most attended token is the same
  std::uint64_t coded_scores = 0;  ///< (query, coded token) pairs

  void add(const attention_error& other) noexcept {
    output.add(other.output);
    row_nmse_sum += other.row_nmse_sum;
    kl_sum += other.kl_sum;
    squared_logits += other.squared_logits;
    sink_mass_sum += other.sink_mass_sum;
    coded_mass_sum += other.coded_mass_sum;
    rows += other.rows;
    agreeing += other.agreeing;
    coded_scores += other.coded_scores;
  }

  /// Mean over query rows of each row's own |o - o'|^2 / |o|^2: every row counts the same.
  [[nodiscard]] double output_nmse() const noexcept { return per_row(row_nmse_sum); }
  /// sum |o - o'|^2 / sum |o|^2 over all outputs: rows with large outputs count most.
  [[nodiscard]] double output_nmse_pooled() const noexcept { return output.normalized(); }
  /// Mean over query rows of KL(p_exact || p_approximate), in nats.
  [[nodiscard]] double kl() const noexcept { return per_row(kl_sum); }
  [[nodiscard]] double top_1_agreement() const noexcept { return per_row(static_cast<double>(agreeing)); }
  [[nodiscard]] double sink_mass() const noexcept { return per_row(sink_mass_sum); }
  [[nodiscard]] double coded_mass() const noexcept { return per_row(coded_mass_sum); }
  [[nodiscard]] double logit_rmse() const noexcept {
    return coded_scores == 0 ? 0.0 : std::sqrt(squared_logits / static_cast<double>(coded_scores));
  }

 private:
  [[nodiscard]] double per_row(double sum) const noexcept { return rows == 0 ? 0.0 : sum / static_cast<double>(rows); }
};

/// Exact and reconstructed rows of one KV head, keys as the queries meet them (after RoPE).
struct reconstructed_head {
  rows_view keys;                  ///< (tokens, d_k)
  rows_view values;                ///< (tokens, d_v)
  rows_view reconstructed_keys;    ///< same shape as keys
  rows_view reconstructed_values;  ///< same shape as values
};

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

using study_matrix = Eigen::Map<Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;

/// Query rows that are worked on together: enough for a matrix product, few enough for the cache.
inline constexpr std::size_t study_block_rows = 64;

/// Scratch of the study of one head.
struct attention_error_workspace {
  float* row = nullptr;
  double* keys = nullptr;
  double* values = nullptr;
  double* reconstructed_keys = nullptr;
  double* reconstructed_values = nullptr;
  double* queries = nullptr;  ///< one block from here on
  double* scores = nullptr;
  double* approximate = nullptr;
  double* exact_part = nullptr;  ///< approximate probabilities of exactly kept tokens, sinks first
  double* output = nullptr;
  double* approximate_output = nullptr;

  attention_error_workspace(carver& memory, std::size_t tokens, std::size_t d_k, std::size_t d_v) noexcept
      : row(memory.take<float>((std::max)(d_k, d_v))),
        keys(memory.take<double>(tokens * d_k)),
        values(memory.take<double>(tokens * d_v)),
        reconstructed_keys(memory.take<double>(tokens * d_k)),
        reconstructed_values(memory.take<double>(tokens * d_v)),
        queries(memory.take<double>(study_block_rows * d_k)),
        scores(memory.take<double>(study_block_rows * tokens)),
        approximate(memory.take<double>(study_block_rows * tokens)),
        exact_part(memory.take<double>(study_block_rows * tokens)),
        output(memory.take<double>(study_block_rows * d_v)),
        approximate_output(memory.take<double>(study_block_rows * d_v)) {}
};

inline void widen_rows(const rows_view& rows, float* row, double* target) noexcept {
  for (std::size_t r = 0; r < rows.rows; ++r) {
    load_row(rows, r, row);
    target = std::copy(row, row + rows.cols, target);
  }
}

/// Token ranges one query row sees: [0, sinks) exact, [sinks, coded_end) coded, [coded_end, tokens) exact.
struct query_span {
  std::size_t sinks;
  std::size_t coded_end;
  std::size_t tokens;

  query_span(const attention_window& window, std::size_t position) noexcept
      : sinks((std::min)(window.sinks, position + 1)),
        coded_end((std::max)(sinks, position + 1 - (std::min)(window.recent, position + 1))),
        tokens(position + 1) {}
};

/// One query row: scores become probabilities in place, and everything that needs the scores is measured.
/// `scratch` has room for span.tokens numbers.
inline void judge_row(const query_span& span, double* scores, double* approximate, double* scratch,
                      attention_error& sum) noexcept {
  for (std::size_t i = span.sinks; i < span.coded_end; ++i) {
    const double difference = scores[i] - approximate[i];
    sum.squared_logits += difference * difference;
  }
  std::copy(scores, scores + span.sinks, approximate);
  std::copy(scores + span.coded_end, scores + span.tokens, approximate + span.coded_end);
  sum.coded_scores += span.coded_end - span.sinks;
  sum.rows += 1;
  sum.agreeing += top_1_agrees(scores, approximate, span.tokens) ? 1 : 0;

  const auto count = static_cast<Eigen::Index>(span.tokens);
  Eigen::Map<Eigen::ArrayXd> exact_row(scores, count);
  Eigen::Map<Eigen::ArrayXd> approximate_row(approximate, count);
  Eigen::Map<Eigen::ArrayXd> mass(scratch, count);
  const double exact_maximum = exact_row.maxCoeff();
  const double approximate_maximum = approximate_row.maxCoeff();
  mass = (exact_row - exact_maximum).exp();
  const double exact_sum = mass.sum();
  // KL = sum p (score - approximate score) - lse + approximate lse: no logarithm of a small probability.
  const double mean_difference = (mass * (exact_row - approximate_row)).sum() / exact_sum;
  exact_row = mass / exact_sum;
  approximate_row = (approximate_row - approximate_maximum).exp();
  const double approximate_sum = approximate_row.sum();
  approximate_row /= approximate_sum;
  const double lse_difference = exact_maximum + std::log(exact_sum) - approximate_maximum - std::log(approximate_sum);
  sum.kl_sum += (std::max)(0.0, mean_difference - lse_difference);

  const auto sinks = static_cast<Eigen::Index>(span.sinks);
  const auto coded = static_cast<Eigen::Index>(span.coded_end - span.sinks);
  sum.sink_mass_sum += exact_row.head(sinks).sum();
  sum.coded_mass_sum += exact_row.segment(sinks, coded).sum();
}

/// Exact and approximate outputs of a block of query rows whose probabilities are in `work`. The approximate ones are
/// split: coded tokens meet reconstructed values; sinks and recent tokens meet exact values.
inline void block_outputs(const attention_window& window, std::size_t first, std::size_t rows, std::size_t d_v,
                          const attention_error_workspace& work) {
  const std::size_t tokens = first + rows;
  const std::size_t sinks = (std::min)(window.sinks, tokens);
  const std::size_t recent_from = (std::max)(sinks, first + 1 - (std::min)(window.recent, first + 1));
  const std::size_t recent = tokens - recent_from;
  const std::size_t exact_tokens = sinks + recent;
  std::fill_n(work.exact_part, rows * exact_tokens, 0.0);
  for (std::size_t r = 0; r < rows; ++r) {
    const query_span span(window, first + r);
    double* row = work.approximate + r * tokens;
    double* exact_row = work.exact_part + r * exact_tokens;
    std::copy(row, row + span.sinks, exact_row);
    std::fill(row, row + span.sinks, 0.0);
    if (span.coded_end < span.tokens) {
      std::copy(row + span.coded_end, row + span.tokens, exact_row + sinks + (span.coded_end - recent_from));
      std::fill(row + span.coded_end, row + span.tokens, 0.0);
    }
    std::fill(row + span.tokens, row + tokens, 0.0);
    std::fill(work.scores + r * tokens + span.tokens, work.scores + (r + 1) * tokens, 0.0);
  }
  const auto index = [](std::size_t n) { return static_cast<Eigen::Index>(n); };
  const study_matrix probabilities(work.scores, index(rows), index(tokens));
  const study_matrix approximate(work.approximate, index(rows), index(tokens));
  const study_matrix exact_part(work.exact_part, index(rows), index(exact_tokens));
  const study_matrix values(work.values, index(tokens), index(d_v));
  const study_matrix reconstructed(work.reconstructed_values, index(tokens), index(d_v));
  study_matrix output(work.output, index(rows), index(d_v));
  study_matrix approximate_output(work.approximate_output, index(rows), index(d_v));
  output.noalias() = probabilities * values;
  approximate_output.noalias() = approximate * reconstructed;
  approximate_output.noalias() += exact_part.leftCols(index(sinks)) * values.topRows(index(sinks));
  approximate_output.noalias() += exact_part.rightCols(index(recent)) * values.bottomRows(index(recent));
}

/// Queries [first, first + rows) of one head.
inline void judge_block(const rows_view& queries, const attention_window& window, double scale, std::size_t first,
                        std::size_t rows, std::size_t d_v, const attention_error_workspace& work,
                        attention_error& sum) {
  const std::size_t tokens = first + rows;
  widen_rows(queries.slice(first, rows), work.row, work.queries);
  const auto index = [](std::size_t n) { return static_cast<Eigen::Index>(n); };
  const study_matrix query_block(work.queries, index(rows), index(queries.cols));
  const study_matrix keys(work.keys, index(tokens), index(queries.cols));
  const study_matrix reconstructed(work.reconstructed_keys, index(tokens), index(queries.cols));
  study_matrix scores(work.scores, index(rows), index(tokens));
  study_matrix approximate(work.approximate, index(rows), index(tokens));
  scores.noalias() = scale * query_block * keys.transpose();
  approximate.noalias() = scale * query_block * reconstructed.transpose();
  for (std::size_t r = 0; r < rows; ++r) {
    judge_row(query_span(window, first + r), work.scores + r * tokens, work.approximate + r * tokens, work.exact_part,
              sum);
  }
  block_outputs(window, first, rows, d_v, work);
  for (std::size_t r = 0; r < rows; ++r) {
    squared_error row;
    row.add(work.output + r * d_v, work.approximate_output + r * d_v, d_v);
    sum.output.add(row);
    sum.row_nmse_sum += row.normalized();
  }
}

[[nodiscard]] inline status check_head(const reconstructed_head& head, const rows_view& queries) noexcept {
  PQATTN_TRY(check_view(head.keys, "keys"));
  PQATTN_TRY(check_view(head.values, "values"));
  PQATTN_TRY(check_view(head.reconstructed_keys, "reconstructed_keys"));
  PQATTN_TRY(check_view(head.reconstructed_values, "reconstructed_values"));
  PQATTN_TRY(check_view(queries, "queries"));
  struct pair {
    const char* subject;
    std::size_t expected;
    std::size_t got;
  };
  const pair pairs[] = {{"values.rows", head.keys.rows, head.values.rows},
                        {"queries.rows", head.keys.rows, queries.rows},
                        {"queries.cols", head.keys.cols, queries.cols},
                        {"reconstructed_keys.rows", head.keys.rows, head.reconstructed_keys.rows},
                        {"reconstructed_keys.cols", head.keys.cols, head.reconstructed_keys.cols},
                        {"reconstructed_values.rows", head.values.rows, head.reconstructed_values.rows},
                        {"reconstructed_values.cols", head.values.cols, head.reconstructed_values.cols}};
  for (const pair& entry : pairs) {
    if (entry.expected != entry.got) {
      return failure(status_code::shape_mismatch, entry.subject, "does not fit the keys or values", entry.expected,
                     entry.got);
    }
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Adds to `sum` the error of one query head's attention. `queries` is (tokens, d_k), row t at position t, causal:
/// the query at t sees keys [0, t]. Scores are scale * <q, k>. Works in double precision throughout.
/// shape_mismatch when rows or columns disagree, out_of_memory when `memory` refuses the scratch of about
/// 8 * (2 * tokens * (d_k + d_v) + 192 * tokens) bytes; Eigen's products allocate a little more on their own.
/// O(queries * tokens * (d_k + d_v)).
[[nodiscard]] inline status add_attention_error(const reconstructed_head& head, const rows_view& queries,
                                                const attention_window& window, double scale, attention_error& sum,
                                                const memory_resource& memory = {}) {
  PQATTN_TRY(detail::check_head(head, queries));
  const std::size_t tokens = head.keys.rows;
  carver counting;
  detail::attention_error_workspace(counting, tokens, head.keys.cols, head.values.cols);
  buffer block;
  PQATTN_TRY(buffer::make(memory, counting.required(), block));
  carver pieces(block.data(), block.size());
  const detail::attention_error_workspace work(pieces, tokens, head.keys.cols, head.values.cols);
  detail::widen_rows(head.keys, work.row, work.keys);
  detail::widen_rows(head.values, work.row, work.values);
  detail::widen_rows(head.reconstructed_keys, work.row, work.reconstructed_keys);
  detail::widen_rows(head.reconstructed_values, work.row, work.reconstructed_values);
  for (std::size_t first = window.first_query; first < tokens; first += detail::study_block_rows) {
    const std::size_t rows = (std::min)(detail::study_block_rows, tokens - first);
    detail::judge_block(queries, window, scale, first, rows, head.values.cols, work, sum);
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
