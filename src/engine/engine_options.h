// From the configuration to the engine's options.
#pragma once

#include "deepscale/config.h"
#include "engine/engine.h"

namespace deepscale {

EngineOptions make_engine_options(const Config& config, const PlanGroups& groups,
                                  const NativeOptimizerOptions& optimizer);

/// torch's name of a configured type.
at::ScalarType scalar_type_of(FloatType type);

}  // namespace deepscale
