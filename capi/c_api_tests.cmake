# SPDX-License-Identifier: MIT
# A C11 program, Python's ctypes and nm look at the C library.
include(CheckLanguage)
check_language(C)
if(NOT CMAKE_C_COMPILER)
  message(STATUS "pqattn: no C compiler, so the C library is built but not tested")
  return()
endif()
enable_language(C)
set(pqattn_c_tests "${PROJECT_SOURCE_DIR}/tests/capi")
foreach(kind shared static)
  set(program c_api_${kind})
  add_executable(${program} "${pqattn_c_tests}/c_api_test.c")
  set_target_properties(${program} PROPERTIES C_STANDARD 11 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF)
  target_compile_options(${program} PRIVATE -Wall -Wextra -pedantic ${pqattn_sanitize_flags})
  if(kind STREQUAL "shared")
    target_link_libraries(${program} PRIVATE pqattn::pqattn_c)
  else()
    target_link_libraries(${program} PRIVATE pqattn::pqattn_c_static)
  endif()
  target_link_libraries(${program} PRIVATE m)
  add_test(NAME c_api.${kind} COMMAND ${program})
  set_tests_properties(c_api.${kind} PROPERTIES LABELS c_api TIMEOUT 400)
endforeach()

if(NOT PQATTN_SANITIZE)
  if(CMAKE_NM)
    add_test(NAME c_api.symbols
             COMMAND "${CMAKE_COMMAND}" -D "LIBRARY=$<TARGET_FILE:pqattn_c>" -D "NM=${CMAKE_NM}"
                     -D "HEADER=${pqattn_c_header}" -P "${pqattn_c_tests}/check_symbols.cmake")
    set_tests_properties(c_api.symbols PROPERTIES LABELS c_api)
  endif()
  add_test(NAME c_api.ctypes
           COMMAND "${CMAKE_COMMAND}" -D "LIBRARY=$<TARGET_FILE:pqattn_c>"
                   -D "SCRIPT=${pqattn_c_tests}/ctypes_smoke.py" -P "${pqattn_c_tests}/run_ctypes.cmake")
  set_tests_properties(c_api.ctypes PROPERTIES LABELS c_api SKIP_REGULAR_EXPRESSION "SKIPPED")
  add_test(NAME c_api.document
           COMMAND "${CMAKE_COMMAND}" -D "DOCUMENT=${PROJECT_SOURCE_DIR}/docs/c_api.md"
                   -D "COMPILER=${CMAKE_C_COMPILER}"
                   -D "INCLUDE=${PROJECT_SOURCE_DIR}/include" -D "LIBRARY=$<TARGET_FILE:pqattn_c>"
                   -D "WORK=${CMAKE_CURRENT_BINARY_DIR}/document" -P "${pqattn_c_tests}/run_document.cmake")
  set_tests_properties(c_api.document PROPERTIES LABELS c_api)
endif()
