// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/resident.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <vector>

#include "pqattn/bank/host/isa.hpp"
#include "support/random_data.hpp"

using pqattn::codebook_storage;
using pqattn::geometry;
using pqattn::detail::host_codebook;

static_assert(pqattn::detail::plane_entries({4, 2, 2}) == 64);
static_assert(pqattn::detail::plane_entries({4, 2, 65}) == 128);
static_assert(pqattn::detail::plane_entries({4, 2, 65536}) == 65536);

TEST_CASE("planes hold the centroids, and copies of the first behind them", "[bank]") {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  for (const auto storage : {codebook_storage::f32, codebook_storage::f16, codebook_storage::i8}) {
    for (const std::uint32_t centroids : {2u, 3u, 64u, 65u, 300u, 1024u}) {
      CAPTURE(static_cast<int>(storage), centroids);
      const geometry shape{7, 3, centroids, 2};
      std::vector<float> numbers = random.normals(shape.codebook_values());
      numbers[3] = 0.0f;
      numbers[5] = -0x1p-24f;  // subnormal in binary16
      pqattn::resident_codebook<std::byte*> resident{shape, storage, nullptr};
      std::vector<std::byte> memory(host_codebook{resident}.bytes() + 64 + 1, std::byte{0x5a});
      resident.memory = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
      const host_codebook book{resident};
      REQUIRE(pqattn::detail::store_planes({shape, numbers.data()}, resident).ok());
      CHECK(resident.memory[book.bytes()] == std::byte{0x5a});
      std::vector<float> loaded(numbers.size());
      pqattn::detail::load_planes(resident, loaded.data());
      REQUIRE(round_codebook(shape, storage, numbers.data()).ok());
      CHECK(loaded == numbers);
      bool entries_match = true;
      bool expansion_matches = true;
      const std::size_t entries = pqattn::detail::plane_entries(shape);
      std::vector<float> plane(entries);
      for (std::uint32_t group = 0; group < shape.groups(); ++group) {
        for (std::uint32_t channel = 0; channel < shape.width(group); ++channel) {
          const std::size_t index = book.plane_of(group, channel);
          book.expand<pqattn::isa::native>(index, 0, entries, plane.data());
          for (std::size_t k = 0; k < entries; ++k) {
            const std::size_t source = k < centroids ? k : 0;
            const float expected = numbers[shape.codebook_offset(group) + source * shape.width(group) + channel];
            entries_match = entries_match && book.entry(index, k) == expected;
            expansion_matches = expansion_matches && plane[k] == expected;
          }
        }
      }
      CHECK(entries_match);
      CHECK(expansion_matches);
    }
  }
}
