// SPDX-License-Identifier: MIT
// Nothing but the library's headers: the object must not define anything (see check_object.cmake).
#include "all_headers.hpp"
