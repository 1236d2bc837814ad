// SPDX-License-Identifier: MIT
// Product quantization of one side (keys or values) of one KV head, for the study.
#pragma once

#include <pqattn/quant/codebook_rounding.hpp>
#include <pqattn/quant/geometry.hpp>

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

/// Rows [train_first, train_last) teach the codebook, rows [coded_first, coded_last) are coded with it.
struct pq_ranges {
  std::size_t train_first = 0;
  std::size_t train_last = 0;
  std::size_t coded_first = 0;
  std::size_t coded_last = 0;
};

/// Replaces the coded rows of `rows` (dense, shape.dim wide) by what their codes read back as, and adds the codebook's
/// bits to `cost`. `weights` is empty or has one number per row before
/// train_last. Does nothing when no row is coded.
/// Throws study_error.
void code_as_pq(const pq_settings& settings, const pq_ranges& ranges, const std::vector<float>& weights,
                std::vector<float>& rows, side_result& cost);

}  // namespace pqattn_study
