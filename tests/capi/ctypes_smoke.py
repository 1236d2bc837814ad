#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Drives the C library through ctypes: python3 ctypes_smoke.py libpqattn_c.so. Needs nothing but Python."""
import ctypes as c
import math
import random
import sys


class Rows(c.Structure):
    _fields_ = [("data", c.c_void_p), ("dtype", c.c_int32), ("heads", c.c_size_t), ("rows", c.c_size_t),
                ("cols", c.c_size_t), ("head_stride", c.c_ssize_t), ("row_stride", c.c_ssize_t),
                ("col_stride", c.c_ssize_t)]


class Geometry(c.Structure):
    _fields_ = [("dim", c.c_uint32), ("subvectors", c.c_uint32), ("centroids", c.c_uint32), ("stages", c.c_uint32)]


class Side(c.Structure):
    _fields_ = [("coded", c.c_int32), ("shape", Geometry), ("storage", c.c_int32)]


class Config(c.Structure):
    _fields_ = [("struct_bytes", c.c_size_t), ("kv_heads", c.c_size_t), ("keys", Side), ("values", Side),
                ("sinks", c.c_uint32), ("recent", c.c_uint32), ("train_tokens", c.c_uint32),
                ("max_training_tokens", c.c_uint32), ("exact_type", c.c_int32), ("rope_pairs", c.c_uint32),
                ("rope_pairing", c.c_int32), ("rope_theta", c.c_double), ("rope_frequencies", c.c_void_p),
                ("keys_arrive_rotated", c.c_int32), ("code_keys_after_rope", c.c_int32),
                ("kmeans_iterations", c.c_uint32), ("seed", c.c_uint64), ("preset_bits", c.c_double),
                ("outlier_share", c.c_float), ("coding_batch", c.c_uint32), ("key_tail", c.c_uint32),
                ("values_from_keys", c.c_int32),
                ("track_errors", c.c_int32), ("most_epochs", c.c_uint32)]


class Skips(c.Structure):
    _fields_ = [("blocks", c.c_uint64), ("skipped", c.c_uint64)]


class Params(c.Structure):
    _fields_ = [("struct_bytes", c.c_size_t), ("scale", c.c_float), ("first_position", c.c_int64),
                ("causal", c.c_int32), ("window", c.c_int64), ("softcap", c.c_float), ("alibi_slopes", c.c_void_p),
                ("sink_logits", c.c_void_p), ("bias", c.POINTER(Rows)), ("skip_mass", c.c_float),
                ("skips", c.POINTER(Skips))]


class Entry(c.Structure):
    _fields_ = [("first_query", c.c_size_t), ("queries", c.c_size_t), ("first_position", c.c_int64),
                ("sequences", c.POINTER(c.c_void_p)), ("sequence_count", c.c_size_t), ("new_keys", c.POINTER(Rows)),
                ("new_values", c.POINTER(Rows)), ("new_position", c.c_int64), ("new_positions", c.POINTER(c.c_int32)),
                ("bias", c.POINTER(Rows))]


class Memory(c.Structure):
    _fields_ = [(name, c.c_size_t) for name in
                ("codes_bytes", "codebooks_bytes", "transforms_bytes", "exact_bytes", "metadata_bytes", "scratch_bytes",
                 "total_bytes", "tokens", "elements")] + [("bits_per_element", c.c_double)]


class Error(c.Structure):
    _fields_ = [("code", c.c_int32), ("message", c.c_char * 252)]


def rows(values, count, dim):
    return Rows(c.cast(values, c.c_void_p), 0, 1, count, dim, count * dim, dim, 1)


def main():
    library = c.CDLL(sys.argv[1])
    library.pq_version_string.restype = library.pq_arch_name.restype = c.c_char_p
    library.pq_cache_size.restype = library.pq_cache_coded_tokens.restype = c.c_size_t
    for name in ("pq_cache_size", "pq_cache_coded_tokens", "pq_cache_destroy"):
        getattr(library, name).argtypes = [c.c_void_p]

    config = Config()
    library.pq_cache_config_default(c.byref(config))
    assert config.struct_bytes == c.sizeof(Config), (config.struct_bytes, c.sizeof(Config))
    dim, tokens = 8, 400
    config.kv_heads = 1
    config.keys.shape = config.values.shape = Geometry(dim, 8, 64, 1)
    cache = c.c_void_p()
    error = Error()
    status = library.pq_cache_create(c.byref(config), None, None, c.byref(cache), c.byref(error))
    assert status == 0, error.message

    source = random.Random(1)
    array = c.c_float * (tokens * dim)
    keys = array(*[source.gauss(0, 1) for _ in range(tokens * dim)])
    values = array(*[source.gauss(0, 1) for _ in range(tokens * dim)])
    query = (c.c_float * dim)(*[source.gauss(0, 1) for _ in range(dim)])
    out = (c.c_float * dim)()
    lse = c.c_float()
    status = library.pq_cache_append(cache, c.byref(rows(keys, tokens, dim)), c.byref(rows(values, tokens, dim)), None,
                                     c.byref(error))
    assert status == 0, error.message
    assert library.pq_cache_size(cache) == tokens
    assert library.pq_cache_coded_tokens(cache) == tokens - 40
    status = library.pq_cache_attend(cache, c.byref(rows(query, 1, dim)), None, c.byref(rows(out, 1, dim)),
                                     c.byref(lse), c.byref(error))
    assert status == 0, error.message
    params, skips, again = Params(), Skips(), (c.c_float * dim)()
    library.pq_attend_params_default(c.byref(params))
    assert params.struct_bytes == c.sizeof(Params), (params.struct_bytes, c.sizeof(Params))
    params.skips = c.pointer(skips)
    status = library.pq_cache_attend(cache, c.byref(rows(query, 1, dim)), c.byref(params), c.byref(rows(again, 1, dim)),
                                     None, c.byref(error))
    assert status == 0 and list(again) == list(out), error.message
    assert skips.blocks == (tokens - 40 + 63) // 64 and skips.skipped <= skips.blocks, (skips.blocks, skips.skipped)

    scores = [sum(query[i] * keys[t * dim + i] for i in range(dim)) / math.sqrt(dim) for t in range(tokens)]
    total = sum(math.exp(score) for score in scores)
    exact = [sum(math.exp(score) * values[t * dim + i] for t, score in enumerate(scores)) / total for i in range(dim)]
    nmse = sum((a - b) ** 2 for a, b in zip(exact, out)) / sum(a * a for a in exact)
    assert nmse < 0.05, nmse
    assert abs(lse.value - math.log(total)) < 0.02

    assert library.pq_cache_append(cache, c.byref(rows(keys, 5, dim)), c.byref(rows(values, 4, dim)), None,
                                   c.byref(error)) == 2
    assert b"expected" in error.message, error.message
    library.pq_cache_destroy(cache)
    sequences(library, config, keys, values, query, tokens, dim, list(out))
    latent(library, config, keys, query, tokens, dim)
    print(f"pqattn {library.pq_version_string().decode()} on {library.pq_arch_name().decode()}: NMSE {nmse:.2g}")


def sequences(library, config, keys, values, query, tokens, dim, expected):
    """A pool: the same tokens give the same output, a fork that goes another way leaves the first line alone."""
    for name in ("pq_sequence_size", "pq_sequence_coded_tokens"):
        getattr(library, name).restype = c.c_size_t
    error = Error()
    pool, line, fork = c.c_void_p(), c.c_void_p(), c.c_void_p()
    assert library.pq_pool_create(c.byref(config), None, None, c.byref(pool), c.byref(error)) == 0, error.message
    assert library.pq_sequence_create(pool, c.byref(line), c.byref(error)) == 0, error.message
    assert library.pq_sequence_create(pool, c.byref(fork), c.byref(error)) == 0, error.message
    status = library.pq_sequence_append(line, c.byref(rows(keys, tokens, dim)), c.byref(rows(values, tokens, dim)),
                                        None, c.byref(error))
    assert status == 0, error.message
    assert library.pq_sequence_fork(line, fork, c.byref(error)) == 0, error.message
    assert library.pq_sequence_remove(fork, c.c_size_t(0), c.c_size_t(300), c.byref(error)) == 0, error.message
    library.pq_sequence_truncate(fork, c.c_size_t(50))
    assert (library.pq_sequence_size(line), library.pq_sequence_size(fork)) == (tokens, 50)
    out = (c.c_float * dim)()
    context = (c.c_void_p * 1)(line)
    entry = Entry(first_query=0, queries=1, first_position=tokens - 1, sequences=context, sequence_count=1)
    status = library.pq_batch_attend(pool, c.byref(entry), c.c_size_t(1), c.byref(rows(query, 1, dim)), None,
                                     c.byref(rows(out, 1, dim)), None, c.byref(error))
    assert status == 0, error.message
    assert max(abs(a - b) for a, b in zip(out, expected)) < 1e-4
    memory = Memory()
    library.pq_pool_memory(pool, c.byref(memory))
    parts = [getattr(memory, name) for name, _ in Memory._fields_[:6]]
    assert memory.total_bytes == sum(parts) and memory.transforms_bytes == 0 and memory.codes_bytes > 0, parts
    for sequence in (line, fork):
        library.pq_sequence_destroy(sequence)
    library.pq_pool_destroy(pool)


def latent(library, config, keys, query, tokens, dim):
    """MLA: the first channels of a key are its value, the last two are an exact tail; one array of codes."""
    tail = 2
    config.keys.shape = config.values.shape = Geometry(dim - tail, 6, 64, 1)
    config.key_tail, config.values_from_keys = tail, 1
    error = Error()
    pool, line = c.c_void_p(), c.c_void_p()
    assert library.pq_pool_create(c.byref(config), None, None, c.byref(pool), c.byref(error)) == 0, error.message
    assert library.pq_sequence_create(pool, c.byref(line), c.byref(error)) == 0, error.message
    status = library.pq_sequence_append(line, c.byref(rows(keys, tokens, dim)), None, None, c.byref(error))
    assert status == 0, error.message
    out = (c.c_float * (dim - tail))()
    context = (c.c_void_p * 1)(line)
    entry = Entry(first_query=0, queries=1, first_position=tokens - 1, sequences=context, sequence_count=1)
    status = library.pq_batch_attend(pool, c.byref(entry), c.c_size_t(1), c.byref(rows(query, 1, dim)), None,
                                     c.byref(rows(out, 1, dim - tail)), None, c.byref(error))
    assert status == 0, error.message
    weights = [math.exp(sum(query[i] * keys[t * dim + i] for i in range(dim)) / math.sqrt(dim)) for t in range(tokens)]
    exact = [sum(w * keys[t * dim + i] for t, w in enumerate(weights)) / sum(weights) for i in range(dim - tail)]
    nmse = sum((a - b) ** 2 for a, b in zip(exact, out)) / sum(a * a for a in exact)
    assert nmse < 0.05, nmse
    library.pq_sequence_destroy(line)
    library.pq_pool_destroy(pool)


main()
