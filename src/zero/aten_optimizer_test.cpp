// The path for devices without kernels of ours, compared with the kernels on the CPU.
#include "zero/aten_optimizer.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

namespace deepscale {
namespace {

constexpr int64_t kNumel = 1000;

at::Tensor wave(double phase, at::ScalarType dtype = at::kFloat) {
  return at::arange(kNumel, at::kFloat).mul(0.37).add(phase).sin().to(dtype);
}

UpdateRun make_run(const NativeOptimizerOptions& options) {
  UpdateRun run;
  run.master = wave(0.0, options.master_dtype);
  for (size_t k = 0; k < options.state_names().size(); ++k) {
    run.states.push_back(at::zeros({kNumel}, options.state_dtype));
  }
  run.copy_out = at::zeros({kNumel}, at::kBFloat16);
  return run;
}

void expect_close(const UpdateRun& a, const UpdateRun& b, double tolerance) {
  EXPECT_TRUE(at::allclose(a.master.to(at::kFloat), b.master.to(at::kFloat), tolerance, tolerance));
  EXPECT_TRUE(at::allclose(a.copy_out.to(at::kFloat), b.copy_out.to(at::kFloat), 1e-2, 1e-2));
  for (size_t k = 0; k < a.states.size(); ++k) {
    EXPECT_TRUE(at::allclose(a.states[k].to(at::kFloat), b.states[k].to(at::kFloat), tolerance, tolerance)) << k;
  }
}

struct Case {
  OptimizerKind kind;
  bool decoupled = true;
  bool bias_correction = true;
  bool nesterov = false;
  GroupHyper hyper;
};

TEST(AtenOptimizer, AgreesWithTheKernelsOnTheCpu) {
  const GroupHyper adam = {{"lr", 1e-2}, {"beta1", 0.8}, {"beta2", 0.95}, {"eps", 1e-6}, {"weight_decay", 0.1}};
  const GroupHyper sgd = {{"lr", 1e-2}, {"momentum", 0.9}, {"weight_decay", 0.1}};
  for (const Case& c : std::vector<Case>{{OptimizerKind::kAdam, true, true, false, adam},
                                         {OptimizerKind::kAdam, false, true, false, adam},
                                         {OptimizerKind::kAdam, true, false, false, adam},
                                         {OptimizerKind::kLion, true, true, false, adam},
                                         {OptimizerKind::kAdagrad, true, true, false, adam},
                                         {OptimizerKind::kSgd, true, true, true, sgd},
                                         {OptimizerKind::kSgd, true, true, false, sgd}}) {
    SCOPED_TRACE(static_cast<int>(c.kind));
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      NativeOptimizerOptions options;
      options.kind = c.kind;
      options.decoupled = c.decoupled;
      options.bias_correction = c.bias_correction;
      options.nesterov = c.nesterov;
      options.master_dtype = options.state_dtype = dtype;
      UpdateRun kernel = make_run(options), aten = make_run(options);
      for (int64_t step = 1; step <= 3; ++step) {
        kernel.grad = aten.grad = wave(static_cast<double>(step), at::kBFloat16);
        update_run(options, c.hyper, step, 0.5, kernel);
        aten::update_run(options, c.hyper, step, 0.5, aten);
      }
      expect_close(kernel, aten, dtype == at::kFloat ? 1e-5 : 2e-2);
    }
  }
}

TEST(AtenOptimizer, LambAgreesWithTheKernelsOnTheCpu) {
  NativeOptimizerOptions options;
  options.kind = OptimizerKind::kLamb;
  const GroupHyper hyper = {{"lr", 1e-2}, {"eps", 1e-6}, {"weight_decay", 0.1}};
  for (const bool inside : {false, true}) {
    options.eps_inside_sqrt = inside;
    UpdateRun kernel = make_run(options), aten = make_run(options);
    for (int step = 1; step <= 3; ++step) {
      kernel.grad = aten.grad = wave(step, at::kBFloat16);
      lamb_apply_update(0.3, lamb_raw_update(options, hyper, 0.5, kernel), kernel);
      aten::lamb_apply_update(0.3, aten::lamb_raw_update(options, hyper, 0.5, aten), aten);
    }
    expect_close(kernel, aten, 1e-5);
  }
}

}  // namespace
}  // namespace deepscale
