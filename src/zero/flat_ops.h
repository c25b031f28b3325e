// Elementwise work on flat tensors, on whichever device they are: our kernels on the CPU, ATen elsewhere.
// All tensors are contiguous; nothing here is seen by autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "zero/shard_layout.h"

namespace deepscale::flat {

/// destination = source * scale, converted to destination's dtype. Same element count, any shapes.
void copy(const at::Tensor& source, const at::Tensor& destination, double scale = 1.0);
/// destination += source * scale, added in fp32.
void add(const at::Tensor& source, const at::Tensor& destination, double scale = 1.0);
/// `length` elements of a flat tensor, as a view.
at::Tensor slice(const at::Tensor& tensor, int64_t offset, int64_t length);
/// Zeroes what no tensor of the layout covers: gaps and tail.
void zero_padding(const at::Tensor& buffer, const ShardLayout& layout);
/// Partial sums of squares of a flat tensor, one per kernels::kNormBlock elements, written to `partials` (double,
/// [ceil(numel / kNormBlock)], same device).
void sum_of_squares(const at::Tensor& tensor, const at::Tensor& partials);
/// The same through ATen, on any device: for tests. On the CPU the bits differ from the kernel's.
void sum_of_squares_by_aten(const at::Tensor& tensor, const at::Tensor& partials);
/// Contiguous, dense, on `device`, in `dtype`, detached.
at::Tensor plain(const at::Tensor& tensor, at::ScalarType dtype, at::Device device);
/// Gives a tensor's storage `bytes` bytes, keeping every view of it valid (their memory is gone while bytes are 0).
void resize_storage(const at::Tensor& tensor, int64_t bytes);

}  // namespace deepscale::flat
