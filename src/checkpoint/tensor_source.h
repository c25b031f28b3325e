// The tensors of a checkpoint by name, whatever layout, stage and number of ranks wrote it. Torch-free.
//
// Names are those of the native format: "fp32/<parameter>" is what the optimizer updates, "<state>/<parameter>" its
// states, "module/<name>" weights without a master copy and buffers. Files of weights (safetensors) have plain names.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/shape.h"
#include "checkpoint/checkpoint_kind.h"

namespace deepscale {

struct SourceTensor {
  std::string name;
  std::string weight;  ///< its name in the model's state dictionary; empty for a state of the optimizer
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  int64_t pieces = 1;  ///< in so many places of the files

  [[nodiscard]] int64_t numel() const { return numel_of(shape); }
};

/// Elements [offset, offset + numel) of a flattened tensor.
struct SourceRange {
  int tensor = 0;  ///< index into TensorSource::tensors()
  int64_t offset = 0;
  int64_t numel = 0;
  void* destination = nullptr;  ///< in the tensor's own dtype
};

/// Threads: one at a time.
class TensorSource {
 public:
  /// path: as checkpoint_kind(). Throws CheckpointError for a folder without a checkpoint and damage that is seen
  /// without reading the tensors, UnsupportedError for layouts that are not understood (pipelines, tensor parallelism).
  static std::unique_ptr<TensorSource> open(const std::string& path);
  virtual ~TensorSource() = default;

  /// In the natural order of their names: layers.9 before layers.10.
  [[nodiscard]] const std::vector<SourceTensor>& tensors() const { return tensors_; }
  /// Other name of a weight -> the one under which it is stored.
  [[nodiscard]] const std::map<std::string, std::string>& aliases() const { return aliases_; }
  /// What the files hold and this does not list.
  [[nodiscard]] const std::vector<std::string>& notes() const { return notes_; }
  [[nodiscard]] CheckpointKind kind() const { return kind_; }

  /// Throws CheckpointError for damage, IoError.
  virtual void read(const std::vector<SourceRange>& ranges) = 0;

 protected:
  explicit TensorSource(CheckpointKind kind) : kind_(kind) {}
  /// Throws CheckpointError for a shape whose size does not fit into 64 bits.
  void add(std::string name, DType dtype, std::vector<int64_t> shape, int64_t pieces = 1);
  /// After the last add(): puts tensors in order and returns the order that they had.
  std::vector<int> sort_tensors();
  /// Names that are parameters under another name.
  void take_aliases(const class PyValue& model_file);

  CheckpointKind kind_;
  std::vector<SourceTensor> tensors_;
  std::map<std::string, std::string> aliases_;
  std::vector<std::string> notes_;
};

/// Whether `a` stands before `b`: runs of digits count as numbers.
[[nodiscard]] bool natural_less(std::string_view a, std::string_view b);

std::unique_ptr<TensorSource> open_deepspeed_source(const std::string& folder);  // for TensorSource::open()
std::unique_ptr<TensorSource> open_universal_source(const std::string& folder);

}  // namespace deepscale
