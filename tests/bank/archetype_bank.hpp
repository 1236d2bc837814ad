// SPDX-License-Identifier: MIT
// The least a bank may offer: every algorithm must compile with it. Nothing here does anything, and no
// object of it can be made.
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

  [[nodiscard]] text name() const noexcept { return {""}; }
  [[nodiscard]] text arch_name() const noexcept { return {""}; }

  // Programs are not const, reserve may throw.
  pqattn::status reserve(std::size_t, address&) { return {}; }
  void release(address, std::size_t) noexcept {}

  std::size_t codebook_bytes(const pqattn::geometry&, pqattn::codebook_storage) noexcept { return 0; }
  std::size_t code_block_bytes(const pqattn::geometry&) noexcept { return 0; }
  pqattn::status store_codebook(const pqattn::codebook_view&, const pqattn::resident_codebook<address>&) noexcept {
    return {};
  }
  pqattn::status load_codebook(const pqattn::resident_codebook<address>&, float*) noexcept { return {}; }
  pqattn::status store_codes(const pqattn::code_span<address>&, pqattn::slot_range, const std::uint16_t*) noexcept {
    return {};
  }
  pqattn::status load_codes(const pqattn::code_span<address>&, pqattn::slot_range, std::uint16_t*) noexcept {
    return {};
  }

  std::size_t point_bytes(std::size_t, std::uint32_t) noexcept { return 0; }
  pqattn::status store_points(const float*, std::size_t, std::uint32_t, address) noexcept { return {}; }
  pqattn::status assign(address, std::size_t, std::uint32_t, const float*, std::uint32_t, std::uint16_t*,
                        float*) noexcept {
    return {};
  }
  pqattn::status centroid_sums(address, std::size_t, std::uint32_t, const float*, const std::uint16_t*, std::uint32_t,
                               double*, double*) noexcept {
    return {};
  }

  pqattn::status encode(const pqattn::rows_view&, const pqattn::resident_codebook<address>&,
                        const pqattn::code_span<address>&, pqattn::slot_range) noexcept {
    return {};
  }
  pqattn::status decode(const pqattn::resident_codebook<address>&, const pqattn::code_span<address>&,
                        pqattn::slot_range, const pqattn::rows_ref&) noexcept {
    return {};
  }

  std::size_t table_bytes(const pqattn::geometry&, std::size_t, const pqattn::rope&) noexcept { return 0; }
  pqattn::status prepare_scores(const pqattn::query_rows&, const pqattn::resident_codebook<address>&,
                                const pqattn::rope&, address) noexcept {
    return {};
  }
  pqattn::status score(address, std::size_t, const pqattn::resident_codebook<address>&, const pqattn::rope&,
                       const pqattn::slot_positions&, const pqattn::code_span<address>&, pqattn::slot_range,
                       const pqattn::score_tile&) noexcept {
    return {};
  }
  pqattn::status softmax_part(const pqattn::score_tile&, std::size_t, const pqattn::softmax_state&) noexcept {
    return {};
  }
  pqattn::status accumulate_values(const pqattn::score_tile&, const pqattn::resident_codebook<address>&,
                                   const pqattn::code_span<address>&, pqattn::slot_range, const pqattn::value_options&,
                                   float*, std::size_t) noexcept {
    return {};
  }

  pqattn::status score_rows(const pqattn::query_rows&, const pqattn::rows_view&, const pqattn::score_tile&) noexcept {
    return {};
  }
  pqattn::status accumulate_rows(const pqattn::score_tile&, const pqattn::rows_view&, float*, std::size_t) noexcept {
    return {};
  }
};

static_assert(pqattn::bank_policy<archetype_bank>);

}  // namespace pqattn_test
