// Weights of linear layers and embeddings that are kept in 8 or 4 bits and multiplied as they are (ZeRO-Inference).
//
// A packed weight is one 1-D tensor of the model's dtype whose bytes are [values | scales | minimums], as DeepSpeed
// concatenates them: values of kernels/cpu/quantize.h row by row, zero bytes up to a multiple of the element size, then
// scales and minimums [rows, groups of a row]. As a tensor of the model's dtype it is sharded, put into files, gathered
// and broadcast like any other parameter; nobody may convert it to another dtype.
//
// Arithmetic: kernels/cpu/quantize.h with params_dtype = the model's dtype. Devices: CPU; other devices get what the
// bytes mean from Python's DeQuantizer (python/deepspeed/inference/quantization), whose formula is ATen's.
// Threads: pure functions; they use torch's threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "kernels/cpu/quantize.h"

namespace deepscale {

struct PackedShape {
  int64_t rows = 0, cols = 0;
  int bits = 8;  ///< 4 or 8
  int64_t group_size = 64;
  bool symmetric = false;

  /// Elements of the packed tensor when the model's dtype is `dtype`.
  [[nodiscard]] int64_t numel(at::ScalarType dtype) const;
};

/// Throws ConfigError naming the parameter of quantisation that is out of range.
void check_packed_shape(const PackedShape& shape);

/// weight [rows, cols], fp32, bf16 or fp16, on the CPU. Returns the packed tensor, of the weight's dtype.
at::Tensor pack_weight(const at::Tensor& weight, const PackedShape& shape);

/// The dequantised weight [rows, cols] in the packed tensor's dtype. Throws Error when its size is not the shape's.
at::Tensor unpack_weight(const at::Tensor& packed, const PackedShape& shape);

/// x [..., cols] times the weight, transposed: [..., rows] of x's dtype; bias [rows]. Few rows of x: at the speed at
/// which the packed bytes come from memory. No autograd.
at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& packed, const PackedShape& shape,
                         const std::optional<at::Tensor>& bias);

/// Rows `ids` (any shape, int64 or int32) of the weight: [..., cols] in the packed tensor's dtype. Throws Error naming
/// an id that is out of range.
at::Tensor packed_embedding(const at::Tensor& ids, const at::Tensor& packed, const PackedShape& shape);

/// x [..., k] times weight [n, k], transposed, for few rows of x: weights stream through the caches once, by all of
/// torch's threads. Same dtypes as packed_linear. No autograd. What it cannot do faster it leaves to ATen: other
/// devices and dtypes, more than kFewRows rows.
at::Tensor few_rows_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias);

}  // namespace deepscale
