// SPDX-License-Identifier: MIT
// The bytes of a snapshot, whatever it is of: header, section table, checksums, writing, checked reading.
// docs/snapshot.md describes the format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "../config.hpp"
#include "../core/growable.hpp"
#include "page_pool.hpp"

namespace pqattn {
inline namespace v0 {

/// Version of the format, apart from the library's. Versions 1 (no key tails, metrics, rotations or kept queries),
/// 2 (no outliers) and 3 (one epoch of codebooks) are still read; a reader refuses newer ones.
inline constexpr std::uint32_t snapshot_version = 4;

/// What a snapshot is of.
enum class snapshot_kind : std::uint32_t { codebooks = 1, sequence = 2 };

/// Takes the bytes of a snapshot in order; false stops the writing with io_error.
struct snapshot_sink {
  bool (*write)(void* user, const void* data, std::size_t bytes) = nullptr;
  void* user = nullptr;
};

/// Gives the bytes of a snapshot in order: up to `bytes` of them, 0 at the end; `failed` is set when reading broke.
struct snapshot_source {
  std::size_t (*read)(void* user, void* data, std::size_t bytes, bool* failed) = nullptr;
  void* user = nullptr;
};

namespace detail {

/// What a section holds. `index` is list | side << 2 | head << 3 | epoch << 16, epochs from the oldest of a file.
enum class section_type : std::uint32_t {
  config = 1,              ///< snapshot_config
  live = 2,                ///< one 64-bit word per page
  positions = 3,           ///< 64 32-bit numbers per page
  weights = 4,             ///< 64 * heads floats per page of the recent window, before training
  codes = 5,               ///< host code blocks, one per page
  rows = 6,                ///< 64 rows of the exact dtype per page
  book = 7,                ///< of an epoch: the host bank's codebook planes
  transform = 8,           ///< page_pool::read_transform(): floats
  tails = 9,               ///< 64 rows of key_tail exact channels per page of the body
  queries = 10,            ///< of a head, before training: stride and n positions (64-bit), then n rows of floats
  rule = 11,               ///< of an epoch and a head, head | epoch << 16: outlier_rule, three floats
  code_live = 12,          ///< of a head: a 64-bit word per page of the body, slots whose codes count
  outlier_positions = 13,  ///< of a head: a 32-bit number per outlier, in the order of their slots
  outlier_rows = 14,       ///< list | side << 2 | head << 3: a row of the exact dtype per outlier
  epochs = 15,       ///< checksum of all codebooks and transforms (64-bit) of each epoch that a file holds or names
  page_epochs = 16,  ///< a 32-bit number per page of the body: which of them it belongs to
};

struct snapshot_header {
  char magic[8] = {'P', 'Q', 'A', 'T', 'T', 'N', 'K', 'V'};
  std::uint32_t version = snapshot_version;
  std::uint32_t endian = 0x01020304;
  std::uint32_t kind = 0;
  std::uint32_t sections = 0;
  std::uint64_t bytes = 0;           ///< of the whole snapshot
  std::uint64_t table_checksum = 0;  ///< of the section table
  std::uint64_t checksum = 0;        ///< of the header up to here
  std::uint64_t unused[2] = {};
};
static_assert(sizeof(snapshot_header) == 64);

struct section_entry {
  std::uint32_t type = 0;
  std::uint32_t index = 0;
  std::uint64_t offset = 0;  ///< from the start, a multiple of 64
  std::uint64_t bytes = 0;
  std::uint64_t checksum = 0;
};
static_assert(sizeof(section_entry) == 32);

struct snapshot_side {
  std::uint32_t coded = 0;
  std::uint32_t dim = 0;
  std::uint32_t subvectors = 0;
  std::uint32_t centroids = 0;
  std::uint32_t stages = 0;
  std::uint32_t storage = 0;
  std::uint64_t channel_order = 0;  ///< checksum, 0 without one
};
/// What must agree between a snapshot and the pool it is loaded into.
struct snapshot_config {
  snapshot_side sides[2];
  std::uint32_t heads = 0;
  std::uint32_t exact_type = 0;
  std::uint32_t rope_pairs = 0;
  std::uint32_t rope_pairing = 0;
  std::uint64_t rope_frequencies = 0;  ///< checksum
  std::uint32_t codes_rotated = 0;     ///< keys are coded after RoPE
  std::uint32_t outliers = 0;          ///< since version 3: whether coded tokens may be exact besides
  std::uint64_t codebooks = 0;         ///< checksum of all codebooks and transforms of the newest epoch, 0 without any
  // Since version 2; all 0 in version 1.
  std::uint32_t key_tail = 0;
  std::uint32_t values_from_keys = 0;
  std::uint32_t key_metric = 0;     ///< keys are configured to be coded in a metric
  std::uint32_t values_turned = 0;  ///< values are configured to be rotated
};
inline constexpr std::size_t snapshot_config_bytes_v1 = 2 * 32 + 40;
static_assert(sizeof(snapshot_config) == snapshot_config_bytes_v1 + 16);

inline constexpr std::uint32_t most_sections = 1u << 16;

inline namespace PQATTN_ISA_UNIT {

/// Checksum over 64-bit words: h = rotate(h ^ word, 29) * odd constant. Every step is a bijection of h and of the word,
/// so no change of a single word goes unnoticed. Bytes may come in pieces of any size; the last word is padded with 0.
class snapshot_checksum {
 public:
  void add(const void* data, std::size_t bytes) noexcept {
    const auto* from = static_cast<const std::byte*>(data);
    total_ += bytes;
    while (bytes > 0) {
      if (pending_bytes_ == 0 && bytes >= 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, from, 8);
        mix(word);
        from += 8;
        bytes -= 8;
        continue;
      }
      pending_[pending_bytes_++] = *from++;
      --bytes;
      if (pending_bytes_ == 8) {
        flush();
      }
    }
  }
  [[nodiscard]] std::uint64_t value() noexcept {
    if (pending_bytes_ != 0) {
      flush();
    }
    mix(total_);
    return state_;
  }

 private:
  void mix(std::uint64_t word) noexcept {
    const std::uint64_t mixed = state_ ^ word;
    state_ = (mixed << 29 | mixed >> 35) * 0x9e3779b97f4a7c15u;
  }
  void flush() noexcept {
    std::memset(pending_ + pending_bytes_, 0, 8 - pending_bytes_);
    std::uint64_t word = 0;
    std::memcpy(&word, pending_, 8);
    mix(word);
    pending_bytes_ = 0;
  }

  std::uint64_t state_ = 0x7071617474656e74u;
  std::uint64_t total_ = 0;
  std::byte pending_[8] = {};
  std::size_t pending_bytes_ = 0;
};

[[nodiscard]] inline std::uint64_t checksum_of(const void* data, std::size_t bytes) noexcept {
  snapshot_checksum sum;
  sum.add(data, bytes);
  return sum.value();
}

[[nodiscard]] inline std::uint32_t section_index(std::size_t list, kv_side side, std::size_t head,
                                                 std::size_t epoch = 0) noexcept {
  return static_cast<std::uint32_t>(list | static_cast<std::size_t>(side) << 2 | head << 3 | epoch << 16);
}
[[nodiscard]] inline std::uint32_t rule_index(std::size_t head, std::size_t epoch) noexcept {
  return static_cast<std::uint32_t>(head | epoch << 16);
}

/// Lists the sections, then writes them: `produce(type, index, bytes, fill)` is called for each section in both passes,
/// and fill(put) hands its bytes to put(data, bytes).
class snapshot_writer {
 public:
  snapshot_writer(const snapshot_sink& sink, const memory_resource& resource) noexcept
      : sink_(sink), entries_(resource) {}

  template <class Produce>
  status write(snapshot_kind kind, Produce&& produce) {
    if (sink_.write == nullptr) {
      return failure(status_code::invalid_argument, "sink.write", "is null");
    }
    status outcome;
    std::uint64_t offset = 0;
    produce([&](section_type type, std::uint32_t index, std::uint64_t bytes, auto&& fill) {
      snapshot_checksum sum;
      fill([&](const void* data, std::size_t size) { sum.add(data, size); });
      const section_entry entry{static_cast<std::uint32_t>(type), index, offset, bytes, sum.value()};
      offset += align_up(bytes);
      if (outcome) {
        outcome = entries_.push_back(entry);
      }
    });
    PQATTN_TRY(outcome);
    if (entries_.size() > most_sections) {
      return failure(status_code::capacity, "snapshot.sections", "are more than fit", most_sections, entries_.size());
    }
    const std::uint64_t first = align_up(sizeof(snapshot_header) + entries_.size() * sizeof(section_entry));
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      entries_[i].offset += first;
    }
    snapshot_header header;
    header.kind = static_cast<std::uint32_t>(kind);
    header.sections = static_cast<std::uint32_t>(entries_.size());
    header.bytes = first + offset;
    header.table_checksum = checksum_of(entries_.data(), entries_.size() * sizeof(section_entry));
    header.checksum = checksum_of(&header, offsetof(snapshot_header, checksum));
    put(&header, sizeof header);
    put(entries_.data(), entries_.size() * sizeof(section_entry));
    pad();
    produce([&](section_type, std::uint32_t, std::uint64_t, auto&& fill) {
      fill([&](const void* data, std::size_t size) { put(data, size); });
      pad();
    });
    return failed_ ? failure(status_code::io_error, "sink.write", "did not take the bytes") : status{};
  }

 private:
  void put(const void* data, std::size_t bytes) {
    failed_ = failed_ || (bytes != 0 && !sink_.write(sink_.user, data, bytes));
    written_ += bytes;
  }
  void pad() {
    constexpr char zeros[memory_alignment] = {};
    put(zeros, align_up(written_) - written_);
  }

  snapshot_sink sink_;
  growable<section_entry> entries_;
  std::size_t written_ = 0;
  bool failed_ = false;
};

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// A checked snapshot in memory that the caller keeps (read or mapped, aligned to 64 bytes for views). Header, table
/// and every section's checksum have been verified; sizes against a pool are verified when something is made of it.
class snapshot_view {
 public:
  snapshot_view() = default;

  /// Checks the whole of `bytes`. corrupt_data: not a snapshot, cut short, bytes left over, a checksum that does not
  /// fit; unsupported: a newer version, another byte order. O(bytes), allocates nothing.
  PQATTN_UNIT_MEMBER static status open(std::span<const std::byte> bytes, snapshot_view& view) noexcept {
    detail::snapshot_header header;
    const detail::snapshot_header expected;
    if (bytes.size() < sizeof header) {
      return failure(status_code::corrupt_data, "snapshot", "is shorter than its header", sizeof header, bytes.size());
    }
    std::memcpy(&header, bytes.data(), sizeof header);
    if (std::memcmp(header.magic, expected.magic, sizeof header.magic) != 0) {
      return failure(status_code::corrupt_data, "snapshot", "does not start with its magic word");
    }
    if (header.endian != expected.endian) {
      return failure(status_code::unsupported, "snapshot", "has another byte order", expected.endian, header.endian);
    }
    if (header.version < 1 || header.version > snapshot_version) {
      return failure(status_code::unsupported, "snapshot.version", "is newer than this reader's, or 0",
                     snapshot_version, header.version);
    }
    if (header.checksum != detail::checksum_of(&header, offsetof(detail::snapshot_header, checksum))) {
      return failure(status_code::corrupt_data, "snapshot.header", "does not fit its checksum");
    }
    if (header.bytes != bytes.size()) {
      return failure(status_code::corrupt_data, "snapshot", "is cut short or too long; bytes", header.bytes,
                     bytes.size());
    }
    if (header.sections > detail::most_sections ||
        header.sections > (bytes.size() - sizeof header) / sizeof(detail::section_entry)) {
      return failure(status_code::corrupt_data, "snapshot.sections", "are more than fit", detail::most_sections,
                     header.sections);
    }
    const std::byte* table = bytes.data() + sizeof header;
    if (header.table_checksum != detail::checksum_of(table, header.sections * sizeof(detail::section_entry))) {
      return failure(status_code::corrupt_data, "snapshot.table", "does not fit its checksum");
    }
    // Sections follow one another: none lies in another, so that what they make grows no faster than the snapshot.
    std::uint64_t free = sizeof header + header.sections * sizeof(detail::section_entry);
    for (std::uint32_t i = 0; i < header.sections; ++i) {
      detail::section_entry entry;
      std::memcpy(&entry, table + i * sizeof entry, sizeof entry);
      if (entry.offset < free) {
        return failure(status_code::corrupt_data, "snapshot.table",
                       "has sections that overlap or are out of order; section", 0, i);
      }
      if (entry.offset % memory_alignment != 0 || entry.offset > bytes.size() ||
          entry.bytes > bytes.size() - entry.offset) {
        return failure(status_code::corrupt_data, "snapshot.table", "names bytes outside the snapshot; section", 0, i);
      }
      if (entry.checksum != detail::checksum_of(bytes.data() + entry.offset, entry.bytes)) {
        return failure(status_code::corrupt_data, "snapshot section", "does not fit its checksum; number",
                       header.sections, i);
      }
      free = entry.offset + entry.bytes;
    }
    view.bytes_ = bytes;
    view.version_ = header.version;
    view.kind_ = static_cast<snapshot_kind>(header.kind);
    view.sections_ = header.sections;
    return {};
  }

  [[nodiscard]] snapshot_kind kind() const noexcept { return kind_; }
  [[nodiscard]] std::uint32_t version() const noexcept { return version_; }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

  /// The bytes of a section, which must be there once and of this size.
  PQATTN_UNIT_MEMBER status section(detail::section_type type, std::uint32_t index, std::uint64_t bytes,
                                    const std::byte*& data) const noexcept {
    std::span<const std::byte> found;
    PQATTN_TRY(section(type, index, found));
    if (found.size() != bytes) {
      return failure(status_code::corrupt_data, "snapshot", "has a section of another size; bytes", bytes,
                     found.size());
    }
    data = found.data();
    return {};
  }
  /// The same of any size.
  PQATTN_UNIT_MEMBER status section(detail::section_type type, std::uint32_t index,
                                    std::span<const std::byte>& data) const noexcept {
    for (std::uint32_t i = 0; i < sections_; ++i) {
      detail::section_entry entry;
      std::memcpy(&entry, bytes_.data() + sizeof(detail::snapshot_header) + i * sizeof entry, sizeof entry);
      if (entry.type == static_cast<std::uint32_t>(type) && entry.index == index) {
        data = bytes_.subspan(entry.offset, entry.bytes);
        return {};
      }
    }
    return failure(status_code::corrupt_data, "snapshot", "lacks a section; type and index",
                   static_cast<std::uint32_t>(type), index);
  }
  [[nodiscard]] PQATTN_UNIT_MEMBER bool has(detail::section_type type, std::uint32_t index) const noexcept {
    std::span<const std::byte> found;
    return section(type, index, found).ok();
  }

 private:
  std::span<const std::byte> bytes_;
  std::uint32_t version_ = snapshot_version;
  snapshot_kind kind_ = snapshot_kind::sequence;
  std::uint32_t sections_ = 0;
};

/// Reads a whole snapshot into memory. The size it claims is never believed: memory grows with bytes that really came.
/// `size` receives the number of bytes; `limit` bounds it. Errors: io_error, out_of_memory.
inline status read_snapshot(const snapshot_source& source, std::size_t limit, const memory_resource& resource,
                            buffer& bytes, std::size_t& size) {
  if (source.read == nullptr) {
    return failure(status_code::invalid_argument, "source.read", "is null");
  }
  buffer held;
  PQATTN_TRY(buffer::make(resource, std::size_t{1} << 16, held));
  std::size_t got = 0;
  for (;;) {
    bool failed = false;
    const std::size_t room = held.size() - got;
    const std::size_t count = source.read(source.user, held.data() + got, room, &failed);
    if (failed || count > room) {
      return failure(status_code::io_error, "source.read", "failed");
    }
    if (count == 0) {
      break;
    }
    got += count;
    if (got > limit) {
      return failure(status_code::out_of_memory, "snapshot", "is larger than the limit in bytes", limit, got);
    }
    if (got == held.size()) {
      buffer larger;
      PQATTN_TRY(buffer::make(resource, 2 * held.size(), larger));
      std::memcpy(larger.data(), held.data(), got);
      held = std::move(larger);
    }
  }
  bytes = std::move(held);
  size = got;
  return {};
}

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
