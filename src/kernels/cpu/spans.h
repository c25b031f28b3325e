// Flat-span kernels that are not optimizers: reductions over rank buffers, sums of squares, casts, accumulation,
// copies. The contract of optimizers.h holds here too: bits depend on the element alone, never on position, length,
// alignment or SIMD target; 16-bit floats are widened to fp32, summed there and rounded to nearest even once. Threads:
// pure functions.
#pragma once

#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "base/reduce_op.h"

namespace deepscale::kernels {

/// Elements per partial sum of squares. Shard boundaries fall on multiples of it, counted from each tensor's start
/// (zero/shard_layout.h), so the partials of a tensor are the same whoever computes them.
inline constexpr int64_t kNormBlock = 1024;

/// outputs[k][i] = op over r of inputs[r][i], r ascending: ((in0 op in1) op in2)...; every output gets the value.
/// All buffers hold `numel` elements of `dtype`. An output may be identical to an input (same address), and must not
/// overlap one otherwise. Outputs of 4 MiB and more that are no inputs and stand on 64-byte boundaries are written past
/// the caches. kMax and kMin keep a NaN from any rank, and the earlier of +0 and -0. Integers wrap around; their kAvg
/// divides the 64-bit sum and truncates toward zero. Bool: sum is "any", product is "all", kAvg throws
/// UnsupportedError. Throws Error when there is no input or memory is missing.
void reduce_buffers(std::span<const void* const> inputs, std::span<void* const> outputs, int64_t numel, DType dtype,
                    ReduceOp op);

/// partials[b] = sum of x^2 over block b (kNormBlock elements, the last one shorter), accumulated in double over a
/// fixed set of 16 lanes (element i of a block adds to lane i % 16) that are then added in a fixed tree. `partials` has
/// ceil(numel / kNormBlock) entries. x is read in `dtype` (a float type). Inf and NaN propagate.
void sum_of_squares(const void* values, DType dtype, int64_t numel, double* partials);

/// destination[i] = source[i] * scale, converted. Float types only (UnsupportedError otherwise). Computed in fp32, or
/// in double when a side is fp64 (then rounded to fp32 before 16 bits, as torch does). Equal dtypes with scale 1 copy
/// the bits. source and destination may be the same memory only if the dtypes agree.
void convert(const void* source, DType source_dtype, void* destination, DType destination_dtype, int64_t numel,
             float scale = 1.0f);

/// destination[i] += source[i] in fp32 (in double when a side is fp64), rounded to destination_dtype. Float types only.
void accumulate(const void* source, DType source_dtype, void* destination, DType destination_dtype, int64_t numel);

/// memcpy; from 4 MiB on with stores that bypass the cache, which is faster from there. No overlap. When it returns,
/// its stores are ordered before later ones (a flag that tells another rank), as with memcpy; so it is for
/// reduce_buffers.
void copy_bytes(const void* source, void* destination, int64_t bytes);

/// Name of the SIMD target in use: "AVX3_ZEN4", "AVX3", "AVX2", "SCALAR", ... DEEPSCALE_CPU_TARGET forces a lower one.
const char* cpu_target_name();

}  // namespace deepscale::kernels
