// SPDX-License-Identifier: MIT
// How a token row of `dim` channels is cut into sub-vectors and coded.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../core/status.hpp"

namespace pqattn {
inline namespace v0 {

/// Largest head size the library handles.
inline constexpr std::uint32_t max_dim = 1024;
/// Largest number of centroids per sub-vector (16-bit codes).
inline constexpr std::uint32_t max_centroids = 65536;
/// Most additive stages.
inline constexpr std::uint32_t max_stages = 8;

/// Shape of one product quantizer: plain data, trivially copyable.
///
/// The channels, taken in `channel_order`, are cut into `subvectors` runs as even as possible: the first
/// dim % subvectors runs have one channel more than the rest. Each run is coded by `stages` additive codes
/// (1 is plain product quantization; stage s codes what stages 0..s-1 left over, and a decoded run is the sum of
/// its stages' centroids). A code row therefore has `groups() = stages * subvectors` codes; group g codes
/// sub-vector g % subvectors in stage g / subvectors.
struct geometry {
  std::uint32_t dim = 0;         ///< channels of a token row, 1 to 1024 (d)
  std::uint32_t subvectors = 0;  ///< runs, 1 to dim (m; M in the paper)
  std::uint32_t centroids = 0;   ///< per group, 2 to 65536 (K)
  std::uint32_t stages = 1;      ///< additive stages, 1 to 8
  /// Optional permutation of dim channels: position p of the coded row holds channel channel_order[p] of the
  /// token row. Null is the identity. Not owned; must outlive every use of this geometry.
  const std::uint16_t* channel_order = nullptr;

  /// Codes per token row.
  [[nodiscard]] constexpr std::uint32_t groups() const noexcept { return subvectors * stages; }
  /// Bits per code: the smallest b with 2^b >= K.
  [[nodiscard]] constexpr std::uint32_t code_bits() const noexcept {
    return static_cast<std::uint32_t>(std::bit_width(centroids - 1));
  }
  /// K rounded up to a power of two: what any stored code is below, even garbage in an unused slot.
  [[nodiscard]] constexpr std::uint32_t code_limit() const noexcept { return 1u << code_bits(); }
  /// Bits of one code row.
  [[nodiscard]] constexpr std::size_t row_bits() const noexcept {
    return static_cast<std::size_t>(groups()) * code_bits();
  }
  /// Bytes of one canonical (token-major) code row.
  [[nodiscard]] constexpr std::size_t row_bytes() const noexcept { return (row_bits() + 7) / 8; }

  /// First channel position of the run that group g codes.
  [[nodiscard]] constexpr std::uint32_t first_channel(std::uint32_t group) const noexcept {
    const std::uint32_t run = group % subvectors;
    const std::uint32_t wide = dim % subvectors;
    return run * (dim / subvectors) + (run < wide ? run : wide);
  }
  /// Channels of the run that group g codes.
  [[nodiscard]] constexpr std::uint32_t width(std::uint32_t group) const noexcept {
    return dim / subvectors + (group % subvectors < dim % subvectors ? 1 : 0);
  }
  /// Width of the widest run.
  [[nodiscard]] constexpr std::uint32_t max_width() const noexcept { return (dim + subvectors - 1) / subvectors; }
  /// Channel of the token row at coded position p.
  [[nodiscard]] constexpr std::uint32_t channel(std::uint32_t position) const noexcept {
    return channel_order == nullptr ? position : channel_order[position];
  }

  /// Floats of a codebook: groups x centroids x width, group after group, each group row-major (centroid, channel).
  [[nodiscard]] constexpr std::size_t codebook_values() const noexcept {
    return static_cast<std::size_t>(stages) * dim * centroids;
  }
  /// Offset in floats of group g's centroids in such a codebook.
  [[nodiscard]] constexpr std::size_t codebook_offset(std::uint32_t group) const noexcept {
    const std::size_t channels = static_cast<std::size_t>(group / subvectors) * dim + first_channel(group);
    return channels * centroids;
  }

  /// Same cut and code width (the channel order is compared by address).
  PQATTN_UNIT_MEMBER friend constexpr bool operator==(const geometry&, const geometry&) noexcept = default;
};

/// Walks through the groups of a geometry in order, without the divisions that first_channel() and width() take.
class group_walk {
 public:
  constexpr explicit group_walk(const geometry& shape) noexcept
      : narrow_(shape.dim / shape.subvectors),
        wide_runs_(shape.dim % shape.subvectors),
        runs_(shape.subvectors),
        left_(shape.groups()) {}

  [[nodiscard]] constexpr bool done() const noexcept { return left_ == 0; }
  [[nodiscard]] constexpr std::uint32_t group() const noexcept { return group_; }
  /// Component the group begins with: stage * dim + first channel.
  [[nodiscard]] constexpr std::size_t plane() const noexcept { return plane_; }
  [[nodiscard]] constexpr std::uint32_t width() const noexcept { return narrow_ + (run_ < wide_runs_ ? 1 : 0); }

  constexpr void next() noexcept {
    plane_ += width();
    run_ = run_ + 1 == runs_ ? 0 : run_ + 1;
    ++group_;
    --left_;
  }

 private:
  std::uint32_t narrow_;
  std::uint32_t wide_runs_;
  std::uint32_t runs_;
  std::uint32_t left_;
  std::uint32_t group_ = 0;
  std::uint32_t run_ = 0;
  std::size_t plane_ = 0;
};

inline namespace PQATTN_ISA_UNIT {

/// Whether every field is in range and the channel order is a permutation. O(dim).
[[nodiscard]] constexpr status check_geometry(const geometry& shape) noexcept {
  if (shape.dim < 1 || shape.dim > max_dim) {
    return failure(status_code::invalid_argument, "geometry.dim", "must be 1 to 1024", max_dim, shape.dim);
  }
  if (shape.subvectors < 1 || shape.subvectors > shape.dim) {
    return failure(status_code::invalid_argument, "geometry.subvectors", "must be 1 to dim", shape.dim,
                   shape.subvectors);
  }
  if (shape.centroids < 2 || shape.centroids > max_centroids) {
    return failure(status_code::invalid_argument, "geometry.centroids", "must be 2 to 65536", max_centroids,
                   shape.centroids);
  }
  if (shape.stages < 1 || shape.stages > max_stages) {
    return failure(status_code::invalid_argument, "geometry.stages", "must be 1 to 8", max_stages, shape.stages);
  }
  if (shape.channel_order != nullptr) {
    std::uint64_t seen[max_dim / 64] = {};
    for (std::uint32_t position = 0; position < shape.dim; ++position) {
      const std::uint32_t channel = shape.channel_order[position];
      if (channel >= shape.dim || ((seen[channel / 64] >> (channel % 64)) & 1u) != 0) {
        return failure(status_code::invalid_argument, "geometry.channel_order",
                       "is not a permutation; first bad entry is at position", position, channel);
      }
      seen[channel / 64] |= std::uint64_t{1} << (channel % 64);
    }
  }
  return {};
}

/// Whether two geometries that belong together are equal. Errors: shape_mismatch with the first number that differs.
[[nodiscard]] constexpr status check_same_geometry(const geometry& expected, const geometry& got,
                                                   const char* subject) noexcept {
  const auto mismatch = [subject](const char* problem, std::uint32_t is_expected, std::uint32_t is_given) {
    return failure(status_code::shape_mismatch, subject, problem, is_expected, is_given);
  };
  if (got.dim != expected.dim) {
    return mismatch("has another geometry.dim", expected.dim, got.dim);
  }
  if (got.subvectors != expected.subvectors) {
    return mismatch("has another geometry.subvectors", expected.subvectors, got.subvectors);
  }
  if (got.centroids != expected.centroids) {
    return mismatch("has another geometry.centroids", expected.centroids, got.centroids);
  }
  if (got.stages != expected.stages) {
    return mismatch("has another geometry.stages", expected.stages, got.stages);
  }
  return got == expected ? status{}
                         : failure(status_code::shape_mismatch, subject, "has another geometry.channel_order");
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
