// SPDX-License-Identifier: MIT
// pqattn-study: what does coding a KV cache do to attention? See --help.
#include <pqattn/study/policy_json.hpp>

#include <exception>
#include <fstream>
#include <iostream>
#include <new>

#include "core_speed.hpp"
#include "inputs.hpp"
#include "options.hpp"
#include "report.hpp"
#include "study.hpp"

int main(int argc, char** argv) {
  using namespace pqattn_study;
  const parsed_options parsed = parse_options(argc, argv);
  if (!parsed.run) {
    return parsed.exit_code;
  }
  if (parsed.chosen.core_speed) {
    std::cout << core_speed_json();
    return 0;
  }
  try {
    const options& chosen = parsed.chosen;
    const inputs layer = load_inputs(chosen.keys, chosen.values, chosen.queries);
    if (!chosen.suggest.empty()) {
      const suggestion found = suggest(layer, chosen);
      std::ofstream file(chosen.suggest);
      file << pqattn::policy_to_json(found.policy.data(), found.policy.size());
      std::cout << as_table(found);
      return file.flush().good() && std::cout.flush().good() ? 0 : 2;
    }
    const study_result result = run_study(layer, chosen);
    std::cout << (chosen.json ? as_json(result, chosen) : as_table(result, chosen));
    return std::cout.flush().good() ? 0 : 2;
  } catch (const std::bad_alloc&) {
    std::cerr << "pqattn-study: out of memory\n";
  } catch (const std::exception& problem) {
    std::cerr << "pqattn-study: " << problem.what() << '\n';
  }
  return 2;
}
