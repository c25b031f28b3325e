// Optimizer steps per SIMD target: one loop over flat spans, one small rule per optimizer. The rules state the exact
// sequence of rounded and fused operations that optimizers.h promises.
#include "kernels/cpu/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/optimizers_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace HWY_NAMESPACE {

using V = hn::Vec<FloatTag>;

HWY_INLINE V broadcast(float value) {
  return hn::Set(FloatTag(), value);
}

/// One vector of each stream; a rule updates it in place.
struct Lanes {
  V param, grad, state1, state2;
};

/// Where the new parameter goes when it is not the place it came from (LAMB's update).
struct Streams {
  OptimizerSpan span;
  void* result;
};

template <bool kDecoupled>
struct AdamRule {
  static constexpr bool kUsesState1 = true, kUsesState2 = true, kWritesParam = true;
  V beta1, one_minus_beta1, beta2, one_minus_beta2, eps, inv_sqrt_bc2, step_size, decay;

  explicit AdamRule(const AdamConstants& c)
      : beta1(broadcast(c.beta1)),
        one_minus_beta1(broadcast(c.one_minus_beta1)),
        beta2(broadcast(c.beta2)),
        one_minus_beta2(broadcast(c.one_minus_beta2)),
        eps(broadcast(c.eps)),
        inv_sqrt_bc2(broadcast(c.inv_sqrt_bc2)),
        step_size(broadcast(c.step_size)),
        decay(broadcast(c.decay)) {}

  HWY_INLINE void step(Lanes& x) const {
    V param = x.param;
    V grad = x.grad;
    if constexpr (kDecoupled) {
      param = fused_negative(decay, param, param);
    } else {
      grad = fused(decay, param, grad);
    }
    x.state1 = fused(one_minus_beta1, grad, hn::Mul(beta1, x.state1));
    x.state2 = fused(hn::Mul(one_minus_beta2, grad), grad, hn::Mul(beta2, x.state2));
    const V denominator = fused(hn::Sqrt(x.state2), inv_sqrt_bc2, eps);
    x.param = fused_negative(step_size, hn::Div(x.state1, denominator), param);
  }
};

struct LionRule {
  static constexpr bool kUsesState1 = true, kUsesState2 = false, kWritesParam = true;
  V lr, beta1, one_minus_beta1, beta2, one_minus_beta2, decay;

  explicit LionRule(const LionConstants& c)
      : lr(broadcast(c.lr)),
        beta1(broadcast(c.beta1)),
        one_minus_beta1(broadcast(c.one_minus_beta1)),
        beta2(broadcast(c.beta2)),
        one_minus_beta2(broadcast(c.one_minus_beta2)),
        decay(broadcast(c.decay)) {}

  HWY_INLINE void step(Lanes& x) const {
    const V direction = fused(one_minus_beta1, x.grad, hn::Mul(beta1, x.state1));
    const V param = fused_negative(decay, x.param, x.param);
    x.param = hn::Sub(param, hn::CopySign(lr, direction));
    x.state1 = fused(one_minus_beta2, x.grad, hn::Mul(beta2, x.state1));
  }
};

struct AdagradRule {
  static constexpr bool kUsesState1 = true, kUsesState2 = false, kWritesParam = true;
  V lr, eps, weight_decay;

  explicit AdagradRule(const AdagradConstants& c)
      : lr(broadcast(c.lr)), eps(broadcast(c.eps)), weight_decay(broadcast(c.weight_decay)) {}

  HWY_INLINE void step(Lanes& x) const {
    const V grad = fused(weight_decay, x.param, x.grad);
    x.state1 = fused(grad, grad, x.state1);
    const V ratio = hn::Div(grad, hn::Add(hn::Sqrt(x.state1), eps));
    x.param = fused_negative(lr, ratio, x.param);
  }
};

enum class Momentum { kNone, kPlain, kNesterov };

template <Momentum kMomentum, bool kFirstStep>
struct SgdRule {
  static constexpr bool kUsesState1 = kMomentum != Momentum::kNone, kUsesState2 = false, kWritesParam = true;
  V lr, momentum, one_minus_dampening, weight_decay;

  explicit SgdRule(const SgdConstants& c)
      : lr(broadcast(c.lr)),
        momentum(broadcast(c.momentum)),
        one_minus_dampening(broadcast(c.one_minus_dampening)),
        weight_decay(broadcast(c.weight_decay)) {}

  HWY_INLINE void step(Lanes& x) const {
    V grad = fused(weight_decay, x.param, x.grad);
    if constexpr (kUsesState1) {
      x.state1 = kFirstStep ? grad : fused(one_minus_dampening, grad, hn::Mul(momentum, x.state1));
      grad = kMomentum == Momentum::kNesterov ? fused(momentum, x.state1, grad) : x.state1;
    }
    x.param = fused_negative(lr, grad, x.param);
  }
};

template <bool kEpsInsideSqrt>
struct LambRule {
  static constexpr bool kUsesState1 = true, kUsesState2 = true, kWritesParam = false;
  V beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay;

  explicit LambRule(const LambConstants& c)
      : beta1(broadcast(c.beta1)),
        one_minus_beta1(broadcast(c.one_minus_beta1)),
        beta2(broadcast(c.beta2)),
        one_minus_beta2(broadcast(c.one_minus_beta2)),
        eps(broadcast(c.eps)),
        weight_decay(broadcast(c.weight_decay)) {}

  HWY_INLINE void step(Lanes& x) const {
    x.state1 = fused(one_minus_beta1, x.grad, hn::Mul(beta1, x.state1));
    x.state2 = fused(hn::Mul(one_minus_beta2, x.grad), x.grad, hn::Mul(beta2, x.state2));
    const V denominator = kEpsInsideSqrt ? hn::Sqrt(hn::Add(x.state2, eps)) : hn::Add(hn::Sqrt(x.state2), eps);
    x.param = fused(weight_decay, x.param, hn::Div(x.state1, denominator));
  }
};

/// Formats of the streams, known at compile time for the common combinations: every switch over a dtype then vanishes.
template <DType kGrad, DType kCopy, bool kHasCopy>
struct FixedFormats {
  static constexpr DType param = DType::kFloat32, grad = kGrad, state = DType::kFloat32, copy = kCopy;
  static constexpr bool has_copy = kHasCopy;
};

struct AnyFormats {
  DType param, grad, state, copy;
  bool has_copy;
};

template <class Rule, class Formats>
HWY_INLINE void step_vector(const Rule& rule, const Streams& s, Formats f, V grad_scale, int64_t i) {
  const FloatTag d;
  const OptimizerSpan& span = s.span;
  Lanes x;
  x.param = load(d, span.param, f.param, i);
  x.grad = hn::Mul(load(d, span.grad, f.grad, i), grad_scale);
  if constexpr (Rule::kUsesState1) x.state1 = load(d, span.state1, f.state, i);
  if constexpr (Rule::kUsesState2) x.state2 = load(d, span.state2, f.state, i);
  rule.step(x);
  if constexpr (Rule::kUsesState1) store(d, x.state1, span.state1, f.state, i);
  if constexpr (Rule::kUsesState2) store(d, x.state2, span.state2, f.state, i);
  store(d, x.param, s.result, Rule::kWritesParam ? f.param : DType::kFloat32, i);
  if (f.has_copy) store(d, x.param, span.copy_out, f.copy, i);
}

/// The last elements, fewer than a vector, through padded copies: the same vector code rounds them.
template <class Rule>
void step_tail(const Rule& rule, const Streams& s, int64_t i) {
  const FloatTag d;
  const OptimizerSpan& span = s.span;
  const int64_t count = span.numel - i;
  Lanes x;
  x.param = load_part(d, span.param, span.param_dtype, i, count);
  x.grad = hn::Mul(load_part(d, span.grad, span.grad_dtype, i, count), broadcast(span.grad_scale));
  if constexpr (Rule::kUsesState1) x.state1 = load_part(d, span.state1, span.state_dtype, i, count);
  if constexpr (Rule::kUsesState2) x.state2 = load_part(d, span.state2, span.state_dtype, i, count);
  rule.step(x);
  if constexpr (Rule::kUsesState1) store_part(d, x.state1, span.state1, span.state_dtype, i, count);
  if constexpr (Rule::kUsesState2) store_part(d, x.state2, span.state2, span.state_dtype, i, count);
  store_part(d, x.param, s.result, Rule::kWritesParam ? span.param_dtype : DType::kFloat32, i, count);
  if (span.copy_out != nullptr) store_part(d, x.param, span.copy_out, span.copy_dtype, i, count);
}

template <class Rule, class Formats>
void run_with(const Rule& rule, const Streams& streams, Formats formats) {
  const Streams s = streams;  // a local copy: the stores below cannot alias it, so the pointers stay in registers
  const V grad_scale = broadcast(s.span.grad_scale);
  int64_t i = 0;
  for (; i + kFloatLanes <= s.span.numel; i += kFloatLanes) step_vector(rule, s, formats, grad_scale, i);
  if (i < s.span.numel) step_tail(rule, s, i);
}

template <DType kGrad, class Rule>
bool run_fixed(const Rule& rule, const Streams& s) {
  constexpr DType kHalf = kGrad == DType::kFloat16 ? DType::kFloat16 : DType::kBFloat16;
  if (s.span.copy_out == nullptr) {
    run_with(rule, s, FixedFormats<kGrad, kHalf, false>());
  } else if (s.span.copy_dtype == kHalf) {
    run_with(rule, s, FixedFormats<kGrad, kHalf, true>());
  } else {
    return false;
  }
  return true;
}

template <class Rule>
void run(const Rule& rule, const Streams& s) {
  const OptimizerSpan& span = s.span;
  if (span.param_dtype == DType::kFloat32 && span.state_dtype == DType::kFloat32) {
    if (span.grad_dtype == DType::kFloat32 && run_fixed<DType::kFloat32>(rule, s)) return;
    if (span.grad_dtype == DType::kBFloat16 && run_fixed<DType::kBFloat16>(rule, s)) return;
    if (span.grad_dtype == DType::kFloat16 && run_fixed<DType::kFloat16>(rule, s)) return;
  }
  run_with(rule, s,
           AnyFormats{span.param_dtype, span.grad_dtype, span.state_dtype, span.copy_dtype, span.copy_out != nullptr});
}

template <class Rule>
void run_in_place(const Rule& rule, const OptimizerSpan& span) {
  run(rule, Streams{span, span.param});
}

void adam(const AdamConstants& constants, const OptimizerSpan& span) {
  constants.decoupled ? run_in_place(AdamRule<true>(constants), span) : run_in_place(AdamRule<false>(constants), span);
}

void lion(const LionConstants& constants, const OptimizerSpan& span) {
  run_in_place(LionRule(constants), span);
}

void adagrad(const AdagradConstants& constants, const OptimizerSpan& span) {
  run_in_place(AdagradRule(constants), span);
}

template <Momentum kMomentum>
void sgd_with(const SgdConstants& constants, const OptimizerSpan& span) {
  constants.first_step ? run_in_place(SgdRule<kMomentum, true>(constants), span)
                       : run_in_place(SgdRule<kMomentum, false>(constants), span);
}

void sgd(const SgdConstants& constants, const OptimizerSpan& span) {
  if (constants.momentum == 0.0f) return run_in_place(SgdRule<Momentum::kNone, false>(constants), span);
  constants.nesterov ? sgd_with<Momentum::kNesterov>(constants, span) : sgd_with<Momentum::kPlain>(constants, span);
}

void lamb_update(const LambConstants& constants, const OptimizerSpan& span, float* update) {
  Streams streams{span, update};
  streams.span.copy_out = nullptr;
  constants.eps_inside_sqrt ? run(LambRule<true>(constants), streams) : run(LambRule<false>(constants), streams);
}

void lamb_apply(float step, const float* update, const OptimizerSpan& span) {
  OptimizerSpan with_update = span;
  with_update.grad = update;
  with_update.grad_dtype = DType::kFloat32;
  with_update.grad_scale = 1.0f;
  sgd(SgdConstants{step, 0.0f, 1.0f, 0.0f, false, false}, with_update);
}

void fill_optimizers(KernelTable& table) {
  table.adam = adam;
  table.lion = lion;
  table.adagrad = adagrad;
  table.sgd = sgd;
  table.lamb_update = lamb_update;
  table.lamb_apply = lamb_apply;
}

}  // namespace HWY_NAMESPACE
}  // namespace deepscale::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace deepscale::kernels {

void fill_optimizer_kernels(int64_t target, KernelTable& table) {
  DEEPSCALE_FOR_TARGET(fill_optimizers, target)(table);
}

}  // namespace deepscale::kernels
#endif  // HWY_ONCE
