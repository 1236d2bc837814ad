// SPDX-License-Identifier: MIT
#include "options.hpp"

#include <pqattn/study/baseline.hpp>
#include <pqattn/version.hpp>

#include <CLI/CLI.hpp>

#include <iostream>
#include <map>

namespace pqattn_study {
namespace {

constexpr const char* description =
    "Codes the keys and values of one attention layer and reports what that does to its attention.\n"
    "Keys and values are (kv_heads, tokens, d), queries (q_heads, tokens, d): float16 or float32 .npy files in C "
    "order,\n"
    "after RoPE, positions 0, 1, ..., attention softmax(q.k / sqrt(d)), causal.";

constexpr const char* examples = R"(Figures:
  output_nmse             |o - o'|^2 / |o|^2 of each judged query row's attention output, mean over rows
  output_nmse_pooled      sum |o - o'|^2 / sum |o|^2 over all of them
  attention_kl            mean over query rows of KL(exact attention || attention on codes), in nats
  top1_agreement          share of query rows whose most attended token is the same
  bits_per_element        codes, codebooks, rotations, metrics and exact tokens (16 bits) over all elements of K and V
  bits_per_element_codes  codes, with the scales of scalar formats and outliers kept exact, per element of the coded
                          tokens
Queries at positions >= --train-tokens are judged. The first --sinks tokens and the last --recent tokens up to and
including the query are exact for every method. With --rope, every method codes the keys before RoPE.

Methods of this library:
  pq_plain   product quantization, codebooks per head from unweighted k-means
  pq         the same with k-means weighted by attention
  pq_shared  one codebook for all KV heads, trained on --calibration-keys and --calibration-values, or without them on
             the first n tokens of all heads
  pq_best    --target-bits B: shapes and outliers from choose_preset (or --subvectors, --stages, --bits, or --policy),
             keys trained and coded in the metric of the queries before position n, values rotated onto principal
             components, additive stages refined together, rows weighted by tempered attention

Examples:
  2 bits per element, keys coded before RoPE (LLaMA-style models):
    pqattn-study --keys keys.npy --values values.npy --queries queries.npy --rope half
  3 bits for keys and 2 for values, for a script:
    pqattn-study --keys keys.npy --values values.npy --queries queries.npy --rope half \
      --subvectors 24 --value-subvectors 16 --json
  The best attention at 2 bits of codes:
    pqattn-study --keys keys.npy --values values.npy --queries queries.npy --rope half \
      --method pq_best --target-bits 2
  The best attention in the memory of a 4-bit block format, everything counted at the length of the files:
    pqattn-study --keys keys.npy --values values.npy --queries queries.npy --rope half \
      --method pq_best --target-all-bits 4.7
  The same bits spread by measured need over heads, keys and values; then a run with that policy:
    pqattn-study --keys keys.npy --values values.npy --queries queries.npy \
      --method pq_best --target-bits 2 --suggest policy.json
    pqattn-study --keys keys.npy --values values.npy --queries queries.npy \
      --method pq_best --policy policy.json
  A 4-bit block format for comparison:
    pqattn-study --keys keys.npy --values values.npy --queries queries.npy --method q4_0
  Exit codes: 0 done, 2 wrong usage, unreadable input or a method that cannot run.)";

}  // namespace

std::vector<std::string> method_names() {
  std::vector<std::string> names;
  for (const pqattn::baseline_name& entry : pqattn::baseline_names) {
    names.emplace_back(entry.name);
  }
  names.insert(names.end(), {"pq_plain", "pq_shared", "pq", "pq_best"});
  return names;
}

parsed_options parse_options(int argc, const char* const* argv) {
  parsed_options parsed;
  options& chosen = parsed.chosen;
  CLI::App app(description, "pqattn-study");
  app.footer(examples);
  app.set_version_flag("--version", std::to_string(PQATTN_VERSION_MAJOR) + "." + std::to_string(PQATTN_VERSION_MINOR) +
                                        "." + std::to_string(PQATTN_VERSION_PATCH));
  app.get_formatter()->column_width(34);

  const CLI::Range count(0.0, 1e15, "COUNT");  // CLI11 would read -1 as the largest unsigned number

  app.add_option("--keys", chosen.keys, "keys .npy, after RoPE");
  app.add_option("--values", chosen.values, "values .npy; d may differ from the keys'");
  app.add_option("--queries", chosen.queries, "queries .npy, after RoPE");
  app.add_option("--kv-heads", chosen.kv_heads, "KV heads the files must have (default: as in the keys file)")
      ->check(count);

  app.add_option("--method", chosen.method, "cache format")
      ->check(CLI::IsMember(method_names()))
      ->capture_default_str();
  app.add_option("--subvectors", chosen.subvectors, "sub-vectors of a key, m (default: d / 4)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--bits", chosen.bits, "bits of a key code; 2^bits centroids")
      ->check(CLI::Range(1, 16))
      ->capture_default_str();
  app.add_option("--value-subvectors", chosen.value_subvectors, "sub-vectors of a value (default: the keys' m / d)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--value-bits", chosen.value_bits, "bits of a value code (default: --bits)")->check(CLI::Range(1, 16));
  app.add_option("--stages", chosen.stages, "additive stages of a key, with --subvectors (default: 1)")
      ->check(CLI::Range(1, 8));
  app.add_option("--value-stages", chosen.value_stages, "additive stages of a value (default: --stages)")
      ->check(CLI::Range(1, 8));
  app.add_option("--target-bits", chosen.target_bits, "pq_best: mean code bits per element of K and V")
      ->check(CLI::Range(1.0, 6.0));
  app.add_option("--target-all-bits", chosen.target_all_bits,
                 "pq_best instead of --target-bits: bits per element of everything at the length of the files, "
                 "codebooks, metric, rotation and exact tokens included")
      ->check(CLI::Range(1.0, 16.0))
      ->excludes("--target-bits");
  app.add_option("--train-tokens", chosen.train_tokens,
                 "codebooks learn from the first n tokens; queries from there on are judged (default: 3/4 of tokens)")
      ->check(count);
  app.add_option("--sinks", chosen.sinks, "first tokens kept exact")->check(count)->capture_default_str();
  app.add_option("--recent", chosen.recent, "last tokens kept exact, the query's own included")
      ->check(count)
      ->capture_default_str();
  app.add_option("--weights", chosen.weights,
                 "k-means weights: attention mass from the last 32 training queries, or none (default: attention)")
      ->check(CLI::IsMember({"none", "attention"}));
  app.add_option("--weight-exponent", chosen.weight_exponent,
                 "weights become max((mass / mean mass)^exponent, floor) (default: 0.5 for pq_best, else 1)")
      ->check(CLI::Range(0.0, 4.0));
  app.add_option("--weight-floor", chosen.weight_floor, "see --weight-exponent (default: 0.05 for pq_best, else 1)")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option(
         "--rope", chosen.rope,
         "code keys before RoPE: how the model pairs channels; auto finds pairing and base from the keys before "
         "position n (default: auto for pq_best, else none)")
      ->check(CLI::IsMember({"none", "half", "interleaved", "auto"}));
  app.add_option("--rope-theta", chosen.rope_theta, "base of the RoPE frequencies; auto tries 5e5 and 1e6 too")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seed", chosen.seed, "seed of k-means and of random rotations")->check(count)->capture_default_str();
  app.add_option("--iterations", chosen.iterations, "k-means iterations (default: 12 for pq_best, else 25)")
      ->check(CLI::Range(1, 10000));
  app.add_option("--codebooks", chosen.codebooks, "numbers a codebook is stored as (default: i8 for pq_best, else f16)")
      ->check(CLI::IsMember({"f32", "f16", "i8"}));
  app.add_option(
         "--windows", chosen.windows,
         "pq, pq_plain and pq_best: cut the training range into so many windows, each with a codebook of its own "
         "that starts from the one before")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--calibration-keys", chosen.calibration_keys, "pq_shared: keys .npy, after RoPE, to train on");
  app.add_option("--calibration-values", chosen.calibration_values, "pq_shared: values .npy to train on");
  app.add_option(
         "--metric", chosen.metric,
         "pq_best: metric of the keys, from sampled or all keys, or the identity (default: sampled, unless the preset "
         "finds its memory better spent on codes)")
      ->check(CLI::IsMember({"sampled", "exact", "none"}));
  app.add_option("--metric-rows", chosen.metric_rows, "pq_best: query rows per head that make the metric")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_flag("--block-metric", chosen.block_metric,
               "pq_best: a metric per sub-vector, without what links different ones");
  app.add_option("--refine", chosen.refine,
                 "pq_shared: iterations by which each head refines the shared codebook on its own rows")
      ->check(CLI::Range(0, 100));
  app.add_option("--restarts", chosen.restarts, "pq_best: trainings from other starts, of which the best is kept")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--scale-bits", chosen.scale_bits,
                 "pq_best: bits of a scale that each sub-vector of a row gets besides its codes")
      ->check(CLI::Range(0, 4))
      ->capture_default_str();
  app.add_option("--value-basis", chosen.value_basis, "pq_best: numbers the rotation of values is stored as")
      ->check(CLI::IsMember({"f32", "f16", "i8"}))
      ->capture_default_str();
  app.add_option("--joint-passes", chosen.joint_passes, "pq_best: joint passes after k-means")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  app.add_option("--sweeps", chosen.sweeps, "pq_best: sweeps over the groups when coding")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  app.add_option("--beam", chosen.beam, "pq_best: candidates kept from stage to stage when coding")
      ->check(CLI::Range(1, 8))
      ->capture_default_str();
  app.add_flag("!--no-smoothing", chosen.smooth, "pq_best: no made-up rows where few rows teach a codebook");
  app.add_option("--outlier-share", chosen.outlier_share,
                 "pq_best: share of the coded rows kept exact, those with the largest error (default: what the preset "
                 "spends of --target-bits on them; 0 with --subvectors)")
      ->check(CLI::Range(0.0, 0.5));
  app.add_option("--value-rotation", chosen.value_rotation,
                 "pq_best: rotation of values before coding (default: pca, unless the preset finds its memory better "
                 "spent on codes)")
      ->check(CLI::IsMember({"pca", "none"}));
  app.add_option(
         "--channel-order", chosen.channel_order,
         "channels of a sub-vector: as they come, rotation pairs of keys side by side (pq_best), or the paper's "
         "sorting by cosine similarity from the training rows")
      ->check(CLI::IsMember({"none", "pairs", "cosine"}))
      ->capture_default_str();
  const std::map<std::string, coded_sides> sides = {
      {"keys", coded_sides::keys}, {"values", coded_sides::values}, {"both", coded_sides::both}};
  app.add_option("--code", chosen.sides, "what to code; the rest stays exact: keys, values or both (default: both)")
      ->transform(CLI::Transformer(sides))
      ->option_text("TEXT");
  app.add_option("--policy", chosen.policy,
                 "pq_best: JSON file that says how each KV head's keys and values are coded");
  app.add_option("--suggest", chosen.suggest,
                 "pq_best: find such a policy for --target-bits or --target-error from the tokens before position n, "
                 "write it to this file and print why");
  app.add_option("--target-error", chosen.target_error, "--suggest: output NMSE wanted, with the fewest bits")
      ->check(CLI::PositiveNumber);
  app.add_option("--layer", chosen.layer, "index of this layer in a policy file")->check(count)->capture_default_str();
  app.add_flag("--core-speed", chosen.core_speed,
               "only print how fast one core multiplies f32 matrices (Eigen), to compare training with a prefill");
  app.add_flag("--json", chosen.json, "print one JSON object instead of a table");

  try {
    app.parse(argc, argv);
    for (const char* name : {"--keys", "--values", "--queries"}) {
      if (!chosen.core_speed && app.count(name) == 0) {
        throw CLI::RequiredError(name);
      }
    }
    parsed.run = true;
  } catch (const CLI::Success& message) {
    parsed.exit_code = app.exit(message);
  } catch (const CLI::ParseError& problem) {
    std::cerr << "pqattn-study: " << problem.what() << " (see --help)\n";
    parsed.exit_code = 2;
  }
  return parsed;
}

}  // namespace pqattn_study
