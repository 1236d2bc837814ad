# SPDX-License-Identifier: MIT
# The single header is the same bytes every time, needs nothing of include/, and survives being included twice.
include("${CMAKE_CURRENT_LIST_DIR}/common.cmake")
foreach(run first second)
  step("amalgamate" "${PYTHON}" "${SOURCE}/scripts/amalgamate" "${WORK}/${run}/pqattn.hpp")
  file(SHA256 "${WORK}/${run}/pqattn.hpp" ${run})
endforeach()
if(NOT first STREQUAL second)
  message(FATAL_ERROR "two runs give different headers")
endif()
file(READ "${WORK}/first/pqattn.hpp" header)
if(header MATCHES "\n#include \"")
  message(FATAL_ERROR "the single header includes other headers of the library")
endif()
file(WRITE "${WORK}/twice.cpp" "#include \"pqattn.hpp\"\n#include \"pqattn.hpp\"\n"
     "int main() { return pqattn::status{} ? 0 : 1; }\n")
set(others ${FLAGS})
list(FILTER others EXCLUDE REGEX "^-I")
step("compile" "${COMPILER}" ${others} -Wall -Wextra -Wconversion -Wshadow -Wpedantic -Werror -fno-exceptions -fno-rtti
     "-I${WORK}/first" -fsyntax-only twice.cpp)
