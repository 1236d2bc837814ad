// SPDX-License-Identifier: MIT
// The host bank with its instruction set chosen when the program runs. Opt-in: needs the library pqattn::dispatch,
// which holds the programs once per instruction set, so that one binary serves every processor:
//
//   pqattn::dispatch_bank bank;
//   if (const pqattn::status made = pqattn::dispatch_bank::make(bank); !made) { ... }
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../core/memory.hpp"
#include "../bank.hpp"
#include "../host/host_options.hpp"
#include "host_functions.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {

/// Tables of the instruction sets this library was built with, from the least to the best; null past the end.
[[nodiscard]] const host_functions* dispatch_table(std::size_t level) noexcept;

/// Whether this processor and its operating system run that table.
[[nodiscard]] bool dispatch_runs(std::size_t level) noexcept;

}  // namespace detail

/// Instruction sets in the library, from the least to the best: "sse2", "avx2", "avx512", "avx512vbmi" on x86, "neon64"
/// on ARM. Null past the end.
[[nodiscard]] inline const char* dispatch_arch(std::size_t level) noexcept {
  const detail::host_functions* table = detail::dispatch_table(level);
  return table == nullptr ? nullptr : table->arch;
}

/// Whether make() accepts that instruction set on this processor.
[[nodiscard]] inline bool dispatch_available(std::size_t level) noexcept {
  return detail::dispatch_runs(level);
}

/// host_bank<> of a translation unit compiled for the chosen instruction set: same codes, same layouts, same results.
/// Banks of one program may differ in instruction set; codes written by one are read by every other. A bank that was
/// not made runs the least instruction set of the library.
class dispatch_bank {
 public:
  using address = std::byte*;
  static constexpr bool concurrent = true;

  dispatch_bank() noexcept : functions_(detail::dispatch_table(0)) {}

  /// Chooses the instruction set: `arch` when given, else what the environment variable PQATTN_ARCH names, else the
  /// best this processor runs. Errors (`result` unchanged): invalid_argument for a name the library does not have, with
  /// the number of names it has; unsupported when the processor lacks it, with the best level it runs and the level
  /// asked for (see dispatch_arch).
  static status make(dispatch_bank& result, const char* arch = nullptr, const host_options& options = {},
                     const memory_resource& memory = {}) noexcept;

  [[nodiscard]] const char* name() const noexcept { return "host"; }
  [[nodiscard]] const char* arch_name() const noexcept { return functions_->arch; }

  // Memory
  status reserve(std::size_t bytes, address& place) const {
    auto* got = static_cast<std::byte*>(bytes == 0 ? nullptr : memory_.allocate(memory_.self, bytes));
    if (bytes != 0 && got == nullptr) {
      return failure(status_code::out_of_memory, "dispatch_bank memory", "refused an allocation", bytes, 0);
    }
    place = got;
    return {};
  }
  void release(address place, std::size_t bytes) const noexcept {
    if (place != nullptr) {
      memory_.deallocate(memory_.self, place, bytes);
    }
  }

  // Layout
  [[nodiscard]] std::size_t codebook_bytes(const geometry& shape, codebook_storage storage) const noexcept {
    return functions_->codebook_bytes(shape, storage);
  }
  [[nodiscard]] std::size_t code_block_bytes(const geometry& shape) const noexcept {
    return functions_->code_block_bytes(shape);
  }
  status store_codebook(const codebook_view& book, const resident_codebook<address>& resident) const noexcept {
    return functions_->store_codebook(book, resident);
  }
  status load_codebook(const resident_codebook<address>& resident, float* centroids) const noexcept {
    return functions_->load_codebook(resident, centroids);
  }
  status store_codes(const code_span<address>& codes, slot_range slots, const std::uint16_t* in) const noexcept {
    return functions_->store_codes(codes, slots, in);
  }
  status load_codes(const code_span<address>& codes, slot_range slots, std::uint16_t* out) const noexcept {
    return functions_->load_codes(codes, slots, out);
  }

  // Training
  [[nodiscard]] std::size_t point_bytes(std::size_t count, std::uint32_t width) const noexcept {
    return functions_->point_bytes(count, width);
  }
  status store_points(const float* values, std::size_t count, std::uint32_t width, address points) const noexcept {
    return functions_->store_points(values, count, width, points);
  }
  status assign(address points, std::size_t count, std::uint32_t width, const float* centroids,
                std::uint32_t centroid_count, std::uint16_t* codes, float* distances) const noexcept {
    return functions_->assign(points, count, width, centroids, centroid_count, codes, distances);
  }
  status centroid_sums(address points, std::size_t count, std::uint32_t width, const float* weights,
                       const std::uint16_t* codes, std::uint32_t centroid_count, double* sums,
                       double* mass) const noexcept {
    return functions_->centroid_sums(points, count, width, weights, codes, centroid_count, sums, mass);
  }

  // Coding
  status encode(const rows_view& rows, const resident_codebook<address>& book, const code_span<address>& codes,
                slot_range slots) const noexcept {
    return functions_->encode(rows, book, codes, slots);
  }
  status decode(const resident_codebook<address>& book, const code_span<address>& codes, slot_range slots,
                const rows_ref& decoded) const noexcept {
    return functions_->decode(book, codes, slots, decoded);
  }

  // Attention over codes
  [[nodiscard]] std::size_t table_bytes(const geometry& shape, std::size_t rows, const rope& rotation) const noexcept {
    return functions_->table_bytes(options_, shape, rows, rotation);
  }
  status prepare_scores(const query_rows& queries, const resident_codebook<address>& book, const rope& rotation,
                        address tables, const upcoming<address>& next = {}) const noexcept {
    return functions_->prepare_scores(options_, queries, book, rotation, tables, next);
  }
  status score(address tables, std::size_t rows, const resident_codebook<address>& book, const rope& rotation,
               const slot_positions& positions, const code_span<address>& codes, slot_range slots,
               const score_tile& tile, const upcoming<address>& next = {}) const noexcept {
    return functions_->score(options_, tables, rows, book, rotation, positions, codes, slots, tile, next);
  }
  status softmax_part(const score_tile& tile, std::size_t count, const softmax_state& state) const noexcept {
    return functions_->softmax_part(tile, count, state);
  }
  status accumulate_values(const score_tile& tile, const resident_codebook<address>& book,
                           const code_span<address>& codes, slot_range slots, const value_options& options, float* out,
                           std::size_t stride, const upcoming<address>& next = {}) const noexcept {
    return functions_->accumulate_values(options_, tile, book, codes, slots, options, out, stride, next);
  }

  // Attention over exact rows
  status score_rows(const query_rows& queries, const rows_view& rows, const score_tile& tile) const noexcept {
    return functions_->score_rows(queries, rows, tile);
  }
  status accumulate_rows(const score_tile& tile, const rows_view& rows, float* out, std::size_t stride) const noexcept {
    return functions_->accumulate_rows(tile, rows, out, stride);
  }

 private:
  const detail::host_functions* functions_;
  memory_resource memory_;
  host_options options_;
};

static_assert(bank_policy<dispatch_bank> && bank_reads_ahead<dispatch_bank>);

}  // namespace v0
}  // namespace pqattn
