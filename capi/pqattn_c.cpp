// SPDX-License-Identifier: MIT
// The C interface (include/pqattn/c/pqattn.h) over the host bank: checks what C cannot express, converts, calls.
#define PQATTN_C_BUILDING 1
#include <pqattn/c/pqattn.h>
#include <pqattn/pqattn.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

namespace {

using pqattn::failure;
using pqattn::status;
using pqattn::status_code;
using bank_type = pqattn::host_bank<>;

static_assert(static_cast<pq_status>(status_code::io_error) == PQ_IO_ERROR);
static_assert(static_cast<pq_dtype>(pqattn::dtype::bf16) == PQ_BF16);
static_assert(static_cast<pq_storage>(pqattn::codebook_storage::i8) == PQ_STORE_I8);
static_assert(static_cast<pq_pairing>(pqattn::rope_pairing::interleaved) == PQ_INTERLEAVED);
static_assert(std::is_same_v<pq_task, pqattn::executor::task_function>);

pq_status report(const status& outcome, pq_error* error) noexcept {
  const auto code = static_cast<pq_status>(outcome.code);
  if (error != nullptr) {
    error->code = code;
    error->message[0] = '\0';
    if (!outcome) {
      outcome.format(error->message, sizeof error->message);
    }
  }
  return code;
}

// --- conversions
// -------------------------------------------------------------------------------------------------------

status check_pointer(const void* pointer, const char* subject) noexcept {
  return pointer != nullptr ? status{} : failure(status_code::invalid_argument, subject, "is null");
}

/// An enumerator that arrived as a number.
template <class Enum>
status convert(std::int32_t number, Enum last, const char* subject, Enum& result) noexcept {
  if (number < 0 || number > static_cast<std::int32_t>(last)) {
    return failure(status_code::invalid_argument, subject, "is not one of its constants; largest",
                   static_cast<std::int32_t>(last), number);
  }
  result = static_cast<Enum>(number);
  return {};
}

/// Either kind of C rows as the view or ref of head 0.
template <class View, class Rows>
status convert_rows(const Rows* rows, const char* subject, View& result) noexcept {
  PQATTN_TRY(check_pointer(rows, subject));
  result = View{rows->data, pqattn::dtype::f32, rows->rows, rows->cols, rows->row_stride, rows->col_stride};
  PQATTN_TRY(convert(rows->dtype, pqattn::dtype::bf16, "rows.dtype", result.type));
  if (rows->data == nullptr && rows->heads != 0 && rows->rows != 0 && rows->cols != 0) {
    return failure(status_code::invalid_argument, subject, "has rows but a null data pointer");
  }
  return {};
}

template <class View, class Rows>
status convert_one_head(const Rows* rows, const char* subject, View& result) noexcept {
  PQATTN_TRY(convert_rows(rows, subject, result));
  return rows->heads == 1 ? status{}
                          : failure(status_code::shape_mismatch, subject, "must be one head", 1, rows->heads);
}

template <class Heads, class Rows>
status convert_heads(const Rows* rows, const char* subject, Heads& result) noexcept {
  PQATTN_TRY(convert_rows(rows, subject, result.rows));
  result.heads = rows->heads;
  result.head_stride = rows->head_stride;
  return {};
}

status convert_geometry(const pq_geometry* shape, pqattn::geometry& result) noexcept {
  PQATTN_TRY(check_pointer(shape, "shape"));
  result = {shape->dim, shape->subvectors, shape->centroids, shape->stages, nullptr};
  return pqattn::check_geometry(result);
}

status convert_executor(const pq_executor* executor, pqattn::executor& result) noexcept {
  if (executor == nullptr) {
    result = {};
    return {};
  }
  result = {executor->run, executor->user, executor->workers};
  return pqattn::check_executor(result, "executor");
}

status convert_allocator(const pq_allocator* allocator, pqattn::memory_resource& result) noexcept {
  if (allocator == nullptr) {
    result = {};
    return {};
  }
  PQATTN_TRY(check_pointer(reinterpret_cast<const void*>(allocator->allocate), "allocator.allocate"));
  PQATTN_TRY(check_pointer(reinterpret_cast<const void*>(allocator->deallocate), "allocator.deallocate"));
  result = {allocator->allocate, allocator->deallocate, allocator->user};
  return {};
}

/// Zeroes a struct that may grow and says how large it is; null is left alone. For the pq_*_default functions.
template <class Params>
bool start_defaults(Params* params) noexcept {
  if (params == nullptr) {
    return false;
  }
  *params = {};
  params->struct_bytes = sizeof *params;
  return true;
}

/// Copies a struct that may be shorter than ours (an older header) over its defaults.
template <class Params>
status read_params(const Params* given, void (*set_defaults)(Params*), const char* subject, Params& result) noexcept {
  set_defaults(&result);
  if (given == nullptr) {
    return {};
  }
  if (given->struct_bytes < sizeof(std::size_t) || given->struct_bytes > sizeof(Params)) {
    return failure(status_code::invalid_argument, subject, "has a struct_bytes this library does not know; at most",
                   sizeof(Params), given->struct_bytes);
  }
  std::memcpy(&result, given, given->struct_bytes);
  result.struct_bytes = sizeof(Params);
  return {};
}

status convert_side(const pq_side_config& side, const char* subject, pqattn::side_config& result) noexcept {
  result.coded = side.coded != 0;
  result.shape = {side.shape.dim, side.shape.subvectors, side.shape.centroids, side.shape.stages, nullptr};
  return convert(side.storage, pqattn::codebook_storage::i8, subject, result.storage);
}

/// What attention may leave out. It is counted in `counted`, so that a call that fails adds nothing to the caller's.
template <class Given, class Params>
void convert_skips(const Given& given, pqattn::skip_statistics& counted, Params& params) noexcept {
  params.skip_mass = given.skip_mass;
  params.skips = given.skips != nullptr ? &counted : nullptr;
}

void add_skips(const pqattn::skip_statistics& counted, pq_skip_statistics* skips) noexcept {
  if (skips != nullptr) {
    skips->blocks += counted.blocks;
    skips->skipped += counted.skipped;
  }
}

std::byte* bytes_of(const void* memory) noexcept {
  // Programs that read a codebook or codes take the same handle as those that write them.
  return static_cast<std::byte*>(const_cast<void*>(memory));
}

status check_aligned(const void* memory, const char* subject) noexcept {
  PQATTN_TRY(check_pointer(memory, subject));
  const std::size_t past = reinterpret_cast<std::uintptr_t>(memory) % pqattn::memory_alignment;
  return past == 0 ? status{}
                   : failure(status_code::invalid_argument, subject, "must be 64-byte aligned; bytes past", 0, past);
}

}  // namespace

// --- level 1
// -----------------------------------------------------------------------------------------------------------

namespace {

/// What a C configuration needs memory for, and the C++ configuration made of it.
struct layer_setup {
  pqattn::buffer rope_tables;
  pqattn::buffer key_order;  ///< of a preset

  [[nodiscard]] std::size_t bytes() const noexcept { return rope_tables.size() + key_order.size(); }
  status make(const pq_cache_config& given, const pqattn::memory_resource& resource, pqattn::cache_config& config);

 private:
  status make_rope(const pq_cache_config& given, const pqattn::memory_resource& resource, pqattn::rope& rotation);
  status make_preset(const pq_cache_config& given, const pqattn::memory_resource& resource,
                     pqattn::cache_config& config);
};

status layer_setup::make_rope(const pq_cache_config& given, const pqattn::memory_resource& resource,
                              pqattn::rope& rotation) {
  const std::uint32_t pairs = given.rope_pairs;
  if (pairs == 0) {
    return {};
  }
  if (pairs > pqattn::max_dim / 2) {
    return failure(status_code::invalid_argument, "config.rope_pairs", "must be at most 512", pqattn::max_dim / 2,
                   pairs);
  }
  pqattn::rope_pairing pairing{};
  PQATTN_TRY(convert(given.rope_pairing, pqattn::rope_pairing::interleaved, "config.rope_pairing", pairing));
  float frequencies[pqattn::max_dim / 2];
  if (given.rope_frequencies != nullptr) {
    std::memcpy(frequencies, given.rope_frequencies, pairs * sizeof(float));
  } else if (given.rope_theta > 0.0) {
    pqattn::fill_rope_frequencies(frequencies, 2 * pairs, given.rope_theta);
  } else {
    return failure(status_code::invalid_argument, "config.rope_theta", "must be above 0 when no frequencies are given");
  }
  PQATTN_TRY(pqattn::buffer::make(resource, pqattn::rope_floats(pairs) * sizeof(float), rope_tables));
  return pqattn::build_rope(frequencies, pairs, pairing, reinterpret_cast<float*>(rope_tables.data()), rotation);
}

status layer_setup::make_preset(const pq_cache_config& given, const pqattn::memory_resource& resource,
                                pqattn::cache_config& config) {
  const std::uint32_t key_dim = given.keys.shape.dim;
  if (key_dim < 1 || key_dim > pqattn::max_dim) {
    return failure(status_code::invalid_argument, "config.keys.shape.dim", "must be 1 to 1024", pqattn::max_dim,
                   key_dim);
  }
  pqattn::buffer workspace;
  PQATTN_TRY(pqattn::buffer::make(resource, pqattn::preset_workspace_bytes(), workspace));
  PQATTN_TRY(pqattn::buffer::make(resource, key_dim * sizeof(std::uint16_t), key_order));
  const pqattn::rope rotation = config.rotation;
  constexpr std::uint32_t usual_tokens = 1536;
  pqattn::bit_budget budget = given.preset_bits;
  budget.outliers = given.outlier_share > 0.0f;  // the share itself is the caller's
  return pqattn::preset_config(key_dim, given.values.shape.dim, rotation, budget,
                               given.train_tokens == 0 ? usual_tokens : given.train_tokens, workspace.data(),
                               workspace.size(), reinterpret_cast<std::uint16_t*>(key_order.data()), config);
}

status layer_setup::make(const pq_cache_config& given, const pqattn::memory_resource& resource,
                         pqattn::cache_config& config) {
  PQATTN_TRY(make_rope(given, resource, config.rotation));
  if (given.preset_bits > 0.0) {
    PQATTN_TRY(make_preset(given, resource, config));
  } else {
    PQATTN_TRY(convert_side(given.keys, "config.keys.storage", config.keys));
    PQATTN_TRY(convert_side(given.values, "config.values.storage", config.values));
    config.train_tokens = given.train_tokens;
    config.max_training_tokens = given.max_training_tokens;
    config.kmeans.iterations = given.kmeans_iterations;
  }
  PQATTN_TRY(convert(given.exact_type, pqattn::dtype::bf16, "config.exact_type", config.exact_type));
  config.sinks = given.sinks;
  config.recent = given.recent;
  config.keys_arrive_rotated = given.keys_arrive_rotated != 0;
  config.code_keys_after_rope = given.code_keys_after_rope != 0;
  config.kmeans.seed = given.seed;
  config.outlier_share = given.outlier_share;
  config.coding_batch = given.coding_batch != 0 ? given.coding_batch : config.coding_batch;
  config.key_tail = given.key_tail;
  config.values_from_keys = given.values_from_keys != 0;
  config.track_errors = given.track_errors != 0;
  config.most_epochs = given.most_epochs != 0 ? given.most_epochs : config.most_epochs;
  return {};
}

}  // namespace

struct pq_cache {
  pqattn::memory_resource resource;
  bank_type bank;
  layer_setup setup;
  pqattn::layer_cache<bank_type> layer;
  std::size_t key_dim = 0;
  std::size_t value_dim = 0;

  explicit pq_cache(const pqattn::memory_resource& memory) noexcept : resource(memory), bank(memory) {}

  status make(const pq_cache_config& given, const pqattn::executor& parts) {
    pqattn::cache_config config;
    PQATTN_TRY(setup.make(given, resource, config));
    PQATTN_TRY(pqattn::layer_cache<bank_type>::make(bank, config, given.kv_heads, parts, resource, layer));
    key_dim = config.keys.shape.dim;
    value_dim = config.values.shape.dim;
    return {};
  }
};

namespace {

template <class Handle>
void destroy(Handle* handle, const pqattn::memory_resource resource) noexcept {
  handle->~Handle();
  resource.deallocate(resource.self, handle, sizeof(Handle));
}

template <class Handle>
status create(const pq_cache_config* given, const pq_allocator* allocator, const pq_executor* executor,
              const char* subject, Handle** result) {
  PQATTN_TRY(check_pointer(given, "config"));
  PQATTN_TRY(check_pointer(result, subject));
  pq_cache_config config;
  PQATTN_TRY(read_params(given, &pq_cache_config_default, "config", config));
  pqattn::memory_resource resource;
  PQATTN_TRY(convert_allocator(allocator, resource));
  pqattn::executor parts;
  PQATTN_TRY(convert_executor(executor, parts));
  static_assert(alignof(Handle) <= pqattn::memory_alignment);
  void* memory = resource.allocate(resource.self, sizeof(Handle));
  if (memory == nullptr) {
    return failure(status_code::out_of_memory, "allocator", "refused an allocation", sizeof(Handle), 0);
  }
  auto* made = new (memory) Handle(resource);
  const status outcome = made->make(config, parts);
  if (!outcome) {
    destroy(made, resource);
    return outcome;
  }
  *result = made;
  return {};
}

status append(pq_cache* cache, const pq_const_rows* keys, const pq_const_rows* values, const float* weights) {
  PQATTN_TRY(check_pointer(cache, "cache"));
  pqattn::head_rows key_heads;
  pqattn::head_rows value_heads;
  PQATTN_TRY(convert_heads(keys, "keys", key_heads));
  PQATTN_TRY(convert_heads(values, "values", value_heads));
  return cache->layer.append(key_heads, value_heads, weights);
}

status attend_layer(pq_cache* cache, const pq_const_rows* queries, const pq_attend_params* given, const pq_rows* out,
                    float* lse_e) {
  PQATTN_TRY(check_pointer(cache, "cache"));
  pqattn::head_rows query_heads;
  pqattn::head_rows_ref out_heads;
  PQATTN_TRY(convert_heads(queries, "queries", query_heads));
  PQATTN_TRY(convert_heads(out, "out", out_heads));
  if (query_heads.rows.cols != cache->key_dim) {
    return failure(status_code::shape_mismatch, "queries.cols", "must equal the keys' dim", cache->key_dim,
                   query_heads.rows.cols);
  }
  if (out_heads.rows.cols != cache->value_dim) {
    return failure(status_code::shape_mismatch, "out.cols", "must equal the values' dim", cache->value_dim,
                   out_heads.rows.cols);
  }
  if (query_heads.rows.rows > pqattn::max_segment_slots) {
    return failure(status_code::invalid_argument, "queries.rows", "are more than memory can hold",
                   pqattn::max_segment_slots, query_heads.rows.rows);
  }
  pq_attend_params params;
  PQATTN_TRY(read_params(given, &pq_attend_params_default, "params", params));
  pqattn::layer_attention_params converted;
  converted.scale = params.scale;
  converted.first_position = params.first_position >= 0 ? params.first_position
                                                        : static_cast<std::int64_t>(cache->layer.size()) -
                                                              static_cast<std::int64_t>(query_heads.rows.rows);
  converted.causal = params.causal != 0;
  converted.window = params.window;
  converted.softcap = params.softcap;
  converted.alibi_slopes = params.alibi_slopes;
  converted.sink_logits = params.sink_logits;
  pqattn::head_rows bias;
  if (params.bias != nullptr) {
    PQATTN_TRY(convert_heads(params.bias, "params.bias", bias));
    converted.bias = &bias;
  }
  pqattn::skip_statistics skips;
  convert_skips(params, skips, converted);
  PQATTN_TRY(cache->layer.attend(query_heads, converted, out_heads, lse_e));
  add_skips(skips, params.skips);
  return {};
}

/// Reads all heads out with read(head, keys, values).
template <class Read>
status read_heads(std::size_t heads, const pq_rows* keys, const pq_rows* values, Read&& read) {
  pqattn::head_rows_ref key_heads;
  pqattn::head_rows_ref value_heads;
  PQATTN_TRY(convert_heads(keys, "keys", key_heads));
  PQATTN_TRY(convert_heads(values, "values", value_heads));
  if (key_heads.heads != heads || value_heads.heads != heads) {
    return failure(status_code::shape_mismatch, "keys.heads and values.heads", "must equal the cache's KV heads", heads,
                   key_heads.heads != heads ? key_heads.heads : value_heads.heads);
  }
  for (std::size_t head = 0; head < heads; ++head) {
    PQATTN_TRY(read(head, key_heads.head(head), value_heads.head(head)));
  }
  return {};
}

status read_layer(const pq_cache* cache, std::size_t first, const pq_rows* keys, const pq_rows* values) {
  PQATTN_TRY(check_pointer(cache, "cache"));
  return read_heads(cache->layer.kv_heads(), keys, values,
                    [&](std::size_t head, const pqattn::rows_ref& key, const pqattn::rows_ref& value) {
                      return cache->layer.head(head).read(first, key, value);
                    });
}

/// Shows a cache or a sequence queries.
template <class Tokens>
status observe(Tokens* tokens, const char* subject, const pq_const_rows* queries, std::int64_t first_position) {
  PQATTN_TRY(check_pointer(tokens, subject));
  pqattn::head_rows query_heads;
  PQATTN_TRY(convert_heads(queries, "queries", query_heads));
  return tokens->observe(query_heads, first_position);
}

void fill_report(const pqattn::memory_report& memory, pq_memory_report& report) noexcept {
  report = {memory.codes_bytes,    memory.codebooks_bytes,   memory.transforms_bytes, memory.exact_bytes,
            memory.metadata_bytes, memory.scratch_bytes,     memory.total_bytes(),    memory.tokens,
            memory.elements,       memory.bits_per_element()};
}

}  // namespace

// --- level 1: sequences
// ------------------------------------------------------------------------------------------------

struct pq_pool {
  pqattn::memory_resource resource;
  bank_type bank;
  layer_setup setup;
  pqattn::page_pool<bank_type> pages;
  pqattn::batch_attention<bank_type> batch;
  pqattn::executor parts;
  pqattn::buffer entries;  ///< of a batch, as C++ wants them

  explicit pq_pool(const pqattn::memory_resource& memory) noexcept : resource(memory), bank(memory) {}

  status make(const pq_cache_config& given, const pqattn::executor& executor) {
    pqattn::cache_config config;
    PQATTN_TRY(setup.make(given, resource, config));
    PQATTN_TRY(pqattn::page_pool<bank_type>::make(bank, config, given.kv_heads, resource, pages));
    parts = executor;
    return pqattn::batch_attention<bank_type>::make(bank, executor, resource, batch);
  }
};

struct pq_sequence {
  pq_pool* pool;
  pqattn::sequence<bank_type> tokens;

  explicit pq_sequence(pq_pool* owner) noexcept : pool(owner), tokens(owner->pages) {}
};

namespace {

/// Appends, or only trains on the rows.
status append_tokens(pq_sequence* sequence, const pq_const_rows* keys, const pq_const_rows* values,
                     const pq_append_options* given, bool refreshes) {
  PQATTN_TRY(check_pointer(sequence, "sequence"));
  pq_append_options read;
  PQATTN_TRY(read_params(given, &pq_append_options_default, "options", read));
  pqattn::head_rows key_heads;
  pqattn::head_rows value_heads;
  PQATTN_TRY(convert_heads(keys, "keys", key_heads));
  if (values != nullptr || sequence->pool->pages.stores(pqattn::kv_side::values)) {
    PQATTN_TRY(convert_heads(values, "values", value_heads));
  }
  pqattn::append_options options;
  options.positions = read.positions;
  options.weights = read.weights;
  options.parts = sequence->pool->parts;
  if (read.progress != nullptr) {
    options.progress = {[](void* user, std::size_t done, std::size_t total) {
                          const auto& mine = *static_cast<const pq_append_options*>(user);
                          return mine.progress(mine.progress_user, done, total) != 0;
                        },
                        &read};
  }
  return refreshes ? sequence->tokens.refresh(key_heads, value_heads, options)
                   : sequence->tokens.append(key_heads, value_heads, options);
}

status fork_sequence(const pq_sequence* sequence, pq_sequence* copy) {
  PQATTN_TRY(check_pointer(sequence, "sequence"));
  PQATTN_TRY(check_pointer(copy, "copy"));
  if (sequence->pool != copy->pool) {
    return failure(status_code::invalid_argument, "copy", "belongs to another pool");
  }
  return sequence->tokens.fork(copy->tokens);
}

status select_sequences(pq_sequence* const* sequences, std::size_t count, const std::size_t* parents) {
  if (count == 0) {
    return {};
  }
  PQATTN_TRY(check_pointer(sequences, "sequences"));
  PQATTN_TRY(check_pointer(parents, "parents"));
  for (std::size_t i = 0; i < count; ++i) {
    PQATTN_TRY(check_pointer(sequences[i], "sequences"));
    if (sequences[i]->pool != sequences[0]->pool) {
      return failure(status_code::invalid_argument, "sequences", "belong to different pools; index", 0, i);
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (sequences[j] == sequences[i]) {
        return failure(status_code::invalid_argument, "sequences", "name one sequence twice; index", j, i);
      }
    }
  }
  // The C++ call wants them side by side.
  using tokens_type = pqattn::sequence<bank_type>;
  pqattn::buffer memory;
  PQATTN_TRY(pqattn::buffer::make(sequences[0]->pool->resource, count * sizeof(tokens_type), memory));
  auto* side_by_side = reinterpret_cast<tokens_type*>(memory.data());
  for (std::size_t i = 0; i < count; ++i) {
    new (side_by_side + i) tokens_type(std::move(sequences[i]->tokens));
  }
  const status outcome = tokens_type::select(side_by_side, count, parents);
  for (std::size_t i = 0; i < count; ++i) {
    sequences[i]->tokens = std::move(side_by_side[i]);
    side_by_side[i].~tokens_type();
  }
  return outcome;
}

status shift_tokens(pq_sequence* sequence, std::size_t first, std::size_t count, std::int64_t delta,
                    double* added_error) {
  PQATTN_TRY(check_pointer(sequence, "sequence"));
  pqattn::shift_report done;
  PQATTN_TRY(sequence->tokens.shift(first, count, delta, &done));
  if (added_error != nullptr) {
    *added_error = done.relative_error();
  }
  return {};
}

/// C entries of a batch as C++ entries, in one block of memory.
struct entry_memory {
  pqattn::batch_entry<bank_type>* entries = nullptr;
  const pqattn::sequence<bank_type>** sequences = nullptr;
  pqattn::head_rows* rows = nullptr;  ///< keys, values and mask of each entry

  void carve(pqattn::carver& memory, std::size_t count, std::size_t sequence_count) noexcept {
    entries = memory.take<pqattn::batch_entry<bank_type>>(count);
    sequences = memory.take<const pqattn::sequence<bank_type>*>(sequence_count);
    rows = memory.take<pqattn::head_rows>(3 * count);
  }
};

status convert_optional(const pq_const_rows* rows, const char* subject, pqattn::head_rows* memory,
                        const pqattn::head_rows*& result) noexcept {
  if (rows != nullptr) {
    PQATTN_TRY(convert_heads(rows, subject, *new (memory) pqattn::head_rows()));
    result = memory;
  }
  return {};
}

status convert_entry(const pq_pool* pool, const pq_batch_entry& given, const pqattn::sequence<bank_type>** sequences,
                     pqattn::head_rows* rows, pqattn::batch_entry<bank_type>& entry) noexcept {
  entry.first_query = given.first_query;
  entry.queries = given.queries;
  entry.first_position = given.first_position;
  entry.sequences = sequences;
  entry.sequence_count = given.sequence_count;
  entry.new_position = given.new_position;
  entry.new_positions = given.new_positions;
  for (std::size_t i = 0; i < given.sequence_count; ++i) {
    PQATTN_TRY(check_pointer(given.sequences[i], "entry.sequences"));
    if (given.sequences[i]->pool != pool) {
      return failure(status_code::invalid_argument, "entry.sequences", "belong to another pool; index", 0, i);
    }
    sequences[i] = &given.sequences[i]->tokens;
  }
  PQATTN_TRY(convert_optional(given.new_keys, "entry.new_keys", rows, entry.new_keys));
  PQATTN_TRY(convert_optional(given.new_values, "entry.new_values", rows + 1, entry.new_values));
  return convert_optional(given.bias, "entry.bias", rows + 2, entry.bias);
}

status attend_batch(pq_pool* pool, const pq_batch_entry* entries, std::size_t count, const pq_const_rows* queries,
                    const pq_batch_params* given, const pq_rows* out, float* lse_e) {
  PQATTN_TRY(check_pointer(pool, "pool"));
  PQATTN_TRY(check_pointer(count == 0 ? &count : static_cast<const void*>(entries), "entries"));
  pqattn::head_rows query_heads;
  pqattn::head_rows_ref out_heads;
  PQATTN_TRY(convert_heads(queries, "queries", query_heads));
  PQATTN_TRY(convert_heads(out, "out", out_heads));
  pq_batch_params read;
  PQATTN_TRY(read_params(given, &pq_batch_params_default, "params", read));
  std::size_t sequence_count = 0;
  for (std::size_t i = 0; i < count; ++i) {
    PQATTN_TRY(check_pointer(entries[i].sequence_count == 0 ? &count : static_cast<const void*>(entries[i].sequences),
                             "entry.sequences"));
    sequence_count += entries[i].sequence_count;
  }
  entry_memory converted;
  pqattn::carver counting;
  converted.carve(counting, count, sequence_count);
  if (pool->entries.size() < counting.required()) {
    PQATTN_TRY(pqattn::buffer::make(pool->resource, counting.required(), pool->entries));
  }
  pqattn::carver placed(pool->entries.data(), pool->entries.size());
  converted.carve(placed, count, sequence_count);
  const pqattn::sequence<bank_type>** next = converted.sequences;
  for (std::size_t i = 0; i < count; ++i) {
    auto& entry = *new (converted.entries + i) pqattn::batch_entry<bank_type>();
    PQATTN_TRY(convert_entry(pool, entries[i], next, converted.rows + 3 * i, entry));
    next += entries[i].sequence_count;
  }
  pqattn::batch_params params;
  params.scale = read.scale;
  params.causal = read.causal != 0;
  params.window = read.window;
  params.softcap = read.softcap;
  params.alibi_slopes = read.alibi_slopes;
  params.sink_logits = read.sink_logits;
  params.positions = read.positions;
  pqattn::skip_statistics skips;
  convert_skips(read, skips, params);
  PQATTN_TRY(pool->batch.attend(pool->pages, converted.entries, count, query_heads, params, out_heads, lse_e));
  add_skips(skips, read.skips);
  return {};
}

/// A C callback as a sink, while both are there.
struct c_writer {
  pq_write write;
  void* user;

  pqattn::snapshot_sink sink() noexcept {
    return {[](void* self, const void* data, std::size_t bytes) {
              const auto& mine = *static_cast<const c_writer*>(self);
              return mine.write(mine.user, data, bytes) != 0;
            },
            this};
  }
};

template <class Handle, class Write>
status write_snapshot(const Handle* handle, const char* subject, pq_write write, void* user, Write&& run) {
  PQATTN_TRY(check_pointer(handle, subject));
  PQATTN_TRY(check_pointer(reinterpret_cast<const void*>(write), "write"));
  c_writer writer{write, user};
  return run(writer.sink());
}

template <class Handle, class Load>
status load_snapshot(Handle* handle, const char* subject, const void* data, std::size_t bytes, Load&& load) {
  PQATTN_TRY(check_pointer(handle, subject));
  PQATTN_TRY(check_pointer(data, "data"));
  pqattn::snapshot_view view;
  PQATTN_TRY(pqattn::snapshot_view::open({static_cast<const std::byte*>(data), bytes}, view));
  return load(view);
}

}  // namespace

namespace {

// --- level 0
// -----------------------------------------------------------------------------------------------------------

status convert_training(const pq_train_params* given, pq_train_params& read, pqattn::training_params& result) noexcept {
  PQATTN_TRY(read_params(given, &pq_train_params_default, "params", read));
  PQATTN_TRY(convert(read.storage, pqattn::codebook_storage::i8, "params.storage", result.storage));
  PQATTN_TRY(convert_executor(read.executor, result.parts));
  result.kmeans.iterations = read.iterations;
  result.kmeans.seed = read.seed;
  return {};
}

status train(const pq_geometry* shape, const pq_const_rows* samples, const float* weights, const pq_train_params* given,
             void* workspace, std::size_t workspace_bytes, float* centroids, double* objective) {
  pqattn::geometry geometry;
  pqattn::rows_view rows;
  pq_train_params read;
  pqattn::training_params params;
  pqattn::memory_resource resource;
  PQATTN_TRY(convert_geometry(shape, geometry));
  PQATTN_TRY(convert_one_head(samples, "samples", rows));
  PQATTN_TRY(convert_training(given, read, params));
  PQATTN_TRY(convert_allocator(read.allocator, resource));
  PQATTN_TRY(check_pointer(centroids, "centroids"));
  bank_type bank(resource);
  pqattn::training_report done;
  PQATTN_TRY(
      pqattn::train_codebook(bank, geometry, rows, weights, params, workspace, workspace_bytes, centroids, done));
  if (objective != nullptr) {
    *objective = done.objective;
  }
  return {};
}

/// Shape, storage and memory of a codebook and of the codes that go with it.
status convert_coded(const pq_geometry* shape, pq_storage storage, const void* codebook, const void* codes,
                     pqattn::resident_codebook<std::byte*>& book, pqattn::code_span<std::byte*>& span) noexcept {
  PQATTN_TRY(convert_geometry(shape, book.shape));
  PQATTN_TRY(convert(storage, pqattn::codebook_storage::i8, "storage", book.storage));
  PQATTN_TRY(check_aligned(codebook, "codebook"));
  PQATTN_TRY(check_aligned(codes, "codes"));
  book.memory = bytes_of(codebook);
  span = {book.shape, bytes_of(codes), nullptr};
  return {};
}

status prepare(const pq_geometry* shape, pq_storage storage, const float* centroids, void* codebook) noexcept {
  pqattn::resident_codebook<std::byte*> book;
  pqattn::code_span<std::byte*> no_codes;
  PQATTN_TRY(convert_coded(shape, storage, codebook, codebook, book, no_codes));
  PQATTN_TRY(check_pointer(centroids, "centroids"));
  return bank_type().store_codebook({book.shape, centroids, 0, 0}, book);
}

status encode(const pq_geometry* shape, pq_storage storage, const void* codebook, const pq_const_rows* rows,
              void* codes, std::size_t first) noexcept {
  pqattn::resident_codebook<std::byte*> book;
  pqattn::code_span<std::byte*> span;
  pqattn::rows_view view;
  PQATTN_TRY(convert_coded(shape, storage, codebook, codes, book, span));
  PQATTN_TRY(convert_one_head(rows, "rows", view));
  bank_type bank;
  return pqattn::encode(bank, view, book, span, {first, view.rows});
}

status decode(const pq_geometry* shape, pq_storage storage, const void* codebook, const void* codes, std::size_t first,
              const pq_rows* rows) noexcept {
  pqattn::resident_codebook<std::byte*> book;
  pqattn::code_span<std::byte*> span;
  pqattn::rows_ref view;
  PQATTN_TRY(convert_coded(shape, storage, codebook, codes, book, span));
  PQATTN_TRY(convert_one_head(rows, "rows", view));
  bank_type bank;
  return pqattn::decode(bank, book, span, {first, view.rows}, view);
}

using source_type = pqattn::token_source<std::byte*>;
using segment_type = pqattn::segment<std::byte*>;

status convert_source(const pq_source& given, const char* subject, source_type& result) noexcept {
  if (given.codes == nullptr) {
    return convert_one_head(&given.exact, subject, result.rows);
  }
  result.coded = true;
  return convert_coded(&given.shape, given.storage, given.codebook, given.codes, result.book, result.codes);
}

/// Everything pq_attend needs of the workspace: segments, score tables, and the attention's own.
struct attend_layout {
  segment_type* segments = nullptr;
  std::byte* tables = nullptr;
  std::byte* attention = nullptr;
  std::size_t attention_bytes = 0;

  void carve(pqattn::carver& memory, std::size_t count, std::size_t table_size, std::size_t attention_size) noexcept {
    segments = memory.take<segment_type>(count);
    tables = memory.take<std::byte>(table_size);
    attention = memory.take<std::byte>(attention_size);
    attention_bytes = attention_size;
  }
};

std::size_t table_bytes(const pq_segment* segments, std::size_t count, std::size_t rows) noexcept {
  std::size_t most = 0;
  bank_type bank;
  for (std::size_t i = 0; i < count; ++i) {
    pqattn::geometry shape;
    if (segments[i].keys.codes != nullptr && convert_geometry(&segments[i].keys.shape, shape)) {
      const std::size_t bytes = pqattn::attention_table_bytes(bank, shape, rows, {});
      most = bytes > most ? bytes : most;
    }
  }
  return most;
}

std::size_t attention_bytes(const pq_segment* segments, std::size_t count, std::size_t rows, std::size_t key_dim,
                            std::size_t value_dim, std::size_t workers) noexcept {
  std::size_t parts = 0;
  for (std::size_t i = 0; i < count; ++i) {  // coded segments begin at the block of their first slot
    parts += (segments[i].tokens + pqattn::block_tokens + pqattn::part_tokens - 1) / pqattn::part_tokens;
  }
  segment_type all;  // the size depends on the number of parts only
  all.slots = {0, parts * pqattn::part_tokens};
  return pqattn::attention_workspace_bytes(&all, 1, rows, key_dim, value_dim, workers);
}

/// Slots that sizes and positions can be computed from.
status check_slots(const pq_segment* segments, std::size_t count) noexcept {
  PQATTN_TRY(check_pointer(count == 0 ? &count : static_cast<const void*>(segments), "segments"));
  for (std::size_t i = 0; i < count; ++i) {
    if (segments[i].first_slot > pqattn::max_segment_slots ||
        segments[i].tokens > pqattn::max_segment_slots - segments[i].first_slot) {
      return failure(status_code::invalid_argument, "segment.first_slot + tokens", "are more than memory can hold",
                     pqattn::max_segment_slots, segments[i].tokens);
    }
  }
  return {};
}

/// A mask whose columns belong to the latest tokens, and the column of the first one: negative when it has none.
status convert_mask(const pq_const_rows* given, const pq_segment* segments, std::size_t count, pqattn::rows_view& bias,
                    std::int64_t& first_column) noexcept {
  if (given == nullptr) {
    return {};
  }
  PQATTN_TRY(convert_one_head(given, "params.bias", bias));
  std::size_t tokens = 0;
  for (std::size_t i = 0; i < count; ++i) {
    tokens += segments[i].tokens;
  }
  if (bias.cols > tokens) {
    return failure(status_code::shape_mismatch, "params.bias", "has more columns than there are tokens", tokens,
                   bias.cols);
  }
  first_column = static_cast<std::int64_t>(bias.cols) - static_cast<std::int64_t>(tokens);
  return {};
}

status attend_segments(const pq_const_rows* queries, const pq_segment* segments, std::size_t count,
                       const pq_segment_params* given, void* workspace, std::size_t workspace_bytes, const pq_rows* out,
                       float* lse_e) {
  pqattn::rows_view query_rows;
  pqattn::rows_ref out_rows;
  pq_segment_params read;
  pqattn::attention_params params;
  PQATTN_TRY(convert_one_head(queries, "queries", query_rows));
  PQATTN_TRY(convert_one_head(out, "out", out_rows));
  PQATTN_TRY(read_params(given, &pq_segment_params_default, "params", read));
  PQATTN_TRY(convert_executor(read.executor, params.parts));
  PQATTN_TRY(check_slots(segments, count));
  params.scale = read.scale;
  params.sink_logits = read.sink_logits;
  params.modifiers.softcap = read.softcap;
  params.modifiers.alibi_slopes = read.alibi_slopes;
  params.modifiers.query_positions = read.query_positions;
  params.modifiers.causal = read.causal != 0;
  params.modifiers.window = read.window;
  std::int64_t column = 0;  // of the next token
  PQATTN_TRY(convert_mask(read.bias, segments, count, params.modifiers.bias, column));

  attend_layout layout;
  pqattn::carver memory(workspace, workspace_bytes);
  layout.carve(memory, count, table_bytes(segments, count, query_rows.rows),
               attention_bytes(segments, count, query_rows.rows, query_rows.cols, out_rows.cols, params.parts.workers));
  if (workspace == nullptr || !memory.fits()) {
    return failure(status_code::capacity, "workspace", "is too small for attention", memory.used(), workspace_bytes);
  }
  for (std::size_t i = 0; i < count; ++i) {
    segment_type& next = *new (layout.segments + i) segment_type();
    PQATTN_TRY(convert_source(segments[i].keys, "segment.keys", next.keys));
    PQATTN_TRY(convert_source(segments[i].values, "segment.values", next.values));
    next.slots = {segments[i].first_slot, segments[i].tokens};
    PQATTN_TRY(pqattn::check_reach(segments[i].first_position, "segment.first_position"));
    // Positions count from slot 0 of the storage.
    next.positions = {segments[i].first_position - static_cast<std::int64_t>(segments[i].first_slot), nullptr};
    next.tables = layout.tables;
    next.columns = {column - static_cast<std::int64_t>(segments[i].first_slot), nullptr};
    column += static_cast<std::int64_t>(segments[i].tokens);
  }
  bank_type bank;
  pqattn::skip_statistics skips;
  convert_skips(read, skips, params);
  PQATTN_TRY(pqattn::attend(bank, query_rows, layout.segments, count, params, layout.attention, layout.attention_bytes,
                            out_rows, lse_e));
  add_skips(skips, read.skips);
  return {};
}

}  // namespace

extern "C" {

const char* pq_status_name(pq_status code) {
  return code < PQ_OK || code > PQ_IO_ERROR ? "unknown" : pqattn::name_of(static_cast<status_code>(code));
}

int32_t pq_version(void) {
  return PQATTN_VERSION;
}

#define PQ_TEXT_OF(number) #number
#define PQ_TEXT(number) PQ_TEXT_OF(number)
const char* pq_version_string(void) {
  return PQ_TEXT(PQATTN_VERSION_MAJOR) "." PQ_TEXT(PQATTN_VERSION_MINOR) "." PQ_TEXT(PQATTN_VERSION_PATCH);
}

const char* pq_arch_name(void) {
  return bank_type().arch_name();
}

void pq_cache_config_default(pq_cache_config* config) {
  const pqattn::cache_config defaults;
  if (!start_defaults(config)) {
    return;
  }
  config->keys.coded = config->values.coded = 1;
  config->keys.shape.stages = config->values.shape.stages = 1;
  config->keys.storage = config->values.storage = static_cast<pq_storage>(defaults.keys.storage);
  config->sinks = defaults.sinks;
  config->recent = defaults.recent;
  config->max_training_tokens = defaults.max_training_tokens;
  config->exact_type = static_cast<pq_dtype>(defaults.exact_type);
  config->rope_theta = 10000.0;
  config->keys_arrive_rotated = 1;
  config->kmeans_iterations = defaults.kmeans.iterations;
  config->seed = defaults.kmeans.seed;
}

void pq_attend_params_default(pq_attend_params* params) {
  if (!start_defaults(params)) {
    return;
  }
  params->first_position = -1;
  params->causal = 1;
  params->skip_mass = pqattn::layer_attention_params{}.skip_mass;
}

pq_status pq_cache_create(const pq_cache_config* config, const pq_allocator* allocator, const pq_executor* executor,
                          pq_cache** cache, pq_error* error) {
  return report(create(config, allocator, executor, "cache", cache), error);
}

void pq_cache_destroy(pq_cache* cache) {
  if (cache != nullptr) {
    destroy(cache, cache->resource);
  }
}

pq_status pq_cache_append(pq_cache* cache, const pq_const_rows* keys, const pq_const_rows* values, const float* weights,
                          pq_error* error) {
  return report(append(cache, keys, values, weights), error);
}

pq_status pq_cache_attend(pq_cache* cache, const pq_const_rows* queries, const pq_attend_params* params,
                          const pq_rows* out, float* lse_e, pq_error* error) {
  return report(attend_layer(cache, queries, params, out, lse_e), error);
}

pq_status pq_cache_read(const pq_cache* cache, size_t first, const pq_rows* keys, const pq_rows* values,
                        pq_error* error) {
  return report(read_layer(cache, first, keys, values), error);
}

pq_status pq_cache_observe(pq_cache* cache, const pq_const_rows* queries, int64_t first_position, pq_error* error) {
  return report(observe(cache == nullptr ? nullptr : &cache->layer, "cache", queries, first_position), error);
}

size_t pq_cache_size(const pq_cache* cache) {
  return cache == nullptr ? 0 : cache->layer.size();
}

size_t pq_cache_coded_tokens(const pq_cache* cache) {
  return cache == nullptr ? 0 : cache->layer.head(0).coded_tokens();
}

void pq_cache_memory(const pq_cache* cache, pq_memory_report* report) {
  if (report == nullptr) {
    return;
  }
  *report = {};
  if (cache == nullptr) {
    return;
  }
  pqattn::memory_report memory = cache->layer.memory();
  memory.metadata_bytes += sizeof(pq_cache) + cache->setup.bytes();
  fill_report(memory, *report);
}

pq_status pq_pool_create(const pq_cache_config* config, const pq_allocator* allocator, const pq_executor* executor,
                         pq_pool** pool, pq_error* error) {
  return report(create(config, allocator, executor, "pool", pool), error);
}

void pq_pool_destroy(pq_pool* pool) {
  if (pool != nullptr) {
    destroy(pool, pool->resource);
  }
}

int32_t pq_pool_trained(const pq_pool* pool) {
  return pool != nullptr && pool->pages.trained() ? 1 : 0;
}

void pq_pool_memory(const pq_pool* pool, pq_memory_report* report) {
  if (report == nullptr) {
    return;
  }
  *report = {};
  if (pool != nullptr) {
    pqattn::memory_report memory = pool->pages.memory();
    memory.metadata_bytes += sizeof(pq_pool) + pool->setup.bytes();
    memory.scratch_bytes += pool->batch.bytes() + pool->entries.size();
    fill_report(memory, *report);
  }
}

size_t pq_pool_drift(const pq_pool* pool, float* key_ratio, float* value_ratio) {
  const pqattn::drift_report drift = pool == nullptr ? pqattn::drift_report{} : pool->pages.drift();
  if (key_ratio != nullptr) {
    *key_ratio = drift.key_ratio;
  }
  if (value_ratio != nullptr) {
    *value_ratio = drift.value_ratio;
  }
  return drift.rows;
}

void pq_pool_release_epochs(pq_pool* pool) {
  for (std::size_t i = pool == nullptr ? 0 : pool->pages.epoch_count(); i > 0; --i) {
    // Those that nothing holds are refused, and stay as long as they have tokens.
    static_cast<void>(pool->pages.release_epoch(pool->pages.epoch_id(pool->pages.epoch_in_order(i - 1))));
  }
}

pq_status pq_sequence_create(pq_pool* pool, pq_sequence** sequence, pq_error* error) {
  status outcome = check_pointer(pool, "pool");
  outcome = outcome ? check_pointer(sequence, "sequence") : outcome;
  if (outcome) {
    void* memory = pool->resource.allocate(pool->resource.self, sizeof(pq_sequence));
    if (memory == nullptr) {
      outcome = failure(status_code::out_of_memory, "allocator", "refused an allocation", sizeof(pq_sequence), 0);
    } else {
      *sequence = new (memory) pq_sequence(pool);
    }
  }
  return report(outcome, error);
}

void pq_sequence_destroy(pq_sequence* sequence) {
  if (sequence != nullptr) {
    destroy(sequence, sequence->pool->resource);
  }
}

size_t pq_sequence_size(const pq_sequence* sequence) {
  return sequence == nullptr ? 0 : sequence->tokens.size();
}

size_t pq_sequence_coded_tokens(const pq_sequence* sequence) {
  return sequence == nullptr ? 0 : sequence->tokens.coded_tokens();
}

size_t pq_sequence_metadata_bytes(const pq_sequence* sequence) {
  return sequence == nullptr ? 0 : sizeof(pq_sequence) + sequence->tokens.metadata_bytes();
}

int64_t pq_sequence_next_position(const pq_sequence* sequence) {
  return sequence == nullptr ? 0 : sequence->tokens.next_position();
}

void pq_append_options_default(pq_append_options* options) {
  static_cast<void>(start_defaults(options));
}

pq_status pq_sequence_append(pq_sequence* sequence, const pq_const_rows* keys, const pq_const_rows* values,
                             const pq_append_options* options, pq_error* error) {
  return report(append_tokens(sequence, keys, values, options, false), error);
}

pq_status pq_sequence_refresh(pq_sequence* sequence, const pq_const_rows* keys, const pq_const_rows* values,
                              const pq_append_options* options, pq_error* error) {
  return report(append_tokens(sequence, keys, values, options, true), error);
}

pq_status pq_sequence_observe(pq_sequence* sequence, const pq_const_rows* queries, int64_t first_position,
                              pq_error* error) {
  return report(observe(sequence == nullptr ? nullptr : &sequence->tokens, "sequence", queries, first_position), error);
}

pq_status pq_sequence_reserve(pq_sequence* sequence, size_t tokens, pq_error* error) {
  const status given = check_pointer(sequence, "sequence");
  return report(given ? sequence->tokens.reserve(tokens, sequence->pool->parts.workers) : given, error);
}

void pq_sequence_truncate(pq_sequence* sequence, size_t tokens) {
  if (sequence != nullptr) {
    sequence->tokens.truncate(tokens);
  }
}

pq_status pq_sequence_remove(pq_sequence* sequence, size_t first, size_t count, pq_error* error) {
  const status given = check_pointer(sequence, "sequence");
  return report(given ? sequence->tokens.remove(first, count) : given, error);
}

pq_status pq_sequence_fork(const pq_sequence* sequence, pq_sequence* copy, pq_error* error) {
  return report(fork_sequence(sequence, copy), error);
}

pq_status pq_sequence_select(pq_sequence* const* sequences, size_t count, const size_t* parents, pq_error* error) {
  return report(select_sequences(sequences, count, parents), error);
}

int32_t pq_sequence_shift_is_exact(const pq_sequence* sequence) {
  return sequence != nullptr && sequence->tokens.can_shift() == pqattn::shift_cost::exact ? 1 : 0;
}

pq_status pq_sequence_shift(pq_sequence* sequence, size_t first, size_t count, int64_t delta, double* added_error,
                            pq_error* error) {
  return report(shift_tokens(sequence, first, count, delta, added_error), error);
}

pq_status pq_sequence_read(const pq_sequence* sequence, size_t first, const pq_rows* keys, const pq_rows* values,
                           pq_error* error) {
  const status given = check_pointer(sequence, "sequence");
  return report(given ? read_heads(sequence->pool->pages.kv_heads(), keys, values,
                                   [&](std::size_t head, const pqattn::rows_ref& key, const pqattn::rows_ref& value) {
                                     return sequence->tokens.read(head, first, key, value);
                                   })
                      : given,
                error);
}

void pq_batch_params_default(pq_batch_params* params) {
  if (!start_defaults(params)) {
    return;
  }
  params->causal = 1;
  params->skip_mass = pqattn::batch_params{}.skip_mass;
}

pq_status pq_batch_attend(pq_pool* pool, const pq_batch_entry* entries, size_t count, const pq_const_rows* queries,
                          const pq_batch_params* params, const pq_rows* out, float* lse_e, pq_error* error) {
  return report(attend_batch(pool, entries, count, queries, params, out, lse_e), error);
}

pq_status pq_pool_write_codebooks(const pq_pool* pool, pq_write write, void* user, pq_error* error) {
  return report(write_snapshot(pool, "pool", write, user,
                               [&](const pqattn::snapshot_sink& sink) { return write_codebooks(pool->pages, sink); }),
                error);
}

pq_status pq_pool_load_codebooks(pq_pool* pool, const void* data, size_t bytes, pq_error* error) {
  return report(load_snapshot(pool, "pool", data, bytes,
                              [&](const pqattn::snapshot_view& view) { return load_codebooks(view, pool->pages); }),
                error);
}

pq_status pq_sequence_write(const pq_sequence* sequence, pq_write write, void* user, pq_error* error) {
  return report(
      write_snapshot(sequence, "sequence", write, user,
                     [&](const pqattn::snapshot_sink& sink) { return write_sequence(sequence->tokens, sink); }),
      error);
}

pq_status pq_sequence_load(pq_sequence* sequence, const void* data, size_t bytes, pq_error* error) {
  return report(load_snapshot(sequence, "sequence", data, bytes,
                              [&](const pqattn::snapshot_view& view) { return load_sequence(view, sequence->tokens); }),
                error);
}

size_t pq_codebook_floats(const pq_geometry* shape) {
  pqattn::geometry geometry;
  return convert_geometry(shape, geometry) ? geometry.codebook_values() : 0;
}

size_t pq_codebook_bytes(const pq_geometry* shape, pq_storage storage) {
  pqattn::geometry geometry;
  pqattn::codebook_storage kind{};
  return convert_geometry(shape, geometry) && convert(storage, pqattn::codebook_storage::i8, "storage", kind)
             ? bank_type().codebook_bytes(geometry, kind)
             : 0;
}

size_t pq_codes_bytes(const pq_geometry* shape, size_t tokens) {
  pqattn::geometry geometry;
  return convert_geometry(shape, geometry) ? pqattn::blocks_for(tokens) * bank_type().code_block_bytes(geometry) : 0;
}

void pq_train_params_default(pq_train_params* params) {
  if (!start_defaults(params)) {
    return;
  }
  params->storage = PQ_STORE_I8;
  params->iterations = pqattn::kmeans_params{}.iterations;
  params->seed = pqattn::kmeans_params{}.seed;
}

size_t pq_train_workspace_bytes(const pq_geometry* shape, const pq_const_rows* samples, const pq_train_params* params) {
  pqattn::geometry geometry;
  pqattn::rows_view rows;
  pq_train_params read;
  pqattn::training_params converted;
  if (!convert_geometry(shape, geometry) || !convert_one_head(samples, "samples", rows) ||
      !convert_training(params, read, converted)) {
    return 0;
  }
  bank_type bank;
  return pqattn::training_workspace_bytes(bank, geometry, rows, converted);
}

pq_status pq_train(const pq_geometry* shape, const pq_const_rows* samples, const float* weights,
                   const pq_train_params* params, void* workspace, size_t workspace_bytes, float* centroids,
                   double* objective, pq_error* error) {
  return report(train(shape, samples, weights, params, workspace, workspace_bytes, centroids, objective), error);
}

pq_status pq_codebook_prepare(const pq_geometry* shape, pq_storage storage, const float* centroids, void* codebook,
                              pq_error* error) {
  return report(prepare(shape, storage, centroids, codebook), error);
}

pq_status pq_encode(const pq_geometry* shape, pq_storage storage, const void* codebook, const pq_const_rows* rows,
                    void* codes, size_t first_slot, pq_error* error) {
  return report(encode(shape, storage, codebook, rows, codes, first_slot), error);
}

pq_status pq_decode(const pq_geometry* shape, pq_storage storage, const void* codebook, const void* codes,
                    size_t first_slot, const pq_rows* rows, pq_error* error) {
  return report(decode(shape, storage, codebook, codes, first_slot, rows), error);
}

void pq_segment_params_default(pq_segment_params* params) {
  if (!start_defaults(params)) {
    return;
  }
  params->skip_mass = pqattn::attention_params{}.skip_mass;
}

size_t pq_attend_workspace_bytes(const pq_segment* segments, size_t segment_count, size_t rows, size_t key_dim,
                                 size_t value_dim, const pq_segment_params* params) {
  pq_segment_params read;
  pqattn::executor parts;
  if (!read_params(params, &pq_segment_params_default, "params", read) || !convert_executor(read.executor, parts) ||
      !check_slots(segments, segment_count)) {
    return 0;
  }
  pqattn::carver memory;
  attend_layout{}.carve(memory, segment_count, table_bytes(segments, segment_count, rows),
                        attention_bytes(segments, segment_count, rows, key_dim, value_dim, parts.workers));
  return memory.required();
}

pq_status pq_attend(const pq_const_rows* queries, const pq_segment* segments, size_t segment_count,
                    const pq_segment_params* params, void* workspace, size_t workspace_bytes, const pq_rows* out,
                    float* lse_e, pq_error* error) {
  return report(attend_segments(queries, segments, segment_count, params, workspace, workspace_bytes, out, lse_e),
                error);
}

void pq_merge(float* out, float* lse_e, const float* other_out, const float* other_lse_e, size_t rows, size_t dim) {
  // merge() only reads its second argument; partial_state has no const twin.
  pqattn::merge({out, dim, lse_e, rows, dim},
                {const_cast<float*>(other_out), dim, const_cast<float*>(other_lse_e), rows, dim});
}

}  // extern "C"
