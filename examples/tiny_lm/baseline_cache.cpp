// SPDX-License-Identifier: MIT
#include "baseline_cache.hpp"

#include <algorithm>

namespace tiny_lm {
namespace {

constexpr std::size_t kivi_group = 32;
constexpr std::uint64_t rotation_seed = 1;

std::size_t batch_of(pqattn::baseline_format format) {
  const bool kivi = format == pqattn::baseline_format::kivi2 || format == pqattn::baseline_format::kivi4;
  return kivi ? kivi_group : 1;
}

}  // namespace

baseline_cache::baseline_cache(const cache_shape& shape, pqattn::baseline_format format, std::size_t coding_start)
    : shape_(shape),
      format_(format),
      coding_start_(std::max(coding_start, recent)),
      batch_(batch_of(format)),
      rows_(shape),
      coded_(shape.layers) {}

std::size_t baseline_cache::coded_by(std::size_t tokens) const noexcept {
  if (tokens < sinks + coding_start_) {
    return 0;
  }
  return (tokens - sinks - recent) / batch_ * batch_;
}

pqattn::status baseline_cache::append(std::size_t layer, std::size_t position, std::span<const float> keys,
                                      std::span<const float> values) {
  PQATTN_TRY(rows_.append(layer, position, keys, values));
  tokens_ = std::max(tokens_, position + 1);
  const std::size_t coded = coded_by(position + 1);
  if (coded > coded_[layer]) {
    PQATTN_TRY(code_rows(layer, sinks + coded_[layer], sinks + coded));
    coded_[layer] = coded;
  }
  return {};
}

pqattn::status baseline_cache::code_rows(std::size_t layer, std::size_t first, std::size_t last) {
  for (std::size_t head = 0; head < shape_.kv_heads; ++head) {
    for (const pqattn::cache_side side : {pqattn::cache_side::keys, pqattn::cache_side::values}) {
      const std::span<float> rows = rows_.rows_of(layer, head, side == pqattn::cache_side::keys, first, last);
      PQATTN_TRY(
          code_as_baseline(format_, side, rows.data(), last - first, shape_.head_dim, rotation_seed, spent_bits_));
    }
  }
  return {};
}

pqattn::status baseline_cache::attend(std::size_t layer, std::size_t position, std::span<const float> queries,
                                      std::span<float> out) {
  return rows_.attend(layer, position, queries, out);
}

void baseline_cache::reset() {
  rows_.reset();
  std::fill(coded_.begin(), coded_.end(), std::size_t{0});
  spent_bits_ = 0;
  tokens_ = 0;
}

cache_memory baseline_cache::memory() const {
  const std::size_t coded = coded_by(tokens_);
  const std::size_t coded_elements = shape_.elements(coded);
  const std::size_t exact_bytes = 2 * shape_.elements(tokens_ - coded);
  return {spent_bits_ / 8 + exact_bytes, tokens_,
          coded == 0 ? 0.0 : static_cast<double>(spent_bits_) / static_cast<double>(coded_elements)};
}

}  // namespace tiny_lm
