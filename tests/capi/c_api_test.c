/* SPDX-License-Identifier: MIT
 * The C interface as a C11 program meets it: caches and level 0 against attention in double precision, errors with
 * their messages, allocators that count and refuse, executors that shuffle. */
#include <math.h>
#include <pqattn/c/pqattn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);          \
      ++failures;                                                             \
    }                                                                         \
  } while (0)

/* Stops: what follows would read what was never made. */
#define REQUIRE(condition)                                                    \
  do {                                                                        \
    if (!(condition)) {                                                       \
      printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);          \
      exit(1);                                                                \
    }                                                                         \
  } while (0)

enum { dim_k = 24, dim_v = 20, kv_heads = 2, q_heads = 6, tokens = 700 };

/* --- data --- */

static uint64_t random_state = 1;
static float random_float(void) { /* in [-1, 1) */
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (float)((double)(random_state >> 11) * 0x1p-52 - 1.0);
}

static float* random_floats(size_t count) {
  float* values = malloc(count * sizeof *values);
  REQUIRE(values != NULL);
  for (size_t i = 0; i < count; ++i) {
    values[i] = random_float();
  }
  return values;
}

/* Dense (heads, rows, cols). */
static pq_const_rows view(const float* data, size_t heads, size_t rows, size_t cols) {
  pq_const_rows made = {data, PQ_F32, heads, rows, cols, (ptrdiff_t)(rows * cols), (ptrdiff_t)cols, 1};
  return made;
}
static pq_rows ref(float* data, size_t heads, size_t rows, size_t cols) {
  pq_rows made = {data, PQ_F32, heads, rows, cols, (ptrdiff_t)(rows * cols), (ptrdiff_t)cols, 1};
  return made;
}

/* Attention of one query over rows of one head, by the definition; returns the natural-log LSE. */
static double attend_by_definition(const float* query, const float* keys, const float* values, size_t count,
                                   double* out) {
  double most = -HUGE_VAL;
  double sum = 0.0;
  double scores[tokens];
  for (size_t t = 0; t < count; ++t) {
    scores[t] = 0.0;
    for (size_t c = 0; c < dim_k; ++c) {
      scores[t] += (double)query[c] * (double)keys[t * dim_k + c];
    }
    scores[t] /= sqrt((double)dim_k);
    most = scores[t] > most ? scores[t] : most;
  }
  memset(out, 0, dim_v * sizeof *out);
  for (size_t t = 0; t < count; ++t) {
    const double weight = exp(scores[t] - most);
    sum += weight;
    for (size_t c = 0; c < dim_v; ++c) {
      out[c] += weight * (double)values[t * dim_v + c];
    }
  }
  for (size_t c = 0; c < dim_v; ++c) {
    out[c] /= sum;
  }
  return most + log(sum);
}

/* Squared error over squared length, all query heads of one query token each. */
static double error_of(const float* out, const float* lse_e, const float* queries, const float* keys,
                       const float* values, double* lse_error) {
  double wrong = 0.0;
  double right = 0.0;
  *lse_error = 0.0;
  for (size_t head = 0; head < q_heads; ++head) {
    const size_t kv = head / (q_heads / kv_heads);
    double expected[dim_v];
    const double lse = attend_by_definition(queries + head * dim_k, keys + kv * tokens * dim_k,
                                            values + kv * tokens * dim_v, tokens, expected);
    *lse_error = fmax(*lse_error, fabs(lse - (double)lse_e[head]));
    for (size_t c = 0; c < dim_v; ++c) {
      const double difference = (double)out[head * dim_v + c] - expected[c];
      wrong += difference * difference;
      right += expected[c] * expected[c];
    }
  }
  return wrong / right;
}

/* --- callbacks --- */

struct counting {
  size_t live_bytes;
  size_t calls;
  size_t refuse_from; /* the call with this number and all after it get nothing; 0 never */
};
static void* count_allocate(void* user, size_t bytes) {
  struct counting* me = user;
  if (++me->calls >= me->refuse_from && me->refuse_from != 0) {
    return NULL;
  }
  void* memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
  me->live_bytes += memory == NULL ? 0 : bytes;
  return memory;
}
static void count_deallocate(void* user, void* memory, size_t bytes) {
  ((struct counting*)user)->live_bytes -= bytes;
  free(memory);
}

struct backwards {
  size_t parts_run;
};
static void run_backwards(void* user, size_t parts, pq_task task, void* context) {
  for (size_t part = parts; part > 0; --part) {
    task(context, part - 1, part % 3);
    ++((struct backwards*)user)->parts_run;
  }
}

/* --- level 1 --- */

static pq_cache_config small_config(void) {
  pq_cache_config config;
  pq_cache_config_default(&config);
  config.kv_heads = kv_heads;
  config.keys.shape.dim = dim_k;
  config.keys.shape.subvectors = 12;
  config.keys.shape.centroids = 64;
  config.values.shape = config.keys.shape;
  config.values.shape.dim = dim_v;
  config.values.shape.subvectors = 10;
  return config;
}

static void test_cache(const float* keys, const float* values, const float* queries) {
  struct counting count = {0, 0, 0};
  const pq_allocator allocator = {count_allocate, count_deallocate, &count};
  pq_error error;
  float reference_out[q_heads * dim_v];
  for (int coded = 0; coded < 2; ++coded) {
    for (int shuffled = 0; shuffled < 2; ++shuffled) {
      struct backwards order = {0};
      const pq_executor executor = {run_backwards, &order, 3};
      pq_cache_config config = small_config();
      config.keys.coded = config.values.coded = coded;
      config.exact_type = PQ_F32;
      pq_cache* cache = NULL;
      REQUIRE(pq_cache_create(&config, &allocator, shuffled ? &executor : NULL, &cache, &error) == PQ_OK);
      CHECK(error.code == PQ_OK && error.message[0] == '\0');
      const pq_const_rows k = view(keys, kv_heads, tokens, dim_k);
      const pq_const_rows v = view(values, kv_heads, tokens, dim_v);
      REQUIRE(pq_cache_append(cache, &k, &v, NULL, &error) == PQ_OK);
      CHECK(pq_cache_size(cache) == tokens);
      CHECK(pq_cache_coded_tokens(cache) == (coded ? tokens - 8 - 32 : 0));

      float out[q_heads * dim_v];
      float lse_e[q_heads];
      const pq_const_rows q = view(queries, q_heads, 1, dim_k);
      const pq_rows o = ref(out, q_heads, 1, dim_v);
      REQUIRE(pq_cache_attend(cache, &q, NULL, &o, lse_e, &error) == PQ_OK);
      pq_attend_params params;
      pq_attend_params_default(&params);
      float again[q_heads * dim_v];
      const pq_rows a = ref(again, q_heads, 1, dim_v);
      CHECK(pq_cache_attend(cache, &q, &params, &a, NULL, NULL) == PQ_OK);
      CHECK(memcmp(again, out, sizeof out) == 0);
      params.window = 1; /* sees the last token only: the output is its value */
      CHECK(pq_cache_attend(cache, &q, &params, &a, NULL, NULL) == PQ_OK);
      CHECK(fabsf(again[0] - values[(tokens - 1) * dim_v]) < 1e-6f);
      params.first_position = 0; /* sees the first token only */
      params.window = 0;
      CHECK(pq_cache_attend(cache, &q, &params, &a, NULL, NULL) == PQ_OK);
      CHECK(fabsf(again[0] - values[0]) < 1e-6f);
      double lse_error;
      const double nmse = error_of(out, lse_e, queries, keys, values, &lse_error);
      printf("cache coded=%d shuffled=%d: NMSE %.3g, LSE off by %.3g\n", coded, shuffled, nmse, lse_error);
      CHECK(nmse < (coded ? 0.2 : 1e-9));
      CHECK(lse_error < (coded ? 0.05 : 1e-5));
      CHECK(!shuffled || order.parts_run > 0);
      if (shuffled) {
        CHECK(memcmp(out, reference_out, sizeof out) == 0);
      } else {
        memcpy(reference_out, out, sizeof out);
      }

      float* read_keys = malloc(kv_heads * tokens * dim_k * sizeof(float));
      float* read_values = malloc(kv_heads * tokens * dim_v * sizeof(float));
      REQUIRE(read_keys != NULL && read_values != NULL);
      const pq_rows rk = ref(read_keys, kv_heads, tokens, dim_k);
      const pq_rows rv = ref(read_values, kv_heads, tokens, dim_v);
      CHECK(pq_cache_read(cache, 0, &rk, &rv, &error) == PQ_OK);
      CHECK(memcmp(read_keys, keys, 8 * dim_k * sizeof(float)) == 0); /* sinks are exact */
      CHECK(coded || memcmp(read_values, values, kv_heads * tokens * dim_v * sizeof(float)) == 0);
      CHECK(pq_cache_read(cache, 1, &rk, &rv, &error) == PQ_INVALID_ARGUMENT);
      free(read_keys);
      free(read_values);

      pq_memory_report report;
      pq_cache_memory(cache, &report);
      CHECK(report.total_bytes == count.live_bytes);
      CHECK(report.tokens == tokens && report.elements == kv_heads * tokens * (dim_k + dim_v));
      CHECK((report.codes_bytes != 0) == (coded != 0));
      pq_cache_destroy(cache);
      CHECK(count.live_bytes == 0);
    }
  }
}

static void test_half_types_and_strides(const float* keys, const float* values, const float* queries) {
  /* bfloat16 holds the upper half of a float: feed rows whose lower half is zero, laid out (tokens, heads, dim). */
  static uint16_t interleaved[tokens * kv_heads * dim_k];
  static float rounded[kv_heads * tokens * dim_k];
  for (size_t head = 0; head < kv_heads; ++head) {
    for (size_t t = 0; t < tokens; ++t) {
      for (size_t c = 0; c < dim_k; ++c) {
        uint32_t bits;
        memcpy(&bits, &keys[(head * tokens + t) * dim_k + c], sizeof bits);
        bits &= 0xffff0000u;
        memcpy(&rounded[(head * tokens + t) * dim_k + c], &bits, sizeof bits);
        interleaved[(t * kv_heads + head) * dim_k + c] = (uint16_t)(bits >> 16);
      }
    }
  }
  pq_cache_config config = small_config();
  config.exact_type = PQ_F32;
  pq_cache* caches[2];
  const pq_const_rows sources[2] = {
      view(rounded, kv_heads, tokens, dim_k),
      {interleaved, PQ_BF16, kv_heads, tokens, dim_k, dim_k, kv_heads * dim_k, 1}};
  const pq_const_rows v = view(values, kv_heads, tokens, dim_v);
  const pq_const_rows q = view(queries, q_heads, 1, dim_k);
  float out[2][q_heads * dim_v];
  for (int i = 0; i < 2; ++i) {
    REQUIRE(pq_cache_create(&config, NULL, NULL, &caches[i], NULL) == PQ_OK);
    REQUIRE(pq_cache_append(caches[i], &sources[i], &v, NULL, NULL) == PQ_OK);
    const pq_rows o = ref(out[i], q_heads, 1, dim_v);
    REQUIRE(pq_cache_attend(caches[i], &q, NULL, &o, NULL, NULL) == PQ_OK);
    pq_cache_destroy(caches[i]);
  }
  CHECK(memcmp(out[0], out[1], sizeof out[0]) == 0);
}

static void test_rope(const float* keys, const float* values, const float* queries) {
  pq_cache_config config = small_config();
  config.rope_pairs = dim_k / 2;
  config.rope_pairing = PQ_INTERLEAVED;
  pq_cache* cache = NULL;
  pq_error error;
  REQUIRE(pq_cache_create(&config, NULL, NULL, &cache, &error) == PQ_OK);
  const pq_const_rows k = view(keys, kv_heads, tokens, dim_k);
  const pq_const_rows v = view(values, kv_heads, tokens, dim_v);
  REQUIRE(pq_cache_append(cache, &k, &v, NULL, &error) == PQ_OK);
  /* Two queries see two positions: the first must not see the last token. */
  float out[q_heads * 2 * dim_v];
  float two[q_heads * 2 * dim_k];
  for (size_t head = 0; head < q_heads; ++head) {
    memcpy(two + head * 2 * dim_k, queries + head * dim_k, dim_k * sizeof(float));
    memcpy(two + (head * 2 + 1) * dim_k, queries + head * dim_k, dim_k * sizeof(float));
  }
  float lse_e[q_heads * 2];
  const pq_const_rows q = view(two, q_heads, 2, dim_k);
  const pq_rows o = ref(out, q_heads, 2, dim_v);
  REQUIRE(pq_cache_attend(cache, &q, NULL, &o, lse_e, &error) == PQ_OK);
  for (size_t head = 0; head < q_heads; ++head) {
    const float* last_key = keys + ((head / 3) * tokens + tokens - 1) * dim_k;
    double score = 0.0;
    for (size_t c = 0; c < dim_k; ++c) {
      score += (double)queries[head * dim_k + c] * (double)last_key[c];
    }
    score /= sqrt((double)dim_k);
    /* Adding one token adds exp(score) to the sum; the last key is kept in f16. */
    const double expected = log(exp((double)lse_e[head * 2]) + exp(score));
    CHECK(fabs(expected - (double)lse_e[head * 2 + 1]) < 1e-4);
  }
  pq_cache_destroy(cache);

  config.rope_pairs = dim_k; /* rotates more channels than there are */
  CHECK(pq_cache_create(&config, NULL, NULL, &cache, &error) == PQ_SHAPE_MISMATCH);
  CHECK(strstr(error.message, "expected 12, got 24") != NULL);
}

static void test_errors(const float* keys, const float* values) {
  pq_error error;
  pq_cache* cache = NULL;
  pq_cache_config config = small_config();
  CHECK(strcmp(pq_status_name(PQ_SHAPE_MISMATCH), "shape_mismatch") == 0);
  CHECK(strcmp(pq_status_name(99), "unknown") == 0);
  CHECK(pq_version() >= 100 && strchr(pq_version_string(), '.') != NULL && pq_arch_name()[0] != '\0');

  CHECK(pq_cache_create(NULL, NULL, NULL, &cache, &error) == PQ_INVALID_ARGUMENT);
  CHECK(strcmp(error.message, "config is null (invalid_argument)") == 0);
  CHECK(pq_cache_create(&config, NULL, NULL, NULL, &error) == PQ_INVALID_ARGUMENT);
  config.struct_bytes = sizeof config + 8;
  CHECK(pq_cache_create(&config, NULL, NULL, &cache, &error) == PQ_INVALID_ARGUMENT);
  config = small_config();
  config.keys.storage = 7;
  CHECK(pq_cache_create(&config, NULL, NULL, &cache, &error) == PQ_INVALID_ARGUMENT);
  config = small_config();
  config.values.shape.centroids = 1;
  CHECK(pq_cache_create(&config, NULL, NULL, &cache, &error) == PQ_INVALID_ARGUMENT);
  CHECK(strstr(error.message, "must be 2 to 65536") != NULL);
  config = small_config();
  const pq_executor unfit[] = {{run_backwards, NULL, 0}, {run_backwards, NULL, SIZE_MAX}, {NULL, NULL, 1}};
  for (size_t i = 0; i < sizeof unfit / sizeof *unfit; ++i) {
    CHECK(pq_cache_create(&config, NULL, unfit + i, &cache, &error) == PQ_INVALID_ARGUMENT);
  }
  CHECK(cache == NULL);
  pq_cache_destroy(NULL);
  CHECK(pq_cache_size(NULL) == 0);

  REQUIRE(pq_cache_create(&config, NULL, NULL, &cache, &error) == PQ_OK);
  const pq_const_rows k = view(keys, kv_heads, 5, dim_k);
  pq_const_rows v = view(values, kv_heads, 4, dim_v);
  CHECK(pq_cache_append(cache, &k, &v, NULL, &error) == PQ_SHAPE_MISMATCH);
  CHECK(error.code == PQ_SHAPE_MISMATCH && error.message[0] != '\0');
  v = view(NULL, kv_heads, 5, dim_v);
  CHECK(pq_cache_append(cache, &k, &v, NULL, &error) == PQ_INVALID_ARGUMENT);
  v = view(values, kv_heads, 5, dim_v);
  v.dtype = 3;
  CHECK(pq_cache_append(cache, &k, &v, NULL, &error) == PQ_INVALID_ARGUMENT);
  float bad[kv_heads * 5 * dim_v] = {0};
  bad[dim_v + 3] = NAN;
  v = view(bad, kv_heads, 5, dim_v);
  CHECK(pq_cache_append(cache, &k, &v, NULL, &error) == PQ_NOT_FINITE);
  CHECK(strstr(error.message, "row 1, column 3") != NULL);
  CHECK(pq_cache_size(cache) == 0);
  float out[q_heads * dim_v];
  const pq_const_rows q = view(keys, q_heads - 1, 1, dim_k); /* 5 query heads cannot read 2 KV heads */
  const pq_rows o = ref(out, q_heads - 1, 1, dim_v);
  CHECK(pq_cache_attend(cache, &q, NULL, &o, NULL, &error) == PQ_SHAPE_MISMATCH);
  pq_cache_destroy(cache);
}

/* Every allocation refused in turn: a clear error, nothing leaked, and the cache still holds what it held. */
static void test_refused_memory(const float* keys, const float* values) {
  struct counting count = {0, 0, 0};
  const pq_allocator allocator = {count_allocate, count_deallocate, &count};
  pq_cache_config config = small_config();
  const pq_const_rows k = view(keys, kv_heads, tokens, dim_k);
  const pq_const_rows v = view(values, kv_heads, tokens, dim_v);
  pq_error error;
  size_t refused = 0;
  for (size_t from = 1; refused < 1000; ++from) {
    count.calls = 0;
    count.refuse_from = from;
    pq_cache* cache = NULL;
    pq_status outcome = pq_cache_create(&config, &allocator, NULL, &cache, &error);
    if (outcome == PQ_OK) {
      outcome = pq_cache_append(cache, &k, &v, NULL, &error);
      CHECK(pq_cache_size(cache) == (outcome == PQ_OK ? tokens : 0));
    }
    CHECK(outcome == PQ_OK || outcome == PQ_OUT_OF_MEMORY);
    pq_cache_destroy(cache);
    CHECK(count.live_bytes == 0);
    if (outcome == PQ_OK) {
      break;
    }
    ++refused;
  }
  CHECK(refused > 10 && refused < 1000);
  printf("refused each of %zu allocations in turn\n", refused);
}

/* --- level 0 --- */

static void* aligned(size_t bytes) {
  void* memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
  REQUIRE(memory != NULL);
  memset(memory, 0, bytes);
  return memory;
}

struct coded_side {
  pq_source source;
  void* codebook;
  void* codes;
};

static struct coded_side code_side(const float* rows, uint32_t dim, uint32_t subvectors) {
  const pq_geometry shape = {dim, subvectors, 64, 1};
  const pq_const_rows samples = view(rows, 1, tokens, dim);
  pq_train_params params;
  pq_train_params_default(&params);
  pq_error error;
  float* centroids = malloc(pq_codebook_floats(&shape) * sizeof(float));
  const size_t workspace_bytes = pq_train_workspace_bytes(&shape, &samples, &params);
  void* workspace = malloc(workspace_bytes);
  REQUIRE(centroids != NULL && workspace != NULL && workspace_bytes != 0);
  double objective = -1.0;
  CHECK(pq_train(&shape, &samples, NULL, &params, workspace, workspace_bytes / 2, centroids, &objective, &error) ==
        PQ_CAPACITY);
  REQUIRE(pq_train(&shape, &samples, NULL, &params, workspace, workspace_bytes, centroids, &objective, &error) ==
          PQ_OK);
  CHECK(objective > 0.0);

  struct coded_side side;
  side.codebook = aligned(pq_codebook_bytes(&shape, PQ_STORE_I8));
  side.codes = aligned(pq_codes_bytes(&shape, tokens));
  REQUIRE(pq_codebook_prepare(&shape, PQ_STORE_I8, centroids, side.codebook, &error) == PQ_OK);
  CHECK(pq_encode(&shape, PQ_STORE_I8, (const char*)side.codebook + 4, &samples, side.codes, 0, &error) ==
        PQ_INVALID_ARGUMENT);
  CHECK(strstr(error.message, "64-byte aligned") != NULL);
  /* In two pieces, the second one not at a block border. */
  const pq_const_rows first = view(rows, 1, 100, dim);
  const pq_const_rows rest = view(rows + 100 * dim, 1, tokens - 100, dim);
  REQUIRE(pq_encode(&shape, PQ_STORE_I8, side.codebook, &first, side.codes, 0, &error) == PQ_OK);
  REQUIRE(pq_encode(&shape, PQ_STORE_I8, side.codebook, &rest, side.codes, 100, &error) == PQ_OK);

  float* decoded = malloc(tokens * dim * sizeof(float));
  REQUIRE(decoded != NULL);
  const pq_rows back = ref(decoded, 1, tokens, dim);
  REQUIRE(pq_decode(&shape, PQ_STORE_I8, side.codebook, side.codes, 0, &back, &error) == PQ_OK);
  double squared = 0.0;
  for (size_t i = 0; i < (size_t)tokens * dim; ++i) {
    squared += ((double)decoded[i] - (double)rows[i]) * ((double)decoded[i] - (double)rows[i]);
  }
  CHECK(squared < 1.05 * objective && squared > 0.95 * objective); /* rounding to bytes came after the objective */
  const pq_source source = {shape, PQ_STORE_I8, side.codebook, side.codes, {0}};
  side.source = source;
  free(decoded);
  free(workspace);
  free(centroids);
  return side;
}

static pq_source exact_rows(const float* rows, size_t count, uint32_t dim) {
  const pq_source source = {{0}, PQ_STORE_F32, NULL, NULL, view(rows, 1, count, dim)};
  return source;
}

static pq_status attend_masked(const pq_segment* segments, size_t count, const float* queries, size_t rows,
                               const pq_const_rows* bias, float* out, float* lse_e, size_t spare) {
  pq_segment_params params;
  pq_segment_params_default(&params);
  params.bias = bias;
  const size_t bytes = pq_attend_workspace_bytes(segments, count, rows, dim_k, dim_v, &params);
  char* workspace = malloc(bytes + 1);
  REQUIRE(workspace != NULL && bytes != 0);
  const pq_const_rows q = view(queries, 1, rows, dim_k);
  const pq_rows o = ref(out, 1, rows, dim_v);
  const pq_status outcome =
      pq_attend(&q, segments, count, &params, workspace + 1, bytes - spare, &o, lse_e, NULL); /* misaligned */
  free(workspace);
  return outcome;
}
static pq_status attend_segments(const pq_segment* segments, size_t count, const float* queries, size_t rows,
                                 float* out, float* lse_e, size_t spare) {
  return attend_masked(segments, count, queries, rows, NULL, out, lse_e, spare);
}

/* A mask of the latest tokens over two segments, the second of which starts inside a block: as if what it excludes were
 * not there. */
static void test_masks(const pq_segment* both, const float* queries) {
  enum { rows = 2, columns = 630, first = tokens - columns };
  float* bias = calloc(rows * columns, sizeof *bias);
  float out[rows * dim_v];
  float lse_e[rows];
  float expected[rows * dim_v];
  float expected_lse[rows];
  REQUIRE(bias != NULL);
  const size_t ends[rows] = {150, 699}; /* row r sees tokens before ends[r] */
  for (size_t row = 0; row < rows; ++row) {
    for (size_t c = 0; c < columns; ++c) {
      bias[row * columns + c] = first + c < ends[row] ? 0.0f : -INFINITY;
    }
    const size_t prefix = both[0].tokens;
    pq_segment cut[2] = {both[0], both[1]};
    cut[1].tokens = ends[row] - prefix;
    REQUIRE(attend_segments(cut, 2, queries + row * dim_k, 1, expected + row * dim_v, expected_lse + row, 0) == PQ_OK);
  }
  const pq_const_rows mask = view(bias, 1, rows, columns);
  REQUIRE(attend_masked(both, 2, queries, rows, &mask, out, lse_e, 0) == PQ_OK);
  for (size_t i = 0; i < rows * dim_v; ++i) {
    CHECK(fabsf(out[i] - expected[i]) < 2e-3f);
  }
  CHECK(fabsf(lse_e[0] - expected_lse[0]) < 2e-3f && fabsf(lse_e[1] - expected_lse[1]) < 2e-3f);
  const pq_const_rows wide = view(bias, 1, 1, tokens + 1);
  CHECK(attend_masked(both, 2, queries, 1, &wide, out, lse_e, 0) == PQ_SHAPE_MISMATCH);
  const pq_const_rows two_heads = view(bias, 2, rows / 2, columns);
  CHECK(attend_masked(both, 2, queries, 1, &two_heads, out, lse_e, 0) == PQ_SHAPE_MISMATCH);
  free(bias);
}

static void test_level_0(const float* keys, const float* values, const float* queries) {
  enum { rows = 3, split = 100 };
  struct coded_side k = code_side(keys, dim_k, 12);
  struct coded_side v = code_side(values, dim_v, 10);
  float out[rows * dim_v];
  float lse_e[rows];
  double expected[dim_v];

  const pq_segment exact = {exact_rows(keys, tokens, dim_k), exact_rows(values, tokens, dim_v), 0, tokens, 0};
  CHECK(attend_segments(&exact, 1, queries, rows, out, lse_e, 0) == PQ_OK);
  for (size_t row = 0; row < rows; ++row) {
    const double lse = attend_by_definition(queries + row * dim_k, keys, values, tokens, expected);
    CHECK(fabs(lse - (double)lse_e[row]) < 1e-5);
    for (size_t c = 0; c < dim_v; ++c) {
      CHECK(fabs(expected[c] - (double)out[row * dim_v + c]) < 1e-5);
    }
  }

  const pq_segment coded = {k.source, v.source, 0, tokens, 0};
  float coded_out[rows * dim_v];
  float coded_lse[rows];
  CHECK(attend_segments(&coded, 1, queries, rows, coded_out, coded_lse, 0) == PQ_OK);
  double wrong = 0.0;
  double right = 0.0;
  for (size_t i = 0; i < rows * dim_v; ++i) {
    wrong += ((double)coded_out[i] - (double)out[i]) * ((double)coded_out[i] - (double)out[i]);
    right += (double)out[i] * (double)out[i];
  }
  printf("level 0 on codes: NMSE %.3g\n", wrong / right);
  CHECK(wrong / right < 0.2);

  /* Exact prefix and coded rest, which starts inside a block: one call, or two calls and a merge. */
  const pq_segment both[2] = {{exact_rows(keys, split, dim_k), exact_rows(values, split, dim_v), 0, split, 0},
                              {k.source, v.source, split, tokens - split, split}};
  float other[rows * dim_v];
  float other_lse[rows];
  CHECK(attend_segments(both, 2, queries, rows, coded_out, coded_lse, 0) == PQ_OK);
  CHECK(attend_segments(both, 1, queries, rows, out, lse_e, 0) == PQ_OK);
  CHECK(attend_segments(both + 1, 1, queries, rows, other, other_lse, 0) == PQ_OK);
  pq_merge(out, lse_e, other, other_lse, rows, dim_v);
  CHECK(memcmp(out, coded_out, sizeof out) == 0 && memcmp(lse_e, coded_lse, sizeof lse_e) == 0);

  test_masks(both, queries);

  /* A workspace one block too small: refused, and out is as before. */
  memcpy(other, out, sizeof out);
  CHECK(attend_segments(both, 2, queries, rows, out, lse_e, 256) == PQ_CAPACITY);
  CHECK(memcmp(out, other, sizeof out) == 0);
  CHECK(pq_attend(NULL, both, 2, NULL, NULL, 0, NULL, NULL, NULL) == PQ_INVALID_ARGUMENT);
  pq_segment huge[2] = {both[0], both[1]}; /* sizes that would wrap around */
  const pq_const_rows q = view(queries, 1, rows, dim_k);
  const pq_rows o = ref(out, 1, rows, dim_v);
  char* workspace = malloc(1 << 20);
  REQUIRE(workspace != NULL);
  const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 63, SIZE_MAX / 2, SIZE_MAX / 64};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
    huge[1] = both[1];
    huge[1].tokens = sizes[i];
    CHECK(pq_attend_workspace_bytes(huge, 2, rows, dim_k, dim_v, NULL) == 0);
    CHECK(pq_attend(&q, huge, 2, NULL, workspace, 1 << 20, &o, NULL, NULL) == PQ_INVALID_ARGUMENT);
    huge[1] = both[1];
    huge[1].first_slot = sizes[i];
    CHECK(pq_attend(&q, huge, 2, NULL, workspace, 1 << 20, &o, NULL, NULL) == PQ_INVALID_ARGUMENT);
  }
  CHECK(pq_attend_workspace_bytes(NULL, 2, rows, dim_k, dim_v, NULL) == 0);
  free(workspace);
  const pq_geometry bad = {0, 1, 2, 1};
  CHECK(pq_codebook_floats(&bad) == 0 && pq_codes_bytes(&bad, 1) == 0 && pq_codebook_bytes(NULL, PQ_STORE_F32) == 0);
  free(k.codebook);
  free(k.codes);
  free(v.codebook);
  free(v.codes);
}

/* --- sequences --- */

struct bytes {
  char* data;
  size_t size;
  size_t room; /* more is refused */
};
static int32_t write_bytes(void* user, const void* data, size_t size) {
  struct bytes* me = user;
  if (size > me->room - me->size) {
    return 0;
  }
  memcpy(me->data + me->size, data, size);
  me->size += size;
  return 1;
}

static int32_t cancel_at_once(void* user, size_t done, size_t total) {
  ++*(int*)user;
  return done > total ? 1 : 0;
}

/* Rows [first, first + count) of dense (heads, tokens, cols) data. */
static pq_const_rows part(const float* data, size_t first, size_t count, size_t cols) {
  pq_const_rows made = {data + first * cols, PQ_F32, kv_heads, count, cols, (ptrdiff_t)(tokens * cols), (ptrdiff_t)cols, 1};
  return made;
}
static pq_status append_part(pq_sequence* sequence, const float* keys, const float* values, size_t first, size_t count,
                             const pq_append_options* options) {
  const pq_const_rows k = part(keys, first, count, dim_k);
  const pq_const_rows v = part(values, first, count, dim_v);
  return pq_sequence_append(sequence, &k, &v, options, NULL);
}
static pq_status attend_one(pq_pool* pool, const pq_sequence* sequence, const float* queries, const pq_const_rows* bias,
                            float* out, float* lse_e) {
  const pq_const_rows q = view(queries, q_heads, 1, dim_k);
  const pq_rows o = ref(out, q_heads, 1, dim_v);
  const pq_batch_entry entry = {0,    1,    pq_sequence_next_position(sequence) - 1, &sequence, 1, NULL, NULL, 0,
                                NULL, bias};
  return pq_batch_attend(pool, &entry, 1, &q, NULL, &o, lse_e, NULL);
}

static void test_sequences(const float* keys, const float* values, const float* queries) {
  struct counting count = {0, 0, 0};
  const pq_allocator allocator = {count_allocate, count_deallocate, &count};
  struct backwards order = {0};
  const pq_executor executor = {run_backwards, &order, 3};
  pq_error error;
  pq_cache_config config = small_config();
  config.outlier_share = 0.02f;
  config.most_epochs = 2;
  config.rope_pairs = dim_k / 2;
  pq_pool* pool = NULL;
  pq_sequence* main_line = NULL;
  pq_sequence* fork = NULL;
  REQUIRE(pq_pool_create(&config, &allocator, &executor, &pool, &error) == PQ_OK);
  REQUIRE(pq_sequence_create(pool, &main_line, &error) == PQ_OK);
  REQUIRE(pq_sequence_create(pool, &fork, &error) == PQ_OK);

  /* A cancelled training leaves everything as it was. */
  int reports = 0;
  pq_append_options options;
  pq_append_options_default(&options);
  options.progress = cancel_at_once;
  options.progress_user = &reports;
  CHECK(append_part(main_line, keys, values, 0, 600, &options) == PQ_CANCELLED);
  CHECK(reports > 0 && pq_sequence_size(main_line) == 0 && !pq_pool_trained(pool));
  REQUIRE(append_part(main_line, keys, values, 0, 600, NULL) == PQ_OK);
  CHECK(pq_pool_trained(pool) && pq_sequence_size(main_line) == 600);
  CHECK(pq_sequence_coded_tokens(main_line) == 600 - 8 - 32);
  CHECK(pq_sequence_next_position(main_line) == 600);

  /* Fork, drafts, truncate: both lines attend as before. */
  float before[q_heads * dim_v];
  float after[q_heads * dim_v];
  float lse_before[q_heads];
  float lse_after[q_heads];
  REQUIRE(attend_one(pool, main_line, queries, NULL, before, lse_before) == PQ_OK);
  REQUIRE(pq_sequence_fork(main_line, fork, &error) == PQ_OK);
  REQUIRE(attend_one(pool, fork, queries, NULL, after, lse_after) == PQ_OK);
  CHECK(memcmp(before, after, sizeof before) == 0 && memcmp(lse_before, lse_after, sizeof lse_before) == 0);
  CHECK(pq_sequence_reserve(fork, 20, &error) == PQ_OK);
  const size_t calls = count.calls;
  REQUIRE(append_part(fork, keys, values, 600, 5, NULL) == PQ_OK);
  CHECK(count.calls == calls);
  pq_sequence_truncate(fork, 602);
  CHECK(pq_sequence_size(fork) == 602 && pq_sequence_next_position(fork) == 602);
  CHECK(pq_sequence_remove(fork, 100, 10, &error) == PQ_OK && pq_sequence_size(fork) == 592);
  CHECK(pq_sequence_remove(fork, 590, 10, &error) == PQ_INVALID_ARGUMENT && strstr(error.message, "592") != NULL);
  REQUIRE(attend_one(pool, main_line, queries, NULL, after, lse_after) == PQ_OK);
  CHECK(memcmp(before, after, sizeof before) == 0);

  /* A shift of everything moves no code; attention at shifted positions is the same. */
  double added = 1.0;
  CHECK(pq_sequence_shift_is_exact(main_line) == 1);
  CHECK(pq_sequence_shift(main_line, 0, 600, 0, &added, &error) == PQ_OK && added == 0.0);
  CHECK(pq_sequence_shift(main_line, 0, 600, -1, &added, &error) == PQ_INVALID_ARGUMENT);

  /* A mask that leaves the last token only: the output is its value. */
  float bias[600];
  for (size_t i = 0; i < 600; ++i) {
    bias[i] = i == 599 ? 0.0f : -INFINITY;
  }
  const pq_const_rows mask = view(bias, 1, 1, 600);
  REQUIRE(attend_one(pool, main_line, queries, &mask, after, NULL) == PQ_OK);
  float* read_keys = random_floats((size_t)kv_heads * dim_k);
  float* read_values = random_floats((size_t)kv_heads * dim_v);
  const pq_rows rk = ref(read_keys, kv_heads, 1, dim_k);
  const pq_rows rv = ref(read_values, kv_heads, 1, dim_v);
  REQUIRE(pq_sequence_read(main_line, 599, &rk, &rv, &error) == PQ_OK);
  for (size_t c = 0; c < dim_v; ++c) {
    CHECK(fabsf(after[c] - read_values[c]) < 1e-6f);
    CHECK(fabsf(after[(q_heads - 1) * dim_v + c] - read_values[(kv_heads - 1) * dim_v + c]) < 1e-6f);
  }
  CHECK(pq_sequence_read(main_line, 600, &rk, &rv, &error) == PQ_INVALID_ARGUMENT);

  /* A chunk that is not appended: its last query sees what it sees once it is. */
  const pq_const_rows chunk_keys = part(keys, 600, 1, dim_k);
  const pq_const_rows chunk_values = part(values, 600, 1, dim_v);
  const pq_const_rows q = view(queries, q_heads, 1, dim_k);
  const pq_rows o = ref(after, q_heads, 1, dim_v);
  const pq_sequence* context[] = {main_line};
  const pq_batch_entry chunk = {0, 1, 600, context, 1, &chunk_keys, &chunk_values, 600, NULL, NULL};
  pq_batch_params params;
  pq_batch_params_default(&params);
  REQUIRE(pq_batch_attend(pool, &chunk, 1, &q, &params, &o, NULL, &error) == PQ_OK);
  pq_sequence* grown = NULL;
  REQUIRE(pq_sequence_create(pool, &grown, &error) == PQ_OK);
  REQUIRE(pq_sequence_fork(main_line, grown, &error) == PQ_OK);
  REQUIRE(append_part(grown, keys, values, 600, 1, NULL) == PQ_OK);
  float appended[q_heads * dim_v];
  REQUIRE(attend_one(pool, grown, queries, NULL, appended, NULL) == PQ_OK);
  for (size_t i = 0; i < q_heads * dim_v; ++i) {
    CHECK(fabsf(appended[i] - after[i]) < 0.05f); /* one more token is coded */
  }

  /* New codebooks change nothing that is coded; drift is counted from them on. */
  const pq_const_rows lesson_keys = part(keys, 0, 600, dim_k);
  const pq_const_rows lesson_values = part(values, 0, 600, dim_v);
  float key_drift = 0.0f;
  float value_drift = 0.0f;
  CHECK(pq_pool_drift(pool, &key_drift, &value_drift) >= 560);
  CHECK(key_drift > 0.5f && key_drift < 2.0f && value_drift > 0.5f && value_drift < 2.0f);
  REQUIRE(pq_sequence_refresh(main_line, &lesson_keys, &lesson_values, NULL, &error) == PQ_OK);
  CHECK(pq_pool_drift(pool, NULL, NULL) == 0);
  CHECK(pq_pool_drift(NULL, &key_drift, NULL) == 0 && key_drift == 1.0f);
  REQUIRE(attend_one(pool, main_line, queries, NULL, after, NULL) == PQ_OK);
  CHECK(memcmp(before, after, sizeof before) == 0);
  REQUIRE(append_part(fork, keys, values, 0, 40, NULL) == PQ_OK);
  CHECK(pq_sequence_refresh(main_line, &lesson_keys, &lesson_values, NULL, &error) == PQ_CAPACITY);
  CHECK(strstr(error.message, "epochs") != NULL);
  CHECK(pq_sequence_refresh(NULL, &lesson_keys, &lesson_values, NULL, &error) == PQ_INVALID_ARGUMENT);
  pq_sequence_truncate(fork, 592);

  /* Beam search with a beam that is taken twice. */
  pq_sequence* beams[] = {main_line, fork, grown};
  const size_t parents[] = {2, 2, 0};
  const size_t stranger[] = {0, 1, 3};
  CHECK(pq_sequence_select(beams, 3, stranger, &error) == PQ_INVALID_ARGUMENT);
  CHECK(pq_sequence_size(main_line) == 600 && pq_sequence_size(fork) == 592);
  REQUIRE(pq_sequence_select(beams, 3, parents, &error) == PQ_OK);
  CHECK(pq_sequence_size(main_line) == 601 && pq_sequence_size(fork) == 601 && pq_sequence_size(grown) == 600);

  /* Snapshots into another pool; a sink that is full, bytes that are damaged. */
  struct bytes books = {malloc(1 << 20), 0, 1 << 20};
  struct bytes saved = {malloc(1 << 20), 0, 1 << 20};
  struct bytes full = {books.data, 0, 100};
  REQUIRE(books.data != NULL && saved.data != NULL);
  CHECK(pq_pool_write_codebooks(pool, write_bytes, &full, &error) == PQ_IO_ERROR);
  REQUIRE(pq_pool_write_codebooks(pool, write_bytes, &books, &error) == PQ_OK);
  REQUIRE(pq_sequence_write(grown, write_bytes, &saved, &error) == PQ_OK);
  pq_pool* other = NULL;
  pq_sequence* loaded = NULL;
  REQUIRE(pq_pool_create(&config, &allocator, NULL, &other, &error) == PQ_OK);
  REQUIRE(pq_sequence_create(other, &loaded, &error) == PQ_OK);
  CHECK(pq_sequence_load(loaded, saved.data, saved.size, &error) == PQ_SHAPE_MISMATCH); /* codebooks first */
  REQUIRE(pq_pool_load_codebooks(other, books.data, books.size, &error) == PQ_OK);
  saved.data[saved.size / 2] ^= 1;
  CHECK(pq_sequence_load(loaded, saved.data, saved.size, &error) == PQ_CORRUPT_DATA && pq_sequence_size(loaded) == 0);
  saved.data[saved.size / 2] ^= 1;
  REQUIRE(pq_sequence_load(loaded, saved.data, saved.size, &error) == PQ_OK);
  REQUIRE(attend_one(other, loaded, queries, NULL, after, lse_after) == PQ_OK);
  CHECK(memcmp(before, after, sizeof before) == 0 && memcmp(lse_before, lse_after, sizeof lse_before) == 0);

  /* The file has an epoch without tokens, the newest, and one that its sequence is of. */
  pq_pool_release_epochs(other);
  pq_pool_release_epochs(other);
  pq_pool_release_epochs(NULL);
  REQUIRE(attend_one(other, loaded, queries, NULL, after, NULL) == PQ_OK);
  CHECK(memcmp(before, after, sizeof before) == 0);

  /* What does not belong together. */
  CHECK(pq_sequence_fork(loaded, fork, &error) == PQ_INVALID_ARGUMENT);
  CHECK(attend_one(pool, loaded, queries, NULL, after, NULL) == PQ_INVALID_ARGUMENT);
  CHECK(pq_sequence_append(NULL, &chunk_keys, &chunk_values, NULL, &error) == PQ_INVALID_ARGUMENT);
  CHECK(pq_batch_attend(pool, NULL, 1, &q, NULL, &o, NULL, &error) == PQ_INVALID_ARGUMENT);
  CHECK(pq_sequence_create(NULL, &fork, &error) == PQ_INVALID_ARGUMENT);

  /* Memory to the byte. */
  pq_memory_report mine;
  pq_memory_report theirs;
  pq_pool_memory(pool, &mine);
  pq_pool_memory(other, &theirs);
  CHECK(mine.total_bytes + theirs.total_bytes + pq_sequence_metadata_bytes(main_line) + pq_sequence_metadata_bytes(fork) +
            pq_sequence_metadata_bytes(grown) + pq_sequence_metadata_bytes(loaded) ==
        count.live_bytes);
  CHECK(order.parts_run > 0);
  pq_sequence_destroy(loaded);
  pq_sequence_destroy(grown);
  pq_sequence_destroy(fork);
  pq_sequence_destroy(main_line);
  pq_pool_destroy(other);
  pq_pool_destroy(pool);
  pq_sequence_destroy(NULL);
  pq_pool_destroy(NULL);
  CHECK(count.live_bytes == 0);
  free(read_keys);
  free(read_values);
  free(books.data);
  free(saved.data);
}

/* A preset for a pool and for a cache, taught by its queries; and a mask over a cache. */
/* --- blocks of values that are left out --- */

/* Queries whose attention has peaks, so that most blocks of values hold next to nothing. */
static float* peaked(const float* queries) {
  float* made = malloc(q_heads * dim_k * sizeof *made);
  REQUIRE(made != NULL);
  for (size_t i = 0; i < q_heads * dim_k; ++i) {
    made[i] = 25.0f * queries[i];
  }
  return made;
}

static void check_counts(const char* what, const pq_skip_statistics* skips, uint64_t calls, uint64_t blocks) {
  printf("%s: %d of %d blocks of values left out\n", what, (int)skips->skipped, (int)skips->blocks);
  CHECK(skips->blocks == calls * blocks);
  CHECK(skips->skipped > 0 && skips->skipped < skips->blocks);
}

static void test_skips_of_caches(const float* keys, const float* values, const float* queries) {
  enum { blocks = kv_heads * ((tokens - 8 - 32 + 63) / 64) };
  pq_cache_config config = small_config();
  pq_cache* cache = NULL;
  REQUIRE(pq_cache_create(&config, NULL, NULL, &cache, NULL) == PQ_OK);
  const pq_const_rows k = view(keys, kv_heads, tokens, dim_k);
  const pq_const_rows v = view(values, kv_heads, tokens, dim_v);
  REQUIRE(pq_cache_append(cache, &k, &v, NULL, NULL) == PQ_OK);
  float out[q_heads * dim_v];
  float usual[q_heads * dim_v];
  const pq_const_rows q = view(queries, q_heads, 1, dim_k);
  const pq_rows o = ref(out, q_heads, 1, dim_v);
  const pq_rows u = ref(usual, q_heads, 1, dim_v);
  REQUIRE(pq_cache_attend(cache, &q, NULL, &u, NULL, NULL) == PQ_OK);

  pq_skip_statistics skips = {0, 0};
  pq_attend_params params;
  pq_attend_params_default(&params);
  CHECK(params.skip_mass > 0.0f && params.skips == NULL);
  params.skips = &skips;
  REQUIRE(pq_cache_attend(cache, &q, &params, &o, NULL, NULL) == PQ_OK); /* looking changes nothing */
  CHECK(memcmp(out, usual, sizeof out) == 0 && skips.blocks == blocks);
  const uint64_t few = skips.skipped;
  skips = (pq_skip_statistics){0, 0};
  params.skip_mass = 0.0f;
  REQUIRE(pq_cache_attend(cache, &q, &params, &o, NULL, NULL) == PQ_OK);
  CHECK(skips.blocks == blocks && skips.skipped == 0);
  skips.blocks = 0;
  params.skip_mass = 0.3f;
  REQUIRE(pq_cache_attend(cache, &q, &params, &o, NULL, NULL) == PQ_OK);
  check_counts("cache", &skips, 1, blocks);
  CHECK(skips.skipped > few);
  REQUIRE(pq_cache_attend(cache, &q, &params, &o, NULL, NULL) == PQ_OK);
  check_counts("cache, twice", &skips, 2, blocks);

  const pq_skip_statistics before = skips; /* a call that fails counts nothing */
  const pq_rows narrow = ref(out, q_heads, 1, dim_v - 1);
  CHECK(pq_cache_attend(cache, &q, &params, &narrow, NULL, NULL) == PQ_SHAPE_MISMATCH);
  CHECK(memcmp(&skips, &before, sizeof skips) == 0);
  /* A program built with a header that ended before these fields: whatever lies there is not looked at. */
  params.struct_bytes = offsetof(pq_attend_params, skip_mass);
  REQUIRE(pq_cache_attend(cache, &q, &params, &o, NULL, NULL) == PQ_OK);
  CHECK(memcmp(out, usual, sizeof out) == 0 && memcmp(&skips, &before, sizeof skips) == 0);
  pq_cache_destroy(cache);
}

static void test_skips_of_batches(const float* keys, const float* values, const float* queries) {
  enum { blocks = kv_heads * ((tokens - 8 - 32 + 63) / 64) };
  pq_cache_config config = small_config();
  pq_pool* pool = NULL;
  pq_sequence* sequence = NULL;
  REQUIRE(pq_pool_create(&config, NULL, NULL, &pool, NULL) == PQ_OK);
  REQUIRE(pq_sequence_create(pool, &sequence, NULL) == PQ_OK);
  REQUIRE(append_part(sequence, keys, values, 0, tokens, NULL) == PQ_OK);
  const pq_sequence* held = sequence;
  pq_batch_entry entry = {0, 1, tokens - 1, &held, 1, NULL, NULL, 0, NULL, NULL};
  float out[q_heads * dim_v];
  float usual[q_heads * dim_v];
  const pq_const_rows q = view(queries, q_heads, 1, dim_k);
  const pq_rows o = ref(out, q_heads, 1, dim_v);
  const pq_rows u = ref(usual, q_heads, 1, dim_v);
  REQUIRE(pq_batch_attend(pool, &entry, 1, &q, NULL, &u, NULL, NULL) == PQ_OK);

  pq_skip_statistics skips = {0, 0};
  pq_batch_params params;
  pq_batch_params_default(&params);
  CHECK(params.skip_mass > 0.0f && params.skips == NULL);
  params.skips = &skips;
  REQUIRE(pq_batch_attend(pool, &entry, 1, &q, &params, &o, NULL, NULL) == PQ_OK);
  CHECK(memcmp(out, usual, sizeof out) == 0 && skips.blocks == blocks);
  skips = (pq_skip_statistics){0, 0};
  params.skip_mass = 0.3f;
  REQUIRE(pq_batch_attend(pool, &entry, 1, &q, &params, &o, NULL, NULL) == PQ_OK);
  check_counts("batch", &skips, 1, blocks);
  const pq_skip_statistics before = skips;
  entry.queries = 2;
  CHECK(pq_batch_attend(pool, &entry, 1, &q, &params, &o, NULL, NULL) != PQ_OK);
  CHECK(memcmp(&skips, &before, sizeof skips) == 0);
  entry.queries = 1;
  params.struct_bytes = offsetof(pq_batch_params, skip_mass);
  REQUIRE(pq_batch_attend(pool, &entry, 1, &q, &params, &o, NULL, NULL) == PQ_OK);
  CHECK(memcmp(out, usual, sizeof out) == 0 && memcmp(&skips, &before, sizeof skips) == 0);
  pq_sequence_destroy(sequence);
  pq_pool_destroy(pool);
}

static void test_skips_of_segments(const float* keys, const float* values, const float* queries) {
  enum { rows = 3, blocks = (tokens + 63) / 64 };
  struct coded_side k = code_side(keys, dim_k, 12);
  struct coded_side v = code_side(values, dim_v, 10);
  const pq_segment coded = {k.source, v.source, 0, tokens, 0};
  const pq_segment exact = {exact_rows(keys, tokens, dim_k), exact_rows(values, tokens, dim_v), 0, tokens, 0};
  float out[rows * dim_v];
  float usual[rows * dim_v];
  const pq_const_rows q = view(queries, 1, rows, dim_k);
  const pq_rows o = ref(out, 1, rows, dim_v);
  CHECK(attend_segments(&coded, 1, queries, rows, usual, NULL, 0) == PQ_OK);

  pq_skip_statistics skips = {0, 0};
  pq_segment_params params;
  pq_segment_params_default(&params);
  CHECK(params.skip_mass > 0.0f && params.skips == NULL);
  params.skip_mass = 0.3f;
  params.skips = &skips;
  const size_t bytes = pq_attend_workspace_bytes(&coded, 1, rows, dim_k, dim_v, &params);
  void* workspace = malloc(bytes);
  REQUIRE(workspace != NULL);
  CHECK(pq_attend(&q, &exact, 1, &params, workspace, bytes, &o, NULL, NULL) == PQ_OK);
  CHECK(skips.blocks == 0 && skips.skipped == 0); /* exact values are always read */
  CHECK(pq_attend(&q, &coded, 1, &params, workspace, bytes / 2, &o, NULL, NULL) == PQ_CAPACITY);
  CHECK(skips.blocks == 0 && skips.skipped == 0);
  CHECK(pq_attend(&q, &coded, 1, &params, workspace, bytes, &o, NULL, NULL) == PQ_OK);
  check_counts("level 0", &skips, 1, blocks);
  const pq_skip_statistics before = skips;
  params.struct_bytes = offsetof(pq_segment_params, skip_mass);
  CHECK(pq_attend(&q, &coded, 1, &params, workspace, bytes, &o, NULL, NULL) == PQ_OK);
  CHECK(memcmp(out, usual, sizeof out) == 0 && memcmp(&skips, &before, sizeof skips) == 0);
  free(workspace);
  free(k.codebook);
  free(k.codes);
  free(v.codebook);
  free(v.codes);
}

static void test_presets(const float* keys, const float* values, const float* queries) {
  pq_error error;
  pq_cache_config config = small_config();
  config.preset_bits = 2.0;
  config.train_tokens = 500;
  config.coding_batch = 1;
  pq_pool* pool = NULL;
  pq_sequence* sequence = NULL;
  pq_cache* cache = NULL;
  REQUIRE(pq_pool_create(&config, NULL, NULL, &pool, &error) == PQ_OK);
  REQUIRE(pq_sequence_create(pool, &sequence, &error) == PQ_OK);
  REQUIRE(pq_cache_create(&config, NULL, NULL, &cache, &error) == PQ_OK);
  const pq_const_rows q = view(queries, q_heads, 1, dim_k);
  const pq_const_rows k = view(keys, kv_heads, tokens, dim_k);
  const pq_const_rows v = view(values, kv_heads, tokens, dim_v);
  CHECK(pq_sequence_observe(sequence, &q, 0, &error) == PQ_OK);
  CHECK(pq_cache_observe(cache, &q, 0, &error) == PQ_OK);
  CHECK(pq_cache_observe(cache, &v, 0, &error) != PQ_OK);
  REQUIRE(pq_sequence_append(sequence, &k, &v, NULL, &error) == PQ_OK);
  REQUIRE(pq_cache_append(cache, &k, &v, NULL, &error) == PQ_OK);
  CHECK(pq_sequence_coded_tokens(sequence) == tokens - 40 && pq_cache_coded_tokens(cache) == tokens - 40);
  float out[q_heads * dim_v];
  float lse_e[q_heads];
  double lse_error;
  pq_memory_report report;
  pq_pool_memory(pool, &report);
  CHECK(report.transforms_bytes > 0);
  CHECK(report.total_bytes == report.codes_bytes + report.codebooks_bytes + report.transforms_bytes +
                                  report.exact_bytes + report.metadata_bytes + report.scratch_bytes);
  pq_cache_memory(cache, &report);
  CHECK(report.transforms_bytes > 0);
  REQUIRE(attend_one(pool, sequence, queries, NULL, out, lse_e) == PQ_OK);
  const double nmse = error_of(out, lse_e, queries, keys, values, &lse_error);
  printf("preset of 2 bits: NMSE %.3g, LSE off by %.3g\n", nmse, lse_error);
  CHECK(nmse < 0.2 && lse_error < 0.05);

  float bias[3] = {-INFINITY, 0.0f, -INFINITY}; /* of the last three tokens; those before are seen */
  const pq_const_rows mask = view(bias, 1, 1, 3);
  pq_attend_params params;
  pq_attend_params_default(&params);
  params.bias = &mask;
  params.window = 3;
  const pq_rows o = ref(out, q_heads, 1, dim_v);
  REQUIRE(pq_cache_attend(cache, &q, &params, &o, NULL, &error) == PQ_OK);
  CHECK(fabsf(out[0] - values[(tokens - 2) * dim_v]) < 1e-2f); /* 16-bit rows */
  config.preset_bits = 1e9;
  pq_pool* none = NULL;
  CHECK(pq_pool_create(&config, NULL, NULL, &none, &error) != PQ_OK && none == NULL);
  pq_sequence_destroy(sequence);
  pq_pool_destroy(pool);
  pq_cache_destroy(cache);
}

/* Latent attention: the first dim_v channels of a key are its value, the others a tail that stays exact. */
static void test_latent(const float* keys, const float* queries) {
  float* values = malloc((size_t)kv_heads * tokens * dim_v * sizeof *values);
  REQUIRE(values != NULL);
  for (size_t row = 0; row < (size_t)kv_heads * tokens; ++row) {
    memcpy(values + row * dim_v, keys + row * dim_k, dim_v * sizeof *values);
  }
  struct counting count = {0, 0, 0};
  const pq_allocator allocator = {count_allocate, count_deallocate, &count};
  pq_error error;
  pq_cache_config config = small_config();
  config.keys.shape.dim = dim_v;
  config.keys.shape.subvectors = 10;
  config.values.shape = config.keys.shape;
  config.key_tail = dim_k - dim_v;
  config.values_from_keys = 1;
  pq_cache* cache = NULL;
  CHECK(pq_cache_create(&config, NULL, NULL, &cache, &error) == PQ_UNSUPPORTED && cache == NULL);
  pq_pool* pool = NULL;
  pq_sequence* sequence = NULL;
  REQUIRE(pq_pool_create(&config, &allocator, NULL, &pool, &error) == PQ_OK);
  REQUIRE(pq_sequence_create(pool, &sequence, &error) == PQ_OK);
  const pq_const_rows k = view(keys, kv_heads, tokens, dim_k);
  const pq_const_rows v = view(values, kv_heads, tokens, dim_v);
  CHECK(pq_sequence_append(sequence, &k, &v, NULL, &error) == PQ_INVALID_ARGUMENT);
  CHECK(pq_sequence_append(sequence, &v, NULL, NULL, &error) == PQ_SHAPE_MISMATCH); /* keys without their tail */
  REQUIRE(pq_sequence_append(sequence, &k, NULL, NULL, &error) == PQ_OK);
  CHECK(pq_sequence_coded_tokens(sequence) == tokens - 40);
  float out[q_heads * dim_v];
  float lse_e[q_heads];
  double lse_error;
  REQUIRE(attend_one(pool, sequence, queries, NULL, out, lse_e) == PQ_OK);
  const double nmse = error_of(out, lse_e, queries, keys, values, &lse_error);
  printf("latent keys: NMSE %.3g, LSE off by %.3g\n", nmse, lse_error);
  CHECK(nmse < 0.2 && lse_error < 0.05);

  /* Room for decode steps, which then ask for nothing. */
  REQUIRE(pq_sequence_reserve(sequence, 100, &error) == PQ_OK);
  count.calls = 0;
  for (size_t t = 0; t < 100; ++t) {
    const pq_const_rows one = part(keys, t, 1, dim_k);
    REQUIRE(pq_sequence_append(sequence, &one, NULL, NULL, &error) == PQ_OK);
  }
  CHECK(count.calls == 0);
  float* tail = random_floats((size_t)kv_heads * dim_k);
  float* read_values = random_floats((size_t)kv_heads * dim_v);
  const pq_rows rk = ref(tail, kv_heads, 1, dim_k);
  const pq_rows rv = ref(read_values, kv_heads, 1, dim_v);
  REQUIRE(pq_sequence_read(sequence, 300, &rk, &rv, &error) == PQ_OK);
  CHECK(memcmp(tail, read_values, dim_v * sizeof *tail) == 0); /* one code serves both */
  CHECK(fabsf(tail[dim_k - 1] - keys[300 * dim_k + dim_k - 1]) < 1e-3f);
  pq_sequence_destroy(sequence);
  pq_pool_destroy(pool);
  CHECK(count.live_bytes == 0);
  free(tail);
  free(read_values);
  free(values);
}

static void test_null_defaults(void) {
  pq_cache_config_default(NULL);
  pq_attend_params_default(NULL);
  pq_append_options_default(NULL);
  pq_batch_params_default(NULL);
  pq_train_params_default(NULL);
  pq_segment_params_default(NULL);
}

int main(void) {
  float* keys = random_floats((size_t)kv_heads * tokens * dim_k);
  float* values = random_floats((size_t)kv_heads * tokens * dim_v);
  float* queries = random_floats((size_t)q_heads * dim_k);
  printf("pqattn %s, %s\n", pq_version_string(), pq_arch_name());
  test_cache(keys, values, queries);
  test_half_types_and_strides(keys, values, queries);
  test_rope(keys, values, queries);
  test_errors(keys, values);
  test_refused_memory(keys, values);
  test_level_0(keys, values, queries);
  test_sequences(keys, values, queries);
  float* peaks = peaked(queries);
  test_skips_of_caches(keys, values, peaks);
  test_skips_of_batches(keys, values, peaks);
  test_skips_of_segments(keys, values, peaks);
  free(peaks);
  test_presets(keys, values, queries);
  test_latent(keys, queries);
  test_null_defaults();
  free(keys);
  free(values);
  free(queries);
  printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
