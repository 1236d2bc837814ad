// SPDX-License-Identifier: MIT
// What all sequences of one layer share: pages of codes in the bank, pages of exact rows, and the codebooks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "../bank/bank.hpp"
#include "../core/growable.hpp"
#include "../core/half.hpp"
#include "../core/memory.hpp"
#include "../quant/value_rotation.hpp"
#include "cache_config.hpp"
#include "codebook_lesson.hpp"
#include "drift.hpp"
#include "outlier_cells.hpp"
#include "page_ledger.hpp"
#include "side_coder.hpp"
#include "side_store.hpp"

namespace pqattn {
inline namespace v0 {

/// The two sides of a KV head.
enum class kv_side : std::uint8_t { keys, values };
inline constexpr kv_side kv_sides[] = {kv_side::keys, kv_side::values};

/// Free pages, and free cells of outliers of each head, that are there for one user.
struct page_reserve {
  std::size_t exact = 0;
  std::size_t coded = 0;
  std::size_t cells = 0;
};

/// Pages of 64 tokens for all KV heads of a layer. A coded page holds one code block per head and side (64 exact rows
/// where a side is not coded, and the tails of keys that have one); an exact page holds 64 rows per head and side.
/// Values that come from the keys are stored nowhere. Pages are counted by their users, so sequences share prefixes.
///
/// Codebooks come in epochs: the first is trained or loaded, each refresh (sequence::refresh) trains one more, and none
/// changes afterwards. An epoch has the codebooks of all heads and the rule that says which rows stay exact in a coded
/// page (outlier_cells); the metric of the keys and the rotation of the values are the pool's and stay what the first
/// epoch made them. A coded page belongs to one epoch, new pages to the newest. An older epoch is given back with its
/// last page.
///
/// One writer at a time for the pool and all its sequences; readers of any of them may run concurrently with each
/// other. Move-only; sequences refer to the pool by address, so it must stay where it is and outlive them.
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

  /// Makes a pool without pages. Errors: whatever check_config finds, switches that pages do not serve (epochs that
  /// begin by themselves: see head_cache), out of memory.
  static status make(Bank& bank, const cache_config& config, std::size_t kv_heads, const memory_resource& resource,
                     page_pool& result) {
    PQATTN_TRY(check_config(config));
    PQATTN_TRY(check_shared(config));
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
    made.transforms_ = growable<kept_transform>(resource);
    made.books_ = growable<trained_book>(resource);
    made.epochs_ = growable<epoch_record>(resource);
    made.page_epochs_ = growable<std::uint32_t>(resource);
    made.exact_memory_ = growable<std::byte*>(resource);
    made.coding_ = coding_scratch(resource);
    made.rules_ = growable<outlier_rule>(resource);
    made.errors_ = growable<running_errors>(resource);
    if (config.outlier_share > 0.0f && config.codes_anything()) {
      made.outliers_ = outlier_cells(resource, kv_heads, config.exact_type, made.row_dim(kv_side::keys),
                                     config.values_from_keys ? 0 : made.row_dim(kv_side::values));
    }
    PQATTN_TRY(made.slabs_.reserve(2 * kv_heads));
    PQATTN_TRY(made.transforms_.reserve(2 * kv_heads));
    PQATTN_TRY(made.errors_.reserve(made.measures() ? kv_heads : 0));
    for (std::size_t i = 0; i < 2 * kv_heads; ++i) {
      PQATTN_TRY(made.slabs_.push_back({}));
      PQATTN_TRY(made.transforms_.push_back({}));
    }
    for (std::size_t i = 0; made.measures() && i < kv_heads; ++i) {
      PQATTN_TRY(made.errors_.push_back({}));
    }
    PQATTN_TRY(made.add_epoch());
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
  /// Whether a side has memory of its own: values that come from the keys have none.
  [[nodiscard]] bool stores(kv_side which) const noexcept {
    return which == kv_side::keys || !config_.values_from_keys;
  }
  /// Channels of an exact row: of keys with their tail.
  [[nodiscard]] std::size_t row_dim(kv_side which) const noexcept {
    return which == kv_side::keys ? config_.key_channels() : config_.values.shape.dim;
  }
  /// How rows of a head change their form; in coded form only the coded channels count.
  [[nodiscard]] row_forms forms(std::size_t head, kv_side which) const noexcept {
    if (which == kv_side::values) {
      return {{}, true, true, config_.exact_type, turn(head)};
    }
    return {config_.rotation,
            config_.keys_arrive_rotated,
            !config_.rotates_codes(),
            config_.exact_type,
            {},
            config_.key_tail != 0 ? config_.keys.shape.dim : std::size_t{0}};
  }
  /// Whether a side of a head is coded in a metric or a rotation.
  [[nodiscard]] bool has_transform(std::size_t head, kv_side which) const noexcept {
    return transforms_[at(head, which)].numbers != nullptr;
  }
  /// The rotation that values of a head are coded in; disabled without one.
  [[nodiscard]] value_rotation turn(std::size_t head) const noexcept {
    const std::byte* memory = transforms_[at(head, kv_side::values)].numbers;
    return memory == nullptr ? value_rotation{} : compact_rotation_at(config_.values.shape.dim, memory);
  }
  /// The metric that a side of a head is coded in, upper triangle in binary16, or null: only keys have one.
  [[nodiscard]] const half* metric(std::size_t head, kv_side which) const noexcept {
    return which == kv_side::keys ? reinterpret_cast<const half*>(transforms_[at(head, which)].numbers) : nullptr;
  }
  /// What a side is coded in as f32 (transform_floats), for load_codebook(), which makes the same of it: the upper
  /// triangle of the keys' metric; mean (d) and basis (d, d) of the values. It must have one.
  void read_transform(std::size_t head, kv_side which, float* numbers) const noexcept {
    if (which == kv_side::values) {
      return expand_rotation(turn(head), numbers);
    }
    for (std::size_t i = 0; i < transform_floats(which); ++i) {
      numbers[i] = to_float(metric(head, which)[i]);
    }
  }
  /// Its floats; 0 where the configuration asks for none.
  [[nodiscard]] std::size_t transform_floats(kv_side which) const noexcept {
    const side_config& config = side(which);
    const std::size_t dim = config.shape.dim;
    return !config.coded ? 0 : config.metric ? packed_metric_floats(dim) : config.rotated ? (dim + 1) * dim : 0;
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
  /// Codebook of a head's side: the newest, or that of an epoch (see epoch_of()).
  [[nodiscard]] const resident_codebook<address>& book(std::size_t head, kv_side which,
                                                       std::size_t epoch) const noexcept {
    return books_[at(head, stored(which), epoch)].book;
  }
  [[nodiscard]] const resident_codebook<address>& book(std::size_t head, kv_side which) const noexcept {
    return book(head, which, newest_);
  }
  /// Of the newest epoch.
  [[nodiscard]] const training_report& training(std::size_t head, kv_side which) const noexcept {
    return books_[at(head, stored(which), newest_)].report;
  }

  /// Gives one coded side its codebook, f32 centroids of the configured geometry, and what it is coded in, as
  /// read_transform() has it: null where the configuration asks for nothing, or where the codebook was trained without.
  /// The pool counts as trained when all have one. Errors (nothing changed): already trained, shape mismatch, numbers
  /// that are not finite, out of memory.
  status load_codebook(std::size_t head, kv_side which, const float* centroids, const float* transform = nullptr) {
    if (trained_) {
      return failure(status_code::unsupported, "codebook", "is frozen: the pool is trained");
    }
    if (head >= heads_ || !stores(which) || !side(which).coded || centroids == nullptr) {
      return failure(status_code::invalid_argument, "head", "must name a coded side of the pool; heads", heads_, head);
    }
    if (transform != nullptr && transform_floats(which) == 0) {
      return failure(status_code::invalid_argument, "transform", "is given to a side that is configured without");
    }
    PQATTN_TRY(check_numbers(centroids, side(which).shape.codebook_values(), "centroids"));
    PQATTN_TRY(check_transform(which, transform));
    PQATTN_TRY(place(head, which, centroids, transform));
    books_[at(head, which, making_)].tentative = false;
    transforms_[at(head, which)].tentative = false;
    trained_ = all_books();
    return {};
  }
  /// The same for a side that has none yet, as part of a load of several: follow with keep_training() or
  /// discard_training(). Later epochs of such a load (begin_loaded_epoch) have the transforms of the first. Errors: the
  /// side has a codebook, out of memory.
  status load_tentative(std::size_t head, kv_side which, const float* centroids, const float* transform) {
    PQATTN_TRY(check_transform(which, transform));
    if (book(head, which, making_).memory != address{}) {
      return failure(status_code::unsupported, "codebook", "was loaded before; head", 0, head);
    }
    return making_ == 0 ? place(head, which, centroids, transform) : place_book(head, which, centroids, {});
  }
  /// What load_tentative() and set_rule() bring from here on belongs to one more epoch, the newest so far; the one
  /// before is held (hold_epoch). Errors: more epochs than the pool may have, out of memory.
  status begin_loaded_epoch() {
    if (making_ + 1 >= config_.most_epochs) {
      return failure(status_code::capacity, "epochs", "are more than config.most_epochs", config_.most_epochs,
                     making_ + 2);
    }
    if (making_ + 1 == epochs_.size()) {
      PQATTN_TRY(add_epoch());
    }
    epochs_[making_].holders = 1;
    ++making_;
    epochs_[making_].id = making_;
    return {};
  }
  /// Checksum that the snapshot gave the codebooks of an epoch that was loaded, 0 for others: what was coded with them
  /// names them by it, whatever the pool rounded.
  [[nodiscard]] std::uint64_t loaded_as(std::size_t epoch) const noexcept { return epochs_[epoch].loaded_as; }
  void set_loaded_as(std::size_t epoch, std::uint64_t checksum) noexcept { epochs_[epoch].loaded_as = checksum; }

  /// Reads a codebook, the newest or that of an epoch, back as programs use it. `centroids` holds
  /// geometry::codebook_values() floats.
  status read_codebook(std::size_t head, kv_side which, std::size_t epoch, float* centroids) const {
    if (head >= heads_ || epoch >= epochs_.size() || book(head, which, epoch).memory == address{}) {
      return failure(status_code::invalid_argument, "head", "has no such codebook; heads", heads_, head);
    }
    return bank_->load_codebook(book(head, which, epoch), centroids);
  }
  status read_codebook(std::size_t head, kv_side which, float* centroids) const {
    return read_codebook(head, which, newest_, centroids);
  }

  /// Trains on `count` rows: the codebooks that are still missing, or once the pool is trained those of one more epoch,
  /// each starting from the newest. `lesson` gives
  ///   load(head, side, i, row)      row i as attention sees it; returns its position
  ///   begin(head, config, metric)   called before a head's rows and weights for the first epoch: fills `metric`
  ///   (packed)
  ///                                 if keys are to have one; `config` is the pool's with the head's seed
  ///   weight(head, i)               importance of row i
  /// Follow with keep_training() or discard_training(). On failure nothing changes.
  template <class Lesson>
  status train(std::size_t count, Lesson&& lesson, const executor& parts, const progress_hook& progress) {
    status outcome = trained_ ? begin_epoch() : status{};
    for (std::size_t head = 0; head < heads_ && outcome; ++head) {
      outcome = train_head(head, count, lesson, parts, progress);
    }
    if (!outcome) {
      discard_training();
    }
    return outcome;
  }
  void keep_training() noexcept {
    trained_ = true;
    for (std::size_t i = 0; i < books_.size(); ++i) {
      books_[i].tentative = false;
    }
    for (std::size_t i = 0; i < transforms_.size(); ++i) {
      transforms_[i].tentative = false;
    }
    for (std::size_t i = 0; i < errors_.size(); ++i) {
      errors_[i] = {};
    }
    const std::size_t before = newest_;
    newest_ = making_;
    give_back(before);
  }
  void discard_training() noexcept {
    for (std::size_t i = 0; i < books_.size(); ++i) {
      if (books_[i].tentative) {
        release_book(kv_sides[i % 2], books_[i]);
      }
    }
    for (std::size_t i = 0; i < rules_.size(); ++i) {
      if (books_[2 * i].book.memory == address{} && books_[2 * i + 1].book.memory == address{}) {
        rules_[i] = {};  // learned or loaded with the codebooks
      }
    }
    for (std::size_t i = 0; i < transforms_.size(); ++i) {
      if (transforms_[i].tentative) {
        release_transform(kv_sides[i % 2], transforms_[i]);
      }
    }
    for (; !trained_ && making_ != 0; --making_) {  // a load of several epochs
      epochs_[making_] = {};
      epochs_[making_ - 1].holders = 0;
    }
    making_ = newest_;
  }

  // --- epochs ---

  /// Epochs in memory: the newest, those that some page belongs to, those that are held.
  [[nodiscard]] std::size_t epoch_count() const noexcept {
    std::size_t count = 0;
    for (std::size_t epoch = 0; trained_ && epoch < epochs_.size(); ++epoch) {
      count += in_use(epoch) ? 1 : 0;
    }
    return count;
  }
  /// The `index`-th of them, oldest first. Numbers of epochs are places in memory that are used again. Pre: index <
  /// epoch_count(). O(epochs^2).
  [[nodiscard]] std::size_t epoch_in_order(std::size_t index) const noexcept {
    std::size_t found = 0;
    for (std::size_t epoch = 0; epoch < epochs_.size(); ++epoch) {
      std::size_t older = 0;
      for (std::size_t other = 0; other < epochs_.size(); ++other) {
        older += in_use(other) && epochs_[other].id < epochs_[epoch].id ? 1 : 0;
      }
      found = in_use(epoch) && older == index ? epoch : found;
    }
    return found;
  }
  [[nodiscard]] std::size_t newest_epoch() const noexcept { return newest_; }
  /// The epoch that a coded page belongs to.
  [[nodiscard]] std::size_t epoch_of(std::uint32_t page) const noexcept { return page_epochs_[page]; }
  /// Names an epoch for good: trainings and loads are counted from 0.
  [[nodiscard]] std::uint64_t epoch_id(std::size_t epoch) const noexcept { return epochs_[epoch].id; }
  /// Coded pages that belong to an epoch.
  [[nodiscard]] std::size_t epoch_pages(std::size_t epoch) const noexcept { return epochs_[epoch].pages; }
  /// Keeps an epoch in memory though its last page should go: sequences may come back from a snapshot. Once for each
  /// release_epoch(). Errors: no such epoch in memory.
  status hold_epoch(std::uint64_t id) noexcept {
    std::size_t epoch = 0;
    PQATTN_TRY(find_epoch(id, epoch));
    ++epochs_[epoch].holders;
    return {};
  }
  /// Undoes hold_epoch(). Older epochs that were loaded are held once by their load. Errors: no such epoch, not held.
  status release_epoch(std::uint64_t id) noexcept {
    std::size_t epoch = 0;
    PQATTN_TRY(find_epoch(id, epoch));
    if (epochs_[epoch].holders == 0) {
      return failure(status_code::invalid_argument, "epoch", "is not held; id", 0, id);
    }
    --epochs_[epoch].holders;
    give_back(epoch);
    return {};
  }

  /// Whether coding measures what it loses: outliers and drift need it (config.outlier_share, config.track_errors).
  [[nodiscard]] bool measures() const noexcept { return config_.measures_errors() && config_.codes_anything(); }
  /// Mean error of a head's rows coded in the newest epoch, of all sequences, over that of the rows which trained it.
  /// Ratios are 1 unless the configuration measures errors; rows of loaded epochs count from the load.
  [[nodiscard]] drift_report drift(std::size_t head) const noexcept {
    return measures() ? errors_[head].over(rule(head).key_error, rule(head).value_error) : drift_report{};
  }
  /// The same of the pool: ratios are means over the heads. O(heads).
  [[nodiscard]] drift_report drift() const noexcept {
    drift_report mean;
    mean.key_ratio = mean.value_ratio = 0.0f;
    for (std::size_t head = 0; head < heads_; ++head) {
      const drift_report one = drift(head);
      mean.key_ratio += one.key_ratio;
      mean.value_ratio += one.value_ratio;
      mean.rows = one.rows;  // heads code the same tokens
    }
    mean.key_ratio /= static_cast<float>(heads_);
    mean.value_ratio /= static_cast<float>(heads_);
    return mean;
  }
  /// Counts the errors of a row coded in the newest epoch. One thread per head may call it.
  void count_errors(std::size_t head, float key_error, float value_error) noexcept {
    errors_[head].add(key_error, value_error);
  }

  // --- outliers ---

  /// Exact rows of single tokens in coded pages; keeps none unless config.outlier_share asks for some.
  [[nodiscard]] outlier_cells& outliers() noexcept { return outliers_; }
  [[nodiscard]] const outlier_cells& outliers() const noexcept { return outliers_; }
  /// Of an epoch: when a row coded in it is one, and the mean errors of its training rows.
  [[nodiscard]] outlier_rule rule(std::size_t head, std::size_t epoch) const noexcept {
    return measures() ? rules_[epoch * heads_ + head] : outlier_rule{};
  }
  [[nodiscard]] outlier_rule rule(std::size_t head) const noexcept { return rule(head, newest_); }
  /// For codebooks that come from elsewhere, after they are loaded and before the first token is coded with them:
  /// without it no row is an outlier. (Without a codebook a failing training takes the rule back.)
  void set_rule(std::size_t head, const outlier_rule& rule) noexcept {
    if (measures()) {
      rules_[making_ * heads_ + head] = rule;
    }
  }
  /// Most outliers of a head in one page.
  [[nodiscard]] std::size_t outlier_limit() const noexcept {
    const double share = static_cast<double>(config_.outlier_share) * static_cast<double>(block_tokens);
    return outliers_.enabled() ? 1 + static_cast<std::size_t>(std::ceil(share)) : 0;
  }

  // --- coding ---

  /// Makes room for `workers` workers that code heads at the same time. On failure nothing that can be seen changes.
  status reserve_coding(std::size_t workers) { return coding_.reserve(workers * coder_bytes()); }
  /// Memory of one worker's coders; only counts when none is reserved.
  [[nodiscard]] carver coding_memory(std::size_t worker) const noexcept {
    const std::size_t bytes = coder_bytes();
    return (worker + 1) * bytes <= coding_.size() ? carver(coding_.data() + worker * bytes, bytes) : carver();
  }
  /// Where the codes of the listed pages of one epoch go, for a coded side.
  [[nodiscard]] paged_codes<Bank> coding_target(std::size_t head, kv_side which, const std::uint32_t* pages,
                                                std::size_t epoch) const noexcept {
    return {*bank_, book(head, which, epoch), codes(head, which, pages)};
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
    for (std::size_t i = exact_spare(); i < count; ++i) {
      auto* memory = static_cast<std::byte*>(resource_.allocate(resource_.self, exact_page_bytes()));
      if (memory == nullptr) {
        return failure(status_code::out_of_memory, "memory_resource", "refused a page of exact rows",
                       exact_page_bytes(), 0);
      }
      exact_memory_[exact_.next_free(i)] = memory;
      ++exact_held_;
    }
    return {};
  }

  /// Keeps free pages and cells for one user, in place of the `mine` that were kept for it. What is kept for all users
  /// is there together, until any sequence takes it. On failure nothing that can be seen changes.
  status keep_reserve(page_reserve& mine, const page_reserve& wanted) {
    const page_reserve all{reserved_.exact - mine.exact + wanted.exact, reserved_.coded - mine.coded + wanted.coded,
                           reserved_.cells - mine.cells + wanted.cells};
    PQATTN_TRY(reserve_exact(all.exact));
    PQATTN_TRY(reserve_coded(all.coded));
    PQATTN_TRY(outliers_.reserve(all.cells));
    reserved_ = all;
    mine = wanted;
    return {};
  }
  void end_reserve(page_reserve& mine) noexcept {
    reserved_ = {reserved_.exact - mine.exact, reserved_.coded - mine.coded, reserved_.cells - mine.cells};
    mine = {};
    trim_exact();
    trim_cells();
  }

  /// A page of an epoch, the newest by default.
  [[nodiscard]] std::uint32_t take_coded(std::size_t epoch) noexcept {
    const std::uint32_t page = coded_.take();
    page_epochs_[page] = static_cast<std::uint32_t>(epoch);
    ++epochs_[epoch].pages;
    return page;
  }
  [[nodiscard]] std::uint32_t take_coded() noexcept { return take_coded(newest_); }
  [[nodiscard]] std::uint32_t take_exact() noexcept { return exact_.take(); }
  void share_coded(std::uint32_t page) noexcept { coded_.share(page); }
  void share_exact(std::uint32_t page) noexcept { exact_.share(page); }
  void drop_coded(std::uint32_t page) noexcept {
    if (coded_.drop(page)) {
      outliers_.drop_page(page);
      trim_cells();
      --epochs_[page_epochs_[page]].pages;
      give_back(page_epochs_[page]);
    }
  }
  void drop_exact(std::uint32_t page) noexcept {
    if (exact_.drop(page)) {
      trim_exact();
    }
  }
  /// Gives memory of free cells back, but for what is reserved.
  void trim_cells() noexcept { outliers_.trim(reserved_.cells); }
  [[nodiscard]] const page_ledger& coded_pages() const noexcept { return coded_; }
  [[nodiscard]] const page_ledger& exact_pages() const noexcept { return exact_; }

  /// A private copy of a page's contents in a free page. Pre: one is reserved, and outliers().most_in(page) cells.
  [[nodiscard]] std::uint32_t copy_coded(std::uint32_t page) noexcept {
    const std::uint32_t copy = take_coded(page_epochs_[page]);
    for (std::size_t head = 0; head < heads_; ++head) {
      for (const kv_side which : kv_sides) {
        const slab& memory = slabs_[at(head, which)];
        copy_page(which, memory, page, memory, copy);
      }
    }
    outliers_.copy_page(page, copy);
    return copy;
  }
  [[nodiscard]] std::uint32_t copy_exact(std::uint32_t page) noexcept {
    const std::uint32_t copy = exact_.take();
    std::memcpy(exact_memory_[copy], exact_memory_[page], exact_page_bytes());
    return copy;
  }

  /// The 64 rows of one head and side of an exact page.
  [[nodiscard]] rows_ref exact_rows(std::uint32_t page, std::size_t head, kv_side which) const noexcept {
    if (!stores(which)) {  // the first channels of the keys
      rows_ref rows = exact_rows(page, head, kv_side::keys);
      rows.cols = row_dim(which);
      return rows;
    }
    const std::size_t keys = which == kv_side::values ? rows_bytes(kv_side::keys) : 0;
    return rows_at(exact_memory_[page] + head * exact_head_bytes() + keys, row_dim(which));
  }
  /// The same of a coded page, for a side that is not coded.
  [[nodiscard]] rows_ref body_rows(std::uint32_t page, std::size_t head, kv_side which) const noexcept {
    return rows_at(slabs_[at(head, which)].rows + page * rows_bytes(which), row_dim(which));
  }
  /// The exact channels behind the coded keys of a coded page, when keys have a tail.
  [[nodiscard]] rows_ref tail_rows(std::uint32_t page, std::size_t head) const noexcept {
    return rows_at(slabs_[at(head, kv_side::keys)].rows + page * page_row_bytes(kv_side::keys), config_.key_tail);
  }
  /// The same of all pages, page after page.
  [[nodiscard]] rows_view all_tails(std::size_t head) const noexcept {
    rows_view rows = rows_at(slabs_[at(head, kv_side::keys)].rows, config_.key_tail).view();
    rows.rows = coded_.pages() * block_tokens;
    return rows;
  }
  /// Codes of the listed pages, for a coded side.
  [[nodiscard]] code_span<address> codes(std::size_t head, kv_side which, const std::uint32_t* pages) const noexcept {
    return {side(which).shape, slabs_[at(head, stored(which))].codes, pages};
  }

  /// Memory of the pool itself; sequences add theirs.
  [[nodiscard]] memory_report memory() const noexcept {
    memory_report report;
    for (const kv_side which : kv_sides) {
      report.codes_bytes += heads_ * coded_.pages() * page_code_bytes(which);
      report.exact_bytes += heads_ * coded_.pages() * page_row_bytes(which);
      for (std::size_t head = 0; head < heads_; ++head) {
        report.transforms_bytes += has_transform(head, which) ? transform_bytes(which) : 0;
        for (std::size_t epoch = 0; epoch < epochs_.size(); ++epoch) {
          report.codebooks_bytes += books_[at(head, which, epoch)].book.memory == address{} ? 0 : book_bytes(which);
        }
      }
    }
    report.scratch_bytes = coding_.size();
    report.exact_bytes += exact_held_ * exact_page_bytes() + outliers_.held_bytes();
    report.metadata_bytes = outliers_.metadata_bytes() + rules_.bytes() + errors_.bytes() + coded_.bytes() +
                            exact_.bytes() + slabs_.bytes() + transforms_.bytes() + books_.bytes() + epochs_.bytes() +
                            page_epochs_.bytes() + exact_memory_.bytes();
    return report;
  }

 private:
  static constexpr std::size_t max_heads = 4096;
  static constexpr std::size_t spare_pages = 8;

  /// Memory of one head and side of all coded pages.
  struct slab {
    address codes{};            ///< of a coded side
    std::byte* rows = nullptr;  ///< of an exact side, or the tails of coded keys
  };
  struct trained_book {
    resident_codebook<address> book;
    training_report report;
    bool tentative = false;  ///< trained by a call that is not over
  };
  /// What a side of a head is coded in, in all epochs.
  struct kept_transform {
    std::byte* numbers = nullptr;  ///< from the resource: metric() or compact_rotation()
    bool tentative = false;
  };
  struct epoch_record {
    std::uint64_t id = 0;
    std::uint64_t loaded_as = 0;
    std::size_t pages = 0;
    std::size_t holders = 0;
  };
  /// When new epochs begin is said by a call, not by the configuration: one sequence's drift would cost all of them.
  static status check_shared(const cache_config& config) noexcept {
    return config.window_tokens == 0 && !(config.refresh_above > 0.0f)
               ? status{}
               : failure(status_code::unsupported, "config.window_tokens or refresh_above",
                         "asks for epochs that begin by themselves: see sequence::refresh() and page_pool::drift()");
  }
  static status check_numbers(const float* numbers, std::size_t count, const char* subject) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      if (!is_finite(numbers[i])) {
        return failure(status_code::not_finite, subject, "has a NaN or infinity; index", 0, i);
      }
    }
    return {};
  }

  /// Numbers that the pool can keep, or null.
  status check_transform(kv_side which, const float* transform) const noexcept {
    const std::size_t count = transform == nullptr ? 0 : transform_floats(which);
    PQATTN_TRY(check_numbers(transform, count, "transform"));
    for (std::size_t i = 0; which == kv_side::keys && i < count; ++i) {
      if (!is_finite(to_float(to_half(transform[i])))) {
        return failure(status_code::invalid_argument, "transform", "has a number beyond binary16; index", 0, i);
      }
    }
    return {};
  }

  [[nodiscard]] static std::size_t at(std::size_t head, kv_side which) noexcept {
    return 2 * head + static_cast<std::size_t>(which);
  }
  [[nodiscard]] std::size_t at(std::size_t head, kv_side which, std::size_t epoch) const noexcept {
    return 2 * (epoch * heads_ + head) + static_cast<std::size_t>(which);
  }
  /// The side whose memory holds this one.
  [[nodiscard]] kv_side stored(kv_side which) const noexcept { return stores(which) ? which : kv_side::keys; }
  /// Bytes of 64 exact rows.
  [[nodiscard]] std::size_t rows_bytes(kv_side which) const noexcept {
    return stores(which) ? block_tokens * row_dim(which) * size_of(config_.exact_type) : 0;
  }
  [[nodiscard]] std::size_t exact_head_bytes() const noexcept {
    return rows_bytes(kv_side::keys) + rows_bytes(kv_side::values);
  }
  [[nodiscard]] std::size_t exact_page_bytes() const noexcept { return heads_ * exact_head_bytes(); }
  /// Bytes of one head of a coded page: codes in the bank, rows in host memory.
  [[nodiscard]] std::size_t page_code_bytes(kv_side which) const noexcept {
    return stores(which) && side(which).coded ? bank_->code_block_bytes(side(which).shape) : 0;
  }
  [[nodiscard]] std::size_t page_row_bytes(kv_side which) const noexcept {
    if (!side(which).coded) {
      return rows_bytes(which);
    }
    return which == kv_side::keys ? block_tokens * config_.key_tail * size_of(config_.exact_type) : 0;
  }
  [[nodiscard]] std::size_t book_bytes(kv_side which) const noexcept {
    return bank_->codebook_bytes(side(which).shape, side(which).storage);
  }
  [[nodiscard]] std::size_t transform_bytes(kv_side which) const noexcept {
    return side(which).rotated ? compact_rotation_bytes(side(which).shape.dim) : transform_floats(which) * sizeof(half);
  }
  /// Both sides' coders of one worker.
  [[nodiscard]] std::size_t coder_bytes() const noexcept {
    carver memory;
    static_cast<void>(side_coder(memory, config_.keys, measures()));
    static_cast<void>(side_coder(memory, config_.values, measures()));
    return align_up(memory.required());
  }
  [[nodiscard]] rows_ref rows_at(std::byte* rows, std::size_t dim) const noexcept {
    return {rows, config_.exact_type, block_tokens, dim, static_cast<std::ptrdiff_t>(dim), 1};
  }

  [[nodiscard]] bool all_books() const noexcept {
    for (std::size_t head = 0; head < heads_; ++head) {
      for (const kv_side which : kv_sides) {
        if (lacks_book(head, which)) {
          return false;
        }
      }
    }
    return true;
  }

  [[nodiscard]] bool lacks_book(std::size_t head, kv_side which) const noexcept {
    return stores(which) && side(which).coded && book(head, which, making_).memory == address{};
  }

  [[nodiscard]] bool in_use(std::size_t epoch) const noexcept {
    return epoch == newest_ || epochs_[epoch].pages != 0 || epochs_[epoch].holders != 0;
  }
  status find_epoch(std::uint64_t id, std::size_t& epoch) const noexcept {
    for (epoch = 0; epoch < epochs_.size(); ++epoch) {
      if (trained_ && in_use(epoch) && epochs_[epoch].id == id) {
        return {};
      }
    }
    return failure(status_code::invalid_argument, "epoch", "is not in memory; the newest id", epochs_[newest_].id, id);
  }
  /// Room for one more epoch; on failure nothing that can be seen changes.
  status add_epoch() {
    const std::size_t count = epochs_.size() + 1;
    PQATTN_TRY(epochs_.reserve(count));
    PQATTN_TRY(books_.reserve(count * 2 * heads_));
    PQATTN_TRY(rules_.reserve(measures() ? count * heads_ : 0));
    static_cast<void>(epochs_.push_back({}));
    while (books_.size() < count * 2 * heads_) {
      static_cast<void>(books_.push_back({}));
    }
    while (measures() && rules_.size() < count * heads_) {
      static_cast<void>(rules_.push_back({}));
    }
    return {};
  }
  /// What is trained next makes a new epoch. Errors: as many as there may be, out of memory.
  status begin_epoch() {
    const std::size_t old = epoch_count() - (epochs_[newest_].pages + epochs_[newest_].holders != 0 ? 0 : 1);
    if (old >= config_.most_epochs) {
      return failure(status_code::capacity, "epochs", "would be more than config.most_epochs: old pages must go first",
                     config_.most_epochs, old + 1);
    }
    std::size_t epoch = 0;
    while (epoch < epochs_.size() && in_use(epoch)) {
      ++epoch;
    }
    if (epoch == epochs_.size()) {
      PQATTN_TRY(add_epoch());
    }
    epochs_[epoch] = {epochs_[newest_].id + 1, 0, 0, 0};
    making_ = epoch;
    return {};
  }
  /// Gives the memory of an epoch that nobody uses back.
  void give_back(std::size_t epoch) noexcept {
    if (in_use(epoch)) {
      return;
    }
    for (std::size_t i = epoch * 2 * heads_; i < (epoch + 1) * 2 * heads_; ++i) {
      release_book(kv_sides[i % 2], books_[i]);
    }
    for (std::size_t head = 0; measures() && head < heads_; ++head) {
      rules_[epoch * heads_ + head] = {};
    }
    epochs_[epoch] = {};
  }

  /// Moves centroids into the bank; the codebook there was before is given back. On failure nothing changes.
  status place_book(std::size_t head, kv_side which, const float* centroids, const training_report& report) {
    const geometry& shape = side(which).shape;
    trained_book made{{shape, side(which).storage, {}, code_rotation(which)}, report, true};
    buffer settled;
    PQATTN_TRY(buffer::make(resource_, shape.codebook_values() * sizeof(float), settled));
    std::memcpy(settled.data(), centroids, settled.size());
    auto* rounded = reinterpret_cast<float*>(settled.data());
    PQATTN_TRY(detail::settle_codebook(shape, side(which).storage, rounded, code_rotation(which)));
    PQATTN_TRY(bank_->reserve(book_bytes(which), made.book.memory));
    const status outcome = bank_->store_codebook({shape, rounded, 0, 0}, made.book);
    trained_book& kept = books_[at(head, which, making_)];
    release_book(which, outcome ? kept : made);
    if (outcome) {
      kept = made;
    }
    return outcome;
  }
  /// A copy of `numbers` as the pool keeps them, none of null. On failure nothing changes.
  status make_transform(kv_side which, const float* numbers, kept_transform& made) const {
    if (numbers == nullptr) {
      return {};
    }
    const geometry& shape = side(which).shape;
    made = {static_cast<std::byte*>(resource_.allocate(resource_.self, transform_bytes(which))), true};
    if (made.numbers == nullptr) {
      return failure(status_code::out_of_memory, "memory_resource", "refused a metric or a rotation",
                     transform_bytes(which), 0);
    }
    if (side(which).rotated) {
      compact_rotation({shape.dim, numbers, numbers + shape.dim}, made.numbers);
    } else {
      auto* metric = reinterpret_cast<half*>(made.numbers);
      for (std::size_t i = 0; i < transform_floats(which); ++i) {
        metric[i] = to_half(numbers[i]);
      }
    }
    return {};
  }
  /// Both. On failure nothing changes.
  status place(std::size_t head, kv_side which, const float* centroids, const float* numbers) {
    kept_transform made;
    PQATTN_TRY(make_transform(which, numbers, made));
    const status outcome = place_book(head, which, centroids, {});
    kept_transform& kept = transforms_[at(head, which)];
    release_transform(which, outcome ? kept : made);
    if (outcome) {
      kept = made;
    }
    return outcome;
  }
  void release_book(kv_side which, trained_book& old) noexcept {
    if (old.book.memory != address{}) {
      bank_->release(old.book.memory, book_bytes(which));
    }
    old = {};
  }
  void release_transform(kv_side which, kept_transform& old) noexcept {
    if (old.numbers != nullptr) {
      resource_.deallocate(resource_.self, old.numbers, transform_bytes(which));
    }
    old = {};
  }

  template <class Lesson>
  status train_head(std::size_t head, std::size_t count, Lesson& lesson, const executor& parts,
                    const progress_hook& progress) {
    if (!lacks_book(head, kv_side::keys) && !lacks_book(head, kv_side::values)) {
      return {};
    }
    // The seeds of a layer_cache of the same configuration: the same tokens train the same codebooks.
    cache_config seeded = config_;
    seeded.kmeans.seed = mix_seed(config_.kmeans.seed, head);
    if (!trained_) {
      buffer metric;
      PQATTN_TRY(lesson.begin(head, seeded, metric));
      if (lacks_book(head, kv_side::keys)) {
        PQATTN_TRY(make_transform(kv_side::keys, reinterpret_cast<const float*>(metric.data()),
                                  transforms_[at(head, kv_side::keys)]));
      }
    }
    for (const kv_side which : kv_sides) {
      if (lacks_book(head, which)) {
        PQATTN_TRY(train_side(head, which, count, lesson, seeded, parts, progress));
      }
    }
    return measures() ? learn_rule(head, count, lesson) : status{};
  }
  /// What codes lose of the training rows, and from which loss on a row stays exact if any does.
  template <class Lesson>
  status learn_rule(std::size_t head, std::size_t available, Lesson& lesson) {
    const std::size_t count = (std::min<std::size_t>)(available, config_.max_training_tokens);
    buffer memory;
    PQATTN_TRY(buffer::make(resource_, 2 * count * sizeof(float), memory));
    auto* errors = reinterpret_cast<float*>(memory.data());
    outlier_rule rule;
    for (const kv_side which : kv_sides) {
      float* mine = errors + static_cast<std::size_t>(which) * count;
      std::fill_n(mine, count, 0.0f);
      if (!stores(which) || !side(which).coded) {
        continue;
      }
      PQATTN_TRY(measure_side(head, which, available, count, lesson, mine));
      double sum = 0.0;
      for (std::size_t i = 0; i < count; ++i) {
        sum += static_cast<double>(mine[i]);
      }
      (which == kv_side::keys ? rule.key_error : rule.value_error) =
          static_cast<float>(sum / static_cast<double>(count));
    }
    for (std::size_t i = 0; i < count; ++i) {
      errors[i] = rule.score(errors[i], errors[count + i]);
    }
    // Half of the share on the training rows, as in a head_cache: later rows are served worse.
    const auto kept = static_cast<std::size_t>((1.0 - 0.5 * static_cast<double>(config_.outlier_share)) *
                                               static_cast<double>(count - 1));
    // A comparison of its own keeps the algorithm's code apart from that of units with other instruction sets.
    std::nth_element(errors, errors + kept, errors + count, [](float a, float b) { return a < b; });
    rule.above = outliers_.enabled() ? errors[kept] : rule.above;
    if (!is_finite(rule.key_error) || !is_finite(rule.value_error) || !is_finite(rule.above)) {
      rule = {};  // rows whose errors overflow teach nothing
    }
    rules_[making_ * heads_ + head] = rule;
    return {};
  }
  /// Codes evenly spaced training rows into a page of their own and compares.
  template <class Lesson>
  status measure_side(std::size_t head, kv_side which, std::size_t available, std::size_t count, Lesson& lesson,
                      float* errors) {
    const side_config& config = side(which);
    carver counting;
    static_cast<void>(side_coder(counting, config, true));
    buffer memory;
    PQATTN_TRY(buffer::make(resource_, counting.required(), memory));
    carver placed(memory.data(), memory.size());
    side_coder coder(placed, config, true);
    address codes{};
    PQATTN_TRY(bank_->reserve(page_code_bytes(which), codes));
    const paged_codes<Bank> target(*bank_, book(head, which, making_), {config.shape, codes, nullptr});
    const row_forms form = forms(head, which);
    coder.start(target, metric(head, which));
    float row[max_dim];
    for (std::size_t first = 0; first < count; first += block_tokens) {
      const std::size_t here = (std::min)(block_tokens, count - first);
      for (std::size_t i = 0; i < here; ++i) {
        form.to_coded(lesson.load(head, which, (first + i) * available / count, row), row);
        std::copy_n(row, config.shape.dim, coder.rows() + i * config.shape.dim);
      }
      coder.code(target, 0, here);
      coder.measure(target, 0, here, errors + first);
    }
    bank_->release(codes, page_code_bytes(which));
    return {};
  }
  template <class Lesson>
  status train_side(std::size_t head, kv_side which, std::size_t available, Lesson& lesson, const cache_config& seeded,
                    const executor& parts, const progress_hook& progress) {
    const side_config& config = side(which);
    detail::codebook_lesson<Bank> rows(*bank_, config_, config, resource_);
    PQATTN_TRY(rows.make((std::min<std::size_t>)(available, config_.max_training_tokens), metric(head, which)));
    const row_forms form = forms(head, which);
    float row[max_dim];
    for (std::size_t i = 0; i < rows.count(); ++i) {
      const std::size_t source = i * available / rows.count();  // evenly spaced
      form.to_coded(lesson.load(head, which, source, row), row);
      std::copy_n(row, config.shape.dim, rows.row(i));
      rows.weights()[i] = lesson.weight(head, source);
    }
    if (config.rotated && !trained_) {
      buffer rotation;
      PQATTN_TRY(rows.learn_rotation(rotation));
      PQATTN_TRY(make_transform(which, reinterpret_cast<const float*>(rotation.data()), transforms_[at(head, which)]));
      const row_forms turned = forms(head, which);
      for (std::size_t i = 0; i < rows.count(); ++i) {
        turned.to_coded(0, rows.row(i));  // values: no position matters
      }
    }
    kmeans_params kmeans = config_.kmeans;
    kmeans.seed = mix_seed(seeded.kmeans.seed, static_cast<std::uint64_t>(which) + 2 * epochs_[making_].id);
    if (trained_) {
      kmeans.init = kmeans_init::warm_start;
      PQATTN_TRY(bank_->load_codebook(book(head, which, newest_), rows.centroids()));
    }
    training_report report;
    PQATTN_TRY(rows.train(kmeans, code_rotation(which), parts, progress, report));
    return place_book(head, which, rows.centroids(), report);
  }

  /// Memory for `pages` coded pages of one head and side. What a failure leaves is for release_slab().
  status reserve_slab(kv_side which, std::size_t pages, slab& made) {
    if (page_code_bytes(which) != 0) {
      PQATTN_TRY(bank_->reserve(pages * page_code_bytes(which), made.codes));
    }
    if (page_row_bytes(which) != 0) {
      made.rows = static_cast<std::byte*>(resource_.allocate(resource_.self, pages * page_row_bytes(which)));
      if (made.rows == nullptr) {
        return failure(status_code::out_of_memory, "memory_resource", "refused an allocation",
                       pages * page_row_bytes(which), 0);
      }
    }
    return {};
  }
  void release_slab(kv_side which, std::size_t pages, slab& old) noexcept {
    if (old.codes != address{}) {
      bank_->release(old.codes, pages * page_code_bytes(which));
    }
    if (old.rows != nullptr) {
      resource_.deallocate(resource_.self, old.rows, pages * page_row_bytes(which));
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
      static_cast<void>(grown.push_back(made));
    }
    const std::size_t old_pages = coded_.pages();
    if (outcome) {
      outcome = outliers_.reserve_pages(pages);
    }
    if (outcome) {
      outcome = page_epochs_.reserve(pages);
    }
    if (outcome) {
      outcome = coded_.grow(pages);
    }
    while (outcome && page_epochs_.size() < pages) {
      static_cast<void>(page_epochs_.push_back(0));
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
    const std::size_t rows = page_row_bytes(which);
    if (rows != 0) {
      std::memcpy(to.rows + copy * rows, from.rows + page * rows, rows);
    }
    if (page_code_bytes(which) == 0) {
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

  /// Free exact pages with memory; they are those taken first.
  [[nodiscard]] std::size_t exact_spare() const noexcept { return exact_held_ - exact_.used_pages(); }
  /// A few free pages keep their memory, so that decode steps allocate nothing, and as many as are reserved.
  void trim_exact() noexcept {
    while (exact_spare() > (std::max)(spare_pages, reserved_.exact)) {
      free_exact(exact_.next_free(exact_spare() - 1));
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
      release_transform(kv_sides[i % 2], transforms_[i]);
    }
    for (std::size_t i = 0; i < books_.size(); ++i) {
      release_book(kv_sides[i % 2], books_[i]);
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
    std::swap(transforms_, other.transforms_);
    std::swap(books_, other.books_);
    std::swap(epochs_, other.epochs_);
    std::swap(newest_, other.newest_);
    std::swap(making_, other.making_);
    std::swap(page_epochs_, other.page_epochs_);
    std::swap(exact_memory_, other.exact_memory_);
    std::swap(exact_held_, other.exact_held_);
    std::swap(reserved_, other.reserved_);
    std::swap(coding_, other.coding_);
    std::swap(outliers_, other.outliers_);
    std::swap(rules_, other.rules_);
    std::swap(errors_, other.errors_);
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
  growable<kept_transform> transforms_;  ///< of each head and side, as slabs_
  growable<trained_book> books_;         ///< the same of each epoch
  growable<epoch_record> epochs_;
  std::size_t newest_ = 0;               ///< epoch that new tokens are coded in
  std::size_t making_ = 0;               ///< the same, or the epoch that a call which is not over makes
  growable<std::uint32_t> page_epochs_;  ///< of each coded page
  growable<std::byte*> exact_memory_;    ///< of each exact page, null while it is free and gave its memory back
  std::size_t exact_held_ = 0;           ///< exact pages with memory
  page_reserve reserved_;                ///< for all sequences
  coding_scratch coding_;                ///< of appends
  outlier_cells outliers_;
  growable<outlier_rule> rules_;     ///< of each epoch and head, when coding measures
  growable<running_errors> errors_;  ///< of each head in the newest epoch, when coding measures
  bool trained_ = false;
};

}  // namespace v0
}  // namespace pqattn
