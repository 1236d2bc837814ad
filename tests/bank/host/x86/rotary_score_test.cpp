// SPDX-License-Identifier: MIT
#include "pqattn/bank/host/x86/rotary_score.hpp"

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "bank/host/x86/coded_data.hpp"
#include "bank/host/x86/isa_list.hpp"
#include "pqattn/train/channel_order.hpp"

#ifdef PQATTN_TEST_X86_ISAS
namespace {

using pqattn::rope;
using pqattn::rope_pairing;
using pqattn_test::aligned_bytes;
using pqattn_test::coded_data;

#if PQATTN_X86_AVX512VBMI
#define PQATTN_TEST_ROTARY_KERNELS                                                                \
  pqattn::x86::rotary_words<pqattn::x86::avx2>, pqattn::x86::rotary_words<pqattn::x86::avx512bw>, \
      pqattn::x86::rotary_words<pqattn::x86::avx512vbmi>, pqattn::x86::rotary_bytes, pqattn::x86::rotary_phases
#elif PQATTN_X86_AVX512BW
#define PQATTN_TEST_ROTARY_KERNELS \
  pqattn::x86::rotary_words<pqattn::x86::avx2>, pqattn::x86::rotary_words<pqattn::x86::avx512bw>
#else
#define PQATTN_TEST_ROTARY_KERNELS pqattn::x86::rotary_words<pqattn::x86::avx2>
#endif

/// Score of a slot and the most the documented roundings can change it by.
struct expected_score {
  double value = 0.0;
  double bound = 0.0;
};

/// What a kernel adds to a component of a turned pair: relative to the pair's length, and in units of its table; and to
/// the length of a turned query, in units of its integer.
template <class Kernel>
struct turn_error {
  static constexpr double relative = 1.0 / 255.0 + 2e-5;
  static constexpr double units = 0.0;
  static constexpr double query = 0.0;
};
#if PQATTN_X86_AVX512VBMI
template <>
struct turn_error<pqattn::x86::rotary_bytes> {
  static constexpr double relative = 1.4143 * (0.5 / 105.0 + 0.5 / 255.0) + 2e-5;
  static constexpr double units = 1.4143 * 64.0 / 105.0;
  static constexpr double query = 1.4143 * 0.01;
};
template <>
struct turn_error<pqattn::x86::rotary_phases> {
  // Phases of the centroid and of the position, and the length.
  static constexpr double relative = (0.64 + 0.63) * 6.2832 / 256.0 + 1.0 / 200.0;
  static constexpr double units = 0.25;
  static constexpr double query = 0.0;
};
#endif

/// Puts both channels of every pair into one sub-vector for kernels that need it; false where the shape does not allow
/// that.
template <class Kernel>
bool suit(coded_data& data, const rope& rotation) {
  if (Kernel::by_phase) {
    pqattn::fill_pair_order(rotation, data.shape.dim, data.order.data());
    return pqattn::x86::pairs_share_codes(data.shape, rotation);
  }
  return true;
}

template <class Kernel>
expected_score reference(const coded_data& data, const rope& rotation, const pqattn::x86::rotary_book& book,
                         const float* query, double unit, std::size_t slot, std::int64_t position) {
  expected_score out;
  const auto channel = [&](std::uint16_t c, auto get) { return c == pqattn::x86::no_channel ? 0.0 : get(c); };
  for (std::size_t i = 0; i < book.count; ++i) {
    const auto& pair = book.pairs[i];
    const bool first_stage = i < book.count / data.shape.stages;
    const auto q = [&](std::uint32_t c) { return static_cast<double>(query[c]); };
    const double qx = channel(pair.channel_x, q);
    const double qy = channel(pair.channel_y, q);
    const auto k = [&](std::uint32_t c) { return data.value(slot, c); };
    const double x = channel(pair.channel_x, k);  // all stages together
    const double y = channel(pair.channel_y, k);
    const double angle = pair.turn < rotation.pairs
                             ? static_cast<double>(rotation.frequencies[pair.turn]) * static_cast<double>(position)
                             : 0.0;
    if (first_stage) {
      out.value += qx * (x * std::cos(angle) - y * std::sin(angle)) + qy * (x * std::sin(angle) + y * std::cos(angle));
    }
    const double scale = static_cast<double>(pair.scale);
    const double reach = 127.0 * scale;  // no pair is longer
    const double units = turn_error<Kernel>::units;
    out.bound += std::hypot(qx, qy) * (0.7072 * scale * 1.001 + reach * turn_error<Kernel>::relative + units * scale);
    // the query's own rounding, in units of its integer, and that of turning it
    out.bound += (0.7072 + turn_error<Kernel>::query) * unit * (reach / scale + units);
  }
  return out;
}

struct rotary_shape {
  std::uint32_t pairs;
  rope_pairing pairing;
};

template <class Kernel>
void check(const pqattn_test::coded_case& shape, const rotary_shape& turn, std::size_t rows, std::size_t first,
           std::size_t count, int positions) {
  using Isa = typename Kernel::isa;
  pqattn_test::random_data random(shape.dim * 1000 + rows * 100 + static_cast<std::size_t>(positions));
  coded_data data(random, shape.dim, shape.subvectors, shape.centroids, shape.stages, first + count);
  std::vector<float> frequencies(turn.pairs + 1);
  pqattn::fill_rope_frequencies(frequencies.data(), 2 * turn.pairs, 10000.0);
  rope rotation;
  rotation.pairs = turn.pairs;
  rotation.pairing = turn.pairing;
  rotation.frequencies = frequencies.data();
  if (!suit<Kernel>(data, rotation)) {
    return;
  }
  std::vector<std::int32_t> at(first + count);
  for (std::size_t slot = 0; slot < at.size(); ++slot) {
    const auto s = static_cast<std::int32_t>(slot);
    at[slot] = positions == 0 ? s : positions == 1 ? s + 1'000'003 : s < 70 ? s - 40 : 2 * s + s % 3;
  }
  const aligned_bytes book_memory(pqattn::x86::rotary_book_bytes(data.shape, rotation));
  pqattn::x86::build_rotary_book<Isa>(data.shape, rotation, data.book(), book_memory.data());
  pqattn::x86::finish_rotary_book<Kernel>(data.shape, rotation, nullptr, book_memory.data());
  const auto book = pqattn::x86::rotary_book_at(data.shape, rotation, book_memory.data());
  const aligned_bytes turns(Kernel::table_bytes_for(turn.pairs));
  pqattn::x86::fill_turns<Kernel>(rotation, nullptr, turns.data());
  const std::size_t query_stride = shape.dim + 3;
  const std::vector<float> queries = random.normals(rows * query_stride);
  const aligned_bytes query_memory(pqattn::x86::rotary_query_bytes<Kernel>(book.count, rows));
  pqattn::x86::prepare_rotary_queries<Kernel>(book, queries.data(), rows, query_stride, query_memory.data());
  const auto prepared = pqattn::x86::rotary_queries_at(book.count, rows, query_memory.data());
  pqattn::x86::fill_row_tables<Kernel>(prepared);
  const aligned_bytes scratch(pqattn::x86::rotary_scratch_bytes<Kernel>(data.shape, rotation, rows));
  const pqattn::x86::slot_run run{static_cast<const std::uint8_t*>(data.blocks.data()), data.pages.data(),
                                  data.block_bytes(), first, count};
  const std::size_t stride = count + 5;
  std::vector<float> out(rows * stride, -77.0f);
  const bool done =
      pqattn::x86::rotary_score<Kernel>(book, rotation, turns.data(), prepared, run,
                                        pqattn::slot_positions{0, at.data()}, out.data(), stride, scratch.data());
  INFO(Isa::name << ", " << data.name() << ", pairs " << turn.pairs << ", rows " << rows << ", first " << first
                 << ", positions " << positions << ", seed " << random.seed());
  REQUIRE(done == (data.shape.code_bits() <= pqattn::x86::widest_code<Isa>));
  if (!done) {
    return;
  }
  double squares = 0.0;
  double bounds = 0.0;
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < count; ++i) {
      const double unit = static_cast<double>(Kernel::product) * static_cast<double>(prepared.factor[row]);
      const auto want =
          reference<Kernel>(data, rotation, book, queries.data() + row * query_stride, unit, first + i, at[first + i]);
      const double error = static_cast<double>(out[row * stride + i]) - want.value;
      if (!(std::fabs(error) <= want.bound)) {
        INFO("row " << row << " slot " << first + i << " got " << out[row * stride + i] << " want " << want.value
                    << " bound " << want.bound);
        FAIL();
      }
      squares += error * error;
      bounds += want.bound * want.bound;
    }
    for (std::size_t i = count; i < stride; ++i) {
      REQUIRE(out[row * stride + i] == -77.0f);
    }
  }
  // Rounding errors are independent: their sum is far below the worst case.
  CHECK(squares <= 0.25 * bounds);
}

}  // namespace

TEMPLATE_TEST_CASE("rotary scores are right to the documented roundings", "[x86]", PQATTN_TEST_ROTARY_KERNELS) {
  for (const auto& shape : pqattn_test::coded_cases) {
    const std::uint32_t most = shape.dim / 2;
    check<TestType>(shape, {most, rope_pairing::half_split}, 1, 0, 130, 0);
    check<TestType>(shape, {most, rope_pairing::interleaved}, 3, 67, 200, 1);
    check<TestType>(shape, {most / 2, rope_pairing::half_split}, 4, 5, 330, 1);
    check<TestType>(shape, {most, rope_pairing::half_split}, 7, 63, 140, 2);
    check<TestType>(shape, {0, rope_pairing::half_split}, 2, 0, 64, 0);
  }
}

namespace {

/// 700 tokens of 64 channels, and their scores for two query rows.
template <class Kernel>
class coded_tokens {
 public:
  explicit coded_tokens(pqattn_test::random_data& random) : data_(random, 64, 16, 256, 1, 700) {
    pqattn::fill_rope_frequencies(frequencies_.data(), 64, 500000.0);
    rotation_.pairs = 32;
    rotation_.frequencies = frequencies_.data();
    REQUIRE(suit<Kernel>(data_, rotation_));
    book_memory_ = aligned_bytes(pqattn::x86::rotary_book_bytes(data_.shape, rotation_));
    pqattn::x86::build_rotary_book<typename Kernel::isa>(data_.shape, rotation_, data_.book(), book_memory_.data());
    pqattn::x86::finish_rotary_book<Kernel>(data_.shape, rotation_, nullptr, book_memory_.data());
    pqattn::x86::fill_turns<Kernel>(rotation_, nullptr, turns_.data());
    query_memory_ = aligned_bytes(pqattn::x86::rotary_query_bytes<Kernel>(book().count, 2));
    scratch_ = aligned_bytes(pqattn::x86::rotary_scratch_bytes<Kernel>(data_.shape, rotation_, 2));
  }
  void prepare(const std::vector<float>& queries) {
    pqattn::x86::prepare_rotary_queries<Kernel>(book(), queries.data(), 2, 64, query_memory_.data());
    pqattn::x86::fill_row_tables<Kernel>(prepared());
  }
  /// Scores of slots [first, first + count), 700 apart.
  void score(std::size_t first, std::size_t count, float* out) {
    const pqattn::x86::slot_run run{static_cast<const std::uint8_t*>(data_.blocks.data()), data_.pages.data(),
                                    data_.block_bytes(), first, count};
    REQUIRE(pqattn::x86::rotary_score<Kernel>(book(), rotation_, turns_.data(), prepared(), run,
                                              pqattn::slot_positions{17, nullptr}, out, 700, scratch_.data()));
  }
  std::vector<float> scores() {
    std::vector<float> out(1400);
    score(0, 700, out.data());
    return out;
  }

 private:
  [[nodiscard]] pqattn::x86::rotary_book book() const {
    return pqattn::x86::rotary_book_at(data_.shape, rotation_, book_memory_.data());
  }
  [[nodiscard]] pqattn::x86::rotary_queries prepared() const {
    return pqattn::x86::rotary_queries_at(book().count, 2, query_memory_.data());
  }

  coded_data data_;
  std::vector<float> frequencies_ = std::vector<float>(32);
  rope rotation_;
  aligned_bytes book_memory_{64};
  aligned_bytes turns_{Kernel::table_bytes_for(32)};
  aligned_bytes query_memory_{64};
  aligned_bytes scratch_{64};
};

}  // namespace

TEMPLATE_TEST_CASE("a slot's rotary score does not depend on the range asked for", "[x86]",
                   PQATTN_TEST_ROTARY_KERNELS) {
  pqattn_test::random_data random(5);
  coded_tokens<TestType> tokens(random);
  tokens.prepare(random.normals(128));
  const std::vector<float> whole = tokens.scores();
  const std::size_t cuts[] = {0, 64, 100, 449, 450, 700};
  std::vector<float> pieces(1400);
  for (std::size_t i = 0; i + 1 < std::size(cuts); ++i) {
    tokens.score(cuts[i], cuts[i + 1] - cuts[i], pieces.data() + cuts[i]);
  }
  REQUIRE(std::memcmp(whole.data(), pieces.data(), whole.size() * sizeof(float)) == 0);
}

TEMPLATE_TEST_CASE("rotary scores of queries of any size", "[x86]", PQATTN_TEST_ROTARY_KERNELS) {
  pqattn_test::random_data random(6);
  coded_tokens<TestType> tokens(random);
  const std::vector<float> queries = random.normals(128);
  const auto scores_at = [&](int exponent) {
    std::vector<float> scaled = queries;
    for (float& x : scaled) {
      x = std::ldexp(x, exponent);
    }
    tokens.prepare(scaled);
    return tokens.scores();
  };
  const std::vector<float> expected = scores_at(0);
  for (const int exponent : {-100, -73, -40, 40, 64, 100}) {  // squares of components vanish, or overflow
    std::vector<float> scaled = expected;
    for (float& score : scaled) {
      score = std::ldexp(score, exponent);
    }
    CHECK(scores_at(exponent) == scaled);
  }
  for (const float score : scores_at(-140)) {
    CHECK(std::fabs(score) < 1e-35f);
  }
}

#else
TEST_CASE("x86 rotary scores") {
  SKIP("not compiled for AVX2");
}
#endif
