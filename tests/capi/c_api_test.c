/* SPDX-License-Identifier: MIT
 * The C interface as a C11 program meets it: caches and level 0 against attention in double precision, errors with
 * their messages, allocators that count and refuse, executors that shuffle. */
#include <math.h>
#include <pqattn/c/pqattn.h>
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
  const pq_executor nobody = {run_backwards, NULL, 0};
  config = small_config();
  CHECK(pq_cache_create(&config, NULL, &nobody, &cache, &error) == PQ_INVALID_ARGUMENT);
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

static pq_status attend_segments(const pq_segment* segments, size_t count, const float* queries, size_t rows,
                                 float* out, float* lse_e, size_t spare) {
  pq_segment_params params;
  pq_segment_params_default(&params);
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

  /* A workspace one block too small: refused, and out is as before. */
  memcpy(other, out, sizeof out);
  CHECK(attend_segments(both, 2, queries, rows, out, lse_e, 256) == PQ_CAPACITY);
  CHECK(memcmp(out, other, sizeof out) == 0);
  CHECK(pq_attend(NULL, both, 2, NULL, NULL, 0, NULL, NULL, NULL) == PQ_INVALID_ARGUMENT);
  const pq_geometry bad = {0, 1, 2, 1};
  CHECK(pq_codebook_floats(&bad) == 0 && pq_codes_bytes(&bad, 1) == 0 && pq_codebook_bytes(NULL, PQ_STORE_F32) == 0);
  free(k.codebook);
  free(k.codes);
  free(v.codebook);
  free(v.codes);
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
  free(keys);
  free(values);
  free(queries);
  printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
