# SPDX-License-Identifier: MIT
# cmake -D WORK=<scratch> -D TREE=<sources> -D EIGEN=<headers> -D XSIMD=<headers> -D GENERATOR= -D COMPILER= -P
# Configures this project as if none of its dependencies were installed: find_package is switched off, and FetchContent is
# told where sources are instead of downloading them. Eigen and xsimd are the real headers; the others are stand-ins that
# only define their target, as nothing is compiled.
file(REMOVE_RECURSE "${WORK}")
file(MAKE_DIRECTORY "${WORK}/no_xsimd" "${WORK}/xsimd/include")
file(CREATE_LINK "${EIGEN}" "${WORK}/eigen" SYMBOLIC)
file(CREATE_LINK "${XSIMD}/xsimd" "${WORK}/xsimd/include/xsimd" SYMBOLIC)
set(options "-DPQATTN_XSIMD_INCLUDE_DIR=${WORK}/no_xsimd" "-DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON"
    "-DFETCHCONTENT_SOURCE_DIR_PQATTN_EIGEN=${WORK}/eigen" "-DFETCHCONTENT_SOURCE_DIR_PQATTN_XSIMD=${WORK}/xsimd")
foreach(dependency Catch2=Catch2::Catch2WithMain benchmark=benchmark::benchmark
        nlohmann_json=nlohmann_json::nlohmann_json CLI11=CLI11::CLI11)
  string(REGEX REPLACE "=.*" "" package ${dependency})
  string(REGEX REPLACE ".*=" "" target ${dependency})
  file(WRITE "${WORK}/${package}/CMakeLists.txt"
       "add_library(stand_in_${package} INTERFACE)\nadd_library(${target} ALIAS stand_in_${package})\n")
  string(TOUPPER ${package} upper)
  list(APPEND options "-DCMAKE_DISABLE_FIND_PACKAGE_${package}=ON" "-DFETCHCONTENT_SOURCE_DIR_${upper}=${WORK}/${package}")
endforeach()
execute_process(COMMAND "${CMAKE_COMMAND}" -S "${TREE}" -B "${WORK}/build" -G "${GENERATOR}"
                        "-DCMAKE_CXX_COMPILER=${COMPILER}" "-DCMAKE_CXX_COMPILER_LAUNCHER=" ${options}
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "configuration failed (${result}):\n${output}")
endif()
foreach(what "Eigen3 3.4" "xsimd 13" "Catch2 3" "benchmark 1.7" "nlohmann_json 3.10" "CLI11 2")
  string(FIND "${output}" "pqattn: ${what} is not installed, downloading" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "${what} did not take the way of a download:\n${output}")
  endif()
endforeach()
# The headers of the fetched folders are the ones the compiler sees.
file(WRITE "${WORK}/use.cpp" "#include <Eigen/Core>\n#include <pqattn/config.hpp>\n#include <xsimd/config/xsimd_config.hpp>\n"
     "static_assert(XSIMD_VERSION_MAJOR >= 13 && EIGEN_WORLD_VERSION == 3);\n")
file(READ "${WORK}/build/compile_commands.json" commands)
foreach(folder "${WORK}/eigen" "${WORK}/xsimd/include")
  string(FIND "${commands}" "${folder}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "nothing is compiled with ${folder}")
  endif()
endforeach()
execute_process(COMMAND "${COMPILER}" -std=c++20 -fsyntax-only "-I${TREE}/include" -isystem "${WORK}/eigen" -isystem
                        "${WORK}/xsimd/include" "${WORK}/use.cpp" COMMAND_ERROR_IS_FATAL ANY)
