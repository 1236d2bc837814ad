// SPDX-License-Identifier: MIT
// Snapshots: the codebooks of a pool and the tokens of a sequence as bytes. docs/snapshot.md describes the format.
// Codebooks and sequences are snapshots of their own, so that one set of codebooks serves many files. Everything read
// is checked before it is used, and loading is all or nothing.
#pragma once

#include <algorithm>
#include <bit>
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
#include "sequence.hpp"
#include "snapshot_format.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Codebook planes of a pool as the host bank lays them out, whatever the pool's bank.
template <class Bank>
class portable_books {
 public:
  explicit portable_books(const page_pool<Bank>& pool) noexcept : pool_(pool) {}

  [[nodiscard]] std::size_t bytes(kv_side which) const noexcept {
    return host_codebook{resident(which, nullptr)}.bytes();
  }
  status load(std::size_t head, kv_side which, std::size_t epoch) {
    const geometry& shape = pool_.side(which).shape;
    PQATTN_TRY(make(centroids_, shape.codebook_values() * sizeof(float)));
    PQATTN_TRY(make(planes_, bytes(which)));
    std::memset(planes_.data(), 0, bytes(which));
    auto* centroids = reinterpret_cast<float*>(centroids_.data());
    PQATTN_TRY(pool_.read_codebook(head, which, epoch, centroids));
    return store_planes({shape, centroids, 0, 0}, resident(which, planes_.data()));
  }
  [[nodiscard]] const std::byte* planes() const noexcept { return planes_.data(); }
  /// What the side is coded in, as floats.
  [[nodiscard]] std::size_t transform_bytes(kv_side which) const noexcept {
    return pool_.transform_floats(which) * sizeof(float);
  }
  status load_transform(std::size_t head, kv_side which) {
    PQATTN_TRY(make(transform_, transform_bytes(which)));
    pool_.read_transform(head, which, reinterpret_cast<float*>(transform_.data()));
    return {};
  }
  [[nodiscard]] const std::byte* transform() const noexcept { return transform_.data(); }
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
  buffer transform_;
};

/// Checksum of all codebooks and transforms of an epoch.
template <class Bank>
status books_checksum(const page_pool<Bank>& pool, std::size_t epoch, std::uint64_t& checksum) {
  portable_books<Bank> books(pool);
  snapshot_checksum sum;
  for (std::size_t head = 0; head < pool.kv_heads(); ++head) {
    for (const kv_side which : kv_sides) {
      if (pool.stores(which) && pool.side(which).coded) {
        PQATTN_TRY(books.load(head, which, epoch));
        sum.add(books.planes(), books.bytes(which));
        if (pool.has_transform(head, which)) {
          PQATTN_TRY(books.load_transform(head, which));
          sum.add(books.transform(), books.transform_bytes(which));
        }
      }
    }
  }
  checksum = sum.value();
  return {};
}

/// Names of epochs: their checksums.
struct epoch_names {
  std::uint64_t names[max_epochs] = {};
  std::size_t count = 0;
};

/// Of the epochs that a pool has, oldest first.
template <class Bank>
status names_of(const page_pool<Bank>& pool, epoch_names& found) {
  for (found.count = 0; found.count < pool.epoch_count(); ++found.count) {
    PQATTN_TRY(books_checksum(pool, pool.epoch_in_order(found.count), found.names[found.count]));
  }
  return {};
}
/// Of the epochs that a snapshot has; before version 4 the one that its configuration names.
inline status names_of(const snapshot_view& view, std::uint64_t configured, epoch_names& found) noexcept {
  if (view.version() < 4) {
    found = {{configured}, 1};
    return {};
  }
  std::span<const std::byte> data;
  PQATTN_TRY(view.section(section_type::epochs, 0, data));
  if (data.size() % 8 != 0 || data.size() / 8 > max_epochs) {
    return failure(status_code::corrupt_data, "snapshot epochs", "are more than there can be, or no whole names; bytes",
                   8 * max_epochs, data.size());
  }
  found.count = data.size() / 8;
  if (found.count != 0) {
    std::memcpy(found.names, data.data(), data.size());
  }
  return {};
}

/// Which epochs of a pool the pages of a sequence snapshot belong to.
class mapped_epochs {
 public:
  /// `pages` pages of the body. Errors: codebooks that the pool does not have, numbers of no epoch, out of memory.
  template <class Bank>
  status find(const snapshot_view& view, const page_pool<Bank>& pool, std::uint64_t configured, std::size_t pages) {
    epoch_names mine;
    epoch_names theirs;
    PQATTN_TRY(names_of(pool, mine));
    PQATTN_TRY(names_of(view, configured, theirs));
    for (std::size_t i = 0; i < theirs.count; ++i) {
      std::size_t known = 0;
      const auto is_it = [&](std::size_t index) {
        return mine.names[index] == theirs.names[i] ||
               (theirs.names[i] != 0 && pool.loaded_as(pool.epoch_in_order(index)) == theirs.names[i]);
      };
      while (known < mine.count && !is_it(known)) {
        ++known;
      }
      if (known == mine.count) {
        return failure(status_code::shape_mismatch, "snapshot codebooks", "must be the pool's; load them first",
                       mine.count == 0 ? 0 : mine.names[mine.count - 1], theirs.names[i]);
      }
      epochs_[i] = pool.epoch_in_order(known);
    }
    if (view.version() < 4) {
      return {};
    }
    PQATTN_TRY(view.section(section_type::page_epochs, 0, pages * 4, numbers_));
    for (std::size_t page = 0; page < pages; ++page) {
      if (number(page) >= theirs.count) {
        return failure(status_code::corrupt_data, "snapshot epochs of pages", "must name one of the epochs",
                       theirs.count, number(page));
      }
    }
    return {};
  }
  [[nodiscard]] std::size_t epoch(std::size_t page) const noexcept { return epochs_[number(page)]; }

 private:
  [[nodiscard]] std::size_t number(std::size_t page) const noexcept {
    std::uint32_t value = 0;
    if (numbers_ != nullptr) {
      std::memcpy(&value, numbers_ + 4 * page, 4);
    }
    return value;
  }

  const std::byte* numbers_ = nullptr;
  std::size_t epochs_[max_epochs] = {};
};

/// All but the checksum of the codebooks.
template <class Bank>
[[nodiscard]] snapshot_config describe(const page_pool<Bank>& pool) noexcept {
  snapshot_config described;
  const cache_config& config = pool.config();
  for (const kv_side which : kv_sides) {
    const side_config& side = pool.side(which);
    snapshot_side& target = described.sides[static_cast<std::size_t>(which)];
    target = {side.coded ? 1u : 0u, side.shape.dim, 0, 0, 0, 0, 0};
    if (side.coded) {
      target = {1u,
                side.shape.dim,
                side.shape.subvectors,
                side.shape.centroids,
                side.shape.stages,
                static_cast<std::uint32_t>(side.storage),
                0};
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
  described.key_tail = config.key_tail;
  described.values_from_keys = config.values_from_keys ? 1u : 0u;
  described.key_metric = pool.transform_floats(kv_side::keys) != 0 ? 1u : 0u;
  described.outliers = pool.outliers().enabled() ? 1u : 0u;
  described.values_turned = pool.transform_floats(kv_side::values) != 0 ? 1u : 0u;
  return described;
}

/// One number that a snapshot and a pool must agree on.
struct agreed_number {
  const char* subject;
  const char* problem;
  std::uint64_t expected;
  std::uint64_t got;
};
template <std::size_t Count>
status check_agreed(const agreed_number (&numbers)[Count]) noexcept {
  for (const agreed_number& number : numbers) {
    if (number.expected != number.got) {
      return failure(status_code::shape_mismatch, number.subject, number.problem, number.expected, number.got);
    }
  }
  return {};
}

/// Whether a snapshot's configuration is the pool's, codebooks apart, whose checksum goes to `named`. `coded`: it holds
/// coded tokens.
inline status compare_config(const snapshot_view& view, const snapshot_config& mine, bool coded,
                             std::uint64_t& named) noexcept {
  const std::byte* data = nullptr;
  const std::size_t bytes = view.version() == 1 ? snapshot_config_bytes_v1 : sizeof(snapshot_config);
  PQATTN_TRY(view.section(section_type::config, 0, bytes, data));
  snapshot_config theirs;
  std::memcpy(&theirs, data, bytes);
  for (std::size_t i = 0; i < 2; ++i) {
    const char* subject = i == 0 ? "snapshot keys" : "snapshot values";
    const snapshot_side& a = mine.sides[i];
    const snapshot_side& b = theirs.sides[i];
    PQATTN_TRY(check_agreed({{subject, "are coded or not, unlike the pool's", a.coded, b.coded},
                             {subject, "have another head size", a.dim, b.dim},
                             {subject, "have other subvectors", a.subvectors, b.subvectors},
                             {subject, "have another number of centroids", a.centroids, b.centroids},
                             {subject, "have other stages", a.stages, b.stages},
                             {subject, "have another codebook storage", a.storage, b.storage},
                             {subject, "have another channel order; checksum", a.channel_order, b.channel_order}}));
  }
  constexpr const char* problem = "must be the pool's";
  PQATTN_TRY(check_agreed({{"snapshot heads", problem, mine.heads, theirs.heads},
                           {"snapshot exact type", problem, mine.exact_type, theirs.exact_type},
                           {"snapshot rope pairs", problem, mine.rope_pairs, theirs.rope_pairs},
                           {"snapshot rope pairing", problem, mine.rope_pairing, theirs.rope_pairing},
                           {"snapshot rope frequencies", problem, mine.rope_frequencies, theirs.rope_frequencies},
                           {"snapshot key tail", problem, mine.key_tail, theirs.key_tail},
                           {"snapshot values from keys", problem, mine.values_from_keys, theirs.values_from_keys},
                           {"snapshot form of coded keys", problem, mine.codes_rotated, theirs.codes_rotated},
                           {"snapshot metric of keys", problem, mine.key_metric, theirs.key_metric},
                           {"snapshot rotation of values", problem, mine.values_turned, theirs.values_turned}}));
  if (coded && theirs.outliers != 0 && mine.outliers == 0) {
    return failure(status_code::shape_mismatch, "snapshot outliers", "need a pool that keeps outliers");
  }
  named = theirs.codebooks;
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Writes the codebooks of a trained pool, of all epochs that it has. Errors: not trained, io_error, out of memory.
template <class Bank>
status write_codebooks(const page_pool<Bank>& pool, const snapshot_sink& sink) {
  if (!pool.trained()) {
    return failure(status_code::unsupported, "pool", "is not trained: it has no codebooks to write");
  }
  detail::snapshot_config described = detail::describe(pool);
  detail::epoch_names epochs;
  PQATTN_TRY(detail::names_of(pool, epochs));
  described.codebooks = epochs.names[epochs.count - 1];
  detail::portable_books<Bank> books(pool);
  status outcome;
  detail::snapshot_writer writer(sink, pool.resource());
  const auto write_book = [&](std::size_t index, std::size_t head, kv_side which, auto&& section) {
    section(detail::section_type::book, detail::section_index(0, which, head, index), books.bytes(which),
            [&](auto&& put) {
              const status loaded = books.load(head, which, pool.epoch_in_order(index));
              outcome = outcome ? loaded : outcome;
              if (loaded) {
                put(books.planes(), books.bytes(which));
              }
            });
    if (index == 0 && pool.has_transform(head, which)) {
      section(detail::section_type::transform, detail::section_index(0, which, head), books.transform_bytes(which),
              [&](auto&& put) {
                const status loaded = books.load_transform(head, which);
                outcome = outcome ? loaded : outcome;
                if (loaded) {
                  put(books.transform(), books.transform_bytes(which));
                }
              });
    }
  };
  const status written = writer.write(snapshot_kind::codebooks, [&](auto&& section) {
    section(detail::section_type::config, 0, sizeof described, [&](auto&& put) { put(&described, sizeof described); });
    section(detail::section_type::epochs, 0, epochs.count * 8,
            [&](auto&& put) { put(epochs.names, epochs.count * 8); });
    for (std::size_t index = 0; index < epochs.count; ++index) {
      for (std::size_t head = 0; head < pool.kv_heads(); ++head) {
        for (const kv_side which : kv_sides) {
          if (pool.stores(which) && pool.side(which).coded) {
            write_book(index, head, which, section);
          }
        }
        if (pool.measures()) {
          const outlier_rule rule = pool.rule(head, pool.epoch_in_order(index));
          const float numbers[] = {rule.key_error, rule.value_error, rule.above};
          section(detail::section_type::rule, detail::rule_index(head, index), sizeof numbers,
                  [&](auto&& put) { put(numbers, sizeof numbers); });
        }
      }
    }
  });
  return outcome ? written : outcome;
}

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Floats of a section, at any address, copied where they can be read; all of them finite.
inline status copy_floats(const std::byte* data, std::size_t count, const memory_resource& resource, buffer& copy,
                          const char* subject) {
  PQATTN_TRY(buffer::make(resource, count * sizeof(float), copy));
  std::memcpy(copy.data(), data, count * sizeof(float));
  const auto* numbers = reinterpret_cast<const float*>(copy.data());
  for (std::size_t i = 0; i < count; ++i) {
    if (!is_finite(numbers[i])) {
      return failure(status_code::not_finite, subject, "has a NaN or infinity; index", 0, i);
    }
  }
  return {};
}

/// Checks one codebook of a snapshot and what it is coded in, and gives them to the pool when `loads`.
template <class Bank>
status load_book(const snapshot_view& view, page_pool<Bank>& pool, std::size_t head, kv_side which, std::size_t epoch,
                 bool loads) {
  if (!loads && pool.book(head, which).memory != typename Bank::address{}) {  // while nothing is loaded yet
    return failure(status_code::unsupported, "codebook", "was loaded before; head", 0, head);
  }
  portable_books<Bank> books(pool);
  const std::uint32_t index = section_index(0, which, head);
  const std::byte* data = nullptr;
  PQATTN_TRY(view.section(section_type::book, section_index(0, which, head, epoch), books.bytes(which), data));
  float* centroids = nullptr;
  PQATTN_TRY(books.make_centroids(which, centroids));
  PQATTN_TRY(books.unpack(which, data, centroids));
  const std::size_t values = pool.side(which).shape.codebook_values();
  for (std::size_t i = 0; i < values; ++i) {
    if (!is_finite(centroids[i])) {
      return failure(status_code::not_finite, "snapshot codebook", "has a NaN or infinity", head, i);
    }
  }
  buffer transform;
  const std::size_t floats = pool.transform_floats(which);
  if (view.has(section_type::transform, index)) {
    PQATTN_TRY(view.section(section_type::transform, index, floats * sizeof(float), data));
    PQATTN_TRY(copy_floats(data, floats, pool.resource(), transform, "snapshot metric or rotation"));
  }
  return loads ? pool.load_tentative(head, which, centroids, reinterpret_cast<const float*>(transform.data()))
               : status{};
}

/// Checks the rule of outliers of a head, and gives it to the pool when `loads`. Snapshots may lack it.
template <class Bank>
status load_rule(const snapshot_view& view, page_pool<Bank>& pool, std::size_t head, std::size_t epoch, bool loads) {
  if (!pool.measures() || !view.has(section_type::rule, rule_index(head, epoch))) {
    return {};
  }
  float numbers[3];
  const std::byte* data = nullptr;
  PQATTN_TRY(view.section(section_type::rule, rule_index(head, epoch), sizeof numbers, data));
  std::memcpy(numbers, data, sizeof numbers);
  for (const float number : numbers) {
    if (!is_finite(number) || number < 0.0f) {
      return failure(status_code::corrupt_data, "snapshot rule of outliers", "must be finite and at least 0; head", 0,
                     head);
    }
  }
  if (loads) {
    pool.set_rule(head, {numbers[0], numbers[1], numbers[2]});
  }
  return {};
}

/// Checksum of the codebooks and transforms of an epoch that a snapshot holds, which load_book() has checked:
/// books_checksum() of the pool that wrote them.
template <class Bank>
status stored_checksum(const snapshot_view& view, const page_pool<Bank>& pool, std::size_t epoch,
                       std::uint64_t& checksum) {
  portable_books<Bank> books(pool);
  snapshot_checksum sum;
  for (std::size_t head = 0; head < pool.kv_heads(); ++head) {
    for (const kv_side which : kv_sides) {
      if (!pool.stores(which) || !pool.side(which).coded) {
        continue;
      }
      const std::uint32_t index = section_index(0, which, head);
      const std::byte* data = nullptr;
      PQATTN_TRY(view.section(section_type::book, section_index(0, which, head, epoch), books.bytes(which), data));
      sum.add(data, books.bytes(which));
      if (view.has(section_type::transform, index)) {
        PQATTN_TRY(view.section(section_type::transform, index, books.transform_bytes(which), data));
        sum.add(data, books.transform_bytes(which));
      }
    }
  }
  checksum = sum.value();
  return {};
}

/// Checks the codebooks of one epoch of a snapshot and gives them to the pool when `loads`.
template <class Bank>
status load_epoch(const snapshot_view& view, page_pool<Bank>& pool, std::size_t epoch, bool loads) {
  if (loads && epoch != 0) {
    PQATTN_TRY(pool.begin_loaded_epoch());
  }
  for (std::size_t head = 0; head < pool.kv_heads(); ++head) {
    PQATTN_TRY(load_rule(view, pool, head, epoch, loads));
    for (const kv_side which : kv_sides) {
      if (pool.stores(which) && pool.side(which).coded) {
        PQATTN_TRY(load_book(view, pool, head, which, epoch, loads));
      }
    }
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Gives an untrained pool the codebooks of a snapshot, of all its epochs. Tokens are coded in the newest; the older
/// ones are held until page_pool::release_epoch(). Errors (nothing changed): already trained, another configuration,
/// more epochs than the pool may have, sections that are missing or of another size, numbers that are not finite, out
/// of memory.
template <class Bank>
status load_codebooks(const snapshot_view& view, page_pool<Bank>& pool) {
  if (view.kind() != snapshot_kind::codebooks) {
    return failure(status_code::corrupt_data, "snapshot", "is not one of codebooks");
  }
  if (pool.trained() || !pool.config().codes_anything()) {
    return failure(status_code::unsupported, "pool", "is trained already or codes nothing");
  }
  std::uint64_t configured = 0;
  PQATTN_TRY(detail::compare_config(view, detail::describe(pool), false, configured));
  detail::epoch_names epochs;
  PQATTN_TRY(detail::names_of(view, configured, epochs));
  if (epochs.count == 0 || epochs.count > pool.config().most_epochs) {
    return epochs.count == 0 ? failure(status_code::corrupt_data, "snapshot epochs", "are none")
                             : failure(status_code::capacity, "snapshot epochs", "are more than config.most_epochs",
                                       pool.config().most_epochs, epochs.count);
  }
  // First everything that can be wrong, then the loading.
  for (const bool loads : {false, true}) {
    for (std::size_t epoch = 0; epoch < epochs.count; ++epoch) {
      if (const status outcome = detail::load_epoch(view, pool, epoch, loads); !outcome) {
        pool.discard_training();
        return outcome;
      }
    }
  }
  pool.keep_training();
  for (std::size_t epoch = 0; epoch < epochs.count; ++epoch) {
    std::uint64_t stored = 0;
    // Its sections are there: load_book() has seen them.
    static_cast<void>(detail::stored_checksum(view, pool, epoch, stored));
    pool.set_loaded_as(pool.epoch_in_order(epoch), stored == epochs.names[epoch] ? stored : 0);
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

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

/// Rows of one page, dead slots 0.
template <class Put>
void put_rows(const token_list& from, std::size_t page, const rows_ref& rows, Put&& put) {
  constexpr char zeros[max_dim * sizeof(float)] = {};
  for (std::size_t i = 0; i < block_tokens; ++i) {
    put(from.is_live(page * block_tokens + i) ? rows.at(i) : static_cast<const void*>(zeros),
        rows.cols * size_of(rows.type));
  }
}

/// Sections with the codes or rows of one head and side of a list, and the tails behind coded keys.
template <class Bank, class Section>
void write_content(const page_pool<Bank>& pool, const token_list& from, std::size_t list, std::size_t head,
                   kv_side which, std::byte* block, Section&& section) {
  const std::size_t pages = from.page_count();
  const std::uint32_t index = section_index(list, which, head);
  const std::size_t element = size_of(pool.config().exact_type);
  if (list != 1 || !pool.side(which).coded) {
    section(section_type::rows, index, pages * block_tokens * pool.row_dim(which) * element, [&](auto&& put) {
      for (std::size_t page = 0; page < pages; ++page) {
        put_rows(
            from, page,
            list == 1 ? pool.body_rows(from.page(page), head, which) : pool.exact_rows(from.page(page), head, which),
            put);
      }
    });
    return;
  }
  const std::size_t block_bytes = host_block_bytes(pool.side(which).shape);
  section(section_type::codes, index, pages * block_bytes, [&](auto&& put) {
    for (std::size_t page = 0; page < pages; ++page) {
      fill_code_block(pool, from, head, which, page, block);
      put(block, block_bytes);
    }
  });
  if (const std::size_t tail = pool.config().key_tail; which == kv_side::keys && tail != 0) {
    section(section_type::tails, index, pages * block_tokens * tail * element, [&](auto&& put) {
      for (std::size_t page = 0; page < pages; ++page) {
        put_rows(from, page, pool.tail_rows(from.page(page), head), put);
      }
    });
  }
}

/// Sections with the outliers of one head.
template <class Bank, class Section>
void write_outliers(const sequence<Bank>& tokens, std::size_t head, Section&& section) {
  const page_pool<Bank>& pool = tokens.pool();
  const token_list& body = tokens.body();
  const auto index = static_cast<std::uint32_t>(head);
  const auto outliers = [&](std::size_t page) {
    return pool.outliers().mask(head, body.page(page)) & body.live()[page];
  };
  const auto for_each = [&](auto&& visit) {
    for (std::size_t page = 0; page < body.page_count(); ++page) {
      for (std::uint64_t left = outliers(page); left != 0; left &= left - 1) {
        visit(page, static_cast<std::size_t>(std::countr_zero(left)));
      }
    }
  };
  const std::size_t count = tokens.outlier_tokens(head);
  section(section_type::code_live, index, body.page_count() * 8, [&](auto&& put) {
    for (std::size_t page = 0; page < body.page_count(); ++page) {
      const std::uint64_t word = body.live()[page] & ~outliers(page);
      put(&word, sizeof word);
    }
  });
  section(section_type::outlier_positions, index, count * 4, [&](auto&& put) {
    for_each([&](std::size_t page, std::size_t slot) { put(body.positions() + page * block_tokens + slot, 4); });
  });
  for (const kv_side which : kv_sides) {
    if (!pool.stores(which)) {
      continue;
    }
    const std::size_t row_bytes = pool.row_dim(which) * size_of(pool.config().exact_type);
    section(section_type::outlier_rows, section_index(1, which, head), count * row_bytes, [&](auto&& put) {
      for_each([&](std::size_t page, std::size_t slot) {
        const outlier_cells& cells = pool.outliers();
        const rows_ref row = which == kv_side::keys ? cells.key(head, body.page(page), slot)
                                                    : cells.value(head, body.page(page), slot, pool.row_dim(which));
        put(row.data, row_bytes);
      });
    });
  }
}

/// Sections with the epochs that the pages of a body belong to, of which the pool's have these names.
template <class Bank, class Section>
void write_epochs(const page_pool<Bank>& pool, const epoch_names& known, const token_list& body, Section&& section) {
  epoch_names used;
  std::uint32_t numbers[max_epochs + 1] = {};  // by epoch of the pool: its place in the list
  for (std::size_t index = 0; index < known.count; ++index) {
    const std::size_t epoch = pool.epoch_in_order(index);
    std::size_t page = 0;
    while (page < body.page_count() && pool.epoch_of(body.page(page)) != epoch) {
      ++page;
    }
    if (page < body.page_count()) {
      numbers[epoch] = static_cast<std::uint32_t>(used.count);
      used.names[used.count++] = known.names[index];
    }
  }
  section(section_type::epochs, 0, used.count * 8, [&](auto&& put) { put(used.names, used.count * 8); });
  section(section_type::page_epochs, 0, body.page_count() * 4, [&](auto&& put) {
    for (std::size_t page = 0; page < body.page_count(); ++page) {
      put(numbers + pool.epoch_of(body.page(page)), 4);
    }
  });
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Writes the tokens of a sequence: codes, exact rows, positions. Dead slots are written as zeros. Errors: io_error,
/// out of memory.
template <class Bank>
status write_sequence(const sequence<Bank>& tokens, const snapshot_sink& sink) {
  const page_pool<Bank>& pool = tokens.pool();
  detail::snapshot_config described = detail::describe(pool);
  detail::epoch_names epochs;
  PQATTN_TRY(detail::names_of(pool, epochs));
  described.codebooks = epochs.count == 0 ? 0 : epochs.names[epochs.count - 1];
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
      section(detail::section_type::positions, index, from.page_count() * 64 * 4, [&](auto&& put) {
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
          if (pool.stores(which)) {
            detail::write_content(pool, from, list, head, which, block.data(), section);
          }
        }
      }
    }
    detail::write_epochs(pool, epochs, tokens.body(), section);
    for (std::size_t head = 0; pool.outliers().enabled() && head < pool.kv_heads(); ++head) {
      detail::write_outliers(tokens, head, section);
    }
    for (std::size_t head = 0; tokens.queries().is_open() && head < pool.kv_heads(); ++head) {
      const query_log& log = tokens.queries().head(head);
      section(detail::section_type::queries, static_cast<std::uint32_t>(head), log.stored_bytes(),
              [&](auto&& put) { log.store(put); });
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
    std::uint64_t configured = 0;
    PQATTN_TRY(detail::compare_config(view_, detail::describe(pool_), !body.empty(), configured));
    PQATTN_TRY(body.empty() ? status{} : epochs_.find(view_, pool_, configured, body.size() / 8));
    token_list* lists[] = {&target_.sinks_, &target_.body_, &target_.recent_};
    for (std::size_t list = 0; list < 3; ++list) {
      PQATTN_TRY(restore_list(list, *lists[list]));
    }
    PQATTN_TRY(pool_.outliers().enabled() ? restore_outliers() : status{});
    return restore_queries();
  }

 private:
  /// Query rows kept for training, of a pool that is not trained and wants some.
  status restore_queries() {
    const cache_config& config = pool_.config();
    if (pool_.trained() || config.query_rows == 0 || !view_.has(detail::section_type::queries, 0)) {
      return {};
    }
    PQATTN_TRY(target_.queries_.open(pool_.resource(), pool_.kv_heads(), config.query_rows, config.keys.shape.dim));
    for (std::size_t head = 0; head < pool_.kv_heads(); ++head) {
      std::span<const std::byte> found;
      PQATTN_TRY(view_.section(detail::section_type::queries, static_cast<std::uint32_t>(head), found));
      PQATTN_TRY(target_.queries_.head(head).restore(found.data(), found.size()));
    }
    return {};
  }

  /// Outliers, into pages of the body that are there. Everything is checked before memory is taken. Version 2 has none.
  status restore_outliers() {
    const std::size_t heads = view_.has(detail::section_type::code_live, 0) ? pool_.kv_heads() : 0;
    std::size_t most = 0;
    for (std::size_t head = 0; head < heads; ++head) {
      head_outliers found;
      PQATTN_TRY(find_outliers(head, found));
      most = (std::max)(most, found.count);
    }
    PQATTN_TRY(pool_.outliers().reserve(most));
    for (std::size_t head = 0; head < heads; ++head) {
      head_outliers found;
      PQATTN_TRY(find_outliers(head, found));
      add_outliers(head, found);
    }
    pool_.trim_cells();
    return {};
  }
  /// Outliers of a head in the snapshot.
  struct head_outliers {
    const std::byte* words = nullptr;  ///< a bit per slot whose codes count
    std::size_t count = 0;
    rows_view keys;
    rows_view values;
  };
  [[nodiscard]] static std::uint64_t word_at(const std::byte* words, std::size_t page) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, words + page * 8, 8);
    return word;
  }
  status find_outliers(std::size_t head, head_outliers& found) const {
    const token_list& body = target_.body_;
    PQATTN_TRY(view_.section(detail::section_type::code_live, static_cast<std::uint32_t>(head), body.page_count() * 8,
                             found.words));
    for (std::size_t page = 0; page < body.page_count(); ++page) {
      const std::uint64_t word = word_at(found.words, page);
      if ((word & ~body.live()[page]) != 0) {
        return failure(status_code::corrupt_data, "snapshot outliers", "name a slot without a token; page", 0, page);
      }
      const auto here = static_cast<std::size_t>(std::popcount(body.live()[page] & ~word));
      if (here > pool_.outlier_limit()) {
        return failure(status_code::shape_mismatch, "snapshot outliers", "are more in a page than the pool keeps",
                       pool_.outlier_limit(), here);
      }
      found.count += here;
    }
    PQATTN_TRY(outlier_rows_of(head, kv_side::keys, found.count, found.keys));
    return pool_.stores(kv_side::values) ? outlier_rows_of(head, kv_side::values, found.count, found.values) : status{};
  }
  void add_outliers(std::size_t head, const head_outliers& found) noexcept {
    const token_list& body = target_.body_;
    float key[max_dim];
    float value[max_dim];
    std::size_t done = 0;
    for (std::size_t page = 0; page < body.page_count(); ++page) {
      const std::uint64_t outliers = body.live()[page] & ~word_at(found.words, page);
      for (std::uint64_t left = outliers; left != 0; left &= left - 1, ++done) {
        load_row(found.keys, done, key);
        if (found.values.cols != 0) {
          load_row(found.values, done, value);
        }
        pool_.outliers().add(head, body.page(page), static_cast<std::size_t>(std::countr_zero(left)), key, value);
      }
    }
  }
  status outlier_rows_of(std::size_t head, kv_side which, std::size_t count, rows_view& rows) const {
    const std::byte* data = nullptr;
    const std::size_t dim = pool_.row_dim(which);
    PQATTN_TRY(view_.section(detail::section_type::outlier_rows, detail::section_index(1, which, head),
                             count * dim * size_of(pool_.config().exact_type), data));
    rows = rows_in(data, count, dim);
    return detail::check_finite(rows, "snapshot rows");
  }

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
        PQATTN_TRY(pool_.stores(which) ? check_content(list, live, pages, head, which) : status{});
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
      target.push_page(list == 1 ? pool_.take_coded(epochs_.epoch(page)) : pool_.take_exact());
    }
    target.restore(
        slots, [&](std::size_t slot) { return is_live(live, slot); },
        [&](std::size_t slot) { return position(positions, slot); });
    if (weights != nullptr && pages != 0) {
      std::memcpy(target.weights(0), weights, pages * 64 * pool_.kv_heads() * 4);
    }
    for (std::size_t head = 0; head < pool_.kv_heads(); ++head) {
      for (const kv_side which : kv_sides) {
        PQATTN_TRY(pool_.stores(which) ? store_content(list, target, head, which) : status{});
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
  [[nodiscard]] bool tailed(std::size_t list, kv_side which) const noexcept {
    return coded(list, which) && which == kv_side::keys && pool_.config().key_tail != 0;
  }
  [[nodiscard]] rows_view rows_in(const std::byte* data, std::size_t rows, std::size_t dim) const noexcept {
    return {data, pool_.config().exact_type, rows, dim, static_cast<std::ptrdiff_t>(dim), 1};
  }
  /// A section of rows of one head and side of a list.
  status rows_of(detail::section_type type, std::uint32_t index, std::size_t pages, std::size_t dim,
                 rows_view& rows) const {
    const std::byte* data = nullptr;
    PQATTN_TRY(view_.section(type, index, pages * block_tokens * dim * size_of(pool_.config().exact_type), data));
    rows = rows_in(data, pages * block_tokens, dim);
    return detail::check_finite(rows, "snapshot rows");
  }
  /// The exact rows of a list, or the tails of its keys.
  status exact_content(std::size_t list, std::size_t pages, std::size_t head, kv_side which, rows_view& rows) const {
    const std::uint32_t index = detail::section_index(list, which, head);
    return coded(list, which) ? rows_of(detail::section_type::tails, index, pages, pool_.config().key_tail, rows)
                              : rows_of(detail::section_type::rows, index, pages, pool_.row_dim(which), rows);
  }
  /// The codes of one head and side of the body.
  status code_content(std::size_t pages, std::size_t head, kv_side which, const std::byte*& data) const {
    return view_.section(detail::section_type::codes, detail::section_index(1, which, head),
                         pages * detail::host_block_bytes(pool_.side(which).shape), data);
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
    if (!coded(list, which) || tailed(list, which)) {
      rows_view rows;
      PQATTN_TRY(exact_content(list, pages, head, which, rows));
    }
    if (!coded(list, which)) {
      return {};
    }
    const std::byte* data = nullptr;
    PQATTN_TRY(code_content(pages, head, which, data));
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
    if (!coded(list, which) || tailed(list, which)) {
      float row[max_dim];
      rows_view rows;
      PQATTN_TRY(exact_content(list, target.page_count(), head, which, rows));
      for (std::size_t slot = 0; slot < rows.rows; ++slot) {
        const std::uint32_t page = target.page(slot / 64);
        load_row(rows, slot, row);
        store_row(coded(list, which) ? pool_.tail_rows(page, head)
                  : list == 1        ? pool_.body_rows(page, head, which)
                                     : pool_.exact_rows(page, head, which),
                  slot % 64, row);
      }
    }
    if (!coded(list, which)) {
      return {};
    }
    const geometry& shape = pool_.side(which).shape;
    const std::byte* data = nullptr;
    PQATTN_TRY(code_content(target.page_count(), head, which, data));
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
  detail::mapped_epochs epochs_;  ///< of the body's pages
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

}  // namespace PQATTN_ISA_UNIT

namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// A section of rows where it lies.
template <class Bank>
status mapped_rows(const snapshot_view& view, const page_pool<Bank>& pool, section_type type, std::uint32_t index,
                   std::size_t pages, std::size_t dim, rows_view& rows) {
  const std::byte* data = nullptr;
  PQATTN_TRY(view.section(type, index, pages * block_tokens * dim * size_of(pool.config().exact_type), data));
  rows = {data, pool.config().exact_type, pages * block_tokens, dim, static_cast<std::ptrdiff_t>(dim), 1};
  return {};
}

/// The outliers of a head where they lie, as a segment; `body` loses their slots. Nothing when there are none.
template <class Bank>
status mapped_outliers(const snapshot_view& view, const page_pool<Bank>& pool, std::size_t head, std::size_t pages,
                       segment<std::byte*>& body, segment<std::byte*>& next) {
  const auto index = static_cast<std::uint32_t>(head);
  next = {};
  if (!pool.outliers().enabled() || !view.has(section_type::code_live, index)) {
    return {};
  }
  const std::byte* words = nullptr;
  std::span<const std::byte> positions;
  PQATTN_TRY(view.section(section_type::code_live, index, pages * 8, words));
  PQATTN_TRY(view.section(section_type::outlier_positions, index, positions));
  const std::size_t count = positions.size() / 4;
  for (const kv_side which : kv_sides) {
    if (!pool.stores(which)) {  // the first channels of the keys
      next.values = next.keys;
      next.values.rows.cols = pool.row_dim(which);
      continue;
    }
    const std::size_t dim = pool.row_dim(which);
    const std::byte* data = nullptr;
    PQATTN_TRY(view.section(section_type::outlier_rows, section_index(1, which, head),
                            count * dim * size_of(pool.config().exact_type), data));
    (which == kv_side::keys ? next.keys : next.values).rows = {data, pool.config().exact_type,         count,
                                                               dim,  static_cast<std::ptrdiff_t>(dim), 1};
  }
  body.live = reinterpret_cast<const std::uint64_t*>(words);
  next.slots = {0, count};
  next.positions = {0, reinterpret_cast<const std::int32_t*>(positions.data())};
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace detail

inline namespace PQATTN_ISA_UNIT {

/// Segments of a sequence snapshot used where it lies, e.g. in a mapped file: host bank only. The snapshot must be
/// aligned to 64 bytes and outlive the segments; `pool` gives configuration and codebooks. Pages become consecutive
/// blocks. Exact lists are one segment each, the body one for each run of pages of an epoch, outliers one more: 4 where
/// codebooks were never refreshed. Keys and values of one head; `count` says how many. `tables`: see segment.
/// Errors: another configuration or codebooks, sections that are missing or of another size, misaligned memory, fewer
/// `segments` than needed (as many as there are pages in the body, and 3 more, always do).
template <class Bank>
requires std::same_as<typename Bank::address, std::byte*> status
snapshot_segments(const snapshot_view& view, const page_pool<Bank>& pool, std::size_t head, std::byte* tables,
                  std::span<segment<std::byte*>> segments, std::size_t& count) {
  if (reinterpret_cast<std::uintptr_t>(view.bytes().data()) % memory_alignment != 0) {
    return failure(status_code::invalid_argument, "snapshot", "must be aligned to 64 bytes to be used in place");
  }
  if (head >= pool.kv_heads()) {
    return failure(status_code::invalid_argument, "head", "must be below the KV heads", pool.kv_heads(), head);
  }
  std::span<const std::byte> body;
  PQATTN_TRY(view.section(detail::section_type::live, 1, body));
  std::uint64_t configured = 0;
  PQATTN_TRY(detail::compare_config(view, detail::describe(pool), !body.empty(), configured));
  detail::mapped_epochs epochs;
  PQATTN_TRY(body.empty() ? status{} : epochs.find(view, pool, configured, body.size() / 8));
  count = 0;
  const auto add = [&](const segment<std::byte*>& next) {
    if (count == segments.size()) {
      return failure(status_code::capacity, "segments", "have no room for all of the snapshot", count + 1, count);
    }
    segments[count++] = next;
    return status{};
  };
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
      if (!pool.stores(which)) {  // the first channels of the keys
        source = next.keys;
        source.rows.cols = pool.row_dim(which);
        continue;
      }
      const geometry& shape = pool.side(which).shape;
      const std::uint32_t place = detail::section_index(list, which, head);
      const std::byte* data = nullptr;
      source.coded = list == 1 && pool.side(which).coded;
      if (source.coded) {
        PQATTN_TRY(view.section(detail::section_type::codes, place, pages * detail::host_block_bytes(shape), data));
        source.codes = {shape, const_cast<std::byte*>(data), nullptr};  // only read
      } else {
        PQATTN_TRY(detail::mapped_rows(view, pool, detail::section_type::rows, place, pages, pool.row_dim(which),
                                       source.rows));
      }
    }
    if (next.keys.coded) {
      next.rotation = pool.code_rotation();
      next.tables = tables;
      if (const std::size_t tail = pool.config().key_tail; tail != 0) {
        PQATTN_TRY(detail::mapped_rows(view, pool, detail::section_type::tails,
                                       detail::section_index(list, kv_side::keys, head), pages, tail, next.key_tail));
      }
    }
    if (next.values.coded) {
      next.turned_values = pool.turn(head);
    }
    if (list != 1) {
      PQATTN_TRY(add(next));
      continue;
    }
    segment<std::byte*> outliers;
    PQATTN_TRY(detail::mapped_outliers(view, pool, head, pages, next, outliers));
    for (std::size_t page = 0, end = 0; page < pages; page = end) {
      const std::size_t epoch = epochs.epoch(page);
      for (end = page + 1; end < pages && epochs.epoch(end) == epoch;) {
        ++end;
      }
      next.slots = {page * block_tokens, (end - page) * block_tokens};
      next.keys.book = pool.book(head, kv_side::keys, epoch);
      next.values.book = pool.book(head, kv_side::values, epoch);
      PQATTN_TRY(add(next));
    }
    PQATTN_TRY(outliers.slots.count != 0 ? add(outliers) : status{});
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT
}  // namespace v0
}  // namespace pqattn
