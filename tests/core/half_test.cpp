// SPDX-License-Identifier: MIT
#include "pqattn/core/half.hpp"

#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "support/random_data.hpp"

using pqattn::bfloat16;
using pqattn::half;
using pqattn::to_bfloat16;
using pqattn::to_float;
using pqattn::to_half;

static_assert(sizeof(half) == 2 && sizeof(bfloat16) == 2);
static_assert(std::is_trivially_copyable_v<half> && std::is_trivially_copyable_v<bfloat16>);
static_assert(to_float(half{0x3c00}) == 1.0f && to_half(1.0f).bits == 0x3c00, "conversions work at compile time");

namespace {

/// The value of a binary format from its definition; infinity and NaN as such.
double value_of(std::uint32_t bits, int exponent_bits, int mantissa_bits) {
  const double sign = (bits >> (exponent_bits + mantissa_bits)) != 0 ? -1.0 : 1.0;
  const int exponent = static_cast<int>((bits >> mantissa_bits) & ((1u << exponent_bits) - 1));
  const double mantissa = static_cast<double>(bits & ((1u << mantissa_bits) - 1)) / std::ldexp(1.0, mantissa_bits);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa == 0.0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  return exponent == 0 ? sign * std::ldexp(mantissa, 1 - bias) : sign * std::ldexp(1.0 + mantissa, exponent - bias);
}

/// Whether `got` is `value` rounded to nearest, ties to even, among the 16-bit numbers of a format.
bool is_rounded(float value, std::uint16_t got, int exponent_bits, int mantissa_bits) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if ((got & 0x8000) != sign) {
    return false;
  }
  const double x = std::abs(static_cast<double>(value));
  const auto magnitude = static_cast<std::uint16_t>(got & 0x7fff);
  const std::uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
  // The number after the largest finite one, were there no infinity: rounding to it overflows.
  const auto number = [&](std::uint32_t bits) {
    return bits == infinity ? std::ldexp(1.0, 1 << (exponent_bits - 1)) : value_of(bits, exponent_bits, mantissa_bits);
  };
  if (magnitude > infinity) {
    return false;
  }
  if (std::isinf(value)) {
    return magnitude == infinity;
  }
  const double chosen = std::abs(x - number(magnitude));
  const double below = magnitude == 0 ? chosen + 1.0 : std::abs(x - number(magnitude - 1u));
  const double above = magnitude == infinity ? x + 1e300 : std::abs(x - number(magnitude + 1u));
  if (magnitude == infinity && x >= number(infinity)) {
    return true;
  }
  const bool even = magnitude % 2 == 0;
  return (chosen < below || (chosen == below && even)) && (chosen < above || (chosen == above && even));
}

template <class Convert>
void check_rounding(Convert convert, int exponent_bits, int mantissa_bits) {
  const auto check = [&](float value) {
    if (!is_rounded(value, convert(value).bits, exponent_bits, mantissa_bits)) {
      CAPTURE(std::bit_cast<std::uint32_t>(value), value, convert(value).bits);
      FAIL("not rounded to nearest even");
    }
  };
  // Every number of the format, the middles between neighbours, and the floats beside both.
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const double value = value_of(bits, exponent_bits, mantissa_bits);
    if (!std::isfinite(value)) {
      continue;
    }
    const double next = value_of(bits + 1, exponent_bits, mantissa_bits);
    const double middle = std::isfinite(next) && bits != 0x7fff ? (value + next) / 2 : value;
    for (const double base : {value, middle}) {
      const auto x = static_cast<float>(base);
      check(x);
      check(std::nextafter(x, std::numeric_limits<float>::infinity()));
      check(std::nextafter(x, -std::numeric_limits<float>::infinity()));
    }
  }
  pqattn_test::random_data random(static_cast<std::uint64_t>(mantissa_bits));
  CAPTURE(random.seed());
  for (int i = 0; i < 200000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(random.below(std::size_t{1} << 32)));
    if (!std::isnan(value)) {
      check(value);
    }
  }
  check(std::numeric_limits<float>::max());
  check(-std::numeric_limits<float>::max());
  check(std::numeric_limits<float>::denorm_min());
  check(std::numeric_limits<float>::infinity());
  check(-std::numeric_limits<float>::infinity());
}

}  // namespace

TEST_CASE("every binary16 number widens exactly and comes back", "[core]") {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const half stored{static_cast<std::uint16_t>(bits)};
    const float wide = to_float(stored);
    const double expected = value_of(bits, 5, 10);
    if (std::isnan(expected)) {
      wrong += !std::isnan(wide) || !std::isnan(to_float(to_half(wide)));
    } else {
      wrong +=
          static_cast<double>(wide) != expected || std::signbit(wide) != (bits >= 0x8000) || to_half(wide).bits != bits;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("every bfloat16 number widens exactly and comes back", "[core]") {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const bfloat16 stored{static_cast<std::uint16_t>(bits)};
    const float wide = to_float(stored);
    const double expected = value_of(bits, 8, 7);
    if (std::isnan(expected)) {
      wrong += !std::isnan(wide) || !std::isnan(to_float(to_bfloat16(wide)));
    } else {
      wrong += static_cast<double>(wide) != expected || std::signbit(wide) != (bits >= 0x8000) ||
               to_bfloat16(wide).bits != bits;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("binary16 rounds to nearest even", "[core]") {
  check_rounding([](float x) { return to_half(x); }, 5, 10);
  CHECK(to_half(65504.0f).bits == 0x7bff);
  CHECK(to_half(65519.996f).bits == 0x7bff);
  CHECK(to_half(65520.0f).bits == 0x7c00);
}

TEST_CASE("bfloat16 rounds to nearest even", "[core]") {
  check_rounding([](float x) { return to_bfloat16(x); }, 8, 7);
}

TEST_CASE("NaN stays NaN, whatever its payload and sign", "[core]") {
  int wrong = 0;
  for (std::uint32_t payload = 1; payload < 0x800000; payload += payload < 0x10000 ? 1 : 0x1001) {
    for (const std::uint32_t sign : {0u, 0x80000000u}) {
      const auto value = std::bit_cast<float>(sign | 0x7f800000u | payload);
      wrong += !std::isnan(to_float(to_half(value))) || !std::isnan(to_float(to_bfloat16(value)));
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("is_finite reads the bits", "[core]") {
  CHECK(pqattn::is_finite(0.0f));
  CHECK(pqattn::is_finite(std::numeric_limits<float>::max()));
  CHECK(pqattn::is_finite(std::numeric_limits<float>::denorm_min()));
  CHECK_FALSE(pqattn::is_finite(std::numeric_limits<float>::infinity()));
  CHECK_FALSE(pqattn::is_finite(-std::numeric_limits<float>::infinity()));
  CHECK_FALSE(pqattn::is_finite(std::numeric_limits<float>::quiet_NaN()));
  CHECK_FALSE(pqattn::is_finite(std::numeric_limits<float>::signaling_NaN()));
}
