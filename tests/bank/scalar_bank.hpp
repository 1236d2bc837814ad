// SPDX-License-Identifier: MIT
// A bank written to be obviously right: double arithmetic, one number at a time, nothing clever. It keeps its memory
// in a map of byte vectors, and an address is a number into that map: an algorithm that took addresses for pointers
// would not compile with it. Codes lie token-major as uint16, codebooks row-major as f32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <vector>

#include "pqattn/bank/bank.hpp"

namespace pqattn_test {

class scalar_bank {
 public:
  struct address {
    std::uint32_t id = 0;  // 0: no memory
    std::size_t offset = 0;
    friend bool operator==(const address&, const address&) = default;
  };
  static constexpr bool concurrent = false;

  [[nodiscard]] const char* name() const noexcept { return "scalar"; }
  [[nodiscard]] const char* arch_name() const noexcept { return "double"; }

  // Memory
  pqattn::status reserve(std::size_t bytes, address& place) {
    if (bytes > capacity_bytes - used_bytes_) {
      return failure(pqattn::status_code::out_of_memory, "scalar_bank", "is full", bytes, capacity_bytes - used_bytes_);
    }
    used_bytes_ += bytes;
    memory_[++last_id_].assign(bytes, 0xa5);
    place = {last_id_, 0};
    return {};
  }
  void release(address place, std::size_t bytes) noexcept {
    if (place.id != 0 && memory_.erase(place.id) == 1) {
      used_bytes_ -= bytes;
    }
  }
  [[nodiscard]] std::size_t used_bytes() const { return used_bytes_; }
  std::size_t capacity_bytes = std::numeric_limits<std::size_t>::max();

  // Layout
  [[nodiscard]] std::size_t codebook_bytes(const pqattn::geometry& shape, pqattn::codebook_storage) const noexcept {
    return shape.codebook_values() * sizeof(float);
  }
  [[nodiscard]] std::size_t code_block_bytes(const pqattn::geometry& shape) const noexcept {
    return pqattn::block_tokens * shape.groups() * sizeof(std::uint16_t);
  }
  pqattn::status store_codebook(const pqattn::codebook_view& book,
                                const pqattn::resident_codebook<address>& resident) noexcept {
    std::vector<float> rounded(book.centroids, book.centroids + book.shape.codebook_values());
    PQATTN_TRY(round_codebook(book.shape, resident.storage, rounded.data(), resident.rotation));
    write(resident.memory, 0, rounded.data(), rounded.size());
    return {};
  }
  pqattn::status load_codebook(const pqattn::resident_codebook<address>& resident, float* centroids) noexcept {
    read(resident.memory, 0, centroids, resident.shape.codebook_values());
    return {};
  }
  pqattn::status store_codes(const pqattn::code_span<address>& codes, pqattn::slot_range slots,
                             const std::uint16_t* in) noexcept {
    const std::size_t groups = codes.shape.groups();
    for (std::size_t i = 0; i < slots.count; ++i) {
      write(codes.memory, place_of(codes, slots.first + i), in + i * groups, groups);
    }
    return {};
  }
  pqattn::status load_codes(const pqattn::code_span<address>& codes, pqattn::slot_range slots,
                            std::uint16_t* out) noexcept {
    const std::size_t groups = codes.shape.groups();
    for (std::size_t i = 0; i < slots.count; ++i) {
      read(codes.memory, place_of(codes, slots.first + i), out + i * groups, groups);
    }
    return {};
  }

  // Training
  [[nodiscard]] std::size_t point_bytes(std::size_t count, std::uint32_t width) const noexcept {
    return count * width * sizeof(float);
  }
  pqattn::status store_points(const float* values, std::size_t count, std::uint32_t width, address points) noexcept {
    write(points, 0, values, count * width);
    return {};
  }
  pqattn::status assign(address points, std::size_t count, std::uint32_t width, const float* centroids,
                        std::uint32_t centroid_count, std::uint16_t* codes, float* distances) noexcept {
    std::vector<float> point(width);
    for (std::size_t i = 0; i < count; ++i) {
      read(points, i * width * sizeof(float), point.data(), width);
      double best = std::numeric_limits<double>::infinity();
      for (std::uint32_t k = 0; k < centroid_count; ++k) {
        const double distance = squared_distance(point.data(), centroids + std::size_t{k} * width, width);
        if (distance < best) {
          best = distance;
          codes[i] = static_cast<std::uint16_t>(k);
        }
      }
      distances[i] = static_cast<float>(best);
    }
    return {};
  }
  pqattn::status centroid_sums(address points, std::size_t count, std::uint32_t width, const float* weights,
                               const std::uint16_t* codes, std::uint32_t centroid_count, double* sums,
                               double* mass) noexcept {
    std::fill_n(sums, std::size_t{centroid_count} * width, 0.0);
    std::fill_n(mass, centroid_count, 0.0);
    std::vector<float> point(width);
    for (std::size_t i = 0; i < count; ++i) {
      read(points, i * width * sizeof(float), point.data(), width);
      const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[i]);
      mass[codes[i]] += weight;
      for (std::uint32_t c = 0; c < width; ++c) {
        sums[std::size_t{codes[i]} * width + c] += weight * static_cast<double>(point[c]);
      }
    }
    return {};
  }

  // Coding
  pqattn::status encode(const pqattn::rows_view& rows, const pqattn::resident_codebook<address>& book,
                        const pqattn::code_span<address>& codes, pqattn::slot_range slots) noexcept {
    const pqattn::geometry& shape = book.shape;
    const std::vector<float> centroids = centroids_of(book);
    std::vector<float> row(shape.dim);
    std::vector<std::uint16_t> row_codes(shape.groups());
    std::vector<double> rest(shape.max_width());
    for (std::size_t i = 0; i < slots.count; ++i) {
      load_row(rows, i, row.data());
      for (std::uint32_t run = 0; run < shape.subvectors; ++run) {
        const std::uint32_t width = shape.width(run);
        for (std::uint32_t c = 0; c < width; ++c) {
          rest[c] = static_cast<double>(row[shape.channel(shape.first_channel(run) + c)]);
        }
        for (std::uint32_t stage = 0; stage < shape.stages; ++stage) {
          const std::uint32_t group = stage * shape.subvectors + run;
          const float* group_centroids = centroids.data() + shape.codebook_offset(group);
          double best = std::numeric_limits<double>::infinity();
          for (std::uint32_t k = 0; k < shape.centroids; ++k) {
            const double distance = squared_distance(rest.data(), group_centroids + std::size_t{k} * width, width);
            if (distance < best) {
              best = distance;
              row_codes[group] = static_cast<std::uint16_t>(k);
            }
          }
          for (std::uint32_t c = 0; c < width; ++c) {
            rest[c] -= static_cast<double>(group_centroids[std::size_t{row_codes[group]} * width + c]);
          }
        }
      }
      PQATTN_TRY(store_codes(codes, {slots.first + i, 1}, row_codes.data()));
    }
    return {};
  }
  pqattn::status decode(const pqattn::resident_codebook<address>& book, const pqattn::code_span<address>& codes,
                        pqattn::slot_range slots, const pqattn::rows_ref& decoded) noexcept {
    std::vector<float> row(book.shape.dim);
    const std::vector<float> centroids = centroids_of(book);
    for (std::size_t i = 0; i < slots.count; ++i) {
      const std::vector<double> value = row_of_slot(book.shape, centroids, codes, slots.first + i);
      std::copy(value.begin(), value.end(), row.begin());
      store_row(decoded, i, row.data());
    }
    return {};
  }

  // Attention over codes: the "tables" are the queries themselves.
  [[nodiscard]] std::size_t table_bytes(const pqattn::geometry& shape, std::size_t rows,
                                        const pqattn::rope&) const noexcept {
    return rows * shape.dim * sizeof(float);
  }
  pqattn::status prepare_scores(const pqattn::query_rows& queries, const pqattn::resident_codebook<address>& book,
                                const pqattn::rope&, address tables) noexcept {
    for (std::size_t row = 0; row < queries.rows; ++row) {
      write(tables, row * book.shape.dim * sizeof(float), queries.row(row), book.shape.dim);
    }
    return {};
  }
  pqattn::status score(address tables, std::size_t rows, const pqattn::resident_codebook<address>& book,
                       const pqattn::rope& rotation, const pqattn::slot_positions& positions,
                       const pqattn::code_span<address>& codes, pqattn::slot_range slots,
                       const pqattn::score_tile& tile) noexcept {
    const std::uint32_t dim = book.shape.dim;
    const std::vector<float> centroids = centroids_of(book);
    std::vector<float> queries(rows * dim);
    read(tables, 0, queries.data(), queries.size());
    for (std::size_t i = 0; i < slots.count; ++i) {
      std::vector<double> key = row_of_slot(book.shape, centroids, codes, slots.first + i);
      rotate(rotation, positions.at(slots.first + i), key);
      for (std::size_t row = 0; row < rows; ++row) {
        double sum = 0.0;
        for (std::uint32_t c = 0; c < dim; ++c) {
          sum += static_cast<double>(queries[row * dim + c]) * key[c];
        }
        tile.row(row)[i] = static_cast<float>(sum);
      }
    }
    // A caller must not look at what lies behind the slots.
    const std::size_t padded = pqattn::blocks_for(slots.count) * pqattn::block_tokens;
    for (std::size_t row = 0; row < rows; ++row) {
      std::fill(tile.row(row) + slots.count, tile.row(row) + padded, std::numeric_limits<float>::quiet_NaN());
    }
    return {};
  }
  pqattn::status softmax_part(const pqattn::score_tile& tile, std::size_t count,
                              const pqattn::softmax_state& state) noexcept {
    for (std::size_t row = 0; row < tile.rows; ++row) {
      float* scores = tile.row(row);
      float maximum = state.maximum[row];
      for (std::size_t i = 0; i < count; ++i) {
        maximum = std::max(maximum, scores[i]);
      }
      double sum = 0.0;
      for (std::size_t i = 0; i < count; ++i) {
        const bool masked = scores[i] <= 0.5f * pqattn::masked_score;
        const double p = masked ? 0.0 : std::exp(static_cast<double>(scores[i]) - static_cast<double>(maximum));
        scores[i] = static_cast<float>(p);
        sum += p;
      }
      std::fill(scores + count, scores + pqattn::blocks_for(count) * pqattn::block_tokens, 0.0f);
      const double rescale = state.sum[row] == 0.0f
                                 ? 1.0
                                 : std::exp(static_cast<double>(state.maximum[row]) - static_cast<double>(maximum));
      state.rescale[row] = static_cast<float>(rescale);
      state.sum[row] = static_cast<float>(static_cast<double>(state.sum[row]) * rescale + sum);
      state.maximum[row] = maximum;
    }
    return {};
  }
  pqattn::status accumulate_values(const pqattn::score_tile& tile, const pqattn::resident_codebook<address>& book,
                                   const pqattn::code_span<address>& codes, pqattn::slot_range slots,
                                   const pqattn::value_options&, float* out, std::size_t stride) noexcept {
    const std::uint32_t dim = book.shape.dim;
    const std::vector<float> centroids = centroids_of(book);
    std::vector<double> sums(tile.rows * dim, 0.0);
    for (std::size_t i = 0; i < slots.count; ++i) {
      const std::vector<double> value = row_of_slot(book.shape, centroids, codes, slots.first + i);
      for (std::size_t row = 0; row < tile.rows; ++row) {
        for (std::uint32_t c = 0; c < dim; ++c) {
          sums[row * dim + c] += static_cast<double>(tile.row(row)[i]) * value[c];
        }
      }
    }
    add_sums(sums, tile.rows, dim, out, stride);
    return {};
  }

  // Attention over exact rows
  pqattn::status score_rows(const pqattn::query_rows& queries, const pqattn::rows_view& rows,
                            const pqattn::score_tile& tile) noexcept {
    std::vector<float> key(rows.cols);
    for (std::size_t i = 0; i < rows.rows; ++i) {
      load_row(rows, i, key.data());
      for (std::size_t row = 0; row < queries.rows; ++row) {
        double sum = 0.0;
        for (std::size_t c = 0; c < rows.cols; ++c) {
          sum += static_cast<double>(queries.row(row)[c]) * static_cast<double>(key[c]);
        }
        tile.row(row)[i] = static_cast<float>(sum);
      }
    }
    return {};
  }
  pqattn::status accumulate_rows(const pqattn::score_tile& tile, const pqattn::rows_view& rows, float* out,
                                 std::size_t stride) noexcept {
    std::vector<float> value(rows.cols);
    std::vector<double> sums(tile.rows * rows.cols, 0.0);
    for (std::size_t i = 0; i < rows.rows; ++i) {
      load_row(rows, i, value.data());
      for (std::size_t row = 0; row < tile.rows; ++row) {
        const double p = static_cast<double>(tile.row(row)[i]);
        for (std::size_t c = 0; p != 0.0 && c < rows.cols; ++c) {
          sums[row * rows.cols + c] += p * static_cast<double>(value[c]);
        }
      }
    }
    add_sums(sums, tile.rows, rows.cols, out, stride);
    return {};
  }

 private:
  /// A read or write outside a block ends the test program: vector::at throws inside noexcept.
  template <class T>
  void write(address place, std::size_t byte, const T* source, std::size_t count) {
    if (count != 0) {
      std::vector<std::uint8_t>& block = memory_.at(place.id);
      static_cast<void>(block.at(place.offset + byte + count * sizeof(T) - 1));
      std::memcpy(block.data() + place.offset + byte, source, count * sizeof(T));
    }
  }
  template <class T>
  void read(address place, std::size_t byte, T* target, std::size_t count) const {
    if (count != 0) {
      const std::vector<std::uint8_t>& block = memory_.at(place.id);
      static_cast<void>(block.at(place.offset + byte + count * sizeof(T) - 1));
      std::memcpy(target, block.data() + place.offset + byte, count * sizeof(T));
    }
  }
  [[nodiscard]] std::size_t place_of(const pqattn::code_span<address>& codes, std::size_t slot) const noexcept {
    return codes.page(slot / pqattn::block_tokens) * code_block_bytes(codes.shape) +
           slot % pqattn::block_tokens * codes.shape.groups() * sizeof(std::uint16_t);
  }
  [[nodiscard]] std::vector<float> centroids_of(const pqattn::resident_codebook<address>& book) const {
    std::vector<float> centroids(book.shape.codebook_values());
    read(book.memory, 0, centroids.data(), centroids.size());
    return centroids;
  }
  [[nodiscard]] std::vector<double> row_of_slot(const pqattn::geometry& shape, const std::vector<float>& centroids,
                                                const pqattn::code_span<address>& codes, std::size_t slot) const {
    std::vector<std::uint16_t> row_codes(shape.groups());
    read(codes.memory, place_of(codes, slot), row_codes.data(), row_codes.size());
    std::vector<double> row(shape.dim, 0.0);
    for (std::uint32_t group = 0; group < shape.groups(); ++group) {
      // Codes of unused slots may be anything.
      const std::size_t code = row_codes[group] < shape.centroids ? row_codes[group] : 0;
      for (std::uint32_t c = 0; c < shape.width(group); ++c) {
        row[shape.channel(shape.first_channel(group) + c)] +=
            static_cast<double>(centroids[shape.codebook_offset(group) + code * shape.width(group) + c]);
      }
    }
    return row;
  }
  static void rotate(const pqattn::rope& rotation, std::int64_t position, std::vector<double>& row) {
    for (std::uint32_t pair = 0; pair < rotation.pairs; ++pair) {
      const double angle = static_cast<double>(rotation.frequencies[pair]) * static_cast<double>(position);
      double& x = row[rotation.first(pair)];
      double& y = row[rotation.second(pair)];
      const double turned = x * std::cos(angle) - y * std::sin(angle);
      y = x * std::sin(angle) + y * std::cos(angle);
      x = turned;
    }
  }
  template <class Point>
  static double squared_distance(const Point* x, const float* centroid, std::uint32_t width) {
    double sum = 0.0;
    for (std::uint32_t c = 0; c < width; ++c) {
      const double difference = static_cast<double>(x[c]) - static_cast<double>(centroid[c]);
      sum += difference * difference;
    }
    return sum;
  }
  static void add_sums(const std::vector<double>& sums, std::size_t rows, std::size_t cols, float* out,
                       std::size_t stride) {
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t c = 0; c < cols; ++c) {
        out[row * stride + c] = static_cast<float>(static_cast<double>(out[row * stride + c]) + sums[row * cols + c]);
      }
    }
  }

  std::map<std::uint32_t, std::vector<std::uint8_t>> memory_;
  std::uint32_t last_id_ = 0;
  std::size_t used_bytes_ = 0;
};

static_assert(pqattn::bank_policy<scalar_bank>);

}  // namespace pqattn_test
