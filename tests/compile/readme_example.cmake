# SPDX-License-Identifier: MIT
# cmake -D README=<file> -D EXAMPLE=<file> -P: the first ```cpp block of the README is the example, letter by letter
# (the licence line of the file aside).
file(READ "${README}" readme)
file(READ "${EXAMPLE}" example)
string(REGEX REPLACE "^// SPDX-License-Identifier: MIT\n+" "" example "${example}")
string(FIND "${readme}" "```cpp\n" begin)
if(begin EQUAL -1)
  message(FATAL_ERROR "README.md has no cpp block")
endif()
math(EXPR begin "${begin} + 7")
string(SUBSTRING "${readme}" ${begin} -1 rest)
string(FIND "${rest}" "```" length)
string(SUBSTRING "${rest}" 0 ${length} block)
if(NOT "x${block}" STREQUAL "x${example}")
  message(FATAL_ERROR "the first cpp block of README.md differs from ${EXAMPLE}:\n${block}")
endif()
