# SPDX-License-Identifier: MIT
# How the library reaches its users other than by find_package: pkg-config, Debian packages, vcpkg, conan, one header.
set(pqattn_packaging_tests "${CMAKE_CURRENT_SOURCE_DIR}/packaging")
function(pqattn_add_packaging_test name)
  add_test(NAME packaging.${name}
           COMMAND "${CMAKE_COMMAND}" -D "WORK=${CMAKE_CURRENT_BINARY_DIR}/packaging_${name}"
                   -D "SOURCE=${PROJECT_SOURCE_DIR}" -D "BUILD=${PROJECT_BINARY_DIR}" -D "VERSION=${PROJECT_VERSION}"
                   -D "COMPILER=${CMAKE_CXX_COMPILER}" -D "FLAGS=${pqattn_syntax_flags}"
                   -D "CONFIGURE=${pqattn_consumer_options}" ${ARGN}
                   -P "${pqattn_packaging_tests}/${name}.cmake")
  set_tests_properties(packaging.${name} PROPERTIES LABELS packaging SKIP_REGULAR_EXPRESSION "SKIPPED")
endfunction()

pqattn_add_packaging_test(budget)
pqattn_add_packaging_test(metadata)
if(PQATTN_INSTALL AND NOT pqattn_eigen_SOURCE_DIR)
  pqattn_add_packaging_test(pkg_config)
  pqattn_add_packaging_test(vcpkg)
  include(CheckLanguage)
  check_language(C)
  if(PQATTN_BUILD_C_API AND CMAKE_C_COMPILER)
    pqattn_add_packaging_test(deb -D "C_COMPILER=${CMAKE_C_COMPILER}")
  endif()
endif()

# --- one header --------------------------------------------------------------------------------------------------------
find_program(PQATTN_PYTHON NAMES python3)
mark_as_advanced(PQATTN_PYTHON)
if(NOT PQATTN_PYTHON)
  message(STATUS "pqattn: no python3, so the single header and the conan recipe are not tested")
  return()
endif()
pqattn_add_packaging_test(conan -D "PYTHON=${PQATTN_PYTHON}")

set(pqattn_single "${PROJECT_BINARY_DIR}/amalgamated/pqattn.hpp")
add_custom_command(
  OUTPUT "${pqattn_single}"
  COMMAND "${PQATTN_PYTHON}" "${PROJECT_SOURCE_DIR}/scripts/amalgamate" "${pqattn_single}"
          --forward "${CMAKE_CURRENT_BINARY_DIR}/forward"
  DEPENDS ${pqattn_headers} "${PROJECT_SOURCE_DIR}/scripts/amalgamate" VERBATIM)
add_custom_target(pqattn_amalgamated ALL DEPENDS "${pqattn_single}")
# The README example and a test of attention, with headers that lead to the single one instead of include/.
foreach(program amalgamated_example test_amalgamated)
  if(program STREQUAL "amalgamated_example")
    add_executable(${program} "${PROJECT_SOURCE_DIR}/examples/readme_example.cpp")
    add_test(NAME packaging.${program} COMMAND ${program})
  else()
    add_executable(${program} attend/partial_state_test.cpp attend/score_modifiers_test.cpp)
    target_link_libraries(${program} PRIVATE Catch2::Catch2WithMain)
    add_test(NAME packaging.${program} COMMAND ${program} ${pqattn_seed})
  endif()
  add_dependencies(${program} pqattn_amalgamated)
  target_compile_features(${program} PRIVATE cxx_std_20)
  target_include_directories(${program} PRIVATE "${CMAKE_CURRENT_BINARY_DIR}/forward" "${CMAKE_CURRENT_SOURCE_DIR}")
  target_link_libraries(${program} PRIVATE Eigen3::Eigen pqattn::xsimd pqattn_dev_flags)
  set_tests_properties(packaging.${program} PROPERTIES LABELS packaging)
endforeach()
pqattn_add_packaging_test(amalgamation -D "PYTHON=${PQATTN_PYTHON}" -D "SINGLE=${pqattn_single}")
