// Group-wise quantisation of weight matrices to 8 or 4 bits (ZeRO-Inference), over rows of CPU memory.
//
// A matrix [rows, cols] is row-major and dense. Each row is cut into groups of group_size elements, the last one
// shorter where group_size does not divide cols; a group has one scale and, when asymmetric, one minimum. With b bits,
// L = 2^b - 1, and rnd(.) = rounding to params_dtype after every single operation:
//   asymmetric  scale = rnd(rnd(1 / rnd(max - min)) * L)   q = round(clamp(rnd(rnd(x - min) * scale), 0, L))
//               x' = rnd(rnd(q / scale) + min), the quotient at most the largest finite number
//   symmetric   scale = rnd(rnd(1 / max|x|) * (2^(b-1) - 1))
//               s = round(clamp(rnd(x * scale), -(2^(b-1) - 1), 2^(b-1) - 1)), stored as q = s + 2^(b-1)
//               x' = rnd(s / scale); there are no minimums.
// round() is to nearest, halves to even. With params_dtype equal to the weights' dtype the asymmetric formulas have the
// bits of DeepSpeed 0.19.8's CPU path (deepspeed.inference.quantization; checked for fp32 and bf16, for fp16 only
// quantising, because it cannot dequantise fp16 on CPUs); with params_dtype fp32 they are more exact for 16-bit
// weights.
//
// Where those formulas would divide by zero or overflow:
//  - A range (max - min, max|x|) above the largest finite number of params_dtype counts as that number, and so does a
//    scale. So a constant group has the largest scale and q = 0, and gives back its constant exactly (DeepSpeed stores
//    an infinite scale, with the same values); fp32 groups narrower than 1e-36 and fp16 groups narrower than 0.004
//    lose no more than half of 1 / scale (DeepSpeed gives their minimum for every element); the outer parts of a group
//    wider than the largest number saturate (DeepSpeed gives NaN).
//  - A group that holds an infinity or a NaN has scale and minimum NaN and q = 0: all its x' are NaN, as in DeepSpeed.
//  - A minimum beyond params_dtype's range saturates; a minimum of -0 is stored as +0.
//
// Error: |x' - x| <= 1/2 step + the roundings named, step = 1 / scale = range / L, plus |min - rnd(min)| where
// params_dtype is narrower than the weights' dtype.
//
// Values: 8 bits one byte per element; 4 bits two elements per byte, the even column in the high nibble; each row
// starts on a byte (row_bytes), an odd last column leaves the low nibble 0. scales and minimums: [rows, groups_per_row]
// of params_dtype. An element has the same bits on every SIMD target, and however rows are divided over calls.
// Pointers need element alignment only. Buffers must not overlap. Throws: UnsupportedError for a dtype or bit width not
// named here, Error for sizes and missing memory. Threads: pure functions of the rows given; callers may give rows to
// threads as they like, also into the same matrix.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace deepscale::kernels {

struct GroupFormat {
  int bits = 8;             ///< 4 or 8
  int64_t group_size = 64;  ///< elements along a row that share a scale; 1 or more
  bool symmetric = false;
  DType params_dtype = DType::kFloat32;  ///< fp32, bf16 or fp16: of scales and minimums, and of the arithmetic
};

/// A quantised matrix in memory that somebody else owns. Written by quantize_groups, read by the others.
struct QuantizedMatrix {
  int64_t rows = 0, cols = 0;
  GroupFormat format;
  void* values = nullptr;    ///< rows * row_bytes
  void* scales = nullptr;    ///< rows * groups_per_row elements of params_dtype
  void* minimums = nullptr;  ///< likewise; null when symmetric
};

/// Rows [begin, end) of a matrix.
struct RowRange {
  int64_t begin = 0, end = 0;
};

constexpr int64_t groups_per_row(int64_t cols, const GroupFormat& format) {
  return (cols + format.group_size - 1) / format.group_size;
}

/// Bytes of the values of one row.
constexpr int64_t row_bytes(int64_t cols, const GroupFormat& format) {
  return format.bits == 4 ? (cols + 1) / 2 : cols;
}

/// Quantises `rows` of weights [matrix.rows, matrix.cols] (fp32, bf16 or fp16) into the same rows of `matrix`.
void quantize_groups(const void* weights, DType weights_dtype, const QuantizedMatrix& matrix, RowRange rows);

/// x' of `rows`, rounded to weights_dtype (fp32, bf16 or fp16), into the same rows of weights [matrix.rows,
/// matrix.cols]. An infinite scale, which DeepSpeed stores for constant groups, gives the minimum.
void dequantize_groups(const QuantizedMatrix& matrix, void* weights, DType weights_dtype, RowRange rows);

}  // namespace deepscale::kernels
