// Files of torch.save (the zip form that torch writes since 1.6): a pickle and the bytes of its tensors. Opening reads
// the structure and checks that all bytes are there; tensors' bytes are read when they are asked for, whole or in part.
// Torch-free: torch_file.h gives at::Tensor.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/py_value.h"
#include "checkpoint/zip_file.h"
#include "checkpoint/zip_stream.h"

namespace deepscale {

/// Threads: one at a time.
class TorchArchive {
 public:
  /// Throws CheckpointError naming the file when it is missing, cut off, damaged or of another kind.
  static TorchArchive open(const std::string& path);

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const PyValue& root() const { return document_.root; }

  /// Elements [begin, begin + length) of the storage behind a tensor of this file. destination: length elements.
  /// Throws CheckpointError.
  void read_storage(const PyTensor& tensor, int64_t begin, int64_t length, void* destination);
  /// Elements [begin, begin + length) of a flattened tensor of this file, in its own dtype. Throws CheckpointError.
  void read(const PyTensor& tensor, int64_t begin, int64_t length, void* destination);
  /// Reads all bytes and returns the parts of the archive that do not have their checksum (zip_file.h).
  [[nodiscard]] std::vector<std::string> damaged_parts(const std::function<void(int64_t bytes)>& read = {});

 private:
  TorchArchive(std::string path, ZipFile zip) : path_(std::move(path)), zip_(std::move(zip)) {}
  void find_tensors();

  std::string path_;
  ZipFile zip_;
  PyDocument document_;
  std::map<std::string, int64_t> begins_;  // record name -> first byte in the file
};

/// The folder of a file of torch.save.
inline constexpr char kTorchFolder[] = "archive";
/// The members of such a file: a pickle whose storages "0", "1", ... have these bytes.
[[nodiscard]] std::vector<ZipMember> torch_file_members(std::string pickle,
                                                        std::vector<std::vector<BytePart>> storages);
/// The same for a document, whose tensors' memory they share; it may end.
[[nodiscard]] std::vector<ZipMember> torch_file_members(const PyDocument& document);

/// What torch.load reads, also with weights_only. Written beside and renamed. Throws IoError.
void write_torch_file(const std::string& path, const PyDocument& document);

}  // namespace deepscale
