// The optimizer section of the configuration for programs without Python: which native optimizer computes the update,
// which parameters form groups, and each group's hyper-parameters. Names and defaults are DeepSpeed's: "Adam" decouples
// weight decay unless adam_w_mode is false. Torch-free.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "deepscale/options.h"
#include "zero/native_optimizer.h"

namespace deepscale {

/// A trainable parameter, as far as grouping needs it.
struct GroupCandidate {
  std::string name;
  int64_t dims = 1;
};

/// What a program asks of one group: which parameters, and settings that differ from the configuration's.
struct GroupRequest {
  std::function<bool(const std::string& name)> takes;
  GroupHyper settings;
};

struct OptimizerGroup {
  std::vector<int> members;  ///< positions among the candidates, ascending
  GroupHyper hyper;
};

struct ConfiguredOptimizer {
  NativeOptimizerOptions native;  ///< kind kNone when the configuration names no optimizer
  std::vector<OptimizerGroup> groups;
  bool has_betas = false;   ///< schedules may cycle the momentum
  std::string state_class;  ///< name of the Python class that keeps the same states
};

/// A parameter belongs to the first request that takes it; those that none takes form one more group after them. Empty
/// groups are left out. Throws ConfigError for unknown parameters and settings, UnsupportedError for optimizers that
/// only exist in Python.
ConfiguredOptimizer configure_optimizer(const Options& options, const std::vector<GroupCandidate>& candidates,
                                        const std::vector<GroupRequest>& requests);

}  // namespace deepscale
