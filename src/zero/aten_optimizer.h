// The native optimizers through ATen, for devices that have no kernels of ours (CUDA: torch's own fused Adam, separate
// operations for the others). Same formulas and arguments as native_optimizer.h; they run on any device, so that tests
// compare them with the kernels on the CPU. Nothing here is seen by autograd.
#pragma once

#include "zero/native_optimizer.h"

namespace deepscale::aten {

void update_run(const NativeOptimizerOptions& options, const GroupHyper& hyper, int64_t step, double grad_scale,
                const UpdateRun& run);
at::Tensor lamb_raw_update(const NativeOptimizerOptions& options, const GroupHyper& hyper, double grad_scale,
                           const UpdateRun& run);
void lamb_apply_update(double factor, const at::Tensor& update, const UpdateRun& run);

}  // namespace deepscale::aten
