// SPDX-License-Identifier: MIT
// Snapshots: the codebooks of a pool and the tokens of a sequence as bytes. docs/snapshot.md describes the format.
// Codebooks and sequences are snapshots of their own, so that one set of codebooks serves many files. Everything read is
// checked before it is used, and loading is all or nothing.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "../bank/host/code_block.hpp"
#include "../bank/host/isa.hpp"
#include "../bank/host/resident.hpp"
#include "../config.hpp"
#include "../core/growable.hpp"
#include "sequence.hpp"

namespace pqattn {
inline namespace v0 {

/// Version of the format, apart from the library's. A reader refuses every other.
inline constexpr std::uint32_t snapshot_version = 1;

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

/// What a section holds. `index` is list | side << 2 | head << 3.
enum class section_type : std::uint32_t {
  config = 1,     ///< snapshot_config
  live = 2,       ///< one 64-bit word per page
  positions = 3,  ///< 64 32-bit numbers per page
  weights = 4,    ///< 64 * heads floats per page of the recent window, before training
  codes = 5,      ///< host code blocks, one per page
  rows = 6,       ///< 64 rows of the exact dtype per page
  book = 7,       ///< the host bank's codebook planes
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
  std::uint32_t unused = 0;
  std::uint64_t codebooks = 0;         ///< checksum of all codebooks, 0 when there are none
};
static_assert(sizeof(snapshot_config) == 2 * 32 + 40);

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

[[nodiscard]] inline std::uint32_t section_index(std::size_t list, kv_side side, std::size_t head) noexcept {
  return static_cast<std::uint32_t>(list | static_cast<std::size_t>(side) << 2 | head << 3);
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

/// A checked snapshot in memory that the caller keeps (read or mapped, aligned to 64 bytes for views). Header, table and
/// every section's checksum have been verified; sizes against a pool are verified when something is made of it.
class snapshot_view {
 public:
  snapshot_view() = default;

  /// Checks the whole of `bytes`. corrupt_data: not a snapshot, cut short, bytes left over, a checksum that does not
  /// fit; unsupported: another version or byte order. O(bytes), allocates nothing.
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
    if (header.version != snapshot_version) {
      return failure(status_code::unsupported, "snapshot.version", "is not this reader's", snapshot_version,
                     header.version);
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
    for (std::uint32_t i = 0; i < header.sections; ++i) {
      detail::section_entry entry;
      std::memcpy(&entry, table + i * sizeof entry, sizeof entry);
      if (entry.offset % memory_alignment != 0 || entry.offset > bytes.size() ||
          entry.bytes > bytes.size() - entry.offset) {
        return failure(status_code::corrupt_data, "snapshot.table", "names bytes outside the snapshot; section", 0, i);
      }
      if (entry.checksum != detail::checksum_of(bytes.data() + entry.offset, entry.bytes)) {
        return failure(status_code::corrupt_data, "snapshot section", "does not fit its checksum; number", header.sections, i);
      }
    }
    view.bytes_ = bytes;
    view.kind_ = static_cast<snapshot_kind>(header.kind);
    view.sections_ = header.sections;
    return {};
  }

  [[nodiscard]] snapshot_kind kind() const noexcept { return kind_; }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

  /// The bytes of a section, which must be there once and of this size.
  PQATTN_UNIT_MEMBER status section(detail::section_type type, std::uint32_t index, std::uint64_t bytes,
                                    const std::byte*& data) const noexcept {
    std::span<const std::byte> found;
    PQATTN_TRY(section(type, index, found));
    if (found.size() != bytes) {
      return failure(status_code::corrupt_data, "snapshot", "has a section of another size; bytes", bytes, found.size());
    }
    data = found.data();
    return {};
  }
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

 private:
  std::span<const std::byte> bytes_;
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

namespace detail {

/// Codebook planes of a pool as the host bank lays them out, whatever the pool's bank.
template <class Bank>
class portable_books {
 public:
  explicit portable_books(const page_pool<Bank>& pool) noexcept : pool_(pool) {}

  [[nodiscard]] std::size_t bytes(kv_side which) const noexcept {
    return host_codebook{resident(which, nullptr)}.bytes();
  }
  status load(std::size_t head, kv_side which) {
    const geometry& shape = pool_.side(which).shape;
    PQATTN_TRY(make(centroids_, shape.codebook_values() * sizeof(float)));
    PQATTN_TRY(make(planes_, bytes(which)));
    std::memset(planes_.data(), 0, bytes(which));
    auto* centroids = reinterpret_cast<float*>(centroids_.data());
    PQATTN_TRY(pool_.read_codebook(head, which, centroids));
    return store_planes({shape, centroids, 0, 0}, resident(which, planes_.data()));
  }
  [[nodiscard]] const std::byte* planes() const noexcept { return planes_.data(); }
  [[nodiscard]] resident_codebook<std::byte*> resident(kv_side which, std::byte* memory) const noexcept {
    return {pool_.side(which).shape, pool_.side(which).storage, memory, pool_.code_rotation(which)};
  }
  /// Centroids of planes that may lie at any address.
  status unpack(kv_side which, const std::byte* planes, float* centroids) {
    PQATTN_TRY(make(planes_, bytes(which)));
    std::memcpy(planes_.data(), planes, bytes(which));
    load_planes(resident(which, planes_.data()), centroids);
    return {};
  }
  /// Makes room for the centroids of one codebook.
  status make_centroids(kv_side which, float*& centroids) {
    PQATTN_TRY(make(centroids_, pool_.side(which).shape.codebook_values() * sizeof(float)));
    centroids = reinterpret_cast<float*>(centroids_.data());
    return {};
  }

 private:
  status make(buffer& memory, std::size_t size) {
    return memory.size() >= size ? status{} : buffer::make(pool_.resource(), size, memory);
  }

  const page_pool<Bank>& pool_;
  buffer centroids_;
  buffer planes_;
};

/// Checksum of all codebooks of a pool.
template <class Bank>
status books_checksum(const page_pool<Bank>& pool, std::uint64_t& checksum) {
  checksum = 0;
  if (!pool.trained()) {
    return {};
  }
  portable_books<Bank> books(pool);
  snapshot_checksum sum;
  for (std::size_t head = 0; head < pool.kv_heads(); ++head) {
    for (const kv_side which : kv_sides) {
      if (pool.side(which).coded) {
        PQATTN_TRY(books.load(head, which));
        sum.add(books.planes(), books.bytes(which));
      }
    }
  }
  checksum = sum.value();
  return {};
}

template <class Bank>
status describe(const page_pool<Bank>& pool, snapshot_config& described) {
  const cache_config& config = pool.config();
  for (const kv_side which : kv_sides) {
    const side_config& side = pool.side(which);
    snapshot_side& target = described.sides[static_cast<std::size_t>(which)];
    target = {side.coded ? 1u : 0u, side.shape.dim, 0, 0, 0, 0, 0};
    if (side.coded) {
      target = {1u, side.shape.dim, side.shape.subvectors, side.shape.centroids, side.shape.stages,
                static_cast<std::uint32_t>(side.storage), 0};
      if (side.shape.channel_order != nullptr) {
        target.channel_order = checksum_of(side.shape.channel_order, side.shape.dim * sizeof(std::uint16_t));
      }
    }
  }
  described.heads = static_cast<std::uint32_t>(pool.kv_heads());
  described.exact_type = static_cast<std::uint32_t>(config.exact_type);
  described.rope_pairs = config.rotation.pairs;
  described.rope_pairing = config.rotation.enabled() ? static_cast<std::uint32_t>(config.rotation.pairing) : 0u;
  described.rope_frequencies =
      config.rotation.enabled() ? checksum_of(config.rotation.frequencies, config.rotation.pairs * sizeof(float)) : 0u;
  described.codes_rotated = config.rotates_codes() ? 0u : 1u;
  return books_checksum(pool, described.codebooks);
}

/// Whether a snapshot's configuration is the pool's. Codebooks are compared when `with_books`.
inline status compare_config(const snapshot_view& view, const snapshot_config& mine, bool with_books) noexcept {
  const std::byte* data = nullptr;
  PQATTN_TRY(view.section(section_type::config, 0, sizeof(snapshot_config), data));
  snapshot_config theirs;
  std::memcpy(&theirs, data, sizeof theirs);
  for (std::size_t i = 0; i < 2; ++i) {
    const char* subject = i == 0 ? "snapshot keys" : "snapshot values";
    const snapshot_side& a = mine.sides[i];
    const snapshot_side& b = theirs.sides[i];
    const struct {
      const char* problem;
      std::uint64_t expected;
      std::uint64_t got;
    } fields[] = {{"are coded or not, unlike the pool's", a.coded, b.coded},
                  {"have another head size", a.dim, b.dim},
                  {"have other subvectors", a.subvectors, b.subvectors},
                  {"have another number of centroids", a.centroids, b.centroids},
                  {"have other stages", a.stages, b.stages},
                  {"have another codebook storage", a.storage, b.storage},
                  {"have another channel order; checksum", a.channel_order, b.channel_order}};
    for (const auto& field : fields) {
      if (field.expected != field.got) {
        return failure(status_code::shape_mismatch, subject, field.problem, field.expected, field.got);
      }
    }
  }
  const struct {
    const char* subject;
    std::uint64_t expected;
    std::uint64_t got;
  } fields[] = {{"snapshot heads", mine.heads, theirs.heads},
                {"snapshot exact type", mine.exact_type, theirs.exact_type},
                {"snapshot rope pairs", mine.rope_pairs, theirs.rope_pairs},
                {"snapshot rope pairing", mine.rope_pairing, theirs.rope_pairing},
                {"snapshot rope frequencies", mine.rope_frequencies, theirs.rope_frequencies},
                {"snapshot form of coded keys", mine.codes_rotated, theirs.codes_rotated}};
  for (const auto& field : fields) {
    if (field.expected != field.got) {
      return failure(status_code::shape_mismatch, field.subject, "must be the pool's", field.expected, field.got);
    }
  }
  if (with_books && (theirs.codebooks != mine.codebooks || mine.codebooks == 0)) {
    return failure(status_code::shape_mismatch, "snapshot codebooks", "must be the pool's; load them first",
                   mine.codebooks, theirs.codebooks);
  }
  return {};
}

}  // namespace detail

/// Writes the codebooks of a trained pool. Errors: not trained, io_error, out of memory.
template <class Bank>
status write_codebooks(const page_pool<Bank>& pool, const snapshot_sink& sink) {
  if (!pool.trained()) {
    return failure(status_code::unsupported, "pool", "is not trained: it has no codebooks to write");
  }
  detail::snapshot_config described;
  PQATTN_TRY(detail::describe(pool, described));
  detail::portable_books<Bank> books(pool);
  status outcome;
  detail::snapshot_writer writer(sink, pool.resource());
  const status written = writer.write(snapshot_kind::codebooks, [&](auto&& section) {
    section(detail::section_type::config, 0, sizeof described, [&](auto&& put) { put(&described, sizeof described); });
    for (std::size_t head = 0; head < pool.kv_heads(); ++head) {
      for (const kv_side which : kv_sides) {
        if (pool.side(which).coded) {
          section(detail::section_type::book, detail::section_index(0, which, head), books.bytes(which),
                  [&](auto&& put) {
                    const status loaded = books.load(head, which);
                    outcome = outcome ? loaded : outcome;
                    if (loaded) {
                      put(books.planes(), books.bytes(which));
                    }
                  });
        }
      }
    }
  });
  return outcome ? written : outcome;
}

/// Gives an untrained pool the codebooks of a snapshot. Errors (nothing changed): already trained, another
/// configuration, sections that are missing or of another size, numbers that are not finite, out of memory.
template <class Bank>
status load_codebooks(const snapshot_view& view, page_pool<Bank>& pool) {
  if (view.kind() != snapshot_kind::codebooks) {
    return failure(status_code::corrupt_data, "snapshot", "is not one of codebooks");
  }
  if (pool.trained() || !pool.config().codes_anything()) {
    return failure(status_code::unsupported, "pool", "is trained already or codes nothing");
  }
  detail::snapshot_config described;
  PQATTN_TRY(detail::describe(pool, described));
  PQATTN_TRY(detail::compare_config(view, described, false));
  detail::portable_books<Bank> books(pool);
  // First everything that can be wrong, then the loading.
  for (const bool loads : {false, true}) {
    for (std::size_t head = 0; head < pool.kv_heads(); ++head) {
      for (const kv_side which : kv_sides) {
        if (!pool.side(which).coded) {
          continue;
        }
        const std::byte* data = nullptr;
        PQATTN_TRY(view.section(detail::section_type::book, detail::section_index(0, which, head), books.bytes(which),
                                data));
        float* centroids = nullptr;
        status outcome = books.make_centroids(which, centroids);
        if (outcome) {
          outcome = books.unpack(which, data, centroids);
        }
        if (outcome) {
          const std::size_t values = pool.side(which).shape.codebook_values();
          for (std::size_t i = 0; i < values && outcome; ++i) {
            outcome = is_finite(centroids[i]) ? status{}
                                              : failure(status_code::not_finite, "snapshot codebook",
                                                        "has a NaN or infinity", head, i);
          }
        }
        if (outcome && loads) {
          outcome = pool.load_tentative(head, which, centroids);
        }
        if (!outcome) {
          pool.discard_training();
          return outcome;
        }
      }
    }
  }
  pool.keep_training();
  return {};
}

namespace detail {

/// Codes of one page in the host bank's layout, dead slots 0.
template <class Bank>
void fill_code_block(const page_pool<Bank>& pool, const token_list& from, std::size_t head, kv_side which,
                     std::size_t page, std::byte* block) noexcept {
  const geometry& shape = pool.side(which).shape;
  const std::size_t group_bytes = detail::group_bytes(shape.code_bits());
  std::memset(block, 0, detail::host_block_bytes(shape));
  std::uint16_t codes[max_dim * max_stages] = {};
  for (std::size_t i = 0; i < block_tokens; ++i) {
    if (!from.is_live(page * block_tokens + i)) {
      continue;
    }
    static_cast<void>(
        pool.bank().load_codes(pool.codes(head, which, from.pages()), {page * block_tokens + i, 1}, codes));
    for (std::uint32_t group = 0; group < shape.groups(); ++group) {
      detail::put_code<isa::native>(block + group * group_bytes, shape.code_bits(), i, codes[group]);
    }
  }
}

}  // namespace detail

/// Writes the tokens of a sequence: codes, exact rows, positions. Dead slots are written as zeros. Errors: io_error, out
/// of memory.
template <class Bank>
status write_sequence(const sequence<Bank>& tokens, const snapshot_sink& sink) {
  const page_pool<Bank>& pool = tokens.pool();
  detail::snapshot_config described;
  PQATTN_TRY(detail::describe(pool, described));
  std::size_t largest = 0;
  for (const kv_side which : kv_sides) {
    largest = (std::max)(largest, pool.side(which).coded ? detail::host_block_bytes(pool.side(which).shape) : 0);
  }
  buffer block;
  PQATTN_TRY(buffer::make(pool.resource(), largest, block));
  const token_list* lists[] = {&tokens.sinks(), &tokens.body(), &tokens.recent()};
  detail::snapshot_writer writer(sink, pool.resource());
  return writer.write(snapshot_kind::sequence, [&](auto&& section) {
    section(detail::section_type::config, 0, sizeof described, [&](auto&& put) { put(&described, sizeof described); });
    for (std::size_t list = 0; list < 3; ++list) {
      const token_list& from = *lists[list];
      const auto index = static_cast<std::uint32_t>(list);
      section(detail::section_type::live, index, from.page_count() * 8,
              [&](auto&& put) { put(from.live(), from.page_count() * 8); });
      section(detail::section_type::positions, index, from.page_count() * 64 * 4,
              [&](auto&& put) {
                for (std::size_t slot = 0; slot < from.page_count() * 64; ++slot) {
                  const std::int32_t position = from.is_live(slot) ? from.positions()[slot] : 0;
                  put(&position, sizeof position);
                }
              });
      if (from.has_weights()) {
        const std::size_t bytes = from.page_count() * 64 * pool.kv_heads() * sizeof(float);
        section(detail::section_type::weights, index, bytes, [&](auto&& put) { put(from.weights(0), bytes); });
      }
      for (std::size_t head = 0; head < pool.kv_heads(); ++head) {
        for (const kv_side which : kv_sides) {
          const geometry& shape = pool.side(which).shape;
          const bool coded = list == 1 && pool.side(which).coded;
          const std::size_t row_bytes = shape.dim * size_of(pool.config().exact_type);
          const std::size_t page_bytes = coded ? detail::host_block_bytes(shape) : 64 * row_bytes;
          section(coded ? detail::section_type::codes : detail::section_type::rows,
                  detail::section_index(list, which, head), from.page_count() * page_bytes, [&](auto&& put) {
                    for (std::size_t page = 0; page < from.page_count(); ++page) {
                      if (coded) {
                        detail::fill_code_block(pool, from, head, which, page, block.data());
                        put(block.data(), page_bytes);
                        continue;
                      }
                      const rows_ref rows = list == 1 ? pool.body_rows(from.page(page), head, which)
                                                      : pool.exact_rows(from.page(page), head, which);
                      constexpr char zeros[max_dim * sizeof(float)] = {};
                      for (std::size_t i = 0; i < 64; ++i) {
                        put(from.is_live(page * 64 + i) ? rows.at(i) : static_cast<const void*>(zeros), row_bytes);
                      }
                    }
                  });
        }
      }
    }
  });
}

/// Fills an empty sequence from a snapshot.
template <class Bank>
class sequence_restorer {
 public:
  sequence_restorer(const snapshot_view& view, sequence<Bank>& target) noexcept
      : view_(view), pool_(target.pool()), target_(target) {}

  status restore() {
    std::span<const std::byte> body;
    PQATTN_TRY(view_.section(detail::section_type::live, 1, body));
    detail::snapshot_config described;
    PQATTN_TRY(detail::describe(pool_, described));
    PQATTN_TRY(detail::compare_config(view_, described, !body.empty()));
    token_list* lists[] = {&target_.sinks_, &target_.body_, &target_.recent_};
    for (std::size_t list = 0; list < 3; ++list) {
      PQATTN_TRY(restore_list(list, *lists[list]));
    }
    return {};
  }

 private:
  status restore_list(std::size_t list, token_list& target) {
    std::span<const std::byte> live;
    const auto index = static_cast<std::uint32_t>(list);
    PQATTN_TRY(view_.section(detail::section_type::live, index, live));
    const std::size_t pages = live.size() / 8;
    if (live.size() % 8 != 0 || (list == 0 && pages > blocks_for(pool_.config().sinks))) {
      return failure(status_code::corrupt_data, "snapshot live bits", "are not whole words, or too many; bytes", 8,
                     live.size());
    }
    const std::byte* positions = nullptr;
    PQATTN_TRY(view_.section(detail::section_type::positions, index, pages * 64 * 4, positions));
    // Everything of the list is checked before memory is taken for it.
    std::size_t slots = 0;
    for (std::size_t slot = 0; slot < pages * 64; ++slot) {
      if (is_live(live, slot)) {
        slots = slot + 1;
        if (position(positions, slot) < 0) {
          return failure(status_code::corrupt_data, "snapshot positions", "must not be negative; slot", slot,
                         position(positions, slot));
        }
      }
    }
    for (std::size_t page = 0; page < pages; ++page) {
      std::uint64_t word = 0;
      std::memcpy(&word, live.data() + page * 8, 8);
      if (word == 0) {
        return failure(status_code::corrupt_data, "snapshot live bits", "have a page without a token; page", pages,
                       page);
      }
    }
    for (std::size_t head = 0; head < pool_.kv_heads(); ++head) {
      for (const kv_side which : kv_sides) {
        PQATTN_TRY(check_content(list, live, pages, head, which));
      }
    }
    const std::byte* weights = nullptr;
    if (target.has_weights()) {
      std::span<const std::byte> found;
      if (view_.section(detail::section_type::weights, index, found)) {
        PQATTN_TRY(view_.section(detail::section_type::weights, index, pages * 64 * pool_.kv_heads() * 4, weights));
        PQATTN_TRY(check_weights(weights, pages * 64 * pool_.kv_heads()));
      }
    }
    PQATTN_TRY(target.reserve(pages * 64));
    PQATTN_TRY(list == 1 ? pool_.reserve_coded(pages) : pool_.reserve_exact(pages));
    for (std::size_t page = 0; page < pages; ++page) {
      target.push_page(list == 1 ? pool_.take_coded() : pool_.take_exact());
    }
    target.restore(slots, [&](std::size_t slot) { return is_live(live, slot); },
                   [&](std::size_t slot) { return position(positions, slot); });
    if (weights != nullptr && pages != 0) {
      std::memcpy(target.weights(0), weights, pages * 64 * pool_.kv_heads() * 4);
    }
    for (std::size_t head = 0; head < pool_.kv_heads(); ++head) {
      for (const kv_side which : kv_sides) {
        PQATTN_TRY(store_content(list, target, head, which));
      }
    }
    return {};
  }

  [[nodiscard]] static bool is_live(std::span<const std::byte> live, std::size_t slot) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, live.data() + slot / 64 * 8, 8);
    return (word >> (slot % 64) & 1u) != 0;
  }
  [[nodiscard]] static std::int32_t position(const std::byte* positions, std::size_t slot) noexcept {
    std::int32_t value = 0;
    std::memcpy(&value, positions + slot * 4, 4);
    return value;
  }
  static status check_weights(const std::byte* weights, std::size_t count) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      float weight = 0.0f;
      std::memcpy(&weight, weights + i * 4, 4);
      if (!is_finite(weight) || weight < 0.0f) {
        return failure(status_code::corrupt_data, "snapshot weights", "must be finite and at least 0; index", 0, i);
      }
    }
    return {};
  }

  [[nodiscard]] bool coded(std::size_t list, kv_side which) const noexcept {
    return list == 1 && pool_.side(which).coded;
  }
  [[nodiscard]] rows_view rows_in(const std::byte* data, std::size_t rows, kv_side which) const noexcept {
    const std::size_t dim = pool_.side(which).shape.dim;
    return {data, pool_.config().exact_type, rows, dim, static_cast<std::ptrdiff_t>(dim), 1};
  }
  /// The codes or rows of one head and side of a list.
  status content(std::size_t list, std::size_t pages, std::size_t head, kv_side which, const std::byte*& data) const {
    const geometry& shape = pool_.side(which).shape;
    const std::size_t page_bytes = coded(list, which) ? detail::host_block_bytes(shape)
                                                      : 64 * shape.dim * size_of(pool_.config().exact_type);
    return view_.section(coded(list, which) ? detail::section_type::codes : detail::section_type::rows,
                         detail::section_index(list, which, head), pages * page_bytes, data);
  }
  static void codes_of_slot(const geometry& shape, const std::byte* blocks, std::size_t slot,
                            std::uint16_t* codes) noexcept {
    const std::byte* block = blocks + slot / 64 * detail::host_block_bytes(shape);
    for (std::uint32_t group = 0; group < shape.groups(); ++group) {
      codes[group] = static_cast<std::uint16_t>(
          detail::get_code(block + group * detail::group_bytes(shape.code_bits()), shape.code_bits(), slot % 64));
    }
  }

  status check_content(std::size_t list, std::span<const std::byte> live, std::size_t pages, std::size_t head,
                       kv_side which) const {
    const std::byte* data = nullptr;
    PQATTN_TRY(content(list, pages, head, which, data));
    if (!coded(list, which)) {
      const rows_view rows = rows_in(data, pages * 64, which);
      return detail::check_finite(rows, "snapshot rows");
    }
    const geometry& shape = pool_.side(which).shape;
    std::uint16_t codes[max_dim * max_stages];
    for (std::size_t slot = 0; slot < pages * 64; ++slot) {
      if (!is_live(live, slot)) {
        continue;
      }
      codes_of_slot(shape, data, slot, codes);
      for (std::uint32_t group = 0; group < shape.groups(); ++group) {
        if (codes[group] >= shape.centroids) {
          return failure(status_code::corrupt_data, "snapshot codes", "must be below the number of centroids",
                         shape.centroids, codes[group]);
        }
      }
    }
    return {};
  }
  status store_content(std::size_t list, const token_list& target, std::size_t head, kv_side which) {
    const std::byte* data = nullptr;
    PQATTN_TRY(content(list, target.page_count(), head, which, data));
    const geometry& shape = pool_.side(which).shape;
    if (!coded(list, which)) {
      float row[max_dim];
      const rows_view rows = rows_in(data, target.page_count() * 64, which);
      for (std::size_t slot = 0; slot < rows.rows; ++slot) {
        const std::uint32_t page = target.page(slot / 64);
        load_row(rows, slot, row);
        store_row(list == 1 ? pool_.body_rows(page, head, which) : pool_.exact_rows(page, head, which), slot % 64, row);
      }
      return {};
    }
    std::uint16_t codes[max_dim * max_stages];
    for (std::size_t slot = 0; slot < target.slots(); ++slot) {
      if (target.is_live(slot)) {
        codes_of_slot(shape, data, slot, codes);
        PQATTN_TRY(pool_.bank().store_codes(pool_.codes(head, which, target.pages()), {slot, 1}, codes));
      }
    }
    return {};
  }

  const snapshot_view& view_;
  page_pool<Bank>& pool_;
  sequence<Bank>& target_;
};

/// Loads a sequence snapshot into a sequence of a pool of the same configuration and, when tokens are coded, the same
/// codebooks. What the sequence held is given back. Errors (nothing changed): another configuration, anything in the
/// snapshot that does not add up, out of memory.
template <class Bank>
status load_sequence(const snapshot_view& view, sequence<Bank>& tokens) {
  if (view.kind() != snapshot_kind::sequence) {
    return failure(status_code::corrupt_data, "snapshot", "is not one of a sequence");
  }
  sequence<Bank> made(tokens.pool());
  PQATTN_TRY(sequence_restorer<Bank>(view, made).restore());
  tokens = std::move(made);
  return {};
}

/// Segments of a sequence snapshot used where it lies, e.g. in a mapped file: host bank only. The snapshot must be
/// aligned to 64 bytes and outlive the segments; `pool` gives configuration and codebooks. Pages become consecutive blocks.
/// Exact lists are one segment each. Up to 3 segments; keys and values of one head. `tables`: see segment.
/// Errors: another configuration or codebooks, sections that are missing or of another size, misaligned memory.
template <class Bank>
  requires std::same_as<typename Bank::address, std::byte*>
status snapshot_segments(const snapshot_view& view, const page_pool<Bank>& pool, std::size_t head, std::byte* tables,
                         segment<std::byte*>* segments, std::size_t& count) {
  if (reinterpret_cast<std::uintptr_t>(view.bytes().data()) % memory_alignment != 0) {
    return failure(status_code::invalid_argument, "snapshot", "must be aligned to 64 bytes to be used in place");
  }
  if (head >= pool.kv_heads()) {
    return failure(status_code::invalid_argument, "head", "must be below the KV heads", pool.kv_heads(), head);
  }
  std::span<const std::byte> body;
  PQATTN_TRY(view.section(detail::section_type::live, 1, body));
  detail::snapshot_config described;
  PQATTN_TRY(detail::describe(pool, described));
  PQATTN_TRY(detail::compare_config(view, described, !body.empty()));
  count = 0;
  for (std::size_t list = 0; list < 3; ++list) {
    std::span<const std::byte> live;
    const auto index = static_cast<std::uint32_t>(list);
    PQATTN_TRY(view.section(detail::section_type::live, index, live));
    const std::size_t pages = live.size() / 8;
    const std::byte* positions = nullptr;
    PQATTN_TRY(view.section(detail::section_type::positions, index, pages * 64 * 4, positions));
    if (pages == 0) {
      continue;
    }
    segment<std::byte*> next;
    next.slots = {0, pages * 64};
    next.live = reinterpret_cast<const std::uint64_t*>(live.data());
    next.positions = {0, reinterpret_cast<const std::int32_t*>(positions)};
    for (const kv_side which : kv_sides) {
      token_source<std::byte*>& source = which == kv_side::keys ? next.keys : next.values;
      const geometry& shape = pool.side(which).shape;
      const std::byte* data = nullptr;
      source.coded = list == 1 && pool.side(which).coded;
      const std::size_t page_bytes = source.coded ? detail::host_block_bytes(shape)
                                                  : 64 * shape.dim * size_of(pool.config().exact_type);
      PQATTN_TRY(view.section(source.coded ? detail::section_type::codes : detail::section_type::rows,
                              detail::section_index(list, which, head), pages * page_bytes, data));
      if (source.coded) {
        source.codes = {shape, const_cast<std::byte*>(data), nullptr};  // only read
        source.book = pool.book(head, which);
      } else {
        source.rows = {data, pool.config().exact_type, pages * 64, shape.dim, static_cast<std::ptrdiff_t>(shape.dim), 1};
      }
    }
    if (next.keys.coded) {
      next.rotation = pool.code_rotation();
      next.tables = tables;
    }
    segments[count++] = next;
  }
  return {};
}

}  // namespace v0
}  // namespace pqattn
