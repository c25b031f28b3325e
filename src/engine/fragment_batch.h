// Masters and optimizer states from a native checkpoint into one rank's engine: many at once, straight to where they
// live where that is ordinary memory in the dtype that was saved.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/module_checkpoint_native.h"

namespace deepscale {

/// Threads: one at a time; other threads may use the engine for what does not touch the same masters and states.
class FragmentBatch {
 public:
  /// threads: that check and copy what is read.
  FragmentBatch(Engine& engine, const NativeTensors& tensors, int threads);
  /// This rank's fragment of a parameter's master ("fp32") or state; there after flush(). Throws CheckpointError for
  /// damage, also of what was added before.
  void add(int param, const std::string& key, const ManifestTensor& stored);
  void flush();

 private:
  struct Waiting {
    int param;
    std::string key;
    at::Tensor values;
  };

  /// Where the engine keeps the values, when they can be read to there; else undefined.
  [[nodiscard]] at::Tensor home(int param, const std::string& key, at::ScalarType dtype) const;

  Engine& engine_;
  const NativeTensors& tensors_;
  int threads_;
  bool in_files_;
  std::vector<CheckpointTensors::Request> requests_;
  std::vector<Waiting> waiting_;
  int64_t waiting_bytes_ = 0;
};

}  // namespace deepscale
