// SPDX-License-Identifier: MIT
#include "pq_codec.hpp"

#include <pqattn/bank/host/host_bank.hpp>
#include <pqattn/core/memory.hpp>
#include <pqattn/encode/encode.hpp>
#include <pqattn/train/codebook_trainer.hpp>

namespace pqattn_study {
namespace {

using bank_type = pqattn::host_bank<>;

pqattn::buffer allocate(std::size_t bytes) {
  pqattn::buffer memory;
  require(pqattn::buffer::make({}, bytes, memory), "memory");
  return memory;
}

/// A codebook and room for codes in the bank; decodes rows in place once codes are there.
class coded_rows {
 public:
  coded_rows(const pq_settings& settings, const std::vector<float>& centroids, std::size_t count)
      : book_memory_(allocate(bank_.codebook_bytes(settings.shape, settings.storage))),
        code_memory_(allocate(pqattn::blocks_for(count) * bank_.code_block_bytes(settings.shape))),
        book_{settings.shape, settings.storage, book_memory_.data()},
        codes_{settings.shape, code_memory_.data()},
        slots_{0, count} {
    require(bank_.store_codebook({settings.shape, centroids.data()}, book_), "codebook");
  }
  void encode(const pqattn::rows_view& rows) {
    require(pqattn::encode(bank_, rows, book_, codes_, slots_), "encoding");
  }
  void decode(const pqattn::rows_ref& rows) { require(pqattn::decode(bank_, book_, codes_, slots_, rows), "decoding"); }

 private:
  bank_type bank_;
  pqattn::buffer book_memory_;
  pqattn::buffer code_memory_;
  pqattn::resident_codebook<bank_type::address> book_;
  pqattn::code_span<bank_type::address> codes_;
  pqattn::slot_range slots_;
};

double row_bits(const pqattn::geometry& shape, std::size_t rows) {
  return static_cast<double>(rows) * static_cast<double>(shape.row_bits());
}

}  // namespace

std::vector<float> train_pq(const pq_settings& settings, const pqattn::rows_view& samples, const float* weights,
                            const std::vector<float>& start) {
  bank_type bank;
  pqattn::training_params params;
  params.kmeans.iterations = static_cast<std::uint32_t>(settings.iterations);
  params.kmeans.seed = settings.seed;
  params.storage = settings.storage;
  std::vector<float> centroids(start);
  if (start.empty()) {
    centroids.resize(settings.shape.codebook_values());
  } else {
    params.kmeans.init = pqattn::kmeans_init::warm_start;
  }
  const pqattn::buffer workspace = allocate(pqattn::training_workspace_bytes(bank, settings.shape, samples, params));
  pqattn::training_report report;
  require(pqattn::train_codebook(bank, settings.shape, samples, weights, params, workspace.data(), workspace.size(),
                                 centroids.data(), report),
          "training");
  return centroids;
}

void code_with_pq(const pq_settings& settings, const std::vector<float>& centroids, std::size_t first, std::size_t last,
                  std::vector<float>& rows, side_result& cost) {
  const std::size_t dim = settings.shape.dim;
  coded_rows coder(settings, centroids, last - first);
  const pqattn::rows_ref coded = pqattn::ref_rows(rows.data(), rows.size() / dim, dim).slice(first, last - first);
  coder.encode(coded.view());
  coder.decode(coded);
  cost.code_bits += row_bits(settings.shape, last - first);
}

void code_jointly(const pqattn::pq_recipe& recipe, const pqattn::pq_ranges& ranges, const std::vector<float>& weights,
                  std::vector<float>& rows, side_result& cost) {
  bank_type bank;
  pqattn::pq_cost spent;
  require(reconstruct_rows(bank, recipe, ranges, weights.empty() ? nullptr : weights.data(), rows.data(), spent),
          "coding");
  cost.code_bits += spent.code_bits;
  cost.codebook_bits += spent.codebook_bits;
  cost.transform_bits += spent.transform_bits;
}

double codebook_bits(const pq_settings& settings) {
  return 8.0 * static_cast<double>(pqattn::stored_codebook_bytes(settings.shape, settings.storage));
}

}  // namespace pqattn_study
