// SPDX-License-Identifier: MIT
// Which units there are, and which of them this processor runs. Compiled for the compiler's default processor.
#include "pqattn/bank/dispatch/dispatch_bank.hpp"

#include <cstdlib>
#include <cstring>

namespace pqattn {
inline namespace v0 {
namespace detail {

#if defined(__x86_64__)
extern const host_functions dispatch_sse2;
extern const host_functions dispatch_avx2;
extern const host_functions dispatch_avx512;
extern const host_functions dispatch_avx512vbmi;
namespace {
constexpr const host_functions* tables[] = {&dispatch_sse2, &dispatch_avx2, &dispatch_avx512, &dispatch_avx512vbmi};
}
#else
extern const host_functions dispatch_default;
namespace {
constexpr const host_functions* tables[] = {&dispatch_default};
}
#endif

namespace {
constexpr std::size_t table_count = sizeof tables / sizeof tables[0];

std::size_t best_level() noexcept {
  std::size_t level = 0;
  while (level + 1 < table_count && dispatch_runs(level + 1)) {
    ++level;
  }
  return level;
}
}  // namespace

const host_functions* dispatch_table(std::size_t level) noexcept {
  return level < table_count ? tables[level] : nullptr;
}

bool dispatch_runs(std::size_t level) noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();  // make() may run before main
  // Processors with AVX2 and FMA have F16C, too.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool vbmi = avx512 && __builtin_cpu_supports("avx512ifma") && __builtin_cpu_supports("avx512vbmi") &&
                    __builtin_cpu_supports("avx512vnni");
  const bool runs[] = {true, avx2, avx512, vbmi};
  return level < table_count && runs[level];
#else
  return level < table_count;
#endif
}

}  // namespace detail

status dispatch_bank::make(dispatch_bank& result, const char* arch, const host_options& options,
                           const memory_resource& memory) noexcept {
  const char* subject = "arch";
  if (arch == nullptr) {
    subject = "environment variable PQATTN_ARCH";
    arch = std::getenv("PQATTN_ARCH");
  }
  std::size_t level = detail::best_level();
  if (arch != nullptr && *arch != '\0') {
    const std::size_t best = level;
    level = 0;
    while (level < detail::table_count && std::strcmp(arch, detail::tables[level]->arch) != 0) {
      ++level;
    }
    if (level == detail::table_count) {
      return failure(status_code::invalid_argument, subject, "names no instruction set of this library",
                     detail::table_count, level);
    }
    if (level > best) {
      return failure(status_code::unsupported, subject, "is an instruction set this processor does not run", best,
                     level);
    }
  }
  result.functions_ = detail::tables[level];
  result.options_ = options;
  result.memory_ = memory;
  return {};
}

}  // namespace v0
}  // namespace pqattn
