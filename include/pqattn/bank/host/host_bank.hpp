// SPDX-License-Identifier: MIT
// The first bank: the host's SIMD units over ordinary memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../../core/memory.hpp"
#include "../bank.hpp"
#include "encode_rows.hpp"
#include "exact.hpp"
#include "host_options.hpp"
#include "isa.hpp"
#include "nearest.hpp"
#include "rotary_score.hpp"
#include "score.hpp"
#include "softmax.hpp"
#include "values.hpp"
#include "x86_programs.hpp"

namespace pqattn {
inline namespace v0 {

/// Host bank. Addresses are pointers aligned to 64 bytes: level-0 callers may pass memory of their own wherever an
/// address is asked for; reserve() uses the memory_resource given at construction. All programs are const, keep no
/// state and may run concurrently; they use up to 128 KB of stack. `Isa` is a tag of bank/host/isa.hpp. Codebooks
/// stored as bytes (codebook_storage::i8) get the fast kernels where the instruction set has them; see host_options.
template <class Isa = isa::native>
class host_bank {
 public:
  using address = std::byte*;
  static constexpr bool concurrent = true;

  host_bank() = default;
  explicit host_bank(const memory_resource& memory, const host_options& options = {}) noexcept
      : memory_(memory), options_(options) {}
  explicit host_bank(const host_options& options) noexcept : options_(options) {}

  [[nodiscard]] const char* name() const noexcept { return "host"; }
  [[nodiscard]] const char* arch_name() const noexcept { return detail::isa_traits<Isa>::name; }

  // Memory
  status reserve(std::size_t bytes, address& place) const {
    auto* got = static_cast<std::byte*>(bytes == 0 ? nullptr : memory_.allocate(memory_.self, bytes));
    if (bytes != 0 && got == nullptr) {
      return failure(status_code::out_of_memory, "host_bank memory", "refused an allocation", bytes, 0);
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
    return detail::host_codebook{resident_codebook<address>{shape, storage, nullptr}}.bytes();
  }
  [[nodiscard]] std::size_t code_block_bytes(const geometry& shape) const noexcept {
    return detail::host_block_bytes(shape);
  }
  status store_codebook(const codebook_view& book, const resident_codebook<address>& resident) const noexcept {
    return detail::store_planes(book, resident);
  }
  status load_codebook(const resident_codebook<address>& resident, float* centroids) const noexcept {
    detail::load_planes(resident, centroids);
    return {};
  }
  status store_codes(const code_span<address>& codes, slot_range slots, const std::uint16_t* in) const noexcept {
    const std::uint32_t groups = codes.shape.groups();
    for (std::size_t i = 0; i < slots.count; ++i) {
      put_slot(codes, slots.first + i, in + i * groups);
    }
    return {};
  }
  status load_codes(const code_span<address>& codes, slot_range slots, std::uint16_t* out) const noexcept {
    const std::uint32_t groups = codes.shape.groups();
    for (std::size_t i = 0; i < slots.count; ++i) {
      get_slot(codes, slots.first + i, out + i * groups);
    }
    return {};
  }

  // Training
  [[nodiscard]] std::size_t point_bytes(std::size_t count, std::uint32_t width) const noexcept {
    return detail::point_stride(count) * width * sizeof(float);
  }
  status store_points(const float* values, std::size_t count, std::uint32_t width, address points) const noexcept {
    const std::size_t stride = detail::point_stride(count);
    auto* target = reinterpret_cast<float*>(points);
    for (std::uint32_t c = 0; c < width; ++c) {
      for (std::size_t i = 0; i < stride; ++i) {
        target[c * stride + i] = i < count ? values[i * width + c] : 0.0f;
      }
    }
    return {};
  }
  status assign(address points, std::size_t count, std::uint32_t width, const float* centroids,
                std::uint32_t centroid_count, std::uint16_t* codes, float* distances) const noexcept {
    const detail::point_block block = as_points(points, count);
    if constexpr (fast::available) {
      fast::assign(block.values, block.stride, count, width, centroids, centroid_count, codes, distances);
    } else {
      detail::assign_points<Isa>(block, count, width, centroids, centroid_count, codes, distances);
    }
    return {};
  }
  status centroid_sums(address points, std::size_t count, std::uint32_t width, const float* weights,
                       const std::uint16_t* codes, std::uint32_t centroid_count, double* sums,
                       double* mass) const noexcept {
    const detail::point_block block = as_points(points, count);
    for (std::size_t i = 0; i < std::size_t{centroid_count} * width; ++i) {
      sums[i] = 0.0;
    }
    for (std::uint32_t k = 0; k < centroid_count; ++k) {
      mass[k] = 0.0;
    }
    if constexpr (fast::available) {
      fast::add_points(block.values, block.stride, count, width, weights, codes, sums, mass);
      return {};
    }
    for (std::size_t i = 0; i < count; ++i) {
      const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[i]);
      double* sum = sums + std::size_t{codes[i]} * width;
      for (std::uint32_t c = 0; c < width; ++c) {
        sum[c] += weight * static_cast<double>(block.values[c * block.stride + i]);
      }
      mass[codes[i]] += weight;
    }
    return {};
  }

  // Coding
  status encode(const rows_view& rows, const resident_codebook<address>& book, const code_span<address>& codes,
                slot_range slots) const noexcept {
    std::size_t done = 0;
    if constexpr (fast::available) {
      if (book.shape.dim <= widest_tile && fast::codes_rows(book.shape, book.storage)) {
        while (slots.count - done >= fast::fewest_rows) {
          const std::size_t left = slots.count - done;
          const std::size_t count = left < fast::most_rows ? left : fast::most_rows;
          encode_tile(rows, done, count, book, codes, slots.first + done);
          done += count;
        }
      }
    }
    for (; slots.count - done >= 2; done += 2) {
      encode_some<2>(rows, done, book, codes, slots.first + done);
    }
    if (done < slots.count) {
      encode_some<1>(rows, done, book, codes, slots.first + done);
    }
    return {};
  }
  status decode(const resident_codebook<address>& book, const code_span<address>& codes, slot_range slots,
                const rows_ref& decoded) const noexcept {
    const detail::host_codebook planes{book};
    const geometry& shape = book.shape;
    float row[max_dim];
    std::uint16_t row_codes[max_dim * max_stages];
    for (std::size_t i = 0; i < slots.count; ++i) {
      get_slot(codes, slots.first + i, row_codes);
      for (std::uint32_t group = 0; group < shape.groups(); ++group) {
        for (std::uint32_t c = 0; c < shape.width(group); ++c) {
          const float value = planes.entry(planes.plane_of(group, c), row_codes[group]);
          float& target = row[shape.channel(shape.first_channel(group) + c)];
          target = group < shape.subvectors ? value : target + value;
        }
      }
      store_row(decoded, i, row);
    }
    return {};
  }

  // Attention over codes
  [[nodiscard]] std::size_t table_bytes(const geometry& shape, std::size_t rows, const rope& rotation) const noexcept {
    std::size_t fast_bytes = 0;
    if constexpr (fast::available) {
      if (fast::serves_scores(shape, codebook_storage::i8, rotation, options_.scores)) {
        fast_bytes = fast::table_bytes(shape, rows, rotation, options_.scores);
      }
    }
    const std::size_t portable_bytes =
        sizeof(float) * (rotation.enabled() ? detail::rotary_table_floats(shape, rows, rotation)
                                            : detail::score_table_floats(shape, rows));
    return fast_bytes > portable_bytes ? fast_bytes : portable_bytes;
  }
  status prepare_scores(const query_rows& queries, const resident_codebook<address>& book, const rope& rotation,
                        address tables, [[maybe_unused]] const upcoming<address>& next = {}) const noexcept {
    if constexpr (fast::available) {
      if (fast::serves_scores(book.shape, book.storage, rotation, options_.scores)) {
        if (rotation.enabled()) {
          fast::prepare_rotary(queries, book, rotation, options_.scores, tables);
        } else {
          fast::prepare_tables(queries, book, options_.scores, tables, next);
        }
        return {};
      }
    }
    auto* floats = reinterpret_cast<float*>(tables);
    if (rotation.enabled()) {
      detail::prepare_rotary<Isa>(queries, book.shape, rotation, floats);
    } else {
      detail::build_score_tables<Isa>(queries, detail::host_codebook{book}, floats);
    }
    return {};
  }
  status score(address tables, std::size_t rows, const resident_codebook<address>& book, const rope& rotation,
               const slot_positions& positions, const code_span<address>& codes, slot_range slots,
               const score_tile& tile, [[maybe_unused]] const upcoming<address>& next = {}) const noexcept {
    if constexpr (fast::available) {
      if (fast::serves_scores(book.shape, book.storage, rotation, options_.scores)) {
        if (rotation.enabled()) {
          fast::score_rotary(tables, book, rotation, options_.scores, positions, codes, slots, tile, next);
        } else {
          fast::score_tables(tables, options_.scores, codes, slots, tile, next);
        }
        return {};
      }
    }
    const auto* floats = reinterpret_cast<const float*>(tables);
    if (rotation.enabled()) {
      detail::score_rotary<Isa>(floats, detail::host_codebook{book}, rotation, positions, codes, slots, tile);
    } else {
      detail::score_by_tables<Isa>(floats, rows, codes, slots, tile);
    }
    return {};
  }
  status softmax_part(const score_tile& tile, std::size_t count, const softmax_state& state) const noexcept {
    if constexpr (fast::available) {
      fast::softmax(tile, count, state);
    } else {
      for (std::size_t row = 0; row < tile.rows; ++row) {
        detail::softmax_row<Isa>(tile.row(row), count, state.maximum[row], state.sum[row], state.rescale[row]);
      }
    }
    return {};
  }
  status accumulate_values(const score_tile& tile, const resident_codebook<address>& book,
                           const code_span<address>& codes, slot_range slots, const value_options& options, float* out,
                           std::size_t stride, [[maybe_unused]] const upcoming<address>& next = {}) const noexcept {
    if constexpr (fast::available) {
      if (options_.rounded_values && options.method != value_method::histogram &&
          fast::accumulate_values(tile, book, codes, slots, options, out, stride, next)) {
        return {};
      }
    }
    std::uint64_t skipped[max_tile_blocks / 64] = {};
    const std::size_t blocks = blocks_for(slots.count);
    if (options.skip_mass != nullptr) {
      const std::size_t count = detail::choose_skipped<Isa>(tile, blocks, options.skip_mass, skipped);
      if (options.skipped != nullptr) {
        *options.skipped += count;
      }
    }
    const bool histogram =
        options.method == value_method::histogram && book.shape.code_limit() <= detail::max_histogram_entries;
    const detail::host_codebook planes{book};
    if (histogram) {
      detail::add_values_by_histogram<Isa>(tile, planes, codes, slots, skipped, out, stride);
    } else {
      detail::add_values_reconstructed<Isa>(tile, planes, codes, slots, skipped, out, stride);
    }
    return {};
  }

  // Attention over exact rows
  status score_rows(const query_rows& queries, const rows_view& rows, const score_tile& tile) const noexcept {
    if constexpr (fast::available) {
      if (fast::score_rows(queries, rows, tile)) {
        return {};
      }
    }
    detail::score_exact<Isa>(queries, rows, tile);
    return {};
  }
  status accumulate_rows(const score_tile& tile, const rows_view& rows, float* out, std::size_t stride) const noexcept {
    if constexpr (fast::available) {
      if (fast::accumulate_rows(tile, rows, out, stride)) {
        return {};
      }
    }
    detail::add_values_exact<Isa>(tile, rows, out, stride);
    return {};
  }

 private:
  using fast = detail::x86_programs<Isa>;

  static detail::point_block as_points(address points, std::size_t count) noexcept {
    return {reinterpret_cast<const float*>(points), detail::point_stride(count)};
  }
  /// Codes Rows rows together, which shares what is read of the codebook.
  template <std::size_t Rows>
  static void encode_some(const rows_view& rows, std::size_t first, const resident_codebook<address>& book,
                          const code_span<address>& codes, std::size_t slot) noexcept {
    alignas(64) float loaded[Rows * max_dim];
    alignas(64) float ordered[Rows * max_dim];
    std::uint16_t row_codes[Rows * max_dim * max_stages];
    const float* source = rows.row_stride >= 0 ? floats_at(rows, first) : nullptr;
    auto stride = static_cast<std::size_t>(rows.row_stride);
    if (source == nullptr) {
      for (std::size_t row = 0; row < Rows; ++row) {
        load_row(rows, first + row, loaded + row * book.shape.dim);
      }
      source = loaded;
      stride = book.shape.dim;
    }
    detail::encode_rows<Isa, Rows>(detail::host_codebook{book}, source, stride, ordered, row_codes);
    for (std::size_t row = 0; row < Rows; ++row) {
      put_slot(codes, slot + row, row_codes + row * book.shape.groups());
    }
  }
  /// The widest rows of which a tile fits the stack.
  static constexpr std::size_t widest_tile = 256;
  /// Codes `count` rows, at most fast::most_rows, with a row in every lane.
  static PQATTN_NOINLINE void encode_tile(const rows_view& rows, std::size_t first, std::size_t count,
                                          const resident_codebook<address>& book, const code_span<address>& codes,
                                          std::size_t slot) noexcept {
    const geometry& shape = book.shape;
    alignas(64) float values[widest_tile * fast::most_rows];
    float row[widest_tile];
    std::uint16_t row_codes[fast::most_rows * widest_tile / 2];
    for (std::size_t i = 0; i < count; ++i) {
      load_row(rows, first + i, row);
      for (std::uint32_t position = 0; position < shape.dim; ++position) {
        values[position * fast::most_rows + i] = row[shape.channel(position)];
      }
    }
    for (std::uint32_t position = 0; position < shape.dim; ++position) {
      std::fill_n(values + position * fast::most_rows + count, fast::most_rows - count, 0.0f);
    }
    fast::nearest_of_rows(detail::host_codebook{book}, values, count, row_codes);
    for (std::size_t i = 0; i < count; ++i) {
      put_slot(codes, slot + i, row_codes + i * shape.groups());
    }
  }
  static void put_slot(const code_span<address>& codes, std::size_t slot, const std::uint16_t* row) noexcept {
    const auto put = [&](auto bits) noexcept {
      std::byte* at = detail::group_codes(codes, slot / block_tokens, 0);
      for (std::uint32_t group = 0; group < codes.shape.groups(); ++group, at += detail::group_bytes(bits)) {
        detail::put_code<Isa>(at, bits, slot % block_tokens, row[group]);
      }
    };
    const std::uint32_t bits = codes.shape.code_bits();
    if (bits == 8) {
      put(std::integral_constant<std::uint32_t, 8>{});  // the usual width: one store a group
    } else {
      put(bits);
    }
  }
  static void get_slot(const code_span<address>& codes, std::size_t slot, std::uint16_t* row) noexcept {
    for (std::uint32_t group = 0; group < codes.shape.groups(); ++group) {
      row[group] = static_cast<std::uint16_t>(detail::get_code(detail::group_codes(codes, slot / block_tokens, group),
                                                               codes.shape.code_bits(), slot % block_tokens));
    }
  }

  memory_resource memory_;
  host_options options_;
};

static_assert(bank_policy<host_bank<>> && bank_reads_ahead<host_bank<>>);

}  // namespace v0
}  // namespace pqattn
