# SPDX-License-Identifier: MIT
# Where dependencies come from: what is installed first, a pinned release from its home repository otherwise.
include(FetchContent)
include("${CMAKE_CURRENT_LIST_DIR}/pqattn_xsimd.cmake")

# A folder that no dependency has: FetchContent then downloads the sources and runs none of their CMake code.
set(pqattn_no_subdirectory "pqattn-sources-only")

# pqattn_find_or_fetch(<package> <version> <target> <content name> <repository> <tag> [FetchContent options...])
# Makes sure that <target> exists, or, for sources without usable CMake code (SOURCE_SUBDIR), that they are there.
macro(pqattn_find_or_fetch package version target content repository tag)
  if(NOT TARGET ${target})
    find_package(${package} ${version} CONFIG QUIET)
  endif()
  if(NOT TARGET ${target})
    pqattn_fetch("${package} ${version}" ${content} ${repository} ${tag} ${ARGN})
  endif()
endmacro()

macro(pqattn_fetch what content repository tag)
  message(STATUS "pqattn: ${what} is not installed, downloading a pinned release (scripts/setup installs packages)")
  FetchContent_Declare(${content} GIT_REPOSITORY ${repository} GIT_TAG ${tag} GIT_SHALLOW ON ${ARGN})
  FetchContent_MakeAvailable(${content})
endmacro()

macro(pqattn_need_eigen)
  pqattn_find_or_fetch(Eigen3 3.4 Eigen3::Eigen pqattn_eigen https://gitlab.com/libeigen/eigen.git 3.4.0
                       SOURCE_SUBDIR ${pqattn_no_subdirectory})
  if(NOT TARGET Eigen3::Eigen)
    add_library(Eigen3::Eigen INTERFACE IMPORTED GLOBAL)
    set_target_properties(Eigen3::Eigen PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${pqattn_eigen_SOURCE_DIR}")
  else()
    # The package defines the target for its own directory only; subdirectories of a surrounding project need it too.
    get_target_property(pqattn_eigen_imported Eigen3::Eigen IMPORTED)
    if(pqattn_eigen_imported)
      get_target_property(pqattn_eigen_global Eigen3::Eigen IMPORTED_GLOBAL)
      if(NOT pqattn_eigen_global)
        get_target_property(pqattn_eigen_alias Eigen3::Eigen ALIASED_TARGET)
        if(NOT pqattn_eigen_alias)
          set_target_properties(Eigen3::Eigen PROPERTIES IMPORTED_GLOBAL TRUE)
        endif()
      endif()
    endif()
  endif()
endmacro()

macro(pqattn_need_xsimd)  # never by its package: see pqattn_xsimd.cmake
  pqattn_find_xsimd(pqattn_has_xsimd)
  if(NOT pqattn_has_xsimd)
    pqattn_fetch("xsimd 13" pqattn_xsimd https://github.com/xtensor-stack/xsimd.git 13.2.0
                 SOURCE_SUBDIR ${pqattn_no_subdirectory})
    pqattn_add_xsimd_target("${pqattn_xsimd_SOURCE_DIR}/include")
  endif()
endmacro()

macro(pqattn_need_catch2)
  pqattn_find_or_fetch(Catch2 3 Catch2::Catch2WithMain Catch2 https://github.com/catchorg/Catch2.git v3.7.1)
endmacro()

macro(pqattn_need_benchmark)
  set(BENCHMARK_ENABLE_TESTING OFF)
  set(BENCHMARK_ENABLE_INSTALL OFF)
  pqattn_find_or_fetch(benchmark 1.7 benchmark::benchmark benchmark https://github.com/google/benchmark.git v1.8.3)
endmacro()

macro(pqattn_need_json)
  set(JSON_BuildTests OFF)
  pqattn_find_or_fetch(nlohmann_json 3.10 nlohmann_json::nlohmann_json nlohmann_json
                       https://github.com/nlohmann/json.git v3.11.3)
endmacro()

macro(pqattn_need_cli11)
  pqattn_find_or_fetch(CLI11 2 CLI11::CLI11 CLI11 https://github.com/CLIUtils/CLI11.git v2.4.2)
endmacro()
