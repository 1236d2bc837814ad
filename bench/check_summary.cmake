# SPDX-License-Identifier: MIT
# cmake -D PROGRAM=<pqattn_bench> -D FOLDER=<scratch> -P: a quick run writes every promised figure as a positive number.
file(REMOVE_RECURSE "${FOLDER}")
execute_process(COMMAND "${PROGRAM}" "--summary=${FOLDER}" --quick RESULT_VARIABLE result OUTPUT_VARIABLE output
                ERROR_VARIABLE errors)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "exit status ${result}:\n${output}\n${errors}")
endif()
file(READ "${FOLDER}/summary.json" summary)
foreach(key decode_g1_vs_f16 decode_g4_vs_f16 decode_g8_vs_f16 decode4bit_g4_vs_f16 decode_g4_vs_int8 decode_g4_vs_int4
            score_ns_per_token value_ns_per_token_g4 ns_per_token_g1 ns_per_token_g4 rope_ns_per_token_g1
            rope_ns_per_token_g4 rope_decode_g4_vs_f16 break_even_tokens_g4 train_iteration_ms train_ms_4_iterations
            encode_ns_per_vector encode_rows_ns_per_vector threads2_speedup cached_ns_per_token_g1
            cached_ns_per_token_g4 cached4bit_ns_per_token_g4 cached_rope_ns_per_token_g4 avx2_decode_g1_vs_f16
            skip_speedup_peaked_g4 skipped_fraction)
  string(JSON value ERROR_VARIABLE missing GET "${summary}" ${key})
  if(missing OR NOT value MATCHES "^[0-9.]+(e[-+]?[0-9]+)?$" OR NOT value GREATER 0)
    message(FATAL_ERROR "${key} is '${value}', not a positive number")
  endif()
endforeach()
string(JSON arch GET "${summary}" arch)
if(NOT arch)
  message(FATAL_ERROR "no arch")
endif()
foreach(file raw.json medians.csv by_length.dat table.md)
  file(SIZE "${FOLDER}/${file}" bytes)
  if(bytes LESS 200)
    message(FATAL_ERROR "${file} has only ${bytes} bytes")
  endif()
endforeach()
file(READ "${FOLDER}/raw.json" raw)
string(JSON runs LENGTH "${raw}" benchmarks)
if(runs LESS 50)
  message(FATAL_ERROR "raw.json has only ${runs} runs")
endif()
