// Sizes of tensors by their shapes. For shapes of files, whose products may not fit: checked_math.h.
#pragma once

#include <cstdint>
#include <functional>
#include <numeric>
#include <vector>

namespace deepscale {

/// Elements of a tensor. Requires: the product fits into 64 bits.
inline int64_t numel_of(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

}  // namespace deepscale
