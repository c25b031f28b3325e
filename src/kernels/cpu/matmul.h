// Products of activations with weight matrices that are stored row by output: y = x * W^T + bias, for few rows of x
// (decoding) at the speed of memory, and for many without writing dequantised weights to memory.
//
// Shapes: W [n, k]; x [m, k] and y [m, n] with x_stride and y_stride elements from row to row; bias [n]. A call makes
// the columns [rows.begin, rows.end) of y from the same rows of W; callers give row ranges to threads. Dtypes: x, y,
// bias and plain weights each fp32, bf16 or fp16. W is dense. Pointers need element alignment only, y must not overlap
// anything else. m, n and k may be 0 (k = 0: y = bias). Any group_size works; multiples of 32 are fast.
//
// Numerics. A quantised weight is w = fma(q, 1 / scale, min) in fp32 (symmetric: fma(q, 1 / scale, -2^(b-1) / scale),
// which is (q - 2^(b-1)) / scale); scale, min as stored, 1 / scale rounded to fp32; with x in bf16, w is rounded to
// bf16 like the weights of a bf16 model. So w is dequantize_groups' x' without the roundings to params_dtype in
// between: within 2 units in the last place of fp32 of the larger of |q / scale| and |min|, and that last rounding.
// (The sum is not split into a part of q and a part of the minimum, which would cancel.) Plain weights are widened. The
// sum runs in fp32: k is cut into blocks of kMatmulBlock; a block has 16 lanes, each a chain of fused multiply-adds
// over its elements, which are then added in the fixed tree l += l + 8, + 4, + 2, + 1; blocks are added in ascending
// order; bias is added; y is rounded to its dtype once. Of each 32 elements lane l takes two, in this order:
//   fp32 and fp16 weights  l, then 16 + l
//   bf16 and int8          2 l + 1, then 2 l
//   int4                   8 (l % 4) + 4 + e, then 8 (l % 4) + e, with e = 1, 0, 3, 2 for l / 4 = 0, 1, 2, 3
// So an element of y has the same bits on every SIMD target, for every division of rows over calls, for every m, and
// from run to run; with one exception: where x and the weights (as multiplied) are bf16 and the processor has dot
// products of bf16 (AVX-512 BF16), numbers below 2^-126 in x, in the weights and in the sums count as zero. Infinities
// and NaN of x, W (a group that held one is all NaN, quantize.h) and bias propagate as in IEEE sums; a NaN's payload is
// not promised. Error against the exact product of the same x and w: at most (k_block / 16 + 5 + blocks) * 2^-24 * sum
// |x_c w_c| (first order, k_block = min(k, kMatmulBlock)), plus the rounding to y's dtype.
//
// Threads: pure functions; any number of calls at once. Throws: UnsupportedError for other dtypes and bit widths, Error
// for sizes, missing memory and a failed allocation.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cpu/quantize.h"

namespace deepscale::kernels {

/// Elements of k that are summed before they join the total. Part of the numerics above.
inline constexpr int64_t kMatmulBlock = 1024;

/// What goes through a weight matrix.
struct MatmulArgs {
  const void* x = nullptr;
  DType x_dtype = DType::kFloat32;
  int64_t x_stride = 0;  ///< elements from one row of x to the next, k or more
  int64_t m = 0;         ///< rows of x and y
  void* y = nullptr;
  DType y_dtype = DType::kFloat32;
  int64_t y_stride = 0;        ///< elements, n or more
  const void* bias = nullptr;  ///< optional
  DType bias_dtype = DType::kFloat32;
};

/// y = x * dequantised(weights)^T + bias; n, k = weights.rows, weights.cols.
void quantized_matmul(const QuantizedMatrix& weights, const MatmulArgs& args, RowRange rows);

/// y = x * weights^T + bias for plain weights [n, k].
void matmul_transposed(const void* weights, DType weights_dtype, int64_t n, int64_t k, const MatmulArgs& args,
                       RowRange rows);

}  // namespace deepscale::kernels
