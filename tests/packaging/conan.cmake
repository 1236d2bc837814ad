# SPDX-License-Identifier: MIT
# The conan recipe: its methods run against a stand-in for conan's API, and the
# package they make compiles the recipe's test program.
include("${CMAKE_CURRENT_LIST_DIR}/common.cmake")
step("recipe" "${PYTHON}" "${SOURCE}/tests/packaging/conan_recipe.py" "${SOURCE}/packaging/conan" "${WORK}"
     "${VERSION}")
message("${step_output}")
set(prefixes "")
foreach(option IN LISTS CONFIGURE)
  if(option MATCHES "^-DPQATTN_XSIMD_INCLUDE_DIR=(.*)$")
    list(APPEND prefixes -isystem "${CMAKE_MATCH_1}")
  endif()
endforeach()
list(REMOVE_ITEM prefixes "/usr/include")
list(LENGTH prefixes count)
if(count EQUAL 1)  # the compiler's own folder needs no option
  set(prefixes "")
endif()
step("compile" "${COMPILER}" -std=c++20 -O1 "-I${WORK}/package/include" ${prefixes} -isystem /usr/include/eigen3
     "${SOURCE}/packaging/conan/test_package/consumer.cpp" -o consumer)
step("run" "${WORK}/consumer")
