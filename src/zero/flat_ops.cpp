#include "zero/flat_ops.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/Resize.h>

#include <algorithm>

#include "base/error.h"
#include "comm/communicator.h"
#include "kernels/cpu/spans.h"
#include "zero/parallel.h"

namespace deepscale::flat {
namespace {

bool on_cpu(const at::Tensor& a, const at::Tensor& b) {
  return a.device().is_cpu() && b.device().is_cpu();
}

/// A tensor's memory by element number.
struct Bytes {
  explicit Bytes(const at::Tensor& tensor)
      : base(static_cast<std::byte*>(tensor.data_ptr())),
        item(static_cast<int64_t>(tensor.element_size())),
        type(to_dtype(tensor.scalar_type())) {}
  [[nodiscard]] void* at(int64_t element) const { return base + element * item; }

  std::byte* base;
  int64_t item;
  DType type;
};

}  // namespace

void copy(const at::Tensor& source, const at::Tensor& destination, double scale) {
  if (on_cpu(source, destination) && source.is_contiguous()) {
    const Bytes from{source}, to{destination};
    parallel_ranges(source.numel(), [&](int64_t begin, int64_t end) {
      kernels::convert(from.at(begin), from.type, to.at(begin), to.type, end - begin, static_cast<float>(scale));
    });
    return;
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  // Scaled before it is narrowed: a product may fit where the factor does not.
  const at::Tensor flat = source.reshape({-1});
  destination.view({-1}).copy_(scale == 1.0 ? flat : flat.to(at::kFloat).mul(scale));
}

void add(const at::Tensor& source, const at::Tensor& destination, double scale) {
  if (on_cpu(source, destination) && source.is_contiguous() && scale == 1.0) {
    const Bytes from{source}, to{destination};
    parallel_ranges(source.numel(), [&](int64_t begin, int64_t end) {
      kernels::accumulate(from.at(begin), from.type, to.at(begin), to.type, end - begin);
    });
    return;
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  const at::Tensor flat = destination.view({-1});
  const at::Tensor wide = flat.to(at::kFloat).add_(source.reshape({-1}).to(at::kFloat), scale);
  flat.copy_(wide);
}

at::Tensor slice(const at::Tensor& tensor, int64_t offset, int64_t length) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return tensor.narrow(0, offset, length);
}

void zero_padding(const at::Tensor& buffer, const ShardLayout& layout) {
  int64_t position = 0;
  const auto clear = [&](int64_t end) {
    if (position < end) slice(buffer, position, end - position).zero_();
  };
  for (int i = 0; i < layout.tensors(); ++i) {
    clear(layout.offset(i));
    position = layout.offset(i) + layout.numel(i);
  }
  clear(layout.total_numel());
}

void sum_of_squares_by_aten(const at::Tensor& tensor, const at::Tensor& partials) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const int64_t whole = tensor.numel() / kernels::kNormBlock;
  // In slices, so that the squares in fp32 never take much memory.
  constexpr int64_t kBlocksAtOnce = 8192;
  for (int64_t block = 0; block < whole; block += kBlocksAtOnce) {
    const int64_t count = std::min(kBlocksAtOnce, whole - block);
    const at::Tensor values = tensor.narrow(0, block * kernels::kNormBlock, count * kernels::kNormBlock);
    const at::Tensor squares = values.to(at::kFloat).square().view({count, kernels::kNormBlock});
    partials.narrow(0, block, count).copy_(squares.sum({1}, false, at::kDouble));
  }
  const int64_t rest = tensor.numel() - whole * kernels::kNormBlock;
  if (rest == 0) return;
  const at::Tensor squares = tensor.narrow(0, whole * kernels::kNormBlock, rest).to(at::kFloat).square();
  partials.narrow(0, whole, 1).copy_(squares.sum({0}, true, at::kDouble));
}

void sum_of_squares(const at::Tensor& tensor, const at::Tensor& partials) {
  if (!on_cpu(tensor, partials)) {
    sum_of_squares_by_aten(tensor, partials);
    return;
  }
  const Bytes values{tensor};
  auto* sums = partials.mutable_data_ptr<double>();
  parallel_ranges(tensor.numel(), [&](int64_t begin, int64_t end) {
    kernels::sum_of_squares(values.at(begin), values.type, end - begin, sums + begin / kernels::kNormBlock);
  });
}

at::Tensor plain(const at::Tensor& tensor, at::ScalarType dtype, at::Device device) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const at::Tensor dense = tensor.is_sparse() ? tensor.to_dense() : tensor;
  return dense.detach().to(dense.options().dtype(dtype).device(device)).contiguous();
}

void resize_storage(const at::Tensor& tensor, int64_t bytes) {
  if (tensor.device().is_cpu()) {
    at::native::resize_bytes_cpu(tensor.storage().unsafeGetStorageImpl(), static_cast<size_t>(bytes));
    return;
  }
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("inductor::resize_storage_bytes_", "")
                             .typed<void(const at::Tensor&, c10::SymInt)>();
  op.call(tensor, bytes);
}

}  // namespace deepscale::flat
