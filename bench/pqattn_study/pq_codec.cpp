// SPDX-License-Identifier: MIT
#include "pq_codec.hpp"

#include <pqattn/bank/host/host_bank.hpp>
#include <pqattn/core/memory.hpp>
#include <pqattn/encode/encode.hpp>
#include <pqattn/train/codebook_trainer.hpp>

#include <algorithm>

namespace pqattn_study {
namespace {

using bank_type = pqattn::host_bank<>;

pqattn::buffer allocate(std::size_t bytes) {
  pqattn::buffer memory;
  require(pqattn::buffer::make({}, bytes, memory), "memory");
  return memory;
}

std::vector<float> train(bank_type& bank, const pq_settings& settings, const pqattn::rows_view& samples,
                         const float* weights) {
  pqattn::training_params params;
  params.kmeans.iterations = static_cast<std::uint32_t>(settings.iterations);
  params.kmeans.seed = settings.seed;
  params.storage = settings.storage;
  const pqattn::buffer workspace = allocate(pqattn::training_workspace_bytes(bank, settings.shape, samples, params));
  std::vector<float> centroids(settings.shape.codebook_values());
  pqattn::training_report report;
  require(pqattn::train_codebook(bank, settings.shape, samples, weights, params, workspace.data(), workspace.size(),
                                 centroids.data(), report),
          "training");
  return centroids;
}

}  // namespace

void code_as_pq(const pq_settings& settings, const pq_ranges& ranges, const std::vector<float>& weights,
                std::vector<float>& rows, side_result& cost) {
  if (ranges.coded_first == ranges.coded_last) {
    return;
  }
  const pqattn::geometry& shape = settings.shape;
  const std::size_t tokens = rows.size() / shape.dim;
  const pqattn::rows_ref all = pqattn::ref_rows(rows.data(), tokens, shape.dim);
  bank_type bank;
  const std::size_t samples = ranges.train_last - ranges.train_first;
  const std::vector<float> centroids = train(bank, settings, all.view().slice(ranges.train_first, samples),
                                             weights.empty() ? nullptr : weights.data() + ranges.train_first);

  const pqattn::buffer book_memory = allocate(bank.codebook_bytes(shape, settings.storage));
  const pqattn::resident_codebook<bank_type::address> book{shape, settings.storage, book_memory.data()};
  require(bank.store_codebook({shape, centroids.data()}, book), "codebook");

  const pqattn::slot_range slots{0, ranges.coded_last - ranges.coded_first};
  const pqattn::buffer code_memory = allocate(pqattn::blocks_for(slots.count) * bank.code_block_bytes(shape));
  const pqattn::code_span<bank_type::address> codes{shape, code_memory.data()};
  const pqattn::rows_ref coded = all.slice(ranges.coded_first, slots.count);
  require(pqattn::encode(bank, coded.view(), book, codes, slots), "encoding");
  require(pqattn::decode(bank, book, codes, slots, coded), "decoding");
  cost.code_bits += static_cast<double>(slots.count * shape.row_bits());
  cost.codebook_bits += 8.0 * static_cast<double>(pqattn::stored_codebook_bytes(shape, settings.storage));
}

}  // namespace pqattn_study
