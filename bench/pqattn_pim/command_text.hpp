// SPDX-License-Identifier: MIT
// The command text format of `pqattn-pim trace`: one command a line, see docs/pim.md or command_format_help.
#pragma once

#include <array>
#include <cctype>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <pqattn/bank/pim/commands.hpp>
#include <pqattn/bank/pim/walker.hpp>

namespace pqattn_pim {

namespace pim = pqattn::pim;

inline constexpr const char* command_format_help =
    "Command file: one command a line, case does not matter, # starts a comment. n defaults to 1; set is all\n"
    "(default), even, odd, or S0, S1 ... (the first, second ... bank of every unit); numbers are decimal. A row\n"
    "that a command names and that is not open is opened by itself, after closing the row that is.\n"
    "  ACT bank row            PRE bank                 open or close a row of one bank\n"
    "  ACT_AB row [set]        PRE_AB [set]             the same in every bank of the set\n"
    "  RD bank row col [n]     WR bank row col [n]      n columns of a row, to or from the buffer die\n"
    "  HOST_RD, HOST_WR        as RD and WR, to or from the host\n"
    "  MAC row col [n] [set]   n columns of MACs, in every bank of the set at once\n"
    "  LD, ST row col [n] [set]  n columns into the units' registers, or from them, in every bank of the set\n"
    "  LUT row n [set]         n look-ups in a row, in every bank of the set at once\n"
    "  WRGB [n]                broadcast n columns to the global buffer\n"
    "  MV_OUT [n]  MV_IN [n]   n transfers of results out of the banks, or of operands into their registers\n"
    "  SFM n                   softmax of n elements on the buffer die\n"
    "  WAIT                    the next command depends on the data of the last read\n"
    "  FENCE                   later column commands and moves leave after the earlier ones\n"
    "  SYNC                    everything so far completes first\n"
    "  REF                     one all-bank refresh, besides the periodic ones\n"
    "  MODE                    switch between register and array mode (devices with modes also do it by themselves)\n"
    "  CHANNEL i               the following commands go to command channel i (0 at the start)\n"
    "  PHASE name              the following commands count as broadcast, table_build, score, softmax, value, merge,\n"
    "                          encode, train or transfer (at the start)\n";

/// A line that could not be served.
struct text_error {
  std::int64_t line = 0;
  std::string message;
};

namespace detail {

/// The words of one line, upper case, without its comment; at most 8 are kept, and one more is remembered.
struct words {
  std::array<std::string, 8> word;
  std::size_t count = 0;
  bool too_many = false;

  explicit words(std::string_view line) {
    line = line.substr(0, line.find('#'));
    std::size_t at = 0;
    while (at < line.size()) {
      while (at < line.size() && std::isspace(static_cast<unsigned char>(line[at])) != 0) {
        ++at;
      }
      const std::size_t begin = at;
      while (at < line.size() && std::isspace(static_cast<unsigned char>(line[at])) == 0) {
        ++at;
      }
      if (at == begin) {
        return;
      }
      if (count == word.size()) {
        too_many = true;
        return;
      }
      for (const char c : line.substr(begin, at - begin)) {
        word[count] += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
      }
      ++count;
    }
  }
};

[[nodiscard]] inline std::optional<std::int64_t> whole_number(const std::string& word) {
  if (word.empty() || word.size() > 12) {
    return std::nullopt;
  }
  std::int64_t value = 0;
  for (const char c : word) {
    if (c < '0' || c > '9') {
      return std::nullopt;
    }
    value = value * 10 + (c - '0');
  }
  return value;
}

/// The set a word names, put into `c`: ALL, EVEN, ODD, or S0, S1 ... for the first, second ... bank of every unit.
[[nodiscard]] inline bool read_set(const std::string& word, pim::command& c) {
  if (word == "ALL" || word == "EVEN" || word == "ODD") {
    c.set = word == "ALL" ? pim::bank_set::all : word == "EVEN" ? pim::bank_set::even : pim::bank_set::odd;
    return true;
  }
  const auto share = word.size() > 1 && word.size() < 6 && word[0] == 'S' ? whole_number(word.substr(1)) : std::nullopt;
  if (share) {
    c.set = pim::bank_set::share;
    c.bank = static_cast<std::int32_t>(*share);
  }
  return share.has_value();
}

/// What follows the name of a command: b bank, r row, c column, n a count that must be there, N one that may, s a set
/// that may.
struct command_form {
  pim::opcode op;
  const char* arguments;
};
inline constexpr command_form command_forms[] = {
    {pim::opcode::act, "br"},       {pim::opcode::act_ab, "rs"},    {pim::opcode::pre, "b"},
    {pim::opcode::pre_ab, "s"},     {pim::opcode::rd, "brcN"},      {pim::opcode::wr, "brcN"},
    {pim::opcode::mac_ab, "rcNs"},  {pim::opcode::lut, "rns"},      {pim::opcode::wrgb, "N"},
    {pim::opcode::mv_out, "N"},     {pim::opcode::mv_in, "N"},      {pim::opcode::sfm, "n"},
    {pim::opcode::host_rd, "brcN"}, {pim::opcode::host_wr, "brcN"}, {pim::opcode::ref, ""},
    {pim::opcode::mode, ""},        {pim::opcode::sync, ""},        {pim::opcode::wait, ""},
    {pim::opcode::fence, ""},       {pim::opcode::ld_ab, "rcNs"},   {pim::opcode::st_ab, "rcNs"},
};
static_assert(std::size(command_forms) == pim::opcode_count);

/// Fills a command from the words behind its name. Returns what is wrong, or an empty string.
[[nodiscard]] inline std::string read_arguments(const words& line, const char* form, pim::command& c) {
  std::size_t at = 1;
  for (const char* kind = form; *kind != '\0'; ++kind) {
    const bool optional = *kind == 'N' || *kind == 's';
    if (at >= line.count) {
      if (optional) {
        continue;
      }
      return std::string("wants ") + (*kind == 'b'   ? "a bank"
                                      : *kind == 'r' ? "a row"
                                      : *kind == 'c' ? "a column"
                                                     : "a count");
    }
    if (*kind == 's') {
      if (!read_set(line.word[at], c)) {
        return "has \"" + line.word[at] + "\" where all, even, odd or S0, S1 ... is due";
      }
      ++at;
      continue;
    }
    const auto value = whole_number(line.word[at]);
    if (!value) {
      if (pim::command unused; *kind == 'N' && read_set(line.word[at], unused)) {
        continue;  // the count was left out
      }
      return "has \"" + line.word[at] + "\" where a number is due";
    }
    if (*kind != 'n' && *kind != 'N' && *value > 2147483647) {
      return "has a number that is too large";
    }
    switch (*kind) {
      case 'b': c.bank = static_cast<std::int32_t>(*value); break;
      case 'r': c.row = static_cast<std::int32_t>(*value); break;
      case 'c': c.column = static_cast<std::int32_t>(*value); break;
      default: c.count = *value; break;
    }
    ++at;
  }
  return at < line.count || line.too_many ? "has more words than it takes" : "";
}

}  // namespace detail

/// Reads command lines and issues them.
class command_reader {
 public:
  explicit command_reader(pim::walker& walker) : walker_(walker) {}

  /// Serves one line. Returns what is wrong with it, or an empty string.
  [[nodiscard]] std::string serve(std::string_view text) {
    const detail::words line(text);
    if (line.count == 0) {
      return {};
    }
    const std::string& name = line.word[0];
    if (name == "CHANNEL") {
      const auto index = line.count == 2 ? detail::whole_number(line.word[1]) : std::nullopt;
      if (!index || *index >= walker_.channel_count()) {
        return "CHANNEL wants a number below " + std::to_string(walker_.channel_count());
      }
      channel_ = static_cast<std::int32_t>(*index);
      return {};
    }
    if (name == "PHASE") {
      return line.count == 2 ? set_phase(line.word[1]) : "PHASE wants a name";
    }
    for (const detail::command_form& form : detail::command_forms) {
      if (name == pim::name_of(form.op)) {
        pim::command c{.op = form.op, .channel = channel_};
        if (std::string wrong = detail::read_arguments(line, form.arguments, c); !wrong.empty()) {
          return name + " " + wrong;
        }
        return issue(c);
      }
    }
    return "\"" + name.substr(0, 32) + "\" is not a command";
  }

  /// Serves every line of a text; stops at the first that is wrong.
  [[nodiscard]] std::optional<text_error> serve_all(std::string_view text) {
    std::int64_t number = 0;
    while (!text.empty()) {
      const std::size_t end = text.find('\n');
      ++number;
      if (std::string wrong = serve(text.substr(0, end)); !wrong.empty()) {
        return text_error{number, std::move(wrong)};
      }
      text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
    }
    return std::nullopt;
  }

 private:
  pim::walker& walker_;
  std::int32_t channel_ = 0;

  [[nodiscard]] std::string set_phase(const std::string& word) {
    std::string lower;
    for (const char c : word) {
      lower += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
    for (int p = 0; p < pim::phase_count; ++p) {
      if (lower == pim::name_of(static_cast<pim::phase>(p))) {
        walker_.set_phase(static_cast<pim::phase>(p));
        return {};
      }
    }
    return "PHASE wants one of broadcast, table_build, score, softmax, value, merge, encode, train, transfer";
  }
  [[nodiscard]] std::string issue(const pim::command& c) {
    const pqattn::status s = walker_.issue(c);
    if (s) {
      return {};
    }
    char sentence[256];
    s.format(sentence, sizeof sentence);
    return std::string(pim::name_of(c.op)) + ": " + sentence;
  }
};

}  // namespace pqattn_pim
