#include <pqattn/pqattn.hpp>

#include <cstdio>
#include <random>
#include <vector>

int main() {
  constexpr std::size_t tokens = 2000, dim = 64;  // one KV head read by a group of 4 query heads
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> k(tokens * dim), v(tokens * dim), q(4 * dim), out(4 * dim);
  for (auto* data : {&k, &v, &q}) for (float& x : *data) x = normal(random);

  pqattn::host_bank<> bank;        // this CPU's SIMD units; a bank can also be an emulated PIM device
  pqattn::cache_config config;     // 8 sinks and 32 recent tokens stay exact
  config.keys.shape = config.values.shape = {dim, 16, 256};  // 16 sub-vectors, 256 centroids: 2 bits per element
  pqattn::head_cache<pqattn::host_bank<>> cache;
  pqattn::attend_scratch<pqattn::host_bank<>> scratch(bank, {});
  if (!cache.make(bank, config, {}, cache)) return 1;
  if (!cache.append(pqattn::view_rows(k.data(), tokens, dim), pqattn::view_rows(v.data(), tokens, dim))) return 1;
  if (!cache.attend(pqattn::view_rows(q.data(), 4, dim), {}, scratch, pqattn::ref_rows(out.data(), 4, dim), nullptr)) return 1;
  std::printf("%zu of %zu tokens coded, %.2f bits per element\n", cache.coded_tokens(), cache.size(), cache.memory().bits_per_element());
}
