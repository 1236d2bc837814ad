// SPDX-License-Identifier: MIT
#include "pqattn/encode/metric_encoder.hpp"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "support/random_data.hpp"

using pqattn::geometry;

namespace {

/// A random symmetric positive definite (dim, dim) matrix.
std::vector<float> random_metric(pqattn_test::random_data& random, std::size_t dim) {
  const std::vector<float> factor = random.normals(dim * dim);
  std::vector<float> metric(dim * dim);
  for (std::size_t a = 0; a < dim; ++a) {
    for (std::size_t b = 0; b < dim; ++b) {
      double sum = a == b ? 0.1 : 0.0;
      for (std::size_t c = 0; c < dim; ++c) {
        sum += static_cast<double>(factor[a * dim + c]) * static_cast<double>(factor[b * dim + c]);
      }
      metric[a * dim + b] = static_cast<float>(sum);
    }
  }
  return metric;
}

struct scene {
  scene(pqattn_test::random_data& random, geometry cut, std::size_t rows, bool with_metric, bool shuffled = false)
      : shape(cut), count(rows) {
    if (shuffled) {
      order = random.permutation<std::uint16_t>(shape.dim);
      shape.channel_order = order.data();
    }
    centroids = random.normals(shape.codebook_values());
    data = random.normals(count * shape.dim, 2.0f);
    if (with_metric) {
      metric = random_metric(random, shape.dim);
    }
  }

  std::vector<std::uint16_t> encode(std::uint32_t sweeps, const pqattn::rows_view* rows = nullptr,
                                    std::uint32_t beam = 4) {
    const float* m = metric.empty() ? nullptr : metric.data();
    std::vector<std::byte> memory(pqattn::metric_encoder_bytes(shape, m != nullptr));
    std::vector<std::byte> workspace(pqattn::metric_encode_workspace_bytes(shape));
    pqattn::metric_encoder encoder;
    REQUIRE(build_metric_encoder({shape, centroids.data()}, m, memory.data(), memory.size(), encoder).ok());
    encoder.beam = beam;
    std::vector<std::uint16_t> codes(count * shape.groups(), 0xffff);
    const auto view = pqattn::view_rows(data.data(), count, shape.dim);
    REQUIRE(encode_with_metric(encoder, rows != nullptr ? *rows : view, sweeps, workspace.data(), workspace.size(),
                               codes.data())
                .ok());
    return codes;
  }

  /// (x - x')^T M (x - x') of one row in double, from the definition.
  double cost(std::size_t row, const std::uint16_t* codes) const {
    std::vector<double> rest(shape.dim);
    for (std::uint32_t c = 0; c < shape.dim; ++c) {
      rest[c] = static_cast<double>(data[row * shape.dim + c]);
    }
    for (std::uint32_t g = 0; g < shape.groups(); ++g) {
      const float* centroid = centroids.data() + shape.codebook_offset(g) + std::size_t{codes[g]} * shape.width(g);
      for (std::uint32_t i = 0; i < shape.width(g); ++i) {
        rest[shape.channel(shape.first_channel(g) + i)] -= static_cast<double>(centroid[i]);
      }
    }
    double sum = 0.0;
    for (std::uint32_t a = 0; a < shape.dim; ++a) {
      for (std::uint32_t b = 0; b < shape.dim; ++b) {
        const double weight = metric.empty() ? (a == b ? 1.0 : 0.0) : static_cast<double>(metric[a * shape.dim + b]);
        sum += weight * rest[a] * rest[b];
      }
    }
    return sum;
  }

  geometry shape;
  std::size_t count;
  std::vector<std::uint16_t> order;
  std::vector<float> centroids;
  std::vector<float> data;
  std::vector<float> metric;
};

}  // namespace

TEST_CASE("sweeps end where no single code can be bettered", "[encode][metric_encoder]") {
  pqattn_test::random_data random(51);
  CAPTURE(random.seed());
  for (const geometry shape : {geometry{7, 3, 5, 1}, geometry{12, 4, 70, 2}, geometry{9, 1, 33, 3},
                               geometry{1, 1, 2, 2}, geometry{64, 8, 256, 1}}) {
    for (const bool with_metric : {true, false}) {
      scene data(random, shape, 37, with_metric, true);
      CAPTURE(shape.dim, shape.subvectors, shape.centroids, shape.stages, with_metric);
      const auto codes = data.encode(60);
      for (std::size_t row = 0; row < data.count; ++row) {
        std::vector<std::uint16_t> own(codes.begin() + static_cast<std::ptrdiff_t>(row * shape.groups()),
                                       codes.begin() + static_cast<std::ptrdiff_t>((row + 1) * shape.groups()));
        const double reached = data.cost(row, own.data());
        for (std::uint32_t g = 0; g < shape.groups(); ++g) {
          const std::uint16_t kept = own[g];
          REQUIRE(kept < shape.centroids);
          for (std::uint32_t k = 0; k < shape.centroids; ++k) {
            own[g] = static_cast<std::uint16_t>(k);
            // f32 sums of up to 64 products lose a few parts in 1e5 of the largest term.
            REQUIRE(data.cost(row, own.data()) >= reached - 1e-3 * (1.0 + std::abs(reached)));
          }
          own[g] = kept;
        }
      }
    }
  }
}

TEST_CASE("sweeps lower the error in the metric and leave a single stage without metric alone",
          "[encode][metric_encoder]") {
  pqattn_test::random_data random(52);
  CAPTURE(random.seed());
  const auto total = [](scene& data, std::uint32_t sweeps) {
    const auto codes = data.encode(sweeps);
    double sum = 0.0;
    for (std::size_t row = 0; row < data.count; ++row) {
      sum += data.cost(row, codes.data() + row * data.shape.groups());
    }
    return sum;
  };
  scene with(random, {16, 4, 20, 2}, 100, true);
  CHECK(total(with, 1) < 0.95 * total(with, 0));
  CHECK(total(with, 2) <= total(with, 1));
  scene without(random, {16, 4, 20, 1}, 100, false);
  CHECK(without.encode(0) == without.encode(3));
}

TEST_CASE("equal centroids: the lowest index", "[encode][metric_encoder]") {
  pqattn_test::random_data random(53);
  CAPTURE(random.seed());
  for (const bool with_metric : {false, true}) {
    scene data(random, {6, 2, 200, 2}, 20, with_metric);
    std::fill(data.centroids.begin(), data.centroids.end(), 0.5f);
    for (const std::uint16_t code : data.encode(1)) {
      CHECK(code == 0);
    }
  }
}

TEST_CASE("metric encoding reads any view, row by row", "[encode][metric_encoder]") {
  pqattn_test::random_data random(54);
  CAPTURE(random.seed());
  scene data(random, {10, 3, 16, 2}, 75, true, true);
  const auto all = data.encode(2);
  std::vector<float> columns(data.data.size());  // column-major copy
  for (std::size_t r = 0; r < data.count; ++r) {
    for (std::size_t c = 0; c < 10; ++c) {
      columns[c * data.count + r] = data.data[r * 10 + c];
    }
  }
  const pqattn::rows_view strided =
      pqattn::view_rows(columns.data(), data.count, 10, 1, static_cast<std::ptrdiff_t>(data.count));
  CHECK(data.encode(2, &strided) == all);

  std::vector<std::byte> memory(pqattn::metric_encoder_bytes(data.shape, true));
  std::vector<std::byte> workspace(pqattn::metric_encode_workspace_bytes(data.shape));
  pqattn::metric_encoder encoder;
  REQUIRE(build_metric_encoder({data.shape, data.centroids.data()}, data.metric.data(), memory.data(), memory.size(),
                               encoder)
              .ok());
  std::vector<std::uint16_t> one(data.shape.groups());
  for (std::size_t r = 0; r < data.count; ++r) {
    REQUIRE(encode_with_metric(encoder, pqattn::view_rows(data.data.data() + r * 10, 1, 10), 2, workspace.data(),
                               workspace.size(), one.data())
                .ok());
    REQUIRE(std::equal(one.begin(), one.end(), all.begin() + static_cast<std::ptrdiff_t>(r * one.size())));
  }
}

TEST_CASE("metric encoding refuses bad arguments", "[encode][metric_encoder]") {
  pqattn_test::random_data random(55);
  scene data(random, {4, 2, 4, 1}, 3, false);
  std::vector<std::byte> memory(pqattn::metric_encoder_bytes(data.shape, false));
  std::vector<std::byte> workspace(pqattn::metric_encode_workspace_bytes(data.shape));
  pqattn::metric_encoder encoder;
  const pqattn::codebook_view book{data.shape, data.centroids.data()};
  CHECK(build_metric_encoder(book, nullptr, memory.data(), memory.size() / 2, encoder).code ==
        pqattn::status_code::capacity);
  CHECK(build_metric_encoder({data.shape, nullptr}, nullptr, memory.data(), memory.size(), encoder).code ==
        pqattn::status_code::invalid_argument);
  REQUIRE(build_metric_encoder(book, nullptr, memory.data(), memory.size(), encoder).ok());
  std::vector<std::uint16_t> codes(6);
  const auto run = [&](const pqattn::rows_view& rows, std::size_t bytes) {
    return encode_with_metric(encoder, rows, 1, workspace.data(), bytes, codes.data());
  };
  CHECK(run(pqattn::view_rows(data.data.data(), 3, 3), workspace.size()).code == pqattn::status_code::shape_mismatch);
  CHECK(run(pqattn::view_rows(data.data.data(), 3, 4), 10).code == pqattn::status_code::capacity);
  data.data[6] = std::numeric_limits<float>::quiet_NaN();
  const pqattn::status bad = run(pqattn::view_rows(data.data.data(), 3, 4), workspace.size());
  CHECK(bad.code == pqattn::status_code::not_finite);
  CHECK(bad.expected == 1);
  CHECK(bad.got == 2);
}

TEST_CASE("a beam that holds every prefix finds the best codes", "[encode][metric_encoder]") {
  pqattn_test::random_data random(57);
  CAPTURE(random.seed());
  for (const bool with_metric : {true, false}) {
    scene data(random, {5, 1, 8, 2}, 40, with_metric);  // 8 prefixes
    const auto codes = data.encode(0, nullptr, 8);
    for (std::size_t row = 0; row < data.count; ++row) {
      double best = std::numeric_limits<double>::infinity();
      for (std::uint16_t a = 0; a < 8; ++a) {
        for (std::uint16_t b = 0; b < 8; ++b) {
          const std::uint16_t both[] = {a, b};
          best = (std::min)(best, data.cost(row, both));
        }
      }
      CAPTURE(row, with_metric, best);
      CHECK(data.cost(row, codes.data() + 2 * row) <= best * (1.0 + 1e-4) + 1e-4);
    }
  }
}

TEST_CASE("a wider beam finds better codes of additive stages", "[encode][metric_encoder]") {
  pqattn_test::random_data random(58);
  CAPTURE(random.seed());
  scene data(random, {16, 2, 16, 4}, 400, true, true);
  double last = std::numeric_limits<double>::infinity();
  for (const std::uint32_t beam : {1u, 3u, 8u}) {
    const auto codes = data.encode(0, nullptr, beam);
    double sum = 0.0;
    for (std::size_t row = 0; row < data.count; ++row) {
      sum += data.cost(row, codes.data() + row * data.shape.groups());
    }
    CAPTURE(beam, sum);
    CHECK(sum < 0.97 * last);
    last = sum;
  }
}

TEST_CASE("a beam outside 1 to 8 is refused", "[encode][metric_encoder]") {
  pqattn_test::random_data random(59);
  scene data(random, {4, 2, 4, 2}, 3, false);
  std::vector<std::byte> memory(pqattn::metric_encoder_bytes(data.shape, false));
  std::vector<std::byte> workspace(pqattn::metric_encode_workspace_bytes(data.shape));
  pqattn::metric_encoder encoder;
  REQUIRE(
      build_metric_encoder({data.shape, data.centroids.data()}, nullptr, memory.data(), memory.size(), encoder).ok());
  std::vector<std::uint16_t> codes(3 * data.shape.groups());
  for (const std::uint32_t beam : {0u, 9u}) {
    encoder.beam = beam;
    CHECK(encode_with_metric(encoder, pqattn::view_rows(data.data.data(), 3, 4), 1, workspace.data(), workspace.size(),
                             codes.data())
              .code == pqattn::status_code::invalid_argument);
  }
}
