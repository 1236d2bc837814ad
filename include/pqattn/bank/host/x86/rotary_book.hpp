// SPDX-License-Identifier: MIT
// Codebooks of keys coded before RoPE as the rotary kernels read them: by pairs of channels that turn together.
//
// A pair's centroids are bytes with one common scale, |x|, |y| <= 127 and hypot(x, y) <= 127: half a step, scale / 2,
// of error in each component.
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
  std::uint16_t channel_x = 0;  ///< channel of the token row
  std::uint16_t channel_y = 0;  ///< no_channel when the component is padding
  float scale = 0.0f;           ///< value of one unit of x and y
  std::uint32_t table_x = 0;    ///< byte offsets of the tables of x and y
  std::uint32_t table_y = 0;
};
inline constexpr std::uint16_t no_channel = 0xffff;

/// A codebook as the rotary kernels read it: per pair a record and the turn per position in units of 2^-64 of a full
/// turn, and byte tables of table_bytes(code bits).
struct rotary_book {
  const turned_pair* pairs = nullptr;    ///< an odd one out is there twice
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

[[nodiscard]] constexpr std::size_t pad16(std::size_t count) noexcept {
  return (count + 15) & ~std::size_t{15};
}

struct rotary_book_memory {
  turned_pair* pairs;
  std::uint64_t* steps;
  std::int8_t* tables;
  std::size_t bytes;
};

inline rotary_book_memory carve_rotary_book(const geometry& shape, const rope& rotation, void* memory) noexcept {
  const std::size_t count = rotary_pairs(shape, rotation);
  const std::size_t pair_bytes = align_up((count + count % 2) * sizeof(turned_pair));
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

inline void double_last(turned_pair* pairs, std::size_t count) noexcept {
  if (count % 2 != 0) {
    pairs[count] = pairs[count - 1];
  }
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
    return table == nullptr
               ? Isa::setf(0.0f)
               : Isa::fma(Isa::to_floats(Isa::widen_signed_bytes(table + i)), Isa::setf(scale), Isa::setf(offset));
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

/// Whether both channels of every pair are in one sub-vector, as in fill_pair_order. O(dim).
[[nodiscard]] inline bool pairs_share_codes(const geometry& shape, const rope& rotation) noexcept {
  std::uint16_t run_of[max_dim];
  for (std::uint32_t run = 0; run < shape.subvectors; ++run) {
    for (std::uint32_t i = 0; i < shape.width(run); ++i) {
      run_of[shape.channel(shape.first_channel(run) + i)] = static_cast<std::uint16_t>(run);
    }
  }
  for (std::uint32_t pair = 0; pair < rotation.pairs; ++pair) {
    if (run_of[rotation.first(pair)] != run_of[rotation.second(pair)]) {
      return false;
    }
  }
  for (std::uint32_t still = 2 * rotation.pairs; still + 1 < shape.dim; still += 2) {
    if (run_of[still] != run_of[still + 1]) {
      return false;
    }
  }
  return true;
}

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

/// Lists the pairs of a byte codebook whose maps are scale_of_channel's for this rotation: its tables are turned as
/// they are. Writes the part of rotary_book_bytes in front of the tables. O(stages * dim).
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
  detail::double_last(parts.pairs, total);
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
    const float reach =
        detail::longest_pair<Isa>(book.bytes + pair.table_x, book.scale[planes[0]], book.offset[planes[0]],
                                  exists[1] ? book.bytes + pair.table_y : nullptr, book.scale[planes[1]],
                                  book.offset[planes[1]], pair.code_x == pair.code_y, entries);
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
  detail::double_last(parts.pairs, total);
}

/// Tables of unsigned bytes, 128 up, in the memory of a book: copied from `resident`, or those it has when null.
/// O(stages * dim * 2^code_bits).
template <class Isa>
inline void raise_tables(const geometry& shape, const rope& rotation, const std::int8_t* resident,
                         void* memory) noexcept {
  std::int8_t* out = detail::carve_rotary_book(shape, rotation, memory).tables;
  const std::size_t planes =
      resident == nullptr ? 2 * detail::rotary_pairs(shape, rotation) : std::size_t{shape.stages} * shape.dim;
  const std::int8_t* in = resident == nullptr ? out : resident;
  for (std::size_t i = 0; i < planes * table_bytes(shape.code_bits()); i += Isa::bytes) {
    Isa::store(out + i, Isa::xor_(Isa::load(in + i), Isa::set8(-128)));
  }
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
