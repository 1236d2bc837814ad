// SPDX-License-Identifier: MIT
// What the bank programs cost: each issues its commands from shapes alone. pim_bank calls the same functions beside
// its arithmetic, so that an analysis without data gives the same counters and cycles by construction.
//
// Assumptions, all favourable to look-ups unless said otherwise:
//  - Codes are read from their row into the units' registers, a chunk of whole blocks at a time; the table's row is
//    then opened and the codes drive the column decoder.
//  - A table of more than one row is looked up row by row, with the codes spread evenly over the rows.
//  - Multiplying what a look-up slot returns is hidden behind the next slot.
//  - Partial sums of `banks_added` banks are added on their way to the buffer die.
//  - Argmin (unless it is beside the banks), softmax and reciprocals run on the buffer die at
//    pim_units::softmax_per_cycle elements per cycle.
//  - A unit shared by several banks serves them one after the other.
// Exact rows stay with the processor and are counted as its work.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "../../core/status.hpp"
#include "../../quant/codebook_rounding.hpp"
#include "../../quant/geometry.hpp"
#include "../../quant/rope.hpp"
#include "../bank.hpp"
#include "placement.hpp"
#include "walker.hpp"

namespace pqattn {
inline namespace v0 {
namespace pim {

/// Format of queries, tables, probabilities and results in the banks.
enum class entry_format : std::uint8_t { f16, f32 };

/// Who addresses the column of a look-up.
enum class lookup_addressing : std::uint8_t {
  in_row,      ///< the bank's unit, by the code in its registers (AQPIM's intra-row indirection)
  by_command,  ///< the buffer die, by one RD for each look-up of each bank: codes go there, whole columns come back
};

/// Choices of a run.
struct bank_options {
  std::int32_t channels_per_home = 1;  ///< command channels that hold one KV head
  entry_format entries = entry_format::f16;
  entry_format sums = entry_format::f32;  ///< f16: every addition of the banks' units is rounded, exact rows are not
  value_method values = value_method::reconstruct;  ///< what `automatic` means here
  std::int32_t codebook_rows = 0;                   ///< rows of the codebook region; 0 = an eighth of a bank
  std::int32_t banks_added = 0;   ///< banks whose partial sums are added before they move; 0 = a bank group
  std::int32_t update_slots = 2;  ///< column slots of one read-modify-write of a histogram bin
  bool argmin_in_banks = false;   ///< comparing units beside the banks: only codes leave, not distances
  lookup_addressing addressing = lookup_addressing::in_row;
  /// AQPIM's page-aware windows: 0, or a multiple of 4096 tokens. Each window of tokens uses the centroids of one page
  /// only (as many as a row holds table entries), window w those of page w mod pages: one table row per window.
  std::int64_t window_tokens = 0;
  bool share_lookups = false;     ///< one look-up serves all query rows: their table entries lie side by side
  bool overflow_to_host = false;  ///< what does not fit lies on the host and is fetched over the link at each use
  walk_options walk;
};

/// Work and traffic outside the device.
struct host_counters {
  std::int64_t to_device_bytes = 0;
  std::int64_t from_device_bytes = 0;
  std::int64_t overflow_bytes = 0;    ///< fetched over host_link because they did not fit
  std::int64_t exact_macs = 0;        ///< attention over exact rows
  std::int64_t exact_bytes = 0;       ///< exact rows read
  std::int64_t softmax_elements = 0;  ///< of exact rows

  friend constexpr bool operator==(const host_counters&, const host_counters&) noexcept = default;
};

/// Commands of every program, walked on one device. Mapping: subvector_per_bank or token_striped.
template <class Mapping = subvector_per_bank>
class bank_programs {
 public:
  using address = device_address;

  /// Errors: an invalid device, one without PIM units, a home larger than the device, windows that are not a multiple
  /// of 4096 tokens, out of memory.
  status configure(const device& d, const bank_options& options) {
    PQATTN_TRY(walker_.configure(d, options.walk));
    options_ = options;
    if (!d.pim.present) {
      return failure(status_code::unsupported, "device.pim", "must be present");
    }
    if (options.window_tokens < 0 || options.window_tokens % tile_tokens != 0) {
      return failure(status_code::invalid_argument, "options.window_tokens", "must be a multiple of", tile_tokens,
                     options.window_tokens);
    }
    const std::int32_t channels = d.organisation.command_channels();
    if (options.channels_per_home < 1 || options.channels_per_home > channels) {
      return failure(status_code::invalid_argument, "options.channels_per_home", "must be 1 to the device's channels",
                     channels, options.channels_per_home);
    }
    const std::int64_t slab_row =
        std::int64_t{channels} * d.organisation.banks_per_command_channel() * d.organisation.row_bytes;
    // The last row of every bank holds the cosines and sines of a block of positions.
    const std::size_t all_rows = static_cast<std::size_t>(d.capacity_bytes / slab_row);
    if (all_rows < 2) {
      return failure(status_code::capacity, "device.capacity_bytes", "must hold two rows of every bank", 2 * slab_row,
                     d.capacity_bytes);
    }
    const std::size_t rows = all_rows - 1;
    const std::size_t books = options.codebook_rows > 0 ? static_cast<std::size_t>(options.codebook_rows) : rows / 8;
    homes_ = static_cast<std::uint32_t>(channels / options.channels_per_home);
    reset_counters();
    const auto slab = static_cast<std::size_t>(slab_row / channels * options.channels_per_home);
    return rows_.configure(homes_, rows, books, options.overflow_to_host ? 3 * rows + 64 : 0, slab);
  }

  /// Time 0, every counter zero. Memory stays as it is.
  void reset_counters() noexcept {
    walker_.reset();
    host_ = {};
    work_ = {};
    host_wall_ns_ = 0;
    tile_home_ = 0;
  }
  /// Homes on the device, and where reserve() takes memory from now on: one home per KV head spreads heads.
  [[nodiscard]] std::uint32_t homes() const noexcept { return homes_; }
  void select_home(std::uint32_t home) noexcept { home_ = homes_ == 0 ? 0 : home % homes_; }
  [[nodiscard]] const pim::walker& walked() const noexcept { return walker_; }
  [[nodiscard]] const device& description() const noexcept { return walker_.description(); }
  [[nodiscard]] const bank_options& options() const noexcept { return options_; }
  [[nodiscard]] const host_counters& host() const noexcept { return host_; }
  [[nodiscard]] const row_allocator& rows() const noexcept { return rows_; }
  [[nodiscard]] const work_counters& work(phase p) const noexcept { return work_[static_cast<std::size_t>(p)]; }
  [[nodiscard]] work_counters work() const noexcept {
    work_counters sum;
    for (const work_counters& part : work_) {
      sum += part;
    }
    return sum;
  }
  /// Time that emulating took on this machine: a measurement, unlike everything else here. 0 in an analysis.
  [[nodiscard]] std::int64_t host_wall_ns() const noexcept { return host_wall_ns_; }
  void add_host_wall_ns(std::int64_t ns) noexcept { host_wall_ns_ += ns; }
  /// Emulated time of everything so far: the longest channel, and after it what had to cross the host link.
  [[nodiscard]] double emulated_ns() const noexcept {
    const double link = static_cast<double>(description().link.bytes_per_second);
    const double fetch = link > 0 ? static_cast<double>(host_.overflow_bytes) / link * 1e9 : 0.0;
    return walker_.nanoseconds(walker_.finish_cycle()) + fetch;
  }

  // --- sizes ------------------------------------------------------------------------------------------------------

  status reserve(std::size_t bytes, address& place) noexcept { return rows_.reserve(home_, bytes, place); }
  void release(address place, std::size_t bytes) noexcept { rows_.release(place, bytes); }

  [[nodiscard]] code_placement placement(const geometry& shape) const noexcept {
    return place_codes<Mapping>(description(), options_.channels_per_home, shape.groups(), shape.code_bits());
  }
  [[nodiscard]] std::int64_t entry_bytes() const noexcept { return options_.entries == entry_format::f16 ? 2 : 4; }
  /// Bytes of one group's centroids in its bank: values, then scales.
  [[nodiscard]] std::int64_t book_stride(const geometry& shape, codebook_storage storage) const noexcept {
    const auto width = static_cast<std::int64_t>(shape.max_width());
    const auto values =
        static_cast<std::int64_t>(shape.centroids) * width * static_cast<std::int64_t>(size_of(storage));
    const std::int64_t scales = storage == codebook_storage::i8 ? 8 * width : 0;
    return ceil_div(values + scales, column_bytes()) * column_bytes();
  }
  [[nodiscard]] std::size_t codebook_bytes(const geometry& shape, codebook_storage storage) const noexcept {
    return slabs(placement(shape).groups_per_bank * book_stride(shape, storage));
  }
  [[nodiscard]] std::size_t code_block_bytes(const geometry& shape) const noexcept {
    return static_cast<std::size_t>(placement(shape).block_bytes());
  }
  /// Points lie one after the other in stripes over the banks; see point_of.
  [[nodiscard]] std::size_t point_bytes(std::size_t count, std::uint32_t width) const noexcept {
    const std::int64_t per_bank = ceil_div(static_cast<std::int64_t>(count), home_banks());
    return slabs(per_bank * static_cast<std::int64_t>(width) * 4) - 1;
  }

  /// How tables lie in a bank: table (f, q) of the bank's f-th group and query row q.
  struct table_layout {
    std::int64_t count = 1;  ///< tables per group
    std::int64_t entry = 2;  ///< bytes of one entry (of all query rows when look-ups are shared)
    std::int64_t bytes = 2;  ///< of one table
    std::int64_t row_bytes = 1;

    [[nodiscard]] std::int64_t byte_of(std::int64_t table) const noexcept {
      const std::int64_t per_row = row_bytes / bytes;
      return per_row > 0 ? table / per_row * row_bytes + table % per_row * bytes
                         : table * ceil_div(bytes, row_bytes) * row_bytes;
    }
  };
  [[nodiscard]] table_layout tables_of(const geometry& shape, std::size_t query_rows) const noexcept {
    const auto q = static_cast<std::int64_t>(query_rows);
    table_layout t;
    t.count = options_.share_lookups ? 1 : q;
    t.entry = entry_bytes() * (options_.share_lookups ? q : 1);
    t.bytes = t.entry * static_cast<std::int64_t>(shape.centroids);
    t.row_bytes = row_bytes();
    return t;
  }
  [[nodiscard]] std::size_t table_bytes(const geometry& shape, std::size_t query_rows,
                                        const rope& rotation) const noexcept {
    if (rotation.enabled()) {
      return slabs(static_cast<std::int64_t>(query_rows * shape.dim) * entry_bytes());
    }
    const table_layout t = tables_of(shape, query_rows);
    return slabs(t.byte_of(placement(shape).groups_per_bank * t.count - 1) + t.bytes);
  }

  /// Centroids that tokens of a window may use.
  struct centroid_range {
    std::int64_t first = 0;
    std::int64_t count = 0;
  };
  [[nodiscard]] centroid_range centroids_at(const geometry& shape, std::size_t slot) const noexcept {
    const auto all = static_cast<std::int64_t>(shape.centroids);
    const std::int64_t page = row_bytes() / entry_bytes();
    if (options_.window_tokens == 0 || page >= all) {
      return {0, all};
    }
    const std::int64_t window = static_cast<std::int64_t>(slot) / options_.window_tokens;
    const std::int64_t first = window % ceil_div(all, page) * page;
    return {first, (std::min)(page, all - first)};
  }

  // --- transfers --------------------------------------------------------------------------------------------------

  status store_codebook(const resident_codebook<address>& book) noexcept {
    const code_placement p = placement(book.shape);
    const std::int64_t bytes = p.groups_per_bank * book_stride(book.shape, book.storage);
    host_.to_device_bytes += static_cast<std::int64_t>(stored_codebook_bytes(book.shape, book.storage));
    start(book.memory, phase::transfer);
    for_channels([&](std::int32_t) {
      move(opcode::mv_in, bytes * p.banks_per_stripe);  // stripes take their copies from the same transfer
      sweep(opcode::st_ab, book.memory, 0, bytes);
    });
    return finish();
  }
  status load_codebook(const resident_codebook<address>& book) noexcept {
    const code_placement p = placement(book.shape);
    const std::int64_t bytes = p.groups_per_bank * book_stride(book.shape, book.storage);
    host_.from_device_bytes += static_cast<std::int64_t>(stored_codebook_bytes(book.shape, book.storage));
    start(book.memory, phase::transfer);
    channel_ = first_channel_;
    sweep(opcode::ld_ab, book.memory, 0, bytes);
    fence();
    move(opcode::mv_out, bytes * p.banks_per_stripe);
    return finish();
  }
  status store_codes(const code_span<address>& codes, slot_range slots) noexcept {
    host_.to_device_bytes += static_cast<std::int64_t>(slots.count * codes.shape.row_bytes());
    start(codes.memory, phase::transfer);
    const code_placement p = placement(codes.shape);
    for_loads(p, codes, slots, [&](const load& part) { write_codes(p, codes, part); });
    return finish();
  }
  status load_codes(const code_span<address>& codes, slot_range slots) noexcept {
    host_.from_device_bytes += static_cast<std::int64_t>(slots.count * codes.shape.row_bytes());
    start(codes.memory, phase::transfer);
    note_codes(phase::transfer, codes.shape, slots, 0);
    const code_placement p = placement(codes.shape);
    for_loads(p, codes, slots, [&](const load& part) {
      for (std::int64_t f = 0; f < p.groups_per_bank; ++f) {
        sweep(opcode::ld_ab, codes.memory, plane_byte(p, part, f), part.blocks * p.plane_bytes);
      }
      fence();
      move(opcode::mv_out, part.total_tokens * ceil_div(p.groups * p.plane_bytes, 64));
    });
    return finish();
  }
  status store_points(std::size_t count, std::uint32_t width, address points) noexcept {
    const std::int64_t bytes = static_cast<std::int64_t>(count) * static_cast<std::int64_t>(width) * 4;
    host_.to_device_bytes += bytes;
    start(points, phase::transfer);
    for_channels([&](std::int32_t) {
      move(opcode::mv_in, ceil_div(bytes, channels()));
      sweep(opcode::st_ab, points, 0, ceil_div(static_cast<std::int64_t>(count), home_banks()) * width * 4);
    });
    return finish();
  }

  // --- training ---------------------------------------------------------------------------------------------------

  /// Centroids are broadcast, every column of points meets each of them; distances move out and are compared there.
  status assign(address points, std::size_t count, std::uint32_t width, std::uint32_t centroids) noexcept {
    const std::int64_t per_bank = ceil_div(static_cast<std::int64_t>(count), home_banks());
    const std::int64_t bytes = per_bank * static_cast<std::int64_t>(width) * 4;
    const auto in_channel = ceil_div(static_cast<std::int64_t>(count), channels());
    start(points, phase::train);
    for_channels([&](std::int32_t) {
      move(opcode::wrgb, std::int64_t{centroids} * width * 4);
      for (std::int64_t done = 0; done < bytes; done += row_bytes()) {
        for (std::uint32_t k = 0; k < centroids; ++k) {
          sweep(opcode::mac_ab, points, done, (std::min)(row_bytes(), bytes - done));
        }
      }
      compare(in_channel, centroids);
    });
    work_of(phase::train).distance_evaluations += static_cast<std::int64_t>(count) * centroids;
    work_of(phase::train).multiply_adds += static_cast<std::int64_t>(count) * centroids * width;
    host_.from_device_bytes += static_cast<std::int64_t>(count) * 6;
    host_.to_device_bytes += std::int64_t{centroids} * width * 4;
    return finish();
  }
  /// Each bank adds its points to sums in a row of its own; the banks' sums are added on the buffer die.
  status centroid_sums(address points, std::size_t count, std::uint32_t width, std::uint32_t centroids) noexcept {
    const std::int64_t per_bank = ceil_div(static_cast<std::int64_t>(count), home_banks());
    const std::int64_t sum_bytes = std::int64_t{centroids} * (width + 1) * 4;
    start(points, phase::train);
    for_channels([&](std::int32_t) {
      move(opcode::mv_in, ceil_div(static_cast<std::int64_t>(count), channels()) * 4);  // weights and codes
      sweep(opcode::ld_ab, points, 0, per_bank * width * 4);
      look_up(points, 0, per_bank * options_.update_slots, (std::int64_t{width} + 1) * 4, {0, centroids});
      fence();
      move(opcode::mv_out, sum_bytes * ceil_div(banks(), banks_added()));
      emit({.op = opcode::sfm, .count = centroids});  // reciprocals
    });
    ++work_of(phase::train).kmeans_updates;
    work_of(phase::train).multiply_adds += static_cast<std::int64_t>(count) * width;
    host_.from_device_bytes += std::int64_t{centroids} * (width + 1) * 8;
    return finish();
  }

  // --- coding -----------------------------------------------------------------------------------------------------

  /// Rows are broadcast, distances computed beside the codebooks, compared on the buffer die, codes written back.
  status encode(const resident_codebook<address>& book, const code_span<address>& codes, slot_range slots) noexcept {
    const code_placement p = placement(book.shape);
    host_.to_device_bytes += static_cast<std::int64_t>(slots.count * book.shape.dim) * entry_bytes();
    start(codes.memory, phase::encode);
    touch(book.memory, static_cast<std::int64_t>(stored_codebook_bytes(book.shape, book.storage)));
    for_loads(p, codes, slots, [&](const load& part) {
      work_of(phase::encode).distance_evaluations += part.total_tokens * book.shape.groups() * part.used.count;
      work_of(phase::encode).multiply_adds += part.total_tokens * book.shape.dim * book.shape.stages * part.used.count;
      for (std::int64_t done = 0; done < part.tokens; done += batch(book.shape, p)) {
        encode_batch(book, p, part.used, (std::min)(batch(book.shape, p), part.tokens - done));
      }
      write_codes(p, codes, part);
    });
    return finish();
  }
  status decode(const resident_codebook<address>& book, const code_span<address>& codes, slot_range slots) noexcept {
    const code_placement p = placement(book.shape);
    host_.from_device_bytes += static_cast<std::int64_t>(slots.count * book.shape.dim) * entry_bytes();
    start(codes.memory, phase::transfer);
    touch(book.memory, static_cast<std::int64_t>(stored_codebook_bytes(book.shape, book.storage)));
    note_codes(phase::transfer, book.shape, slots, 1);
    for_loads(p, codes, slots, [&](const load& part) {
      for_chunks(p, codes, part,
                 [&](std::int64_t f, std::int64_t tokens) { look_up_centroids(book, f, tokens, part.used, 1); });
      fence();
      move(opcode::mv_out, part.total_tokens * book.shape.dim * entry_bytes());
    });
    return finish();
  }

  // --- attention --------------------------------------------------------------------------------------------------

  /// Tables: each codebook row is multiplied with every query row while it is open; results go to the tables' rows.
  status prepare_scores(const resident_codebook<address>& book, std::size_t query_rows, const rope& rotation,
                        address tables) noexcept {
    const code_placement p = placement(book.shape);
    const std::int64_t query_bytes = static_cast<std::int64_t>(query_rows * book.shape.dim) * entry_bytes();
    host_.to_device_bytes += query_bytes;
    start(book.memory, phase::broadcast);
    for_channels([&](std::int32_t) { move(opcode::wrgb, query_bytes); });
    walker_.set_phase(phase::table_build);
    touch(book.memory, static_cast<std::int64_t>(stored_codebook_bytes(book.shape, book.storage)));
    if (!rotation.enabled()) {
      const auto q = static_cast<std::int64_t>(query_rows);
      work_of(phase::table_build).table_bytes +=
          q * book.shape.groups() * book.shape.centroids * entry_bytes() * p.stripes();
      work_of(phase::table_build).multiply_adds +=
          q * book.shape.dim * book.shape.stages * book.shape.centroids * p.stripes();
    }
    for_channels([&](std::int32_t) {
      if (rotation.enabled()) {
        sweep(opcode::st_ab, tables, 0, query_bytes);
        return;
      }
      for (std::int64_t f = 0; f < p.groups_per_bank; ++f) {
        build_tables(book, f, static_cast<std::int64_t>(query_rows), tables);
      }
    });
    return finish();
  }

  status score(const resident_codebook<address>& book, std::size_t query_rows, address tables, const rope& rotation,
               const slot_positions& positions, const code_span<address>& codes, slot_range slots) noexcept {
    const code_placement p = placement(book.shape);
    const auto q = static_cast<std::int64_t>(query_rows);
    start(codes.memory, phase::score);
    tile_home_ = codes.memory.home;
    const bool turned = rotation.enabled();
    const bool steady = !turned || positions.consecutive(slots.first, slots.count);
    const bool together = !turned || pairs_together(book.shape, rotation);
    const auto count = static_cast<std::int64_t>(slots.count);
    note_codes(phase::score, book.shape, slots, turned || options_.share_lookups ? 1 : q);
    (turned ? work_of(phase::score).multiply_adds : work_of(phase::score).adds) +=
        turned ? count * book.shape.dim * (2 + q) : count * book.shape.groups() * q;
    for_loads(p, codes, slots, [&](const load& part) {
      for_chunks(p, codes, part, [&](std::int64_t f, std::int64_t tokens) {
        if (turned) {
          look_up_centroids(book, f, tokens, part.used, 1);
          turn(book.shape, p, tokens, q, steady, together);
        } else {
          look_up_tables(book.shape, f, tokens, part.used, q, tables);
        }
      });
      if (by_command() && !turned) {
        return;  // what was read is on the buffer die
      }
      fence();
      const std::int64_t sums = part.total_tokens * q * ceil_div(p.banks_per_stripe, banks_added());
      move(opcode::mv_out, sums * entry_bytes());
    });
    return finish();
  }
  /// Softmax of the last scored tile, where its scores are.
  status softmax_part(std::size_t query_rows, std::size_t count) noexcept {
    const auto elements = static_cast<std::int64_t>(query_rows * count);
    if (tile_home_ == 0) {
      host_.softmax_elements += elements;
      return {};
    }
    start({tile_home_, 0}, phase::softmax);
    work_of(phase::softmax).exp_evaluations += elements;
    for_channels([&](std::int32_t) { emit({.op = opcode::sfm, .count = ceil_div(elements, channels())}); });
    return finish();
  }
  status accumulate_values(const resident_codebook<address>& book, std::size_t query_rows, value_method method,
                           const code_span<address>& codes, slot_range slots) noexcept {
    const code_placement p = placement(book.shape);
    const auto q = static_cast<std::int64_t>(query_rows);
    const bool histogram = resolve(method) == value_method::histogram;
    start(codes.memory, phase::value);
    touch(book.memory, static_cast<std::int64_t>(stored_codebook_bytes(book.shape, book.storage)));
    work_counters& work = work_of(phase::value);
    const auto count = static_cast<std::int64_t>(slots.count);
    note_codes(phase::value, book.shape, slots, histogram ? 0 : options_.share_lookups ? 1 : q);
    (histogram ? work.adds : work.multiply_adds) +=
        histogram ? count * book.shape.groups() * q : count * book.shape.dim * book.shape.stages * q;
    for_loads(p, codes, slots, [&](const load& part) {
      move(opcode::mv_in, part.total_tokens * q * entry_bytes());
      for_chunks(p, codes, part, [&](std::int64_t f, std::int64_t tokens) {
        if (histogram) {
          look_up_bins(book, f, tokens, part.used, q);
        } else {
          look_up_centroids(book, f, tokens, part.used, options_.share_lookups ? 1 : q);
        }
      });
    });
    if (histogram && slots.count > 0) {
      multiply_bins(book, p, q, slots);
    }
    work_of(phase::merge).partial_state_bytes += q * book.shape.dim * entry_bytes() * p.stripes();
    walker_.set_phase(phase::merge);
    for_channels([&](std::int32_t) {
      fence();
      move(opcode::mv_out, q * book.shape.dim * entry_bytes() * p.stripes_per_channel);
    });
    host_.from_device_bytes += q * book.shape.dim * entry_bytes();
    return finish();
  }
  [[nodiscard]] value_method resolve(value_method method) const noexcept {
    const value_method chosen = method == value_method::automatic ? options_.values : method;
    return chosen == value_method::histogram ? value_method::histogram : value_method::reconstruct;
  }

  // --- exact rows -------------------------------------------------------------------------------------------------

  void exact_rows(std::size_t query_rows, std::size_t rows, std::size_t cols, std::size_t element_bytes,
                  bool scores) noexcept {
    tile_home_ = scores ? 0 : tile_home_;
    host_.exact_macs += static_cast<std::int64_t>(query_rows * rows * cols);
    host_.exact_bytes += static_cast<std::int64_t>(rows * cols * element_bytes);
  }

 private:
  /// Blocks of one code row in one channel: the most in a stripe, and tokens in all stripes.
  struct load {
    std::int64_t byte = 0;  ///< of the first block, counted from the pool
    std::int64_t blocks = 0;
    std::int64_t tokens = 0;
    std::int64_t total_tokens = 0;
    centroid_range used{};  ///< what its codes may be
  };
  static constexpr auto tile_tokens = static_cast<std::int64_t>(max_tile_blocks * block_tokens);

  pim::walker walker_;
  bank_options options_;
  row_allocator rows_;
  host_counters host_;
  std::array<work_counters, phase_count> work_{};
  std::int64_t host_wall_ns_ = 0;
  std::uint32_t homes_ = 0;
  std::uint32_t home_ = 0;
  std::uint32_t tile_home_ = 0;
  std::int32_t first_channel_ = 0;
  std::int32_t channel_ = 0;
  status outcome_;

  [[nodiscard]] std::int64_t row_bytes() const noexcept { return description().organisation.row_bytes; }
  [[nodiscard]] std::int64_t column_bytes() const noexcept { return description().organisation.column_bytes; }
  [[nodiscard]] std::int64_t banks() const noexcept { return description().organisation.banks_per_command_channel(); }
  [[nodiscard]] std::int64_t channels() const noexcept { return options_.channels_per_home; }
  [[nodiscard]] std::int64_t home_banks() const noexcept { return banks() * channels(); }
  [[nodiscard]] std::int64_t banks_added() const noexcept {
    return options_.banks_added > 0 ? options_.banks_added : description().organisation.banks_per_group;
  }
  [[nodiscard]] std::int64_t registers() const noexcept {
    return (std::max<std::int64_t>)(description().pim.register_file_bytes, column_bytes());
  }
  [[nodiscard]] static std::int64_t centroid_bytes(const resident_codebook<address>& book) noexcept {
    return static_cast<std::int64_t>(book.shape.max_width() * size_of(book.storage));
  }
  /// Whole slabs for `bytes` in every bank.
  [[nodiscard]] std::size_t slabs(std::int64_t bytes) const noexcept {
    return static_cast<std::size_t>((std::max<std::int64_t>)(1, ceil_div(bytes, row_bytes()))) * rows_.slab_bytes();
  }

  // Issuing

  void start(address place, phase p) noexcept {
    outcome_ = {};
    first_channel_ = static_cast<std::int32_t>(place.home - 1) * options_.channels_per_home;
    channel_ = first_channel_;
    walker_.set_phase(p);
  }
  [[nodiscard]] status finish() noexcept { return outcome_; }
  template <class Work>
  void for_channels(Work&& work) noexcept {
    for (std::int32_t i = 0; i < options_.channels_per_home; ++i) {
      channel_ = first_channel_ + i;
      work(i);
    }
  }
  void emit(command c) noexcept {
    c.channel = channel_;
    const bool units = c.op == opcode::mac_ab || c.op == opcode::lut || c.op == opcode::ld_ab || c.op == opcode::st_ab;
    const std::int32_t shares = units ? description().pim.banks_per_unit : 1;
    c.set = shares > 1 ? bank_set::share : c.set;
    for (std::int32_t share = 0; share < shares; ++share) {
      c.bank = shares > 1 ? share : c.bank;
      note(walker_.issue(c));
    }
  }
  void note(const status& s) noexcept { outcome_ = outcome_.ok() ? s : outcome_; }
  void fence() noexcept { emit({.op = opcode::fence}); }
  void move(opcode op, std::int64_t bytes) noexcept {
    const std::int64_t at_once = op == opcode::wrgb ? column_bytes() : description().organisation.transfer_bytes();
    emit({.op = op, .count = ceil_div(bytes, at_once)});
  }
  [[nodiscard]] work_counters& work_of(phase p) noexcept { return work_[static_cast<std::size_t>(p)]; }
  /// Codes read, packed, and one fetch for each of them and of `times`.
  void note_codes(phase p, const geometry& shape, slot_range slots, std::int64_t times) noexcept {
    const auto codes = static_cast<std::int64_t>(slots.count * shape.groups());
    work_of(p).code_bytes += ceil_div(codes * shape.code_bits(), 8);
    work_of(p).lookups += codes * times;
  }
  [[nodiscard]] bool by_command() const noexcept { return options_.addressing == lookup_addressing::by_command; }
  [[nodiscard]] std::int32_t row_at(address place, std::int64_t byte) const noexcept {
    const std::int64_t row = place.row + byte / row_bytes();
    return static_cast<std::int32_t>(row % static_cast<std::int64_t>(rows_.device_rows()));
  }
  /// Columns of [byte, byte + bytes) of an allocation, row by row.
  void sweep(opcode op, address place, std::int64_t byte, std::int64_t bytes) noexcept {
    const std::int64_t end = byte + bytes;
    while (byte < end) {
      const std::int64_t inside = byte % row_bytes();
      const std::int64_t take = (std::min)(end - byte, row_bytes() - inside);
      const std::int64_t first = inside / column_bytes();
      emit({.op = op,
            .row = row_at(place, byte),
            .column = static_cast<std::int32_t>(first),
            .count = ceil_div(inside + take, column_bytes()) - first});
      byte += take;
    }
  }
  /// What lies on the host crosses the link first.
  void touch(address place, std::int64_t bytes) noexcept {
    if (rows_.on_host(place)) {
      host_.overflow_bytes += bytes;
    }
  }

  /// `tokens` look-ups of entries of `entry` bytes in a table at `byte` of an allocation, in its entries `used`.
  void look_up(address place, std::int64_t byte, std::int64_t tokens, std::int64_t entry,
               centroid_range used) noexcept {
    byte += used.first * entry;
    const std::int64_t rows =
        (std::max<std::int64_t>)(1, ceil_div(byte % row_bytes() + used.count * entry, row_bytes()));
    const std::int64_t wide = ceil_div(entry, column_bytes());
    const std::int64_t most = (std::max<std::int64_t>)(1, column_bytes() / entry);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t here = tokens / rows + (r < tokens % rows ? 1 : 0);
      const std::int32_t row = row_at(place, byte + r * row_bytes());
      if (here > 0 && by_command()) {
        read_entries(row, here * wide);
      } else if (here > 0) {
        emit({.op = opcode::lut, .row = row, .column = static_cast<std::int32_t>(most), .count = here * wide});
      }
    }
  }
  /// Columns of one row of every bank, one RD each, bank groups in turn. Takes time per column and bank.
  void read_entries(std::int32_t row, std::int64_t columns) noexcept {
    const std::int32_t per_group = description().organisation.banks_per_group;
    const auto groups = static_cast<std::int32_t>(banks()) / per_group;
    for (std::int64_t i = 0; i < columns; ++i) {
      for (std::int32_t in_group = 0; in_group < per_group; ++in_group) {
        for (std::int32_t group = 0; group < groups; ++group) {
          emit({.op = opcode::rd, .bank = group * per_group + in_group, .row = row});
        }
      }
    }
  }
  void look_up_centroids(const resident_codebook<address>& book, std::int64_t f, std::int64_t tokens,
                         centroid_range used, std::int64_t times) noexcept {
    const std::int64_t entry = centroid_bytes(book);
    const std::int64_t stride = book_stride(book.shape, book.storage);
    for (std::int64_t i = 0; i < times; ++i) {
      look_up(book.memory, f * stride, tokens, entry, used);
    }
  }
  void look_up_tables(const geometry& shape, std::int64_t f, std::int64_t tokens, centroid_range used,
                      std::int64_t query_rows, address tables) noexcept {
    const table_layout t = tables_of(shape, static_cast<std::size_t>(query_rows));
    for (std::int64_t i = 0; i < t.count; ++i) {
      look_up(tables, t.byte_of(f * t.count + i), tokens, t.entry, used);
    }
  }
  /// Bins lie in rows beside the codebook's: the rows' numbers do not matter, only that they are others.
  void look_up_bins(const resident_codebook<address>& book, std::int64_t f, std::int64_t tokens, centroid_range used,
                    std::int64_t query_rows) noexcept {
    const table_layout t = tables_of(book.shape, static_cast<std::size_t>(query_rows));
    for (std::int64_t i = 0; i < t.count; ++i) {
      look_up(book.memory, t.byte_of(f * t.count + i), tokens * options_.update_slots, t.entry, used);
    }
  }

  // Codes

  [[nodiscard]] static constexpr std::int64_t plane_byte(const code_placement& p, const load& part,
                                                         std::int64_t f) noexcept {
    return part.byte + f * p.blocks_per_row * p.plane_bytes;
  }
  void write_codes(const code_placement& p, const code_span<address>& codes, const load& part) noexcept {
    const std::int64_t bytes = ceil_div(part.total_tokens * p.groups * p.plane_bytes, 64);
    touch(codes.memory, bytes);
    move(opcode::mv_in, bytes);
    for (std::int64_t f = 0; f < p.groups_per_bank; ++f) {
      sweep(opcode::st_ab, codes.memory, plane_byte(p, part, f), ceil_div(part.tokens * p.plane_bytes, 64));
    }
  }
  /// Loads codes of one group as far as registers hold them, then runs work(group in bank, tokens), in turn.
  template <class Work>
  void for_chunks(const code_placement& p, const code_span<address>& codes, const load& part, Work&& work) noexcept {
    touch(codes.memory, ceil_div(part.total_tokens * p.groups * p.plane_bytes, 64));
    const std::int64_t most = (std::max<std::int64_t>)(1, registers() / p.plane_bytes) * 64;
    for (std::int64_t f = 0; f < p.groups_per_bank; ++f) {
      for (std::int64_t done = 0; done < part.tokens; done += most) {
        const std::int64_t tokens = (std::min)(most, part.tokens - done);
        sweep(opcode::ld_ab, codes.memory, plane_byte(p, part, f) + done / 64 * p.plane_bytes,
              ceil_div(tokens, 64) * p.plane_bytes);
        if (by_command()) {
          fence();
          move(opcode::mv_out, part.total_tokens * p.plane_bytes / 64 * p.banks_per_stripe * tokens / part.tokens);
        }
        work(f, tokens);
      }
    }
  }

  /// Cuts a range of slots into what each channel of the home holds of it, row by row; sets the channel.
  template <class Visitor>
  void for_loads(const code_placement& p, const code_span<address>& codes, slot_range slots, Visitor&& visit) noexcept {
    const std::size_t end = slots.first + slots.count;
    std::size_t last = 0;
    for (std::size_t block = slots.first / block_tokens; slots.count > 0 && block * block_tokens < end; block = last) {
      last = (std::min)((block / max_tile_blocks + 1) * max_tile_blocks, (end - 1) / block_tokens + 1);
      for_window_loads(p, codes, block, last, {(std::max)(slots.first, block * block_tokens), end}, visit);
    }
  }
  /// `slots.count` is the end here.
  template <class Visitor>
  void for_window_loads(const code_placement& p, const code_span<address>& codes, std::size_t first, std::size_t last,
                        slot_range slots, Visitor& visit) noexcept {
    struct place {
      std::int64_t channel, row, stripe, byte, tokens;
      bool seen;
    };
    place places[max_tile_blocks];
    const std::size_t count = last - first;
    for (std::size_t i = 0; i < count; ++i) {
      const auto page = static_cast<std::int64_t>(codes.page(first + i));
      const std::size_t begin = (std::max)((first + i) * block_tokens, slots.first);
      const std::size_t end = (std::min)((first + i + 1) * block_tokens, slots.count);
      const std::int64_t stripe = p.stripe_of(page);
      places[i] = {stripe / p.stripes_per_channel,         p.row_of(page), stripe, p.byte_of(page, 0),
                   static_cast<std::int64_t>(end - begin), false};
    }
    for (std::size_t i = 0; i < count; ++i) {
      if (places[i].seen) {
        continue;
      }
      load part{places[i].byte, 0, 0, 0, centroids_at(codes.shape, slots.first)};
      for (std::size_t j = i; j < count; ++j) {
        if (places[j].seen || places[j].channel != places[i].channel || places[j].row != places[i].row) {
          continue;
        }
        std::int64_t blocks = 0;  // of the stripe of j, counted at its first block
        std::int64_t tokens = 0;
        for (std::size_t k = j; k < count; ++k) {
          if (!places[k].seen && places[k].channel == places[i].channel && places[k].row == places[i].row &&
              places[k].stripe == places[j].stripe) {
            places[k].seen = true;
            ++blocks;
            tokens += places[k].tokens;
          }
        }
        part.byte = (std::min)(part.byte, places[j].byte);
        part.blocks = (std::max)(part.blocks, blocks);
        part.tokens = (std::max)(part.tokens, tokens);
        part.total_tokens += tokens;
      }
      channel_ = first_channel_ + static_cast<std::int32_t>(places[i].channel);
      visit(part);
    }
  }

  // Parts of programs

  /// Token rows that are broadcast at once: as many as the global buffer holds.
  [[nodiscard]] std::int64_t batch(const geometry& shape, const code_placement& p) const noexcept {
    const std::int64_t row = shape.dim * entry_bytes() * p.stripes_per_channel;
    return (std::max<std::int64_t>)(1, description().pim.global_buffer_bytes / row);
  }
  void encode_batch(const resident_codebook<address>& book, const code_placement& p, centroid_range used,
                    std::int64_t tokens) noexcept {
    const std::int64_t stride = book_stride(book.shape, book.storage);
    const std::int64_t first = used.first * centroid_bytes(book);
    const std::int64_t bytes = used.count * centroid_bytes(book);
    move(opcode::wrgb, tokens * p.stripes_per_channel * book.shape.dim * entry_bytes());
    for (std::int64_t f = 0; f < p.groups_per_bank; ++f) {
      for (std::int64_t done = 0; done < bytes; done += row_bytes()) {
        for (std::int64_t t = 0; t < tokens; ++t) {
          sweep(opcode::mac_ab, book.memory, f * stride + first + done, (std::min)(row_bytes(), bytes - done));
        }
      }
    }
    compare(tokens * p.stripes_per_channel * p.groups, used.count);
  }
  /// The product of histogram bins with the centroids they stand for, once for every page that was used.
  void multiply_bins(const resident_codebook<address>& book, const code_placement& p, std::int64_t query_rows,
                     slot_range slots) noexcept {
    const std::int64_t stride = book_stride(book.shape, book.storage);
    std::size_t slot = slots.first;
    std::int64_t before = -1;
    while (slot < slots.first + slots.count) {
      const centroid_range used = centroids_at(book.shape, slot);
      work_of(phase::value).multiply_adds +=
          used.first == before ? 0 : query_rows * book.shape.dim * book.shape.stages * used.count * p.stripes();
      for_channels([&](std::int32_t) {
        for (std::int64_t f = 0; used.first != before && f < p.groups_per_bank; ++f) {
          for (std::int64_t row = 0; row < query_rows; ++row) {
            sweep(opcode::mac_ab, book.memory, f * stride + used.first * centroid_bytes(book),
                  used.count * centroid_bytes(book));
          }
        }
      });
      before = used.first;
      slot += options_.window_tokens > 0 ? static_cast<std::size_t>(options_.window_tokens) : slots.count;
    }
  }
  /// Finds the nearest of `centroids` distances, `codes` times.
  void compare(std::int64_t codes, std::int64_t centroids) noexcept {
    fence();
    if (options_.argmin_in_banks) {
      move(opcode::mv_out, codes * 2);
      return;
    }
    move(opcode::mv_out, codes * centroids * entry_bytes());
    emit({.op = opcode::sfm, .count = codes * centroids});
  }
  /// Tables of one group of each bank.
  void build_tables(const resident_codebook<address>& book, std::int64_t f, std::int64_t query_rows,
                    address tables) noexcept {
    const table_layout t = tables_of(book.shape, static_cast<std::size_t>(query_rows));
    const std::int64_t centroid = centroid_bytes(book);
    const std::int64_t at = f * book_stride(book.shape, book.storage);
    // Centroids whose results fit the registers, for as many query rows as possible.
    const std::int64_t entries = registers() / entry_bytes();
    const std::int64_t piece = std::clamp<std::int64_t>(row_bytes() / centroid, 1, entries);
    const std::int64_t together = (std::max<std::int64_t>)(1, entries / piece);
    for (std::int64_t k = 0; k < book.shape.centroids; k += piece) {
      const std::int64_t count = (std::min<std::int64_t>)(piece, book.shape.centroids - k);
      for (std::int64_t q = 0; q < query_rows; q += together) {
        const std::int64_t rows = (std::min)(together, query_rows - q);
        for (std::int64_t i = 0; i < rows; ++i) {
          sweep(opcode::mac_ab, book.memory, at + k * centroid, count * centroid);
        }
        if (options_.share_lookups) {
          sweep(opcode::st_ab, tables, t.byte_of(f) + k * t.entry, count * rows * entry_bytes());
        }
        for (std::int64_t i = 0; !options_.share_lookups && i < rows; ++i) {
          sweep(opcode::st_ab, tables, t.byte_of(f * t.count + q + i) + k * t.entry, count * t.entry);
        }
      }
    }
  }

  /// Decoded keys are turned and multiplied with the queries. Consecutive positions: the queries come turned to the
  /// block's position and one table of cosines and sines serves every block; else these are broadcast per token.
  /// Pairs whose members lie in different banks cross the buffer die.
  void turn(const geometry& shape, const code_placement& p, std::int64_t tokens, std::int64_t query_rows, bool steady,
            bool together) noexcept {
    const std::int64_t stripes = p.stripes_per_channel;
    const std::int64_t row = shape.dim * entry_bytes();
    move(opcode::wrgb, (steady ? ceil_div(tokens, 64) * query_rows : tokens) * row * stripes / p.groups_per_bank);
    if (!together) {
      fence();
      move(opcode::mv_out, tokens * stripes * row / p.groups_per_bank);
      move(opcode::mv_in, tokens * stripes * row / p.groups_per_bank);
      fence();
    }
    const std::int64_t macs = tokens * shape.max_width();
    const std::int64_t lanes = (std::max<std::int64_t>)(1, description().pim.macs_per_column);
    const std::int64_t slots = ceil_div(2 * macs, lanes) + query_rows * ceil_div(macs, lanes);
    const std::int64_t columns = row_bytes() / column_bytes();
    const std::int32_t table = static_cast<std::int32_t>(rows_.device_rows());  // cosines and sines
    for (std::int64_t done = 0; done < slots; done += columns) {
      emit({.op = opcode::mac_ab, .row = table, .count = (std::min)(columns, slots - done)});
    }
  }
  [[nodiscard]] static bool pairs_together(const geometry& shape, const rope& rotation) noexcept {
    std::uint16_t run_of[max_dim] = {};
    for (std::uint32_t run = 0; run < shape.subvectors; ++run) {
      for (std::uint32_t c = 0; c < shape.width(run); ++c) {
        run_of[shape.channel(shape.first_channel(run) + c)] = static_cast<std::uint16_t>(run);
      }
    }
    for (std::uint32_t pair = 0; pair < rotation.pairs; ++pair) {
      if (run_of[rotation.first(pair)] != run_of[rotation.second(pair)]) {
        return false;
      }
    }
    return true;
  }
};

}  // namespace pim
}  // namespace v0
}  // namespace pqattn
