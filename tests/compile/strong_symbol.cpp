// SPDX-License-Identifier: MIT
// Violates the rule on purpose, to see that check_object.cmake would notice.
int not_inline() {
  return 1;
}
