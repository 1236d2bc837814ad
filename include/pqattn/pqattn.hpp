// SPDX-License-Identifier: MIT
// Everything in one include. Opt-in headers that need further libraries are not part of it.
#pragma once

#include "config.hpp"
#include "core/status.hpp"
#include "version.hpp"
