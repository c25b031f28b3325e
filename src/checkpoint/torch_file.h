// Files of torch.save with their tensors as at::Tensor; the format is torch_archive.h's.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "checkpoint/torch_archive.h"

namespace deepscale {

class TorchFile {
 public:
  /// Throws CheckpointError naming the file when it is missing, cut off, damaged or of another kind.
  static TorchFile open(const std::string& path);

  [[nodiscard]] const std::string& path() const { return archive_->path(); }
  [[nodiscard]] const PyValue& root() const { return archive_->root(); }
  [[nodiscard]] const std::shared_ptr<TorchArchive>& archive() const { return archive_; }

  /// A tensor of this file, on the CPU.
  [[nodiscard]] at::Tensor read(const PyTensor& tensor) const;
  /// Elements [begin, begin + length) of it, flattened.
  [[nodiscard]] at::Tensor read_range(const PyTensor& tensor, int64_t begin, int64_t length) const;

 private:
  explicit TorchFile(TorchArchive archive) : archive_(std::make_shared<TorchArchive>(std::move(archive))) {}
  [[nodiscard]] at::Tensor read_storage(const PyTensor& tensor, int64_t begin, int64_t length) const;

  std::shared_ptr<TorchArchive> archive_;  // reading moves its position in the file
};

/// A node for a tensor to be written; copied to the CPU when it is elsewhere, else it shares the tensor's memory.
/// Throws UnsupportedError for a dtype that torch.save's format lacks.
PyNode* add_tensor(PyDocument& document, const at::Tensor& value);

}  // namespace deepscale
