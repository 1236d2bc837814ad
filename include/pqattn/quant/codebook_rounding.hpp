// SPDX-License-Identifier: MIT
// What becomes of centroids when a codebook is stored in fewer bits. Training rounds once; every bank that stores
// the rounded codebook in the same format gives back the same numbers, so codes agree between banks.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../core/half.hpp"
#include "../core/status.hpp"
#include "codebook.hpp"
#include "geometry.hpp"
#include "rope.hpp"

namespace pqattn {
inline namespace v0 {

/// How the numbers of a codebook are kept.
enum class codebook_storage : std::uint8_t {
  f32,  ///< 4 bytes a number, exactly as trained
  f16,  ///< 2 bytes, rounded to nearest even; numbers must fit the range of binary16
  i8,   ///< 1 byte and an affine scale per (stage, channel): offset + scale * q, q in [-127, 127]
};

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Largest magnitude of a channel's centroids in stage `stage`; 0 for a channel that does not exist.
[[nodiscard]] inline float largest_component(const codebook_view& book, std::uint32_t stage,
                                             std::uint32_t channel) noexcept {
  float largest = 0.0f;
  for (std::uint32_t run = 0; run < book.shape.subvectors; ++run) {
    const std::uint32_t first = book.shape.first_channel(run);
    const std::uint32_t width = book.shape.width(run);
    for (std::uint32_t c = 0; c < width; ++c) {
      if (book.shape.channel(first + c) == channel) {
        const float* centroids = book.group(stage * book.shape.subvectors + run);
        for (std::uint32_t k = 0; k < book.shape.centroids; ++k) {
          const float value = std::fabs(centroids[static_cast<std::size_t>(k) * width + c]);
          largest = value > largest ? value : largest;
        }
        return largest;
      }
    }
  }
  return largest;
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

[[nodiscard]] constexpr std::size_t size_of(codebook_storage storage) noexcept {
  return storage == codebook_storage::f32 ? 4 : storage == codebook_storage::f16 ? 2 : 1;
}

/// Bytes a codebook occupies where it is stored densely, scales included: what memory reports quote.
[[nodiscard]] constexpr std::size_t stored_codebook_bytes(const geometry& shape, codebook_storage storage) noexcept {
  const std::size_t scales =
      storage == codebook_storage::i8 ? std::size_t{2} * sizeof(float) * shape.stages * shape.dim : 0;
  return shape.codebook_values() * size_of(storage) + scales;
}

}  // namespace PQATTN_ISA_UNIT

/// Affine map of one channel's centroids to bytes.
struct channel_scale {
  float scale = 0.0f;
  float offset = 0.0f;

  [[nodiscard]] PQATTN_UNIT_MEMBER std::int8_t quantize(float value) const noexcept {
    if (scale == 0.0f) {
      return 0;
    }
    // A subnormal scale is coarse: the quotient may exceed 127.
    const float level = (value - offset) / scale;
    return static_cast<std::int8_t>(std::lrintf(level > 127.0f ? 127.0f : level < -127.0f ? -127.0f : level));
  }
  [[nodiscard]] PQATTN_UNIT_MEMBER float restore(std::int8_t level) const noexcept {
    return std::fma(scale, static_cast<float>(level), offset);
  }
};

inline namespace PQATTN_ISA_UNIT {

/// The i8 map of channel `channel` of a group: its centroids' range onto [-127, 127].
[[nodiscard]] inline channel_scale scale_of_channel(const codebook_view& book, std::uint32_t group,
                                                    std::uint32_t channel) noexcept {
  const std::uint32_t width = book.shape.width(group);
  const float* centroids = book.group(group);
  float low = centroids[channel];
  float high = low;
  for (std::uint32_t k = 1; k < book.shape.centroids; ++k) {
    const float value = centroids[static_cast<std::size_t>(k) * width + channel];
    low = value < low ? value : low;
    high = value > high ? value : high;
  }
  // Halve before subtracting: high - low may overflow when both are huge.
  return {(0.5f * high - 0.5f * low) / 127.0f, 0.5f * high + 0.5f * low};
}

/// Bytes that a component of a turning pair may use: rotated by any angle it stays within a byte, as
/// 89.5 * sqrt(2) < 127.
inline constexpr float turning_levels = 89.0f;

/// The i8 map of a channel of keys coded before RoPE: channels that turn together share a scale and have no offset, so
/// that the bytes themselves can be turned. Without a rotation the map is that of the channel's range.
/// O(dim + centroids).
[[nodiscard]] inline channel_scale scale_of_channel(const codebook_view& book, std::uint32_t group,
                                                    std::uint32_t channel, const rope& rotation) noexcept {
  const std::uint32_t first = book.shape.channel(book.shape.first_channel(group) + channel);
  if (!rotation.enabled()) {
    return scale_of_channel(book, group, channel);
  }
  // Channels that do not turn are paired with their neighbours, as the banks' programs take them.
  std::uint32_t second = 2 * rotation.pairs + ((first - 2 * rotation.pairs) ^ 1u);
  if (rotation.rotates(first)) {
    const std::uint32_t pair = rotation.pair_of(first);
    second = rotation.is_second(first) ? rotation.first(pair) : rotation.second(pair);
  }
  const std::uint32_t stage = group / book.shape.subvectors;
  const float one = detail::largest_component(book, stage, first);
  const float two = detail::largest_component(book, stage, second);
  return {(one > two ? one : two) / turning_levels, 0.0f};
}

/// Rounds all centroids in place to what `storage` can hold; `rotation` is that of keys coded before RoPE.
/// Errors: a number that binary16 cannot hold (its index is named). O(codebook_values).
inline status round_codebook(const geometry& shape, codebook_storage storage, float* centroids,
                             const rope& rotation = {}) noexcept {
  if (storage == codebook_storage::f16) {
    for (std::size_t i = 0; i < shape.codebook_values(); ++i) {
      const float rounded = to_float(to_half(centroids[i]));
      if (!is_finite(rounded)) {
        return failure(status_code::unsupported, "codebook", "has a number outside binary16 at index", 0, i);
      }
    }
    for (std::size_t i = 0; i < shape.codebook_values(); ++i) {
      centroids[i] = to_float(to_half(centroids[i]));
    }
  } else if (storage == codebook_storage::i8) {
    const codebook_view book{shape, centroids};
    channel_scale maps[max_dim * max_stages];  // all before the first is used: a pair's depends on two channels
    for (std::uint32_t group = 0, at = 0; group < shape.groups(); ++group) {
      for (std::uint32_t channel = 0; channel < shape.width(group); ++channel) {
        maps[at++] = scale_of_channel(book, group, channel, rotation);
      }
    }
    for (std::uint32_t group = 0, at = 0; group < shape.groups(); ++group) {
      const std::uint32_t width = shape.width(group);
      float* values = centroids + shape.codebook_offset(group);
      for (std::uint32_t channel = 0; channel < width; ++channel) {
        const channel_scale map = maps[at++];
        for (std::uint32_t k = 0; k < shape.centroids; ++k) {
          float& value = values[static_cast<std::size_t>(k) * width + channel];
          value = map.restore(map.quantize(value));
        }
      }
    }
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
