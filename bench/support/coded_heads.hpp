// SPDX-License-Identifier: MIT
// KV heads coded by the host bank, each with codebooks of its own, and decode attention on them through the public API.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "pqattn/attend/attend.hpp"
#include "pqattn/bank/host/host_bank.hpp"
#include "pqattn/train/channel_order.hpp"
#include "support/memory.hpp"
#include "support/worker_pool.hpp"

namespace bench {

/// Shape of one run: `tokens` is a multiple of 64.
struct head_shape {
  std::uint32_t dim = 128;
  std::uint32_t subvectors = 32;
  std::uint32_t bits = 8;
  std::size_t tokens = 0;
  const std::uint16_t* key_order = nullptr;  ///< channels of keys; null for the model's order

  [[nodiscard]] pqattn::geometry geometry() const { return {dim, subvectors, 1u << bits, 1, nullptr}; }
  [[nodiscard]] pqattn::geometry key_geometry() const { return {dim, subvectors, 1u << bits, 1, key_order}; }
  /// Codes of keys and values.
  [[nodiscard]] double code_bytes_per_token() const { return 2.0 * subvectors * bits / 8.0; }
};

/// A rotation over all channels, theta 10000, and the order in which a cache codes keys before RoPE by default.
class rotation_of {
 public:
  explicit rotation_of(std::uint32_t dim) : frequencies_(dim / 2), memory_(pqattn::rope_floats(dim / 2)), order_(dim) {
    pqattn::fill_rope_frequencies(frequencies_.data(), dim, 10000.0);
    static_cast<void>(
        pqattn::build_rope(frequencies_.data(), dim / 2, pqattn::rope_pairing::half_split, memory_.data(), rotation_));
    pqattn::fill_pair_order(rotation_, dim, order_.data());
  }
  rotation_of(const rotation_of&) = delete;
  rotation_of& operator=(const rotation_of&) = delete;
  [[nodiscard]] const pqattn::rope& get() const { return rotation_; }
  [[nodiscard]] const std::uint16_t* order() const { return order_.data(); }

 private:
  std::vector<float> frequencies_;
  std::vector<float> memory_;
  std::vector<std::uint16_t> order_;
  pqattn::rope rotation_;
};

/// As many heads of one shape as together exceed the caches: random codes, and a byte codebook per head for keys and
/// for values. Memory is shared by all runs of one shape.
template <class Isa = pqattn::isa::native>
class coded_heads {
 public:
  using bank_type = pqattn::host_bank<Isa>;
  using segment = pqattn::segment<std::byte*>;

  /// With a rotation, which must live as long as the heads, as must a key order, keys are coded before RoPE.
  explicit coded_heads(const head_shape& shape, const pqattn::rope& rotation = {}, std::size_t at_most = SIZE_MAX)
      : shape_(shape),
        rotation_(rotation),
        code_bytes_(shape.tokens / pqattn::block_tokens * bank_.code_block_bytes(shape.geometry())),
        book_bytes_(pqattn::align_up(bank_.codebook_bytes(shape.geometry(), pqattn::codebook_storage::i8))),
        count_(std::clamp<std::size_t>(cold_bytes() / (2 * (code_bytes_ + book_bytes_)), 1, at_most)),
        codes_(random_bytes(count_ * 2 * code_bytes_)),
        books_(books(bank_, shape, rotation, count_, book_bytes_)) {}

  [[nodiscard]] std::size_t count() const { return count_; }
  [[nodiscard]] bank_type& bank() { return bank_; }
  [[nodiscard]] const head_shape& shape() const { return shape_; }

  [[nodiscard]] segment head(std::size_t index) const {
    segment tokens;
    tokens.keys = source(2 * index);
    tokens.keys.book.rotation = rotation_;
    tokens.values = source(2 * index + 1);
    tokens.slots = {0, shape_.tokens};
    tokens.rotation = rotation_;
    return tokens;
  }

 private:
  [[nodiscard]] pqattn::token_source<std::byte*> source(std::size_t side) const {
    pqattn::token_source<std::byte*> result;
    result.coded = true;
    const pqattn::geometry geometry = side % 2 == 0 ? shape_.key_geometry() : shape_.geometry();
    result.codes = {geometry, codes_ + side * code_bytes_, nullptr};
    result.book = {geometry, pqattn::codebook_storage::i8, books_ + side * book_bytes_};
    return result;
  }

  static std::byte* books(bank_type& bank, const head_shape& shape, const pqattn::rope& rotation, std::size_t heads,
                          std::size_t book_bytes) {
    static std::map<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t, bool>, pages> all;
    const auto key = std::make_tuple(shape.dim, shape.subvectors, shape.bits, rotation.enabled());
    auto place = all.find(key);
    if (place == all.end() || place->second.size() < 2 * heads * book_bytes) {
      if (place != all.end()) {
        all.erase(place);
      }
      place = all.emplace(key, pages(2 * heads * book_bytes)).first;
      std::byte* first = place->second.data();
      store_book(bank, shape.key_geometry(), rotation, first);
      store_book(bank, shape.geometry(), {}, first + book_bytes);
      for (std::size_t head = 1; head < heads; ++head) {
        std::memcpy(first + 2 * head * book_bytes, first, 2 * book_bytes);
      }
    }
    return place->second.data();
  }

  static void store_book(bank_type& bank, const pqattn::geometry& geometry, const pqattn::rope& rotation,
                         std::byte* place) {
    constexpr auto storage = pqattn::codebook_storage::i8;
    std::vector<float> centroids = normals(geometry.codebook_values());
    static_cast<void>(pqattn::round_codebook(geometry, storage, centroids.data(), rotation));
    static_cast<void>(bank.store_codebook({geometry, centroids.data()}, {geometry, storage, place, rotation}));
  }

  bank_type bank_;
  head_shape shape_;
  pqattn::rope rotation_;
  std::size_t code_bytes_;
  std::size_t book_bytes_;
  std::size_t count_;
  std::byte* codes_;
  std::byte* books_;
};

/// Decode attention of `rows` query rows on the segments of one head after the other, everything allocated beforehand.
template <class Bank>
class decode_step {
 public:
  using segment = pqattn::segment<std::byte*>;

  /// `like`: what a head consists of; the coded segments share one set of tables.
  decode_step(Bank& bank, const std::vector<segment>& like, std::uint32_t dim, std::size_t rows, std::size_t workers)
      : bank_(bank),
        pool_(workers),
        dim_(dim),
        rows_(rows),
        queries(normals(rows * dim)),
        out(rows * dim),
        tables_(table_bytes(bank, like, rows)),
        workspace_(pqattn::attention_workspace_bytes(like.data(), like.size(), rows, dim, dim, workers)) {
    params.parts = pool_.executor();
    params.skip_mass = 0.0f;
  }

  pqattn::status run(std::vector<segment> head) {
    for (segment& tokens : head) {
      tokens.tables = tables_.data();
    }
    return pqattn::attend(bank_, pqattn::view_rows(queries.data(), rows_, dim_), head.data(), head.size(), params,
                          workspace_.data(), workspace_.size(), pqattn::ref_rows(out.data(), rows_, dim_), nullptr);
  }

 private:
  static std::size_t table_bytes(Bank& bank, const std::vector<segment>& like, std::size_t rows) {
    std::size_t most = 0;
    for (const segment& tokens : like) {
      if (tokens.keys.coded) {
        most = std::max(most, pqattn::attention_table_bytes(bank, tokens.keys.book.shape, rows, tokens.rotation));
      }
    }
    return most;
  }

  Bank& bank_;
  worker_pool pool_;
  std::uint32_t dim_;
  std::size_t rows_;

 public:
  std::vector<float> queries;  ///< (rows, dim)
  std::vector<float> out;      ///< (rows, dim)
  pqattn::attention_params params;

 private:
  pages tables_;
  pages workspace_;
};

}  // namespace bench
