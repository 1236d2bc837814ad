// SPDX-License-Identifier: MIT
// What one KV head's attention costs in the systems that the studies compare: emulated and computed figures.
#pragma once

#include <algorithm>
#include <cstdint>
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
  double link_pj_per_bit = 1.3;         ///< NVLink class, as the AttAcc simulator has it
  double host_memory_pj_per_bit = 6.9;  ///< DDR4 reads as DRAMsim3 counts them
  double memory_bytes = 80.0 * (1 << 30);

  /// Reading `bytes` from the GPU's memory up to its registers.
  [[nodiscard]] double read_mj(double bytes) const { return bytes * pj_per_byte * 1e-9; }
  /// Fetching them from the host's memory over the link before.
  [[nodiscard]] double fetch_mj(double bytes) const {
    return bytes * 8 * (link_pj_per_bit + host_memory_pj_per_bit) * 1e-9;
  }
};

/// How product-quantized attention is run.
struct pq_setting {
  std::uint32_t subvectors = 32;
  std::uint32_t centroids = 512;
  std::uint32_t stages = 1;
  std::size_t query_rows = 1;
  bool turned = false;      ///< keys coded before RoPE
  bool code_values = true;  ///< false: values stay dense fp16
  pim::bank_options options;
};

/// One KV head in one layer and step, on its channel.
struct head_cost {
  double ns = 0;
  double pj = 0;
  std::int64_t cycles = 0;
  std::int64_t act_count = 0;
  std::int64_t macs = 0;
  std::int64_t slots = 0;
  std::int64_t moves = 0;             ///< between banks and buffer die
  std::int64_t softmax_elements = 0;  ///< and comparisons
  std::int64_t tsv_bytes = 0;
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
  c.moves = t.channel.data_cycles / w.description().timing.bl;
  c.softmax_elements = t.channel.softmax_elements;
  c.tsv_bytes = t.channel.tsv_bytes;
  for (int p = 0; p < pim::phase_count; ++p) {
    c.phase_cycles[static_cast<std::size_t>(p)] = w.total(static_cast<pim::phase>(p)).channel.cycles;
  }
  return c;
}

/// Dense attention of one head: every query row streams K and V once. Fewer than 16 `bits` per element take fewer
/// columns; the units are assumed to multiply a whole column of them per slot.
inline head_cost dense_head(const pim::device& d, std::int64_t tokens, std::int64_t query_rows, double bits = 16.0) {
  pim::walker w;
  if (!w.configure(d)) {
    return {};
  }
  const std::int64_t columns = d.organisation.columns_per_row();
  const std::int64_t full = pim::dense_attention_macs(d, {1, tokens, 128, 2}) / 2;
  const auto half = static_cast<std::int64_t>(static_cast<double>(full) * bits / 16.0 + 0.5);
  const auto moved = [&](std::int64_t bytes) { return pim::ceil_div(bytes, d.organisation.transfer_bytes()); };
  const std::int32_t shares = d.pim.banks_per_unit;
  for (std::int64_t pass = 0; pass < 2 * query_rows; ++pass) {
    const bool keys = pass % 2 == 0;
    w.set_phase(keys ? pim::phase::score : pim::phase::value);
    static_cast<void>(w.issue({.op = pim::opcode::mv_in, .count = moved(keys ? 256 : 2 * tokens)}));
    for (std::int64_t done = 0; done < half; done += columns) {
      for (std::int32_t share = 0; share < shares; ++share) {
        static_cast<void>(w.issue({.op = pim::opcode::mac_ab,
                                   .set = shares == 1 ? pim::bank_set::all : pim::bank_set::share,
                                   .bank = share,
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
  const pqattn::geometry shape{128, s.subvectors, s.centroids, s.stages, nullptr};
  const pqattn::geometry value_shape{128, s.subvectors, s.centroids, 1, nullptr};
  const auto storage = pqattn::codebook_storage::f16;
  std::vector<float> frequencies(64), memory(pqattn::rope_floats(64));
  pqattn::rope rotation;
  if (s.turned) {
    pqattn::fill_rope_frequencies(frequencies.data(), 128, 10000.0);
    require(build_rope(frequencies.data(), 64, pqattn::rope_pairing::interleaved, memory.data(), rotation));
  }
  pqattn::resident_codebook<pim::device_address> books[2] = {{shape, storage, {}}, {value_shape, storage, {}}};
  pqattn::code_span<pim::device_address> codes[2] = {{shape, {}, nullptr}, {value_shape, {}, nullptr}};
  pim::device_address tables;
  const auto count = static_cast<std::size_t>(tokens);
  for (int side = 0; ok.ok() && side < 2; ++side) {
    const pqattn::geometry& of_side = books[side].shape;
    require(programs.reserve(programs.codebook_bytes(of_side, storage), books[side].memory));
    require(programs.reserve(pqattn::blocks_for(count) * programs.code_block_bytes(of_side), codes[side].memory));
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
    if (s.code_values) {
      require(programs.accumulate_values(books[1], s.query_rows, pqattn::value_method::automatic, codes[1], slots));
    }
  }
  head_cost cost = ok.ok() ? cost_of(programs.walked()) : head_cost{};
  if (!s.code_values) {
    const head_cost dense = dense_head(d, tokens, static_cast<std::int64_t>(s.query_rows));
    cost.cycles += dense.cycles / 2;
    cost.ns += dense.ns / 2;
    cost.pj += dense.pj / 2;
  }
  return cost;
}

/// The same when heads of one channel are pipelined as AttAcc pipelines its own: column slots, moves and softmax of
/// different heads run side by side, and the resource that is busy longest decides.
template <class Mapping = pim::subvector_per_bank>
head_cost pipelined_head(const pim::device& d, std::int64_t tokens, const pq_setting& s) {
  pim::device columns_only = d;
  columns_only.pim.moves_overlap_macs = true;
  columns_only.pim.buffer_interval = 1;
  columns_only.pim.buffer_latency = columns_only.pim.buffer_in_to_out = columns_only.pim.buffer_out_to_in = 0;
  columns_only.pim.softmax_per_cycle = 65536;
  head_cost cost = pq_head<Mapping>(d, tokens, s);
  const std::int64_t columns = pq_head<Mapping>(columns_only, tokens, s).cycles;
  cost.cycles = std::max(
      {columns, cost.moves * d.pim.buffer_interval, pim::ceil_div(cost.softmax_elements, d.pim.softmax_per_cycle)});
  cost.ns = static_cast<double>(cost.cycles) * d.timing.tck_ps * 1e-3;
  return cost;
}

}  // namespace pqattn_pim
