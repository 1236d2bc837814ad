// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/x86/value_sum.hpp"

#include <algorithm>
#include <bit>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <limits>

#include "bank/host/x86/coded_data.hpp"
#include "bank/host/x86/isa_list.hpp"

#ifdef PQATTN_TEST_X86_ISAS
namespace {

using pqattn_test::aligned_bytes;
using pqattn_test::coded_data;

pqattn::x86::slot_run run_of(const coded_data& data, std::size_t first, std::size_t count) {
  return {static_cast<const std::uint8_t*>(data.blocks.data()), data.pages.data(), data.block_bytes(), first, count};
}

/// Probabilities whose padding is NaN: a kernel that reads it shows it.
struct weights {
  std::size_t stride;
  std::vector<float> values;

  weights(std::size_t rows, std::size_t count)
      : stride(count + 7), values(rows * stride, std::numeric_limits<float>::quiet_NaN()) {}
  float& at(std::size_t row, std::size_t slot) { return values[row * stride + slot]; }
};

/// What the probabilities of one row come to.
struct row_sums {
  double mass = 0.0;
  double energy = 0.0;
  float largest = 0.0f;

  row_sums(weights& p, std::size_t row, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      mass += static_cast<double>(p.at(row, i));
      energy += std::pow(static_cast<double>(p.at(row, i)), 2.0);
      largest = std::max(largest, p.at(row, i));
    }
  }
};

/// What a softmax says of all its rows.
struct softmax_says {
  std::vector<float> mass;
  std::vector<float> energy;
  std::vector<float> largest;

  softmax_says(weights& p, std::size_t rows, std::size_t count) {
    for (std::size_t row = 0; row < rows; ++row) {
      const row_sums sums(p, row, count);
      mass.push_back(static_cast<float>(sums.mass));
      energy.push_back(static_cast<float>(sums.energy));
      largest.push_back(sums.largest);
    }
  }
  [[nodiscard]] pqattn::x86::known_sums get() const { return {mass.data(), energy.data(), largest.data()}; }
};

/// Adds the run's values to `out` (rows, dim + 1); returns false if the code width is not supported.
template <class Isa>
bool sum_values(const coded_data& data, std::size_t first, std::size_t count, weights& p, std::size_t rows,
                const float* skip_below, std::vector<float>& out, std::size_t& skipped, bool known = false) {
  const softmax_says sums(p, rows, count);
  const aligned_bytes scratch(pqattn::x86::value_scratch_bytes<Isa>(data.shape, rows));
  const bool done = pqattn::x86::value_sum<Isa>(data.shape, data.book(), run_of(data, first, count), p.values.data(),
                                                p.stride, rows, skip_below, out.data(), data.shape.dim + 1, skipped,
                                                scratch.data(), {}, known ? sums.get() : pqattn::x86::known_sums{});
  REQUIRE(done == (data.shape.code_bits() <= pqattn::x86::widest_code<Isa>));
  return done;
}

/// Largest part of a value that a byte gives, all stages: the noise of probabilities multiplies it.
double largest_byte_part(const coded_data& data, std::uint32_t channel) {
  double sum = 0.0;
  for (std::uint32_t position = 0; position < data.shape.dim; ++position) {
    for (std::uint32_t stage = 0; data.order[position] == channel && stage < data.shape.stages; ++stage) {
      sum += 128.0 * static_cast<double>(data.scale[stage * data.shape.dim + position]);
    }
  }
  return sum;
}

template <class Isa>
void check(const pqattn_test::coded_case& shape, std::size_t rows, std::size_t first, std::size_t count, double spread,
           bool known) {
  pqattn_test::random_data random(shape.dim * 1000 + rows);
  const coded_data data(random, shape.dim, shape.subvectors, shape.centroids, shape.stages, first + count);
  weights p(rows, count);
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < count; ++i) {
      p.at(row, i) = std::exp(static_cast<float>(spread) * random.normal()) * 1e-3f;
    }
  }
  INFO(Isa::name << ", " << data.name() << ", rows " << rows << ", first " << first << ", spread " << spread
                 << (known ? ", known sums" : "") << ", seed " << random.seed());
  const std::size_t stride = shape.dim + 1;
  std::vector<float> out(rows * stride, 0.25f);
  std::size_t skipped = 0;
  if (!sum_values<Isa>(data, first, count, p, rows, nullptr, out, skipped, known)) {
    return;
  }
  REQUIRE(skipped == 0);
  for (std::size_t row = 0; row < rows; ++row) {
    const row_sums sums(p, row, count);
    for (std::uint32_t channel = 0; channel < shape.dim; ++channel) {
      double want = 0.25;
      for (std::size_t i = 0; i < count; ++i) {
        want += static_cast<double>(p.at(row, i)) * data.value(first + i, channel);
      }
      const double got = static_cast<double>(out[row * stride + channel]);
      // Five standard deviations of the documented noise for values of the largest size, and f32 sums.
      const double deviation =
          std::sqrt(static_cast<double>(pqattn::x86::value_noise) * sums.energy) * largest_byte_part(data, channel);
      const double bound = 5.0 * deviation + 1e-5 * (sums.mass + 1.0);
      INFO("row " << row << " channel " << channel << " got " << got << " want " << want);
      CHECK(std::fabs(got - want) <= bound);
    }
    CHECK(out[row * stride + shape.dim] == 0.25f);
  }
}

}  // namespace

TEMPLATE_TEST_CASE("value sums are right to the documented noise", "[x86]", PQATTN_TEST_X86_ISAS) {
  for (const bool known : {false, true}) {
    for (const auto& shape : pqattn_test::coded_cases) {
      check<TestType>(shape, 1, 0, 64, 0.0, known);
      check<TestType>(shape, 4, 0, 700, 1.0, known);
      check<TestType>(shape, 7, 37, 130, 3.0, known);
      check<TestType>(shape, 2, 65, 3, 1.0, known);
    }
    check<TestType>({64, 16, 256, 1}, 3, 0, 2100, 2.0, known);  // more than one batch
    check<TestType>({16, 4, 256, 1}, 2, 90, 5000, 1.0, known);  // more blocks than share steps
  }
}

TEMPLATE_TEST_CASE("the noise of rounded probabilities stays below its bound", "[x86]", PQATTN_TEST_X86_ISAS) {
  constexpr std::size_t count = 3000;
  pqattn_test::random_data random(11);
  const coded_data data(random, 64, 16, 256, 1, count);
  // Flat, as softmax gives, a few large ones among many small ones, one above all: some have an excess, some are
  // merged.
  for (const double spread : {0.0, 0.5, 1.0, 2.0, 4.0, 8.0}) {
    double noise = 0.0;
    double bound = 0.0;
    for (int turn = 0; turn < 8; ++turn) {
      weights p(1, count);
      for (std::size_t i = 0; i < count; ++i) {
        p.at(0, i) = std::exp(static_cast<float>(spread) * (random.normal() - 3.0f));
      }
      const row_sums sums(p, 0, count);
      std::vector<float> out(65, 0.0f);
      std::size_t skipped = 0;
      REQUIRE(sum_values<TestType>(data, 0, count, p, 1, nullptr, out, skipped));
      for (std::uint32_t channel = 0; channel < 64; ++channel) {
        double want = 0.0;
        double mean = 0.0;
        double square = 0.0;
        for (std::size_t i = 0; i < count; ++i) {
          const double value = data.value(i, channel);
          want += static_cast<double>(p.at(0, i)) * value;
          mean += value / count;
          square += value * value / count;
        }
        noise += std::pow(static_cast<double>(out[channel]) - want, 2.0);
        bound += static_cast<double>(pqattn::x86::value_noise) * sums.energy * (square - mean * mean) +
                 1e-12 * sums.mass * sums.mass;
      }
    }
    INFO(TestType::name << ", spread " << spread << ", noise over its bound " << noise / bound << ", seed "
                        << random.seed());
    CHECK(noise <= 1.2 * bound);  // of 512 sums
  }
}

TEMPLATE_TEST_CASE("a flat tail below a large probability keeps its mass", "[x86]", PQATTN_TEST_X86_ISAS) {
  pqattn_test::random_data random(12);
  for (const std::size_t count : {std::size_t{64}, std::size_t{128}, std::size_t{300}, std::size_t{1024}}) {
    coded_data data(random, 16, 4, 256, 1, count);
    std::memset(data.tables.data(), 100, 16 * data.entries);  // every value the same: what is lost of the mass shows
    for (std::uint32_t channel = 0; channel < 16; ++channel) {
      data.scale[channel] = 0.01f;
      data.offset[channel] = 0.0f;
    }
    for (const float part : {0.02f, 0.1f, 0.25f, 0.45f, 0.5f, 0.7f, 1.0f, 1.3f}) {
      weights p(1, count);
      for (std::size_t i = 0; i < count; ++i) {
        p.at(0, i) = i == 7 ? 1.0f : part / TestType::byte_limit;
      }
      const row_sums sums(p, 0, count);
      std::vector<float> out(17, 0.0f);
      std::size_t skipped = 0;
      REQUIRE(sum_values<TestType>(data, 0, count, p, 1, nullptr, out, skipped));
      INFO(TestType::name << ", " << count << " slots, tail of " << part << " steps, got " << out[0] << " want "
                          << sums.mass);
      CHECK(std::pow(static_cast<double>(out[0]) - sums.mass, 2.0) <=
            static_cast<double>(pqattn::x86::value_noise) * sums.energy);
    }
  }
}

TEMPLATE_TEST_CASE("many large probabilities are not rounded", "[x86]", PQATTN_TEST_X86_ISAS) {
  constexpr std::size_t rows = 40;
  constexpr std::size_t count = 3000;
  constexpr std::size_t large = 12;
  pqattn_test::random_data random(13);
  for (const auto& shape : pqattn_test::coded_cases) {
    const coded_data data(random, shape.dim, shape.subvectors, shape.centroids, shape.stages, count);
    weights p(rows, count);
    std::vector<double> want(rows * (shape.dim + 1), 0.0);
    for (std::size_t row = 0; row < rows; ++row) {
      std::fill_n(&p.at(row, 0), count, 0.0f);
      for (std::size_t i = 0; i < large; ++i) {  // within 15 blocks: 480 in one batch
        const std::size_t slot = 79 * i + random.below(79);
        p.at(row, slot) = 1.0f;
        for (std::uint32_t channel = 0; channel < shape.dim; ++channel) {
          want[row * (shape.dim + 1) + channel] += data.value(slot, channel);
        }
      }
    }
    std::vector<float> out(want.size(), 0.0f);
    std::size_t skipped = 0;
    INFO(TestType::name << ", " << data.name() << ", seed " << random.seed());
    if (!sum_values<TestType>(data, 0, count, p, rows, nullptr, out, skipped)) {
      continue;
    }
    double worst = 0.0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      worst = std::max(worst, std::fabs(static_cast<double>(out[i]) - want[i]));
    }
    CHECK(worst <= 1e-4);
  }
}

TEMPLATE_TEST_CASE("the workspace of some rows holds that of fewer", "[x86]", PQATTN_TEST_X86_ISAS) {
  for (const std::uint32_t dim : {4u, 64u, 1000u}) {
    const pqattn::geometry shape{dim, dim / 4, 256};
    std::size_t largest = 0;
    for (std::size_t rows = 1; rows <= 40; ++rows) {
      const std::size_t bytes = pqattn::x86::value_scratch_bytes<TestType>(shape, rows);
      CHECK(bytes >= largest);
      CHECK(bytes >= pqattn::x86::detail::carve_value_scratch(shape, rows, nullptr).size);
      largest = bytes;
    }
  }
}

TEMPLATE_TEST_CASE("a single probability returns its value", "[x86]", PQATTN_TEST_X86_ISAS) {
  pqattn_test::random_data random(3);
  for (const auto& shape : pqattn_test::coded_cases) {
    const coded_data data(random, shape.dim, shape.subvectors, shape.centroids, shape.stages, 330);
    for (const std::size_t slot :
         {std::size_t{0}, std::size_t{31}, std::size_t{32}, std::size_t{170}, std::size_t{329}}) {
      weights p(2, 330);
      for (std::size_t i = 0; i < 330; ++i) {
        p.at(0, i) = i == slot ? 2.0f : 0.0f;
        p.at(1, i) = 0.0f;
      }
      std::vector<float> out(2 * (shape.dim + 1), 0.0f);
      std::size_t skipped = 0;
      INFO(TestType::name << ", " << data.name() << ", slot " << slot << ", seed " << random.seed());
      if (!sum_values<TestType>(data, 0, 330, p, 2, nullptr, out, skipped)) {
        break;
      }
      for (std::uint32_t channel = 0; channel < shape.dim; ++channel) {
        CHECK(std::fabs(static_cast<double>(out[channel]) - 2.0 * data.value(slot, channel)) <= 1e-5);
        CHECK(out[shape.dim + 1 + channel] == 0.0f);
      }
    }
  }
}

TEMPLATE_TEST_CASE("blocks of negligible mass are skipped and counted", "[x86]", PQATTN_TEST_X86_ISAS) {
  pqattn_test::random_data random(4);
  const std::size_t count = 20 * 64 - 10;
  const coded_data data(random, 16, 4, 16, 1, count);
  weights p(2, count);
  std::size_t expected = 0;
  weights without = p;
  for (std::size_t block = 0; block < 20; ++block) {
    const bool small[2] = {block % 3 != 0, block % 2 != 0};
    expected += small[0] && small[1] ? 1 : 0;
    for (std::size_t i = block * 64; i < count && i < block * 64 + 64; ++i) {
      for (std::size_t row = 0; row < 2; ++row) {
        p.at(row, i) = (small[row] ? 1e-6f : 1.0f) * static_cast<float>(random.uniform(0.5, 1.0));
        without.at(row, i) = small[0] && small[1] ? 0.0f : p.at(row, i);
      }
    }
  }
  // Light blocks add up to at most 64e-6 each.
  const float below[2] = {64e-6f * static_cast<float>(expected), 64e-6f * static_cast<float>(expected)};
  std::vector<float> skipping(2 * 17, 0.0f);
  std::vector<float> plain(2 * 17, 0.0f);
  std::size_t skipped = 0;
  std::size_t none = 0;
  REQUIRE(sum_values<TestType>(data, 0, count, p, 2, below, skipping, skipped));
  REQUIRE(sum_values<TestType>(data, 0, count, without, 2, nullptr, plain, none));
  CHECK(skipped == expected);
  CHECK(none == 0);
  // Sums that are known beforehand contain what is skipped.
  std::vector<float> knowing(2 * 17, 0.0f);
  std::size_t again = 0;
  REQUIRE(sum_values<TestType>(data, 0, count, p, 2, below, knowing, again, true));
  CHECK(again == expected);
  for (std::size_t i = 0; i < knowing.size(); ++i) {
    CHECK(std::fabs(knowing[i] - skipping[i]) <= 1e-2f);
  }
  // A budget of less than they add up to, at least 32e-6 each, keeps some.
  const float tight[2] = {below[0], 40e-6f};
  std::vector<float> ignored(2 * 17, 0.0f);
  std::size_t fewer = 0;
  REQUIRE(sum_values<TestType>(data, 0, count, p, 2, tight, ignored, fewer));
  CHECK(fewer <= 1);
  for (std::size_t i = 0; i < skipping.size(); ++i) {
    // Sets are cut differently, so rounding differs; a wrongly skipped block would change the sums by 48 * 0.5.
    CHECK(std::fabs(skipping[i] - plain[i]) <= 1.0f);
  }
}

TEMPLATE_TEST_CASE("light blocks are skipped before heavy ones", "[x86]", PQATTN_TEST_X86_ISAS) {
  pqattn_test::random_data random(14);
  constexpr std::size_t blocks = 70;  // in two runs
  coded_data data(random, 16, 4, 16, 1, blocks * 64);
  weights p(2, blocks * 64);
  for (std::size_t i = 0; i < blocks * 64; ++i) {
    const std::size_t block = i / 64;
    // Of a budget of 1: the first block 0.9 in one row, three in four of the others 0.01, the last of four more than
    // all.
    p.at(0, i) = (block == 0 ? 0.9f : block % 4 != 3 ? 0.01f : 2.0f) / 64.0f;
    p.at(1, i) = 0.001f / 64.0f;
  }
  const float budget[2] = {1.0f, 1.0f};
  std::vector<float> out(2 * 17, 0.0f);
  std::size_t skipped = 0;
  REQUIRE(sum_values<TestType>(data, 0, blocks * 64, p, 2, budget, out, skipped));
  // All light ones of the first 64 blocks, 47 with 0.47; the first block no longer fits, those of the second run do.
  CHECK(skipped == 47 + 5);

  // Values of 1: the output is the mass that was not skipped, whether sums are known beforehand or not.
  std::fill_n(data.scale.begin(), 16, 0.0f);
  std::fill_n(data.offset.begin(), 16, 1.0f);
  for (const bool known : {false, true}) {
    std::fill(out.begin(), out.end(), 0.0f);
    REQUIRE(sum_values<TestType>(data, 0, 64 * 64, p, 2, budget, out, skipped, known));
    CHECK(std::fabs(out[0] - (0.9f + 2.0f * 16.0f)) <= 1e-3f);
    CHECK(std::fabs(out[17] - 0.001f * 17.0f) <= 1e-5f);
  }
}

TEMPLATE_TEST_CASE("as many blocks are skipped as what may be skipped allows", "[x86]", PQATTN_TEST_X86_ISAS) {
  constexpr std::size_t most = pqattn::x86::most_value_blocks;
  pqattn_test::random_data random(15);
  INFO("seed " << random.seed());
  for (int turn = 0; turn < 200; ++turn) {
    const std::size_t rows = 1 + random.below(6);
    const std::size_t first = random.below(64);
    const std::size_t count = 1 + random.below(most * 64 - first);
    const std::size_t blocks = (first + count + 63) / 64;
    weights p(rows, count);
    std::vector<std::vector<double>> masses(rows, std::vector<double>(blocks, 0.0));
    const double spread = random.uniform(0.0, 6.0);
    for (std::size_t row = 0; row < rows; ++row) {
      std::vector<float> scale(blocks);
      for (float& of_block : scale) {
        const double logarithm = spread * static_cast<double>(random.normal());
        of_block = random.chance(0.1) ? 0.0f : static_cast<float>(std::exp(logarithm));
      }
      for (std::size_t i = 0; i < count; ++i) {
        p.at(row, i) = scale[(first + i) / 64] * static_cast<float>(random.uniform());
        masses[row][(first + i) / 64] += static_cast<double>(p.at(row, i));
      }
    }
    std::vector<float> left(rows);
    for (std::size_t row = 0; row < rows; ++row) {
      double total = 0.0;
      for (const double mass : masses[row]) {
        total += mass;
      }
      left[row] = turn % 10 == 0 ? 0.0f : static_cast<float>(total * std::pow(10.0, random.uniform(-5.0, 0.2)));
    }
    const std::vector<float> before = left;
    std::vector<float> taken(rows, 0.0f);
    aligned_bytes workspace(rows * most * sizeof(float));
    const pqattn::x86::slot_run run{nullptr, nullptr, 64, first, count};
    const std::uint64_t skipped = pqattn::x86::detail::skipped_blocks<TestType>(
        p.values.data(), p.stride, rows, run, left.data(), taken.data(), static_cast<float*>(workspace.data()));
    REQUIRE((blocks == 64 || skipped >> blocks == 0));

    // What is skipped stays within what may be, in every row, and is accounted for.
    for (std::size_t row = 0; row < rows; ++row) {
      double mass = 0.0;
      for (std::size_t block = 0; block < blocks; ++block) {
        mass += (skipped >> block & 1) != 0 ? masses[row][block] : 0.0;
      }
      CHECK(mass <= static_cast<double>(before[row]) * (1.0 + 1e-5));
      CHECK(std::fabs(static_cast<double>(taken[row]) - mass) <= 1e-5 * mass);
      CHECK(std::fabs(static_cast<double>(before[row] - left[row]) - mass) <= 1e-5 * static_cast<double>(before[row]));
    }
    // Light ones first: all below the largest limit that works, give or take its steps.
    std::vector<double> shares(blocks, 0.0);
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t block = 0; block < blocks; ++block) {
        if (masses[row][block] > 0.0) {
          shares[block] = std::max(shares[block], masses[row][block] / static_cast<double>(before[row]));
        }
      }
    }
    double works = 0.0;
    for (const double limit : shares) {
      bool fits = limit <= 1.0;
      for (std::size_t row = 0; row < rows && fits; ++row) {
        double mass = 0.0;
        for (std::size_t block = 0; block < blocks; ++block) {
          mass += shares[block] <= limit ? masses[row][block] : 0.0;
        }
        fits = mass <= static_cast<double>(before[row]) * (1.0 - 1e-5);
      }
      works = fits ? std::max(works, limit) : works;
    }
    for (std::size_t block = 0; block < blocks; ++block) {
      CAPTURE(turn, block, shares[block], works);
      CHECK(((skipped >> block & 1) != 0 || shares[block] * 1.04 > works || shares[block] > 0.99));
    }
  }
}

TEMPLATE_TEST_CASE("of blocks alike as many are skipped as fit", "[x86]", PQATTN_TEST_X86_ISAS) {
  constexpr std::size_t blocks = pqattn::x86::most_value_blocks;
  const auto rows = GENERATE(std::size_t{1}, std::size_t{3});
  const bool heavy = GENERATE(false, true);  // the first block more than may be skipped
  weights p(rows, blocks * 64);
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < blocks * 64; ++i) {
      p.at(row, i) = heavy && i < 64 ? 1.0f : 0x1p-20f;
    }
  }
  std::vector<float> left(rows, 30.5f * 64.0f * 0x1p-20f);
  std::vector<float> taken(rows, 0.0f);
  aligned_bytes workspace(rows * blocks * sizeof(float));
  const pqattn::x86::slot_run run{nullptr, nullptr, 64, 0, blocks * 64};
  const std::uint64_t skipped = pqattn::x86::detail::skipped_blocks<TestType>(
      p.values.data(), p.stride, rows, run, left.data(), taken.data(), static_cast<float*>(workspace.data()));
  CHECK(std::popcount(skipped) == 30);
  CHECK((skipped & 1) == (heavy ? 0 : 1));
  CHECK(taken == std::vector<float>(rows, 30.0f * 64.0f * 0x1p-20f));
  CHECK(left == std::vector<float>(rows, 0.5f * 64.0f * 0x1p-20f));
}

#else
TEST_CASE("x86 value sums") {
  SKIP("not compiled for AVX2");
}
#endif
