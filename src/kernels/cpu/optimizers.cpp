#include "kernels/cpu/optimizers.h"

#include <cmath>

#include "base/error.h"
#include "kernels/cpu/kernel_table.h"

namespace deepscale::kernels {
namespace {

void check_dtype(const char* kernel, const char* parameter, DType dtype) {
  DS_CHECK_AS(UnsupportedError, dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16,
              "{}: {} is {}; expected float32, bfloat16 or float16", kernel, parameter, name_of(dtype));
}

void check_memory(const char* kernel, const char* parameter, const void* memory) {
  DS_CHECK(memory != nullptr, "{}: {} is null; pass memory for numel elements", kernel, parameter);
}

enum class States { kNone, kOne, kTwo };

/// Whether there is anything to do. Throws for a span that the kernel cannot run on.
bool check_span(const char* kernel, const OptimizerSpan& span, States states) {
  DS_CHECK(span.numel >= 0, "{}: numel is {}; expected 0 or more", kernel, span.numel);
  check_dtype(kernel, "param_dtype", span.param_dtype);
  check_dtype(kernel, "grad_dtype", span.grad_dtype);
  check_dtype(kernel, "state_dtype", span.state_dtype);
  check_dtype(kernel, "copy_dtype", span.copy_dtype);
  if (span.numel == 0) return false;
  check_memory(kernel, "param", span.param);
  if (states != States::kNone) check_memory(kernel, "state1", span.state1);
  if (states == States::kTwo) check_memory(kernel, "state2", span.state2);
  DS_CHECK(span.copy_out != span.param || span.copy_dtype == span.param_dtype,
           "{}: copy_out is the parameter's memory but {} is not its dtype {}; pass separate memory", kernel,
           name_of(span.copy_dtype), name_of(span.param_dtype));
  return true;
}

float rounded(double value) {
  return static_cast<float>(value);
}

}  // namespace

void adam_step(const AdamArgs& args, const OptimizerSpan& span) {
  if (!check_span("adam_step", span, States::kTwo)) return;
  check_memory("adam_step", "grad", span.grad);
  const AdamConstants constants{
      rounded(args.beta1),
      rounded(1.0 - args.beta1),
      rounded(args.beta2),
      rounded(1.0 - args.beta2),
      rounded(args.eps),
      rounded(1.0 / std::sqrt(args.bias_correction2)),
      rounded(args.lr / args.bias_correction1),
      rounded(args.decoupled ? args.lr * args.weight_decay : args.weight_decay),
      args.decoupled,
  };
  kernel_table().adam(constants, span);
}

void lion_step(const LionArgs& args, const OptimizerSpan& span) {
  if (!check_span("lion_step", span, States::kOne)) return;
  check_memory("lion_step", "grad", span.grad);
  const LionConstants constants{
      rounded(args.lr),    rounded(args.beta1),       rounded(1.0 - args.beta1),
      rounded(args.beta2), rounded(1.0 - args.beta2), rounded(args.lr * args.weight_decay),
  };
  kernel_table().lion(constants, span);
}

void adagrad_step(const AdagradArgs& args, const OptimizerSpan& span) {
  if (!check_span("adagrad_step", span, States::kOne)) return;
  check_memory("adagrad_step", "grad", span.grad);
  kernel_table().adagrad({rounded(args.lr), rounded(args.eps), rounded(args.weight_decay)}, span);
}

void sgd_step(const SgdArgs& args, const OptimizerSpan& span) {
  if (!check_span("sgd_step", span, args.momentum == 0.0 ? States::kNone : States::kOne)) return;
  check_memory("sgd_step", "grad", span.grad);
  const SgdConstants constants{
      rounded(args.lr),           rounded(args.momentum), rounded(1.0 - args.dampening),
      rounded(args.weight_decay), args.nesterov,          args.first_step,
  };
  kernel_table().sgd(constants, span);
}

void lamb_update(const LambArgs& args, const OptimizerSpan& span, float* update) {
  if (!check_span("lamb_update", span, States::kTwo)) return;
  check_memory("lamb_update", "grad", span.grad);
  check_memory("lamb_update", "update", update);
  const LambConstants constants{
      rounded(args.beta1), rounded(1.0 - args.beta1),  rounded(args.beta2),  rounded(1.0 - args.beta2),
      rounded(args.eps),   rounded(args.weight_decay), args.eps_inside_sqrt,
  };
  kernel_table().lamb_update(constants, span, update);
}

void lamb_apply(float step_times_trust, const float* update, const OptimizerSpan& span) {
  if (!check_span("lamb_apply", span, States::kNone)) return;
  check_memory("lamb_apply", "update", update);
  kernel_table().lamb_apply(step_times_trust, update, span);
}

}  // namespace deepscale::kernels
