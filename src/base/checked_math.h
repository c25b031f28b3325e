// Arithmetic on sizes that come from files: what does not fit into 64 bits is noticed instead of wrapping around.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

namespace deepscale {

/// a * b for a, b >= 0; nothing when the result does not fit, or one of them is negative.
constexpr std::optional<int64_t> checked_product(int64_t a, int64_t b) {
  if (a < 0 || b < 0 || (a != 0 && b > std::numeric_limits<int64_t>::max() / a)) return std::nullopt;
  return a * b;
}

/// a + b for a, b >= 0; nothing when the result does not fit, or one of them is negative.
constexpr std::optional<int64_t> checked_sum(int64_t a, int64_t b) {
  if (a < 0 || b < 0 || b > std::numeric_limits<int64_t>::max() - a) return std::nullopt;
  return a + b;
}

}  // namespace deepscale
