// Elements of an array in memory as numbers of C++, whatever their dtype. Torch-free.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/dtype.h"
#include "kernels/cpu/spans.h"

namespace deepscale {

/// Calls use(element) where element(i) is the i-th of the array. data need not be aligned. For few elements or rare
/// work: arrays are converted by kernels/cpu/spans.h.
template <typename Use>
void with_elements(const void* data, DType dtype, const Use& use) {
  const auto plain = [&]<typename T>(T) {
    use([data](int64_t i) {
      T value;
      std::memcpy(&value, static_cast<const char*>(data) + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
      return value;
    });
  };
  switch (dtype) {
    case DType::kFloat64:
      return plain(double{});
    case DType::kFloat32:
      return plain(float{});
    case DType::kInt64:
      return plain(int64_t{});
    case DType::kInt32:
      return plain(int32_t{});
    case DType::kInt16:
      return plain(int16_t{});
    case DType::kInt8:
      return plain(int8_t{});
    case DType::kUInt8:
    case DType::kBool:
      return plain(uint8_t{});
    case DType::kBFloat16:
    case DType::kFloat16:
      use([data, dtype](int64_t i) {
        float value = 0.0f;
        kernels::convert(static_cast<const char*>(data) + 2 * i, dtype, &value, DType::kFloat32, 1);
        return value;
      });
  }
}

/// The array in fp32, or in fp64 (exact but for integers beyond 2^53).
void to_fp32(const void* data, DType dtype, int64_t numel, float* destination);
void to_fp64(const void* data, DType dtype, int64_t numel, double* destination);

[[nodiscard]] constexpr bool is_float(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16 || dtype == DType::kFloat64;
}

}  // namespace deepscale
