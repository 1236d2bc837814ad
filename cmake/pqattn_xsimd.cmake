# SPDX-License-Identifier: MIT
# Defines pqattn::xsimd, an imported interface target with nothing but the include directory of xsimd >= 13.
# The target of a packaged xsimd is not used: distributions build it with XSIMD_ENABLE_XTL_COMPLEX, which asks for
# another library and breaks xsimd::emulated<N>. Used by the build and, installed, by the package configuration.
#
# pqattn_find_xsimd(<result>): sets <result> to TRUE when the target exists afterwards.
# pqattn_add_xsimd_target(<include directory>): defines the target.

function(pqattn_add_xsimd_target include_dir)
  add_library(pqattn::xsimd INTERFACE IMPORTED GLOBAL)
  set_target_properties(pqattn::xsimd PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${include_dir}")
endfunction()

function(pqattn_xsimd_version include_dir result)
  set(${result} 0 PARENT_SCOPE)
  set(file "${include_dir}/xsimd/config/xsimd_config.hpp")
  if(EXISTS "${file}")
    file(STRINGS "${file}" lines REGEX "#define XSIMD_VERSION_(MAJOR|MINOR) +[0-9]+")
    if("${lines}" MATCHES "MAJOR +([0-9]+)")
      set(major ${CMAKE_MATCH_1})
      set(minor 0)
      if("${lines}" MATCHES "MINOR +([0-9]+)")
        set(minor ${CMAKE_MATCH_1})
      endif()
      set(${result} "${major}.${minor}" PARENT_SCOPE)
    endif()
  endif()
endfunction()

function(pqattn_find_xsimd result)
  if(NOT TARGET pqattn::xsimd)
    set(candidates "")
    if(TARGET xsimd)  # the surrounding project brought its own
      get_target_property(own xsimd INTERFACE_INCLUDE_DIRECTORIES)
      string(REGEX REPLACE "\\$<BUILD_INTERFACE:([^>]*)>" "\\1" own "${own}")
      list(APPEND candidates ${own})
    endif()
    if(xsimd_DIR OR xsimd_ROOT)
      list(APPEND candidates "${xsimd_DIR}/../../../include" "${xsimd_ROOT}/include")
    endif()
    find_path(PQATTN_XSIMD_INCLUDE_DIR xsimd/xsimd.hpp HINTS ${candidates}
              DOC "Directory that contains xsimd/xsimd.hpp, version 13 or newer")
    mark_as_advanced(PQATTN_XSIMD_INCLUDE_DIR)
    if(PQATTN_XSIMD_INCLUDE_DIR)
      pqattn_xsimd_version("${PQATTN_XSIMD_INCLUDE_DIR}" version)
      if(version VERSION_GREATER_EQUAL 13)
        pqattn_add_xsimd_target("${PQATTN_XSIMD_INCLUDE_DIR}")
      else()
        message(STATUS "pqattn: xsimd ${version} in ${PQATTN_XSIMD_INCLUDE_DIR} is older than 13, not used")
      endif()
    endif()
  endif()
  if(TARGET pqattn::xsimd)
    set(${result} TRUE PARENT_SCOPE)
  else()
    set(${result} FALSE PARENT_SCOPE)
  endif()
endfunction()
