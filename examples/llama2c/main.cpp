// SPDX-License-Identifier: MIT
// Runs llama2.c checkpoints with their KV cache in floats or in pqattn. `llama2c --help` lists what it does.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <string>

#include "checkpoint.hpp"
#include "runner.hpp"

namespace {

struct arguments {
  std::string file;
  std::string cache = "pqattn";
  std::size_t tokens = 600;
  std::uint32_t train_tokens = 0;
  std::uint64_t seed = 1;
};

int fail(const std::string& problem) {
  std::fprintf(stderr, "llama2c: %s\n", problem.c_str());
  return 2;
}

int make(const arguments& given) {
  const llama2c::model_shape tiny{64, 128, 2, 4, 2, 96, 1024, false};
  std::string problem;
  return llama2c::checkpoint::random(tiny, given.seed).write(given.file, problem) ? 0 : fail(problem);
}

int generate(const llama2c::checkpoint& model, const arguments& given) {
  std::string problem;
  const auto cache = llama2c::make_cache(given.cache, model.shape(), given.train_tokens, problem);
  if (cache == nullptr) {
    return fail(problem);
  }
  llama2c::runner run(model, *cache);
  std::int32_t token = 1;  // the format's BOS
  for (std::size_t i = 0; i < given.tokens; ++i) {
    if (const pqattn::status done = run.forward(token); !done) {
      char text[200];
      done.format(text, sizeof text);
      return fail(text);
    }
    token = run.most_likely();
    std::printf("%d%s", token, i + 1 < given.tokens ? " " : "\n");
  }
  return 0;
}

int compare(const llama2c::checkpoint& model, const arguments& given) {
  const auto tokens = llama2c::random_tokens(model.shape(), given.tokens, given.seed);
  for (const char* name : {"float", "pqattn-exact", "pqattn"}) {
    llama2c::comparison result;
    std::string problem;
    if (!llama2c::compare(model, tokens, "float", name, given.train_tokens, result, problem)) {
      return fail(problem);
    }
    std::printf("%-12s %6zu bytes, %3zu of %zu tokens coded, logits NMSE %.2e, KL %.2e, same top token %.1f %%\n", name,
                result.bytes, result.coded_tokens, result.tokens, result.nmse, result.kl,
                100.0 * static_cast<double>(result.same_top) / static_cast<double>(result.tokens));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Runs llama2.c checkpoints with an exchangeable KV cache");
  app.require_subcommand(1);
  arguments given;
  const auto add_run = [&](const char* name, const char* what) {
    CLI::App* command = app.add_subcommand(name, what);
    command->add_option("file", given.file, "checkpoint, first llama2.c format")->required();
    command->add_option("--tokens", given.tokens, "how many tokens");
    command->add_option("--train-tokens", given.train_tokens, "tokens at which pqattn trains; 0 is its default");
    return command;
  };
  CLI::App* make_command = app.add_subcommand("make", "Write a tiny checkpoint with random weights");
  make_command->add_option("file", given.file, "where to")->required();
  make_command->add_option("--seed", given.seed, "of the weights");
  CLI::App* generate_command = add_run("generate", "Print the most likely tokens after BOS");
  generate_command->add_option("--cache", given.cache, "float, pqattn-exact or pqattn");
  add_run("compare", "Logits with each cache against llama2.c's, over random tokens")
      ->add_option("--seed", given.seed, "of the tokens");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (make_command->parsed()) {
    return make(given);
  }
  llama2c::checkpoint model;
  std::string problem;
  if (!llama2c::checkpoint::read(given.file, model, problem)) {
    return fail(problem);
  }
  return generate_command->parsed() ? generate(model, given) : compare(model, given);
}
