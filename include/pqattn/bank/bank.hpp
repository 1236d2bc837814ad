// SPDX-License-Identifier: MIT
// The memory bank: a place that holds codes and can compute beside them.
//
// Every algorithm of the library is a template over a bank. A bank decides how codes, codebooks, tables and
// training points lie in its memory, which instructions (or DRAM commands) run a program, and what that costs;
// algorithms see none of it. Two banks ship: host_bank (bank/host) and the emulated PIM bank (bank/pim).
// docs/banks.md shows how a GPU or a remote memory would implement each program.
//
// What the compiler cannot check, and the conformance suite (tests/bank/conformance.hpp) does:
//  1. Codes: nearest centroid, ties by the lowest index. Two banks agree unless the two nearest centroids are
//     within rounding of each other.
//  2. Outputs of score, softmax and values stay within a normalized mean squared error of 5e-4 of the
//     double-precision reference.
//  3. Same arguments, same bits: no program depends on timing, on earlier calls or on how work was cut.
//  4. Programs touch only the slots they are asked for. Codes in other slots may be garbage, and a row whose
//     probability is 0 adds nothing even where it holds NaN.
//  5. No program allocates, throws, prints or starts a thread. reserve() may allocate.
//  6. If `concurrent` is true, programs that write different memory may run at the same time.
//  7. A failed call leaves the bank's memory as it was.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../core/status.hpp"
#include "../core/view.hpp"
#include "../quant/codebook.hpp"
#include "../quant/codebook_rounding.hpp"
#include "../quant/geometry.hpp"
#include "../quant/rope.hpp"

namespace pqattn {
inline namespace v0 {

/// Tokens of one code block: the unit of layout, paging and skipping, and one machine word of validity bits.
inline constexpr std::size_t block_tokens = 64;

/// Most blocks of one tile: attention programs are called with at most this many blocks at a time.
inline constexpr std::size_t max_tile_blocks = 64;

/// Blocks that cover `tokens` slots.
[[nodiscard]] constexpr std::size_t blocks_for(std::size_t tokens) noexcept {
  return tokens / block_tokens + (tokens % block_tokens != 0 ? 1 : 0);
}

/// A codebook in a bank's memory.
template <class Address>
struct resident_codebook {
  geometry shape;
  codebook_storage storage = codebook_storage::f32;
  Address memory{};  ///< Bank::codebook_bytes(shape, storage) bytes
  /// Of keys coded before RoPE: what score() will turn them by. Channels that turn together are then rounded alike (see
  /// scale_of_channel), so that a bank may turn the stored numbers as they are. Correct without it, but slower.
  rope rotation{};
};

/// Codes of consecutive logical slots in a bank's memory. Slot s lies in block s / block_tokens; logical block b
/// is the physical block pages[b] of the pool that starts at `memory` (b itself when pages is null), each
/// Bank::code_block_bytes(shape) long. Sequences that share a prefix share physical blocks.
template <class Address>
struct code_span {
  geometry shape;
  Address memory{};
  const std::uint32_t* pages = nullptr;  ///< in host memory, not owned

  [[nodiscard]] constexpr std::size_t page(std::size_t block) const noexcept {
    return pages == nullptr ? block : pages[block];
  }
};

/// Positions and mask columns of attention calls lie within this on either side of 0, so that no difference of two
/// overflows.
inline constexpr std::int64_t farthest_position = std::int64_t{1} << 61;

inline namespace PQATTN_ISA_UNIT {
/// Whether a position lies there.
[[nodiscard]] constexpr status check_reach(std::int64_t position, const char* subject) noexcept {
  return position >= -farthest_position && position <= farthest_position
             ? status{}
             : failure(status_code::invalid_argument, subject, "must be within 2^61 of 0", farthest_position, position);
}
}  // namespace PQATTN_ISA_UNIT

/// Position of each slot of a span: list[s], or base + s when there is no list.
struct slot_positions {
  std::int64_t base = 0;
  const std::int32_t* list = nullptr;

  [[nodiscard]] constexpr std::int64_t at(std::size_t slot) const noexcept {
    return list == nullptr ? base + static_cast<std::int64_t>(slot) : list[slot];
  }
  /// Whether slots [first, first + count) have consecutive positions.
  [[nodiscard]] constexpr bool consecutive(std::size_t first, std::size_t count) const noexcept {
    if (list != nullptr) {
      for (std::size_t i = 1; i < count; ++i) {
        if (list[first + i] != list[first] + static_cast<std::int64_t>(i)) {
          return false;
        }
      }
    }
    return true;
  }
};

/// Contiguous range of logical slots.
struct slot_range {
  std::size_t first = 0;
  std::size_t count = 0;
};

/// Query rows that read one KV head: the query heads of its group times the query tokens of the call.
/// f32, row r at data + r * stride; the softmax scale is already multiplied in.
struct query_rows {
  const float* data = nullptr;
  std::size_t rows = 0;
  std::size_t stride = 0;

  [[nodiscard]] const float* row(std::size_t index) const noexcept { return data + index * stride; }
};

/// Scores or probabilities of a tile: element (row, slot) at data + row * stride + (slot - range.first).
/// Programs over codes run on whole blocks: range.first is a multiple of block_tokens, data is aligned to 64
/// bytes, and each row has room for a whole number of blocks (stride is a multiple of block_tokens). Score programs
/// may write anything into the padding, softmax_part fills it with 0.
struct score_tile {
  float* data = nullptr;
  std::size_t rows = 0;
  std::size_t stride = 0;

  [[nodiscard]] float* row(std::size_t index) const noexcept { return data + index * stride; }
};

/// What the probabilities of a tile come to, per row.
struct probability_sums {
  float* mass = nullptr;     ///< their sum; unknown_mass in rows of which nothing is known
  float* energy = nullptr;   ///< the sum of their squares
  float* largest = nullptr;  ///< the largest one, give or take its rounding
};

/// Mass of a row whose sums nobody has written: values then find them themselves.
inline constexpr float unknown_mass = -1.0f;

/// Running softmax statistics of each query row, natural logarithm.
struct softmax_state {
  float* maximum = nullptr;  ///< largest score so far; masked_score before the first
  float* sum = nullptr;      ///< sum of exp(score - maximum) so far
  float* rescale = nullptr;  ///< written: exp(old maximum - new maximum), what earlier sums must be multiplied by
  /// Optional: a bank whose value program can use them writes them here. For value_options::sums of the same bank.
  probability_sums sums{};
};

/// The score of a masked slot: finite, so that -ffast-math cannot break it, and far below any real score.
inline constexpr float masked_score = -1.0e30f;

/// How the value program sums.
enum class value_method : std::uint8_t {
  automatic,    ///< the bank's choice
  reconstruct,  ///< decode each token's centroids and multiply by its probability
  histogram,    ///< add probabilities per code, then one small product with the codebook
};

/// Options of the value program.
struct value_options {
  value_method method = value_method::automatic;
  /// Optional, one per row: blocks may be left out while their probability mass adds up to at most this in every row.
  const float* skip_mass = nullptr;
  std::size_t* skipped = nullptr;  ///< optional: the number of blocks left out is added here
  probability_sums sums{};         ///< optional: what the bank's softmax_part wrote for the tile, for reading
};

/// What the caller of an attention program will have read next: a hint that a bank may use to fetch it meanwhile.
/// Results never depend on it. The memory exists as long as that of the program's other arguments.
template <class Address>
struct upcoming {
  resident_codebook<Address> book{};  ///< no memory: none
  code_span<Address> codes{};
  slot_range slots{};
  /// Whether most of what the program itself reads has been in no hint before, so that it may be far away.
  bool unannounced = false;
};

/// Who the bank is.
template <class Bank>
concept bank_identity = requires(const Bank& bank) {
  { bank.name() }
  noexcept->std::convertible_to<const char*>;  // e.g. "host"
  { bank.arch_name() }
  noexcept->std::convertible_to<const char*>;         // e.g. "avx512vbmi", "hbm3_attacc"
  { Bank::concurrent } -> std::convertible_to<bool>;  // see rule 6
};

/// What memory it has. An address is a small, trivially copyable, regular handle; a value-initialised one is "no
/// memory".
template <class Bank>
concept bank_memory = std::regular<typename Bank::address> && std::is_trivially_copyable_v<typename Bank::address> &&
    requires(Bank& bank, typename Bank::address& place, std::size_t bytes) {
  { bank.reserve(bytes, place) } -> std::same_as<status>;  // out_of_memory or capacity when it does not fit
  { bank.release(place, bytes) }
  noexcept;
};

/// Optional: banks with several homes (places that hold a KV head each and work side by side, such as the channels of
/// a device) are told where the memory of the next reserve() comes from. Any number is accepted.
template <class Bank>
concept bank_homes = requires(Bank& bank, std::uint32_t home) {
  { bank.select_home(home) }
  noexcept;
};

/// How things enter and leave. Codes cross as uint16, slot after slot, groups() each.
template <class Bank>
concept bank_layout = requires(Bank& bank, const geometry& shape, const codebook_view& book,
                               const resident_codebook<typename Bank::address>& resident,
                               const code_span<typename Bank::address>& codes, codebook_storage storage,
                               slot_range slots, const std::uint16_t* in, std::uint16_t* out, float* centroids) {
  { bank.codebook_bytes(shape, storage) }
  noexcept->std::same_as<std::size_t>;
  { bank.code_block_bytes(shape) }
  noexcept->std::same_as<std::size_t>;
  { bank.store_codebook(book, resident) }
  noexcept->std::same_as<status>;
  { bank.load_codebook(resident, centroids) }
  noexcept->std::same_as<status>;  // as programs use it, f32
  { bank.store_codes(codes, slots, in) }
  noexcept->std::same_as<status>;
  { bank.load_codes(codes, slots, out) }
  noexcept->std::same_as<status>;
};

/// Training programs, one sub-vector at a time. Points are `count` rows of `width` f32 numbers.
template <class Bank>
concept bank_training = requires(Bank& bank, std::size_t count, std::uint32_t width, const float* values,
                                 typename Bank::address points, std::uint32_t centroids, std::uint16_t* codes,
                                 float* distances, const std::uint16_t* assigned, double* sums, double* mass) {
  { bank.point_bytes(count, width) }
  noexcept->std::same_as<std::size_t>;
  // Brings row-major points into the bank.
  { bank.store_points(values, count, width, points) }
  noexcept->std::same_as<status>;
  // Distances and assignment: nearest centroid and squared distance of every point.
  { bank.assign(points, count, width, values, centroids, codes, distances) }
  noexcept->std::same_as<status>;
  // Weighted centroid sums: sums (centroids, width) and mass (centroids) are overwritten; null weights are 1.
  { bank.centroid_sums(points, count, width, values, assigned, centroids, sums, mass) }
  noexcept->std::same_as<status>;
};

/// Coding programs. Rows are token rows in channel order of the model (before geometry::channel_order).
template <class Bank>
concept bank_coding = requires(Bank& bank, const rows_view& rows, const rows_ref& decoded,
                               const resident_codebook<typename Bank::address>& book,
                               const code_span<typename Bank::address>& codes, slot_range slots) {
  // Codes of rows.rows == slots.count token rows into those slots.
  { bank.encode(rows, book, codes, slots) }
  noexcept->std::same_as<status>;
  { bank.decode(book, codes, slots, decoded) }
  noexcept->std::same_as<status>;
};

/// Attention programs over codes, for all query rows of one KV head at once.
template <class Bank>
concept bank_attention = requires(Bank& bank, const geometry& shape, std::size_t rows, const query_rows& queries,
                                  const rope& rotation, const resident_codebook<typename Bank::address>& book,
                                  const code_span<typename Bank::address>& codes, typename Bank::address tables,
                                  slot_range slots, const slot_positions& positions, const score_tile& tile,
                                  const softmax_state& state, const value_options& options, float* out,
                                  std::size_t stride) {
  // Bytes of `tables` for that many rows or fewer; asked for before anything is checked.
  { bank.table_bytes(shape, rows, rotation) }
  noexcept->std::same_as<std::size_t>;
  // What every score program of these queries shares: inner-product tables, or, for keys coded before RoPE,
  // the queries themselves.
  { bank.prepare_scores(queries, book, rotation, tables) }
  noexcept->std::same_as<status>;
  // tile(r, s) = <query r, key of slot s>, the key rotated to its slot's position when rotation is enabled.
  { bank.score(tables, rows, book, rotation, positions, codes, slots, tile) }
  noexcept->std::same_as<status>;
  // Scores become exp(score - maximum); a score at or below masked_score / 2 becomes 0.
  { bank.softmax_part(tile, slots.count, state) }
  noexcept->std::same_as<status>;
  // out(r, :) += sum over slots of tile(r, s) * value of slot s; `stride` floats from row to row of out.
  { bank.accumulate_values(tile, book, codes, slots, options, out, stride) }
  noexcept->std::same_as<status>;
};

/// The same over token rows kept exact (sinks, recent window, a cache not yet coded).
template <class Bank>
concept bank_exact_attention = requires(Bank& bank, const query_rows& queries, const rows_view& rows,
                                        const score_tile& tile, float* out, std::size_t stride) {
  { bank.score_rows(queries, rows, tile) }
  noexcept->std::same_as<status>;
  { bank.accumulate_rows(tile, rows, out, stride) }
  noexcept->std::same_as<status>;
};

/// Optional: banks whose attention programs take a last argument that says what is read next.
template <class Bank>
concept bank_reads_ahead = requires(Bank& bank, std::size_t rows, const query_rows& queries, const rope& rotation,
                                    const resident_codebook<typename Bank::address>& book,
                                    const code_span<typename Bank::address>& codes, typename Bank::address tables,
                                    slot_range slots, const slot_positions& positions, const score_tile& tile,
                                    const value_options& options, float* out, std::size_t stride,
                                    const upcoming<typename Bank::address>& next) {
  bank.prepare_scores(queries, book, rotation, tables, next);
  bank.score(tables, rows, book, rotation, positions, codes, slots, tile, next);
  bank.accumulate_values(tile, book, codes, slots, options, out, stride, next);
};

/// A memory bank: everything above but what is optional.
template <class Bank>
concept bank_policy = bank_identity<Bank> && bank_memory<Bank> && bank_layout<Bank> && bank_training<Bank> &&
    bank_coding<Bank> && bank_attention<Bank> && bank_exact_attention<Bank>;

}  // namespace v0
}  // namespace pqattn
