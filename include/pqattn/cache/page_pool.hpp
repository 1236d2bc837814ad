// SPDX-License-Identifier: MIT
// What all sequences of one layer share: pages of codes in the bank, pages of exact rows, and the codebooks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "../bank/bank.hpp"
#include "../core/growable.hpp"
#include "../core/memory.hpp"
#include "../train/codebook_trainer.hpp"
#include "../train/importance.hpp"
#include "cache_config.hpp"
#include "page_ledger.hpp"
#include "side_store.hpp"

namespace pqattn {
inline namespace v0 {

/// The two sides of a KV head.
enum class kv_side : std::uint8_t { keys, values };
inline constexpr kv_side kv_sides[] = {kv_side::keys, kv_side::values};

/// Pages of 64 tokens for all KV heads of a layer. A coded page holds one code block per head and side (64 exact rows
/// where a side is not coded); an exact page holds 64 rows per head and side. Pages are counted by their users, so
/// sequences share prefixes. Codebooks are frozen once trained or loaded.
///
/// One writer at a time for the pool and all its sequences; readers of any of them may run concurrently with each other.
/// Move-only; sequences refer to the pool by address, so it must stay where it is and outlive them.
template <class Bank>
class page_pool {
  static_assert(bank_policy<Bank>, "Bank must satisfy bank_policy (see pqattn/bank/bank.hpp)");

 public:
  using address = typename Bank::address;

  page_pool() = default;
  page_pool(page_pool&& other) noexcept { swap(other); }
  page_pool& operator=(page_pool&& other) noexcept {
    page_pool taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~page_pool() { release(); }

  /// Makes a pool without pages. Errors: whatever check_config finds, switches that pages do not serve (a coding metric,
  /// rotated values, joint training, sweeps, epochs, outliers: see head_cache), out of memory.
  static status make(Bank& bank, const cache_config& config, std::size_t kv_heads, const memory_resource& resource,
                     page_pool& result) {
    PQATTN_TRY(check_config(config));
    PQATTN_TRY(check_plain(config));
    if (kv_heads < 1 || kv_heads > max_heads) {
      return failure(status_code::invalid_argument, "kv_heads", "must be 1 to 4096", max_heads, kv_heads);
    }
    page_pool made;
    made.bank_ = &bank;
    made.config_ = config;
    made.heads_ = kv_heads;
    made.resource_ = resource;
    made.coded_ = page_ledger(resource);
    made.exact_ = page_ledger(resource);
    made.slabs_ = growable<slab>(resource);
    made.books_ = growable<trained_book>(resource);
    made.exact_memory_ = growable<std::byte*>(resource);
    PQATTN_TRY(made.slabs_.reserve(2 * kv_heads));
    PQATTN_TRY(made.books_.reserve(2 * kv_heads));
    for (std::size_t i = 0; i < 2 * kv_heads; ++i) {
      PQATTN_TRY(made.slabs_.push_back({}));
      PQATTN_TRY(made.books_.push_back({}));
    }
    result = std::move(made);
    return {};
  }

  [[nodiscard]] Bank& bank() const noexcept { return *bank_; }
  [[nodiscard]] const cache_config& config() const noexcept { return config_; }
  [[nodiscard]] std::size_t kv_heads() const noexcept { return heads_; }
  [[nodiscard]] const memory_resource& resource() const noexcept { return resource_; }
  [[nodiscard]] const side_config& side(kv_side which) const noexcept {
    return which == kv_side::keys ? config_.keys : config_.values;
  }
  [[nodiscard]] row_forms forms(kv_side which) const noexcept {
    return which == kv_side::keys ? row_forms{config_.rotation, config_.keys_arrive_rotated,
                                              config_.code_keys_after_rope, config_.exact_type}
                                  : row_forms{{}, true, true, config_.exact_type};
  }
  /// Rotation that banks apply to coded keys; disabled when keys are coded as rotated.
  [[nodiscard]] rope code_rotation() const noexcept { return config_.rotates_codes() ? config_.rotation : rope{}; }
  /// The same for a side: values do not turn.
  [[nodiscard]] rope code_rotation(kv_side which) const noexcept {
    return which == kv_side::keys ? code_rotation() : rope{};
  }

  // --- codebooks ---

  /// Whether every coded side has its codebook; from then on tokens that leave a recent window are coded.
  [[nodiscard]] bool trained() const noexcept { return trained_; }
  [[nodiscard]] const resident_codebook<address>& book(std::size_t head, kv_side which) const noexcept {
    return books_[at(head, which)].book;
  }
  [[nodiscard]] const training_report& training(std::size_t head, kv_side which) const noexcept {
    return books_[at(head, which)].report;
  }

  /// Gives one coded side its codebook, f32 centroids of the configured geometry; the pool counts as trained when all
  /// have one. Errors (nothing changed): already trained, shape mismatch, numbers that are not finite, out of memory.
  status load_codebook(std::size_t head, kv_side which, const float* centroids) {
    if (trained_) {
      return failure(status_code::unsupported, "codebook", "is frozen: the pool is trained");
    }
    if (head >= heads_ || !side(which).coded || centroids == nullptr) {
      return failure(status_code::invalid_argument, "head", "must name a coded side of the pool; heads", heads_, head);
    }
    const geometry& shape = side(which).shape;
    for (std::size_t i = 0; i < shape.codebook_values(); ++i) {
      if (!is_finite(centroids[i])) {
        return failure(status_code::not_finite, "centroids", "has a NaN or infinity", i / shape.dim, i % shape.dim);
      }
    }
    PQATTN_TRY(place_tentative(head, which, centroids, {}));
    books_[at(head, which)].tentative = false;
    trained_ = all_books();
    return {};
  }
  /// The same for a side that has none yet, as part of a load of several: follow with keep_training() or
  /// discard_training(). Errors: the side has a codebook, out of memory.
  status load_tentative(std::size_t head, kv_side which, const float* centroids) {
    return book(head, which).memory == address{}
               ? place_tentative(head, which, centroids, {})
               : failure(status_code::unsupported, "codebook", "was loaded before; head", 0, head);
  }
  /// Reads a codebook back as programs use it. `centroids` holds geometry::codebook_values() floats.
  status read_codebook(std::size_t head, kv_side which, float* centroids) const {
    if (head >= heads_ || book(head, which).memory == address{}) {
      return failure(status_code::invalid_argument, "head", "has no such codebook; heads", heads_, head);
    }
    return bank_->load_codebook(book(head, which), centroids);
  }

  /// Trains the codebooks that are still missing on `count` rows: load(head, side, i, row) gives row i in coded form,
  /// weight(head, i) its importance. Follow with keep_training() or discard_training(). On failure nothing changes.
  template <class Load, class Weight>
  status train(std::size_t count, Load&& load, Weight&& weight, const executor& parts, const progress_hook& progress) {
    for (std::size_t head = 0; head < heads_; ++head) {
      for (const kv_side which : kv_sides) {
        if (!side(which).coded || book(head, which).memory != address{}) {
          continue;
        }
        const status trained = train_side(head, which, count, load, weight, parts, progress);
        if (!trained) {
          discard_training();
          return trained;
        }
      }
    }
    return {};
  }
  void keep_training() noexcept {
    trained_ = true;
    for (std::size_t i = 0; i < books_.size(); ++i) {
      books_[i].tentative = false;
    }
  }
  void discard_training() noexcept {
    for (std::size_t i = 0; i < books_.size(); ++i) {
      if (books_[i].tentative) {
        release_book(i / 2, kv_sides[i % 2]);
      }
    }
  }

  // --- pages ---

  /// Makes sure that `count` coded pages are free. Grows the memory by half at least, copying what is used: addresses
  /// change, page numbers stay. On failure nothing changes.
  status reserve_coded(std::size_t count) {
    if (count <= coded_.free_pages()) {
      return {};
    }
    const std::size_t needed = coded_.used_pages() + count;
    const std::size_t pages = (std::max)({needed, coded_.pages() + coded_.pages() / 2, std::size_t{8}});
    return grow_coded(pages) ? status{} : grow_coded(needed);
  }
  /// Makes sure that `count` exact pages are free and have memory. On failure nothing that can be seen changes.
  status reserve_exact(std::size_t count) {
    if (count > exact_.free_pages()) {
      const std::size_t pages = exact_.used_pages() + count;
      PQATTN_TRY(exact_memory_.reserve(pages));
      PQATTN_TRY(exact_.grow(pages));
      while (exact_memory_.size() < pages) {
        static_cast<void>(exact_memory_.push_back(nullptr));
      }
    }
    for (std::size_t i = 0; i < count; ++i) {
      std::byte*& memory = exact_memory_[exact_.next_free(i)];
      if (memory == nullptr) {
        auto* got = static_cast<std::byte*>(resource_.allocate(resource_.self, exact_page_bytes()));
        if (got == nullptr) {
          return failure(status_code::out_of_memory, "memory_resource", "refused a page of exact rows",
                         exact_page_bytes(), 0);
        }
        memory = got;
        ++exact_held_;
      }
    }
    return {};
  }

  [[nodiscard]] std::uint32_t take_coded() noexcept { return coded_.take(); }
  [[nodiscard]] std::uint32_t take_exact() noexcept { return exact_.take(); }
  void share_coded(std::uint32_t page) noexcept { coded_.share(page); }
  void share_exact(std::uint32_t page) noexcept { exact_.share(page); }
  void drop_coded(std::uint32_t page) noexcept { static_cast<void>(coded_.drop(page)); }
  void drop_exact(std::uint32_t page) noexcept {
    // A few spare pages keep their memory, so that decode steps allocate nothing.
    if (exact_.drop(page) && exact_held_ - exact_.used_pages() > spare_pages) {
      free_exact(page);
    }
  }
  [[nodiscard]] const page_ledger& coded_pages() const noexcept { return coded_; }
  [[nodiscard]] const page_ledger& exact_pages() const noexcept { return exact_; }

  /// A private copy of a page's contents in a free page. Pre: one is reserved.
  [[nodiscard]] std::uint32_t copy_coded(std::uint32_t page) noexcept {
    const std::uint32_t copy = coded_.take();
    for (std::size_t head = 0; head < heads_; ++head) {
      for (const kv_side which : kv_sides) {
        const slab& memory = slabs_[at(head, which)];
        copy_page(which, memory, page, memory, copy);
      }
    }
    return copy;
  }
  [[nodiscard]] std::uint32_t copy_exact(std::uint32_t page) noexcept {
    const std::uint32_t copy = exact_.take();
    std::memcpy(exact_memory_[copy], exact_memory_[page], exact_page_bytes());
    return copy;
  }

  /// The 64 rows of one head and side of an exact page.
  [[nodiscard]] rows_ref exact_rows(std::uint32_t page, std::size_t head, kv_side which) const noexcept {
    const std::size_t keys = which == kv_side::values ? rows_bytes(kv_side::keys) : 0;
    std::byte* rows = exact_memory_[page] + head * (rows_bytes(kv_side::keys) + rows_bytes(kv_side::values)) + keys;
    return rows_at(rows, which);
  }
  /// The same of a coded page, for a side that is not coded.
  [[nodiscard]] rows_ref body_rows(std::uint32_t page, std::size_t head, kv_side which) const noexcept {
    return rows_at(slabs_[at(head, which)].rows + page * rows_bytes(which), which);
  }
  /// Codes of the listed pages, for a coded side.
  [[nodiscard]] code_span<address> codes(std::size_t head, kv_side which, const std::uint32_t* pages) const noexcept {
    return {side(which).shape, slabs_[at(head, which)].codes, pages};
  }

  /// Memory of the pool itself; sequences add theirs.
  [[nodiscard]] memory_report memory() const noexcept {
    memory_report report;
    for (const kv_side which : kv_sides) {
      const std::size_t bytes = heads_ * coded_.pages() * page_bytes(which);
      (side(which).coded ? report.codes_bytes : report.exact_bytes) += bytes;
      for (std::size_t head = 0; head < heads_; ++head) {
        report.codebooks_bytes += book(head, which).memory == address{} ? 0 : book_bytes(which);
      }
    }
    report.exact_bytes += exact_held_ * exact_page_bytes();
    report.metadata_bytes =
        coded_.bytes() + exact_.bytes() + slabs_.bytes() + books_.bytes() + exact_memory_.bytes();
    return report;
  }

 private:
  static constexpr std::size_t max_heads = 4096;
  static constexpr std::size_t spare_pages = 8;

  /// Memory of one head and side of all coded pages.
  struct slab {
    address codes{};            ///< of a coded side
    std::byte* rows = nullptr;  ///< of an exact side
  };
  struct trained_book {
    resident_codebook<address> book;
    training_report report;
    bool tentative = false;  ///< trained by a call that is not over
  };
  /// Memory of one training call, apart from the trainer's own.
  struct training_rows {
    float* rows = nullptr;
    float* weights = nullptr;
    float* centroids = nullptr;

    void carve(carver& memory, std::size_t samples, const geometry& shape) noexcept {
      rows = memory.take<float>(samples * shape.dim);
      weights = memory.take<float>(samples);
      centroids = memory.take<float>(shape.codebook_values());
    }
  };

  /// Codebooks of a pool are frozen and shared, and any token is coded by itself.
  static status check_plain(const cache_config& config) noexcept {
    for (const side_config* one : {&config.keys, &config.values}) {
      if (one->metric || one->rotated || one->joint_passes != 0 || one->sweeps != 0) {
        return failure(status_code::unsupported, "config.keys or values",
                       "asks for a metric, a rotation, joint passes or sweeps, which a page_pool does not serve");
      }
    }
    if (config.window_tokens != 0 || config.refresh_above > 0.0f || config.outlier_share > 0.0f ||
        config.coding_batch != 1 || config.query_rows != 0 || config.attention_weights) {
      return failure(status_code::unsupported, "config",
                     "asks for epochs, outliers, batches or kept queries, which a page_pool does not serve");
    }
    return {};
  }

  [[nodiscard]] static std::size_t at(std::size_t head, kv_side which) noexcept {
    return 2 * head + static_cast<std::size_t>(which);
  }
  /// Bytes of 64 exact rows.
  [[nodiscard]] std::size_t rows_bytes(kv_side which) const noexcept {
    return block_tokens * side(which).shape.dim * size_of(config_.exact_type);
  }
  [[nodiscard]] std::size_t exact_page_bytes() const noexcept {
    return heads_ * (rows_bytes(kv_side::keys) + rows_bytes(kv_side::values));
  }
  /// Bytes of one head of a coded page.
  [[nodiscard]] std::size_t page_bytes(kv_side which) const noexcept {
    return side(which).coded ? bank_->code_block_bytes(side(which).shape) : rows_bytes(which);
  }
  [[nodiscard]] std::size_t book_bytes(kv_side which) const noexcept {
    return bank_->codebook_bytes(side(which).shape, side(which).storage);
  }
  [[nodiscard]] rows_ref rows_at(std::byte* rows, kv_side which) const noexcept {
    const std::size_t dim = side(which).shape.dim;
    return {rows, config_.exact_type, block_tokens, dim, static_cast<std::ptrdiff_t>(dim), 1};
  }

  [[nodiscard]] bool all_books() const noexcept {
    for (std::size_t head = 0; head < heads_; ++head) {
      for (const kv_side which : kv_sides) {
        if (side(which).coded && book(head, which).memory == address{}) {
          return false;
        }
      }
    }
    return true;
  }

  /// Moves centroids into the bank; what was there before is given back. On failure nothing changes.
  status place_tentative(std::size_t head, kv_side which, const float* centroids, const training_report& report) {
    resident_codebook<address> placed{side(which).shape, side(which).storage, {}, code_rotation(which)};
    PQATTN_TRY(bank_->reserve(book_bytes(which), placed.memory));
    const status stored = bank_->store_codebook({side(which).shape, centroids, 0, 0}, placed);
    if (!stored) {
      bank_->release(placed.memory, book_bytes(which));
      return stored;
    }
    release_book(head, which);
    books_[at(head, which)] = {placed, report, true};
    return {};
  }
  void release_book(std::size_t head, kv_side which) noexcept {
    trained_book& old = books_[at(head, which)];
    if (old.book.memory != address{}) {
      bank_->release(old.book.memory, book_bytes(which));
    }
    old = {};
  }

  template <class Load, class Weight>
  status train_side(std::size_t head, kv_side which, std::size_t available, Load&& load, Weight&& weight,
                    const executor& parts, const progress_hook& progress) {
    const side_config& config = side(which);
    const std::size_t samples = (std::min<std::size_t>)(available, config_.max_training_tokens);
    training_params params{config_.kmeans, config.storage, parts, progress};
    // The seeds of a layer_cache of the same configuration: the same tokens train the same codebooks.
    params.kmeans.seed = mix_seed(mix_seed(config_.kmeans.seed, head), static_cast<std::uint64_t>(which));
    carver counting;
    training_rows work;
    work.carve(counting, samples, config.shape);
    buffer memory;
    PQATTN_TRY(buffer::make(resource_, counting.required(), memory));
    carver placed(memory.data(), memory.size());
    work.carve(placed, samples, config.shape);
    for (std::size_t i = 0; i < samples; ++i) {
      const std::size_t source = i * available / samples;  // evenly spaced
      load(head, which, source, work.rows + i * config.shape.dim);
      work.weights[i] = weight(head, source);
    }
    temper_weights(work.weights, samples, config_.weight_exponent, config_.weight_floor);
    const rows_view view = view_rows(work.rows, samples, config.shape.dim);
    buffer workspace;
    PQATTN_TRY(buffer::make(resource_, training_workspace_bytes(*bank_, config.shape, view, params), workspace));
    training_report report;
    PQATTN_TRY(train_codebook(*bank_, config.shape, view, work.weights, params, workspace.data(), workspace.size(),
                              work.centroids, report));
    return place_tentative(head, which, work.centroids, report);
  }

  /// Memory for `pages` coded pages of one head and side.
  status reserve_slab(kv_side which, std::size_t pages, slab& made) {
    if (side(which).coded) {
      return bank_->reserve(pages * page_bytes(which), made.codes);
    }
    made.rows = static_cast<std::byte*>(resource_.allocate(resource_.self, pages * page_bytes(which)));
    return made.rows != nullptr ? status{}
                                : failure(status_code::out_of_memory, "memory_resource", "refused an allocation",
                                          pages * page_bytes(which), 0);
  }
  void release_slab(kv_side which, std::size_t pages, slab& old) noexcept {
    if (old.codes != address{}) {
      bank_->release(old.codes, pages * page_bytes(which));
    }
    if (old.rows != nullptr) {
      resource_.deallocate(resource_.self, old.rows, pages * page_bytes(which));
    }
    old = {};
  }

  status grow_coded(std::size_t pages) {
    growable<slab> grown(resource_);
    PQATTN_TRY(grown.reserve(slabs_.size()));
    status outcome = coded_.pages() <= max_pages && pages <= max_pages
                         ? status{}
                         : failure(status_code::capacity, "page_pool", "has its most pages", max_pages, pages);
    while (outcome && grown.size() < slabs_.size()) {
      slab made;
      outcome = reserve_slab(kv_sides[grown.size() % 2], pages, made);
      if (outcome) {
        static_cast<void>(grown.push_back(made));
      }
    }
    const std::size_t old_pages = coded_.pages();
    if (outcome) {
      outcome = coded_.grow(pages);
    }
    if (!outcome) {
      for (std::size_t i = 0; i < grown.size(); ++i) {
        release_slab(kv_sides[i % 2], pages, grown[i]);
      }
      return outcome;
    }
    for (std::size_t i = 0; i < grown.size(); ++i) {
      for (std::uint32_t page = 0; page < old_pages; ++page) {
        if (coded_.users(page) != 0) {
          copy_page(kv_sides[i % 2], slabs_[i], page, grown[i], page);
        }
      }
      release_slab(kv_sides[i % 2], old_pages, slabs_[i]);
      slabs_[i] = grown[i];
    }
    return {};
  }

  void copy_page(kv_side which, const slab& from, std::uint32_t page, const slab& to, std::uint32_t copy) noexcept {
    if (!side(which).coded) {
      std::memcpy(to.rows + copy * rows_bytes(which), from.rows + page * rows_bytes(which), rows_bytes(which));
      return;
    }
    // Codes cross slot by slot: an address need not be a pointer. Banks have no reason to refuse their own memory.
    std::uint16_t codes[max_dim * max_stages];
    for (std::size_t slot = 0; slot < block_tokens; ++slot) {
      const code_span<address> source{side(which).shape, from.codes, &page};
      const code_span<address> target{side(which).shape, to.codes, &copy};
      static_cast<void>(bank_->load_codes(source, {slot, 1}, codes));
      static_cast<void>(bank_->store_codes(target, {slot, 1}, codes));
    }
  }

  void free_exact(std::size_t page) noexcept {
    if (exact_memory_[page] != nullptr) {
      resource_.deallocate(resource_.self, exact_memory_[page], exact_page_bytes());
      exact_memory_[page] = nullptr;
      --exact_held_;
    }
  }
  void release() noexcept {
    for (std::size_t i = 0; i < slabs_.size(); ++i) {
      release_slab(kv_sides[i % 2], coded_.pages(), slabs_[i]);
      release_book(i / 2, kv_sides[i % 2]);
    }
    for (std::size_t page = 0; page < exact_memory_.size(); ++page) {
      free_exact(page);
    }
  }
  void swap(page_pool& other) noexcept {
    std::swap(bank_, other.bank_);
    std::swap(config_, other.config_);
    std::swap(heads_, other.heads_);
    std::swap(resource_, other.resource_);
    std::swap(coded_, other.coded_);
    std::swap(exact_, other.exact_);
    std::swap(slabs_, other.slabs_);
    std::swap(books_, other.books_);
    std::swap(exact_memory_, other.exact_memory_);
    std::swap(exact_held_, other.exact_held_);
    std::swap(trained_, other.trained_);
  }

  static constexpr std::size_t max_pages = std::size_t{1} << 31;

  Bank* bank_ = nullptr;
  cache_config config_;
  std::size_t heads_ = 0;
  memory_resource resource_;
  page_ledger coded_;
  page_ledger exact_;
  growable<slab> slabs_;
  growable<trained_book> books_;
  growable<std::byte*> exact_memory_;  ///< of each exact page, null while it is free and gave its memory back
  std::size_t exact_held_ = 0;         ///< exact pages with memory
  bool trained_ = false;
};

}  // namespace v0
}  // namespace pqattn
