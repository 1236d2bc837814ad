// SPDX-License-Identifier: MIT
// Shapes on which every bank is tested: head sizes in use and odd ones, ragged sub-vectors, all code widths, several
// stages, every codebook storage, token counts around a block, query rows around a register, and every way to give
// positions and pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "pqattn/bank/bank.hpp"

namespace pqattn_test {

enum class rope_kind : std::uint8_t { none, half, interleaved, partial };

struct bank_case {
  std::uint32_t dim;
  std::uint32_t subvectors;
  std::uint32_t centroids;
  std::uint32_t stages = 1;
  pqattn::codebook_storage storage = pqattn::codebook_storage::f32;
  std::size_t tokens = 130;
  std::size_t rows = 2;
  rope_kind rotation = rope_kind::none;
  std::int64_t base = 0;
  bool ordered = false;    ///< a random channel order
  bool scattered = false;  ///< a list of random positions
  bool paged = false;      ///< shuffled physical blocks

  [[nodiscard]] std::string text() const {
    const char* storages[] = {"f32", "f16", "i8"};
    const char* rotations[] = {"no", "half-split", "interleaved", "partial"};
    return "d=" + std::to_string(dim) + " m=" + std::to_string(subvectors) + " K=" + std::to_string(centroids) +
           " stages=" + std::to_string(stages) + " " + storages[static_cast<int>(storage)] +
           " tokens=" + std::to_string(tokens) + " rows=" + std::to_string(rows) + " " +
           rotations[static_cast<int>(rotation)] + " rope from " + std::to_string(base) + (ordered ? " ordered" : "") +
           (scattered ? " scattered" : "") + (paged ? " paged" : "");
  }
};

namespace detail {
using enum pqattn::codebook_storage;
using enum rope_kind;
}  // namespace detail

inline constexpr bank_case bank_cases[] = {
    // One channel, one code bit; then every head size.
    {1, 1, 2, 1, detail::f32, 1, 1},
    {2, 1, 2, 1, detail::f16, 63, 3, detail::half, 0},
    {3, 2, 3, 1, detail::f16, 63, 2, detail::none, 0, true},
    {7, 3, 17, 2, detail::i8, 65, 3, detail::half, 5, true},
    {16, 16, 16, 1, detail::f32, 64, 1, detail::half, 0},
    {16, 5, 4, 3, detail::f16, 130, 5, detail::interleaved, 100000, true, false, true},
    {33, 33, 2, 8, detail::f32, 65, 2, detail::none, 0, true},
    {48, 7, 64, 1, detail::i8, 130, 8, detail::half, 3},
    {64, 16, 256, 1, detail::f16, 1000, 4, detail::half, 300000},
    {64, 16, 256, 1, detail::f16, 200, 12, detail::interleaved, 0, true, true, true},
    {64, 32, 16, 2, detail::i8, 130, 2, detail::half, 20000000},
    {64, 16, 256, 1, detail::i8, 200, 2, detail::interleaved, 300000},
    {50, 7, 100, 1, detail::i8, 130, 1, detail::interleaved, 5},
    {64, 8, 256, 2, detail::f32, 130, 4, detail::none, 0},
    {80, 9, 300, 1, detail::f32, 65, 17, detail::partial, 100000, true},
    {96, 24, 512, 1, detail::f16, 130, 4},
    {96, 24, 32, 2, detail::f32, 1000, 1, detail::interleaved, 7, false, false, true},
    {128, 32, 256, 1, detail::f16, 1000, 4, detail::none, 0, false, false, true},
    {128, 1, 17, 1, detail::f32, 70, 3, detail::half, 16777200},
    {128, 128, 8, 1, detail::f16, 65, 1},
    {192, 48, 256, 1, detail::i8, 130, 3, detail::partial, 0, true, true},
    {256, 37, 1024, 1, detail::f16, 65, 5, detail::half, 20000000},
    {576, 144, 16, 1, detail::f32, 64, 2, detail::interleaved, 100000},
    {1024, 250, 4, 1, detail::f16, 63, 1, detail::half, 12},
    // Every code width that the cases above leave out, and codebooks larger than any cache.
    {8, 3, 128, 1, detail::f32, 130, 2},
    {8, 3, 2048, 1, detail::f16, 130, 2, detail::half, 1000},
    {5, 2, 4096, 1, detail::i8, 65, 3, detail::interleaved, 9},
    {5, 2, 8000, 1, detail::f16, 65, 2, detail::none, 0, true},
    {4, 2, 16384, 1, detail::i8, 65, 2, detail::half, 0},
    {4, 2, 20000, 1, detail::f32, 65, 2, detail::none, 0, false, false, true},
    {6, 2, 65536, 1, detail::f16, 70, 2, detail::half, 7},
    {3, 2, 40000, 1, detail::f32, 70, 4},
};

}  // namespace pqattn_test
