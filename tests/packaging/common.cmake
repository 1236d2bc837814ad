# SPDX-License-Identifier: MIT
# For the scripts of this folder: a clean scratch folder WORK, and steps that must succeed.
file(REMOVE_RECURSE "${WORK}")
file(MAKE_DIRECTORY "${WORK}")

function(step what)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY "${WORK}" RESULT_VARIABLE result OUTPUT_VARIABLE output
                  ERROR_VARIABLE error)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${what} failed (${result}):\n${output}${error}")
  endif()
  set(step_output "${output}" PARENT_SCOPE)
  set(step_error "${error}" PARENT_SCOPE)
endfunction()

# The project tests/consumer_find_package against the package under `prefix`.
function(try_consumer prefix)
  step("configure of the consumer" "${CMAKE_COMMAND}" -S "${SOURCE}/tests/consumer_find_package" -B "${WORK}/consumer"
       ${CONFIGURE} "-DCMAKE_PREFIX_PATH=${prefix}" "-DEXPECTED_PREFIX=${prefix}" "-DEXPECTED_VERSION=${VERSION}")
  step("build of the consumer" "${CMAKE_COMMAND}" --build "${WORK}/consumer")
  step("run of the consumer" "${WORK}/consumer/consumer")
endfunction()
