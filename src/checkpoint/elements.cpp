#include "checkpoint/elements.h"

namespace deepscale {
namespace {

template <typename T>
void to(const void* data, DType dtype, int64_t numel, T* destination) {
  if (is_float(dtype)) {
    return kernels::convert(data, dtype, destination, sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64, numel);
  }
  with_elements(data, dtype, [&](auto element) {
    for (int64_t i = 0; i < numel; ++i) destination[i] = static_cast<T>(element(i));
  });
}

}  // namespace

void to_fp32(const void* data, DType dtype, int64_t numel, float* destination) {
  to(data, dtype, numel, destination);
}

void to_fp64(const void* data, DType dtype, int64_t numel, double* destination) {
  to(data, dtype, numel, destination);
}

}  // namespace deepscale
