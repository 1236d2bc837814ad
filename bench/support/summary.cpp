// SPDX-License-Identifier: MIT
#include "support/summary.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "pqattn/bank/host/host_bank.hpp"
#include "support/machine.hpp"
#include "support/memory.hpp"

namespace bench {
namespace {

constexpr int most_rounds = 15;

double median(std::vector<double> values) {
  if (values.empty()) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : 0.5 * (values[half - 1] + values[half]);
}

/// Keeps every run's time and counters (times, rates and fractions of what was asked for), and hands the run to the raw
/// JSON file.
class collector : public benchmark::BenchmarkReporter {
 public:
  explicit collector(std::ostream& raw) {
    json_.SetOutputStream(&raw);
    json_.SetErrorStream(&raw);
  }

  bool ReportContext(const Context& context) override {
    if (!std::exchange(started_, true)) {
      json_.ReportContext(context);
    }
    return true;
  }
  void ReportRuns(const std::vector<Run>& runs) override {
    json_.ReportRuns(runs);
    for (const Run& run : runs) {
      // Wall time where threads work together; elsewhere the thread's own time, which others on the machine disturb
      // less.
      const bool threads = run.benchmark_name().find("/threads:2/") != std::string::npos;
      const double unit = 1e9 / benchmark::GetTimeUnitMultiplier(run.time_unit);
      const double wall_ns = run.GetAdjustedRealTime() * unit;
      const double own_ns = threads ? wall_ns : run.GetAdjustedCPUTime() * unit;
      auto& values = measured_[run.benchmark_name()];
      values["ns"].push_back(own_ns);
      values["wall_ns"].push_back(wall_ns);
      for (const auto& [name, counter] : run.counters) {
        if (name == "skipped_fraction") {
          values[name].push_back(counter.value);
          continue;
        }
        const bool time = name.rfind("ns_per_", 0) == 0;
        values[name].push_back(time ? counter.value * own_ns / wall_ns : counter.value * wall_ns / own_ns);
      }
    }
  }
  void finish() { json_.Finalize(); }

  /// Values of one counter ("ns": time of an iteration), one per round; empty when the bench does not exist here.
  [[nodiscard]] std::vector<double> values(const std::string& bench, const std::string& counter) const {
    const auto runs = measured_.find(bench);
    if (runs == measured_.end() || runs->second.count(counter) == 0) {
      return {};
    }
    return runs->second.at(counter);
  }
  [[nodiscard]] const std::map<std::string, std::map<std::string, std::vector<double>>>& all() const {
    return measured_;
  }

 private:
  benchmark::JSONReporter json_;
  bool started_ = false;
  std::map<std::string, std::map<std::string, std::vector<double>>> measured_;
};

// --- names of benches
// ---------------------------------------------------------------------------------------------------

std::string number(std::size_t value) {
  return std::to_string(value);
}

std::string coded(const std::string& family, std::size_t m, std::size_t bits, std::size_t n, std::size_t g,
                  std::size_t threads = 1) {
  return family + "/d:128/m:" + number(m) + "/bits:" + number(bits) + "/n:" + number(n) + "/g:" + number(g) +
         "/threads:" + number(threads) + "/real_time";
}
std::string exact_api(std::size_t n, std::size_t g, const std::string& family = "attend_f16") {
  return family + "/d:128/n:" + number(n) + "/g:" + number(g) + "/threads:1/real_time";
}
std::string exact_kernels(const std::string& family, std::size_t n, std::size_t g) {
  return family + "/d:128/n:" + number(n) + "/g:" + number(g) + "/real_time";
}
std::string scaled(const std::string& family, std::size_t n, std::size_t g) {
  return exact_api(n, g, family);
}
std::string program(const std::string& family, std::size_t g) {
  return family + "/d:128/m:32/bits:8/n:4096/g:" + number(g) + "/real_time";
}
std::string encoded(std::size_t rows) {
  return "encode/m:32/bits:8/rows:" + number(rows) + "/real_time";
}

const char* const lloyd_iteration = "lloyd_iteration/n:4096/m:32/K:256/real_time";
const char* const four_iterations = "train_iterations/n:4096/m:32/K:256/real_time";
const char* const scalar_look_up = "attend_scalar/n:4096/g:4";

constexpr std::size_t context = 32768;
constexpr std::size_t break_even_lengths[] = {64, 128, 256, 384, 512, 768, 1024, 2048};
constexpr std::size_t plot_lengths[] = {512, 2048, 8192, 32768, 131072};

/// What is compared stands side by side.
std::vector<std::string> benches_of_a_round() {
  std::vector<std::string> names;
  const auto add_exact = [&](std::size_t n, std::size_t g) {
    names.push_back(exact_api(n, g));
    names.push_back(exact_kernels("kernels_f16", n, g));
  };
  names.push_back("dram_read/real_time");
  add_exact(131072, 1);
  for (const std::size_t g : {1U, 4U, 8U}) {
    names.push_back(coded("decode_attention/tables", 32, 8, context, g));
    add_exact(context, g);
    if (g != 8) {
      names.push_back(coded("decode_attention/rotary", 32, 8, context, g));
    }
  }
  names.push_back(scaled("attend_int8", context, 4));
  names.push_back(scaled("attend_int4", context, 4));
  names.push_back(exact_api(context, 4, "attend_f32"));
  names.push_back(scalar_look_up);
  names.push_back(coded("decode_attention/tables", 64, 8, context, 4));
  names.push_back(coded("decode_attention/rotary", 64, 8, context, 4));
  names.push_back(coded("decode_attention/tables_cached", 32, 8, context, 1));
  names.push_back(coded("decode_attention/tables_cached", 32, 8, context, 4));
  names.push_back(coded("decode_attention/tables_cached", 64, 8, context, 4));
  names.push_back(coded("decode_attention/rotary_cached", 32, 8, context, 4));
  names.push_back(coded("decode_attention/sinks", 32, 8, context, 4));
  names.push_back(coded("decode_attention/needle", 32, 8, context, 4));
  names.push_back(coded("decode_attention/tables_avx2", 64, 4, context, 1));
  names.push_back(exact_kernels("kernels_f16_avx2", context, 1));
  names.push_back(coded("decode_attention/tables", 32, 8, 131072, 4, 1));
  names.push_back(coded("decode_attention/tables", 32, 8, 131072, 4, 2));
  for (const char* family : {"score_tables", "prepare_tables", "prepare_rotary"}) {
    names.push_back(program(family, 1));
  }
  names.push_back(program("score_tables", 4));
  names.push_back(program("score_rotary", 4));
  names.push_back(program("prepare_tables", 4));
  names.push_back(program("values", 1));
  names.push_back(program("values", 4));
  names.push_back(lloyd_iteration);
  names.push_back(four_iterations);
  names.push_back(encoded(1));
  names.push_back(encoded(64));
  return names;
}

/// Lengths, in every third round.
std::vector<std::string> benches_of_a_long_round() {
  std::vector<std::string> names;
  for (const std::size_t n : break_even_lengths) {
    names.push_back(coded("decode_attention/tables", 32, 8, n, 4));
    names.push_back(coded("decode_attention/rotary", 32, 8, n, 4));
    names.push_back(exact_api(n, 4));
    names.push_back(exact_kernels("kernels_f16", n, 4));
  }
  for (const std::size_t n : plot_lengths) {
    names.push_back(coded("decode_attention/tables", 32, 8, n, 4));
    names.push_back(coded("decode_attention/rotary", 32, 8, n, 4));
    names.push_back(exact_kernels("kernels_f16", n, 4));
    names.push_back(exact_api(n, 4));
    names.push_back(scaled("attend_int8", n, 4));
    names.push_back(scaled("attend_int4", n, 4));
  }
  const std::vector<std::string> every_round = benches_of_a_round();
  std::vector<std::string> rest;
  for (const std::string& name : names) {
    if (std::find(every_round.begin(), every_round.end(), name) == every_round.end() &&
        std::find(rest.begin(), rest.end(), name) == rest.end()) {
      rest.push_back(name);
    }
  }
  return rest;
}

// --- figures
// ------------------------------------------------------------------------------------------------------------

/// The figures of one run, from what was collected.
class figures {
 public:
  explicit figures(const collector& measured) : measured_(measured) {}

  /// The largest of one counter's values over the rounds.
  [[nodiscard]] double best(const std::string& bench, const std::string& counter) const {
    const std::vector<double> values = measured_.values(bench, counter);
    return values.empty() ? median(values) : *std::max_element(values.begin(), values.end());
  }
  [[nodiscard]] double value(const std::string& bench, const std::string& counter) const {
    return median(measured_.values(bench, counter));
  }
  [[nodiscard]] double per_token(const std::string& bench) const { return value(bench, "ns_per_token"); }

  /// The exact f16 baseline at its best, round by round: through the public API or the kernels alone.
  [[nodiscard]] std::vector<double> f16(std::size_t n, std::size_t g) const {
    return smaller(measured_.values(exact_api(n, g), "ns_per_token"),
                   measured_.values(exact_kernels("kernels_f16", n, g), "ns_per_token"));
  }
  [[nodiscard]] std::vector<double> ns(const std::string& bench) const {
    return measured_.values(bench, "ns_per_token");
  }

  /// Median over the rounds of slow / fast; not a number when one of them is missing.
  static double ratio(const std::vector<double>& slow, const std::vector<double>& fast) {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < std::min(slow.size(), fast.size()); ++i) {
      ratios.push_back(slow[i] / fast[i]);
    }
    return median(ratios);
  }

  /// The least measured length from which the coded path wins there and at every longer one; the next power of two when
  /// it wins at none.
  [[nodiscard]] double break_even(const std::string& family) const {
    double least = 2.0 * static_cast<double>(*std::rbegin(break_even_lengths));
    for (auto n = std::rbegin(break_even_lengths); n != std::rend(break_even_lengths); ++n) {
      if (!(ratio(f16(*n, 4), ns(coded(family, 32, 8, *n, 4))) > 1.0)) {
        break;
      }
      least = static_cast<double>(*n);
    }
    return least;
  }

 private:
  static std::vector<double> smaller(const std::vector<double>& a, const std::vector<double>& b) {
    if (a.empty() || b.empty()) {
      return a.empty() ? b : a;
    }
    std::vector<double> result;
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      result.push_back(std::min(a[i], b[i]));
    }
    return result;
  }

  const collector& measured_;
};

/// What a figure should reach on one core of Zen 4 with VBMI; by default nothing.
struct aim {
  enum class bound { none, at_least, at_most };
  bound kind = bound::none;
  double limit = 0.0;

  [[nodiscard]] bool exists() const { return kind != bound::none; }
  [[nodiscard]] bool reached_by(double value) const {
    return kind == bound::none || (kind == bound::at_least ? value >= limit : value <= limit);
  }
  [[nodiscard]] std::string text() const {
    char written[32] = "";
    if (exists()) {
      std::snprintf(written, sizeof written, "%s %g", kind == bound::at_least ? ">=" : "<=", limit);
    }
    return written;
  }
};
aim at_least(double limit) {
  return {aim::bound::at_least, limit};
}
aim at_most(double limit) {
  return {aim::bound::at_most, limit};
}

/// One line of the table.
struct figure {
  const char* key;
  const char* meaning;
  double value;
  aim wanted = {};
};

std::vector<figure> figures_of(const collector& measured) {
  const figures f(measured);
  const auto decode = [&](const char* family, std::size_t g, std::size_t m = 32) {
    return f.ns(coded(family, m, 8, context, g));
  };
  const auto tables = [&](std::size_t g, std::size_t m = 32) { return decode("decode_attention/tables", g, m); };
  const auto rotary = [&](std::size_t g) { return decode("decode_attention/rotary", g); };
  const auto against_f16 = [&](std::size_t g, const std::vector<double>& ns) { return f.ratio(f.f16(context, g), ns); };
  const auto skipped = [&](const char* family) {
    return f.value(coded(family, 32, 8, context, 4), "skipped_fraction");
  };
  const auto on_threads = [&](std::size_t threads) {
    return measured.values(coded("decode_attention/tables", 32, 8, 131072, 4, threads), "wall_ns");
  };
  const auto int8 = f.ns(scaled("attend_int8", context, 4));
  const auto int4 = f.ns(scaled("attend_int4", context, 4));
  const auto f16_on_avx2 = f.ns(exact_kernels("kernels_f16_avx2", context, 1));
  const auto coded_on_avx2 = f.ns(coded("decode_attention/tables_avx2", 64, 4, context, 1));
  const double lloyd_ns = f.value(lloyd_iteration, "ns");
  const auto encode_ns = [&](std::size_t rows) { return f.value(encoded(rows), "ns_per_vector"); };
  // The best round: what memory can do. Rounds before the system has joined its pages to large ones read half as much.
  // So does the f16 baseline, which may get the better pages.
  const std::vector<double> f16_ns = f.f16(131072, 1);
  const double f16_bytes = 512.0 / median(f16_ns) * 1e9;
  const double dram = (std::max)(f.best("dram_read/real_time", "bytes_per_second"),
                                 512.0 / *std::min_element(f16_ns.begin(), f16_ns.end()) * 1e9);
  return {
      {"decode_g1_vs_f16", "decode, 2 bits, 1 query head, against exact f16", against_f16(1, tables(1)), at_least(8)},
      {"decode_g4_vs_f16", "4 query heads", against_f16(4, tables(4)), at_least(4)},
      {"decode_g8_vs_f16", "8 query heads", against_f16(8, tables(8))},
      {"decode4bit_g4_vs_f16", "4 bits, 4 query heads", against_f16(4, tables(4, 64)), at_least(2.7)},
      {"decode_g4_vs_int8", "2 bits against an int8 cache", f.ratio(int8, tables(4)), at_least(2)},
      {"decode_g4_vs_int4", "2 bits against an int4 cache", f.ratio(int4, tables(4)), at_least(2)},
      {"decode4bit_g4_vs_int8", "4 bits against an int8 cache", f.ratio(int8, tables(4, 64))},
      {"decode4bit_g4_vs_int4", "4 bits against an int4 cache", f.ratio(int4, tables(4, 64))},
      {"skip_speedup_peaked_g4", "peak on the sinks, blocks skipped, against f16",
       against_f16(4, decode("decode_attention/sinks", 4)), at_least(6)},
      {"skipped_fraction", "value blocks left out there, of all", skipped("decode_attention/sinks")},
      {"skip_speedup_needle_g4", "peaks at random places, the same",
       against_f16(4, decode("decode_attention/needle", 4))},
      {"skipped_fraction_needle", "value blocks left out there, of all", skipped("decode_attention/needle")},
      {"ns_per_token_g1", "decode, 2 bits, ns per token", median(tables(1))},
      {"ns_per_token_g4", "4 query heads", median(tables(4)), at_most(9)},
      {"score_ns_per_token", "scores alone, 1 query head, in cache", f.per_token(program("score_tables", 1))},
      {"value_ns_per_token_g4", "values alone, 4 query heads, in cache", f.per_token(program("values", 4))},
      {"rope_ns_per_token_g1", "decode, keys before RoPE, ns per token", median(rotary(1))},
      {"rope_ns_per_token_g4", "4 query heads", median(rotary(4)), at_most(13)},
      {"rope_decode_g4_vs_f16", "keys before RoPE against exact f16", against_f16(4, rotary(4)), at_least(2.8)},
      {"rope_decode_g1_vs_f16", "the same, 1 query head", against_f16(1, rotary(1))},
      {"cached_ns_per_token_g1", "decode, 2 bits, one head that stays in cache",
       median(decode("decode_attention/tables_cached", 1))},
      {"cached_ns_per_token_g4", "4 query heads", median(decode("decode_attention/tables_cached", 4))},
      {"cached4bit_ns_per_token_g4", "4 bits, 4 query heads", median(decode("decode_attention/tables_cached", 4, 64))},
      {"cached_rope_ns_per_token_g4", "keys before RoPE, 4 query heads",
       median(decode("decode_attention/rotary_cached", 4))},
      {"break_even_tokens_g4", "tokens from which codes beat f16, tables built",
       f.break_even("decode_attention/tables"), at_most(512)},
      {"rope_break_even_tokens_g4", "the same, keys before RoPE", f.break_even("decode_attention/rotary")},
      {"train_iteration_ms", "one Lloyd iteration, n 4096, m 32, K 256", lloyd_ns * 1e-6, at_most(7)},
      {"train_ms_4_iterations", "train_codebook, 4 iterations, start given", f.value(four_iterations, "ns") * 1e-6},
      {"encode_ns_per_vector", "one token row coded", encode_ns(1), at_most(1200)},
      {"encode_rows_ns_per_vector", "64 token rows coded together, each", encode_ns(64)},
      {"threads2_speedup", "2 threads against 1, n 131072", f.ratio(on_threads(1), on_threads(2)), at_least(1.9)},
      {"avx2_decode_g1_vs_f16", "AVX2 programs, 4-bit codes, against f16 on AVX2", f.ratio(f16_on_avx2, coded_on_avx2),
       at_least(2)},
      {"f16_ns_per_token_g1", "the f16 baseline, ns per token", median(f.f16(context, 1))},
      {"f16_ns_per_token_g4", "4 query heads", median(f.f16(context, 4))},
      {"f16_dram_share", "f16 baseline, n 131072, share of DRAM bandwidth", f16_bytes / dram, at_least(0.8)},
      {"int8_ns_per_token_g4", "the int8 baseline, ns per token", median(int8), at_most(37)},
      {"int4_ns_per_token_g4", "the int4 baseline, ns per token", median(int4), at_most(37)},
      {"f32_ns_per_token_g4", "exact f32, ns per token", f.per_token(exact_api(context, 4, "attend_f32"))},
      {"scalar_ns_per_token_g4", "a plain look-up of codes, n 4096, ns per token", f.per_token(scalar_look_up)},
      {"dram_gb_per_s", "DRAM read by one thread, best round of anything, GB/s", dram * 1e-9},
      {"clock_ghz", "cycles per ns", cycles_per_ns()},
  };
}

// --- output
// -------------------------------------------------------------------------------------------------------------

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) {
      return line.substr(line.find(':') + 2);
    }
  }
  return "unknown";
}

std::string shortly(double value) {
  char text[32];
  std::snprintf(text, sizeof text, value >= 100 ? "%.0f" : value >= 10 ? "%.1f" : "%.2f", value);
  return text;
}

void write_table(std::ostream& out, const std::vector<figure>& all, bool markdown) {
  if (markdown) {
    out << "| key | what | measured | aim | reached |\n|---|---|---|---|---|\n";
  }
  for (const figure& one : all) {
    const std::string verdict = !one.wanted.exists() ? "" : one.wanted.reached_by(one.value) ? "yes" : "no";
    if (markdown) {
      out << "| `" << one.key << "` | " << one.meaning << " | " << shortly(one.value) << " | " << one.wanted.text()
          << " | " << verdict << " |\n";
    } else {
      char line[160];
      std::snprintf(line, sizeof line, "%-27s %-48s %9s  %-8s %s\n", one.key, one.meaning, shortly(one.value).c_str(),
                    one.wanted.text().c_str(), verdict.c_str());
      out << line;
    }
  }
}

void write_csv(std::ostream& out, const collector& measured) {
  static constexpr const char* counters[] = {"ns",         "ns_per_token", "ns_per_vector",   "bytes_per_second",
                                             "dram_share", "port_share",   "skipped_fraction"};
  out << "bench,rounds";
  for (const char* counter : counters) {
    out << ',' << counter;
  }
  out << '\n';
  for (const auto& [name, values] : measured.all()) {
    out << name << ',' << values.at("ns").size();
    for (const char* counter : counters) {
      out << ',';
      if (values.count(counter) != 0) {
        out << median(values.at(counter));
      }
    }
    out << '\n';
  }
}

void write_lengths(std::ostream& out, const collector& measured) {
  const figures f(measured);
  out << "# ns per token of one KV head, 4 query heads, d = 128; 2 bits: m = 32, K = 256\n"
         "# tokens codes codes_before_rope exact_f16 int8 int4\n";
  for (const std::size_t n : plot_lengths) {
    out << n << ' ' << f.per_token(coded("decode_attention/tables", 32, 8, n, 4)) << ' '
        << f.per_token(coded("decode_attention/rotary", 32, 8, n, 4)) << ' ' << median(f.f16(n, 4)) << ' '
        << f.per_token(scaled("attend_int8", n, 4)) << ' ' << f.per_token(scaled("attend_int4", n, 4)) << '\n';
  }
}

/// Runs one bench by its exact name.
void run_one(collector& into, const std::string& name) {
  benchmark::RunSpecifiedBenchmarks(&into, "^" + name + "$");
}

int run_rounds(collector& into, double most_minutes) {
  const bool quick = settings::current().quick;
  const std::vector<std::string> every_round = benches_of_a_round();
  const std::vector<std::string> lengths = benches_of_a_long_round();
  const auto start = std::chrono::steady_clock::now();
  const int most = quick ? 1 : most_rounds;
  int round = 0;
  for (; round < most; ++round) {
    const double minutes = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 60.0;
    if (round >= 3 && minutes * (round + 1) / round > most_minutes) {
      break;
    }
    std::vector<std::string> names = every_round;
    if (round % 3 == 0) {
      names.insert(names.end(), lengths.begin(), lengths.end());
    }
    for (std::size_t i = 0; i < names.size(); ++i) {
      std::fprintf(stderr, "\r\033[Kbench: round %d of at most %d, %3zu %%, %.1f min  %.60s", round + 1, most,
                   100 * i / names.size(), minutes, names[i].c_str());
      run_one(into, names[i]);
    }
  }
  std::fprintf(stderr, "\r\033[K");
  return round;
}

}  // namespace

int write_summary(const std::string& folder, double minutes) {
  std::filesystem::create_directories(folder);
  std::ofstream raw(folder + "/raw.json");
  collector measured(raw);
  const int rounds = run_rounds(measured, minutes);
  measured.finish();

  const std::vector<figure> all = figures_of(measured);
  nlohmann::ordered_json summary;
  bool complete = true;
  for (const figure& one : all) {
    if (std::isfinite(one.value)) {
      summary[one.key] = one.value;
    } else {
      std::fprintf(stderr, "bench: %s cannot be measured here\n", one.key);
      complete = false;
    }
  }
  summary["arch"] = pqattn::host_bank<>().arch_name();
  summary["cpu"] = cpu_name();
  summary["rounds"] = rounds;
  std::ofstream(folder + "/summary.json") << summary.dump(2) << '\n';
  std::ofstream csv(folder + "/medians.csv");
  write_csv(csv, measured);
  std::ofstream lengths(folder + "/by_length.dat");
  write_lengths(lengths, measured);
  std::ofstream table(folder + "/table.md");
  write_table(table, all, true);
  std::cout << cpu_name() << ", " << pqattn::host_bank<>().arch_name() << ", medians of " << rounds << " rounds\n";
  write_table(std::cout, all, false);
  return complete ? 0 : 1;
}

}  // namespace bench
