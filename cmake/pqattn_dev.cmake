# SPDX-License-Identifier: MIT
# Everything that concerns only our own tests, benches, examples and programs. Nothing here reaches pqattn::pqattn.

add_library(pqattn_dev_flags INTERFACE)

set(pqattn_warning_flags -Wall -Wextra -Wconversion -Wshadow -Wpedantic)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 reports the deliberately undefined operands inside its own AVX-512 intrinsics (GCC bug 105593).
  list(APPEND pqattn_warning_flags -Wno-maybe-uninitialized -Wno-uninitialized)
endif()
if(PQATTN_WERROR)
  list(APPEND pqattn_warning_flags -Werror)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # These come from the optimiser, differ from one GCC release to the next and are often wrong: never fatal.
    list(APPEND pqattn_warning_flags -Wno-error=maybe-uninitialized -Wno-error=array-bounds
         -Wno-error=stringop-overflow -Wno-error=stringop-overread -Wno-error=restrict)
  endif()
endif()
target_compile_options(pqattn_dev_flags INTERFACE ${pqattn_warning_flags})

if(PQATTN_NATIVE)
  include(CheckCXXCompilerFlag)
  check_cxx_compiler_flag(-march=native PQATTN_HAS_MARCH_NATIVE)
  if(PQATTN_HAS_MARCH_NATIVE)
    target_compile_options(pqattn_dev_flags INTERFACE -march=native)
  endif()
endif()

if(PQATTN_SANITIZE)
  # Inlined checks make kernels compile five times slower, so memory accesses are checked by calls; a null pointer, a
  # wrong object size or a bad vptr does not need UBSan where AddressSanitizer is watching.
  set(pqattn_sanitize_flags -fsanitize=address,undefined -fno-sanitize=null,object-size,vptr
      -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_compile_options(pqattn_dev_flags INTERFACE ${pqattn_sanitize_flags})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Instrumented code confuses these warnings; the build without sanitizers has them.
    target_compile_options(pqattn_dev_flags INTERFACE "SHELL:--param asan-instrumentation-with-call-threshold=0"
                           -Wno-uninitialized -Wno-maybe-uninitialized)
  elseif(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    target_compile_options(pqattn_dev_flags INTERFACE "SHELL:-mllvm -asan-instrumentation-with-call-threshold=0")
  endif()
  target_link_options(pqattn_dev_flags INTERFACE ${pqattn_sanitize_flags})
endif()

set(pqattn_is_release "$<CONFIG:Release,RelWithDebInfo,MinSizeRel>")
target_compile_definitions(pqattn_dev_flags INTERFACE "$<$<NOT:${pqattn_is_release}>:_GLIBCXX_ASSERTIONS>")

# pqattn_add_program(<target> <folder> [INSTALL])
# One program per folder: main.cpp and the other sources, which also become the library <target>_parts for tests.
function(pqattn_add_program target folder)
  cmake_parse_arguments(program "INSTALL" "" "" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS "${folder}/*.cpp")
  if(NOT sources)
    return()
  endif()
  set(parts ${sources})
  list(FILTER parts EXCLUDE REGEX "/main\\.cpp$")
  set(mains ${sources})
  list(FILTER mains INCLUDE REGEX "/main\\.cpp$")
  if(NOT mains)  # a single-file program under another name
    set(mains ${parts})
    set(parts "")
  endif()
  add_executable(${target} ${mains})
  set(libraries pqattn::pqattn pqattn_dev_flags nlohmann_json::nlohmann_json CLI11::CLI11)
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}")
  if(parts)
    add_library(${target}_parts STATIC ${parts})
    target_include_directories(${target}_parts PUBLIC "${PROJECT_SOURCE_DIR}")
    target_link_libraries(${target}_parts PUBLIC ${libraries})
    target_link_libraries(${target} PRIVATE ${target}_parts)
    set_property(GLOBAL APPEND PROPERTY PQATTN_PROGRAM_PARTS ${target}_parts)
  endif()
  target_link_libraries(${target} PRIVATE ${libraries})
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
  set_property(GLOBAL APPEND PROPERTY PQATTN_PROGRAMS ${target})
  if(program_INSTALL)
    install(TARGETS ${target} RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT programs)
  endif()
endfunction()
