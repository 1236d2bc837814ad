// SPDX-License-Identifier: MIT
// Masks, empty rows and huge scores in a program compiled with -ffast-math, where comparisons with infinities and NaN
// mean nothing. Judged by bits. Exit status 0: all as it should be.
#include <bit>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <vector>

#include "pqattn/pqattn.hpp"

#ifndef __FAST_MATH__
#error "this file is meant for -ffast-math"
#endif

namespace {

int failures = 0;
void expect(bool right, const char* what) {
  if (!right) {
    std::fprintf(stderr, "wrong under -ffast-math: %s\n", what);
    ++failures;
  }
}
bool is_minus_infinity(float x) {
  return std::bit_cast<std::uint32_t>(x) == 0xff800000u;
}

}  // namespace

int main() {
  using namespace pqattn;
  constexpr std::size_t tokens = 70;
  constexpr std::size_t dim = 8;
  std::vector<float> rows(tokens * dim);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = static_cast<float>(i * 37 % 23) - 11.0f;
  }
  const float huge[] = {1e4f, 1e20f, 1e28f};
  std::vector<float> queries(2 * dim, 1.0f);
  host_bank<> bank;
  segment<std::byte*> one;
  one.keys.rows = one.values.rows = view_rows(rows.data(), tokens, dim);
  one.slots = {0, tokens};
  std::vector<std::byte> workspace(attention_workspace_bytes(&one, 1, 2, dim, dim, 1));
  std::vector<float> out(2 * dim);
  float lse[2];
  attention_params params;
  const auto run = [&] {
    return attend(bank, view_rows(queries.data(), 2, dim), &one, 1, params, workspace.data(), workspace.size(),
                  ref_rows(out.data(), 2, dim), lse)
        .ok();
  };
  const std::int64_t positions[] = {-1, 100};  // the first row sees nothing
  params.modifiers.causal = true;
  params.modifiers.query_positions = positions;
  expect(run(), "a causal call runs");
  expect(is_minus_infinity(lse[0]) && std::bit_cast<std::uint32_t>(out[0]) == 0, "a masked row is (0, -infinity)");
  expect(is_finite(lse[1]), "the other row is not");
  for (const float scale : huge) {
    params.scale = scale;
    expect(run() && is_finite(out[dim]) && is_finite(lse[1]), "huge scores stay finite");
  }
  params.scale = 0.0f;
  params.modifiers.softcap = 5.0f;
  std::vector<float> bias(2 * tokens, 0.0f);
  for (std::size_t slot = 0; slot < tokens; ++slot) {
    bias[slot] = bias[tokens + slot] = -std::numeric_limits<float>::infinity();
  }
  bias[tokens + 3] = 0.0f;
  params.modifiers.bias = view_rows(bias.data(), 2, tokens);
  expect(run(), "a call with a mask runs");
  expect(is_minus_infinity(lse[0]), "a row with every entry masked is empty, soft-cap or not");
  expect(out[dim] == rows[3 * dim], "one visible token is the output");

  // Rows that are not finite are refused.
  cache_config config;
  config.keys.coded = config.values.coded = false;
  config.keys.shape.dim = config.values.shape.dim = dim;
  page_pool<host_bank<>> pool;
  expect(page_pool<host_bank<>>::make(bank, config, 1, {}, pool).ok(), "a pool is made");
  sequence<host_bank<>> sequence(pool);
  const head_rows good{view_rows(rows.data(), tokens, dim), 1, 0};
  expect(sequence.append(good, good).ok(), "finite rows are taken");
  for (const std::uint32_t bits : {0x7fc00000u, 0x7f800000u, 0xff800000u}) {
    rows[dim + 2] = std::bit_cast<float>(bits);
    const status result = sequence.append(good, good);
    expect(result.code == status_code::not_finite && result.expected == 1 && result.got == 2,
           "NaN and infinities are found and named");
  }
  expect(sequence.size() == tokens, "refused rows are not there");
  return failures == 0 ? 0 : 1;
}
