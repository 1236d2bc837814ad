# SPDX-License-Identifier: MIT
# cmake -D SOURCE=<file> -D "COMPILER=<command>" -D "FLAGS=<list>" -P
# The file must compile with -DPQATTN_COMPILE_FAIL=0 and fail with =1, with the words of its line "// expect: words".
file(STRINGS "${SOURCE}" line REGEX "^// expect: " LIMIT_COUNT 1)
string(REGEX REPLACE "^// expect: " "" words "${line}")
if(NOT words)
  message(FATAL_ERROR "${SOURCE} has no line `// expect: words`")
endif()
foreach(fails 0 1)
  execute_process(COMMAND ${COMPILER} ${FLAGS} -DPQATTN_COMPILE_FAIL=${fails} -fsyntax-only "${SOURCE}"
                  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(fails EQUAL 0 AND NOT result EQUAL 0)
    message(FATAL_ERROR "does not compile without the mistake:\n${output}")
  endif()
  if(fails EQUAL 1)
    if(result EQUAL 0)
      message(FATAL_ERROR "compiles in spite of the mistake")
    endif()
    string(FIND "${output}" "${words}" position)
    if(position EQUAL -1)
      message(FATAL_ERROR "the message does not say `${words}`:\n${output}")
    endif()
  endif()
endforeach()
