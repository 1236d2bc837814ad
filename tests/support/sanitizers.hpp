// SPDX-License-Identifier: MIT
// Whether AddressSanitizer is on: tests that take minutes under it skip.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define PQATTN_TEST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PQATTN_TEST_ASAN 1
#endif
#endif
#ifndef PQATTN_TEST_ASAN
#define PQATTN_TEST_ASAN 0
#endif
