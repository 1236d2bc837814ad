// SPDX-License-Identifier: MIT
// Turn tables of the rotary kernels: cosines and sines of a block's 64 offsets, for every pair and for one entry that
// does not turn, laid out by each kernel as it multiplies by them. One table serves every block, head and layer.
#pragma once

#include "../../../quant/rope.hpp"
#include "rotary_book.hpp"

#if PQATTN_X86_AVX2

namespace pqattn {
inline namespace v0 {
namespace x86 {
inline namespace PQATTN_X86_UNIT {

namespace detail {

/// Cosine and sine of phases in units of 2^-32 turns, error below 2e-7. Cephes' polynomials on [-pi/4, pi/4].
template <class Isa>
PQATTN_ALWAYS_INLINE void cosine_sine(typename Isa::ints phase, typename Isa::floats& cosine,
                                      typename Isa::floats& sine) noexcept {
  using floats = typename Isa::floats;
  const auto quadrant = Isa::nearest_quadrant(phase);
  const floats x = Isa::mulf(Isa::from_quadrant(phase, quadrant), Isa::setf(1.46291807926715968e-9f));
  const floats z = Isa::mulf(x, x);
  const floats s =
      Isa::fma(Isa::fma(Isa::setf(-1.9515295891e-4f), z, Isa::setf(8.3321608736e-3f)), z, Isa::setf(-1.6666654611e-1f));
  const floats c = Isa::fma(Isa::fma(Isa::setf(2.443315711809948e-5f), z, Isa::setf(-1.388731625493765e-3f)), z,
                            Isa::setf(4.166664568298827e-2f));
  sine = Isa::fma(Isa::mulf(s, z), x, x);
  cosine = Isa::fma(Isa::mulf(c, z), z, Isa::fma(z, Isa::setf(-0.5f), Isa::setf(1.0f)));
  Isa::turn_quadrants(quadrant, cosine, sine);
}

}  // namespace detail

/// Fills a turn table for slots at `offsets[0..64)` positions from the block's base, or 0..63 when null.
/// O(64 * pairs): about 200 instructions per pair with 512-bit registers and no offsets.
template <class Kernel>
inline void fill_turn_table(const rope& rotation, const std::int64_t* offsets, void* memory) noexcept {
  using Isa = typename Kernel::isa;
  using ints = typename Isa::ints;
  using floats = typename Isa::floats;
  const std::size_t pairs = rotation.pairs;
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
        const ints phase =
            offsets == nullptr ? Isa::multiples32(short_step, static_cast<std::uint32_t>(at)) : Isa::load(phases + at);
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
      Kernel::store_turns(Isa::load(planes[0] + slot), Isa::load(planes[1] + slot), Isa::load(planes[2] + slot),
                          Isa::load(planes[3] + slot), pairs, pair, part, memory);
    }
  }
}

/// Fills the turn table of offsets 0..63 from the rotation's own bytes, or computes it where there are none. O(pairs).
template <class Kernel>
inline void load_turn_table(const rope& rotation, void* memory) noexcept {
  using Isa = typename Kernel::isa;
  if (rotation.turns == nullptr) {
    fill_turn_table<Kernel>(rotation, nullptr, memory);
    return;
  }
  alignas(64) std::uint8_t still[rope::turn_bytes] = {};
  std::memset(still, 255, slots);
  for (std::size_t pair = 0; pair <= rotation.pairs; ++pair) {
    const std::uint8_t* turns = pair < rotation.pairs ? rotation.turns + pair * rope::turn_bytes : still;
    for (std::size_t part = 0; part < parts<Isa>; ++part) {
      Kernel::store_turns(Isa::load(turns + part * Isa::bytes), Isa::load(turns + slots + part * Isa::bytes),
                          Isa::spread_bits(turns + 2 * slots + part * Isa::bytes / 8),
                          Isa::spread_bits(turns + 2 * slots + 8 + part * Isa::bytes / 8), rotation.pairs, pair, part,
                          memory);
    }
  }
}

}  // namespace PQATTN_X86_UNIT
}  // namespace x86
}  // namespace v0
}  // namespace pqattn

#endif  // PQATTN_X86_AVX2
