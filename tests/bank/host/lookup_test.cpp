// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/lookup.hpp"

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "pqattn/bank/host/host_bank.hpp"
#include "support/random_data.hpp"
#include "support/resident.hpp"

namespace isa = pqattn::isa;

TEMPLATE_TEST_CASE("looked-up channels are the centroids' components, in every storage and size", "[bank]", isa::native,
                   isa::emulated<128>, isa::emulated<256>) {
  pqattn_test::random_data random(1);
  CAPTURE(random.seed());
  using batch = pqattn::detail::float_batch<TestType>;
  pqattn::host_bank<TestType> bank;
  for (const auto storage :
       {pqattn::codebook_storage::f32, pqattn::codebook_storage::f16, pqattn::codebook_storage::i8}) {
    for (const std::uint32_t centroids : {3u, 256u, 1024u, 1025u, 3000u}) {  // expanded, and entry by entry
      const pqattn::geometry shape{9, 2, centroids};
      pqattn_test::stored_book<pqattn::host_bank<TestType>> book(bank, shape, storage,
                                                                 random.normals(shape.codebook_values()));
      const pqattn::detail::host_codebook planes{book.resident};
      pqattn::detail::group_planes<TestType> selected;
      alignas(64) std::int32_t codes[64];
      for (std::int32_t& code : codes) {
        code = static_cast<std::int32_t>(random.below(centroids));
      }
      bool same = true;
      for (const auto& [first, count] : {std::pair{0u, 4u}, std::pair{4u, 1u}}) {
        selected.select(planes, 0, first, count);
        for (std::uint32_t c = 0; c < count; ++c) {
          for (std::size_t s = 0; s < 64; s += batch::size) {
            alignas(64) float values[batch::size];
            selected.look_up_channel(c, codes + s).store_aligned(values);
            for (std::size_t i = 0; i < batch::size; ++i) {
              same = same && values[i] == book.centroids[static_cast<std::size_t>(codes[s + i]) * 5 + first + c];
            }
          }
        }
      }
      CAPTURE(static_cast<int>(storage), centroids);
      CHECK(same);
    }
  }
}

TEST_CASE("groups of a block are found through the page table", "[bank]") {
  std::vector<std::byte> memory(1000);
  const std::uint32_t pages[] = {4, 0, 2};
  const pqattn::geometry shape{8, 4, 8};  // 3 bits: 24 bytes a group, 96 a block
  const pqattn::code_span<std::byte*> codes{shape, memory.data(), pages};
  CHECK(pqattn::detail::group_codes(codes, 0, 0) == memory.data() + 4 * 96);
  CHECK(pqattn::detail::group_codes(codes, 2, 3) == memory.data() + 2 * 96 + 3 * 24);
  const pqattn::code_span<std::byte*> direct{shape, memory.data(), nullptr};
  CHECK(pqattn::detail::group_codes(direct, 2, 1) == memory.data() + 2 * 96 + 24);
}
