// The units of a planned run: which parameters are gathered and reduced together, as ModuleEngine and Engine group them
// (module_engine_build.cpp, engine_setup.cpp and Python's engine_build.py), with sizes alone. Torch-free.
#pragma once

#include <cstdint>
#include <vector>

#include "deepscale/config.h"
#include "engine/model_shapes.h"
#include "zero/shard_layout.h"
#include "zero/sharding_plan_sizes.h"

namespace deepscale {

struct PlannedUnit {
  std::vector<int> params;  ///< positions in ModelShapes
  DType dtype = DType::kFloat32;
  ShardingSizes sizes;
  ShardLayout layout;
  int64_t trained_numel = 0;           ///< of one shard, at most; multiples of ShardLayout::kAlignment
  int64_t largest_autograd_numel = 0;  ///< elements of gradients before they are taken over, for one of its parameters
  int position = 0;                    ///< in the model, of the parameter that orders it

  [[nodiscard]] bool trains() const { return trained_numel > 0; }
  [[nodiscard]] int64_t element_size() const { return size_of(dtype); }
};

struct PlannedUnits {
  std::vector<PlannedUnit> units;  ///< in the engine's order: the last of the model first
  std::vector<int> loose;          ///< frozen parameters of no unit, whole on every rank
};

/// The dtype in which a parameter trains.
DType training_dtype(const ParamShape& param, const Options& options);

PlannedUnits plan_units(const Options& options, const ModelShapes& shapes, int ranks, bool trains);

}  // namespace deepscale
