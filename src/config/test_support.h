// What the configuration tests share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "deepscale/config.h"

namespace deepscale {

/// `{"train_batch_size": 8, <more>}`.
inline std::string with_batch(std::string_view more) {
  return R"({"train_batch_size": 8)" + (more.empty() ? std::string() : ", " + std::string(more)) + "}";
}

inline Config parsed(std::string_view more, int ranks = 1) {
  return Config::parse(with_batch(more), ranks);
}

/// The message of the ConfigError that the text causes; empty when it is accepted.
inline std::string error_of_text(std::string_view text, int ranks = 1, ParseMode mode = ParseMode::kTraining) {
  try {
    Config::parse(text, ranks, mode);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

inline std::string error_of(std::string_view more, int ranks = 1) {
  return error_of_text(with_batch(more), ranks);
}

inline bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

inline bool warned(const Config& config, std::string_view part) {
  return std::any_of(config.warnings().begin(), config.warnings().end(),
                     [&](const std::string& line) { return contains(line, part); });
}

#define EXPECT_CONTAINS(text, part) EXPECT_TRUE(contains(text, part)) << "text: " << (text) << "\nlacks: " << (part)

}  // namespace deepscale
