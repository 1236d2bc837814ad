# SPDX-License-Identifier: MIT
# cmake -D WORK=<scratch folder> -D SOURCE=<consumer project> -D "CONFIGURE=<options>" [-D INSTALL_FROM=<build tree>] -P
# Installs pqattn when asked, then configures, builds and runs the consumer project, all in a scratch folder.
file(REMOVE_RECURSE "${WORK}")
file(MAKE_DIRECTORY "${WORK}")

function(step what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${what} failed (${result}):\n${output}")
  endif()
endfunction()

if(INSTALL_FROM)
  # Moved after installing: a package that remembers where it was installed would not be found whole.
  step("install" "${CMAKE_COMMAND}" --install "${INSTALL_FROM}" --prefix "${WORK}/first" --component devel)
  if(EXPECT_DISPATCH)
    step("install" "${CMAKE_COMMAND}" --install "${INSTALL_FROM}" --prefix "${WORK}/first" --component dispatch)
  endif()
  file(RENAME "${WORK}/first" "${WORK}/prefix")
  list(APPEND CONFIGURE "-DEXPECT_DISPATCH=${EXPECT_DISPATCH}" "-DCMAKE_PREFIX_PATH=${WORK}/prefix" "-DEXPECTED_PREFIX=${WORK}/prefix")
endif()
step("configure" "${CMAKE_COMMAND}" -S "${SOURCE}" -B "${WORK}/build" ${CONFIGURE})
step("build" "${CMAKE_COMMAND}" --build "${WORK}/build")
step("run" "${WORK}/build/consumer")
if(EXPECT_DISPATCH)
  step("run" "${WORK}/build/consumer_dispatch")
endif()
