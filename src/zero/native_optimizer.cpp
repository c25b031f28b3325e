#include "zero/native_optimizer.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "comm/communicator.h"
#include "zero/aten_optimizer.h"
#include "zero/parallel.h"

namespace deepscale {
namespace {

kernels::OptimizerSpan span_of(const UpdateRun& run, double grad_scale) {
  kernels::OptimizerSpan span;
  span.numel = run.master.numel();
  span.param = run.master.data_ptr();
  span.param_dtype = to_dtype(run.master.scalar_type());
  span.grad = run.grad.const_data_ptr();
  span.grad_dtype = to_dtype(run.grad.scalar_type());
  if (!run.states.empty()) span.state1 = run.states[0].data_ptr();
  if (run.states.size() > 1) span.state2 = run.states[1].data_ptr();
  if (!run.states.empty()) span.state_dtype = to_dtype(run.states[0].scalar_type());
  if (run.copy_out.defined()) {
    span.copy_out = run.copy_out.data_ptr();
    span.copy_dtype = to_dtype(run.copy_out.scalar_type());
  }
  span.grad_scale = static_cast<float>(grad_scale);
  return span;
}

kernels::AdamArgs adam_args(const NativeOptimizerOptions& options, const GroupHyper& hyper, int64_t step) {
  kernels::AdamArgs args;
  args.lr = hyper_value(hyper, "lr", 1e-3);
  const double beta1 = hyper_value(hyper, "beta1", 0.9);
  const double beta2 = hyper_value(hyper, "beta2", 0.999);
  args.beta1 = beta1;
  args.beta2 = beta2;
  args.eps = hyper_value(hyper, "eps", 1e-8);
  args.weight_decay = hyper_value(hyper, "weight_decay", 0.0);
  args.decoupled = options.decoupled;
  if (options.bias_correction) {
    args.bias_correction1 = 1.0 - std::pow(beta1, static_cast<double>(step));
    args.bias_correction2 = 1.0 - std::pow(beta2, static_cast<double>(step));
  }
  return args;
}

kernels::LambArgs lamb_args(const NativeOptimizerOptions& options, const GroupHyper& hyper) {
  kernels::LambArgs args;
  args.lr = hyper_value(hyper, "lr", 1e-3);
  args.beta1 = hyper_value(hyper, "beta1", 0.9);
  args.beta2 = hyper_value(hyper, "beta2", 0.999);
  args.eps = hyper_value(hyper, "eps", 1e-8);
  args.weight_decay = hyper_value(hyper, "weight_decay", 0.0);
  args.eps_inside_sqrt = options.eps_inside_sqrt;
  return args;
}

void update_on_cpu(const NativeOptimizerOptions& options, const GroupHyper& hyper, int64_t step, double grad_scale,
                   const UpdateRun& run) {
  kernels::OptimizerSpan span = span_of(run, grad_scale);
  const auto lr = hyper_value(hyper, "lr", 1e-3);
  const auto decay = hyper_value(hyper, "weight_decay", 0.0);
  switch (options.kind) {
    case OptimizerKind::kAdam:
      over_threads(kernels::adam_step, adam_args(options, hyper, step), span);
      return;
    case OptimizerKind::kLion:
      over_threads(kernels::lion_step,
                   kernels::LionArgs{lr, hyper_value(hyper, "beta1", 0.9), hyper_value(hyper, "beta2", 0.999), decay},
                   span);
      return;
    case OptimizerKind::kAdagrad:
      over_threads(kernels::adagrad_step, kernels::AdagradArgs{lr, hyper_value(hyper, "eps", 1e-10), decay}, span);
      return;
    case OptimizerKind::kSgd: {
      const auto momentum = hyper_value(hyper, "momentum", 0.0);
      if (momentum == 0) span.state1 = nullptr;
      const double dampening = hyper_value(hyper, "dampening", 0.0);
      over_threads(kernels::sgd_step, kernels::SgdArgs{lr, momentum, dampening, decay, options.nesterov, run.fresh},
                   span);
      return;
    }
    default:
      ds_throw<Error>("this optimizer is not elementwise");
  }
}

}  // namespace

double hyper_value(const GroupHyper& hyper, const std::string& name, double fallback) {
  const auto found = hyper.find(name);
  return found == hyper.end() ? fallback : found->second;
}

OptimizerKind NativeOptimizerOptions::kind_from(const std::string& type) {
  const std::map<std::string, OptimizerKind> kinds = {
      {"none", OptimizerKind::kNone}, {"python", OptimizerKind::kExternal}, {"adam", OptimizerKind::kAdam},
      {"lion", OptimizerKind::kLion}, {"adagrad", OptimizerKind::kAdagrad}, {"sgd", OptimizerKind::kSgd},
      {"lamb", OptimizerKind::kLamb}, {"muon", OptimizerKind::kMuon}};
  const auto found = kinds.find(type);
  DS_CHECK_AS(ConfigError, found != kinds.end(),
              "optimizer type \"{}\" is not one of none, python, adam, lion, adagrad, sgd, lamb, muon", type);
  return found->second;
}

std::vector<std::string> NativeOptimizerOptions::state_names() const {
  switch (kind) {
    case OptimizerKind::kAdam:
    case OptimizerKind::kLamb:
      return {"exp_avg", "exp_avg_sq"};
    case OptimizerKind::kMuon:  // matrices use the first as momentum; the rest are updated by Adam
      return {"exp_avg", "exp_avg_sq"};
    case OptimizerKind::kLion:
      return {"exp_avg"};
    case OptimizerKind::kAdagrad:
      return {"exp_avg_sq"};
    case OptimizerKind::kSgd:
      if (!momentum) return {};
      return {"momentum_buffer"};
    default:
      return {};
  }
}

void update_run(const NativeOptimizerOptions& options, const GroupHyper& hyper, int64_t step, double grad_scale,
                const UpdateRun& run) {
  if (run.master.device().is_cpu()) {
    update_on_cpu(options, hyper, step, grad_scale, run);
    return;
  }
  aten::update_run(options, hyper, step, grad_scale, run);
}

at::Tensor lamb_raw_update(const NativeOptimizerOptions& options, const GroupHyper& hyper, double grad_scale,
                           const UpdateRun& run) {
  if (run.master.device().is_cpu()) {
    at::Tensor update = at::empty(run.master.sizes(), run.master.options().dtype(at::kFloat));
    const kernels::OptimizerSpan span = span_of(run, grad_scale);
    parallel_ranges(span.numel, [&, args = lamb_args(options, hyper)](int64_t begin, int64_t end) {
      kernels::lamb_update(args, kernels::part_of(span, begin, end), update.data_ptr<float>() + begin);
    });
    return update;
  }
  return aten::lamb_raw_update(options, hyper, grad_scale, run);
}

void lamb_apply_update(double factor, const at::Tensor& update, const UpdateRun& run) {
  if (run.master.device().is_cpu()) {
    const kernels::OptimizerSpan span = span_of(run, 1.0);
    parallel_ranges(span.numel, [&](int64_t begin, int64_t end) {
      kernels::lamb_apply(static_cast<float>(factor), update.data_ptr<float>() + begin,
                          kernels::part_of(span, begin, end));
    });
    return;
  }
  aten::lamb_apply_update(factor, update, run);
}

at::Tensor muon_direction(const GroupHyper& hyper, double grad_scale, const UpdateRun& run) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const double momentum = hyper_value(hyper, "momentum", 0.95);
  const at::Tensor grad = run.grad.to(at::kFloat).mul(grad_scale);
  const at::Tensor buffer = run.states[0].to(at::kFloat);
  buffer.lerp_(grad, 1.0 - momentum);
  if (!buffer.is_same(run.states[0])) run.states[0].copy_(buffer);
  return grad.lerp(buffer, momentum);
}

at::Tensor orthogonalize(const at::Tensor& matrix) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;
  const bool tall = matrix.size(0) > matrix.size(1);
  at::Tensor x = (tall ? matrix.t() : matrix).to(at::kBFloat16);
  x = x.div(x.norm().add(1e-7));
  for (int step = 0; step < 5; ++step) {
    const at::Tensor gram = x.matmul(x.t());
    const at::Tensor poly = gram.mul(kB).add(gram.matmul(gram), kC);
    x = x.mul(kA).add(poly.matmul(x));
  }
  if (tall) x = x.t();
  const double aspect = static_cast<double>(matrix.size(0)) / static_cast<double>(matrix.size(1));
  return x.to(at::kFloat).mul(std::sqrt(std::max(1.0, aspect)));
}

}  // namespace deepscale
