// SPDX-License-Identifier: MIT
// The rows that teach one codebook, and its training: each group alone, or all of them together in a metric.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../bank/bank.hpp"
#include "../core/executor.hpp"
#include "../core/memory.hpp"
#include "../core/progress.hpp"
#include "../core/view.hpp"
#include "../quant/codebook_rounding.hpp"
#include "../train/codebook_trainer.hpp"
#include "../train/importance.hpp"
#include "../train/joint_trainer.hpp"
#include "../train/value_rotation.hpp"
#include "cache_config.hpp"
#include "side_coder.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
inline namespace PQATTN_ISA_UNIT {

/// Rounds centroids to what `storage` holds until rounding changes nothing more: bytes are restored with one rounding
/// of an f32, so that the range of the restored numbers can differ from the one before in the last bit. After it a
/// codebook that is read back and stored again, from a snapshot say, is the same to the bit. Two or three rounds in
/// practice.
inline status settle_codebook(const geometry& shape, codebook_storage storage, float* centroids,
                              const rope& rotation) noexcept {
  constexpr int most_rounds = 16;
  std::uint64_t before = 0;
  for (int round = 0; round < most_rounds; ++round) {
    PQATTN_TRY(round_codebook(shape, storage, centroids, rotation));
    std::uint64_t sum = 1;
    for (std::size_t i = 0; i < shape.codebook_values(); ++i) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, centroids + i, sizeof bits);
      sum = (sum ^ bits) * 0x9e3779b97f4a7c15u;
    }
    if (storage != codebook_storage::i8 || sum == before) {
      break;
    }
    before = sum;
  }
  return {};
}

}  // namespace PQATTN_ISA_UNIT

/// Memory of one training of one side: fill rows and weights, then train.
template <class Bank>
class codebook_lesson {
 public:
  codebook_lesson(Bank& bank, const cache_config& config, const side_config& side,
                  const memory_resource& resource) noexcept
      : bank_(bank), config_(config), side_(side), resource_(resource) {}

  /// Takes memory for `count` rows. `packed_metric` (upper triangle, f32 or binary16) or null.
  template <class Number>
  status make(std::size_t count, const Number* packed_metric) {
    count_ = count;
    carver counting;
    carve(counting, packed_metric != nullptr);
    PQATTN_TRY(buffer::make(resource_, counting.required(), memory_));
    carver placed(memory_.data(), memory_.size());
    carve(placed, packed_metric != nullptr);
    if (packed_metric != nullptr) {
      unpack_metric(packed_metric, side_.shape.dim, metric_);
    }
    return {};
  }

  [[nodiscard]] std::size_t count() const noexcept { return count_; }
  [[nodiscard]] float* row(std::size_t index) const noexcept { return rows_ + index * side_.shape.dim; }
  [[nodiscard]] float* weights() const noexcept { return weights_; }
  /// The result; before training with a warm start, where to start from.
  [[nodiscard]] float* centroids() const noexcept { return centroids_; }

  /// The rotation that suits the rows as they are now: mean (d), then basis (d, d).
  status learn_rotation(buffer& numbers) const {
    const std::size_t dim = side_.shape.dim;
    buffer made;
    buffer workspace;
    PQATTN_TRY(buffer::make(resource_, (dim + 1) * dim * sizeof(float), made));
    PQATTN_TRY(buffer::make(resource_, value_rotation_workspace_bytes(side_.shape.dim), workspace));
    auto* mean = reinterpret_cast<float*>(made.data());
    PQATTN_TRY(
        train_value_rotation(view(), side_.shape.subvectors, workspace.data(), workspace.size(), mean, mean + dim));
    numbers = std::move(made);
    return {};
  }

  /// Trains on the rows, which are in coded form by now: keys turned by `rotation`, if it is enabled, when they are
  /// scored. Tempers the weights.
  status train(const kmeans_params& kmeans, const rope& rotation, const executor& parts, const progress_hook& progress,
               training_report& report) const {
    PQATTN_TRY(train_rows(kmeans, parts, progress, report));
    return settle_codebook(side_.shape, side_.storage, centroids_, rotation);
  }

 private:
  status train_rows(const kmeans_params& kmeans, const executor& parts, const progress_hook& progress,
                    training_report& report) const {
    temper_weights(weights_, count_, config_.weight_exponent, config_.weight_floor);
    buffer workspace;
    if (side_.joint_passes == 0 && metric_ == nullptr) {
      const auto params = with<training_params>(kmeans, parts, progress);
      PQATTN_TRY(buffer::make(resource_, training_workspace_bytes(bank_, side_.shape, view(), params), workspace));
      return train_codebook(bank_, side_.shape, view(), weights_, params, workspace.data(), workspace.size(),
                            centroids_, report);
    }
    auto params = with<joint_training_params>(kmeans, parts, progress);
    params.passes = side_.joint_passes;
    PQATTN_TRY(buffer::make(
        resource_, joint_training_workspace_bytes(bank_, side_.shape, count_, metric_ != nullptr, parts), workspace));
    return train_codebook_jointly(bank_, side_.shape, view(), weights_, metric_, params, workspace.data(),
                                  workspace.size(), centroids_, report);
  }
  void carve(carver& memory, bool with_metric) noexcept {
    const std::size_t dim = side_.shape.dim;
    rows_ = memory.take<float>(count_ * dim);
    weights_ = memory.take<float>(count_);
    centroids_ = memory.take<float>(side_.shape.codebook_values());
    metric_ = with_metric ? memory.take<float>(dim * dim) : nullptr;
  }
  template <class Params>
  [[nodiscard]] Params with(const kmeans_params& kmeans, const executor& parts,
                            const progress_hook& progress) const noexcept {
    Params params;
    params.kmeans = kmeans;
    params.storage = side_.storage;
    params.parts = parts;
    params.progress = progress;
    return params;
  }
  [[nodiscard]] rows_view view() const noexcept { return view_rows(rows_, count_, side_.shape.dim); }

  Bank& bank_;
  const cache_config& config_;
  const side_config& side_;
  const memory_resource& resource_;
  std::size_t count_ = 0;
  buffer memory_;
  float* rows_ = nullptr;
  float* weights_ = nullptr;
  float* centroids_ = nullptr;
  float* metric_ = nullptr;
};

}  // namespace detail
}  // namespace v0
}  // namespace pqattn
