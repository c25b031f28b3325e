// From the configuration to the engine's options.
#pragma once

#include <optional>
#include <string_view>

#include "deepscale/config.h"
#include "engine/engine.h"

namespace deepscale {

EngineOptions make_engine_options(const Config& config, const PlanGroups& groups,
                                  const NativeOptimizerOptions& optimizer);

/// Where zero_optimization.offload_param keeps parameters with device "nvme"; nothing with others.
std::optional<FileTierOptions> param_file_options(const Config& config);

/// A tier; when its folder cannot be used, the IoError names zero_optimization.<section>.nvme_path.
FileTier open_tier(const FileTierOptions& options, std::string_view section);

/// torch's name of a configured type.
at::ScalarType scalar_type_of(FloatType type);

}  // namespace deepscale
