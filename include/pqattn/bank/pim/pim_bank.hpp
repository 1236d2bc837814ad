// SPDX-License-Identifier: MIT
// The emulated PIM bank: the reference arithmetic on data that lies in emulated DRAM rows, and an account of what the
// same work would cost. Costs: programs.hpp. Where things lie: placement.hpp. What the account leaves out: docs/pim.md.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../../core/half.hpp"
#include "../../core/memory.hpp"
#include "../../core/status.hpp"
#include "../../core/view.hpp"
#include "../bank.hpp"
#include "functional_memory.hpp"
#include "programs.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

/// A memory bank on an emulated PIM device. One thread at a time. Call configure() first; until then every call that
/// can fail does.
///
/// bank_options::entries f16 rounds what the bank's units read and store (queries, table entries, probabilities) to
/// binary16; bank_options::sums f16 rounds every running sum of theirs as well, term by term in the order of channels,
/// groups and tokens (f32 is the default: units with wide accumulators). Codes are always found in f32, so that they
/// are those of every other bank.
template <class Mapping = subvector_per_bank>
class pim_bank {
 public:
  using address = device_address;
  static constexpr bool concurrent = false;

  /// Errors: see bank_programs::configure.
  status configure(const device& d, const bank_options& options = {}) {
    configured_ = false;
    PQATTN_TRY(programs_.configure(d, options));
    const organisation& o = d.organisation;
    PQATTN_TRY(memory_.configure(
        programs_.homes(), programs_.rows().rows(), static_cast<std::size_t>(options.channels_per_home),
        static_cast<std::size_t>(o.banks_per_command_channel()), static_cast<std::size_t>(o.row_bytes)));
    PQATTN_TRY(buffer::make({}, scratch_floats * sizeof(float), scratch_memory_));
    scratch_ = reinterpret_cast<float*>(scratch_memory_.data());
    configured_ = true;
    return {};
  }
  pim_bank() = default;
  pim_bank(const pim_bank&) = delete;
  pim_bank& operator=(const pim_bank&) = delete;

  [[nodiscard]] const char* name() const noexcept { return "pim"; }
  [[nodiscard]] const char* arch_name() const noexcept { return programs_.description().name; }

  /// Counters, cycles, energy and occupancy so far.
  [[nodiscard]] const bank_programs<Mapping>& costs() const noexcept { return programs_; }
  /// Every counter and the emulated time back to zero; memory stays.
  void reset() noexcept { programs_.reset_counters(); }
  /// Where reserve() takes memory from: one home per KV head spreads heads over the device.
  [[nodiscard]] std::uint32_t homes() const noexcept { return programs_.homes(); }
  void select_home(std::uint32_t home) noexcept { programs_.select_home(home); }

  // Memory

  /// capacity when the home has no run of free rows that long, unless overflow to the host is allowed.
  status reserve(std::size_t bytes, address& place) {
    if (!configured_) {
      return failure(status_code::invalid_argument, "pim_bank", "has not been configured");
    }
    address taken;
    PQATTN_TRY(programs_.reserve(bytes, taken));
    if (const status added = memory_.add(taken, programs_.rows().rows_for(bytes)); !added) {
      programs_.release(taken, bytes);
      return added;
    }
    place = taken;
    return {};
  }
  void release(address place, std::size_t bytes) noexcept {
    if (place != address{}) {
      memory_.remove(place);
      programs_.release(place, bytes);
    }
  }

  // Layout

  [[nodiscard]] std::size_t codebook_bytes(const geometry& shape, codebook_storage storage) const noexcept {
    return programs_.codebook_bytes(shape, storage);
  }
  [[nodiscard]] std::size_t code_block_bytes(const geometry& shape) const noexcept {
    return programs_.code_block_bytes(shape);
  }
  status store_codebook(const codebook_view& book, const resident_codebook<address>& resident) noexcept {
    if (resident.storage == codebook_storage::f16) {
      for (std::size_t i = 0; i < book.shape.codebook_values(); ++i) {
        if (!is_finite(to_float(to_half(book.centroids[i])))) {
          return failure(status_code::unsupported, "codebook", "has a number outside binary16 at index", 0, i);
        }
      }
    }
    const stopwatch timed(programs_);
    PQATTN_TRY(programs_.store_codebook(resident));
    const code_placement p = programs_.placement(book.shape);
    for (std::int64_t stripe = 0; stripe < p.stripes(); ++stripe) {
      for (std::uint32_t group = 0; group < book.shape.groups(); ++group) {
        write_group(book, group, resident, group_memory(p, resident, group, stripe));
      }
    }
    return {};
  }
  status load_codebook(const resident_codebook<address>& resident, float* centroids) noexcept {
    const stopwatch timed(programs_);
    PQATTN_TRY(programs_.load_codebook(resident));
    const code_placement p = programs_.placement(resident.shape);
    for (std::uint32_t group = 0; group < resident.shape.groups(); ++group) {
      const group_view view = group_of(p, resident, group, 0);
      for (std::uint32_t k = 0; k < resident.shape.centroids; ++k) {
        for (std::uint32_t c = 0; c < view.width; ++c) {
          centroids[resident.shape.codebook_offset(group) + std::size_t{k} * view.width + c] = view.value(k, c);
        }
      }
    }
    return {};
  }
  status store_codes(const code_span<address>& codes, slot_range slots, const std::uint16_t* in) noexcept {
    const stopwatch timed(programs_);
    PQATTN_TRY(programs_.store_codes(codes, slots));
    const code_placement p = programs_.placement(codes.shape);
    const std::uint32_t groups = codes.shape.groups();
    for (std::size_t i = 0; i < slots.count; ++i) {
      for (std::uint32_t g = 0; g < groups; ++g) {
        put_code(p, codes, slots.first + i, g, in[i * groups + g]);
      }
    }
    return {};
  }
  status load_codes(const code_span<address>& codes, slot_range slots, std::uint16_t* out) noexcept {
    const stopwatch timed(programs_);
    PQATTN_TRY(programs_.load_codes(codes, slots));
    const code_placement p = programs_.placement(codes.shape);
    const std::uint32_t groups = codes.shape.groups();
    for (std::size_t i = 0; i < slots.count; ++i) {
      for (std::uint32_t g = 0; g < groups; ++g) {
        out[i * groups + g] = code_at(p, codes, slots.first + i, g);
      }
    }
    return {};
  }

  // Training

  [[nodiscard]] std::size_t point_bytes(std::size_t count, std::uint32_t width) const noexcept {
    return programs_.point_bytes(count, width);
  }
  status store_points(const float* values, std::size_t count, std::uint32_t width, address points) noexcept {
    const stopwatch timed(programs_);
    PQATTN_TRY(programs_.store_points(count, width, points));
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(point(points, i, width), values + i * width, width * sizeof(float));
    }
    return {};
  }
  status assign(address points, std::size_t count, std::uint32_t width, const float* centroids,
                std::uint32_t centroid_count, std::uint16_t* codes, float* distances) noexcept {
    const stopwatch timed(programs_);
    PQATTN_TRY(programs_.assign(points, count, width, centroid_count));
    float x[max_dim];
    const bool fits = std::size_t{centroid_count} * width <= plane_floats;
    for (std::uint32_t c = 0; fits && c < width; ++c) {
      for (std::uint32_t k = 0; k < centroid_count; ++k) {
        planes()[std::size_t{c} * centroid_count + k] = centroids[std::size_t{k} * width + c];
      }
    }
    const auto value = [&](std::uint32_t k, std::uint32_t c) { return centroids[std::size_t{k} * width + c]; };
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(x, point(points, i, width), width * sizeof(float));
      codes[i] = fits ? nearest(planes(), centroid_count, {0, centroid_count}, x, width, distances + i)
                      : nearest_of(value, {0, centroid_count}, x, width, distances + i);
    }
    return {};
  }
  status centroid_sums(address points, std::size_t count, std::uint32_t width, const float* weights,
                       const std::uint16_t* codes, std::uint32_t centroid_count, double* sums, double* mass) noexcept {
    const stopwatch timed(programs_);
    PQATTN_TRY(programs_.centroid_sums(points, count, width, centroid_count));
    std::fill_n(sums, std::size_t{centroid_count} * width, 0.0);
    std::fill_n(mass, centroid_count, 0.0);
    float x[max_dim];
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(x, point(points, i, width), width * sizeof(float));
      const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[i]);
      mass[codes[i]] += weight;
      for (std::uint32_t c = 0; c < width; ++c) {
        sums[std::size_t{codes[i]} * width + c] += weight * static_cast<double>(x[c]);
      }
    }
    return {};
  }

  // Coding

  status encode(const rows_view& rows, const resident_codebook<address>& book, const code_span<address>& codes,
                slot_range slots) noexcept {
    const stopwatch timed(programs_);
    PQATTN_TRY(programs_.encode(book, codes, slots));
    const code_placement p = programs_.placement(book.shape);
    for (std::uint32_t run = 0; run < book.shape.subvectors; ++run) {
      encode_run(p, rows, book, codes, slots, run);
    }
    return {};
  }
  status decode(const resident_codebook<address>& book, const code_span<address>& codes, slot_range slots,
                const rows_ref& decoded) noexcept {
    const stopwatch timed(programs_);
    PQATTN_TRY(programs_.decode(book, codes, slots));
    const code_placement p = programs_.placement(book.shape);
    for (std::size_t done = 0; done < slots.count;) {
      const slot_range part = block_part(slots, done);
      decode_block(p, book, codes, part, scratch_);
      for (std::size_t i = 0; i < part.count; ++i) {
        store_row(decoded, done + i, scratch_ + i * book.shape.dim);
      }
      done += part.count;
    }
    return {};
  }

  // Attention over codes

  [[nodiscard]] std::size_t table_bytes(const geometry& shape, std::size_t rows, const rope& rotation) const noexcept {
    return programs_.table_bytes(shape, rows, rotation);
  }
  status prepare_scores(const query_rows& queries, const resident_codebook<address>& book, const rope& rotation,
                        address tables) noexcept {
    const stopwatch timed(programs_);
    PQATTN_TRY(programs_.prepare_scores(book, queries.rows, rotation, tables));
    const code_placement p = programs_.placement(book.shape);
    if (rotation.enabled()) {
      store_queries(p, queries, book.shape.dim, tables);
      return {};
    }
    for (std::uint32_t group = 0; group < book.shape.groups(); ++group) {
      for (std::int64_t stripe = 0; stripe < p.stripes(); ++stripe) {
        fill_tables(p, queries, book, group, stripe, tables);
      }
    }
    return {};
  }
  status score(address tables, std::size_t rows, const resident_codebook<address>& book, const rope& rotation,
               const slot_positions& positions, const code_span<address>& codes, slot_range slots,
               const score_tile& tile) noexcept {
    const stopwatch timed(programs_);
    PQATTN_TRY(programs_.score(book, rows, tables, rotation, positions, codes, slots));
    const code_placement p = programs_.placement(book.shape);
    for (std::size_t done = 0; done < slots.count;) {
      const slot_range part = block_part(slots, done);
      if (rotation.enabled()) {
        score_turned(p, tables, rows, book, rotation, positions, codes, part, tile, done);
      } else {
        score_tables(p, tables, rows, book.shape, codes, part, tile, done);
      }
      done += part.count;
    }
    return {};
  }
  status softmax_part(const score_tile& tile, std::size_t count, const softmax_state& state) noexcept {
    const stopwatch timed(programs_);
    PQATTN_TRY(programs_.softmax_part(tile.rows, count));
    const std::size_t padded = blocks_for(count) * block_tokens;
    for (std::size_t row = 0; row < tile.rows; ++row) {
      float* scores = tile.row(row);
      const float maximum = (std::max)(state.maximum[row], *std::max_element(scores, scores + count));
      double sum = 0.0;
      for (std::size_t i = 0; i < count; ++i) {
        scores[i] = scores[i] <= 0.5f * masked_score ? 0.0f : std::exp(scores[i] - maximum);
        sum += static_cast<double>(scores[i]);
      }
      std::fill(scores + count, scores + padded, 0.0f);
      state.rescale[row] = state.sum[row] == 0.0f ? 1.0f : std::exp(state.maximum[row] - maximum);
      state.sum[row] = static_cast<float>(static_cast<double>(state.sum[row] * state.rescale[row]) + sum);
      state.maximum[row] = maximum;
    }
    return {};
  }
  status accumulate_values(const score_tile& tile, const resident_codebook<address>& book,
                           const code_span<address>& codes, slot_range slots, const value_options& options, float* out,
                           std::size_t stride) noexcept {
    const stopwatch timed(programs_);
    PQATTN_TRY(programs_.accumulate_values(book, tile.rows, options.method, codes, slots));
    const code_placement p = programs_.placement(book.shape);
    if (programs_.resolve(options.method) == value_method::histogram) {
      for (std::uint32_t group = 0; group < book.shape.groups(); ++group) {
        for (std::size_t row = 0; row < tile.rows; ++row) {
          add_histogram(p, tile.row(row), book, codes, slots, group, out + row * stride);
        }
      }
      return {};
    }
    for (std::size_t done = 0; done < slots.count;) {
      const slot_range part = block_part(slots, done);
      decode_block(p, book, codes, part, scratch_);
      for (std::size_t row = 0; row < tile.rows; ++row) {
        add_rows(tile.row(row) + done, part.count, book.shape.dim, out + row * stride);
      }
      done += part.count;
    }
    return {};
  }

  // Exact rows: the processor's work

  status score_rows(const query_rows& queries, const rows_view& rows, const score_tile& tile) noexcept {
    const stopwatch timed(programs_);
    programs_.exact_rows(queries.rows, rows.rows, rows.cols, size_of(rows.type), true);
    float key[max_dim];
    for (std::size_t i = 0; i < rows.rows; ++i) {
      load_row(rows, i, key);
      for (std::size_t row = 0; row < queries.rows; ++row) {
        tile.row(row)[i] = dot(queries.row(row), key, rows.cols);
      }
    }
    return {};
  }
  status accumulate_rows(const score_tile& tile, const rows_view& rows, float* out, std::size_t stride) noexcept {
    const stopwatch timed(programs_);
    programs_.exact_rows(tile.rows, rows.rows, rows.cols, size_of(rows.type), false);
    float value[max_dim];
    for (std::size_t i = 0; i < rows.rows; ++i) {
      load_row(rows, i, value);
      for (std::size_t row = 0; row < tile.rows; ++row) {
        const float weight = tile.row(row)[i];
        for (std::size_t c = 0; weight != 0.0f && c < rows.cols; ++c) {
          out[row * stride + c] += weight * value[c];
        }
      }
    }
    return {};
  }

 private:
  // Scratch of the emulator: planes of one run's centroids or 64 decoded rows, then distances or bins.
  static constexpr std::size_t plane_floats = std::size_t{1} << 18;
  static constexpr std::size_t scratch_floats = plane_floats + max_centroids;

  using centroid_range = typename bank_programs<Mapping>::centroid_range;

  /// Adds the time a program took on this machine, apart from everything emulated.
  class stopwatch {
   public:
    explicit stopwatch(bank_programs<Mapping>& programs) noexcept : programs_(programs) {}
    stopwatch(const stopwatch&) = delete;
    stopwatch& operator=(const stopwatch&) = delete;
    ~stopwatch() {
      const auto spent = std::chrono::steady_clock::now() - start_;
      programs_.add_host_wall_ns(std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count());
    }

   private:
    bank_programs<Mapping>& programs_;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  };

  bank_programs<Mapping> programs_;
  functional_memory memory_;
  buffer scratch_memory_;
  float* scratch_ = nullptr;
  bool configured_ = false;

  [[nodiscard]] float* planes() const noexcept { return scratch_; }
  [[nodiscard]] float* bins() const noexcept { return scratch_ + plane_floats; }
  [[nodiscard]] bool narrow() const noexcept { return programs_.options().entries == entry_format::f16; }
  [[nodiscard]] float rounded(float x) const noexcept { return narrow() ? to_float(to_half(x)) : x; }
  /// sum + term as the units add.
  [[nodiscard]] float added(float sum, float term) const noexcept {
    return programs_.options().sums == entry_format::f16 ? to_float(to_half(sum + term)) : sum + term;
  }
  [[nodiscard]] float load_entry(const std::byte* place) const noexcept {
    if (narrow()) {
      half h;
      std::memcpy(&h, place, sizeof h);
      return to_float(h);
    }
    float x;
    std::memcpy(&x, place, sizeof x);
    return x;
  }
  void store_entry(std::byte* place, float x) const noexcept {
    if (narrow()) {
      const half h = to_half(x);
      std::memcpy(place, &h, sizeof h);
    } else {
      std::memcpy(place, &x, sizeof x);
    }
  }
  [[nodiscard]] static float dot(const float* x, const float* y, std::size_t count) noexcept {
    float sum = 0.0f;
    for (std::size_t c = 0; c < count; ++c) {
      sum += x[c] * y[c];
    }
    return sum;
  }
  /// From slots.first + done to the end of its block or of the range.
  [[nodiscard]] static slot_range block_part(slot_range slots, std::size_t done) noexcept {
    const std::size_t first = slots.first + done;
    return {first, (std::min)(block_tokens - first % block_tokens, slots.count - done)};
  }

  // Codes

  [[nodiscard]] std::byte* plane(const code_placement& p, const code_span<address>& codes, std::size_t block,
                                 std::uint32_t group) const noexcept {
    const auto page = static_cast<std::int64_t>(codes.page(block));
    return memory_.at(p, codes.memory, p.stripe_of(page), group / p.groups_per_bank,
                      p.byte_of(page, group % p.groups_per_bank));
  }
  [[nodiscard]] std::uint16_t code_at(const code_placement& p, const code_span<address>& codes, std::size_t slot,
                                      std::uint32_t group) const noexcept {
    return read_code(plane(p, codes, slot / block_tokens, group), static_cast<std::uint32_t>(slot % block_tokens),
                     codes.shape.code_bits());
  }
  void put_code(const code_placement& p, const code_span<address>& codes, std::size_t slot, std::uint32_t group,
                std::uint16_t code) noexcept {
    write_code(plane(p, codes, slot / block_tokens, group), static_cast<std::uint32_t>(slot % block_tokens),
               codes.shape.code_bits(), code);
  }
  [[nodiscard]] std::int64_t stripe_of(const code_placement& p, const code_span<address>& codes,
                                       std::size_t slot) const noexcept {
    return p.stripe_of(static_cast<std::int64_t>(codes.page(slot / block_tokens)));
  }

  // Codebooks

  /// One group's centroids as they lie in a bank: (centroids, width) values, then a scale and an offset per channel.
  struct group_view {
    const std::byte* memory;
    std::uint32_t width;
    std::uint32_t centroids;
    codebook_storage storage;

    [[nodiscard]] float value(std::uint32_t k, std::uint32_t c) const noexcept {
      const std::size_t index = std::size_t{k} * width + c;
      if (storage == codebook_storage::f32) {
        float x;
        std::memcpy(&x, memory + index * sizeof x, sizeof x);
        return x;
      }
      if (storage == codebook_storage::f16) {
        half h;
        std::memcpy(&h, memory + index * sizeof h, sizeof h);
        return to_float(h);
      }
      channel_scale map;
      std::memcpy(&map, memory + std::size_t{centroids} * width + c * sizeof map, sizeof map);
      return map.restore(static_cast<std::int8_t>(memory[index]));
    }
  };
  [[nodiscard]] std::byte* group_memory(const code_placement& p, const resident_codebook<address>& book,
                                        std::uint32_t group, std::int64_t stripe) const noexcept {
    return memory_.at(p, book.memory, stripe, group / p.groups_per_bank,
                      group % p.groups_per_bank * programs_.book_stride(book.shape, book.storage));
  }
  [[nodiscard]] group_view group_of(const code_placement& p, const resident_codebook<address>& book,
                                    std::uint32_t group, std::int64_t stripe) const noexcept {
    return {group_memory(p, book, group, stripe), book.shape.width(group), book.shape.centroids, book.storage};
  }
  static void write_group(const codebook_view& book, std::uint32_t group, const resident_codebook<address>& resident,
                          std::byte* target) noexcept {
    const codebook_storage storage = resident.storage;
    const float* values = book.group(group);
    const std::uint32_t width = book.shape.width(group);
    const std::size_t count = std::size_t{book.shape.centroids} * width;
    if (storage == codebook_storage::f32) {
      std::memcpy(target, values, count * sizeof(float));
      return;
    }
    if (storage == codebook_storage::f16) {
      for (std::size_t i = 0; i < count; ++i) {
        const half h = to_half(values[i]);
        std::memcpy(target + i * sizeof h, &h, sizeof h);
      }
      return;
    }
    for (std::uint32_t c = 0; c < width; ++c) {
      const channel_scale map = scale_of_channel(book, group, c, resident.rotation);
      std::memcpy(target + count + c * sizeof map, &map, sizeof map);
      for (std::uint32_t k = 0; k < book.shape.centroids; ++k) {
        target[std::size_t{k} * width + c] = static_cast<std::byte>(map.quantize(values[std::size_t{k} * width + c]));
      }
    }
  }
  /// Decoded rows of slots of one block, dim floats each, in the model's channel order.
  void decode_block(const code_placement& p, const resident_codebook<address>& book, const code_span<address>& codes,
                    slot_range slots, float* rows) const noexcept {
    const geometry& shape = book.shape;
    std::fill_n(rows, slots.count * shape.dim, 0.0f);
    const std::int64_t stripe = stripe_of(p, codes, slots.first);
    for (std::uint32_t group = 0; group < shape.groups(); ++group) {
      const group_view view = group_of(p, book, group, stripe);
      const std::byte* of_block = plane(p, codes, slots.first / block_tokens, group);
      const std::uint32_t first = shape.first_channel(group);
      for (std::size_t i = 0; i < slots.count; ++i) {
        const auto slot = static_cast<std::uint32_t>((slots.first + i) % block_tokens);
        const std::uint16_t code = read_code(of_block, slot, shape.code_bits());
        for (std::uint32_t c = 0; c < view.width; ++c) {
          rows[i * shape.dim + shape.channel(first + c)] += view.value(code, c);
        }
      }
    }
  }

  // Training and coding

  [[nodiscard]] std::byte* point(address points, std::size_t index, std::uint32_t width) const noexcept {
    const device& d = programs_.description();
    const auto banks = static_cast<std::size_t>(d.organisation.banks_per_command_channel());
    const std::size_t all = banks * static_cast<std::size_t>(programs_.options().channels_per_home);
    const std::size_t bank = index % all;
    return memory_.at(points, static_cast<std::int64_t>(bank / banks), static_cast<std::int64_t>(bank % banks),
                      static_cast<std::int64_t>(index / all * width * sizeof(float)));
  }
  /// Nearest centroid, ties by the lowest index. Planes: (width, centroids).
  [[nodiscard]] std::uint16_t nearest(const float* centroid_planes, std::uint32_t centroids, centroid_range used,
                                      const float* x, std::uint32_t width, float* distance) const noexcept {
    float* sums = bins();
    const auto first = static_cast<std::uint32_t>(used.first);
    const auto count = static_cast<std::uint32_t>(used.count);
    std::fill_n(sums, count, 0.0f);
    for (std::uint32_t c = 0; c < width; ++c) {
      const float* plane_of = centroid_planes + std::size_t{c} * centroids + first;
      const float value = x[c];
      for (std::uint32_t k = 0; k < count; ++k) {
        sums[k] += (value - plane_of[k]) * (value - plane_of[k]);
      }
    }
    const float* best = std::min_element(sums, sums + count);
    *distance = *best;
    return static_cast<std::uint16_t>(first + static_cast<std::uint32_t>(best - sums));
  }
  /// The same for codebooks too large for the scratch.
  template <class Value>
  [[nodiscard]] static std::uint16_t nearest_of(const Value& value, centroid_range used, const float* x,
                                                std::uint32_t width, float* distance) noexcept {
    auto best = static_cast<std::uint32_t>(used.first);
    *distance = (std::numeric_limits<float>::max)();
    for (auto k = best; k < static_cast<std::uint32_t>(used.first + used.count); ++k) {
      float sum = 0.0f;
      for (std::uint32_t c = 0; c < width; ++c) {
        const float difference = x[c] - value(k, c);
        sum += difference * difference;
      }
      if (sum < *distance) {
        *distance = sum;
        best = k;
      }
    }
    return static_cast<std::uint16_t>(best);
  }
  void encode_run(const code_placement& p, const rows_view& rows, const resident_codebook<address>& book,
                  const code_span<address>& codes, slot_range slots, std::uint32_t run) noexcept {
    const geometry& shape = book.shape;
    const std::uint32_t width = shape.width(run);
    const std::size_t stage_floats = std::size_t{shape.centroids} * width;
    const bool fits = stage_floats * shape.stages <= plane_floats;
    for (std::uint32_t stage = 0; fits && stage < shape.stages; ++stage) {
      const group_view view = group_of(p, book, stage * shape.subvectors + run, 0);
      for (std::uint32_t c = 0; c < width; ++c) {
        for (std::uint32_t k = 0; k < shape.centroids; ++k) {
          planes()[stage * stage_floats + std::size_t{c} * shape.centroids + k] = view.value(k, c);
        }
      }
    }
    float row[max_dim];
    float rest[max_dim];
    for (std::size_t i = 0; i < slots.count; ++i) {
      load_row(rows, i, row);
      const centroid_range used = programs_.centroids_at(shape, slots.first + i);
      for (std::uint32_t c = 0; c < width; ++c) {
        rest[c] = row[shape.channel(shape.first_channel(run) + c)];
      }
      for (std::uint32_t stage = 0; stage < shape.stages; ++stage) {
        const std::uint32_t group = stage * shape.subvectors + run;
        const group_view view = group_of(p, book, group, 0);
        const auto value = [&](std::uint32_t k, std::uint32_t c) { return view.value(k, c); };
        float distance = 0.0f;
        const std::uint16_t code =
            fits ? nearest(planes() + stage * stage_floats, shape.centroids, used, rest, width, &distance)
                 : nearest_of(value, used, rest, width, &distance);
        for (std::uint32_t c = 0; c < width; ++c) {
          rest[c] -= view.value(code, c);
        }
        put_code(p, codes, slots.first + i, group, code);
      }
    }
  }

  // Attention

  void store_queries(const code_placement& p, const query_rows& queries, std::uint32_t dim, address tables) noexcept {
    for (std::int64_t channel = 0; channel < p.channels; ++channel) {
      for (std::size_t i = 0; i < queries.rows * dim; ++i) {
        store_entry(memory_.at(tables, channel, 0, static_cast<std::int64_t>(i) * programs_.entry_bytes()),
                    queries.row(i / dim)[i % dim]);
      }
    }
  }
  void fill_tables(const code_placement& p, const query_rows& queries, const resident_codebook<address>& book,
                   std::uint32_t group, std::int64_t stripe, address tables) noexcept {
    const geometry& shape = book.shape;
    const group_view view = group_of(p, book, group, stripe);
    const auto layout = programs_.tables_of(shape, queries.rows);
    const std::int64_t f = group % p.groups_per_bank;
    float q[max_dim];
    for (std::size_t row = 0; row < queries.rows; ++row) {
      for (std::uint32_t c = 0; c < view.width; ++c) {
        q[c] = rounded(queries.row(row)[shape.channel(shape.first_channel(group) + c)]);
      }
      const std::int64_t table = f * layout.count + (layout.count == 1 ? 0 : static_cast<std::int64_t>(row));
      const std::int64_t inside = layout.count == 1 ? static_cast<std::int64_t>(row) * programs_.entry_bytes() : 0;
      std::byte* entries = memory_.at(p, tables, stripe, group / p.groups_per_bank, layout.byte_of(table) + inside);
      for (std::uint32_t k = 0; k < shape.centroids; ++k) {
        float sum = 0.0f;
        for (std::uint32_t c = 0; c < view.width; ++c) {
          sum = added(sum, q[c] * view.value(k, c));
        }
        store_entry(entries + std::int64_t{k} * layout.entry, sum);
      }
    }
  }
  void score_tables(const code_placement& p, address tables, std::size_t rows, const geometry& shape,
                    const code_span<address>& codes, slot_range slots, const score_tile& tile,
                    std::size_t column) const noexcept {
    const auto layout = programs_.tables_of(shape, rows);
    const std::int64_t stripe = stripe_of(p, codes, slots.first);
    std::uint16_t of_block[block_tokens];
    for (std::size_t row = 0; row < rows; ++row) {
      std::fill_n(tile.row(row) + column, slots.count, 0.0f);
    }
    for (std::uint32_t group = 0; group < shape.groups(); ++group) {
      const std::byte* packed = plane(p, codes, slots.first / block_tokens, group);
      for (std::size_t i = 0; i < slots.count; ++i) {
        of_block[i] =
            read_code(packed, static_cast<std::uint32_t>((slots.first + i) % block_tokens), shape.code_bits());
      }
      for (std::size_t row = 0; row < rows; ++row) {
        const std::int64_t table =
            group % p.groups_per_bank * layout.count + (layout.count == 1 ? 0 : static_cast<std::int64_t>(row));
        const std::int64_t inside = layout.count == 1 ? static_cast<std::int64_t>(row) * programs_.entry_bytes() : 0;
        const std::byte* entries =
            memory_.at(p, tables, stripe, group / p.groups_per_bank, layout.byte_of(table) + inside);
        float* scores = tile.row(row) + column;
        for (std::size_t i = 0; i < slots.count; ++i) {
          scores[i] = added(scores[i], load_entry(entries + std::int64_t{of_block[i]} * layout.entry));
        }
      }
    }
  }
  void score_turned(const code_placement& p, address tables, std::size_t rows, const resident_codebook<address>& book,
                    const rope& rotation, const slot_positions& positions, const code_span<address>& codes,
                    slot_range slots, const score_tile& tile, std::size_t column) const noexcept {
    const std::uint32_t dim = book.shape.dim;
    decode_block(p, book, codes, slots, scratch_);
    float* query = bins();
    for (std::size_t i = 0; i < slots.count; ++i) {
      rotate_row(rotation, positions.at(slots.first + i), 1.0f, scratch_ + i * dim);
    }
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::uint32_t c = 0; c < dim; ++c) {
        const std::int64_t index = static_cast<std::int64_t>(row * dim + c);
        query[c] = load_entry(memory_.at(tables, 0, 0, index * programs_.entry_bytes()));
      }
      for (std::size_t i = 0; i < slots.count; ++i) {
        float sum = 0.0f;
        for (std::uint32_t c = 0; c < dim; ++c) {
          sum = added(sum, query[c] * scratch_[i * dim + c]);
        }
        tile.row(row)[column + i] = sum;
      }
    }
  }
  void add_rows(const float* weights, std::size_t count, std::uint32_t dim, float* out) const noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      const float weight = rounded(weights[i]);
      const float* value = scratch_ + i * dim;
      for (std::uint32_t c = 0; weight != 0.0f && c < dim; ++c) {
        out[c] = added(out[c], weight * value[c]);
      }
    }
  }
  void add_histogram(const code_placement& p, const float* weights, const resident_codebook<address>& book,
                     const code_span<address>& codes, slot_range slots, std::uint32_t group,
                     float* out) const noexcept {
    const geometry& shape = book.shape;
    float* masses = bins();
    std::fill_n(masses, shape.centroids, 0.0f);
    for (std::size_t i = 0; i < slots.count; ++i) {
      if (weights[i] != 0.0f) {
        float& mass = masses[code_at(p, codes, slots.first + i, group)];
        mass = added(mass, rounded(weights[i]));
      }
    }
    const group_view view = group_of(p, book, group, 0);
    for (std::uint32_t c = 0; c < view.width; ++c) {
      float sum = 0.0f;
      for (std::uint32_t k = 0; k < shape.centroids; ++k) {
        sum = added(sum, masses[k] != 0.0f ? masses[k] * view.value(k, c) : 0.0f);
      }
      float& target = out[shape.channel(shape.first_channel(group) + c)];
      target = added(target, sum);
    }
  }
};

static_assert(bank_policy<pim_bank<>>);
static_assert(bank_policy<pim_bank<token_striped>>);

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
