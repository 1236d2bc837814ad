// SPDX-License-Identifier: MIT
// Random codes and byte codebooks in the host bank's layouts, written here from the layouts' description and
// independently of the kernels, and what they decode to in double.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "pqattn/bank/host/x86/byte_codebook.hpp"
#include "pqattn/quant/geometry.hpp"
#include "support/random_data.hpp"

namespace pqattn_test {

/// Raw memory aligned to 64 bytes, filled with 0xcc.
class aligned_bytes {
 public:
  explicit aligned_bytes(std::size_t count)
      : data_(static_cast<std::byte*>(::operator new (count + 64, std::align_val_t{64}))) {
    std::memset(data_, 0xcc, count + 64);
  }
  aligned_bytes& operator=(aligned_bytes&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~aligned_bytes() { ::operator delete (data_, std::align_val_t{64}); }
  [[nodiscard]] void* data() const { return data_; }

 private:
  std::byte* data_;
};

struct coded_data {
  pqattn::geometry shape;
  std::vector<std::uint16_t> order;
  std::size_t count;
  std::vector<std::uint16_t> codes;  // (slot, group)
  std::vector<std::uint32_t> pages;
  aligned_bytes blocks;
  std::size_t entries;
  aligned_bytes tables;
  std::vector<float> scale;
  std::vector<float> offset;

  coded_data(random_data& random, std::uint32_t dim, std::uint32_t subvectors, std::uint32_t centroids,
             std::uint32_t stages, std::size_t slots)
      : shape{dim, subvectors, centroids, stages, nullptr},
        order(random.permutation<std::uint16_t>(dim)),
        count(slots),
        codes(random.codes(slots * shape.groups(), centroids)),
        pages(random.permutation<std::uint32_t>((slots + 63) / 64 + 2)),
        blocks(pages.size() * block_bytes()),
        entries(std::max<std::size_t>(64, shape.code_limit())),
        tables(stages * dim * entries),
        scale(stages * dim),
        offset(stages * dim) {
    shape.channel_order = order.data();
    auto* bytes = static_cast<std::int8_t*>(tables.data());
    for (std::size_t i = 0; i < scale.size(); ++i) {
      scale[i] = static_cast<float>(random.uniform(0.004, 0.01));
      offset[i] = static_cast<float>(random.uniform(-0.5, 0.5));
      for (std::size_t k = 0; k < entries; ++k) {
        bytes[i * entries + k] =
            k < centroids ? static_cast<std::int8_t>(static_cast<int>(random.below(256)) - 128) : bytes[i * entries];
      }
    }
    auto* garbage = static_cast<std::uint8_t*>(blocks.data());
    for (std::size_t i = 0; i < pages.size() * block_bytes(); ++i) {
      garbage[i] = static_cast<std::uint8_t>(random.below(256));
    }
    for (std::size_t slot = 0; slot < slots; ++slot) {
      for (std::uint32_t group = 0; group < shape.groups(); ++group) {
        put(slot, group, codes[slot * shape.groups() + group]);
      }
    }
  }

  [[nodiscard]] std::size_t block_bytes() const { return std::size_t{shape.groups()} * 8 * shape.code_bits(); }
  [[nodiscard]] pqattn::x86::byte_codebook book() const {
    return {static_cast<const std::int8_t*>(tables.data()), scale.data(), offset.data()};
  }
  [[nodiscard]] std::string name() const {
    return "dim " + std::to_string(shape.dim) + " subvectors " + std::to_string(shape.subvectors) + " centroids " +
           std::to_string(shape.centroids) + " stages " + std::to_string(shape.stages) + " slots " +
           std::to_string(count);
  }

  /// Component of channel `channel` of a slot, as the byte codebook defines it.
  [[nodiscard]] double value(std::size_t slot, std::uint32_t channel) const {
    const auto position = static_cast<std::uint32_t>(std::find(order.begin(), order.end(), channel) - order.begin());
    double sum = 0.0;
    for (std::uint32_t stage = 0; stage < shape.stages; ++stage) {
      std::uint32_t run = 0;
      while (position >= shape.first_channel(run) + shape.width(run)) {
        ++run;
      }
      const std::size_t plane = std::size_t{stage} * shape.dim + position;
      const std::size_t code = codes[slot * shape.groups() + stage * shape.subvectors + run];
      sum += static_cast<double>(offset[plane]) +
             static_cast<double>(scale[plane]) *
                 static_cast<double>(static_cast<const std::int8_t*>(tables.data())[plane * entries + code]);
    }
    return sum;
  }

 private:
  void put(std::size_t slot, std::uint32_t group, unsigned code) {
    const unsigned bits = shape.code_bits();
    auto* at = static_cast<std::uint8_t*>(blocks.data()) + pages[slot / 64] * block_bytes() + group * 8 * bits;
    const std::size_t s = slot % 64;
    unsigned done = 0;
    for (; done + 8 <= bits; done += 8, at += 64) {
      at[s] = static_cast<std::uint8_t>(code >> done);
    }
    if (bits - done >= 4) {
      const unsigned nibble = (code >> done) & 15u;
      std::uint8_t& pair = at[s % 32];
      pair = static_cast<std::uint8_t>(s < 32 ? (pair & 0xf0u) | nibble : (pair & 0x0fu) | (nibble << 4));
      done += 4;
      at += 32;
    }
    for (; done < bits; ++done, at += 8) {
      const auto mask = static_cast<std::uint8_t>(1u << (s % 8));
      at[s / 8] = static_cast<std::uint8_t>(((code >> done) & 1u) != 0 ? at[s / 8] | mask : at[s / 8] & ~mask);
    }
  }
};

/// Shapes that every look-up kernel is tested with: all code widths, ragged runs, stages.
struct coded_case {
  std::uint32_t dim, subvectors, centroids, stages;
};
inline constexpr coded_case coded_cases[] = {{64, 16, 256, 1}, {128, 64, 16, 1}, {40, 10, 200, 1}, {17, 5, 2, 1},
                                             {9, 2, 4, 2},     {33, 8, 7, 1},    {20, 20, 30, 1},  {24, 7, 64, 2},
                                             {64, 8, 128, 1},  {32, 8, 256, 2},  {32, 8, 512, 1},  {1, 1, 300, 1}};

}  // namespace pqattn_test
