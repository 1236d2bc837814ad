# SPDX-License-Identifier: MIT
# cmake -D LIBRARY= -D SCRIPT= -P: runs the Python smoke test, or says that there is no Python.
find_program(python NAMES python3)
if(NOT python)
  message("SKIPPED: there is no python3")
  return()
endif()
execute_process(COMMAND "${python}" "${SCRIPT}" "${LIBRARY}" RESULT_VARIABLE result OUTPUT_VARIABLE output
                ERROR_VARIABLE output)
message("${output}")
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${SCRIPT} failed (${result})")
endif()
