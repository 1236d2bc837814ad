// SPDX-License-Identifier: MIT
#pragma once

/// Library version; CMake reads these three lines.
#define PQATTN_VERSION_MAJOR 0
#define PQATTN_VERSION_MINOR 1
#define PQATTN_VERSION_PATCH 0

/// One comparable number: 10000 * major + 100 * minor + patch.
#define PQATTN_VERSION (PQATTN_VERSION_MAJOR * 10000 + PQATTN_VERSION_MINOR * 100 + PQATTN_VERSION_PATCH)
