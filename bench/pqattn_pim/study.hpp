// SPDX-License-Identifier: MIT
// `pqattn-pim study`: what a decode step costs in several systems, under assumptions that are inputs. Emulated and
// computed figures only, no measurements; nothing is tuned to a claim.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include <pqattn/bank/pim/core_walker.hpp>

#include "study_costs.hpp"
#include "study_table.hpp"

namespace pqattn_pim {

/// The studies on one device.
class pim_study {
 public:
  pim_study(const pim::device& d, std::string folder) : device_(d), folder_(std::move(folder)) {}

  /// False when a file could not be written.
  [[nodiscard]] bool run() {
    lookups();
    phases();
    claim();
    grouping();
    shapes();
    placement();
    rotation();
    systems();
    links();
    against_gpu();
    capacity();
    training();
    devices();
    cores();
    return written_;
  }

 private:
  static constexpr std::int64_t context = 32768;

  pim::device device_;
  std::string folder_;
  served_model model_;
  gpu_figures gpu_;
  bool written_ = true;

  [[nodiscard]] pim::device with(std::int32_t g) const {
    pim::device d = device_;
    d.pim.lookups_per_slot = g;
    return d;
  }
  [[nodiscard]] std::int64_t group() const { return model_.query_heads / model_.kv_heads; }
  void done(const study_table& table) { written_ = table.write(folder_) && written_; }

  [[nodiscard]] std::int64_t rounds(std::int64_t batch) const {
    return pim::ceil_div(batch * model_.kv_heads, device_.organisation.command_channels());
  }
  /// All layers, all heads of a batch: heads share channels in turn.
  [[nodiscard]] double step_ms(const head_cost& c, std::int64_t batch) const {
    return static_cast<double>(rounds(batch) * model_.layers) * c.ns * 1e-6;
  }
  [[nodiscard]] double step_mj(const head_cost& c, std::int64_t batch) const {
    return static_cast<double>(batch * model_.kv_heads * model_.layers) * c.pj * 1e-9;
  }
  [[nodiscard]] double weights_ms() const { return model_.weight_bytes / gpu_.bytes_per_second * 1e3; }

  // Settings

  /// The model's query heads of one KV head together, their table entries side by side.
  [[nodiscard]] pq_setting shared_setting() const {
    pq_setting s;
    s.query_rows = static_cast<std::size_t>(group());
    s.options.share_lookups = true;
    return s;
  }
  static pq_setting histogram(pq_setting s) {
    s.options.values = pqattn::value_method::histogram;
    s.options.update_slots = 1;
    return s;
  }
  [[nodiscard]] pq_setting all_added(pq_setting s) const {
    s.options.banks_added = device_.organisation.banks_per_command_channel();
    return s;
  }
  /// With PQ of one head after the other; of two and more heads a channel, pipelined.
  [[nodiscard]] head_cost pq_cost(std::int32_t g, std::int64_t tokens, const pq_setting& s, std::int64_t batch) const {
    return rounds(batch) >= 2 ? pipelined_head(with(g), tokens, s) : pq_head(with(g), tokens, s);
  }

  // What decides

  void lookups() {
    study_table table("lookups",
                      "Look-ups per slot (g): speed against dense attention in PIM, one head, 32Ki tokens, "
                      "m=32, K=512, one query row unless it says GQA; above 1 product quantization is "
                      "faster",
                      {"g", "reconstruct", "histogram, 2 slots", "histogram, 1 slot", "histogram, all banks added",
                       "GQA 4", "GQA 4, shared look-ups", "GQA 4, shared, all banks added", "tokens striped",
                       "keys before RoPE", "against no power limit"});
    pim::device fast = device_;
    fast.timing.mac = std::min(device_.timing.mac, device_.timing.ccd_l);
    const double dense = dense_head(device_, context, 1).ns;
    const double dense4 = dense_head(device_, context, 4).ns;
    const double dense_fast = dense_head(fast, context, 1).ns;
    for (const std::int32_t g : {1, 2, 4, 8, 16}) {
      const pim::device d = with(g);
      const pq_setting plain;
      pq_setting two = plain;
      two.options.values = pqattn::value_method::histogram;
      pq_setting grouped = plain;
      grouped.query_rows = 4;
      pq_setting turned = plain;
      turned.turned = true;
      const auto speed = [&](double base, const pq_setting& s) { return number(base / pq_head(d, context, s).ns); };
      table.add({std::to_string(g), speed(dense, plain), speed(dense, two), speed(dense, histogram(plain)),
                 speed(dense, all_added(histogram(plain))), speed(dense4, grouped), speed(dense4, shared_setting()),
                 speed(dense4, all_added(shared_setting())),
                 number(dense / pq_head<pim::token_striped>(d, context, plain).ns), speed(dense, turned),
                 speed(dense_fast, plain)});
    }
    done(table);
  }

  void phases() {
    study_table table("phases", "Where the cycles of a head go, 32Ki tokens, reconstruct",
                      {"g", "table build", "score", "softmax", "value", "merge", "all", "activations per bank"});
    for (const std::int32_t g : {1, 4, 16}) {
      const head_cost c = pq_head(with(g), context, {});
      const auto at = [&](pim::phase p) { return std::to_string(c.phase_cycles[static_cast<std::size_t>(p)]); };
      table.add({std::to_string(g), at(pim::phase::table_build), at(pim::phase::score), at(pim::phase::softmax),
                 at(pim::phase::value), at(pim::phase::merge), std::to_string(c.cycles),
                 std::to_string(c.act_count / device_.organisation.banks_per_command_channel())});
    }
    done(table);
  }

  /// From what the paper states, one assumption at a time, towards its 3.4.
  void claim() {
    study_table table("claim",
                      "The published 3.4 times AttAcc, one assumption after the other: attention alone, one "
                      "head, 32Ki tokens, against AttAcc with its power limit (one MAC column in 6 cycles)",
                      {"assumption", "g=1", "g=2", "g=4", "g=8", "g=16"});
    const pq_setting plain;
    pq_setting shared = shared_setting();
    pq_setting keys_only = plain;
    keys_only.code_values = false;
    const auto sized = [](pq_setting s, std::uint32_t m, std::uint32_t k) {
      s.subvectors = m;
      s.centroids = k;
      return s;
    };
    const auto row = [&](const char* name, const pq_setting& s, bool piped, std::int32_t lut_cycles = 0,
                         bool unlimited_base = false) {
      std::vector<std::string> cells{name};
      pim::device base = device_;
      base.timing.mac = unlimited_base ? std::min(base.timing.mac, base.timing.ccd_l) : base.timing.mac;
      const double dense = dense_head(base, context, static_cast<std::int64_t>(s.query_rows)).ns;
      for (const std::int32_t g : {1, 2, 4, 8, 16}) {
        pim::device d = with(g);
        d.timing.lut = lut_cycles > 0 ? lut_cycles : d.timing.lut;
        cells.push_back(number(dense / (piped ? pipelined_head(d, context, s) : pq_head(d, context, s)).ns));
      }
      table.add(cells);
    };
    row("as stated: m=32, K=512, K and V coded, one query row", plain, false);
    row("heads of a channel pipelined, as AttAcc's are", plain, true);
    row("and V by histogram, a slot per update", histogram(plain), true);
    row("and all banks' sums added on the way", all_added(histogram(plain)), true);
    row("and look-up slots at tCCD_L, exempt from the power limit", all_added(histogram(plain)), true,
        device_.timing.ccd_l);
    row("both without power limit", all_added(histogram(plain)), true, device_.timing.ccd_l, true);
    row("keys coded only, values dense, pipelined", keys_only, true);
    row("m=16, K=512 (1.1 bits), histogram, all added, pipelined", all_added(histogram(sized(plain, 16, 512))), true);
    row("GQA 4, look-ups shared, one head after the other", shared, false);
    row("GQA 4, look-ups shared, pipelined", shared, true);
    row("GQA 4, shared, pipelined, all banks' sums added", all_added(shared), true);
    row("GQA 4, shared, pipelined, m=16", sized(shared, 16, 512), true);
    done(table);
  }

  void grouping() {
    study_table table("grouping",
                      "Query heads per KV head that share look-ups: speed against dense, 32Ki tokens, "
                      "m=32, K=512, heads pipelined; dense reads K and V once per query head (AttAcc), or "
                      "once for all of them (a unit with as many accumulators)",
                      {"query heads", "g=1", "g=4", "g=16", "g=4, all banks added", "dense once: g=1", "g=4", "g=16"});
    const double once = dense_head(device_, context, 1).ns;
    for (const std::size_t heads : {1U, 2U, 4U, 8U, 16U}) {
      pq_setting s = shared_setting();
      s.query_rows = heads;
      const double dense = dense_head(device_, context, static_cast<std::int64_t>(heads)).ns;
      double ns[3] = {};
      std::transform(std::begin(widths), std::end(widths), std::begin(ns),
                     [&](std::int32_t g) { return pipelined_head(with(g), context, s).ns; });
      table.add({std::to_string(heads), number(dense / ns[0]), number(dense / ns[1]), number(dense / ns[2]),
                 number(dense / pipelined_head(with(4), context, all_added(s)).ns), number(once / ns[0]),
                 number(once / ns[1]), number(once / ns[2])});
    }
    done(table);
  }

  static constexpr std::int32_t widths[] = {1, 4, 16};

  void shapes() {
    study_table table(
        "shapes",
        "Shape of the quantizer: speed against dense attention, 32Ki tokens, reconstruct / "
        "histogram of 1 slot; last: 4 query heads share look-ups, all banks' sums added on "
        "the way",
        {"m", "K", "bits per element", "g=1", "g=4", "g=16", "g=1, shared, added", "g=16, shared, added"});
    const double dense = dense_head(device_, context, 1).ns;
    const double dense4 = dense_head(device_, context, 4).ns;
    for (const std::uint32_t m : {8U, 16U, 32U, 64U}) {
      for (const std::uint32_t k : {64U, 256U, 512U, 1024U}) {
        std::vector<std::string> row{std::to_string(m), std::to_string(k),
                                     number(m * static_cast<double>(pqattn::geometry{128, m, k}.code_bits()) / 128.0)};
        pq_setting s;
        s.subvectors = m;
        s.centroids = k;
        for (const std::int32_t g : widths) {
          row.push_back(number(dense / pq_head(with(g), context, s).ns) + " / " +
                        number(dense / pq_head(with(g), context, histogram(s)).ns));
        }
        s.query_rows = 4;
        s.options.share_lookups = true;
        for (const std::int32_t g : {1, 16}) {
          row.push_back(number(dense4 / pq_head(with(g), context, all_added(s)).ns));
        }
        table.add(row, k == 512 || m == 32);
      }
    }
    done(table);
  }

  void placement() {
    study_table table(
        "placement", "Placement, one head, 32Ki tokens, m=32, one query row, g=4",
        {"placement", "K", "microseconds", "activations per bank", "MB over the buffer die", "microjoules"});
    const auto add = [&](const std::string& name, const head_cost& c, std::uint32_t k, std::int64_t channels) {
      table.add({name, std::to_string(k), number(c.ns * 1e-3, 1),
                 std::to_string(c.act_count / device_.organisation.banks_per_command_channel() / channels),
                 number(static_cast<double>(c.tsv_bytes) * 1e-6, 2), number(c.pj * 1e-6, 1)});
    };
    const pim::device d = with(4);
    pq_setting s;
    add("one sub-vector to one bank", pq_head(d, context, s), 512, 1);
    add("tokens striped over banks", pq_head<pim::token_striped>(d, context, s), 512, 1);
    pq_setting commands = s;
    commands.options.addressing = pim::lookup_addressing::by_command;
    add("look-ups by command, no indirection in the row", pq_head(d, context, commands), 512, 1);
    s.centroids = 1024;
    add("one sub-vector to one bank", pq_head(d, context, s), 1024, 1);
    s.options.window_tokens = 4096;
    add("the same, page-aware windows of 4096 tokens", pq_head(d, context, s), 1024, 1);
    s.centroids = 4096;
    add("the same", pq_head(d, context, s), 4096, 1);
    s.options.window_tokens = 0;
    add("without windows", pq_head(d, context, s), 4096, 1);
    pq_setting stack;
    stack.options.channels_per_home = std::min(16, device_.organisation.command_channels());
    add("a head over " + std::to_string(stack.options.channels_per_home) + " channels (a stack)",
        pq_head(d, context, stack), 512, stack.options.channels_per_home);
    done(table);
  }

  void rotation() {
    study_table table("rotation",
                      "Keys coded before RoPE against keys coded after, K=256: microseconds of a score "
                      "pass (tables or queries, look-ups, rotation), one head, 32Ki tokens, one query row / 4 "
                      "query rows of shared look-ups, all banks' sums added on the way",
                      {"keys", "m", "stages", "code bits per element", "g=1", "g=4", "g=16", "million MACs"});
    const auto add = [&](const char* name, std::uint32_t m, std::uint32_t stages, bool turned) {
      pq_setting s = all_added({});
      s.subvectors = m;
      s.centroids = 256;
      s.stages = stages;
      s.turned = turned;
      pq_setting four = s;
      four.query_rows = 4;
      four.options.share_lookups = true;
      std::vector<std::string> row{name, std::to_string(m), std::to_string(stages), number(m * stages * 8.0 / 128.0)};
      const auto scoring = [&](std::int32_t g, const pq_setting& setting) {
        const head_cost c = pq_head(with(g), context, setting);
        const auto at = [&](pim::phase p) { return c.phase_cycles[static_cast<std::size_t>(p)]; };
        return number(
            static_cast<double>(at(pim::phase::broadcast) + at(pim::phase::table_build) + at(pim::phase::score)) *
                device_.timing.tck_ps * 1e-6,
            1);
      };
      for (const std::int32_t g : widths) {
        row.push_back(scoring(g, s) + " / " + scoring(g, four));
      }
      row.push_back(number(static_cast<double>(pq_head(with(1), context, s).macs) * 1e-6));
      table.add(row);
    };
    add("before RoPE", 16, 1, true);
    add("before RoPE", 32, 1, true);
    add("after RoPE", 32, 1, false);
    add("after RoPE", 64, 1, false);
    add("after RoPE", 128, 1, false);
    add("after RoPE", 128, 2, false);
    done(table);
  }

  // Systems

  void systems() {
    study_table table("systems",
                      "A decode step, attention of all layers: emulated milliseconds (GQA: 4 query heads share K and "
                      "V and look-ups; heads pipelined where a channel has two; every system reads the weights for " +
                          number(weights_ms(), 1) + " ms more)",
                      {"context", "batch", "KV GiB", "dense PIM", "without power limit", "8.5 bits", "4.5 bits",
                       "3 bits", "PQ g=1", "PQ g=4", "PQ g=16", "PQ g=4, all added", "GPU resident",
                       "GPU, 2.25-bit codes", "offload 32 GB/s", "64 GB/s", "256 GB/s"});
    const pq_setting s = shared_setting();
    pim::device fast = device_;
    fast.timing.mac = std::min(device_.timing.mac, device_.timing.ccd_l);
    for (std::int64_t n = 4096; n <= 1 << 20; n *= 2) {
      const auto dense = [&](const pim::device& d, double bits) { return dense_head(d, n, group(), bits); };
      const head_cost wide = dense(device_, 16);
      const head_cost unlimited = dense(fast, 16);
      const head_cost low[] = {dense(device_, 8.5), dense(device_, 4.5), dense(device_, 3.0)};
      for (const std::int64_t batch : {1, 4, 16, 32, 64}) {
        const double bytes = model_.kv_bytes(static_cast<double>(n * batch));
        const double resident = bytes / gpu_.bytes_per_second * 1e3;
        const auto offload = [&](double gbs) { return number(bytes / gbs * 1e-6 + resident, 1); };
        const auto pq = [&](std::int32_t g, const pq_setting& setting) {
          return number(step_ms(pq_cost(g, n, setting, batch), batch));
        };
        table.add({tokens_text(n), std::to_string(batch), number(bytes / (1 << 30), 1), number(step_ms(wide, batch)),
                   number(step_ms(unlimited, batch)), number(step_ms(low[0], batch)), number(step_ms(low[1], batch)),
                   number(step_ms(low[2], batch)), pq(1, s), pq(4, s), pq(16, s), pq(4, all_added(s)), number(resident),
                   number(resident * 2.25 / 16), offload(32), offload(64), offload(256)},
                  listed(n, batch));
      }
    }
    done(table);
  }
  [[nodiscard]] static bool listed(std::int64_t n, std::int64_t batch) {
    return (n == 4096 || n == 32768 || n == 131072 || n == 1 << 20) && batch != 4 && batch != 32;
  }

  void links() {
    study_table table("links",
                      "Share of a whole decode step that moving the offloaded cache takes, percent (weights "
                      "included, nothing overlapped); with PQ in PIM it is 0, results aside",
                      {"context", "batch", "32 GB/s", "64 GB/s", "128 GB/s", "256 GB/s"});
    for (std::int64_t n = 4096; n <= 1 << 20; n *= 2) {
      for (const std::int64_t batch : {1, 4, 16, 32, 64}) {
        const double bytes = model_.kv_bytes(static_cast<double>(n * batch));
        const auto share = [&](double gbs) {
          const double link = bytes / gbs * 1e-6;
          return number(100.0 * link / (link + bytes / gpu_.bytes_per_second * 1e3 + weights_ms()), 1);
        };
        table.add({tokens_text(n), std::to_string(batch), share(32), share(64), share(128), share(256)},
                  listed(n, batch));
      }
    }
    done(table);
  }

  void against_gpu() {
    study_table table("against_gpu",
                      "PQ in PIM (GQA 4, shared look-ups) against a GPU and against dense PIM: latency "
                      "and energy of a step, PQ over the other. Energy with the link includes the "
                      "host's memory",
                      {"context", "batch", "g", "attention: latency, GPU resident", "energy",
                       "step with weights: latency, GPU resident", "energy", "latency, offload 256 GB/s", "energy",
                       "latency, offload 64 GB/s", "dense PIM / PQ, step with weights"});
    const pq_setting s = shared_setting();
    for (const std::int64_t n : {4096, 32768, 131072, 1 << 20}) {
      const head_cost dense = dense_head(device_, n, group());
      for (const std::int64_t batch : {1, 16, 64}) {
        for (const std::int32_t g : {1, 4}) {
          const head_cost c = pq_cost(g, n, s, batch);
          const double bytes = model_.kv_bytes(static_cast<double>(n * batch));
          const double resident = bytes / gpu_.bytes_per_second * 1e3;
          const double weights_mj = gpu_.read_mj(model_.weight_bytes);
          const double ms = step_ms(c, batch);
          const double mj = step_mj(c, batch);
          const auto offload = [&](double gbs) { return bytes / gbs * 1e-6 + resident + weights_ms(); };
          table.add({tokens_text(n), std::to_string(batch), std::to_string(g), number(ms / resident),
                     number(mj / gpu_.read_mj(bytes)), number((ms + weights_ms()) / (resident + weights_ms())),
                     number((mj + weights_mj) / (gpu_.read_mj(bytes) + weights_mj)),
                     number((ms + weights_ms()) / offload(256), 3),
                     number((mj + weights_mj) / (gpu_.read_mj(bytes) + gpu_.fetch_mj(bytes) + weights_mj), 3),
                     number((ms + weights_ms()) / offload(64), 3),
                     number((step_ms(dense, batch) + weights_ms()) / (ms + weights_ms()))});
        }
      }
    }
    done(table);
  }

  void capacity() {
    study_table table("capacity",
                      "Largest context that fits, tokens (PQ: emulated rows, with copies of the codebooks "
                      "in every stripe)",
                      {"batch", "GPU, 80 GiB less weights", "dense PIM", "4.5 bits", "3 bits", "PQ m=32 K=512",
                       "PQ m=32 K=256", "PQ m=16 K=512"});
    const auto memory = static_cast<double>(device_.capacity_bytes);
    for (const std::int64_t batch : {1, 4, 16, 64}) {
      const auto sequences = static_cast<double>(batch);
      const auto dense = [&](double bytes, double bits) {
        return number(bytes / model_.kv_bytes(1) / sequences * 16 / bits, 0);
      };
      std::vector<std::string> row{std::to_string(batch), dense(gpu_.memory_bytes - model_.weight_bytes, 16),
                                   dense(memory, 16), dense(memory, 4.5), dense(memory, 3)};
      for (const auto& [m, k] : {std::pair{32u, 512u}, {32u, 256u}, {16u, 512u}}) {
        pim::bank_programs<> programs;
        if (!programs.configure(device_, {})) {
          row.push_back("-");
          continue;
        }
        const pqattn::geometry shape{128, m, k, 1, nullptr};
        const auto sides = static_cast<double>(2 * model_.layers * model_.kv_heads);
        const double books = sides * static_cast<double>(programs.codebook_bytes(shape, pqattn::codebook_storage::f16));
        const double token = sides * static_cast<double>(programs.code_block_bytes(shape)) / 64.0;
        row.push_back(number(std::max(0.0, (memory / sequences - books) / token), 0));
      }
      table.add(row);
    }
    done(table);
  }

  // Prefill

  void training() {
    study_table table("training",
                      "Training of one layer (4 Lloyd iterations, K=512, m=32) and encoding in PIM, beside the GPU's "
                      "prefill of one layer, one sequence, emulated milliseconds. Work K*N against N^2: hidden where "
                      "the sum is not above the prefill",
                      {"prompt", "train on all", "train on 8Ki", "encode", "train, argmin in banks, all channels",
                       "train on 8Ki, the same", "encode, the same", "GPU prefill of the layer", "of it attention",
                       "hidden", "hidden on 8Ki", "hidden, argmin in banks, all channels", "the same on 8Ki"});
    pim::bank_options better;
    better.argmin_in_banks = true;
    better.channels_per_home = std::max<std::int32_t>(
        1, device_.organisation.command_channels() / static_cast<std::int32_t>(2 * model_.kv_heads));
    const auto sides = static_cast<double>(pim::ceil_div(2 * model_.kv_heads, device_.organisation.command_channels()));
    for (std::int64_t n = 1024; n <= 1 << 20; n *= 2) {
      const std::int64_t sample = std::min<std::int64_t>(n, 8192);
      const double all = train_ms(n, {}) * sides;
      const double some = train_ms(sample, {}) * sides;
      const double coding = encode_ms(n, {}) * sides;
      const double best_training = train_ms(n, better) * sides;
      const double best_sample = train_ms(sample, better) * sides;
      const double best_coding = encode_ms(n, better) * sides;
      const double attention = 2.0 * static_cast<double>(n) * static_cast<double>(n) * 128 * 32 / gpu_.flops * 1e3;
      const double dense =
          static_cast<double>(n) * model_.weight_bytes / static_cast<double>(model_.layers) / gpu_.flops * 1e3;
      const double gpu = attention + dense;
      const auto hidden = [&](double ms) { return ms <= gpu ? "yes" : "no"; };
      table.add({tokens_text(n), number(all), number(some), number(coding), number(best_training), number(best_sample),
                 number(best_coding), number(gpu), number(attention), hidden(all + coding), hidden(some + coding),
                 hidden(best_training + best_coding), hidden(best_sample + best_coding)});
    }
    done(table);
  }
  /// One side of one head: 32 sub-vectors, 4 iterations.
  [[nodiscard]] double train_ms(std::int64_t points, const pim::bank_options& options) const {
    pim::bank_programs<> programs;
    pim::device_address at;
    // Beyond this many points the pattern repeats.
    const auto count = static_cast<std::size_t>(std::min<std::int64_t>(points, 1 << 17));
    if (!programs.configure(device_, options) || !programs.reserve(programs.point_bytes(count, 4), at) ||
        !programs.assign(at, count, 4, 512) || !programs.centroid_sums(at, count, 4, 512)) {
      return 0.0;
    }
    return 4 * 32 * programs.walked().nanoseconds(programs.walked().finish_cycle()) * 1e-6 *
           static_cast<double>(points) / static_cast<double>(count);
  }
  [[nodiscard]] double encode_ms(std::int64_t n, const pim::bank_options& options) const {
    pim::bank_programs<> programs;
    const pqattn::geometry shape{128, 32, 512, 1, nullptr};
    pqattn::resident_codebook<pim::device_address> book{shape, pqattn::codebook_storage::f16, {}};
    pqattn::code_span<pim::device_address> codes{shape, {}, nullptr};
    const auto count = static_cast<std::size_t>(std::min<std::int64_t>(n, 4096));
    if (!programs.configure(device_, options) ||
        !programs.reserve(programs.codebook_bytes(shape, book.storage), book.memory) ||
        !programs.reserve(pqattn::blocks_for(count) * programs.code_block_bytes(shape), codes.memory) ||
        !programs.encode(book, codes, {0, count})) {
      return 0.0;
    }
    // Beyond 4096 rows the pattern repeats.
    return programs.walked().nanoseconds(programs.walked().finish_cycle()) * 1e-6 * static_cast<double>(n) /
           static_cast<double>(count);
  }

  // Other devices

  void devices() {
    study_table table("devices",
                      "The same step on every preset with PIM units: one head, 32Ki tokens, m=32, K=512, "
                      "microseconds and microjoules of one channel (presets have g=1); lpddr5_6400: no "
                      "public PIM data, units assumed",
                      {"device", "dense us", "PQ us", "PQ us, g=16", "PQ before RoPE us", "dense uJ", "PQ uJ",
                       "PQ uJ, g=16", "channels"});
    for (const pim::named_preset& preset : pim::presets) {
      pim::device d = preset.make();
      if (!d.pim.present) {
        continue;
      }
      pq_setting turned;
      turned.turned = true;
      const head_cost dense = dense_head(d, context, 1);
      const head_cost pq = pq_head(d, context, {});
      const head_cost before = pq_head(d, context, turned);
      d.pim.lookups_per_slot = 16;
      const head_cost wide = pq_head(d, context, {});
      table.add({preset.name, number(dense.ns * 1e-3, 1), number(pq.ns * 1e-3, 1), number(wide.ns * 1e-3, 1),
                 number(before.ns * 1e-3, 1), number(dense.pj * 1e-6, 1), number(pq.pj * 1e-6, 1),
                 number(wide.pj * 1e-6, 1), std::to_string(d.organisation.command_channels())});
    }
    done(table);
  }

  /// Instructions of a DPU's program per elementary step: counted from what a compiled inner loop must do (load,
  /// address, add, store, a share of the loop); an 8-bit multiply is one instruction there, floating point is software.
  struct core_costs {
    std::int64_t lookup = 4, bin_update = 5, multiply_add_8 = 4, multiply_add_32 = 10, exponential = 60;
  };

  void cores() {
    study_table table("cores",
                      "The same step on upmem_ddr4, a core with DMA beside each bank: one head, 32Ki tokens "
                      "over 64 cores, 16 threads each, one query row, microseconds (instruction counts are "
                      "assumptions)",
                      {"program", "host link us", "cores us", "thousand instructions per core", "KB of DMA per core",
                       "engine busy %"});
    const pim::device d = pim::upmem_ddr4();
    constexpr std::int64_t cores_of_head = 64;
    constexpr std::int64_t tokens = context / cores_of_head;
    constexpr std::int64_t chunk = 16;  // tokens
    const core_costs k;
    const auto add = [&](const char* name, std::int64_t link_bytes, std::initializer_list<pim::core_work> parts) {
      pim::core_walker core;
      if (!core.configure(d, 16)) {
        return;
      }
      for (const pim::core_work& part : parts) {
        core.run(part);
      }
      const pim::core_counters& c = core.counted();
      const double link = static_cast<double>(link_bytes) / static_cast<double>(d.link.bytes_per_second) * 1e6;
      table.add({name, number(link, 1), number(core.nanoseconds() * 1e-3, 1),
                 number(static_cast<double>(c.instructions) * 1e-3, 1),
                 number(static_cast<double>(c.dma_bytes) * 1e-3, 1),
                 number(100.0 * static_cast<double>(c.dma_cycles) / static_cast<double>(c.cycles), 1)});
    };
    const pim::core_work softmax{tokens / chunk, 0, chunk * k.exponential, 0};
    add("dense, 8-bit", cores_of_head * 2 * 128 * 4,
        {{tokens / chunk, chunk * 128, chunk * 128 * k.multiply_add_8, 0},
         softmax,
         {tokens / chunk, chunk * 128, chunk * 128 * k.multiply_add_8, 0}});
    const std::int64_t code_bytes = chunk * 32 * 9 / 8;
    add("PQ m=32 K=512, tables from the host, histogram", cores_of_head * (32 * 512 * 2 + 128 * 4),
        {{16, 2048, 0, 0},  // the tables into scratch memory
         {tokens / chunk, code_bytes, chunk * 32 * k.lookup, 0},
         softmax,
         {tokens / chunk, code_bytes, chunk * 32 * k.bin_update, 0},
         {32, 4096, 512 * 4 * k.multiply_add_32, 0}});
    add("PQ m=32 K=512, tables made by the cores, reconstruct", cores_of_head * 2 * 128 * 4,
        {{32, 4096, 512 * 4 * k.multiply_add_32, 1024},
         {16, 2048, 0, 0},
         {tokens / chunk, code_bytes, chunk * 32 * k.lookup, 0},
         softmax,
         // A centroid of each sub-vector is four numbers, fetched from the bank one by one.
         {tokens * 32, 8, k.lookup + 4 * k.multiply_add_32, 0}});
    done(table);
  }
};

}  // namespace pqattn_pim
