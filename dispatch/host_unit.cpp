// SPDX-License-Identifier: MIT
// The host bank's programs for one instruction set. Compiled once per set: the flags choose it, PQATTN_ISA_UNIT keeps
// its code apart from every other unit's, and PQATTN_DISPATCH_TABLE names the table. No Eigen and nothing of the
// standard library that makes functions: those would be shared with the rest of the program.
#include "pqattn/bank/dispatch/host_functions.hpp"
#include "pqattn/bank/host/host_bank.hpp"

namespace pqattn {
inline namespace v0 {
namespace detail {
namespace {

using bank_type = host_bank<>;

/// Calls a program that needs no options.
template <auto Program>
struct plain;
template <class Result, class... Arguments, Result (bank_type::*Program)(Arguments...) const noexcept>
struct plain<Program> {
  static Result call(Arguments... arguments) noexcept { return (bank_type().*Program)(arguments...); }
};

/// Calls a program of a bank with the given options.
template <auto Program>
struct with_options;
template <class Result, class... Arguments, Result (bank_type::*Program)(Arguments...) const noexcept>
struct with_options<Program> {
  static Result call(const host_options& options, Arguments... arguments) noexcept {
    return (bank_type(options).*Program)(arguments...);
  }
};

}  // namespace

extern const host_functions PQATTN_DISPATCH_TABLE;
const host_functions PQATTN_DISPATCH_TABLE{
    isa_traits<isa::native>::name,
    &plain<&bank_type::codebook_bytes>::call,
    &plain<&bank_type::code_block_bytes>::call,
    &plain<&bank_type::point_bytes>::call,
    &with_options<&bank_type::table_bytes>::call,
    &plain<&bank_type::store_codebook>::call,
    &plain<&bank_type::load_codebook>::call,
    &plain<&bank_type::store_codes>::call,
    &plain<&bank_type::load_codes>::call,
    &plain<&bank_type::store_points>::call,
    &plain<&bank_type::assign>::call,
    &plain<&bank_type::centroid_sums>::call,
    &plain<&bank_type::encode>::call,
    &plain<&bank_type::decode>::call,
    &with_options<&bank_type::prepare_scores>::call,
    &with_options<&bank_type::score>::call,
    &plain<&bank_type::softmax_part>::call,
    &with_options<&bank_type::accumulate_values>::call,
    &plain<&bank_type::score_rows>::call,
    &plain<&bank_type::accumulate_rows>::call,
};

}  // namespace detail
}  // namespace v0
}  // namespace pqattn
