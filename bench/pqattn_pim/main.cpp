// SPDX-License-Identifier: MIT
// pqattn-pim: costs of command lists on emulated PIM devices, and the check of the cost model against figures of public
// simulators. docs/pim.md describes the model, its limits and the file formats.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <string>

#include <CLI/CLI.hpp>

#include <pqattn/bank/pim/device_json.hpp>
#include <pqattn/bank/pim/presets.hpp>

#include "check.hpp"
#include "command_text.hpp"
#include "study.hpp"
#include "trace_report.hpp"

namespace {

namespace pim = pqattn::pim;

constexpr int ok = 0;
constexpr int failed = 2;

int complain(const std::string& message) {
  std::cerr << "pqattn-pim: " << message << "\n";
  return failed;
}

/// The whole of a file ("-": standard input).
std::optional<std::string> read_file(const std::string& path) {
  if (path == "-") {
    return std::string(std::istreambuf_iterator<char>(std::cin), {});
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return std::nullopt;
  }
  std::string text(std::istreambuf_iterator<char>(file), {});
  return file.bad() ? std::nullopt : std::optional<std::string>(std::move(text));
}

/// A preset by name, or a device from a JSON file.
bool find_device(const std::string& name, pim::device& found) {
  if (pim::find_preset(name, found)) {
    return true;
  }
  const auto text = read_file(name);
  if (!text) {
    complain("\"" + name + "\" is neither a preset nor a file that can be read (see: pqattn-pim devices)");
    return false;
  }
  std::string message;
  if (!pim::device_from_json_text(*text, found, message)) {
    complain(name + ": " + message);
    return false;
  }
  return true;
}

struct trace_arguments {
  std::string device = "hbm3_attacc";
  std::string commands;
  bool json = false;
  bool no_refresh = false;
  bool events = false;
};

int run_trace(const trace_arguments& a) {
  pim::device device;
  if (!find_device(a.device, device)) {
    return failed;
  }
  const auto text = read_file(a.commands);
  if (!text) {
    return complain("cannot read \"" + a.commands + "\"");
  }
  pim::walk_options options;
  options.refresh = !a.no_refresh;
  if (a.events) {
    options.trace = [](void*, const pim::trace_record& record) { std::cerr << pqattn_pim::event_text(record); };
  }
  pim::walker walker;
  if (const pqattn::status s = walker.configure(device, options); !s) {
    return complain(pim::detail::sentence(s));
  }
  pqattn_pim::command_reader reader(walker);
  if (const auto error = reader.serve_all(*text)) {
    return complain(a.commands + ":" + std::to_string(error->line) + ": " + error->message);
  }
  if (a.json) {
    std::cout << pqattn_pim::trace_json(walker, options.refresh).dump(2) << "\n";
  } else {
    std::cout << pqattn_pim::trace_text(walker, options.refresh);
  }
  return ok;
}

struct check_arguments {
  std::string file;
  bool json = false;
  bool summary = false;
};

int run_check(const check_arguments& a) {
  const auto text = read_file(a.file);
  if (!text) {
    return complain("cannot read \"" + a.file + "\"");
  }
  const auto document = nlohmann::json::parse(*text, nullptr, false);
  if (document.is_discarded()) {
    return complain(a.file + ": not a JSON document (cut off, or a syntax error)");
  }
  std::string problem;
  const auto checked = pqattn_pim::check_document(document, problem);
  if (!problem.empty()) {
    return complain(a.file + ": " + problem);
  }
  if (a.json) {
    // Text from the file may hold bytes that are no UTF-8.
    std::cout << pqattn_pim::to_json(checked).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  } else {
    std::cout << (a.summary ? pqattn_pim::summary_text(checked) : pqattn_pim::report_text(checked));
  }
  return ok;
}

int run_devices(const std::string& name) {
  if (!name.empty()) {
    pim::device device;
    if (!find_device(name, device)) {
      return failed;
    }
    std::cout << pim::device_to_json(device).dump(2) << "\n";
    return ok;
  }
  for (const pim::named_preset& preset : pim::presets) {
    const pim::device d = preset.make();
    const pim::organisation& o = d.organisation;
    std::printf("%-18s %4d command channels x %4d banks, rows of %d bytes, clock %d ps, %.0f GiB%s\n", preset.name,
                o.command_channels(), o.banks_per_command_channel(), o.row_bytes, d.timing.tck_ps,
                static_cast<double>(d.capacity_bytes) / (1 << 30),
                d.core.present                                               ? ", core and DMA per bank"
                : std::string(d.name).find("no public") != std::string::npos ? ", no public PIM data"
                                                                             : "");
  }
  return ok;
}

int run_study(const std::string& name, const std::string& folder) {
  pim::device device;
  if (!find_device(name, device)) {
    return failed;
  }
  if (!device.pim.present) {
    return complain(name + ": has no PIM units");
  }
  return pqattn_pim::pim_study(device, folder).run() ? ok : complain("cannot write into \"" + folder + "\"");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Costs of processing-in-memory command lists. An emulator, not a cycle-accurate simulator."};
  app.require_subcommand(1);

  trace_arguments trace;
  CLI::App* trace_command = app.add_subcommand("trace", "Walk a command list and print cycles, counters and energy");
  trace_command->add_option("--device", trace.device, "A preset or a JSON file")->capture_default_str();
  trace_command->add_option("--commands", trace.commands, "Command file, - for standard input")->required();
  trace_command->add_flag("--json", trace.json, "Print JSON");
  trace_command->add_flag("--no-refresh", trace.no_refresh, "Leave refresh out");
  trace_command->add_flag("--events", trace.events, "List every event of the command buses on standard error");
  trace_command->footer(pqattn_pim::command_format_help);

  check_arguments check;
  CLI::App* check_command = app.add_subcommand("check", "Compare the model with a file of simulators' figures");
  check_command->add_option("reference", check.file, "File of schema pim-reference-cases/1")->required();
  check_command->add_flag("--json", check.json, "Print JSON");
  check_command->add_flag("--summary", check.summary, "Only the table of errors per simulator and kind");

  std::string device;
  CLI::App* devices_command = app.add_subcommand("devices", "List the presets, or print one device as JSON");
  devices_command->add_option("device", device, "A preset or a JSON file");

  std::string study_device = "hbm3_attacc";
  std::string study_folder;
  CLI::App* study_command = app.add_subcommand("study", "Decode steps in several systems, as tables (docs/pim.md)");
  study_command->add_option("--device", study_device, "A preset or a JSON file")->capture_default_str();
  study_command->add_option("--output", study_folder, "Existing folder for the tables as CSV");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? ok : failed;
  }
  if (*trace_command) {
    return run_trace(trace);
  }
  if (*check_command) {
    return run_check(check);
  }
  if (*study_command) {
    return run_study(study_device, study_folder);
  }
  return run_devices(device);
}
