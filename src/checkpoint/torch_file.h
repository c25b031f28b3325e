// Files of torch.save (the zip form that torch writes since 1.6): a pickle and the bytes of its tensors. Opening reads
// the structure and checks that all bytes are there; tensors are read when they are asked for, whole or in part.
#pragma once

#include <memory>
#include <string>

#include "checkpoint/py_value.h"

namespace deepscale {

class TorchFile {
 public:
  /// Throws CheckpointError naming the file when it is missing, cut off, damaged or of another kind.
  static TorchFile open(const std::string& path);
  TorchFile(TorchFile&&) noexcept;
  TorchFile& operator=(TorchFile&&) noexcept;
  ~TorchFile();

  [[nodiscard]] const std::string& path() const;
  [[nodiscard]] const PyValue& root() const;

  /// A tensor of this file, on the CPU.
  [[nodiscard]] at::Tensor read(const PyTensor& tensor) const;
  /// Elements [begin, begin + length) of it, flattened.
  [[nodiscard]] at::Tensor read_range(const PyTensor& tensor, int64_t begin, int64_t length) const;

 private:
  struct State;
  explicit TorchFile(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// What torch.load reads, also with weights_only. Written beside and renamed. Throws IoError.
void write_torch_file(const std::string& path, const PyDocument& document);

}  // namespace deepscale
