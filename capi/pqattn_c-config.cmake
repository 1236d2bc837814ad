# SPDX-License-Identifier: MIT
# find_package(pqattn_c): the C library. It needs neither Eigen nor xsimd.
include("${CMAKE_CURRENT_LIST_DIR}/pqattn-c-targets.cmake")
