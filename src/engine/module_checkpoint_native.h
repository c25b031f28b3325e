// The native checkpoint format of the C++ API (docs/checkpoints.md): what a rank writes, and reading it at any stage
// and number of ranks. Python's side is python/deepspeed/runtime/checkpoint_native.py: either reads the other's files.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/save_job.h"
#include "checkpoint/torch_file.h"
#include "checkpoint/verified_file.h"
#include "engine/engine.h"
#include "engine/model_params.h"
#include "engine/optimizer_config.h"

namespace deepscale {

inline constexpr char kNativeCommon[] = "common.pt";
[[nodiscard]] std::string native_tensor_file(int rank);
[[nodiscard]] std::string native_rank_file(int rank);

/// The slices of masters, optimizer states, untrained weights and buffers that this rank writes. Their memory is the
/// engine's where that is ordinary memory; states in files are read when the writer gets there. Collective.
std::vector<SavedSlice> native_slices(Engine& engine, const ConfiguredOptimizer& optimizer, const ModelParams& params,
                                      const Communicator& world, at::Device device);

/// State of the CPU's generator of random numbers, as torch.get_rng_state() gives it.
[[nodiscard]] at::Tensor random_state();
void restore_random_state(const at::Tensor& state);
/// As native_rank_file() holds it, in every layout. Reading: nothing when the file has none; throws CheckpointError.
PyNode* describe_random_state(PyDocument& document);
std::optional<at::Tensor> read_random_state(const std::string& folder, int rank);

/// The tensors of a native checkpoint for one engine.
class NativeTensors {
 public:
  /// Throws CheckpointError for folders that are not complete, and damage of what is not a tensor.
  NativeTensors(const std::string& folder, int rank, int ranks);

  [[nodiscard]] const std::shared_ptr<const TorchFile>& common() const { return common_; }
  /// The tensor with a weight's value: its master where there is one. Null when there is none.
  [[nodiscard]] const ManifestTensor* weight(const std::string& name) const;
  [[nodiscard]] const ManifestTensor* find(const std::string& name) const { return tensors_.find(name); }
  /// Names of all weights.
  [[nodiscard]] std::vector<std::string> weights() const;
  /// Names of the optimizer states that are there, by parameter.
  [[nodiscard]] std::map<std::string, std::vector<std::string>> states() const;
  /// Elements [offset, offset + length) of a flattened tensor, in its dtype. Throws CheckpointError for damage.
  [[nodiscard]] at::Tensor read(const ManifestTensor& tensor, int64_t offset, int64_t length) const;
  [[nodiscard]] at::Tensor read_whole(const ManifestTensor& tensor) const;
  /// Several at once, to where they are wanted; threads: that check and copy. Throws as read().
  void read_all(const std::vector<CheckpointTensors::Request>& requests, int threads) const {
    tensors_.read(requests, threads);
  }
  /// Of this rank, when as many ranks saved; else nothing.
  [[nodiscard]] const std::optional<at::Tensor>& random() const { return random_; }

 private:
  CheckpointTensors tensors_;
  std::shared_ptr<const TorchFile> common_;
  std::optional<at::Tensor> random_;
};

}  // namespace deepscale
