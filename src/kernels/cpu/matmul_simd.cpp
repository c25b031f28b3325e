// Products with weights stored row by output, per SIMD target, in fp32 (contracts and numerics in matmul.h).
#include "kernels/cpu/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/matmul_driver-inl.h"

HWY_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace HWY_NAMESPACE {

void matmul(const MatmulCall& call) {
  switch (call.kind) {
    case WeightKind::kFloat32:
      return matmul_of<WeightKind::kFloat32>(call);
    case WeightKind::kBFloat16:
      return matmul_of<WeightKind::kBFloat16>(call);
    case WeightKind::kFloat16:
      return matmul_of<WeightKind::kFloat16>(call);
    case WeightKind::kInt8:
      return matmul_of<WeightKind::kInt8>(call);
    case WeightKind::kInt4:
      return matmul_of<WeightKind::kInt4>(call);
    case WeightKind::kInt8AsBFloat16:
      return matmul_of<WeightKind::kInt8AsBFloat16>(call);
    case WeightKind::kInt4AsBFloat16:
      return matmul_of<WeightKind::kInt4AsBFloat16>(call);
  }
}

void fill_matmul(KernelTable& table) {
  table.matmul = matmul;
}

}  // namespace HWY_NAMESPACE
}  // namespace deepscale::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace deepscale::kernels {

void fill_matmul_kernels(int64_t target, KernelTable& table) {
  DEEPSCALE_FOR_TARGET(fill_matmul, target)(table);
}

}  // namespace deepscale::kernels
#endif  // HWY_ONCE
