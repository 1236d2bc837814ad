// SPDX-License-Identifier: MIT
// The host bank's programs as a table of functions, one table per instruction set. Internal to dispatch_bank; the
// tables are compiled in dispatch/host_unit.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../bank.hpp"
#include "../host/host_options.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {

/// Every program of host_bank but memory, with the bank's options as first argument.
struct host_functions {
  using book_type = resident_codebook<std::byte*>;
  using span_type = code_span<std::byte*>;
  using hint_type = upcoming<std::byte*>;

  const char* arch;
  std::size_t (*codebook_bytes)(const geometry&, codebook_storage) noexcept;
  std::size_t (*code_block_bytes)(const geometry&) noexcept;
  std::size_t (*point_bytes)(std::size_t, std::uint32_t) noexcept;
  std::size_t (*table_bytes)(const host_options&, const geometry&, std::size_t, const rope&) noexcept;
  status (*store_codebook)(const codebook_view&, const book_type&) noexcept;
  status (*load_codebook)(const book_type&, float*) noexcept;
  status (*store_codes)(const span_type&, slot_range, const std::uint16_t*) noexcept;
  status (*load_codes)(const span_type&, slot_range, std::uint16_t*) noexcept;
  status (*store_points)(const float*, std::size_t, std::uint32_t, std::byte*) noexcept;
  status (*assign)(std::byte*, std::size_t, std::uint32_t, const float*, std::uint32_t, std::uint16_t*,
                   float*) noexcept;
  status (*centroid_sums)(std::byte*, std::size_t, std::uint32_t, const float*, const std::uint16_t*, std::uint32_t,
                          double*, double*) noexcept;
  status (*encode)(const rows_view&, const book_type&, const span_type&, slot_range) noexcept;
  status (*decode)(const book_type&, const span_type&, slot_range, const rows_ref&) noexcept;
  status (*prepare_scores)(const host_options&, const query_rows&, const book_type&, const rope&, std::byte*,
                           const hint_type&) noexcept;
  status (*score)(const host_options&, std::byte*, std::size_t, const book_type&, const rope&, const slot_positions&,
                  const span_type&, slot_range, const score_tile&, const hint_type&) noexcept;
  status (*softmax_part)(const score_tile&, std::size_t, const softmax_state&) noexcept;
  status (*accumulate_values)(const host_options&, const score_tile&, const book_type&, const span_type&, slot_range,
                              const value_options&, float*, std::size_t, const hint_type&) noexcept;
  status (*score_rows)(const query_rows&, const rows_view&, const score_tile&) noexcept;
  status (*accumulate_rows)(const score_tile&, const rows_view&, float*, std::size_t) noexcept;
};

}  // namespace detail
}  // namespace v0
}  // namespace pqattn
