// SPDX-License-Identifier: MIT
// Whole files into memory, and the 1-D integer .npy files that hold token ids.
#pragma once

#include "outcome.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace tiny_lm {

using token_id = std::int32_t;

/// Reads a regular file of at most `limit_bytes`; larger ones are refused before anything is allocated.
outcome read_file(const std::filesystem::path& path, std::size_t limit_bytes, std::vector<std::byte>& bytes);

/// Reads a text file (the same limits).
outcome read_text(const std::filesystem::path& path, std::size_t limit_bytes, std::string& text);

/// Replaces `path` by `text`.
outcome write_text(const std::filesystem::path& path, const std::string& text);

/// Token ids from the bytes of a .npy file: integers, one axis, none negative. `tokens` is unchanged on failure.
outcome parse_token_npy(std::span<const std::byte> bytes, std::vector<token_id>& tokens);

/// `parse_token_npy` of a file.
outcome read_tokens(const std::filesystem::path& path, std::vector<token_id>& tokens);

}  // namespace tiny_lm
