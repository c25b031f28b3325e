// The engine's hold on one parameter's gradient accumulator: the node must stay alive for its hook to fire.
#pragma once

#include <torch/csrc/autograd/function.h>

#include "comm/torch_versions.h"
#include "engine/engine.h"

namespace deepscale {

struct Engine::Hook {
  AutogradNode accumulator;
  uintptr_t key = 0;
};

}  // namespace deepscale
