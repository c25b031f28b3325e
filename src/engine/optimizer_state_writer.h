// The optimizer's state as checkpoint files keep it, in the layout that the configuration implies: by parameter, flat
// by group, partitioned over ranks, or every parameter in equal pieces.
#pragma once

#include <vector>

#include "checkpoint/py_value.h"
#include "deepscale/config.h"
#include "engine/engine.h"
#include "engine/model_params.h"
#include "engine/optimizer_config.h"

namespace deepscale {

struct TrainingView {
  Engine& engine;
  const ConfiguredOptimizer& optimizer;
  const ModelParams& params;
  const Config& config;
  int rank = 0;
  int ranks = 1;
  std::vector<std::vector<int>> groups;  ///< file_groups()
};

/// States of an engine that shards none, for the model file. Collective.
PyNode* whole_optimizer_state(PyDocument& document, const TrainingView& view);
/// This rank's part, for its optimizer file. Collective.
PyNode* rank_optimizer_state(PyDocument& document, const TrainingView& view);
/// What native checkpoints keep of it beside the tensors: settings, steps, loss scale.
PyNode* native_optimizer_state(PyDocument& document, const TrainingView& view);

}  // namespace deepscale
