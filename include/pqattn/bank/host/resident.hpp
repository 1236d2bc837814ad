// SPDX-License-Identifier: MIT
// The host bank's layout of a codebook: one plane of numbers per (stage, channel position), entry k for centroid k.
//
// Planes suit every program: encoding and tables run over many centroids of one channel, look-ups read one channel
// of many codes. A plane has room for code_limit() entries and at least 64, a whole number of 64-byte lines; entries
// past K repeat centroid 0, so that garbage codes decode to finite numbers and never win an argmin.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../../config.hpp"
#include "../../core/memory.hpp"
#include "../bank.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Entries of one plane.
[[nodiscard]] constexpr std::size_t plane_entries(const geometry& shape) noexcept {
  return shape.code_limit() < 64 ? 64 : shape.code_limit();
}

/// Read access to a codebook in host memory.
struct host_codebook {
  const resident_codebook<std::byte*>& book;

  [[nodiscard]] std::size_t plane_bytes() const noexcept { return plane_entries(book.shape) * size_of(book.storage); }
  [[nodiscard]] std::size_t planes() const noexcept { return std::size_t{book.shape.stages} * book.shape.dim; }

  /// Plane of channel `channel` of a group.
  [[nodiscard]] std::size_t plane_of(std::uint32_t group, std::uint32_t channel) const noexcept {
    return static_cast<std::size_t>(group / book.shape.subvectors) * book.shape.dim + book.shape.first_channel(group) +
           channel;
  }
  [[nodiscard]] std::byte* plane(std::size_t index) const noexcept { return book.memory + index * plane_bytes(); }

  /// Affine maps of i8 planes: all scales, then all offsets.
  [[nodiscard]] float* scales() const noexcept { return reinterpret_cast<float*>(plane(planes())); }
  [[nodiscard]] float* offsets() const noexcept {
    return reinterpret_cast<float*>(plane(planes()) + align_up(planes() * sizeof(float)));
  }

  [[nodiscard]] std::size_t bytes() const noexcept {
    const std::size_t maps = book.storage == codebook_storage::i8 ? 2 * align_up(planes() * sizeof(float)) : 0;
    return planes() * plane_bytes() + maps;
  }

  [[nodiscard]] float entry(std::size_t index, std::size_t k) const noexcept {
    const std::byte* numbers = plane(index);
    switch (book.storage) {
      case codebook_storage::f16: return to_float(reinterpret_cast<const half*>(numbers)[k]);
      case codebook_storage::i8: {
        const channel_scale map{scales()[index], offsets()[index]};
        return map.restore(reinterpret_cast<const std::int8_t*>(numbers)[k]);
      }
      case codebook_storage::f32: break;
    }
    return reinterpret_cast<const float*>(numbers)[k];
  }

  /// Widens entries [first, first + count) of a plane to f32; count is a multiple of 64.
  template <class Isa>
  void expand(std::size_t index, std::size_t first, std::size_t count, float* PQATTN_RESTRICT target) const noexcept {
    const std::byte* numbers = plane(index);
    if (book.storage == codebook_storage::f32) {
      std::memcpy(target, reinterpret_cast<const float*>(numbers) + first, count * sizeof(float));
    } else if (book.storage == codebook_storage::f16) {
      const auto* source = reinterpret_cast<const half*>(numbers) + first;
      for (std::size_t k = 0; k < count; ++k) {
        // Branch-free, so that it vectorises; stored numbers are finite. Scaling by 2^112 rebases the exponent.
        const std::uint32_t bits = source[k].bits;
        const float magnitude = std::bit_cast<float>((bits & 0x7fffu) << 13) * 0x1p112f;
        target[k] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | (bits & 0x8000u) << 16);
      }
    } else {
      const auto* source = reinterpret_cast<const std::int8_t*>(numbers) + first;
      const channel_scale map{scales()[index], offsets()[index]};
      for (std::size_t k = 0; k < count; ++k) {
        target[k] = map.restore(source[k]);
      }
    }
  }
};

/// Lays a codebook out in planes. Pre: the memory holds host_codebook::bytes().
inline status store_planes(const codebook_view& book, const resident_codebook<std::byte*>& resident) noexcept {
  const geometry& shape = book.shape;
  const host_codebook target{resident};
  const auto centroid = [&](std::uint32_t group, std::uint32_t channel, std::size_t k) {
    return book.group(group)[(k < shape.centroids ? k : 0) * shape.width(group) + channel];
  };
  if (resident.storage == codebook_storage::f16) {
    for (std::size_t i = 0; i < shape.codebook_values(); ++i) {
      if (!is_finite(to_float(to_half(book.centroids[i])))) {
        return failure(status_code::unsupported, "codebook", "has a number outside binary16 at index", 0, i);
      }
    }
  }
  for (std::uint32_t group = 0; group < shape.groups(); ++group) {
    for (std::uint32_t channel = 0; channel < shape.width(group); ++channel) {
      const std::size_t index = target.plane_of(group, channel);
      std::byte* numbers = target.plane(index);
      if (resident.storage == codebook_storage::i8) {
        const channel_scale map = scale_of_channel(book, group, channel, resident.rotation);
        target.scales()[index] = map.scale;
        target.offsets()[index] = map.offset;
        for (std::size_t k = 0; k < plane_entries(shape); ++k) {
          reinterpret_cast<std::int8_t*>(numbers)[k] = map.quantize(centroid(group, channel, k));
        }
      } else if (resident.storage == codebook_storage::f16) {
        for (std::size_t k = 0; k < plane_entries(shape); ++k) {
          reinterpret_cast<half*>(numbers)[k] = to_half(centroid(group, channel, k));
        }
      } else {
        for (std::size_t k = 0; k < plane_entries(shape); ++k) {
          reinterpret_cast<float*>(numbers)[k] = centroid(group, channel, k);
        }
      }
    }
  }
  return {};
}

/// Inverse of store_planes, after rounding to the stored format.
inline void load_planes(const resident_codebook<std::byte*>& resident, float* centroids) noexcept {
  const geometry& shape = resident.shape;
  const host_codebook source{resident};
  for (std::uint32_t group = 0; group < shape.groups(); ++group) {
    const std::uint32_t width = shape.width(group);
    for (std::uint32_t k = 0; k < shape.centroids; ++k) {
      for (std::uint32_t channel = 0; channel < width; ++channel) {
        centroids[shape.codebook_offset(group) + static_cast<std::size_t>(k) * width + channel] =
            source.entry(source.plane_of(group, channel), k);
      }
    }
  }
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

}  // namespace v0
}  // namespace pqattn
