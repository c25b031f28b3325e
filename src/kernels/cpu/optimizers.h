// Optimizer steps over flat spans of CPU memory, one call per run of elements that share hyper-parameters.
//
// Contract of every kernel here:
//  - An element gets the same bits wherever it stands in a span, whatever the span's length and alignment, and
//    whichever SIMD target runs (AVX2+FMA, AVX-512, scalar): all arithmetic is fp32 with the same fused operations in
//    the same order, correctly rounded square root and division, tails included. (A NaN is a NaN everywhere; which
//    payload it carries is not promised.)
//  - Hyper-parameters are doubles; what the loop needs of them (1-b1, lr*wd, lr/bc1, 1/sqrt(bc2)) is computed in double
//    and rounded to fp32 once. (1-b2 in fp32 would be off by 1e-5.) A product that feeds a sum is fused into it.
//  - g is read in grad_dtype, widened to fp32 and multiplied once by grad_scale (unscale, clip and average in one).
//  - param is the master copy (fp32 unless param_dtype says otherwise); when copy_out is set the new value, rounded to
//    nearest even, is also stored there in copy_dtype. param and copy_out may be the same memory only if both dtypes
//    agree.
//  - Pointers need element alignment only; 64-byte aligned spans run fastest. Spans must not overlap.
// Throws: UnsupportedError for a dtype other than float32, bfloat16 and float16; Error for memory that is missing.
// Threads: pure functions; callers may split a span over threads at any element boundary.
// Formulas: docs cited at each struct; t is the 1-based step count of the parameter.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/dtype.h"

namespace deepscale::kernels {

/// One run of elements and its memory. Unused states are null.
struct OptimizerSpan {
  int64_t numel = 0;
  void* param = nullptr;
  DType param_dtype = DType::kFloat32;
  const void* grad = nullptr;
  DType grad_dtype = DType::kFloat32;
  void* state1 = nullptr;  ///< first moment / momentum / sum of squares (Adagrad)
  void* state2 = nullptr;  ///< second moment
  DType state_dtype = DType::kFloat32;
  void* copy_out = nullptr;
  DType copy_dtype = DType::kBFloat16;
  float grad_scale = 1.0f;
};

/// Elements [begin, end) of a span.
inline OptimizerSpan part_of(const OptimizerSpan& span, int64_t begin, int64_t end) {
  const auto moved = [begin](auto* base, DType dtype) -> decltype(base) {
    if (base == nullptr) return nullptr;
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(base)>>, const char, char>;
    return static_cast<Byte*>(base) + begin * size_of(dtype);
  };
  OptimizerSpan part = span;
  part.numel = end - begin;
  part.param = moved(span.param, span.param_dtype);
  part.grad = moved(span.grad, span.grad_dtype);
  part.state1 = moved(span.state1, span.state_dtype);
  part.state2 = moved(span.state2, span.state_dtype);
  part.copy_out = moved(span.copy_out, span.copy_dtype);
  return part;
}

/// Kingma & Ba 2015 (arXiv 1412.6980), decoupled decay of Loshchilov & Hutter 2019 (arXiv 1711.05101):
///   m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  denom = sqrt(v) * inv_sqrt_bc2 + eps
///   decoupled: p = p - lr*wd*p first; otherwise g = g + wd*p first;  p = p - (lr/bc1) * m / denom
/// bias_correction1 = 1-b1^t and bias_correction2 = 1-b2^t, or 1 when correction is off.
struct AdamArgs {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.0;
  bool decoupled = true;
  double bias_correction1 = 1.0, bias_correction2 = 1.0;
};
void adam_step(const AdamArgs& args, const OptimizerSpan& span);

/// Chen et al. 2023 (arXiv 2302.06675): c = b1 m + (1-b1) g; p = p (1 - lr wd) - lr sign(c); m = b2 m + (1-b2) g.
/// sign is copysign(1, c), so c = 0 moves by lr as in DeepSpeed's CPU Lion.
struct LionArgs {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, weight_decay = 0.0;
};
void lion_step(const LionArgs& args, const OptimizerSpan& span);

/// Duchi et al. 2011: g = g + wd p; v = v + g^2; p = p - lr g / (sqrt(v) + eps). state1 is v.
struct AdagradArgs {
  double lr = 1e-2, eps = 1e-10, weight_decay = 0.0;
};
void adagrad_step(const AdagradArgs& args, const OptimizerSpan& span);

/// torch.optim.SGD: g = g + wd p; buf = g on the first step, else momentum buf + (1-dampening) g;
/// g = g + momentum buf (nesterov) or buf; p = p - lr g. state1 is buf (null when momentum is 0).
struct SgdArgs {
  double lr = 1e-3, momentum = 0.0, dampening = 0.0, weight_decay = 0.0;
  bool nesterov = false;
  bool first_step = false;
};
void sgd_step(const SgdArgs& args, const OptimizerSpan& span);

/// LAMB, first half (You et al. 2020, arXiv 1904.00962): moments as Adam without correction in the update;
/// update = m / (sqrt(v)+eps) (eps inside the root when eps_inside_sqrt) + wd p, written to `update` (fp32, numel).
/// param is only read and copy_out is left alone: lamb_apply writes both.
struct LambArgs {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.0;
  bool eps_inside_sqrt = false;
};
void lamb_update(const LambArgs& args, const OptimizerSpan& span, float* update);
/// LAMB, second half: p = p - step_times_trust * update.
void lamb_apply(float step_times_trust, const float* update, const OptimizerSpan& span);

}  // namespace deepscale::kernels
