// SPDX-License-Identifier: MIT
// Snapshots whose bytes have been changed on purpose.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pqattn/cache/snapshot_format.hpp"

namespace pqattn_test {

/// Makes the checksums of a snapshot fit where its table makes sense, so that what lies behind them is reached.
inline void repair_snapshot(std::vector<std::byte>& bytes) {
  using namespace pqattn::detail;
  snapshot_header header;
  if (bytes.size() < sizeof header) {
    return;
  }
  std::memcpy(&header, bytes.data(), sizeof header);
  const snapshot_header right;
  std::memcpy(header.magic, right.magic, sizeof right.magic);
  header.version = header.version >= 1 && header.version <= right.version ? header.version : right.version;
  header.endian = right.endian;
  header.bytes = bytes.size();
  const std::size_t room = (bytes.size() - sizeof header) / sizeof(section_entry);
  header.sections = header.sections > room ? static_cast<std::uint32_t>(room) : header.sections;
  for (std::size_t i = 0; i < header.sections; ++i) {
    section_entry entry;
    std::byte* place = bytes.data() + sizeof header + i * sizeof entry;
    std::memcpy(&entry, place, sizeof entry);
    if (entry.offset <= bytes.size() && entry.bytes <= bytes.size() - entry.offset) {
      entry.checksum = checksum_of(bytes.data() + entry.offset, entry.bytes);
      std::memcpy(place, &entry, sizeof entry);
    }
  }
  header.table_checksum = checksum_of(bytes.data() + sizeof header, header.sections * sizeof(section_entry));
  header.checksum = checksum_of(&header, offsetof(snapshot_header, checksum));
  std::memcpy(bytes.data(), &header, sizeof header);
}

/// Offset and size of a section; size 0 at offset 0 when it is not there.
inline pqattn::detail::section_entry find_section(const std::vector<std::byte>& bytes,
                                                  pqattn::detail::section_type type, std::uint32_t index) {
  pqattn::detail::snapshot_header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  for (std::uint32_t i = 0; i < header.sections; ++i) {
    pqattn::detail::section_entry entry;
    std::memcpy(&entry, bytes.data() + sizeof header + i * sizeof entry, sizeof entry);
    if (entry.type == static_cast<std::uint32_t>(type) && entry.index == index) {
      return entry;
    }
  }
  return {};
}

}  // namespace pqattn_test
