// SPDX-License-Identifier: MIT
// The least a bank may offer: every algorithm must compile with it. Nothing here is defined; it is never linked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "pqattn/bank/bank.hpp"

namespace pqattn_test {

class archetype_bank {
 public:
  /// Regular and trivially copyable, and nothing more: no pointer, no order, no arithmetic, no conversion.
  struct address {
    std::uint64_t handle = 0;
    friend bool operator==(const address&, const address&) = default;
  };
  /// Converts to what the concept asks for, but is not it.
  struct text {
    const char* characters;
    operator const char*() const noexcept;
  };
  static constexpr std::false_type concurrent{};

  archetype_bank() = delete;
  archetype_bank(const archetype_bank&) = delete;
  archetype_bank& operator=(const archetype_bank&) = delete;

  [[nodiscard]] text name() const noexcept;
  [[nodiscard]] text arch_name() const noexcept;

  // Programs are not const, reserve may throw.
  pqattn::status reserve(std::size_t bytes, address& place);
  void release(address place, std::size_t bytes) noexcept;

  std::size_t codebook_bytes(const pqattn::geometry& shape, pqattn::codebook_storage storage) noexcept;
  std::size_t code_block_bytes(const pqattn::geometry& shape) noexcept;
  pqattn::status store_codebook(const pqattn::codebook_view& book,
                                const pqattn::resident_codebook<address>& resident) noexcept;
  pqattn::status load_codebook(const pqattn::resident_codebook<address>& resident, float* centroids) noexcept;
  pqattn::status store_codes(const pqattn::code_span<address>& codes, pqattn::slot_range slots,
                             const std::uint16_t* in) noexcept;
  pqattn::status load_codes(const pqattn::code_span<address>& codes, pqattn::slot_range slots,
                            std::uint16_t* out) noexcept;

  std::size_t point_bytes(std::size_t count, std::uint32_t width) noexcept;
  pqattn::status store_points(const float* values, std::size_t count, std::uint32_t width, address points) noexcept;
  pqattn::status assign(address points, std::size_t count, std::uint32_t width, const float* centroids,
                        std::uint32_t centroid_count, std::uint16_t* codes, float* distances) noexcept;
  pqattn::status centroid_sums(address points, std::size_t count, std::uint32_t width, const float* weights,
                               const std::uint16_t* codes, std::uint32_t centroid_count, double* sums,
                               double* mass) noexcept;

  pqattn::status encode(const pqattn::rows_view& rows, const pqattn::resident_codebook<address>& book,
                        const pqattn::code_span<address>& codes, pqattn::slot_range slots) noexcept;
  pqattn::status decode(const pqattn::resident_codebook<address>& book, const pqattn::code_span<address>& codes,
                        pqattn::slot_range slots, const pqattn::rows_ref& decoded) noexcept;

  std::size_t table_bytes(const pqattn::geometry& shape, std::size_t rows, const pqattn::rope& rotation) noexcept;
  pqattn::status prepare_scores(const pqattn::query_rows& queries, const pqattn::resident_codebook<address>& book,
                                const pqattn::rope& rotation, address tables) noexcept;
  pqattn::status score(address tables, std::size_t rows, const pqattn::resident_codebook<address>& book,
                       const pqattn::rope& rotation, const pqattn::slot_positions& positions,
                       const pqattn::code_span<address>& codes, pqattn::slot_range slots,
                       const pqattn::score_tile& tile) noexcept;
  pqattn::status softmax_part(const pqattn::score_tile& tile, std::size_t count,
                              const pqattn::softmax_state& state) noexcept;
  pqattn::status accumulate_values(const pqattn::score_tile& tile, const pqattn::resident_codebook<address>& book,
                                   const pqattn::code_span<address>& codes, pqattn::slot_range slots,
                                   const pqattn::value_options& options, float* out, std::size_t stride) noexcept;

  pqattn::status score_rows(const pqattn::query_rows& queries, const pqattn::rows_view& rows,
                            const pqattn::score_tile& tile) noexcept;
  pqattn::status accumulate_rows(const pqattn::score_tile& tile, const pqattn::rows_view& rows, float* out,
                                 std::size_t stride) noexcept;
};

static_assert(pqattn::bank_policy<archetype_bank>);

}  // namespace pqattn_test
