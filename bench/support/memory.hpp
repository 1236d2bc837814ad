// SPDX-License-Identifier: MIT
// Memory of the benches: 2 MB pages where the system gives them, filled with random bytes, larger than the caches.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <random>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace bench {

/// What the command line says about all benches.
struct settings {
  bool quick = false;  ///< everything in cache: fast, and says nothing about speed

  static settings& current() {
    static settings instance;
    return instance;
  }
};

/// Bytes the heads of one bench take together, so that no head is in a cache when its turn comes: twice the last-level
/// cache, at least 256 MB.
inline std::size_t cold_bytes() {
  if (settings::current().quick) {
    return std::size_t{8} << 20;
  }
  std::size_t last_level = 0;
#if defined(__linux__) && defined(_SC_LEVEL3_CACHE_SIZE)
  last_level = static_cast<std::size_t>(std::max(0l, sysconf(_SC_LEVEL3_CACHE_SIZE)));
#endif
  return std::max(std::size_t{256} << 20, 2 * last_level);
}

/// Memory aligned to 2 MB, in pages of that size where the system grants them: with small ones benches measure the page
/// walker.
template <class Number>
struct huge_page_allocator {
  using value_type = Number;
  static constexpr std::align_val_t alignment{std::size_t{2} << 20};

  huge_page_allocator() = default;
  template <class Other>
  explicit huge_page_allocator(const huge_page_allocator<Other>&) noexcept {}

  [[nodiscard]] Number* allocate(std::size_t count) {
    void* data = ::operator new(count * sizeof(Number), alignment);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    madvise(data, count * sizeof(Number), MADV_HUGEPAGE);
#endif
    return static_cast<Number*>(data);
  }
  void deallocate(Number* data, std::size_t) noexcept {
    ::operator delete(data, alignment);
  }
  friend bool operator==(const huge_page_allocator&, const huge_page_allocator&) noexcept {
    return true;
  }
};

/// Owned memory of that kind, not initialised.
class pages {
 public:
  explicit pages(std::size_t bytes) : bytes_(bytes), data_(huge_page_allocator<std::byte>().allocate(bytes)) {}
  pages(pages&& other) noexcept : bytes_(other.bytes_), data_(std::exchange(other.data_, nullptr)) {}
  pages& operator=(pages&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~pages() {
    if (data_ != nullptr) {
      huge_page_allocator<std::byte>().deallocate(data_, bytes_);
    }
  }
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return bytes_; }

 private:
  std::size_t bytes_;
  std::byte* data_;
};

inline std::vector<float> normals(std::size_t count, float scale = 1.0f) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) {
    value = normal(random);
  }
  return values;
}

/// The same random bytes for every bench: any bytes are codes. At least `bytes` of them.
inline std::byte* random_bytes(std::size_t bytes) {
  static pages memory(0);
  if (memory.size() < bytes) {
    memory = pages(std::max(bytes, cold_bytes()));
    std::uint64_t state = 88172645463325252u;
    for (std::size_t i = 0; i + 8 <= memory.size(); i += 8) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      std::memcpy(memory.data() + i, &state, 8);
    }
  }
  return memory.data();
}

/// At least `count` normally distributed numbers of a storage type, the same for every bench.
template <class Element, class Convert>
const Element* random_elements(std::size_t count, const Convert& convert) {
  static pages memory(0);
  if (memory.size() < count * sizeof(Element)) {
    memory = pages(std::max(count * sizeof(Element), cold_bytes()));
    constexpr std::size_t period = 128 * 1021;
    std::vector<Element> pattern;
    for (const float value : normals(period)) {
      pattern.push_back(convert(value));
    }
    for (std::size_t done = 0; done < memory.size();) {
      const std::size_t bytes = std::min(memory.size() - done, period * sizeof(Element));
      std::memcpy(memory.data() + done, pattern.data(), bytes);
      done += bytes;
    }
  }
  return reinterpret_cast<const Element*>(memory.data());
}

}  // namespace bench
