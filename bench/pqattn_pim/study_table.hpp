// SPDX-License-Identifier: MIT
// A table of a study: Markdown on standard output, CSV in a file.
#pragma once

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace pqattn_pim {

/// A table on standard output as Markdown, and in a file as CSV.
class study_table {
 public:
  study_table(std::string name, std::string title, std::vector<std::string> header)
      : name_(std::move(name)), title_(std::move(title)), header_(std::move(header)) {}
  void add(std::vector<std::string> row, bool listed = true) {
    rows_.push_back(std::move(row));
    listed_.push_back(listed);
  }
  /// False when the file cannot be written.
  [[nodiscard]] bool write(const std::string& folder) const {
    std::printf("\n#### %s\n\n", title_.c_str());
    print(header_);
    print(std::vector<std::string>(header_.size(), "---"));
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      if (listed_[i]) {
        print(rows_[i]);
      }
    }
    if (folder.empty()) {
      return true;
    }
    std::ofstream file(folder + "/" + name_ + ".csv");
    put(file, header_);
    for (const auto& row : rows_) {
      put(file, row);
    }
    return static_cast<bool>(file.flush());
  }

 private:
  std::string name_, title_;
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
  std::vector<bool> listed_;

  static void print(const std::vector<std::string>& cells) {
    for (const auto& cell : cells) {
      std::printf("| %s ", cell.c_str());
    }
    std::printf("|\n");
  }
  static void put(std::ofstream& file, const std::vector<std::string>& cells) {
    for (std::size_t i = 0; i < cells.size(); ++i) {
      file << (i == 0 ? "" : ",") << cells[i];
    }
    file << "\n";
  }
};

inline std::string number(double x, int digits = 2) {
  char text[48];
  std::snprintf(text, sizeof text, "%.*f", digits, x);
  return text;
}
inline std::string tokens_text(std::int64_t n) {
  return n >= 1 << 20 ? std::to_string(n >> 20) + "Mi" : std::to_string(n >> 10) + "Ki";
}

}  // namespace pqattn_pim
