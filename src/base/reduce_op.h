// Reductions that kernels and collectives share: the public enum under the name by which src/ includes it.
#pragma once

#include "deepscale/reduce_op.h"  // IWYU pragma: export
