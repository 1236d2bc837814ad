// SPDX-License-Identifier: MIT
// tiny_lm: a small LLaMA-style engine whose KV cache is exchangeable. `tiny_lm --help` lists what it does.
#include "caches.hpp"
#include "commands.hpp"
#include "outcome.hpp"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <string>
#include <vector>

#ifndef TINY_LM_DATA_DIR
#define TINY_LM_DATA_DIR "examples/tiny_lm/data"
#endif

namespace {

constexpr int failure_exit_code = 2;

CLI::App* add_demo(CLI::App& app, tiny_lm::demo_options& options) {
  CLI::App* command = app.add_subcommand("demo", "Run the caches over one context, print a table, write a report");
  options.caches = tiny_lm::demo_caches();
  options.sample_tokens = 40;
  command->add_option("--output", options.output, "folder for summary.json and the plots' columns")->required();
  command->add_option("--context", options.context, "which of the two contexts")->check(CLI::Range(0, 1));
  command->add_option("--caches", options.caches, "caches to compare with the exact one: " + tiny_lm::cache_help());
  command->add_option("--sample", options.sample_tokens, "tokens of text to show per cache, 0 for none");
  return command;
}

CLI::App* add_generate(CLI::App& app, tiny_lm::generate_options& options) {
  CLI::App* command = app.add_subcommand("generate", "Go on with a text");
  command->add_option("--prompt", options.prompt, "the text to go on with")->required();
  command->add_option("--tokens", options.tokens, "how many tokens");
  command->add_option("--cache", options.cache, tiny_lm::cache_help());
  command->add_option("--temperature", options.choice.temperature, "0 takes the most likely token each time")
      ->check(CLI::Range(0.0, 100.0));
  command->add_option("--seed", options.choice.seed, "of the random choice");
  return command;
}

CLI::App* add_evaluate(CLI::App& app, tiny_lm::evaluate_options& options) {
  CLI::App* command = app.add_subcommand("evaluate", "Loss of one cache over a text, and its distance from exact");
  command->add_option("--tokens", options.tokens, ".npy file of token ids (int32), the first one BOS");
  command->add_option("--text", options.text, "text file; its beginning is used");
  command->add_option("--context", options.context, "which built-in context, without a file")->check(CLI::Range(0, 1));
  command->add_option("--cache", options.cache, tiny_lm::cache_help());
  command->add_option("--method", options.methods,
                      "table of several caches over both built-in contexts or excerpts of --text, judged after coding "
                      "began; all: every method of the accuracy study");
  command->add_option("--excerpts", options.excerpts, "with --method and --text: how many")->check(CLI::Range(1, 1000));
  command->add_option("--length", options.length, "tokens of a run, 0 for the model's context");
  command->add_option("--coding-start", options.coding_start,
                      "tokens at which caches go over to codes; 0: 512, with --method three quarters of the length");
  command->add_option("--json", options.json, "with --method: file for the same figures as JSON");
  command->add_option("--first", options.targets.first, "first target of the mean (position it predicts)");
  command->add_option("--last", options.targets.last, "last target of the mean");
  return command;
}

int report(const tiny_lm::outcome& outcome) {
  if (outcome) {
    return 0;
  }
  std::fprintf(stderr, "tiny_lm: %s\n", outcome.message().c_str());
  return failure_exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("A small LLaMA-style engine with an exchangeable KV cache");
  app.require_subcommand(1);
  app.fallthrough();
  app.option_defaults()->always_capture_default();
  std::string data = TINY_LM_DATA_DIR;
  app.add_option("--data", data, "folder of model.safetensors, config.json, tokenizer.json");
  tiny_lm::demo_options demo;
  tiny_lm::generate_options generate;
  tiny_lm::evaluate_options evaluate;
  const CLI::App* demo_command = add_demo(app, demo);
  const CLI::App* generate_command = add_generate(app, generate);
  add_evaluate(app, evaluate);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : failure_exit_code;  // --help also comes this way
  }

  demo.data = generate.data = evaluate.data = data;
  if (*demo_command) {
    return report(tiny_lm::run_demo(demo));
  }
  if (*generate_command) {
    return report(tiny_lm::run_generate(generate));
  }
  return report(tiny_lm::run_evaluate(evaluate));
}
