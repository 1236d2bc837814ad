// SPDX-License-Identifier: MIT
// Threads of the caller's: the pool runs parts at the same time, every part once, and the layer's bits do not move.
#include "examples/thread_pool/thread_pool.hpp"

#include <catch2/catch_test_macros.hpp>

#include <atomic>
#include <cstddef>
#include <latch>
#include <thread>
#include <vector>

#include "examples/thread_pool/run_layer.hpp"
#include "support/run_program.hpp"

using thread_pool_example::digest;
using thread_pool_example::layer_result;
using thread_pool_example::run_layer;
using thread_pool_example::thread_pool;

namespace {

TEST_CASE("the pool runs parts at the same time, each once, on different workers", "[examples]") {
  thread_pool pool(3);
  // Ends only if two parts are running at once.
  std::latch both(2);
  pqattn::run_parts(pool.executor(), 2, [&](std::size_t, std::size_t) { both.arrive_and_wait(); });

  std::vector<std::atomic<int>> runs(1000);
  std::vector<std::atomic<int>> inside(3);
  std::atomic<bool> shared{false};
  for (int job = 0; job < 20; ++job) {
    pqattn::run_parts(pool.executor(), runs.size(), [&](std::size_t part, std::size_t worker) {
      shared = shared || inside[worker].fetch_add(1) != 0;
      ++runs[part];
      inside[worker].fetch_sub(1);
    });
  }
  REQUIRE_FALSE(shared);
  for (const auto& count : runs) {
    REQUIRE(count == 20);
  }
}

/// docs/threads.md: a pool that calls a function with (ith, nth).
void call_with_ith_nth(std::size_t threads, void (*function)(void*, int, int), void* argument) {
  std::vector<std::thread> team;
  for (std::size_t ith = 0; ith < threads; ++ith) {
    team.emplace_back(function, argument, static_cast<int>(ith), static_cast<int>(threads));
  }
  for (std::thread& thread : team) {
    thread.join();
  }
}

struct ith_nth_job {
  std::size_t parts;
  pqattn::executor::task_function task;
  void* context;
};

void run_by_ith_nth(void* threads, std::size_t parts, pqattn::executor::task_function task, void* context) {
  ith_nth_job job{parts, task, context};
  call_with_ith_nth(
      *static_cast<std::size_t*>(threads),
      [](void* given, int ith, int nth) {
        auto& mine = *static_cast<ith_nth_job*>(given);
        for (auto part = static_cast<std::size_t>(ith); part < mine.parts; part += static_cast<std::size_t>(nth)) {
          mine.task(mine.context, part, static_cast<std::size_t>(ith));
        }
      },
      &job);
}

TEST_CASE("a layer gives the same bits on any number of workers of either shape", "[examples]") {
  layer_result reference;
  REQUIRE(run_layer({}, reference));
  REQUIRE(reference.coded_tokens > 300);
  for (std::size_t workers : {std::size_t{1}, std::size_t{2}, std::size_t{7}}) {
    CAPTURE(workers);
    thread_pool pool(workers);
    layer_result result;
    REQUIRE(run_layer(pool.executor(), result));
    REQUIRE(result.out == reference.out);
    REQUIRE(result.lse_e == reference.lse_e);
    REQUIRE(run_layer({&run_by_ith_nth, &workers, workers}, result));
    REQUIRE(digest(result) == digest(reference));
  }
}

TEST_CASE("thread_pool prints one digest for all pools", "[examples]") {
  const auto [code, text] = pqattn_test::run_program("thread_pool", "");
  INFO(text);
  REQUIRE(code == 0);
  const std::size_t at = text.find("digest ");
  REQUIRE(at != std::string::npos);
  const std::string digest_text = text.substr(at, 23);
  std::size_t found = 0;
  for (std::size_t from = text.find(digest_text); from != std::string::npos; from = text.find(digest_text, from + 1)) {
    ++found;
  }
  REQUIRE(found == 4);
  REQUIRE(text.find("all the same bits") != std::string::npos);
}

}  // namespace
