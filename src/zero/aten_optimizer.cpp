#include "zero/aten_optimizer.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <cmath>

namespace deepscale::aten {
namespace {

void store_tensor(const at::Tensor& wide, const at::Tensor& target) {
  if (!wide.is_same(target)) target.copy_(wide);
}

/// The run with fp32 tensors: its own where they are fp32, else copies.
UpdateRun in_fp32(const UpdateRun& run) {
  UpdateRun wide{run.master.to(at::kFloat), run.grad, {}, run.copy_out, run.fresh};
  for (const auto& state : run.states) wide.states.push_back(state.to(at::kFloat));
  return wide;
}

void store(const UpdateRun& wide, const UpdateRun& run) {
  store_tensor(wide.master, run.master);
  for (size_t k = 0; k < run.states.size(); ++k) store_tensor(wide.states[k], run.states[k]);
  if (run.copy_out.defined()) run.copy_out.copy_(wide.master);
}

at::Tensor scaled_gradient(const UpdateRun& run, double grad_scale) {
  return run.grad.to(at::kFloat).mul(grad_scale);
}

void adam(const NativeOptimizerOptions& options, const GroupHyper& hyper, int64_t step, double grad_scale,
          const UpdateRun& run) {
  const double lr = hyper_value(hyper, "lr", 1e-3);
  const double beta1 = hyper_value(hyper, "beta1", 0.9);
  const double beta2 = hyper_value(hyper, "beta2", 0.999);
  const double eps = hyper_value(hyper, "eps", 1e-8);
  const double decay = hyper_value(hyper, "weight_decay", 0.0);
  at::Tensor grad = scaled_gradient(run, grad_scale);
  if (options.bias_correction) {
    const at::Tensor steps = at::full({}, static_cast<double>(step), run.master.options());
    const auto fused = options.decoupled ? at::_ops::_fused_adamw_::call : at::_ops::_fused_adam_::call;
    fused({run.master}, {grad}, {run.states[0]}, {run.states[1]}, {}, {steps}, lr, beta1, beta2, decay, eps, false,
          false, std::nullopt, std::nullopt);
    return;
  }
  if (!options.decoupled && decay != 0) grad.add_(run.master, decay);
  if (options.decoupled) run.master.mul_(1.0 - lr * decay);
  run.states[0].lerp_(grad, 1.0 - beta1);
  run.states[1].mul_(beta2).addcmul_(grad, grad, 1.0 - beta2);
  run.master.addcdiv_(run.states[0], run.states[1].sqrt().add_(eps), -lr);
}

void lion(const GroupHyper& hyper, double grad_scale, const UpdateRun& run) {
  const double lr = hyper_value(hyper, "lr", 1e-3);
  const double beta1 = hyper_value(hyper, "beta1", 0.9);
  const double beta2 = hyper_value(hyper, "beta2", 0.999);
  const at::Tensor grad = scaled_gradient(run, grad_scale);
  const at::Tensor direction = at::copysign(at::ones_like(grad), run.states[0].mul(beta1).add_(grad, 1.0 - beta1));
  run.master.mul_(1.0 - lr * hyper_value(hyper, "weight_decay", 0.0)).add_(direction, -lr);
  run.states[0].mul_(beta2).add_(grad, 1.0 - beta2);
}

void adagrad(const GroupHyper& hyper, double grad_scale, const UpdateRun& run) {
  at::Tensor grad = scaled_gradient(run, grad_scale);
  grad.add_(run.master, hyper_value(hyper, "weight_decay", 0.0));
  run.states[0].addcmul_(grad, grad);
  run.master.addcdiv_(grad, run.states[0].sqrt().add_(hyper_value(hyper, "eps", 1e-10)),
                      -hyper_value(hyper, "lr", 1e-3));
}

void sgd(const NativeOptimizerOptions& options, const GroupHyper& hyper, double grad_scale, const UpdateRun& run) {
  at::Tensor grad = scaled_gradient(run, grad_scale);
  grad.add_(run.master, hyper_value(hyper, "weight_decay", 0.0));
  const double momentum = hyper_value(hyper, "momentum", 0.0);
  if (momentum != 0) {
    if (run.fresh) {
      run.states[0].copy_(grad);
    } else {
      run.states[0].mul_(momentum).add_(grad, 1.0 - hyper_value(hyper, "dampening", 0.0));
    }
    grad = options.nesterov ? grad.add(run.states[0], momentum) : run.states[0];
  }
  run.master.add_(grad, -hyper_value(hyper, "lr", 1e-3));
}

}  // namespace

void update_run(const NativeOptimizerOptions& options, const GroupHyper& hyper, int64_t step, double grad_scale,
                const UpdateRun& run) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const UpdateRun wide = in_fp32(run);
  switch (options.kind) {
    case OptimizerKind::kAdam:
      adam(options, hyper, step, grad_scale, wide);
      break;
    case OptimizerKind::kLion:
      lion(hyper, grad_scale, wide);
      break;
    case OptimizerKind::kAdagrad:
      adagrad(hyper, grad_scale, wide);
      break;
    default:
      sgd(options, hyper, grad_scale, wide);
  }
  store(wide, run);
}

at::Tensor lamb_raw_update(const NativeOptimizerOptions& options, const GroupHyper& hyper, double grad_scale,
                           const UpdateRun& run) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const double beta1 = hyper_value(hyper, "beta1", 0.9);
  const double beta2 = hyper_value(hyper, "beta2", 0.999);
  const double eps = hyper_value(hyper, "eps", 1e-8);
  const at::Tensor grad = scaled_gradient(run, grad_scale);
  const UpdateRun wide = in_fp32(run);
  wide.states[0].lerp_(grad, 1.0 - beta1);
  wide.states[1].mul_(beta2).addcmul_(grad, grad, 1.0 - beta2);
  const at::Tensor root = options.eps_inside_sqrt ? wide.states[1].add(eps).sqrt_() : wide.states[1].sqrt().add_(eps);
  for (size_t k = 0; k < run.states.size(); ++k) store_tensor(wide.states[k], run.states[k]);
  return wide.states[0].div(root).add_(wide.master, hyper_value(hyper, "weight_decay", 0.0));
}

void lamb_apply_update(double factor, const at::Tensor& update, const UpdateRun& run) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  run.master.add_(update, -factor);
  if (run.copy_out.defined()) run.copy_out.copy_(run.master);
}

}  // namespace deepscale::aten
