# SPDX-License-Identifier: MIT
# cmake -D OBJECT=<file> -D NM=<nm> -D EXPECT=<clean|calls> -P
# What code that uses the library asks of the rest of the program: nothing that ends the process, throws, prints, starts a
# thread or allocates behind the caller's back (nothrow aligned new is the default memory_resource), and no writable or
# thread-local data. EXPECT calls turns the check on an object made to violate it.
execute_process(COMMAND "${NM}" -P "${OBJECT}" OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
if(NOT symbols MATCHES "\nmemcpy U|^memcpy U")
  message(FATAL_ERROR "the listing of ${OBJECT} is not understood")
endif()
set(found "")
foreach(name abort exit _Exit terminate __cxa_throw __cxa_rethrow __cxa_allocate_exception __cxa_guard_acquire printf puts
             putchar fprintf fputs fputc fwrite vprintf pthread_create __tls_get_addr malloc calloc realloc getenv)
  if("\n${symbols}" MATCHES "\n${name} U")
    list(APPEND found ${name})
  endif()
endforeach()
# std::terminate, throwing functions of the standard library, iostreams, threads, new that throws.
string(REGEX MATCHALL "\n(_ZSt9terminate|_ZSt[0-9]+__throw_|_ZSt4c(out|err)|_ZNSo|_ZNSt6thread|_Zn[wa][mj] U|_Zn[wa][mj]St11align_val_t U)[^\n]*"
       mangled "\n${symbols}")
list(APPEND found ${mangled})
# b, d: zeroed and written data; of the linker's classes only constants (r, R, V of constants, u) are left.
string(REGEX MATCHALL "\n[^ \n]+ [bBdD] [^\n]*" data "\n${symbols}")
list(APPEND found ${data})
if(EXPECT STREQUAL "clean" AND found)
  message(FATAL_ERROR "${OBJECT} uses or defines: ${found}")
elseif(EXPECT STREQUAL "calls")
  foreach(wanted abort _Znwm counter)
    if(NOT "${found}" MATCHES "${wanted}")
      message(FATAL_ERROR "${wanted} was not noticed, only: ${found}")
    endif()
  endforeach()
endif()
