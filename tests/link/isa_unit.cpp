// SPDX-License-Identifier: MIT
// Compiled once per set of flags, with RUN naming the function. All containers are sized by main: code of std that this
// file made for its own instruction set could replace main's.
#include "isa_unit.hpp"

#include <cstring>
#include <span>

#include "pqattn/cache/apply_policy.hpp"
#include "pqattn/pqattn.hpp"

namespace {

using bank_type = pqattn::host_bank<>;

/// Trained, coded and decoded rows of one side.
struct coded_side {
  pqattn::buffer book_memory;
  pqattn::buffer code_memory;
  pqattn::token_source<std::byte*> source;

  pqattn::status make(bank_type& bank, const std::vector<float>& rows, unit_result& result,
                      std::vector<float>& decoded) {
    const pqattn::geometry shape{unit_task::dim, unit_task::subvectors, unit_task::centroids};
    const pqattn::rows_view view = pqattn::view_rows(rows.data(), unit_task::tokens, unit_task::dim);
    pqattn::training_params params;
    params.storage = pqattn::codebook_storage::i8;
    pqattn::buffer workspace;
    PQATTN_TRY(pqattn::buffer::make({}, pqattn::training_workspace_bytes(bank, shape, view, params), workspace));
    pqattn::training_report report;
    PQATTN_TRY(pqattn::train_codebook(bank, shape, view, nullptr, params, workspace.data(), workspace.size(),
                                      result.centroids.data(), report));
    PQATTN_TRY(pqattn::buffer::make({}, bank.codebook_bytes(shape, params.storage), book_memory));
    PQATTN_TRY(
        pqattn::buffer::make({}, pqattn::blocks_for(unit_task::tokens) * bank.code_block_bytes(shape), code_memory));
    source.coded = true;
    source.book = {shape, params.storage, book_memory.data()};
    source.codes = {shape, code_memory.data(), nullptr};
    PQATTN_TRY(bank.store_codebook({shape, result.centroids.data()}, source.book));
    PQATTN_TRY(pqattn::encode(bank, view, source.book, source.codes, {0, unit_task::tokens}));
    PQATTN_TRY(bank.load_codes(source.codes, {0, unit_task::tokens}, result.codes.data()));
    return pqattn::decode(bank, source.book, source.codes, {0, unit_task::tokens},
                          pqattn::ref_rows(decoded.data(), unit_task::tokens, unit_task::dim));
  }
};

pqattn::status attend_codes(bank_type& bank, const unit_task& task, unit_result& result) {
  coded_side keys;
  coded_side values;
  PQATTN_TRY(values.make(bank, task.values, result, result.decoded_values));
  PQATTN_TRY(keys.make(bank, task.keys, result, result.decoded_keys));
  pqattn::segment<std::byte*> tokens;
  tokens.keys = keys.source;
  tokens.values = values.source;
  tokens.slots = {0, unit_task::tokens};
  pqattn::buffer tables;
  PQATTN_TRY(pqattn::buffer::make({}, pqattn::attention_table_bytes(bank, keys.source.book.shape, unit_task::rows, {}),
                                  tables));
  tokens.tables = tables.data();
  pqattn::buffer workspace;
  PQATTN_TRY(pqattn::buffer::make(
      {}, pqattn::attention_workspace_bytes(&tokens, 1, unit_task::rows, unit_task::dim, unit_task::dim, 1),
      workspace));
  return pqattn::attend(bank, pqattn::view_rows(task.queries.data(), unit_task::rows, unit_task::dim), &tokens, 1, {},
                        workspace.data(), workspace.size(),
                        pqattn::ref_rows(result.out.data(), unit_task::rows, unit_task::dim), nullptr);
}

pqattn::status attend_cache(bank_type& bank, const unit_task& task, unit_result& result) {
  pqattn::cache_config config;
  config.keys.shape = config.values.shape = {unit_task::dim, unit_task::subvectors, unit_task::centroids};
  pqattn::head_cache<bank_type> cache;
  pqattn::attend_scratch<bank_type> scratch(bank, {});
  PQATTN_TRY(cache.make(bank, config, {}, cache));
  PQATTN_TRY(cache.append(pqattn::view_rows(task.keys.data(), unit_task::tokens, unit_task::dim),
                          pqattn::view_rows(task.values.data(), unit_task::tokens, unit_task::dim)));
  return cache.attend(pqattn::view_rows(task.queries.data(), unit_task::rows, unit_task::dim), {}, scratch,
                      pqattn::ref_rows(result.cached_out.data(), unit_task::rows, unit_task::dim), nullptr);
}

/// Bytes that a snapshot is written to: counted first, then kept.
struct snapshot_bytes {
  pqattn::buffer memory;
  std::size_t used = 0;

  static bool add(void* user, const void* data, std::size_t bytes) {
    auto& self = *static_cast<snapshot_bytes*>(user);
    if (self.memory.data() != nullptr) {
      std::memcpy(self.memory.data() + self.used, data, bytes);
    }
    self.used += bytes;
    return true;
  }
  template <class Write>
  pqattn::status fill(const Write& write) {
    PQATTN_TRY(write(pqattn::snapshot_sink{&add, this}));
    PQATTN_TRY(pqattn::buffer::make({}, used, memory));
    used = 0;
    return write(pqattn::snapshot_sink{&add, this});
  }
  [[nodiscard]] std::span<const std::byte> bytes() const { return {memory.data(), used}; }
};

/// A sequence, saved and loaded into another pool, gives back its rows.
pqattn::status save_and_load(bank_type& bank, const unit_task& task, unit_result& result) {
  pqattn::cache_config config;
  pqattn::head_policy policy;
  policy.keys = policy.values = {false, unit_task::subvectors, 5, 1, pqattn::codebook_storage::i8, 0.05f};
  config.keys.shape.dim = config.values.shape.dim = unit_task::dim;
  PQATTN_TRY(pqattn::apply_policy(policy, config));
  pqattn::page_pool<bank_type> pools[2];
  for (pqattn::page_pool<bank_type>& pool : pools) {
    PQATTN_TRY(pool.make(bank, config, 1, {}, pool));
  }
  pqattn::sequence<bank_type> saved(pools[0]);
  const pqattn::head_rows keys{pqattn::view_rows(task.keys.data(), unit_task::tokens, unit_task::dim), 1, 0};
  const pqattn::head_rows values{pqattn::view_rows(task.values.data(), unit_task::tokens, unit_task::dim), 1, 0};
  PQATTN_TRY(saved.append(keys, values));
  snapshot_bytes books;
  snapshot_bytes tokens;
  PQATTN_TRY(books.fill([&](const auto& sink) { return pqattn::write_codebooks(pools[0], sink); }));
  PQATTN_TRY(tokens.fill([&](const auto& sink) { return pqattn::write_sequence(saved, sink); }));
  pqattn::snapshot_view view;
  PQATTN_TRY(pqattn::snapshot_view::open(books.bytes(), view));
  PQATTN_TRY(pqattn::load_codebooks(view, pools[1]));
  pqattn::sequence<bank_type> loaded(pools[1]);
  PQATTN_TRY(pqattn::snapshot_view::open(tokens.bytes(), view));
  PQATTN_TRY(pqattn::load_sequence(view, loaded));
  for (const pqattn::sequence<bank_type>* one : {&saved, &loaded}) {
    std::vector<float>& rows = one == &saved ? result.saved_rows : result.loaded_rows;
    PQATTN_TRY(one->read(
        0, 0, pqattn::ref_rows(rows.data(), unit_task::tokens, unit_task::dim),
        pqattn::ref_rows(rows.data() + unit_task::tokens * unit_task::dim, unit_task::tokens, unit_task::dim)));
  }
  // What is refused says so, in numbers.
  const pqattn::head_policy same = policy;
  policy.values.outlier_share = 0.75f;
  pqattn::apply_policy(policy, config).format(result.message, sizeof result.message);
  return same == policy ? pqattn::failure(pqattn::status_code::corrupt_data, "policies", "that differ are equal")
                        : pqattn::status{};
}

}  // namespace

void RUN(const unit_task& task, unit_result& result) {
  bank_type bank;
  result.arch = bank.arch_name();
  pqattn::status done = attend_codes(bank, task, result);
  if (done) {
    done = attend_cache(bank, task, result);
  }
  if (done) {
    done = save_and_load(bank, task, result);
  }
  if (!done) {
    result.failure = done.problem;
  }
}
