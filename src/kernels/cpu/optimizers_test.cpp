// Optimizer steps against scalar fp32 models written with std::fmaf (bit by bit, every SIMD target) and against the
// papers' formulas in double (within rounding).
#include "kernels/cpu/optimizers.h"

#include <gtest/gtest.h>

#include <functional>

#include "deepscale/error.h"
#include "kernels/cpu/test_support.h"

namespace deepscale::kernels {
namespace {

using testing::Buffer;
using testing::lengths;
using testing::make_buffer;
using testing::sample_values;
using testing::targets;

struct Element {
  float p, g, m, v;
};

/// One element's new values; a kernel and the scalar model of the same update.
struct Case {
  const char* name;
  std::function<void(const KernelTable&, const OptimizerSpan&)> run;
  std::function<void(Element&)> model;
};

const AdamConstants kAdam{0.9f, 0.1f, 0.999f, 0.001f, 1e-8f, 1.7f, 2e-3f, 1e-4f, true};
const LionConstants kLion{1e-3f, 0.9f, 0.1f, 0.99f, 0.01f, 1e-4f};
const AdagradConstants kAdagrad{1e-2f, 1e-10f, 0.01f};
const LambConstants kLamb{0.9f, 0.1f, 0.999f, 0.001f, 1e-6f, 0.01f, false};

void model_adam(const AdamConstants& c, Element& x) {
  float g = x.g, p = x.p;
  if (c.decoupled) {
    p = std::fmaf(-c.decay, p, p);
  } else {
    g = std::fmaf(c.decay, p, g);
  }
  x.m = std::fmaf(c.one_minus_beta1, g, c.beta1 * x.m);
  x.v = std::fmaf(c.one_minus_beta2 * g, g, c.beta2 * x.v);
  const float denominator = std::fmaf(std::sqrt(x.v), c.inv_sqrt_bc2, c.eps);
  x.p = std::fmaf(-c.step_size, x.m / denominator, p);
}

void model_lion(Element& x) {
  const float c = std::fmaf(kLion.one_minus_beta1, x.g, kLion.beta1 * x.m);
  x.p = std::fmaf(-kLion.decay, x.p, x.p) - std::copysign(kLion.lr, c);
  x.m = std::fmaf(kLion.one_minus_beta2, x.g, kLion.beta2 * x.m);
}

void model_adagrad(Element& x) {
  const float g = std::fmaf(kAdagrad.weight_decay, x.p, x.g);
  x.m = std::fmaf(g, g, x.m);
  x.p = std::fmaf(-kAdagrad.lr, g / (std::sqrt(x.m) + kAdagrad.eps), x.p);
}

void model_sgd(const SgdConstants& c, Element& x) {
  float g = std::fmaf(c.weight_decay, x.p, x.g);
  if (c.momentum != 0.0f) {
    x.m = c.first_step ? g : std::fmaf(c.one_minus_dampening, g, c.momentum * x.m);
    g = c.nesterov ? std::fmaf(c.momentum, x.m, g) : x.m;
  }
  x.p = std::fmaf(-c.lr, g, x.p);
}

AdamConstants coupled_adam() {
  AdamConstants c = kAdam;
  c.decoupled = false;
  c.decay = 0.01f;
  return c;
}

std::vector<Case> cases() {
  const auto adam_case = [](const char* name, AdamConstants c) {
    return Case{name, [c](const KernelTable& k, const OptimizerSpan& s) { k.adam(c, s); },
                [c](Element& x) { model_adam(c, x); }};
  };
  const auto sgd_case = [](const char* name, SgdConstants c) {
    return Case{name, [c](const KernelTable& k, const OptimizerSpan& s) { k.sgd(c, s); },
                [c](Element& x) { model_sgd(c, x); }};
  };
  return {
      adam_case("adamw", kAdam),
      adam_case("adam", coupled_adam()),
      {"lion", [](const KernelTable& k, const OptimizerSpan& s) { k.lion(kLion, s); }, model_lion},
      {"adagrad", [](const KernelTable& k, const OptimizerSpan& s) { k.adagrad(kAdagrad, s); }, model_adagrad},
      sgd_case("sgd", {1e-2f, 0.0f, 1.0f, 0.01f, false, false}),
      sgd_case("sgd momentum", {1e-2f, 0.9f, 0.8f, 0.01f, false, false}),
      sgd_case("sgd first step", {1e-2f, 0.9f, 0.8f, 0.01f, false, true}),
      sgd_case("sgd nesterov", {1e-2f, 0.9f, 1.0f, 0.01f, true, false}),
      sgd_case("sgd nesterov first step", {1e-2f, 0.9f, 1.0f, 0.01f, true, true}),
  };
}

/// The four streams of a span and its copy, at chosen dtypes, with the same values whatever the dtype.
struct Memory {
  Buffer param, grad, state1, state2, copy;

  Memory(const OptimizerSpan& like, int64_t numel, int64_t offset, unsigned seed, bool corners)
      : param(make_buffer(like.param_dtype, sample_values(numel, seed, corners), offset)),
        grad(make_buffer(like.grad_dtype, sample_values(numel, seed + 1, corners), offset)),
        state1(make_buffer(like.state_dtype, magnitudes(numel, seed + 2, corners), offset)),
        state2(make_buffer(like.state_dtype, magnitudes(numel, seed + 3, corners), offset)),
        copy(like.copy_dtype, numel, offset) {}

  OptimizerSpan span(const OptimizerSpan& like) {
    OptimizerSpan s = like;
    s.numel = param.numel();
    s.param = param.data();
    s.grad = grad.data();
    s.state1 = state1.data();
    s.state2 = state2.data();
    s.copy_out = copy.data();
    return s;
  }

  static std::vector<double> magnitudes(int64_t numel, unsigned seed, bool corners) {
    auto values = sample_values(numel, seed, corners);
    for (double& value : values) value = std::fabs(value);
    return values;
  }
};

/// The model applied to every element of `memory`, rounded to its dtypes.
void apply_model(const Case& c, Memory& memory, float grad_scale) {
  for (int64_t i = 0; i < memory.param.numel(); ++i) {
    Element x{memory.param.get_float(i), memory.grad.get_float(i) * grad_scale, memory.state1.get_float(i),
              memory.state2.get_float(i)};
    c.model(x);
    memory.param.set(i, x.p);
    memory.state1.set(i, x.m);
    memory.state2.set(i, x.v);
    memory.copy.set(i, x.p);
  }
}

void expect_same(const Memory& actual, const Memory& expected, const std::string& what) {
  for (const auto& [a, b, stream] : {std::tuple{&actual.param, &expected.param, "param"},
                                     {&actual.state1, &expected.state1, "state1"},
                                     {&actual.state2, &expected.state2, "state2"},
                                     {&actual.copy, &expected.copy, "copy"}}) {
    for (int64_t i = 0; i < a->numel(); ++i) {
      ASSERT_EQ(a->bits(i), b->bits(i)) << what << ", " << stream << "[" << i << "] of " << a->numel() << ": "
                                        << a->get(i) << ", expected " << b->get(i);
    }
    ASSERT_TRUE(a->guards_intact()) << what << ", " << stream << " was written outside its " << a->numel()
                                    << " elements";
  }
}

OptimizerSpan span_like(DType param, DType grad, DType state, DType copy) {
  OptimizerSpan like;
  like.param_dtype = param;
  like.grad_dtype = grad;
  like.state_dtype = state;
  like.copy_dtype = copy;
  like.grad_scale = 0.37f;
  return like;
}

void expect_model_bits(const Case& c, const OptimizerSpan& like, int64_t numel, int64_t offset, bool corners) {
  const unsigned seed = static_cast<unsigned>(numel * 7 + offset);
  Memory expected(like, numel, offset, seed, corners);
  apply_model(c, expected, like.grad_scale);
  for (const CpuTarget& target : targets()) {
    Memory actual(like, numel, offset, seed, corners);
    c.run(kernel_table_for(target), actual.span(like));
    expect_same(actual, expected, std::string(c.name) + " on " + target.name);
  }
}

constexpr DType kFloats[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

TEST(OptimizersTest, EveryLengthHasTheModelsBitsOnEveryTarget) {
  const OptimizerSpan like = span_like(DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kBFloat16);
  for (const Case& c : cases()) {
    for (int64_t numel : lengths()) {
      for (int64_t offset : {0, 1, 5}) expect_model_bits(c, like, numel, offset, /*corners=*/false);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(OptimizersTest, EveryCombinationOfDtypesHasTheModelsBits) {
  for (const Case& c : cases()) {
    for (DType param : kFloats) {
      for (DType grad : kFloats) {
        for (DType state : kFloats) {
          for (DType copy : kFloats) {
            for (int64_t numel : {37, 211}) {
              expect_model_bits(c, span_like(param, grad, state, copy), numel, 1, /*corners=*/false);
            }
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(OptimizersTest, InfinitiesNansSubnormalsAndSignedZerosHaveTheModelsBits) {
  for (const Case& c : cases()) {
    for (DType dtype : kFloats) {
      expect_model_bits(c, span_like(DType::kFloat32, dtype, DType::kFloat32, dtype), 4099, 3, /*corners=*/true);
      expect_model_bits(c, span_like(dtype, dtype, dtype, dtype), 1021, 3, /*corners=*/true);
    }
  }
}

TEST(OptimizersTest, SplittingASpanAnywhereChangesNoBit) {
  const OptimizerSpan like = span_like(DType::kFloat32, DType::kBFloat16, DType::kFloat32, DType::kBFloat16);
  constexpr int64_t kNumel = 257;
  for (const Case& c : cases()) {
    for (const CpuTarget& target : targets()) {
      const KernelTable table = kernel_table_for(target);
      Memory whole(like, kNumel, 0, 11, /*corners=*/true);
      c.run(table, whole.span(like));
      for (int64_t cut : {1, 15, 16, 17, 100, 255}) {
        Memory split(like, kNumel, 0, 11, /*corners=*/true);
        const OptimizerSpan all = split.span(like);
        OptimizerSpan first = all, second = all;
        first.numel = cut;
        second.numel = kNumel - cut;
        second.param = static_cast<float*>(all.param) + cut;
        second.grad = static_cast<const uint16_t*>(all.grad) + cut;
        second.state1 = static_cast<float*>(all.state1) + cut;
        second.state2 = static_cast<float*>(all.state2) + cut;
        second.copy_out = static_cast<uint16_t*>(all.copy_out) + cut;
        c.run(table, second);
        c.run(table, first);
        expect_same(split, whole, std::string(c.name) + " cut at " + std::to_string(cut) + " on " + target.name);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(OptimizersTest, WithoutCopyOutNothingElseChanges) {
  OptimizerSpan like = span_like(DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kBFloat16);
  for (const Case& c : cases()) {
    for (const CpuTarget& target : targets()) {
      Memory with(like, 53, 1, 5, false), without(like, 53, 1, 5, false);
      OptimizerSpan span = without.span(like);
      span.copy_out = nullptr;
      c.run(kernel_table_for(target), span);
      c.run(kernel_table_for(target), with.span(like));
      for (int64_t i = 0; i < 53; ++i) {
        ASSERT_EQ(without.param.bits(i), with.param.bits(i));
        ASSERT_EQ(without.copy.get(i), Buffer(DType::kBFloat16, 53).get(i)) << "the copy was written";
      }
    }
  }
}

TEST(OptimizersTest, LambUpdateAndApplyHaveTheModelsBits) {
  for (const bool inside : {false, true}) {
    LambConstants constants = kLamb;
    constants.eps_inside_sqrt = inside;
    const OptimizerSpan like = span_like(DType::kFloat32, DType::kFloat16, DType::kFloat32, DType::kFloat16);
    for (int64_t numel : lengths()) {
      for (const CpuTarget& target : targets()) {
        const KernelTable table = kernel_table_for(target);
        Memory actual(like, numel, 1, 3, false), expected(like, numel, 1, 3, false);
        Buffer update(DType::kFloat32, numel);
        const OptimizerSpan span = actual.span(like);
        table.lamb_update(constants, span, static_cast<float*>(update.data()));
        table.lamb_apply(0.25f, static_cast<const float*>(update.data()), span);
        const Case model{"lamb", nullptr, [&](Element& x) {
                           x.m = std::fmaf(constants.one_minus_beta1, x.g, constants.beta1 * x.m);
                           x.v = std::fmaf(constants.one_minus_beta2 * x.g, x.g, constants.beta2 * x.v);
                           const float root = inside ? std::sqrt(x.v + constants.eps) : std::sqrt(x.v) + constants.eps;
                           x.p = std::fmaf(-0.25f, std::fmaf(constants.weight_decay, x.p, x.m / root), x.p);
                         }};
        apply_model(model, expected, like.grad_scale);
        expect_same(actual, expected, std::string("lamb on ") + target.name);
        ASSERT_TRUE(update.guards_intact());
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Five steps by the public functions against the papers' formulas in double.
struct Trajectory {
  std::vector<double> p, m, v, g;
  std::vector<float> fp, fm, fv;
  explicit Trajectory(int64_t numel)
      : p(sample_values(numel, 21, false)),
        m(p.size()),
        v(p.size()),
        g(p.size()),
        fp(p.begin(), p.end()),
        fm(p.size()),
        fv(p.size()) {
    p.assign(fp.begin(), fp.end());
  }

  void check(const std::function<void(int, const OptimizerSpan&)>& kernel,
             const std::function<void(int, double&, double, double&, double&)>& formula) {
    for (int t = 1; t <= 5; ++t) {
      const auto values = sample_values(static_cast<int64_t>(p.size()), 100 + static_cast<unsigned>(t), false);
      std::vector<float> grads(values.begin(), values.end());
      OptimizerSpan span;
      span.numel = static_cast<int64_t>(p.size());
      span.param = fp.data();
      span.grad = grads.data();
      span.state1 = fm.data();
      span.state2 = fv.data();
      span.grad_scale = 0.5f;
      kernel(t, span);
      for (size_t i = 0; i < p.size(); ++i) {
        formula(t, p[i], 0.5 * grads[i], m[i], v[i]);
        ASSERT_NEAR(fp[i], p[i], 2e-6 * std::max(1.0, std::fabs(p[i]))) << "step " << t << ", element " << i;
      }
    }
  }
};

TEST(OptimizersTest, AdamFollowsThePaper) {
  for (const bool decoupled : {true, false}) {
    AdamArgs args;
    args.lr = 1e-2;
    args.weight_decay = 0.1;
    args.decoupled = decoupled;
    Trajectory(301).check(
        [&](int t, const OptimizerSpan& span) {
          args.bias_correction1 = 1 - std::pow(args.beta1, t);
          args.bias_correction2 = 1 - std::pow(args.beta2, t);
          adam_step(args, span);
        },
        [&](int t, double& p, double g, double& m, double& v) {
          if (!decoupled) g += 0.1 * p;
          m = 0.9 * m + 0.1 * g;
          v = 0.999 * v + 0.001 * g * g;
          if (decoupled) p -= 1e-2 * 0.1 * p;
          p -= 1e-2 * (m / (1 - std::pow(0.9, t))) / (std::sqrt(v / (1 - std::pow(0.999, t))) + 1e-8);
        });
  }
}

TEST(OptimizersTest, LionFollowsThePaper) {
  LionArgs args;
  args.lr = 1e-3;
  args.weight_decay = 0.1;
  args.beta2 = 0.99;
  Trajectory(301).check([&](int, const OptimizerSpan& span) { lion_step(args, span); },
                        [](int, double& p, double g, double& m, double&) {
                          p = p * (1 - 1e-4) - 1e-3 * std::copysign(1.0, 0.9 * m + 0.1 * g);
                          m = 0.99 * m + 0.01 * g;
                        });
}

TEST(OptimizersTest, AdagradFollowsThePaper) {
  AdagradArgs args;
  args.weight_decay = 0.1;
  Trajectory(301).check([&](int, const OptimizerSpan& span) { adagrad_step(args, span); },
                        [](int, double& p, double g, double& m, double&) {
                          g += 0.1 * p;
                          m += g * g;
                          p -= 1e-2 * g / (std::sqrt(m) + 1e-10);
                        });
}

TEST(OptimizersTest, SgdFollowsTorch) {
  for (const bool nesterov : {false, true}) {
    SgdArgs args;
    args.lr = 1e-2;
    args.momentum = 0.9;
    args.dampening = nesterov ? 0.0 : 0.25;
    args.weight_decay = 0.1;
    args.nesterov = nesterov;
    Trajectory(301).check(
        [&](int t, const OptimizerSpan& span) {
          args.first_step = t == 1;
          sgd_step(args, span);
        },
        [&](int t, double& p, double g, double& m, double&) {
          g += 0.1 * p;
          m = t == 1 ? g : 0.9 * m + (1 - args.dampening) * g;
          p -= 1e-2 * (nesterov ? g + 0.9 * m : m);
        });
  }
}

TEST(OptimizersTest, LionMovesByTheRateWhenTheDirectionIsZero) {
  float param = 1.0f, grad = 0.0f, momentum = 0.0f;
  OptimizerSpan span;
  span.numel = 1;
  span.param = &param;
  span.grad = &grad;
  span.state1 = &momentum;
  lion_step({.lr = 0.25}, span);
  EXPECT_EQ(param, 0.75f);
}

TEST(OptimizersTest, UnusableSpansAreRefusedByName) {
  std::vector<float> memory(8);
  OptimizerSpan span;
  span.numel = 8;
  span.param = memory.data();
  span.grad = memory.data();
  EXPECT_THROW(adam_step({}, span), Error);  // no states
  EXPECT_THROW(lion_step({}, span), Error);
  EXPECT_NO_THROW(sgd_step({}, span));
  EXPECT_THROW(sgd_step({.momentum = 0.9}, span), Error);
  EXPECT_THROW(lamb_apply(0.1f, nullptr, span), Error);
  span.grad_dtype = DType::kInt32;
  EXPECT_THROW(sgd_step({}, span), UnsupportedError);
  span.grad_dtype = DType::kFloat32;
  span.copy_out = span.param;
  EXPECT_THROW(sgd_step({}, span), Error);  // bf16 over the fp32 master
  span.copy_out = nullptr;
  span.numel = -1;
  EXPECT_THROW(sgd_step({}, span), Error);
  span = {};
  EXPECT_NO_THROW(adam_step({}, span));  // nothing to do
}

}  // namespace
}  // namespace deepscale::kernels
