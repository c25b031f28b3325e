// CPU kernels for the Python optimizer classes. Tensors are contiguous CPU tensors of equal element counts.
#include <cmath>

#include "base/error.h"
#include "bindings/bindings.h"
#include "comm/communicator.h"
#include "kernels/cpu/spans.h"
#include "zero/parallel.h"

namespace deepscale {
namespace {

void check_cpu(const at::Tensor& tensor, const char* name, int64_t numel) {
  DS_CHECK(tensor.device().is_cpu() && tensor.is_contiguous() && tensor.numel() == numel,
           "{} must be a contiguous CPU tensor of {} elements, got {} on {}; move it or make it contiguous", name,
           numel, tensor.numel(), tensor.device().str());
}

kernels::OptimizerSpan span_of(const at::Tensor& param, const at::Tensor& grad, const std::optional<at::Tensor>& state1,
                               const std::optional<at::Tensor>& state2, float grad_scale = 1.0f) {
  kernels::OptimizerSpan span;
  span.numel = param.numel();
  check_cpu(param, "param", span.numel);
  check_cpu(grad, "grad", span.numel);
  span.param = param.data_ptr();
  span.param_dtype = to_dtype(param.scalar_type());
  span.grad = grad.const_data_ptr();
  span.grad_dtype = to_dtype(grad.scalar_type());
  span.grad_scale = grad_scale;
  if (state1) {
    check_cpu(*state1, "state", span.numel);
    span.state1 = state1->data_ptr();
    span.state_dtype = to_dtype(state1->scalar_type());
  }
  if (state2) {
    check_cpu(*state2, "state", span.numel);
    span.state2 = state2->data_ptr();
  }
  return span;
}

void adam(const at::Tensor& param, const at::Tensor& grad, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
          double lr, double beta1, double beta2, double eps, double weight_decay, bool decoupled, bool bias_correction,
          int64_t step, double grad_scale, const std::optional<at::Tensor>& copy_out) {
  kernels::OptimizerSpan span = span_of(param, grad, exp_avg, exp_avg_sq, static_cast<float>(grad_scale));
  if (copy_out) {
    check_cpu(*copy_out, "copy_out", span.numel);
    span.copy_out = copy_out->data_ptr();
    span.copy_dtype = to_dtype(copy_out->scalar_type());
  }
  kernels::AdamArgs args{lr, beta1, beta2, eps, weight_decay, decoupled};
  if (bias_correction) {
    args.bias_correction1 = 1.0 - std::pow(beta1, static_cast<double>(step));
    args.bias_correction2 = 1.0 - std::pow(beta2, static_cast<double>(step));
  }
  over_threads(kernels::adam_step, args, span);
}

double total_squares(const at::Tensor& tensor) {
  std::vector<double> partials((tensor.numel() + kernels::kNormBlock - 1) / kernels::kNormBlock);
  kernels::sum_of_squares(tensor.const_data_ptr(), to_dtype(tensor.scalar_type()), tensor.numel(), partials.data());
  double sum = 0;
  for (const double partial : partials) sum += partial;
  return sum;
}

double lamb(const at::Tensor& param, const at::Tensor& grad, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
            double lr, double beta1, double beta2, double eps, double weight_decay, bool bias_correction, int64_t step,
            bool eps_inside_sqrt, double max_coeff, double min_coeff) {
  const kernels::OptimizerSpan span = span_of(param, grad, exp_avg, exp_avg_sq);
  const kernels::LambArgs args{lr, beta1, beta2, eps, weight_decay, eps_inside_sqrt};
  const at::Tensor update = at::empty({span.numel}, at::kFloat);
  parallel_ranges(span.numel, [&](int64_t begin, int64_t end) {
    kernels::lamb_update(args, kernels::part_of(span, begin, end), update.data_ptr<float>() + begin);
  });
  const double weight = std::sqrt(total_squares(param));
  const double change = std::sqrt(total_squares(update));
  const double trust = weight == 0 || change == 0 ? 1.0 : std::clamp(weight / change, min_coeff, max_coeff);
  double size = lr;
  if (bias_correction) {
    size *= std::sqrt(1.0 - std::pow(beta2, static_cast<double>(step))) /
            (1.0 - std::pow(beta1, static_cast<double>(step)));
  }
  parallel_ranges(span.numel, [&](int64_t begin, int64_t end) {
    kernels::lamb_apply(static_cast<float>(size * trust), update.data_ptr<float>() + begin,
                        kernels::part_of(span, begin, end));
  });
  return trust;
}

void adagrad(const at::Tensor& param, const at::Tensor& grad, const at::Tensor& exp_avg_sq, double lr, double eps,
             double weight_decay) {
  over_threads(kernels::adagrad_step, kernels::AdagradArgs{lr, eps, weight_decay},
               span_of(param, grad, exp_avg_sq, std::nullopt));
}

void lion(const at::Tensor& param, const at::Tensor& grad, const at::Tensor& exp_avg, double lr, double beta1,
          double beta2, double weight_decay) {
  over_threads(kernels::lion_step, kernels::LionArgs{lr, beta1, beta2, weight_decay},
               span_of(param, grad, exp_avg, std::nullopt));
}

void sgd(const at::Tensor& param, const at::Tensor& grad, const std::optional<at::Tensor>& momentum_buffer, double lr,
         double momentum, double dampening, double weight_decay, bool nesterov, bool first_step) {
  over_threads(kernels::sgd_step, kernels::SgdArgs{lr, momentum, dampening, weight_decay, nesterov, first_step},
               span_of(param, grad, momentum_buffer, std::nullopt));
}

}  // namespace

void register_optimizers(py::module_& m) {
  using py::arg;
  const py::call_guard<py::gil_scoped_release> release;
  m.def("adam_step", &adam, arg("param"), arg("grad"), arg("exp_avg"), arg("exp_avg_sq"), arg("lr"), arg("beta1"),
        arg("beta2"), arg("eps"), arg("weight_decay"), arg("decoupled"), arg("bias_correction"), arg("step"),
        arg("grad_scale") = 1.0, arg("copy_out") = py::none(), release);
  m.def("adagrad_step", &adagrad, arg("param"), arg("grad"), arg("exp_avg_sq"), arg("lr"), arg("eps"),
        arg("weight_decay"), release);
  m.def("lion_step", &lion, arg("param"), arg("grad"), arg("exp_avg"), arg("lr"), arg("beta1"), arg("beta2"),
        arg("weight_decay"), release);
  m.def("sgd_step", &sgd, arg("param"), arg("grad"), arg("momentum_buffer"), arg("lr"), arg("momentum"),
        arg("dampening"), arg("weight_decay"), arg("nesterov"), arg("first_step"), release);
  m.def("lamb_step", &lamb, arg("param"), arg("grad"), arg("exp_avg"), arg("exp_avg_sq"), arg("lr"), arg("beta1"),
        arg("beta2"), arg("eps"), arg("weight_decay"), arg("bias_correction"), arg("step"), arg("eps_inside_sqrt"),
        arg("max_coeff"), arg("min_coeff"), release);
  m.def("cpu_target_name", [] { return std::string(kernels::cpu_target_name()); });
}

}  // namespace deepscale
