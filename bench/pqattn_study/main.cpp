// SPDX-License-Identifier: MIT
// pqattn-study: what does coding a KV cache do to attention? See --help.
#include <exception>
#include <iostream>
#include <new>

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
  try {
    const options& chosen = parsed.chosen;
    const inputs layer = load_inputs(chosen.keys, chosen.values, chosen.queries);
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
