// SPDX-License-Identifier: MIT
// Scores of keys that were coded before RoPE.
//
// score(row, slot) = <q, R(t) k> with R(t) the rotation by the slot's position t = base + i. For a block of 64
// consecutive positions R(t) = R(base) R(i), so the query is turned back by the block's base once per row and the
// keys are turned by R(i), i < 64: one small table of bytes that serves every block, head and layer.
// Per pair of channels and block: two look-ups give 64 x and 64 y bytes, two multiply-adds of bytes with the table
// turn them into 16-bit numbers (shared by all rows), and a multiply-add per row of 16-bit numbers sums the score.
//
// Numbers: a pair's centroids are bytes with one common scale, |x|, |y| <= 127 and hypot(x, y) <= 127; cosine and
// sine are rounded to 1/255 with the sign kept aside, so a turned component is below 127 * 255.7 < 2^15 and exact
// given its factors. The query is rounded to 16 bits such that the sum of its magnitudes is at most 65000:
// sums stay below 2^31. Errors relative to a pair's contribution: cosine 0.002 at most, 0.0011 rms; query
// magnitude sum / 65000; centroids half a step, scale / 2, in each component.
#pragma once

#include <cmath>

#include "../../../core/memory.hpp"
#include "../../../quant/geometry.hpp"
#include "../../../quant/rope.hpp"
#include "blocks.hpp"
#include "byte_codebook.hpp"

#if PQATTN_X86_AVX2

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

/// Two components of a key that turn together, or two that do not turn at all (step 0).
struct turned_pair {
  std::uint32_t code_x = 0;  ///< byte offset in a block of the codes that give x
  std::uint32_t code_y = 0;
  std::uint32_t turn = 0;       ///< index in the turn table
  std::uint16_t channel_x = 0;  ///< channel of the token row; no_channel when the component is padding
  std::uint16_t channel_y = 0;
  float scale = 0.0f;         ///< value of one unit of x and y
  std::uint32_t table_x = 0;  ///< byte offsets of the tables of x and y
  std::uint32_t table_y = 0;
};
inline constexpr std::uint16_t no_channel = 0xffff;

/// A codebook as the rotary kernel reads it: per pair a record and the turn per position in units of 2^-64 of a full
/// turn, and byte tables of table_bytes(code bits).
struct rotary_book {
  const turned_pair* pairs = nullptr;
  const std::uint64_t* steps = nullptr;  ///< padded with zeros to a multiple of 16
  const std::int8_t* tables = nullptr;
  std::size_t count = 0;
  unsigned code_bits = 0;
};

namespace detail {

[[nodiscard]] inline std::size_t rotary_pairs(const geometry& shape, const rope& rotation) noexcept {
  const std::size_t still = shape.dim - 2 * std::size_t{rotation.pairs};
  return shape.stages * (rotation.pairs + (still + 1) / 2);
}

[[nodiscard]] constexpr std::size_t pad16(std::size_t count) noexcept { return (count + 15) & ~std::size_t{15}; }

struct rotary_book_memory {
  turned_pair* pairs;
  std::uint64_t* steps;
  std::int8_t* tables;
  std::size_t bytes;
};

inline rotary_book_memory carve_rotary_book(const geometry& shape, const rope& rotation, void* memory) noexcept {
  const std::size_t count = rotary_pairs(shape, rotation);
  const std::size_t pair_bytes = align_up(count * sizeof(turned_pair));
  const std::size_t step_bytes = pad16(count) * sizeof(std::uint64_t);
  auto* base = static_cast<std::byte*>(memory);
  rotary_book_memory parts{};
  parts.bytes = pair_bytes + step_bytes + 2 * count * table_bytes(shape.code_bits());
  if (base != nullptr) {
    parts.pairs = reinterpret_cast<turned_pair*>(base);
    parts.steps = reinterpret_cast<std::uint64_t*>(base + pair_bytes);
    parts.tables = reinterpret_cast<std::int8_t*>(base + pair_bytes + step_bytes);
  }
  return parts;
}

/// Rounds offset + scale * byte to a multiple of 1 / inverse.
template <class Isa>
inline void requantize_table(const std::int8_t* in, float scale, float offset, float inverse, std::size_t count,
                             std::int8_t* out) noexcept {
  using floats = typename Isa::floats;
  const floats factor = Isa::setf(scale * inverse);
  const floats term = Isa::setf(offset * inverse + 128.0f);  // bytes are packed unsigned, 128 up
  for (std::size_t i = 0; i < count; i += Isa::bytes) {
    typename Isa::ints part[4];
    PQATTN_X86_UNROLL
    for (std::size_t j = 0; j < 4; ++j) {
      part[j] = Isa::to_ints(Isa::fma(factor, Isa::to_floats(Isa::widen_signed_bytes(in + i + j * Isa::lanes)), term));
    }
    auto* bytes = reinterpret_cast<std::uint8_t*>(out + i);
    Isa::store_bytes(bytes, part[0], part[1], part[2], part[3]);
    Isa::store(bytes, Isa::xor_(Isa::load(bytes), Isa::set8(-128)));
  }
}

/// Length of the longest pair: over the codes when both components share a code, else over both codes on their own.
/// A null table stands for a component that does not exist.
template <class Isa>
inline float longest_pair(const std::int8_t* x, float x_scale, float x_offset, const std::int8_t* y, float y_scale,
                          float y_offset, bool same_code, std::size_t count) noexcept {
  using floats = typename Isa::floats;
  const auto component = [&](const std::int8_t* table, float scale, float offset, std::size_t i) noexcept {
    return table == nullptr ? Isa::setf(0.0f)
                            : Isa::fma(Isa::to_floats(Isa::widen_signed_bytes(table + i)), Isa::setf(scale),
                                       Isa::setf(offset));
  };
  floats both = Isa::setf(0.0f);
  floats first = Isa::setf(0.0f);
  floats second = Isa::setf(0.0f);
  for (std::size_t i = 0; i < count; i += Isa::lanes) {
    const floats a = component(x, x_scale, x_offset, i);
    const floats b = component(y, y_scale, y_offset, i);
    const floats a_squared = Isa::mulf(a, a);
    both = Isa::maxf(both, Isa::fma(b, b, a_squared));
    first = Isa::maxf(first, a_squared);
    second = Isa::maxf(second, Isa::mulf(b, b));
  }
  return std::sqrt(same_code ? Isa::largest(both) : Isa::largest(first) + Isa::largest(second));
}

}  // namespace detail

/// Bytes of the memory behind a rotary_book, which must be aligned to 64.
[[nodiscard]] inline std::size_t rotary_book_bytes(const geometry& shape, const rope& rotation) noexcept {
  return detail::carve_rotary_book(shape, rotation, nullptr).bytes;
}

/// The book that build_rotary_book left in `memory`. `resident`: the tables list_rotary_pairs was for, or null.
[[nodiscard]] inline rotary_book rotary_book_at(const geometry& shape, const rope& rotation, const void* memory,
                                                const std::int8_t* resident = nullptr) noexcept {
  const auto parts = detail::carve_rotary_book(shape, rotation, const_cast<void*>(memory));
  return {parts.pairs, parts.steps, resident != nullptr ? resident : parts.tables,
          detail::rotary_pairs(shape, rotation), shape.code_bits()};
}

/// Turns per position of a frequency in radians, in units of 2^-64 turns, modulo one turn.
[[nodiscard]] inline std::uint64_t turn_step(float frequency) noexcept {
  constexpr double turns_per_radian = 0.15915494309189533577;
  const double turns = static_cast<double>(frequency) * turns_per_radian;
  const double fraction = turns - std::floor(turns);
  return fraction >= 1.0 ? 0 : static_cast<std::uint64_t>(fraction * 0x1p64);
}

/// Lists the pairs of a byte codebook whose maps are scale_of_channel's for this rotation: its tables are turned as they
/// are. Writes the part of rotary_book_bytes in front of the tables. O(stages * dim).
inline void list_rotary_pairs(const geometry& shape, const rope& rotation, const byte_codebook& book,
                              void* memory) noexcept {
  const auto parts = detail::carve_rotary_book(shape, rotation, memory);
  const std::size_t entries = table_bytes(shape.code_bits());
  std::uint16_t position_of[max_dim];
  std::uint16_t run_of[max_dim];
  for (std::uint32_t run = 0; run < shape.subvectors; ++run) {
    for (std::uint32_t i = 0; i < shape.width(run); ++i) {
      const std::uint32_t position = shape.first_channel(run) + i;
      position_of[shape.channel(position)] = static_cast<std::uint16_t>(position);
      run_of[position] = static_cast<std::uint16_t>(run);
    }
  }
  const std::size_t total = detail::rotary_pairs(shape, rotation);
  const std::size_t per_stage = total / shape.stages;
  for (std::size_t stage = 0, index = 0; stage < shape.stages; ++stage) {
    for (std::uint32_t local = 0; local < per_stage; ++local, ++index) {
      const bool turns = local < rotation.pairs;
      const std::uint32_t still = 2 * rotation.pairs + 2 * (local - rotation.pairs);
      const std::uint32_t x = turns ? rotation.first(local) : still;
      const std::uint32_t y = turns ? rotation.second(local) : still + 1;
      const std::uint32_t at_x = position_of[x];
      const std::uint32_t at_y = y < shape.dim ? position_of[y] : at_x;
      const auto code_of = [&](std::uint32_t position) {
        return static_cast<std::uint32_t>((stage * shape.subvectors + run_of[position]) * 8 * shape.code_bits());
      };
      turned_pair& pair = parts.pairs[index];
      pair.code_x = code_of(at_x);
      pair.code_y = code_of(at_y);
      pair.turn = turns ? local : rotation.pairs;
      pair.channel_x = static_cast<std::uint16_t>(x);
      pair.channel_y = y < shape.dim ? static_cast<std::uint16_t>(y) : no_channel;
      pair.scale = book.scale[stage * shape.dim + at_x];
      pair.table_x = static_cast<std::uint32_t>((stage * shape.dim + at_x) * entries);
      pair.table_y = static_cast<std::uint32_t>((stage * shape.dim + at_y) * entries);
      parts.steps[index] = turns ? turn_step(rotation.frequencies[local]) : 0;
    }
  }
  for (std::size_t index = total; index < detail::pad16(total); ++index) {
    parts.steps[index] = 0;
  }
}

/// The same for a byte codebook with any maps: tables of its own, in rotary_book_bytes bytes at `memory`. The two
/// components of a pair get one scale: the longest pair becomes 127 long. O(stages * dim * 2^code_bits).
template <class Isa>
inline void build_rotary_book(const geometry& shape, const rope& rotation, const byte_codebook& book,
                              void* memory) noexcept {
  list_rotary_pairs(shape, rotation, book, memory);
  const auto parts = detail::carve_rotary_book(shape, rotation, memory);
  const std::size_t entries = table_bytes(shape.code_bits());
  const std::size_t total = detail::rotary_pairs(shape, rotation);
  for (std::size_t index = 0; index < total; ++index) {
    turned_pair& pair = parts.pairs[index];
    const std::size_t planes[2] = {pair.table_x / entries, pair.table_y / entries};
    const bool exists[2] = {true, pair.channel_y != no_channel};
    const float reach = detail::longest_pair<Isa>(
        book.bytes + pair.table_x, book.scale[planes[0]], book.offset[planes[0]],
        exists[1] ? book.bytes + pair.table_y : nullptr, book.scale[planes[1]], book.offset[planes[1]],
        pair.code_x == pair.code_y, entries);
    const float inverse = reach > 0.0f ? 127.0f / reach : 0.0f;
    pair.scale = reach / 127.0f;
    for (std::size_t side = 0; side < 2; ++side) {
      const std::size_t at = (2 * index + side) * entries;
      if (exists[side]) {
        detail::requantize_table<Isa>(book.bytes + planes[side] * entries, book.scale[planes[side]],
                                      book.offset[planes[side]], inverse, entries, parts.tables + at);
      } else {
        std::memset(parts.tables + at, 0, entries);
      }
      (side == 0 ? pair.table_x : pair.table_y) = static_cast<std::uint32_t>(at);
    }
  }
}

// --- turn tables -----------------------------------------------------------------------------------------------------

/// cos and sin of 64 offsets for every pair and one entry that does not turn, as the kernel multiplies by them.
template <class Isa>
struct turn_table {
  const std::uint8_t* factors = nullptr;  ///< per pair 256 bytes
  const std::byte* signs = nullptr;       ///< per pair sign_stride bytes
  static constexpr std::size_t sign_stride = 4 * parts<Isa> * Isa::sign_bytes;
};

template <class Isa>
[[nodiscard]] constexpr std::size_t turn_table_bytes(std::size_t pairs) noexcept {
  return align_up((pairs + 1) * 256) + align_up((pairs + 1) * turn_table<Isa>::sign_stride);
}

template <class Isa>
[[nodiscard]] inline turn_table<Isa> turn_table_at(std::size_t pairs, const void* memory) noexcept {
  const auto* base = static_cast<const std::byte*>(memory);
  return {reinterpret_cast<const std::uint8_t*>(base), base + align_up((pairs + 1) * 256)};
}

namespace detail {

/// Cosine and sine of phases in units of 2^-32 turns, error below 2e-7. Cephes' polynomials on [-pi/4, pi/4].
template <class Isa>
PQATTN_ALWAYS_INLINE void cosine_sine(typename Isa::ints phase, typename Isa::floats& cosine,
                                      typename Isa::floats& sine) noexcept {
  using floats = typename Isa::floats;
  const auto quadrant = Isa::nearest_quadrant(phase);
  const floats x = Isa::mulf(Isa::from_quadrant(phase, quadrant), Isa::setf(1.46291807926715968e-9f));
  const floats z = Isa::mulf(x, x);
  const floats s = Isa::fma(Isa::fma(Isa::setf(-1.9515295891e-4f), z, Isa::setf(8.3321608736e-3f)), z,
                            Isa::setf(-1.6666654611e-1f));
  const floats c = Isa::fma(Isa::fma(Isa::setf(2.443315711809948e-5f), z, Isa::setf(-1.388731625493765e-3f)), z,
                            Isa::setf(4.166664568298827e-2f));
  sine = Isa::fma(Isa::mulf(s, z), x, x);
  cosine = Isa::fma(Isa::mulf(c, z), z, Isa::fma(z, Isa::setf(-0.5f), Isa::setf(1.0f)));
  Isa::turn_quadrants(quadrant, cosine, sine);
}

/// One part of one pair: magnitudes and signs (bytes of 0 or 255) of cosines and sines as the kernel multiplies by them.
template <class Isa>
PQATTN_ALWAYS_INLINE void store_turns(typename Isa::ints c, typename Isa::ints s, typename Isa::ints c_sign,
                                      typename Isa::ints s_sign, std::uint8_t* factor, std::byte* sign) noexcept {
  const auto s_opposite = Isa::xor_(s_sign, Isa::set8(-1));
  Isa::store(factor, Isa::low8(c, s));
  Isa::store(factor + Isa::bytes, Isa::high8(c, s));
  Isa::store(factor + 2 * Isa::bytes, Isa::low8(s, c));
  Isa::store(factor + 3 * Isa::bytes, Isa::high8(s, c));
  Isa::store_signs(sign, Isa::low8(c_sign, s_opposite));
  Isa::store_signs(sign + Isa::sign_bytes, Isa::high8(c_sign, s_opposite));
  Isa::store_signs(sign + 2 * Isa::sign_bytes, Isa::low8(s_sign, c_sign));
  Isa::store_signs(sign + 3 * Isa::sign_bytes, Isa::high8(s_sign, c_sign));
}

}  // namespace detail

/// Fills a turn table for slots at `offsets[0..64)` positions from the block's base, or 0..63 when null.
/// O(64 * pairs): about 200 instructions per pair with 512-bit registers and no offsets.
template <class Isa>
inline void fill_turn_table(const rope& rotation, const std::int64_t* offsets, void* memory) noexcept {
  using ints = typename Isa::ints;
  using floats = typename Isa::floats;
  const std::size_t pairs = rotation.pairs;
  const turn_table<Isa> table = turn_table_at<Isa>(pairs, memory);
  auto* factors = const_cast<std::uint8_t*>(table.factors);
  auto* signs = const_cast<std::byte*>(table.signs);
  alignas(64) std::uint32_t phases[slots];
  alignas(64) std::uint8_t planes[4][slots];  // |cos|, |sin|, cos < 0, sin < 0
  for (std::size_t pair = 0; pair <= pairs; ++pair) {
    const std::uint64_t step = pair < pairs ? turn_step(rotation.frequencies[pair]) : 0;
    for (std::size_t slot = 0; offsets != nullptr && slot < slots; ++slot) {
      phases[slot] = static_cast<std::uint32_t>((step * static_cast<std::uint64_t>(offsets[slot])) >> 32);
    }
    // Offsets below 64 lose at most 2^-26 turns when the step is cut to 32 bits.
    const auto short_step = static_cast<std::uint32_t>((step + (std::uint64_t{1} << 31)) >> 32);
    for (std::size_t slot = 0; slot < slots; slot += Isa::bytes) {
      ints values[4][4];
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        const std::size_t at = slot + i * Isa::lanes;
        const ints phase = offsets == nullptr ? Isa::multiples32(short_step, static_cast<std::uint32_t>(at))
                                              : Isa::load(phases + at);
        floats cosine, sine;
        detail::cosine_sine<Isa>(phase, cosine, sine);
        values[0][i] = Isa::to_ints(Isa::mulf(Isa::magnitude(cosine), Isa::setf(255.0f)));
        values[1][i] = Isa::to_ints(Isa::mulf(Isa::magnitude(sine), Isa::setf(255.0f)));
        values[2][i] = Isa::sign_of(cosine);
        values[3][i] = Isa::sign_of(sine);
      }
      PQATTN_X86_UNROLL
      for (int kind = 0; kind < 4; ++kind) {
        Isa::store_low_bytes(planes[kind] + slot, values[kind][0], values[kind][1], values[kind][2], values[kind][3]);
      }
      const std::size_t part = slot / Isa::bytes;
      detail::store_turns<Isa>(Isa::load(planes[0] + slot), Isa::load(planes[1] + slot), Isa::load(planes[2] + slot),
                               Isa::load(planes[3] + slot), factors + pair * 256 + part * 4 * Isa::bytes,
                               signs + pair * turn_table<Isa>::sign_stride + part * 4 * Isa::sign_bytes);
    }
  }
}

/// Fills the turn table of offsets 0..63 from the rotation's own bytes, or computes it where there are none. O(pairs).
template <class Isa>
inline void load_turn_table(const rope& rotation, void* memory) noexcept {
  if (rotation.turns == nullptr) {
    fill_turn_table<Isa>(rotation, nullptr, memory);
    return;
  }
  alignas(64) std::uint8_t still[rope::turn_bytes] = {};
  std::memset(still, 255, slots);
  const turn_table<Isa> table = turn_table_at<Isa>(rotation.pairs, memory);
  for (std::size_t pair = 0; pair <= rotation.pairs; ++pair) {
    const std::uint8_t* turns = pair < rotation.pairs ? rotation.turns + pair * rope::turn_bytes : still;
    auto* factor = const_cast<std::uint8_t*>(table.factors) + pair * 256;
    auto* sign = const_cast<std::byte*>(table.signs) + pair * turn_table<Isa>::sign_stride;
    for (std::size_t part = 0; part < parts<Isa>; ++part) {
      detail::store_turns<Isa>(Isa::load(turns + part * Isa::bytes), Isa::load(turns + slots + part * Isa::bytes),
                               Isa::spread_bits(turns + 2 * slots + part * Isa::bytes / 8),
                               Isa::spread_bits(turns + 2 * slots + 8 + part * Isa::bytes / 8),
                               factor + part * 4 * Isa::bytes, sign + part * 4 * Isa::sign_bytes);
    }
  }
}

// --- queries ---------------------------------------------------------------------------------------------------------

/// Query rows as the kernel turns them: per row x and y of every pair, scaled so that rounding to an integer is the
/// 16-bit query, and the factor that takes an integer score back.
struct rotary_queries {
  const float* x = nullptr;  ///< (rows, padded pairs)
  const float* y = nullptr;
  const float* factor = nullptr;  ///< (rows)
  std::size_t rows = 0;
  std::size_t padded = 0;  ///< pairs rounded up to 16
};

[[nodiscard]] inline std::size_t rotary_query_bytes(std::size_t pairs, std::size_t rows) noexcept {
  return 2 * align_up(rows * detail::pad16(pairs) * sizeof(float)) + align_up(rows * sizeof(float));
}

[[nodiscard]] inline rotary_queries rotary_queries_at(std::size_t pairs, std::size_t rows,
                                                      const void* memory) noexcept {
  const std::size_t padded = detail::pad16(pairs);
  const auto* base = static_cast<const std::byte*>(memory);
  const std::size_t plane = align_up(rows * padded * sizeof(float));
  return {reinterpret_cast<const float*>(base), reinterpret_cast<const float*>(base + plane),
          reinterpret_cast<const float*>(base + 2 * plane), rows, padded};
}

/// Prepares `rows` queries (f32, `stride` apart, channels in the model's order, softmax scale multiplied in).
/// O(rows * dim).
inline void prepare_rotary_queries(const rotary_book& book, const float* queries, std::size_t rows,
                                   std::size_t stride, void* memory) noexcept {
  const rotary_queries out = rotary_queries_at(book.count, rows, memory);
  for (std::size_t row = 0; row < rows; ++row) {
    const float* query = queries + row * stride;
    float* x = const_cast<float*>(out.x) + row * out.padded;
    float* y = const_cast<float*>(out.y) + row * out.padded;
    float magnitudes = 0.0f;
    float largest = 0.0f;
    for (std::size_t i = 0; i < out.padded; ++i) {
      const bool exists = i < book.count;
      const turned_pair pair = exists ? book.pairs[i] : turned_pair{};
      x[i] = exists && pair.channel_x != no_channel ? query[pair.channel_x] * pair.scale : 0.0f;
      y[i] = exists && pair.channel_y != no_channel ? query[pair.channel_y] * pair.scale : 0.0f;
      const float magnitude = std::sqrt(x[i] * x[i] + y[i] * y[i]);
      magnitudes += magnitude;
      largest = largest < magnitude ? magnitude : largest;
    }
    // The sum of |x| + |y| is at most sqrt(2) times the sum of magnitudes, however the pairs are turned.
    const float by_sum = 1.41421357f * magnitudes / 65000.0f;
    const float by_largest = largest / 32766.0f;
    const float unit = by_sum > by_largest ? by_sum : by_largest;
    const float inverse = unit > 0.0f ? 1.0f / unit : 0.0f;
    for (std::size_t i = 0; i < out.padded; ++i) {
      x[i] *= inverse;
      y[i] *= inverse;
    }
    const_cast<float*>(out.factor)[row] = unit / 255.0f;
  }
}

// --- scores ----------------------------------------------------------------------------------------------------------

/// Blocks handled together, so that a table is loaded once for all of them, and pairs turned before they are summed.
inline constexpr std::size_t rotary_batch = 4;
inline constexpr std::size_t rotary_chunk = 8;

namespace detail {

/// Workspace of rotary_score.
struct rotary_scratch {
  std::byte* keys;            // (batch, chunk, 256): turned keys
  std::int32_t* sums;         // (batch, rows, 64), in the order of the unpacking
  std::uint32_t* queries;     // (batch, rows, padded): 16-bit x and y, turned back by the block's base
  float* angles;              // (2, padded): cosines and sines of position `angles_of`, if has_angles
  std::int64_t angles_of;
  bool has_angles;
  void* turns;                // a turn table for a block whose positions are not consecutive
  std::size_t bytes;
};

template <class Isa>
inline rotary_scratch carve_rotary_scratch(std::size_t pairs, std::size_t turns, std::size_t rows,
                                           void* memory) noexcept {
  const std::size_t keys = rotary_batch * rotary_chunk * 256;
  const std::size_t sums = rotary_batch * rows * 256;
  const std::size_t queries = align_up(rotary_batch * rows * pad16(pairs) * 4);
  const std::size_t angles = 2 * pad16(pairs) * sizeof(float);
  auto* base = static_cast<std::byte*>(memory);
  rotary_scratch parts{};
  parts.bytes = keys + sums + queries + angles + turn_table_bytes<Isa>(turns);
  if (base != nullptr) {
    parts.keys = base;
    parts.sums = reinterpret_cast<std::int32_t*>(base + keys);
    parts.queries = reinterpret_cast<std::uint32_t*>(base + keys + sums);
    parts.angles = reinterpret_cast<float*>(base + keys + sums + queries);
    parts.turns = base + keys + sums + queries + angles;
  }
  return parts;
}

/// Turns every query back by `base` positions and rounds it to 16 bits. Where the rotation has tables that fit the pairs,
/// the angle is that of base without its multiple of 64 below 4096, which blocks of 4096 positions share, plus that
/// multiple's from the tables: the same numbers whatever was asked before.
template <class Isa>
inline void turn_queries(const rotary_book& book, const rope& rotation, const rotary_queries& queries,
                         std::int64_t base, rotary_scratch& scratch, std::uint32_t* out) noexcept {
  using floats = typename Isa::floats;
  const bool tabulated = rotation.angles != nullptr && book.count == rotation.pairs && rotation.pairs % 16 == 0;
  const auto step = tabulated ? static_cast<std::uint32_t>(base >> 6) % rope::steps : 0;
  const std::int64_t shared = base - 64 * static_cast<std::int64_t>(step);
  if (!scratch.has_angles || scratch.angles_of != shared) {
    for (std::size_t pair = 0; pair < queries.padded; pair += Isa::lanes) {
      floats cosine, sine;
      cosine_sine<Isa>(Isa::phases(book.steps + pair, static_cast<std::uint64_t>(shared)), cosine, sine);
      Isa::storef(scratch.angles + pair, cosine);
      Isa::storef(scratch.angles + queries.padded + pair, sine);
    }
    scratch.angles_of = shared;
    scratch.has_angles = true;
  }
  for (std::size_t pair = 0; pair < queries.padded; pair += Isa::lanes) {
    floats cosine = Isa::loadf(scratch.angles + pair);
    floats sine = Isa::loadf(scratch.angles + queries.padded + pair);
    if (tabulated) {
      const floats c = Isa::loadf(rotation.cosines(1, step) + pair);
      const floats s = Isa::loadf(rotation.sines(1, step) + pair);
      const floats sum = Isa::fnma(sine, s, Isa::mulf(cosine, c));
      sine = Isa::fma(sine, c, Isa::mulf(cosine, s));
      cosine = sum;
    }
    for (std::size_t row = 0; row < queries.rows; ++row) {
      const std::size_t at = row * queries.padded + pair;
      const floats x = Isa::loadf(queries.x + at);
      const floats y = Isa::loadf(queries.y + at);
      const auto turned_x = Isa::to_ints(Isa::fma(x, cosine, Isa::mulf(y, sine)));
      const auto turned_y = Isa::to_ints(Isa::fnma(x, sine, Isa::mulf(y, cosine)));
      Isa::store(out + at, Isa::pair_words(turned_x, turned_y));
    }
  }
}

/// Decodes and turns pairs [first, first + count) of `blocks` blocks.
template <class Isa, unsigned Bits>
inline void turn_keys(const rotary_book& book, const turn_table<Isa>& turns, std::size_t first, std::size_t count,
                      const std::uint8_t* const* block, std::size_t blocks, std::byte* keys) noexcept {
  using look = lookup<Isa, Bits, false>;
  using ints = typename Isa::ints;
  constexpr std::size_t width = Isa::bytes;
  for (std::size_t i = 0; i < count; ++i) {
    const turned_pair& pair = book.pairs[first + i];
    const auto table_x = look::load_table(book.tables + pair.table_x);
    const auto table_y = look::load_table(book.tables + pair.table_y);
    for (std::size_t part = 0; part < parts<Isa>; ++part) {
      const std::uint8_t* factor = turns.factors + std::size_t{pair.turn} * 256 + part * 4 * width;
      const ints x_low = Isa::load(factor);
      const ints x_high = Isa::load(factor + width);
      const ints y_low = Isa::load(factor + 2 * width);
      const ints y_high = Isa::load(factor + 3 * width);
      const std::byte* sign =
          turns.signs + pair.turn * turn_table<Isa>::sign_stride + part * 4 * Isa::sign_bytes;
      const auto x_low_sign = Isa::load_signs(sign);
      const auto x_high_sign = Isa::load_signs(sign + Isa::sign_bytes);
      const auto y_low_sign = Isa::load_signs(sign + 2 * Isa::sign_bytes);
      const auto y_high_sign = Isa::load_signs(sign + 3 * Isa::sign_bytes);
      std::byte* out = keys + i * 256 + part * 4 * width;
      for (std::size_t b = 0; b < blocks; ++b, out += rotary_chunk * 256) {
        const ints x = look::look(table_x, look::load_codes(block[b] + pair.code_x, part));
        const ints y = look::look(table_y, look::load_codes(block[b] + pair.code_y, part));
        const ints low = Isa::low8(x, y);
        const ints high = Isa::high8(x, y);
        const ints turned_x_low = Isa::mul_bytes(x_low, Isa::flip(low, x_low_sign));
        const ints turned_y_low = Isa::mul_bytes(y_low, Isa::flip(low, y_low_sign));
        const ints turned_x_high = Isa::mul_bytes(x_high, Isa::flip(high, x_high_sign));
        const ints turned_y_high = Isa::mul_bytes(y_high, Isa::flip(high, y_high_sign));
        Isa::store(out, Isa::low16(turned_x_low, turned_y_low));
        Isa::store(out + width, Isa::high16(turned_x_low, turned_y_low));
        Isa::store(out + 2 * width, Isa::low16(turned_x_high, turned_y_high));
        Isa::store(out + 3 * width, Isa::high16(turned_x_high, turned_y_high));
      }
    }
  }
}

/// Adds `count` turned pairs of one part of a block to the sums of Rows rows.
template <class Isa, std::size_t Rows>
PQATTN_ALWAYS_INLINE void sum_pairs(const std::byte* keys, std::size_t count, const std::uint32_t* queries,
                                    std::size_t query_stride, std::int32_t* sums, bool first) noexcept {
  using ints = typename Isa::ints;
  ints sum[Rows][4];
  PQATTN_X86_UNROLL
  for (std::size_t row = 0; row < Rows; ++row) {
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      sum[row][i] = first ? Isa::zero() : Isa::load(sums + row * slots + i * Isa::lanes);
    }
  }
  for (std::size_t pair = 0; pair < count; ++pair, keys += 256) {
    ints key[4];
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      key[i] = Isa::load(keys + i * Isa::bytes);
    }
    PQATTN_X86_UNROLL
    for (std::size_t row = 0; row < Rows; ++row) {
      const ints query = Isa::set32(static_cast<std::int32_t>(queries[row * query_stride + pair]));
      PQATTN_X86_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        sum[row][i] = Isa::dot_words(sum[row][i], key[i], query);
      }
    }
  }
  PQATTN_X86_UNROLL
  for (std::size_t row = 0; row < Rows; ++row) {
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      Isa::store(sums + row * slots + i * Isa::lanes, sum[row][i]);
    }
  }
}

template <class Isa>
inline void sum_block(const std::byte* keys, std::size_t count, const std::uint32_t* queries,
                      std::size_t query_stride, std::size_t rows, std::int32_t* sums, bool first) noexcept {
  for (std::size_t part = 0; part < parts<Isa>; ++part) {
    const std::byte* key = keys + part * 4 * Isa::bytes;
    std::int32_t* sum = sums + part * Isa::bytes;
    std::size_t row = 0;
    if constexpr (Isa::bytes == 64) {
      for (; row + 4 <= rows; row += 4) {
        sum_pairs<Isa, 4>(key, count, queries + row * query_stride, query_stride, sum + row * slots, first);
      }
    }
    for (; row + 2 <= rows; row += 2) {
      sum_pairs<Isa, 2>(key, count, queries + row * query_stride, query_stride, sum + row * slots, first);
    }
    if (row < rows) {
      sum_pairs<Isa, 1>(key, count, queries + row * query_stride, query_stride, sum + row * slots, first);
    }
  }
}

/// Integer sums of one row and block to f32 scores in slot order.
template <class Isa>
inline void finish_block(const std::int32_t* sums, float factor, const slot_run& run, std::size_t block,
                         float* row) noexcept {
  for (std::size_t part = 0; part < parts<Isa>; ++part) {
    typename Isa::ints sum[4];
    typename Isa::floats score[4];
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      sum[i] = Isa::load(sums + part * Isa::bytes + i * Isa::lanes);
    }
    Isa::restore_order(sum);
    PQATTN_X86_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      score[i] = Isa::mulf(Isa::to_floats(sum[i]), Isa::setf(factor));
    }
    store_slots<Isa>(row, run.offset_of(block), static_cast<std::ptrdiff_t>(part * Isa::bytes), run.begin_in(block),
                     run.end_in(block), score);
  }
}

/// Scores of up to rotary_batch blocks that share a turn table.
template <class Isa, unsigned Bits>
inline void rotary_blocks(const rotary_book& book, const rope& rotation, const turn_table<Isa>& turns,
                          const rotary_queries& queries, const slot_run& run, std::size_t block,
                          const std::int64_t* bases, std::size_t blocks, rotary_scratch& scratch, float* out,
                          std::size_t stride) noexcept {
  const std::uint8_t* codes[rotary_batch];
  const std::size_t query_block = queries.rows * queries.padded;
  for (std::size_t b = 0; b < blocks; ++b) {
    codes[b] = run.block(block + b);
    turn_queries<Isa>(book, rotation, queries, bases[b], scratch, scratch.queries + b * query_block);
  }
  const std::size_t end = run.end_block();
  const std::size_t after = block + blocks;
  const std::size_t ahead = end - after < rotary_batch ? end - after : rotary_batch;
  for (std::size_t pair = 0; pair < book.count; pair += rotary_chunk) {
    const std::size_t count = book.count - pair < rotary_chunk ? book.count - pair : rotary_chunk;
    // The next batch is fetched meanwhile, a share of every block with each chunk.
    const std::size_t from = run.block_bytes * pair / book.count;
    const std::size_t to = run.block_bytes * (pair + count) / book.count;
    for (std::size_t b = 0; b < ahead; ++b) {
      const auto* next = reinterpret_cast<const char*>(run.block(after + b));
      for (std::size_t line = from & ~std::size_t{63}; line < to; line += 64) {
        _mm_prefetch(next + line, _MM_HINT_T0);
      }
    }
    turn_keys<Isa, Bits>(book, turns, pair, count, codes, blocks, scratch.keys);
    for (std::size_t b = 0; b < blocks; ++b) {
      sum_block<Isa>(scratch.keys + b * rotary_chunk * 256, count, scratch.queries + b * query_block + pair,
                     queries.padded, queries.rows, scratch.sums + b * queries.rows * slots, pair == 0);
    }
  }
  for (std::size_t b = 0; b < blocks; ++b) {
    for (std::size_t row = 0; row < queries.rows; ++row) {
      finish_block<Isa>(scratch.sums + (b * queries.rows + row) * slots, queries.factor[row], run, block + b,
                        out + row * stride);
    }
  }
}

}  // namespace detail

/// Bytes of workspace for rotary_score, aligned to 64.
template <class Isa>
[[nodiscard]] inline std::size_t rotary_scratch_bytes(const geometry& shape, const rope& rotation,
                                                      std::size_t rows) noexcept {
  return detail::carve_rotary_scratch<Isa>(detail::rotary_pairs(shape, rotation), rotation.pairs, rows, nullptr).bytes;
}

/// out(row, slot - run.first) = score of the slot. `position(slot)` gives a slot's position (int64).
/// `turns`: the table of offsets 0..63. Blocks whose used slots are not consecutive get a table of their own, which
/// costs several times what the block's scores do.
/// Returns false, and does nothing, when the code width has no look-up in registers (above widest_code<Isa>).
template <class Isa, class Position>
inline bool rotary_score(const rotary_book& book, const rope& rotation, const turn_table<Isa>& turns,
                         const rotary_queries& queries, const slot_run& run, const Position& position, float* out,
                         std::size_t stride, void* workspace) noexcept {
  return with_code_bits<Isa>(book.code_bits, [&]<unsigned Bits>() noexcept {
    auto scratch = detail::carve_rotary_scratch<Isa>(book.count, rotation.pairs, queries.rows, workspace);
    std::int64_t bases[rotary_batch];
    std::size_t pending = 0;
    std::size_t block = run.first_block();
    const auto flush = [&](std::size_t end) noexcept {
      if (pending != 0) {
        detail::rotary_blocks<Isa, Bits>(book, rotation, turns, queries, run, end - pending, bases, pending, scratch,
                                         out, stride);
        pending = 0;
      }
    };
    for (; block < run.end_block(); ++block) {
      const std::ptrdiff_t begin = run.begin_in(block);
      const std::ptrdiff_t end = run.end_in(block);
      const std::size_t slot = block * slots;
      const std::int64_t base = position(slot + static_cast<std::size_t>(begin)) - begin;
      std::int64_t offsets[slots] = {};
      bool consecutive = true;
      for (std::ptrdiff_t i = begin; i < end; ++i) {
        offsets[i] = position(slot + static_cast<std::size_t>(i)) - base;
        consecutive = consecutive && offsets[i] == i;
      }
      if (consecutive) {
        bases[pending++] = base;
        if (pending == rotary_batch) {
          flush(block + 1);
        }
      } else {
        flush(block);
        fill_turn_table<Isa>(rotation, offsets, scratch.turns);
        detail::rotary_blocks<Isa, Bits>(book, rotation, turn_table_at<Isa>(rotation.pairs, scratch.turns), queries,
                                         run, block, &base, 1, scratch, out, stride);
      }
    }
    flush(block);
  });
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
