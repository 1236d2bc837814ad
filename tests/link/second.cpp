// SPDX-License-Identifier: MIT
#include "all_headers.hpp"
#include "link.hpp"

symbols symbols_of_second() { return here(); }
