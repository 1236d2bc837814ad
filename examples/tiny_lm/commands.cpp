// SPDX-License-Identifier: MIT
#include "commands.hpp"

#include "caches.hpp"
#include "evaluate.hpp"
#include "progress.hpp"
#include "report.hpp"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <span>
#include <string_view>

namespace tiny_lm {
namespace {

/// Runs caches over one text; the first must be the exact one, which the others are compared with.
class comparison {
 public:
  comparison(const engine& loaded, std::span<const token_id> tokens) : loaded_(loaded), tokens_(tokens) {}

  outcome run(const std::string& name, evaluation& result) {
    std::unique_ptr<kv_cache> cache;
    TINY_LM_TRY(make_cache(name, loaded_.weights.config.shape(tokens_.size()), cache));
    progress_bar bar(name, tokens_.size());
    const auto progress = [&](std::size_t done, double mean_loss) { bar.update(done, mean_loss); };
    const bool is_reference = reference_.size() == 0;
    return is_reference ? evaluate_reference(loaded_.weights, *cache, tokens_, progress, reference_, result)
                        : evaluate_against(reference_, loaded_.weights, *cache, tokens_, progress, result);
  }

 private:
  const engine& loaded_;
  std::span<const token_id> tokens_;
  log_probabilities reference_;
};

void write_out(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

/// What a cache's model goes on with after `prompt`, the most likely token each time.
outcome sample_text(const engine& loaded, const std::string& name, std::span<const token_id> prompt, std::size_t count,
                    std::string& text) {
  std::unique_ptr<kv_cache> cache;
  TINY_LM_TRY(make_cache(name, loaded.weights.config.shape(prompt.size() + count), cache));
  const auto emit = [&](token_id token) { text += loaded.words.decode(token); };
  return generate(loaded, *cache, prompt, count, {}, emit);
}

outcome run_setting(const demo_options& options, const engine& loaded, std::span<const token_id> tokens,
                    comparison& runs, setting_result& setting) {
  TINY_LM_TRY(runs.run(setting.name, setting.run).within(setting.name));
  if (options.sample_tokens == 0) {
    return {};
  }
  const auto prompt = tokens.first(tokens.size() / 2);
  return sample_text(loaded, setting.name, prompt, options.sample_tokens, setting.sample).within(setting.name);
}

/// The exact cache, then the ones asked for, each once.
std::vector<std::string> order_of_runs(const std::vector<std::string>& asked) {
  std::vector<std::string> names = {"exact"};
  for (const std::string& name : asked) {
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      names.push_back(name);
    }
  }
  return names;
}

void print_samples(const demo_report& report, const engine& loaded, std::span<const token_id> tokens) {
  constexpr std::size_t shown = 24;
  const auto prompt = tokens.first(tokens.size() / 2);
  write_out("\nAfter \"..." + loaded.words.decode(prompt.last(std::min(shown, prompt.size()))) + "\"\n");
  for (const setting_result& setting : report.settings) {
    write_out("\n[" + setting.name + "]" + setting.sample + "\n");
  }
}

outcome evaluation_tokens(const evaluate_options& options, const engine& loaded, std::vector<token_id>& tokens) {
  constexpr std::size_t max_text_bytes = std::size_t{1} << 26;
  if (!options.tokens.empty()) {
    TINY_LM_TRY(read_tokens(options.tokens, tokens));
  } else if (!options.text.empty()) {
    std::string text;
    TINY_LM_TRY(read_text(options.text, max_text_bytes, text));
    tokens = loaded.words.encode(text);
    tokens.insert(tokens.begin(), tokenizer::bos);
  } else {
    TINY_LM_TRY(load_context(options.data, options.context, tokens));
  }
  tokens.resize(std::min(tokens.size(), loaded.weights.config.context));
  return {};
}

outcome check_range(target_range range, std::size_t tokens) {
  if (range.first >= 1 && range.first <= range.last && range.last < tokens) {
    return {};
  }
  return expected_got("targets", "a range within 1 to " + std::to_string(tokens - 1),
                      std::to_string(range.first) + " to " + std::to_string(range.last));
}

void print_evaluation(const std::string& name, const evaluation& run, target_range range) {
  std::printf("%s, targets %zu to %zu: loss %.4f, KL %.5f, top-1 agreement %.2f %%, %zu bytes, %.2f s\n", name.c_str(),
              range.first, range.last, mean_over(run.loss, range), mean_over(run.divergence, range),
              100.0 * mean_over(run.top1_agrees, range), run.memory.bytes, run.seconds);
}

}  // namespace

outcome run_demo(const demo_options& options) {
  engine loaded;
  TINY_LM_TRY(load_engine(options.data, loaded));
  std::vector<token_id> tokens;
  TINY_LM_TRY(load_context(options.data, options.context, tokens));
  if (tokens.size() < 8) {
    return expected_got("tokens of the context", "8 or more", tokens.size());
  }

  demo_report report;
  report.context = options.context;
  report.tokens = tokens.size();
  report.elements = loaded.weights.config.shape(tokens.size()).elements(tokens.size());
  report.late = {3 * tokens.size() / 4, tokens.size() - 1};
  comparison runs(loaded, tokens);
  for (const std::string& name : order_of_runs(options.caches)) {
    setting_result setting;
    setting.name = name;
    TINY_LM_TRY(run_setting(options, loaded, tokens, runs, setting));
    report.settings.push_back(std::move(setting));
  }
  write_out(format_table(report));
  if (options.sample_tokens > 0) {
    print_samples(report, loaded, tokens);
  }
  TINY_LM_TRY(write_report(report, options.output));
  write_out("\nWritten: " + (options.output / "summary.json").string() + " and the columns for the plots\n");
  return {};
}

outcome run_generate(const generate_options& options) {
  engine loaded;
  TINY_LM_TRY(load_engine(options.data, loaded));
  std::vector<token_id> prompt = loaded.words.encode(options.prompt);
  prompt.insert(prompt.begin(), tokenizer::bos);
  const std::size_t tokens = std::min(prompt.size() + options.tokens, loaded.weights.config.context);
  std::unique_ptr<kv_cache> cache;
  TINY_LM_TRY(make_cache(options.cache, loaded.weights.config.shape(tokens), cache));
  write_out(options.prompt);
  const auto emit = [&](token_id token) { write_out(loaded.words.decode(token)); };
  TINY_LM_TRY(generate(loaded, *cache, prompt, options.tokens, options.choice, emit));
  write_out("\n" + cache->account());
  return {};
}

outcome run_evaluate(const evaluate_options& options) {
  engine loaded;
  TINY_LM_TRY(load_engine(options.data, loaded));
  std::vector<token_id> tokens;
  TINY_LM_TRY(evaluation_tokens(options, loaded, tokens));
  if (tokens.size() < 2) {
    return expected_got("tokens", "2 or more", tokens.size());
  }
  const bool all = options.targets.first == 0 && options.targets.last == 0;
  const target_range range = all ? target_range{1, tokens.size() - 1} : options.targets;
  TINY_LM_TRY(check_range(range, tokens.size()));
  comparison runs(loaded, tokens);
  for (const std::string& name : order_of_runs({options.cache})) {
    evaluation run;
    TINY_LM_TRY(runs.run(name, run));
    print_evaluation(name, run, range);
  }
  return {};
}

}  // namespace tiny_lm
