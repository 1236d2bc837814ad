// SPDX-License-Identifier: MIT
// Product quantization of one side (keys or values) of one KV head, for the study.
#pragma once

#include <pqattn/quant/codebook_rounding.hpp>
#include <pqattn/quant/geometry.hpp>
#include <pqattn/study/pq_reconstruction.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "study.hpp"

namespace pqattn_study {

struct pq_settings {
  pqattn::geometry shape;
  std::size_t iterations = 25;
  std::uint64_t seed = 1;
  pqattn::codebook_storage storage = pqattn::codebook_storage::f16;
};

/// A codebook trained on `samples` by k-means per sub-vector; `weights` has one number per row, or is null. k-means
/// starts from `start` when that is not empty. Throws study_error.
[[nodiscard]] std::vector<float> train_pq(const pq_settings& settings, const pqattn::rows_view& samples,
                                          const float* weights, const std::vector<float>& start = {});

/// Codes rows [first, last) of `rows` (dense, shape.dim wide) with a codebook and replaces them by what their codes
/// read back as; adds the bits of the codes to `cost`. Throws study_error.
void code_with_pq(const pq_settings& settings, const std::vector<float>& centroids, std::size_t first, std::size_t last,
                  std::vector<float>& rows, side_result& cost);

/// Trains jointly on the taught rows and replaces the coded rows by what their codes read back as; adds all bits to
/// `cost`. `weights` is empty or has one number per row before ranges.taught_last. Throws study_error.
void code_jointly(const pqattn::pq_recipe& recipe, const pqattn::pq_ranges& ranges, const std::vector<float>& weights,
                  std::vector<float>& rows, side_result& cost);

/// Bits of a codebook as `settings` stores it.
[[nodiscard]] double codebook_bits(const pq_settings& settings);

}  // namespace pqattn_study
