// SPDX-License-Identifier: MIT
// The library behind the engine's door: one pqattn::layer_cache per layer. Keys arrive rotated, are coded before RoPE,
// and attention is computed on the codes.
#pragma once

#include "kv_cache.hpp"
#include "outcome.hpp"

#include <cstddef>
#include <memory>

namespace tiny_lm {

/// How keys and values are coded.
enum class pqattn_coding {
  preset,    ///< as the library ships it: pqattn::preset_config
  best,      ///< the same, but every token is coded as soon as it leaves the window, so that 32 recent ones are exact
  plain,     ///< product quantization without weights, metric, stages or rotation; 8 bits a code, books in f16
  weighted,  ///< plain, with tokens weighted by the attention they get
};

struct pqattn_setting {
  pqattn_coding coding = pqattn_coding::preset;
  std::size_t bits = 2;            ///< of codes, per element
  std::size_t train_tokens = 512;  ///< behind the first 8; exact until then
};

/// Which memory bank keeps the codes and computes on them.
enum class bank_kind { host, pim };

/// Makes a cache of coded layers on a bank of its own.
outcome make_pqattn_cache(const cache_shape& shape, const pqattn_setting& setting, bank_kind bank,
                          std::unique_ptr<kv_cache>& cache);

}  // namespace tiny_lm
