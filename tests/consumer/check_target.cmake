# SPDX-License-Identifier: MIT
# Included by both consumer projects: what pqattn::pqattn may ask of its users is a standard and two libraries.
foreach(property INTERFACE_COMPILE_OPTIONS INTERFACE_COMPILE_DEFINITIONS INTERFACE_LINK_OPTIONS)
  foreach(target pqattn::pqattn pqattn::xsimd)
    get_target_property(value ${target} ${property})
    if(value)
      message(FATAL_ERROR "${target} must not set ${property}, but has ${value}")
    endif()
  endforeach()
endforeach()
get_target_property(value pqattn::pqattn INTERFACE_COMPILE_FEATURES)
if(NOT value STREQUAL "cxx_std_20")
  message(FATAL_ERROR "pqattn::pqattn asks for ${value} instead of cxx_std_20")
endif()
