// SPDX-License-Identifier: MIT
// The model on caches whose codes lie in the emulated PIM bank, against the same on the host bank.
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <filesystem>
#include <memory>
#include <vector>

#include "examples/tiny_lm/caches.hpp"
#include "examples/tiny_lm/engine.hpp"

namespace {

std::unique_ptr<tiny_lm::kv_cache> cache_of(const tiny_lm::engine& loaded, const char* name, std::size_t tokens) {
  std::unique_ptr<tiny_lm::kv_cache> cache;
  REQUIRE(tiny_lm::make_cache(name, loaded.weights.config.shape(tokens), cache));
  return cache;
}

/// Squared distance of `got` from `expected`, and the squared size of `expected` without its mean.
struct distance {
  double error = 0.0, size = 0.0;

  void add(std::span<const float> expected, std::span<const float> got) {
    double mean = 0.0;
    for (const float x : expected) {
      mean += static_cast<double>(x) / static_cast<double>(expected.size());
    }
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double x = static_cast<double>(expected[i]);
      error += (x - static_cast<double>(got[i])) * (x - static_cast<double>(got[i]));
      size += (x - mean) * (x - mean);
    }
  }
  [[nodiscard]] double nmse() const { return error / size; }
};

}  // namespace

TEST_CASE("the model runs on the emulated PIM bank and says what it says on the host bank", "[tiny_lm][pim]") {
  constexpr std::size_t tokens = 620;  // codebooks are trained at 520
  constexpr std::size_t coded = 560;   // by then codes hold most of what is attended to
  const std::filesystem::path data = std::filesystem::path(PQATTN_SOURCE_DIR) / "examples/tiny_lm/data";
  tiny_lm::engine loaded;
  REQUIRE(tiny_lm::load_engine(data, loaded));
  std::vector<tiny_lm::token_id> text;
  REQUIRE(tiny_lm::load_context(data, 0, text));
  const auto exact_cache = cache_of(loaded, "exact", tokens);
  const auto host_cache = cache_of(loaded, "pqattn-2bit", tokens);
  const auto pim_cache = cache_of(loaded, "pqattn-2bit-pim", tokens);
  tiny_lm::decoder exact(loaded.weights, *exact_cache);
  tiny_lm::decoder host(loaded.weights, *host_cache);
  tiny_lm::decoder emulated(loaded.weights, *pim_cache);
  distance from_host, from_exact, host_from_exact;
  std::size_t agree = 0;
  for (std::size_t t = 0; t < tokens; ++t) {
    REQUIRE(exact.step(text[t]));
    REQUIRE(host.step(text[t]));
    REQUIRE(emulated.step(text[t]));
    if (t >= coded) {
      from_host.add(host.logits(), emulated.logits());
      from_exact.add(exact.logits(), emulated.logits());
      host_from_exact.add(exact.logits(), host.logits());
      const auto best = [](std::span<const float> logits) { return std::ranges::max_element(logits) - logits.begin(); };
      agree += best(host.logits()) == best(emulated.logits()) ? 1 : 0;
    }
  }
  const std::string account = pim_cache->account();
  WARN("logits of 60 tokens: NMSE to the host bank " << from_host.nmse() << ", to exact " << from_exact.nmse()
                                                     << ", of the host bank to exact " << host_from_exact.nmse()
                                                     << "; most likely token the same for " << agree << "\n"
                                                     << account);
  CHECK(from_host.nmse() <= 5e-4);
  CHECK(from_exact.nmse() <= 1.25 * host_from_exact.nmse());
  CHECK(agree >= 57);
  CHECK(account.find("lut_lookups") != std::string::npos);
  CHECK(host_cache->account().empty());
}
