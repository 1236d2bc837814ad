# SPDX-License-Identifier: MIT
# cmake -D OBJECT=<file> -D NM=<nm> -D OBJDUMP=<objdump> -D EXPECT=<clean|strong|initialiser> -P
# A header-only library in many translation units must define only what the linker may merge, and run nothing before
# main. EXPECT other than clean turns the check on an object made to violate it.
execute_process(COMMAND "${NM}" --defined-only "${OBJECT}" OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${OBJDUMP}" -h "${OBJECT}" OUTPUT_VARIABLE sections COMMAND_ERROR_IS_FATAL ANY)

# Lower case: local to the object. V, W: weak. u: unique across the program.
string(REGEX MATCHALL "[0-9a-f]* [ABCDGRST] [^\n]*" strong "${symbols}")
string(REGEX MATCHALL "\\.(init_array|ctors)[^ ]*" initialisers "${sections}")

set(found clean)
if(strong)
  set(found strong)
endif()
if(initialisers)
  set(found initialiser)
endif()
if(NOT found STREQUAL EXPECT)
  message(FATAL_ERROR "expected ${EXPECT}, found ${found}\nstrong symbols: ${strong}\ninitialisers: ${initialisers}")
endif()
