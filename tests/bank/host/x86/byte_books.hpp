// SPDX-License-Identifier: MIT
// Byte codebooks and rows with which searches in integers are compared with the search in f32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "pqattn/bank/host/x86/nearest.hpp"
#include "support/random_data.hpp"

#if PQATTN_X86_AVX2
namespace pqattn_test {

/// Byte planes of `groups` groups of `width` channels, in memory of exactly their size.
struct byte_book {
  std::size_t groups;
  std::size_t width;
  std::uint32_t count;
  std::size_t entries = (std::size_t{count} + 63) / 64 * 64;
  std::vector<std::int8_t> bytes = std::vector<std::int8_t>(groups * width * entries);
  std::vector<float> scale = std::vector<float>(groups * width, 0.02f);
  std::vector<float> offset = std::vector<float>(groups * width, 0.1f);

  template <class Byte>
  void fill(const Byte& byte) {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = i % entries < count ? static_cast<std::int8_t>(byte()) : bytes[i / entries * entries];
    }
  }
  void fill_normal(random_data& random, float spread) {
    fill([&] { return std::lround(std::fmax(-127.0f, std::fmin(127.0f, spread * random.normal()))); });
  }
  [[nodiscard]] pqattn::x86::byte_planes planes() const { return {bytes.data(), scale.data(), offset.data(), entries}; }
  [[nodiscard]] pqattn::geometry shape() const {
    return {static_cast<std::uint32_t>(groups * width), static_cast<std::uint32_t>(groups), count, 1, nullptr};
  }
  [[nodiscard]] double restored(std::size_t plane, std::size_t k) const {
    return static_cast<double>(offset[plane]) +
           static_cast<double>(scale[plane]) * static_cast<double>(bytes[plane * entries + k]);
  }
};

using byte_rows = std::vector<std::vector<float>>;

/// A row: steps(plane) steps from the offset.
template <class Steps>
std::vector<float> row_at(const byte_book& book, const Steps& steps) {
  std::vector<float> x(book.scale.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = book.offset[i] + book.scale[i] * steps(i);
  }
  return x;
}
inline std::vector<float> row_near(const byte_book& book, random_data& random, float spread) {
  return row_at(book, [&](std::size_t) { return spread * random.normal(); });
}

/// The codes of the search in f32.
template <class Isa>
std::vector<std::uint16_t> codes_in_f32(const byte_book& book, const std::vector<float>& x) {
  const pqattn::geometry shape = book.shape();
  std::vector<std::uint16_t> codes(book.groups, 0xabcd);
  pqattn::group_walk at(shape);
  pqattn::x86::nearest_centroids<Isa, 1>(book.planes(), shape, at, x.data(), 0, codes.data(), 0);
  return codes;
}

/// Moves the sub-vectors of a row to the planes between their two nearest centroids, but for a little.
inline void move_between(const byte_book& book, random_data& random, std::vector<float>& x) {
  for (std::size_t plane = 0; plane < x.size(); plane += book.width) {
    double least[2] = {1e30, 1e30};  // of the two nearest, and which these are
    std::size_t nearest[2] = {0, 0};
    for (std::size_t k = 0; k < book.count; ++k) {
      double distance = 0.0;
      for (std::size_t c = plane; c < plane + book.width; ++c) {
        distance += std::pow(static_cast<double>(x[c]) - book.restored(c, k), 2.0);
      }
      const int place = distance < least[0] ? 0 : distance < least[1] ? 1 : 2;
      if (place == 0) {
        least[1] = least[0];
        nearest[1] = nearest[0];
      }
      if (place < 2) {
        least[place] = distance;
        nearest[place] = k;
      }
    }
    double apart = 0.0;
    for (std::size_t c = plane; c < plane + book.width; ++c) {
      apart += std::pow(book.restored(c, nearest[1]) - book.restored(c, nearest[0]), 2.0);
    }
    const double share = (least[1] - least[0]) / (2.0 * apart) + 1e-5 * static_cast<double>(random.normal());
    for (std::size_t c = plane; c < plane + book.width && apart > 0.0; ++c) {
      x[c] += static_cast<float>(share * (book.restored(c, nearest[1]) - book.restored(c, nearest[0])));
    }
  }
}

/// Calls compare(book, rows) with scenes of books of `groups` groups.
template <class Compare>
void compare_anywhere(random_data& random, std::size_t groups, std::size_t width, std::uint32_t count,
                      const Compare& compare) {
  for (const float spread : {1.5f, 20.0f, 45.0f, 120.0f}) {
    byte_book book{groups, width, count};
    book.fill_normal(random, spread);
    for (float& scale : book.scale) {  // of different sizes within a group
      scale = (random.below(20) == 0 ? -1.0f : 1.0f) * std::exp(random.normal());
    }
    for (float& offset : book.offset) {
      offset = 3.0f * random.normal();
    }
    byte_rows rows;
    for (int round = 0; round < 8; ++round) {
      rows.push_back(row_near(book, random, spread));
    }
    rows.push_back(row_near(book, random, 4.0f * spread));  // many beyond the centroids
    compare(book, rows);
  }
}

template <class Compare>
void compare_near_ties(random_data& random, std::size_t groups, std::size_t width, std::uint32_t count,
                       const Compare& compare) {
  byte_book book{groups, width, count};
  book.fill_normal(random, 45.0f);
  for (float& scale : book.scale) {
    scale = std::exp(0.5f * random.normal());
  }
  byte_rows rows;
  for (int round = 0; round < 100; ++round) {
    rows.push_back(row_near(book, random, 45.0f));
    move_between(book, random, rows.back());
  }
  compare(book, rows);
}

template <class Compare>
void compare_equal_centroids(random_data& random, std::size_t groups, std::size_t width, std::uint32_t count,
                             const Compare& compare) {
  byte_book book{groups, width, count};
  book.fill_normal(random, 1.0f);  // few different bytes: most centroids occur many times
  byte_rows rows;
  for (int round = 0; round < 50; ++round) {
    rows.push_back(row_near(book, random, 1.0f));
    // halfway between two, or on one
    rows.push_back(row_at(book, [&](std::size_t) { return 0.5f * std::round(2.0f * random.normal()); }));
  }
  compare(book, rows);
}

template <class Compare>
void compare_at_limits(random_data& random, std::size_t groups, std::size_t width, std::uint32_t count,
                       const Compare& compare) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const float scale : {0.0f, -0.0f, -1e-3f, 1e-38f, 1e-30f, 2e-15f, 1e-3f, 5e14f, 1e30f}) {
    for (const std::size_t odd : {std::size_t{0}, width / 2, width}) {  // how many channels have this scale
      byte_book book{groups, width, count};
      book.fill_normal(random, 60.0f);
      for (std::size_t i = 0; i < book.scale.size(); ++i) {
        book.scale[i] = i % width < odd ? scale : 0.02f;
      }
      byte_rows rows{row_near(book, random, 60.0f)};
      // exactly at, just inside and just outside the furthest step
      rows.push_back(row_at(book, [&](std::size_t i) {
        const float far = std::nextafter(192.0f, i % 3 == 0 ? 0.0f : 400.0f);
        return i % 2 == 0 ? far : -far;
      }));
      for (const float value : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN(), 3e38f, -3e38f, 1e-40f}) {
        rows.push_back(rows[1]);
        for (std::size_t group = 0; group < book.groups; ++group) {
          rows.back()[group * width + group % width] = value;
        }
      }
      compare(book, rows);
    }
  }
}

template <class Compare>
void compare_corners(random_data& random, std::size_t groups, std::size_t width, std::uint32_t count,
                     const Compare& compare) {
  byte_book book{groups, width, count};
  book.fill([&] { return random.below(2) == 0 ? -128 : 127; });
  byte_rows rows;
  for (int round = 0; round < 50; ++round) {
    rows.push_back(row_at(book, [&](std::size_t) {
      return (random.below(2) == 0 ? -191.0f : 191.0f) * (round % 2 == 0 ? 1.0f : static_cast<float>(random.uniform()));
    }));
  }
  compare(book, rows);
}

}  // namespace pqattn_test
#endif
