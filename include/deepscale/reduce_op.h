// Reductions that kernels and collectives share.
#pragma once

#include <cstdint>
#include <string_view>

namespace deepscale {

/// kAvg is the sum multiplied once by 1/N (in float for 16-bit types) before it is rounded to the output's dtype.
enum class ReduceOp : uint8_t { kSum, kAvg, kMax, kMin, kProduct };

constexpr std::string_view name_of(ReduceOp op) {
  constexpr std::string_view kNames[] = {"sum", "avg", "max", "min", "product"};
  return kNames[static_cast<uint8_t>(op)];
}

}  // namespace deepscale
