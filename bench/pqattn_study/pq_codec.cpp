// SPDX-License-Identifier: MIT
#include "pq_codec.hpp"

#include <pqattn/bank/host/host_bank.hpp>
#include <pqattn/core/memory.hpp>
#include <pqattn/encode/encode.hpp>
#include <pqattn/encode/metric_encoder.hpp>
#include <pqattn/train/codebook_trainer.hpp>
#include <pqattn/train/joint_trainer.hpp>
#include <pqattn/train/value_rotation.hpp>

#include <algorithm>
#include <optional>

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
  void encode(const pqattn::rows_view& rows) { require(pqattn::encode(bank_, rows, book_, codes_, slots_), "encoding"); }
  void store(const std::vector<std::uint16_t>& codes) {
    require(bank_.store_codes(codes_, slots_, codes.data()), "storing codes");
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

std::vector<float> train_jointly(const joint_settings& settings, const pqattn::rows_view& samples,
                                 const float* weights) {
  bank_type bank;
  const pqattn::geometry& shape = settings.pq.shape;
  pqattn::joint_training_params params;
  params.kmeans.iterations = static_cast<std::uint32_t>(settings.pq.iterations);
  params.kmeans.seed = settings.pq.seed;
  params.passes = static_cast<std::uint32_t>(settings.passes);
  params.storage = settings.pq.storage;
  const pqattn::buffer workspace =
      allocate(pqattn::joint_training_workspace_bytes(bank, shape, samples.rows, settings.metric != nullptr));
  std::vector<float> centroids(shape.codebook_values());
  pqattn::training_report report;
  require(train_codebook_jointly(bank, shape, samples, weights, settings.metric, params, workspace.data(),
                                 workspace.size(), centroids.data(), report),
          "training");
  return centroids;
}

std::vector<std::uint16_t> encode_jointly(const joint_settings& settings, const std::vector<float>& centroids,
                                          const pqattn::rows_view& rows) {
  const pqattn::geometry& shape = settings.pq.shape;
  const pqattn::buffer memory = allocate(pqattn::metric_encoder_bytes(shape, settings.metric != nullptr));
  const pqattn::buffer workspace = allocate(pqattn::metric_encode_workspace_bytes(shape));
  pqattn::metric_encoder encoder;
  require(build_metric_encoder({shape, centroids.data()}, settings.metric, memory.data(), memory.size(), encoder),
          "encoder");
  std::vector<std::uint16_t> codes(rows.rows * shape.groups());
  require(encode_with_metric(encoder, rows, static_cast<std::uint32_t>(settings.sweeps), workspace.data(),
                             workspace.size(), codes.data()),
          "encoding");
  return codes;
}

/// A rotation of values, its numbers rounded to the f16 they are counted as.
class rotation {
 public:
  rotation(const pqattn::rows_view& samples, std::uint32_t subvectors)
      : dim_(static_cast<std::uint32_t>(samples.cols)), mean_(dim_), basis_(std::size_t{dim_} * dim_) {
    const pqattn::buffer workspace = allocate(pqattn::value_rotation_workspace_bytes(dim_));
    require(train_value_rotation(samples, subvectors, workspace.data(), workspace.size(), mean_.data(), basis_.data()),
            "value rotation");
    for (std::vector<float>* numbers : {&mean_, &basis_}) {
      for (float& x : *numbers) {
        x = pqattn::to_float(pqattn::to_half(x));
      }
    }
  }
  void apply(std::vector<float>& rows) const {
    each(rows, [this](const float* in, float* out) { rotate_value(view(), in, out); });
  }
  void undo(std::vector<float>& rows) const {
    each(rows, [this](const float* in, float* out) { unrotate_value(view(), in, 1.0f, out); });
  }
  [[nodiscard]] double bits() const { return 16.0 * static_cast<double>(mean_.size() + basis_.size()); }

 private:
  [[nodiscard]] pqattn::value_rotation view() const { return {dim_, mean_.data(), basis_.data()}; }
  template <class Map>
  void each(std::vector<float>& rows, Map map) const {
    std::vector<float> in(dim_);
    for (std::size_t first = 0; first < rows.size(); first += dim_) {
      std::copy_n(rows.data() + first, dim_, in.data());
      map(in.data(), rows.data() + first);
    }
  }
  std::uint32_t dim_;
  std::vector<float> mean_;
  std::vector<float> basis_;
};

}  // namespace

std::vector<float> train_pq(const pq_settings& settings, const pqattn::rows_view& samples, const float* weights) {
  bank_type bank;
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

void code_with_pq(const pq_settings& settings, const std::vector<float>& centroids, std::size_t first, std::size_t last,
                  std::vector<float>& rows, side_result& cost) {
  const std::size_t dim = settings.shape.dim;
  coded_rows coder(settings, centroids, last - first);
  const pqattn::rows_ref coded = pqattn::ref_rows(rows.data(), rows.size() / dim, dim).slice(first, last - first);
  coder.encode(coded.view());
  coder.decode(coded);
  cost.code_bits += row_bits(settings.shape, last - first);
}

void code_jointly(const joint_settings& settings, const pq_ranges& ranges, const std::vector<float>& weights,
                  std::vector<float>& rows, side_result& cost) {
  const std::size_t dim = settings.pq.shape.dim;
  const std::size_t tokens = rows.size() / dim;
  const std::size_t samples = ranges.train_last - ranges.train_first;
  std::vector<float> before(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(ranges.coded_first * dim));
  std::vector<float> after(rows.begin() + static_cast<std::ptrdiff_t>(ranges.coded_last * dim), rows.end());
  const pqattn::rows_ref all = pqattn::ref_rows(rows.data(), tokens, dim);
  std::optional<rotation> turn;
  if (settings.rotate) {
    turn.emplace(all.view().slice(ranges.train_first, samples), settings.pq.shape.subvectors);
    turn->apply(rows);
    cost.transform_bits += turn->bits();
  }
  const std::vector<float> centroids = train_jointly(settings, all.view().slice(ranges.train_first, samples),
                                                     weights.empty() ? nullptr : weights.data() + ranges.train_first);
  const std::size_t count = ranges.coded_last - ranges.coded_first;
  const pqattn::rows_ref coded = all.slice(ranges.coded_first, count);
  coded_rows coder(settings.pq, centroids, count);
  coder.store(encode_jointly(settings, centroids, coded.view()));
  coder.decode(coded);
  if (turn) {
    turn->undo(rows);
  }
  std::copy(before.begin(), before.end(), rows.begin());  // exact rows are never turned
  std::copy(after.begin(), after.end(), rows.begin() + static_cast<std::ptrdiff_t>(ranges.coded_last * dim));
  cost.code_bits += row_bits(settings.pq.shape, count);
  cost.codebook_bits += codebook_bits(settings.pq);
  if (settings.metric != nullptr) {
    cost.transform_bits += 32.0 * static_cast<double>(dim * (dim + 1) / 2);
  }
}

double codebook_bits(const pq_settings& settings) {
  return 8.0 * static_cast<double>(pqattn::stored_codebook_bytes(settings.shape, settings.storage));
}

}  // namespace pqattn_study
