// SPDX-License-Identifier: MIT
// Which x86 kernels serve which bank program. Each function returns false, having done nothing, when no kernel
// applies: other instruction sets, codebooks that are not bytes, codes too wide for look-ups in registers, or scratch
// that would not fit the stack. The portable program then runs; a test holds the two equal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../../core/memory.hpp"
#include "../bank.hpp"
#include "code_block.hpp"
#include "host_options.hpp"
#include "isa.hpp"
#include "resident.hpp"
#include "x86/exact_rows.hpp"
#include "x86/nearest.hpp"
#include "x86/nearest_bytes.hpp"
#include "x86/nearest_rows.hpp"
#include "x86/rotary_score.hpp"
#include "x86/softmax.hpp"
#include "x86/table_score.hpp"
#include "x86/value_sum.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {

/// Instruction sets without kernels of their own.
template <class Isa>
struct x86_programs {
  static constexpr bool available = false;
};

#if PQATTN_X86_AVX2

/// Programs written with the operations `Ops` (x86/isa.hpp).
template <class Ops>
struct x86_kernels {
  static constexpr bool available = true;
  using codebook = resident_codebook<std::byte*>;
  using span = code_span<std::byte*>;

  /// Scratch on the stack: programs run on the caller's threads and may not allocate.
  static constexpr std::size_t stack_bytes = std::size_t{96} * 1024;
  /// Query rows served by one pass over the codes. Keys before RoPE and values are decoded once per pass, which pays
  /// for more rows; tables gain nothing from more.
  static constexpr std::size_t rows_at_once = 8;
  static constexpr std::size_t most_decoded_rows = 32;

  [[nodiscard]] static bool serves(const geometry& shape, codebook_storage storage) noexcept {
    return storage == codebook_storage::i8 && shape.code_bits() <= x86::widest_code<Ops>;
  }
  [[nodiscard]] static bool serves_scores(const geometry& shape, codebook_storage storage, const rope& rotation,
                                          score_precision precision) noexcept {
    return serves(shape, storage) && precision != score_precision::f32 &&
           (!rotation.enabled() || with_rotary_kernel(shape, precision, [&]<class Kernel>() noexcept {
             return rotary_rows<Kernel>(shape, rotation, 1) != 0;
           }));
  }
  /// Rows of one pass: a power of two whose scratch fits the stack, no more than needed; 0 when none fits.
  template <class Kernel>
  [[nodiscard]] static std::size_t rotary_rows(const geometry& shape, const rope& rotation, std::size_t rows) noexcept {
    std::size_t at_once = most_decoded_rows;
    while (at_once != 0 && ((at_once > 1 && at_once / 2 >= rows) ||
                            x86::rotary_scratch_bytes<Kernel>(shape, rotation, at_once) > stack_bytes)) {
      at_once /= 2;
    }
    return at_once;
  }
  /// Whether keys before RoPE take 8-bit kernels. Codes of more than 4 bits per channel or with residual stages lose
  /// too little for these to stay far below that.
  [[nodiscard]] static bool narrow(const geometry& shape, score_precision precision) noexcept {
    return precision == score_precision::bytes && shape.stages == 1 &&
           shape.subvectors * shape.code_bits() <= 4 * shape.dim;
  }
  /// Calls body<Kernel>() with the rotary kernel of a precision.
  template <class Body>
  static decltype(auto) with_rotary_kernel(const geometry& shape, score_precision precision,
                                           const Body& body) noexcept {
    return narrow(shape, precision) ? body.template operator()<x86::rotary_narrow<Ops>>()
                                    : body.template operator()<x86::rotary_words<Ops>>();
  }

  [[nodiscard]] static x86::byte_codebook bytes_of(const codebook& book) noexcept {
    const host_codebook planes{book};
    return {reinterpret_cast<const std::int8_t*>(book.memory), planes.scales(), planes.offsets()};
  }
  [[nodiscard]] static x86::slot_run run_of(const span& codes, slot_range slots) noexcept {
    return {reinterpret_cast<const std::uint8_t*>(codes.memory), codes.pages, host_block_bytes(codes.shape),
            slots.first, slots.count};
  }
  static_assert(max_tile_blocks <= x86::most_value_blocks);  // so that known sums are those of a call
  using hint = upcoming<std::byte*>;
  /// What is fetched during the first pass of a program; later passes have nothing left.
  [[nodiscard]] static x86::fetch_queue queue_of(const hint& next, std::size_t first = 0) noexcept {
    if (first != 0 || (next.book.memory == nullptr && next.codes.memory == nullptr)) {
      return {};
    }
    const slot_range slots = next.codes.memory == nullptr ? slot_range{} : next.slots;
    return {reinterpret_cast<const std::uint8_t*>(next.book.memory),
            next.book.memory == nullptr ? 0 : host_codebook{next.book}.bytes(), run_of(next.codes, slots)};
  }
  [[nodiscard]] static x86::table_precision width_of(score_precision precision) noexcept {
    return precision == score_precision::words ? x86::table_precision::words : x86::table_precision::bytes;
  }

  // --- scores after RoPE or without it: rounded tables, then scratch that only building them needs ---

  [[nodiscard]] static std::size_t table_bytes(const geometry& shape, std::size_t rows, const rope& rotation,
                                               score_precision precision) noexcept {
    if (rotation.enabled()) {
      std::size_t bytes = with_rotary_kernel(
          shape, precision, [&]<class Kernel>() noexcept { return rotary_bytes_of<Kernel>(shape, rotation, rows); });
      // What fewer rows need fits too: callers size tables for the most rows they will ask for, before a shape is
      // checked.
      if constexpr (has_phases) {
        const std::size_t few = rows < phases::most_rows ? rows : phases::most_rows;
        if (check_geometry(shape) && 2 * std::uint64_t{rotation.pairs} <= shape.dim &&
            suits_phases(shape, rotation, few, precision)) {
          const std::size_t by_phase = rotary_bytes_of<phases>(shape, rotation, few);
          bytes = bytes < by_phase ? by_phase : bytes;
        }
      }
      return rotary_header + bytes;
    }
    return align_up(x86::score_table_bytes(shape, rows_at_once, width_of(precision))) *
               row_batches(rows, rows_at_once) +
           x86::score_table_scratch_bytes(shape);
  }

  static void prepare_tables(const query_rows& queries, const codebook& book, score_precision precision,
                             std::byte* memory, const hint& next) noexcept {
    const std::size_t step = align_up(x86::score_table_bytes(book.shape, rows_at_once, width_of(precision)));
    std::byte* scratch = memory + step * row_batches(queries.rows, rows_at_once);
    for_each_batch(queries.rows, rows_at_once, [&](std::size_t first, std::size_t rows) {
      x86::build_score_tables<Ops>(book.shape, bytes_of(book), queries.row(first), rows, queries.stride,
                                   width_of(precision), memory + first / rows_at_once * step, scratch,
                                   queue_of(next, first));
    });
  }

  static void score_tables(const std::byte* memory, score_precision precision, const span& codes, slot_range slots,
                           const score_tile& tile, const hint& next) noexcept {
    const std::size_t step = align_up(x86::score_table_bytes(codes.shape, rows_at_once, width_of(precision)));
    for_each_batch(tile.rows, rows_at_once, [&](std::size_t first, std::size_t rows) {
      const x86::score_tables tables =
          x86::score_tables_at(codes.shape, rows, width_of(precision), memory + first / rows_at_once * step);
      x86::table_score<Ops>(codes.shape, tables, run_of(codes, slots), tile.row(first), tile.stride,
                            queue_of(next, first), next.unannounced);
    });
  }

  // --- scores of keys coded before RoPE: the codebook by pairs, the turn table of a block, the queries by pairs ---

  struct rotary_places {
    std::size_t turns;    ///< byte offset; the book lies at 0
    std::size_t queries;  ///< byte offset
    std::size_t query_step;
    std::size_t at_once;  ///< rows of one pass
  };
  template <class Kernel>
  [[nodiscard]] static rotary_places places_of(const geometry& shape, const rope& rotation, std::size_t rows) noexcept {
    rotary_places at{};
    at.turns = align_up(x86::rotary_book_bytes(shape, rotation));
    at.queries = at.turns + align_up(Kernel::table_bytes_for(rotation.pairs));
    at.at_once = rotary_rows<Kernel>(shape, rotation, rows);
    at.query_step = align_up(x86::rotary_query_bytes<Kernel>(x86::detail::rotary_pairs(shape, rotation), at.at_once));
    return at;
  }
  template <class Kernel>
  [[nodiscard]] static std::size_t rotary_bytes_of(const geometry& shape, const rope& rotation,
                                                   std::size_t rows) noexcept {
    const rotary_places at = places_of<Kernel>(shape, rotation, rows);
    return at.queries + row_batches(rows, at.at_once) * at.query_step;
  }

  /// The 8-bit kernel by phases, for few rows where pairs are within sub-vectors. Whether it can serve these:
  using phases = x86::rotary_few<Ops>;
  static constexpr bool has_phases = phases::by_phase;
  [[nodiscard]] static bool suits_phases(const geometry& shape, const rope& rotation, std::size_t rows,
                                         score_precision precision) noexcept {
    if constexpr (has_phases) {
      return narrow(shape, precision) && rows <= phases::most_rows && rotary_rows<phases>(shape, rotation, rows) != 0 &&
             x86::pairs_share_codes(shape, rotation);
    }
    return false;
  }
  /// Variance that rounded phases may add to a score, in squared nats, by phase_noise; beyond it keys are turned by
  /// components.
  static constexpr float most_phase_noise = 0.1f;
  /// In front of prepared tables: whether they are the kernel by phases'.
  static constexpr std::size_t rotary_header = 64;

  /// Whether store_codebook rounded the book for this rotation.
  [[nodiscard]] static bool stored_by_pairs(const codebook& book, const rope& rotation) noexcept {
    return book.rotation.pairs == rotation.pairs && book.rotation.pairing == rotation.pairing;
  }
  /// Kernels of raised tables keep their own copy, the others read the resident one if they can.
  template <class Kernel>
  [[nodiscard]] static x86::rotary_book rotary_book_of(const codebook& book, const rope& rotation,
                                                       const std::byte* memory) noexcept {
    const bool in_place = !Kernel::raised_tables && !Kernel::by_phase && stored_by_pairs(book, rotation);
    return x86::rotary_book_at(book.shape, rotation, memory, in_place ? bytes_of(book).bytes : nullptr);
  }

  /// Prepares queries for a kernel, unless it is by_phase and its noise would be too large.
  template <class Kernel>
  [[nodiscard]] static bool prepare_rotary_for(const query_rows& queries, const codebook& book, const rope& rotation,
                                               std::byte* memory) noexcept {
    const rotary_places at = places_of<Kernel>(book.shape, rotation, queries.rows);
    const bool by_pairs = stored_by_pairs(book, rotation);
    if (by_pairs) {
      x86::list_rotary_pairs(book.shape, rotation, bytes_of(book), memory);
    } else {
      x86::build_rotary_book<Ops>(book.shape, rotation, bytes_of(book), memory);
    }
    const x86::rotary_book pairs = rotary_book_of<Kernel>(book, rotation, memory);
    float noise = 0.0f;
    for_each_batch(queries.rows, at.at_once, [&](std::size_t first, std::size_t rows) {
      std::byte* place = memory + at.queries + first / at.at_once * at.query_step;
      x86::prepare_rotary_queries<Kernel>(pairs, queries.row(first), rows, queries.stride, place);
      if constexpr (Kernel::by_phase) {
        const float more = x86::phase_noise<Kernel>(x86::rotary_queries_at(pairs.count, rows, place));
        noise = more > noise ? more : noise;
      }
    });
    if (!(noise <= most_phase_noise)) {
      return false;
    }
    if constexpr (Kernel::row_bytes != 0) {
      for_each_batch(queries.rows, at.at_once, [&](std::size_t first, std::size_t rows) {
        std::byte* place = memory + at.queries + first / at.at_once * at.query_step;
        x86::fill_row_tables<Kernel>(x86::rotary_queries_at(pairs.count, rows, place));
      });
    }
    x86::finish_rotary_book<Kernel>(book.shape, rotation, by_pairs ? bytes_of(book).bytes : nullptr, memory);
    x86::fill_turns<Kernel>(rotation, nullptr, memory + at.turns);
    return true;
  }

  static void prepare_rotary(const query_rows& queries, const codebook& book, const rope& rotation,
                             score_precision precision, std::byte* memory) noexcept {
    std::byte* tables = memory + rotary_header;
    if constexpr (has_phases) {
      if (suits_phases(book.shape, rotation, queries.rows, precision) &&
          prepare_rotary_for<phases>(queries, book, rotation, tables)) {
        *memory = std::byte{1};
        return;
      }
    }
    *memory = std::byte{0};
    with_rotary_kernel(book.shape, precision, [&]<class Kernel>() noexcept {
      static_cast<void>(prepare_rotary_for<Kernel>(queries, book, rotation, tables));
    });
  }

  /// Calls body<Kernel>() with the kernel that tables were prepared for.
  template <class Body>
  static void with_prepared_kernel(const std::byte* memory, const geometry& shape, score_precision precision,
                                   const Body& body) noexcept {
    if constexpr (has_phases) {
      if (*memory == std::byte{1}) {
        body.template operator()<phases>();
        return;
      }
    }
    with_rotary_kernel(shape, precision, body);
  }

  static void score_rotary(const std::byte* memory, const codebook& book, const rope& rotation,
                           score_precision precision, const slot_positions& positions, const span& codes,
                           slot_range slots, const score_tile& tile, const hint& next) noexcept {
    alignas(64) std::byte scratch[stack_bytes];
    const std::byte* tables = memory + rotary_header;
    with_prepared_kernel(memory, book.shape, precision, [&]<class Kernel>() noexcept {
      const rotary_places at = places_of<Kernel>(codes.shape, rotation, tile.rows);
      const x86::rotary_book pairs = rotary_book_of<Kernel>(book, rotation, tables);
      for_each_batch(tile.rows, at.at_once, [&](std::size_t first, std::size_t rows) {
        const x86::rotary_queries queries =
            x86::rotary_queries_at(pairs.count, rows, tables + at.queries + first / at.at_once * at.query_step);
        x86::rotary_score<Kernel>(pairs, rotation, tables + at.turns, queries, run_of(codes, slots), positions,
                                  tile.row(first), tile.stride, scratch, queue_of(next, first));
      });
    });
  }

  // --- values ---

  static bool accumulate_values(const score_tile& tile, const codebook& book, const span& codes, slot_range slots,
                                const value_options& options, float* out, std::size_t stride,
                                const hint& next) noexcept {
    alignas(64) std::byte scratch[stack_bytes];
    std::size_t at_once = most_decoded_rows;
    while (at_once > 1 && x86::value_scratch_bytes<Ops>(book.shape, at_once) > stack_bytes) {
      at_once /= 2;
    }
    if (!serves(book.shape, book.storage) || x86::value_scratch_bytes<Ops>(book.shape, at_once) > stack_bytes) {
      return false;
    }
    std::size_t skipped_by_all = blocks_for(slots.count);
    for (std::size_t first = 0; first < tile.rows; first += at_once) {
      const std::size_t rows = tile.rows - first < at_once ? tile.rows - first : at_once;
      std::size_t skipped = 0;
      x86::value_sum<Ops>(book.shape, bytes_of(book), run_of(codes, slots), tile.row(first), tile.stride, rows,
                          options.skip_mass == nullptr ? nullptr : options.skip_mass + first, out + first * stride,
                          stride, skipped, scratch, queue_of(next, first), sums_of(options.sums, first),
                          next.unannounced);
      skipped_by_all = skipped < skipped_by_all ? skipped : skipped_by_all;
    }
    if (options.skipped != nullptr && tile.rows != 0) {
      *options.skipped += skipped_by_all;
    }
    return true;
  }

  [[nodiscard]] static x86::known_sums sums_of(const probability_sums& sums, std::size_t first) noexcept {
    return sums.mass == nullptr ? x86::known_sums{}
                                : x86::known_sums{sums.mass + first, sums.energy + first, sums.largest + first};
  }

  // --- exact rows ---

  /// Calls body(rows of the view's element type), if their channels are contiguous and aligned for the type.
  template <class Body>
  static bool with_exact_rows(const rows_view& view, const Body& body) noexcept {
    if (view.col_stride != 1 || reinterpret_cast<std::uintptr_t>(view.data) % size_of(view.type) != 0) {
      return false;
    }
    const auto call = [&](const auto* data) {
      using element = std::remove_cv_t<std::remove_pointer_t<decltype(data)>>;
      body(x86::exact_rows<element>{data, view.rows, view.cols, view.row_stride});
    };
    switch (view.type) {
      case dtype::f32: call(static_cast<const float*>(view.data)); break;
      case dtype::f16: call(static_cast<const half*>(view.data)); break;
      case dtype::bf16: call(static_cast<const bfloat16*>(view.data)); break;
    }
    return true;
  }
  static bool score_rows(const query_rows& queries, const rows_view& rows, const score_tile& tile) noexcept {
    return with_exact_rows(rows, [&](const auto& exact) {
      x86::score_exact_rows<Ops>(exact, queries.data, queries.rows, queries.stride, tile.data, tile.stride);
    });
  }
  static bool accumulate_rows(const score_tile& tile, const rows_view& rows, float* out, std::size_t stride) noexcept {
    return with_exact_rows(rows, [&](const auto& exact) {
      x86::add_exact_rows<Ops>(exact, tile.data, tile.rows, tile.stride, out, stride);
    });
  }

  static void softmax(const score_tile& tile, std::size_t count, const softmax_state& state) noexcept {
    if (tile.rows == 0) {
      return;
    }
    x86::softmax_rows<Ops>(tile.data, tile.stride, tile.rows, count, masked_score, state.maximum, state.sum,
                           state.rescale, [&](std::size_t row, const x86::row_sums& sums) noexcept {
                             if (state.sums.mass != nullptr) {
                               state.sums.mass[row] = sums.mass;
                               state.sums.energy[row] = sums.energy;
                               state.sums.largest[row] = sums.largest;
                             }
                           });
  }

  // --- training and coding ---

  static void assign(const float* points, std::size_t stride, std::size_t count, std::size_t width,
                     const float* centroids, std::uint32_t centroid_count, std::uint16_t* codes,
                     float* distances) noexcept {
    x86::assign_points<Ops>(points, stride, count, width, centroids, centroid_count, codes, distances);
  }
  static void add_points(const float* points, std::size_t stride, std::size_t count, std::size_t width,
                         const float* weights, const std::uint16_t* codes, double* sums, double* mass) noexcept {
    x86::add_points(points, stride, count, width, weights, codes, sums, mass);
  }

  /// Whether nearest_of_rows() codes rows of such a codebook, and the fewest rows for which it is faster than two at a
  /// time.
  static constexpr std::size_t most_rows = x86::rows_of_search;
  static constexpr std::size_t fewest_rows = Ops::lanes;
  [[nodiscard]] static bool codes_rows(const geometry& shape, codebook_storage storage) noexcept {
    return storage == codebook_storage::i8 && x86::suits_row_search(shape);
  }
  /// Codes of `rows` rows, at most most_rows, channel-major in the order of codes, most_rows a channel.
  static void nearest_of_rows(const host_codebook& book, const float* values, std::size_t rows,
                              std::uint16_t* codes) noexcept {
    x86::nearest_of_rows<Ops>(planes_of(book), book.book.shape, values, rows, codes, book.book.shape.groups());
  }

  /// Nearest centroids of the sub-vectors of one stage, which lie one after the other in Rows rows from x on, in planes
  /// of any storage. `at` moves past the stage.
  template <std::size_t Rows>
  static void nearest(const host_codebook& book, group_walk& at, const float* x, std::size_t stride,
                      std::uint16_t* codes, std::size_t code_stride) noexcept {
    const std::size_t entries = plane_entries(book.book.shape);
    const auto in = [&](const auto& planes) {
      x86::nearest_centroids<Ops, Rows>(planes, book.book.shape, at, x, stride, codes, code_stride);
    };
    switch (book.book.storage) {
      case codebook_storage::f32:
        return in(x86::float_planes{reinterpret_cast<const float*>(book.book.memory), entries});
      case codebook_storage::f16: return in(x86::half_planes{reinterpret_cast<const half*>(book.book.memory), entries});
      case codebook_storage::i8: break;
    }
    const x86::byte_planes planes = planes_of(book);
#if PQATTN_X86_AVX512VBMI
    if constexpr (std::is_same_v<Ops, x86::avx512vbmi>) {
      if (x86::suits_integers(book.book.shape)) {
        const group_walk first = at;
        for (std::size_t row = 0; row < Rows; ++row) {
          at = first;
          x86::nearest_bytes<Ops>(planes, book.book.shape, at, x + row * stride, codes + row * code_stride);
        }
        return;
      }
    }
#endif
    in(planes);
  }

 private:
  [[nodiscard]] static x86::byte_planes planes_of(const host_codebook& book) noexcept {
    return {reinterpret_cast<const std::int8_t*>(book.book.memory), book.scales(), book.offsets(),
            plane_entries(book.book.shape)};
  }
  [[nodiscard]] static constexpr std::size_t row_batches(std::size_t rows, std::size_t at_once) noexcept {
    return (rows + at_once - 1) / at_once;
  }
  template <class Body>
  static void for_each_batch(std::size_t rows, std::size_t at_once, const Body& body) noexcept {
    for (std::size_t first = 0; first < rows; first += at_once) {
      body(first, rows - first < at_once ? rows - first : at_once);
    }
  }
};

template <>
struct x86_programs<isa::avx2> : x86_kernels<x86::avx2> {};
#if PQATTN_X86_AVX512BW
template <>
struct x86_programs<isa::avx512> : x86_kernels<x86::avx512bw> {};
#endif
#if PQATTN_X86_AVX512VBMI
template <>
struct x86_programs<isa::avx512vbmi> : x86_kernels<x86::avx512vbmi> {};
#endif

#endif  // PQATTN_X86_AVX2

}  // namespace detail
}  // namespace v0
}  // namespace pqattn
