// Which SIMD targets of the CPU kernels can run here. The kernels choose by it, and ds_report says it without loading
// them. Pure.
#pragma once

#include <string_view>
#include <vector>

#include "platform/cpu_features.h"

namespace deepscale {

/// Names of the targets (as Highway calls them) for which all features are there that the compiler may use in their
/// code: HWY_TARGET_STR in hwy/ops/set_macros-inl.h. Best first; the last one is "SCALAR", which always runs.
std::vector<std::string_view> usable_simd_targets(const CpuFeatures& features);

}  // namespace deepscale
