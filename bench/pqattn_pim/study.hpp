// SPDX-License-Identifier: MIT
// `pqattn-pim study`: what a decode step costs in several systems, under assumptions that are inputs. Emulated and
// computed figures only, no measurements; nothing is tuned to a claim.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <pqattn/bank/pim/presets.hpp>
#include <pqattn/bank/pim/programs.hpp>

namespace pqattn_pim {

namespace pim = pqattn::pim;

/// The model served: Mistral-7B's shape.
struct served_model {
  std::int64_t layers = 32;
  std::int64_t kv_heads = 8;
  std::int64_t query_heads = 32;
  std::int64_t head_dim = 128;
  double weight_bytes = 14.5e9;

  [[nodiscard]] double kv_bytes(double tokens) const {
    return tokens * static_cast<double>(layers * kv_heads * head_dim) * 2 * 2;
  }
};

/// The GPU beside it: H100 with five HBM3 stacks as the AttAcc simulator describes it.
struct gpu_figures {
  double bytes_per_second = 3352e9 * 0.85;
  double flops = 989.4e12 * 0.8;
  double pj_per_byte = 28.7 + 2.4 + 1.28;
  double pj_per_mac = 0.32;
  double link_pj_per_bit = 1.3;
  double memory_bytes = 80.0 * (1 << 30);
};

/// How product-quantized attention is run.
struct pq_setting {
  std::uint32_t subvectors = 32;
  std::uint32_t centroids = 512;
  std::size_t query_rows = 1;
  bool turned = false;  ///< keys coded before RoPE
  pim::bank_options options;
};

/// One KV head in one layer and step, on its channel.
struct head_cost {
  double ns = 0;
  double pj = 0;
  std::int64_t cycles = 0;
  double slots_per_token = 0;  ///< column slots of a bank that is fully used, times banks
  std::int64_t act_count = 0;
  std::int64_t macs = 0;
  std::int64_t slots = 0;
  std::vector<std::int64_t> phase_cycles = std::vector<std::int64_t>(pim::phase_count);
};

inline head_cost cost_of(const pim::walker& w) {
  head_cost c;
  c.cycles = w.finish_cycle();
  c.ns = w.nanoseconds(c.cycles);
  // Standby of the other channels is not this head's.
  const pim::totals t = w.total();
  c.pj = pim::energy_of(w.description(), t, c.cycles).total_pj();
  c.act_count = t.bank.act_count;
  c.macs = t.bank.macs;
  c.slots = t.bank.lut_slots + t.bank.mac_columns + t.bank.rd_columns + t.bank.wr_columns;
  for (int p = 0; p < pim::phase_count; ++p) {
    c.phase_cycles[static_cast<std::size_t>(p)] = w.total(static_cast<pim::phase>(p)).channel.cycles;
  }
  return c;
}

/// Dense fp16 attention of one head: every query row streams K and V once.
inline head_cost dense_head(const pim::device& d, std::int64_t tokens, std::int64_t query_rows) {
  pim::walker w;
  if (!w.configure(d)) {
    return {};
  }
  const std::int64_t columns = d.organisation.columns_per_row();
  const std::int64_t half = pim::dense_attention_macs(d, {1, tokens, 128, 2}) / 2;
  const auto moved = [&](std::int64_t bytes) { return pim::ceil_div(bytes, d.organisation.column_bytes); };
  const int sets = d.pim.banks_per_unit == 2 ? 2 : 1;
  for (std::int64_t pass = 0; pass < 2 * query_rows; ++pass) {
    const bool keys = pass % 2 == 0;
    w.set_phase(keys ? pim::phase::score : pim::phase::value);
    static_cast<void>(w.issue({.op = pim::opcode::wrgb, .count = moved(keys ? 256 : 2 * tokens)}));
    for (std::int64_t done = 0; done < half; done += columns) {
      for (int set = 0; set < sets; ++set) {
        static_cast<void>(w.issue({.op = pim::opcode::mac_ab,
                                   .set = sets == 1 ? pim::bank_set::all
                                          : set == 0 ? pim::bank_set::even
                                                     : pim::bank_set::odd,
                                   .row = static_cast<std::int32_t>(done / columns % d.organisation.rows_per_bank),
                                   .count = std::min(columns, half - done)}));
      }
    }
    static_cast<void>(w.issue({.op = pim::opcode::mv_out, .count = moved(keys ? 2 * tokens : 256)}));
  }
  return cost_of(w);
}

template <class Mapping = pim::subvector_per_bank>
head_cost pq_head(const pim::device& d, std::int64_t tokens, const pq_setting& s) {
  pim::bank_programs<Mapping> programs;
  pqattn::status ok = programs.configure(d, s.options);
  const auto require = [&](const pqattn::status& next) { ok = ok.ok() ? next : ok; };
  const pqattn::geometry shape{128, s.subvectors, s.centroids, 1, nullptr};
  const auto storage = pqattn::codebook_storage::f16;
  std::vector<float> frequencies(64), memory(pqattn::rope_floats(64));
  pqattn::rope rotation;
  if (s.turned) {
    pqattn::fill_rope_frequencies(frequencies.data(), 128, 10000.0);
    require(build_rope(frequencies.data(), 64, pqattn::rope_pairing::interleaved, memory.data(), rotation));
  }
  pqattn::resident_codebook<pim::device_address> books[2] = {{shape, storage, {}}, {shape, storage, {}}};
  pqattn::code_span<pim::device_address> codes[2] = {{shape, {}, nullptr}, {shape, {}, nullptr}};
  pim::device_address tables;
  const auto count = static_cast<std::size_t>(tokens);
  for (int side = 0; ok.ok() && side < 2; ++side) {
    require(programs.reserve(programs.codebook_bytes(shape, storage), books[side].memory));
    require(programs.reserve(pqattn::blocks_for(count) * programs.code_block_bytes(shape), codes[side].memory));
  }
  if (ok.ok()) {
    require(programs.reserve(programs.table_bytes(shape, s.query_rows, rotation), tables));
  }
  if (!ok.ok()) {
    return {};
  }
  require(programs.prepare_scores(books[0], s.query_rows, rotation, tables));
  constexpr std::size_t tile = pqattn::max_tile_blocks * pqattn::block_tokens;
  for (std::size_t first = 0; first < count; first += tile) {
    const pqattn::slot_range slots{first, std::min(tile, count - first)};
    require(programs.score(books[0], s.query_rows, tables, rotation, {}, codes[0], slots));
    require(programs.softmax_part(s.query_rows, slots.count));
    require(programs.accumulate_values(books[1], s.query_rows, pqattn::value_method::automatic, codes[1], slots));
  }
  return ok.ok() ? cost_of(programs.walked()) : head_cost{};
}

/// A table on standard output as Markdown, and in a file as CSV.
class study_table {
 public:
  study_table(std::string name, std::string title, std::vector<std::string> header)
      : name_(std::move(name)), title_(std::move(title)), header_(std::move(header)) {}
  void add(std::vector<std::string> row, bool listed = true) {
    rows_.push_back(std::move(row));
    listed_.push_back(listed);
  }
  /// False when the file cannot be written.
  [[nodiscard]] bool write(const std::string& folder) const {
    std::printf("\n#### %s\n\n", title_.c_str());
    print(header_);
    print(std::vector<std::string>(header_.size(), "---"));
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      if (listed_[i]) {
        print(rows_[i]);
      }
    }
    if (folder.empty()) {
      return true;
    }
    std::ofstream file(folder + "/" + name_ + ".csv");
    put(file, header_);
    for (const auto& row : rows_) {
      put(file, row);
    }
    return static_cast<bool>(file.flush());
  }

 private:
  std::string name_, title_;
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
  std::vector<bool> listed_;

  static void print(const std::vector<std::string>& cells) {
    for (const auto& cell : cells) {
      std::printf("| %s ", cell.c_str());
    }
    std::printf("|\n");
  }
  static void put(std::ofstream& file, const std::vector<std::string>& cells) {
    for (std::size_t i = 0; i < cells.size(); ++i) {
      file << (i == 0 ? "" : ",") << cells[i];
    }
    file << "\n";
  }
};

inline std::string number(double x, int digits = 2) {
  char text[48];
  std::snprintf(text, sizeof text, "%.*f", digits, x);
  return text;
}
inline std::string tokens_text(std::int64_t n) {
  return n >= 1 << 20 ? std::to_string(n >> 20) + "Mi" : std::to_string(n >> 10) + "Ki";
}

/// The studies on one device.
class pim_study {
 public:
  pim_study(const pim::device& d, std::string folder) : device_(d), folder_(std::move(folder)) {}

  /// False when a file could not be written.
  [[nodiscard]] bool run() {
    lookups();
    shapes();
    systems();
    capacity();
    training();
    devices();
    return written_;
  }

 private:
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
  void done(const study_table& table) { written_ = table.write(folder_) && written_; }
  /// All layers, all heads of a batch: heads share channels in turn.
  [[nodiscard]] double step_ms(const pim::device& d, const head_cost& c, std::int64_t batch) const {
    return static_cast<double>(pim::ceil_div(batch * model_.kv_heads, d.organisation.command_channels()) *
                               model_.layers) *
           c.ns * 1e-6;
  }
  [[nodiscard]] double step_mj(const head_cost& c, std::int64_t batch) const {
    return static_cast<double>(batch * model_.kv_heads * model_.layers) * c.pj * 1e-9;
  }

  void lookups() {
    study_table table("lookups", "Look-ups per slot: speed against dense attention in PIM, one head, 32Ki tokens, "
                                 "m=32, K=512 (above 1: product quantization is faster)",
                      {"g", "reconstruct", "histogram, 2 slots", "histogram, 1 slot", "histogram, all banks added",
                       "GQA 4", "GQA 4, shared look-ups", "GQA 4, shared, all banks added", "tokens striped", "keys before RoPE", "against no power limit"});
    constexpr std::int64_t n = 32768;
    pim::device fast = device_;
    fast.timing.mac = std::min(device_.timing.mac, device_.timing.ccd_l);
    const double dense = dense_head(device_, n, 1).ns;
    const double dense4 = dense_head(device_, n, 4).ns;
    const double dense_fast = dense_head(fast, n, 1).ns;
    for (const std::int32_t g : {1, 2, 4, 8, 16}) {
      const pim::device d = with(g);
      pq_setting plain;
      pq_setting two = plain;
      two.options.values = pqattn::value_method::histogram;
      pq_setting one = two;
      one.options.update_slots = 1;
      pq_setting added = one;
      added.options.banks_added = device_.organisation.banks_per_command_channel();
      pq_setting grouped = plain;
      grouped.query_rows = 4;
      pq_setting shared = grouped;
      shared.options.share_lookups = true;
      pq_setting most = shared;
      most.options.banks_added = added.options.banks_added;
      pq_setting turned = plain;
      turned.turned = true;
      const double base = pq_head(d, n, plain).ns;
      table.add({std::to_string(g), number(dense / base), number(dense / pq_head(d, n, two).ns),
                 number(dense / pq_head(d, n, one).ns), number(dense / pq_head(d, n, added).ns),
                 number(dense4 / pq_head(d, n, grouped).ns), number(dense4 / pq_head(d, n, shared).ns),
                 number(dense4 / pq_head(d, n, most).ns),
                 number(dense / pq_head<pim::token_striped>(d, n, plain).ns), number(dense / pq_head(d, n, turned).ns),
                 number(dense_fast / base)});
    }
    done(table);
    study_table phases("phases", "Where the cycles of a head go, 32Ki tokens, reconstruct",
                       {"g", "table build", "score", "softmax", "value", "merge", "all", "activations per bank"});
    for (const std::int32_t g : {1, 4, 16}) {
      const head_cost c = pq_head(with(g), n, {});
      const auto at = [&](pim::phase p) { return std::to_string(c.phase_cycles[static_cast<std::size_t>(p)]); };
      phases.add({std::to_string(g), at(pim::phase::table_build), at(pim::phase::score), at(pim::phase::softmax),
                  at(pim::phase::value), at(pim::phase::merge), std::to_string(c.cycles),
                  std::to_string(c.act_count / device_.organisation.banks_per_command_channel())});
    }
    done(phases);
  }

  void shapes() {
    study_table table("shapes", "Shape of the quantizer: speed against dense attention, 32Ki tokens, reconstruct / "
                                "histogram of 1 slot; last: 4 query heads share look-ups, all banks' sums added on "
                                "the way",
                      {"m", "K", "bits per element", "g=1", "g=4", "g=16", "g=1, shared, added",
                       "g=16, shared, added"});
    for (const std::uint32_t m : {8, 16, 32, 64}) {
      for (const std::uint32_t k : {64, 256, 512}) {
        const double dense = dense_head(device_, 32768, 1).ns;
        std::vector<std::string> row{std::to_string(m), std::to_string(k),
                                     number(m * static_cast<double>(pqattn::geometry{128, m, k}.code_bits()) / 128.0)};
        for (const std::int32_t g : {1, 4, 16}) {
          pq_setting s;
          s.subvectors = m;
          s.centroids = k;
          const double reconstruct = dense / pq_head(with(g), 32768, s).ns;
          s.options.values = pqattn::value_method::histogram;
          s.options.update_slots = 1;
          row.push_back(number(reconstruct) + " / " + number(dense / pq_head(with(g), 32768, s).ns));
        }
        const double dense4 = dense_head(device_, 32768, 4).ns;
        for (const std::int32_t g : {1, 16}) {
          pq_setting s;
          s.subvectors = m;
          s.centroids = k;
          s.query_rows = 4;
          s.options.share_lookups = true;
          s.options.banks_added = device_.organisation.banks_per_command_channel();
          row.push_back(number(dense4 / pq_head(with(g), 32768, s).ns));
        }
        table.add(row, k == 512 || m == 32);
      }
    }
    done(table);
  }

  void systems() {
    study_table table("systems",
                      "A decode step, attention of all layers: emulated milliseconds (GQA: 4 query heads share K and V; "
                      "look-ups shared; weights need " + number(model_.weight_bytes / gpu_.bytes_per_second * 1e3, 1) +
                          " ms more in every system)",
                      {"context", "batch", "KV GiB", "dense PIM", "PQ PIM g=1", "PQ PIM g=4", "PQ PIM g=16", "GPU resident",
                       "offload 32 GB/s", "64 GB/s", "256 GB/s", "link share % 32", "64", "256",
                       "PQ g=16 / GPU resident, energy", "with weights: dense / PQ g=16",
                       "with weights: PQ g=16 / offload 256", "PQ PIM g=16, all banks added",
                       "with weights: dense / that"});
    pq_setting s;
    s.query_rows = static_cast<std::size_t>(model_.query_heads / model_.kv_heads);
    s.options.share_lookups = true;
    for (std::int64_t n = 4096; n <= 1 << 20; n *= 2) {
      const head_cost dense = dense_head(device_, n, model_.query_heads / model_.kv_heads);
      const head_cost pq[3] = {pq_head(with(1), n, s), pq_head(with(4), n, s), pq_head(with(16), n, s)};
      pq_setting added = s;
      added.options.banks_added = device_.organisation.banks_per_command_channel();
      const head_cost most = pq_head(with(16), n, added);
      for (const std::int64_t batch : {1, 4, 16, 32, 64}) {
        const double bytes = model_.kv_bytes(static_cast<double>(n * batch));
        const double weights = model_.weight_bytes / gpu_.bytes_per_second * 1e3;
        const double resident = bytes / gpu_.bytes_per_second * 1e3;
        const auto offload = [&](double gbs) { return bytes / gbs * 1e-6 + resident; };
        const auto share = [&](double gbs) { return 100.0 * bytes / gbs * 1e-6 / (offload(gbs) + weights); };
        const double gpu_mj = bytes * gpu_.pj_per_byte * 1e-9;
        const double dense_ms = step_ms(device_, dense, batch);
        const double best = step_ms(device_, pq[2], batch);
        table.add({tokens_text(n), std::to_string(batch), number(bytes / (1 << 30), 1), number(dense_ms),
                   number(step_ms(device_, pq[0], batch)), number(step_ms(device_, pq[1], batch)), number(best),
                   number(resident), number(offload(32), 1), number(offload(64), 1), number(offload(256), 1),
                   number(share(32), 1), number(share(64), 1), number(share(256), 1),
                   number(step_mj(pq[2], batch) / gpu_mj, 3), number((dense_ms + weights) / (best + weights)),
                   number((best + weights) / (offload(256) + weights), 3), number(step_ms(device_, most, batch)),
                   number((dense_ms + weights) / (step_ms(device_, most, batch) + weights))},
                  (n == 4096 || n == 32768 || n == 131072 || n == 1 << 20) && batch != 4 && batch != 32);
      }
    }
    done(table);
  }

  void capacity() {
    study_table table("capacity", "Largest context that fits, tokens (PQ: emulated rows, with copies of the codebooks "
                                  "in every stripe)",
                      {"batch", "GPU, 80 GiB less weights", "dense PIM", "PQ m=32 K=512", "PQ m=32 K=256",
                       "PQ m=16 K=512"});
    for (const std::int64_t batch : {1, 4, 16, 64}) {
      const double sequences = static_cast<double>(batch);
      std::vector<std::string> row{
          std::to_string(batch),
          number((gpu_.memory_bytes - model_.weight_bytes) / model_.kv_bytes(1) / sequences, 0),
          number(static_cast<double>(device_.capacity_bytes) / model_.kv_bytes(1) / sequences, 0)};
      for (const auto& [m, k] : {std::pair{32u, 512u}, {32u, 256u}, {16u, 512u}}) {
        pim::bank_programs<> programs;
        if (!programs.configure(device_, {})) {
          row.push_back("-");
          continue;
        }
        const pqattn::geometry shape{128, m, k, 1, nullptr};
        const auto sides = static_cast<double>(2 * model_.layers * model_.kv_heads);
        const double books =
            sides * static_cast<double>(programs.codebook_bytes(shape, pqattn::codebook_storage::f16));
        const double token = sides * static_cast<double>(programs.code_block_bytes(shape)) / 64.0;
        row.push_back(number(std::max(0.0, (static_cast<double>(device_.capacity_bytes) / sequences - books) / token), 0));
      }
      table.add(row);
    }
    done(table);
  }

  void training() {
    study_table table("training",
                      "Training of one layer (4 Lloyd iterations, K=512, m=32) and encoding in PIM, beside the GPU's "
                      "prefill of one layer, one sequence, emulated milliseconds",
                      {"prompt", "train on all", "train on 8Ki", "encode", "train, argmin in banks, all channels",
                       "encode, the same", "GPU prefill of the layer", "of it attention", "hidden", "hidden on 8Ki",
                       "hidden, argmin in banks, all channels"});
    pim::bank_options better;
    better.argmin_in_banks = true;
    better.channels_per_home = std::max<std::int32_t>(
        1, device_.organisation.command_channels() / static_cast<std::int32_t>(2 * model_.kv_heads));
    const auto side = static_cast<double>(pim::ceil_div(2 * model_.kv_heads, device_.organisation.command_channels()));
    for (std::int64_t n = 1024; n <= 131072; n *= 2) {
      const auto train = [&](std::int64_t points, const pim::bank_options& options) {
        pim::bank_programs<> programs;
        pim::device_address at;
        const auto count = static_cast<std::size_t>(points);
        if (!programs.configure(device_, options) || !programs.reserve(programs.point_bytes(count, 4), at) ||
            !programs.assign(at, count, 4, 512) || !programs.centroid_sums(at, count, 4, 512)) {
          return 0.0;
        }
        return 4 * 32 * side * programs.walked().nanoseconds(programs.walked().finish_cycle()) * 1e-6;
      };
      const double all = train(n, {});
      const double some = train(std::min<std::int64_t>(n, 8192), {});
      const double coding = encode_ms(n, {}) * side;
      const double best_training = train(n, better);
      const double best_coding = encode_ms(n, better) * side;
      const double attention = 2.0 * static_cast<double>(n) * static_cast<double>(n) * 128 * 32 / gpu_.flops * 1e3;
      const double dense = static_cast<double>(n) * model_.weight_bytes / static_cast<double>(model_.layers) /
                           gpu_.flops * 1e3;
      const double gpu = attention + dense;
      table.add({tokens_text(n), number(all), number(some), number(coding), number(best_training), number(best_coding),
                 number(gpu), number(attention), all + coding <= gpu ? "yes" : "no",
                 some + coding <= gpu ? "yes" : "no", best_training + best_coding <= gpu ? "yes" : "no"});
    }
    done(table);
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

  void devices() {
    study_table table("devices", "The same step on every preset with PIM units: one head, 32Ki tokens, m=32, K=512, "
                                 "microseconds and microjoules of one channel (presets have g=1)",
                      {"device", "dense us", "PQ us", "PQ us, g=16", "PQ before RoPE us", "dense uJ", "PQ uJ",
                       "PQ uJ, g=16", "channels"});
    for (const pim::named_preset& preset : pim::presets) {
      pim::device d = preset.make();
      if (!d.pim.present) {
        continue;
      }
      pq_setting turned;
      turned.turned = true;
      const head_cost dense = dense_head(d, 32768, 1);
      const head_cost pq = pq_head(d, 32768, {});
      const head_cost before = pq_head(d, 32768, turned);
      d.pim.lookups_per_slot = 16;
      const head_cost wide = pq_head(d, 32768, {});
      table.add({preset.name, number(dense.ns * 1e-3, 1), number(pq.ns * 1e-3, 1), number(wide.ns * 1e-3, 1),
                 number(before.ns * 1e-3, 1), number(dense.pj * 1e-6, 1), number(pq.pj * 1e-6, 1),
                 number(wide.pj * 1e-6, 1), std::to_string(d.organisation.command_channels())});
    }
    done(table);
  }
};

}  // namespace pqattn_pim
