// Checks that end in a formatted error: DS_CHECK(cond, "message with {}", value) throws deepscale::Error,
// DS_CHECK_AS(ConfigError, cond, ...) a given class, ds_throw<CommError>("...", ...) throws always.
// Formats are fmt's. The condition's text is not part of the message: messages are for users.
#pragma once

#include <fmt/core.h>

#include <string_view>
#include <utility>

#include "deepscale/error.h"

namespace deepscale {

template <typename ErrorType, typename... Args>
[[noreturn]] void ds_throw(fmt::format_string<Args...> format, Args&&... args) {
  throw ErrorType(fmt::format(format, std::forward<Args>(args)...));
}

/// Closest of `candidates` to `word` by edit distance, for "did you mean"; empty when nothing is near.
template <typename Range>
std::string_view nearest_name(std::string_view word, const Range& candidates);

/// Levenshtein distance, case-insensitive.
int edit_distance(std::string_view a, std::string_view b);

template <typename Range>
std::string_view nearest_name(std::string_view word, const Range& candidates) {
  std::string_view best;
  int best_distance = static_cast<int>(word.size()) / 3 + 2;
  for (const auto& candidate : candidates) {
    const int distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace deepscale

#define DS_CHECK_AS(ErrorType, condition, ...)                    \
  do {                                                            \
    if (!(condition)) [[unlikely]]                                \
      ::deepscale::ds_throw<::deepscale::ErrorType>(__VA_ARGS__); \
  } while (false)

#define DS_CHECK(condition, ...) DS_CHECK_AS(Error, condition, __VA_ARGS__)
