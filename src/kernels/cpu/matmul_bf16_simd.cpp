// The products of bf16 by AVX-512 BF16 (matmul_dot-inl.h): the AVX3 target with one more feature, which dispatch.cpp
// asks for. Elsewhere there are none.
#include "kernels/cpu/kernel_table.h"

#define DEEPSCALE_MATMUL_BF16_DOT
// The one target, so that its headers are included in the first of Highway's passes.
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX2 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_bf16_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX3
#include "kernels/cpu/matmul_driver-inl.h"

DEEPSCALE_MATMUL_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace DEEPSCALE_MATMUL_NAMESPACE {

void matmul_bfloat16(const MatmulCall& call) {
  switch (call.kind) {
    case WeightKind::kInt8AsBFloat16:
      return matmul_of<WeightKind::kInt8AsBFloat16>(call);
    case WeightKind::kInt4AsBFloat16:
      return matmul_of<WeightKind::kInt4AsBFloat16>(call);
    default:
      return matmul_of<WeightKind::kBFloat16>(call);
  }
}

}  // namespace DEEPSCALE_MATMUL_NAMESPACE
}  // namespace deepscale::kernels
DEEPSCALE_MATMUL_AFTER_NAMESPACE();

#endif  // HWY_AVX3

#if HWY_ONCE
namespace deepscale::kernels {

void fill_matmul_bfloat16_kernels(KernelTable& table) {
#if (HWY_TARGETS & HWY_AVX3) != 0
  table.matmul_bfloat16 = N_AVX3_BF16::matmul_bfloat16;
#else
  (void)table;
#endif
}

}  // namespace deepscale::kernels
#endif  // HWY_ONCE
