// SPDX-License-Identifier: MIT
#include "commands.hpp"

#include "caches.hpp"
#include "comparison.hpp"
#include "evaluate.hpp"
#include "report.hpp"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <span>
#include <string_view>

namespace tiny_lm {
namespace {

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

outcome text_tokens(const std::filesystem::path& file, const engine& loaded, std::vector<token_id>& tokens) {
  constexpr std::size_t max_text_bytes = std::size_t{1} << 26;
  std::string text;
  TINY_LM_TRY(read_text(file, max_text_bytes, text));
  tokens = loaded.words.encode(text);
  return {};
}

outcome evaluation_tokens(const evaluate_options& options, const engine& loaded, std::vector<token_id>& tokens) {
  if (!options.tokens.empty()) {
    TINY_LM_TRY(read_tokens(options.tokens, tokens));
  } else if (!options.text.empty()) {
    TINY_LM_TRY(text_tokens(options.text, loaded, tokens));
    tokens.insert(tokens.begin(), tokenizer::bos);
  } else {
    TINY_LM_TRY(load_context(options.data, options.context, tokens));
  }
  tokens.resize(std::min(tokens.size(), options.length));
  return {};
}

/// `options.excerpts` pieces of one length: spread over the text, or the beginnings of the built-in contexts.
outcome excerpts_of(const evaluate_options& options, const engine& loaded,
                    std::vector<std::vector<token_id>>& excerpts) {
  if (options.text.empty()) {
    const int contexts = options.tokens.empty() ? 2 : 1;
    for (int context = 0; context < contexts; ++context) {
      evaluate_options one = options;
      one.context = context;
      excerpts.emplace_back();
      TINY_LM_TRY(evaluation_tokens(one, loaded, excerpts.back()));
    }
  } else {
    std::vector<token_id> tokens;
    TINY_LM_TRY(text_tokens(options.text, loaded, tokens));
    const std::size_t words = options.length - 1;
    if (tokens.size() < words) {
      return expected_got("tokens of the text", std::to_string(words) + " or more", tokens.size());
    }
    for (std::size_t i = 0; i < options.excerpts; ++i) {
      const std::size_t first = (tokens.size() - words) * (2 * i + 1) / (2 * options.excerpts);
      excerpts.emplace_back(tokens.begin() + static_cast<std::ptrdiff_t>(first),
                            tokens.begin() + static_cast<std::ptrdiff_t>(first + words));
      excerpts.back().insert(excerpts.back().begin(), tokenizer::bos);
    }
  }
  for (const std::vector<token_id>& excerpt : excerpts) {
    if (excerpt.size() != excerpts.front().size() || excerpt.size() < 2) {
      return expected_got("tokens of an excerpt", excerpts.front().size(), excerpt.size());
    }
  }
  return {};
}

outcome run_methods(const evaluate_options& options, const engine& loaded) {
  std::vector<std::vector<token_id>> excerpts;
  TINY_LM_TRY(excerpts_of(options, loaded, excerpts));
  std::vector<std::string> methods;
  for (const std::string& method : options.methods) {
    const std::vector<std::string> all = study_methods();
    if (method == "all") {
      methods.insert(methods.end(), all.begin(), all.end());
    } else {
      methods.push_back(method);
    }
  }
  const std::size_t start = options.coding_start != 0 ? options.coding_start : excerpts.front().size() * 3 / 4;
  method_table table;
  TINY_LM_TRY(compare_methods(loaded, excerpts, order_of_runs(methods), start, table));
  write_out(format_methods(table));
  return options.json.empty() ? outcome{} : write_methods(table, options.json);
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
  comparison runs(loaded, tokens, default_coding_start);
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

outcome run_evaluate(const evaluate_options& asked) {
  engine loaded;
  TINY_LM_TRY(load_engine(asked.data, loaded));
  evaluate_options options = asked;
  const std::size_t context = loaded.weights.config.context;
  options.length = options.length == 0 ? context : std::min(options.length, context);
  if (!options.methods.empty()) {
    return run_methods(options, loaded);
  }
  std::vector<token_id> tokens;
  TINY_LM_TRY(evaluation_tokens(options, loaded, tokens));
  if (tokens.size() < 2) {
    return expected_got("tokens", "2 or more", tokens.size());
  }
  const bool all = options.targets.first == 0 && options.targets.last == 0;
  const target_range range = all ? target_range{1, tokens.size() - 1} : options.targets;
  TINY_LM_TRY(check_range(range, tokens.size()));
  comparison runs(loaded, tokens, options.coding_start != 0 ? options.coding_start : default_coding_start);
  for (const std::string& name : order_of_runs({options.cache})) {
    evaluation run;
    TINY_LM_TRY(runs.run(name, run));
    print_evaluation(name, run, range);
  }
  return {};
}

}  // namespace tiny_lm
