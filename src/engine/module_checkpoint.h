// What saving and loading share: which parameters stand in which group of the files, and how states are called there.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "engine/module_engine.h"
#include "zero/sharding_plan_files.h"

namespace deepscale {

/// A checkpoint that is whole, but of another model or optimizer: no other one is tried in its place.
class CheckpointMisfit : public CheckpointError {
 public:
  using CheckpointError::CheckpointError;
};

/// Positions of parameters in each group of the files that this configuration writes.
std::vector<std::vector<int>> file_groups(const ConfiguredOptimizer& optimizer, const ModelParams& params,
                                          const ZeroOptions& zero, int ranks);

/// The optimizer group whose settings hold for a parameter.
int optimizer_group_of(const ConfiguredOptimizer& optimizer, int param);

/// The name of a state in files of the Python class that computes the same update.
std::string state_name_in_files(const ConfiguredOptimizer& optimizer, int group, const std::string& state);
/// The names that it may have in files of other configurations, that one first; none when it is not in files.
std::vector<std::string> state_names_to_read(const ConfiguredOptimizer& optimizer, int group, const std::string& state);

/// Throws CheckpointMisfit when a parameter has stored states that are not among the wanted ones: they are of another
/// optimizer, whose exp_avg, for instance, is not this one's.
void check_no_others(const std::string& folder, const std::string& param, const std::vector<std::string>& stored,
                     const std::vector<std::string>& wanted);

}  // namespace deepscale
