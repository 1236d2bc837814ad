// SPDX-License-Identifier: MIT
// pqattn behind operations of ggml's shape: three nodes per layer and step.
//
//   begin_append (k, v)     everything that can fail, on all heads      barrier
//   finish_append (k, v)    rows move into the caches, or are dropped   barrier
//   attend (q)              attention of this step's query tokens
//
// A thread works on the (stream, KV head) pairs ith, ith + nth, ...: no two threads touch one cache, and what is
// computed for a pair does not depend on nth.
#pragma once

#include <pqattn/pqattn.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tensor.hpp"

namespace ggml_op_example {

/// What a layer's operations share through their user data. An operation cannot return an error, so it is left here:
/// look at `outcome()` after the graph has run.
class layer_state {
 public:
  using bank = pqattn::host_bank<>;

  /// `max_threads` as passed to ggml as n_tasks or above.
  static pqattn::status make(const pqattn::cache_config& config, std::size_t kv_heads, std::size_t streams,
                             std::size_t max_threads, layer_state& result);

  [[nodiscard]] pqattn::status outcome() const;
  [[nodiscard]] std::size_t tokens() const noexcept { return caches_.front().size(); }
  [[nodiscard]] std::size_t coded_tokens() const noexcept { return caches_.front().coded_tokens(); }
  [[nodiscard]] pqattn::memory_report memory() const;

  /// src[0] keys, src[1] values: ne = (dim, kv_heads, tokens, streams), f32, f16 or bf16, dimension 0 of whole
  /// elements, any strides otherwise. dst is not written.
  static void begin_append(tensor* dst, int ith, int nth, void* userdata);
  static void finish_append(tensor* dst, int ith, int nth, void* userdata);
  /// src[0] queries: ne = (dim, tokens, query_heads, streams), the newest tokens. dst: ne = (dim_v, query_heads,
  /// tokens, streams).
  static void attend(tensor* dst, int ith, int nth, void* userdata);

 private:
  /// Scratch of one thread.
  struct thread_memory {
    pqattn::attend_scratch<bank> scratch;
    std::vector<float> queries;
    std::vector<float> out;
    std::vector<std::int64_t> positions;
  };

  [[nodiscard]] std::size_t heads() const noexcept { return kv_heads_; }
  pqattn::status attend_pair(const tensor& queries, const tensor& out, std::size_t stream, std::size_t head,
                             thread_memory& memory);

  bank bank_;
  std::size_t kv_heads_ = 0;
  std::size_t key_dim_ = 0;
  std::size_t value_dim_ = 0;
  std::vector<pqattn::head_cache<bank>> caches_;  ///< stream after stream, head after head
  std::vector<pqattn::status> outcomes_;          ///< one per cache, so that threads write apart
  std::vector<char> begun_;                       ///< whether begin_append of this step succeeded
  std::vector<thread_memory> threads_;
};

}  // namespace ggml_op_example
