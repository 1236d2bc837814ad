// SPDX-License-Identifier: MIT
// Coding the rows of one side: by the bank, or on the host in a metric and with sweeps; and what coding lost.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "../bank/bank.hpp"
#include "../config.hpp"
#include "../core/memory.hpp"
#include "../encode/metric_encoder.hpp"
#include "cache_config.hpp"
#include "code_store.hpp"
#include "packed_metric.hpp"

namespace pqattn {
inline namespace v0 {

inline namespace PQATTN_ISA_UNIT {

/// Memory that coding needs while a call runs; shared by any number of caches, one call at a time. Grows and is then
/// reused without allocating. Move-only.
class coding_scratch {
 public:
  coding_scratch() = default;
  explicit coding_scratch(const memory_resource& resource) noexcept : resource_(resource) {}

  status reserve(std::size_t bytes) {
    return bytes <= memory_.size() ? status{} : buffer::make(resource_, bytes, memory_);
  }
  [[nodiscard]] std::byte* data() const noexcept { return memory_.data(); }
  [[nodiscard]] std::size_t size() const noexcept { return memory_.size(); }

 private:
  memory_resource resource_;
  buffer memory_;
};

}  // namespace PQATTN_ISA_UNIT

/// Where a side_coder puts codes: one epoch of a store.
template <class Bank>
class epoch_codes {
 public:
  epoch_codes(const code_store<Bank>& store, std::size_t epoch) noexcept : store_(store), epoch_(epoch) {}

  status load_codebook(float* centroids) const noexcept { return store_.load_codebook(epoch_, centroids); }
  status encode(const rows_view& rows, std::size_t first) const noexcept { return store_.encode(epoch_, rows, first); }
  status store(const std::uint16_t* codes, std::size_t first, std::size_t count) const noexcept {
    return store_.store(codes, first, count);
  }
  status decode(std::size_t first, const rows_ref& rows) const noexcept { return store_.decode(epoch_, first, rows); }

 private:
  const code_store<Bank>& store_;
  std::size_t epoch_;
};

/// The same: pages of a pool.
template <class Bank>
class paged_codes {
 public:
  using address = typename Bank::address;

  paged_codes(Bank& bank, const resident_codebook<address>& book, const code_span<address>& codes) noexcept
      : bank_(bank), book_(book), codes_(codes) {}

  status load_codebook(float* centroids) const noexcept { return bank_.load_codebook(book_, centroids); }
  status encode(const rows_view& rows, std::size_t first) const noexcept {
    return bank_.encode(rows, book_, codes_, {first, rows.rows});
  }
  status store(const std::uint16_t* codes, std::size_t first, std::size_t count) const noexcept {
    return bank_.store_codes(codes_, {first, count}, codes);
  }
  status decode(std::size_t first, const rows_ref& rows) const noexcept {
    return bank_.decode(book_, codes_, {first, rows.rows}, rows);
  }

 private:
  Bank& bank_;
  resident_codebook<address> book_;
  code_span<address> codes_;
};

inline namespace PQATTN_ISA_UNIT {

/// Codes up to block_tokens rows at a time. Lives in a coding_scratch for one call.
class side_coder {
 public:
  /// Takes (or counts) the memory for `side`, which outlives the coder.
  side_coder(carver& memory, const side_config& side, bool measures) noexcept : side_(&side) {
    rows_ = memory.take<float>(block_tokens * side.shape.dim);
    if (!side.coded) {
      return;
    }
    decoded_ = measures ? memory.take<float>(block_tokens * side.shape.dim) : nullptr;
    metric_ = side.metric ? memory.take<float>(std::size_t{side.shape.dim} * side.shape.dim) : nullptr;
    if (side.coded_on_host()) {
      centroids_ = memory.take<float>(side.shape.codebook_values());
      codes_ = memory.take<std::uint16_t>(block_tokens * side.shape.groups());
      encoder_bytes_ = metric_encoder_bytes(side.shape, side.metric);
      encoder_memory_ = memory.take<std::byte>(encoder_bytes_);
      workspace_bytes_ = metric_encode_workspace_bytes(side.shape);
      workspace_ = memory.take<std::byte>(workspace_bytes_);
    }
  }

  /// Room for block_tokens rows, dense.
  [[nodiscard]] float* rows() const noexcept { return rows_; }

  /// Codes with the codebook of `target` from here on; `packed_metric` (upper triangle, f32 or binary16) or null.
  template <class Target, class Number>
  void start(const Target& target, const Number* packed_metric) noexcept {
    has_metric_ = packed_metric != nullptr && metric_ != nullptr;
    if (has_metric_) {
      unpack_metric(packed_metric, side_->shape.dim, metric_);
    }
    if (side_->coded_on_host()) {
      // The memory was counted by the same code and the codebook is the bank's own: neither call can fail.
      static_cast<void>(target.load_codebook(centroids_));
      static_cast<void>(build_metric_encoder({side_->shape, centroids_, 0, 0}, has_metric_ ? metric_ : nullptr,
                                             encoder_memory_, encoder_bytes_, encoder_));
    }
  }

  /// Codes the first `count` of rows() into slots [first, first + count).
  template <class Target>
  void code(const Target& target, std::size_t first, std::size_t count) noexcept {
    const rows_view view = view_rows(rows_, count, side_->shape.dim);
    // Room is reserved and the rows are checked: nothing is left to fail.
    if (side_->coded_on_host()) {
      static_cast<void>(encode_with_metric(encoder_, view, side_->sweeps, workspace_, workspace_bytes_, codes_));
      static_cast<void>(target.store(codes_, first, count));
    } else {
      static_cast<void>(target.encode(view, first));
    }
  }

  /// What code() lost: errors[i] = (x - x')^T M (x - x') of row i; the squared distance without a metric.
  template <class Target>
  void measure(const Target& target, std::size_t first, std::size_t count, float* errors) noexcept {
    const std::size_t dim = side_->shape.dim;
    static_cast<void>(target.decode(first, ref_rows(decoded_, count, dim)));
    for (std::size_t i = 0; i < count; ++i) {
      float* difference = decoded_ + i * dim;
      for (std::size_t c = 0; c < dim; ++c) {
        difference[c] = rows_[i * dim + c] - difference[c];
      }
      errors[i] = energy(difference);
    }
  }

 private:
  [[nodiscard]] float energy(const float* x) const noexcept {
    const std::size_t dim = side_->shape.dim;
    float sum = 0.0f;
    for (std::size_t a = 0; a < dim; ++a) {
      float along = has_metric_ ? 0.0f : x[a];
      for (std::size_t b = 0; has_metric_ && b < dim; ++b) {
        along += metric_[a * dim + b] * x[b];
      }
      sum += x[a] * along;
    }
    return sum;
  }

  const side_config* side_;
  float* rows_ = nullptr;
  float* decoded_ = nullptr;
  float* metric_ = nullptr;
  float* centroids_ = nullptr;
  std::uint16_t* codes_ = nullptr;
  std::byte* encoder_memory_ = nullptr;
  std::byte* workspace_ = nullptr;
  std::size_t encoder_bytes_ = 0;
  std::size_t workspace_bytes_ = 0;
  bool has_metric_ = false;
  metric_encoder encoder_;
};

}  // namespace PQATTN_ISA_UNIT

}  // namespace v0
}  // namespace pqattn
