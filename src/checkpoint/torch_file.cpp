#include "checkpoint/torch_file.h"

#include <ATen/Functions.h>

#include "base/error.h"
#include "comm/communicator.h"

namespace deepscale {

TorchFile TorchFile::open(const std::string& path) {
  return TorchFile(TorchArchive::open(path));
}

at::Tensor TorchFile::read_storage(const PyTensor& tensor, int64_t begin, int64_t length) const {
  const at::Tensor values = at::empty({length}, at::TensorOptions(to_scalar_type(tensor.dtype)));
  if (length > 0) archive_->read_storage(tensor, begin, length, values.data_ptr());
  return values;
}

at::Tensor TorchFile::read_range(const PyTensor& tensor, int64_t begin, int64_t length) const {
  DS_CHECK_AS(CheckpointError, begin >= 0 && length >= 0 && begin + length <= tensor.numel(),
              "checkpoint file {}: elements {} to {} of a tensor of {} are asked for", path(), begin, begin + length,
              tensor.numel());
  if (!tensor.is_contiguous()) return read(tensor).reshape({-1}).narrow(0, begin, length);
  return read_storage(tensor, tensor.offset + begin, length);
}

at::Tensor TorchFile::read(const PyTensor& tensor) const {
  if (tensor.is_contiguous()) return read_range(tensor, 0, tensor.numel()).view(tensor.sizes);
  return read_storage(tensor, 0, tensor.storage_numel)
      .as_strided(tensor.sizes, tensor.strides, tensor.offset)
      .contiguous();
}

PyNode* add_tensor(PyDocument& document, const at::Tensor& value) {
  const at::Tensor plain = value.detach().to(at::kCPU).contiguous();
  std::shared_ptr<const void> data;
  if (plain.numel() > 0) data = {plain.const_data_ptr(), [plain](const void*) {}};
  return document.tensor(to_dtype(plain.scalar_type()), plain.sizes().vec(), std::move(data));
}

}  // namespace deepscale
