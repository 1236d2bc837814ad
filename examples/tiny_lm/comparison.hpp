// SPDX-License-Identifier: MIT
// Many caches over the same texts: what each costs and what it does to the model.
#pragma once

#include "engine.hpp"
#include "evaluate.hpp"
#include "outcome.hpp"

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace tiny_lm {

/// Runs caches over one text; the first must be the exact one, which the others are compared with.
class comparison {
 public:
  comparison(const engine& loaded, std::span<const token_id> tokens, std::size_t coding_start)
      : loaded_(loaded), tokens_(tokens), coding_start_(coding_start) {}

  outcome run(const std::string& name, evaluation& result);

 private:
  const engine& loaded_;
  std::span<const token_id> tokens_;
  std::size_t coding_start_;
  log_probabilities reference_;
};

/// What one method does, means over the judged targets of all excerpts.
struct method_result {
  std::string name;
  double loss = 0.0;             ///< nats per token
  double loss_change = 0.0;      ///< against exact, as a share of its loss
  double change_interval = 0.0;  ///< half a 95 % interval of that over the excerpts; 0 for one excerpt
  double kl = 0.0;               ///< KL(exact || method), nats per token
  double top1_agreement = 0.0;
  double code_bits = 0.0;       ///< codes with their scales, per coded element
  double all_bits = 0.0;        ///< everything held, per element of the excerpt
  std::size_t cache_bytes = 0;  ///< at the end of an excerpt, mean
  double seconds = 0.0;         ///< per excerpt
};

struct method_table {
  std::size_t excerpts = 0;
  std::size_t tokens = 0;        ///< of each
  std::size_t coding_start = 0;  ///< everything is exact until then
  target_range targets;          ///< judged: after coding has begun
  std::vector<method_result> methods;
};

/// Runs every method over excerpts of one length (two tokens or more) and judges the targets from `coding_start` + 8
/// on.
outcome compare_methods(const engine& loaded, const std::vector<std::vector<token_id>>& excerpts,
                        const std::vector<std::string>& methods, std::size_t coding_start, method_table& table);

/// For people.
[[nodiscard]] std::string format_methods(const method_table& table);
/// The same as JSON.
outcome write_methods(const method_table& table, const std::filesystem::path& file);

}  // namespace tiny_lm
