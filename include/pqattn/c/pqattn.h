/* SPDX-License-Identifier: MIT
 *
 * C interface of pqattn, for C11 and for languages that call C: library target pqattn::pqattn_c (shared) or
 * pqattn::pqattn_c_static.
 *
 * - Every fallible function returns a pq_status and, through an optional pq_error the caller owns, a message that says
 *   what was expected and what was given. No exception crosses, nothing is printed, no state is global or per thread.
 * - Strides are in elements, not bytes; any alignment of the element type is allowed.
 * - Structs that may grow start with `struct_bytes`; fill them with their pq_*_default function, then change fields.
 * - docs/c_api.md has a complete program.
 */
#ifndef PQATTN_C_PQATTN_H
#define PQATTN_C_PQATTN_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(PQATTN_C_SHARED)
#ifdef PQATTN_C_BUILDING
#define PQ_API __declspec(dllexport)
#else
#define PQ_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define PQ_API __attribute__((visibility("default")))
#else
#define PQ_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* --- status --------------------------------------------------------------------------------------------------- */

typedef int32_t pq_status;
enum {
  PQ_OK = 0,
  PQ_INVALID_ARGUMENT = 1, /* a value outside its documented range, a null pointer */
  PQ_SHAPE_MISMATCH = 2,
  PQ_UNSUPPORTED = 3,
  PQ_OUT_OF_MEMORY = 4,
  PQ_CAPACITY = 5, /* a buffer given by the caller is too small */
  PQ_NOT_FINITE = 6,
  PQ_TOO_FEW_SAMPLES = 7,
  PQ_CANCELLED = 8,
  PQ_CORRUPT_DATA = 9,
  PQ_IO_ERROR = 10
};

/* Written by a failing call when its `error` argument is not null; a successful call sets code 0 and message "". */
typedef struct pq_error {
  pq_status code;
  char message[252]; /* always terminated */
} pq_error;

/* Short stable name, e.g. "shape_mismatch". */
PQ_API const char* pq_status_name(pq_status code);

/* 10000 * major + 100 * minor + patch of the library that runs. */
PQ_API int32_t pq_version(void);
PQ_API const char* pq_version_string(void);
/* The instruction set the library was compiled for, e.g. "avx512vbmi", "sse2". */
PQ_API const char* pq_arch_name(void);

/* --- callbacks ------------------------------------------------------------------------------------------------ */

/* Memory of cache objects and of training. `allocate` returns memory aligned to 64 bytes, or null to refuse;
 * `deallocate` gets the same size back. A null pq_allocator* means the library's default: operator new without
 * exceptions. */
typedef struct pq_allocator {
  void* (*allocate)(void* user, size_t bytes);
  void (*deallocate)(void* user, void* memory, size_t bytes);
  void* user;
} pq_allocator;

/* Runs numbered parts: `run` must call task(context, part, worker) exactly once for every part in [0, parts) and
 * return when all are done; parts that run at the same time have different `worker` numbers below `workers`. Results
 * are the same bits for any executor. A null pq_executor* means: on the calling thread. */
typedef void (*pq_task)(void* context, size_t part, size_t worker);
typedef struct pq_executor {
  void (*run)(void* user, size_t parts, pq_task task, void* context);
  void* user;
  size_t workers; /* 1 to 4096 */
} pq_executor;

/* --- data ----------------------------------------------------------------------------------------------------- */

typedef int32_t pq_dtype;
enum { PQ_F32 = 0, PQ_F16 = 1, PQ_BF16 = 2 };

typedef int32_t pq_storage; /* of codebooks */
enum { PQ_STORE_F32 = 0, PQ_STORE_F16 = 1, PQ_STORE_I8 = 2 };

typedef int32_t pq_pairing; /* of RoPE channels */
enum {
  PQ_HALF_SPLIT = 0, /* pair i is (i, i + pairs) */
  PQ_INTERLEAVED = 1 /* pair i is (2 i, 2 i + 1) */
};

/* Rows of several heads in the caller's memory: element (head, row, channel) at
 * data + head * head_stride + row * row_stride + channel * col_stride elements. Level-0 functions take one head. */
typedef struct pq_const_rows {
  const void* data;
  pq_dtype dtype;
  size_t heads;
  size_t rows;
  size_t cols;
  ptrdiff_t head_stride;
  ptrdiff_t row_stride;
  ptrdiff_t col_stride;
} pq_const_rows;

typedef struct pq_rows {
  void* data;
  pq_dtype dtype;
  size_t heads;
  size_t rows;
  size_t cols;
  ptrdiff_t head_stride;
  ptrdiff_t row_stride;
  ptrdiff_t col_stride;
} pq_rows;

/* How a row of `dim` channels is coded: `subvectors` runs, each by one of `centroids` centroids per stage. */
typedef struct pq_geometry {
  uint32_t dim;        /* 1 to 1024 */
  uint32_t subvectors; /* 1 to dim */
  uint32_t centroids;  /* 2 to 65536 */
  uint32_t stages;     /* 1 to 8; 1 is plain product quantization */
} pq_geometry;

/* --- level 1: the KV cache of one layer ----------------------------------------------------------------------- */

typedef struct pq_cache pq_cache;

/* How the keys or the values are kept. `shape.dim` is needed either way, the rest when `coded` is not 0. */
typedef struct pq_side_config {
  int32_t coded;
  pq_geometry shape;
  pq_storage storage;
} pq_side_config;

typedef struct pq_cache_config {
  size_t struct_bytes;
  size_t kv_heads;
  pq_side_config keys;
  pq_side_config values;
  uint32_t sinks;               /* first tokens kept exact */
  uint32_t recent;              /* latest tokens kept exact */
  uint32_t train_tokens;        /* tokens at which codebooks are trained; 0: four per centroid */
  uint32_t max_training_tokens; /* most tokens that training looks at */
  pq_dtype exact_type;          /* of sinks, recent tokens and exact sides */
  /* RoPE of the model: rope_pairs 0 is none. With `rope_frequencies` null they are rope_theta^(-i / rope_pairs); else
   * rope_pairs radians per position, copied. */
  uint32_t rope_pairs;
  pq_pairing rope_pairing;
  double rope_theta;
  const float* rope_frequencies;
  int32_t keys_arrive_rotated;  /* 0: keys are handed over before RoPE */
  int32_t code_keys_after_rope; /* 0: keys are coded before RoPE, the accurate choice */
  uint32_t kmeans_iterations;
  uint64_t seed;
  /* Above 0: shapes and training are those of the preset for that many bits per element (cache/presets.hpp), taught by
   * train_tokens tokens (0: 1536); of the shapes only `dim` is then read, and coded, storage and kmeans_iterations are
   * not. Show it its queries with pq_*_observe. */
  double preset_bits;
  float outlier_share;   /* share of the coded tokens that may stay exact */
  uint32_t coding_batch; /* tokens that leave the window at a time; 0: 1, or the preset's */
  /* Latent attention (MLA), of pools only: exact channels behind the coded ones of each key, which alone are rotated,
   * and whether the coded channels are the values, too (`values` must equal `keys`). Not with a preset. */
  uint32_t key_tail;
  int32_t values_from_keys;
  int32_t track_errors; /* not 0: coding measures its errors even without outliers, for pq_pool_drift */
  uint32_t most_epochs; /* of codebooks that a pool holds, see pq_sequence_refresh: 1 to 64; 0: the default */
} pq_cache_config;

/* What attention left out, over all KV heads of a call. */
typedef struct pq_skip_statistics {
  uint64_t blocks;  /* of 64 coded values, or of fewer where a segment ends */
  uint64_t skipped; /* of which were left out */
} pq_skip_statistics;

typedef struct pq_attend_params {
  size_t struct_bytes;
  float scale;            /* 0: 1 / sqrt(d_k) */
  int64_t first_position; /* of the first query token, the others follow; negative: the queries are the latest tokens */
  int32_t causal;
  int64_t window;            /* > 0: only the last `window` positions, the query's own included */
  float softcap;             /* > 0: cap * tanh(score / cap) */
  const float* alibi_slopes; /* (query heads) or null */
  const float* sink_logits;  /* (query heads) or null */
  /* Explicit mask (1 or q_heads, n, columns), or null: added to scores; -65504 and below, infinities and NaN exclude.
   * Columns belong to the latest tokens of the cache. */
  const pq_const_rows* bias;
  /* Blocks of coded values are left out while their probability mass stays at most this share of each query's: the
   * output moves by at most 2 * skip_mass * max |v|. 5e-5 by default; 0: none are. */
  float skip_mass;
  pq_skip_statistics* skips; /* or null: a call that succeeds adds its counts */
} pq_attend_params;

typedef struct pq_memory_report {
  size_t codes_bytes;
  size_t codebooks_bytes;
  size_t transforms_bytes; /* metrics of keys and rotations of values, of presets */
  size_t exact_bytes;
  size_t metadata_bytes;
  size_t scratch_bytes;
  size_t total_bytes;
  size_t tokens;
  size_t elements;         /* tokens * (d_k + d_v), over all heads */
  double bits_per_element; /* everything but scratch */
} pq_memory_report;

/* All pq_*_default functions do nothing with null.
 * Defaults: 8 sinks, 32 recent tokens, f16 exact rows, both sides coded with byte codebooks, no RoPE. The shapes and
 * kv_heads are the caller's to set. */
PQ_API void pq_cache_config_default(pq_cache_config* config);
PQ_API void pq_attend_params_default(pq_attend_params* params);

/* Makes an empty cache; *cache is written on success only. The allocator and executor structs are copied, what they
 * point to must outlive the cache. */
PQ_API pq_status pq_cache_create(const pq_cache_config* config, const pq_allocator* allocator,
                                 const pq_executor* executor, pq_cache** cache, pq_error* error);
/* Null is allowed. */
PQ_API void pq_cache_destroy(pq_cache* cache);

/* Appends keys (kv_heads, n, d_k) and values (kv_heads, n, d_v); `weights` (kv_heads, n) importance for training, or
 * null. After any error the cache is as before. */
PQ_API pq_status pq_cache_append(pq_cache* cache, const pq_const_rows* keys, const pq_const_rows* values,
                                 const float* weights, pq_error* error);

/* Attention of queries (q_heads, n, d_k), rotated, q_heads a multiple of kv_heads, into out (q_heads, n, d_v).
 * lse_e (q_heads, n), natural logarithm, or null. `params` null means the defaults. One append or attend at a time per
 * cache. */
PQ_API pq_status pq_cache_attend(pq_cache* cache, const pq_const_rows* queries, const pq_attend_params* params,
                                 const pq_rows* out, float* lse_e, pq_error* error);

/* Shows queries (q_heads, n, d_k), rotated, of positions first_position, first_position + 1, ... for the training to
 * come. Does nothing for configurations that learn nothing from them, and after training. */
PQ_API pq_status pq_cache_observe(pq_cache* cache, const pq_const_rows* queries, int64_t first_position,
                                  pq_error* error);

/* Copies tokens [first, first + keys->rows) of all heads out, coded ones decoded, keys rotated. */
PQ_API pq_status pq_cache_read(const pq_cache* cache, size_t first, const pq_rows* keys, const pq_rows* values,
                               pq_error* error);

PQ_API size_t pq_cache_size(const pq_cache* cache);
/* Tokens per head that are coded now; 0 until codebooks are trained. */
PQ_API size_t pq_cache_coded_tokens(const pq_cache* cache);
PQ_API void pq_cache_memory(const pq_cache* cache, pq_memory_report* report);

/* --- level 1: sequences over a pool of pages ------------------------------------------------------------------- */

/* What all sequences of one layer share: pages of coded and exact tokens, and the codebooks, which the first sequence
 * trains that is long enough. Sequences refer to the pool and must be destroyed before it. One writer at a time for a
 * pool and all its sequences; any number of readers (read, write_*) meanwhile. docs/sequences.md describes what edits
 * do. */
typedef struct pq_pool pq_pool;
typedef struct pq_sequence pq_sequence;

PQ_API pq_status pq_pool_create(const pq_cache_config* config, const pq_allocator* allocator,
                                const pq_executor* executor, pq_pool** pool, pq_error* error);
PQ_API void pq_pool_destroy(pq_pool* pool); /* null is allowed */
PQ_API int32_t pq_pool_trained(const pq_pool* pool);
/* Memory of the pool; tokens and elements stay 0, its sequences have pq_sequence_metadata_bytes each besides. */
PQ_API void pq_pool_memory(const pq_pool* pool, pq_memory_report* report);
/* How well the newest codebooks serve what is coded now: mean error over that of the training rows, of keys and values
 * (either may be null), 1 when nothing is measured (see track_errors). Returns the tokens measured since training. */
PQ_API size_t pq_pool_drift(const pq_pool* pool, float* key_ratio, float* value_ratio);
/* Older epochs that pq_pool_load_codebooks brought wait for their sequences; this gives back those that have none. */
PQ_API void pq_pool_release_epochs(pq_pool* pool);

PQ_API pq_status pq_sequence_create(pq_pool* pool, pq_sequence** sequence, pq_error* error);
/* Gives its pages back. Null is allowed. */
PQ_API void pq_sequence_destroy(pq_sequence* sequence);
PQ_API size_t pq_sequence_size(const pq_sequence* sequence);
PQ_API size_t pq_sequence_coded_tokens(const pq_sequence* sequence);
PQ_API size_t pq_sequence_metadata_bytes(const pq_sequence* sequence);
/* Of the next token, unless positions are given. */
PQ_API int64_t pq_sequence_next_position(const pq_sequence* sequence);

typedef struct pq_append_options {
  size_t struct_bytes;
  const int64_t* positions; /* (n), 0 to 2^31 - 1, or null: each follows the one before */
  const float* weights;     /* (kv_heads, n) importance for training, or null */
  /* Called during training with what is done and what there is to do; 0 cancels the append with PQ_CANCELLED. */
  int32_t (*progress)(void* user, size_t done, size_t total);
  void* progress_user;
} pq_append_options;
PQ_API void pq_append_options_default(pq_append_options* options);

/* Appends keys (kv_heads, n, d_k) and values (kv_heads, n, d_v); keys have their tail, and `values` is null where they
 * come from the keys. `options` null means the defaults. After any error this and every other sequence of the pool is
 * as before; so it is for the functions below. */
PQ_API pq_status pq_sequence_append(pq_sequence* sequence, const pq_const_rows* keys, const pq_const_rows* values,
                                    const pq_append_options* options, pq_error* error);
/* Trains new codebooks for the pool, its next epoch, on these rows (given as for pq_sequence_append, but not kept) and
 * on those that are exact in the sequence's recent window. Tokens of any sequence are coded in it from now on; what is
 * coded stays as it is, and its codebooks go with its last token. PQ_CAPACITY: most_epochs are in use. */
PQ_API pq_status pq_sequence_refresh(pq_sequence* sequence, const pq_const_rows* keys, const pq_const_rows* values,
                                     const pq_append_options* options, pq_error* error);
/* As pq_cache_observe. */
PQ_API pq_status pq_sequence_observe(pq_sequence* sequence, const pq_const_rows* queries, int64_t first_position,
                                     pq_error* error);
/* Makes room, so that appends of `tokens` tokens in all allocate nothing but what training needs; docs/sequences.md
 * says how long it lasts. 0 gives what was reserved back. */
PQ_API pq_status pq_sequence_reserve(pq_sequence* sequence, size_t tokens, pq_error* error);
/* Keeps the first `tokens` tokens: what is left of drafts after verification, for example. Cannot fail. */
PQ_API void pq_sequence_truncate(pq_sequence* sequence, size_t tokens);
PQ_API pq_status pq_sequence_remove(pq_sequence* sequence, size_t first, size_t count, pq_error* error);
/* Makes `copy`, a sequence of the same pool, hold the same tokens; pages are shared until one side writes. */
PQ_API pq_status pq_sequence_fork(const pq_sequence* sequence, pq_sequence* copy, pq_error* error);
/* Beam search: sequences[i] becomes a copy of what sequences[parents[i]] held before; all or nothing. */
PQ_API pq_status pq_sequence_select(pq_sequence* const* sequences, size_t count, const size_t* parents,
                                    pq_error* error);
/* 1 when pq_sequence_shift leaves codes alone, 0 when keys are decoded, turned and coded again. */
PQ_API int32_t pq_sequence_shift_is_exact(const pq_sequence* sequence);
/* Adds `delta` to the positions of tokens [first, first + count). `added_error`, or null, receives the error that
 * coding again added, as a share of the keys' energy. */
PQ_API pq_status pq_sequence_shift(pq_sequence* sequence, size_t first, size_t count, int64_t delta,
                                   double* added_error, pq_error* error);
/* Copies tokens [first, first + keys->rows) of all heads out, coded ones decoded, keys rotated. */
PQ_API pq_status pq_sequence_read(const pq_sequence* sequence, size_t first, const pq_rows* keys, const pq_rows* values,
                                  pq_error* error);

/* One request of a batch: query tokens [first_query, first_query + queries) attend to the union of some sequences and,
 * optionally, to tokens that are not appended yet (a chunk of a prompt, drafts), exact. */
typedef struct pq_batch_entry {
  size_t first_query;
  size_t queries;
  int64_t first_position; /* of its first query token, the others follow; see pq_batch_params.positions */
  const pq_sequence* const* sequences;
  size_t sequence_count;
  const pq_const_rows* new_keys;   /* (kv_heads, n, d_k), rotated, or null */
  const pq_const_rows* new_values; /* (kv_heads, n, d_v), or null */
  int64_t new_position;            /* of the first new token, the others follow */
  const int32_t* new_positions;    /* (n) instead, or null */
  /* Explicit mask (1 or q_heads, queries, columns), or null: added to scores, -infinity excludes. Columns belong to the
   * latest tokens of the context, the new ones last. */
  const pq_const_rows* bias;
} pq_batch_entry;

typedef struct pq_batch_params {
  size_t struct_bytes;
  float scale; /* 0: 1 / sqrt(d_k) */
  int32_t causal;
  int64_t window;
  float softcap;
  const float* alibi_slopes; /* (query heads) or null */
  const float* sink_logits;  /* (query heads) or null */
  const int64_t* positions;  /* of every query token of the batch, or null */
  float skip_mass;           /* as in pq_attend_params */
  pq_skip_statistics* skips; /* or null, the same: counts of all entries */
} pq_batch_params;
PQ_API void pq_batch_params_default(pq_batch_params* params);

/* Attention of all entries: queries (q_heads, tokens, d_k), rotated, into out (q_heads, tokens, d_v) and lse_e
 * (q_heads, tokens) or null. Each entry gets the bits it gets alone. `params` null means the defaults. Query tokens of
 * no entry are left alone. One call at a time per pool. */
PQ_API pq_status pq_batch_attend(pq_pool* pool, const pq_batch_entry* entries, size_t count,
                                 const pq_const_rows* queries, const pq_batch_params* params, const pq_rows* out,
                                 float* lse_e, pq_error* error);

/* Snapshots (docs/snapshot.md): bytes in order to `write`, which returns 0 to stop with PQ_IO_ERROR; loaded from
 * memory. A sequence loads into a pool of the same configuration and codebooks. All or nothing. */
typedef int32_t (*pq_write)(void* user, const void* data, size_t bytes);
PQ_API pq_status pq_pool_write_codebooks(const pq_pool* pool, pq_write write, void* user, pq_error* error);
PQ_API pq_status pq_pool_load_codebooks(pq_pool* pool, const void* data, size_t bytes, pq_error* error);
PQ_API pq_status pq_sequence_write(const pq_sequence* sequence, pq_write write, void* user, pq_error* error);
PQ_API pq_status pq_sequence_load(pq_sequence* sequence, const void* data, size_t bytes, pq_error* error);

/* --- level 0: no state, the caller owns all memory, sizes are asked for first --------------------------------- */

/* Size functions return 0 for an invalid geometry. */
PQ_API size_t pq_codebook_floats(const pq_geometry* shape);                    /* floats of trained centroids */
PQ_API size_t pq_codebook_bytes(const pq_geometry* shape, pq_storage storage); /* of a prepared codebook */
PQ_API size_t pq_codes_bytes(const pq_geometry* shape, size_t tokens);         /* of codes, whole blocks of 64 */

/* Trains centroids on samples (1, n, dim); `weights` (n) or null. `workspace` of pq_train_workspace_bytes bytes, any
 * alignment; the allocator serves
 * the points of one sub-vector per worker. On error `centroids` is as before. */
typedef struct pq_train_params {
  size_t struct_bytes;
  pq_storage storage; /* what the centroids are rounded to */
  uint32_t iterations;
  uint64_t seed;
  const pq_executor* executor;   /* or null */
  const pq_allocator* allocator; /* of the points of one sub-vector per worker, or null */
} pq_train_params;
PQ_API void pq_train_params_default(pq_train_params* params);
PQ_API size_t pq_train_workspace_bytes(const pq_geometry* shape, const pq_const_rows* samples,
                                       const pq_train_params* params);
PQ_API pq_status pq_train(const pq_geometry* shape, const pq_const_rows* samples, const float* weights,
                          const pq_train_params* params, void* workspace, size_t workspace_bytes, float* centroids,
                          double* objective, pq_error* error);

/* Brings centroids into the form the kernels read: `codebook` has pq_codebook_bytes bytes, 64-byte aligned. */
PQ_API pq_status pq_codebook_prepare(const pq_geometry* shape, pq_storage storage, const float* centroids,
                                     void* codebook, pq_error* error);

/* Codes rows (1, n, dim) into slots [first_slot, first_slot + n) of `codes`, which has pq_codes_bytes bytes, 64-byte
 * aligned, set to zero before the first use. pq_decode is its inverse up to the coding error. */
PQ_API pq_status pq_encode(const pq_geometry* shape, pq_storage storage, const void* codebook,
                           const pq_const_rows* rows, void* codes, size_t first_slot, pq_error* error);
PQ_API pq_status pq_decode(const pq_geometry* shape, pq_storage storage, const void* codebook, const void* codes,
                           size_t first_slot, const pq_rows* rows, pq_error* error);

/* The keys or values of a segment: codes with their codebook, or, with `codes` null, exact rows (1, tokens, d). */
typedef struct pq_source {
  pq_geometry shape;
  pq_storage storage;
  const void* codebook;
  const void* codes;
  pq_const_rows exact;
} pq_source;

/* `tokens` tokens of one KV head: slots (rows, when exact) first_slot, first_slot + 1, ... of both sources, at
 * positions first_position, first_position + 1, ... */
typedef struct pq_segment {
  pq_source keys;
  pq_source values;
  size_t first_slot;
  size_t tokens;
  int64_t first_position;
} pq_segment;

typedef struct pq_segment_params {
  size_t struct_bytes;
  float scale;
  float softcap;
  const int64_t* query_positions; /* (rows); needed by causal, window, ALiBi */
  int32_t causal;
  int64_t window;
  const float* alibi_slopes;   /* (rows) or null */
  const float* sink_logits;    /* (rows) or null */
  const pq_executor* executor; /* or null */
  /* Explicit mask (1, rows, columns), or null: added to scores, -infinity excludes. Columns belong to the latest tokens
   * of the segments, in their order; tokens before the first column have none. */
  const pq_const_rows* bias;
  float skip_mass;           /* as in pq_attend_params */
  pq_skip_statistics* skips; /* or null, the same */
} pq_segment_params;
PQ_API void pq_segment_params_default(pq_segment_params* params);

/* Attention of query rows (1, rows, d_k) over the union of the segments (no RoPE: keys are as the queries see them)
 * into out (1, rows, d_v) and lse_e (rows) or null. `workspace` of pq_attend_workspace_bytes bytes, any alignment.
 * Nothing is allocated. On errors out is as before. */
PQ_API size_t pq_attend_workspace_bytes(const pq_segment* segments, size_t segment_count, size_t rows, size_t key_dim,
                                        size_t value_dim, const pq_segment_params* params);
PQ_API pq_status pq_attend(const pq_const_rows* queries, const pq_segment* segments, size_t segment_count,
                           const pq_segment_params* params, void* workspace, size_t workspace_bytes, const pq_rows* out,
                           float* lse_e, pq_error* error);

/* Merges the state of another, disjoint set of tokens into (out, lse_e): dense f32 (rows, dim) and (rows). (0,
 * -infinity) is neutral. */
PQ_API void pq_merge(float* out, float* lse_e, const float* other_out, const float* other_lse_e, size_t rows,
                     size_t dim);

#ifdef __cplusplus
}
#endif

#endif
