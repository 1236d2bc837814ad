// SPDX-License-Identifier: MIT
// Violates the rule on purpose, to see that check_units.sh would notice: an inline function that computes, under one
// name whatever the flags.
__attribute__((noinline)) inline float merged(const float* x) {
  return x[0] * 2.0f + x[1];
}
float uses_merged(const float* x) {
  return merged(x);
}
