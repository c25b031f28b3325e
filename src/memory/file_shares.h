// How much of a process's memory goes to parameters that live in files: written once, for whoever takes it and for the
// plans that count it. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "base/checked_math.h"

namespace deepscale {

/// The pool: what keeps a drive busy and is small beside the memory of the process, an eighth of it between 256 MiB and
/// 2 GiB. 0: the memory is not known, and nothing is cut.
constexpr int64_t pool_share_bytes(int64_t total_memory) {
  if (total_memory <= 0) return std::numeric_limits<int64_t>::max();
  return std::clamp(total_memory / 8, int64_t{256} << 20, int64_t{2} << 30);
}

/// Bytes of `count` buffers of `size` elements; the largest number where the product has no place in 64 bits.
constexpr int64_t buffers_bytes(int64_t count, int64_t size, int64_t element_bytes) {
  const auto numel = checked_product(count, size);
  const auto bytes = numel ? checked_product(*numel, element_bytes) : std::nullopt;
  return bytes.value_or(std::numeric_limits<int64_t>::max());
}

/// Elements that stay in memory: what was asked for; where nothing was (wanted is the default), no more than a quarter
/// of what is available. 0 bytes: not known, and nothing is cut.
constexpr int64_t resident_share_numel(int64_t wanted, int64_t usual, int64_t available_memory, int64_t element_bytes) {
  if (wanted != usual || available_memory <= 0) return wanted;
  return std::min(wanted, available_memory / 4 / element_bytes);
}

/// What an engine without an optimizer leaves free when it keeps parameters from files in memory between passes: for
/// activations, caches of keys and values, and whoever else runs here.
constexpr int64_t residency_reserve_bytes(int64_t total_memory) {
  return std::clamp(total_memory / 4, int64_t{128} << 20, int64_t{8} << 30);
}

}  // namespace deepscale
